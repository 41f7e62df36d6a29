"""Encoders as ONNX graphs, which ONNX Runtime and OpenVINO run.

A graph maps the features of one recording, of any length, to its embedding, and therefore needs no padding mask. The
front-end stays in PyTorch and in float32.
"""

import copy
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..encoders_hamspk import METADATA_KEY
from ..export.onnx_graph import quiet_export
from ..modeling_hamspk import HamSpkModel
from ..networks_hamspk import Features, Waveform

GRAPH_INPUT, GRAPH_OUTPUT = "features", "embeddings"
# Duration of the recording with which a graph is traced. The graph accepts other durations.
TRACED_SECONDS = 3.0
# Packages that each backend needs. `pip install 'hf_hamspk[openvino]'` installs the packages of both backends.
BACKEND_PACKAGES = {"onnx": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino", "onnx", "onnxscript")}

Embedder = Callable[[Tensor], Tensor]


def missing_packages(backend: str) -> list[str]:
    """Return the packages of a backend that are not installed."""
    return [name for name in BACKEND_PACKAGES.get(backend, ()) if importlib.util.find_spec(name) is None]


def check_installed(backend: str) -> None:
    """Raise an ImportError, with the command that installs them, if packages of a backend are missing."""
    missing = missing_packages(backend)
    if missing:
        raise ImportError(
            f"The backend {backend!r} needs {', '.join(missing)}. Run `pip install 'hf_hamspk[{backend}]'`, or use the "
            "backend 'torch'."
        )


class _GivenFeatures(nn.Module):
    """Front-end that returns the given features unchanged. `smallest_length` is in frames."""

    smallest_length = 1

    def __init__(self, are_samples: bool):
        super().__init__()
        self.are_samples = are_samples

    def forward(self, values: Tensor, lengths: Tensor | None = None) -> Features:
        return Features(values if self.are_samples else values[None], lengths)


class WithoutFrontend(nn.Module):
    """Module that maps the features of one recording to its embedding `(1, D)`, with the layers of a model.

    The features have the shape that the front-end of the model returns: `(F, T)`, `(T, F)`, or samples `(1, L)`.
    """

    def __init__(self, model: HamSpkModel):
        super().__init__()
        self.layers = copy.copy(model)
        self.layers._modules = model._modules | {"frontend": _GivenFeatures(takes_samples(model))}

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).embeddings


def takes_samples(model: HamSpkModel) -> bool:
    """Return whether the front-end of a model returns samples `(B, L)` instead of features of frames."""
    return isinstance(model.frontend, Waveform)


def features_of(model: HamSpkModel, waveform: Tensor) -> Tensor:
    """Return the features of a waveform `(L,)`, in the form that `WithoutFrontend` takes."""
    values = model.frontend(waveform[None]).values
    return values if takes_samples(model) else values[0]


def write_graph(model: HamSpkModel, path: Path, description: dict[str, Any]) -> None:
    """Write the encoder of a model to an ONNX file. The description is stored in the metadata of the file."""
    noise = 0.1 * torch.randn(round(TRACED_SECONDS * model.config.sampling_rate))
    with quiet_export(), torch.no_grad():
        features = features_of(model, noise)
        # The number of mel bins is fixed. The number of frames or samples is free.
        axis = 0 if model.config.frontend == "seamless" else 1
        program: Any = torch.onnx.export(
            WithoutFrontend(model),
            (features,),
            input_names=[GRAPH_INPUT],
            output_names=[GRAPH_OUTPUT],
            dynamic_shapes=({axis: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props[METADATA_KEY] = json.dumps(description)
    program.save(str(path), external_data=False)


def open_onnx(path: str | os.PathLike[str], threads: int, at_once: int = 1) -> Embedder:
    """Return a function that runs a graph in ONNX Runtime. Several threads may call it; at most `at_once` calls run.

    Args:
        path: ONNX file.
        threads: number of threads of one call.
        at_once: largest number of calls that run at the same time.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Calls of one session share its further threads. Without further threads, one session is enough.
    sessions = [
        onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        for _ in range(at_once if threads > 1 else 1)
    ]
    return _take_turns(
        [
            lambda features, session=session: np.asarray(session.run([GRAPH_OUTPUT], {GRAPH_INPUT: features})[0])
            for session in sessions * (at_once // len(sessions))
        ]
    )


def open_openvino(path: str | os.PathLike[str], threads: int, dtype: str, at_once: int = 1) -> Embedder:
    """Return a function that runs a graph in OpenVINO. Several threads may call it; at most `at_once` calls run.

    Args:
        path: ONNX file.
        threads: number of threads of one call.
        dtype: number format of the computation, "float32", "bfloat16" or "int8".
        at_once: largest number of calls that run at the same time.
    """
    import openvino  # pyright: ignore[reportMissingImports]

    options = {
        "INFERENCE_NUM_THREADS": threads * at_once,
        "NUM_STREAMS": at_once,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(os.fspath(path)), "CPU", options)
    # An inference request holds the results of only one call.
    requests = [compiled.create_infer_request() for _ in range(at_once)]
    return _take_turns(
        [lambda features, request=request: np.array(request.infer([features])[0]) for request in requests]
    )


def _take_turns(functions: Sequence[Callable[[np.ndarray], np.ndarray]]) -> Embedder:
    """Return a function that calls one of several functions of arrays, none of which runs twice at the same time."""
    free: SimpleQueue[Callable[[np.ndarray], np.ndarray]] = SimpleQueue()
    for function in functions:
        free.put(function)

    def run(features: Tensor) -> Tensor:
        function = free.get()
        try:
            return torch.from_numpy(function(features.numpy()))
        finally:
            free.put(function)

    return run
