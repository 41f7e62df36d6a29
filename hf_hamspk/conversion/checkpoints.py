"""Reading of checkpoint files of other projects without running code from them."""

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
    """YAML value with a tag such as `!new:package.Class`, kept as plain data.

    Attributes:
        tag: text after the exclamation mark.
        value: mapping, list or string without the tag.
    """

    tag: str
    value: Any


class _TagsAsData(yaml.SafeLoader):
    """YAML loader that reads every tag as `Tagged` and constructs no other objects."""


def _construct_tagged(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Tagged:
    if isinstance(node, yaml.MappingNode):
        return Tagged(tag, loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.SequenceNode):
        return Tagged(tag, loader.construct_sequence(node, deep=True))
    return Tagged(tag, loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None)


_TagsAsData.add_multi_constructor("!", _construct_tagged)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping, with tags as data (`Tagged`) and each `!ref <key>` replaced by the value of the key.

    Raises:
        ValueError: the file is missing, is not YAML or does not contain a mapping.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Use the complete folder of the project, with {path.name}.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _TagsAsData)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain 'key: value' lines, got a {type(content).__name__}.")
    return {str(key): _resolved(value, content, _DEEPEST_REFERENCE) for key, value in content.items()}


def _resolved(value: Any, content: Mapping[str, Any], depth: int) -> Any:
    """Replace references to keys of `content` within `value`; other references are left unchanged."""
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
    """Read the tensors of a checkpoint by name, without the prefix `module.`; floating-point tensors become float32.

    Args:
        path: safetensors file or file of `torch.save`. The latter contains a state dict, either at the top level or
            under `state_dict` or `model`.

    Raises:
        ValueError: the file is missing or damaged, has no tensors or values that are not finite, or contains other
            Python objects, whose loading could run code from the file.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Use the complete folder of the project, with {path.name}.")
    content = _load_checkpoint(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected weights by name (a state dict), got a {type(content).__name__}.")
    tensors = {str(name).removeprefix("module."): value for name, value in content.items() if torch.is_tensor(value)}
    if not tensors:
        raise ValueError(f"{path}: expected weights by name (a state dict), found no tensors.")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{path}: {name} contains NaN or infinite values. The training diverged; use another checkpoint."
            )
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
    """Return the error message for a file that torch cannot read as plain weights, with the reason and a remedy."""
    wanted = _OBJECT.search(str(error))
    if wanted is None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines and isinstance(error, RuntimeError) else type(error).__name__
        return f"{path} cannot be read as a checkpoint ({reason}). Copy or download it again."
    return (
        f"{path} contains more than weights: it asks for {wanted[1]}. Loading Python objects can run any code in the "
        "file. If you trust the file, save the weights alone with the project that made it: "
        "torch.save(model.state_dict(), file)."
    )
