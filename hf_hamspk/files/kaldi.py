"""Read data folders of Kaldi: `wav.scp` with `utt2spk`, and perhaps `segments`.

`wav.scp` names the file of each recording. If there is a file `segments`, each of its lines is an utterance: a part of
a recording, from a start to an end in seconds. Otherwise, each recording is an utterance. `utt2spk` names the speaker
of each utterance. (https://kaldi-asr.org/doc/data_prep.html)

Kaldi also accepts commands in `wav.scp`. They are refused, and never run.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path

from .tables import Segment, TableRow

RECORDINGS_FILE, SPEAKERS_FILE, SEGMENTS_FILE = "wav.scp", "utt2spk", "segments"

KALDI_COLUMNS = ("path", "speaker_id")
"""Names of the cells in the rows of a Kaldi folder."""

MOST_CHARACTERS = 1 << 20
"""Number of characters above which a line is refused. This limits the memory for files that contain something else."""

_NAMED = 100
_ARCHIVE = re.compile(r"\.(?:ark|scp):\d+$")


def is_kaldi_folder(path: Path) -> bool:
    """Return True if a folder contains `wav.scp`."""
    return (path / RECORDINGS_FILE).is_file()


def kaldi_rows(folder: Path) -> Iterator[TableRow]:
    """Yield the utterances of a Kaldi folder, in the order of `segments` or `wav.scp`.

    The cells of a row are `path` and `speaker_id`. Invalid times give a row a `problem`.

    Raises:
        ValueError: a file is missing or invalid, `wav.scp` contains a command or an archive, or the files do not have
            the same utterances.
    """
    recordings = _read_recordings(folder / RECORDINGS_FILE)
    speakers = _read_speakers(folder / SPEAKERS_FILE)
    audio, speaker = KALDI_COLUMNS
    used = 0
    for line, utterance, recording, times in _utterances(folder, recordings):
        if utterance not in speakers:
            raise ValueError(
                f"{folder / SPEAKERS_FILE} names no speaker for the utterance {_shown(utterance)}. Complete the file, "
                "or run utils/fix_data_dir.sh of Kaldi."
            )
        used += 1
        cells = {audio: recordings[recording], speaker: speakers[utterance]}
        segment, problem = _segment(*times) if times else (None, "")
        yield TableRow(line, cells, segment, problem)
    if used < len(speakers):
        raise ValueError(
            f"{folder / SPEAKERS_FILE} has {len(speakers)} utterances, but only {used} of them have a recording. "
            "Remove the others, or run utils/fix_data_dir.sh of Kaldi."
        )


def _utterances(folder: Path, recordings: dict[str, str]) -> Iterator[tuple[int, str, str, list[str]]]:
    """Yield line number, utterance, recording, and start and end; the last two are missing without `segments`."""
    path = folder / SEGMENTS_FILE
    if not path.is_file():
        yield from ((line, name, name, []) for line, name in enumerate(recordings, start=1))
        return
    seen = set()
    for line, utterance, rest in _word_lines(path):
        words = rest.split()
        if len(words) != 3:
            raise ValueError(
                f"{path}, line {line}: expected an utterance, a recording, a start and an end, got "
                f"{len(words) + 1} words. Channels are not supported; write each channel to a file."
            )
        if words[0] not in recordings:
            raise ValueError(
                f"{path}, line {line}: the recording {_shown(words[0])} is not in {RECORDINGS_FILE}. Correct one of "
                "the files."
            )
        _require_new(utterance, seen, path, line)
        yield line, utterance, words[0], words[1:]


def _read_recordings(path: Path) -> dict[str, str]:
    """Return the file of each recording."""
    found: dict[str, str] = {}
    for line, name, file in _word_lines(path):
        if file.endswith("|") or file.startswith("|"):
            raise ValueError(
                f"{path}, line {line}: expected the path of a recording, got the command {_shown(file)}. Commands are "
                "never run. Write the recordings to files, and name the files."
            )
        if file == "-" or _ARCHIVE.search(file):
            raise ValueError(
                f"{path}, line {line}: expected the path of a recording, got {_shown(file)}. Archives of Kaldi and "
                "standard input cannot be read. Write the recordings to files, and name the files."
            )
        _require_new(name, found, path, line)
        found[name] = file
    return found


def _read_speakers(path: Path) -> dict[str, str]:
    """Return the speaker of each utterance."""
    found: dict[str, str] = {}
    for line, utterance, speaker in _word_lines(path):
        if len(speaker.split()) != 1:
            raise ValueError(f"{path}, line {line}: expected an utterance and a speaker, got more than two words.")
        _require_new(utterance, found, path, line)
        found[utterance] = speaker
    return found


def _word_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, first word, and the rest of each line that is not empty."""
    if not path.is_file():
        raise ValueError(
            f"{path} not found. A Kaldi folder needs {RECORDINGS_FILE} and {SPEAKERS_FILE}, and perhaps "
            f"{SEGMENTS_FILE}."
        )
    empty = True
    for line, text in text_lines(path):
        words = text.split(maxsplit=1)
        if len(words) == 1 or "\0" in text:
            raise ValueError(
                f"{path}, line {line}: expected at least two words without NUL characters, got {_shown(text.strip())}."
            )
        if words:
            empty = False
            yield line, words[0], words[1].strip()
    if empty:
        raise ValueError(f"{path} is empty.")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line of a file.

    Raises:
        ValueError: the file is not UTF-8, or a line is longer than `MOST_CHARACTERS`.
    """
    line = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            while text := file.readline(MOST_CHARACTERS):
                line += 1
                if len(text) == MOST_CHARACTERS and not text.endswith("\n"):
                    raise ValueError(f"{path}, line {line}: the line is longer than {MOST_CHARACTERS} characters.")
                yield line, text
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8 ({error}). Save it in UTF-8.") from error


def _segment(start: str, stop: str) -> tuple[Segment | None, str]:
    """Return a segment (None for the whole recording), and the reason why its times are invalid ("" if they are valid).

    An end of -1 is the end of the recording.
    """
    try:
        first, last = float(start), float(stop)
    except ValueError:
        first = last = math.nan
    whole = last == -1
    if not (0 <= first < math.inf and (whole or first < last < math.inf)):
        return None, (
            f"expected a start and a later end in seconds, got {_shown(start)} and {_shown(stop)}. Correct the times."
        )
    return (None if whole and first == 0 else Segment(first, None if whole else last)), ""


def _require_new(name: str, seen: set[str] | dict[str, str], path: Path, line: int) -> None:
    if name in seen:
        raise ValueError(f"{path}, line {line}: {_shown(name)} occurs twice. Remove one of the lines.")
    if isinstance(seen, set):
        seen.add(name)


def _shown(text: str) -> str:
    return repr(text) if len(text) <= _NAMED else f"{text[:_NAMED]!r}..."
