"""Loading a speaker model by its folder or its name on the Hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from ..configuration_hamspk import HamSpkConfig
from ..modeling_hamspk import HamSpkModel
from .names import find_model, read_config

MISSING_SHOWN = 3


def load_model(name: str | os.PathLike[str], device: str | None = None) -> HamSpkModel:
    """Load a speaker model for use.

    The Hub is asked for at most a few seconds; if it cannot be reached, a model in the local cache is used.

    Args:
        name: a folder that `save_pretrained` wrote (such as a run's `final`), or a name on the Hub.
        device: of torch, such as `"cpu"` or `"cuda:1"`; None is a GPU if there is one.

    Returns:
        The model without its training head, in evaluation mode.

    Raises:
        ValueError: there is no such model, it is of another kind, it is damaged or incomplete, or there is no such
            device.
    """
    name = os.fspath(name)
    target = find_device(device)
    local = find_model(name)
    config = read_config(name, local)
    if config.get("model_type") != HamSpkConfig.model_type:
        raise ValueError(
            f"{name} holds a model of type {config.get('model_type')!r}; expected {HamSpkConfig.model_type!r}, a "
            "speaker model of this package. To start from a pretrained speech encoder, train on it: `hamspk train "
            f"--backbone {name} ...`."
        )
    try:
        with quiet_transformers():
            model, info = HamSpkModel.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                name, local_files_only=local, output_loading_info=True
            )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"The weights of {name} cannot be read: {error}. Copy or download the model again.") from error
    missing = sorted(info["missing_keys"])
    if missing:
        shown = ", ".join(missing[:MISSING_SHOWN]) + (", ..." if len(missing) > MISSING_SHOWN else "")
        raise ValueError(
            f"The weights of {name} lack {len(missing)} tensors that its config.json asks for ({shown}): the two files "
            "are not of the same model. Copy or download the model again."
        )
    return model.eval().to(target)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from reporting weights that are left out on purpose, such as the training head."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def find_device(name: str | None) -> torch.device:
    """The device of a name, or a GPU if there is one.

    Raises:
        ValueError: there is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"There is no device {name!r} here ({str(error).splitlines()[0]}). Try 'cpu', or leave it out."
        ) from error
    return torch.device(name)
