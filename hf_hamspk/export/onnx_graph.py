"""A model as an ONNX file: waveforms in, embeddings out, any batch and any length; checked against PyTorch.

Letters: `B` batch, `L` samples, `D` embedding size.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..geometry_hamspk import length_mask
from ..modeling_hamspk import INPUTS, OUTPUT, HamSpkModel, HamSpkPreTrainedModel, OnnxDescription, OnnxEncoder

# Largest difference of an embedding, as a share of its largest value; float32 rounding stays far below.
LARGEST_DIFFERENCE = 1e-4
CHECKED_SECONDS, CHECKED_BATCHES = (0.5, 2.0, 7.3, 20.0), (1, 4)
# The graph is traced with a batch of this shape; its sizes are then left open.
_TRACED_SECONDS = (1.0, 0.7)


@dataclass(frozen=True)
class Agreement:
    """The difference between the file and the model for one batch.

    Attributes:
        seconds: of the longest utterance of a batch.
        batch: utterances; of different lengths if the file takes a mask.
        difference: largest difference of an embedding, as a share of its largest value.
    """

    seconds: float
    batch: int
    difference: float


@dataclass(frozen=True)
class Exported:
    """The written file.

    Attributes:
        path: of the file.
        size: in bytes.
        masked: whether the graph takes padded batches, with their attention mask.
        agreements: at several lengths and batches.
    """

    path: Path
    size: int
    masked: bool
    agreements: list[Agreement]


class _Embedder(nn.Module):
    """Maps waveforms and an optional mask to embeddings, with tensors as its only inputs and outputs."""

    def __init__(self, model: HamSpkModel):
        super().__init__()
        self.model = model

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.model(input_values, attention_mask).embeddings


def export_onnx(
    model: HamSpkPreTrainedModel,
    path: str | os.PathLike,
    seconds: Sequence[float] = CHECKED_SECONDS,
    batches: Sequence[int] = CHECKED_BATCHES,
) -> Exported:
    """Write the model without its head as one file, after it has been checked.

    The inputs are `input_values` `(B, L)` float32 and, unless the backbone normalises over time, `attention_mask`
    `(B, L)` int64; the output is `embeddings` `(B, D)`. A graph cannot check its inputs: they must hold at least 0.1 s
    of sound, padded on the right.

    Args:
        model: in float32, on the CPU.
        path: of the file.
        seconds: durations of the utterances that are compared.
        batches: batch sizes that are compared.

    Raises:
        ImportError: the packages for ONNX are missing.
        ValueError: the model is not in float32 on the CPU, it cannot be exported, or the file differs from it; no file
            is left then.
    """
    encoder = model.base_model
    if not isinstance(encoder, HamSpkModel):
        raise ValueError(f"Expected a speaker model of this package, got {type(model).__name__}.")
    if encoder.device.type != "cpu" or any(weight.dtype != torch.float32 for weight in encoder.parameters()):
        raise ValueError("Only a model in float32 on the CPU can be exported: model.float().cpu().")
    masked = not encoder.groups_by_length
    rate = encoder.config.sampling_rate
    description = OnnxDescription(encoder.fingerprint(), rate, encoder.config.embedding_size, masked)
    partial = Path(f"{os.fspath(path)}.part")
    was_training = encoder.training
    encoder.eval()
    try:
        _write_graph(encoder, partial, description)
        agreements = check_agreement(encoder, partial, seconds, batches)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        encoder.train(was_training)
    return Exported(Path(path), Path(path).stat().st_size, masked, agreements)


def _write_graph(encoder: HamSpkModel, path: Path, description: OnnxDescription) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"Exporting needs onnx, onnxscript and onnxruntime: pip install 'hf_hamspk[onnx]' ({error})."
        ) from error
    values, mask = _batch(_TRACED_SECONDS, description.sampling_rate)
    inputs = (values, mask) if description.masked else (values[:, : int(mask.sum(-1).min())],)
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                _Embedder(encoder),
                inputs,
                input_names=list(INPUTS[: len(inputs)]),
                output_names=[OUTPUT],
                dynamic_shapes=(sizes,) * len(inputs),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"torch cannot export this model ({type(error).__name__}: {reason})") from error
    program.model.metadata_props.update(description.to_metadata())
    program.save(path, external_data=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks about torchvision and future changes."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def check_agreement(
    encoder: HamSpkModel, path: str | os.PathLike, seconds: Sequence[float], batches: Sequence[int]
) -> list[Agreement]:
    """Compare a file with its model on noise.

    Raises:
        ValueError: they differ by more than `LARGEST_DIFFERENCE`.
    """
    session, rate, found = OnnxEncoder(path), encoder.config.sampling_rate, []
    for duration in seconds:
        for batch in batches:
            shares = 1 - 0.5 * np.arange(batch) / batch if session.description.masked else np.ones(batch)
            values, mask = _batch(duration * shares, rate)
            with torch.inference_mode():
                expected = encoder(values, mask if session.description.masked else None).embeddings
            difference = float((session(values, mask).embeddings - expected).abs().max() / expected.abs().max())
            found.append(Agreement(duration, batch, difference))
            if not difference <= LARGEST_DIFFERENCE:
                raise ValueError(
                    f"The exported file differs from the model: by {difference:.1e} of the largest value at {duration} "
                    f"s, batch {batch}; at most {LARGEST_DIFFERENCE:g} is accepted. Nothing was written."
                )
    return found


def _batch(seconds: Sequence[float] | np.ndarray, rate: int) -> tuple[Tensor, Tensor]:
    """Noise of the given durations, padded, and its mask."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([round(duration * rate) for duration in seconds])
    mask = length_mask(lengths, int(lengths.max()))
    return 0.1 * torch.randn(mask.shape, generator=generator) * mask, mask.long()
