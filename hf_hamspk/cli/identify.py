"""`hamspk identify`: who of the enrolled speakers is this, if anybody?"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from ..calibration_hamspk import OperatingPoint
from ..data.audio import AudioError
from ..verification_hamspk import CANDIDATES, Identification, SpeakerProfile
from .models import add_model_arguments, load_model
from .verify import PROFILE_SUFFIX, read_any

EPILOG = """\
The decision asks first whether the speaker is any of the enrolled, and refuses the unknown; --prior is the probability
of that before listening, so the more are enrolled, the more each of them must be alike. It then asks whether the best
stands out from the runner-up by --margin. A model that nobody calibrated names the best candidates, and decides only
with --threshold, on the score. Recordings that cannot be read are reported, and the exit code is 1. A profile of
another model, or one that was altered, is refused.
"""
NO_DECISION = "no decision: the model is not calibrated (`hamspk calibrate`); --threshold decides on the score"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk identify`."""
    add_model_arguments(parser)
    parser.add_argument("test", nargs="+", metavar="TEST", help="recordings, each of one speaker")
    parser.add_argument(
        "--profiles", required=True, metavar="DIR", help="folder of profiles, from `hamspk enrol` or `verify`"
    )
    parser.add_argument(
        "--operating-point", metavar="NAME", help="of the model's calibration; by default its first one"
    )
    parser.add_argument("--prior", type=float, metavar="P", help="an operating point of your own, with equal costs")
    parser.add_argument("--threshold", type=float, metavar="X", help="decide on the score of the best instead")
    parser.add_argument(
        "--margin",
        type=float,
        metavar="X",
        help="of the best over the runner-up: log-likelihood ratio (default: log 3), or score (default: 0)",
    )
    parser.add_argument(
        "--candidates", type=int, default=CANDIDATES, metavar="K", help="to be named (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Compare each recording with all profiles, decide, print."""
    ways = [
        f"--{w.replace('_', '-')}"
        for w in ("operating_point", "prior", "threshold")
        if getattr(arguments, w) is not None
    ]
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(ways)} are different ways to decide; give one.")
    point = arguments.operating_point if arguments.prior is None else OperatingPoint("--prior", arguments.prior)
    model = load_model(arguments.model, arguments.device)
    identifier = model.identifier(read_profiles(arguments.profiles, model.fingerprint()))
    rate, waveforms = model.config.sampling_rate, {}
    for name in dict.fromkeys(arguments.test):
        try:
            waveforms[name] = read_any(name, rate)
        except AudioError as error:
            print(f"skipped {name}: {error.reason}", file=sys.stderr)
    answers = identifier.identify(
        list(waveforms.values()), rate, point, arguments.threshold, arguments.margin, arguments.candidates
    )
    named = dict(zip(waveforms, answers, strict=True))
    if arguments.json:
        print(json.dumps({name: answer.to_dict() for name, answer in named.items()}, indent=2))
    else:
        for name, answer in named.items():
            print(format_answer(name, answer))
    return 1 if len(waveforms) < len(set(arguments.test)) else 0


def read_profiles(folder: str, fingerprint: str) -> list[SpeakerProfile]:
    """The profiles of a folder, sorted by file name; one without a name gets that of its file.

    Raises:
        ValueError: no such folder, no profile in it, or a file that is no profile, was altered or is of another model.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"There is no folder {folder} (--profiles).")
    files = sorted(path for path in Path(folder).iterdir() if path.suffix == PROFILE_SUFFIX)
    if not files:
        raise ValueError(f"{folder} holds no profile ({PROFILE_SUFFIX}); `hamspk enrol` makes them.")
    profiles = []
    for file in files:
        profile = SpeakerProfile.load(file)
        profile = replace(profile, name=file.stem) if profile.name is None else profile
        profile.check_model(fingerprint)
        profiles.append(profile)
    return profiles


def format_answer(name: str, answer: Identification) -> str:
    """Lines for people."""
    decision = NO_DECISION if answer.decision is None else answer.decision
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
