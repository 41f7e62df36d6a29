"""Files that hold what a decision rests on, written so that a change by hand is noticed.

A checksum guards against mistakes (an edited number, a damaged file), not against somebody who computes it anew.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

CHECKSUM = "checksum"
# Hexadecimal digits of a fingerprint that messages show.
SHOWN_DIGITS = 12


def shorten(fingerprint: str) -> str:
    """The first digits of a fingerprint, for messages."""
    return fingerprint[:SHOWN_DIGITS]


def dict_checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 over canonical JSON (sorted keys, no blanks) of everything but the checksum itself.

    Raises:
        ValueError: a value is NaN or infinite, which JSON does not have.
    """
    rest = {key: value for key, value in values.items() if key != CHECKSUM}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def array_checksum(array: np.ndarray) -> str:
    """SHA-256 over shape, type and values of an array."""
    array = np.ascontiguousarray(array)
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()


def check_dict(values: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Refuse a dictionary whose checksum is absent or is that of other values.

    Raises:
        ValueError: the reason, and what to do.
    """
    if values.get(CHECKSUM) != dict_checksum(values):
        state = "has no checksum" if CHECKSUM not in values else "was altered: its checksum is that of other values"
        raise ValueError(
            f"{os.fspath(path)} {state}. What a decision rests on is not edited by hand: fetch or measure it anew, or "
            "delete the file to go without it."
        )


def save_array(path: str | os.PathLike, name: str, array: np.ndarray, description: Mapping[str, Any]) -> None:
    """Write one float32 array and its description (what JSON can hold) as a safetensors file with a checksum."""
    array = np.ascontiguousarray(array, dtype=np.float32)
    described = dict(description) | {"array": array_checksum(array)}
    described[CHECKSUM] = dict_checksum(described)
    # safetensors takes text only, and mmaps what it reads: the file is replaced, never written over.
    temporary = f"{os.fspath(path)}.part"
    save_file({name: array}, temporary, {"description": json.dumps(described, sort_keys=True)})
    os.replace(temporary, path)


def load_array(path: str | os.PathLike, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Read what `save_array` wrote.

    Returns:
        The float32 array, finite, and its description.

    Raises:
        ValueError: not such a file, or altered.
    """
    text = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"There is no file {text}.")
    try:
        with safe_open(path, "np") as file:
            metadata, names = file.metadata(), list(file.keys())
            array = file.get_tensor(name) if name in names else None
        described = json.loads((metadata or {})["description"])
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise ValueError(
            f"{text} cannot be read ({type(error).__name__}: {error}); expected a file that this package wrote, with "
            f"the tensor {name!r}."
        ) from error
    if array is None or not isinstance(described, dict):
        raise ValueError(f"{text} holds the tensors {names}; expected {name!r} with a description.")
    check_dict(described, path)
    if described.pop("array") != array_checksum(array):
        raise ValueError(f"{text} was altered: its tensor {name!r} is not the one that was saved. Make it anew.")
    if array.dtype != np.float32 or not np.isfinite(array).all():
        raise ValueError(f"{text} holds {array.dtype} values that are not all finite float32. Make it anew.")
    del described[CHECKSUM]
    return array, described


def is_number(value: Any) -> bool:
    """Whether a value is a finite int or float, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        # A whole number that no float holds.
        return False
