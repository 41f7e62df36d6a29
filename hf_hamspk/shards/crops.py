"""Decode a random crop of an encoded recording without decoding much more than the crop."""

import io
from typing import Any, cast

import numpy as np
import soundfile as sf

from ..audio_hamspk import InputError, QuietFile
from ..data.audio import SAMPLING_RATE, read_utterance
from ..data.crops import random_crop

PLANES_OF_PYAV = 7
"""Largest number of channels whose planes PyAV reads correctly. It reads more planes beyond the end of their memory."""

AAC_SETTLING = 2048
"""Number of samples that are decoded before an AAC crop, because successive frames of 1,024 samples overlap."""


def decode_crop(
    content: bytes | memoryview,
    samples: int,
    generator: np.random.Generator,
    sampling_rate: int = SAMPLING_RATE,
    name: str = "",
) -> np.ndarray:
    """Decode a random crop of an encoded recording.

    For lossless recordings (FLAC, WAV), the result equals
    `random_crop(read_utterance(content).waveform, samples, generator)`. For lossy formats, some samples differ from
    those of a complete decoding: the first samples after a seek are inexact (Opus, Vorbis, MP3), or the decoder adds
    noise (AAC). The same crop always has the same samples. The start of an AAC crop is drawn from the range that the
    length in the header allows, and this length can be wrong by up to one frame. If the sampling rate of the recording
    is not `sampling_rate`, the recording is decoded completely.

    Crops are not checked for silence, because recordings are checked when shards are prepared.

    Args:
        content: bytes of an audio file.
        samples: length of the crop in samples, at least 1.
        generator: random generator that draws the start; used only if the recording is longer than the crop.
        sampling_rate: sampling rate of the crop in Hz.
        name: name of the recording in errors.

    Returns:
        Float32 samples `(samples,)`.

    Raises:
        InputError: the content cannot be decoded.
        MissingDecoderError: the content is AAC and PyAV is not installed.
    """
    start = None
    try:
        if content[4:8] == b"ftyp":
            start, crop = _middle_of_aac(content, samples, generator, sampling_rate)
            if crop is not None:
                return crop
        else:
            with sf.SoundFile(cast(Any, QuietFile(io.BytesIO(content)))) as file:
                spare = file.frames - samples
                if file.samplerate == sampling_rate and spare > 0 and file.seekable():
                    file.seek(int(generator.integers(spare + 1)))
                    return _one_channel(file.read(samples, dtype="float32", always_2d=True), samples)
    except InputError:
        raise
    except (sf.SoundFileError, OSError, TypeError, ValueError, RuntimeError, ImportError):
        pass  # Decoding the complete recording gives a better error message.
    waveform = read_utterance(bytes(content), sampling_rate, name, min_duration=0.0).waveform
    if start is None or len(waveform) <= samples:
        return random_crop(waveform, samples, generator)
    start = min(start, len(waveform) - samples)
    return waveform[start : start + samples]


def _middle_of_aac(
    content: bytes | memoryview, samples: int, generator: np.random.Generator, sampling_rate: int
) -> tuple[int | None, np.ndarray | None]:
    """Draw a random crop of an m4a file, and decode only this crop.

    Returns:
        Start of the crop, and its samples `(samples,)`. The start is None if it was not drawn. The samples are None if
        the complete recording must be decoded instead.
    """
    import av
    from av.error import FFmpegError

    try:
        with av.open(QuietFile(io.BytesIO(content)), "r", format="mov") as file:
            stream = file.streams.audio[0]
            if stream.duration is None or stream.time_base is None or stream.rate != sampling_rate:
                return None, None
            ticks = float(stream.time_base) * sampling_rate
            spare = round(stream.duration * ticks) - samples
            if spare <= 0:
                return None, None
            start = int(generator.integers(spare + 1))
            file.seek(round(max(0, start - AAC_SETTLING) / ticks), stream=stream)
            return start, _frames(file.decode(stream), start, samples, sampling_rate, ticks)
    except (FFmpegError, ValueError, IndexError) as error:
        raise TypeError(str(error)) from error


def _frames(frames: Any, start: int, samples: int, sampling_rate: int, ticks: float) -> np.ndarray | None:
    """Return the samples `start` to `start + samples - 1` from decoded AAC frames, averaged over the channels.

    Args:
        frames: decoded frames of PyAV. The first frame should begin at or before `start`.
        start: number of the first sample of the crop in the recording.
        samples: length of the crop in samples.
        sampling_rate: expected sampling rate of the frames in Hz.
        ticks: number of samples in one unit of the time stamps of the frames.

    Returns:
        Float32 samples `(samples,)`; None if a frame is missing or has an unexpected format, or a sample is not finite.
    """
    kept: list[Any] = []
    first = 0
    for frame in frames:
        # The header of HE-AAC declares half the sampling rate, and its frames are twice as long.
        if frame.sample_rate != sampling_rate or frame.format.name != "fltp" or frame.pts is None:
            return None
        if frame.layout.nb_channels > PLANES_OF_PYAV:
            return None
        place = round(frame.pts * ticks)
        if place + frame.samples <= start:
            continue
        if not kept:
            first = place
        elif len(frame.planes) != len(kept[0].planes):
            return None
        kept.append(frame)
        if place + frame.samples >= start + samples:
            break
    if not kept or first > start:
        return None
    # A plane can be longer than its frame, and its memory belongs to the frame.
    channels = [
        np.concatenate([np.frombuffer(frame.planes[number], np.float32, frame.samples) for frame in kept])
        for number in range(len(kept[0].planes))
    ]
    whole = channels[0] if len(channels) == 1 else np.stack(channels).mean(axis=0)
    crop = whole[start - first :][:samples]
    return crop if len(crop) == samples and np.isfinite(crop).all() else None


def _one_channel(crop: np.ndarray, samples: int) -> np.ndarray:
    if len(crop) < samples:
        raise InputError(f"is cut short: expected a crop of {samples} samples, but only {len(crop)} could be decoded")
    if not np.isfinite(crop).all():
        raise InputError("contains NaN or infinite samples; leave it out")
    return crop[:, 0] if crop.shape[1] == 1 else crop.mean(axis=1)
