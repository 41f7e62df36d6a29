"""Speaker models made of other projects' weights."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ..configuration_hamspk import HamSpkConfig
from ..modeling_hamspk import HamSpkModel

_NAMES_SHOWN = 3
# Batch normalisation counts its batches only to average without a momentum, which nobody here does.
_COUNTER = ".num_batches_tracked"

Rules = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Converted:
    """A converted model and where it came from.

    Attributes:
        model: in evaluation mode, float32, without a head.
        source: the project and the architecture, such as `"SpeechBrain ECAPA-TDNN"`.
        read: names of the files that were used.
        left_out: what was not taken, and why.
        notes: what else the user should know.
    """

    model: HamSpkModel
    source: str
    read: list[str]
    left_out: dict[str, str]
    notes: list[str]


def renamed(name: str, rules: Rules) -> str | None:
    """`name` with the first rule (pattern at its beginning, replacement) that fits applied; None if none does."""
    for pattern, replacement in rules:
        result, count = re.subn("^" + pattern, replacement, name)
        if count:
            return result
    return None


def make_config(source: str, **fields: Any) -> HamSpkConfig:
    """The configuration of a converted model.

    Raises:
        ValueError: the source has a value that our models do not take.
    """
    try:
        return HamSpkConfig(converted_from=source, **fields)
    except StrictDataclassError as error:
        reason = error if error.__cause__ is None else error.__cause__
        raise ValueError(f"This checkpoint of {source} cannot be converted: {reason}") from error


def build_model(config: HamSpkConfig, tensors: Mapping[str, Tensor]) -> HamSpkModel:
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
    """The first few of `names`, and that there are more."""
    names = list(names)
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
