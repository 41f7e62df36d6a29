"""`hamspk enrol`: make speaker profiles from recordings."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.corpora import base_folder, is_table, read_table
from ..files.recordings import find_audio
from ..files.same import find_shared
from ..files.tables import clean_speaker, split_segment
from ..folders.recognising import check_replaceable, is_profile_file
from ..loading.names import check_model
from .embed import print_contents
from .options import (
    PROFILE_EXTENSION,
    add_channel_argument,
    add_model_arguments,
    add_table_arguments,
    count_of,
    given_options,
    table_columns,
)
from .profiles import ProfileFolder, add_replace_argument
from .verify import COMBINE_CHOICES

if TYPE_CHECKING:
    from ..audio_hamspk import Channel
    from ..modeling_hamspk import HamSpkModel

SPEAKERS, SESSIONS = "speakers", "sessions"
SUBFOLDER_CHOICES = (SPEAKERS, SESSIONS)
# Largest number of sub-folders that an error names.
SUBFOLDERS_NAMED = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk enrol`."""
    add_model_arguments(parser)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILES",
        help="folders of recordings, one folder per speaker; or one list of recordings: a CSV file with the columns "
        "path and speaker_id, and perhaps start and stop; JSON lines as of NeMo; or a Kaldi folder",
    )
    parser.add_argument("--profiles", required=True, metavar="DIR", help="folder for the profiles, NAME.safetensors")
    parser.add_argument(
        "--name",
        help="name of the only speaker; with --name, FILES may be recordings of this speaker as well as folders",
    )
    parser.add_argument(
        "--subfolders",
        choices=SUBFOLDER_CHOICES,
        help="meaning of the sub-folders of a folder: speakers makes a profile for each sub-folder, sessions one "
        "profile of all of them (default: an error if there are several)",
    )
    parser.add_argument(
        "--audio-root", metavar="DIR", help="base folder of the paths in a list (default: the folder of the list)"
    )
    add_table_arguments(parser)
    parser.add_argument(
        "--combine",
        choices=COMBINE_CHOICES,
        help="method that combines the embeddings of several recordings into one (default: mean)",
    )
    add_channel_argument(parser)
    add_replace_argument(parser)
    parser.epilog = (
        "With --name, all recordings are from that speaker. Without --name, each of FILES is a folder with the\n"
        "recordings of one speaker, and the folder name becomes the name of the speaker. A list of recordings names\n"
        "the speaker of each recording, and its start and end times select segments in seconds.\n"
        "\n"
        "Unreadable recordings are skipped, speakers without enough speech are not enrolled, and both are reported.\n"
        "A profile of other recordings is replaced only with --replace. The exit code is 1 if a speaker was not\n"
        "enrolled. A profile is biometric data."
    )


def check(arguments: argparse.Namespace) -> None:
    """Check the arguments before torch is imported, and set `arguments.speakers` (recordings of each speaker).

    Raises:
        ValueError: an argument is invalid, a folder contains no audio, or a recording occurs under two speakers.
    """
    if arguments.name is not None:
        _check_name(arguments.name, "--name")
        arguments.speakers = {arguments.name: _files_in(arguments.files)}
    elif len(arguments.files) == 1 and is_table(arguments.files[0]):
        arguments.speakers = _group_by_table(arguments)
    else:
        arguments.speakers = _group_by_folder(arguments.files, arguments.subfolders)
    for name in arguments.speakers:
        check_replaceable(Path(arguments.profiles, f"{name}{PROFILE_EXTENSION}"), is_profile_file, "a speaker profile")
    _check_shared(arguments.speakers)
    check_model(arguments.model)


def _check_shared(speakers: dict[str, list[str]]) -> None:
    files = [file for own in speakers.values() for file in own]
    shared = find_shared(files, [name for name, own in speakers.items() for _ in own])
    if shared:
        more = "" if len(shared) == 1 else f" ({len(shared) - 1} more recordings occur under two speakers)"
        raise ValueError(f"{shared[0]}{more}. Give each recording to one speaker only.")


def _check_name(name: str, place: str) -> None:
    if not name or Path(name).name != name:
        raise ValueError(
            f"{place} must not be empty and must not contain a folder, because it becomes a file name, got {name!r}."
        )


def _files_in(given: list[str]) -> list[str]:
    """Return the recordings in files and folders, and report what was not read."""
    contents, missing = find_audio(given)
    for name, reason in missing.items():
        if reason:
            raise ValueError(f"{name}: {reason}.")
    print_contents(contents)
    return contents.files


def _group_by_table(arguments: argparse.Namespace) -> dict[str, list[str]]:
    table = Path(arguments.files[0])
    if not table.exists():
        raise ValueError(f"File not found: {table}. Expected a CSV file with the columns path and speaker_id.")
    names, speakers = read_table(table, **table_columns(arguments))
    root = base_folder(table) if arguments.audio_root is None else Path(arguments.audio_root)
    groups: dict[str, list[str]] = {}
    for name, speaker in zip(names, speakers, strict=True):
        _check_name(speaker, f"The name of a speaker in {table}")
        groups.setdefault(speaker, []).append(str(root / name))
    return groups


def _group_by_folder(folders: list[str], subfolders: str | None) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for folder in folders:
        if not Path(folder).is_dir():
            raise ValueError(
                f"{folder} is not a folder, so the name of the speaker is unknown. Give one folder for each speaker, "
                "named after the speaker, or give the name with --name."
            )
        for name, files in _split_folder(folder, subfolders).items():
            if name in groups:
                raise ValueError(
                    f"Two of the folders are named {name}. Put all recordings of a speaker into one folder."
                )
            groups[name] = files
    return groups


def _split_folder(folder: str, subfolders: str | None) -> dict[str, list[str]]:
    """Return the recordings of each speaker in a folder.

    Raises:
        ValueError: it is not clear whether the sub-folders are speakers, or recordings lie beside them.
    """
    files = _files_in([folder])
    places: dict[str, list[str]] = {}
    for file in files:
        within = Path(file).relative_to(folder).parts
        places.setdefault(within[0] if len(within) > 1 else "", []).append(file)
    if subfolders == SPEAKERS:
        if "" in places:
            raise ValueError(
                f"{places[''][0]} lies in no sub-folder of {folder}, so its speaker is unknown. Move it into the "
                "sub-folder of its speaker."
            )
        groups = {clean_speaker(name): own for name, own in places.items()}
        if len(groups) < len(places):
            raise ValueError(
                f"Two sub-folders of {folder} have names that differ only in blanks or in the encoding of characters. "
                "Rename one of them."
            )
        return groups
    if subfolders is None and len(places) > 1:
        names = sorted(name for name in places if name)
        named = ", ".join(names[:SUBFOLDERS_NAMED]) + (", ..." if len(names) > SUBFOLDERS_NAMED else "")
        raise ValueError(
            f"{folder} has recordings in several places (sub-folders {named}). If each sub-folder is a speaker, add "
            "`--subfolders speakers` for one profile each. If all recordings are from one speaker, add `--subfolders "
            "sessions`."
        )
    return {clean_speaker(Path(folder).resolve().name): files}


def run(arguments: argparse.Namespace) -> int:
    """Enrol all speakers with enough speech, write their profiles, and report the others."""
    from ..loading.models import load_model

    speakers = arguments.speakers
    model = load_model(arguments.model, arguments.device)
    folder = ProfileFolder(Path(arguments.profiles), arguments.replace)
    options = given_options(arguments, "combine")
    used = {
        name: _enrol_speaker(model, name, files, folder, arguments.channel, options) for name, files in speakers.items()
    }
    enrolled = sum(count > 0 for count in used.values())
    partly = sum(0 < count < len(speakers[name]) for name, count in used.items())
    summary = f"{count_of(enrolled, 'speaker')} enrolled in {arguments.profiles}"
    if partly:
        summary += f", {partly} of them with some recordings skipped"
    if enrolled < len(used):
        summary += f"; {count_of(len(used) - enrolled, 'speaker')} not enrolled"
    print(summary)
    return 1 if enrolled < len(used) else 0


def _enrol_speaker(
    model: "HamSpkModel", name: str, files: list[str], folder: ProfileFolder, channel: "Channel", options: dict
) -> int:
    """Enrol a speaker, and return the number of recordings used, which is 0 if the speaker was not enrolled."""
    from ..audio_hamspk import InputError, read_sound
    from ..data.audio import read_utterance

    sounds, rate = [], model.config.sampling_rate
    for file in files:
        try:
            # `model.enrol` uses the same labels in its warnings.
            label = "The enrolment" if len(files) == 1 else f"Enrolment recording {len(sounds) + 1}"
            if split_segment(file)[1] is None:
                # Of several recordings, a silent, short or truncated one is left out instead of averaged.
                sounds.append(read_sound(file, rate, label, strict=len(files) > 1, channel=channel))
            else:
                sounds.append(read_utterance(file, rate, label, channel=channel))
        except InputError as error:
            print(f"skipped {file}: {error.reason}", file=sys.stderr)
    try:
        profile = folder.save(model.enrol(sounds, name=name, **options))
    except ValueError as error:
        print(f"not enrolled: {name}: {error}", file=sys.stderr)
        return 0
    print(f"{name}: {count_of(profile.utterances, 'recording')}, {sum(profile.seconds):.1f} s of speech")
    for warning in profile.warnings:
        print(f"  warning: {warning}")
    return len(sounds)
