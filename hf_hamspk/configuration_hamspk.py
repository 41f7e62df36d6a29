"""Configuration of a speaker model: backbone, front-end, pooling, head and scoring."""

import difflib
import hashlib
import json
from dataclasses import field, fields
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict

try:
    import transformers.initialization  # noqa: F401 (not in transformers 4)
except ImportError as error:
    raise ImportError("Unsupported version of transformers. Run `pip install 'transformers>=5.18,<6'`.") from error
from transformers import AutoConfig, PreTrainedConfig

from .geometry_hamspk import (
    LARGEST_MARGIN,
    MARGIN,
    OTHER_CURVATURE,
    OTHER_SCALE,
    PUBLISHED_CURVATURE,
    PUBLISHED_SCALE,
    SMALLEST_VARIANCE,
    check_head,
    check_projection,
)

# Seconds of the longest recording that is embedded as a whole. It takes about 550 MB with an ECAPA-TDNN of 1024
# channels, and also with a base model of WavLM. The memory of an attention layer grows with the square of the length.
LONGEST_PIECE, LONGEST_BACKBONE_PIECE, LONGEST_RESNET_PIECE, LONGEST_W2V_BERT_PIECE = 180.0, 30.0, 60.0, 20.0
# Encoders of filter banks, which the field `backbone` names.
ENCODERS = ("ecapa", "campplus", "resnet")
# Number of residual blocks in each of the four stages of a ResNet, and the ratio of output channels to inner channels
# of a block, by the number of layers.
RESNET_BLOCKS = {
    **{18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)},
    **{152: (3, 8, 36, 3), 221: (6, 16, 48, 3), 293: (10, 20, 64, 3)},
}
RESNET_EXPANSION = {depth: 1 if depth < 50 else 4 for depth in RESNET_BLOCKS}
# Factor by which Kaldi's tools and WeSpeaker multiply samples in [-1, 1], so that they are like 16-bit integers.
KALDI_SAMPLE_SCALE = 32768.0

Number = float | int

# Range of each numeric field, and of each entry of a list. NaN is outside every range.
RANGES: dict[str, tuple[Number, Number]] = {
    **dict.fromkeys(("ecapa_channels", "ecapa_bottleneck", "pooling_channels", "mhfa_heads"), (1, 4096)),
    **dict.fromkeys(("ecapa_output_channels", "embedding_size", "tdnn_channels"), (1, 8192)),
    **dict.fromkeys(("ecapa_dilations", "tdnn_dilations", "tdnn_kernel_sizes"), (1, 100)),
    **dict.fromkeys(("campplus_channels", "campplus_bottleneck", "campplus_growth"), (2, 4096)),
    **{"campplus_head_channels": (1, 512), "campplus_layers": (1, 128), "campplus_dilations": (1, 100)},
    **{"campplus_segment": (1, 10_000), "resnet_channels": (1, 512), "kaldi_scale": (1, 1e6)},
    **dict.fromkeys(("mask_mel_bins", "mask_frames", "chunk_size_feed_forward"), (0, 10_000)),
    **{"scale": (1e-6, 1e6), "clip_radius": (1e-6, 1e6), "euclidean_weight": (0, 1e6), "hyperbolic_weight": (0, 1e6)},
    **{"ecapa_groups": (2, 1024), "num_labels": (1, 10_000_000), "num_mel_bins": (1, 1024)},
    # Lower sampling rates cut off too much of the speech band. The root of a variance has no derivative at 0.
    **{"sampling_rate": (4000, 384_000), "margin": (0, LARGEST_MARGIN), "curvature": (1e-9, 1e9)},
    **{"pooling_variance_offset": (0, 1), "pooling_smallest_variance": (1e-20, 1), "level_db": (-60, 0)},
}
BACKBONE_RANGES: dict[str, tuple[Number, Number]] = {
    **dict.fromkeys(("hidden_size", "conv_dim", "intermediate_size"), (1, 65_536)),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "conv_kernel", "conv_stride"), (1, 1024)),
    **{"feature_projection_input_dim": (1, 65_536), "conv_depthwise_kernel_size": (1, 1024)},
    **dict.fromkeys(("left_max_position_embeddings", "right_max_position_embeddings"), (0, 10_000)),
    "max_source_positions": (1, 100_000),
}
# Default front-end by encoder or type of transformers backbone; `"waveform"` for all other transformers backbones.
FRONTENDS: dict[str, Literal["fbank", "kaldi", "speechbrain", "waveform", "seamless"]]
FRONTENDS = {"ecapa": "fbank", "campplus": "kaldi", "resnet": "kaldi", "wav2vec2-bert": "seamless"}
# Fields that change neither embeddings nor scores, except by training.
NEUTRAL_FIELDS = {
    *("freeze_backbone", "freeze_feature_encoder", "mask_mel_bins", "mask_frames", "head", "scale", "margin"),
    *("learnable_curvature", "euclidean_head", "euclidean_weight", "hyperbolic_weight"),
    *("converted_from", "source_licence", "auto_map"),
}
# Range of all other numbers of a backbone, and bounds of the length of a list and of the weights of an encoder.
OTHER_RANGE, LONGEST_LIST, MOST_WEIGHTS = (-1_000_000, 1_000_000), 32, 1 << 32


@strict
class HamSpkConfig(PreTrainedConfig):
    """Configuration of a speaker model. As in transformers, `num_labels` or `id2label` sets the training speakers.

    Example:
        ```python
        config = HamSpkConfig(head="ham", num_labels=1211)
        print(config.scale, config.margin, config.curvature)  # the published values: 30.0 0.2 3.0
        ```

    Backbone
        backbone: encoder of filter banks: `"ecapa"` (ECAPA-TDNN), `"campplus"` (CAM++) or `"resnet"`, which the fields
            with its name describe; None for `"ecapa"`, or for the encoder that `backbone_config` describes.
        backbone_config: configuration (or its dict, with `model_type`) of a transformers speech encoder such as WavLM,
            wav2vec2, HuBERT or w2v-BERT 2.0; None for the other encoders.
        ecapa_channels: channels of the convolutional blocks, a multiple of `ecapa_groups`; 1024 in the paper.
        ecapa_output_channels: channels after multi-layer feature aggregation.
        ecapa_bottleneck: channels inside squeeze-and-excitation.
        ecapa_groups: number of channel groups in a block (the scale of Res2Net).
        ecapa_dilations: dilation of each block, in frames. The number of values is the number of blocks.
        ecapa_block_input: input of a block: the `"sum"` of the outputs of all earlier layers, as in the
            HAM-Softmax code, or only the output of the `"previous"` layer, as in SpeechBrain and WeSpeaker.
        ecapa_padding: padding of an utterance: `"zeros"`, or its mirror image (`"reflect"`, as in SpeechBrain).
        ecapa_normalize_aggregate: whether batch normalisation follows this aggregation (SpeechBrain: True).
        campplus_head_channels: channels of the two-dimensional convolutions at the input of CAM++.
        campplus_channels: channels of the first time-delay layer.
        campplus_layers, campplus_dilations: number of layers and dilation in frames of each densely connected block.
        campplus_growth: channels that each layer of a block adds.
        campplus_bottleneck: channels inside a layer of a block.
        campplus_segment: length in frames of the segments whose means the context-aware masks of CAM++ use.
        resnet_depth: number of layers: 18 or 34, or with bottleneck blocks 50, 101, 152, 221 or 293.
        resnet_channels: channels of the first stage. Each of the three other stages doubles them.
        mix_layers: whether to pool a learned convex sum of the layers of a transformers backbone, not only the last.
        freeze_backbone: whether to exclude a transformers backbone from training and keep it in evaluation mode.
        freeze_feature_encoder: whether to exclude the convolutions of a transformers backbone from training. Set it to
            False if the backbone is not pretrained.

    Front-end
        frontend: log mel filter banks as in the HAM-Softmax code (`"fbank"`), Kaldi (`"kaldi"`) or SpeechBrain
            (`"speechbrain"`), samples (`"waveform"`, transformers backbones), or the features of w2v-BERT
            (`"seamless"`). None: `"fbank"` for ECAPA-TDNN, `"kaldi"` for CAM++ and ResNet, else the backbone's.
        sampling_rate: sampling rate of the waveforms in Hz, at least 4000.
        num_mel_bins: number of mel filters.
        kaldi_window: window of `"kaldi"`: `"hamming"` (WeSpeaker), or `"povey"` (Kaldi's default, 3D-Speaker).
        kaldi_scale: factor by which `"kaldi"` multiplies samples in [-1, 1]: 32768 (WeSpeaker) or 1 (3D-Speaker).
        level_db: level in dBFS, from -60 to 0, to which each utterance is scaled before the front-end. The level of a
            recording then has no effect on its embedding, apart from rounding. None does not scale utterances.
        normalize_waveform: for `"waveform"`: whether to normalise each utterance to mean 0 and variance 1, which large
            WavLM models need.
        mask_mel_bins, mask_frames: for filter banks, in training: largest number of adjacent filters and of adjacent
            frames of each utterance that are masked; 0 masks none. Transformers backbones have their own fields in
            `backbone_config`, such as `mask_time_prob`.

    Embedding
        pooling: `"attentive"` (attentive statistics with global context), `"mhfa"` (multi-head factorised attention,
            transformers backbones only), `"statistics"` (mean and standard deviation) or `"xvector"` (time-delay
            layers, then mean and standard deviation, as in the `*ForXVector` models of transformers). None uses
            `"statistics"` for CAM++ and ResNet, else `"attentive"`.
        pooling_channels: hidden channels of attentive pooling, or channels of keys and values in MHFA.
        pooling_hidden_norm: whether attentive pooling has ReLU and batch normalisation before tanh (WeSpeaker: False).
        pooling_context: whether attention also depends on mean and standard deviation of the utterance (the context).
        pooling_unbiased: whether the variance of the context is divided by T - 1, not by T (SpeechBrain: False).
        pooling_variance_offset: number added to the variance of the context, or of `"statistics"` (WeSpeaker: 1e-7).
        pooling_smallest_variance: lower limit of a variance before its root is taken, above 0 and at most 1.
        tdnn_channels, tdnn_kernel_sizes, tdnn_dilations: settings of each time-delay layer of `"xvector"`.
        normalize_pooled: whether batch normalisation follows the pooling.
        mhfa_heads: number of attention heads of MHFA.
        embedding_size: size of the embeddings.
        normalize_embedding: whether batch normalisation is applied to the embedding, as in the HAM-Softmax code.

    Head (training only)
        head: name of the training loss; `geometry_hamspk.py` lists the heads in a table.
        scale, margin, curvature: parameters of the head; None for the published values (scale 1 for `softmax`, else 30;
            margin 0.2; curvature 5 for `h`, else 3). `geometry_hamspk.py` explains `curvature` for each projection.
        projection: `"released"` (norms are clipped, as for the published results; needs curvature > 1) or
            `"curved"` (exponential map at the origin of the ball of curvature `-curvature`).
        clip_radius: largest feature norm before the exponential map of `"curved"`.
        learnable_curvature: for `"curved"`: whether the curvature is a trained parameter, with fixed bounds.
        euclidean_head: for `"joint"`: name of the Euclidean head that is combined with `ham`.
        euclidean_weight, hyperbolic_weight: for `"joint"`: weights of the losses of the Euclidean head and of `ham`.

    Scoring and origin
        similarity: score of two embeddings: `"cosine"`, as in the paper, or `"hyperbolic"`.
        converted_from: project whose published checkpoint was converted to this model; None if it was not converted.
        source_licence: licence of this checkpoint, which applies to the converted weights; None if not known.

    Raises:
        ValueError, or huggingface_hub's StrictDataclassFieldValidationError / StrictDataclassClassValidationError: a
            value has the wrong type or is out of range (see `RANGES`), or a field is unknown but resembles a known one.
    """

    model_type = "hamspk"
    # Subclasses in transformers also override this property with a plain dict.
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]

    backbone: Literal["ecapa", "campplus", "resnet"] | None = None
    backbone_config: dict | PreTrainedConfig | None = None
    ecapa_channels: int = 1024
    ecapa_output_channels: int = 1536
    ecapa_bottleneck: int = 128
    ecapa_groups: int = 8
    ecapa_dilations: list[int] | tuple[int, ...] = (2, 3, 4)
    ecapa_block_input: Literal["sum", "previous"] = "sum"
    ecapa_padding: Literal["zeros", "reflect"] = "zeros"
    ecapa_normalize_aggregate: bool = False
    campplus_head_channels: int = 32
    campplus_channels: int = 128
    campplus_layers: list[int] | tuple[int, ...] = (12, 24, 16)
    campplus_dilations: list[int] | tuple[int, ...] = (1, 2, 2)
    campplus_growth: int = 32
    campplus_bottleneck: int = 128
    campplus_segment: int = 100
    resnet_depth: Literal[18, 34, 50, 101, 152, 221, 293] = 34
    resnet_channels: int = 32
    mix_layers: bool = True
    freeze_backbone: bool = False
    freeze_feature_encoder: bool = True

    frontend: Literal["fbank", "kaldi", "speechbrain", "waveform", "seamless"] | None = None
    sampling_rate: int = 16000
    num_mel_bins: int = 80
    kaldi_window: Literal["hamming", "povey"] = "hamming"
    kaldi_scale: Number = KALDI_SAMPLE_SCALE
    level_db: Number | None = None
    normalize_waveform: bool = True
    mask_mel_bins: int = 7
    mask_frames: int = 9

    pooling: Literal["attentive", "mhfa", "statistics", "xvector"] | None = None
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
        # transformers would convert the type and name each label before it calls the validators.
        early = {name: kwargs[name] for name in ("num_labels", "torch_dtype") if name in kwargs}
        check_values(early | {"dtype": self.dtype}, RANGES)
        if isinstance(self.backbone_config, dict):
            check_values(self.backbone_config, BACKBONE_RANGES)
            if "model_type" not in self.backbone_config:
                raise ValueError("backbone_config needs a 'model_type' such as 'wavlm', 'wav2vec2' or 'hubert'.")
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        if self.backbone_config is not None and getattr(self.backbone_config, "layerdrop", 0):
            # transformers omits dropped layers from the hidden states, but mixing and MHFA need all layers.
            self.backbone_config.layerdrop = 0.0
        if self.backbone is None and self.backbone_config is None:
            self.backbone = "ecapa"
        has_planes = self.backbone in ("campplus", "resnet")
        if self.frontend is None:
            encoder = getattr(self.backbone_config, "model_type", "") if self.backbone is None else self.backbone
            self.frontend = FRONTENDS.get(encoder, "waveform")
        if self.pooling is None:
            self.pooling = "statistics" if has_planes else "attentive"
        self.scale = PUBLISHED_SCALE.get(self.head, OTHER_SCALE) if self.scale is None else self.scale
        self.margin = MARGIN if self.margin is None else self.margin
        published = PUBLISHED_CURVATURE.get(self.head, OTHER_CURVATURE)
        self.curvature = published if self.curvature is None else self.curvature
        # All Auto classes must find the code, regardless of the model class that was saved.
        self.auto_map = {
            "AutoConfig": "configuration_hamspk.HamSpkConfig",
            "AutoModel": "modeling_hamspk.HamSpkModel",
            "AutoModelForAudioXVector": "modeling_hamspk.HamSpkForXVector",
        } | ({} if self.auto_map is None else self.auto_map)
        super().__post_init__(**kwargs)

    @property
    def is_hyperbolic(self) -> bool:
        """Whether the head or the similarity uses the Poincaré ball."""
        return self.similarity == "hyperbolic" or self.head in ("h", "ham", "joint")

    def hash_settings(self) -> str:
        """Return a hash of the fields that may change embeddings or scores, without those at their defaults."""
        own = {name: getattr(self, name) for name in HamSpkConfig.__annotations__ if name not in NEUTRAL_FIELDS}
        plain, backbone = dict(vars(HamSpkConfig())), own.pop("backbone_config")
        if backbone is not None:
            own["backbone"], general = backbone.model_type, PreTrainedConfig().to_dict()
            for fields_of, config in ((own, backbone), (plain, type(backbone)())):
                fields_of |= {f"backbone.{key}": x for key, x in config.to_dict().items() if key not in general}
        own, plain = json.loads(json.dumps([own, plain], default=str), parse_int=float)
        settings = {name: value for name, value in own.items() if value != plain.get(name)}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def longest_piece(self) -> float:
        """Length in seconds of the longest recording that is not cut; see `SpeakerModelMixin.embed_waveforms`."""
        if self.backbone == "resnet":
            return LONGEST_RESNET_PIECE
        if self.frontend == "seamless":
            return LONGEST_W2V_BERT_PIECE
        return LONGEST_PIECE if self.backbone_config is None else LONGEST_BACKBONE_PIECE

    def validate_sizes(self) -> None:
        """Check that all sizes are in range and consistent with each other."""
        check_values({name: x for name in RANGES if (x := getattr(self, name)) is not None}, RANGES)
        if self.ecapa_channels % self.ecapa_groups:
            raise ValueError(f"ecapa_groups ({self.ecapa_groups}) must divide ecapa_channels, {self.ecapa_channels}.")
        if self.mask_mel_bins >= self.num_mel_bins:
            raise ValueError(f"mask_mel_bins ({self.mask_mel_bins}) must be below num_mel_bins, {self.num_mel_bins}.")
        if (lengths := [len(self.campplus_layers), len(self.campplus_dilations)])[0] != lengths[1]:
            raise ValueError(f"campplus_layers and campplus_dilations need equal lengths, got {lengths}.")
        backbone = self.backbone_config
        weights = max(self.tdnn_channels) ** 2 * sum(self.tdnn_kernel_sizes) + self._encoder_weights()
        if isinstance(backbone, PreTrainedConfig):
            check_values(backbone.to_dict(), BACKBONE_RANGES)
            hidden, inner = (getattr(backbone, name, 1) for name in ("hidden_size", "intermediate_size"))
            weights = getattr(backbone, "num_hidden_layers", 1) * hidden * (4 * hidden + 2 * inner)
        if weights > MOST_WEIGHTS:
            raise ValueError(f"The encoder would have {weights:.0e} weights, above the limit of {MOST_WEIGHTS:.0e}.")

    def _encoder_weights(self) -> int:
        """Return the approximate number of weights in the encoder `backbone` and in the layers that take its output."""
        if self.backbone == "resnet":
            expansion, width, weights = RESNET_EXPANSION[self.resnet_depth], self.resnet_channels, 0
            for count in RESNET_BLOCKS[self.resnet_depth]:
                weights += count * width**2 * (18 if expansion == 1 else 17)
                width *= 2
            channels = width // 2 * expansion * (self.num_mel_bins // 8 + 1)
        elif self.backbone == "campplus":
            channels, inner, growth = self.campplus_channels, self.campplus_bottleneck, self.campplus_growth
            weights = 100 * self.campplus_head_channels**2
            weights += 5 * channels * self.campplus_head_channels * (self.num_mel_bins // 8 + 1)
            for count in self.campplus_layers:
                joined = channels + count * growth
                weights += count * inner * (joined + inner + 4 * growth) + joined**2 // 2
                channels = joined // 2
        else:
            channels, width = self.ecapa_output_channels, self.ecapa_channels
            weights = len(self.ecapa_dilations) * width * (3 * width + channels)
        return weights + channels * (2 * self.embedding_size + 4 * self.pooling_channels + self.tdnn_channels[0])

    def validate_pooling(self) -> None:
        """Check that the options of the pooling are in range."""
        lengths = [len(getattr(self, f"tdnn_{name}")) for name in ("channels", "kernel_sizes", "dilations")]
        if len(set(lengths)) > 1:
            raise ValueError(f"tdnn_channels, tdnn_kernel_sizes and tdnn_dilations need equal lengths, got {lengths}.")
        if self.pooling == "mhfa" and not self.mix_layers:
            raise ValueError("pooling 'mhfa' always uses all layers of the backbone. Leave mix_layers at True.")

    def validate_frontend(self) -> None:
        """Check that front-end, backbone and pooling can be combined."""
        backbone = self.backbone_config
        if backbone is None and self.frontend in ("waveform", "seamless"):
            needs = "needs a backbone_config. The other encoders need a filter bank such as 'fbank'."
            raise ValueError(f"frontend {self.frontend!r} {needs}")
        if backbone is not None and self.backbone is not None:
            raise ValueError(f"backbone {self.backbone!r} and backbone_config are two encoders. Set only one of them.")
        kind = getattr(backbone, "model_type", "?")
        if backbone is not None and kind not in FRONTENDS and not hasattr(backbone, "conv_kernel"):
            raise ValueError(
                "backbone_config must describe a speech encoder that takes waveforms, such as 'wavlm', 'wav2vec2' or "
                f"'hubert', or 'wav2vec2-bert', got {kind!r}."
            )
        if backbone is not None and self.frontend != (needed := FRONTENDS.get(kind, "waveform")):
            raise ValueError(f"With a backbone_config of {kind!r}, frontend must be {needed!r}, got {self.frontend!r}.")
        if backbone is None and self.pooling == "mhfa":
            raise ValueError("pooling 'mhfa' needs a transformers backbone. Choose another pooling.")
        if backbone is None and self.freeze_backbone:
            raise ValueError("freeze_backbone is for transformers backbones. Leave it at False.")
        if getattr(backbone, "add_adapter", False):
            raise ValueError("Set add_adapter=False in backbone_config: an adapter changes the number of frames.")

    def validate_head(self) -> None:
        """Check that margin, scale, weights and curvature of the head are in range."""
        scale, margin, curvature = self.scale, self.margin, self.curvature
        if scale is not None and margin is not None:
            check_head(scale, margin, self.clip_radius)
        if self.learnable_curvature and self.head not in ("h", "ham", "joint"):
            raise ValueError(f"learnable_curvature needs a hyperbolic head ('h', 'ham' or 'joint'), got {self.head!r}.")
        if curvature is None or not self.is_hyperbolic:
            return
        check_projection(self.projection, float(curvature), self.clip_radius, self.learnable_curvature)


def check_values(values: dict[str, Any], ranges: dict[str, tuple[Number, Number]]) -> None:
    """Raise a ValueError if a number, or an entry of a list, is out of range, or a data type is not floating point."""
    for name, value in values.items():
        kind = getattr(torch, value, None) if isinstance(value, str) else value
        if "dtype" in name and value is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
            raise ValueError(f"{name} must be a floating-point type such as 'float32', got {value!r:.200}.")
        entries = value if isinstance(value, list | tuple) else [value]
        if len(entries) > LONGEST_LIST or (not entries and name in ranges):
            raise ValueError(f"{name} must have 1 to {LONGEST_LIST} entries, got {len(entries)}.")
        low, high = ranges.get(name, OTHER_RANGE)
        if not all(low <= one <= high if isinstance(one, int | float) else name not in ranges for one in entries):
            raise ValueError(f"{name} must be between {low} and {high}, got {value!r:.200}.")


def _refuse_misspelt(given: dict[str, Any], known: set[str]) -> None:
    """Raise an error if the name of an unknown field resembles a known one. transformers accepts any name silently."""
    for name in given:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if near and not name.startswith("_") and name not in ("torch_dtype", "num_labels", "name_or_path"):
            raise ValueError(f"HamSpkConfig has no field {name!r}. Did you mean {near[0]!r}?")
