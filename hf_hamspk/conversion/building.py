"""Construction of speaker models from the weights of other projects."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ..configuration_hamspk import HamSpkConfig
from ..modeling_hamspk import HamSpkModel

WEIGHTS_SHOWN = 3
# Batch normalisation counts its batches only to average without a momentum, which no model here does.
_COUNTER = ".num_batches_tracked"

Rules = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Converted:
    """Result of a conversion: the model, its source and the parts that were left out.

    Attributes:
        model: speaker model in evaluation mode, in float32, without a head.
        source: project and architecture, such as `"SpeechBrain ECAPA-TDNN"`.
        read: names of the files that were used.
        left_out: maps the name of each unconverted part to its description.
        notes: further remarks for the user.
    """

    model: HamSpkModel
    source: str
    read: list[str]
    left_out: dict[str, str]
    notes: list[str]


@dataclass(frozen=True)
class Renaming:
    """Mapping of the weight names of another project's ECAPA-TDNN to the weight names of `HamSpkModel`.

    Attributes:
        rules: pairs of a pattern for the beginning of a name and its replacement. The first matching rule is applied.
        block: pattern for the beginning of the names in a block. Its group is the number of the block.
        first_block: number of the first block.
        block_rules: rules for the remainder of the names in a block.
    """

    rules: Rules
    block: str
    first_block: int
    block_rules: Rules

    def apply(self, name: str) -> str | None:
        """Return our name of a weight; None if the other model has no such weight."""
        block = re.match(self.block, name)
        if block is None:
            return _renamed(name, self.rules)
        rest = _renamed(name[block.end() :], self.block_rules)
        return None if rest is None else f"backbone.blocks.{int(block[1]) - self.first_block}.{rest}"


def _renamed(name: str, rules: Rules) -> str | None:
    for pattern, replacement in rules:
        result, count = re.subn("^" + pattern, replacement, name)
        if count:
            return result
    return None


def require_values(where: str, given: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that the settings of another project have the values that can be converted.

    Args:
        where: file and key of the settings, for the error message.
        given: settings of the other project.
        wanted: required values by name of the setting.

    Raises:
        ValueError: a setting has another value. The message names the first one.
    """
    for name, value in wanted.items():
        if given[name] != value:
            raise ValueError(f"{where} has {name} {given[name]}; only models with {name} {value} can be converted.")


def converted_config(source: str, **fields: Any) -> HamSpkConfig:
    """Return the configuration of a converted model.

    Raises:
        ValueError: a value of the source is not supported by the models of this package.
    """
    try:
        return HamSpkConfig(converted_from=source, **fields)
    except StrictDataclassError as error:
        reason = error if error.__cause__ is None else error.__cause__
        raise ValueError(f"This checkpoint of {source} cannot be converted: {reason}") from error


def fill_model(config: HamSpkConfig, tensors: Mapping[str, Tensor]) -> HamSpkModel:
    """Return a model with these weights, in evaluation mode.

    Raises:
        ValueError: a weight is missing, is not part of the model, or does not have the shape that the model needs.
    """
    model = HamSpkModel(config)
    expected = model.state_dict()
    given = {name: tensor for name, tensor in expected.items() if name.endswith(_COUNTER)} | dict(tensors)
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "left over": sorted(given.keys() - expected.keys()),
        "of another shape": sorted(n for n in given.keys() & expected.keys() if given[n].shape != expected[n].shape),
    }
    found = [f"{len(names)} {what} ({shown(names)})" for what, names in problems.items() if names]
    if found:
        raise ValueError(
            f"The weights do not fit the model that the files of {config.converted_from} describe: {', '.join(found)}, "
            "with names as in hf_hamspk. Check that all files belong to the same model."
        )
    with torch.no_grad():
        model.load_state_dict(given)
    return model.eval()


def shown(names: Iterable[str]) -> str:
    """Join the first few names with commas, followed by an ellipsis if there are more."""
    names = list(names)
    return ", ".join(names[:WEIGHTS_SHOWN]) + (", ..." if len(names) > WEIGHTS_SHOWN else "")
