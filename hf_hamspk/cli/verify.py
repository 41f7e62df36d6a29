"""`hamspk verify`: are these recordings of the same speaker?"""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..loading.names import check_model
from .options import (
    PROFILE_EXTENSION,
    add_model_arguments,
    check_enrolment,
    check_recording,
    check_ways_to_decide,
    count_of,
    given_options,
)

if TYPE_CHECKING:
    from ..modeling_hamspk import HamSpkModel
    from ..verification_hamspk import Verification

# Those of the package, which a test compares.
COMBINE_CHOICES = ("mean", "length_weighted", "barycentre")
UNCALIBRATED = (
    "No decision: this model is not calibrated. `hamspk calibrate MODEL PAIRS --audio-root DIR` calibrates it with "
    "pairs of recordings of your own; --threshold decides by the score itself."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk verify`."""
    parser.usage = (
        "hamspk verify MODEL ENROLMENT TEST [options]\n"
        "       hamspk verify MODEL ENROLMENT [ENROLMENT ...] --test TEST [options]"
    )
    add_model_arguments(parser)
    parser.add_argument(
        "recordings",
        nargs="+",
        metavar="RECORDING",
        help="a recording of the claimed speaker (or a saved profile) and the recording in question; with --test or "
        "--save-profile, recordings of the claimed speaker only",
    )
    parser.add_argument("--test", metavar="TEST", help="the recording in question, if there are several enrolments")
    parser.add_argument("--operating-point", metavar="NAME", help="of the model's calibration (default: its first one)")
    parser.add_argument("--prior", type=float, metavar="P", help="your own operating point: probability of one speaker")
    parser.add_argument("--cost-miss", type=float, metavar="C", help="with --prior: of a rejected speaker (default: 1)")
    parser.add_argument(
        "--cost-false-alarm", type=float, metavar="C", help="with --prior: of an accepted impostor (default: 1)"
    )
    parser.add_argument(
        "--threshold", type=float, metavar="X", help="decide by the score instead: 'same speaker' at X or above"
    )
    parser.add_argument(
        "--combine", choices=COMBINE_CHOICES, help="how several enrolments become one (default: their mean)"
    )
    parser.add_argument("--save-profile", metavar=f"FILE{PROFILE_EXTENSION}", help="write the enrolment to a file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = (
        "The decision is made on the log-likelihood ratio (natural logarithm): how many times more likely the\n"
        "recordings are if one speaker made them than if two did. An operating point of the calibration sets the\n"
        "ratio from which on the decision is 'same speaker', by the probability of one speaker before anything is\n"
        "compared and by the costs of the two errors. Recordings with too little speech get no score; the decision\n"
        "is then 'not enough speech'. A saved profile can be used with the same model only. It is biometric data."
    )


def check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before torch is imported; sets `enrolment` and `test`."""
    _check_options(arguments)
    _split_recordings(arguments)
    profiles = [name for name in arguments.enrolment if Path(name).suffix == PROFILE_EXTENSION]
    if profiles and len(arguments.enrolment) > 1:
        raise ValueError(f"Give one profile or recordings, not both, got {', '.join(arguments.enrolment)}.")
    if profiles and arguments.save_profile is not None:
        raise ValueError(f"{profiles[0]} is a profile already; --save-profile takes recordings.")
    if profiles and not Path(profiles[0]).is_file():
        raise ValueError(f"There is no profile {profiles[0]}.")
    if not profiles:
        check_enrolment(arguments.enrolment)
    if arguments.test is not None:
        check_recording(arguments.test, "The test")
    check_model(arguments.model)


def _check_options(arguments: argparse.Namespace) -> None:
    if arguments.threshold is not None and not math.isfinite(arguments.threshold):
        raise ValueError(f"--threshold must be a finite number, got {arguments.threshold}.")
    check_ways_to_decide(arguments)
    if arguments.prior is None and given_options(arguments, "cost_miss", "cost_false_alarm"):
        raise ValueError("--cost-miss and --cost-false-alarm go with --prior.")
    if arguments.save_profile is not None and Path(arguments.save_profile).suffix != PROFILE_EXTENSION:
        raise ValueError(f"--save-profile must end in {PROFILE_EXTENSION}, got {arguments.save_profile}.")


def _split_recordings(arguments: argparse.Namespace) -> None:
    """Set `enrolment`; without --test and --save-profile two recordings are one enrolment and the test."""
    arguments.enrolment = arguments.recordings
    if arguments.test is not None or arguments.save_profile is not None:
        return
    if len(arguments.recordings) != 2:
        raise ValueError(
            f"Got {count_of(len(arguments.recordings), 'recording')}. Give two, `hamspk verify MODEL ENROLMENT TEST`; "
            "or several of the claimed speaker and --test, the recording in question; or --save-profile, to keep an "
            "enrolment."
        )
    arguments.enrolment, arguments.test = arguments.recordings[:1], arguments.recordings[1]


def run(arguments: argparse.Namespace) -> int:
    """Enrol, compare, print."""
    from ..loading.models import load_model

    model = load_model(arguments.model, arguments.device)
    enrolment: Any = arguments.enrolment
    if Path(enrolment[0]).suffix == PROFILE_EXTENSION:
        enrolment = enrolment[0]
    combine = given_options(arguments, "combine")
    if arguments.save_profile is not None:
        enrolment = model.enrol(enrolment, **combine)
        enrolment.save(arguments.save_profile)
        if not arguments.json:
            print(f"profile of {sum(enrolment.seconds):.1f} s of speech in {arguments.save_profile}")
            for warning in enrolment.warnings:
                print(f"warning: {warning}")
    if arguments.test is None:
        return 0
    options = combine | given_options(arguments, "threshold") | _operating_point(arguments)
    answer = model.verify(enrolment, arguments.test, **options)
    print(json.dumps(answer.to_dict(), indent=2) if arguments.json else format_verification(answer, model, arguments))
    return 0


def _operating_point(arguments: argparse.Namespace) -> dict[str, Any]:
    from ..calibration_hamspk import OperatingPoint

    if arguments.prior is None:
        return given_options(arguments, "operating_point")
    costs = given_options(arguments, "cost_miss", "cost_false_alarm")
    return {"operating_point": OperatingPoint("--prior", arguments.prior, **costs)}


def format_verification(answer: "Verification", model: "HamSpkModel", arguments: argparse.Namespace) -> str:
    """Lines for people."""
    names = arguments.enrolment if len(arguments.enrolment) == len(answer.enrolment_speech) else ["(profile)"]
    seconds = answer.enrolment_speech if len(names) == len(answer.enrolment_speech) else [sum(answer.enrolment_speech)]
    measured = [*zip(names, seconds, strict=True), (arguments.test, answer.test_speech)]
    lines = [f"speech     {spoken:.2f} s  {name}" for name, spoken in measured]
    if answer.score is not None:
        lines.append(f"score      {answer.score:.4f} ({model.config.similarity} similarity)")
    if answer.normalised_score is not None:
        lines.append(f"normalised {answer.normalised_score:.4f}")
    if answer.log_likelihood_ratio is not None:
        lines.append(f"ratio      {answer.log_likelihood_ratio:.2f} (log-likelihood ratio)")
    if answer.threshold is not None:
        of = "the score" if answer.operating_point is None else f"the ratio: operating point {answer.operating_point}"
        lines.append(f"threshold  {answer.threshold:.4f} (of {of})")
    lines.append(UNCALIBRATED if answer.decision is None else f"decision   {answer.decision}")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in answer.warnings)])
