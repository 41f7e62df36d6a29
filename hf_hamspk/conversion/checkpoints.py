"""Read checkpoint files of other projects. Code in these files is never run."""

import io
import re
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from ..files.yaml_files import PlainLoader, load_yaml

# Keys under which trainers store the weights, if the checkpoint also contains other data.
_WRAPPERS = ("state_dict", "model")
_REFERENCE = re.compile(r"<([^<>]+)>")
# Part of torch's error message if a pickle contains Python objects other than tensors and plain values.
_OBJECT = re.compile(r"Unsupported (?:global: GLOBAL|class) (\S+)")
# First bytes of the files of `torch.save`: a zip archive with a pickle, or pickles of protocol 2 or later. Older
# versions of torch wrote tar archives, which torch recognises itself.
_TORCH_ARCHIVE, _TORCH_PICKLE, _NAME_OF_PICKLE = b"PK\x03\x04", b"\x80", "data.pkl"
# Number of first bytes that an error message shows.
_BYTES_SHOWN = 20
# Greatest depth of nested references. Deeper references are assumed to be circular.
_DEEPEST_REFERENCE = 10


class Tagged(NamedTuple):
    """YAML value with a tag such as `!new:package.Class`, stored as plain data.

    Attributes:
        tag: text of the tag after the exclamation mark.
        value: mapping, list or string to which the tag belongs.
    """

    tag: str
    value: Any


class _TagsAsData(PlainLoader):
    """YAML loader that returns tagged values as `Tagged`, and does not construct the objects that the tags name."""


def _construct_tagged(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Tagged:
    if isinstance(node, yaml.MappingNode):
        return Tagged(tag, loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.SequenceNode):
        return Tagged(tag, loader.construct_sequence(node, deep=True))
    return Tagged(tag, loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None)


_TagsAsData.add_multi_constructor("!", _construct_tagged)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that contains a mapping.

    Tagged values are returned as plain data (`Tagged`). Each reference `!ref <key>` is replaced by the value of the
    key.

    Raises:
        ValueError: the file is missing, is not YAML or does not contain a mapping.
    """
    if not path.is_file():
        raise ValueError(f"File not found: {path}. Use the complete model folder, which contains {path.name}.")
    try:
        content = load_yaml(path, _TagsAsData)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain a YAML mapping ('key: value' lines), got a {type(content).__name__}.")
    return {str(key): _resolved(value, content, _DEEPEST_REFERENCE) for key, value in content.items()}


def _resolved(value: Any, content: Mapping[str, Any], depth: int) -> Any:
    """Return `value` with each reference to a key of `content` replaced by the value of this key.

    References to unknown keys, and references that are nested deeper than `depth`, stay as they are.
    """
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


def read_tensors(path: Path, stored: bytes | None = None) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint.

    Args:
        path: safetensors file, or file written by `torch.save`. A file of `torch.save` must contain a state dict at the
            top level, or under the key `state_dict` or `model`.
        stored: content of the file, for a file inside another file such as a wheel; None reads the file at `path`.

    Returns:
        A dictionary that maps each name, without the prefix `module.`, to its tensor. Floating-point tensors are
        converted to float32.

    Raises:
        ValueError: the file is missing or damaged, or it contains one of the following: no tensors; NaN or infinite
            values; sparse, quantised or complex tensors; Python objects that could run code when they are loaded.
    """
    if stored is None and not path.is_file():
        raise ValueError(f"File not found: {path}. Use the complete model folder, which contains {path.name}.")
    content = _load_checkpoint(path, stored)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a state dict (weights by name), got a {type(content).__name__}.")
    tensors = {str(name).removeprefix("module."): value for name, value in content.items() if torch.is_tensor(value)}
    if not tensors:
        raise ValueError(f"{path}: expected a state dict (weights by name), found no tensors.")
    for name, tensor in tensors.items():
        _check_plain(path, name, tensor)
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"{path}: {name} contains NaN or infinite values. The training probably diverged. Use another "
                "checkpoint."
            )
    return tensors


def _check_plain(path: Path, name: str, tensor: Tensor) -> None:
    """Raise ValueError if a tensor is not a dense array of real numbers."""
    kinds = {
        "sparse": tensor.layout not in (torch.strided, torch.jagged),
        "nested": tensor.is_nested,
        "quantised": tensor.is_quantized,
        "complex": tensor.is_complex(),
        "without values": tensor.is_meta,
    }
    found = [kind for kind, is_this_kind in kinds.items() if is_this_kind]
    if found:
        raise ValueError(
            f"{path}: expected dense tensors of real numbers, but {name} is {found[0]}. Save the weights of the "
            "original, unconverted model."
        )


def _load_checkpoint(path: Path, stored: bytes | None) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path) if stored is None else load(stored)
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read: {error}. Copy or download it again.") from error
    try:
        with warnings.catch_warnings():
            # torch warns about TorchScript archives before it refuses them.
            warnings.simplefilter("ignore")
            return torch.load(path if stored is None else io.BytesIO(stored), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors for damaged files.
        raise ValueError(refusal(path, error, stored)) from error


def refusal(path: Path, error: Exception, stored: bytes | None = None) -> str:
    """Return an error message, with the reason and a remedy, for a file that torch cannot read as plain weights.

    The arguments `path` and `stored` are those of `read_tensors`.
    """
    if path.suffix != ".safetensors" and (found := _other_content(path, stored)) is not None:
        return (
            f"{path} is not a PyTorch checkpoint: expected a file that torch.save wrote, got {found}. Give the file "
            "with the weights, or download it again."
        )
    wanted = _OBJECT.search(str(error))
    if wanted is None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines and isinstance(error, RuntimeError | OSError) else type(error).__name__
        return f"{path} cannot be read as a checkpoint ({reason}). Copy or download it again."
    return (
        f"{path} contains more than weights: it uses the Python object {wanted[1]}. Loading Python objects can run any "
        "code in the file. If you trust the file, load it in the project that wrote it and save only the weights: "
        "torch.save(model.state_dict(), file)."
    )


def _other_content(path: Path, stored: bytes | None) -> str | None:
    """Return what a file is if `torch.save` cannot have written it; None if it can have."""
    with open(path, "rb") if stored is None else io.BytesIO(stored) as file:
        head = file.read(_BYTES_SHOWN)
        if not head:
            return "an empty file"
        is_old = stored is None and tarfile.is_tarfile(path)
        if not is_old and not head.startswith((_TORCH_ARCHIVE, _TORCH_PICKLE)):
            return f"a file that begins with {head!r}"
        try:
            names = zipfile.ZipFile(file).namelist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            return None  # a pickle, or a damaged archive, which torch describes
    return None if any(name.endswith(_NAME_OF_PICKLE) for name in names) else "another zip archive"
