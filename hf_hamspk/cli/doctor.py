"""`hamspk doctor`: whether the installed packages work together.

Imports nothing of this package, so that it runs even if transformers cannot be imported: transformers imports
torchaudio, whose PyPI builds for Linux are linked against CUDA and cannot be loaded beside a CPU-only torch.
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

PACKAGES = ("torch", "torchaudio", "transformers", "datasets", "accelerate", "soundfile")
# A build for CUDA names one of these among the libraries it links.
CUDA_LIBRARIES = (b"libcudart", b"libtorch_cuda", b"libc10_cuda")
CURE = (
    "Install the torch from PyPI (`pip install 'torch>=2.11,<2.15'`), or run `hamspk doctor --fix-torchaudio`, which "
    "deletes torchaudio's compiled extension: this package needs only its Python part."
)
OTHER_CURE = "Install both from the same index, for example `pip install 'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12'`."


@dataclass(frozen=True)
class Facts:
    """The installed packages.

    Attributes:
        versions: package to version; None if it is absent.
        torch_build: "CPU", "CUDA 13.0", "ROCm 7.0", or None if torch cannot be imported.
        torchaudio_build: "CPU", "CUDA", "CUDA 13.0", "pure Python" (no compiled extension) or None if it is absent.
        extension: torchaudio's compiled files.
        errors: package to the error of its import, for those that cannot be imported.
    """

    versions: dict[str, str | None]
    torch_build: str | None
    torchaudio_build: str | None
    extension: tuple[Path, ...]
    errors: dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk doctor`."""
    parser.add_argument(
        "--fix-torchaudio",
        action="store_true",
        help="beside a CPU-only torch, delete torchaudio's compiled extension, so that it imports as pure Python",
    )
    parser.epilog = "The exit code is 1 if there is a problem."


def run(arguments: argparse.Namespace) -> int:
    """Report, repair if asked to, and list the problems."""
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
        print("all well")
    return 1 if problems else 0


def gather() -> Facts:
    """Inspect the installed packages, and try to import those that the models need."""
    versions = {name: _installed_version(name) for name in PACKAGES}
    errors = {name: error for name in PACKAGES if versions[name] is not None and (error := import_error(name))}
    torch_build = None
    if versions["torch"] is not None and "torch" not in errors:
        torch_build = _build_of_torch()
    folder = _folder("torchaudio")
    extension = () if folder is None else tuple(sorted((folder / "lib").glob("*.so")))
    return Facts(versions, torch_build, None if folder is None else _build_of_torchaudio(folder), extension, errors)


def import_error(name: str) -> str | None:
    """The error of the import of a package, in one line; None if it works."""
    try:
        importlib.import_module(name)
        if name == "transformers":
            # transformers is lazy: this is the part of it that imports torchaudio.
            importlib.import_module("transformers.audio_utils")
    # A broken build may raise anything: OSError, RuntimeError, AttributeError, ...
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def diagnose(facts: Facts) -> list[str]:
    """The problems, each with what to do, a sentence or two each; empty if there are none."""
    problems = [f"{name} is not installed: `pip install {name}`." for name, v in facts.versions.items() if v is None]
    torch_build, torchaudio_build = facts.torch_build, facts.torchaudio_build
    message = facts.errors.get("torchaudio")
    explained = set()
    if message is not None:
        # transformers imports torchaudio, so it fails with the same error.
        explained = {name for name, error in facts.errors.items() if error == message and name != "torchaudio"}
        if torch_build is not None and torchaudio_build is not None and _clash(torch_build, torchaudio_build):
            explained.add("torchaudio")
            problems.append(
                f"torchaudio is a {torchaudio_build} build and torch a {torch_build} build, so torchaudio, and with it "
                f"transformers, cannot be imported ({message}). {CURE if torch_build == 'CPU' else OTHER_CURE}"
            )
    problems += [
        f"{name} cannot be imported ({error}). Install it again."
        for name, error in facts.errors.items()
        if name not in explained
    ]
    return problems


def remove_extension(facts: Facts) -> list[Path]:
    """Delete torchaudio's compiled extension, which makes it pure Python.

    Returns:
        The deleted files; none if there is no extension or it fits.

    Raises:
        ValueError: torch is no CPU-only build (then torchaudio should fit it instead), or one of them is absent.
    """
    if facts.torchaudio_build is None:
        raise ValueError(
            "torchaudio is not installed: there is nothing to repair. `pip install 'torchaudio>=2.11,<2.12'`."
        )
    if facts.torch_build is None:
        raise ValueError("torch cannot be imported, so it is not known whether torchaudio fits it; repair torch first.")
    if facts.torch_build != "CPU":
        raise ValueError(
            f"This torch is a {facts.torch_build} build, so torchaudio's extension is left alone: --fix-torchaudio is "
            "for CPU-only builds of torch. Install a torchaudio that fits, from the same index as torch."
        )
    if not _clash(facts.torch_build, facts.torchaudio_build):
        return []
    for file in facts.extension:
        file.unlink()
    return list(facts.extension)


def format_facts(facts: Facts) -> str:
    """A line for each package."""
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
        lines.append(f"torch and torchaudio are builds that fit: {same}")
    return "\n".join(lines)


def _clash(torch_build: str, torchaudio_build: str) -> bool:
    """Whether torchaudio's extension needs other libraries than torch has."""
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
    """Folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _build_of_torch() -> str:
    version = importlib.import_module("torch").version
    if version.cuda is not None:
        return f"CUDA {version.cuda}"
    return "CPU" if getattr(version, "hip", None) is None else f"ROCm {version.hip}"


def _build_of_torchaudio(folder: Path) -> str:
    """From the extension itself, and the version of CUDA from `version.py` ("2.11.0+cu130")."""
    extension = sorted((folder / "lib").glob("*.so"))
    if not extension:
        return "pure Python"
    if not any(library in file.read_bytes() for file in extension for library in CUDA_LIBRARIES):
        return "CPU"
    written = folder / "version.py"
    found = re.search(r"\+cu(\d+)(\d)\b", written.read_text(encoding="utf-8")) if written.is_file() else None
    return "CUDA" if found is None else f"CUDA {found[1]}.{found[2]}"


def _forget(*packages: str) -> None:
    """Let packages be imported again."""
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            del sys.modules[name]


def run_alone(argv: Sequence[str] | None = None) -> int:
    """Run as `python -m hf_hamspk.cli.doctor`; the same as `hamspk doctor`."""
    parser = argparse.ArgumentParser(prog="hamspk doctor", description="Check the installed packages.")
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except ValueError as error:
        print(f"hamspk: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(run_alone())
