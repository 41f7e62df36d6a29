"""`hamspk calibrate`: calibrate a model with pairs of your own recordings."""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..folders.recognising import check_replaceable, is_calibration_file
from ..loading.names import check_model
from .options import add_channel_argument, add_model_arguments, check_folder, check_trial_lists, given_options

if TYPE_CHECKING:
    from ..calibration_hamspk import OperatingPoint
    from ..evaluation.model_calibration import CalibrationReport

# Copies of values of the package, because importing the originals would import torch. A test compares them.
NORMALISATION_CHOICES = ("auto", "none", "z", "t", "s", "as")
QUALITY_CHOICES = ("auto", "none", "speech", "snr", "magnitude")
DEFAULT_POINTS = "balanced=0.5,1,1, strict=0.01,1,1, screening=0.5,10,1"
# Largest number of skipped cohort files that the output names.
COHORT_FILES_SHOWN = 100
# Files that are not copied into a new folder. An earlier evaluation does not describe the calibrated model.
_STALE = ("verification.json", "evaluation.json", "report.html", "plots", "__pycache__")
_CALIBRATE_EPILOG = (
    "Each line of PAIRS is 'label enrolment test'. The label is 1 for the same speaker and 0 for different\n"
    "speakers; the two audio files are relative to --audio-root. Lists with the label last are recognised.\n"
    "\n"
    "Use recordings like the recordings that the model will decide on, from speakers outside its training data.\n"
    "At least 20 pairs with the same speaker and 20 pairs with different speakers are needed. Several recordings\n"
    "from each of a few dozen speakers give a better calibration. The report shows the uncertainty of the\n"
    "thresholds. The speaker of a file is read from its name, or from the column speaker_id of --metadata.\n"
    "\n"
    "The calibration (verification.json) and the cohort (cohort.safetensors) are written beside the weights.\n"
    "They are used whenever the model is loaded. Unless you set them, the score normalisation and the quality\n"
    "measures are chosen by their cost on held-out speakers."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk calibrate`."""
    add_model_arguments(parser)
    parser.add_argument("pairs", nargs="+", metavar="PAIRS", help="trial lists: pairs of recordings with labels")
    parser.add_argument("--audio-root", required=True, metavar="DIR", help="base folder of the paths in PAIRS")
    parser.add_argument("--enrolment", metavar="FILE", help="table with the recordings of enrolment models in PAIRS")
    parser.add_argument("--metadata", metavar="FILE.csv", help="table of the recordings, with path and speaker_id")
    parser.add_argument(
        "--cohort",
        metavar="DIR|FILE.csv",
        help="recordings of a few hundred other speakers, in the format of training data for `hamspk train`; "
        "the speakers that the model was trained on work best (default: the model's cohort, if it has one)",
    )
    parser.add_argument("--cohort-root", metavar="DIR", help="base folder of the paths in the list of --cohort")
    parser.add_argument(
        "--normalisation",
        choices=NORMALISATION_CHOICES,
        help="score normalisation with the cohort (default: auto, which uses AS-norm if it lowers the Cllr)",
    )
    parser.add_argument(
        "--top", type=int, metavar="N", help="number of highest cohort scores in AS-norm (default: several are tried)"
    )
    parser.add_argument(
        "--quality",
        nargs="+",
        choices=QUALITY_CHOICES,
        help="quality measures of the recordings, used in addition to the score to compute the log-likelihood ratio "
        "(default: auto, which uses the measures that lower the Cllr)",
    )
    parser.add_argument(
        "--operating-point",
        action="append",
        metavar="NAME=PRIOR[,COST_MISS,COST_FALSE_ALARM]",
        help="operating point for decisions; may be repeated; the first becomes the model's default (default: "
        f"{DEFAULT_POINTS})",
    )
    speech = "seconds of speech that each recording must contain for a decision (default: 1)"
    parser.add_argument("--minimum-speech", type=float, metavar="SECONDS", help=speech)
    add_channel_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--output", metavar="DIR", help="new folder for the calibrated model (default: MODEL itself)")
    parser.epilog = _CALIBRATE_EPILOG


def check(arguments: argparse.Namespace) -> None:
    """Check the options, the input files and the output folder before torch is imported.

    Raises:
        ValueError: options contradict each other, an input does not exist, or the output folder is not empty.
    """
    if arguments.cohort_root is not None and arguments.cohort is None:
        raise ValueError("--cohort-root needs --cohort. Give the list whose paths are relative to --cohort-root.")
    _check_target_folder(arguments.model, arguments.output)
    check_trial_lists(arguments.pairs)
    check_folder(arguments.audio_root, "--audio-root")
    check_model(arguments.model)
    folder = Path(arguments.model if arguments.output is None else arguments.output)
    for name in ("verification.json", "cohort.safetensors"):
        check_replaceable(folder / name, is_calibration_file, "a calibration")


def run(arguments: argparse.Namespace) -> int:
    """Calibrate the model, print the report, and write the calibration and the cohort."""
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
    report = calibrate(model, arguments.pairs, arguments.audio_root, channel=arguments.channel, **options)
    _tell_about_cohort(report)
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else f"{report}\n")
    folder = _output_folder(arguments.model, arguments.output)
    # Standard output contains only JSON if it was requested.
    told = sys.stderr if arguments.json else sys.stdout
    for name in model.save_verification(folder):
        print(f"written: {folder / name}", file=told)
    renewed = renew_code(folder)
    if renewed:
        print(
            f"updated in {folder}: {len(renewed)} code files that another version of this package had written",
            file=told,
        )
    return 0


def parse_point(text: str) -> "OperatingPoint":
    """Parse an operating point that is written as `name=prior` or `name=prior,cost_miss,cost_false_alarm`.

    Raises:
        ValueError: the text has another form, or a number is out of range.
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
            f"{text!r} is not an operating point ({error}). Expected NAME=PRIOR or "
            "NAME=PRIOR,COST_MISS,COST_FALSE_ALARM, such as strict=0.01,1,1."
        ) from None


def _tell_about_cohort(report: "CalibrationReport") -> None:
    for file, reason in list(report.cohort_skipped.items())[:COHORT_FILES_SHOWN]:
        print(f"cohort: left out {file}: {reason}", file=sys.stderr)
    if report.cohort_left_out:
        print(f"cohort: left out {report.cohort_left_out} speakers who are also in PAIRS", file=sys.stderr)


def _check_target_folder(model: str, output: str | None) -> None:
    if _in_place(model, output):
        if not Path(model).is_dir():
            raise ValueError(
                f"{model} is not a local folder. Give a new folder for the calibrated model with --output."
            )
    elif (
        output is not None and Path(output).exists() and not (Path(output).is_dir() and not any(Path(output).iterdir()))
    ):
        raise ValueError(f"--output {output} already exists. Give a new folder.")


def _in_place(model: str, output: str | None) -> bool:
    return output is None or (Path(model).is_dir() and Path(output).resolve() == Path(model).resolve())


def _output_folder(model: str, output: str | None) -> Path:
    """Return the folder for the calibration. If it is a new folder, copy the model into it first."""
    if output is None or _in_place(model, output):
        return Path(model)
    folder = Path(output)
    if Path(model).is_dir():
        shutil.copytree(model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_STALE))
    else:
        from huggingface_hub import snapshot_download

        snapshot_download(model, local_dir=folder)
    return folder
