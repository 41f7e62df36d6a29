"""Quantisation of an encoder to int8, calibrated with recordings."""

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..calibration_hamspk import is_same_model
from ..encoders_hamspk import METADATA_KEY, CamPlusPlus, Ecapa, ResNet
from ..folders.recognising import check_replaceable, is_onnx_file
from ..folders.writing import write_atomically
from ..modeling_hamspk import HamSpkModel, HamSpkPreTrainedModel
from .folding import fold_norms
from .graphs import GRAPH_INPUT, check_installed, features_of, open_onnx, write_graph

CALIBRATION_SECONDS = 6.0
"""Number of seconds of each recording, at most, with which the quantisation is calibrated."""

LARGEST_CALIBRATION = 64
"""Largest number of recordings with which the quantisation is calibrated. Of more, equally spaced ones are taken."""


def quantise_onnx(
    model: HamSpkPreTrainedModel, path: str | os.PathLike[str], waveforms: Sequence[np.ndarray]
) -> dict[str, float]:
    """Write the encoder of a model to an ONNX file, with most of its convolutions and matrix products in int8.

    The ranges of the activations are measured with the given recordings. These should resemble the recordings that will
    be embedded, and include different speakers. Weights have one scale for each output channel. The matrix
    products of ECAPA-TDNN, CAM++ and ResNet and the two-dimensional convolutions of CAM++ stay in float32. To use the
    file, pass it to `with_backend`.

    Args:
        model: model in float32 on the CPU.
        path: path of the new file. An earlier export is replaced.
        waveforms: waveforms `(L,)` of about 16 to 64 recordings, as `read_sound` returns them.

    Returns:
        The smallest and the median cosine between the int8 and the float32 embeddings of these recordings.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: the model is not in float32 on the CPU, there are no recordings, or the path is an existing file
            that is not an export.
    """
    check_installed("onnx")
    encoder: Any = model.base_model
    if encoder.device.type != "cpu" or any(weight.dtype != torch.float32 for weight in encoder.parameters()):
        raise ValueError("The quantisation needs a model in float32 on the CPU. Convert it with model.float().cpu().")
    if not waveforms:
        raise ValueError("The quantisation needs recordings, got none. Give about 16 to 64 recordings of speech.")
    check_replaceable(Path(path), is_onnx_file, "an exported model")
    rate = encoder.config.sampling_rate
    chosen = spread(waveforms, LARGEST_CALIBRATION)
    tensors = [torch.from_numpy(wave[: round(CALIBRATION_SECONDS * rate)].copy()) for wave in chosen]
    description = {
        "fingerprint": encoder.fingerprint(),
        "sampling_rate": rate,
        "embedding_size": encoder.config.embedding_size,
        "dtype": "int8",
    }
    with _evaluating(encoder):
        features = [features_of(encoder, tensor) for tensor in tensors]
        expected = torch.cat([encoder(tensor[None]).embeddings for tensor in tensors])
        write_atomically(Path(path), lambda partial: _quantise(encoder, partial, features, description))
    run = open_onnx(path, torch.get_num_threads())
    cosines = torch.cosine_similarity(torch.cat([run(one) for one in features]), expected)
    return {"smallest": float(cosines.min()), "median": float(cosines.median())}


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` of the items, equally spaced."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).astype(int))] if len(items) else []


@contextlib.contextmanager
def _evaluating(encoder: HamSpkModel) -> Iterator[None]:
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        encoder.train(was_training)


def _quantise(encoder: HamSpkModel, path: Path, features: list[torch.Tensor], description: dict[str, Any]) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(features)

        def get_next(self) -> dict[str, np.ndarray]:
            found = next(self.left, None)
            return {} if found is None else {GRAPH_INPUT: found.numpy()}

    is_convolutional = isinstance(encoder.backbone, Ecapa | CamPlusPlus | ResNet)
    with tempfile.TemporaryDirectory() as scratch, _quiet_quantisation():
        write_graph(fold_norms(encoder), plain := Path(scratch, "plain.onnx"), description)
        sensitive = _sensitive_layers(encoder, onnx.load(str(plain)).graph)
        quantize_static(
            plain,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            # The matrix products of a convolutional encoder take little time, because their inputs are averages over
            # frames. In int8, they would cause much of the error.
            op_types_to_quantize=["Conv"] if is_convolutional else ["Conv", "MatMul", "Gemm"],
            nodes_to_exclude=sensitive,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    written = onnx.load(str(path))
    if not any(one.key == METADATA_KEY for one in written.metadata_props):
        one = written.metadata_props.add()
        one.key, one.value = METADATA_KEY, json.dumps(description)
        onnx.save(written, str(path))


def _sensitive_layers(encoder: HamSpkModel, graph: Any) -> list[str]:
    """Return the names of layers that take little time, but in int8 would cause much of the error.

    These are the two-dimensional convolutions of CAM++.
    """
    if not isinstance(encoder.backbone, CamPlusPlus):
        return []
    planes = {weight.name for weight in graph.initializer if len(weight.dims) == 4}
    return [node.name for node in graph.node if node.op_type == "Conv" and node.input[1] in planes]


@contextlib.contextmanager
def _quiet_quantisation() -> Iterator[None]:
    """Suppress the advice of ONNX Runtime to preprocess the graph before the quantisation."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def read_description(path: Path, fingerprint: str) -> dict[str, Any]:
    """Return the description that `quantise_onnx` stored in a file.

    Raises:
        ValueError: the file does not exist, was not written by `quantise_onnx`, or was made from other weights.
    """
    import onnx

    remedy = "Make it again with `hamspk export MODEL OUT.onnx --int8 RECORDINGS`."
    try:
        stored = {one.key: one.value for one in onnx.load(str(path), load_external_data=False).metadata_props}
        found = json.loads(stored[METADATA_KEY])
        is_own = found["dtype"] == "int8" and is_same_model(found["fingerprint"], fingerprint)
    except FileNotFoundError as error:
        raise ValueError(f"{path} not found. {remedy}") from error
    except Exception as error:
        # The errors of protobuf have no common base class.
        raise ValueError(f"{path} is not an int8 file of `hamspk export`. {remedy}") from error
    if not is_own:
        raise ValueError(f"{path} was made from other weights than those of the model. {remedy}")
    return found
