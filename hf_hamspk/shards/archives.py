"""List and read the members of tar and zip archives without extracting them to disk.

The content of an archive is not trusted. A member is reported with a reason and not read if its name leads out of the
archive, if it is a link or a device, or if its size is above `MAX_MEMBER`. The other members are read into memory, each
with at most as many bytes as the archive declares for it. Archives that were split for download
(`vox1_dev_wav_partaa`, `..._partab`, ...) are read as one file, without joining them on disk.
"""

import bisect
import io
import json
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from ..files.corpora import SPEAKER_COLUMNS

MAX_MEMBER = 256 * 2**20
"""Largest accepted size of a member in bytes: more than two hours of 16-bit audio at 16 kHz."""

MAX_HEADER = 2**20
"""Largest number of bytes that the tar reader reads at once.

Extended headers usually have a few hundred bytes, but a damaged or malicious one can declare gigabytes.
"""

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
"""Compression methods of zip members that can be read."""

SPEAKER_SUFFIXES = (".cls", ".spk", ".json")
"""Suffixes of the members of a WebDataset tar that contain the speaker of an utterance."""


_PART = re.compile(r"(?P<stem>.*[._-]part)(?P<letters>[a-z]{2})")

LETTERS = 26


class ArchiveError(ValueError):
    """Error for an archive, or one of its members, that is damaged or cannot be read."""


class Member(NamedTuple):
    """Location of a file in an archive.

    Attributes:
        name: path of the file in the archive, with forward slashes.
        offset: byte offset of the data in a tar, or of the local header in a zip.
        stored: number of bytes that the file occupies in the archive.
        size: number of bytes of the uncompressed file.
        method: compression method in a zip; `STORED` in a tar.
        check: CRC-32 of the file in a zip; 0 in a tar.
    """

    name: str
    offset: int
    stored: int
    size: int
    method: int = STORED
    check: int = 0


@dataclass(frozen=True)
class Refused:
    """Member of an archive that is not read.

    Attributes:
        name: name of the member in the archive.
        reason: reason why the member is not read.
    """

    name: str
    reason: str


def unsafe_name(name: str) -> str | None:
    """Return the reason why a member's name is unsafe, or None if it is safe."""
    if not name or "\0" in name:
        return "its name is empty or contains a zero byte"
    if name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":"):
        return "its name is an absolute path"
    if ".." in PurePosixPath(name.replace("\\", "/")).parts:
        return "its name leads out of the archive with '..'"
    return None


def _too_large(size: int) -> str | None:
    if size <= MAX_MEMBER:
        return None
    return f"declares {size} bytes, but at most {MAX_MEMBER} are read"


class Guarded:
    """File wrapper for `tarfile` that refuses to read more than `MAX_HEADER` bytes at once.

    Without this limit, `tarfile` would read as many bytes as a header declares, even gigabytes.

    Attributes:
        last: bytes that the most recent call of `read` returned.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, or raise `ArchiveError` if `size` is above `MAX_HEADER`."""
        if not 0 <= size <= MAX_HEADER:
            raise ArchiveError(
                f"a tar header declares {size} bytes of extended header, but at most {MAX_HEADER} are read"
            )
        self.last = self.file.read(size)
        return self.last

    def seek(self, *place: int) -> int:
        """Move to a position in the file and return it."""
        return self.file.seek(*place)

    def tell(self) -> int:
        """Return the current position in the file."""
        return self.file.tell()


def list_tar(file: BinaryIO) -> Iterator[Member | Refused]:
    """Yield the members of an uncompressed tar in order. Folders are skipped.

    The file is only read forwards. When a member is yielded, only its header has been read, so the caller can read its
    data from `file` before requesting the next member.

    Raises:
        ArchiveError: the file is damaged, is cut short or is not a tar. The members before the damaged place are
            yielded first.
    """
    try:
        guarded = Guarded(file)
        with tarfile.open(fileobj=guarded, mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                # Otherwise TarFile would keep every member in memory.
                tar.members = []  # type: ignore[attr-defined]
                if member.isdir():
                    continue
                reason = unsafe_name(member.name)
                if reason is None and not member.isreg():
                    kind = "a link" if member.issym() or member.islnk() else "a device or another special file"
                    reason = f"is {kind}, not a file"
                if reason is None and member.issparse():
                    reason = "is a sparse file"
                reason = _too_large(member.size) if reason is None else reason
                if reason is None:
                    yield Member(member.name, member.offset_data, member.size, member.size)
                else:
                    yield Refused(member.name, reason)
            # TarFile treats every block that is not a header as the end of the archive.
            if guarded.last != tarfile.NUL * tarfile.BLOCKSIZE:
                reason = f"no header after byte {tar.offset}" if guarded.last else "its end mark is missing"
                raise ArchiveError(f"the tar is damaged or cut short ({reason}); copy it again")
    except ArchiveError:
        raise
    except (tarfile.TarError, EOFError, zlib.error, RecursionError, ValueError) as error:
        raise ArchiveError(f"the tar is damaged or cut short ({error}); copy it again") from error


def read_forwards(file: BinaryIO, member: Member) -> bytes:
    """Read the data of a tar member. The file only needs to support seeking forwards.

    Raises:
        ArchiveError: the tar ends within the member.
    """
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) < member.size:
        raise ArchiveError(f"is cut short: it has {len(content)} of {member.size} bytes")
    return content


_LOCAL = struct.Struct("<4s5H3L2H")


# Bit masks for the flags of a zip member and for its Unix mode.
ENCRYPTED, FILE_TYPE, LINK = 0x1, 0o170000, 0o120000


def list_zip(file: BinaryIO) -> Iterator[Member | Refused]:
    """Yield the members of a zip in the order of its directory. Folders are skipped.

    While listing, `zipfile` keeps the complete directory in memory. It takes about 650 bytes per member, or 0.7 GB for
    the million files of VoxCeleb2. Reading a member later with `read_member` does not need the directory.

    Raises:
        ArchiveError: the file is not a zip, is damaged or is incomplete.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error, OSError, ValueError) as error:
        raise ArchiveError(
            f"it is not a zip, or its end is missing ({error}); check that all parts exist and are complete"
        ) from error
    if any(member.header_offset < 0 for member in members):
        raise ArchiveError("the zip is cut short; check that all its parts exist and are in order")
    for member in members:
        if member.is_dir():
            continue
        reason = unsafe_name(member.orig_filename)
        if reason is None and (member.external_attr >> 16) & FILE_TYPE == LINK:
            reason = "is a link, not a file"
        if reason is None and member.flag_bits & ENCRYPTED:
            reason = "is encrypted"
        if reason is None and member.compress_type not in (STORED, DEFLATED):
            reason = f"has the compression method {member.compress_type}, but only 0 (none) and 8 (deflate) can be read"
        reason = _too_large(max(member.file_size, member.compress_size)) if reason is None else reason
        if reason is None:
            where = (member.header_offset, member.compress_size, member.file_size)
            yield Member(member.filename, *where, member.compress_type, member.CRC)
        else:
            yield Refused(member.orig_filename, reason)


def read_member(file: BinaryIO, member: Member, zipped: bool) -> bytes:
    """Read the bytes of a member.

    Args:
        file: the archive.
        member: location of the member, from `list_zip` or `list_tar`.
        zipped: whether the archive is a zip.

    Raises:
        ArchiveError: the archive is damaged at the location of the member, or the member has a different size than the
            archive declares.
    """
    if not zipped:
        return read_forwards(file, member)
    file.seek(member.offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or header[:4] != b"PK\3\4":
        raise ArchiveError("the zip is damaged: no file begins at the declared offset; copy it again")
    *_, name_length, extra_length = _LOCAL.unpack(header)
    file.seek(member.offset + _LOCAL.size + name_length + extra_length)
    content = file.read(member.stored)
    if member.method == DEFLATED:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # Request one byte more than declared, to detect a wrong size.
            content = inflate.decompress(content, member.size + 1)
        except zlib.error as error:
            raise ArchiveError(f"cannot be decompressed ({error}); copy the archive again") from error
    if len(content) != member.size:
        found = "more" if len(content) > member.size else str(len(content))
        raise ArchiveError(f"should have {member.size} bytes, but has {found}; copy the archive again")
    if zlib.crc32(content) != member.check:
        raise ArchiveError("is damaged (its CRC-32 differs); copy the archive again")
    return content


class JoinedParts(io.RawIOBase):
    """Read-only, seekable file object that presents several files as one.

    Args:
        paths: paths of the files, in order.
    """

    def __init__(self, paths: Sequence[Path]):
        super().__init__()
        self._files = [open(path, "rb", buffering=0) for path in paths]  # noqa: SIM115
        self._ends = []
        total = 0
        for path in paths:
            total += path.stat().st_size
            self._ends.append(total)
        self._place = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position in the joined file and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._ends[-1]}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        """Return the current position in the joined file."""
        return self._place

    def readinto(self, buffer) -> int:
        """Read bytes from the current position into `buffer`, and return the number of bytes.

        A call reads from only one of the files. If this file ends, fewer bytes than the size of `buffer` are read.
        """
        index = bisect.bisect_right(self._ends, self._place)
        if index == len(self._files):
            return 0
        start = self._ends[index - 1] if index else 0
        self._files[index].seek(self._place - start)
        count = self._files[index].readinto(buffer)
        self._place += count
        return count

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()
        super().close()


def open_parts(paths: Sequence[Path]) -> BinaryIO:
    """Open the files at `paths` as a single binary file, which contains them one after the other."""
    if len(paths) == 1:
        return open(paths[0], "rb")
    return cast(BinaryIO, io.BufferedReader(JoinedParts(paths), 2**16))


def is_part(path: Path) -> bool:
    """Return True if a file is a part of a split archive according to its name, such as `..._partaa`."""
    return _PART.fullmatch(path.name) is not None


def all_parts(path: Path) -> list[Path]:
    """Return all parts of an archive in order, given the path of one part. A file that is not a part is returned alone.

    Raises:
        ValueError: a part between the first and the last is missing.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    stem = match["stem"]
    found = {}
    for other in path.parent.iterdir():
        part = _PART.fullmatch(other.name)
        if part is not None and part["stem"] == stem:
            found[_number(part["letters"])] = other
    missing = [number for number in range(max(found) + 1) if number not in found]
    if missing:
        letters = divmod(missing[0], LETTERS)
        name = stem + "".join(chr(ord("a") + letter) for letter in letters)
        raise ValueError(f"{path.parent} has {len(found)} parts {stem}.., but not {name}; download the missing part")
    return [found[number] for number in sorted(found)]


def _number(letters: str) -> int:
    return (ord(letters[0]) - ord("a")) * LETTERS + ord(letters[1]) - ord("a")


def group_samples(
    file: BinaryIO, refuse: Callable[[Refused], None], take: Callable[[Member], Any] = lambda member: member
) -> Iterator[tuple[Any, str | None]]:
    """Yield each member of a WebDataset tar together with its speaker.

    The speaker is read from the `.cls`, `.spk` or `.json` member with the same key, which itself is not yielded. If the
    tar has no such member, the speaker is None.

    Args:
        file: the tar. It is only read forwards.
        refuse: function that is called with each member that cannot be used.
        take: function that is called with each usable member as soon as its header has been read. The result of `take`
            is yielded instead of the member. If the result is None, the member is skipped.

    Raises:
        ArchiveError: the tar is damaged. The members before the damaged place are yielded first.
    """
    waiting: list[Any] = []
    key, speaker, failure = None, None, None
    try:
        for member in list_tar(file):
            if isinstance(member, Refused):
                refuse(member)
                continue
            own, suffix = sample_key(member.name)
            if own != key:
                yield from ((each, speaker) for each in waiting)
                waiting, key, speaker = [], own, None
            if suffix in SPEAKER_SUFFIXES and member.size <= MAX_HEADER:
                speaker = read_speaker(read_forwards(file, member), suffix)
            elif (value := take(member)) is not None:
                waiting.append(value)
    except ArchiveError as error:
        failure = error
    yield from ((each, speaker) for each in waiting)
    if failure is not None:
        raise failure


def sample_key(name: str) -> tuple[str, str]:
    """Return the WebDataset key of a member (its path up to the first dot of the file name) and the suffix after it."""
    match = re.fullmatch(r"((?:.*/)?[^/.]*)(\.[^/]*)?", name, re.DOTALL)
    key, suffix = (match[1], match[2]) if match is not None else (name, "")
    return key, "" if suffix is None else suffix.lower()


def read_speaker(content: bytes, suffix: str) -> str | None:
    """Return the speaker from the content of a `.cls`, `.spk` or `.json` member; None if it contains no speaker."""
    try:
        text = content.decode("utf-8").strip()
        if suffix != ".json":
            return text if text else None
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    named = [str(values[name]) for name in SPEAKER_COLUMNS if name in values] if isinstance(values, dict) else []
    return named[0] if named else None
