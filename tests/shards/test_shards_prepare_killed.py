"""Real processes, really killed, and decoders that kill theirs.

`HAMSPK_FULL_SIZE=1 pytest -s tests/shards/test_shards_prepare_killed.py` takes 200 speakers with 5,000 files in place
of 20 with 240, and says what it measured.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from prepare_sources import RATE, as_file, as_m4a, deadly_make_shard, deadly_try_row, noise, write

import hf_hamspk.shards.making as making
from hf_hamspk.data.audio import read_utterance
from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.shards import PrepareOptions, load_manifest, prepare, verify_shards
from hf_hamspk.shards.encoding import to_16_bit
from hf_hamspk.shards.manifest import read_unreadable

pytestmark = pytest.mark.slow

FULL = os.environ.get("HAMSPK_FULL_SIZE") == "1"
SPEAKERS, UTTERANCES = (200, 25) if FULL else (20, 12)
SHARDS = 48 if FULL else 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tree like VoxCeleb2's, half m4a and half wav, a few bad files; the good keys with their samples (None for m4a),
    and the bad names."""
    root = tmp_path_factory.mktemp("voxceleb") / "dev"
    good, bad = {}, set()
    draw = np.random.default_rng(0)
    for speaker in range(SPEAKERS):
        for number in range(UTTERANCES):
            key = f"aac/id{speaker:05d}/video{number // 5:06d}/{number:05d}"
            seconds = float(draw.uniform(1.0, 4.0) if FULL else draw.uniform(0.2, 0.6))
            samples = (
                to_16_bit(make_speech(speaker, number, seconds)) if FULL else noise(hash((speaker, number)) % 2**31)
            )
            suffix = ".m4a" if number % 2 else ".wav"
            content = as_m4a(samples) if number % 2 else as_file(samples)
            if (speaker * UTTERANCES + number) % 97 == 50:
                content = [b"", b"no audio", content[: len(content) // 2], content[:30]][speaker % 4]
                bad.add(key + suffix)
            else:
                good[key] = None if number % 2 else samples
            write(root, key + suffix, content)
    return root, good, bad


def check(output: Path, good: dict, bad: set) -> None:
    """Every good file is in one shard, with its samples; every bad one in the report."""
    found = {}
    for shard in load_manifest(output).shards:
        for row in pq.read_table(output / shard.file).to_pylist():
            assert row["key"] not in found
            found[row["key"]] = row
    assert found.keys() == good.keys()
    for key, samples in good.items():
        if samples is not None:
            np.testing.assert_array_equal(to_16_bit(read_utterance(found[key]["audio"]).waveform), samples)
    assert {path for path, _ in read_unreadable(output)} == bad
    assert all(reason for _, reason in read_unreadable(output))


def whole_bytes(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


def run(root: Path, output: Path) -> None:
    prepare([str(root)], output, PrepareOptions(shards=SHARDS), progress=False)


def wait_for(condition, seconds: float = 600.0) -> None:
    """Until it is so; the limit ends a hanging test and is far above what a busy machine takes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_killed_at_random_it_goes_on_to_the_same_shards(corpus, tmp_path):
    root, good, bad = corpus
    run(root, tmp_path / "whole")
    check(tmp_path / "whole", good, bad)
    output = tmp_path / "out"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_hamspk.shards.preparing"])
    draw = np.random.default_rng()
    kills = 0
    for _ in range(6):
        child = context.Process(target=run, args=(root, output))
        child.start()
        wait_for(lambda child=child: list(output.glob(".progress/at-*")) or not child.is_alive())
        time.sleep(draw.uniform(0.0, 4.0 if FULL else 0.15))
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
    assert kills >= 3
    assert not (output / "manifest.json").exists() or kills < 6
    run(root, output)
    assert whole_bytes(output) == whole_bytes(tmp_path / "whole")
    assert verify_shards(str(output), progress=False) == []


def test_the_command_killed_leaves_no_process_behind_and_goes_on(corpus, tmp_path):
    root, good, bad = corpus
    output = tmp_path / "out"
    command = [sys.executable, "-m", "hf_hamspk", "prepare", root, output, "--processes", "2", "--shards", str(SHARDS)]
    times = []
    for _ in range(3 if FULL else 1):
        parent = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        wait_for(lambda parent=parent: list(output.glob(".progress/at-*")) or parent.poll() is not None)
        time.sleep(np.random.default_rng().uniform(0.0, 3.0 if FULL else 0.1))
        parent.kill()
        parent.wait()
        wait_for(lambda parent=parent: not session(parent.pid))
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    times.append(time.monotonic() - start)
    assert done.returncode == 0, done.stderr
    check(output, good, bad)
    if FULL:
        print(f"\n{done.stdout}last run: {times[-1]:.1f} s")


def session(number: int) -> list[str]:
    """The processes that are left of a session."""
    left = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == number and fields[0] != "Z":
            left.append(path.parent.name)
    return left


def test_a_file_that_kills_its_decoder_is_left_out(tmp_path, monkeypatch):
    for number in range(12):
        write(tmp_path / "a", f"s{number % 3}/{number}.wav", as_file(noise(number)))
    for number in range(2):
        write(tmp_path / "a", f"s{number}/deadly{number}.wav", as_file(noise(99)))
    monkeypatch.setattr(making, "make_shard", deadly_make_shard)
    monkeypatch.setattr(making, "try_row", deadly_try_row)
    manifest = prepare([tmp_path / "a"], tmp_path / "out", PrepareOptions(shards=4), processes=2, progress=False)
    assert manifest.utterances == 12
    assert sorted(read_unreadable(tmp_path / "out")) == [
        (f"s{number}/deadly{number}.wav", making.CRASH_REASON) for number in range(2)
    ]
    assert verify_shards(str(tmp_path / "out"), processes=2, progress=False) == []


def test_real_speech(shared, tmp_path):
    root = shared / "speech" / "audio"
    few = None if FULL else tuple(path.name for path in sorted(root.glob("*/ls1*")))
    options = PrepareOptions(speaker_level=2, speakers=few)
    manifest = prepare([root], tmp_path / "out", options, progress=False)
    paths = [path for path in root.rglob("*.flac") if few is None or path.parent.name in few]
    found = {}
    for shard in manifest.shards:
        for row in pq.read_table(tmp_path / "out" / shard.file).to_pylist():
            found[row["key"]] = row["audio"]["bytes"]
    assert len(found) == manifest.utterances == len(paths)
    for path in paths:
        # They are 16-bit, mono and at 16 kHz already.
        assert found[path.relative_to(root).with_suffix("").as_posix()] == path.read_bytes()
    assert manifest.unreadable == 0
    assert manifest.seconds > 0 and manifest.sampling_rate == RATE
