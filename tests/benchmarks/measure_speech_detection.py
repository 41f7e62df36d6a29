"""Agreement of the detector of speech with Silero VAD, for each corpus and for children of up to 15 years.

pip install silero-vad onnxruntime
python tests/benchmarks/measure_speech_detection.py ../shared/speech/dev.csv ../shared/speech/test.csv

The tables need the columns path, corpus and age; the recordings are in the folder audio/ beside the tables. Printed are
the number of recordings, the correlation of the seconds of speech, the median of this package's seconds divided by
Silero's, and the numbers of recordings with less than 1 s of speech (the default minimum for a decision).
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from hf_hamspk.audio_hamspk import measure_speech

RATE = 16000
OLDEST_CHILD = 15


def silero_detector() -> Callable[[np.ndarray, int], list[tuple[float, float]]]:
    """Return Silero VAD with its default options, run by ONNX Runtime, as a detector for `measure_speech`."""
    from silero_vad import get_speech_timestamps, load_silero_vad

    network = load_silero_vad(onnx=True)

    def detect(waveform: np.ndarray, rate: int) -> list[tuple[float, float]]:
        found = get_speech_timestamps(torch.from_numpy(waveform), network, sampling_rate=rate)
        return [(part["start"] / rate, part["end"] / rate) for part in found]

    return detect


def measure(tables: list[Path], every: int) -> dict[str, list[tuple[float, float, float]]]:
    """Return the seconds of speech of each recording by group: all speech, voiced speech only, and Silero's."""
    detect, groups = silero_detector(), defaultdict(list)
    for table in tables:
        with open(table, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))[::every]
        for row in rows:
            wave, rate = soundfile.read(table.parent / "audio" / row["path"], dtype="float32")
            # Without the rule for pauses, the amount is that of Silero's intervals.
            theirs = sum(end - begin for begin, end in detect(wave, rate))
            seconds = measure_speech(wave, rate).speech, measure_speech(wave, rate, "voiced").speech, theirs
            groups[row["corpus"]].append(seconds)
            # Some ages are ranges, such as 30-40.
            if row["age"] and float(row["age"].split("-")[0]) <= OLDEST_CHILD:
                groups["children"].append(seconds)
            groups["all"].append(seconds)
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--every", type=int, default=1, help="use every N-th recording")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("corpus | recordings | correlation | median ratio | < 1 s | < 1 s, voiced only | < 1 s, Silero")
    for name, seconds in sorted(measure(arguments.tables, arguments.every).items()):
        ours, voiced, theirs = np.array(seconds).T
        ratio = np.median(ours[theirs > 0] / theirs[theirs > 0])
        short = [int((one < 1).sum()) for one in (ours, voiced, theirs)]
        numbers = " | ".join(map(str, short))
        print(f"{name} | {len(ours)} | {np.corrcoef(ours, theirs)[0, 1]:.3f} | {ratio:.2f} | {numbers}", flush=True)


if __name__ == "__main__":
    main()
