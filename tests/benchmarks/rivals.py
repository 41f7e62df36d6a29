"""The encoders that benchmarks measure against, and how a contest is run: in turns, in one process, one allocator."""

import ctypes
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hf_hamspk import HamSpkConfig, HamSpkModel
from hf_hamspk.conversion.wespeaker import convert_wespeaker_state_dict

EMBEDDING, MEL_BINS, AGGREGATED = 192, 80, 1536
# glibc then keeps large blocks, where by default each is given back to the system and its pages are made anew.
KEEPS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
ALLOCATORS = ("tuned", "default")
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def add_conditions(parser) -> None:
    """Options that hold for all contenders."""
    parser.add_argument("--allocator", choices=ALLOCATORS, default="tuned", help="of glibc (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of torch (default: one for each core)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="time that counts (default: %(default)s)")


def use_conditions(arguments) -> None:
    """Start this program again with the allocator's settings, which are read at the start; set the threads."""
    if arguments.allocator == "tuned" and any(os.environ.get(name) != value for name, value in KEEPS_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEPS_MEMORY)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)


def conditions_in_words(arguments) -> str:
    return f"{torch.get_num_threads()} threads, {arguments.clock} time, allocator: {arguments.allocator}"


def our_config(channels: int) -> HamSpkConfig:
    """The architecture of WeSpeaker's ECAPA_TDNN_GLOB, so that its weights fit."""
    return HamSpkConfig(
        frontend="kaldi",
        ecapa_channels=channels,
        ecapa_output_channels=AGGREGATED,
        ecapa_block_input="previous",
        pooling_channels=128,
        pooling_hidden_norm=False,
        pooling_variance_offset=1e-7,
        pooling_smallest_variance=1e-7,
        embedding_size=EMBEDDING,
        normalize_embedding=False,
        mask_mel_bins=0,
        mask_frames=0,
    )


def our_model(channels: int, theirs: nn.Module | None = None) -> HamSpkModel:
    """Our model, with the weights of WeSpeaker's if that is given."""
    model = HamSpkModel(our_config(channels))
    if theirs is not None:
        model.load_state_dict(convert_wespeaker_state_dict(theirs.state_dict()))
    return model.eval()


def our_encoder(model: HamSpkModel) -> Callable[[Tensor], Tensor]:
    """Features `(B, T, F)` to embeddings, as the rivals' encoders take them."""
    return lambda x: model.projection(model.pooled_norm(model.pooling(model.backbone(x.mT))))


def wespeaker_encoder(checkout: Path, channels: int) -> nn.Module:
    """ECAPA_TDNN_GLOB of a checkout; its packages' `__init__`, which want much else, are not run."""
    if not (checkout / "wespeaker" / "models" / "ecapa_tdnn.py").is_file():
        raise ValueError(f"{checkout} is no checkout of WeSpeaker: it holds no wespeaker/models/ecapa_tdnn.py.")
    for name in ("wespeaker", "wespeaker.models"):
        module = types.ModuleType(name)
        module.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = module
    ecapa = importlib.import_module("wespeaker.models.ecapa_tdnn")
    return settled(ecapa.ECAPA_TDNN(channels, MEL_BINS, EMBEDDING, global_context_att=True))


def wespeaker_projections(checkout: Path) -> types.ModuleType:
    """The module of a checkout with the losses, which imports only torch."""
    path = checkout / "wespeaker" / "models" / "projections.py"
    if not path.is_file():
        raise SystemExit(f"{checkout} is not a checkout of WeSpeaker: wespeaker/models/projections.py is missing.")
    spec = importlib.util.spec_from_file_location("wespeaker_projections", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def speechbrain_encoder(channels: int) -> nn.Module | None:
    """SpeechBrain's ECAPA_TDNN, or None where the package is absent."""
    try:
        from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
    except ImportError:
        return None
    return settled(ECAPA_TDNN(MEL_BINS, lin_neurons=EMBEDDING, channels=[channels] * 4 + [AGGREGATED]))


def settled(model: nn.Module) -> nn.Module:
    """Statistics of batch normalisation as after some training."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def take_turns(works: dict[str, Callable[[], object]], rounds: int, clock: str = "wall", warm_up: int = 1):
    """Seconds of each work in each round; everybody has a turn in every round."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(warm_up + rounds):
        for name, work in works.items():
            start = CLOCKS[clock]()
            work()
            if number >= warm_up:
                times[name].append(CLOCKS[clock]() - start)
    return times


def ratios(times: dict[str, list[float]], ours: str) -> dict[str, float]:
    """Of each other contender: how many times as long as ours, the median of the rounds."""
    return {name: statistics.median(np.array(times[name]) / np.array(times[ours])) for name in times if name != ours}


def conditions(arguments) -> dict:
    """What the numbers depend on."""
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "allocator": arguments.allocator,
        "clock": arguments.clock,
    }


def write_json(path: Path | None, benchmark: str, content: dict) -> None:
    """For `run_all.py`: `rows` holds what, rival, ratio and, where one is set, bound."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"benchmark": benchmark, **content}, indent=2) + "\n", encoding="utf-8")


def forget_peak() -> int:
    """Give freed memory back, start the peak anew, and return what this process holds now, in bytes (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)
    # See proc(5): 5 resets the peak resident set size.
    Path("/proc/self/clear_refs").write_text("5")
    return memory_of("VmRSS")


def memory_of(name: str) -> int:
    """`VmRSS` or `VmHWM` of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def plot(path: Path, title: str, x_label: str, y_label: str, curves: dict[str, dict[float, float]]) -> None:
    """Curves over a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, points in curves.items():
        axes.plot(list(points), list(points.values()), marker="o", label=name)
    axes.set(title=title, xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
    measured = sorted({x for points in curves.values() for x in points})
    axes.set_xticks(measured, [f"{x:,.10g}" for x in measured])
    axes.tick_params(axis="x", which="minor", labelbottom=False)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
