"""What comes in from outside, checked before it is used.

Letters: `B` batch, `L` samples.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor

# An utterance below this holds no speaker: ten frames.
SHORTEST_SECONDS = 0.1
# Largest minus smallest sample below which there is no sound: less than one step of 16-bit audio.
SILENCE_SPAN = 2e-5
# Share of a batch that may be padding: it is computed like sound, and costs more than a further batch.
MOST_PADDING = 0.1


def make_feature_extractor(sampling_rate: int) -> Wav2Vec2FeatureExtractor:
    """transformers' own feature extractor: it pads and makes the mask; all else is inside the model."""
    return Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=sampling_rate,
        padding_value=0.0,
        do_normalize=False,
        return_attention_mask=True,
    )


def check_samples(waveform: np.ndarray | Tensor | Sequence[float], position: int) -> Tensor:
    """One recording as a tensor `(L,)` of float32 (or wider, if it came so), of any length, silent or not.

    Raises:
        ValueError: not one-dimensional, integers, NaN or infinite samples; the message names `position`.
    """
    try:
        tensor = torch.as_tensor(waveform)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Waveform {position} is {type(waveform).__name__}; expected an array of samples, shape (samples,). Files "
            "are read by the pipeline 'speaker-verification', or by soundfile.read."
        ) from error
    if tensor.ndim == 0:
        raise ValueError(
            f"Waveform {position} is one number; expected an array of samples. One recording among several is given in "
            "a list: [waveform]."
        )
    if tensor.ndim != 1:
        raise ValueError(
            f"Waveform {position} has shape {tuple(tensor.shape)}; expected one channel, shape (samples,). Average "
            "or select the channels first."
        )
    if not tensor.is_floating_point():
        raise ValueError(
            f"Waveform {position} holds {tensor.dtype} samples; expected floating point in [-1, 1]. Divide 16-bit "
            "audio by 32768."
        )
    if not torch.isfinite(tensor).all():
        raise ValueError(f"Waveform {position} holds NaN or infinite samples; decode or repair it first.")
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_waveform(waveform: np.ndarray | Tensor | Sequence[float], position: int, sampling_rate: int) -> Tensor:
    """One utterance as a tensor `(L,)` of float32 (or wider, if it came so), long and loud enough to embed.

    Raises:
        ValueError: as `check_samples`, and shorter than 0.1 s, or silence.
    """
    tensor = check_samples(waveform, position)
    shortest = round(SHORTEST_SECONDS * sampling_rate)
    if tensor.shape[0] < shortest:
        raise ValueError(
            f"Waveform {position} has {tensor.shape[0]} samples ({tensor.shape[0] / sampling_rate:.3f} "
            f"s); a speaker needs at least {shortest} ({SHORTEST_SECONDS} s), and a reliable decision a few seconds."
        )
    if float(tensor.max() - tensor.min()) < SILENCE_SPAN:
        raise ValueError(f"Waveform {position} holds no sound: all its samples are alike. Check the recording.")
    return tensor


def check_batch(input_values: Tensor, attention_mask: Tensor | None, smallest_length: int) -> None:
    """Refuse a batch that is not `(B, L)` with a mask of the same shape and enough samples in every row.

    What the mask holds is checked on the CPU only, elsewhere the device would have to be waited for; and not where
    the model is compiled or exported, as a graph cannot refuse.
    """
    if input_values.ndim != 2:
        raise ValueError(
            f"input_values has shape {tuple(input_values.shape)}; expected (batch, samples) of mono audio."
        )
    too_short = f"one analysis window needs {smallest_length}, and a speaker at least {SHORTEST_SECONDS} s."
    if input_values.shape[1] < smallest_length:
        raise ValueError(f"input_values holds {input_values.shape[1]} samples; {too_short}")
    if attention_mask is None:
        return
    if attention_mask.shape != input_values.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, input_values {tuple(input_values.shape)}; the "
            "mask marks samples, one for one."
        )
    if attention_mask.device.type == "cpu" and attention_mask.shape[0] and not torch.compiler.is_compiling():
        mask = attention_mask.long()
        if bool((mask[:, 1:] > mask[:, :-1]).any()):
            raise ValueError("attention_mask has 0 before 1: utterances must be padded on the right.")
        shortest = int(mask.sum(-1).min())
        if shortest < smallest_length:
            raise ValueError(f"attention_mask leaves an utterance {shortest} samples; {too_short}")


def check_labels(labels: Tensor, speakers: int) -> None:
    """Refuse labels `(B,)` outside [0, speakers)."""
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < speakers:
        raise ValueError(
            f"Labels run from {int(labels.min())} to {int(labels.max())}, but the model has {speakers} "
            "speakers (num_labels): rebuild the head with num_labels of the new training set."
        )


def length_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of `lengths`, sorted by length and cut into runs of little padding, within `budget` samples with it."""
    batches: list[list[int]] = []
    held = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        padded = (len(batches[-1]) + 1) * lengths[i] if batches else 0
        if batches and padded <= budget and padded - held - lengths[i] <= MOST_PADDING * padded:
            batches[-1].append(i)
            held += lengths[i]
        else:
            batches.append([i])
            held = lengths[i]
    return batches
