"""`hamspk sweep`: error rates against the recording condition."""

import argparse
from typing import TYPE_CHECKING

from ..loading.names import check_model
from .evaluate import check_output, write_and_tell
from .options import add_model_arguments, check_folder, check_trial_lists, given_options

if TYPE_CHECKING:
    from ..evaluation.sweeps import SweepPoint

# Those of the package, which a test compares.
SWEEP_NAMES = ("duration", "snr", "reverberation", "bandwidth", "codec")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk sweep`."""
    add_model_arguments(parser)
    parser.add_argument("trials", metavar="TRIALS", help="trial list")
    parser.add_argument("--audio-root", required=True, metavar="DIR", help="folder of the files in the list")
    parser.add_argument(
        "--over", nargs="*", choices=SWEEP_NAMES, default=list(SWEEP_NAMES), help="conditions (default: all of them)"
    )
    parser.add_argument(
        "--values", type=float, nargs="+", metavar="X", help="strengths, where --over names one condition"
    )
    parser.add_argument("--metadata", metavar="FILE.csv", help="table of the files: path, speaker_id, language, ...")
    parser.add_argument("--group-by", nargs="+", default=[], metavar="COLUMN", help="columns of --metadata")
    parser.add_argument(
        "--replicates",
        type=int,
        metavar="N",
        help="resamplings of the speakers for the intervals, 0 for none (default: 1000)",
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


def check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before torch is imported."""
    check_output(arguments)
    if arguments.values is not None and len(arguments.over) != 1:
        raise ValueError(f"--values belong to one condition; --over names {len(arguments.over)}.")
    if not arguments.over and not arguments.group_by:
        raise ValueError("Nothing to sweep: name conditions with --over, or columns with --group-by.")
    check_folder(arguments.audio_root, "--audio-root")
    check_trial_lists([arguments.trials])
    check_model(arguments.model)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print each condition as it is measured, write record and plots."""
    from ..data.conditions import sweep_conditions
    from ..evaluation.evaluating import check_replicates
    from ..evaluation.speakers import read_metadata
    from ..evaluation.sweeps import sweep
    from ..loading.models import load_model

    metadata = None if arguments.metadata is None else read_metadata(arguments.metadata)
    # Before the model is loaded.
    for kind in arguments.over:
        sweep_conditions(kind, arguments.values)
    if arguments.replicates is not None:
        try:
            check_replicates(arguments.replicates)
        except ValueError as error:
            raise ValueError(f"--{error}") from error
    found = sweep(
        load_model(arguments.model, arguments.device),
        arguments.trials,
        arguments.audio_root,
        arguments.over,
        arguments.values,
        metadata=metadata,
        group_by=arguments.group_by,
        announce=_print_points,
        **given_options(arguments, "replicates"),
    )
    if found.failures:
        skipped = found.record.sweeps[found.name]["skipped"]
        print(f"{skipped} trials skipped, as {len(found.failures)} files cannot be read")
    write_and_tell(found, arguments.model, arguments.output)
    return 0


def _print_points(kind: str, points: "list[SweepPoint]") -> None:
    from ..evaluation.sweeps import format_sweep

    print(f"{format_sweep(kind, points)}\n", flush=True)
