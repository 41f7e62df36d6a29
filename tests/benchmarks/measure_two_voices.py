"""Two people at once: how many mixtures the overlap detector finds, and how many recordings of one person it reports.

    python tests/benchmarks/measure_two_voices.py DETECTOR ../shared/speech/dev.csv [--count 150] [--seed 0]

DETECTOR is `overlap_detector.safetensors` of a model, or the checkpoint that `hamspk convert --into` reads. The table
needs the columns path and speaker_id; the recordings are in the folder audio/ beside it. A mixture is the sum of two
recordings of different people, both cut to the length of the shorter one; the level of the second is lowered by 0, 5
and 10 dB. `--shares` prints the result for other thresholds as well, to choose one on the speakers of train.csv.
"""

import argparse
import csv
import random
from pathlib import Path

import numpy as np
import soundfile
import torch

from hf_hamspk.conversion import convert_segmentation
from hf_hamspk.encoders_hamspk import OVERLAP_FILE, OVERLAP_SHARE, OverlapDetector

RATE = 16_000
LEVELS_DB = (0, 5, 10)


def read_detector(path: Path) -> OverlapDetector:
    """Return a stored detector, or convert a checkpoint."""
    return OverlapDetector.load(path) if path.name == OVERLAP_FILE else convert_segmentation(path)


def mixture(first: np.ndarray, second: np.ndarray, decibels: float) -> np.ndarray:
    """Return the sum of two waveforms over the length of the shorter one; `second` is weaker by `decibels`."""
    size = min(len(first), len(second))
    first, second = first[:size], second[:size]
    gain = np.sqrt(np.mean(first**2) / np.mean(second**2)) * 10 ** (-decibels / 20)
    return (first + gain * second).astype(np.float32)


def draw(table: Path, count: int, seed: int, levels: tuple[int, ...] = LEVELS_DB) -> dict[str, list[np.ndarray]]:
    """Return `count` recordings of one person, and as many mixtures at each level."""
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rng = random.Random(seed)

    def read(row: dict[str, str]) -> np.ndarray:
        wave, rate = soundfile.read(table.parent / "audio" / row["path"], dtype="float32")
        if rate != RATE:
            raise ValueError(f"Expected recordings at {RATE} Hz, got {rate} Hz for {row['path']}.")
        return wave

    found = {"one person": [read(row) for row in rng.sample(rows, count)]}
    found |= {f"{level} dB": [] for level in levels}
    for _ in range(count):
        first = rng.choice(rows)
        second = rng.choice([row for row in rows if row["speaker_id"] != first["speaker_id"]])
        pair = read(first), read(second)
        for level in levels:
            found[f"{level} dB"].append(mixture(*pair, level))
    return found


def measure(detector: OverlapDetector, recordings: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Return for each kind of recording the share of the speech in which two people speak at once, `(N,)`."""
    shares = {}
    for kind, waves in recordings.items():
        speech, overlap = detector.measure(waves, RATE).T
        shares[kind] = overlap / np.maximum(speech, 1e-9)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--count", type=int, default=150, help="number of recordings of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shares", type=float, nargs="+", default=[], help="other thresholds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recordings = draw(arguments.table, arguments.count, arguments.seed)
    shares = measure(read_detector(arguments.detector), recordings)
    print(f"reported in per cent, of {arguments.count} each")
    print("share of the speech | " + " | ".join(shares))
    for share in sorted({OVERLAP_SHARE, *arguments.shares}):
        rates = [f"{100 * np.mean(own > share):.1f}" for own in shares.values()]
        print(f"{share:.2f}{' (used)' if share == OVERLAP_SHARE else ''} | " + " | ".join(rates), flush=True)


if __name__ == "__main__":
    main()
