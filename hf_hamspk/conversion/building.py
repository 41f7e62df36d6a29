"""Builds speaker models from the weights of other projects."""

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
    """A converted model and where it came from.

    Attributes:
        model: in evaluation mode, float32, without a head.
        source: the project and the architecture, such as `"SpeechBrain ECAPA-TDNN"`.
        read: names of the files that were used.
        left_out: what was not converted, with the reason.
        notes: further remarks for the user.
    """

    model: HamSpkModel
    source: str
    read: list[str]
    left_out: dict[str, str]
    notes: list[str]


@dataclass(frozen=True)
class Renaming:
    """Maps the names of the weights of another project's ECAPA-TDNN to those of `HamSpkModel`.

    Attributes:
        rules: pattern at the beginning of a name, and its replacement; the first that fits is applied.
        block: pattern at the beginning of the names in a block; its group is the number of the block.
        first_block: number of the first block.
        block_rules: as `rules`, for the rest of the names in a block.
    """

    rules: Rules
    block: str
    first_block: int
    block_rules: Rules

    def apply(self, name: str) -> str | None:
        """Our name of a weight; None if it is not a weight of that model."""
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
    """Refuse settings of another project that have no equivalent here.

    Args:
        where: file and key of the settings, for the message.
        given: the settings.
        wanted: the only values that can be converted.

    Raises:
        ValueError: names the first setting with another value.
    """
    for name, value in wanted.items():
        if given[name] != value:
            raise ValueError(f"{where} has {name} {given[name]}; only models with {name} {value} can be converted.")


def converted_config(source: str, **fields: Any) -> HamSpkConfig:
    """The configuration of a converted model.

    Raises:
        ValueError: the source has a value that our models do not support.
    """
    try:
        return HamSpkConfig(converted_from=source, **fields)
    except StrictDataclassError as error:
        reason = error if error.__cause__ is None else error.__cause__
        raise ValueError(f"This checkpoint of {source} cannot be converted: {reason}") from error


def fill_model(config: HamSpkConfig, tensors: Mapping[str, Tensor]) -> HamSpkModel:
    """A model with these weights, in evaluation mode.

    Raises:
        ValueError: a weight is missing, left over, or of another shape than the configuration says.
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
            "by the names of hf_hamspk. Give the files of one and the same model."
        )
    with torch.no_grad():
        model.load_state_dict(given)
    return model.eval()


def shown(names: Iterable[str]) -> str:
    """The first few of `names`, and an ellipsis if there are more."""
    names = list(names)
    return ", ".join(names[:WEIGHTS_SHOWN]) + (", ..." if len(names) > WEIGHTS_SHOWN else "")
