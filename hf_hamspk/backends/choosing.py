"""Choose the backend and the number format of a model: as given, or by a short measurement on this machine."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..modeling_hamspk import HamSpkModel, HamSpkPreTrainedModel
from .graphs import Embedder, check_installed, features_of, missing_packages, open_onnx, open_openvino, write_graph
from .models import BackendModel, torch_embedder
from .quantising import read_description
from .threads import find_threads

BACKENDS = ("auto", "torch", "onnx", "openvino")
DTYPES = ("auto", "float32", "bfloat16", "int8")
SMALLEST_COSINE = {"float32": 1 - 1e-4, "bfloat16": 0.999}
"""Smallest accepted cosine between the embeddings of a test signal that a backend and the model compute."""

MEASURED_SECONDS = (2.0, 4.0, 8.0)
"""Durations of the recordings with which backends are measured. In each round, they are longer by one frame."""

ROUNDS = 3

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Choice:
    """Backend and number format of a model.

    Attributes:
        backend: "torch", "onnx" or "openvino".
        dtype: "float32", "bfloat16" or "int8".
        threads: number of threads.
        at_once: number of recordings that are embedded at the same time, each with `threads // at_once` threads.
        milliseconds: dictionary that maps each measured backend and number format to its computing time in milliseconds
            for one second of audio, features included, with the threads of one recording; empty if nothing was
            measured.
    """

    backend: str
    dtype: str
    threads: int
    at_once: int = 1
    milliseconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        text = f"backend {self.backend}, {self.dtype}, {threads}"
        if self.at_once > 1:
            text += f", {self.at_once} recordings at once"
        if not self.milliseconds:
            return text
        measured = ", ".join(f"{name} {value:.1f}" for name, value in self.milliseconds.items())
        return f"{text}; chosen by the milliseconds for a second of audio: {measured}"


def with_backend(
    model: HamSpkPreTrainedModel,
    backend: str = "auto",
    dtype: str = "float32",
    int8_file: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    at_once: int = 1,
) -> BackendModel:
    """Return a model that embeds in a backend on the CPU.

    Many recordings are embedded fastest if `at_once` is as large as `threads`. A single recording is embedded faster if
    all threads share it.

    Args:
        model: model in float32 on the CPU.
        backend: "torch", "onnx" (ONNX Runtime) or "openvino". "auto" measures the backends that are installed, and
            takes the fastest.
        dtype: number format of the encoder: "float32", "bfloat16" (not with "onnx") or "int8". "auto" measures float32,
            and also bfloat16 if the processor has instructions for it. The front-end always computes in float32.
        int8_file: file that `quantise_onnx` wrote; only for int8.
        threads: number of threads; None uses as many threads as torch.
        at_once: number of recordings that are embedded at the same time, from 1 to the number of threads. Each has
            `threads // at_once` threads, also if it is alone, so that its embedding does not depend on the others. The
            memory that embedding takes grows with it.

    Raises:
        ImportError: packages of the backend are not installed.
        ValueError: a value is unknown, the arguments do not match, the model is not in float32 on the CPU, or the
            embeddings that the backend computes differ too much from those of the model.

    Example:
        ```python
        from hf_hamspk import HamSpkModel
        from hf_hamspk.backends import with_backend

        fast = with_backend(HamSpkModel.from_pretrained("model"), "torch")
        print(fast.choice, fast.embed(["a.wav", "b.wav"]).shape)
        ```
    """
    check_choice(backend, dtype, int8_file)
    if not hasattr(model, "base_model"):
        raise ValueError(f"Expected a model such as HamSpkModel.from_pretrained(...), got {type(model).__name__}.")
    encoder: Any = model.base_model
    if encoder.device.type != "cpu" or any(weight.dtype != torch.float32 for weight in encoder.parameters()):
        raise ValueError("A backend needs a model in float32 on the CPU. Convert it with model.float().cpu().")
    pool = find_threads(threads, at_once)
    count = pool.threads if pool is not None else torch.get_num_threads()
    was_training = encoder.training
    encoder.eval()

    def build() -> BackendModel:
        with torch.no_grad():
            if dtype == "int8":
                return _int8_model(model, backend, Path(str(int8_file)), count, at_once)
            return _float_model(model, backend, dtype, count, at_once)

    try:
        # In the pool, all backends are measured with the threads that a recording will have.
        built = build() if pool is None else pool.run(lambda _: build(), [0], 0)[0]
    finally:
        encoder.train(was_training)
    built.pool = pool
    return built


def check_choice(backend: str, dtype: str, int8_file: str | os.PathLike[str] | None = None) -> None:
    """Raise an error if the backend, the number format and the file do not match, or if packages are missing."""
    for name, value, known in (("backend", backend, BACKENDS), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    if backend == "onnx" and dtype == "bfloat16":
        raise ValueError("ONNX Runtime has no bfloat16 on a CPU. Use the backend 'torch' or 'openvino'.")
    if dtype == "int8" and backend == "torch":
        raise ValueError("The backend 'torch' has no int8. Use the backend 'onnx', 'openvino' or 'auto'.")
    if (dtype == "int8") != (int8_file is not None):
        raise ValueError(
            "The number format int8 needs an int8 file, and other number formats must not have one. Make the file with "
            "`hamspk export MODEL OUT.onnx --int8 RECORDINGS`, and give it together with the number format int8."
        )
    if backend in ("onnx", "openvino"):
        check_installed(backend)


def has_bfloat16() -> bool:
    """Return whether this processor has instructions for bfloat16 matrix products."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _float_model(model: HamSpkPreTrainedModel, backend: str, dtype: str, threads: int, at_once: int) -> BackendModel:
    encoder: Any = model.base_model
    dtypes = [dtype] if dtype != "auto" else ["float32", "bfloat16"] if has_bfloat16() else ["float32"]
    backends = [backend] if backend != "auto" else [one for one in BACKENDS[1:] if not missing_packages(one)]
    pairs = [(one, kind) for one in backends for kind in dtypes if (one, kind) != ("onnx", "bfloat16")]
    graph: list[Path] = []
    found: dict[tuple[str, str], Embedder] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for one, kind in pairs:
            if one != "torch" and not graph:
                graph.append(Path(scratch, "encoder.onnx"))
                write_graph(encoder, graph[0], {})
            try:
                embedder = _open(encoder, one, kind, graph[0] if graph else None, threads, at_once)
                _check_cosine(encoder, embedder, one, kind)
            except Exception as error:
                if len(pairs) == 1:
                    raise
                # The errors of these packages have no common base class.
                logger.warning(f"The backend {one} in {kind} is not measured: {str(error)[:200]}")
                continue
            found[one, kind] = embedder
    if not found:
        raise ValueError("No backend can run this model. Use model.embed without a backend.")
    times = _measure(encoder, found) if len(pairs) > 1 else {}
    best = min(times, key=lambda pair: times[pair]) if times else pairs[0]
    choice = Choice(*best, threads, at_once, {" ".join(pair): value for pair, value in times.items()})
    logger.info(str(choice))
    return BackendModel(model, found[best], choice)


def _int8_model(model: HamSpkPreTrainedModel, backend: str, file: Path, threads: int, at_once: int) -> BackendModel:
    encoder: Any = model.base_model
    read_description(file, model.fingerprint())
    backends = [backend] if backend != "auto" else [one for one in ("onnx", "openvino") if not missing_packages(one)]
    if not backends:
        check_installed("onnx")
    found = {(one, "int8"): _open(encoder, one, "int8", file, threads, at_once) for one in backends}
    times = _measure(encoder, found) if len(found) > 1 else {}
    best = min(times, key=lambda pair: times[pair]) if times else (backends[0], "int8")
    choice = Choice(*best, threads, at_once, {" ".join(pair): value for pair, value in times.items()})
    logger.info(str(choice))
    return BackendModel(model, found[best], choice, file.read_bytes())


def _open(encoder: HamSpkModel, backend: str, dtype: str, graph: Path | None, threads: int, at_once: int) -> Embedder:
    if graph is None or backend == "torch":
        return torch_embedder(encoder, dtype)
    if backend == "onnx":
        return open_onnx(graph, threads // at_once, at_once)
    return open_openvino(graph, threads // at_once, dtype, at_once)


def _noise(seconds: float, rate: int) -> torch.Tensor:
    return 0.1 * torch.randn(round(seconds * rate), generator=torch.Generator().manual_seed(0))


def _check_cosine(encoder: HamSpkModel, embedder: Embedder, backend: str, dtype: str) -> None:
    """Raise a ValueError if the embeddings of noise that a backend and the model compute differ too much."""
    waveform = _noise(MEASURED_SECONDS[0], encoder.config.sampling_rate)
    expected, found = encoder(waveform[None]).embeddings, embedder(features_of(encoder, waveform))
    cosine = float(torch.cosine_similarity(found, expected).min())
    if not cosine >= SMALLEST_COSINE[dtype]:
        raise ValueError(
            f"The embeddings of the backend {backend!r} in {dtype} differ from those of the model: the cosine is "
            f"{cosine:.6f}, but must be at least {SMALLEST_COSINE[dtype]:g}. Use the backend 'torch' in float32."
        )


def _measure(encoder: HamSpkModel, found: dict[tuple[str, str], Embedder]) -> dict[tuple[str, str], float]:
    """Return the milliseconds that each backend takes for a second of audio.

    For each duration, the shortest time counts. The backends take turns. Each recording has a new length, as in most
    corpora, because OpenVINO prepares its kernels again for each new length.
    """
    rate = encoder.config.sampling_rate
    shortest = {pair: [float("inf")] * len(MEASURED_SECONDS) for pair in found}
    for number in range(ROUNDS):
        for i, seconds in enumerate(MEASURED_SECONDS):
            waveform = _noise(seconds + number / 100, rate)
            for pair, embedder in found.items():
                took = _seconds_of(lambda run=embedder, wave=waveform: run(features_of(encoder, wave)))
                shortest[pair][i] = min(shortest[pair][i], took)
    return {pair: 1000 * sum(times) / sum(MEASURED_SECONDS) for pair, times in shortest.items()}


def _seconds_of(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
