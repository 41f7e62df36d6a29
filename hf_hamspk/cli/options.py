"""Options and checks that several commands share. Imports neither torch nor transformers nor NumPy."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# That of the package, which a test compares.
PROFILE_EXTENSION = ".safetensors"
# As the reader of recordings shortens names in messages.
LONGEST_NAME = 200


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and --device, which every command that loads a model takes."""
    parser.add_argument("model", metavar="MODEL", help="folder of a trained model, or its name on the Hub")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")


def given_options(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given on the command line, by name; the others are left to the defaults of the function."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def count_of(count: int, noun: str) -> str:
    """A number and its noun: `1 speaker`, `2 speakers`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def check_ways_to_decide(arguments: argparse.Namespace) -> None:
    """Refuse more than one of --operating-point, --prior and --threshold."""
    given = [
        f"--{name.replace('_', '-')}" for name in given_options(arguments, "operating_point", "prior", "threshold")
    ]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are different ways to decide; give one.")


def check_recording(name: str, label: str = "The recording") -> None:
    """Refuse a recording that is neither a file nor a URL, in the words of the reader (`audio_hamspk.read_sound`)."""
    if name.startswith(("http://", "https://")) or os.path.isfile(name):
        return
    if os.path.isdir(name):
        reason = "is a folder; give one audio file"
    elif os.path.exists(name):
        reason = "is not a regular file (a pipe or a device); give an audio file"
    else:
        reason = (
            "no such file; check the path and the folder that it is relative to (a URL begins with http:// or https://)"
        )
    shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
    raise ValueError(f"{label} {shown}: {reason}" if name.isprintable() else f"{label}: {reason}")


def check_enrolment(names: Sequence[str]) -> None:
    """Refuse recordings of an enrolment of which one is no file; labels are those of the verifier."""
    for number, name in enumerate(names, start=1):
        check_recording(name, "The enrolment" if len(names) == 1 else f"Enrolment recording {number}")


def check_folder(path: str, option: str) -> None:
    """Refuse a folder that is not there."""
    if not Path(path).is_dir():
        raise ValueError(f"There is no folder {path} ({option}).")


def check_trial_lists(paths: Sequence[str]) -> None:
    """Refuse a trial list that is not there."""
    for path in paths:
        if not Path(path).is_file():
            raise ValueError(f"There is no trial list {path}.")
