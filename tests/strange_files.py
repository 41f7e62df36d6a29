"""Recordings as files that people give: formats, rates, channels, damage, lies in headers, and what is no recording."""

import functools
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from tiny_models import RATE, noises

from hf_hamspk.audio_hamspk import resample
from hf_hamspk.data.synthetic import make_speech

SECONDS = 1.6
# Where a FLAC file keeps its number of samples: the low 36 bits of these bytes.
FLAC_LENGTH = slice(18, 26)


class Case(NamedTuple):
    """A strange recording.

    Attributes:
        name: of the file.
        write: makes the file at a path, or something else.
        refusal: words of the sentence that refuses it, without the name; "" if it is taken.
        warning: words of a warning; "" if there is nothing to warn of but its length.
        corpus: words of the sentence that refuses it in a corpus or for an embedding; None: as `refusal`.
        path: what is given instead of a file of ours.
        is_slow: left out of the fast suite.
    """

    name: str
    write: Callable[[Path], object]
    refusal: str = ""
    warning: str = ""
    corpus: str | None = None
    path: str = ""
    is_slow: bool = False


@functools.cache
def speech(speaker: int = 1, seconds: float = SECONDS) -> np.ndarray:
    """`(L,)` float32 at `RATE`."""
    return make_speech(speaker, 2, seconds)


def at_rate(rate: int, wave: np.ndarray | None = None) -> np.ndarray:
    """Speech at another sampling rate."""
    return resample(speech() if wave is None else wave, RATE, rate)


def encode(wave: np.ndarray, format: str, subtype: str | None = None, rate: int = RATE) -> bytes:
    """The bytes of a file of libsndfile's."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def encode_av(wave: np.ndarray, container: str, codec: str, rate: int = RATE, bit_rate: int | None = None) -> bytes:
    """The bytes of a file of FFmpeg's; `wave` is `(L,)`, or `(L, 2)`."""
    import av

    buffer, layout = io.BytesIO(), "mono" if wave.ndim == 1 else "stereo"
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(
            codec, rate=rate, layout=layout, **({} if bit_rate is None else {"bit_rate": bit_rate})
        )
        # Some encoders choose the size of a frame when they are opened.
        stream.codec_context.open()
        samples = np.rint(wave * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate, frame_size=stream.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            for packet in stream.encode(part):
                file.mux(packet)
        for packet in stream.encode(None):
            file.mux(packet)
    return buffer.getvalue()


def cut(content: bytes, share: float = 0.5) -> bytes:
    """The first part of a file."""
    return content[: int(len(content) * share)]


def with_wav_size(content: bytes, size: int) -> bytes:
    """A WAV file whose header says that its samples take `size` bytes."""
    at = content.index(b"data") + 4
    return content[:at] + struct.pack("<I", size) + content[at + 4 :]


def with_flac_length(content: bytes, samples: int) -> bytes:
    """A FLAC file whose header says that it holds so many samples."""
    fields = int.from_bytes(content[FLAC_LENGTH], "big") >> 36 << 36 | samples
    return content[: FLAC_LENGTH.start] + fields.to_bytes(8, "big") + content[FLAC_LENGTH.stop :]


def with_riff_size(content: bytes, size: int) -> bytes:
    """A WAV file whose header says that it takes `size` bytes."""
    return content[:4] + struct.pack("<I", size) + content[8:]


def with_text_chunk(content: bytes) -> bytes:
    """A WAV file with a text of odd length in front of its samples, as editors write it."""
    at = content.index(b"data")
    return content[:at] + b"LIST" + struct.pack("<I", 7) + b"INFOabc\0" + content[at:]


def stereo(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`(L, 2)`."""
    return np.stack([left, right], 1)


def at_level(decibels: float) -> np.ndarray:
    """Speech of this root mean square, in dB below full scale."""
    wave = speech()
    return wave * np.float32(10 ** (decibels / 20) / np.sqrt(np.mean(wave**2)))


def with_nan() -> np.ndarray:
    """Speech with three samples that are no numbers."""
    wave = speech().copy()
    wave[100:103] = np.nan
    return wave


def two_in_turn() -> np.ndarray:
    """Two speakers, one after the other."""
    return np.concatenate([speech(1, 4.0), speech(2, 4.0)])


def content_case(name: str, make: Callable[[], bytes], **words) -> Case:
    """A file of the bytes that `make` makes."""
    return Case(name, lambda path: path.write_bytes(make()), **words)


def sound_case(name: str, subtype: str | None = None, make=speech, rate: int = RATE, format: str = "", **words) -> Case:
    """A file of libsndfile's; its format is that of the ending unless it is given."""
    kind = format if format else name.rpartition(".")[2].upper()
    return content_case(name, lambda: encode(make(), kind, subtype, rate), **words)


def rate_case(rate: int, **words) -> Case:
    """A WAV file of a sampling rate."""
    low = f"was sampled at {rate} Hz, but the model expects 16000 Hz" if rate < RATE else ""
    return sound_case(f"rate-{rate}.wav", make=lambda: at_rate(rate), rate=rate, **({"warning": low} | words))


FORMATS = [
    sound_case("pcm-8.wav", "PCM_U8"),
    sound_case("pcm-16.wav", "PCM_16"),
    sound_case("pcm-24.wav", "PCM_24"),
    sound_case("pcm-32.wav", "PCM_32"),
    sound_case("float.wav", "FLOAT"),
    sound_case("double.wav", "DOUBLE"),
    sound_case("mu-law.wav", "ULAW", lambda: at_rate(8000), 8000, warning="sampled at 8000 Hz"),
    sound_case("a-law.wav", "ALAW", lambda: at_rate(8000), 8000, warning="sampled at 8000 Hz"),
    sound_case("gsm.wav", "GSM610", lambda: at_rate(8000), 8000, warning="sampled at 8000 Hz"),
    sound_case("ima-adpcm.wav", "IMA_ADPCM"),
    sound_case("ms-adpcm.wav", "MS_ADPCM"),
    sound_case("wavex.wav", "PCM_24", format="WAVEX"),
    sound_case("rf64.wav", "PCM_16", format="RF64"),
    sound_case("w64.w64", "PCM_16"),
    sound_case("aiff.aiff", "PCM_16"),
    sound_case("au.au", "PCM_16"),
    sound_case("caf.caf", "PCM_16"),
    sound_case("sphere.sph", "PCM_16", format="NIST"),
    sound_case("flac.flac", "PCM_24"),
    sound_case("vorbis.ogg", "VORBIS"),
    sound_case("opus.opus", "OPUS", format="OGG"),
    sound_case("mp3.mp3", "MPEG_LAYER_III"),
    sound_case("flac-by-another-name.raw", format="FLAC"),
    content_case("text-chunk.wav", lambda: with_text_chunk(encode(speech(), "WAV"))),
    content_case("garbage-behind.wav", lambda: encode(speech(), "WAV") + bytes(999)),
]
NEEDING_AV = [
    content_case("aac.m4a", lambda: encode_av(speech(), "ipod", "aac")),
    content_case("aac-44100.mp4", lambda: encode_av(stereo(*[at_rate(44_100)] * 2), "mp4", "aac", 44_100)),
    content_case("adts.aac", lambda: encode_av(speech(), "adts", "aac")),
    content_case("opus.webm", lambda: encode_av(at_rate(48_000), "webm", "libopus", 48_000)),
    content_case("voice.wma", lambda: encode_av(at_rate(44_100), "asf", "wmav2", 44_100, 64_000)),
    content_case(
        "voice.amr",
        lambda: encode_av(at_rate(8000), "amr", "libopencore_amrnb", 8000, 12_200),
        warning="was sampled at 8000 Hz, but the model expects 16000 Hz",
    ),
    content_case("cut.m4a", lambda: cut(encode_av(speech(), "ipod", "aac")), refusal="cannot be decoded"),
    content_case("cut.aac", lambda: cut(encode_av(speech(), "adts", "aac")), refusal="cannot be decoded"),
]
RATES = [
    *(rate_case(rate) for rate in (4000, 8000, 11_025, 11_127, 22_051, 44_100, 44_101)),
    *(rate_case(rate, is_slow=True) for rate in (22_050, 32_000, 48_000, 48_001, 96_000)),
    rate_case(192_000),
    rate_case(3999, refusal="sampling rate of 3999 Hz", warning=""),
    sound_case("rate-400000.wav", rate=400_000, refusal="sampling rate of 400000 Hz"),
]
CHANNELS = [
    sound_case("alike.wav", make=lambda: stereo(speech(), 0.5 * speech())),
    sound_case("two-people.wav", make=lambda: stereo(speech(), speech(2)), warning="has different channels"),
    sound_case(
        "antiphase.wav",
        make=lambda: stereo(speech(), -speech()),
        warning="has different channels",
        corpus="holds no sound after averaging its 2 channels",
    ),
    sound_case("one-silent.wav", make=lambda: stereo(speech(), np.zeros_like(speech()))),
    sound_case("eight.wav", make=lambda: np.stack([speech()] * 8, 1)),
    sound_case("many.wav", make=lambda: np.stack([speech()[:800]] * 33, 1), refusal="has 33 channels"),
]
CUT_SHORT = [
    content_case(
        "cut.wav",
        lambda: cut(encode(speech(seconds=3.2), "WAV")),
        warning="is cut short",
        corpus="is cut short",
    ),
    content_case("cut.flac", lambda: cut(encode(speech(seconds=3.2), "FLAC")), refusal="cannot be decoded"),
    content_case(
        "cut.mp3",
        lambda: cut(encode(speech(seconds=3.2), "MP3")),
        warning="is cut short",
        corpus="is cut short",
    ),
    content_case("cut.ogg", lambda: cut(encode(speech(seconds=3.2), "OGG"), 0.75)),
    content_case("cut-in-its-header.wav", lambda: encode(speech(), "WAV")[:30], refusal="cannot be decoded"),
]
LYING_HEADERS = [
    content_case("unknown-size.wav", lambda: with_wav_size(encode(speech(), "WAV"), 0xFFFFFFFF)),
    content_case("never-closed.wav", lambda: with_riff_size(with_wav_size(encode(speech(), "WAV"), 0), 8)),
    content_case(
        "large-size.wav",
        lambda: with_wav_size(encode(speech(), "WAV"), 0x7FFFFFF0),
        refusal="lasts 67109 s; expected at most",
        corpus="lasts 67109 s or more",
    ),
    content_case("small-size.wav", lambda: with_wav_size(encode(speech(seconds=3.0), "WAV"), 2 * 24_000)),
    content_case("unknown-length.flac", lambda: with_flac_length(encode(speech(), "FLAC"), 0)),
    content_case(
        "largest-length.flac",
        lambda: with_flac_length(encode(speech(), "FLAC"), 2**36 - 1),
        refusal="lasts 4294967 s; expected at most",
    ),
]
SOUNDS = [
    sound_case("quiet.wav", make=lambda: at_level(-57), warning="is too quiet: its loudest second is at -57 dBFS"),
    sound_case("very-quiet.wav", make=lambda: at_level(-77), warning="is too quiet: its loudest second is at -77 dBFS"),
    sound_case("clipped.wav", make=lambda: np.clip(speech() * 20, -1, 1), warning="is clipped in "),
    sound_case(
        "clipped-44.wav", make=lambda: np.clip(at_rate(44_100) * 20, -1, 1), rate=44_100, warning="is clipped in "
    ),
    sound_case("noisy.wav", make=lambda: speech() + 0.12 * noises(SECONDS)[0].numpy(), warning="is noisy"),
    sound_case("silence.wav", make=lambda: np.zeros(RATE), warning="0.0 s of speech", corpus="holds no sound"),
    sound_case("short.wav", make=lambda: speech()[:4800], warning="of speech; a decision needs at least 1 s"),
    sound_case("a-twentieth.wav", make=lambda: speech()[:800], warning="0.0 s of speech", corpus="lasts 0.05 s"),
    sound_case("no-samples.wav", make=lambda: np.zeros(0), warning="0.0 s of speech", corpus="is empty (0 samples)"),
    sound_case("two-in-turn.wav", make=two_in_turn, is_slow=True),
    sound_case("nan.wav", "FLOAT", with_nan, refusal="contains NaN or infinite samples (3 of"),
    sound_case("16-bit-scale.wav", "FLOAT", lambda: 32768 * speech(), refusal="contains samples up to"),
    sound_case(
        "too-long.flac",
        make=lambda: np.zeros(601 * 4000),
        rate=4000,
        refusal="lasts 601 s; expected at most 600 s",
        corpus="holds no sound",
    ),
    content_case(
        "too-long-unsaid.wav",
        lambda: with_wav_size(encode(np.zeros(601 * 4000), "WAV", "PCM_U8", 4000), 0xFFFFFFFF),
        refusal="lasts 601 s; expected at most 600 s",
        corpus="holds no sound",
    ),
]
NO_RECORDINGS = [
    content_case("empty.wav", bytes, refusal="is an empty file (0 bytes)"),
    content_case("text.wav", lambda: b"this is no audio", refusal="cannot be decoded"),
    content_case("page.mp3", lambda: b"<!DOCTYPE html><html>404 Not Found</html>", refusal="cannot be decoded"),
    content_case("headerless.raw", lambda: bytes(32_000), refusal="cannot be decoded"),
    content_case("text.m4a", lambda: b"\0\0\0\x20ftypM4A " + bytes(50), refusal="cannot be decoded"),
]
NO_FILES = [
    Case("folder.wav", lambda path: path.mkdir(), refusal="is a folder"),
    Case("missing.wav", lambda path: None, refusal="no such file"),
    Case("dangling.wav", lambda path: path.symlink_to("nowhere"), refusal="no such file"),
    Case("pipe.wav", lambda path: os.mkfifo(path), refusal="regular file (a pipe or a device)"),
    Case("device", lambda path: None, refusal="regular file (a pipe or a device)", path="/dev/zero"),
    Case("far-too-long", lambda path: None, refusal="no such file", path="x" * 300 + ".wav"),
    Case("two  spaces.wav", lambda path: None, refusal="no such file"),
    Case("unprintable", lambda path: None, refusal="no such file", path="a\x1b[31mb.wav"),
]
CASES = [
    *(*FORMATS, *NEEDING_AV, *RATES, *CHANNELS, *CUT_SHORT, *LYING_HEADERS, *SOUNDS, *NO_RECORDINGS, *NO_FILES),
]
