"""The configuration: defaults filled by head, every refusal by its message, and round trips."""

import json
import math
import re

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from tiny_models import BACKBONES, tiny_backbone, tiny_config
from transformers import AutoConfig, WavLMConfig

from hf_hamspk import HamSpkConfig
from hf_hamspk.configuration_hamspk import RANGES
from hf_hamspk.geometry_hamspk import HEAD_PARTS

WAVLM = {"model_type": "wavlm"}


def refuses(message: str, error=StrictDataclassClassValidationError, **fields) -> None:
    with pytest.raises(error, match=re.escape(message)):
        HamSpkConfig(**fields)


# --- defaults


@pytest.mark.parametrize("head", [*HEAD_PARTS, "joint"])
def test_open_fields_take_the_published_values_of_the_head(head):
    config = HamSpkConfig(head=head)
    assert config.scale == (1.0 if head == "softmax" else 30.0)
    assert config.curvature == (5.0 if head == "h" else 3.0)
    assert config.margin == 0.2


def test_given_values_are_kept_even_where_they_are_zero():
    config = HamSpkConfig(head="softmax", margin=0.0, scale=2, clip_radius=0.5, mask_frames=0, euclidean_weight=0)
    assert (config.margin, config.scale, config.clip_radius, config.mask_frames) == (0.0, 2, 0.5, 0)
    assert config.euclidean_weight == 0


def test_the_front_end_follows_the_backbone():
    assert HamSpkConfig().frontend == "fbank"
    assert HamSpkConfig(frontend="kaldi").frontend == "kaldi"
    assert HamSpkConfig(backbone_config=WAVLM).frontend == "waveform"


def test_speakers_are_labels():
    config = HamSpkConfig(num_labels=3)
    assert config.num_labels == 3 and len(config.id2label) == 3
    assert HamSpkConfig(id2label={0: "ann", 1: "bob", 2: "eve", 3: "mia"}).num_labels == 4


@pytest.mark.parametrize(
    ("fields", "hyperbolic"),
    [
        ({"head": "ham"}, True),
        ({"head": "h"}, True),
        ({"head": "joint"}, True),
        ({"head": "am"}, False),
        ({"head": "am", "similarity": "hyperbolic"}, True),
    ],
)
def test_is_hyperbolic(fields, hyperbolic):
    assert HamSpkConfig(**fields).is_hyperbolic is hyperbolic


# --- refusals

SIZES = [
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
]


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_positive(name):
    low, high = RANGES[name]
    error = ValueError if name == "num_labels" else StrictDataclassClassValidationError
    refuses(f"{name} must be between {low} and {high}, got 0.", error, **{name: 0})


@pytest.mark.parametrize("name", ["mask_mel_bins", "mask_frames"])
def test_masks_are_not_negative(name):
    refuses(f"{name} must be between 0 and 10000, got -1.", **{name: -1})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"ecapa_groups": 1},
            "ecapa_groups must be between 2 and 1024, got 1.",
        ),
        (
            {"ecapa_groups": 7},
            "ecapa_groups (7) must divide ecapa_channels, 1024.",
        ),
        ({"ecapa_dilations": []}, "ecapa_dilations must have 1 to 32 entries, got 0."),
        ({"ecapa_dilations": [2, 0]}, "ecapa_dilations must be between 1 and 100, got [2, 0]."),
        (
            {"mask_mel_bins": 80},
            "mask_mel_bins (80) must be below num_mel_bins, 80.",
        ),
        (
            {"frontend": "waveform"},
            "frontend 'waveform' needs a backbone_config. The other encoders need a filter bank such as 'fbank'.",
        ),
        (
            {"backbone_config": WAVLM, "frontend": "fbank"},
            "With a backbone_config of 'wavlm', frontend must be 'waveform', got 'fbank'.",
        ),
        ({"pooling": "mhfa"}, "pooling 'mhfa' needs a transformers backbone. Choose another pooling."),
        ({"freeze_backbone": True}, "freeze_backbone is for transformers backbones. Leave it at False."),
        ({"scale": 0.0}, "scale must be above 0 and finite, got 0.0."),
        ({"scale": -1}, "scale must be above 0 and finite, got -1."),
        ({"scale": math.inf}, "scale must be above 0 and finite, got inf."),
        ({"scale": math.nan}, "scale must be above 0 and finite, got nan."),
        ({"margin": -0.1}, "margin must be at least 0 and below 3, got -0.1."),
        ({"margin": 3}, "margin must be at least 0 and below 3, got 3."),
        ({"margin": math.nan}, "margin must be at least 0 and below 3, got nan."),
        (
            {"euclidean_weight": -1.0},
            "euclidean_weight must be between 0 and 1000000.0, got -1.0.",
        ),
        (
            {"hyperbolic_weight": math.nan},
            "hyperbolic_weight must be between 0 and 1000000.0, got nan.",
        ),
        ({"clip_radius": 0.0}, "clip_radius must be above 0 and finite, got 0.0."),
        ({"clip_radius": math.inf}, "clip_radius must be above 0 and finite, got inf."),
        ({"curvature": 1.0}, "The released projection needs curvature > 1, got 1.0"),
        ({"curvature": math.inf}, "curvature must be finite, got inf."),
        ({"head": "am", "similarity": "hyperbolic", "curvature": 0.5}, "The released projection needs curvature > 1"),
        (
            {"learnable_curvature": True},
            "learnable_curvature needs projection='curved'; 'released' has no curvature",
        ),
        (
            {"learnable_curvature": True, "head": "am", "projection": "curved"},
            "learnable_curvature needs a hyperbolic head ('h', 'ham' or 'joint'), got 'am'.",
        ),
        (
            {"projection": "curved", "curvature": 26},
            "projection='curved' needs 0 < curvature <= (5 / clip_radius)^2 = 25, got 26.0. Beyond this limit, float32",
        ),
        ({"projection": "curved", "curvature": 0.0}, "projection='curved' needs 0 < curvature <="),
        ({"projection": "curved", "curvature": 7, "clip_radius": 2}, "<= (5 / clip_radius)^2 = 6.25, got 7.0"),
    ],
)
def test_values_out_of_range_are_refused(fields, message):
    refuses(message, **fields)


def test_a_euclidean_head_needs_no_curvature_in_range():
    assert HamSpkConfig(head="am", curvature=0.5).curvature == 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("embedding_size", 192.0),
        ("embedding_size", "192"),
        ("embedding_size", True),
        ("margin", "0.2"),
        ("margin", True),
        ("normalize_embedding", 1),
        ("head", "arcface"),
        ("euclidean_head", "ham"),
        ("pooling", "mean"),
        ("frontend", "mfcc"),
        ("projection", "lorentz"),
        ("similarity", "plda"),
        ("ecapa_dilations", [2, "3"]),
        ("backbone_config", "wavlm"),
    ],
)
def test_values_of_another_type_are_refused(name, value):
    refuses(f"Validation error for field '{name}'", StrictDataclassFieldValidationError, **{name: value})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("embeding_size", "embedding_size"),
        ("marign", "margin"),
        ("curvture", "curvature"),
        ("sample_rate", "sampling_rate"),
        ("num_label", "num_labels"),
        ("lable2id", "label2id"),
        ("similarty", "similarity"),
        ("backbone_confg", "backbone_config"),
    ],
)
def test_a_misspelt_field_is_refused_with_what_was_meant(name, meant):
    refuses(f"HamSpkConfig has no field {name!r}. Did you mean {meant!r}?", ValueError, **{name: 1})


def test_what_is_no_misspelling_passes():
    config = HamSpkConfig(corpus="VoxCeleb2", torch_dtype="float32", attn_implementation="eager")
    assert config.corpus == "VoxCeleb2"


def test_a_backbone_needs_its_type():
    refuses("backbone_config needs a 'model_type' such as 'wavlm'", ValueError, backbone_config={"hidden_size": 8})


def test_a_value_set_later_is_refused_when_saved(tmp_path):
    config = HamSpkConfig()
    config.margin = -1.0
    with pytest.raises(StrictDataclassClassValidationError, match="margin must be at least 0"):
        config.save_pretrained(tmp_path)


# --- round trips


@pytest.mark.parametrize("backbone", ["ecapa", *BACKBONES])
def test_a_saved_configuration_is_the_same(backbone, tmp_path):
    fields = {"pooling": "mhfa", "freeze_backbone": True} if backbone != "ecapa" else {"frontend": "kaldi"}
    config = tiny_config(backbone, head="joint", margin=0.0, similarity="hyperbolic", **fields)
    config.save_pretrained(tmp_path)
    for loaded in (HamSpkConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is HamSpkConfig
        ours, theirs = config.to_dict(), loaded.to_dict()
        for values in (ours, theirs):
            values.pop("_name_or_path")
            values.pop("transformers_version")
            values["ecapa_dilations"] = list(values["ecapa_dilations"])
        assert ours == theirs
        if backbone != "ecapa":
            assert type(loaded.backbone_config) is BACKBONES[backbone]
            assert loaded.backbone_config.hidden_size == 32
            assert tuple(getattr(loaded.backbone_config, "conv_dim", (32,) * 7)) == (32,) * 7


def test_a_backbone_is_given_as_a_configuration_or_as_its_dict():
    backbone = tiny_backbone("wavlm")
    for given in (backbone, backbone.to_dict()):
        made = HamSpkConfig(backbone_config=given).backbone_config
        assert isinstance(made, WavLMConfig) and made.hidden_size == 32


def test_loading_may_override_fields(tmp_path):
    tiny_config(head="am").save_pretrained(tmp_path)
    loaded = HamSpkConfig.from_pretrained(tmp_path, head="ham", margin=0.0, num_labels=11)
    assert (loaded.head, loaded.margin, loaded.num_labels) == ("ham", 0.0, 11)


def test_the_file_says_where_the_code_is(tmp_path):
    HamSpkConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "hamspk"
    assert saved["auto_map"] == {
        "AutoConfig": "configuration_hamspk.HamSpkConfig",
        "AutoModel": "modeling_hamspk.HamSpkModel",
        "AutoModelForAudioXVector": "modeling_hamspk.HamSpkForXVector",
    }
