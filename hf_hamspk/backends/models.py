"""Speaker models whose encoder runs in another backend or number format."""

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import XVectorOutput
from transformers.utils import logging

from ..modeling_hamspk import HamSpkModel, HamSpkPreTrainedModel, SpeakerModelMixin, check_batch
from .graphs import Embedder, WithoutFrontend, features_of
from .rows import RowEcapa, supports_rows
from .threads import EmbeddingThreads

logger = logging.get_logger(__name__)


class BackendModel(SpeakerModelMixin):
    """Speaker model that embeds recordings without batches in a backend. `with_backend` creates it.

    It has the inference methods of the model, such as `embed`, `verify` and `identify`, and cannot be trained or saved.
    Recordings are not padded, so an embedding does not depend on the other recordings. Changes of the model's weights
    after the creation have no effect.

    Attributes:
        choice: backend and number format, and the measurement that chose them (see `Choice`).
        pool: threads that embed; None for the calling thread.
    """

    pool: EmbeddingThreads | None = None

    def __init__(self, model: HamSpkPreTrainedModel, embedder: Embedder, choice: Any, graph: bytes | None = None):
        super().__init__()
        encoder: Any = model.base_model
        self.config, self.device, self.vad = model.config, torch.device("cpu"), model.vad
        self.name_or_path = model.name_or_path
        self.overlap_detector, self.choice = model.overlap_detector, choice
        self.base_model: Any = _OneByOne(encoder, embedder)
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
        if self.pool is None:
            return super()._embed_pieces(waveforms, budget)

        def embed(number: int) -> Tensor:
            waveform = torch.from_numpy(np.ascontiguousarray(waveforms[number]))
            with torch.inference_mode():
                return self.base_model(waveform[None]).embeddings[0]

        rows = self.pool.run(embed, [len(waveform) for waveform in waveforms], self.pool.at_once * budget)
        embeddings = torch.empty(len(rows), self.config.embedding_size)
        for number, row in enumerate(rows):
            embeddings[number] = row
        return embeddings


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
