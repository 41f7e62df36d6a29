"""`hamspk evaluate`: error rates of a model on trial lists, with their confidence intervals."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..loading.names import check_model
from .options import add_model_arguments, check_folder, check_trial_lists, given_options

if TYPE_CHECKING:
    from ..evaluation.evaluating import Evaluation, EvaluationSettings
    from ..evaluation.sweeps import Sweep

# Those of the package, which a test compares.
PROTOCOL_NAMES = ("whole", "paper")
LIST_NAMES = (
    *("vox1-o-cleaned", "vox1-o", "vox1-e-cleaned", "vox1-e", "vox1-h-cleaned", "vox1-h"),
    "cnceleb-eval",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk evaluate`."""
    add_model_arguments(parser)
    parser.add_argument("trials", nargs="+", metavar="TRIALS", help="trial lists")
    parser.add_argument("--enrolment", metavar="FILE", help="files of each enrolment model, for lists that name models")
    parser.add_argument(
        "--official",
        nargs="+",
        choices=LIST_NAMES,
        default=[],
        metavar="LIST",
        help=f"refuse the trial lists, in this order, unless they have the size of: {', '.join(LIST_NAMES)}",
    )
    parser.add_argument("--audio-root", required=True, metavar="DIR", help="folder of the files in the lists")
    parser.add_argument(
        "--protocol",
        choices=PROTOCOL_NAMES,
        default="whole",
        help="whole utterances (the default), or the paper's: whole utterances and five 3 s segments",
    )
    parser.add_argument(
        "--prior",
        type=float,
        nargs="+",
        metavar="P",
        help="probabilities of a target trial for the detection costs (default: 0.01 0.05)",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder for evaluation.json, report.html and plots/ (default: that of the model)",
    )
    _add_measuring_options(parser)
    parser.epilog = """\
A trial list has lines 'label enrolment test': 1 for the same speaker, 0 for different ones, and two audio files,
relative to --audio-root. Lists of CN-Celeb and SITW ('model test label') are recognised; --enrolment gives the files
of their models ('model file file ...'; enroll.map of CN-Celeb, enroll-core.lst of SITW). The speakers are read off the
names (a folder or the first part of the file name that agrees in all pairs of one speaker and differs in all others),
or off the column speaker_id of --metadata.

Raw scores are measured over all trials. A second row shows the log-likelihood ratios and decisions of a calibrated
model, over the trials with enough speech for a decision.

evaluation.json (numbers), report.html (one file with everything) and plots/ are written into the model's own folder,
where `hamspk push`, the model card and the Space find them. Another list adds to the file, the same list replaces its
earlier numbers. For a model on the Hub, and without --output, they go into a folder in the working directory.
"""


def _add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for groups, intervals and comparisons."""
    parser.add_argument("--metadata", metavar="FILE.csv", help="table of the files: path, speaker_id, gender, age, ...")
    parser.add_argument("--group-by", nargs="+", default=[], metavar="COLUMN", help="columns of --metadata")
    parser.add_argument("--subtract-mean", action="store_true", help="subtract the mean of the model's cohort")
    parser.add_argument("--uncalibrated", action="store_true", help="leave the decisions of a calibrated model out")
    parser.add_argument("--compare", metavar="MODEL", help="test the difference from another model on the same trials")
    parser.add_argument(
        "--replicates",
        type=int,
        metavar="N",
        help="resamplings of the speakers for the intervals, 0 for none (default: 1000)",
    )
    parser.add_argument("--confidence", type=float, metavar="P", help="of the intervals (default: 0.95)")


def check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before torch is imported."""
    check_output(arguments)
    check_folder(arguments.audio_root, "--audio-root")
    check_trial_lists(arguments.trials)
    if arguments.compare is not None and arguments.replicates == 0:
        raise ValueError("--compare tests a difference by resampling; leave --replicates 0 out.")
    check_model(arguments.model)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print the tables, write record, report and plots."""
    from ..evaluation.evaluating import evaluate, read_lists
    from ..evaluation.report import format_report
    from ..evaluation.trials import official_title
    from ..loading.models import load_model

    settings = _read_settings(arguments)
    lists = read_lists(arguments.trials, arguments.audio_root, arguments.enrolment, arguments.official)
    for name, trials in lists.items():
        title = official_title(trials)
        if title is not None:
            print(f"{name} has the size of {title}: {len(trials):,} trials")
    model = load_model(arguments.model, arguments.device)
    other = None if arguments.compare is None else load_model(arguments.compare, arguments.device)
    found = evaluate(model, lists, arguments.audio_root, settings, compare=other)
    print(format_report(found.record))
    write_and_tell(found, arguments.model, arguments.output)
    return 0


def write_and_tell(measured: "Evaluation | Sweep", model: str, output: str | None) -> None:
    """Write what was measured, into the folder of the model unless another is given, and print what was written."""
    from ..evaluation.results import record_folder

    folder = record_folder(model) if output is None else Path(output)
    if output is None and not Path(model).is_dir():
        print(f"{model} is on the Hub and has no folder here: written to {folder}; --output chooses another folder.")
    try:
        files, remarks = measured.write(folder)
    except PermissionError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}): choose a folder with --output.") from error
    for line in [*(f"written: {file}" for file in files), *remarks]:
        print(line)


def check_output(arguments: argparse.Namespace) -> None:
    """Refuse a file in the place of the output folder, and --group-by without --metadata."""
    output = arguments.output
    if output is not None and (Path(output).suffix == ".json" or Path(output).is_file()):
        raise ValueError(
            f"--output is a folder, in which evaluation.json, report.html and plots/ are written; got {output}."
        )
    if arguments.group_by and arguments.metadata is None:
        raise ValueError("--group-by names columns of a table: give it with --metadata.")


def _read_settings(arguments: argparse.Namespace) -> "EvaluationSettings":
    from ..evaluation.evaluating import EvaluationSettings
    from ..evaluation.speakers import read_metadata

    given = given_options(arguments, "protocol", "replicates", "confidence")
    if arguments.prior is not None:
        given["priors"] = tuple(dict.fromkeys(arguments.prior))
    if arguments.metadata is not None:
        given["metadata"] = read_metadata(arguments.metadata)
    try:
        return EvaluationSettings(
            **given,
            group_by=arguments.group_by,
            subtract_mean=arguments.subtract_mean,
            calibrated=not arguments.uncalibrated,
        )
    except ValueError as error:
        # The messages begin with the name of the setting, which is that of the option.
        raise ValueError(f"--{error}") from error
