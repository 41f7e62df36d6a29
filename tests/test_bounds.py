"""Every number of a configuration and of a recipe has a range, and a value outside it is refused by one sentence."""

import copy
import dataclasses
import json
import math
import re
import subprocess
import sys
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import W2V_BERT, save_model, tiny_backbone

from hf_hamspk import DataArguments, HamSpkConfig, HamSpkForXVector, TrainingArguments
from hf_hamspk.configuration_hamspk import BACKBONE_RANGES, LONGEST_LIST, RANGES
from hf_hamspk.loading.models import load_model
from hf_hamspk.training import read_recipe
from hf_hamspk.training.arguments import DATA_RANGES, TRAINING_RANGES

TABLES = {HamSpkConfig: RANGES, DataArguments: DATA_RANGES, TrainingArguments: TRAINING_RANGES}
NEEDED = {HamSpkConfig: {}, DataArguments: {"train_data": "a.csv"}, TrainingArguments: {}}
REFUSED = (ValueError, *(error for error in Exception.__subclasses__() if error.__name__ == "StrictDataclassError"))
STRANGE = [math.nan, math.inf, -math.inf, 10**9 + 1, -(10**9), 10**30, 1e300, -1e300]
# Arguments that allow larger numbers than the strange ones, because they count steps or are clipped.
LARGE = {"seed", "max_steps", "samples_per_epoch", "save_steps", "log_steps", "max_grad_norm"}


def numeric(annotation) -> bool:
    """Whether a field has, or can have, numbers."""
    # transformers states the types of its own fields as text.
    if isinstance(annotation, str):
        return any(word in ("int", "float") for word in re.findall(r"\w+", annotation)) and "dict" not in annotation
    parts = typing.get_args(annotation)
    if not parts:
        return annotation in (int, float)
    return typing.get_origin(annotation) is not dict and any(numeric(part) for part in parts)


def is_whole(owner: type, name: str) -> bool:
    kinds = str(next((f.type for f in dataclasses.fields(owner) if f.name == name), "int"))
    return "float" not in kinds


def make(owner: type, name: str, value):
    default = getattr(owner(**NEEDED[owner]), name)
    return owner(**NEEDED[owner] | {name: [value] if isinstance(default, list | tuple) else value})


@pytest.mark.parametrize("owner", TABLES)
def test_every_numeric_field_has_a_range(owner):
    """A new field needs a line in the table."""
    names = {field.name for field in dataclasses.fields(owner) if numeric(field.type)}
    assert names - {"backbone_config"} == set(TABLES[owner]) - {"num_labels"}
    assert all(math.isfinite(low) and math.isfinite(high) and low < high for low, high in TABLES[owner].values())


FIELDS = [(owner, name) for owner, table in TABLES.items() for name in table]


@pytest.mark.parametrize(("owner", "name"), FIELDS, ids=[f"{owner.__name__}-{name}" for owner, name in FIELDS])
def test_numbers_outside_their_range_are_refused(owner, name):
    low, high = TABLES[owner][name]
    strange = [value for value in STRANGE if not low <= value <= high]
    assert len(strange) == len(STRANGE) or name in LARGE
    for value in [*strange, low - 1, high + 1, 2 * high + 1]:
        if is_whole(owner, name) and isinstance(value, float) and math.isfinite(value):
            value = int(value)
        with pytest.raises(REFUSED, match=rf"(?s)\b{name}\b") as refused:
            make(owner, name, value)
        cause = refused.value if refused.value.__cause__ is None else refused.value.__cause__
        assert "\n" not in str(cause)


@pytest.mark.parametrize(("owner", "name"), [one for one in FIELDS if one[0] is not HamSpkConfig], ids=str)
def test_other_kinds_than_numbers_are_refused(owner, name):
    default = getattr(owner(**NEEDED[owner]), name)
    for value in ("3", True, None, [], {}):
        if (value == [] and name == "speed_factors") or (value in (None, []) and value == default):
            continue
        with pytest.raises(ValueError, match=f"{name} must be a"):
            owner(**NEEDED[owner] | {name: value})


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    field=st.sampled_from(FIELDS),
    value=st.one_of(st.integers(), st.floats(), st.integers(-(2**70), 2**70), st.text(max_size=3), st.none()),
)
def test_any_value_is_taken_within_its_range_or_refused(field, value):
    owner, name = field
    low, high = TABLES[owner][name]
    try:
        made = getattr(make(owner, name, value), name)
    except REFUSED:
        return
    except TypeError:
        # transformers makes the labels before it looks at the type of their number.
        assert name == "num_labels"
        return
    for one in made if isinstance(made, list | tuple) else [made]:
        # None selects a default.
        assert one is None or low <= one <= high


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("momentum: .nan", "momentum must be between 0 and 0.99999, got nan."),
        ("num_workers: 100000", "num_workers must be between 0 and 256, got 100000."),
        ("ecapa_channels: 10000000000", "ecapa_channels must be between 1 and 4096, got 10000000000."),
        ("learning_rate: .inf", "learning_rate must be between"),
        ("seed: -1", "seed must be between 0 and 4294967295, got -1."),
        ("speed_factors: [1.0, .nan]", "speed_factors must be between 0.25 and 4, got [1.0, nan]."),
        ("embedding_size: 1000000000", "embedding_size must be between 1 and 8192, got 1000000000."),
        ("scale: .nan", "scale must be above 0 and finite, got nan."),
    ],
)
def test_a_recipe_with_a_strange_number_is_refused(tmp_path, line, message):
    (tmp_path / "recipe.yaml").write_text(f"train_data: a.csv\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        read_recipe([str(tmp_path / "recipe.yaml")])


# --- the configuration of a stranger


WAVLM, BERT = tiny_backbone("wavlm").to_dict(), tiny_backbone(W2V_BERT).to_dict()


def with_backbone(**fields) -> dict:
    return {"backbone_config": WAVLM | fields, "frontend": "waveform"}


HOSTILE = [
    *({name: 10**9} for name in ("num_labels", "sampling_rate", "num_mel_bins", "embedding_size", "ecapa_channels")),
    *({name: value} for name in ("dtype", "torch_dtype") for value in ("evil", "backends", "int8")),
    *({"dtype": value} for value in (["float32"], 5, {})),
    {"ecapa_dilations": [2] * 100_000},
    {"ecapa_dilations": [10**9]},
    {"ecapa_dilations": []},
    {"tdnn_channels": [8192] * LONGEST_LIST, "tdnn_kernel_sizes": [100] * 32, "tdnn_dilations": [1] * 32},
    {"backbone": "resnet", "resnet_channels": 512, "num_mel_bins": 1024, "resnet_depth": 293},
    {"backbone": "resnet", "resnet_depth": 10**9},
    {"backbone": "campplus", "campplus_layers": [128] * 32, "campplus_dilations": [1] * 32, "campplus_growth": 4096},
    {"backbone": "campplus", "campplus_layers": [10**9] * 3},
    {"backbone": "evil"},
    {"margin": math.nan},
    {"scale": math.inf},
    {"backbone_config": 5},
    {"id2label": 5},
    *(with_backbone(**{name: 10**9}) for name in WAVLM if type(WAVLM[name]) is int),
    *(with_backbone(**{name: [10**9] * 7}) for name in ("conv_dim", "conv_kernel", "conv_stride")),
    *(with_backbone(**{name: 0}) for name in BACKBONE_RANGES if isinstance(WAVLM.get(name), int)),
    *({"backbone_config": BERT | {name: 10**9}, "frontend": "seamless"} for name in BERT if type(BERT[name]) is int),
    {"backbone_config": BERT | {"feature_projection_input_dim": 100}, "frontend": "seamless"},
    {"backbone_config": BERT | {"position_embeddings_type": "rotary"}, "frontend": "seamless"},
    with_backbone(conv_dim=[2] * 100_000),
    with_backbone(layer_norm_eps=math.nan),
    with_backbone(hidden_act="evil"),
    with_backbone(dtype="evil"),
    with_backbone(model_type="evil"),
    with_backbone(num_labels=10**9),
    with_backbone(hidden_size=65536, num_hidden_layers=1024),
]
PROBE = """
import json, resource, sys
from hf_hamspk.loading.models import load_model
load_model(sys.argv[1])
base, answers = json.load(open(sys.argv[1] + "/config.json")), []
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for change in json.load(open(sys.argv[2])):
    json.dump(base | change, open(sys.argv[1] + "/config.json", "w"))
    try:
        load_model(sys.argv[1])
        said = ""
    except ValueError as error:
        said = str(error)
    answers.append(said)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"answers": answers, "grown_kilobytes": grown}))
"""


@pytest.mark.slow
def test_hostile_configurations_are_refused_without_taking_memory(tmp_path):
    folder = save_model(tmp_path / "model")
    (tmp_path / "changes.json").write_text(json.dumps(HOSTILE))
    command = [sys.executable, "-c", PROBE, str(folder), str(tmp_path / "changes.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for change, said in zip(HOSTILE, found["answers"], strict=True):
        assert said and "\n" not in said.strip(), (str(change)[:200], said)
    assert found["grown_kilobytes"] < 200_000


@pytest.mark.slow
def test_the_published_sizes_are_in_range():
    HamSpkConfig(num_labels=1_000_000, ecapa_channels=2048, ecapa_output_channels=3072)
    largest = copy.deepcopy(WAVLM) | {"hidden_size": 1920, "num_hidden_layers": 48, "intermediate_size": 7680}
    HamSpkConfig(backbone_config=largest | {"num_attention_heads": 16})


def test_a_value_set_later_is_refused_when_the_model_is_saved(tmp_path):
    model = HamSpkForXVector.from_pretrained(save_model(tmp_path / "model"))
    model.config.clip_radius = math.nan
    with pytest.raises(REFUSED, match="clip_radius"):
        model.save_pretrained(tmp_path / "again")
    assert load_model(tmp_path / "model") is not None
