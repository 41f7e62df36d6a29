"""Speaker models whose encoder runs in another backend or number format."""

import copy
import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import XVectorOutput
from transformers.utils import logging

from ..modeling_hamspk import HamSpkModel, HamSpkPreTrainedModel, SpeakerModelMixin, check_batch
from .graphs import Embedder, WithoutFrontend, features_of
from .rows import RowEcapa, supports_rows

logger = logging.get_logger(__name__)


class BackendModel(SpeakerModelMixin):
    """Speaker model that embeds recordings without batches in a backend. `with_backend` creates it.

    It has the inference methods of the model, such as `embed`, `verify` and `identify`, and cannot be trained or saved.
    Recordings are not padded, so an embedding does not depend on the other recordings. Changes of the model's weights
    after the creation have no effect.

    Attributes:
        choice: backend and number format, and the measurement that chose them (see `Choice`).
    """

    def __init__(self, model: HamSpkPreTrainedModel, embedder: Embedder, choice: Any, graph: bytes | None = None):
        super().__init__()
        encoder: Any = model.base_model
        self.config, self.device, self.vad = model.config, torch.device("cpu"), model.vad
        self.name_or_path = model.name_or_path
        self.overlap_detector, self.choice = model.overlap_detector, choice
        self.base_model: Any = _OneByOne(encoder, embedder)
        self._pool = _start_threads(choice.at_once, choice.threads // choice.at_once) if choice.at_once > 1 else None
        self._weights = model.fingerprint().partition("-")[0]
        if graph is None:
            self.calibration, self.cohort = model.usable_calibration()
            return
        self._weights = hashlib.sha256(self._weights.encode() + hashlib.sha256(graph).digest()).hexdigest()
        if model.calibration is not None or model.cohort is not None:
            logger.warning(
                "The embeddings of the int8 model differ from those of the original model, so the calibration of the "
                "original model does not apply. The int8 model gives scores but no decisions. Calibrate the int8 "
                "model with `calibrate`, load its own calibration with `Calibration.load`, or use float32 or bfloat16."
            )

    def _hash_weights(self) -> str:
        return self._weights

    def _embed_pieces(self, waveforms: Sequence[np.ndarray], budget: int) -> Tensor:
        if self._pool is None:
            return super()._embed_pieces(waveforms, budget)
        embeddings = torch.empty(len(waveforms), self.config.embedding_size)

        def embed(number: int) -> None:
            waveform = torch.from_numpy(np.ascontiguousarray(waveforms[number]))
            with torch.inference_mode():
                embeddings[number] = self.base_model(waveform[None]).embeddings[0]

        # If the longest come first, the threads end at about the same time.
        order = sorted(range(len(waveforms)), key=lambda number: -len(waveforms[number]))
        list(self._pool.map(embed, order))
        return embeddings


def _start_threads(count: int, of_torch: int) -> ThreadPoolExecutor:
    """Return a pool of `count` threads, in each of which torch computes with `of_torch` threads."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "embedding", _limit_torch, (of_torch,))
    # The pool starts a thread only if all others are busy.
    all_started = threading.Barrier(count)
    list(pool.map(lambda _: all_started.wait(), range(count)))
    # `set_num_threads` also changes the number for threads that begin later.
    torch.set_num_threads(before)
    return pool


def _limit_torch(threads: int) -> None:
    """Let torch compute with so many threads in the calling thread."""
    # A thread takes over the number of the process at its first call of torch, so that call must come before.
    torch.get_num_threads()
    torch.set_num_threads(threads)


class _OneByOne(nn.Module):
    """Encoder with the calling interface of a model that embeds each recording of a batch separately."""

    def __init__(self, encoder: HamSpkModel, embedder: Embedder):
        super().__init__()
        # In a list, the model is hidden from `parameters` and `state_dict`, which must not contain its weights.
        self._model, self._embedder = [encoder], embedder

    def num_parameters(self) -> int:
        """Return the number of parameters of the model before it was converted."""
        return self._model[0].num_parameters()

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> XVectorOutput:
        """Embed the waveforms `input_values` `(B, L)`; `attention_mask` `(B, L)` is 0 for padding on the right."""
        model = self._model[0]
        check_batch(input_values, attention_mask, model.frontend.smallest_length)
        full = input_values.shape[1]
        lengths = [full] * len(input_values) if attention_mask is None else attention_mask.sum(-1).tolist()
        rows = [
            self._embedder(features_of(model, row[:length])) for row, length in zip(input_values, lengths, strict=True)
        ]
        return XVectorOutput(embeddings=torch.cat(rows).float())


def torch_embedder(model: HamSpkModel, dtype: str) -> Embedder:
    """Return a function that computes the embedding `(1, D)` of the features of a recording in PyTorch."""
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    if supports_rows(model):
        rows = RowEcapa(model, kind)
        projection, norms = copy.deepcopy(model.projection), copy.deepcopy((model.pooled_norm, model.embedding_norm))
        return lambda features: norms[1](projection(norms[0](rows(features.mT.contiguous())[None])))
    # A copy, because the precision of the user's model must not change.
    own: Any = copy.deepcopy(model).eval()
    nn.Module.to(own, dtype=kind)
    layers = WithoutFrontend(own)
    return lambda features: layers(features).float()
