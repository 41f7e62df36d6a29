"""`hamspk doctor`: check that the installed packages work together.

This module runs even if transformers cannot be imported. The usual cause, apart from a wrong version, is torchaudio,
which transformers imports. The PyPI builds of torchaudio for Linux are linked against CUDA, and cannot be loaded
together with a CPU-only torch.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..loading.registering import wrong_transformers

PACKAGES = ("torch", "torchaudio", "transformers", "datasets", "accelerate", "soundfile")
# A CUDA build is linked against one of these libraries.
CUDA_LIBRARIES = (b"libcudart", b"libtorch_cuda", b"libc10_cuda")
CURE = (
    "Install the torch from PyPI (`pip install 'torch>=2.11,<2.15'`), or run `hamspk doctor --fix-torchaudio`, which "
    "deletes torchaudio's compiled extension. This package needs only the Python part of torchaudio."
)
OTHER_CURE = "Install both from the same index, for example `pip install 'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12'`."


@dataclass(frozen=True)
class Facts:
    """Versions, builds and import errors of the installed packages.

    Attributes:
        versions: maps each package to its version, or to None if it is not installed.
        torch_build: "CPU", "CUDA 13.0", "ROCm 7.0", or None if torch cannot be imported.
        torchaudio_build: "CPU", "CUDA", "CUDA 13.0", "pure Python" (no compiled extension), or None if torchaudio is
            not installed.
        extension: compiled files of torchaudio.
        errors: maps each package that cannot be imported to the error.
    """

    versions: dict[str, str | None]
    torch_build: str | None
    torchaudio_build: str | None
    extension: tuple[Path, ...]
    errors: dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk doctor`."""
    parser.add_argument(
        "--fix-torchaudio",
        action="store_true",
        help="delete torchaudio's compiled extension if torch is CPU-only; torchaudio then works as pure Python",
    )
    parser.epilog = "The exit code is 1 if a problem is found."


def run(arguments: argparse.Namespace) -> int:
    """Repair torchaudio if requested, print the installed packages, and list the problems."""
    facts = gather()
    if arguments.fix_torchaudio:
        removed = remove_extension(facts)
        for file in removed:
            print(f"removed {file}")
        if removed:
            _forget("torchaudio", "transformers")
            facts = gather()
        else:
            print("nothing to remove: torchaudio has no extension that needs CUDA")
    print(format_facts(facts))
    problems = diagnose(facts)
    for problem in problems:
        print(f"problem: {problem}")
    if not problems:
        print("no problems found")
    return 1 if problems else 0


def gather() -> Facts:
    """Inspect the installed packages, and try to import each of them."""
    versions = {name: _installed_version(name) for name in PACKAGES}
    errors = {name: error for name in PACKAGES if versions[name] is not None and (error := import_error(name))}
    torch_build = None
    if versions["torch"] is not None and "torch" not in errors:
        torch_build = _build_of_torch()
    folder = _folder("torchaudio")
    extension = () if folder is None else tuple(sorted((folder / "lib").glob("*.so")))
    return Facts(versions, torch_build, None if folder is None else _build_of_torchaudio(folder), extension, errors)


def import_error(name: str) -> str | None:
    """Return the error that importing a package raises, in one line, or None if the import works."""
    try:
        importlib.import_module(name)
        if name == "transformers":
            # transformers imports its modules lazily; this module imports torchaudio.
            importlib.import_module("transformers.audio_utils")
    # A broken build may raise any error: OSError, RuntimeError, AttributeError, ...
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def diagnose(facts: Facts) -> list[str]:
    """Return a description of each problem with its remedy; empty if there are no problems."""
    problems = [f"{name} is not installed: `pip install {name}`." for name, v in facts.versions.items() if v is None]
    version = facts.versions.get("transformers")
    if version is not None and (said := wrong_transformers(version)) is not None:
        problems.append(said)
    torch_build, torchaudio_build = facts.torch_build, facts.torchaudio_build
    message = facts.errors.get("torchaudio")
    explained = set()
    if message is not None:
        # transformers imports torchaudio, so it fails with the same error.
        explained = {name for name, error in facts.errors.items() if error == message and name != "torchaudio"}
        if torch_build is not None and torchaudio_build is not None and _clash(torch_build, torchaudio_build):
            explained.add("torchaudio")
            problems.append(
                f"torchaudio is a {torchaudio_build} build and torch a {torch_build} build, so neither torchaudio nor "
                f"transformers can be imported ({message}). {CURE if torch_build == 'CPU' else OTHER_CURE}"
            )
    problems += [
        f"{name} cannot be imported ({error}). Install it again."
        for name, error in facts.errors.items()
        if name not in explained
    ]
    return problems


def remove_extension(facts: Facts) -> list[Path]:
    """Delete the compiled extension of torchaudio. Without the extension, torchaudio works as pure Python.

    Returns:
        The deleted files; empty if torchaudio has no extension or the extension is compatible with torch.

    Raises:
        ValueError: torch is not a CPU-only build, or one of the two packages is not installed or cannot be imported.
    """
    if facts.torchaudio_build is None:
        raise ValueError(
            "torchaudio is not installed, so it cannot be repaired. Install it: `pip install 'torchaudio>=2.11,<2.12'`."
        )
    if facts.torch_build is None:
        raise ValueError("torch cannot be imported, so torchaudio cannot be compared with it. Reinstall torch first.")
    if facts.torch_build != "CPU":
        raise ValueError(
            f"--fix-torchaudio is only for CPU-only builds of torch, but this torch is a {facts.torch_build} build. "
            "Install torchaudio from the same index as torch."
        )
    if not _clash(facts.torch_build, facts.torchaudio_build):
        return []
    for file in facts.extension:
        file.unlink()
    return list(facts.extension)


def format_facts(facts: Facts) -> str:
    """Format the facts for printing, one line per package."""
    builds = {"torch": facts.torch_build, "torchaudio": facts.torchaudio_build}
    lines = [f"{'python':<14}{sys.version.split()[0]}"]
    for name, version in facts.versions.items():
        notes = [f"{builds[name]} build"] if builds.get(name) is not None else []
        if name in facts.errors:
            notes.append("cannot be imported")
        shown = "not installed" if version is None else version
        lines.append(f"{name:<14}{shown}" + (f" ({', '.join(notes)})" if notes else ""))
    if facts.torch_build is not None and facts.torchaudio_build is not None:
        same = "no" if _clash(facts.torch_build, facts.torchaudio_build) else "yes"
        lines.append(f"the builds of torch and torchaudio are compatible: {same}")
    return "\n".join(lines)


def _clash(torch_build: str, torchaudio_build: str) -> bool:
    """Return whether torchaudio's extension needs libraries that this build of torch lacks."""
    if torchaudio_build == "pure Python":
        return False
    kind, _, version = torchaudio_build.partition(" ")
    torch_kind, _, torch_version = torch_build.partition(" ")
    return kind != torch_kind or (bool(version) and version != torch_version)


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _folder(name: str) -> Path | None:
    """Return the folder of an installed package without importing it; None if it is not installed."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _build_of_torch() -> str:
    version = importlib.import_module("torch").version
    if version.cuda is not None:
        return f"CUDA {version.cuda}"
    return "CPU" if getattr(version, "hip", None) is None else f"ROCm {version.hip}"


def _build_of_torchaudio(folder: Path) -> str:
    """Return the kind of torchaudio build in a folder: "pure Python", "CPU" or "CUDA".

    The version of CUDA is added if `version.py` declares it: "CUDA 13.0" for "2.11.0+cu130".
    """
    extension = sorted((folder / "lib").glob("*.so"))
    if not extension:
        return "pure Python"
    if not any(library in file.read_bytes() for file in extension for library in CUDA_LIBRARIES):
        return "CPU"
    written = folder / "version.py"
    found = re.search(r"\+cu(\d+)(\d)\b", written.read_text(encoding="utf-8")) if written.is_file() else None
    return "CUDA" if found is None else f"CUDA {found[1]}.{found[2]}"


def _forget(*packages: str) -> None:
    """Remove packages from `sys.modules`, so that the next import loads them again."""
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            del sys.modules[name]


def run_alone(argv: Sequence[str] | None = None) -> int:
    """Run `hamspk doctor` as `python -m hf_hamspk.cli.doctor`, and return the exit code."""
    parser = argparse.ArgumentParser(prog="hamspk doctor", description="Check the installed packages.")
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except ValueError as error:
        print(f"hamspk: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(run_alone())
