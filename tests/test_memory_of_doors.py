"""The peak memory of each door, in a process of its own: what it takes for the largest accepted recordings."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from bombs import RATE, long_file, long_speech, reading_bytes, refused_bombs
from tiny_models import save_calibrated_model

MIB = 1 << 20
# The rate at which 600 s of one channel are nearly 2^27 samples.
HIGH_RATE = 192_000
CORPUS_SECONDS = 4000
# Features and a tiny encoder for 180 s, the spectra that speech is detected in, and what the allocator keeps.
OVERHEAD = 350 * MIB


class Door(NamedTuple):
    """A way in.

    Attributes:
        name: of the function in `SCRIPT`.
        files: kind of recordings, a folder.
        most: bytes that the largest recordings may take, as the documentation derives it.
    """

    name: str
    files: str
    most: int


SINGLE = reading_bytes(600 * HIGH_RATE, 600) + 2 * 600 * RATE * 4
SMALL = reading_bytes(1 << 24, 120) + 2 * 120 * RATE * 4
# Two recordings are read at the same time.
CORPUS = 2 * reading_bytes(CORPUS_SECONDS * RATE, 0)
DOORS = [
    Door("verify", "single", SINGLE),
    Door("verify_command", "single", SINGLE),
    Door("embed", "single", SINGLE),
    Door("pipeline", "single", SINGLE),
    Door("handler", "small", SMALL + 24 * MIB),
    Door("space", "small", SMALL + 24 * MIB),
    Door("embed_command", "corpus", CORPUS),
    # One process reads one recording; rounding it to 16 bits and encoding it take 4 bytes per sample.
    Door("prepare_command", "corpus", reading_bytes(CORPUS_SECONDS * RATE, 0) + 4 * CORPUS_SECONDS * RATE),
    Door("train_command", "corpus", CORPUS),
    Door("enrol_command", "single", SINGLE),
]

SCRIPT = """
import base64, contextlib, io, json, resource, sys
from pathlib import Path

import torch
torch.set_num_threads(1)
from hf_hamspk import HamSpkModel
from hf_hamspk.__main__ import main

door, folder, work = sys.argv[1], sys.argv[2], Path(sys.argv[3])
ordinary = str(work / "ordinary" / "a" / "0.flac")
model = HamSpkModel.from_pretrained(folder)
outcomes = []

def ask(call, *words, **options):
    try:
        found = call(*words, **options)
        outcomes.append(found if isinstance(found, int) else "answered")
    except ValueError as error:
        outcomes.append("refused: " + str(error)[:200])

def each(files, call):
    for path in sorted(files.rglob("*.flac")):
        ask(call, str(path))

def verify(files):
    each(files, lambda path: model.verify(ordinary, path) and model.verify(path, ordinary))

def verify_command(files):
    each(files, lambda path: main(["verify", folder, ordinary, path]))

def enrol_command(files):
    profiles = str(work / f"{files.name}-profiles")
    each(files, lambda path: main(["enrol", folder, path, "--name", "anna", "--profiles", profiles]))

def embed(files):
    each(files, lambda path: model.embed([path]))

def pipeline(files):
    from transformers import pipeline
    ask_it = pipeline("speaker-verification", model=folder, trust_remote_code=True, device="cpu")
    each(files, lambda path: ask_it((ordinary, path)))

def handler(files):
    from hf_hamspk.publishing.handler import EndpointHandler
    ask_it = EndpointHandler(folder)
    def text(path):
        return base64.b64encode(Path(path).read_bytes()).decode()
    each(files, lambda path: ask_it({"inputs": {"enrolment": text(ordinary), "test": text(path)}}))

def space(files):
    sys.path.insert(0, sys.argv[4])
    import verdict
    each(files, lambda path: verdict.compare(model, ordinary, path))

def embed_command(files):
    outcomes.append(main(["embed", folder, str(files), "--output", str(work / f"{door}-{files.name}.npz")]))

def prepare_command(files):
    outcomes.append(main(["prepare", str(files), str(work / f"{door}-{files.name}"), "--processes", "0"]))

def train_command(files):
    tiny = dict(ecapa_channels=16, ecapa_output_channels=48, ecapa_bottleneck=8, pooling_channels=8, embedding_size=24,
                batch_size=2, epochs=1, crop_seconds=0.5, num_workers=0, output_dir=work / f"{door}-{files.name}")
    words = [word for name, value in tiny.items() for word in (f"--{name}", str(value))]
    outcomes.append(main(["train", "--train_data", str(files), *words, "--cpu"]))

def peaks():
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return [resource.getrusage(one).ru_maxrss << 10 for one in who]

with contextlib.redirect_stdout(io.StringIO()):
    globals()[door](work / "ordinary")
    before = peaks()
    globals()[door](work / sys.argv[5])
print(json.dumps({"before": before, "after": peaks(), "outcomes": outcomes}))
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Folders with a folder for each of two speakers."""
    root = tmp_path_factory.mktemp("work")
    for kind in ("ordinary", "single", "small", "corpus"):
        for speaker in "ab":
            (root / kind / speaker).mkdir(parents=True)
    for number, speaker in enumerate("ab"):
        for utterance in range(2):
            long_speech(root / "ordinary" / speaker / f"{utterance}.flac", 4 + number)
        long_file(root / "corpus" / speaker / "long.flac", CORPUS_SECONDS - number, RATE)
        long_speech(root / "corpus" / speaker / "short.flac", 3 + number)
    long_file(root / "single" / "a" / "high.flac", 600, HIGH_RATE)
    long_speech(root / "single" / "a" / "speech.flac", 600)
    long_file(root / "small" / "a" / "high.flac", 120, 128_000)
    long_speech(root / "small" / "a" / "speech.flac", 120)
    for kind in ("single", "small", "corpus"):
        for number, (_, content) in enumerate(refused_bombs()):
            (root / kind / "b" / f"bomb{number}.flac").write_bytes(content)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_calibrated_model(tmp_path_factory.mktemp("doors") / "final")


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
def test_peak_memory(door, work, folder):
    space = Path(__file__).parents[1] / "examples" / "space"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, door.name, str(folder), str(work), str(space), door.files],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    grown = [after - before for before, after in zip(found["before"], found["after"], strict=True)]
    print(door.name, [size // MIB for size in grown], "of", (door.most + OVERHEAD) // MIB, "MiB", found["outcomes"])
    assert max(grown) < door.most + OVERHEAD
    # The long ones are answered, and the bombs refused: by a sentence, by an exit status, or in the list of a command.
    refusals = [one for one in found["outcomes"] if isinstance(one, str) and one != "answered"]
    assert all("expected at most" in one for one in refusals)
    assert len(refusals) == 5 or sum(one in (1, 2) for one in found["outcomes"]) >= 5 or door.files == "corpus"
