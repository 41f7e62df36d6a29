"""`hamspk sweep`: measure how error rates depend on the recording conditions."""

import argparse
from typing import TYPE_CHECKING

from ..loading.names import check_model
from .evaluate import check_output, check_target, write_and_tell
from .options import add_channel_argument, add_model_arguments, check_folder, check_trial_lists, given_options

if TYPE_CHECKING:
    from ..evaluation.sweeps import SweepPoint

# Copies of values of the package, because importing the originals would import torch. A test compares them.
SWEEP_NAMES = ("duration", "snr", "reverberation", "bandwidth", "codec")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk sweep`."""
    add_model_arguments(parser)
    parser.add_argument("trials", metavar="TRIALS", help="trial list")
    parser.add_argument("--audio-root", required=True, metavar="DIR", help="base folder of the paths in TRIALS")
    parser.add_argument(
        "--over", nargs="*", choices=SWEEP_NAMES, default=list(SWEEP_NAMES), help="conditions to sweep (default: all)"
    )
    parser.add_argument(
        "--values",
        type=float,
        nargs="+",
        metavar="X",
        help="strengths of the condition; requires that --over names exactly one condition (default: a fixed set of "
        "strengths for each condition)",
    )
    parser.add_argument(
        "--metadata", metavar="FILE.csv", help="table of the recordings, with path, speaker_id, language, ..."
    )
    parser.add_argument(
        "--group-by",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of --metadata; the EER of the unchanged recordings is also measured for each value of these "
        "columns",
    )
    parser.add_argument(
        "--replicates",
        type=int,
        metavar="N",
        help="number of bootstrap resamplings of the speakers for the intervals; 0 for no intervals (default: 1000)",
    )
    add_channel_argument(parser)
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder for evaluation.json, report.html and plots/ (default: the folder of the model)",
    )
    parser.epilog = """\
Each condition changes the test recording of every trial and leaves the enrolment unchanged. The random seed depends
only on the file name, so the same command gives the same numbers. Error rates are computed from raw scores over all
trials.

The results are added to evaluation.json in the folder of the model; report.html and plots/ are written beside it. For
a model on the Hub, they are written into a folder in the working directory.
"""


def check(arguments: argparse.Namespace) -> None:
    """Check the arguments and the input files before torch is imported.

    Raises:
        ValueError: an argument is invalid, or an input does not exist.
    """
    check_output(arguments)
    if arguments.values is not None and len(arguments.over) != 1:
        raise ValueError(f"--values needs exactly one condition, but --over names {len(arguments.over)}.")
    if not arguments.over and not arguments.group_by:
        raise ValueError("Nothing to sweep. Give conditions with --over, or columns with --group-by.")
    check_folder(arguments.audio_root, "--audio-root")
    check_trial_lists([arguments.trials])
    check_model(arguments.model)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print each condition, and write the record, the report and the plots."""
    from ..data.conditions import sweep_conditions
    from ..evaluation.evaluating import check_replicates
    from ..evaluation.speakers import read_metadata
    from ..evaluation.sweeps import sweep
    from ..loading.models import load_model

    check_target(arguments)
    metadata = None if arguments.metadata is None else read_metadata(arguments.metadata)
    # Check the options before the model is loaded.
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
        **given_options(arguments, "replicates", "channel"),
    )
    if found.failures:
        skipped = found.record.sweeps[found.name]["skipped"]
        print(f"{len(found.failures)} files could not be used; {skipped} trials skipped in all conditions")
    write_and_tell(found, arguments.model, arguments.output)
    return 0


def _print_points(kind: str, points: "list[SweepPoint]") -> None:
    from ..evaluation.sweeps import format_sweep

    print(f"{format_sweep(kind, points)}\n", flush=True)
