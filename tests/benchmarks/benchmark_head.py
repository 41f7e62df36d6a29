"""Time of a training head, forward and backward, against AM-Softmax of this package and the released HAM formula.

    python tests/benchmarks/benchmark_head.py [--batch 256] [--speakers 5994] [--rounds 5]

Interleaved rounds in one process; the ratio is that of the medians. The released formula (differences of all pairs, a
tensor of batch x speakers x dimension) is run at an eighth of the batch, and its time multiplied by eight, because it
does not fit into memory otherwise.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_hamspk import HamSpkConfig
from hf_hamspk.heads import SpeakerHead

DIMENSION = 192
SHARE = 8


def released_formula(embeddings: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
    """HAM at c = 3, m = 0.2, s = 30, written as the definition reads."""
    radius = (1 - 1e-5) / 3**0.5

    def clip(v: Tensor) -> Tensor:
        return v * (radius / v.norm(dim=-1, keepdim=True).clamp_min(1e-5)).clamp_max(1)

    x, w = clip(embeddings)[:, None], clip(centres)[None]
    squares = (x - w).square().sum(-1)
    distances = torch.acosh(1 + 2 * squares / ((1 - x.square().sum(-1)) * (1 - w.square().sum(-1))).clamp_min(1e-5))
    return F.cross_entropy(-30 * (distances + 0.2 * F.one_hot(labels, len(centres))), labels)


def timed(work: Callable[[], Tensor]) -> float:
    """Seconds of one forward and backward pass."""
    start = time.perf_counter()
    work().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--speakers", type=int, default=5994)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    embeddings = torch.randn(arguments.batch, DIMENSION, requires_grad=True)
    labels = torch.randint(arguments.speakers, (arguments.batch,))
    heads = {
        name: SpeakerHead(HamSpkConfig(head=name, num_labels=arguments.speakers)) for name in ("am", "aam", "h", "ham")
    }
    works: dict[str, Callable[[], Tensor]] = {
        name: lambda head=head: head(embeddings, labels).loss for name, head in heads.items()
    }
    few = arguments.batch // SHARE
    centres = heads["ham"].similarity.weight
    works["released"] = lambda: released_formula(embeddings[:few], centres, labels[:few])
    times: dict[str, list[float]] = {name: [] for name in works}
    for name in list(works) * (arguments.rounds + 1):
        times[name].append(timed(works[name]) * (SHARE if name == "released" else 1))
    base = statistics.median(times["am"][1:])
    print(f"batch {arguments.batch}, {arguments.speakers} speakers, {torch.get_num_threads()} threads, float32")
    for name, seconds in times.items():
        median = statistics.median(seconds[1:])
        print(f"{name:<10}{1000 * median:>10.1f} ms{median / base:>10.2f} x am")


if __name__ == "__main__":
    main()
