"""`hamspk sweep`: error rates against the recording condition."""

import argparse

from ..data.conditions import SWEEPS
from ..evaluation.evaluating import check_replicates
from ..evaluation.intervals import REPLICATES
from ..evaluation.speakers import read_metadata
from ..evaluation.sweeps import SweepPoint, format_sweep, sweep
from .evaluate import check_output_folder, write_and_tell
from .models import add_model_arguments, load_model


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
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder for evaluation.json, report.html and plots/ (default: that of the model)",
    )
    parser.epilog = """\
The test side of every trial is changed, the enrolment is not. All randomness is seeded by the name of the file: the
same command gives the same numbers. Scores are the raw ones of whole recordings, over all trials.

The numbers are added to evaluation.json in the model's own folder (for a model on the Hub, in a folder in the working
directory), report.html and plots/ are written beside it.
"""


def run(arguments: argparse.Namespace) -> int:
    """Measure, print each condition as it is measured, write record and plots."""
    _check_sweep(arguments)
    metadata = None if arguments.metadata is None else read_metadata(arguments.metadata)
    model = load_model(arguments.model, arguments.device)
    found = sweep(
        model,
        arguments.trials,
        arguments.audio_root,
        arguments.over,
        arguments.values,
        metadata=metadata,
        group_by=arguments.group_by,
        replicates=arguments.replicates,
        announce=_print_points,
    )
    if found.failures:
        skipped = found.record.sweeps[found.name]["skipped"]
        print(f"{skipped} trials skipped, as {len(found.failures)} files cannot be read")
    write_and_tell(found, arguments.model, arguments.output)
    return 0


def _print_points(kind: str, points: list[SweepPoint]) -> None:
    print(f"{format_sweep(kind, points)}\n", flush=True)


def _check_sweep(arguments: argparse.Namespace) -> None:
    check_output_folder(arguments.output)
    if arguments.values is not None and len(arguments.over) != 1:
        raise ValueError(f"--values belong to one condition; --over names {len(arguments.over)}.")
    if arguments.group_by and arguments.metadata is None:
        raise ValueError("--group-by names columns of a table: give it with --metadata.")
    if not arguments.over and not arguments.group_by:
        raise ValueError("Nothing to sweep: name conditions with --over, or columns with --group-by.")
    try:
        check_replicates(arguments.replicates)
    except ValueError as error:
        raise ValueError(f"--{error}") from error
