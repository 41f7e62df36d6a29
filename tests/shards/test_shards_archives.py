"""Archives of strangers: what is read agrees with the standard library, what is not is refused with its reason."""

import io
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from prepare_sources import as_file, noise, python

from hf_hamspk.shards.archives import (
    MAX_MEMBER,
    ArchiveError,
    Member,
    Refused,
    all_parts,
    list_tar,
    list_zip,
    open_parts,
    read_member,
    unsafe_name,
)

FILES = {f"id0000{n}/v/{n}.wav": as_file(noise(n, 0.1)) for n in range(4)}


def make_tar(*members: tuple[tarfile.TarInfo, bytes], kind=tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def entry(name: str, content: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def make_zip(files=FILES, **kwargs) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, **kwargs) as archive:
        archive.writestr("folder/", b"")
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def contents(archive: bytes, listed) -> dict[str, bytes]:
    file = io.BytesIO(archive)
    found = list(listed(io.BytesIO(archive)))
    assert all(isinstance(member, Member) for member in found)
    return {member.name: read_member(file, member, listed is list_zip) for member in found}


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_read_as_tarfile_reads_it(kind):
    files = FILES | ({} if kind == tarfile.USTAR_FORMAT else {"x" * 300 + "é.wav": b"long"})
    folder = tarfile.TarInfo("id00000")
    folder.type = tarfile.DIRTYPE
    archive = make_tar((folder, b""), *(entry(name, content) for name, content in files.items()), kind=kind)
    assert contents(archive, list_tar) == files


@pytest.mark.parametrize("junk", [b"", b"#!/bin/sh\n" * 100])
@pytest.mark.parametrize("wide", [False, True])
def test_a_zip_is_read_as_zipfile_reads_it(monkeypatch, junk, wide):
    if wide:
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    assert contents(junk + make_zip(), list_zip) == FILES


def test_a_zip_with_a_comment_and_names_in_utf_8(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("söme/näme.wav", b"stored")
        archive.comment = b"PK" * 1000
    assert contents((tmp_path / "a.zip").read_bytes(), list_zip) == {"söme/näme.wav": b"stored"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd.wav", "absolute"),
        ("C:\\x.wav", "absolute"),
        ("\\\\host\\x.wav", "absolute"),
        ("a/../../x.wav", "leads out"),
        ("a\\..\\x.wav", "leads out"),
        ("a\0.wav", "zero byte"),
        ("", "empty"),
    ],
)
def test_unsafe_names(name, reason):
    assert reason in str(unsafe_name(name))
    assert unsafe_name("id00001/a..b/..c.wav") is None


def test_hostile_members_of_a_tar_are_refused_and_the_others_read():
    good = as_file(noise(1, 0.1))
    members = [
        entry("id1/a.wav", good),
        entry("/abs.wav", good),
        entry("../out.wav", good),
        entry("id1/sym.wav", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("id1/hard.wav", type=tarfile.LNKTYPE, linkname="id1/a.wav"),
        entry("id1/dev.wav", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        entry("id1/pipe.wav", type=tarfile.FIFOTYPE),
        entry("id1/b.wav", good),
    ]
    found = list(list_tar(io.BytesIO(make_tar(*members))))
    assert [member.name for member in found if isinstance(member, Member)] == ["id1/a.wav", "id1/b.wav"]
    reasons = {member.name: member.reason for member in found if isinstance(member, Refused)}
    assert "absolute" in reasons["/abs.wav"]
    assert "'..'" in reasons["../out.wav"]
    assert all("is a link" in reasons[f"id1/{name}.wav"] for name in ("sym", "hard"))
    assert all("device" in reasons[f"id1/{name}.wav"] for name in ("dev", "pipe"))


def claiming(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar header that claims `size` bytes."""
    info = tarfile.TarInfo("id1/huge.wav")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def test_a_tar_header_that_claims_two_gigabytes_is_not_believed(tmp_path):
    """Also where the two gigabytes are there; whatever sort of header claims them."""
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE):
        with open(tmp_path / f"{kind.decode()}.tar", "wb") as file:
            file.write(make_tar(entry("id1/a.wav", b"good"))[:1024] + claiming(2**31, kind))
            file.truncate(2**31 + 4096)
    out = python(
        """
        bound(100)
        for path in sys.argv[1:]:
            try:
                with open(path, "rb") as file:
                    for member in list_tar(file):
                        print(type(member).__name__, member)
            except ArchiveError as error:
                print("ArchiveError", error)
        """,
        *sorted(tmp_path.glob("*.tar")),
    ).splitlines()
    assert sum(line.startswith("Member") for line in out) == 5
    assert sum("Refused" in line and f"declares {2**31} bytes" in line for line in out) == 1
    assert sum("of extended header" in line for line in out) == 3


def test_damage_in_a_tar_is_told_after_what_came_before():
    whole = make_tar(*(entry(name, content) for name, content in FILES.items()))
    where = whole.index(b"id00002/v")
    cases = {
        "no header after byte": whole[:where] + b"\xff" * 512 + whole[where + 512 :],
        "end mark": whole[:where],
        "unexpected end": whole[: where + 700],
    }
    for message, archive in cases.items():
        found = []
        with pytest.raises(ArchiveError, match=f"damaged or cut short.*{message}"):
            found.extend(iter_into(found, list_tar(io.BytesIO(archive))))
        assert [member.name for member in found][:2] == list(FILES)[:2]
    with pytest.raises(ArchiveError, match="damaged"):
        list(list_tar(io.BytesIO(b"this is no tar" * 100)))


def iter_into(found, members):
    for member in members:
        found.append(member)
    return []


def edited(archive: bytes, **fields) -> bytes:
    """A zip whose first file has other numbers in the directory."""
    layout = {"made": (4, "<H"), "flags": (8, "<H"), "method": (10, "<H"), "check": (16, "<L"), "stored": (20, "<L")}
    layout |= {"size": (24, "<L"), "mode": (38, "<L"), "offset": (42, "<L")}
    start = archive.index(b"PK\1\2", archive.index(b"PK\1\2") + 4)  # the first is the folder
    changed = bytearray(archive)
    for name, value in fields.items():
        place, kind = layout[name]
        struct.pack_into(kind, changed, start + place, value)
    return bytes(changed)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"flags": 1}, "encrypted"),
        ({"method": 12}, "method 12"),
        ({"size": 2**31}, f"declares {2**31} bytes"),
        ({"stored": 2**31}, f"declares {2**31} bytes"),
        ({"made": 3 << 8, "mode": 0o120777 << 16}, "is a link"),
    ],
)
def test_hostile_members_of_a_zip_are_refused(fields, reason):
    first, *others = list_zip(io.BytesIO(edited(make_zip(), **fields)))
    assert isinstance(first, Refused)
    assert reason in first.reason
    assert len(others) == 3


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"size": 50}, "should have 50 bytes, but has more"),
        ({"size": 99_999}, "should have 99999 bytes, but has [0-9]+; copy"),
        ({"check": 1}, "CRC-32"),
        ({"offset": 7}, "no file begins at the declared offset"),
        ({"method": 0}, "should have"),
    ],
)
def test_a_zip_that_lies_is_found_out_on_reading(fields, reason):
    archive = io.BytesIO(edited(make_zip(), **fields))
    first = next(iter(list_zip(archive)))
    assert isinstance(first, Member)
    with pytest.raises(ArchiveError, match=reason):
        read_member(archive, first, zipped=True)


@pytest.mark.slow
def test_a_zip_bomb_is_not_inflated(tmp_path):
    """Zeros without end, said and unsaid."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("folder/", b"")
        with archive.open("id1/bomb.wav", "w") as member:
            for _ in range(17):
                member.write(bytes(2**24))
    content = (tmp_path / "a.zip").read_bytes()
    assert len(content) < 2**21
    (said,) = list_zip(io.BytesIO(content))
    assert isinstance(said, Refused)
    assert f"at most {MAX_MEMBER} are read" in said.reason
    (tmp_path / "b.zip").write_bytes(edited(content, size=1000))
    out = python(
        """
        bound(50)
        with open(sys.argv[1], "rb") as file:
            (member,) = list_zip(file)
            try:
                read_member(file, member, zipped=True)
            except ArchiveError as error:
                print(error)
        """,
        tmp_path / "b.zip",
    )
    assert "should have 1000 bytes, but has more" in out


def test_what_is_no_zip_or_a_part_of_one():
    whole = make_zip()
    for archive in (b"", b"no zip at all", whole[:-30], whole[: len(whole) // 2]):
        with pytest.raises(ArchiveError, match="its end is missing"):
            list(list_zip(io.BytesIO(archive)))
    with pytest.raises(ArchiveError, match="all its parts exist and are in order"):
        list(list_zip(io.BytesIO(whole[1000:])))


def split(tmp_path, content: bytes, count: int) -> list:
    size = -(-len(content) // count)
    names = [f"vox2_dev_aac_part{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(count)]
    for n, name in enumerate(names):
        (tmp_path / name).write_bytes(content[n * size : (n + 1) * size])
    return [tmp_path / name for name in names]


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_parts_are_one_file(tmp_path, count):
    content = make_zip()
    parts = split(tmp_path, content, count)
    (tmp_path / "vox1_dev_wav_partaa").write_bytes(b"another set")
    assert all_parts(parts[-1]) == parts
    draw = np.random.default_rng(0)
    with open_parts(parts) as file:
        for start, length in draw.integers(0, len(content), (50, 2)):
            file.seek(start)
            assert file.read(length) == content[start : start + length]
        assert file.seek(0, 2) == len(content)
        assert file.read(5) == b""
        names = [member.name for member in list_zip(file)]
    assert names == list(FILES)


def test_a_missing_part_is_named(tmp_path):
    parts = split(tmp_path, make_zip(), 30)
    parts[27].unlink()
    with pytest.raises(ValueError, match=r"29 parts vox2_dev_aac_part\.\., but not vox2_dev_aac_partbb"):
        all_parts(parts[0])
