"""`hamspk enrol`: speaker profiles of recordings."""

import argparse
import sys
from pathlib import Path

from ..data.audio import AudioError
from ..verification_hamspk import COMBINATIONS, SpeakerVerifier
from .embed import find_audio
from .models import add_model_arguments, load_model
from .verify import PROFILE_SUFFIX, read_any

EPILOG = """\
With --name, all recordings are of that speaker; without, each FILES is a folder with the recordings of one speaker and
is named like the speaker. Speakers that cannot be enrolled are reported and left out, and the exit code is 1; so are
recordings that cannot be read. A profile is biometric data.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk enrol`."""
    add_model_arguments(parser)
    parser.add_argument("files", nargs="+", metavar="FILES", help="folders of recordings, one for each speaker")
    parser.add_argument("--profiles", required=True, metavar="DIR", help="folder for the profiles, NAME.safetensors")
    parser.add_argument("--name", help="of the one speaker of all FILES, which may then be recordings")
    parser.add_argument(
        "--combine", choices=COMBINATIONS, default="mean", help="of several recordings (default: %(default)s)"
    )
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Enrol whom one can and report the rest."""
    speakers = _speakers(arguments)
    model = load_model(arguments.model, arguments.device)
    verifier, folder = model.verifier(), Path(arguments.profiles)
    folder.mkdir(parents=True, exist_ok=True)
    used = {name: _enrol(verifier, name, files, folder, arguments.combine) for name, files in speakers.items()}
    enrolled = sum(count > 0 for count in used.values())
    partly = sum(0 < count < len(speakers[name]) for name, count in used.items())
    print(f"{enrolled} speakers enrolled in {folder} ({partly} not from all recordings), {len(used) - enrolled} not")
    return 1 if partly or enrolled < len(used) else 0


def _enrol(verifier: SpeakerVerifier, name: str, files: list[str], folder: Path, combine: str) -> int:
    """Enrol a speaker; from how many recordings: 0 where there was not enough speech."""
    rate, waveforms = verifier.model.config.sampling_rate, []
    for file in files:
        try:
            waveforms.append(read_any(file, rate))
        except AudioError as error:
            print(f"skipped {file}: {error.reason}", file=sys.stderr)
    try:
        profile = verifier.enrol(waveforms, rate, combine, name)
    except ValueError as error:
        print(f"not enrolled: {name}: {error}", file=sys.stderr)
        return 0
    profile.save(folder / f"{name}{PROFILE_SUFFIX}")
    print(f"{name}: {profile.utterances} recordings, {sum(profile.seconds):.1f} s of speech")
    for warning in profile.warnings:
        print(f"  warning: {warning}")
    return len(waveforms)


def _speakers(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Name to recordings."""
    if arguments.name is not None:
        if not arguments.name or Path(arguments.name).name != arguments.name:
            raise ValueError(f"--name becomes the name of a file, so it holds no folder, got {arguments.name!r}.")
        groups = {arguments.name: arguments.files}
    else:
        files = [file for file in arguments.files if not Path(file).is_dir()]
        if files:
            raise ValueError(
                f"{files[0]} is no folder: whose recording is it? Give folders named like speakers, or --name."
            )
        groups = {}
        for folder in arguments.files:
            name = Path(folder).resolve().name
            if name in groups:
                raise ValueError(f"Two folders are named {name}: a speaker is enrolled once, from all recordings.")
            groups[name] = [folder]
    found = {name: find_audio(given) for name, given in groups.items()}
    for _, empty in found.values():
        for folder, reason in empty.items():
            raise ValueError(f"{folder}: {reason}.")
    return {name: files for name, (files, _) in found.items()}
