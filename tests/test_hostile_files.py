"""Hostile JSON and YAML through every reader: a result or one short sentence, and never another error."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub.errors import StrictDataclassError
from tiny_models import tiny_config

from hf_hamspk import Calibration, HamSpkConfig, SpeakerProfile
from hf_hamspk.calibration_hamspk import CHECKSUM, Cohort, OperatingPoint, dict_checksum, save_array
from hf_hamspk.conversion.checkpoints import read_yaml
from hf_hamspk.encoders_hamspk import METADATA_KEY, OnnxDescription
from hf_hamspk.evaluation.results import EvaluationRecord
from hf_hamspk.loading.models import load_model
from hf_hamspk.publishing.about import About
from hf_hamspk.publishing.facts import CardFacts, read_json_object, read_public_recipe
from hf_hamspk.shards.manifest import Manifest, Shard
from hf_hamspk.training.arguments import read_recipe

FILES_PER_READER = 60
LONGEST_MESSAGE = 2500
DEEP = 100_000
POINT = {"name": "even", "prior": 0.5, "cost_miss": 1.0, "cost_false_alarm": 1.0}
CALIBRATION = Calibration("ab" * 32, "cosine", -2.0, {"score": 8.0}, (OperatingPoint("even", 0.5),)).to_dict()
NUMBERS = {"eer": 0.1, "eer_interval": [0.05, 0.2], "trials": 50, "targets": 9, "min_dcf": {"0.01": 0.4}}
NUMBERS |= {"scores": "cosine", "histogram": {"edges": [0.0, 1.0], "targets": [3], "impostors": [4]}}
DECIDED = NUMBERS | {"operating_points": {"even": {"threshold": 0.0, "miss_rate": 0.1, "miss_interval": [0.0, 0.2]}}}
RECORD = {
    "schema": 2,
    "model": {"name": "m", "fingerprint": "ab" * 32, "parameters": 3},
    "lists": {"dev": NUMBERS | {"decisions": DECIDED, "groups": {"f": NUMBERS}}},
    "sweeps": {"dev": {"digest": "d", "conditions": {"snr": [{"condition": "5 dB", "trials": 5, "eer": 0.1}]}}},
    "training": {"epochs": 3, "best_dev_eer": 0.1},
    "plots": {"det.png": "DET"},
}
SHARD = Shard("train-0.parquet", 2, [2], 10, "ab" * 32, 3.0, None, None)
MANIFEST = json.loads(Manifest("parquet", "flac", 16000, "", "s", [SHARD], ["a", "b"], [1, 1], 2, 3.0, 0).to_json())
RECIPE = {"train_data": "people.csv", "output_dir": "runs/a", "batch_size": 8, "learning_rate": 0.1, "epochs": 2}
ABOUT = {"title": "t", "languages": ["en"], "licence": "apache-2.0", "speed": {"cpu": "fast"}}
ABOUT |= {"training_data": [{"name": "A", "speakers": 5}], "trial_lists": {"dev": {"name": "Dev"}}}
PROFILE = {"name": "anna", "seconds": [3.0], "snr_db": 20.0, "magnitude": 1.0, "combine": "mean", "revision": None}
PROFILE |= {"fingerprint": "ab" * 32, "model_id": "m", "recordings": ["ab" * 32], "kind": "speaker profile"}
COHORT = {"fingerprint": "ab" * 32, "audio": "people"}
FACTS = {"schema": 1, "name": "m", "published": False, "config": {"sampling_rate": 16000}, "evaluation": RECORD}
FACTS |= {"verification": CALIBRATION, "recipe": RECIPE, "weights": {"numbers": 3, "bytes": 12}, "about": ABOUT}
ONNX = {"fingerprint": "ab" * 32, "sampling_rate": 16000, "embedding_size": 24, "masked": True}


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 2**63, 10**400, 5e-324, 1e308, -1e308, float("nan"), float("inf"), 1.5, "", "evil"),
    *("x" * 1_000_000, "\x00", "\ud800", "../../etc/passwd", "a\nb", [], {}, [1], {"a": 1}, [None], nested(200)),
    *([1e308, 5e-324], {"": {}}, [[]], {"name": "x"}, ["x"] * 1000, "2" * 5000),
)


def places(value: Any, place: tuple = ()) -> list[tuple]:
    """Return the paths of all values in a nested document."""
    found = [place] if place else []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in entries:
        found += places(one, (*place, key))
    return found


def changed(document: dict, draw: random.Random) -> Any:
    """Return a document with one to three values replaced, deleted, renamed or repeated."""
    document = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 2, 3))):
        place = draw.choice(places(document))
        home = document
        try:
            for key in place[:-1]:
                home = home[key]
            match draw.choice(("replace", "replace", "replace", "delete", "add")):
                case "replace":
                    home[place[-1]] = copy.deepcopy(draw.choice(VALUES))
                case "delete":
                    del home[place[-1]]
                case _:
                    home[draw.choice(("unknown", "", "x" * 10_000))] = draw.choice(VALUES)
        except (KeyError, IndexError, TypeError):
            continue  # An earlier change removed this place.
    return document


def texts_of(document: dict, draw: random.Random, as_yaml: bool) -> bytes:
    """Return the bytes of a hostile file: a changed document, or a document whose text is damaged."""
    kind = draw.randrange(12)
    if kind >= 9:
        top: Any = draw.choice((None, [], [document], "text", 3, True, nested(3)))
        return json.dumps(top).encode()
    values = changed(document, draw)
    text = json.dumps(values) if not as_yaml or draw.random() < 0.7 else json.dumps(values, indent=1)
    data = text.encode("utf-8", "surrogatepass")
    match kind:
        case 0:
            return data[: draw.randrange(len(data))]
        case 1:
            return b"[" * DEEP if draw.random() < 0.5 else b'{"schema": ' * DEEP
        case 2:
            return draw.choice((b"", b"\xff\xfe\x00", data.replace(b'"', b"\xe9", 1), b"\xef\xbb\xbf" + data))
        case 3:
            return data[:-1] + b', "schema": 9, "schema": 1}'
    return data


def signed(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Sign a JSON object as the package does, so that the reader looks behind the checksum."""

    def reader(path: Path) -> Any:
        try:
            values = json.loads(path.read_bytes())
            values[CHECKSUM] = dict_checksum(values)
            path.write_text(json.dumps(values))
        except (ValueError, TypeError, RecursionError, AttributeError, MemoryError):
            pass
        return read(path)

    return reader


def described(name: str, shape: tuple[int, ...], read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Put a JSON object into the description of a safetensors file."""

    def reader(path: Path) -> Any:
        try:
            values = json.loads(path.read_bytes())
            target = path.with_suffix(".safetensors")
            save_array(target, name, np.ones(shape, np.float32) * np.arange(1, shape[-1] + 1), values)
        except (ValueError, TypeError, RecursionError):
            return None
        return read(target)

    return reader


def config_folder(path: Path) -> Any:
    """Load a model without weights, which comes no further than to the weights."""
    path.rename(path.with_name("config.json"))
    try:
        load_model(path.parent)
    except ValueError as error:
        if "The weights of" not in str(error):
            raise
        return HamSpkConfig.from_pretrained(path.parent)
    except StrictDataclassError as error:  # the strict configurations of transformers; commands print it as an error
        raise ValueError(str(error)) from error


READERS: dict[str, tuple[dict, Callable[[Path], Any], bool]] = {
    "calibration": (CALIBRATION, Calibration.load, False),
    "signed calibration": (CALIBRATION, signed(Calibration.load), False),
    "profile": (PROFILE, described("embedding", (24,), SpeakerProfile.load), False),
    "cohort": (COHORT, described("embeddings", (3, 24), Cohort.load), False),
    "evaluation": (RECORD, EvaluationRecord.read, False),
    "manifest": (MANIFEST, lambda path: Manifest.from_json(path.read_bytes()), False),
    "facts": (FACTS, lambda path: CardFacts.from_json(path.read_bytes().decode(errors="replace"), "facts"), False),
    "any object": (FACTS, read_json_object, False),
    "ONNX": (ONNX, lambda p: OnnxDescription.from_metadata({METADATA_KEY: p.read_text("latin-1")}, "m.onnx"), False),
    "configuration": (json.loads(tiny_config().to_json_string()), config_folder, False),
    "recipe": (RECIPE, lambda path: read_recipe([str(path)]), True),
    "recipe in a card": (RECIPE, read_public_recipe, True),
    "about": (ABOUT, About.read, True),
    "other project": (RECIPE, read_yaml, True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_hostile_files_are_read_or_refused_in_one_sentence(name, tmp_path):
    document, read, as_yaml = READERS[name]
    draw = random.Random(f"hostile {name}")
    refused = 0
    for number in range(FILES_PER_READER):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / ("file.yaml" if as_yaml else "file.json")
        path.write_bytes(texts_of(document, draw, as_yaml))
        try:
            read(path)
        except ValueError as error:
            refused += 1
            assert len(str(error)) <= LONGEST_MESSAGE, f"{path}: {str(error)[:300]} ..."
            assert str(error).strip(), path
            # The messages of PyYAML show the place of the error in lines of their own.
            assert as_yaml or "\n" not in str(error), path
        except Exception as error:
            pytest.fail(f"{path}: {type(error).__name__}: {str(error)[:300]}")
    assert refused >= FILES_PER_READER / 4


@pytest.mark.parametrize("name", READERS)
def test_the_unchanged_file_is_read(name, tmp_path):
    document, read, as_yaml = READERS[name]
    path = tmp_path / ("file.yaml" if as_yaml else "file.json")
    path.write_text(yaml.safe_dump(document) if as_yaml else json.dumps(document))
    assert read(path) is not None
