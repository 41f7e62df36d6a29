"""Build speaker models from the weights of other projects."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ..configuration_hamspk import HamSpkConfig
from ..modeling_hamspk import HamSpkModel

WEIGHTS_SHOWN = 3
# Batch normalisation uses this counter only if it has no momentum. In this package it always has a momentum.
_COUNTER = ".num_batches_tracked"

Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
# Rules for a residual block of CAM++ or ResNet.
RESIDUAL_RULES: Rules = [
    (r"conv([1-3])\.", lambda found: f"layers.{int(found[1]) - 1}.conv."),
    (r"bn([1-3])\.", lambda found: f"layers.{int(found[1]) - 1}.norm."),
    (r"shortcut\.0\.", "shortcut.conv."),
    (r"shortcut\.1\.", "shortcut.norm."),
]


@dataclass(frozen=True)
class Converted:
    """Result of a conversion.

    Attributes:
        model: speaker model in evaluation mode, in float32, without a head.
        source: project and architecture, such as `"SpeechBrain ECAPA-TDNN"`.
        read: names of the files that were read.
        left_out: description of each file or weight that was not converted, with the name of the file or weight as the
            key.
        notes: further remarks for the user.
    """

    model: HamSpkModel
    source: str
    read: list[str]
    left_out: dict[str, str]
    notes: list[str]


@dataclass(frozen=True)
class Renaming:
    """Rules that translate the names of weights in another project to the names in `HamSpkModel`.

    Attributes:
        rules: rules for weights outside the blocks of the encoder. A rule is a pair. The first item is a regular
            expression for the beginning of a name. The second item is the text that replaces this beginning, or a
            function that computes the text from the match. Only the first matching rule is applied.
        blocks: one triple for each kind of block. The first item is a regular expression for the beginning of the
            names in a block. The second item is a function that maps the match to the name of the block in
            `HamSpkModel`. The third item contains the rules for the rest of the names.
    """

    rules: Rules
    blocks: Sequence[tuple[str, Callable[[re.Match[str]], str], Rules]]

    def apply(self, name: str) -> str | None:
        """Translate the name of a weight of the other project to its name in `HamSpkModel`; None if no rule matches."""
        for pattern, block_name, rules in self.blocks:
            if (block := re.match(pattern, name)) is not None:
                rest = _renamed(name[block.end() :], rules)
                return None if rest is None else f"{block_name(block)}.{rest}"
        return _renamed(name, self.rules)


def numbered(start: str, first: int = 1) -> Callable[[re.Match[str]], str]:
    """Return a function that maps a match to `start.n`, where `n` is the number in its first group minus `first`."""
    return lambda found: f"{start}.{int(found[1]) - first}"


def _renamed(name: str, rules: Rules) -> str | None:
    """Return `name` with its beginning replaced by the first rule that matches; None if no rule matches."""
    for pattern, replacement in rules:
        result, count = re.subn("^" + pattern, replacement, name)
        if count:
            return result
    return None


def require_values(where: str, given: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that settings of another project have the values that the conversion requires.

    Args:
        where: file and key of the settings, for the error message.
        given: settings of the other project, as a dictionary of names and values.
        wanted: required settings, as a dictionary of names and values. Settings that are not in it are not checked.

    Raises:
        ValueError: a setting has a different value. The message names the first setting with a different value.
    """
    for name, value in wanted.items():
        if given[name] != value:
            raise ValueError(f"{where} has {name} {given[name]}. Only models with {name} {value} can be converted.")


def converted_config(source: str, **fields: Any) -> HamSpkConfig:
    """Return the configuration of a converted model.

    Args:
        source: project and architecture of the checkpoint.
        fields: fields of `HamSpkConfig`.

    Raises:
        ValueError: `HamSpkConfig` does not accept the value of a field.
    """
    try:
        return HamSpkConfig(converted_from=source, **fields)
    except StrictDataclassError as error:
        reason = error if error.__cause__ is None else error.__cause__
        raise ValueError(f"This checkpoint of {source} cannot be converted: {reason}") from error


def fill_model(config: HamSpkConfig, tensors: Mapping[str, Tensor]) -> HamSpkModel:
    """Build a model and load converted weights into it.

    Args:
        config: configuration of the model.
        tensors: weights as a state dict of `HamSpkModel`.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: a weight of the model is missing, or a converted weight has no counterpart of the same shape in the
            model.
    """
    model = HamSpkModel(config)
    expected = model.state_dict()
    given = {name: tensor for name, tensor in expected.items() if name.endswith(_COUNTER)} | dict(tensors)
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unknown": sorted(given.keys() - expected.keys()),
        "of another shape": sorted(n for n in given.keys() & expected.keys() if given[n].shape != expected[n].shape),
    }
    found = [f"{len(names)} {what} ({shown(names)})" for what, names in problems.items() if names]
    if found:
        raise ValueError(
            f"The weights do not fit the {config.converted_from} model that the other files describe: "
            f"{', '.join(found)}. The weights are named as in the converted model. Check that all files belong to the "
            "same model."
        )
    with torch.no_grad():
        model.load_state_dict(given)
    return model.eval()


def shown(names: Iterable[str]) -> str:
    """Return the first few names, separated by commas and followed by an ellipsis if there are more names."""
    names = list(names)
    return ", ".join(names[:WEIGHTS_SHOWN]) + (", ..." if len(names) > WEIGHTS_SHOWN else "")
