"""Recognise files that this package wrote, so that commands replace no others. Contents are not checked further."""

import json
import mmap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Written into zip files, plots and reports that have no other mark of this package.
GENERATOR = "hf_hamspk"
_LONGEST_HEADER = 100_000_000
_LONGEST_JSON = 100_000_000
# Reports of version 0.1.0 have no mark. They are recognised by the end of their title.
_EARLIER_REPORT = b": evaluation</title>"


def check_replaceable(path: Path, is_ours: Callable[[Path], bool], kind: str) -> None:
    """Check that a file is missing, or that this package wrote it.

    Args:
        path: path of the file that is about to be written.
        is_ours: one of the functions of this module, which recognises the file.
        kind: description of the file for the message, such as "a speaker profile".

    Raises:
        ValueError: the path is a folder or a file that this package did not write.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Give a file name.")
    if path.exists() and not (path.is_file() and is_ours(path)):
        raise ValueError(
            f"{path} already exists and is not {kind} of this package, so it is not replaced. Choose another name, or "
            "move the file."
        )


def safetensors_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a safetensors file; empty if the file is not one or has none."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= _LONGEST_HEADER else {}
        found = header["__metadata__"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def kind_of_array(path: Path) -> str | None:
    """Return the kind that a safetensors file of this package declares in its description; None if it declares none."""
    try:
        found = json.loads(safetensors_metadata(path)["description"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return found.get("kind") if isinstance(found, dict) and "checksum" in found else None


def is_profile_file(path: Path) -> bool:
    """Return whether a file is a speaker profile."""
    return kind_of_array(path) == "speaker profile"


def is_index_file(path: Path) -> bool:
    """Return whether a file is an index of speakers."""
    return kind_of_array(path) == "speaker index"


def is_detector_file(path: Path) -> bool:
    """Return whether a file is an overlap detector."""
    return kind_of_array(path) == "overlap detector"


def is_embeddings_file(path: Path) -> bool:
    """Return whether `hamspk embed` wrote a file. A .npz file of version 0.1.0 is not recognised."""
    if path.suffix == ".safetensors":
        return {"model", "fingerprint", "precision"} <= safetensors_metadata(path).keys()
    if path.suffix == ".npz":
        try:
            with zipfile.ZipFile(path) as archive:
                return archive.comment.split(b" ")[0] == GENERATOR.encode()
        except (OSError, zipfile.BadZipFile):
            return False
    try:
        with open(path, "rb") as file:
            # The last 8 bytes of a Parquet file are the length of the footer and a mark.
            file.seek(-8, 2)
            size = int.from_bytes(file.read(4), "little")
            file.seek(-8 - size, 2)
            footer = file.read(size)
    except (OSError, ValueError):
        return False
    return all(name in footer for name in (b"fingerprint", b"precision", b"embedding"))


def is_onnx_file(path: Path) -> bool:
    """Return whether `hamspk export` wrote a file."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.rfind(b'{"fingerprint": ') >= 0 and content.rfind(b'"sampling_rate": ') >= 0
    except (OSError, ValueError):
        return False


def read_small_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if it is not an object or is larger than 100 MB."""
    try:
        found = json.loads(path.read_bytes()) if path.stat().st_size <= _LONGEST_JSON else None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_card_file(path: Path) -> bool:
    """Return whether a file is a rendered model card, or the JSON file of its facts."""
    if path.suffix == ".json":
        return {"schema", "about", "config"} <= read_small_json(path).keys()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return text.startswith("---\n") and "\n- ham-softmax\n" in text.split("\n---\n")[0] + "\n"


def is_calibration_file(path: Path) -> bool:
    """Return whether a file is a calibration or a cohort."""
    if path.suffix == ".json":
        return {"schema", "fingerprint", "checksum"} <= read_small_json(path).keys()
    return "description" in safetensors_metadata(path)


def is_report_file(path: Path) -> bool:
    """Return whether a file is the HTML report of an evaluation."""
    try:
        with open(path, "rb") as file:
            start = file.read(1000)
    except OSError:
        return False
    return f'<meta name="generator" content="{GENERATOR}">'.encode() in start or _EARLIER_REPORT in start


def is_plot_file(path: Path) -> bool:
    """Return whether this package drew a PNG file. Plots of version 0.1.0 have no mark and are not recognised."""
    try:
        with open(path, "rb") as file:
            return f"Software\0{GENERATOR}".encode() in file.read(1000)
    except OSError:
        return False
