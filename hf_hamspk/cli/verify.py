"""`hamspk verify`: are these recordings of the same speaker?"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..calibration_hamspk import OperatingPoint
from ..data.audio import read_sound, resample
from ..modeling_hamspk import HamSpkModel
from ..verification_hamspk import COMBINATIONS, SpeakerProfile, Verification
from .models import add_model_arguments, load_model

PROFILE_SUFFIX = ".safetensors"
NO_DECISION = (
    "No decision: this model is not calibrated. `hamspk calibrate MODEL PAIRS --audio-root DIR` makes decisions out of "
    "its scores, by pairs of recordings of your own; --threshold decides on the bare score."
)
EPILOG = """\
The decision is made on the log-likelihood ratio (natural logarithm): how many times likelier the recordings are of one
speaker than of two. An operating point of the calibration says from which ratio on it is "same speaker", by the
probability of that before listening and the costs of the two errors. Recordings with too little speech get no score and
no decision, but "not enough speech"; --save-profile keeps an enrolment for later, as a file that only the same model
takes. A profile is biometric data.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk verify`."""
    add_model_arguments(parser)
    parser.add_argument(
        "enrolment", nargs="+", metavar="ENROLMENT", help="recordings of the claimed speaker, or one saved profile"
    )
    parser.add_argument("--test", metavar="TEST", help="the recording in question; needless with --save-profile")
    parser.add_argument(
        "--operating-point", metavar="NAME", help="of the model's calibration; by default its first one"
    )
    parser.add_argument("--prior", type=float, metavar="P", help="an operating point of your own: probability before")
    parser.add_argument("--cost-miss", type=float, metavar="C", help="of refusing the same speaker (default: 1)")
    parser.add_argument("--cost-false-alarm", type=float, metavar="C", help="of accepting another one (default: 1)")
    parser.add_argument(
        "--threshold", type=float, metavar="X", help="decide on the score instead, 'same speaker' at X or above"
    )
    parser.add_argument(
        "--combine", choices=COMBINATIONS, default="mean", help="of several recordings (default: %(default)s)"
    )
    parser.add_argument("--save-profile", metavar=f"FILE{PROFILE_SUFFIX}", help="keep the enrolment")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Enrol, compare, print."""
    _check(arguments)
    model = load_model(arguments.model, arguments.device)
    rate = model.config.sampling_rate
    verifier = model.verifier()
    enrolment = _enrolment(arguments.enrolment, verifier.fingerprint, rate)
    if arguments.save_profile is not None:
        if isinstance(enrolment, SpeakerProfile):
            raise ValueError(f"{arguments.enrolment[0]} is a profile already; --save-profile takes recordings.")
        enrolment = verifier.enrol(enrolment, rate, arguments.combine)
        enrolment.save(arguments.save_profile)
        if not arguments.json:
            warnings = "".join(f"\nwarning: {warning}" for warning in enrolment.warnings)
            print(f"profile of {sum(enrolment.seconds):.1f} s of speech in {arguments.save_profile}{warnings}")
    if arguments.test is None:
        return 0
    point = arguments.operating_point if arguments.prior is None else _own_point(arguments)
    answer = verifier.verify(
        enrolment, read_any(arguments.test, rate), rate, point, arguments.threshold, arguments.combine
    )
    print(json.dumps(answer.to_dict(), indent=2) if arguments.json else format_answer(answer, model, arguments))
    return 0


def read_any(name: str, sampling_rate: int) -> np.ndarray:
    """A recording at a sampling rate, however short or silent: the verifier says what it is worth.

    Raises:
        AudioError: it cannot be read, or holds NaN or infinite samples.
    """
    sound = read_sound(name, min_duration=0.0, silence=True)
    return resample(sound.waveform, sound.sampling_rate, sampling_rate)


def _enrolment(names: Sequence[str], fingerprint: str, rate: int) -> list[np.ndarray] | SpeakerProfile:
    profiles = [name for name in names if Path(name).suffix == PROFILE_SUFFIX]
    if not profiles:
        return [read_any(name, rate) for name in names]
    if len(names) > 1:
        raise ValueError(f"Give one profile or recordings, not both, got {', '.join(names)}.")
    return SpeakerProfile.load(names[0], fingerprint)


def _own_point(arguments: argparse.Namespace) -> OperatingPoint:
    costs = (arguments.cost_miss, arguments.cost_false_alarm)
    return OperatingPoint("--prior", arguments.prior, *(1.0 if cost is None else cost for cost in costs))


def _check(arguments: argparse.Namespace) -> None:
    if arguments.test is None and arguments.save_profile is None:
        raise ValueError("Give --test, the recording in question, or --save-profile, to keep the enrolment.")
    if arguments.threshold is not None and not math.isfinite(arguments.threshold):
        raise ValueError(f"--threshold must be a finite number, got {arguments.threshold}.")
    ways = [f"--{name.replace('_', '-')}" for name in ("operating_point", "prior", "threshold")]
    given = [way for way in ways if getattr(arguments, way[2:].replace("-", "_")) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are different ways to decide; give one.")
    if arguments.prior is None and (arguments.cost_miss is not None or arguments.cost_false_alarm is not None):
        raise ValueError("--cost-miss and --cost-false-alarm go with --prior.")
    if arguments.save_profile is not None and Path(arguments.save_profile).suffix != PROFILE_SUFFIX:
        raise ValueError(f"--save-profile must end in {PROFILE_SUFFIX}, got {arguments.save_profile}.")


def format_answer(answer: Verification, model: HamSpkModel, arguments: argparse.Namespace) -> str:
    """Lines for people."""
    names = arguments.enrolment if len(arguments.enrolment) == len(answer.enrolment_speech) else ["(profile)"]
    seconds = answer.enrolment_speech if len(names) == len(answer.enrolment_speech) else [sum(answer.enrolment_speech)]
    heard = [*zip(names, seconds, strict=True), (arguments.test, answer.test_speech)]
    lines = [f"speech     {spoken:.2f} s  {name}" for name, spoken in heard]
    if answer.score is not None:
        lines.append(f"score      {answer.score:.4f} ({model.config.similarity} similarity)")
    if answer.normalised_score is not None:
        lines.append(f"normalised {answer.normalised_score:.4f}")
    if answer.log_likelihood_ratio is not None:
        lines.append(f"ratio      {answer.log_likelihood_ratio:.2f} (log-likelihood ratio)")
    if answer.threshold is not None:
        of = "the score" if answer.operating_point is None else f"the ratio: operating point {answer.operating_point}"
        lines.append(f"threshold  {answer.threshold:.4f} (of {of})")
    lines.append(NO_DECISION if answer.decision is None else f"decision   {answer.decision}")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in answer.warnings)])
