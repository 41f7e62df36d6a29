"""Error rate of a model in float32, bfloat16 and int8 on a trial list of real speech.

    python tests/benchmarks/measure_int8.py MODEL --speech ../shared/speech --backends onnx:int8 torch:bfloat16

MODEL is a folder of `hamspk convert` or of a training run. int8 is quantised with 64 recordings of the training
speakers of `--speech`, which are not among the trials. Scores are those of the model, without calibration.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile as sf
import torch

from hf_hamspk.backends import quantise_onnx, with_backend
from hf_hamspk.evaluation.metrics import equal_error_rate
from hf_hamspk.evaluation.trials import read_trials
from hf_hamspk.loading.models import load_model

CALIBRATING = 64


def read(path: Path) -> np.ndarray:
    return sf.read(path, dtype="float32")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("--speech", type=Path, required=True, help="folder with audio/, trials/ and train.csv")
    parser.add_argument("--list", default="test-o", help="name of the trial list (default: %(default)s)")
    parser.add_argument("--backends", nargs="+", default=["onnx:int8"], metavar="BACKEND:DTYPE")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model, "cpu")
    trials = read_trials(arguments.speech / "trials" / f"{arguments.list}.txt")
    audio = arguments.speech / "audio"
    with open(arguments.speech / "train.csv", encoding="utf-8") as file:
        rows = {row["speaker_id"]: row["path"] for row in csv.DictReader(file)}
    paths = list(rows.values())
    chosen = [audio / paths[i] for i in np.linspace(0, len(paths) - 1, CALIBRATING).astype(int)]
    with tempfile.TemporaryDirectory() as scratch:
        int8 = Path(scratch, "int8.onnx")
        if any(name.endswith(":int8") for name in arguments.backends):
            print("cosines of int8 with float32:", quantise_onnx(model, int8, [read(path) for path in chosen]))
        models = {"hf_hamspk": model}
        for name in arguments.backends:
            backend, dtype = name.split(":")
            models[name] = with_backend(model, backend, dtype, int8 if dtype == "int8" else None)
        found = {name: measure(one, model, trials, audio) for name, one in models.items()}
    reference = found["hf_hamspk"][0]
    print(f"{arguments.list}: {len(trials.labels)} trials of {len(trials.files)} recordings, {arguments.model}")
    for name, (rows_of, rate, seconds) in found.items():
        cosine = torch.cosine_similarity(rows_of, reference)
        print(
            f"{name:<20} EER {100 * rate:.3f} %, cosine with the first: smallest {cosine.min():.6f}, median "
            f"{cosine.median():.6f}; {seconds:.0f} s of processor time"
        )


def measure(model, scorer, trials, audio: Path) -> tuple[torch.Tensor, float, float]:
    """Return the embeddings of all recordings, the EER, and the processor time."""
    start = time.process_time()
    names = list(trials.files)
    embeddings = torch.cat([model.embed_waveforms([read(audio / name)]) for name in names]).cpu()
    seconds = time.process_time() - start
    at = {name: number for number, name in enumerate(names)}
    sides = [torch.tensor([at[name] for name in side]) for side in (trials.enrolment, trials.test)]
    scores = scorer.score(*(embeddings[side] for side in sides)).numpy()
    return embeddings, float(equal_error_rate(scores, trials.labels).eer), seconds


if __name__ == "__main__":
    main()
