"""`hamspk enrol`: make speaker profiles from recordings."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..loading.names import check_model
from .embed import find_audio
from .options import PROFILE_EXTENSION, add_model_arguments, count_of, given_options
from .verify import COMBINE_CHOICES

if TYPE_CHECKING:
    from ..modeling_hamspk import HamSpkModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk enrol`."""
    add_model_arguments(parser)
    parser.add_argument("files", nargs="+", metavar="FILES", help="folders of recordings, one folder per speaker")
    parser.add_argument("--profiles", required=True, metavar="DIR", help="folder for the profiles, NAME.safetensors")
    parser.add_argument(
        "--name",
        help="name of the only speaker; with --name, FILES may be recordings of this speaker as well as folders",
    )
    parser.add_argument(
        "--combine",
        choices=COMBINE_CHOICES,
        help="method that combines the embeddings of several recordings into one (default: mean)",
    )
    parser.epilog = (
        "With --name, all recordings are from that speaker. Without --name, each of FILES is a folder with the\n"
        "recordings of one speaker, and the folder name becomes the name of the speaker.\n"
        "\n"
        "Unreadable recordings are skipped, speakers without enough speech are not enrolled, and both are reported.\n"
        "The exit code is then 1. A profile is biometric data."
    )


def check(arguments: argparse.Namespace) -> None:
    """Check the arguments before torch is imported, and set `arguments.speakers` (recordings of each speaker).

    Raises:
        ValueError: an argument is invalid, or a folder contains no audio.
    """
    if arguments.name is not None:
        if not arguments.name or Path(arguments.name).name != arguments.name:
            raise ValueError(
                "--name must not be empty and must not contain a folder, because it becomes a file name, got "
                f"{arguments.name!r}."
            )
        groups = {arguments.name: arguments.files}
    else:
        groups = _group_by_folder(arguments.files)
    arguments.speakers = {}
    for name, files in groups.items():
        arguments.speakers[name], empty = find_audio(files)
        for folder, reason in empty.items():
            raise ValueError(f"{folder}: {reason}.")
    check_model(arguments.model)


def _group_by_folder(folders: list[str]) -> dict[str, list[str]]:
    groups = {}
    for folder in folders:
        if not Path(folder).is_dir():
            raise ValueError(
                f"{folder} is not a folder, so the name of the speaker is unknown. Give one folder for each speaker, "
                "named after the speaker, or give the name with --name."
            )
        name = Path(folder).resolve().name
        if name in groups:
            raise ValueError(f"Two of the folders are named {name}. Put all recordings of a speaker into one folder.")
        groups[name] = [folder]
    return groups


def run(arguments: argparse.Namespace) -> int:
    """Enrol all speakers with enough speech, write their profiles, and report the others."""
    from ..loading.models import load_model

    speakers = arguments.speakers
    model, folder = load_model(arguments.model, arguments.device), Path(arguments.profiles)
    folder.mkdir(parents=True, exist_ok=True)
    combine = given_options(arguments, "combine")
    used = {name: _enrol_speaker(model, name, files, folder, combine) for name, files in speakers.items()}
    enrolled = sum(count > 0 for count in used.values())
    partly = sum(0 < count < len(speakers[name]) for name, count in used.items())
    summary = f"{count_of(enrolled, 'speaker')} enrolled in {folder}"
    if partly:
        summary += f", {partly} of them with some recordings skipped"
    if enrolled < len(used):
        summary += f"; {count_of(len(used) - enrolled, 'speaker')} not enrolled"
    print(summary)
    return 1 if partly or enrolled < len(used) else 0


def _enrol_speaker(model: "HamSpkModel", name: str, files: list[str], folder: Path, combine: dict) -> int:
    """Enrol a speaker, and return the number of recordings used, which is 0 if there was not enough speech."""
    from ..audio_hamspk import InputError, read_sound

    sounds = []
    for file in files:
        try:
            # `model.enrol` uses the same labels in its warnings.
            label = "The enrolment" if len(files) == 1 else f"Enrolment recording {len(sounds) + 1}"
            sounds.append(read_sound(file, model.config.sampling_rate, label))
        except InputError as error:
            print(f"skipped {file}: {error.reason}", file=sys.stderr)
    try:
        profile = model.enrol(sounds, name=name, **combine)
    except ValueError as error:
        print(f"not enrolled: {name}: {error}", file=sys.stderr)
        return 0
    profile.save(folder / f"{name}{PROFILE_EXTENSION}")
    print(f"{name}: {count_of(profile.utterances, 'recording')}, {sum(profile.seconds):.1f} s of speech")
    for warning in profile.warnings:
        print(f"  warning: {warning}")
    return len(sounds)
