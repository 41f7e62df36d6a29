"""Search for private paths and access tokens in the files of an upload."""

import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_token

# Root folders of paths to search for. The first pattern avoids the paths of URLs, fractions and regular expressions.
_ROOTS = (
    "home|Users|root|tmp|work|workspace|workspaces|mnt|media|var|private|scratch|data|datasets|srv|opt|content|kaggle|"
    "gpfs|lustre|nfs|Volumes|cluster|export|storage|run|dev/shm"
)
_PATHS = (
    re.compile(rf"(?<![\w.:/~\\*-])(?:/(?:{_ROOTS})/[\w.@-][^\s\"'`,;:)\]}}]*)"),
    re.compile(r"(?<![\w/~])~[\w.-]*/[\w.][^\s\"'`,;:)\]}]*"),
    re.compile(r"(?<![A-Za-z0-9])[A-Za-z]:(?:\\{1,2}|/)[A-Za-z][\w.~ -]*(?:\\{1,2}|/)[^\s\"'`,;)\]}]*"),
    re.compile(r"(?<![\w\\])\\\\(?:\\\\)?[A-Za-z][\w.-]+\\{1,2}[\w$.-]+[^\s\"'`,;)\]}]*"),
    re.compile(r"\bfile://[^\s\"'`,;)\]}]*"),
)
_SECRETS = {
    "an access token of the Hub": re.compile(r"(?<!\w)(?:hf|api_org)_[A-Za-z0-9]{20,}"),
    "an access token of GitHub": re.compile(r"(?<!\w)(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"),
    "an access key": re.compile(r"(?<!\w)(?:(?:AKIA|ASIA)[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{24,})(?!\w)"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password in a URL": re.compile(r"\b\w+://[^\s/:@\"']+:[^\s/@\"']+@"),
}
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN")
# Shorter tokens could match other text by chance.
_SHORTEST_TOKEN = 8
LEAKS_SHOWN = 5


@dataclass(frozen=True)
class Leak:
    """Private path or secret found in a file.

    Attributes:
        file: name of the file in the repository.
        line: line number from 1; None in a file without lines.
        what: private path, or kind of the secret, as shown in the message.
    """

    file: str
    line: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f', line {self.line}'}: {self.what}"


@dataclass(frozen=True)
class Private:
    """Paths and access tokens of this machine and its user, which must not be published.

    Attributes:
        paths: absolute paths of folders.
        tokens: values of the tokens.
    """

    paths: tuple[str, ...]
    tokens: tuple[str, ...]

    @classmethod
    def of_this_machine(cls, folders: Iterable[str | os.PathLike[str]] = ()) -> "Private":
        """Collect the home, working and temporary folders, the given `folders`, and the user's Hub tokens."""
        given = [Path.home(), Path.cwd(), Path(tempfile.gettempdir()), *map(Path, folders)]
        paths = {str(form) for path in given for form in (path.absolute(), path.resolve())}
        tokens = {os.environ.get(name, "") for name in _TOKEN_VARIABLES} | {get_token()}
        return cls(
            tuple(sorted((path for path in paths if path != Path(path).anchor), key=len, reverse=True)),
            tuple(sorted(token for token in tokens if token is not None and len(token) >= _SHORTEST_TOKEN)),
        )


def find_leaks(name: str, text: str, private: Private, has_lines: bool = True, strict: bool = True) -> list[Leak]:
    """Find private paths and secrets in a text.

    Args:
        name: name of the file, for the report.
        text: content of the file; binary content may be decoded as Latin-1.
        private: paths and tokens of this machine.
        has_lines: whether to search line by line and report line numbers.
        strict: whether to search also for typical paths of other machines, which binary content can match by chance.

    Returns:
        Leaks that were found, at most one per line.
    """
    # Most files contain no leak, and no pattern spans lines, so one search over the whole text comes first.
    if _leak_in(text, private, strict) is None:
        return []
    found = [_leak_in(line, private, strict) for line in (text.splitlines() if has_lines else [text])]
    return [Leak(name, n if has_lines else None, what) for n, what in enumerate(found, start=1) if what is not None]


def _leak_in(text: str, private: Private, strict: bool) -> str | None:
    secret = _secret_in(text, private)
    path = _path_in(text, private, strict) if secret is None else None
    return secret if path is None else f"a path of a machine, {path!r}"


def _secret_in(text: str, private: Private) -> str | None:
    if any(token in text for token in private.tokens):
        return "your access token of the Hub"
    return next((kind for kind, pattern in _SECRETS.items() if pattern.search(text)), None)


def _path_in(text: str, private: Private, strict: bool) -> str | None:
    for path in private.paths:
        # JSON doubles the backslashes of Windows paths.
        for form in {path, path.replace("\\", "\\\\")}:
            match = re.search(rf"(?<![\w.:/]){re.escape(form)}(?![\w-])[^\s\"'`,;:)\]}}]*", text)
            if match is not None:
                return match[0]
    if strict:
        for pattern in _PATHS:
            match = pattern.search(text)
            if match is not None:
                return match[0]
    return None


def refuse_leaks(leaks: list[Leak]) -> None:
    """Raise an error if files contain private paths or secrets.

    Raises:
        ValueError: `leaks` is not empty; the message names files and lines.
    """
    if not leaks:
        return
    shown = "; ".join(map(str, leaks[:LEAKS_SHOWN]))
    more = f"; and {len(leaks) - LEAKS_SHOWN} more" if len(leaks) > LEAKS_SHOWN else ""
    raise ValueError(
        f"Nothing was sent, because files contain private paths or tokens: {shown}{more}. Remove them from the files, "
        "and run the command again."
    )
