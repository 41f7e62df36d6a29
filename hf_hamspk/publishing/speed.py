"""Measurement of a model's speed on this machine, for its card."""

import statistics
import time
from typing import Any

import torch

from ..modeling_hamspk import HamSpkModel

SECONDS = 5.0
REPETITIONS = 5
_BATCH = 16
_SEED = 0


def measure_speed(model: HamSpkModel, seconds: float = SECONDS, repetitions: int = REPETITIONS) -> dict[str, Any]:
    """Measure how fast `embed` processes noise, as the median of several repetitions after a warm-up.

    Args:
        model: model on the device to be measured.
        seconds: duration of an utterance in seconds.
        repetitions: number of repetitions of each measurement.

    Returns:
        Values for `About.speed`: the device and its number of threads, milliseconds per utterance, and seconds of audio
        embedded per second in batches.
    """
    rate = model.config.sampling_rate
    noise = 0.1 * torch.randn(_BATCH, round(seconds * rate), generator=torch.Generator().manual_seed(_SEED))
    one = _time(model, noise[:1], rate, repetitions)
    many = _time(model, noise, rate, repetitions)
    where = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "CPU"
    threads = "" if model.device.type == "cuda" else f", {torch.get_num_threads()} threads"
    return {
        "device": f"{where}{threads}, torch {torch.__version__.split('+')[0]}",
        f"milliseconds for an utterance of {seconds:g} s": round(1000 * one, 1),
        f"seconds of audio embedded per second, in batches of {_BATCH}": round(_BATCH * seconds / many, 1),
    }


def _time(model: HamSpkModel, noise: torch.Tensor, rate: int, repetitions: int) -> float:
    """Return the median duration of a call of `embed`, in seconds."""
    waveforms, took = list(noise), []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        model.embed(waveforms, rate)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        took.append(time.perf_counter() - start)
    return statistics.median(took[1:])
