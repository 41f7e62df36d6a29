"""Errors about files, with the path of the file and advice."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

DAMAGED = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)
"""Errors that are raised when JSON with unexpected content is read and used."""


@contextlib.contextmanager
def explain_damage(path: Path | str, advice: str) -> Iterator[None]:
    """Context manager that turns the errors of reading a damaged JSON file into one sentence.

    Args:
        path: path or description of the file, for the message.
        advice: what to do, such as "run the command again with --restart".

    Raises:
        ValueError: the file is damaged.
    """
    try:
        yield
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {reason}); {advice}") from error


@contextlib.contextmanager
def name_file(path: Path | str) -> Iterator[None]:
    """Context manager that adds a path to an OSError that has none, such as the error of writing to a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
