"""Find the recordings in a folder and its sub-folders.

Each folder is visited once, even if several links lead to it. Files that are not audio are counted by suffix, so that a
corpus in an unknown format does not go unnoticed.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .tables import split_segment

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".sph", ".w64", ".caf"),
    *(".wave", ".snd", ".nist", ".rf64", ".m4a", ".mp4", ".aac", ".webm", ".mka"),
    *(".m4b", ".3gp", ".mov", ".mkv", ".amr", ".wma"),
)
"""Suffixes of the files that count as audio in a folder or an archive. Those from `.m4a` on need PyAV.

If an utterance has two files (`00001.wav`, `00001.m4a`), the file whose suffix comes first in this tuple is used.
"""

LINKED_INSIDE = "links to a folder that is already listed"

NOT_UTF8 = "its name is not valid UTF-8; rename it"

SUFFIXES_NAMED = 8
"""Number of suffixes that a remark names. Further suffixes are counted together."""


@dataclass
class FolderContents:
    """Recordings and other files in a folder.

    Attributes:
        files: paths of the recordings, sorted.
        ignored: number of files that are not audio, for each suffix.
        skipped: reasons why folders or files were not visited, by path.
    """

    files: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, other: "FolderContents") -> None:
        """Add the contents of another folder. Its recordings follow those of this folder."""
        self.files += other.files
        self.ignored += other.ignored
        self.skipped |= other.skipped


def is_recording(name: str) -> bool:
    """Return True if a file name has an audio suffix and is not hidden."""
    base = name.replace(os.sep, "/").rsplit("/", 1)[-1]
    # macOS writes files such as "._name.wav" that contain no audio.
    return base.lower().endswith(AUDIO_SUFFIXES) and not base.startswith(".")


def find_recordings(folder: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> FolderContents:
    """Find the recordings in a folder and its sub-folders. Hidden files and folders are left out.

    A link to a folder outside `root` is followed once. A link to a folder inside `root`, or to a folder that contains
    `root`, is skipped. Otherwise, a recording would be found under two paths and perhaps under two speakers.

    Args:
        folder: folder to search.
        root: folder of the corpus, which contains `folder`; None uses `folder`.
    """
    top = os.path.realpath(folder if root is None else root)
    found = FolderContents()
    seen = {os.path.realpath(folder)}
    waiting = [os.fspath(folder)]
    while waiting:
        each = waiting.pop()
        try:
            with os.scandir(each) as scan:
                entries = sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            found.skipped[each] = f"the folder cannot be listed ({error.strerror}); check its permissions"
            continue
        for entry in entries:
            if is_folder(entry):
                target = os.path.realpath(entry.path) if entry.is_symlink() else ""
                if target and (target in seen or links_inside(target, top)):
                    found.skipped[entry.path] = LINKED_INSIDE
                else:
                    seen.add(target)
                    waiting.append(entry.path)
            else:
                _sort_in(found, entry)
    found.files.sort()
    return found


def is_folder(entry: os.DirEntry) -> bool:
    """Return True if an entry is a folder or a link to a folder, and False if this cannot be determined."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _sort_in(found: FolderContents, entry: os.DirEntry) -> None:
    if not is_recording(entry.name):
        found.ignored[os.path.splitext(entry.name)[1].lower()] += 1
    elif not is_text(entry.path):
        found.skipped[repr(entry.path)] = NOT_UTF8
    else:
        found.files.append(entry.path)


def is_text(name: str) -> bool:
    """Return True if a file name is valid UTF-8."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def links_inside(target: str, root: str) -> bool:
    """Return True if a linked folder is visited without the link, or if it contains `root`.

    Args:
        target: real path of the folder to which the link leads.
        root: real path of the folder that is searched.
    """
    if _is_below(root, target):
        return True
    # Hidden folders are not visited, so what they store is reached only through links.
    return _is_below(target, root) and not any(
        part.startswith(".") for part in os.path.relpath(target, root).split(os.sep)
    )


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def count_suffixes(ignored: Mapping[str, int]) -> str:
    """Format the numbers of files with each suffix, the most frequent first: `12 .wma, 3 .txt, 1 without a suffix`."""
    most = sorted(ignored.items(), key=lambda item: (-item[1], not item[0], item[0]))
    parts = [f"{count} {suffix if suffix else 'without a suffix'}" for suffix, count in most[:SUFFIXES_NAMED]]
    others = sum(count for _, count in most[SUFFIXES_NAMED:])
    return ", ".join([*parts, f"{others} others"] if others else parts)


def describe_ignored(ignored: Mapping[str, int]) -> list[str]:
    """Return a list with a remark on the files without an audio suffix; an empty list if there are none."""
    total = sum(ignored.values())
    if total == 0:
        return []
    files = "1 file was" if total == 1 else f"{total} files were"
    return [f"{files} not read, because only audio files are read: {count_suffixes(ignored)}"]


def find_audio(given: Sequence[str]) -> tuple[FolderContents, dict[str, str]]:
    """Find audio files.

    Args:
        given: audio files, and folders to search for them.

    Returns:
        The audio files, and a dictionary that maps each of `given` that does not exist or contains no audio to the
        reason. The audio files follow the order of `given`, without repetitions, and those of each folder are sorted.
    """
    found = FolderContents()
    missing = {}
    for name in given:
        if os.path.isdir(name):
            contents = find_recordings(name)
            found.add(contents)
            if not contents.files:
                missing[name] = f"the folder contains no file that ends in {', '.join(AUDIO_SUFFIXES)}"
        else:
            found.files.append(name)
            if not os.path.lexists(split_segment(name)[0]) and "://" not in name:
                missing[name] = ""
    found.files = list(dict.fromkeys(found.files))
    return found, missing
