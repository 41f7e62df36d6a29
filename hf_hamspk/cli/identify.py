"""`hamspk identify`: which of the enrolled speakers is this, if any?"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..loading.names import check_model
from .options import PROFILE_EXTENSION, add_model_arguments, check_folder, check_ways_to_decide, given_options

if TYPE_CHECKING:
    from ..verification_hamspk import Identification, SpeakerProfile

DECISION_NEEDS = "no decision: the model is not calibrated (`hamspk calibrate`); --threshold decides by the score"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk identify`."""
    add_model_arguments(parser)
    parser.add_argument("test", nargs="+", metavar="TEST", help="recordings, each of one speaker")
    parser.add_argument(
        "--profiles", required=True, metavar="DIR", help="folder of profiles, from `hamspk enrol` or `hamspk verify`"
    )
    parser.add_argument("--operating-point", metavar="NAME", help="of the model's calibration (default: its first one)")
    parser.add_argument(
        "--prior",
        type=float,
        metavar="P",
        help="your own operating point, with equal costs: probability that the speaker is enrolled",
    )
    parser.add_argument("--threshold", type=float, metavar="X", help="decide by the score of the best instead")
    parser.add_argument(
        "--margin",
        type=float,
        metavar="X",
        help="of the best over the second best: log-likelihood ratio (default: log 3), or score (default: 0)",
    )
    parser.add_argument("--candidates", type=int, metavar="K", help="how many are shown (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = (
        "Two questions decide. Is the speaker one of the enrolled? --prior is the probability of that before anything\n"
        "is compared; the more speakers are enrolled, the closer the match with one of them must be. If not, the\n"
        "answer is 'unknown speaker'. Is the best match clearly the best? If it is not ahead of the second best by\n"
        "--margin, the answer is 'ambiguous'. Without a calibration, the best candidates are shown, and only\n"
        "--threshold decides. Recordings that cannot be read are reported, and the exit code is 1. Profiles of\n"
        "another model and altered ones are refused."
    )


def check(arguments: argparse.Namespace) -> None:
    """Refuse what can be refused before torch is imported."""
    check_ways_to_decide(arguments)
    find_profiles(arguments.profiles)
    check_model(arguments.model)


def run(arguments: argparse.Namespace) -> int:
    """Compare each recording with all profiles, decide, print."""
    from ..audio_hamspk import InputError, read_sound
    from ..calibration_hamspk import OperatingPoint
    from ..loading.models import load_model

    options = given_options(arguments, "operating_point", "threshold", "margin", "candidates")
    if arguments.prior is not None:
        options["operating_point"] = OperatingPoint("--prior", arguments.prior)
    model = load_model(arguments.model, arguments.device)
    identifier = model.identifier(read_profiles(arguments.profiles, model.fingerprint()))
    sounds = {}
    for name in dict.fromkeys(arguments.test):
        try:
            sounds[name] = read_sound(name, model.config.sampling_rate, "The recording")
        except InputError as error:
            print(f"skipped {name}: {error.reason}", file=sys.stderr)
    answers = identifier.identify(list(sounds.values()), **options)
    named = dict(zip(sounds, answers, strict=True))
    if arguments.json:
        print(json.dumps({name: answer.to_dict() for name, answer in named.items()}, indent=2))
    else:
        for name, answer in named.items():
            print(format_identification(name, answer))
    return 1 if len(sounds) < len(set(arguments.test)) else 0


def find_profiles(folder: str) -> list[Path]:
    """The files of the profiles in a folder, sorted.

    Raises:
        ValueError: no such folder, or no profile in it.
    """
    check_folder(folder, "--profiles")
    files = sorted(path for path in Path(folder).iterdir() if path.suffix == PROFILE_EXTENSION)
    if not files:
        raise ValueError(f"{folder} holds no profile ({PROFILE_EXTENSION}); `hamspk enrol` makes them.")
    return files


def read_profiles(folder: str, fingerprint: str) -> list["SpeakerProfile"]:
    """The profiles of a folder, sorted by file name; one without a name gets that of its file.

    Raises:
        ValueError: no such folder, no profile in it, or a file that is no profile, was altered or is of another model.
    """
    from ..verification_hamspk import SpeakerProfile

    profiles = []
    for file in find_profiles(folder):
        profile = SpeakerProfile.load(file)
        profile = replace(profile, name=file.stem) if profile.name is None else profile
        profile.check_model(fingerprint)
        profiles.append(profile)
    return profiles


def format_identification(name: str, answer: "Identification") -> str:
    """Lines for people."""
    decision = DECISION_NEEDS if answer.decision is None else answer.decision
    if answer.speaker is not None:
        decision = f"{decision}: {answer.speaker}"
    lines = [f"{name}: {decision}"]
    if answer.enrolled_ratio is not None:
        against = "" if answer.operating_point is None else f" (threshold {answer.threshold:.2f})"
        lines.append(
            f"  one of the {answer.enrolled} enrolled: log-likelihood ratio {answer.enrolled_ratio:.2f}{against}"
        )
    for candidate in answer.candidates:
        ratio = "" if candidate.log_likelihood_ratio is None else f"  ratio {candidate.log_likelihood_ratio:8.2f}"
        lines.append(f"  score {candidate.score:8.4f}{ratio}  {candidate.name}")
    return "\n".join([*lines, *(f"  warning: {warning}" for warning in answer.warnings)])
