"""Ranks that are killed at random, and a corpus of many tiny files for them."""

import io
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile as sf

RATE = 16_000


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tiny(root: Path, files: int, seconds: float = 0.12) -> Path:
    """`files` short recordings of 20 speakers; one in 97 is damaged."""
    for number in range(files):
        path = root / f"s{number % 20:02d}" / f"{number:05d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = np.random.default_rng(number).normal(0.0, 0.06, round(seconds * RATE))
        buffer = io.BytesIO()
        sf.write(buffer, samples, RATE, format="WAV", subtype="PCM_16")
        path.write_bytes(f"no audio {number}".encode() if number % 97 == 50 else buffer.getvalue())
    return root


def run_and_kill(work: Callable[[int], object], ranks: int, kills: int, undo: Callable[[int], None], longest: float):
    """Run `ranks` processes until all have ended by themselves, after `kills` kills at random times.

    Args:
        work: what a rank does; it is started again after a kill, and after `undo`.
        ranks: number of processes.
        kills: number of kills.
        undo: takes away a part of the finished work of a rank, so that there is something to kill.
        longest: longest time in seconds between two kills.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_hamspk.shards.preparing", "hf_hamspk.embedding"])
    draw = np.random.default_rng()

    def start(rank: int) -> multiprocessing.Process:
        child = context.Process(target=work, args=(rank,))
        child.start()
        return child

    running = {rank: start(rank) for rank in range(ranks)}
    while kills:
        rank = int(draw.integers(ranks))
        time.sleep(draw.uniform(0.0, longest))
        if running[rank].is_alive():
            running[rank].kill()
            kills -= 1
        else:
            undo(rank)
        running[rank].join()
        running[rank] = start(rank)
    for child in running.values():
        child.join()
    assert [child.exitcode for child in running.values()] == [0] * ranks
