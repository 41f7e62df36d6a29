"""`hamspk sweep`: error rates against the recording condition."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..data.conditions import SWEEPS, sweep_conditions
from ..evaluation.evaluating import read_lists
from ..evaluation.intervals import CONFIDENCE, FEWEST_REPLICATES, REPLICATES
from ..evaluation.plots import plot_sweep
from ..evaluation.speakers import read_metadata, speaker_table
from ..evaluation.sweeps import ConditionSweep, SweepPoint, format_sweep
from .models import add_model_arguments, load_model

EPILOG = """\
The test side of every trial is changed, the enrolment stays as it is. What is random is drawn by the name of the file:
the same command, the same numbers. Scores are those of whole recordings, before normalisation and calibration. --output
takes a folder, in which sweep.json and a plot of each sweep are written.
"""
RECORD_FILE = "sweep.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk sweep`."""
    add_model_arguments(parser)
    parser.add_argument("trials", metavar="TRIALS", help="trial list")
    parser.add_argument("--audio-root", required=True, metavar="DIR", help="folder of the files in the list")
    parser.add_argument(
        "--over", nargs="*", choices=SWEEPS, default=list(SWEEPS), help="conditions (default: all of them)"
    )
    parser.add_argument(
        "--values", type=float, nargs="+", metavar="X", help="strengths, where --over names one condition"
    )
    parser.add_argument("--metadata", metavar="FILE.csv", help="table of the files: path, speaker_id, language, ...")
    parser.add_argument("--group-by", nargs="+", default=[], metavar="COLUMN", help="columns of --metadata")
    parser.add_argument(
        "--replicates",
        type=int,
        default=REPLICATES,
        metavar="N",
        help="resamplings of the speakers for the intervals, 0 for none (default: %(default)s)",
    )
    parser.add_argument("--output", metavar="DIR", help="write sweep.json and the plots into this folder")
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, draw."""
    _check(arguments)
    conditions = {kind: sweep_conditions(kind, arguments.values) for kind in arguments.over}
    ((name, trials),) = read_lists([arguments.trials], arguments.audio_root).items()
    metadata = {} if arguments.metadata is None else read_metadata(arguments.metadata)
    model = load_model(arguments.model, arguments.device)
    table = speaker_table(metadata) if metadata else None
    sweep = ConditionSweep(model, trials, arguments.audio_root, table, arguments.replicates)
    found: dict[str, list[SweepPoint]] = {}
    # The recordings as they are begin every sweep and are measured once.
    clean: SweepPoint | None = None
    for kind, steps in conditions.items():
        found[kind] = []
        for step in steps:
            if step.change is not None or clean is None:
                point = sweep.measure(step)
                clean = point if step.change is None else clean
            else:
                point = clean
            found[kind].append(point)
        print(f"{format_sweep(kind, found[kind])}\n", flush=True)
    for column in arguments.group_by:
        found[column] = sweep.measure_groups(metadata, column)
        print(f"{format_sweep(column, found[column])}\n", flush=True)
    if sweep.failures:
        print(f"{len(trials) - len(sweep.trials)} trials left out; unusable files: {len(sweep.failures)}")
    if arguments.output is not None:
        _write(Path(arguments.output), name, model.fingerprint(), found, sweep.failures)
    return 0


def _write(
    folder: Path, name: str, fingerprint: str, found: dict[str, list[SweepPoint]], failures: dict[str, str]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "schema": 1,
        "model": fingerprint,
        "list": name,
        "confidence": CONFIDENCE,
        "unusable_files": failures,
        "sweeps": {kind: [point.to_dict() for point in points] for kind, points in found.items()},
    }
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(f"written: {folder / RECORD_FILE}")
    for kind, points in found.items():
        drawn = [point for point in points if point.eer is not None]
        if drawn:
            rates = [(p.condition, p.eer, p.eer_interval) for p in drawn if p.eer is not None]
            print(f"written: {plot_sweep(rates, folder / f'sweep-{Path(kind).name}.png', f'{name}: {kind}')}")


def _check(arguments: argparse.Namespace) -> None:
    if arguments.values is not None and len(arguments.over) != 1:
        raise ValueError(f"--values belong to one condition; --over names {len(arguments.over)}.")
    if arguments.group_by and arguments.metadata is None:
        raise ValueError("--group-by names columns of a table: give it with --metadata.")
    if not arguments.over and not arguments.group_by:
        raise ValueError("Nothing to sweep: name conditions with --over, or columns with --group-by.")
    if arguments.replicates != 0 and arguments.replicates < FEWEST_REPLICATES:
        raise ValueError(f"--replicates must be 0 or at least {FEWEST_REPLICATES}, got {arguments.replicates}.")
