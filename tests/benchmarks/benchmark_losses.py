"""`HamSoftmaxLoss` beside WeSpeaker's `HyperbolicAMSoftmax`: agreement, time and memory, forward and backward.

    python tests/benchmarks/benchmark_losses.py [--wespeaker CHECKOUT] [--parts agreement time memory] [--json FILE]

Without a checkout, only this package is measured. The class of WeSpeaker creates tensors of batch x speakers x
dimension. If they would exceed `--limit`, it runs with a smaller batch, and its time is multiplied accordingly. Peak
memory is measured in a fresh process for each loss, beyond what it holds before the step, with the same batch for both.
WeSpeaker's class returns a constant, without gradient, for distances below 0.0045. In this zone the two differ.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import rivals
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_hamspk.losses import HamSoftmaxLoss

DIMENSION, SCALE, MARGIN, CURVATURE = 192, 30.0, 0.2, 3.0
OURS, THEIRS = "HamSoftmaxLoss", "HyperbolicAMSoftmax of WeSpeaker"
MEGABYTE, GIGABYTE = 1 << 20, 1 << 30
# Tensors of batch x speakers x dimension that WeSpeaker's class holds at its peak, about.
THEIR_TENSORS = 5
WANTED_AGREEMENT = 1e-5


def centres(speakers: int) -> Tensor:
    """Centres at all radii, inside the region in use and beyond."""
    directions = F.normalize(torch.randn(speakers, DIMENSION))
    return directions * torch.linspace(0.05, 1.0, speakers)[:, None]


def make_loss(name: str, speakers: int, checkout: Path | None) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss; its parameters are those of `parameters_of`."""
    if name == OURS:
        ours = HamSoftmaxLoss(speakers, DIMENSION, margin=MARGIN, scale=SCALE, curvature=CURVATURE)
        ours.head.similarity.weight.data.copy_(centres(speakers))
        return ours
    if checkout is None:
        raise ValueError("The class of WeSpeaker needs --wespeaker.")
    theirs = TheirLoss(rivals.wespeaker_projections(checkout), speakers)
    theirs.projection.weight.data.copy_(centres(speakers))
    return theirs


class TheirLoss(nn.Module):
    """WeSpeaker's class, and the cross-entropy that its trainer computes."""

    def __init__(self, projections, speakers: int):
        super().__init__()
        self.projection = projections.HyperbolicAMSoftmax(
            DIMENSION, speakers, scale=SCALE, margin=MARGIN, curvature=CURVATURE
        )

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.projection(embeddings, labels), labels)


def their_batch(speakers: int, arguments: argparse.Namespace) -> int:
    """The largest power-of-two part of the batch with which WeSpeaker's class stays within the memory limit."""
    batch = arguments.batch
    while batch > 1 and THEIR_TENSORS * batch * speakers * DIMENSION * 4 > arguments.limit * GIGABYTE:
        batch //= 2
    return batch


# --- agreement


def values(loss: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Loss, gradient of the embeddings, gradient of the centres."""
    x = x.clone().requires_grad_()
    value = loss(x, y)
    (weight,) = loss.parameters()
    return [value.detach(), *torch.autograd.grad(value, (x, weight))]


def agreement_part(arguments: argparse.Namespace) -> dict:
    results: dict = {}
    if arguments.wespeaker is None:
        print("\nno checkout of WeSpeaker: agreement is not measured")
        return results
    print(f"\nlargest difference, divided by the largest entry (wanted: {WANTED_AGREEMENT:g}), batch 64, 400 speakers")
    for case in ("embeddings of norm 14", "embeddings inside the ball", "near their centre", "in the dead zone"):
        for dtype in (torch.float64, torch.float32):
            ours, theirs = (make_loss(name, 400, arguments.wespeaker).to(dtype) for name in (OURS, THEIRS))
            weight = ours.head.similarity.weight.detach()
            theirs.projection.weight.data.copy_(weight)
            y = torch.arange(64) * 5
            x = torch.randn(64, DIMENSION, dtype=dtype)
            if case == "embeddings inside the ball":
                x = x * 0.02
            elif case != "embeddings of norm 14":
                apart = 0.05 if case == "near their centre" else 1e-4
                x = weight[y] + apart * F.normalize(x)
            pairs = zip(values(ours, x, y), values(theirs, x, y), strict=True)
            errors = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs]
            ok = "" if case == "in the dead zone" else "  yes" if max(errors) <= WANTED_AGREEMENT else "  NO"
            print(f"  {case:<28}{str(dtype)[6:]:<9}" + "".join(f"{error:>11.1e}" for error in errors) + ok)
            results[f"{case}, {str(dtype)[6:]}"] = errors
    print("  (loss, gradient of the embeddings, gradient of the centres)")
    return results


# --- time


def time_part(arguments: argparse.Namespace) -> dict:
    results: dict = {}
    now = rivals.CLOCKS[arguments.clock]
    for speakers in arguments.speakers:
        works = {OURS: (make_loss(OURS, speakers, None), arguments.batch)}
        if arguments.wespeaker is not None:
            works[THEIRS] = (make_loss(THEIRS, speakers, arguments.wespeaker), their_batch(speakers, arguments))
        x, y = torch.randn(arguments.batch, DIMENSION, requires_grad=True), torch.randint(speakers, (arguments.batch,))
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(arguments.rounds + 1):
            for name, (loss, batch) in works.items():
                start = now()
                loss(x[:batch], y[:batch]).backward()
                seconds[name].append((now() - start) * arguments.batch / batch)
        medians = {name: statistics.median(found[1:]) for name, found in seconds.items()}
        print(f"\nseconds, batch {arguments.batch}, {speakers} speakers, {torch.get_num_threads()} threads, float32")
        for name, median in medians.items():
            print(f"  {name:<36}{median:>9.4f}{median / medians[OURS]:>9.1f} x  (run with batch {works[name][1]})")
        results[speakers] = medians
    return results


# --- memory, of a fresh process


def measure_step(name: str, speakers: int, batch: int, checkout: Path | None) -> None:
    """Print the peak of one step beyond what was held before, less the gradient of the centres, in MB."""
    # Libraries that load and threads that start are not the step's.
    make_loss(name, 10, checkout)(torch.randn(4, DIMENSION, requires_grad=True), torch.arange(4)).backward()
    loss = make_loss(name, speakers, checkout)
    x, y = torch.randn(batch, DIMENSION, requires_grad=True), torch.randint(speakers, (batch,))
    before = rivals.forget_peak()
    loss(x, y).backward()
    peak = rivals.memory_of("VmHWM")
    print(json.dumps((peak - before - 4 * speakers * DIMENSION) / MEGABYTE))


def memory_part(arguments: argparse.Namespace) -> dict:
    results: dict = {}
    for speakers in arguments.speakers:
        batch = their_batch(speakers, arguments)
        print(f"\npeak memory beyond the centres and their gradient, batch {batch}, {speakers} speakers, MB")
        found = {}
        for name in (OURS, THEIRS) if arguments.wespeaker is not None else (OURS,):
            words = [sys.executable, __file__, "--step", name, str(speakers), str(batch), "--allocator", "default"]
            words += [] if arguments.wespeaker is None else ["--wespeaker", str(arguments.wespeaker)]
            found[name] = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            print(f"  {name:<36}{found[name]:>9.1f}{found[name] / found[OURS]:>9.1f} x")
        results[speakers] = {"batch": batch, **found}
    return results


def rows_of(results: dict) -> list[dict]:
    """How many times as long WeSpeaker's class takes, for `run_all.py`."""
    found = results.get("time", {}).items()
    return [
        {"what": f"HAM loss, {speakers} speakers", "rival": THEIRS, "ratio": medians[THEIRS] / medians[OURS]}
        for speakers, medians in found
        if THEIRS in medians
    ]


PARTS = {"agreement": agreement_part, "time": time_part, "memory": memory_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wespeaker", type=Path, help="checkout of WeSpeaker; without it, its class is left out")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--speakers", type=int, nargs="+", default=[1211, 17_982])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=4.0, help="memory of WeSpeaker's class, in GB (default: 4)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="write the results there")
    rivals.add_conditions(parser)
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.step is not None:
        measure_step(arguments.step[0], int(arguments.step[1]), int(arguments.step[2]), arguments.wespeaker)
        return
    rivals.use_conditions(arguments)
    print(rivals.conditions_in_words(arguments))
    results = {part: PARTS[part](arguments) for part in arguments.parts}
    content = {"conditions": rivals.conditions(arguments), "rows": rows_of(results), **results}
    rivals.write_json(arguments.json, "losses", content)


if __name__ == "__main__":
    main()
