"""Embedding of corpora: what one call of the model gives, whatever the chunks, processes, interruptions, formats."""

import os
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import torch
from parameters import thinned
from safetensors.numpy import load_file
from small_shards import RATE, encoded, make_shards, recording
from tiny_models import settle, tiny_config

from hf_hamspk import HamSpkModel
from hf_hamspk.embedding import AudioFiles, EmbeddingParts, ShardedCorpus, extract, extracting, parts, write_embeddings
from hf_hamspk.embedding.sources import DecodedUtterance
from hf_hamspk.shards.reading import open_shards

SAMPLES = (1_700, 9_000)


class Waves:
    """Utterances in memory, several to a piece, some of them bad."""

    def __init__(self, sizes):
        self.sizes, self.asked = list(sizes), []
        self.firsts = np.cumsum([0, *self.sizes]).tolist()
        lengths = np.random.default_rng(0).integers(*SAMPLES, sum(self.sizes))
        self.waves = {f"u{i}": recording(i, n).astype(np.float32) / 32768 for i, n in enumerate(lengths)}
        self.bad = {"u3", "u8"}
        self.stop_at = None
        self.states = ["1"] * len(self.sizes)

    def fingerprint(self):
        return "waves"

    def state(self, pieces):
        return " ".join(self.states[piece] for piece in pieces)

    def read(self, piece):
        if piece == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(piece)
        own = [f"u{i}" for i in range(self.firsts[piece], self.firsts[piece + 1])]
        return [
            DecodedUtterance(name, reason="broken") if name in self.bad else DecodedUtterance(name, self.waves[name])
            for name in own
        ]

    def expected(self, model):
        good = {name: wave for name, wave in self.waves.items() if name not in self.bad}
        return dict(zip(good, model.embed(list(good.values()), RATE).numpy(), strict=True))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_UTTERANCES", 4)
    monkeypatch.setattr(extracting, "CHUNK_SECONDS", 0.8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return settle(HamSpkModel(tiny_config(frontend="kaldi")))


def open_parts(folder, source, **run) -> EmbeddingParts:
    return EmbeddingParts(folder / "e.parts", source.sizes, 24, run)


def stored(output) -> dict[str, np.ndarray]:
    if output.suffix == ".parquet":
        table = pq.read_table(output)
        assert table.schema.metadata[b"precision"] == b"float32"
        values = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 24)
        return dict(zip(table["name"].to_pylist(), values, strict=True))
    return load_file(output) if output.suffix == ".safetensors" else dict(np.load(output))


def check(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]):
    assert sorted(found) == sorted(expected)
    for name, embedding in expected.items():
        np.testing.assert_allclose(found[name], embedding, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors", ".npz"])
@pytest.mark.parametrize("sizes", thinned([[3, 5, 1, 4], [1] * 13, [13]]))
def test_embeddings_are_those_of_the_model(tmp_path, model, small_parts, suffix, sizes):
    source = Waves(sizes)
    kept = open_parts(tmp_path, source)
    speed = extract(model, source, kept, workers=2, progress=False)
    assert sorted(source.asked) == list(range(len(sizes)))
    assert speed.utterances == 13 and speed.real_time_factor > 0
    output = tmp_path / "new" / f"e{suffix}"
    assert write_embeddings(kept, output, {"precision": "float32"}) == 11
    check(stored(output), source.expected(model))
    assert kept.failures() == {"u3": "broken", "u8": "broken"}
    assert [file.name for file in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("stop_at", thinned(range(0, 13, 3)))
@pytest.mark.parametrize("ranks", [(1, 1), (2, 3)])
def test_nothing_is_lost_or_done_twice_after_an_interruption(tmp_path, model, small_parts, stop_at, ranks):
    source = Waves([1] * 13)
    before, after = ranks
    source.stop_at = stop_at
    for rank in range(before):
        kept = open_parts(tmp_path, source)
        try:
            extract(model, source, kept, rank=rank, world_size=before, progress=False)
        except KeyboardInterrupt:
            assert stop_at // 4 % before == rank
    done = [part for part in range(4) if kept.is_done(part, source.state(kept.pieces[part]))]
    assert stop_at // 4 not in done
    # As a kill would leave them.
    kept.path(stop_at // 4).with_suffix(".parquet.1.unfinished").write_bytes(b"half a part")
    source.stop_at, source.asked = None, []
    for rank in range(after):
        kept = open_parts(tmp_path, source)
        extract(model, source, kept, rank=rank, world_size=after, progress=False)
    assert sorted(source.asked) == [piece for piece in range(13) if piece // 4 not in done]
    assert write_embeddings(kept, tmp_path / "e.parquet", {"precision": "float32"}) == 11
    check(stored(tmp_path / "e.parquet"), source.expected(model))
    assert not [thread for thread in threading.enumerate() if thread.name == "reading"]


@pytest.mark.parametrize("changed", [{0}, {5, 6}, {2, 12}, set()])
def test_parts_with_changed_files_are_embedded_again(tmp_path, model, small_parts, changed, caplog):
    source = Waves([1] * 13)
    extract(model, source, open_parts(tmp_path, source), progress=False)
    source.asked = []
    for piece in changed:
        source.states[piece] = "2"
        source.waves[f"u{piece}"] = source.waves[f"u{piece}"][:1_600]
    kept = open_parts(tmp_path, source)
    speed = extract(model, source, kept, progress=False)
    parts_of_changed = {piece // 4 for piece in changed}
    assert sorted(source.asked) == [piece for piece in range(13) if piece // 4 in parts_of_changed]
    said = [record.getMessage() for record in caplog.records if "since the run was interrupted" in record.getMessage()]
    assert len(said) == bool(changed) and all(f"All {speed.utterances} utterances" in one for one in said)
    assert write_embeddings(kept, tmp_path / "e.parquet", {"precision": "float32"}) == 11
    check(stored(tmp_path / "e.parquet"), source.expected(model))
    # Parts of earlier versions have no state.
    table = pq.read_table(kept.path(1)).replace_schema_metadata(None)
    pq.write_table(table, kept.path(1))
    kept.path(2).write_bytes(b"damaged")
    assert [kept.is_done(part, source.state(kept.pieces[part])) for part in range(4)] == [True, False, False, True]


def test_the_state_of_files_follows_their_content(tmp_path):
    """A file that is replaced, edited, deleted or added changes the state of its pieces, and no other."""
    names = ["a.wav", "b.wav", "c.wav#t=1,2", "gone.wav"]
    for name in ("a.wav", "b.wav", "c.wav"):
        (tmp_path / name).write_bytes(encoded(recording(1, 4000), "WAV"))
    source = AudioFiles(names, RATE, tmp_path)

    def states() -> list[str]:
        return [source.state([piece]) for piece in range(4)]

    before = states()
    assert states() == before and source.state([0, 1]) != source.state([0, 2])
    os.replace(tmp_path / "b.wav", tmp_path / "old.wav")
    (tmp_path / "b.wav").write_bytes(encoded(recording(2, 4000), "WAV"))
    os.utime(tmp_path / "c.wav", ns=(1, 1))
    (tmp_path / "gone.wav").write_bytes(b"back")
    changed = [old != new for old, new in zip(before, states(), strict=True)]
    assert changed == [False, True, True, True]
    make_shards(tmp_path / "shards", [[3, 2], [4]], "parquet", samples=(1_700, 4_000))
    shards = ShardedCorpus(open_shards(tmp_path / "shards"), RATE)
    before = [shards.state([piece]) for piece in range(3)]
    os.utime(tmp_path / "shards" / shards.reader.file_of(2), ns=(1, 1))
    assert [shards.state([piece]) != old for piece, old in enumerate(before)] == [False, False, True]


def test_parts_of_another_run_are_refused(tmp_path):
    source = Waves([1] * 5)
    open_parts(tmp_path, source, weights="a", files="b")
    open_parts(tmp_path, source, weights="a", files="b")
    with pytest.raises(ValueError, match=r"different settings \(weights\)\. Complete that run with its original"):
        open_parts(tmp_path, source, weights="c", files="b")
    (tmp_path / "e.parts" / "run.json").write_text("{")
    with pytest.raises(ValueError, match="Move the folder away"):
        open_parts(tmp_path, source, weights="a", files="b")


def test_an_embedding_that_is_not_finite_is_a_failure(tmp_path, model):
    source = Waves([2])
    broken = HamSpkModel(model.config).eval()
    with torch.no_grad():
        broken.projection.bias[0] = torch.nan
    kept = open_parts(tmp_path, source)
    extract(broken, source, kept, progress=False)
    assert all("not finite" in reason for reason in kept.failures().values()) and len(kept.failures()) == 2
    assert write_embeddings(kept, tmp_path / "e.npz", {}) == 0
    assert not (tmp_path / "e.npz").exists()


@pytest.mark.parametrize("container", ["parquet", "webdataset"])
def test_shards(tmp_path, model, small_parts, container):
    samples = (1_700, 4_000)
    bad = {2: b"no audio", 4: encoded(recording(4, 100))}
    rows = make_shards(tmp_path / "shards", [[3, 2], [4]], container, samples=samples, replace=bad)
    source = ShardedCorpus(open_shards(tmp_path / "shards"), RATE)
    kept = open_parts(tmp_path, source)
    extract(model, source, kept, progress=False)
    assert write_embeddings(kept, tmp_path / "e.parquet", {"precision": "float32"}) == 7
    table = pq.read_table(tmp_path / "e.parquet")
    good = [row for i, row in enumerate(rows) if i not in bad]
    assert table["name"].to_pylist() == [row["key"] for row in good]
    assert table["speaker"].to_pylist() == [row["speaker"] for row in good]
    failures = kept.failures()
    assert set(failures) == {rows[2]["key"], rows[4]["key"]}
    assert "cannot be decoded" in failures[rows[2]["key"]] and "lasts" in failures[rows[4]["key"]]
    for file in (tmp_path / "shards").iterdir():
        if "00001" in file.name and file.suffix in (".parquet", ".tar"):
            file.write_bytes(b"")
    kept.remove()
    kept = open_parts(tmp_path, source)
    extract(model, ShardedCorpus(open_shards(tmp_path / "shards"), RATE), kept, progress=False)
    # A group that cannot be read counts as its utterances.
    assert len(kept.failures()) == 6 and sum("row" in name for name in kept.failures()) == 4


def test_names_that_come_twice(tmp_path, model):
    class Twice(Waves):
        def read(self, piece):
            return [DecodedUtterance("same", next(iter(self.waves.values())))]

    source = Twice([1, 1])
    kept = open_parts(tmp_path, source)
    extract(model, source, kept, progress=False)
    with pytest.raises(ValueError, match=r"1 names occur more than once, for example same\..*\.parquet"):
        write_embeddings(kept, tmp_path / "e.safetensors", {})
    assert write_embeddings(kept, tmp_path / "e.parquet", {}) == 2


def test_files_are_found_by_name_and_root(tmp_path):
    (tmp_path / "a.wav").write_bytes(encoded(recording(1, 4000), "WAV"))
    source = AudioFiles(["a.wav", "gone.wav"], RATE, tmp_path)
    assert source.read(0)[0].waveform.shape == (4000,)
    assert source.read(1)[0].reason.startswith("no such file")
    sf.write(tmp_path / "voicemail.wav", 0.1 * np.sin(np.arange(8_000)), 8_000, subtype="GSM610")
    os.mkfifo(tmp_path / "pipe.wav")
    strange = AudioFiles(["voicemail.wav", "pipe.wav"], RATE, tmp_path)
    assert len(strange.read(0)[0].waveform) == pytest.approx(16_000, abs=1_000)
    assert "is not a regular file" in strange.read(1)[0].reason
    assert source.fingerprint() != AudioFiles(["gone.wav", "a.wav"], RATE, tmp_path).fingerprint()
