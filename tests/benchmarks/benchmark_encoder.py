"""Time and memory of a training step of ECAPA-TDNN, against SpeechBrain's and WeSpeaker's encoders.

    python tests/benchmarks/benchmark_encoder.py --wespeaker CHECKOUT [--channels 512] [--batch 32] [--seconds 2]

A step is forward and backward of the encoder on the same features, with the same AM-Softmax head of this package behind
each encoder. All take turns in one process with the same allocator. The encoders run in float32. `--bfloat16` adds each
of them under autocast to bfloat16, and `--compile` adds ours compiled by `torch.compile`, which training does with
`accelerate launch --dynamo_backend inductor`. `--profile` prints the operations of our fastest step. `--memory 8 32`
measures the peak memory of a step beyond the memory of its process before the step, in a process for each batch size.
SpeechBrain needs `pip install speechbrain`. On a machine that others use, `--threads 1 --clock processor` counts
processor time instead.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rivals
import torch
from torch import Tensor, nn

from hf_hamspk import HamSpkConfig
from hf_hamspk.networks_hamspk import make_head

SPEAKERS = 1000
FRAMES_PER_SECOND = 100
BOUND, BFLOAT16_BOUND = 1.3, 2.0
OURS, RIVAL, BFLOAT16 = "hf_hamspk", "wespeaker", "bfloat16"
OPERATIONS_SHOWN = 12
MEGABYTE = 2**20


def encoders(arguments) -> dict[str, tuple[nn.Module, Callable[[Tensor], Tensor], bool]]:
    """Return module, function of features `(B, T, F)` to embeddings `(B, D)`, and use of bfloat16, by name."""
    model = rivals.our_model(arguments.channels)
    found: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {OURS: (model, rivals.our_encoder(model))}
    if arguments.compile:
        compiled = rivals.our_model(arguments.channels)
        found[f"{OURS} compiled"] = (compiled, torch.compile(rivals.our_encoder(compiled)))
    if arguments.wespeaker is not None:
        theirs = rivals.wespeaker_encoder(arguments.wespeaker, arguments.channels)
        found["wespeaker"] = (theirs, lambda x: theirs(x)[-1])
    other = rivals.speechbrain_encoder(arguments.channels)
    if other is not None:
        found["speechbrain"] = (other, lambda x: other(x)[:, 0])
    for module, _ in found.values():
        module.train()
    contenders = {name: (*own, False) for name, own in found.items()}
    if arguments.bfloat16:
        contenders |= {f"{name} {BFLOAT16}": (*own, True) for name, own in found.items()}
    return contenders


def steps(arguments, batch: int) -> dict[str, Callable[[], None]]:
    """Return a training step of each encoder, without the optimiser, which is the same for all."""
    features = torch.randn(batch, round(arguments.seconds * FRAMES_PER_SECOND), rivals.MEL_BINS)
    labels = torch.randint(SPEAKERS, (batch,))
    head = make_head(HamSpkConfig(head="am", num_labels=SPEAKERS, embedding_size=rivals.EMBEDDING))

    def step(module: nn.Module, encode: Callable[[Tensor], Tensor], bfloat16: bool) -> None:
        module.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            embeddings = encode(features)
        head(embeddings.float(), labels).loss.backward()

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
    parser.add_argument("--compile", action="store_true", help="add ours, compiled (a minute or two more)")
    parser.add_argument("--bfloat16", action="store_true", help="add each under autocast to bfloat16")
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
    fastest = min((name for name in times if name.startswith(OURS)), key=lambda name: statistics.median(times[name]))
    print(
        f"training step, ECAPA-TDNN of {arguments.channels} channels, {arguments.batch} x {arguments.seconds:g} s, "
        f"{rivals.conditions_in_words(arguments)}"
    )
    reference = RIVAL if RIVAL in times else OURS
    for name, seconds in times.items():
        median = statistics.median(seconds)
        speed = statistics.median(np.array(times[reference]) / np.array(seconds))
        print(
            f"{name:<28}{1000 * median:>7.0f} ms{arguments.batch / median:>9.1f} utterances/s"
            f"{speed:>8.2f} x {reference} in float32"
        )
    shares = profile(works[fastest]) if arguments.profile else []
    if shares:
        print(f"Operations of {fastest}:")
    for row in shares:
        print(f"{row['operation']:<44}{row['calls']:>6} calls{100 * row['share']:>7.1f} %")
    names = [name for name in works if "compiled" not in name]
    memory = {name: {batch: peak_megabytes(name, batch) for batch in arguments.memory} for name in names}
    for name, points in memory.items():
        if points:
            print(f"{name:<28}" + ", ".join(f"batch {batch}: {value:.0f} MB" for batch, value in points.items()))
    if arguments.memory and arguments.plots:
        rivals.plot(arguments.plots / "training_memory.png", "Training step", "batch", "MB", memory)
    content = {"rows": rows(arguments, times), "seconds": times, "profile": shares, "peak_megabytes": memory}
    rivals.write_json(arguments.json, "encoder", {"conditions": rivals.conditions(arguments), **content})


def rows(arguments, times: dict[str, list[float]]) -> list[dict]:
    """Return the rows of the table of all benchmarks: the step of each rival in float32 against each form of ours."""
    what = f"training step, C={arguments.channels}, {arguments.batch} x {arguments.seconds:g} s"
    found = []
    for ours in (name for name in times if name.startswith(OURS)):
        form = ours.removeprefix(OURS)
        bound = BFLOAT16_BOUND if BFLOAT16 in form else BOUND
        for rival, factor in rivals.ratios(times, ours).items():
            if rival in (RIVAL, "speechbrain"):
                found.append(
                    {"what": what + (form and f", ours{form}"), "rival": rival, "ratio": factor, "bound": bound}
                )
    return found


if __name__ == "__main__":
    main()
