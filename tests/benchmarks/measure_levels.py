"""What quiet recordings cost, with and without `level_db`: cosine to the unscaled recording, and EER.

Each test recording of a trial list is scaled to lower levels and rounded to 16 bits; enrolments stay as they are.

python tests/benchmarks/measure_levels.py MODEL ../shared/speech/trials/dev-o.txt --audio-root ../shared/speech/audio
"""

import argparse

import numpy as np
import torch

from hf_hamspk import HamSpkModel, read_trials
from hf_hamspk.evaluation.metrics import equal_error_rate
from hf_hamspk.evaluation.verification import embed_files

LEVELS = (-26.0, -46.0, -57.0, -66.0, -77.0)


def scaled(waveform: np.ndarray, level: float) -> np.ndarray:
    """Return a waveform with another root mean square level in dBFS, rounded to 16 bits."""
    gain = 10 ** (level / 20) / np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))
    return np.float32(np.round(waveform * gain * 32768).clip(-32768, 32767) / 32768)


def measure(model: HamSpkModel, pairs: np.ndarray, labels: np.ndarray, root: str) -> list[tuple[float, ...]]:
    """Return, for each level, the mean and the lowest cosine to the unscaled recordings, and the EER."""
    enrolments, tests = (list(dict.fromkeys(column)) for column in pairs.T)
    unscaled = embed_files(model, sorted({*enrolments, *tests}), root, progress=False).embeddings
    rows = []
    for level in LEVELS:
        quiet = embed_files(
            model, tests, root, progress=False, change=lambda name, wave, level=level: scaled(wave, level)
        ).embeddings
        cosines = [float(torch.cosine_similarity(quiet[name][0], unscaled[name][0], dim=0)) for name in tests]
        first = torch.stack([unscaled[name][0] for name in pairs[:, 0]])
        scores = model.score(first, torch.stack([quiet[name][0] for name in pairs[:, 1]])).double().numpy()
        rows.append((float(np.mean(cosines)), min(cosines), equal_error_rate(scores, labels).eer))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("trials")
    parser.add_argument("--audio-root", required=True)
    parser.add_argument("--count", type=int, default=400, help="number of trials, drawn evenly from the list")
    arguments = parser.parse_args()
    trials = read_trials(arguments.trials)
    chosen = np.linspace(0, len(trials) - 1, arguments.count).astype(int)
    pairs = np.array([(trials.enrolment[i], trials.test[i]) for i in chosen])
    labels = np.asarray(trials.labels)[chosen]
    print(f"{len(chosen)} trials, {int(labels.sum())} targets")
    print("level_db | test level (dBFS) | mean cosine | lowest cosine | EER (%)")
    for normalised in (None, -26.0):
        model = HamSpkModel.from_pretrained(arguments.model, calibrated=False, level_db=normalised)
        for level, row in zip(LEVELS, measure(model, pairs, labels, arguments.audio_root), strict=True):
            print(f"{normalised} | {level:.0f} | {row[0]:.4f} | {row[1]:.4f} | {100 * row[2]:.2f}", flush=True)


if __name__ == "__main__":
    main()
