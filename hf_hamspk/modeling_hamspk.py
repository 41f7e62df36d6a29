"""Margins on the target of a head: none, additive, angular, and the hinged one of Real AM-Softmax.

Letters: `B` batch, `K` speakers.

Training heads, each a *similarity* to K learned speaker centres times a *margin*.

Letters: `B` batch, `K` speakers, `D` embedding size.

| head                 | similarity             | margin on the target     | logits                             |
|----------------------|------------------------|--------------------------|------------------------------------|
| `softmax`            | linear, with bias      | none                     | `W x + b`                          |
| `scaled_softmax`     | linear, with bias      | none                     | `s (W x + b)`                      |
| `normalized_softmax` | cosine                 | none                     | `s cos`                            |
| `am`                 | cosine                 | additive                 | `s (cos - m)`                      |
| `aam`                | cosine                 | additive in the angle    | `s cos(angle + m)`                 |
| `ram`                | cosine                 | additive, hinged         | `s (cos - m)`, easy impostors at 0 |
| `h`                  | minus Poincaré distance | none                    | `-s d`                             |
| `ham`                | minus Poincaré distance | additive                | `-s (d + m)`                       |
| `joint`              | both kinds             | of each                  | weighted sum of the two losses     |

The logits column is the target's; every other speaker has the same expression at m = 0. `h` is `ham` at m = 0. All of
it runs in float32 (or float64) with autocast off, and no tensor of B x K x D is made.

The loss here is the plain form, over the B x K similarities. A trainer may set `SpeakerHead.engine`, which computes the
same loss otherwise: that of `hf_hamspk.losses` goes over blocks of speakers and needs no tensor of B x K.

References: Fang and He 2026, arXiv 2601.19709, and the released code, whose numbers the heads agree with (RAM included:
the released form sets the logit of an easy impostor to 0). Wang et al. 2018 (AM), Deng et al. 2019 (AAM), Li et al.
2022, arXiv 2110.09116 (RAM).

Speaker models: waveforms in, embeddings out, and a head for training.

Letters: `B` batch, `L` samples, `T` frames, `D` embedding size, `K` speakers.
"""

import math
import os
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import XVectorOutput
from transformers.utils import logging
from transformers.utils.generic import ModelOutput
from transformers.utils.hub import cached_file

from .audio_hamspk import check_batch, check_labels, make_feature_extractor
from .calibration_hamspk import CALIBRATION_FILE, COHORT_FILE, Calibration, Cohort
from .configuration_hamspk import HEAD_PARTS, LARGEST_MARGIN, HamSpkConfig
from .geometry_hamspk import (
    MAX_TANGENT_RADIUS,
    at_least_float32,
    distance,
    length_mask,
    normalize,
    pairwise_distance,
    project,
)
from .networks_hamspk import (
    AttentivePooling,
    Deviation,
    Ecapa,
    FactorisedAttentivePooling,
    FilterBank,
    LayerMix,
    StatisticsPooling,
    XVectorPooling,
    batch_norm,
    keep_valid,
    make_frontend,
)
from .pipeline_hamspk import announce_pipeline
from .verification_hamspk import SpeakerComparison

# Standard deviation of the centres of the released code: they start almost at the origin.
CENTRE_STD = 1e-3
# A learned curvature stays between this and the largest that float32 can hold with the clip radius in use.
SMALLEST_CURVATURE = 1e-2
# Arguments of `from_pretrained` that say where a file is looked for.
FETCHING_ARGUMENTS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")
# Arguments of `save_pretrained` that say where on the Hub the files go.
HUB_ARGUMENTS = ("push_to_hub", "repo_id", "token", "revision", "create_pr", "private", "commit_message")
Pooling = StatisticsPooling | XVectorPooling | AttentivePooling | FactorisedAttentivePooling


def add_angle(cosine: Tensor, margin: float) -> Tensor:
    """`cos(angle + margin)`, continued by `cosine - margin sin(margin)` past `angle = pi - margin`.

    Args:
        cosine: any shape, range [-1, 1].
        margin: radians, in [0, pi).
    """
    # Rounding may push 1 - cos^2 below 0, and the slope of the square root is infinite there.
    sine = (1 - cosine.square()).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
    shifted = cosine * math.cos(margin) - sine * math.sin(margin)
    past_turn = cosine <= math.cos(math.pi - margin)
    return torch.where(past_turn, cosine - margin * math.sin(math.pi - margin), shifted)


def add_margin(target: Tensor, kind: str, margin: float) -> Tensor:
    """The similarity to the own centre, made harder.

    Args:
        target: any shape.
        kind: `"none"`, `"additive"`, `"angular"` or `"real"`.
        margin: at least 0, in units of the similarity (radians for `"angular"`).
    """
    if kind == "none":
        return target
    return add_angle(target, margin) if kind == "angular" else target - margin


def apply_margin(similarity: Tensor, labels: Tensor, kind: str, margin: float, scale: float) -> Tensor:
    """Scaled logits with the margin on the target.

    Args:
        similarity: `(B, K)`.
        labels: `(B,)`, in [0, K).
        kind, margin: as in `add_margin`.
        scale: positive.

    Returns:
        `(B, K)` logits.
    """
    if kind == "none":
        return scale * similarity
    index = labels[:, None]
    target = add_margin(similarity.gather(1, index), kind, margin)
    logits = scale * similarity.scatter(1, index, target)
    if kind == "real":
        logits = logits.masked_fill(logits < scale * target, 0.0)
    return logits


logger = logging.get_logger(__name__)


class HeadOutput(NamedTuple):
    """Result of a head.

    Attributes:
        logits: `(B, K)`, scaled, without margin: what identifies a training speaker; None where they were not asked
            for.
        loss: scalar, the mean cross-entropy with margin; None without labels.
    """

    logits: Tensor | None
    loss: Tensor | None


class LossEngine(Protocol):
    """Computes the loss of a head in training."""

    @property
    def gives_logits(self) -> bool:
        """Whether this process holds all centres, so that there are logits."""
        ...

    def __call__(self, head: "SpeakerHead", embeddings: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy with margin, a scalar, of embeddings `(B, D)` and labels `(B,)`."""
        ...


def make_centres(config: HamSpkConfig) -> nn.Parameter:
    """Centres `(K, D)`, to be drawn by their owner."""
    return nn.Parameter(torch.empty(cast(int, config.num_labels), config.embedding_size))


class LinearSimilarity(nn.Module):
    """`W x + b`: `(B, D)` to `(B, K)`."""

    kind = "linear"

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.weight = make_centres(config)
        self.bias = nn.Parameter(torch.empty(self.weight.shape[0]))
        self.reset_centres()

    def curvature(self) -> None:
        """A linear similarity has none."""

    def reset_centres(self) -> None:
        """Draw the centres as `torch.nn.Linear` draws its weights."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        init.uniform_(self.weight, -bound, bound)
        init.zeros_(self.bias)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        return F.linear(embeddings, self.weight.to(embeddings.dtype), self.bias.to(embeddings.dtype))


class CosineSimilarity(nn.Module):
    """Cosine to the centres: `(B, D)` to `(B, K)`, range [-1, 1]."""

    kind = "cosine"
    bias: None = None

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.weight = make_centres(config)
        self.reset_centres()

    def curvature(self) -> None:
        """A cosine has none."""

    def reset_centres(self) -> None:
        """Draw the centres from Xavier's normal distribution, as the released code does."""
        init.xavier_normal_(self.weight)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        return normalize(embeddings) @ normalize(self.weight.to(embeddings.dtype)).mT


class HyperbolicSimilarity(nn.Module):
    """Minus the distance to the centres, in the projection of the configuration: `(B, D)` to `(B, K)`, at most 0.

    With labels, the distance of each embedding to its own centre is computed from the difference of the two points,
    which is exact where they almost coincide; the matrix product serves all the others.
    """

    kind = "hyperbolic"
    bias: None = None

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.projection = config.projection
        self.clip_radius = config.clip_radius
        self.initial_curvature = cast(float, config.curvature)
        self.largest_curvature = (MAX_TANGENT_RADIUS / config.clip_radius) ** 2
        self.weight = make_centres(config)
        self.log_curvature = nn.Parameter(torch.empty(())) if config.learnable_curvature else None
        self.reset_centres()

    def reset_centres(self) -> None:
        """Draw the centres close to the origin, as the released code does, and set the initial curvature."""
        init.normal_(self.weight, std=CENTRE_STD)
        if self.log_curvature is not None:
            init.constant_(self.log_curvature, math.log(self.initial_curvature))

    def curvature(self) -> float | Tensor:
        """`c` in use: a number, or a scalar tensor where it is learned (in float32 or better, inside its bounds)."""
        if self.log_curvature is None:
            return self.initial_curvature
        log_c = at_least_float32(self.log_curvature)
        # The bound acts on the value and not on the gradient, or a parameter that steps over it could not come back.
        bounded = log_c.clamp(math.log(SMALLEST_CURVATURE), math.log(self.largest_curvature))
        return (log_c + (bounded - log_c).detach()).exp()

    def recorded_curvature(self) -> float:
        """`c` in use as a number that the configuration accepts: rounding may put it just over its bound."""
        return min(float(torch.as_tensor(self.curvature()).detach()), self.largest_curvature)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        c = self.curvature()
        x, factor = project(embeddings, self.projection, c, self.clip_radius)
        centres, _ = project(self.weight.to(embeddings.dtype), self.projection, c, self.clip_radius)
        distances = pairwise_distance(x, centres)
        if labels is not None:
            own = type(centres)(centres.position[labels], centres.conformal[labels])
            distances = distances.scatter(1, labels[:, None], distance(x, own)[:, None])
        return -distances * factor


SIMILARITIES = {"linear": LinearSimilarity, "cosine": CosineSimilarity, "hyperbolic": HyperbolicSimilarity}


class SpeakerHead(nn.Module):
    """One head of the table above, chosen by `config.head`.

    The margin is a plain attribute, to be moved by a schedule with `set_margin`; it is saved in the configuration and
    not in the weights. `engine` belongs to a training run and is saved nowhere.

    Args:
        config: `head`, `num_labels`, `embedding_size`, `scale`, `margin`, and for hyperbolic heads `projection`,
            `curvature`, `clip_radius` and `learnable_curvature`.
        head: overrides `config.head`.
    """

    def __init__(self, config: HamSpkConfig, head: str | None = None):
        super().__init__()
        similarity, self.margin_kind = HEAD_PARTS[config.head if head is None else head]
        self.similarity = SIMILARITIES[similarity](config)
        self.scale = cast(float, config.scale)
        self.projection, self.clip_radius = config.projection, float(config.clip_radius)
        self.engine: LossEngine | None = None
        self.set_margin(cast(float, config.margin))

    def set_margin(self, margin: float) -> None:
        """Use `margin` (in [0, 3)) from now on. Heads without a margin ignore it."""
        if not 0 <= margin < LARGEST_MARGIN:
            raise ValueError(f"A margin is at least 0 and below {LARGEST_MARGIN:g}, got {margin}.")
        self.margin = float(margin)

    def centre_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that have a row for each speaker, by name."""
        return {name: p for name, p in self.named_parameters() if name in ("similarity.weight", "similarity.bias")}

    def forward(
        self, embeddings: Tensor, labels: Tensor | None = None, return_logits: bool | None = None
    ) -> HeadOutput:
        """Logits and loss.

        Args:
            embeddings: `(B, D)`.
            labels: `(B,)` int64 in [0, K), or None.
            return_logits: None for logits unless a loss is trained on, which needs no tensor of B x K.
        """
        if return_logits is None:
            return_logits = labels is None or not self.training
        if return_logits and self.engine is not None and not self.engine.gives_logits:
            raise ValueError("No rank holds all centres, so there are no logits: ask the saved model for them.")
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = at_least_float32(embeddings)
            logits = self.scale * self.similarity(embeddings, labels) if return_logits else None
            if labels is None:
                return HeadOutput(logits, None)
            if self.engine is None:
                return HeadOutput(logits, self.plain_loss(embeddings, labels))
            return HeadOutput(logits, self.engine(self, embeddings, labels))

    def plain_loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss as its definition reads, over the B x K similarities."""
        similarity = self.similarity(embeddings, labels)
        return F.cross_entropy(apply_margin(similarity, labels, self.margin_kind, self.margin, self.scale), labels)


class JointHead(nn.Module):
    """`lambda_1` times a Euclidean head plus `lambda_2` times HAM, each with its own centres.

    The released code publishes 0.3 RAM + 0.7 HAM (c = 3, s = 30, m = 0.2). The logits are those of HAM.

    Args:
        config: as for `SpeakerHead`, and `euclidean_head`, `euclidean_weight`, `hyperbolic_weight`.
    """

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.euclidean = SpeakerHead(config, config.euclidean_head)
        self.hyperbolic = SpeakerHead(config, "ham")
        self.euclidean_weight = config.euclidean_weight
        self.hyperbolic_weight = config.hyperbolic_weight

    @property
    def margin(self) -> float:
        """The margin of both parts."""
        return self.hyperbolic.margin

    def set_margin(self, margin: float) -> None:
        """Use `margin` (in [0, 3)) in both parts from now on."""
        self.euclidean.set_margin(margin)
        self.hyperbolic.set_margin(margin)

    def centre_parameters(self) -> dict[str, nn.Parameter]:
        """As `SpeakerHead.centre_parameters`, of both parts."""
        parts = {"euclidean": self.euclidean, "hyperbolic": self.hyperbolic}
        return {f"{part}.{name}": p for part, head in parts.items() for name, p in head.centre_parameters().items()}

    def forward(
        self, embeddings: Tensor, labels: Tensor | None = None, return_logits: bool | None = None
    ) -> HeadOutput:
        """Logits of the hyperbolic part and the weighted sum of both losses; arguments as in `SpeakerHead`."""
        logits, hyperbolic = self.hyperbolic(embeddings, labels, return_logits)
        if labels is None or hyperbolic is None:
            return HeadOutput(logits, None)
        euclidean = cast(Tensor, self.euclidean(embeddings, labels, False).loss)
        return HeadOutput(logits, self.euclidean_weight * euclidean + self.hyperbolic_weight * hyperbolic)

    def plain_loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """As `SpeakerHead.plain_loss`."""
        euclidean, hyperbolic = (part.plain_loss(embeddings, labels) for part in (self.euclidean, self.hyperbolic))
        return self.euclidean_weight * euclidean + self.hyperbolic_weight * hyperbolic


def make_head(config: HamSpkConfig) -> SpeakerHead | JointHead:
    """The head that `config.head` names."""
    return JointHead(config) if config.head == "joint" else SpeakerHead(config)


@dataclass
class HamSpkOutput(ModelOutput):
    """Output of `HamSpkModel`.

    Args:
        embeddings: `(B, D)`, neither normalised nor projected.
        last_hidden_state: `(B, T, C)` frames that were pooled, 0 where not valid; None for MHFA.
    """

    embeddings: Tensor | None = None
    last_hidden_state: Tensor | None = None


class HamSpkPreTrainedModel(SpeakerComparison, PreTrainedModel):
    """Weights, saving and the use of a speaker model, shared by the model with and without head."""

    config: HamSpkConfig
    config_class = HamSpkConfig
    base_model_prefix = "hamspk"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    # The head of a trained model is left out when only the embeddings are wanted.
    _keys_to_ignore_on_load_unexpected = [r"^head\."]  # noqa: RUF012 (transformers declares it so)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d | nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.BatchNorm1d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if module.running_mean is not None and module.running_var is not None:
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
        elif isinstance(module, LinearSimilarity | CosineSimilarity | HyperbolicSimilarity):
            module.reset_centres()
        elif isinstance(module, LayerMix):
            module.restart()
        elif isinstance(module, FilterBank):
            module.restore_constants()

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs) -> None:
        if self.config.backbone_config is not None:
            super()._set_gradient_checkpointing(enable, *args, **kwargs)
        elif enable:
            raise ValueError(
                "Gradient checkpointing is for transformers backbones: computing ECAPA-TDNN twice would update its "
                "batch statistics twice. To save memory, use smaller batches or shorter crops."
            )

    def get_input_embeddings(self) -> None:
        """There are no token embeddings; quantisation asks."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args, calibrated: bool = True, **kwargs
    ):
        """As in transformers, of safetensors only, and the calibration and the cohort that lie beside the weights.

        Args:
            pretrained_model_name_or_path: as in transformers.
            args: as in transformers.
            calibrated: False leaves calibration and cohort out, for example before further training.
            kwargs: as in transformers.

        Raises:
            ValueError: they were altered or are of another model.
        """
        # Reading a pickle can run code.
        kwargs.setdefault("use_safetensors", True)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None and calibrated:
            commit = getattr(model.config, "_commit_hash", None)
            where = kwargs if commit is None else kwargs | {"revision": commit}
            model.load_verification(pretrained_model_name_or_path, **where)
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, *args, **kwargs) -> None:
        """As in transformers, and the files of the feature extractor, the calibration, the cohort and the pipeline."""
        announce_pipeline(self.config)
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            folder = os.fspath(save_directory)
            to_hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            make_feature_extractor(self.config.sampling_rate).save_pretrained(folder, **to_hub)
            before = self._get_files_timestamps(folder)
            for name in self.save_verification(folder):
                before.pop(name, None)
            if to_hub.get("push_to_hub") and before.keys() != set(os.listdir(folder)):
                upload = {
                    name: to_hub[name]
                    for name in ("token", "revision", "create_pr", "commit_message")
                    if name in to_hub
                }
                repository = to_hub.get("repo_id", os.path.basename(os.path.normpath(folder)))
                self._upload_modified_files(folder, repository, before, **upload)

    def load_verification(self, source: str | os.PathLike, **where) -> None:
        """Read the calibration and the cohort beside the weights of this model, if they are there.

        Args:
            source: folder, or name on the Hub.
            where: arguments of `from_pretrained`: revision, token, cache_dir, subfolder, local_files_only, ...

        Raises:
            ValueError: a file was altered or is of another model; the message says which to delete.
        """
        files = {}
        for name in (CALIBRATION_FILE, COHORT_FILE):
            path = cached_file(
                source,
                name,
                **{key: value for key, value in where.items() if key in FETCHING_ARGUMENTS},
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            if path is not None:
                files[name] = path
        if not files:
            return
        if not self._keeps_fingerprint():
            logger.warning(
                f"{source} holds a calibration, which is left out: these weights were rounded otherwise than it was "
                "measured with. Load the model in float32 or bfloat16 to use it."
            )
            return
        fingerprint = self.fingerprint()
        try:
            if CALIBRATION_FILE in files:
                calibration = Calibration.load(files[CALIBRATION_FILE])
                calibration.check_model(fingerprint, self.config.similarity)
                if calibration.normalisation != "none" and COHORT_FILE not in files:
                    logger.warning(
                        f"{source} holds a calibration of scores that are normalised with a cohort, and no "
                        f"{COHORT_FILE}: the model gives scores, no decisions. Calibrate it anew for those."
                    )
                    return
                self.calibration = calibration
            if COHORT_FILE in files:
                self.cohort = Cohort.load(files[COHORT_FILE], fingerprint)
        except ValueError as error:
            raise ValueError(
                f"The weights of {source} come with files that do not fit them. {error} To use the model without "
                f"decisions, load it with calibrated=False, or delete {' and '.join(files.values())}."
            ) from error

    def save_verification(self, folder: str | os.PathLike) -> list[str]:
        """Write the calibration and the cohort into a folder, if they are of the weights as they are now.

        What is there of another model, or is left out, is deleted: beside these weights it would be refused.

        Returns:
            The names of the files that were written.
        """
        written = []
        kept = {CALIBRATION_FILE: self.calibration, COHORT_FILE: self.cohort}
        fingerprint = None if self.calibration is None and self.cohort is None else self.fingerprint()
        for name, part in kept.items():
            path = os.path.join(os.fspath(folder), name)
            if part is not None and part.fingerprint == fingerprint:
                part.save(path)
                written.append(name)
                continue
            if part is not None:
                logger.warning(f"{name} is not saved: it was measured with other weights than these. Calibrate anew.")
            if os.path.exists(path):
                os.remove(path)
        return written

    def _keeps_fingerprint(self) -> bool:
        """Whether rounding to bfloat16 gives the same numbers as it gave of the float32 weights."""
        exact = (torch.float64, torch.float32, torch.bfloat16)
        weights = list(self.base_model.parameters())
        return all(weight.dtype in exact and not weight.is_meta for weight in weights)


def make_pooling(config: HamSpkConfig, channels: int, layers: int) -> Pooling:
    """The pooling that `config.pooling` names, of frames of `channels`, or of all `layers` of a backbone for MHFA."""
    smallest = float(config.pooling_smallest_variance)
    if config.pooling == "mhfa":
        return FactorisedAttentivePooling(layers, channels, config.pooling_channels, config.mhfa_heads)
    if config.pooling == "statistics":
        return StatisticsPooling(channels, Deviation(smallest))
    if config.pooling == "xvector":
        shapes = (config.tdnn_channels, config.tdnn_kernel_sizes, config.tdnn_dilations)
        return XVectorPooling(channels, *shapes, Deviation(smallest))
    deviation = Deviation(smallest, config.pooling_unbiased, float(config.pooling_variance_offset))
    hidden = config.pooling_channels
    return AttentivePooling(channels, hidden, config.pooling_context, config.pooling_hidden_norm, deviation)


class HamSpkModel(HamSpkPreTrainedModel):
    """Waveforms to speaker embeddings: front-end, ECAPA-TDNN or a transformers backbone, pooling, projection."""

    def __init__(self, config: HamSpkConfig):
        super().__init__(config)
        self.frontend = make_frontend(config)
        self.layer_mix: LayerMix | None = None
        layers = 0
        if config.backbone_config is None:
            self.backbone = Ecapa(config)
            channels = config.ecapa_output_channels
        else:
            backbone_config = config.backbone_config
            if not isinstance(backbone_config, PreTrainedConfig):
                raise ValueError(
                    "backbone_config must be a configuration; HamSpkConfig makes one of a dict it is given."
                )
            self.backbone = AutoModel.from_config(backbone_config)
            channels = backbone_config.hidden_size
            layers = backbone_config.num_hidden_layers + 1
            if config.pooling != "mhfa" and config.mix_layers:
                self.layer_mix = LayerMix(layers)
        pooling = make_pooling(config, channels, layers)
        self.pooling = pooling
        size = pooling.output_size
        self.pooled_norm = nn.BatchNorm1d(size) if config.normalize_pooled else nn.Identity()
        self.projection = nn.Linear(size, config.embedding_size)
        self.embedding_norm = nn.BatchNorm1d(config.embedding_size) if config.normalize_embedding else nn.Identity()
        self._freeze()
        self.post_init()

    @property
    def groups_by_length(self) -> bool:
        """Whether padding would change the backbone's frames.

        It normalises over time (group norm), or convolves many times over frames of which only those before the first
        convolution are zeroed (data2vec-audio).
        """
        backbone_config = self.config.backbone_config
        over_time = getattr(backbone_config, "feat_extract_norm", "layer") == "group"
        return over_time or getattr(backbone_config, "model_type", None) == "data2vec-audio"

    def freeze_backbone(self) -> None:
        """Stop the gradient of a transformers backbone and keep it in evaluation mode, also in `train()`."""
        if self.config.backbone_config is None:
            raise ValueError("freeze_backbone is for transformers backbones; ECAPA-TDNN is trained whole.")
        self.config.freeze_backbone = True
        self._freeze()

    def unfreeze_backbone(self) -> None:
        """Train the backbone, but for its feature encoder unless `config.freeze_feature_encoder` is False."""
        self.config.freeze_backbone = False
        self.backbone.requires_grad_(True)
        self.backbone.train(self.training)
        self._freeze()

    def _freeze(self) -> None:
        if self.config.freeze_backbone:
            self.backbone.requires_grad_(False)
            self.backbone.eval()
        elif self.config.freeze_feature_encoder and hasattr(self.backbone, "feature_extractor"):
            self.backbone.get_submodule("feature_extractor").requires_grad_(False)

    def train(self, mode: bool = True) -> "HamSpkModel":
        super().train(mode)
        # `from_pretrained` makes new parameters, which have a gradient again, and ends in `eval()`.
        self._freeze()
        return self

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> HamSpkOutput | tuple:
        """Embed a batch.

        Args:
            input_values: `(B, L)` waveforms in [-1, 1] at `config.sampling_rate`, padded on the right.
            attention_mask: `(B, L)`, 1 for samples and 0 for padding; None where nothing is padded.
            return_dict: False for a plain tuple.
            kwargs: ignored; what a processor may add.

        Raises:
            ValueError: not two-dimensional, a mask of another shape, shorter than one analysis window (25 ms), padded
                on the left, or a single utterance in training.
        """
        check_batch(input_values, attention_mask, self.frontend.smallest_length)
        norms = [norm for norm in (self.pooled_norm, self.embedding_norm) if not isinstance(norm, nn.Identity)]
        if any(norm.training for norm in norms) and input_values.shape[0] < 2:
            raise ValueError(
                "Batch normalisation in training needs at least 2 utterances per batch; drop the last batch."
            )
        lengths = None if attention_mask is None else attention_mask.long().sum(-1)
        features, lengths = self.frontend(input_values, lengths)
        if self.config.backbone_config is None:
            mask = None if lengths is None else length_mask(lengths, features.shape[-1])
            frames = self.backbone(features.to(self.dtype), mask)
            pooled = self.pooling(frames, mask)
        else:
            frames, pooled = self._pool_layers(features.to(self.dtype), lengths)
        pooled = batch_norm(self.pooled_norm, pooled.to(self.dtype), None)
        embeddings = self.embedding_norm(self.projection(pooled))
        output = HamSpkOutput(embeddings=embeddings, last_hidden_state=None if frames is None else frames.mT)
        return output.to_tuple() if return_dict is False else output

    def _pool_layers(self, waveforms: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Run a transformers backbone and pool its layers; frames `(B, C, T)` (None for MHFA) and `(B, pooled)`."""
        if lengths is not None and self.groups_by_length:
            hidden = self._layers_by_length(waveforms, lengths)
        else:
            samples_mask = None if lengths is None else length_mask(lengths, waveforms.shape[1]).long()
            hidden = self._layers(waveforms, samples_mask)
        mask = None
        if lengths is not None:
            # Every speech encoder of transformers has this method; the type checker sees a Module's attribute.
            frame_lengths = self.backbone._get_feat_extract_output_lengths(lengths)  # pyright: ignore[reportCallIssue]
            mask = length_mask(frame_lengths.clamp_min(1), hidden[0].shape[1])
        if isinstance(self.pooling, FactorisedAttentivePooling):
            return None, self.pooling(hidden, mask)
        mixed = hidden[0] if self.layer_mix is None else self.layer_mix(hidden)
        frames = keep_valid(mixed.mT, mask)
        return frames, self.pooling(frames, mask)

    def _layers(self, waveforms: Tensor, samples_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """What is pooled of the backbone, `(B, T, C)` each: all hidden states, or its output alone."""
        is_output_alone = self.layer_mix is None and not isinstance(self.pooling, FactorisedAttentivePooling)
        output = self.backbone(waveforms, attention_mask=samples_mask, output_hidden_states=not is_output_alone)
        return (output.last_hidden_state,) if is_output_alone else output.hidden_states

    def _layers_by_length(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """As `_layers`, each group of equal length run apart and unpadded, then padded with 0."""
        groups, places = [], []
        for length in lengths.unique().tolist():
            at = (lengths == length).nonzero()[:, 0]
            groups.append(self._layers(waveforms[at, :length]))
            places.append(at)
        size, order = groups[-1][0].shape[1], torch.cat(places).argsort()
        # The last group is the longest.
        return tuple(
            torch.cat([nn.functional.pad(part, (0, 0, 0, size - part.shape[1])) for part in layer])[order]
            for layer in zip(*groups, strict=True)
        )


class HamSpkForXVector(HamSpkPreTrainedModel):
    """A speaker model with its training head: embeddings, logits over the training speakers, loss."""

    def __init__(self, config: HamSpkConfig):
        super().__init__(config)
        self.hamspk = HamSpkModel(config)
        self.head = make_head(config)
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike,
        backbone_kwargs: dict | None = None,
        config: HamSpkConfig | None = None,
        **config_fields,
    ):
        """Start from a pretrained transformers speech encoder on the Hub or in a folder, with everything else new.

        Args:
            backbone: for example `"microsoft/wavlm-base-plus"`.
            backbone_kwargs: passed to `AutoModel.from_pretrained`, for example `{"revision": "main"}`.
            config: the whole model's, with the backbone's configuration in it, instead of `config_fields`.
            config_fields: fields of `HamSpkConfig`, such as `head`, `num_labels` and `id2label`.
        """
        kwargs = {} if backbone_kwargs is None else backbone_kwargs
        if config is not None:
            kwargs = kwargs | {"config": config.backbone_config}
        pretrained = AutoModel.from_pretrained(backbone, **kwargs)
        if config is None:
            config = HamSpkConfig(backbone_config=pretrained.config, **config_fields)
        model = cls(config)
        model.hamspk.backbone = pretrained
        model.hamspk._freeze()
        return model

    def set_margin(self, margin: float) -> None:
        """Use another margin (in [0, 3)) from now on; the configuration, and so a saved model, follows."""
        self.head.set_margin(margin)
        self.config.margin = self.head.margin

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As in transformers; a learned curvature is written into the configuration, which scoring reads."""
        self._record_curvature()
        super().save_pretrained(save_directory, *args, **kwargs)

    def score(self, enrolment: Tensor, test: Tensor) -> Tensor:
        """As `HamSpkModel.score`, with the curvature as learned so far."""
        self._record_curvature()
        return super().score(enrolment, test)

    def score_matrix(self, enrolment: Tensor, test: Tensor) -> Tensor:
        """As `HamSpkModel.score_matrix`, with the curvature as learned so far."""
        self._record_curvature()
        return super().score_matrix(enrolment, test)

    def _record_curvature(self) -> None:
        for module in self.head.modules():
            if isinstance(module, HyperbolicSimilarity) and module.log_curvature is not None:
                self.config.curvature = module.recorded_curvature()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        return_logits: bool | None = None,
        **kwargs,
    ) -> XVectorOutput | tuple:
        """Embeddings, logits and loss.

        Args:
            input_values: `(B, L)` waveforms in [-1, 1] at `config.sampling_rate`, padded on the right.
            attention_mask: `(B, L)`, 1 for samples and 0 for padding; None where nothing is padded.
            labels: `(B,)` speakers in [0, num_labels), for the loss.
            return_dict: False for a plain tuple.
            return_logits: None for logits unless a loss is trained on, which does without a tensor of B x K.
            kwargs: ignored; what a processor may add.

        Returns:
            `loss`: scalar, with the margin; `logits` `(B, K)`: scaled, without margin; `embeddings` `(B, D)`.
            What was not asked for is None, or left out of a plain tuple.

        Raises:
            ValueError: labels outside [0, num_labels) (checked on the CPU), and those of `HamSpkModel.forward`.
        """
        if labels is not None and labels.device.type == "cpu":
            check_labels(labels, cast(int, self.config.num_labels))
        embeddings = self.hamspk(input_values, attention_mask).embeddings
        logits, loss = self.head(embeddings, labels, return_logits)
        output = XVectorOutput(loss=loss, logits=logits, embeddings=embeddings)
        return output.to_tuple() if return_dict is False else output
