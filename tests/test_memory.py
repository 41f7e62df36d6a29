"""The memory that one recording, one request and one command may take, whatever a file declares or contains."""

import io
import tracemalloc

import numpy as np
import pytest
from bombs import RATE, flac, long_speech, reading_bytes, refused_bombs
from tiny_models import save_calibrated_model

from hf_hamspk import HamSpkModel, Limits
from hf_hamspk.audio_hamspk import InputError, QuietFile, measure_speech, read_sound
from hf_hamspk.data import fitting
from hf_hamspk.data.fitting import embed_what_fits
from hf_hamspk.data.synthetic import make_speech


def peak_of(read) -> tuple[int, object]:
    """The most that NumPy and Python take during a call, and its result or the sentence of its refusal."""
    tracemalloc.start()
    try:
        found = read()
    except InputError as error:
        found = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak, found


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    return dict(refused_bombs())


@pytest.mark.slow
@pytest.mark.parametrize("limits", [None, {"seconds": 120.0, "values": 1 << 24}], ids=["default", "endpoint"])
def test_bombs_are_refused_before_they_take_memory(bombs, limits):
    most = Limits(**(limits or {}))
    for name, content in bombs.items():
        assert len(content) < 2 << 20, name
        peak, found = peak_of(lambda content=content: read_sound(content, RATE, limits=limits))
        assert isinstance(found, str) and "lasts" in found and "expected at most" in found, (name, found)
        channels = 8 if "channels" in name else 1
        assert peak < 4 * min(most.values // channels, int(most.seconds * 384_000)) + (40 << 20), name


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "rate", "channels"), [(119, 96_000, 1), (30, 48_001, 2), (30, 44_100, 8)])
def test_reading_takes_what_is_derived(seconds, rate, channels):
    content = flac(seconds, rate, channels)
    peak, sound = peak_of(lambda: read_sound(content, RATE))
    assert sound.waveform.shape == (seconds * RATE,)
    assert peak < reading_bytes(seconds * rate, seconds)


@pytest.mark.parametrize(("shape", "kind"), [((2_000_000, 8), "float64"), ((2, 8_000_000), "int16"), ((9**7,), "<f4")])
def test_an_array_is_converted_block_by_block(shape, kind):
    array = np.broadcast_to(np.zeros((), kind), shape)
    peak, sound = peak_of(lambda: read_sound(array, RATE, source_rate=RATE))
    assert len(sound.waveform) == max(shape)
    assert peak < reading_bytes(max(shape), max(shape) / RATE)


@pytest.mark.slow
def test_measuring_takes_little():
    """The spectrum is of 20 s at a time."""
    waveform = np.resize(make_speech(1, 1, 10.0), 200 * RATE)
    peak, _ = peak_of(lambda: measure_speech(waveform, RATE))
    assert peak < 8 * len(waveform) + (80 << 20)


def test_no_memory_for_a_recording_is_a_sentence(monkeypatch):
    def refuse(*words):
        raise MemoryError

    monkeypatch.setattr("hf_hamspk.audio_hamspk.resample", refuse)
    with pytest.raises(InputError, match="needs more memory than this process can get; cut it into shorter files"):
        read_sound(make_speech(1, 1, 1.0), RATE, source_rate=48_000)


def test_an_impossible_position_is_no_exception():
    """Decoders seek where a damaged header says, and would print a traceback."""
    file = QuietFile(io.BytesIO(bytes(10)))
    assert file.seek(4) == 4 and file.seek(-5) == -1 and file.seek(-99, io.SEEK_CUR) in (-1, 0)
    with open(__file__, "rb") as here:
        assert QuietFile(here).seek(-5) == -1


@pytest.mark.parametrize("limits", [5, "many", {"second": 5}, [("seconds", 5)]])
def test_limits_are_a_dictionary_of_fields(limits):
    with pytest.raises(InputError, match="limits must be a dictionary of seconds, size, values and remote, got"):
        read_sound(make_speech(1, 1, 1.0), RATE, limits=limits)


class Small:
    """A model with memory for some seconds; with more, torch or NumPy says so."""

    def __init__(self, seconds: float, error: Exception):
        self.seconds, self.error = seconds, error

    def embed_waveforms(self, waveforms, batch_seconds):
        import torch

        if sum(map(len, waveforms)) > self.seconds * RATE:
            raise self.error
        return torch.tensor([[float(len(waveform))] for waveform in waveforms])


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_what_does_not_fit_is_left_out(error):
    waves = [np.zeros(RATE * seconds, np.float32) for seconds in (1, 5, 2)]
    found = embed_what_fits(Small(3.5, error), waves)
    assert [None if one is None else float(one) for one in found] == [RATE, None, 2 * RATE]
    assert [float(one) for one in embed_what_fits(Small(9, error), waves)] == [RATE, 5 * RATE, 2 * RATE]


def test_other_errors_stay():
    with pytest.raises(RuntimeError, match="shapes"):
        embed_what_fits(Small(0, RuntimeError("shapes differ")), [np.zeros(9, np.float32)])


def test_commands_list_what_does_not_fit(monkeypatch, tmp_path):
    from hf_hamspk.embedding import AudioFiles, EmbeddingParts, extract
    from hf_hamspk.evaluation.verification import embed_files

    model = HamSpkModel.from_pretrained(save_calibrated_model(tmp_path / "model"))
    paths = [str(long_speech(tmp_path / f"{seconds}.flac", seconds)) for seconds in (2, 8, 3)]
    whole = model.embed_waveforms

    def refuse(waveforms, batch_seconds=120.0):
        if sum(map(len, waveforms)) > 7 * RATE:
            raise MemoryError
        return whole(waveforms, batch_seconds)

    monkeypatch.setattr(model, "embed_waveforms", refuse)
    embedded = embed_files(model, paths, progress=False)
    assert embedded.failures == {paths[1]: fitting.NO_MEMORY}
    assert list(embedded.embeddings) == [paths[0], paths[2]] and embedded.seconds == 5
    source = AudioFiles(paths, RATE)
    parts = EmbeddingParts(tmp_path / "parts", source.sizes, model.config.embedding_size, {})
    extract(model, source, parts, progress=False)
    assert parts.failures() == {paths[1]: fitting.NO_MEMORY}
