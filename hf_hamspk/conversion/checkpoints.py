"""Reads files of other projects without running code in them."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# Where trainers put the weights beside other things.
_WRAPPERS = ("state_dict", "model")
_REFERENCE = re.compile(r"<([^<>]+)>")
# Part of torch's message if a pickle asks for anything but tensors and plain values.
_OBJECT = re.compile(r"Unsupported (?:global: GLOBAL|class) (\S+)")
# Levels of references to references; deeper ones are a circle.
_DEEPEST_REFERENCE = 10


class Tagged(NamedTuple):
    """A YAML value with a tag such as `!new:package.Class`, as data.

    Attributes:
        tag: the text after the exclamation mark.
        value: a mapping, a list or a text, without the tag.
    """

    tag: str
    value: Any


class _TagsAsData(yaml.SafeLoader):
    """Reads every tag as `Tagged`, and builds nothing."""


def _construct_tagged(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Tagged:
    if isinstance(node, yaml.MappingNode):
        return Tagged(tag, loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.SequenceNode):
        return Tagged(tag, loader.construct_sequence(node, deep=True))
    return Tagged(tag, loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None)


_TagsAsData.add_multi_constructor("!", _construct_tagged)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping with tags as data (`Tagged`) and `!ref <key>` replaced by the value of the key.

    Raises:
        ValueError: no such file, no YAML, or no mapping.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Give the folder as its project lays it out, {path.name} included.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _TagsAsData)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'key: value' lines; it holds a {type(content).__name__}.")
    return {str(key): _resolved(value, content, _DEEPEST_REFERENCE) for key, value in content.items()}


def _resolved(value: Any, content: Mapping[str, Any], depth: int) -> Any:
    """`value` with its references to keys of `content` replaced; other references stay as they are written."""
    if depth == 0:
        return value
    if isinstance(value, Tagged) and value.tag == "ref" and isinstance(value.value, str):
        whole = _REFERENCE.fullmatch(value.value)
        if whole is not None and whole[1] in content:
            return _resolved(content[whole[1]], content, depth - 1)
        return _REFERENCE.sub(lambda m: str(_resolved(content.get(m[1], m[0]), content, depth - 1)), value.value)
    if isinstance(value, Tagged):
        return Tagged(value.tag, _resolved(value.value, content, depth - 1))
    if isinstance(value, dict):
        return {key: _resolved(part, content, depth - 1) for key, part in value.items()}
    if isinstance(value, list):
        return [_resolved(part, content, depth - 1) for part in value]
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, floating ones as float32, without the prefix `module.`.

    Args:
        path: a safetensors file, or one of torch.save: a state dict, by itself or under `state_dict` or `model`.

    Raises:
        ValueError: no such file, it is damaged, holds more than tensors and plain values (loading that would run code
            out of the file), holds no tensors, or numbers that are not finite.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Give the folder as its project lays it out, {path.name} included.")
    content = _load_checkpoint(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected the weights by name (a state dict).")
    tensors = {str(name).removeprefix("module."): value for name, value in content.items() if torch.is_tensor(value)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors; expected the weights by name (a state dict).")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds NaN or infinite numbers; the checkpoint is of a failed training.")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _load_checkpoint(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read: {error}. Copy or download it again.") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, KeyError, ValueError) as error:
        raise ValueError(refusal(path, error)) from error


def refusal(path: Path, error: Exception) -> str:
    """The message for a file that torch refuses to read as weights alone: the reason, and what to do."""
    wanted = _OBJECT.search(str(error))
    if wanted is None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines and isinstance(error, RuntimeError) else type(error).__name__
        return f"{path} cannot be read as a checkpoint ({reason}). Copy or download it again."
    return (
        f"{path} holds more than weights: it asks for {wanted[1]}, and loading Python objects can run any code that is "
        "in the file. If you trust it, save its weights by themselves with the project that made it: "
        "torch.save(model.state_dict(), file)."
    )
