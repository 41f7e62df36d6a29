"""Options and checks shared by several commands. This module imports neither torch nor transformers nor NumPy."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..files.corpora import is_table
from ..files.diarisation import SpeakerSegment, read_speaker_segments
from ..folders.ranks import check_rank

# Copy of a value of the package, because importing the original would import torch. A test compares the two.
PROFILE_EXTENSION = ".safetensors"
# Copies of the names and of the largest number of channels in `audio_hamspk`, which a test compares as well.
CHANNEL_NAMES, HIGHEST_CHANNEL = ("left", "right", "mean"), 32
# Values of `check_voices` by their names at the command line.
CHECKS_OF_VOICES = {"warn": True, "refuse": "refuse", "ignore": False}
# Number of skipped rows of --segments that are printed; the others are counted.
SKIPPED_ROWS_SHOWN = 20
# Longer names are shortened in messages, as in the messages of `audio_hamspk.read_sound`.
LONGEST_NAME = 200
# Copies of the file of a calibration, of the smallest cohort and of the smallest number of resamplings.
VERIFICATION_FILE, LEAST_TOP, LEAST_REPLICATES = "verification.json", 2, 100
# What the numbers of options must be. The functions that use them check them as well, after the model is loaded.
NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "prior": (lambda number: 0 < number < 1, "lie strictly between 0 and 1"),
    "confidence": (lambda number: 0 < number < 1, "lie between 0 and 1"),
    "cost_miss": (lambda number: 0 < number < math.inf, "be above 0 and finite"),
    "cost_false_alarm": (lambda number: 0 < number < math.inf, "be above 0 and finite"),
    "threshold": (math.isfinite, "be a finite number"),
    "margin": (lambda number: 0 <= number < math.inf, "be a finite number of at least 0"),
    "minimum_speech": (lambda number: 0 <= number < math.inf, "be a finite number of at least 0"),
    "candidates": (lambda number: number >= 1, "be at least 1"),
    "top": (lambda number: number >= LEAST_TOP, f"be at least {LEAST_TOP}"),
    "replicates": (
        lambda number: number == 0 or number >= LEAST_REPLICATES,
        f"be 0 or at least {LEAST_REPLICATES}",
    ),
}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and --device, the arguments of the commands that load a model."""
    parser.add_argument("model", metavar="MODEL", help="folder of a trained model, or its name on the Hub")
    parser.add_argument("--device", help="device of the model: cpu, cuda, cuda:1, ... (default: a GPU if available)")


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --audio-column and --speaker-column, the arguments of the commands that read a table of recordings."""
    parser.add_argument("--audio-column", metavar="NAME", help="column of the paths in a table (default: path in CSV)")
    parser.add_argument(
        "--speaker-column", metavar="NAME", help="column of the speakers in a table (default: speaker_id in CSV)"
    )


def table_columns(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_table_arguments` that were given."""
    return given_options(arguments, "audio_column", "speaker_column")


def add_channel_argument(parser: argparse.ArgumentParser) -> None:
    """Add --channel, the argument of the commands that read recordings."""
    parser.add_argument(
        "--channel",
        type=parse_channel,
        metavar="left|right|N|mean",
        help="channel of the recordings to read, for example of one person in a two-channel call; N counts from 1 "
        "(default: the mean of all channels, with a warning if they differ)",
    )


def add_rank_arguments(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Add --rank and --world-size, the arguments of the commands that several machines can share."""
    parser.add_argument("--rank", type=int, metavar="R", help=f"{help_text}; R counts from 0")
    parser.add_argument("--world-size", type=int, metavar="N", help="number of ranks that share the work")


def check_rank_arguments(arguments: argparse.Namespace) -> None:
    """Raise ValueError if only one of --rank and --world-size is given, or if they are out of range."""
    if (arguments.rank is None) != (arguments.world_size is None):
        missing = "--rank" if arguments.rank is None else "--world-size"
        raise ValueError(f"{missing} is missing. Give both --rank R, from 0 to N - 1, and --world-size N.")
    if arguments.rank is not None:
        check_rank(arguments.rank, arguments.world_size)


def add_segments_argument(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add --segments, the argument of the commands that use the result of a diarisation; `meaning` ends its help."""
    parser.add_argument(
        "--segments",
        metavar="FILE",
        help="segments of the recordings FILES, from a diarisation: an RTTM file, or a CSV file with the columns start "
        f"and end in seconds, and perhaps speaker and path; {meaning}",
    )


def find_segments(arguments: argparse.Namespace) -> list[SpeakerSegment]:
    """Return the segments in the file --segments, and print the rows that were skipped to stderr.

    Raises:
        ValueError: FILES are not recordings, or the file has no usable row (see `read_speaker_segments`).
    """
    for name in arguments.files:
        if is_table(name):
            raise ValueError(f"--segments needs recordings, but {name} is a list. Give either --segments or the list.")
        check_recording(name)
    found = read_speaker_segments(Path(arguments.segments), arguments.files)
    for line, reason in list(found.skipped.items())[:SKIPPED_ROWS_SHOWN]:
        print(f"skipped {arguments.segments}, line {line}: {reason}", file=sys.stderr)
    if found.skipped:
        rows = count_of(len(found.found) + len(found.skipped), "row")
        print(f"skipped {len(found.skipped)} of {rows} of {arguments.segments}", file=sys.stderr)
    return found.found


def add_voices_argument(parser: argparse.ArgumentParser) -> None:
    """Add --voices, the argument of the commands that check recordings for several voices."""
    parser.add_argument(
        "--voices",
        choices=tuple(CHECKS_OF_VOICES),
        help="what to do about recordings with several voices: warn (the default), refuse recordings in which two "
        "people speak at once (the model needs an overlap detector, see `hamspk convert --into`), or ignore",
    )


def voices_option(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the argument `check_voices` that --voices corresponds to, as a dictionary; empty if it was not given."""
    return {} if arguments.voices is None else {"check_voices": CHECKS_OF_VOICES[arguments.voices]}


def parse_channel(text: str) -> str | int:
    """Parse a channel that is written as `left`, `right`, `mean` or a number from 1.

    Raises:
        argparse.ArgumentTypeError: the text has another form.
    """
    if text in CHANNEL_NAMES:
        return text
    if text.isascii() and text.isdigit() and 1 <= int(text) <= HIGHEST_CHANNEL:
        return int(text)
    raise argparse.ArgumentTypeError(
        f"must be {', '.join(CHANNEL_NAMES)} or a number from 1 to {HIGHEST_CHANNEL}, got {text!r}"
    )


def given_options(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return a dictionary of the named options and their values, without the options that are None."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def count_of(count: int, noun: str) -> str:
    """Format a number with its noun: `1 speaker`, `2 speakers`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raise ValueError if the number of an option in `NUMBERS` is out of range."""
    for name, (is_valid, expected) in NUMBERS.items():
        given = getattr(arguments, name, None)
        for number in given if isinstance(given, list) else [] if given is None else [given]:
            if not is_valid(number):
                raise ValueError(f"--{name.replace('_', '-')} must {expected}, got {number}.")


def check_operating_point(arguments: argparse.Namespace) -> None:
    """Raise ValueError if --operating-point is not in the calibration of a model folder, which must exist.

    A model on the Hub, a model without a calibration and a damaged calibration are left to the loading of the model.
    """
    name = arguments.operating_point
    path = Path(arguments.model, VERIFICATION_FILE)
    if name is None or not path.is_file():
        return
    try:
        points = [point["name"] for point in json.loads(path.read_text(encoding="utf-8"))["operating_points"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    if name not in points:
        raise ValueError(f"There is no operating point {name!r}; this calibration has {', '.join(map(str, points))}.")


def check_ways_to_decide(arguments: argparse.Namespace) -> None:
    """Raise ValueError if more than one of --operating-point, --prior and --threshold is given."""
    given = [
        f"--{name.replace('_', '-')}" for name in given_options(arguments, "operating_point", "prior", "threshold")
    ]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other. Give only one of them.")


def check_recording(name: str, label: str = "The recording") -> None:
    """Check that a recording is a file or a URL.

    Raises:
        ValueError: `name` is neither a file nor a URL. `audio_hamspk.read_sound` raises an error with the same message.
    """
    if name.startswith(("http://", "https://")) or os.path.isfile(name):
        return
    if os.path.isdir(name):
        reason = "is a folder; give one audio file"
    elif os.path.exists(name):
        reason = "is not a regular file (a pipe or a device); give an audio file"
    else:
        reason = "no such file; check the path and its base folder (a URL begins with http:// or https://)"
    shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
    raise ValueError(f"{label} {shown}: {reason}" if name.isprintable() else f"{label}: {reason}")


def check_enrolment(names: Sequence[str]) -> None:
    """Check that each recording of an enrolment is a file or a URL.

    Raises:
        ValueError: a recording is neither a file nor a URL. `SpeakerVerifier` raises an error with the same message.
    """
    for number, name in enumerate(names, start=1):
        check_recording(name, "The enrolment" if len(names) == 1 else f"Enrolment recording {number}")


def check_folder(path: str, option: str) -> None:
    """Raise ValueError if a folder does not exist; the message names the option."""
    if not Path(path).is_dir():
        raise ValueError(f"Folder not found: {path} ({option}).")


def check_trial_lists(paths: Sequence[str]) -> None:
    """Raise ValueError if a trial list does not exist."""
    for path in paths:
        if not Path(path).is_file():
            raise ValueError(f"Trial list not found: {path}.")
