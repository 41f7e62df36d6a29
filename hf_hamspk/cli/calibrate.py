"""`hamspk calibrate`: decisions for a model, from pairs of your own recordings."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..loading.names import check_model
from .options import add_model_arguments, check_folder, check_trial_lists, given_options

if TYPE_CHECKING:
    from ..calibration_hamspk import OperatingPoint
    from ..evaluation.model_calibration import CalibrationReport

# Those of the package, which a test compares.
NORMALISATION_CHOICES = ("auto", "none", "z", "t", "s", "as")
QUALITY_CHOICES = ("auto", "none", "speech", "snr", "magnitude")
DEFAULT_POINTS = "balanced=0.5,1,1, strict=0.01,1,1, screening=0.5,10,1"
# Files of the cohort that are named.
COHORT_FILES_SHOWN = 5
# Not copied into a new folder: an earlier evaluation does not describe the calibrated model.
_STALE = ("verification.json", "evaluation.json", "report.html", "plots", "__pycache__")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk calibrate`."""
    add_model_arguments(parser)
    parser.add_argument("pairs", nargs="+", metavar="PAIRS", help="trial lists")
    parser.add_argument("--audio-root", required=True, metavar="DIR", help="folder of the files in the lists")
    parser.add_argument("--enrolment", metavar="FILE", help="files of each enrolment model, for lists that name models")
    parser.add_argument("--metadata", metavar="FILE.csv", help="table of the files: path, speaker_id")
    parser.add_argument(
        "--cohort",
        metavar="DIR|FILE.csv",
        help="recordings of some hundred other speakers, best those of the training, as `hamspk train` takes them "
        "(default: the cohort of the model, if any)",
    )
    parser.add_argument("--cohort-root", metavar="DIR", help="folder of the paths in the CSV file of --cohort")
    parser.add_argument(
        "--normalisation",
        choices=NORMALISATION_CHOICES,
        help="of the scores, with the cohort; auto (the default) is AS-norm if it helps",
    )
    parser.add_argument("--top", type=int, metavar="N", help="cohort scores of AS-norm (default: the best of several)")
    parser.add_argument(
        "--quality",
        nargs="+",
        choices=QUALITY_CHOICES,
        help="quality measures of the recordings in the log-likelihood ratio; auto (the default) takes those that help",
    )
    parser.add_argument(
        "--operating-point",
        action="append",
        metavar="NAME=PRIOR[,COST_MISS,COST_FALSE_ALARM]",
        help="operating point of decisions; may be repeated, the first is the default of the model (default: "
        f"{DEFAULT_POINTS})",
    )
    parser.add_argument(
        "--minimum-speech",
        type=float,
        metavar="SECONDS",
        help="speech below which no decision is made (default: 1)",
    )
    parser.add_argument("--output", metavar="DIR", help="a new folder for the calibrated model (default: MODEL itself)")
    parser.epilog = (
        "PAIRS are trial lists with lines 'label enrolment test': 1 for the same speaker, 0 for different speakers,\n"
        "and two audio files relative to --audio-root; lists with the label last are recognised. Use recordings like\n"
        "those to be decided on, of speakers that the model was not trained on: at least 20 pairs of each kind,\n"
        "better some dozens of speakers with a few recordings each; the command says how certain the thresholds are.\n"
        "The speaker of a file is read off its name, or taken from the column speaker_id of --metadata.\n"
        "\n"
        "The calibration (verification.json) and the cohort (cohort.safetensors) are written beside the weights and\n"
        "are used wherever the model is loaded. Normalisation and quality measures are chosen by the cost on\n"
        "held-out speakers."
    )


def check(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together, and a target folder that cannot be written."""
    if arguments.cohort_root is not None and arguments.cohort is None:
        raise ValueError("--cohort-root is the folder of the paths in --cohort; give that, too.")
    _check_target_folder(arguments.model, arguments.output)
    check_trial_lists(arguments.pairs)
    check_folder(arguments.audio_root, "--audio-root")
    check_model(arguments.model)


def run(arguments: argparse.Namespace) -> int:
    """Calibrate, print what was measured, and save."""
    from ..evaluation.model_calibration import calibrate
    from ..loading.models import load_model
    from ..publishing.code import renew_code

    options = given_options(
        arguments,
        *("enrolment", "metadata", "cohort", "cohort_root", "normalisation", "top", "quality", "minimum_speech"),
    )
    if arguments.operating_point is not None:
        options["operating_points"] = tuple(map(parse_point, arguments.operating_point))
    model = load_model(arguments.model, arguments.device)
    report = calibrate(model, arguments.pairs, arguments.audio_root, **options)
    _tell_about_cohort(report)
    print(f"{report}\n")
    folder = _output_folder(arguments.model, arguments.output)
    for name in model.save_verification(folder):
        print(f"written: {folder / name}")
    renewed = renew_code(folder)
    if renewed:
        print(f"renewed: {len(renewed)} files of code in {folder}, which were of another version of this package")
    return 0


def parse_point(text: str) -> "OperatingPoint":
    """An operating point of `name=prior` or `name=prior,cost_miss,cost_false_alarm`.

    Raises:
        ValueError: the text is not of this form, or a number is out of range.
    """
    from ..calibration_hamspk import OperatingPoint

    name, _, numbers = text.partition("=")
    try:
        values = [float(number) for number in numbers.split(",")]
        if len(values) not in (1, 3):
            raise ValueError(f"{len(values)} numbers")
        return OperatingPoint(name.strip(), *values)
    except ValueError as error:
        raise ValueError(
            f"{text!r} is no operating point ({error}); expected NAME=PRIOR or NAME=PRIOR,COST_MISS,COST_FALSE_ALARM, "
            "such as strict=0.01,1,1."
        ) from None


def _tell_about_cohort(report: "CalibrationReport") -> None:
    for file, reason in list(report.cohort_skipped.items())[:COHORT_FILES_SHOWN]:
        print(f"cohort: left out {file}: {reason}", file=sys.stderr)
    if report.cohort_left_out:
        print(f"cohort: left out {report.cohort_left_out} speakers who are in the pairs, too", file=sys.stderr)


def _check_target_folder(model: str, output: str | None) -> None:
    if _in_place(model, output):
        if not Path(model).is_dir():
            raise ValueError(f"{model} is no folder here: give --output, a new folder for the calibrated model.")
    elif (
        output is not None and Path(output).exists() and not (Path(output).is_dir() and not any(Path(output).iterdir()))
    ):
        raise ValueError(f"--output {output} is there already; give a new folder, or delete this one.")


def _in_place(model: str, output: str | None) -> bool:
    return output is None or (Path(model).is_dir() and Path(output).resolve() == Path(model).resolve())


def _output_folder(model: str, output: str | None) -> Path:
    """The folder to write to; a new one gets a copy of the model."""
    if output is None or _in_place(model, output):
        return Path(model)
    folder = Path(output)
    if Path(model).is_dir():
        shutil.copytree(model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_STALE))
    else:
        from huggingface_hub import snapshot_download

        snapshot_download(model, local_dir=folder)
    return folder
