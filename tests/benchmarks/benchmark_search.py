"""Search among many enrolled speakers against brute force, in one run.

    python tests/benchmarks/benchmark_search.py [--enrolled 1000000] [--similarity cosine released curved]
    python tests/benchmarks/benchmark_search.py --plot FILE [--sizes 1000 10000 100000 1000000] [--similarity cosine]

The second command draws the time of a query against the number of enrolled speakers, for brute force, the exact index
with PyTorch and with FAISS, and the approximate one, whose recall it prints.

The rival is what one writes without an index: the model's `score_matrix` in float32, block by block, and `topk`. What
is right is decided by all inner products in float64, the best of which are scored by `score`: an index agrees if its
scores differ by at most 1e-9, and its rows are the same wherever brute force itself has no other score that near.
Embeddings are synthetic: normal, with standard deviations that fall as 1 / (1 + i / 16) over the dimensions, and norms
that vary; a query is an enrolled embedding with noise, at a cosine of about 0.6. Recall is the share of the true ten
nearest that is found; "speaker" is how often the speaker of the query is the first found, which brute force does not
always manage either.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import rivals
import torch
from torch import Tensor
from tqdm import tqdm

from hf_hamspk import HamSpkConfig
from hf_hamspk.geometry_hamspk import project
from hf_hamspk.modeling_hamspk import SpeakerModelMixin
from hf_hamspk.search import SearchResult, SpeakerIndex
from hf_hamspk.search.engines import import_faiss

SIZE, NEAREST, TIE = 192, 10, 1e-9
ROWS = 8192
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

    def fingerprint(self) -> str:
        """There are no weights."""
        return "0" * 64


def make_speakers(count: int, queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Enrolled embeddings `(N, D)`, queries `(Q, D)` and the row of the speaker of each `(Q,)`."""
    generator = torch.Generator().manual_seed(0)
    spread = 1 / (1 + torch.arange(SIZE) / 16)
    enrolled = torch.randn(count, SIZE, generator=generator) * spread
    enrolled *= torch.rand(count, 1, generator=generator).add_(0.5) / spread.norm()
    rows = torch.randint(count, (queries,), generator=generator)
    noise = torch.randn(queries, SIZE, generator=generator) * spread * (1.3 / spread.norm())
    return enrolled, enrolled[rows] + noise * enrolled[rows].norm(dim=1, keepdim=True), rows


def brute_force(model: Comparing, enrolled: Tensor, queries: Tensor, count: int) -> SearchResult:
    """All scores in float32, and the largest of them."""
    best, rows = torch.empty(len(queries), 0, dtype=queries.dtype), torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(enrolled), ROWS):
        block = enrolled[start : start + ROWS]
        found, at = model.score_matrix(queries, block).topk(min(count, len(block)), dim=1)
        best, chosen = torch.cat([best, found], 1).topk(count, dim=1)
        rows = torch.cat([rows, at + start], 1).gather(1, chosen)
    return SearchResult(best.double().numpy(), rows.numpy())


def truth_of(model: Comparing, enrolled: Tensor, queries: Tensor, count: int) -> SearchResult:
    """Brute force in float64: all cosines or all `-cosh d`, and the exact scores of the best."""
    queries = queries.double()
    config, likeness = model.config, model.score_matrix
    if config.similarity != "cosine":
        settings = config.projection, float(config.curvature or 1), float(config.clip_radius)
        x, _ = project(queries, *settings)
        x_time = x.conformal - 1

        def likeness(_: Tensor, block: Tensor) -> Tensor:
            y, _ = project(block, *settings)
            return (x.conformal * x.position) @ (y.conformal * y.position).mT - x_time * (y.conformal - 1).mT

    best, rows = torch.empty(len(queries), 0).double(), torch.empty(len(queries), 0, dtype=torch.int64)
    for start in tqdm(range(0, len(enrolled), ROWS), desc="brute force in float64", leave=False, mininterval=5):
        block = enrolled[start : start + ROWS].double()
        found, at = likeness(queries, block).topk(min(2 * count, len(block)), dim=1)
        best, chosen = torch.cat([best, found], 1).topk(min(2 * count, best.shape[1] + found.shape[1]), dim=1)
        rows = torch.cat([rows, at + start], 1).gather(1, chosen)
    scores, order = model.score(enrolled[rows].double(), queries[:, None]).sort(dim=1, descending=True, stable=True)
    return SearchResult(scores[:, :count].numpy(), rows.gather(1, order)[:, :count].numpy())


def disagreements(found: SearchResult, truth: SearchResult) -> tuple[float, int, int]:
    """The largest difference of scores; rows that differ where no score is tied; rows that are tied."""
    best = torch.from_numpy(truth.scores)
    far = (best[:, :-1] - best[:, 1:]) > TIE
    alone = far.clone()
    alone[:, 1:] &= far[:, :-1]
    other = torch.from_numpy(found.rows != truth.rows[:, :NEAREST])
    return abs(found.scores - truth.scores[:, :NEAREST]).max(), int((other & alone).sum()), int((~alone).sum())


def clock(search: Callable[[], SearchResult], rounds: int, name: str = "wall") -> tuple[SearchResult, float]:
    """What was found, and the median of the seconds."""
    seconds, now = [], rivals.CLOCKS[name]
    for _ in range(rounds):
        start = now()
        found = search()
        seconds.append(now() - start)
    return found, statistics.median(seconds)


def measure(similarity: str, arguments: argparse.Namespace) -> list[dict]:
    """Print the table of one similarity, and return its ratios."""
    model, rounds, queries = Comparing(similarity), arguments.rounds, arguments.queries
    enrolled, tests, speakers = make_speakers(arguments.enrolled, queries)
    truth = truth_of(model, enrolled, tests, NEAREST + 1)
    first = float((torch.from_numpy(truth.rows[:, 0]) == speakers).float().mean())
    print(f"\n{similarity}: {len(enrolled):,} enrolled, {queries:,} queries, ten nearest, median of {rounds} rounds")
    print(f"{'':28}{'build':>9}{'a query':>11}{'ratio':>8}{'recall':>9}{'speaker':>9}")
    few = tests[: min(queries, arguments.rival_queries)]
    _, base = clock(lambda: brute_force(model, enrolled, few, NEAREST), rounds)
    base /= len(few)
    rows: list[dict] = []

    def show(name: str, found: SearchResult, seconds: float, build: float) -> None:
        pairs = zip(found.rows.tolist(), truth.rows[:, :NEAREST].tolist(), strict=True)
        recall = sum(len(set(a) & set(b)) for a, b in pairs) / truth.rows[:, :NEAREST].size
        right = float((torch.from_numpy(found.rows[:, 0]) == speakers).float().mean())
        each = seconds / queries
        numbers = f"{build:>7.1f} s{1000 * each:>8.2f} ms{base / each:>7.1f}x{recall:>9.4f}{right:>9.3f}"
        print(f"{name:28}{numbers}", flush=True)
        what = f"{len(enrolled):,} speakers, {similarity}: {name}, recall {recall:.3f}"
        rows.append({"what": what, "rival": "brute force, float32", "ratio": base / each})

    print(f"{'brute force, float64':28}{'':>9}{'':>11}{'':>8}{1.0:>9.4f}{first:>9.3f}")
    print(f"{f'brute force, float32 ({len(few)})':28}{'':>9}{1000 * base:>8.2f} ms{1:>7.1f}x", flush=True)
    engines = [False] if import_faiss() is None else [True, False]
    for use_faiss in engines:
        start = time.perf_counter()
        index = SpeakerIndex(model, enrolled, use_faiss=use_faiss)
        build = time.perf_counter() - start
        found, seconds = clock(lambda index=index: index.search(tests, NEAREST), rounds)
        show(f"exact, {'FAISS' if use_faiss else 'PyTorch'}", found, seconds, build)
        difference, wrong, tied = disagreements(found, truth)
        print(
            f"    scores differ by at most {difference:.1e}; {wrong} rows differ, {tied} of {found.rows.size} are tied"
        )
        del index
    if import_faiss() is None:
        print("FAISS is not installed: no approximate index")
        return rows
    start = time.perf_counter()
    index = SpeakerIndex(model, enrolled, kind="cells", cells=arguments.cells)
    build = time.perf_counter() - start
    for number in arguments.probes:
        index.set_probes(number)
        found, seconds = clock(lambda: index.search(tests, NEAREST), rounds)
        show(f"cells, {number} probes", found, seconds, build)
    return rows


def measure_growth(arguments: argparse.Namespace) -> None:
    """Print and draw the time of a query against the number of enrolled speakers."""
    similarity, now = arguments.similarity[0], rivals.CLOCKS[arguments.clock]
    model, queries, rounds = Comparing(similarity), arguments.queries, arguments.rounds
    curves: dict[str, dict[float, float]] = {}
    for size in arguments.sizes:
        enrolled, tests, _ = make_speakers(size, queries)
        rival, approximate = "brute force, float32", f"cells, {arguments.probes[0]} probes"
        exact = {"exact index, PyTorch": False, "exact index, FAISS": True}
        few = tests[: min(queries, arguments.rival_queries)]
        _, seconds = clock(lambda: brute_force(model, enrolled, few, NEAREST), rounds, arguments.clock)  # noqa: B023
        curves.setdefault(rival, {})[size] = 1000 * seconds / len(few)
        print(f"\n{size:,} enrolled\n{rival:28}{curves[rival][size]:>9.3f} ms", flush=True)
        truth: SearchResult | None = None
        names = [*exact, approximate] if size <= arguments.most_in_cells else list(exact)
        for name in names if import_faiss() is not None else names[:1]:
            start = now()
            options = {"kind": "cells"} if name == approximate else {"use_faiss": exact[name]}
            index = SpeakerIndex(model, enrolled, **options)
            build = now() - start
            if name == approximate:
                index.set_probes(arguments.probes[0])
            found, seconds = clock(lambda: index.search(tests, NEAREST), rounds, arguments.clock)  # noqa: B023
            truth = found if truth is None else truth
            pairs = zip(found.rows.tolist(), truth.rows.tolist(), strict=True)
            recall = sum(len(set(a) & set(b)) for a, b in pairs) / truth.rows.size
            curves.setdefault(name, {})[size] = 1000 * seconds / queries
            print(f"{name:28}{curves[name][size]:>9.3f} ms, built in {build:.1f} s, recall {recall:.3f}", flush=True)
    title = f"Ten nearest speakers, {similarity}, {queries} queries at once"
    rivals.plot(arguments.plot, title, "enrolled speakers", "ms for a query", curves)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--enrolled", type=int, default=1_000_000, help="(default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--similarity", nargs="+", choices=SIMILARITIES, default=list(SIMILARITIES))
    parser.add_argument("--probes", type=int, nargs="+", default=[8, 32, 128], help="(default: %(default)s)")
    parser.add_argument("--cells", type=int, help="of the approximate index (default: its own)")
    parser.add_argument("--rival-queries", type=int, default=1000, help="that brute force is timed on, at most")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the growth with --sizes, and measure only this")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--json", type=Path, help="write the ratios there")
    parser.add_argument(
        "--most-in-cells", type=int, default=10**9, help="--plot measures the approximate index up to this size"
    )
    parser.add_argument("--threads", type=int, help="of torch (default: one for each core)")
    parser.add_argument("--clock", choices=rivals.CLOCKS, default="wall", help="time of --plot (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads")
    if arguments.plot is not None:
        measure_growth(arguments)
        return
    rows = [row for similarity in arguments.similarity for row in measure(similarity, arguments)]
    rivals.write_json(arguments.json, "search", {"rows": rows})


if __name__ == "__main__":
    main()
