"""`hamspk verify`: decide whether recordings are of the same speaker."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..folders.recognising import check_replaceable, is_profile_file
from ..loading.names import check_model
from .options import (
    PROFILE_EXTENSION,
    add_channel_argument,
    add_model_arguments,
    add_voices_argument,
    check_enrolment,
    check_operating_point,
    check_recording,
    check_ways_to_decide,
    count_of,
    given_options,
    voices_option,
)
from .profiles import add_replace_argument, save_profile

if TYPE_CHECKING:
    from ..modeling_hamspk import HamSpkModel
    from ..verification_hamspk import Verification

# Copies of values of the package, because importing the originals would import torch. A test compares them.
COMBINE_CHOICES = ("mean", "length_weighted", "barycentre")
UNCALIBRATED = (
    "No decision: this model is not calibrated. `hamspk calibrate MODEL PAIRS --audio-root DIR` calibrates it with "
    "pairs of your own recordings. Alternatively, set a threshold on the score with --threshold."
)
_VERIFY_USAGE = (
    "hamspk verify MODEL ENROLMENT TEST [options]\n"
    "       hamspk verify MODEL ENROLMENT [ENROLMENT ...] --test TEST [options]"
)
_VERIFY_EPILOG = (
    "The decision uses the log-likelihood ratio. The likelihood ratio is the probability of the recordings if\n"
    "they are from the same speaker, divided by their probability if they are from different speakers. The\n"
    "logarithm is natural. The decision is 'same speaker' if the log-likelihood ratio reaches the threshold of the\n"
    "operating point. That threshold follows from the prior probability of the same speaker and from the costs of\n"
    "the two errors.\n"
    "\n"
    "Recordings with too little speech get no score, and the decision is 'not enough speech'. With --voices refuse,\n"
    "the decision about a recording in which two people speak at once is 'several voices'. A speaker profile works\n"
    "only with the model that made it. It is biometric data."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk verify`."""
    parser.usage = _VERIFY_USAGE
    add_model_arguments(parser)
    parser.add_argument(
        "recordings",
        nargs="+",
        metavar="RECORDING",
        help="recording of the claimed speaker (or a saved profile), followed by the recording to test; with --test or "
        "--save-profile, only the recordings of the claimed speaker",
    )
    parser.add_argument("--test", metavar="TEST", help="recording to test, if there are several enrolment recordings")
    parser.add_argument(
        "--operating-point", metavar="NAME", help="operating point of the model's calibration (default: the first)"
    )
    parser.add_argument(
        "--prior",
        type=float,
        metavar="P",
        help="prior probability that the recordings are of the same speaker; used with the costs instead of an "
        "operating point",
    )
    parser.add_argument(
        "--cost-miss",
        type=float,
        metavar="C",
        help="with --prior, cost of rejecting a recording of the claimed speaker (default: 1)",
    )
    parser.add_argument(
        "--cost-false-alarm",
        type=float,
        metavar="C",
        help="with --prior, cost of accepting a recording of another speaker (default: 1)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="X",
        help="minimum score for 'same speaker', instead of an operating point; needs no calibration",
    )
    parser.add_argument(
        "--combine",
        choices=COMBINE_CHOICES,
        help="method that combines the embeddings of several enrolment recordings (default: mean)",
    )
    add_channel_argument(parser)
    add_voices_argument(parser)
    parser.add_argument("--save-profile", metavar=f"FILE{PROFILE_EXTENSION}", help="file in which to save the profile")
    add_replace_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.epilog = _VERIFY_EPILOG


def check(arguments: argparse.Namespace) -> None:
    """Check the arguments before torch is imported, and set `arguments.enrolment` and `arguments.test`.

    Raises:
        ValueError: an argument is invalid, options contradict each other, or an input does not exist.
    """
    _check_options(arguments)
    _split_recordings(arguments)
    profiles = [name for name in arguments.enrolment if Path(name).suffix == PROFILE_EXTENSION]
    if profiles and len(arguments.enrolment) > 1:
        raise ValueError(f"The enrolment must be one profile or only recordings, got {', '.join(arguments.enrolment)}.")
    if profiles and arguments.save_profile is not None:
        raise ValueError(f"--save-profile needs recordings, but {profiles[0]} is already a profile.")
    if profiles and not Path(profiles[0]).is_file():
        raise ValueError(f"Profile not found: {profiles[0]}.")
    if not profiles:
        check_enrolment(arguments.enrolment)
    if arguments.test is not None:
        check_recording(arguments.test, "The test")
    check_model(arguments.model)
    check_operating_point(arguments)


def _check_options(arguments: argparse.Namespace) -> None:
    check_ways_to_decide(arguments)
    if arguments.prior is None and given_options(arguments, "cost_miss", "cost_false_alarm"):
        raise ValueError("--cost-miss and --cost-false-alarm need --prior.")
    if arguments.save_profile is not None:
        if Path(arguments.save_profile).suffix != PROFILE_EXTENSION:
            raise ValueError(f"--save-profile must end in {PROFILE_EXTENSION}, got {arguments.save_profile}.")
        check_replaceable(Path(arguments.save_profile), is_profile_file, "a speaker profile")


def _split_recordings(arguments: argparse.Namespace) -> None:
    """Set `arguments.enrolment`; without --test and --save-profile, also set `arguments.test` to the last recording."""
    arguments.enrolment = arguments.recordings
    if arguments.test is not None or arguments.save_profile is not None:
        return
    if len(arguments.recordings) != 2:
        raise ValueError(
            f"Expected two recordings, got {count_of(len(arguments.recordings), 'recording')}: `hamspk verify MODEL "
            "ENROLMENT TEST`. For several enrolment recordings, give the recording to test with --test. To save a "
            "speaker profile, give --save-profile."
        )
    arguments.enrolment, arguments.test = arguments.recordings[:1], arguments.recordings[1]


def run(arguments: argparse.Namespace) -> int:
    """Enrol the claimed speaker, compare the test recording, and print the answer."""
    from ..loading.models import load_model
    from ..verification_hamspk import SpeakerProfile

    model = load_model(arguments.model, arguments.device)
    enrolment: Any = arguments.enrolment
    remarks: list[str] = []
    if Path(enrolment[0]).suffix == PROFILE_EXTENSION:
        enrolment = SpeakerProfile.load(enrolment[0])
        if enrolment.name not in (None, Path(arguments.enrolment[0]).stem):
            remarks = [f"{arguments.enrolment[0]} contains the profile of {enrolment.name!r}."]
    options = given_options(arguments, "combine", "channel") | voices_option(arguments)
    if arguments.save_profile is not None:
        enrolment = model.enrol(enrolment, **options)
        save_profile(enrolment, Path(arguments.save_profile), arguments.replace)
        if not arguments.json:
            print(f"profile written to {arguments.save_profile}, from {sum(enrolment.seconds):.1f} s of speech")
            for warning in enrolment.warnings:
                print(f"warning: {warning}")
    if arguments.test is None:
        return 0
    options |= given_options(arguments, "threshold") | _operating_point(arguments)
    answer = model.verify(enrolment, arguments.test, **options)
    answer.warnings[:0] = remarks
    print(json.dumps(answer.to_dict(), indent=2) if arguments.json else format_verification(answer, model, arguments))
    return 0


def _operating_point(arguments: argparse.Namespace) -> dict[str, Any]:
    from ..calibration_hamspk import OperatingPoint

    if arguments.prior is None:
        return given_options(arguments, "operating_point")
    costs = given_options(arguments, "cost_miss", "cost_false_alarm")
    return {"operating_point": OperatingPoint("--prior", arguments.prior, **costs)}


def format_verification(answer: "Verification", model: "HamSpkModel", arguments: argparse.Namespace) -> str:
    """Format the answer and its warnings for printing."""
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
