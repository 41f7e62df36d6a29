"""Training on data sets of the library datasets: the same weights through every door, resumption, mistakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, ClassLabel, Dataset, DatasetDict, List, Value
from safetensors.torch import load_file

from hf_hamspk import DataArguments, HamSpkConfig, HamSpkForXVector, Trainer, TrainingArguments
from hf_hamspk.data.audio import read_utterance
from hf_hamspk.data.columns import DatasetUtterances, sequential_order
from hf_hamspk.shards.row_streams import RowStream

TINY = {"ecapa_channels": 16, "ecapa_output_channels": 48, "pooling_channels": 16, "embedding_size": 16}


@pytest.fixture(scope="module")
def rows(corpus) -> Dataset:
    """The corpus as a data set with an undecoded `Audio` column, speakers as `ClassLabel`."""
    lines = (corpus / "train.csv").read_text().splitlines()[1:]
    paths, speakers = zip(*(line.split(",") for line in lines), strict=True)
    content = [{"path": path, "bytes": (corpus / "audio" / path).read_bytes()} for path in paths]
    data = Dataset.from_dict({"audio": content, "speaker": list(speakers)})
    names = ClassLabel(names=sorted(set(speakers), reverse=True))
    return data.cast_column("audio", Audio(sampling_rate=16000)).cast_column("speaker", names)


def run(folder: Path, data, **changes):
    """Train a tiny model for two epochs in the order of the rows."""
    given = {key: changes.pop(key) for key in ("callbacks", "speakers") if key in changes}
    names = ("shuffle", "num_workers", "speed_factors", "samples_per_epoch", "audio_column", "speaker_column")
    reading = {"shuffle": False, "crop_seconds": 0.5} | {key: changes.pop(key) for key in names if key in changes}
    settings = {"epochs": 2, "batch_size": 6, "log_steps": 1, "cpu": True, "report_to": ["none"]} | changes
    torch.manual_seed(3)
    trainer = Trainer(
        HamSpkForXVector(HamSpkConfig(**TINY)),
        TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=data,
        data=DataArguments(**reading),
        **given,
    )
    trainer.train()
    return trainer


def assert_same(first: Path, second: Path) -> None:
    one, other = (load_file(folder / "final" / "model.safetensors") for folder in (first, second))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_dataset_a_stream_and_a_saved_folder_give_the_same_weights(rows, tmp_path):
    run(tmp_path / "dataset", rows)
    run(tmp_path / "stream", rows.to_iterable_dataset(num_shards=3), num_workers=2, gradient_accumulation_steps=1)
    rows.save_to_disk(tmp_path / "saved")
    run(tmp_path / "folder", str(tmp_path / "saved"))
    assert_same(tmp_path / "dataset", tmp_path / "stream")
    assert_same(tmp_path / "dataset", tmp_path / "folder")


@pytest.mark.slow
def test_the_digest_of_the_recordings_follows_them(rows, tmp_path, corpus):
    """Whatever form the recordings have, one that is replaced changes the digest, and nothing else does."""
    plain = rows.cast_column("audio", Audio(decode=False))
    files = [str(corpus / "audio" / row["audio"]["path"]) for row in plain]
    shutil.copy(files[0], tmp_path / "copy.flac")
    samples = [soundfile.read(path, dtype="float32")[0].tolist() for path in files]
    speakers = [str(row["speaker"]) for row in plain]
    forms = {
        "bytes": [{"bytes": Path(path).read_bytes(), "path": None} for path in files],
        "files": [{"bytes": None, "path": path} for path in files],
        "paths": files,
        "samples": samples,
        "arrays": [{"array": one, "sampling_rate": 16000} for one in samples],
    }
    for name, cells in forms.items():
        swapped = [cells[1], cells[1], *cells[2:]]
        copied = [str(tmp_path / "copy.flac"), *cells[1:]] if name == "paths" else [*cells]
        found = [
            DatasetUtterances(
                Dataset.from_dict({"audio": given, "speaker_id": speakers, "sampling_rate": [16000] * 24})
            )
            for given in (cells, copied, swapped)
        ]
        first, second, third = (one.contents() for one in found)
        assert first == second != third, name
        assert len({one.fingerprint() for one in found}) == 1


@pytest.mark.slow
def test_lists_of_other_toolkits_give_the_weights_of_the_csv_file(corpus, tmp_path):
    rows = [line.split(",") for line in (corpus / "train.csv").read_text().splitlines()[1:]]
    for name in ("nemo", "kaldi", "folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "audio").symlink_to(corpus / "audio")
    lines = [json.dumps({"audio_filepath": f"audio/{path}", "label": speaker}) for path, speaker in rows]
    (tmp_path / "nemo" / "train.json").write_text("\n".join(lines))
    (tmp_path / "folder" / "metadata.jsonl").write_text("\n".join(lines).replace("audio_filepath", "file_name"))
    names = ("wav.scp", "utt2spk")
    for name, cells in zip(names, ([f"audio/{path}" for path, _ in rows], [one for _, one in rows]), strict=True):
        text = "".join(f"u{number:02} {cell}\n" for number, cell in enumerate(cells))
        (tmp_path / "kaldi" / name).write_text(text)
    (tmp_path / "train.csv").write_text((corpus / "train.csv").read_text().replace("\ns", f"\n{corpus}/audio/s"))
    run(tmp_path / "csv-run", str(tmp_path / "train.csv"), shuffle=True)
    for name, source in (("nemo", "nemo/train.json"), ("kaldi", "kaldi"), ("folder", "folder")):
        run(tmp_path / f"{name}-run", tmp_path / source, shuffle=True)
        assert_same(tmp_path / "csv-run", tmp_path / f"{name}-run")


@pytest.mark.slow
def test_speeds_are_the_same_in_a_dataset_and_in_a_stream(rows, tmp_path):
    run(tmp_path / "dataset", rows, speed_factors=[1.0, 0.9])
    run(tmp_path / "stream", rows.to_iterable_dataset(), speed_factors=[1.0, 0.9])
    assert_same(tmp_path / "dataset", tmp_path / "stream")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dataset", "stream"])
def test_a_run_that_stopped_ends_with_the_same_weights(rows, tmp_path, kind):
    data = rows if kind == "dataset" else rows.to_iterable_dataset().shuffle(seed=5, buffer_size=8)
    run(tmp_path / "whole", data, shuffle=True)
    for steps in (1, 3, 6, 0):
        run(tmp_path / "parts", data, shuffle=True, max_steps=steps)
    assert_same(tmp_path / "whole", tmp_path / "parts")


SCRIPT = """
import sys, torch
from pathlib import Path
from datasets import load_from_disk
from hf_hamspk import DataArguments, HamSpkConfig, HamSpkForXVector, Trainer, TrainingArguments
from transformers import TrainerCallback

class Count(TrainerCallback):
    steps = 0
    def on_step_end(self, args, state, control, **kwargs):
        Count.steps += 1

data = load_from_disk(sys.argv[1])
if sys.argv[3] == "stream":
    data = data.to_iterable_dataset(num_shards=2)
torch.manual_seed(3)
model = HamSpkForXVector(HamSpkConfig(**{TINY}))
arguments = TrainingArguments(output_dir=sys.argv[2], epochs=2, batch_size=6, log_steps=1, cpu=True, report_to=["none"],
                              freeze_batch_norm=True, optimizer="sgd")
trainer = Trainer(model, arguments, data, data=DataArguments(shuffle=False, crop_seconds=0.5), callbacks=[Count])
trainer.train()
# A file for each process: lines that two processes print at once may be mixed.
Path(sys.argv[2], f"steps{trainer.accelerator.process_index}").write_text(str(Count.steps))
""".replace("{TINY}", repr(TINY | {"mask_frames": 0, "mask_mel_bins": 0}))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dataset", "stream"])
def test_two_processes_make_the_same_steps_on_the_same_data(rows, tmp_path, kind):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    rows.save_to_disk(tmp_path / "saved")
    (tmp_path / "train.py").write_text(SCRIPT)
    words = [str(tmp_path / "train.py"), str(tmp_path / "saved")]
    subprocess.run([sys.executable, *words, str(tmp_path / "one"), kind], check=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, *words, str(tmp_path / "two"), kind], check=True, env=environment)
    assert [(tmp_path / "two" / f"steps{rank}").read_text() for rank in range(2)] == ["8", "8"]
    one, two = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cells", ["paths", "arrays", "lists"])
def test_each_kind_of_cell_gives_the_same_crops(rows, corpus, cells):
    sounds = [soundfile.read(corpus / "audio" / f"s{n}/0.flac", dtype="float32")[0] for n in range(6)]
    speakers = [f"s{number}" for number in range(6)]
    content = {
        "paths": [str(corpus / "audio" / f"s{n}/0.flac") for n in range(6)],
        "arrays": [{"array": sound.tolist(), "sampling_rate": 16000} for sound in sounds],
        "lists": [sound.tolist() for sound in sounds],
    }[cells]
    columns = {"path" if cells == "paths" else "audio": content, "speaker": speakers}
    if cells == "lists":
        columns["sampling_rate"] = [16000] * 6
    source = DatasetUtterances(Dataset.from_dict(columns))
    for number, sound in enumerate(sounds):
        crop = source.cut(number, len(sound), np.random.default_rng(0))
        np.testing.assert_array_equal(crop, sound)
    assert source.speakers == speakers


def test_integers_of_16_bits_are_scaled(rows, corpus):
    sounds = [soundfile.read(corpus / "audio" / f"s{n}/0.flac", dtype="int16")[0] for n in range(2)]
    content = {"audio": [sound.tolist() for sound in sounds], "sampling_rate": [16000] * 2, "label": [4, 7]}
    data = Dataset.from_dict(content).cast_column("audio", List(Value("int16")))
    source = DatasetUtterances(data)
    assert source.speakers == ["4", "7"]
    np.testing.assert_array_equal(
        source.cut(1, len(sounds[1]), np.random.default_rng(0)), sounds[1].astype(np.float32) / 32768
    )


@pytest.mark.parametrize("format_", ["torch", "numpy"])
def test_formats_of_datasets_change_nothing(rows, format_):
    plain, stream = DatasetUtterances(rows), RowStream(rows.to_iterable_dataset().with_format(format_))
    formatted = DatasetUtterances(rows.with_format(format_))
    assert formatted.fingerprint() == plain.fingerprint() == stream.digest
    draws = (np.random.default_rng(0) for _ in range(2))
    np.testing.assert_array_equal(*(source.cut(3, 8000, next(draws)) for source in (plain, formatted)))


@pytest.mark.slow
@pytest.mark.parametrize("rate", [8000, 44100])
def test_another_rate_needs_no_torchcodec(corpus, tmp_path, monkeypatch, rate):
    """Files of another rate than the model's, in a column that `datasets` would decode to a third one."""
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * np.sin(np.arange(rate) / (9 + number)), rate)
    content = {"audio": [str(tmp_path / f"{number}.wav") for number in range(4)], "speaker": ["a", "b"] * 2}
    data = Dataset.from_dict(content).cast_column("audio", Audio(sampling_rate=22050))
    source = DatasetUtterances(data)
    assert len(source.cut(0, 16000, np.random.default_rng(0))) == 16000
    assert read_utterance(source.source(0), 16000).waveform.shape == (16000,)
    run(tmp_path / "run", data.to_iterable_dataset(), epochs=1, batch_size=4)


@pytest.mark.slow
def test_a_bad_row_is_replaced_and_reported(rows, tmp_path):
    def spoil(row, number):
        return row if number != 7 else row | {"audio": {"path": "bad.flac", "bytes": b"fLaC and nothing"}}

    undecoded = rows.cast_column("audio", Audio(decode=False))
    spoilt = undecoded.map(spoil, with_indices=True, features=undecoded.features)
    for name, data in (("dataset", spoilt), ("stream", spoilt.to_iterable_dataset())):
        trainer = run(tmp_path / name, data, epochs=1)
        record = json.loads((tmp_path / name / "final" / "evaluation.json").read_text())
        assert list(record["training"]["unreadable_files"]) == ["bad.flac"]
        assert trainer.progress.step == 4


def test_the_order_of_the_rows_mixes_the_speeds():
    order = sequential_order(3, 2)
    np.testing.assert_array_equal(order, [0, 4, 2, 3, 1, 5])


def test_known_speakers_and_rows_need_no_pass(rows):
    class Counted:
        def __init__(self, data):
            self.data, self.passes = data, 0

        def __getattr__(self, name):
            return getattr(self.data, name)

        def select_columns(self, names):
            self.passes += 1
            return self.data.select_columns(names)

        def cast_column(self, *words):
            return self

    data = Counted(rows.to_iterable_dataset())
    stream = RowStream(data, count=24)
    assert (data.passes, stream.counted, stream.count, len(stream.speakers)) == (0, False, 24, 6)
    with pytest.raises(ValueError, match="has 24 rows, expected 25"):
        list(RowStream(rows.to_iterable_dataset(), count=25).rows(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: data.rename_column("speaker", "who"),
            "no column 'speaker_id' or 'speaker' or .* or 'label'. Its columns are .*'who'",
        ),
        (lambda data: data.rename_column("audio", "sound"), "no column 'audio' or 'path'. Its columns are"),
        (lambda data: data.filter(lambda row: row["speaker"] == 0), "at least 2 speakers, got only 's5'"),
        (lambda data: data.select([]), "got no rows"),
        (lambda data: DatasetDict(train=data), "dictionary with the splits train"),
        (lambda data: [1, 2], "got a list"),
        (
            lambda data: Dataset.from_dict({"audio": [[0.1, 0.2]] * 4, "speaker": ["a", "b"] * 2}),
            "The first 4 rows of the data set have no usable audio",
        ),
        (
            lambda data: Dataset.from_dict({"audio": [[1, 2]] * 4, "speaker": ["a", "b"] * 2}).to_iterable_dataset(),
            "The column 'audio' contains int64 samples. Expected floating point in",
        ),
        (
            lambda data: Dataset.from_dict({"audio": [{"array": [1], "sampling_rate": 1}], "speaker": ["a"]}),
            "The column 'audio' contains int64 samples. Expected floating point in",
        ),
        (
            lambda data: data.filter(lambda row: row["speaker"] == 0).to_iterable_dataset(),
            "at least 2 speakers, got only 's5' in 4 rows",
        ),
        (
            lambda data: Dataset.from_dict({"path": ["nowhere.wav"] * 4, "speaker": ["a", "b"] * 2}),
            "nowhere.wav: no such file",
        ),
        (lambda data: Dataset.from_dict({"path": ["a.wav"] * 2, "speaker": ["a", None]}), "Row 1: expected a speaker"),
    ],
)
def test_mistakes_are_explained_in_a_sentence(rows, tmp_path, change, message):
    undecoded = rows.cast_column("audio", Audio(decode=False))
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", change(undecoded))
    assert not (tmp_path / "run").exists()


def test_a_column_that_the_arguments_name_must_exist(rows, tmp_path):
    for data in (rows, rows.to_iterable_dataset()):
        with pytest.raises(ValueError, match=r"no column 'sound'\. Its columns are \['audio', 'speaker'\]"):
            run(tmp_path / "run", data, audio_column="sound")
        with pytest.raises(ValueError, match=r"no column 'speakr'.* Did you mean speaker_column='speaker'\?"):
            run(tmp_path / "run", data, speaker_column="speakr")
