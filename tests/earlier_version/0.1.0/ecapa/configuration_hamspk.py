"""Configuration of a speaker model: backbone, front-end, pooling, head and scoring."""

import difflib
import math
from dataclasses import field, fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .poincare import MAX_TANGENT_RADIUS, released_radius
from .pooling import SMALLEST_VARIANCE

# Similarity and margin of each head; "joint" is made of a Euclidean head and "ham".
HEAD_PARTS = {
    "softmax": ("linear", "none"),
    "scaled_softmax": ("linear", "none"),
    "normalized_softmax": ("cosine", "none"),
    "am": ("cosine", "additive"),
    "aam": ("cosine", "angular"),
    "ram": ("cosine", "real"),
    "h": ("hyperbolic", "none"),
    "ham": ("hyperbolic", "additive"),
}
# The published settings, which fill in what a configuration leaves open. Scale 1 is the plain softmax.
PUBLISHED_SCALE = {"softmax": 1.0}
PUBLISHED_CURVATURE = {"h": 5.0}
OTHER_SCALE, OTHER_CURVATURE, MARGIN = 30.0, 3.0, 0.2
# Margins lie in [0, LARGEST_MARGIN): an angle below pi, and more than the whole range of the released distances.
LARGEST_MARGIN = 3.0

Number = float | int


@strict
class HamSpkConfig(PreTrainedConfig):
    """Everything that rebuilds a speaker model. Training speakers are `num_labels` / `id2label`, as in transformers.

    Backbone
        backbone_config: configuration (or its dict, with `model_type`) of a transformers speech encoder such as WavLM,
            wav2vec2 or HuBERT; None for ECAPA-TDNN, which the five `ecapa_*` fields describe.
        ecapa_channels: width of the convolutional blocks; 1024 in the paper. Divisible by `ecapa_groups`.
        ecapa_output_channels: channels after multi-layer feature aggregation.
        ecapa_bottleneck: channels inside squeeze-and-excitation.
        ecapa_groups: Res2Net scale, the number of channel groups of a block.
        ecapa_dilations: dilation of each block, in frames; as many blocks as numbers.
        ecapa_block_input: what a block sees: the `"sum"` of the outputs of all layers before it, as in the released
            encoder, or the output of the `"previous"` one, as in SpeechBrain and WeSpeaker.
        ecapa_padding: what convolutions see beyond the ends of an utterance: `"zeros"`, or the frames in reverse
            (`"reflect"`, SpeechBrain).
        ecapa_normalize_aggregate: batch normalisation after multi-layer feature aggregation (SpeechBrain).
        mix_layers: pool a learned convex sum of the layers of a transformers backbone; False pools its last layer.
        freeze_backbone: the backbone of transformers gets no gradient and stays in evaluation mode.
        freeze_feature_encoder: its convolutions alone get no gradient, as is usual in fine-tuning; set it to False for
            a backbone that was not pretrained.

    Front-end
        frontend: `"fbank"` (the released code's log mel filter bank, torchaudio's convention), `"kaldi"` (Kaldi's),
            `"speechbrain"` (SpeechBrain's) or `"waveform"` (the samples themselves, for transformers backbones). None
            chooses by the backbone.
        sampling_rate: in Hz.
        num_mel_bins: filters of the filter banks.
        normalize_waveform: `"waveform"` only: bring each utterance to zero mean and unit variance over its valid
            samples, as large WavLM and wav2vec2 models expect.
        mask_mel_bins, mask_frames: in training, one band of up to this many filters and one stretch of up to this many
            frames of each utterance are set to the mean; 0 switches it off. Transformers backbones mask by their own
            configuration (`mask_time_prob`, ...).

    Embedding
        pooling: `"attentive"` (attentive statistics with global context), `"mhfa"` (multi-head factorised attention,
            transformers backbones only), `"statistics"` (mean and standard deviation) or `"xvector"` (time-delay
            layers, then mean and standard deviation, as in the `*ForXVector` models of transformers).
        pooling_channels: hidden channels of attentive pooling, or of the compression in MHFA.
        pooling_context: attentive pooling sees the mean and deviation of the utterance.
        pooling_hidden_norm: attentive pooling has ReLU and batch normalisation before its tanh; False in WeSpeaker.
        pooling_unbiased: the deviation that attentive pooling sees is divided by the number of frames less 1, not by
            the number of frames (False in SpeechBrain).
        pooling_variance_offset: added to the variance of that deviation (1e-7 in WeSpeaker).
        pooling_smallest_variance: floor of a variance before its root, above 0 and at most 1.
        tdnn_channels, tdnn_kernel_sizes, tdnn_dilations: the time-delay layers of `"xvector"`.
        normalize_pooled: batch normalisation between pooling and projection.
        mhfa_heads: attention heads of MHFA.
        embedding_size: D.
        normalize_embedding: end in a batch normalisation, as the released encoder does.

    Head (training only)
        head: see the table in `heads.py`.
        scale, margin, curvature: None takes the published value of the head (`softmax` scale 1, others 30; margin 0.2;
            curvature 5 for `h`, 3 for the others). What `curvature` means depends on `projection`: see `poincare.py`.
        projection: `"released"` (hard clip, unit-ball distance: the published results; needs curvature > 1) or
            `"curved"` (exponential map at the origin of the ball of curvature `-curvature`).
        clip_radius: largest feature norm before the exponential map of `"curved"`.
        learnable_curvature: `"curved"` only: the curvature is a parameter, within bounds.
        euclidean_head, euclidean_weight, hyperbolic_weight: the parts of `"joint"`.

    Scoring
        similarity: how two embeddings are compared: `"cosine"`, as in the paper, or `"hyperbolic"`.

    Origin
        converted_from: whose checkpoint the weights were made of; None where they were trained here.
        source_licence: of that checkpoint, and so of the weights; None where it is not known.

    Raises:
        ValueError, or huggingface_hub's StrictDataclassFieldValidationError / StrictDataclassClassValidationError: a
            value of the wrong type or outside its range, or a key that looks like a misspelt field.
    """

    model_type = "hamspk"
    # transformers' own subclasses override the property with a plain dict, too.
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]

    backbone_config: dict | PreTrainedConfig | None = None
    ecapa_channels: int = 1024
    ecapa_output_channels: int = 1536
    ecapa_bottleneck: int = 128
    ecapa_groups: int = 8
    ecapa_dilations: list[int] | tuple[int, ...] = (2, 3, 4)
    ecapa_block_input: Literal["sum", "previous"] = "sum"
    ecapa_padding: Literal["zeros", "reflect"] = "zeros"
    ecapa_normalize_aggregate: bool = False
    mix_layers: bool = True
    freeze_backbone: bool = False
    freeze_feature_encoder: bool = True

    frontend: Literal["fbank", "kaldi", "speechbrain", "waveform"] | None = None
    sampling_rate: int = 16000
    num_mel_bins: int = 80
    normalize_waveform: bool = True
    mask_mel_bins: int = 7
    mask_frames: int = 9

    pooling: Literal["attentive", "mhfa", "statistics", "xvector"] = "attentive"
    pooling_channels: int = 256
    pooling_context: bool = True
    pooling_hidden_norm: bool = True
    pooling_unbiased: bool = True
    pooling_variance_offset: Number = 0.0
    pooling_smallest_variance: Number = SMALLEST_VARIANCE
    tdnn_channels: list[int] | tuple[int, ...] = (512, 512, 512, 512, 1500)
    tdnn_kernel_sizes: list[int] | tuple[int, ...] = (5, 3, 3, 1, 1)
    tdnn_dilations: list[int] | tuple[int, ...] = (1, 2, 3, 1, 1)
    mhfa_heads: int = 32
    embedding_size: int = 192
    normalize_pooled: bool = True
    normalize_embedding: bool = True

    head: Literal["softmax", "scaled_softmax", "normalized_softmax", "am", "aam", "ram", "h", "ham", "joint"] = "ham"
    scale: Number | None = None
    margin: Number | None = None
    curvature: Number | None = None
    projection: Literal["released", "curved"] = "released"
    clip_radius: Number = 1.0
    learnable_curvature: bool = False
    euclidean_head: Literal["scaled_softmax", "normalized_softmax", "am", "aam", "ram"] = "ram"
    euclidean_weight: Number = 0.3
    hyperbolic_weight: Number = 0.7

    similarity: Literal["cosine", "hyperbolic"] = "cosine"

    converted_from: str | None = None
    source_licence: str | None = None

    auto_map: dict[str, Any] | None = field(default=None)

    def __post_init__(self, **kwargs: Any) -> None:
        _refuse_misspelt(kwargs, {"num_labels", *(f.name for f in fields(self))})
        if isinstance(self.backbone_config, dict):
            self.backbone_config = _backbone_from_dict(self.backbone_config)
        if self.backbone_config is not None and getattr(self.backbone_config, "layerdrop", 0):
            # transformers leaves a dropped layer out of the hidden states, whose sum and attention need them all.
            self.backbone_config.layerdrop = 0.0
        if self.frontend is None:
            self.frontend = "fbank" if self.backbone_config is None else "waveform"
        if self.scale is None:
            self.scale = PUBLISHED_SCALE.get(self.head, OTHER_SCALE)
        if self.margin is None:
            self.margin = MARGIN
        if self.curvature is None:
            self.curvature = PUBLISHED_CURVATURE.get(self.head, OTHER_CURVATURE)
        # Both Auto classes must find the code, whichever model class was saved.
        self.auto_map = {
            "AutoConfig": "configuration_hamspk.HamSpkConfig",
            "AutoModel": "modeling_hamspk.HamSpkModel",
            "AutoModelForAudioXVector": "modeling_hamspk.HamSpkForXVector",
        } | ({} if self.auto_map is None else self.auto_map)
        super().__post_init__(**kwargs)

    @property
    def is_hyperbolic(self) -> bool:
        """Whether the head or the scoring uses the Poincaré ball."""
        return self.similarity == "hyperbolic" or self.head in ("h", "ham", "joint")

    def validate_sizes(self) -> None:
        """Counts are positive and fit together."""
        for name in (
            "ecapa_channels",
            "ecapa_output_channels",
            "ecapa_bottleneck",
            "ecapa_groups",
            "sampling_rate",
            "num_mel_bins",
            "pooling_channels",
            "mhfa_heads",
            "embedding_size",
            "num_labels",
        ):
            _at_least(self, name, 1)
        # Below, no speech band is left and a window holds too few samples for the filters.
        _at_least(self, "sampling_rate", 4000)
        _at_least(self, "mask_mel_bins", 0)
        _at_least(self, "mask_frames", 0)
        if self.ecapa_groups < 2 or self.ecapa_channels % self.ecapa_groups:
            raise ValueError(
                f"ecapa_channels ({self.ecapa_channels}) must be a multiple of ecapa_groups ({self.ecapa_groups}), and "
                "ecapa_groups at least 2."
            )
        if len(self.ecapa_dilations) < 1 or min(self.ecapa_dilations) < 1:
            raise ValueError(f"ecapa_dilations must hold positive integers, got {self.ecapa_dilations}.")
        if self.mask_mel_bins >= self.num_mel_bins:
            raise ValueError(
                f"mask_mel_bins ({self.mask_mel_bins}) must be below num_mel_bins ({self.num_mel_bins}), or nothing of "
                "the features may be left."
            )

    def validate_pooling(self) -> None:
        """Variances and time-delay layers are in range."""
        if not 0 < self.pooling_smallest_variance <= 1:
            raise ValueError(
                "pooling_smallest_variance must be above 0, where the root has no slope, and at most 1, got "
                f"{self.pooling_smallest_variance}."
            )
        if not 0 <= self.pooling_variance_offset <= 1:
            raise ValueError(f"pooling_variance_offset must be between 0 and 1, got {self.pooling_variance_offset}.")
        layers = (self.tdnn_channels, self.tdnn_kernel_sizes, self.tdnn_dilations)
        if len({len(values) for values in layers}) > 1 or any(not values or min(values) < 1 for values in layers):
            raise ValueError(
                "tdnn_channels, tdnn_kernel_sizes and tdnn_dilations must hold one positive integer for each layer, "
                f"got {list(layers[0])}, {list(layers[1])} and {list(layers[2])}."
            )
        if self.pooling == "mhfa" and not self.mix_layers:
            raise ValueError("pooling 'mhfa' weighs the layers itself: leave mix_layers True.")

    def validate_frontend(self) -> None:
        """The front-end feeds the backbone."""
        if self.backbone_config is None and self.frontend == "waveform":
            raise ValueError(
                "ECAPA-TDNN needs frontend 'fbank', 'kaldi' or 'speechbrain'; 'waveform' needs a backbone_config."
            )
        if self.backbone_config is not None and not hasattr(self.backbone_config, "conv_kernel"):
            raise ValueError(
                f"backbone_config describes a {getattr(self.backbone_config, 'model_type', '?')!r} model; expected a "
                "speech encoder that takes waveforms, such as 'wavlm', 'wav2vec2' or 'hubert'."
            )
        if self.backbone_config is not None and self.frontend != "waveform":
            raise ValueError(
                f"A transformers backbone needs frontend 'waveform', got {self.frontend!r}; leave backbone_config out "
                "for ECAPA-TDNN."
            )
        if self.backbone_config is None and self.pooling == "mhfa":
            raise ValueError("pooling 'mhfa' weighs the layers of a transformers backbone; ECAPA-TDNN has none.")
        if self.backbone_config is None and self.freeze_backbone:
            raise ValueError("freeze_backbone is for transformers backbones; ECAPA-TDNN is trained whole.")
        if getattr(self.backbone_config, "add_adapter", False):
            raise ValueError(
                "A backbone with add_adapter=True is not supported: its adapter shortens the frames that are pooled. "
                "Set add_adapter=False in backbone_config."
            )

    def validate_head(self) -> None:
        """Margin, scale and curvature are in range."""
        scale, margin, curvature = self.scale, self.margin, self.curvature
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"scale must be above 0 and finite, got {scale}.")
        if margin is not None and not 0 <= margin < LARGEST_MARGIN:
            raise ValueError(f"margin must be at least 0 and below {LARGEST_MARGIN:g}, got {margin}.")
        if not (0 <= self.euclidean_weight < math.inf and 0 <= self.hyperbolic_weight < math.inf):
            raise ValueError(
                "euclidean_weight and hyperbolic_weight must be at least 0 and finite, got "
                f"{self.euclidean_weight} and {self.hyperbolic_weight}."
            )
        if not 0 < self.clip_radius < math.inf:
            raise ValueError(f"clip_radius must be above 0 and finite, got {self.clip_radius}.")
        if self.learnable_curvature and self.head not in ("h", "ham", "joint"):
            raise ValueError(f"learnable_curvature needs a hyperbolic head ('h', 'ham' or 'joint'), got {self.head!r}.")
        if curvature is not None and self.is_hyperbolic:
            self._validate_curvature(float(curvature))

    def _validate_curvature(self, curvature: float) -> None:
        if self.projection == "released":
            if self.learnable_curvature:
                raise ValueError(
                    "learnable_curvature needs projection='curved': in the released variant c only moves the clip."
                )
            if not curvature < math.inf:
                raise ValueError(f"curvature must be finite, got {curvature}.")
            released_radius(curvature)
            return
        largest = (MAX_TANGENT_RADIUS / self.clip_radius) ** 2
        if not 0 < curvature <= largest:
            raise ValueError(
                f"projection='curved' needs 0 < curvature <= (5 / clip_radius)^2 = {largest:g}, got {curvature}: "
                "beyond it float32 cannot hold the points. Lower curvature or clip_radius."
            )


def _at_least(config: HamSpkConfig, name: str, smallest: int) -> None:
    if getattr(config, name) < smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {getattr(config, name)}.")


def _backbone_from_dict(values: dict[str, Any]) -> PreTrainedConfig:
    if "model_type" not in values:
        raise ValueError(
            "backbone_config needs a 'model_type' such as 'wavlm', 'wav2vec2' or 'hubert'; it has the keys "
            f"{sorted(values)}."
        )
    return AutoConfig.for_model(**values)


def _refuse_misspelt(given: dict[str, Any], known: set[str]) -> None:
    """transformers takes any key silently; one that is nearly a field is an error, not an extension."""
    for name in given:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if near and not name.startswith("_") and name not in ("torch_dtype", "num_labels", "name_or_path"):
            raise ValueError(f"HamSpkConfig has no field {name!r}. Did you mean {near[0]!r}?")
