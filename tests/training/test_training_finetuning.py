"""The fine-tuning of the README on real speech: the same weights from every kind of data set."""

import csv
import re
from pathlib import Path

import pytest
import torch
from datasets import Audio, Dataset
from safetensors.torch import load_file
from tiny_models import tiny_config

from hf_hamspk import HamSpkForXVector

README = Path(__file__).resolve().parents[2] / "README.md"
SPEAKERS, UTTERANCES = 6, 5


@pytest.fixture
def people(shared) -> Dataset:
    """A few speakers of the real speech, interleaved, as a data set with an `Audio` column."""
    speech = shared / "speech"
    if not (speech / "train.csv").is_file():
        pytest.skip(f"no real speech at {speech}")
    files: dict[str, list[str]] = {}
    with open(speech / "train.csv", newline="") as table:
        for row in csv.DictReader(table):
            if row["corpus"] == "arabic_speech_commands":
                files.setdefault(row["speaker_id"], []).append(str(speech / "audio" / row["path"]))
    chosen = sorted(files)[:SPEAKERS]
    rows = [(files[speaker][number], speaker) for number in range(UTTERANCES) for speaker in chosen]
    columns = dict(zip(("audio", "speaker"), map(list, zip(*rows, strict=True)), strict=True))
    return Dataset.from_dict(columns).cast_column("audio", Audio(sampling_rate=16000))


def fine_tuning() -> str:
    """The code of the README, which trains for one epoch in the order of the rows of `data`."""
    found = re.search(r"^```python\n((?:(?!```).)*Trainer\(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    code = found[1]
    for old, new in (
        (r'^people = "people/".*$', "people = data"),
        ('"hamspk-demo/run/final"', "MODEL"),
        ('"runs/people", epochs=5', "OUTPUT, epochs=1"),
        (r"train_dataset=people\)", "train_dataset=people, data=ORDER)"),
    ):
        code, count = re.subn(old, new, code, flags=re.MULTILINE)
        assert count == 1, old
    return code


@pytest.mark.slow
def test_a_dataset_a_stream_and_a_saved_folder_give_the_weights_bit_for_bit(people, tmp_path, monkeypatch):
    from hf_hamspk import DataArguments

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    torch.manual_seed(1)
    HamSpkForXVector(tiny_config()).save_pretrained(tmp_path / "model")
    people.save_to_disk(tmp_path / "saved")
    sources = {
        "dataset": people,
        "stream": people.to_iterable_dataset(num_shards=2),
        "folder": str(tmp_path / "saved"),
    }
    for name, data in sources.items():
        names = {"data": data, "MODEL": str(tmp_path / "model"), "OUTPUT": str(tmp_path / name)}
        exec(compile(fine_tuning(), README.name, "exec"), names | {"ORDER": DataArguments(shuffle=False)})
    first, *others = (load_file(tmp_path / name / "final" / "model.safetensors") for name in sources)
    start = load_file(tmp_path / "model" / "model.safetensors")
    assert any(not torch.equal(first[name], start[name]) for name in first if name in start)
    for other in others:
        assert first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)
    assert HamSpkForXVector.from_pretrained(tmp_path / "dataset" / "final").config.num_labels == SPEAKERS
