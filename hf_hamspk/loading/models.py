"""Loading of speaker models from a folder or from the Hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging

from ..configuration_hamspk import HamSpkConfig
from ..modeling_hamspk import HamSpkForXVector, HamSpkModel, SpeakerModelMixin
from .names import find_model, read_config

MISSING_SHOWN = 3

SomeModel = SpeakerModelMixin | str | os.PathLike[str]


def load_model(name: str | os.PathLike[str], device: str | None = None) -> HamSpkModel:
    """Load a speaker model for inference.

    If the Hub does not answer within a few seconds, the model is loaded from the local cache.

    Args:
        name: folder that `save_pretrained` wrote, such as the folder `final` of a training run, or name on the Hub.
        device: torch device, such as `"cpu"` or `"cuda:1"`; None uses a GPU if one is available, and the CPU otherwise.

    Returns:
        The model in evaluation mode, without its training head.

    Raises:
        ValueError: the model is not found, is not a speaker model of this package, or is damaged or incomplete, or the
            device is not available.
    """
    model, missing = _load_kind(HamSpkModel, os.fspath(name), device)
    if missing:
        raise ValueError(_missing_message(os.fspath(name), missing))
    return model


def given_model(model: SomeModel) -> SpeakerModelMixin:
    """Return the given model, or load it if its folder or its name on the Hub is given."""
    if isinstance(model, str | os.PathLike):
        return load_model(model)
    # Not by the class, because remote code has its own.
    if not callable(getattr(model, "fingerprint", None)):
        found = type(model).__name__
        raise ValueError(f"Expected a model such as HamSpkModel, its folder, or its name on the Hub, got {found}.")
    return model


def load_with_head(name: str | os.PathLike[str], device: str | None = None) -> tuple[HamSpkForXVector, bool]:
    """Load a speaker model with its training head, for inference.

    Args:
        name, device: see `load_model`.

    Returns:
        The model in evaluation mode, and whether its files contain the centres of the head. If not, they are random.

    Raises:
        ValueError: see `load_model`.
    """
    model, missing = _load_kind(HamSpkForXVector, os.fspath(name), device)
    others = [key for key in missing if not key.startswith("head.")]
    if others:
        raise ValueError(_missing_message(os.fspath(name), others))
    return model, not missing


def _load_kind(kind: type[Any], name: str, device: str | None) -> tuple[Any, list[str]]:
    """Load a model of the class `kind` in evaluation mode. Return it, and the sorted names of missing tensors."""
    target = find_device(device)
    local = find_model(name)
    config = read_config(name, local)
    if config.get("model_type") != HamSpkConfig.model_type:
        raise ValueError(
            f"Expected a speaker model of this package, of type {HamSpkConfig.model_type!r}, but {name} is a model of "
            f"type {config.get('model_type')!r}. If it is a pretrained speech encoder, train a speaker model on it: "
            f"`hamspk train --backbone {name} ...`."
        )
    try:
        with quiet_transformers():
            model, info = kind.from_pretrained(name, local_files_only=local, output_loading_info=True)
    except RecursionError as error:
        raise ValueError(f"config.json of {name} is nested too deeply. Copy or download the model again.") from error
    except StrictDataclassError as error:
        cause = error if error.__cause__ is None else error.__cause__
        raise ValueError(f"config.json of {name} is invalid: {cause!s:.400}") from error
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"The weights of {name} cannot be read: {error}. Copy or download the model again.") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        # transformers does not check the types of its own fields.
        raise ValueError(
            f"config.json of {name} contains an invalid value ({type(error).__name__}: {error!s:.200}). Copy or "
            "download the model again."
        ) from error
    return model.eval().to(target), sorted(info["missing_keys"])


def _missing_message(name: str, missing: list[str]) -> str:
    shown = ", ".join(missing[:MISSING_SHOWN]) + (", ..." if len(missing) > MISSING_SHOWN else "")
    return (
        f"The weights of {name} lack {len(missing)} tensors that its config.json requires ({shown}). The weights and "
        "config.json belong to different models. Copy or download the model again."
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Context manager that hides the warnings of transformers while a model is loaded.

    Without it, transformers warns about weights that are intentionally not loaded, such as those of the training head.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def find_device(name: str | None) -> torch.device:
    """Return a torch device.

    Args:
        name: name of the device, such as `"cpu"` or `"cuda:1"`; None selects a GPU if one is available, and the CPU
            otherwise.

    Raises:
        ValueError: the device is not available on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"Device {name!r} is not available ({str(error).splitlines()[0]}). Give 'cpu' or omit the device."
        ) from error
    return torch.device(name)
