"""`hamspk enrol`: make speaker profiles from recordings."""

import argparse
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.corpora import base_folder, is_table, read_table
from ..files.recordings import find_audio
from ..files.same import find_shared
from ..files.tables import clean_speaker, join_segment, split_segment
from ..folders.addresses import is_store
from ..folders.recognising import check_replaceable, is_profile_file
from ..loading.names import check_model
from .embed import print_contents
from .options import (
    PROFILE_EXTENSION,
    add_channel_argument,
    add_model_arguments,
    add_segments_argument,
    add_table_arguments,
    add_voices_argument,
    count_of,
    find_segments,
    given_options,
    table_columns,
    voices_option,
)
from .profiles import (
    ProfileFolder,
    ProfileStore,
    add_replace_argument,
    check_profile_name,
    is_profile_name,
    open_profiles,
)
from .verify import COMBINE_CHOICES

if TYPE_CHECKING:
    from ..audio_hamspk import Channel, Sound
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
        "path and speaker_id, and perhaps start and stop; JSON lines in the format of NeMo; or a Kaldi folder",
    )
    parser.add_argument(
        "--profiles",
        required=True,
        metavar="DIR|URL",
        help="folder for the files NAME.safetensors, or a database: lancedb://FOLDER or postgresql://USER@HOST/NAME",
    )
    parser.add_argument(
        "--name",
        help="name of the only speaker; with --name, FILES may be recordings of this speaker as well as folders",
    )
    parser.add_argument(
        "--subfolders",
        choices=SUBFOLDER_CHOICES,
        help="what the sub-folders of a folder are: with speakers, each sub-folder becomes a profile; with sessions, "
        "all sub-folders together become one profile (default: an error if there are several)",
    )
    parser.add_argument(
        "--audio-root", metavar="DIR", help="base folder of the paths in a list (default: the folder of the list)"
    )
    add_table_arguments(parser)
    add_segments_argument(parser, "all segments of a speaker in the one recording are joined and enrolled")
    parser.add_argument(
        "--combine",
        choices=COMBINE_CHOICES,
        help="method that combines the embeddings of several recordings into one (default: mean)",
    )
    add_channel_argument(parser)
    add_voices_argument(parser)
    add_replace_argument(parser)
    parser.epilog = (
        "With --name, all recordings are from that speaker. Without --name, each of FILES is a folder with the\n"
        "recordings of one speaker, and the folder name becomes the name of the speaker. A list of recordings names\n"
        "the speaker of each recording, and its start and end times select segments in seconds.\n"
        "\n"
        "Unreadable recordings are skipped. With --voices refuse, recordings in which two people speak at once are\n"
        "skipped as well. Speakers without enough speech are not enrolled. All of them are reported.\n"
        "A profile that was made from other recordings is replaced only with --replace. The exit code is 1 if a\n"
        "speaker was not enrolled. A profile is biometric data."
    )


def check(arguments: argparse.Namespace) -> None:
    """Check the arguments before torch is imported, and set `arguments.speakers` (recordings of each speaker).

    Raises:
        ValueError: an argument is invalid, a folder contains no audio, or a recording occurs under two speakers.
    """
    if arguments.name is not None:
        check_profile_name(arguments.name, "--name")
    if arguments.segments is not None:
        arguments.speakers = _group_by_segments(arguments)
    elif arguments.name is not None:
        arguments.speakers = {arguments.name: _files_in(arguments.files)}
    elif len(arguments.files) == 1 and is_table(arguments.files[0]):
        arguments.speakers = _group_by_table(arguments)
    else:
        arguments.speakers = _group_by_folder(arguments.files, arguments.subfolders)
    for name in () if is_store(arguments.profiles) else arguments.speakers:
        check_replaceable(Path(arguments.profiles, f"{name}{PROFILE_EXTENSION}"), is_profile_file, "a speaker profile")
    _check_shared(arguments.speakers)
    check_model(arguments.model)


def _check_shared(speakers: dict[str, list[str]]) -> None:
    files = [file for own in speakers.values() for file in own]
    shared = find_shared(files, [name for name, own in speakers.items() for _ in own])
    if shared:
        more = "" if len(shared) == 1 else f" ({len(shared) - 1} more recordings occur under two speakers)"
        raise ValueError(f"{shared[0]}{more}. Give each recording to one speaker only.")


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
        check_profile_name(speaker, f"The name of a speaker in {table}")
        groups.setdefault(speaker, []).append(str(root / name))
    return groups


def _group_by_segments(arguments: argparse.Namespace) -> dict[str, list[str]]:
    if len(arguments.files) > 1:
        raise ValueError(
            f"Expected one recording with --segments, got {len(arguments.files)}. A diarisation names the speakers of "
            "each recording independently. Run the command once for each recording."
        )
    groups: dict[str, list[str]] = {}
    for one in find_segments(arguments):
        groups.setdefault(one.speaker, []).append(join_segment(one.recording, one.segment))
    if arguments.name is not None and len(groups) == 1:
        return {arguments.name: next(iter(groups.values()))}
    if list(groups) == [""]:
        raise ValueError(f"{arguments.segments} names no speaker. Give the name with --name.")
    for speaker in [name for name in groups if not is_profile_name(name)]:
        rows = count_of(len(groups.pop(speaker)), "row")
        reason = f"the name {speaker!r:.100} is not a file name" if speaker else "no speaker is named"
        print(f"skipped {rows} of {arguments.segments}: {reason}", file=sys.stderr)
    if not groups:
        raise ValueError(f"{arguments.segments} has no row with a speaker that can be enrolled. Correct the names.")
    if arguments.name is not None and len(groups) == 1:
        return {arguments.name: next(iter(groups.values()))}
    if arguments.name is not None:
        raise ValueError(
            f"--name is for one speaker, but {arguments.segments} has {count_of(len(groups), 'speaker')}. Leave --name "
            "out, or keep the rows of one speaker."
        )
    return groups


def _group_by_folder(folders: list[str], subfolders: str | None) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for folder in folders:
        if not os.path.lexists(folder):
            raise ValueError(f"Folder not found: {folder}. Give a folder with the recordings of one speaker.")
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
    folder = open_profiles(arguments.profiles, model, arguments.replace)
    options = given_options(arguments, "combine") | voices_option(arguments)
    if "check_voices" in options:
        # Raises an error if the model has no detector and is asked to refuse several voices.
        model.verifier(options["check_voices"])
    read = _read_joined if arguments.segments is not None else _read_each
    used = {
        name: _enrol_speaker(model, name, folder, read(model, files, arguments.channel, options), options)
        for name, files in speakers.items()
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
    model: "HamSpkModel",
    name: str,
    folder: ProfileFolder | ProfileStore,
    read: tuple[list["Sound"], list[str]],
    options: dict,
) -> int:
    """Enrol a speaker, and return the number of recordings or segments used; 0 if the speaker was not enrolled.

    Args:
        read: waveforms of the speaker, and the recordings or segments from which they were read.
    """
    sounds, files = read
    count = len(files)
    if not sounds:
        print(f"not enrolled: {name}: none of the recordings can be used; give others", file=sys.stderr)
        return 0
    explained: list[str] = []
    try:
        try:
            profile = model.enrol(sounds, name=name, **options)
        except ValueError as error:
            explained = _explain_numbers([str(error)], files)
            raise
        profile = folder.save(profile)
    except ValueError as error:
        print(f"not enrolled: {name}: {error}", file=sys.stderr)
        for line in explained:
            print(f"  {line}", file=sys.stderr)
        return 0
    of = count_of(profile.utterances, "recording") if count == len(sounds) else count_of(count, "segment")
    print(f"{name}: {of}, {sum(profile.seconds):.1f} s of speech")
    for warning in profile.warnings:
        print(f"  warning: {warning}")
    for line in _explain_numbers(profile.warnings, files):
        print(f"  {line}")
    return count


def _explain_numbers(warnings: Iterable[str], files: list[str]) -> list[str]:
    """Return a line for each recording that warnings name by its number, with its file."""
    found = (re.findall(r"enrolment recording (\d+)", text, re.IGNORECASE) for text in warnings)
    numbers = sorted({int(number) for own in found for number in own})
    return [f"Enrolment recording {one}: {files[one - 1]}" for one in numbers if 1 <= one <= len(files)]


def _read_each(
    model: "HamSpkModel", files: list[str], channel: "Channel", options: dict
) -> tuple[list["Sound"], list[str]]:
    """Read each recording and segment separately, and print the skipped ones to stderr."""
    from ..audio_hamspk import InputError, read_sound
    from ..data.audio import read_utterance
    from ..verification_hamspk import REFUSE

    sounds, used, rate = [], [], model.config.sampling_rate
    for file in files:
        try:
            # `model.enrol` uses the same labels in its warnings.
            label = "The enrolment" if len(files) == 1 else f"Enrolment recording {len(sounds) + 1}"
            if split_segment(file)[1] is None:
                # Of several recordings, a silent, short or truncated one is left out instead of averaged.
                sound = read_sound(file, rate, label, strict=len(files) > 1, channel=channel)
            else:
                sound = read_utterance(file, rate, label, channel=channel)
            if options.get("check_voices") == REFUSE:
                _require_one_voice(model, sound)
            sounds.append(sound)
            used.append(file)
        except InputError as error:
            print(f"skipped {file}: {error.reason}", file=sys.stderr)
    return sounds, used


def _read_joined(
    model: "HamSpkModel", files: list[str], channel: "Channel", options: dict
) -> tuple[list["Sound"], list[str]]:
    """Read segments of one recording, and join them; print the skipped ones to stderr."""
    from ..audio_hamspk import InputError
    from ..data.audio import join_segments, read_utterance

    path = split_segment(files[0])[0]
    try:
        whole = read_utterance(path, model.config.sampling_rate, "The enrolment", channel=channel)
    except InputError as error:
        raise ValueError(f"{path}: {error.reason}") from error
    segments = [segment for _, segment in map(split_segment, files) if segment is not None]
    joined, skipped = join_segments(whole, segments)
    for segment, reason in skipped.items():
        print(f"skipped {path}{segment}: {reason}", file=sys.stderr)
    return ([joined] if len(joined.waveform) else []), [f"{path}{one}" for one in segments if one not in skipped]


def _require_one_voice(model: "HamSpkModel", sound: "Sound") -> None:
    from ..audio_hamspk import InputError

    detector = model.overlap_detector
    if detector is not None and (seconds := detector.find([sound.waveform], sound.sampling_rate)[0]):
        raise InputError(f"two people speak at once for {seconds:.1f} s")
