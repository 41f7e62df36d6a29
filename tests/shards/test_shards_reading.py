"""Groups come back as they were written, from any container; what is damaged is named."""

import io
import json
import pickle
import random
import re
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_shards import RATE, encoded, make_shards, recording

from hf_hamspk.audio_hamspk import InputError
from hf_hamspk.data.audio import read_utterance
from hf_hamspk.data.crops import random_crop
from hf_hamspk.shards import reading
from hf_hamspk.shards.crops import decode_crop
from hf_hamspk.shards.fetching import Retry
from hf_hamspk.shards.prefetching import BROKEN_IN_A_ROW, GROUPS_KEPT, GroupStore
from hf_hamspk.shards.reading import ShardReader, choose_shuffle, open_shards

GROUPS = [[3, 4], [], [5], [2, 0, 1]]
FAST = Retry(attempts=4, first_pause=0.001, longest_pause=0.002)


@pytest.fixture(params=["parquet", "webdataset"])
def container(request, monkeypatch):
    # So that a small tar has several groups.
    monkeypatch.setattr(reading, "TAR_GROUP_BYTES", 10_000)
    return request.param


def test_groups_hold_what_was_written(tmp_path, container):
    rows = make_shards(tmp_path, GROUPS, container)
    reader = ShardReader(tmp_path)
    assert reader.group_sizes.sum() == len(rows) == 15
    assert reader.first_utterance.tolist() == (np.cumsum(reader.group_sizes) - reader.group_sizes).tolist()
    assert len(reader.group_sizes) >= 5
    found = [reader.read(group) for group in reversed(range(len(reader.group_sizes)))][::-1]
    assert [name for group in found for name in group.names] == [row["key"] for row in rows]
    assert [speaker for group in found for speaker in group.speakers] == [row["speaker"] for row in rows]
    contents = [bytes(group.audio(row)) for group in found for row in range(len(group))]
    assert contents == [row["content"] for row in rows]


def test_a_reader_travels_to_another_process(tmp_path, container):
    make_shards(tmp_path, GROUPS, container)
    reader = ShardReader(tmp_path)
    reader.read(0)
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.read(2).names == reader.read(2).names
    assert copy.fingerprint() == reader.fingerprint()


@pytest.fixture
def no_arrow_threads():
    """Arrow's threads for reading, all of them busy until the test ends."""
    sink, freed, stuck, before = io.BytesIO(), threading.Event(), threading.Event(), pa.io_thread_count()
    pq.write_table(pa.table({"number": [1]}), sink)

    class Stuck(io.BytesIO):
        def read(self, size=-1):
            if threading.current_thread() is not busy:
                stuck.set()
                freed.wait()
            return super().read(size)

    def read():
        pq.ParquetFile(pa.PythonFile(Stuck(sink.getvalue()), mode="r"), pre_buffer=True).read_row_group(0)

    busy = threading.Thread(target=read)
    pa.set_io_thread_count(1)
    busy.start()
    assert stuck.wait(timeout=20)
    yield
    freed.set()
    busy.join()
    pa.set_io_thread_count(before)


def test_reading_needs_no_thread_of_arrow(tmp_path, container, no_arrow_threads):
    """A forked process has none."""
    make_shards(tmp_path, GROUPS, container)
    found = []
    reading_thread = threading.Thread(target=lambda: found.append(ShardReader(tmp_path).read(0)), daemon=True)
    reading_thread.start()
    reading_thread.join(timeout=20)
    assert len(found) == 1


def test_only_the_bytes_of_the_group_are_fetched(tmp_path, container, monkeypatch):
    make_shards(tmp_path, [[8, 8, 8, 8]], container)
    reader = ShardReader(tmp_path)
    reader.read(0)
    asked = []
    fetch = reader.fetcher.fetch
    monkeypatch.setattr(reader.fetcher, "fetch", lambda *span: asked.append(span) or fetch(*span))
    group = reader.read(2)
    ((_, start, end),) = asked
    # Between two members of a tar lie their headers and descriptions.
    assert group.nbytes <= end - start < 1.1 * group.nbytes + 2_048 * len(group)
    assert end - start < reader.manifest.shards[0].bytes / 3


def test_layouts_of_many_shards_are_not_kept(tmp_path, container, monkeypatch):
    monkeypatch.setattr(reading, "LAYOUTS_KEPT", 2)
    rows = make_shards(tmp_path, [[2]] * 5, container)
    reader = ShardReader(tmp_path)
    names = [name for _ in range(2) for group in range(len(reader.group_sizes)) for name in reader.read(group).names]
    assert names == [row["key"] for row in rows] * 2
    assert len(reader._layouts) == 2


@pytest.mark.parametrize("change", ["truncated", "overwritten", "removed", "swapped"])
def test_a_damaged_shard_is_named(tmp_path, container, change):
    make_shards(tmp_path, [[3, 3], [4, 1]], container)
    file = sorted(tmp_path.glob("shard-00000*"))[-1]
    if change == "removed":
        file.unlink()
    elif change == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif change == "overwritten":
        file.write_bytes(b"\0" * file.stat().st_size)
    else:
        file.write_bytes(sorted(tmp_path.glob("shard-00001*"))[-1].read_bytes())
    reader = ShardReader(tmp_path, FAST)
    if container == "webdataset" and change in ("overwritten", "swapped"):
        # Without headers in between, only the decoder can see it.
        with pytest.raises(InputError):
            decode_crop(reader.read(0).audio(0), 100, np.random.default_rng(0))
        return
    with pytest.raises(InputError, match=r"^shard-00000-of-00002\.(parquet|tar), group 0: ") as raised:
        reader.read(0)
    assert raised.value.name == reader.name_of(0)


def test_a_changed_page_is_found_by_its_checksum(tmp_path):
    rows = make_shards(tmp_path, [[3, 3]])
    (file,) = tmp_path.glob("*.parquet")
    content = file.read_bytes()
    place = content.index(rows[4]["content"]) + 500
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    reader = ShardReader(tmp_path)
    assert len(reader.read(0)) == 3
    with pytest.raises(InputError, match="group 1: is damaged"):
        reader.read(1)


@pytest.mark.parametrize("file", ["../outside.parquet", "/etc/passwd", "a/../../b"])
def test_a_manifest_cannot_point_outside_its_folder(tmp_path, file):
    make_shards(tmp_path, [[3]])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["shards"][0]["file"] = file
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="which is not inside its folder"):
        ShardReader(tmp_path, FAST).read(0)


def test_requests_are_repeated_with_growing_pauses(tmp_path, monkeypatch):
    make_shards(tmp_path, [[3]])
    reader = ShardReader(tmp_path, FAST).fetcher
    once, calls = reader._fetch_once, []

    def fail_three_times(*span):
        calls.append(span)
        if len(calls) <= 3:
            raise ConnectionResetError("gone")
        return once(*span)

    monkeypatch.setattr(reader, "_fetch_once", fail_three_times)
    assert len(reader.fetch("manifest.json")) > 100 and len(calls) == 4
    calls.clear()
    monkeypatch.setattr(reader, "_fetch_once", lambda *span: calls.append(span) or _raise(ConnectionResetError("gone")))
    with pytest.raises(
        InputError, match=re.escape("manifest.json: cannot be fetched: 4 attempts failed (ConnectionResetError")
    ):
        reader.fetch("manifest.json")
    assert len(calls) == 4


def _raise(error):
    raise error


def test_pauses_double_up_to_a_limit_and_vary():
    still = Retry(first_pause=1.0, longest_pause=5.0, jitter=0.0)
    assert [still.pause(attempt, random.Random(0)) for attempt in range(1, 6)] == [1, 2, 4, 5, 5]
    draws = random.Random(0)
    pauses = [Retry(first_pause=1.0, jitter=0.5).pause(1, draws) for _ in range(100)]
    assert 0.5 <= min(pauses) < 0.6 and 0.9 < max(pauses) <= 1.0


def test_what_is_a_folder_of_shards(tmp_path):
    make_shards(tmp_path / "shards", [[3]])
    for source in (tmp_path / "shards", str(tmp_path / "shards") + "/", tmp_path / "shards" / "manifest.json"):
        reader = open_shards(source)
        assert reader is not None and len(reader.group_sizes) == 1
    assert open_shards(tmp_path) is None and open_shards(tmp_path / "nothing.csv") is None
    with pytest.raises(ValueError, match=r"manifest\.json not found\. .* `hamspk prepare --index"):
        open_shards(f"file://{tmp_path}")


@pytest.mark.parametrize(("kind", "subtype"), [("FLAC", "PCM_16"), ("WAV", "PCM_16"), ("WAV", "FLOAT")])
def test_a_crop_of_lossless_audio_is_that_of_the_whole(kind, subtype):
    for channels, length in ((1, 40_000), (2, 40_000), (1, 5_000), (1, 4_000), (1, 1_634)):
        waveform = np.stack([recording(channel, length) for channel in range(channels)], axis=1)
        content = encoded(waveform / 32_768 if subtype == "FLOAT" else waveform, kind, subtype)
        for seed in range(5):
            crop = decode_crop(memoryview(content), 5_000, np.random.default_rng(seed), RATE)
            whole = random_crop(read_utterance(content).waveform, 5_000, np.random.default_rng(seed))
            np.testing.assert_array_equal(crop, whole)


def test_a_crop_of_opus_settles_after_the_seek():
    time = np.arange(4 * RATE) / RATE
    content = encoded(0.3 * np.sin(2 * np.pi * 300 * time) + 0.1 * np.sin(2 * np.pi * 1700 * time), "OGG", "OPUS")
    for seed in range(5):
        crop = decode_crop(content, RATE, np.random.default_rng(seed), RATE)
        whole = random_crop(read_utterance(content).waveform, RATE, np.random.default_rng(seed))
        assert np.abs(crop - whole).max() < 0.01
        np.testing.assert_array_equal(crop, decode_crop(content, RATE, np.random.default_rng(seed), RATE))


def test_a_crop_at_another_rate_is_resampled():
    content = encoded(recording(0, 40_000))
    crop = decode_crop(content, 5_000, np.random.default_rng(0), 8_000)
    np.testing.assert_array_equal(
        crop, random_crop(read_utterance(content, 8_000).waveform, 5_000, np.random.default_rng(0))
    )


def test_a_crop_of_nothing_is_refused():
    for content in (b"", b"no audio", encoded(recording(0, 9_000))[:3_000]):
        with pytest.raises(InputError):
            decode_crop(content, 5_000, np.random.default_rng(0))
    samples = np.zeros(9_000, np.float32)
    samples[::100] = np.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        decode_crop(encoded(samples, "WAV", "FLOAT"), 5_000, np.random.default_rng(0))


def test_a_store_without_a_plan_keeps_a_few_groups(tmp_path):
    make_shards(tmp_path, [[2] * 9])
    with GroupStore(ShardReader(tmp_path)) as store:
        for group in range(9):
            assert len(store.get(group)) == 2
            assert len(store._fetched) <= GROUPS_KEPT


def test_a_store_gives_up_a_source_of_which_nothing_comes(tmp_path):
    make_shards(tmp_path, [[2] * 20])
    (file,) = tmp_path.glob("*.parquet")
    file.unlink()
    with GroupStore(ShardReader(tmp_path, FAST)) as store:
        for group in range(BROKEN_IN_A_ROW - 1):
            for _ in range(3):
                with pytest.raises(InputError):
                    store.get(group)
        with pytest.raises(
            ConnectionError, match=r"8 groups in a row cannot be read .* resume from the last checkpoint"
        ):
            store.get(BROKEN_IN_A_ROW)


def test_the_shuffle_fits_its_budget():
    assert choose_shuffle([1 << 20] * 9, 32, 4, 512 << 20) == (32, 4)
    assert choose_shuffle([8 << 20, 1], 32, 4, 512 << 20) == (32, 2)
    assert choose_shuffle([100 << 20], 32, 4, 512 << 20) == (5, 1)
    assert choose_shuffle([1 << 40], 32, 4, 512 << 20) == (1, 1)
    assert choose_shuffle([], 32, 4, 512 << 20) == (32, 4)


def as_m4a(waveform: np.ndarray, rate: int = RATE) -> bytes:
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ipod") as file:
        stream = file.add_stream("aac", rate=rate, layout="mono", options={"aac_pns": "0"})
        frame = av.AudioFrame.from_ndarray(waveform.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return buffer.getvalue()


def test_a_crop_of_aac_is_a_run_of_the_whole():
    time = np.arange(3 * RATE) / RATE
    waveform = 0.3 * np.sin(2 * np.pi * 300 * time) * np.exp(-time)
    content = as_m4a(waveform)
    whole = read_utterance(content, RATE).waveform
    for seed in range(5):
        crop = decode_crop(memoryview(content), RATE, np.random.default_rng(seed))
        starts = np.flatnonzero(whole[: len(whole) - RATE + 1] == crop[0])
        assert any(np.array_equal(whole[start : start + RATE], crop) for start in starts)
        np.testing.assert_array_equal(crop, decode_crop(content, RATE, np.random.default_rng(seed)))
    assert decode_crop(content, 4 * RATE, np.random.default_rng(0)).shape == (4 * RATE,)
    assert decode_crop(as_m4a(waveform, 44_100), 4_000, np.random.default_rng(0)).shape == (4_000,)
    with pytest.raises(InputError):
        decode_crop(content[: len(content) // 3], 4_000, np.random.default_rng(0))
