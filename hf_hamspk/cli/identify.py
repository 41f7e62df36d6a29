"""`hamspk identify`: find out which of the enrolled speakers, if any, is speaking in a recording."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..folders.addresses import is_store
from ..loading.names import check_model
from .options import (
    PROFILE_EXTENSION,
    add_channel_argument,
    add_model_arguments,
    add_voices_argument,
    check_folder,
    check_operating_point,
    check_ways_to_decide,
    given_options,
    voices_option,
)

if TYPE_CHECKING:
    from ..modeling_hamspk import HamSpkModel
    from ..verification_hamspk import Identification, SpeakerProfile

DECISION_NEEDS = (
    "no decision: the model is not calibrated. Calibrate it with `hamspk calibrate`, or set a threshold on the score "
    "with --threshold"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk identify`."""
    add_model_arguments(parser)
    parser.add_argument(
        "test", nargs="+", metavar="TEST", help="recordings to identify; each must contain only one speaker"
    )
    parser.add_argument(
        "--profiles",
        required=True,
        metavar="DIR|URL",
        help="folder of profiles, written by `hamspk enrol` or `hamspk verify --save-profile`, or a database of "
        "`hamspk enrol`: lancedb://FOLDER or postgresql://USER@HOST/NAME",
    )
    parser.add_argument(
        "--operating-point", metavar="NAME", help="operating point of the model's calibration (default: the first)"
    )
    parser.add_argument(
        "--prior",
        type=float,
        metavar="P",
        help="prior probability that the speaker is enrolled; used with equal costs instead of an operating point",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="X",
        help="minimum score of the best candidate, instead of an operating point; needs no calibration",
    )
    parser.add_argument(
        "--margin",
        type=float,
        metavar="X",
        help="minimum lead of the best candidate over the second best, as a difference of log-likelihood ratios "
        "(default: log 3) or, with --threshold, of scores (default: 0)",
    )
    parser.add_argument("--candidates", type=int, metavar="K", help="number of candidates to print (default: 5)")
    add_channel_argument(parser)
    add_voices_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the answers as JSON")
    parser.epilog = (
        "The decision has two steps. The first step decides whether the speaker is enrolled at all. --prior is the\n"
        "probability, before the comparison, that the speaker is enrolled. The more speakers are enrolled, the\n"
        "closer the match must be. If no match is close enough, the answer is 'unknown speaker'. The second step\n"
        "compares the two best candidates. If the best candidate does not lead by at least --margin, the answer is\n"
        "'ambiguous'.\n"
        "\n"
        "If the model is not calibrated, the best candidates are printed, and a decision needs --threshold.\n"
        "Unreadable recordings are skipped and reported, and the exit code is then 1. Altered profiles and profiles\n"
        "of another model are rejected."
    )


def check(arguments: argparse.Namespace) -> None:
    """Check the options, the profiles and the model before torch is imported.

    Raises:
        ValueError: options contradict each other, or the profiles or the model do not exist.
    """
    check_ways_to_decide(arguments)
    if not is_store(arguments.profiles):
        find_profiles(arguments.profiles)
    check_model(arguments.model)
    check_operating_point(arguments)


def run(arguments: argparse.Namespace) -> int:
    """Compare each recording with all profiles, and print the decisions."""
    from ..audio_hamspk import InputError, read_sound
    from ..calibration_hamspk import OperatingPoint
    from ..loading.models import load_model

    options = given_options(arguments, "operating_point", "threshold", "margin", "candidates")
    if arguments.prior is not None:
        options["operating_point"] = OperatingPoint("--prior", arguments.prior)
    model = load_model(arguments.model, arguments.device)
    identify = identify_among(model, arguments.profiles, voices_option(arguments))
    sounds, rate = {}, model.config.sampling_rate
    for name in dict.fromkeys(arguments.test):
        try:
            sounds[name] = read_sound(name, rate, "The recording", channel=arguments.channel)
        except InputError as error:
            print(f"skipped {name}: {error.reason}", file=sys.stderr)
    named = dict(zip(sounds, identify(list(sounds.values()), **options), strict=True))
    if arguments.json:
        print(json.dumps({name: answer.to_dict() for name, answer in named.items()}, indent=2))
    else:
        for name, answer in named.items():
            print(format_identification(name, answer))
    return 1 if len(sounds) < len(set(arguments.test)) else 0


def identify_among(model: "HamSpkModel", address: str, voices: dict[str, Any]) -> Callable[..., list["Identification"]]:
    """Return the function that identifies recordings among the profiles of a folder or a database.

    Args:
        model: model that made the profiles.
        address: folder or address of a database.
        voices: argument `check_voices` of `model.identifier`, or empty.

    Raises:
        ValueError: there are no profiles, they cannot be read, or another model made them.
    """
    if not is_store(address):
        return model.identifier(read_profiles(address, model.fingerprint()), **voices).identify
    from ..search import SpeakerStore

    store = SpeakerStore.open(address, model)
    return lambda recordings, **options: [store.identify(one, **voices, **options) for one in recordings]


def find_profiles(folder: str) -> list[Path]:
    """Return the profile files in a folder, sorted by name.

    Raises:
        ValueError: the folder does not exist, or contains no profile.
    """
    check_folder(folder, "--profiles")
    files = sorted(path for path in Path(folder).iterdir() if path.suffix == PROFILE_EXTENSION)
    if not files:
        raise ValueError(f"No profile ({PROFILE_EXTENSION}) in {folder}. Make profiles with `hamspk enrol`.")
    return files


def read_profiles(folder: str, fingerprint: str) -> list["SpeakerProfile"]:
    """Read the profiles in a folder, sorted by file name; a profile without a name is named after its file.

    Raises:
        ValueError: the folder does not exist or contains no profile, or a file is not a profile, was altered, or
            belongs to another model.
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
    """Format the decision, the candidates and the warnings for printing."""
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
