"""Configuration of a speaker model: backbone, front-end, pooling, head and scoring."""

import difflib
import math
from dataclasses import field, fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .geometry_hamspk import MAX_TANGENT_RADIUS, SMALLEST_VARIANCE, released_radius

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

    Example:
        ```python
        config = HamSpkConfig(head="ham", num_labels=1211)
        print(config.scale, config.margin, config.curvature)  # the published values: 30.0 0.2 3.0
        ```

    Backbone
        backbone_config: configuration (or its dict, with `model_type`) of a transformers speech encoder such as WavLM,
            wav2vec2 or HuBERT; None for ECAPA-TDNN, which the five `ecapa_*` fields describe.
        ecapa_channels: width of the convolutional blocks; 1024 in the paper. Divisible by `ecapa_groups`.
        ecapa_output_channels: channels after multi-layer feature aggregation.
        ecapa_bottleneck: channels inside squeeze-and-excitation.
        ecapa_groups: Res2Net scale, the number of channel groups of a block.
        ecapa_dilations: dilation of each block, in frames; as many blocks as numbers.
        ecapa_block_input: input of a block: the `"sum"` of the outputs of all layers before it, as in the released
            encoder, or the output of the `"previous"` one, as in SpeechBrain and WeSpeaker.
        ecapa_padding: beyond the ends of an utterance: `"zeros"`, or its mirror image (`"reflect"`, SpeechBrain).
        ecapa_normalize_aggregate: batch normalisation after multi-layer feature aggregation (SpeechBrain).
        mix_layers: pool a learned convex sum of the layers of a transformers backbone; False pools its last layer.
        freeze_backbone: a transformers backbone gets no gradient and stays in evaluation mode.
        freeze_feature_encoder: its convolutions get no gradient; False for a backbone that was not pretrained.

    Front-end
        frontend: log mel filter banks of the released code (`"fbank"`, torchaudio's), of `"kaldi"` or `"speechbrain"`,
            or `"waveform"`, the samples themselves, for transformers backbones. None chooses by the backbone.
        sampling_rate: in Hz.
        num_mel_bins: filters of the filter banks.
        normalize_waveform: for `"waveform"`: each utterance gets mean 0 and variance 1, as large WavLM models expect.
        mask_mel_bins, mask_frames: in training, one band of up to this many filters and one stretch of up to this many
            frames of each utterance become the mean; 0 for none (transformers backbones have `mask_time_prob`, ...).

    Embedding
        pooling: `"attentive"` (attentive statistics with global context), `"mhfa"` (multi-head factorised attention,
            transformers backbones only), `"statistics"` (mean and standard deviation) or `"xvector"` (time-delay
            layers, then mean and standard deviation, as in the `*ForXVector` models of transformers).
        pooling_channels: hidden channels of attentive pooling, or of the compression in MHFA.
        pooling_hidden_norm: attentive pooling has ReLU and batch normalisation before its tanh; False in WeSpeaker.
        pooling_context: attentive pooling also depends on the mean and deviation of the utterance.
        pooling_unbiased: divide the variance in that context by frames less 1, not by frames; False in SpeechBrain.
        pooling_variance_offset: added to that variance (1e-7 in WeSpeaker).
        pooling_smallest_variance: floor of a variance before its root, above 0 and at most 1.
        tdnn_channels, tdnn_kernel_sizes, tdnn_dilations: the time-delay layers of `"xvector"`.
        normalize_pooled: batch normalisation between pooling and projection.
        mhfa_heads: attention heads of MHFA.
        embedding_size: D.
        normalize_embedding: batch normalisation of the embedding, as in the released encoder.

    Head (training only)
        head: see the table in `networks_hamspk.py`.
        scale, margin, curvature: None for the published value of the head (`softmax` scale 1, others 30; margin 0.2;
            curvature 5 for `h`, 3 for the others). `curvature` depends on `projection`: see `geometry_hamspk.py`.
        projection: `"released"` (hard clip, unit-ball distance: the published results; needs curvature > 1) or
            `"curved"` (exponential map at the origin of the ball of curvature `-curvature`).
        clip_radius: largest feature norm before the exponential map of `"curved"`.
        learnable_curvature: for `"curved"`: the curvature is a parameter, within bounds.
        euclidean_head, euclidean_weight, hyperbolic_weight: the parts of `"joint"`.

    Scoring and origin
        similarity: of two embeddings: `"cosine"`, as in the paper, or `"hyperbolic"`.
        converted_from: project whose checkpoint the weights come from; None if they were trained here.
        source_licence: of that checkpoint, and so of the weights; None if not known.

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
            if "model_type" not in self.backbone_config:
                raise ValueError(
                    "backbone_config needs a 'model_type' such as 'wavlm', 'wav2vec2' or 'hubert'; it has the keys "
                    f"{sorted(self.backbone_config)}."
                )
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        if self.backbone_config is not None and getattr(self.backbone_config, "layerdrop", 0):
            # transformers leaves a dropped layer out of the hidden states, whose sum and attention need them all.
            self.backbone_config.layerdrop = 0.0
        if self.frontend is None:
            self.frontend = "fbank" if self.backbone_config is None else "waveform"
        self.scale = PUBLISHED_SCALE.get(self.head, OTHER_SCALE) if self.scale is None else self.scale
        self.margin = MARGIN if self.margin is None else self.margin
        published = PUBLISHED_CURVATURE.get(self.head, OTHER_CURVATURE)
        self.curvature = published if self.curvature is None else self.curvature
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
        _at_least(self, 1, "ecapa_channels", "ecapa_output_channels", "ecapa_bottleneck", "ecapa_groups", "num_labels")
        _at_least(self, 1, "sampling_rate", "num_mel_bins", "pooling_channels", "mhfa_heads", "embedding_size")
        # Below, no speech band is left and a window holds too few samples for the filters.
        _at_least(self, 4000, "sampling_rate")
        _at_least(self, 0, "mask_mel_bins", "mask_frames")
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
        """Front-end, backbone and pooling fit together."""
        backbone = self.backbone_config
        if backbone is None and self.frontend == "waveform":
            raise ValueError(
                "ECAPA-TDNN needs frontend 'fbank', 'kaldi' or 'speechbrain'; 'waveform' needs a backbone_config."
            )
        if backbone is not None and not hasattr(backbone, "conv_kernel"):
            raise ValueError(
                f"backbone_config describes a {getattr(backbone, 'model_type', '?')!r} model; expected a "
                "speech encoder that takes waveforms, such as 'wavlm', 'wav2vec2' or 'hubert'."
            )
        if backbone is not None and self.frontend != "waveform":
            raise ValueError(
                f"A transformers backbone needs frontend 'waveform', got {self.frontend!r}; leave backbone_config out "
                "for ECAPA-TDNN."
            )
        if backbone is None and self.pooling == "mhfa":
            raise ValueError("pooling 'mhfa' weighs the layers of a transformers backbone; ECAPA-TDNN has none.")
        if backbone is None and self.freeze_backbone:
            raise ValueError("freeze_backbone is for transformers backbones; ECAPA-TDNN is trained whole.")
        if getattr(backbone, "add_adapter", False):
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
        if curvature is None or not self.is_hyperbolic:
            return
        curvature = float(curvature)
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


def _at_least(config: HamSpkConfig, smallest: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < smallest:
            raise ValueError(f"{name} must be at least {smallest}, got {getattr(config, name)}.")


def _refuse_misspelt(given: dict[str, Any], known: set[str]) -> None:
    """transformers takes any key silently; one that is nearly a field is an error, not an extension."""
    for name in given:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if near and not name.startswith("_") and name not in ("torch_dtype", "num_labels", "name_or_path"):
            raise ValueError(f"HamSpkConfig has no field {name!r}. Did you mean {near[0]!r}?")
