"""A corpus of 200 files with 20 bad ones of 20 kinds: no command ends at one, and each is named."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from strange_files import cut, encode, speech, with_flac_length, with_nan, with_wav_size
from tiny_models import RATE

from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.evaluation.results import EvaluationRecord
from hf_hamspk.shards import load_manifest
from hf_hamspk.verification_hamspk import SpeakerProfile

SPEAKERS, GOOD = 20, 9


def content(make: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(make())


def infinite() -> np.ndarray:
    wave = speech().copy()
    wave[50] = np.inf
    return wave


# Name of the file, what writes it, and words of the reason.
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.wav": (content(bytes), "is an empty file"),
    "text.wav": (content(lambda: b"this is no audio"), "cannot be decoded"),
    "page.mp3": (content(lambda: b"<!DOCTYPE html><html>404 Not Found</html>"), "cannot be decoded"),
    "zeros.flac": (content(lambda: bytes(32_000)), "cannot be decoded"),
    "archive.ogg": (content(lambda: b"PK\x03\x04" + bytes(500)), "cannot be decoded"),
    "only-header.wav": (content(lambda: encode(speech(), "WAV")[:30]), "cannot be decoded"),
    "silence.wav": (content(lambda: encode(np.zeros(2 * RATE), "WAV")), "no sound"),
    "constant.wav": (content(lambda: encode(np.full(2 * RATE, 0.5), "WAV")), "no sound"),
    "short.wav": (content(lambda: encode(speech()[:800], "WAV")), "lasts 0.05 s"),
    "no-samples.wav": (content(lambda: encode(np.zeros(0), "WAV")), "is empty (0 samples)"),
    "nan.wav": (content(lambda: encode(with_nan(), "WAV", "FLOAT")), "NaN or infinite samples (3 of"),
    "infinite.wav": (content(lambda: encode(infinite(), "WAV", "FLOAT")), "NaN or infinite samples (1 of"),
    "scale.wav": (content(lambda: encode(32768 * speech(), "WAV", "FLOAT")), "samples up to"),
    "cut.flac": (content(lambda: cut(encode(speech(), "FLAC"))), ""),
    "lying.flac": (content(lambda: with_flac_length(encode(speech(), "FLAC"), 2**36 - 1)), "lasts 4294967 s"),
    "lying.wav": (content(lambda: with_wav_size(encode(speech(), "WAV"), 2**30)), ""),
    "slow.wav": (content(lambda: encode(speech(), "WAV", rate=1000)), "sampling rate of 1000 Hz"),
    "crowd.wav": (content(lambda: encode(np.zeros((100, 40)), "WAV")), "has 40 channels"),
    "pipe.wav": (os.mkfifo, "is not a regular file"),
    "dangling.wav": (lambda path: path.symlink_to("nowhere"), ""),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """20 speakers with nine good recordings and a bad one each, a trial list, and other files."""
    root = tmp_path_factory.mktemp("bad") / "corpus"
    trials = []
    for speaker, (name, (write, _)) in zip(range(SPEAKERS), BAD.items(), strict=True):
        folder = root / f"s{speaker:02}"
        folder.mkdir(parents=True)
        for utterance in range(GOOD):
            sf.write(folder / f"{utterance}.flac", make_speech(speaker, utterance, 4.0), RATE)
        write(folder / name)
        other = f"s{(speaker + 1) % SPEAKERS:02}"
        for utterance in range(1, GOOD):
            trials.append(f"1 s{speaker:02}/0.flac s{speaker:02}/{utterance}.flac")
            trials.append(f"0 s{speaker:02}/0.flac {other}/{utterance}.flac")
        trials += [f"1 s{speaker:02}/0.flac s{speaker:02}/{name}", f"0 {other}/1.flac s{speaker:02}/{name}"]
    (root.parent / "trials.txt").write_text("\n".join(trials) + "\n")
    return root


@pytest.fixture
def model(tmp_path, model_folder) -> Path:
    """A copy of the model, in whose folder the commands write."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def check_named(text: str) -> None:
    """Each bad file is named, and its reason stands behind the name."""
    for name, (_, reason) in BAD.items():
        assert re.search(rf"{re.escape(name)}\W{{1,4}}[^\n]*{re.escape(reason)}", text), (name, reason)


@pytest.mark.slow
def test_prepare(hamspk, corpus, tmp_path):
    code, out, err = hamspk("prepare", corpus, tmp_path / "shards", "--processes", 0)
    assert code == 0, err
    assert "180 utterances of 20 speakers" in out and "20 files left out" in out
    check_named(err)
    check_named((tmp_path / "shards" / "unreadable.csv").read_text())
    assert load_manifest(tmp_path / "shards").speaker_utterances == [GOOD] * SPEAKERS


@pytest.mark.slow
@pytest.mark.parametrize("table", [False, True])
def test_train(hamspk, corpus, tmp_path, table):
    source = corpus
    if table:
        source = tmp_path / "train.tsv"
        files = sorted(path for path in corpus.rglob("*") if not path.is_dir())
        rows = [f"{path}\t{path.parent.name} \n" for path in files]
        source.write_text("path\tspeaker_id\n" + "".join(rows) + "gone.wav\ts00\n")
    words = ["--train_data", source, "--dev_trials", corpus.parent / "trials.txt", "--trial_root", corpus]
    words += [
        "--output_dir",
        tmp_path / "run",
        "--epochs",
        1,
        "--batch_size",
        60,
        "--crop_seconds",
        0.5,
        "--cpu",
        "true",
    ]
    words += ["--ecapa_channels", 16, "--ecapa_output_channels", 48, "--pooling_channels", 16, "--embedding_size", 16]
    code, out, err = hamspk("train", *words)
    assert code == 0, err
    assert f"180 files of 20 speakers, 0.20 h; {21 if table else 20} files skipped" in out + err
    check_named(out + err)
    for run in (tmp_path / "run").rglob("evaluation.json"):
        (values,) = EvaluationRecord.read(run).lists.values()
        assert (values["trials"], values["skipped"], len(values["unusable_files"])) == (320, 40, 20)
    assert values["trials"] == 320


@pytest.mark.slow
def test_embed(hamspk, corpus, model, tmp_path):
    code, out, err = hamspk("embed", model, corpus, "--output", tmp_path / "e.parquet")
    assert code == 0, err
    assert "180 files embedded" in out and "20 skipped" in out
    check_named(err)
    assert len(pq.read_table(tmp_path / "e.parquet")) == 180


@pytest.mark.slow
def test_enrol(hamspk, corpus, model, tmp_path):
    code, out, err = hamspk("enrol", model, *sorted(corpus.iterdir()), "--profiles", tmp_path / "profiles")
    assert code == 0, err
    assert "20 speakers enrolled" in out
    check_named(err)
    profiles = [SpeakerProfile.load(path) for path in (tmp_path / "profiles").iterdir()]
    assert [profile.utterances for profile in profiles] == [GOOD] * SPEAKERS


@pytest.mark.slow
def test_evaluate_and_calibrate(hamspk, corpus, model):
    words = (corpus.parent / "trials.txt", "--audio-root", corpus)
    code, out, err = hamspk("evaluate", model, *words, "--replicates", 100)
    assert code == 0, err
    check_named(out)
    assert "20 files could not be used; their trials were skipped" in out
    values = EvaluationRecord.read(model / "evaluation.json").lists["trials"]
    assert (values["trials"], values["skipped"]) == (320, 40)
    assert {Path(name).name for name in values["unusable_files"]} == set(BAD)
    code, out, err = hamspk("calibrate", model, *words)
    assert code == 0, err
    check_named(out)
    assert "320 pairs of 20 speakers" in out and "20 files left out" in out
