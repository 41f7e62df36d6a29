"""A full disk and a folder that cannot be written: one sentence, and the earlier file as it was."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from other_projects import small_model, weights_of, write
from parameters import thinned
from tiny_models import settle

from hf_hamspk import HamSpkModel
from hf_hamspk.data.synthetic import make_corpus
from hf_hamspk.folders.locks import RUN_LOCK
from hf_hamspk.verification_hamspk import SpeakerProfile

KILOBYTE = 1024


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "c", 6, 4, 3, (1.7, 2.1), test_share=0.5)


@pytest.fixture
def disk(tmp_path):
    """A function: a small disk with so many free bytes. It needs the right to mount."""
    mounted = []

    def make(size: int) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("no right to mount a small disk")
        mounted.append(folder)
        return folder

    if not shutil.which("mount"):
        pytest.skip("no program mount")
    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int = 0) -> None:
    """Leave only so many bytes free."""
    with open(folder / "ballast", "wb") as file:
        file.write(b"\0" * max(0, shutil.disk_usage(folder).free - left))


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("ballast", RUN_LOCK)]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def training(corpus: Path, output: Path) -> tuple:
    tiny = ("--ecapa_channels", "16", "--ecapa_output_channels", "48", "--pooling_channels", "16", "--cpu", "true")
    data = ("--train_data", corpus / "train.csv", "--audio_root", corpus, "--batch_size", "4", "--epochs", "2")
    return "train", *data, *tiny, "--embedding_size", "16", "--output_dir", output, "--save_steps", "1"


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 60, 200, 450, 700, 1000, 1500])
def test_training_on_a_full_disk_says_so_and_resumes(refusal, hamspk, disk, tmp_path, corpus, size):
    folder = disk(size * KILOBYTE) / "run"
    message = refusal(*training(corpus, folder))
    assert any(part in message for part in ("No space left", "os error 28", "could not be written")), message
    assert not list(folder.rglob("*.tmp"))
    # The run continues elsewhere, or after space was made.
    larger = tmp_path / "larger"
    shutil.copytree(folder, larger) if folder.exists() else larger.mkdir()
    assert hamspk(*training(corpus, larger))[0] == 0
    assert hamspk(*training(corpus, tmp_path / "whole"))[0] == 0
    names = ("final/model.safetensors", "last/model.safetensors")
    assert [hashes(larger)[name] for name in names] == [hashes(tmp_path / "whole")[name] for name in names]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "left"),
    [
        *(("prepare", left) for left in (0, 60 * KILOBYTE)),
        *(("embed", left) for left in (0, 4 * KILOBYTE, 12 * KILOBYTE)),
        *((command, 0) for command in ("enrol", "verify")),
        *(("convert", left) for left in (0, 4 * KILOBYTE, 100 * KILOBYTE)),
        *(("export", left) for left in (0, 40 * KILOBYTE)),
        *(("evaluate", left) for left in (0, 20 * KILOBYTE)),
        *(("card", left) for left in (0, 4 * KILOBYTE)),
    ],
)
def test_a_full_disk_is_one_sentence(refusal, disk, tmp_path, model_folder, corpus, voices, command, left):
    folder = disk(2000 * KILOBYTE)
    recording = next(iter(sorted((corpus / "test").rglob("*.flac"))))
    words = {
        "prepare": ("prepare", corpus / "train", folder / "shards", "--processes", "0"),
        "embed": ("embed", model_folder, corpus / "test", "--output", folder / "x.parquet"),
        "enrol": ("enrol", model_folder, recording, "--name", "anna", "--profiles", folder),
        "verify": ("verify", model_folder, recording, "--save-profile", folder / "anna.safetensors"),
        "export": ("export", model_folder, folder / "x.onnx"),
        "evaluate": ("evaluate", model_folder, corpus / "trials.txt", "--audio-root", corpus, "--output", folder / "e"),
        "card": ("card", model_folder, "--output", folder / "x.md"),
    }
    if command == "convert":
        source = write("official", tmp_path / "source", weights_of("official", settle(small_model("official"))))
        words["convert"] = ("convert", source, folder / "model")
    fill(folder, left)
    message = refusal(*words[command])
    assert any(part in message for part in ("No space left", "os error 28", "could not be written")), message
    assert str(folder) in message, message
    assert not [name for name in hashes(folder) if name.endswith((".tmp", ".part", ".unfinished"))]


def test_an_earlier_profile_and_calibration_survive_a_full_disk(disk, calibrated_folder, voices):
    folder = disk(1000 * KILOBYTE)
    model = HamSpkModel.from_pretrained(calibrated_folder)
    profile = model.enrol([str(voices / "a.wav")], name="a")
    profile.save(folder / "a.safetensors")
    model.calibration.save(folder / "verification.json")
    before = hashes(folder)
    fill(folder)
    for save in (
        lambda: profile.save(folder / "a.safetensors"),
        lambda: model.calibration.save(folder / "verification.json"),
    ):
        with pytest.raises(OSError, match=r"No space left|could not be written"):
            save()
    assert hashes(folder) == before
    assert torch.equal(SpeakerProfile.load(folder / "a.safetensors").embedding, profile.embedding)


@pytest.mark.parametrize(
    "command", thinned(["train", "prepare", "embed", "enrol", "verify", "evaluate", "card", "convert", "demo"])
)
def test_a_folder_that_cannot_be_written_is_one_sentence(refusal, tmp_path, model_folder, corpus, voices, command):
    """Root may write everywhere, so the disk is mounted read-only for root."""
    folder = tmp_path / "locked"
    folder.mkdir()
    recording = next(iter(sorted((corpus / "test").rglob("*.flac"))))
    words = {
        "train": training(corpus, folder / "run"),
        "prepare": ("prepare", corpus / "train", folder / "shards", "--processes", "0"),
        "embed": ("embed", model_folder, corpus / "test", "--output", folder / "x.parquet"),
        "enrol": ("enrol", model_folder, recording, "--name", "anna", "--profiles", folder / "profiles"),
        "verify": ("verify", model_folder, recording, "--save-profile", folder / "anna.safetensors"),
        "evaluate": ("evaluate", model_folder, corpus / "trials.txt", "--audio-root", corpus, "--output", folder / "e"),
        "card": ("card", model_folder, "--output", folder / "x.md"),
        "demo": ("demo", "--quick", "--output", folder / "demo"),
    }
    if command == "convert":
        source = write("official", tmp_path / "source", weights_of("official", settle(small_model("official"))))
        words["convert"] = ("convert", source, folder / "model")
    if os.geteuid() == 0:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("root may write everywhere, and there is no right to mount")
    else:
        folder.chmod(0o500)
    try:
        message = refusal(*words[command])
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    assert "Read-only file system" in message or "Permission denied" in message, message
    assert str(folder) in message
