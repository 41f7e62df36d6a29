"""`prepare`: sources to shards, whole or absent, the same whatever came between."""

import errno
import io
import json
import os
import re
import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from prepare_sources import as_file, as_m4a, noise, voxceleb, write

import hf_hamspk.shards.making as making
import hf_hamspk.shards.streams as streams
from hf_hamspk.data.audio import read_utterance
from hf_hamspk.shards import PrepareOptions, load_manifest, prepare, verify_shards
from hf_hamspk.shards.encoding import to_16_bit
from hf_hamspk.shards.listing import find_layout, key_of, speaker_of
from hf_hamspk.shards.manifest import Manifest, even_shard_count, read_unreadable, shard_name


def make(source, output, restart=False, **options):
    sources = source if isinstance(source, list) else [source]
    return prepare(sources, output, PrepareOptions(**options), progress=False, restart=restart)


def rows(output: Path) -> dict[str, dict]:
    """All utterances of a folder of Parquet shards by key; every key is there once."""
    found = {}
    for shard in load_manifest(output).shards:
        for row in pq.read_table(output / shard.file).to_pylist():
            assert row["key"] not in found
            found[row["key"]] = row
    return found


def waveforms(output: Path) -> dict[str, np.ndarray]:
    return {key: to_16_bit(read_utterance(row["audio"]).waveform) for key, row in rows(output).items()}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key, samples in expected.items():
        np.testing.assert_array_equal(found[key], samples)


@pytest.fixture
def tree(tmp_path):
    return tmp_path / "wav", voxceleb(tmp_path / "wav")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_every_utterance_is_in_one_shard_with_its_samples(tree, out):
    root, made = tree
    manifest = make(root, out, shards=3, rows_per_group=4, licence="CC BY 4.0")
    same(waveforms(out), made)
    assert [shard.file for shard in manifest.shards] == [shard_name(index, 3, "parquet") for index in range(3)]
    assert [shard.rows for shard in manifest.shards] == [6, 7, 7]
    assert manifest.shards[0].row_groups == [4, 2]
    assert manifest.speakers == [f"id{n:05d}" for n in range(4)]
    assert manifest.speaker_utterances == [5] * 4
    assert manifest.seconds == pytest.approx(sum(map(len, made.values())) / 16_000)
    assert (manifest.licence, manifest.source, manifest.unreadable) == ("CC BY 4.0", "wav", 0)
    for key, row in rows(out).items():
        assert row["speaker"] == key.split("/")[0]
        assert row["samples"] == len(made[key])
        assert row["duration"] == len(made[key]) / 16_000
        assert row["audio"]["path"] == f"{key}.flac"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(shard.file for shard in manifest.shards), "manifest.json", "unreadable.csv"]
    )
    assert verify_shards(str(out), progress=False) == []
    assert Manifest.from_json((out / "manifest.json").read_text()) == manifest


@pytest.mark.slow
def test_speakers_are_mixed_in_an_order_that_the_seed_gives(tmp_path):
    voxceleb(tmp_path / "wav", speakers=6, utterances=8)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make(tmp_path / "wav", tmp_path / name, shards=4, seed=seed)
    a, b, c = (list(rows(tmp_path / name)) for name in "abc")
    assert a == b != c
    first = pq.read_table(tmp_path / "a" / shard_name(0, 4, "parquet"))
    assert len(set(first["speaker"].to_pylist())) >= 4
    for shard in load_manifest(tmp_path / "a").shards:
        assert (tmp_path / "a" / shard.file).read_bytes() == (tmp_path / "b" / shard.file).read_bytes()


def test_datasets_reads_the_shards(tree, out):
    root, made = tree
    make(root, out, shards=2)
    files = str(out / "*.parquet")
    data = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    assert data.features is not None
    assert data.features["audio"] == datasets.Audio(sampling_rate=16_000)
    found = {row["key"]: row for row in data.decode(False)}
    assert found.keys() == made.keys()


def test_audio_is_neither_compressed_again_nor_measured(tree, out):
    make(tree[0], out, shards=1)
    column = pq.ParquetFile(out / shard_name(0, 1, "parquet")).metadata.row_group(0).column(0)
    assert (column.path_in_schema, column.compression, column.statistics) == ("audio.bytes", "UNCOMPRESSED", None)


def test_webdataset_members_lie_where_the_index_says(tree, out):
    root, made = tree
    manifest = make(root, out, format="webdataset", shards=3)
    assert verify_shards(str(out), progress=False) == []
    keys = []
    for shard in manifest.shards:
        index = json.loads((out / str(shard.index)).read_text())
        content = (out / shard.file).read_bytes()
        with tarfile.open(out / shard.file) as tar:
            names = tar.getnames()
        assert names == [name for key in index["key"] for name in (f"{key}.flac", f"{key}.json")]
        for key, offset, size in zip(index["key"], index["offset"], index["size"], strict=True):
            np.testing.assert_array_equal(
                to_16_bit(read_utterance(content[offset : offset + size]).waveform), made[key]
            )
        keys += index["key"]
    assert sorted(keys) == sorted(made)


def test_tars_become_shards_again(tree, out, tmp_path):
    root, made = tree
    make(root, tmp_path / "tars", format="webdataset", shards=2)
    make(sorted((tmp_path / "tars").glob("*.tar")), out, shards=2)
    same(waveforms(out), made)


def test_a_webdataset_of_m4a_and_class(out, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(6):
            for suffix, content in (("cls", f"{number % 3}".encode()), ("m4a", as_m4a(noise(number)))):
                path = write(tmp_path, f"{number:09d}.{suffix}", content)
                tar.add(path, path.name)
                path.unlink()
    for name, codec in (("a", "flac"), ("b", "source")):
        make(tmp_path / "a.tar", out / name, codec=codec, shards=2)
        assert {key: row["speaker"] for key, row in rows(out / name).items()} == {
            f"{number:09d}": str(number % 3) for number in range(6)
        }
        assert verify_shards(str(out / name), progress=False) == []
    row = rows(out / "b")["000000000"]
    assert row["audio"]["bytes"] == as_m4a(noise(0))
    assert row["audio"]["path"] == "000000000.m4a"
    assert load_manifest(out / "b").sampling_rate is None


@pytest.mark.parametrize("packed", ["zip", "parts", "tar"])
def test_archives_give_what_the_folder_gives(tree, out, tmp_path, packed):
    root, made = tree
    folder = tmp_path / "packed"
    folder.mkdir()
    if packed == "tar":
        with tarfile.open(folder / "a.tar", "w") as tar:
            tar.add(root, "wav")
    else:
        with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in root.rglob("*.wav"):
                archive.write(path, f"wav/{path.relative_to(root)}")
    if packed == "parts":
        content = (folder / "a.zip").read_bytes()
        (folder / "a.zip").unlink()
        for number in range(3):
            size = len(content) // 3 + 1
            (folder / f"vox1_dev_wav_parta{'abc'[number]}").write_bytes(content[number * size : (number + 1) * size])
    make(folder, out, shards=2)
    same(waveforms(out), {f"wav/{key}": samples for key, samples in made.items()})
    if packed == "parts":
        make(sorted(folder.iterdir()), tmp_path / "named", shards=2)
        same(waveforms(tmp_path / "named"), {f"wav/{key}": samples for key, samples in made.items()})


def test_a_csv_file(tree, out, tmp_path):
    root, made = tree
    lines = [f"{key}.wav,speaker {number % 3},x" for number, key in enumerate(made)]
    (tmp_path / "list.csv").write_text("\n".join(["path,speaker_id,more", *lines, "not/there.wav,a,b"]))
    manifest = make(tmp_path / "list.csv", out, audio_root=str(root), shards=2)
    same(waveforms(out), made)
    assert manifest.speakers == ["speaker 0", "speaker 1", "speaker 2"]
    assert [(path, reason[:12]) for path, reason in read_unreadable(out)] == [("not/there.wav", "no such file")]
    with pytest.raises(ValueError, match=r"no column 'speaker_id'\. Its columns are \['path'\].*--speaker-column"):
        (tmp_path / "short.csv").write_text("path\nx.wav\n")
        make(tmp_path / "short.csv", tmp_path / "other")


@pytest.mark.parametrize("kind", ["file", "folder", "data", "save_to_disk"])
def test_what_datasets_reads(out, tmp_path, kind):
    made = {number: noise(number) for number in range(12)}
    audio = [{"bytes": as_file(samples), "path": f"{number}.wav"} for number, samples in made.items()]
    table = datasets.Dataset.from_dict({"audio": audio, "speaker_id": [number % 3 for number in made]})
    table = table.cast_column("audio", datasets.Audio(decode=False))
    table = table.cast_column("speaker_id", datasets.ClassLabel(names=["ann", "bob", "cy"]))
    folder = tmp_path / "data-set"
    if kind == "save_to_disk":
        table.save_to_disk(str(folder))
    else:
        path = folder / ("data" if kind == "data" else "") / "train-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        table.to_parquet(path)
    source = folder / "train-00000-of-00001.parquet" if kind == "file" else folder
    manifest = make(source, out, shards=2)
    same(waveforms(out), {f"train/{number:09d}": samples for number, samples in made.items()})
    assert manifest.speakers == ["ann", "bob", "cy"]
    assert make(source, out, shards=2) == manifest, "again: there is nothing to do"


def test_two_sources_are_one_corpus(tmp_path, out):
    one = voxceleb(tmp_path / "one", speakers=2)
    two = {f"x{key}": samples for key, samples in one.items()}
    for key, samples in two.items():
        write(tmp_path / "two", f"{key}.flac", as_file(samples, "FLAC"))
    make([tmp_path / "one", tmp_path / "two"], out, shards=2, layout="folders")
    same(waveforms(out), one | two)
    with pytest.raises(ValueError, match="two sources overlap"):
        make([tmp_path / "one", tmp_path / "one"], tmp_path / "twice")


@pytest.mark.parametrize(
    ("name", "layout", "speaker"),
    [
        ("vox1/dev/wav/id10001/1zcIwhmdeo4/00001.wav", "voxceleb", "id10001"),
        ("dev/aac/id00012/21Uxsk56VDQ/00001.m4a", "voxceleb", "id00012"),
        ("data/id00010/singing-01-001.flac", "voxceleb", "id00010"),
        ("eval/enroll/id00800-enroll.flac", "voxceleb", "id00800"),
        ("eval/test/id00801-singing-01-001.flac", "voxceleb", "id00801"),
        ("LibriSpeech/train-clean-100/103/1240/103-1240-0000.flac", "librispeech", "103"),
        ("ann/x/y.wav", "folders", "ann"),
    ],
)
def test_paths_name_speakers(name, layout, speaker):
    assert find_layout([name] * 19 + ["readme/x.wav"]) == layout
    assert speaker_of(name, layout, 1) == speaker
    assert speaker_of("x.wav", layout, 1) is None


def test_the_level_of_the_speaker_can_be_given(tmp_path, out):
    for number in range(6):
        write(tmp_path / "a", f"corpus/spk{number % 2}/u{number}.wav", as_file(noise(number)))
    write(tmp_path / "a", "corpus/stray.wav", as_file(noise(9)))
    with pytest.raises(ValueError, match=r"only the speaker 'corpus' in 7 utterances.*--speaker-level"):
        make(tmp_path / "a", out)
    assert not out.exists() or not list(out.iterdir())
    assert make(tmp_path / "a", out, speaker_level=2).speakers == ["spk0", "spk1"]
    assert read_unreadable(out) == [("corpus/stray.wav", "its path names no speaker: expected a folder at level 2")]


def test_where_every_file_is_left_out_there_are_no_shards(tree, out):
    with pytest.raises(ValueError, match=r"all \d+ files were left out.*lasts .*--restart"):
        make(tree[0], out, min_duration=100.0)
    assert not (out / "manifest.json").exists()


def test_only_the_wanted_speakers(tree, out):
    manifest = make(tree[0], out, speakers=("id00001", "id00003", "id09999"))
    assert manifest.speakers == ["id00001", "id00003"]


def test_keys_have_no_dots_in_the_file_name():
    assert key_of("a.b/c.d.e.wav") == "a.b/c_d_e"


def test_bad_files_are_listed_and_the_others_used(tree, out):
    root, made = tree
    bad = {
        "id00000/v/empty.wav": b"",
        "id00000/v/text.wav": b"this is no audio",
        "id00001/v/short.wav": as_file(noise(1, 0.05)),
        "id00001/v/silent.flac": as_file(np.zeros(16_000, np.int16), "FLAC"),
        "id00002/v/cut.flac": as_file(noise(1, 2.0), "FLAC")[:20_000],
        "id00002/v/half.m4a": as_m4a(noise(1, 2.0))[:5000],
        "id00002/v/long.wav": as_file(noise(1)),
    }
    for name, content in bad.items():
        write(root, name, content)
    os.truncate(root / "id00002/v/long.wav", 300 * 2**20)
    write(root, "id00000/video0/00000.m4a", as_m4a(noise(0)))
    write(root, "id00000/video0/._00000.wav", b"")
    (root / "id00000/broken.wav").symlink_to(root / "nowhere.wav")
    (root / "id00000/loop").symlink_to(root)
    manifest = make(root, out, shards=2)
    same(waveforms(out), made)
    reasons = dict(read_unreadable(out))
    assert manifest.unreadable == len(reasons) == 10
    for name, reason in (
        ("id00000/v/empty.wav", "is an empty file"),
        ("id00000/v/text.wav", "cannot be decoded"),
        ("id00001/v/short.wav", "lasts 0.05 s"),
        ("id00001/v/silent.flac", "no sound"),
        ("id00002/v/cut.flac", "cut short|cannot be decoded"),
        ("id00002/v/half.m4a", "cannot be decoded"),
        ("id00002/v/long.wav", "more than the limit of 268435456"),
        ("id00000/video0/00000.m4a", "second file of the utterance id00000/video0/00000; .*00000.wav is used instead"),
        ("id00000/broken.wav", "broken link"),
        ("id00000/loop", "already listed"),
    ):
        assert re.search(reason, reasons[name]), reasons[name]


def test_one_strange_file_ends_nothing(tree, out):
    root, made = tree
    tone = 0.1 * np.sin(np.arange(8_000))
    for name, rate, subtype in (("odd", 11_127, "PCM_16"), ("high", 48_001, "PCM_16"), ("voicemail", 8_000, "GSM610")):
        sf.write(root / f"id00000/{name}.wav", tone, rate, subtype=subtype)
    sf.write(root / "id00001/slow.wav", tone, 1_000)
    os.mkfifo(root / "id00001/pipe.wav")
    make(root, out, shards=2)
    assert waveforms(out).keys() - made.keys() == {f"id00000/{name}" for name in ("odd", "high", "voicemail")}
    reasons = dict(read_unreadable(out))
    assert "sampling rate of 1000 Hz" in reasons["id00001/slow.wav"]
    assert "is not a regular file" in reasons["id00001/pipe.wav"]


class Killed(BaseException):
    """Stands for the end of the process."""


def end_after(monkeypatch, writes: int) -> None:
    """End at the given publication of a file, before or after it has its name."""
    real, count = os.replace, [0]

    def replace(source, target):
        count[0] += 1
        if count[0] == writes // 2 + 1 and writes % 2 == 0:
            raise Killed
        real(source, target)
        if count[0] == writes // 2 + 1:
            raise Killed

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("container", ["parquet", "webdataset"])
def test_ended_at_any_publication_it_goes_on_to_the_same_bytes(tree, tmp_path, container, packed, monkeypatch):
    root = tree[0]
    write(root, "id00000/v/text.wav", b"this is no audio")
    source = root
    if packed:
        # A data set is copied first, in segments of two rows.
        monkeypatch.setattr(streams, "SEGMENT_ITEMS", 2)
        source = tmp_path / "data-set.parquet"
        files = sorted(path for path in root.rglob("*") if path.is_file())
        audio = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
        table = datasets.Dataset.from_dict({"audio": audio, "speaker": [path.parts[-3] for path in files]})
        table.cast_column("audio", datasets.Audio(decode=False)).to_parquet(source)
    options = {"format": container, "shards": 2}
    make(source, tmp_path / "whole", **options)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    for point in range(100):
        output = tmp_path / f"out{point}"
        with pytest.MonkeyPatch.context() as patch:
            end_after(patch, point)
            try:
                make(source, output, **options)
                break
            except Killed:
                pass
        assert not (output / "manifest.json").exists() or point >= 2 * (len(whole) - 1)
        make(source, output, **options)
        assert {path.name: path.read_bytes() for path in output.iterdir()} == whole
    assert point >= 2 * len(whole)


def interrupted(monkeypatch, root, out, **options):
    """A run that ends after its first shard."""
    real = making.make_shard

    def once(output, progress, index):
        if index:
            raise Killed
        return real(output, progress, index)

    with monkeypatch.context() as patch:
        patch.setattr(making, "make_shard", once)
        with pytest.raises(Killed):
            make(root, out, **options)


def test_a_shard_that_is_there_is_not_made_again(tree, out, monkeypatch):
    root, made = tree
    interrupted(monkeypatch, root, out, shards=3)
    first = out / shard_name(0, 3, "parquet")
    before = first.stat().st_mtime_ns, first.stat().st_ino
    make(root, out, shards=3)
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == before
    same(waveforms(out), made)


def test_a_full_disk_says_what_to_do(tree, out, monkeypatch):
    root, made = tree

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as context:
        context.setattr(making.ParquetShard, "finish", full)
        with pytest.raises(OSError, match="finished shards are kept; free some space") as caught:
            make(root, out, shards=3)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(out)
    make(root, out, shards=3)
    same(waveforms(out), made)


def test_a_changed_source_is_refused_with_what_changed(tree, out, monkeypatch):
    root, made = tree
    interrupted(monkeypatch, root, out, shards=3)
    write(root, "id00000/new/00009.wav", as_file(noise(77)))
    (root / "id00001/video0/00000.wav").unlink()
    write(root, "id00002/video0/00001.wav", as_file(noise(78)))
    with pytest.raises(
        ValueError, match=r"source has changed .*: 1 utterances were added, 1 are missing, 1 are altered"
    ):
        make(root, out, shards=3)
    make(root, out, shards=3, restart=True)
    assert len(rows(out)) == len(made)


def test_changed_options_are_refused(tree, out, monkeypatch):
    interrupted(monkeypatch, tree[0], out, shards=3)
    with pytest.raises(ValueError, match=r"options: codec was 'flac' and is 'opus'; seed was 0 and is 5"):
        make(tree[0], out, shards=3, seed=5, codec="opus")


def test_finished_shards_are_left_alone(tree, out):
    root = tree[0]
    manifest = make(root, out, shards=2)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert make(root, out, shards=2) == manifest
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(ValueError, match=r"another source or with other options \(wav, parquet, flac, 20 utterances\)"):
        make(root, out, shards=3)
    assert len(make(root, out, shards=4, restart=True).shards) == 4
    assert len(list(out.glob("shard-*"))) == 4


def test_a_file_that_changes_meanwhile_ends_the_run(tree, out, monkeypatch):
    root = tree[0]
    interrupted(monkeypatch, root, out, shards=3)
    real = making.run_workers

    def altered(*arguments):
        for path in root.rglob("*.wav"):
            path.write_bytes(as_file(noise(5, 0.7)))
        real(*arguments)

    monkeypatch.setattr("hf_hamspk.shards.preparing.run_workers", altered)
    with pytest.raises(ValueError, match="was altered after the source was listed"):
        make(root, out, shards=3)


def test_two_at_once_are_refused(tree, out, monkeypatch):
    def second(*_):
        with pytest.raises(ValueError, match=r"^hamspk prepare \(process \d+ on .*\) is writing into"):
            make(tree[0], out)
        raise Killed

    monkeypatch.setattr("hf_hamspk.shards.preparing.run_workers", second)
    with pytest.raises(Killed):
        make(tree[0], out)


def test_the_folder_of_somebody_else_is_refused(tree, out):
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"contains files that are not shards \(thesis.tex\)"):
        make(tree[0], out)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "source not found: .*nowhere; give a folder"),
        ("file.xyz", "is not a known kind of source; give a folder"),
        ("empty", "no utterance in empty"),
        ("mixed", r"contains archives \(a.zip\) and folders \(b\), perhaps with the same recordings"),
        ("bad.zip", r"bad.zip: it is not a zip"),
        ("bad.tar", "neither a zip nor an uncompressed tar"),
        ("a.tar.gz", r"is a compressed tar; unpack it \(`tar xf a.tar.gz`\)"),
        ("packed", r"is a compressed tar; unpack it \(`tar xf b.tgz`\)"),
    ],
)
def test_sources_that_are_none(tmp_path, out, source, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed/b").mkdir(parents=True)
    (tmp_path / "packed").mkdir()
    for name in ("file.xyz", "mixed/a.zip", "bad.tar", "a.tar.gz", "packed/b.tgz"):
        (tmp_path / name).write_text("x")
    (tmp_path / "bad.zip").write_text("PK x")
    with pytest.raises(ValueError, match=message):
        make(tmp_path / source, out)


def test_hostile_archives_write_nothing_outside_and_the_rest_is_used(tmp_path, out):
    good = as_file(noise(1))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("id00001/v/1.wav", "id00002/v/2.wav", "../../evil.wav", f"{tmp_path}/evil.wav"):
            path = write(tmp_path, "x.wav", good)
            info = tar.gettarinfo(path)
            info.name = name
            with open(path, "rb") as file:
                tar.addfile(info, file)
        link = tarfile.TarInfo("id00003/v/3.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (tmp_path / "x.wav").unlink()
    manifest = make(tmp_path / "a.tar", out, format="webdataset", shards=1)
    assert manifest.utterances == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "out"]
    reasons = [reason for _, reason in read_unreadable(out)]
    assert [any(word in reason for reason in reasons) for word in ("'..'", "absolute", "is a link")] == [True] * 3


def test_verify_finds_what_is_wrong(tree, out):
    root = tree[0]
    make(root, out, shards=2)
    shard = out / shard_name(0, 2, "parquet")
    whole = shard.read_bytes()

    def verdict() -> str:
        return "\n".join(verify_shards(str(out), progress=False))

    assert verdict() == ""
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    shard.write_bytes(flipped)
    assert "SHA-256" in verdict()
    shard.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read to its end" in verdict()
    shard.write_bytes((out / shard_name(1, 2, "parquet")).read_bytes())
    assert "10 keys occur more than once" in verdict()
    shard.unlink()
    assert "does not exist" in verdict()
    shard.write_bytes(whole)
    (out / shard_name(0, 3, "parquet")).write_bytes(whole)
    (out / "unreadable.csv").write_text("path,reason\nx,y\n")
    assert "shard-00000-of-00003.parquet is not listed in manifest.json" in verdict()
    assert "unreadable.csv lists 1 files, but manifest.json declares 0" in verdict()


def test_a_manifest_that_cannot_be_used(tree, out):
    with pytest.raises(ValueError, match="is not a folder of shards, or its preparation has not ended"):
        load_manifest(out)
    manifest = make(tree[0], out, shards=2)
    values = json.loads(manifest.to_json())
    for change, message in (
        ({"schema": 2}, "has schema 2, expected 1"),
        ({"utterances": 21}, "contradicts itself: 21 utterances, 20 in the shards"),
        ({"codec": "mp3"}, "codec 'mp3'"),
        ({"surprise": 1}, "is not a manifest of shards"),
    ):
        with pytest.raises(ValueError, match=message):
            Manifest.from_json(json.dumps(values | change))
    with pytest.raises(ValueError, match="is not JSON"):
        Manifest.from_json("{")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "mp3"}, "codec must be one of flac, opus, source, got 'mp3'"),
        ({"format": "zip"}, "format must be one of"),
        ({"layout": "x"}, "layout must be one of"),
        ({"codec": "opus", "sampling_rate": 22_050}, "for Opus, got 22050"),
        ({"shards": 0}, "at least 1"),
        ({"min_duration": 0.0}, "at least 0.1 s"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        PrepareOptions(**options)


def test_more_shards_than_utterances_are_refused(tree, out):
    with pytest.raises(ValueError, match="30 shards were requested, but the source has only 20 utterances"):
        make(tree[0], out, shards=30)


@pytest.mark.parametrize("wanted", [0.1, 1, 7.9, 8, 8.1, 24, 25, 96, 97, 500, 779.2])
def test_shard_counts_divide_well(wanted):
    count = even_shard_count(wanted, 10**6)
    assert wanted <= count < wanted + (8 if wanted <= 24 else 24 if wanted <= 96 else 48)
    assert all(count % ranks == 0 for ranks in (1, 2, 4, 8))
    assert wanted <= 24 or all(count % ranks == 0 for ranks in (3, 6, 12))


@pytest.mark.parametrize("utterances", [1, 2, 5, 7, 8, 9])
def test_no_shard_of_a_small_corpus_is_empty(utterances):
    assert 1 <= even_shard_count(0.01, utterances) <= utterances


def test_shards_of_resampled_audio(tmp_path, out):
    for number in range(4):
        write(tmp_path / "a", f"s{number % 2}/{number}.wav", as_file(noise(number, 0.5, 8000), rate=8000))
    make(tmp_path / "a", out, codec="opus", shards=2)
    for row in rows(out).values():
        assert row["samples"] == 8000
        assert sf.info(io.BytesIO(row["audio"]["bytes"])).samplerate == 16_000


@pytest.mark.parametrize("metadata", [None, "metadata.csv", "metadata.jsonl", "Metadata.CSV", "METADATA.JSONL"])
def test_an_audio_folder_of_datasets(tmp_path, out, metadata):
    made = {f"spk{number % 2}/u{number}": noise(number) for number in range(6)}
    lines = [{"file_name": f"{key}.wav", "speaker_id": number % 3} for number, key in enumerate(made)]
    for key, samples in made.items():
        write(tmp_path / "a", f"train/{key}.wav", as_file(samples))
    write(tmp_path / "a", "test/spk7/u.wav", as_file(noise(99)))
    if metadata is not None and metadata.lower().endswith("csv"):
        text = "\n".join(["file_name,speaker_id", *(f"{line['file_name']},{line['speaker_id']}" for line in lines)])
        (tmp_path / "a/train" / metadata).write_text(text)
    elif metadata is not None:
        (tmp_path / "a/train" / metadata).write_text("\n".join(map(json.dumps, lines)))
    manifest = make(tmp_path / "a", out, shards=2)
    assert manifest.speakers == (["spk0", "spk1"] if metadata is None else ["0", "1", "2"])
    same(waveforms(out), made)


def test_a_table_of_json_that_is_none(tmp_path, out):
    for text, message in (
        ('["file_name"]', "line 1: expected one JSON object per line, got a list"),
        ('{"file_name": ', "line 1: expected one JSON object per line, got something else"),
        ('{"file_name": "a.wav"}', "no column 'speaker_id'"),
    ):
        write(tmp_path, "a/metadata.jsonl", text.encode())
        with pytest.raises(ValueError, match=message):
            make(tmp_path / "a", out)


def test_tars_at_an_address_are_indexed_and_not_copied(out):
    with pytest.raises(ValueError, match=re.escape("hamspk prepare --index https://example.org/a.tar OUTPUT")):
        make("https://example.org/a.tar", out)
