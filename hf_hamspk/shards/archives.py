"""Listing and reading the members of tar and zip archives; nothing is extracted to disk.

Archives are not trusted. A name that leads out of the folder, a link, a device, or a member that is (or claims to be)
larger than any utterance is reported with the reason and not read. The others are read into memory, and never more
bytes than the archive announces. Archives that were split for download (`vox1_dev_wav_partaa`, `..._partab`, ...) are
read as one file, without joining them.
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

MAX_MEMBER = 256 * 2**20
"""Bytes of one file: two hours of 16-bit audio at 16 kHz."""

MAX_HEADER = 2**20
"""Bytes that the tar reader may ask for at once. Extended headers take hundreds, and may claim gigabytes."""


STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
"""Compression methods of a zip that are read."""

SPEAKER_FIELDS = ("speaker", "speaker_id", "spk_id", "spk", "client_id")
"""Where the JSON beside an utterance, or a column of a data set, names the speaker; the first that is there."""

SPEAKER_SUFFIXES = (".cls", ".spk", ".json")
"""Members of a WebDataset tar that name the speaker of an utterance."""


_PART = re.compile(r"(?P<stem>.*[._-]part)(?P<letters>[a-z]{2})")

LETTERS = 26


class ArchiveError(ValueError):
    """An archive, or one of its members, that is not as it should be."""


class Member(NamedTuple):
    """Place of a file in an archive.

    Attributes:
        name: with forward slashes.
        offset: of its data in a tar, of its local header in a zip; bytes.
        stored: bytes that it takes in the archive.
        size: bytes of the file.
        method: of zip's compression; `STORED` in a tar.
        check: CRC-32 in a zip; 0 in a tar.
    """

    name: str
    offset: int
    stored: int
    size: int
    method: int = STORED
    check: int = 0


@dataclass(frozen=True)
class Refused:
    """A member that is not read.

    Attributes:
        name: as in the archive.
        reason: why.
    """

    name: str
    reason: str


def unsafe_name(name: str) -> str | None:
    """Why a member's name cannot be trusted, or None."""
    if not name or "\0" in name:
        return "its name is empty or holds a zero byte"
    if name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":"):
        return "its name is an absolute path"
    if ".." in PurePosixPath(name.replace("\\", "/")).parts:
        return "its name leads out of the archive with '..'"
    return None


def _too_large(size: int) -> str | None:
    if size <= MAX_MEMBER:
        return None
    return f"claims {size} bytes, more than the {MAX_MEMBER} of any utterance"


class Guarded:
    """A file that refuses to read much at once, for parsers that trust the sizes in headers.

    Attributes:
        last: bytes of the last read.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        """As of a file; `ArchiveError` for more than `MAX_HEADER` bytes."""
        if not 0 <= size <= MAX_HEADER:
            raise ArchiveError(f"a tar header claims {size} bytes of extended header, at most {MAX_HEADER} are read")
        self.last = self.file.read(size)
        return self.last

    def seek(self, *place: int) -> int:
        """As of a file."""
        return self.file.seek(*place)

    def tell(self) -> int:
        """As of a file."""
        return self.file.tell()


def list_tar(file: BinaryIO) -> Iterator[Member | Refused]:
    """The members of an uncompressed tar, in order; folders are left out.

    The file is read forwards only, and beyond the header of a member nothing is read before the next is asked for: a
    caller may read each member from `file` as it comes.

    Raises:
        ArchiveError: the tar is damaged, cut short or no tar; raised after the members that could be read.
    """
    try:
        guarded = Guarded(file)
        with tarfile.open(fileobj=guarded, mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                # TarFile keeps every member that it has seen.
                tar.members = []  # type: ignore[attr-defined]
                if member.isdir():
                    continue
                reason = unsafe_name(member.name)
                if reason is None and not member.isreg():
                    kind = "a link" if member.issym() or member.islnk() else "a device or another special file"
                    reason = f"is {kind}, no file"
                if reason is None and member.issparse():
                    reason = "is a sparse file"
                reason = _too_large(member.size) if reason is None else reason
                if reason is None:
                    yield Member(member.name, member.offset_data, member.size, member.size)
                else:
                    yield Refused(member.name, reason)
            # TarFile takes anything that is no header for the end.
            if guarded.last != tarfile.NUL * tarfile.BLOCKSIZE:
                reason = f"after byte {tar.offset} is no header" if guarded.last else "its end mark is missing"
                raise ArchiveError(f"the tar is damaged or cut short ({reason}); copy it again")
    except ArchiveError:
        raise
    except (tarfile.TarError, EOFError, zlib.error, RecursionError, ValueError) as error:
        raise ArchiveError(f"the tar is damaged or cut short ({error}); copy it again") from error


def read_forwards(file: BinaryIO, member: Member) -> bytes:
    """The bytes of a member of a tar, from a file that seeks forwards only.

    Raises:
        ArchiveError: the tar ends within it.
    """
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) < member.size:
        raise ArchiveError(f"is cut short: {len(content)} bytes of {member.size}")
    return content


_LOCAL = struct.Struct("<4s5H3L2H")


# Bits of a zip member's flags, and of the mode that Unix archivers store for it.
ENCRYPTED, FILE_TYPE, LINK = 0x1, 0o170000, 0o120000


def list_zip(file: BinaryIO) -> Iterator[Member | Refused]:
    """List the members of a zip, in the order of its directory; folders are left out.

    `zipfile` holds the whole directory in memory meanwhile: about 650 bytes for each member, 0.7 GB for the million
    files of VoxCeleb2. Reading a member afterwards (`read_member`) needs no directory.

    Raises:
        ArchiveError: it is no zip, damaged, or its end is missing.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error, OSError, ValueError) as error:
        raise ArchiveError(
            f"it is no zip, or its end is missing ({error}): are all parts there, and complete?"
        ) from error
    if any(member.header_offset < 0 for member in members):
        raise ArchiveError("the zip is cut short: are all parts there, and in order?")
    for member in members:
        if member.is_dir():
            continue
        reason = unsafe_name(member.orig_filename)
        if reason is None and (member.external_attr >> 16) & FILE_TYPE == LINK:
            reason = "is a link, no file"
        if reason is None and member.flag_bits & ENCRYPTED:
            reason = "is encrypted"
        if reason is None and member.compress_type not in (STORED, DEFLATED):
            reason = f"is compressed by method {member.compress_type}, only 0 (none) and 8 (deflate) are read"
        reason = _too_large(max(member.file_size, member.compress_size)) if reason is None else reason
        if reason is None:
            where = (member.header_offset, member.compress_size, member.file_size)
            yield Member(member.filename, *where, member.compress_type, member.CRC)
        else:
            yield Refused(member.orig_filename, reason)


def read_member(file: BinaryIO, member: Member, zipped: bool) -> bytes:
    """The bytes of a member.

    Args:
        file: the archive.
        member: from `list_zip` or `list_tar`.
        zipped: the archive is a zip.

    Raises:
        ArchiveError: the archive is damaged there, or the member has another size than announced.
    """
    if not zipped:
        return read_forwards(file, member)
    file.seek(member.offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or header[:4] != b"PK\3\4":
        raise ArchiveError("the zip is damaged where the file should be; copy it again")
    *_, name_length, extra_length = _LOCAL.unpack(header)
    file.seek(member.offset + _LOCAL.size + name_length + extra_length)
    content = file.read(member.stored)
    if member.method == DEFLATED:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One byte more than announced shows that the size is wrong.
            content = inflate.decompress(content, member.size + 1)
        except zlib.error as error:
            raise ArchiveError(f"cannot be inflated ({error}); copy the archive again") from error
    if len(content) != member.size:
        more = "more" if len(content) > member.size else f"{len(content)}, not"
        raise ArchiveError(f"holds {more} than the {member.size} bytes that the archive says; copy it again")
    if zlib.crc32(content) != member.check:
        raise ArchiveError("is damaged (its CRC-32 differs); copy the archive again")
    return content


class JoinedParts(io.RawIOBase):
    """Several files as one file to read and to seek in.

    Args:
        paths: in order.
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
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of a file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._ends[-1]}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        """As of a file."""
        return self._place

    def readinto(self, buffer) -> int:
        """Fill the buffer from the part at this place; fewer bytes at the end of a part."""
        index = bisect.bisect_right(self._ends, self._place)
        if index == len(self._files):
            return 0
        start = self._ends[index - 1] if index else 0
        self._files[index].seek(self._place - start)
        count = self._files[index].readinto(buffer)
        self._place += count
        return count

    def close(self) -> None:
        """Close all parts."""
        for file in self._files:
            file.close()
        super().close()


def open_parts(paths: Sequence[Path]) -> BinaryIO:
    """One file, or several as one, buffered."""
    if len(paths) == 1:
        return open(paths[0], "rb")
    return cast(BinaryIO, io.BufferedReader(JoinedParts(paths), 2**16))


def is_part(path: Path) -> bool:
    """Whether a file is named as a part: `..._partaa`."""
    return _PART.fullmatch(path.name) is not None


def all_parts(path: Path) -> list[Path]:
    """The parts of the set that a part belongs to, from its folder, in order.

    Raises:
        ValueError: one between the first and the last is missing.
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
        raise ValueError(
            f"{path.parent} has {len(found)} parts {stem}.., but not {name}; download it, or the archive has a hole"
        )
    return [found[number] for number in sorted(found)]


def _number(letters: str) -> int:
    return (ord(letters[0]) - ord("a")) * LETTERS + ord(letters[1]) - ord("a")


def group_samples(
    file: BinaryIO, refuse: Callable[[Refused], None], take: Callable[[Member], Any] = lambda member: member
) -> Iterator[tuple[Any, str | None]]:
    """Members of a tar, each with the speaker that a member of the same key names, or None.

    Args:
        file: the tar, which is read forwards only.
        refuse: called with each member that cannot be used.
        take: called for each member as it is reached, for its value; None leaves it out.
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
    """WebDataset's key of a member (its path up to the first dot of the file name) and the suffix after it."""
    match = re.fullmatch(r"((?:.*/)?[^/.]*)(\.[^/]*)?", name, re.DOTALL)
    key, suffix = (match[1], match[2]) if match is not None else (name, "")
    return key, "" if suffix is None else suffix.lower()


def read_speaker(content: bytes, suffix: str) -> str | None:
    """The speaker that a `.cls`, `.spk` or `.json` member names, or None."""
    try:
        text = content.decode("utf-8").strip()
        if suffix != ".json":
            return text if text else None
        values = json.loads(text)
    except ValueError:
        return None
    named = [str(values[name]) for name in SPEAKER_FIELDS if name in values] if isinstance(values, dict) else []
    return named[0] if named else None
