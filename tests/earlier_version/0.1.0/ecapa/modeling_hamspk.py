"""Speaker models: waveforms in, embeddings out, and a head for training.

Letters: `B` batch, `L` samples, `T` frames, `D` embedding size, `K` speakers.
"""

import math
import os
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import XVectorOutput
from transformers.utils.generic import ModelOutput

from .comparison import SpeakerComparison
from .configuration_hamspk import HamSpkConfig
from .ecapa import Ecapa
from .frontend import FilterBank, length_mask, make_frontend
from .heads import CosineSimilarity, HyperbolicSimilarity, LinearSimilarity, make_head
from .inputs import check_batch, check_labels, make_feature_extractor
from .pipeline_hamspk import announce_pipeline
from .pooling import (
    AttentivePooling,
    Deviation,
    FactorisedAttentivePooling,
    LayerMix,
    StatisticsPooling,
    XVectorPooling,
    batch_norm,
    keep_valid,
)

# Arguments of `save_pretrained` that say where on the Hub the files go.
HUB_ARGUMENTS = ("push_to_hub", "repo_id", "token", "revision", "create_pr", "private", "commit_message")


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


Pooling = StatisticsPooling | XVectorPooling | AttentivePooling | FactorisedAttentivePooling


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
