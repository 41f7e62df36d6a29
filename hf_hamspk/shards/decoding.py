"""Bytes of one audio file to a waveform: soundfile for what it knows, PyAV for AAC in m4a; memory stays bounded.

A few kilobytes of FLAC or AAC can promise hours of sound. What a file would take is read from its header, or counted
while it is decoded, and too much is refused before it is there.
"""

import io

import numpy as np
import soundfile as sf

from ..data.audio import MIN_DURATION, SAMPLING_RATE, AudioError, Sound, check_samples, read_sound, resample

AAC_SUFFIXES = (".m4a", ".mp4", ".aac")

AAC_FRAME = 2048
"""Samples of the longest frame of AAC (HE-AAC)."""

MAX_VALUES = 2**26
"""Samples times channels of one file: 70 minutes at 16 kHz, 256 MiB as float32."""


def decode_sound(
    content: bytes, name: str = "<bytes>", min_duration: float = MIN_DURATION, max_values: int = MAX_VALUES
) -> Sound:
    """Decode a recording at its own sampling rate, averaged over its channels, and check what it holds.

    Args:
        content: WAV, FLAC, OGG, Opus, MP3; or AAC (m4a, mp4, aac), for which the package `av` must be installed. What
            it is, is seen from its first bytes, not from its name.
        name: of the file, for errors.
        min_duration: seconds, at least 0.
        max_values: samples times channels from which on a file is refused.

    Raises:
        AudioError: it cannot be used, see `hf_hamspk.data.audio.read_sound`, or is too long.
        ImportError: it is AAC and PyAV is not installed.
    """
    if container := _aac_container(content):
        return check_samples(*_decode_aac(content, name, container, max_values), name, min_duration)
    try:
        info = sf.info(io.BytesIO(content))
    except (sf.SoundFileError, OSError, TypeError):
        pass  # read_sound says it better
    else:
        if info.frames * info.channels > max_values:
            raise _too_long(name, info.frames / max(info.samplerate, 1), info.channels, max_values)
    return read_sound({"bytes": content, "path": name}, min_duration)


def decode_audio(
    content: bytes,
    name: str = "<bytes>",
    sampling_rate: int = SAMPLING_RATE,
    min_duration: float = MIN_DURATION,
    max_values: int = MAX_VALUES,
) -> np.ndarray:
    """Decode a recording to mono float32 at `sampling_rate`, `(L,)`; see `decode_sound`."""
    sound = decode_sound(content, name, min_duration, max_values)
    return resample(sound.waveform, sound.sampling_rate, sampling_rate)


def _aac_container(content: bytes) -> str | None:
    """FFmpeg's name of the container where the first bytes are those of AAC, else None."""
    if content[4:8] == b"ftyp":
        return "mov"
    # ADTS: twelve set bits, and layer 0, which MP3 never has.
    if len(content) > 1 and content[0] == 0xFF and content[1] & 0xF6 == 0xF0:
        return "aac"
    return None


def _decode_aac(content: bytes, name: str, container: str, max_values: int) -> tuple[np.ndarray, int, int]:
    """`(L, channels)` float32, samples per second, and the samples that the header promises (0 where it is silent)."""
    try:
        import av
        import av.error
    except ImportError as error:
        raise ImportError(
            f"{name} is AAC, which soundfile does not decode: `pip install av` (PyAV, which brings FFmpeg along), or "
            "convert the files, for example with `ffmpeg -i INPUT.m4a OUTPUT.flac`"
        ) from error
    blocks: list[np.ndarray] = []
    values, rate = 0, 0
    try:
        # The container is named: left to guess, FFmpeg takes a playlist for audio and opens the addresses in it.
        with av.open(io.BytesIO(content), mode="r", format=container) as file:
            if not file.streams.audio:
                raise AudioError("holds no audio stream; leave it out", name)
            stream = file.streams.audio[0]
            seconds = 0.0 if stream.duration is None else float(stream.duration * (stream.time_base or 0))
            to_planes = av.AudioResampler(format="fltp")
            for frame in file.decode(stream):
                for planes in to_planes.resample(frame):
                    blocks.append(planes.to_ndarray())
                    # Of the frame and not of the header: HE-AAC announces half of its rate.
                    rate = int(planes.sample_rate)
                    values += blocks[-1].size
                    if values > max_values:
                        raise _too_long(name, values / len(blocks[-1]) / rate, len(blocks[-1]), max_values)
            samples = np.concatenate(blocks, axis=1).T if blocks else np.zeros((0, 1), np.float32)
    except AudioError:
        raise
    # A ValueError also where the channels change midway.
    except (av.error.FFmpegError, ValueError, OSError) as error:
        said = getattr(error, "strerror", None) or error
        raise AudioError(f"cannot be decoded ({said}); it is damaged: copy it anew or leave it out", name) from error
    promised = round(seconds * rate)
    # The encoder fills its last frame up; the container knows where the sound ends.
    padded = 0 < promised < len(samples) < promised + AAC_FRAME
    return samples[:promised] if padded else samples, max(rate, 1), promised


def _too_long(name: str, seconds: float, channels: int, max_values: int) -> AudioError:
    return AudioError(
        f"lasts {seconds:.0f} s or more in {channels} channels, more than {max_values} samples; cut it into utterances",
        name,
    )
