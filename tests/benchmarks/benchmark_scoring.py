"""Scores of a trial list as products of matrices against one trial after the other, in one run.

    python tests/benchmarks/benchmark_scoring.py [--trials 580000] [--pairs 100000000]

The rival is how trial lists are commonly scored, WeSpeaker's `score.py` among them: a loop over the lines that looks
the two embeddings up and calls scikit-learn's `cosine_similarity`, or, where that is absent, the same formula in NumPy.
It is timed on a part of the list, as its cost is that of a trial times their number. The list is as large as
VoxCeleb1-E; all pairs of 10,000 files are 100 million. Embeddings are random numbers.
"""

import argparse
import os
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import rivals
import torch

from hf_hamspk import HamSpkConfig
from hf_hamspk.evaluation.matrix_scoring import _prepare_embeddings, _score_blocks, score_pairs
from hf_hamspk.modeling_hamspk import SpeakerModelMixin

FILES, SIZE = 5000, 192
SIMILARITIES = {
    "cosine": {"similarity": "cosine"},
    "released": {"similarity": "hyperbolic", "projection": "released", "curvature": 3.0},
    "curved": {"similarity": "hyperbolic", "projection": "curved", "curvature": 1.0},
}


class Comparing(SpeakerModelMixin):
    """What compares embeddings, without a model that makes them."""

    def __init__(self, similarity: str):
        super().__init__()
        self.config = HamSpkConfig(**SIMILARITIES[similarity])


def loop(embeddings: dict[str, np.ndarray], pairs: list[tuple[str, str]]) -> np.ndarray:
    """One trial after the other."""
    try:
        from sklearn.metrics.pairwise import cosine_similarity
    except ImportError:

        def cosine_similarity(a, b):
            return (a @ b.T) / (np.linalg.norm(a) * np.linalg.norm(b))

    return np.array([cosine_similarity(embeddings[a][None], embeddings[b][None])[0][0] for a, b in pairs])


def peak_mib() -> float:
    """The most memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=580_000, help="(default: %(default)s)")
    parser.add_argument("--loop-trials", type=int, default=2000, help="of the rival (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=100_000_000, help="all of a square, 0 for none")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the ratios there")
    arguments = parser.parse_args()
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads")
    rng = np.random.default_rng(0)
    embeddings = torch.from_numpy(rng.normal(size=(FILES, 1, SIZE)).astype(np.float32)) / SIZE**0.5
    enrolment, test = rng.integers(FILES, size=(2, arguments.trials))

    named = {f"{i}.wav": row for i, row in enumerate(embeddings[:, 0].numpy())}
    count = min(arguments.trials, arguments.loop_trials)
    pairs = [(f"{a}.wav", f"{b}.wav") for a, b in zip(enrolment[:count], test[:count], strict=True)]
    start = time.perf_counter()
    expected = loop(named, pairs)
    each = (time.perf_counter() - start) / count
    print(f"{arguments.trials:,} trials of {FILES:,} files, median of {arguments.rounds} rounds")
    print(f"{'loop, cosine':16}{each * arguments.trials:>10.2f} s  (by {count:,} trials)")
    rows = []
    for similarity in SIMILARITIES:
        model, seconds = Comparing(similarity), []
        scores = np.empty(0)
        for _ in range(arguments.rounds):
            start = time.perf_counter()
            scores = score_pairs(model, embeddings, enrolment, test)
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds)
        ratio = each * arguments.trials / median
        print(f"{similarity:16}{median:>10.2f} s{ratio:>9.0f}x", flush=True)
        rows.append({"what": f"{arguments.trials:,} trials, {similarity}", "rival": "loop, cosine", "ratio": ratio})
        if similarity == "cosine":
            print(f"    differs from the loop by at most {abs(scores[:count] - expected).max():.1e}")
    rivals.write_json(arguments.json, "scoring", {"rows": rows})
    if arguments.pairs == 0:
        return
    side = torch.from_numpy(rng.normal(size=(round(arguments.pairs**0.5), 1, SIZE)).astype(np.float32)) / SIZE**0.5
    for similarity in ("cosine", "released"):
        before, start = peak_mib(), time.perf_counter()
        model = Comparing(similarity)
        prepared = _prepare_embeddings(model, side, None)
        seen = sum(block.numel() for _, block in _score_blocks(model, prepared, prepared))
        seconds = time.perf_counter() - start
        print(f"{seen:,} pairs, {similarity}: {seconds:.1f} s, {peak_mib() - before:.0f} MiB more than before")


if __name__ == "__main__":
    main()
