"""Embed the recordings of a corpus, and leave out those that need more memory than is available."""

from collections.abc import Sequence

import numpy as np
import torch

from ..modeling_hamspk import BATCH_SECONDS, SpeakerModelMixin

NO_MEMORY = "needs more memory to embed than this process can get; cut it into shorter files"
# Words in the RuntimeError of torch if the operating system gives no memory. On a GPU, the error has its own class.
_NO_MEMORY_WORDS = "can't allocate memory"


def embed_what_fits(
    model: SpeakerModelMixin, waveforms: Sequence[np.ndarray], batch_seconds: float = BATCH_SECONDS
) -> list[torch.Tensor | None]:
    """Embed waveforms like `model.embed_waveforms`. If the memory is not sufficient, embed each waveform alone.

    Returns:
        For each waveform the embedding `(D,)`, float32 on the CPU; None if its embedding alone needs too much memory.
    """
    found = _embed_or_none(model, waveforms, batch_seconds)
    if found is not None:
        return list(found)
    # With 0 seconds, each piece of a long recording is embedded alone, too.
    alone = (_embed_or_none(model, [waveform], 0.0) for waveform in waveforms)
    return [None if one is None else one[0] for one in alone]


def _embed_or_none(
    model: SpeakerModelMixin, waveforms: Sequence[np.ndarray], batch_seconds: float
) -> torch.Tensor | None:
    try:
        return model.embed_waveforms(waveforms, batch_seconds).cpu()
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or _NO_MEMORY_WORDS in str(error)
        if not is_memory:
            raise
        return None
