"""Time and memory of a training step of ECAPA-TDNN, against SpeechBrain's and WeSpeaker's encoders.

    python tests/benchmarks/benchmark_encoder.py --wespeaker CHECKOUT [--channels 512] [--batch 32] [--seconds 2]

A step is forward and backward of the encoder on equal features, with the same AM-Softmax head of this package behind
each, float32, in turns in one process, the same allocator for all. `--compile` adds our encoder compiled. `--profile`
prints what a step of ours spends its time on. `--memory 8 32` measures the peak memory of a step, beyond that of the
process before it, in a process of its own for each batch size. SpeechBrain needs `pip install speechbrain`. On a
machine that others use, `--threads 1 --clock processor` counts processor time instead.
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

from hf_hamspk import HamSpkConfig
from hf_hamspk.networks_hamspk import make_head

SPEAKERS = 1000
FRAMES_PER_SECOND = 100
BOUND = 1.3
OURS = "hf_hamspk"
OPERATIONS_SHOWN = 12
MEGABYTE = 2**20


def encoders(arguments) -> dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """Module and features `(B, T, F)` to embeddings `(B, D)`, by name, in training mode."""
    model = rivals.our_model(arguments.channels)
    found: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {OURS: (model, rivals.our_encoder(model))}
    if arguments.compile:
        compiled = rivals.our_model(arguments.channels)
        compiled.backbone.compile()
        compiled.pooling.compile()
        found["hf_hamspk compiled"] = (compiled, rivals.our_encoder(compiled))
    if arguments.wespeaker is not None:
        theirs = rivals.wespeaker_encoder(arguments.wespeaker, arguments.channels)
        found["wespeaker"] = (theirs, lambda x: theirs(x)[-1])
    other = rivals.speechbrain_encoder(arguments.channels)
    if other is not None:
        found["speechbrain"] = (other, lambda x: other(x)[:, 0])
    for module, _ in found.values():
        module.train()
    return found


def steps(arguments, batch: int) -> dict[str, Callable[[], None]]:
    """A training step of each, without the optimiser, which is the same for all."""
    features = torch.randn(batch, round(arguments.seconds * FRAMES_PER_SECOND), rivals.MEL_BINS)
    labels = torch.randint(SPEAKERS, (batch,))
    head = make_head(HamSpkConfig(head="am", num_labels=SPEAKERS, embedding_size=rivals.EMBEDDING))

    def step(module: nn.Module, encode: Callable[[Tensor], Tensor]) -> None:
        module.zero_grad(set_to_none=True)
        head(encode(features), labels).loss.backward()

    return {name: lambda own=own: step(*own) for name, own in encoders(arguments).items()}


def profile(step: Callable[[], None]) -> list[dict]:
    """The operations that take most time by themselves, and their share."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    ranked = sorted(events, key=lambda event: -event.self_cpu_time_total)[:OPERATIONS_SHOWN]
    return [{"operation": e.key, "calls": e.count, "share": e.self_cpu_time_total / total} for e in ranked]


def peak_megabytes(name: str, batch: int) -> float:
    """Of one step beyond the process before it, in a process of its own."""
    command = [sys.executable, *sys.argv, "--child", name, "--child-batch", str(batch)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def child(arguments) -> None:
    # Libraries that load and threads that start are not the step's.
    steps(arguments, 2)[arguments.child]()
    step = steps(arguments, arguments.child_batch)[arguments.child]
    before = rivals.forget_peak()
    step()
    print(json.dumps((rivals.memory_of("VmHWM") - before) / MEGABYTE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wespeaker", type=Path, help="checkout of WeSpeaker; without it, it is left out")
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="our encoder compiled, too (a minute or two more)")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--memory", type=int, nargs="*", default=[], metavar="BATCH")
    rivals.add_conditions(parser)
    parser.add_argument("--plots", type=Path, help="folder for the plot of memory against batch")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--child-batch", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rivals.use_conditions(arguments)
    if arguments.child is not None:
        child(arguments)
        return
    works = steps(arguments, arguments.batch)
    times = rivals.take_turns(works, arguments.rounds, arguments.clock)
    factors = rivals.ratios(times, OURS)
    print(
        f"training step, ECAPA-TDNN of {arguments.channels} channels, {arguments.batch} x {arguments.seconds:g} s, "
        f"float32, {rivals.conditions_in_words(arguments)}"
    )
    for name, seconds in times.items():
        median = statistics.median(seconds)
        factor = f"{factors[name]:>8.2f} x ours" if name in factors else ""
        print(f"{name:<22}{1000 * median:>9.0f} ms{arguments.batch / median:>9.1f} utterances/s{factor}")
    shares = profile(works[OURS]) if arguments.profile else []
    for row in shares:
        print(f"{row['operation']:<44}{row['calls']:>6} calls{100 * row['share']:>7.1f} %")
    names = [name for name in works if "compiled" not in name]
    memory = {name: {batch: peak_megabytes(name, batch) for batch in arguments.memory} for name in names}
    for name, points in memory.items():
        if points:
            print(f"{name:<22}" + ", ".join(f"batch {batch}: {value:.0f} MB" for batch, value in points.items()))
    if arguments.memory and arguments.plots:
        rivals.plot(arguments.plots / "training_memory.png", "Training step", "batch", "MB", memory)
    rows = [
        {"what": f"training step, C={arguments.channels}, {arguments.batch} x {arguments.seconds:g} s", "rival": name}
        | {"ratio": factor}
        | ({"bound": BOUND} if "compiled" not in name else {})
        for name, factor in factors.items()
    ]
    content = {"rows": rows, "seconds": times, "profile": shares, "peak_megabytes": memory}
    rivals.write_json(arguments.json, "encoder", {"conditions": rivals.conditions(arguments), **content})


if __name__ == "__main__":
    main()
