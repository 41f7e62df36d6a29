"""Two hundred recordings as nobody should hand them over: wrong types, damaged files, huge, tiny, silent, odd."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tiny_models import RATE

from hf_hamspk.data.synthetic import make_speech


def file_bytes(wave: np.ndarray, rate: int = RATE, format: str = "FLAC", subtype: str | None = None) -> bytes:
    """An audio file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def silent_bomb(seconds: int, rate: int = 192_000) -> bytes:
    """A small file that is large once decoded."""
    return file_bytes(np.zeros(seconds * rate, np.int16), rate)


class Decoder:
    """Stands for a decoder of torchcodec."""

    def __init__(self, data: Any, sample_rate: Any):
        self.data, self.sample_rate = data, sample_rate

    def get_all_samples(self) -> Any:
        if self.data is None:
            raise RuntimeError("at /somewhere/deep/inside.cpp:17")
        return self


def damaged_files(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Files with bytes changed, cut off, or put in, of several formats."""
    draw = np.random.default_rng(seed)
    speech = make_speech(1, 1, 1.5, RATE)
    kinds = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", None), ("OGG", "VORBIS"), ("MP3", None), ("AIFF", None)]
    whole = {(kind, subtype): file_bytes(speech, RATE, kind, subtype) for kind, subtype in kinds}
    for i in range(count):
        kind = kinds[i % len(kinds)]
        content = bytearray(whole[kind])
        way = ("flip", "cut", "head", "insert", "zeros")[i // len(kinds) % 5]
        if way == "flip":
            for at in draw.integers(0, len(content), 40):
                content[at] = draw.integers(256)
        elif way == "cut":
            content = content[: draw.integers(len(content))]
        elif way == "head":
            for at in draw.integers(0, 48, 6):
                content[at] = draw.integers(256)
        elif way == "insert":
            at = draw.integers(len(content))
            content[at:at] = draw.bytes(97)
        else:
            at = draw.integers(len(content))
            content[at : at + 500] = bytes(len(content[at : at + 500]))
        yield f"{way} {kind[0]} {i}", bytes(content)


def odd_bytes() -> Iterator[tuple[str, bytes]]:
    """What is no damaged file, but no useful one either."""
    draw = np.random.default_rng(5)
    speech = make_speech(2, 1, 2.0, RATE)
    yield "nothing", b""
    yield "a byte", b"\0"
    yield "text", b"hello, this is no audio"
    yield "a pickle", b"\x80\x04\x95\x00\x00"
    yield "an archive", b"PK\x03\x04" + bytes(60)
    for size in (10, 1000, 60_000):
        yield f"noise of {size} bytes", draw.bytes(size)
    for start in (b"RIFF", b"fLaC", b"OggS", b"ID3\x04", b"\xff\xfb\x90\x00", b"caff", b"FORM"):
        yield f"only {start!r}", start + draw.bytes(2000)
    yield "no samples", file_bytes(np.zeros(0, np.float32), RATE, "WAV")
    yield "one sample", file_bytes(np.zeros(1, np.float32), RATE, "WAV")
    yield "silence", file_bytes(np.zeros(2 * RATE, np.float32))
    yield "constant", file_bytes(np.full(2 * RATE, 0.5, np.float32))
    yield "0.05 s", file_bytes(speech[:800])
    yield "0.3 s", file_bytes(speech[:4800])
    yield "not finite", file_bytes(np.where(np.arange(RATE) % 99, speech[:RATE], np.nan), RATE, "WAV", "FLOAT")
    yield "infinite", file_bytes(np.where(np.arange(RATE) % 99, speech[:RATE], np.inf), RATE, "WAV", "FLOAT")
    yield "far too loud", file_bytes(speech * 1e30, RATE, "WAV", "FLOAT")
    yield "clipped", file_bytes(np.clip(speech * 20, -1, 1))
    yield "stereo", file_bytes(np.stack([speech, -0.5 * speech], 1))
    yield "eight channels", file_bytes(np.stack([speech] * 8, 1))
    yield "opposite channels", file_bytes(np.stack([speech, -speech], 1), RATE, "WAV", "FLOAT")
    yield "200 channels", file_bytes(np.zeros((100, 200), np.float32), RATE, "WAV")
    for rate in (1, 100, 4000, 8000, 11025, 22050, 44101, 48000, 96000, 655350):
        yield f"{rate} Hz", file_bytes(make_speech(3, 1, 1.5, RATE), rate, "WAV")
    yield "a quarter of an hour", silent_bomb(900, 16_000)


def odd_values(folder: Path) -> Iterator[tuple[str, Any]]:
    """What is not even bytes."""
    speech = make_speech(4, 1, 2.0, RATE)
    yield from (("None", None), ("True", True), ("a number", 3.5), ("an integer", 10**400), ("a set", {1, 2}))
    yield from (
        ("an object", object()),
        ("a class", int),
        ("a function", len),
        ("a range", range(9)),
        ("an error", OSError()),
    )
    yield from (("no name", ""), ("no file", "no/such/file.wav"), ("a zero in it", "a\0b.wav"), ("long", "x" * 100_000))
    yield from (
        ("a folder", folder),
        ("a device", "/dev/zero"),
        ("half a character", "\ud800.wav"),
        ("bytes path", b"a.wav"),
    )
    yield from (("no server", "http://127.0.0.1:9/a.wav"), ("no host", "http:///a.wav"), ("bad port", "http://x:y/a"))
    yield from (("bad brackets", "http://[::1"), ("a file URL", "file:///etc/hostname"), ("control", "http://a b\n/c"))
    for samples in ([], [1, "a"], [[1.0], [1.0, 2.0]], "text", 5, {"a": 1}, [10**400], [None]):
        yield f"array {samples!r}"[:40], {"array": samples, "sampling_rate": RATE}
    for rate in (0, -1, 3.5, None, "16000", float("nan"), 10**9, True, [16000], 7999):
        yield f"rate {rate!r}", {"array": speech, "sampling_rate": rate}
    yield from (("empty", {}), ("other keys", {"audio": speech}), ("all None", {"bytes": None, "path": None}))
    yield from (
        ("bytes as text", {"bytes": "abc"}),
        ("path as number", {"path": 7}),
        ("itself", {"path": {"path": "a"}}),
    )
    for kind in ("int8", "uint8", "uint16", "int64", "bool", "complex64", "object", "U3", "datetime64[s]"):
        yield kind, np.zeros(RATE, dtype=kind)
    for kind in ("int16", "int32", "float16", "float64"):
        yield kind, (speech * (20_000 if kind[0] == "i" else 1)).astype(kind)
    yield from (("16 bits as floats", (speech * 32768).astype(np.float32)), ("one NaN", np.r_[speech, np.nan]))
    for shape in ((), (0,), (1,), (1, 1), (0, 5), (3, 0), (2, 3, 4), (1, 2 * RATE), (2 * RATE, 1), (100, 100)):
        yield f"shape {shape}", np.zeros(shape, np.float32)
    yield "a virtual hour", np.broadcast_to(np.float32(0), (3600 * RATE,))
    yield "a virtual year", np.broadcast_to(np.float32(0), (10**12,))
    yield "subnormal", np.full(RATE, 1e-45, np.float32)
    yield "structured", np.zeros(5, dtype=[("a", "f4")])
    yield from (("a tensor", torch.from_numpy(speech)), ("with gradient", torch.from_numpy(speech).requires_grad_()))
    yield from (("half", torch.from_numpy(speech).bfloat16()), ("sparse", torch.zeros(RATE).to_sparse()))
    yield from (("meta", torch.zeros(RATE, device="meta")), ("integers", torch.zeros(RATE, dtype=torch.long)))
    yield from (
        ("a text file", io.StringIO("a")),
        ("a closed file", _closed()),
        ("a file", io.BytesIO(file_bytes(speech))),
    )
    yield from (("a decoder", Decoder(torch.from_numpy(speech)[None], RATE)), ("a broken decoder", Decoder(None, 0)))
    yield from (("a decoder of nothing", Decoder("x", RATE)), ("a strange rate", Decoder(torch.zeros(2, RATE), "high")))


def _closed() -> io.BytesIO:
    file = io.BytesIO(b"abc")
    file.close()
    return file
