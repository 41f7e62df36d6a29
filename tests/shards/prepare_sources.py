"""Small recordings and sources to make shards of."""

import io
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

import hf_hamspk
import hf_hamspk.shards.making as making

RATE = 16_000


def noise(seed: int, seconds: float = 0.3, rate: int = RATE) -> np.ndarray:
    """`(L,)` int16, quiet noise."""
    return np.random.default_rng(seed).normal(0.0, 2000.0, round(seconds * rate)).astype(np.int16)


def as_file(samples: np.ndarray, kind: str = "WAV", rate: int = RATE) -> bytes:
    """The bytes of a 16-bit sound file."""
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate, format=kind, subtype="PCM_16")
    return buffer.getvalue()


def as_m4a(samples: np.ndarray, rate: int = RATE, layout: str = "mono") -> bytes:
    """The bytes of an AAC file; samples `(L,)` or `(L, 2)` int16."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return buffer.getvalue()


def write(root: Path, name: str, content: bytes) -> Path:
    """A file below `root`, with its folders."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def voxceleb(root: Path, speakers: int = 4, utterances: int = 5, suffix: str = ".wav") -> dict[str, np.ndarray]:
    """A tree `id00012/video/00001.wav`; the samples of each key."""
    made = {}
    for speaker in range(speakers):
        for utterance in range(utterances):
            key = f"id{speaker:05d}/video{utterance // 3}/{utterance:05d}"
            made[key] = noise(speaker * 1000 + utterance, 0.2 + 0.05 * utterance)
            content = as_m4a(made[key]) if suffix == ".m4a" else as_file(made[key], suffix[1:].upper())
            write(root, key + suffix, content)
    return made


PACKAGE = Path(hf_hamspk.__file__).parent

# The module without its package: importing the package takes seconds.
BOUNDED = f"""
import resource, sys, types
for name, folder in (("hf_hamspk", {str(PACKAGE)!r}), ("hf_hamspk.shards", {str(PACKAGE / "shards")!r})):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from hf_hamspk.shards.archives import *
def bound(mebibytes):
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    limit = taken + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        bytes(2 * mebibytes * 2**20)
    except MemoryError:
        return
    sys.exit("the bound does not hold")
"""


def python(code: str, *words: object) -> str:
    """What code prints that is run in a process of its own, after `BOUNDED`."""
    command = [sys.executable, "-c", BOUNDED + textwrap.dedent(code), *map(str, words)]
    # One arena: each thread would else reserve address space, which is what is limited.
    done = subprocess.run(
        command, capture_output=True, text=True, env={"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _deadly(real):
    """Decoding that kills its process at a file named so."""

    def encode_row(plan, reader, row):
        if "deadly" in row["name"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(plan, reader, row)

    return encode_row


def deadly_make_shard(*arguments):
    """`make_shard`, in whose process some files are deadly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "encode_row", _deadly(making.encode_row))
        return making.make_shard(*arguments)


def deadly_try_row(*arguments):
    """`try_row`, likewise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "encode_row", _deadly(making.encode_row))
        return making.try_row(*arguments)
