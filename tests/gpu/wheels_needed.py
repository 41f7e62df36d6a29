"""Print the wheels of a folder whose package this Python lacks, or has in an older version, one path a line."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def numbers(text: str) -> list[int]:
    """The numbers of a version, for comparison."""
    parts = (part for part in text.replace("+", ".").split("."))
    return [int("".join(filter(str.isdigit, part)) or 0) for part in parts]


def is_needed(wheel: Path) -> bool:
    """Whether a wheel has to be installed."""
    name, offered = wheel.name.split("-")[:2]
    try:
        return numbers(version(name)) < numbers(offered)
    except PackageNotFoundError:
        return True


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*.whl")):
        if is_needed(path):
            print(path)
