"""Overlap detectors that find an overlap everywhere or nowhere, and checkpoints of pyannote with random weights."""

from pathlib import Path

import torch
from torch import Tensor

from hf_hamspk.encoders_hamspk import FIRST_PAIR, OVERLAP_FILE, OverlapDetector, Segmentation


def detector(found: bool = True) -> OverlapDetector:
    """A detector for which two people speak in every frame, or one person."""
    torch.manual_seed(0)
    network = Segmentation()
    with torch.no_grad():
        network.classes.bias[FIRST_PAIR if found else 1] = 50.0
    return OverlapDetector(network, "tests", "mit")


def store(folder: Path, found: bool = True) -> Path:
    """Store a detector in the folder of a model."""
    detector(found).save(folder / OVERLAP_FILE)
    return folder


def pyannote_weights() -> dict[str, Tensor]:
    """Random weights by pyannote's names."""
    names = {"input_norm.": "sincnet.wav_norm1d.", "convs.": "sincnet.conv1d.", "norms.": "sincnet.norm1d."}
    names |= {"layers.": "linear.", "classes.": "classifier."}
    torch.manual_seed(0)
    theirs = {}
    for name, tensor in Segmentation().state_dict().items():
        start = next((one for one in names if name.startswith(one)), "")
        theirs[names.get(start, "") + name.removeprefix(start)] = tensor
    del theirs["sincnet.conv1d.0.weight"]
    edges = {"low_hz_": torch.linspace(0, 5000, 40)[:, None], "band_hz_": torch.full((40, 1), 100.0)}
    edges |= {"n_": 2 * torch.pi * torch.arange(-125, 0.0)[None] / 16_000, "window_": torch.hann_window(251)[:125]}
    return theirs | {f"sincnet.conv1d.0.filterbank.{name}": tensor for name, tensor in edges.items()}
