"""The ECAPA-TDNN that the released code of arXiv 2601.19709 trains (TaoRuijie/ECAPA-TDNN's encoder).

| theirs                         | ours (in `HamSpkModel`)                              |
|--------------------------------|------------------------------------------------------|
| `conv1`, `bn1`                 | `backbone.input.conv`, `.norm`                       |
| `layerN.conv1`, `.bn1`         | `backbone.blocks.N-1.reduce.conv`, `.norm`           |
| `layerN.convs.i`, `.bns.i`     | `backbone.blocks.N-1.groups.i.conv`, `.norm`         |
| `layerN.conv3`, `.bn3`         | `backbone.blocks.N-1.expand.conv`, `.norm`           |
| `layerN.se.se.1`, `.se.se.3`   | `backbone.blocks.N-1.excitation.down`, `.up`         |
| `layer4`                       | `backbone.aggregate`                                 |
| `attention.0`, `.2`, `.4`      | `pooling.hidden`, `.norm`, `.scores`                 |
| `bn5`, `fc6`, `bn6`            | `pooled_norm`, `projection`, `embedding_norm`        |
| `torchfbank.*`                 | left out: the front-end computes its constants       |
"""

import re
from collections.abc import Mapping

from torch import Tensor

_RULES = [
    (r"conv1\.", "backbone.input.conv."),
    (r"bn1\.", "backbone.input.norm."),
    (r"layer4\.", "backbone.aggregate."),
    (r"attention\.0\.", "pooling.hidden."),
    (r"attention\.2\.", "pooling.norm."),
    (r"attention\.4\.", "pooling.scores."),
    (r"bn5\.", "pooled_norm."),
    (r"fc6\.", "projection."),
    (r"bn6\.", "embedding_norm."),
]
_BLOCK = re.compile(r"layer([1-3])\.")
_BLOCK_RULES = [
    (r"conv1\.", "reduce.conv."),
    (r"bn1\.", "reduce.norm."),
    (r"convs\.(\d+)\.", r"groups.\1.conv."),
    (r"bns\.(\d+)\.", r"groups.\1.norm."),
    (r"conv3\.", "expand.conv."),
    (r"bn3\.", "expand.norm."),
    (r"se\.se\.1\.", "excitation.down."),
    (r"se\.se\.3\.", "excitation.up."),
]


def official_name(name: str) -> str | None:
    """Our name of one of their weights, or None for a constant of their front-end.

    Raises:
        ValueError: not a weight of that encoder.
    """
    if name.startswith("torchfbank."):
        return None
    prefix, rest, rules = "", name, _RULES
    block = _BLOCK.match(name)
    if block is not None:
        prefix = f"backbone.blocks.{int(block[1]) - 1}."
        rest, rules = name[block.end() :], _BLOCK_RULES
    for pattern, replacement in rules:
        renamed, count = re.subn("^" + pattern, replacement, rest)
        if count:
            return prefix + renamed
    raise ValueError(
        f"{name!r} is not a weight of the ECAPA-TDNN encoder of the released code. If the checkpoint holds the "
        "trainer's whole state, pass only the entries of the encoder, without their 'speaker_encoder.' prefix."
    )


def convert_official_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their encoder's state dict to that of `HamSpkModel` (ECAPA backbone, fbank front-end, attentive pooling)."""
    named = ((official_name(name), tensor) for name, tensor in state_dict.items())
    return {name: tensor for name, tensor in named if name is not None}
