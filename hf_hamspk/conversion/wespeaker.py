"""Conversion of WeSpeaker's ECAPA-TDNN (`ECAPA_TDNN_c512`, `ECAPA_TDNN_GLOB_c1024`, ...) and ResNet (`ResNet34`, ...).

The model folder contains `config.yaml`, and `avg_model.pt` (published models) or `models/avg_model.pt` (training runs).
The weights of an ECAPA-TDNN have these names in WeSpeaker and in this package:

| WeSpeaker                                  | `HamSpkModel`                                    |
|--------------------------------------------|--------------------------------------------------|
| `layer1.conv`, `.bn`                       | `backbone.input.conv`, `.norm`                   |
| `layerN.se_res2block.0.conv`, `.bn`        | `backbone.blocks.N-2.reduce.conv`, `.norm`       |
| `layerN.se_res2block.1.convs.i`, `.bns.i`  | `backbone.blocks.N-2.groups.i.conv`, `.norm`     |
| `layerN.se_res2block.2.conv`, `.bn`        | `backbone.blocks.N-2.expand.conv`, `.norm`       |
| `layerN.se_res2block.3.linear1`, `.linear2`| `backbone.blocks.N-2.excitation.down`, `.up`     |
| `conv`                                     | `backbone.aggregate`                             |
| `pool.linear1`, `.linear2`                 | `pooling.hidden`, `.scores`                      |
| `bn`, `linear`, `bn2`                      | `pooled_norm`, `projection`, `embedding_norm`    |

The weights of a ResNet with TSTP or ASTP pooling and one embedding layer have these names:

| WeSpeaker                                  | `HamSpkModel`                                    |
|--------------------------------------------|--------------------------------------------------|
| `conv1`, `bn1`                             | `backbone.input.conv`, `.norm`                   |
| `layerN.M.convK`, `.bnK`                   | `backbone.stages.N-1.M.layers.K-1.conv`, `.norm` |
| `layerN.M.shortcut.0`, `.1`                | `backbone.stages.N-1.M.shortcut.conv`, `.norm`   |
| `pool.linear1`, `.linear2`                 | `pooling.hidden`, `.scores`                      |
| `seg_1`                                    | `projection`                                     |

WeSpeaker has no padding masks and embeds one utterance at a time. WeSpeaker's configuration contains a dither, which
applies only to training. Neither WeSpeaker nor this package adds dither to the audio when embedding.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..configuration_hamspk import RESNET_BLOCKS
from .building import RESIDUAL_RULES, Converted, Renaming, Rules, converted_config, fill_model, numbered, require_values
from .checkpoints import read_tensors, read_yaml

WESPEAKER_SOURCE, WESPEAKER_RESNET = "WeSpeaker ECAPA-TDNN", "WeSpeaker ResNet"
WESPEAKER_YAML = "config.yaml"
WESPEAKER_WEIGHTS = ("avg_model.pt", "models/avg_model.pt", "avg_model.safetensors")
_CLASSIFIER = "projection."
_CHANNELS, _BOTTLENECK, _AGGREGATED, _GROUPS, _DILATIONS = 512, 128, 1536, 8, (2, 3, 4)
# WeSpeaker adds this value to the variance in the attention context and in TSTP pooling. It is also the lower limit of
# the variance of attentive pooling.
_VARIANCE_OFFSET = 1e-7
_ECAPA_NAME = re.compile(r"ECAPA_TDNN(?P<context>_GLOB)?(_c(?P<channels>\d+))?")
_RESNET = re.compile(rf"ResNet(?P<depth>{'|'.join(map(str, RESNET_BLOCKS))})")

_WESPEAKER_BLOCK: Rules = [
    (r"0\.conv\.", "reduce.conv."),
    (r"0\.bn\.", "reduce.norm."),
    (r"1\.convs\.(\d+)\.", r"groups.\1.conv."),
    (r"1\.bns\.(\d+)\.", r"groups.\1.norm."),
    (r"2\.conv\.", "expand.conv."),
    (r"2\.bn\.", "expand.norm."),
    (r"3\.linear1\.", "excitation.down."),
    (r"3\.linear2\.", "excitation.up."),
]
WESPEAKER_NAMES = Renaming(
    rules=[
        (r"layer1\.conv\.", "backbone.input.conv."),
        (r"layer1\.bn\.", "backbone.input.norm."),
        (r"conv\.", "backbone.aggregate."),
        (r"pool\.linear1\.", "pooling.hidden."),
        (r"pool\.linear2\.", "pooling.scores."),
        (r"bn\.", "pooled_norm."),
        (r"linear\.", "projection."),
        (r"bn2\.", "embedding_norm."),
    ],
    blocks=[(r"layer([2-9])\.se_res2block\.", numbered("backbone.blocks", 2), _WESPEAKER_BLOCK)],
)

WESPEAKER_RESNET_NAMES = Renaming(
    rules=[
        (r"conv1\.", "backbone.input.conv."),
        (r"bn1\.", "backbone.input.norm."),
        (r"pool\.linear1\.", "pooling.hidden."),
        (r"pool\.linear2\.", "pooling.scores."),
        (r"seg_1\.", "projection."),
    ],
    blocks=[
        (
            r"layer([1-4])\.(\d+)\.",
            lambda found: f"backbone.stages.{int(found[1]) - 1}.{found[2]}",
            RESIDUAL_RULES,
        )
    ],
)


def convert_wespeaker(folder: Path) -> Converted:
    """Read and convert a model folder of WeSpeaker.

    Raises:
        ValueError: a file is missing or cannot be read, or this package has no equivalent of the model.
    """
    settings = read_yaml(folder / WESPEAKER_YAML)
    name = str(settings.get("model"))
    data, arguments = _mapping(settings, "dataset_args"), _mapping(settings, "model_args")
    if (ecapa := _ECAPA_NAME.fullmatch(name)) is not None:
        source, translate, fields = WESPEAKER_SOURCE, convert_wespeaker_state_dict, _ecapa_fields(ecapa, arguments)
    elif (resnet := _RESNET.fullmatch(name)) is not None:
        source, translate, fields = WESPEAKER_RESNET, convert_wespeaker_resnet, _resnet_fields(resnet, arguments)
    else:
        raise ValueError(
            f"{WESPEAKER_YAML} describes the model {name}. Only the ECAPA_TDNN models and ResNet"
            f"{', ResNet'.join(map(str, RESNET_BLOCKS))} of WeSpeaker can be converted."
        )
    bins = _mapping(data, "fbank_args").get("num_mel_bins", 80)
    _check_features(data)
    require_values(f"{WESPEAKER_YAML}: model_args", {"feat_dim": arguments.get("feat_dim", 80)}, {"feat_dim": bins})
    common = {"frontend": "kaldi", "sampling_rate": data.get("resample_rate", 16000), "num_mel_bins": bins}
    weights = next((path for path in WESPEAKER_WEIGHTS if (folder / path).is_file()), WESPEAKER_WEIGHTS[0])
    tensors = read_tensors(folder / weights)
    encoder = {name: tensor for name, tensor in tensors.items() if not name.startswith(_CLASSIFIER)}
    if source == WESPEAKER_RESNET and (first := encoder.get("conv1.weight")) is not None and first.ndim:
        fields["resnet_channels"] = len(first)
    left_out = {}
    if len(encoder) < len(tensors):
        left_out[f"{_CLASSIFIER}* in {weights}"] = "the classifier of the training speakers"
    converted = fill_model(converted_config(source, **common, **fields), translate(encoder))
    return Converted(converted, source, [WESPEAKER_YAML, weights], left_out, [])


def _ecapa_fields(model: re.Match[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the configuration of an ECAPA-TDNN."""
    given = {"pooling_func": arguments.get("pooling_func", "ASTP")}
    require_values(f"{WESPEAKER_YAML}: model_args", given, {"pooling_func": "ASTP"})
    channels = model["channels"] if model["channels"] is not None else arguments.get("channels", _CHANNELS)
    return {
        "ecapa_channels": int(channels),
        "ecapa_output_channels": _AGGREGATED,
        "ecapa_bottleneck": _BOTTLENECK,
        "ecapa_groups": _GROUPS,
        "ecapa_dilations": _DILATIONS,
        "ecapa_block_input": "previous",
        "pooling_channels": _BOTTLENECK,
        "pooling_context": model["context"] is not None or bool(arguments.get("global_context_att", False)),
        "pooling_hidden_norm": False,
        "pooling_variance_offset": _VARIANCE_OFFSET,
        "pooling_smallest_variance": _VARIANCE_OFFSET,
        "embedding_size": arguments.get("embed_dim", 192),
        "normalize_embedding": bool(arguments.get("emb_bn", False)),
    }


def _resnet_fields(model: re.Match[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the configuration of a ResNet, except its channels."""
    where, pooling = f"{WESPEAKER_YAML}: model_args", arguments.get("pooling_func", "TSTP")
    require_values(where, {"two_emb_layer": arguments.get("two_emb_layer", True)}, {"two_emb_layer": False})
    if pooling not in ("TSTP", "ASTP"):
        raise ValueError(
            f"{where} has pooling_func {pooling}. Only models with pooling_func TSTP or ASTP can be converted."
        )
    return {
        "backbone": "resnet",
        "resnet_depth": int(model["depth"]),
        "pooling": "statistics" if pooling == "TSTP" else "attentive",
        "pooling_channels": _BOTTLENECK,
        "pooling_context": False,
        "pooling_hidden_norm": False,
        "pooling_variance_offset": _VARIANCE_OFFSET,
        "pooling_smallest_variance": _VARIANCE_OFFSET,
        "embedding_size": arguments.get("embed_dim", 256),
        "normalize_pooled": False,
        "normalize_embedding": False,
    }


def wespeaker_resnet_name(name: str) -> str:
    """Translate the name of a weight of WeSpeaker's ResNet to its name in `HamSpkModel`.

    Raises:
        ValueError: WeSpeaker's ResNet has no weight with this name.
    """
    ours = WESPEAKER_RESNET_NAMES.apply(name)
    if ours is None:
        raise ValueError(
            f"{name!r} is not a weight of WeSpeaker's ResNet. Use the file avg_model.pt that WeSpeaker saved."
        )
    return ours


def convert_wespeaker_resnet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of WeSpeaker's ResNet to a state dict of `HamSpkModel`.

    Raises:
        ValueError: `state_dict` contains a name that WeSpeaker's ResNet does not have.
    """
    return {wespeaker_resnet_name(name): tensor for name, tensor in state_dict.items()}


def wespeaker_name(name: str) -> str:
    """Translate the name of a weight of WeSpeaker's ECAPA-TDNN to its name in `HamSpkModel`.

    Raises:
        ValueError: WeSpeaker's ECAPA-TDNN has no weight with this name.
    """
    ours = WESPEAKER_NAMES.apply(name)
    if ours is None:
        raise ValueError(
            f"{name!r} is not a weight of WeSpeaker's ECAPA_TDNN. Use the file avg_model.pt that WeSpeaker saved."
        )
    return ours


def convert_wespeaker_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of WeSpeaker's ECAPA-TDNN to a state dict of `HamSpkModel`.

    Raises:
        ValueError: `state_dict` contains a name that WeSpeaker's ECAPA-TDNN does not have.
    """
    named = {wespeaker_name(name): tensor for name, tensor in state_dict.items()}
    # The two layers of the squeeze-and-excitation are linear layers in WeSpeaker, and convolutions with a kernel of one
    # frame in this package.
    is_gate = {name: ".excitation." in name and tensor.ndim == 2 for name, tensor in named.items()}
    return {name: tensor[..., None] if is_gate[name] else tensor for name, tensor in named.items()}


def _check_features(data: Mapping[str, Any]) -> None:
    """Check that the features are Kaldi's filter bank (25 ms windows every 10 ms) with mean subtraction."""
    require_values(
        f"{WESPEAKER_YAML}: dataset_args", {"frontend": data.get("frontend", "fbank")}, {"frontend": "fbank"}
    )
    require_values(f"{WESPEAKER_YAML}: dataset_args", {"cmvn": data.get("cmvn", True)}, {"cmvn": True})
    wanted = {"frame_length": 25, "frame_shift": 10}
    require_values(f"{WESPEAKER_YAML}: fbank_args", {**wanted, **_mapping(data, "fbank_args")}, wanted)
    wanted = {"norm_mean": True, "norm_var": False}
    require_values(f"{WESPEAKER_YAML}: cmvn_args", {**wanted, **_mapping(data, "cmvn_args")}, wanted)


def _mapping(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = settings.get(key)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{WESPEAKER_YAML}: {key} must contain 'key: value' lines, got {value!r}.")
    return {} if value is None else value
