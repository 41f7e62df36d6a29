"""Export of a model to an ONNX file that maps waveforms to embeddings, for any batch size and length.

Each file is written under a temporary name and compared with the PyTorch model. It is renamed to its final name only if
their embeddings agree.

Letters: `B` batch size, `L` samples, `D` embedding size.
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..encoders_hamspk import INPUTS, LARGEST_DIFFERENCE, METADATA_KEY, OUTPUT, OnnxDescription, OnnxEncoder
from ..folders.recognising import check_replaceable, is_onnx_file
from ..folders.writing import write_atomically
from ..geometry_hamspk import length_mask
from ..modeling_hamspk import HamSpkModel, HamSpkPreTrainedModel

CHECKED_SECONDS, CHECKED_BATCHES = (0.5, 2.0, 7.3, 20.0), (1, 4)
# Durations of the utterances with which the graph is traced. The graph accepts other lengths and batch sizes.
_TRACED_SECONDS = (1.0, 0.7)


@dataclass(frozen=True)
class Agreement:
    """Difference between the embeddings of the ONNX file and of the PyTorch model for one batch.

    Attributes:
        seconds: duration of the longest utterance, in seconds.
        batch: number of utterances. Their lengths differ if the file accepts an attention mask.
        difference: largest absolute difference, relative to the largest absolute value of the embeddings.
    """

    seconds: float
    batch: int
    difference: float


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        path: path of the ONNX file.
        size: size of the file in bytes.
        masked: whether the graph accepts padded batches with an attention mask.
        agreements: differences from the PyTorch model, one for each duration and batch size.
    """

    path: Path
    size: int
    masked: bool
    agreements: list[Agreement]


class _Embedder(nn.Module):
    """Module that maps waveforms and an optional mask to embeddings, with tensors as its only inputs and outputs."""

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
    """Export the model without its head to one ONNX file and compare the file with the model.

    The inputs of the graph are `input_values` `(B, L)` float32 and `attention_mask` `(B, L)` int64. Graphs of backbones
    whose output depends on padding have no `attention_mask` (see `HamSpkModel.groups_by_length`). The output is
    `embeddings` `(B, D)`. The graph does not check its inputs: each utterance must have at least 0.1 s of sound and be
    padded on the right.

    Args:
        model: model in float32 on the CPU.
        path: path of the new file.
        seconds: durations of the compared utterances, in seconds.
        batches: sizes of the compared batches.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: the model is not in float32 on the CPU or cannot be exported, or the ONNX file and the model compute
            different embeddings. A file that already exists is not changed.
    """
    encoder = model.base_model
    if not isinstance(encoder, HamSpkModel):
        raise ValueError(f"Expected a speaker model of this package, got {type(model).__name__}.")
    if encoder.device.type != "cpu" or any(weight.dtype != torch.float32 for weight in encoder.parameters()):
        raise ValueError("The export needs a model in float32 on the CPU. Convert it with model.float().cpu().")
    masked = not encoder.groups_by_length
    rate = encoder.config.sampling_rate
    description = OnnxDescription(encoder.fingerprint(), rate, encoder.config.embedding_size, masked)
    check_replaceable(Path(path), is_onnx_file, "an exported model")
    agreements: list[Agreement] = []

    def write(partial: Path) -> None:
        _write_graph(encoder, str(partial), description)
        agreements.extend(check_agreement(encoder, partial, seconds, batches))

    was_training = encoder.training
    encoder.eval()
    try:
        write_atomically(Path(path), write)
    finally:
        encoder.train(was_training)
    return Exported(Path(path), Path(path).stat().st_size, masked, agreements)


def _write_graph(encoder: HamSpkModel, path: str, description: OnnxDescription) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The export needs onnx, onnxscript and onnxruntime ({error}). Install them: pip install 'hf_hamspk[onnx]'."
        ) from error
    values, mask = _batch(_TRACED_SECONDS, description.sampling_rate)
    inputs = (values, mask) if description.masked else (values[:, : int(mask.sum(-1).min())],)
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with quiet_export(), torch.no_grad():
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
        raise ValueError(f"PyTorch cannot export this model ({type(error).__name__}: {reason}).") from error
    program.model.metadata_props[METADATA_KEY] = json.dumps(asdict(description))
    program.save(path, external_data=False)


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Suppress the warnings of PyTorch's ONNX exporter about torchvision and about future changes."""
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
    """Compare the embeddings that an ONNX file and its PyTorch model compute for random noise.

    Raises:
        ValueError: the embeddings differ by more than `LARGEST_DIFFERENCE`.
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
                    f"The exported file differs from the model by {difference:.1e}, relative to the largest value, for "
                    f"{duration} s and a batch of {batch}. At most {LARGEST_DIFFERENCE:g} is accepted. No file is kept."
                )
    return found


def _batch(seconds: Sequence[float] | np.ndarray, rate: int) -> tuple[Tensor, Tensor]:
    """Return noise of the given durations, padded on the right, and its attention mask."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([round(duration * rate) for duration in seconds])
    mask = length_mask(lengths, int(lengths.max()))
    return 0.1 * torch.randn(mask.shape, generator=generator) * mask, mask.long()
