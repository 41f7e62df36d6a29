"""`hamspk evaluate`: measure the error rates of a model on trial lists, with confidence intervals."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..loading.names import check_model
from .options import add_channel_argument, add_model_arguments, check_folder, check_trial_lists, given_options

if TYPE_CHECKING:
    from ..evaluation.evaluating import Evaluation, EvaluationSettings
    from ..evaluation.sweeps import Sweep

# Copies of values of the package, because importing the originals would import torch. A test compares them.
PROTOCOL_NAMES = ("whole", "paper")
LIST_NAMES = (
    *("vox1-o-cleaned", "vox1-o", "vox1-e-cleaned", "vox1-e", "vox1-h-cleaned", "vox1-h"),
    "cnceleb-eval",
)
EVALUATE_EPILOG = """\
Each line of a trial list is 'label enrolment test'. The label is 1 for the same speaker and 0 for different speakers;
the two audio files are relative to --audio-root. Lists of CN-Celeb and SITW, with lines 'model test label', are
recognised. They need --enrolment, a file with lines 'model file file ...' (enroll.map of CN-Celeb, enroll-core.lst of
SITW). The speaker of a file is read from its path: from the folder, or the first part of the file name, that is the
same in both files of every target trial and different in every impostor trial. If the paths do not show the speakers,
give --metadata with the column speaker_id.

The first row of the table shows the error rates of the raw scores over all trials. For a calibrated model, a second
row shows the error rates of the log-likelihood ratios over the trials with enough speech for a decision.

evaluation.json (numbers), report.html (tables and plots in one file) and plots/ are written into the folder of the
model, where `hamspk push`, `hamspk card` and the Space read them. Earlier results of other lists are kept; results of
the same list are replaced. For a model on the Hub, they are written into a folder in the working directory.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk evaluate`."""
    add_model_arguments(parser)
    parser.add_argument("trials", nargs="+", metavar="TRIALS", help="trial lists")
    _add_list_options(parser)
    parser.add_argument(
        "--protocol",
        choices=PROTOCOL_NAMES,
        default="whole",
        help="parts of an utterance that are embedded: whole is the whole utterance; paper is the whole utterance and "
        "five segments of 3 s, as in the paper (default: whole)",
    )
    parser.add_argument(
        "--prior",
        type=float,
        nargs="+",
        metavar="P",
        help="prior probabilities of a target trial for the detection costs (default: 0.01 0.05)",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder for evaluation.json, report.html and plots/ (default: the folder of the model)",
    )
    _add_measuring_options(parser)
    parser.epilog = EVALUATE_EPILOG


def _add_list_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how to read the trial lists."""
    parser.add_argument(
        "--enrolment",
        metavar="FILE",
        help="table with the recordings of each enrolment model, needed if TRIALS name enrolment models",
    )
    parser.add_argument(
        "--official",
        nargs="+",
        choices=LIST_NAMES,
        default=[],
        metavar="LIST",
        help="official lists whose sizes are compared with TRIALS, one name for each list in the same order; a "
        f"different number of trials is an error. Names: {', '.join(LIST_NAMES)}",
    )
    parser.add_argument(
        "--audio-root",
        required=True,
        action="append",
        metavar="DIR",
        help="base folder of the paths in TRIALS; may be repeated, once for each trial list, in the same order",
    )


def _add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for channels, groups of speakers, confidence intervals and comparisons."""
    add_channel_argument(parser)
    parser.add_argument(
        "--metadata",
        metavar="FILE.csv",
        help="table of the recordings, with columns such as path, speaker_id, gender and age",
    )
    parser.add_argument(
        "--group-by",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of --metadata; error rates are also measured for each value of these columns",
    )
    parser.add_argument(
        "--subtract-mean", action="store_true", help="subtract the mean of the model's cohort from each embedding"
    )
    parser.add_argument("--uncalibrated", action="store_true", help="measure raw scores only, without decisions")
    parser.add_argument(
        "--compare",
        metavar="MODEL",
        help="second model; the differences between the error rates of the two models are tested on the same trials",
    )
    parser.add_argument(
        "--replicates",
        type=int,
        metavar="N",
        help="number of bootstrap resamplings of the speakers for the intervals; 0 for no intervals (default: 1000)",
    )
    parser.add_argument("--confidence", type=float, metavar="P", help="confidence of the intervals (default: 0.95)")


def check(arguments: argparse.Namespace) -> None:
    """Check the arguments and the input files before torch is imported.

    Raises:
        ValueError: an argument is invalid, or an input does not exist.
    """
    check_output(arguments)
    for root in arguments.audio_root:
        check_folder(root, "--audio-root")
    if len(arguments.audio_root) not in (1, len(arguments.trials)):
        raise ValueError(
            f"Give --audio-root once, or once for each of the {len(arguments.trials)} trial lists, got "
            f"{len(arguments.audio_root)} folders."
        )
    check_trial_lists(arguments.trials)
    if arguments.compare is not None and arguments.replicates == 0:
        raise ValueError("--compare needs resamplings to test the difference. Remove --replicates 0.")
    check_model(arguments.model)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the model, print the tables, and write the record, the report and the plots."""
    from ..evaluation.evaluating import evaluate, read_lists
    from ..evaluation.report import format_report
    from ..evaluation.trials import official_title
    from ..loading.models import load_model

    check_target(arguments)
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
    """Write the results into a folder, and print the paths of the files.

    Args:
        measured: results to write.
        model: folder of the model, or its name on the Hub.
        output: folder for the results; None uses the folder that `record_folder` returns for `model`.

    Raises:
        ValueError: the folder cannot be written to.
    """
    from ..evaluation.results import record_folder

    folder = record_folder(model) if output is None else Path(output)
    if output is None and not Path(model).is_dir():
        print(f"{model} has no local folder, so the results are written to {folder}. Use --output to change this.")
    try:
        files, remarks = measured.write(folder)
    except PermissionError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}). Give another --output folder.") from error
    for line in [*(f"written: {file}" for file in files), *remarks]:
        print(line)


def check_target(arguments: argparse.Namespace) -> None:
    """Check the folder of the results before anything is measured.

    Raises:
        ValueError: the folder contains a file with the name of a result that this package did not write.
    """
    from ..evaluation.results import check_record_folder, record_folder

    check_record_folder(record_folder(arguments.model) if arguments.output is None else Path(arguments.output))


def check_output(arguments: argparse.Namespace) -> None:
    """Check --output and --group-by.

    Raises:
        ValueError: --output is a file, or --group-by is given without --metadata.
    """
    output = arguments.output
    if output is not None and (Path(output).suffix == ".json" or Path(output).is_file()):
        raise ValueError(
            f"--output must be a folder for evaluation.json, report.html and plots/, got the file {output}."
        )
    if arguments.group_by and arguments.metadata is None:
        raise ValueError("--group-by needs --metadata, the table that contains the columns.")


def _read_settings(arguments: argparse.Namespace) -> "EvaluationSettings":
    from ..evaluation.evaluating import EvaluationSettings
    from ..evaluation.speakers import read_metadata

    given = given_options(arguments, "protocol", "replicates", "confidence", "channel")
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
        # The messages begin with the name of the setting, which is also the name of the option.
        raise ValueError(f"--{error}") from error
