"""Cost of `prepare` and `embed` against the number of ranks, and what a division into ranks adds.

    python tests/benchmarks/benchmark_ranks.py [--files 2000] [--ranks 1 2 3 4 6 8] [--json FILE] [--plot FILE]

The ranks are simulated. They run one after the other in this process, and the processor time of each is measured, so
that other work on the machine matters little. "Slowest" is the time of the slowest rank plus the time of the steps that
run once (plan and finish for `prepare`, finish for `embed`). It estimates the time of as many machines with one core
each, without the start of Python (a few seconds each) and without waiting for a shared disk. "Sum" is the time of all
ranks and steps. The division costs the difference between this sum and the sum for one rank.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from many_ranks import RATE, contents, tiny
from rivals import write_json

from hf_hamspk import HamSpkConfig, HamSpkModel
from hf_hamspk.embedding import embed_share, finish_embeddings
from hf_hamspk.embedding.finding import find_source
from hf_hamspk.shards import PrepareOptions, finish_shards, make_shards, plan_shards


def cost(work: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def prepare_costs(root: Path, output: Path, ranks: int, shards: int) -> tuple[float, list[float]]:
    """Processor seconds of the steps that run once, and of each rank."""
    once = cost(lambda: plan_shards([root], output, PrepareOptions(shards=shards), progress=False))
    each = [cost(lambda rank=rank: make_shards(output, rank, ranks, progress=False)) for rank in range(ranks)]
    return once + cost(lambda: finish_shards(output)), each


def embed_costs(model: HamSpkModel, root: Path, output: Path, ranks: int) -> tuple[float, list[float]]:
    """Processor seconds of the step that runs once, and of each rank, which also searches for the files."""

    def share(rank: int) -> None:
        embed_share(model, find_source([str(root)]).open(RATE), output, rank, ranks, progress=False, workers=1)

    each = [cost(lambda rank=rank: share(rank)) for rank in range(ranks)]
    source = find_source([str(root)]).open(RATE)
    return cost(lambda: finish_embeddings(model, source, output)), each


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000, help="number of files (default: 2000)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each file (default: 2 s)")
    parser.add_argument("--shards", type=int, default=48, help="number of shards (default: 48)")
    parser.add_argument("--channels", type=int, default=64, help="channels of the ECAPA-TDNN that embeds (default: 64)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = HamSpkModel(HamSpkConfig(ecapa_channels=arguments.channels, ecapa_output_channels=192)).eval()
    results: dict[str, dict[int, dict[str, float]]] = {"prepare": {}, "embed": {}}
    with tempfile.TemporaryDirectory() as name:
        root = tiny(Path(name) / "wav", arguments.files, arguments.seconds)
        first: dict[str, bytes] = {}
        for ranks in arguments.ranks:
            output = Path(name) / f"out{ranks}"
            costs = {"prepare": prepare_costs(root, output / "shards", ranks, arguments.shards)}
            costs["embed"] = embed_costs(model, root, output / "voices.parquet", ranks)
            first = first if first else contents(output)
            assert contents(output) == first, "the bytes depend on the number of ranks"
            shutil.rmtree(output)
            for step, (once, each) in costs.items():
                found = {"slowest": once + max(each), "sum": once + sum(each), "once": once}
                results[step][ranks] = found
                print(
                    f"{step:<8}{ranks:>3} ranks: slowest {found['slowest']:>7.2f} s, sum {found['sum']:>7.2f} s, "
                    f"of which once {once:.2f} s",
                    flush=True,
                )
    write_json(arguments.json, "ranks", {"arguments": vars(arguments) | {"json": None, "plot": None}, **results})
    if arguments.plot is not None:
        draw(results, arguments)


def draw(results: dict[str, dict[int, dict[str, float]]], arguments: argparse.Namespace) -> None:
    """Draw the time of the slowest rank and the sum, against the number of ranks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for place, (step, rows) in zip(axes, results.items(), strict=True):
        ranks = list(rows)
        one = rows[ranks[0]]["sum"]
        place.plot(ranks, [rows[n]["slowest"] for n in ranks], marker="o", label="slowest rank and single steps")
        place.plot(ranks, [rows[n]["sum"] for n in ranks], marker="s", label="sum of all")
        place.plot(ranks, [one / n for n in ranks], linestyle=":", color="grey", label="one rank, divided")
        place.set(title=f"hamspk {step}, {arguments.files} files", xlabel="ranks", ylabel="processor seconds", ylim=0)
        place.legend(fontsize=8)
    figure.suptitle("Ranks run one after the other on one core (simulated machines)", fontsize=10)
    figure.savefig(arguments.plot, dpi=120)


if __name__ == "__main__":
    main()
