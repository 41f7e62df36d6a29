"""Loading a model that somebody named on the command line."""

import argparse
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModel, PreTrainedConfig
from transformers.utils import logging

from ..modeling_hamspk import HamSpkModel

# owner/name or name, as the Hub allows them.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_MODEL_TYPE = "hamspk"
# Where a training run keeps the model to use, best first.
_RUN_FOLDERS = ("final", "best", "last")
_NAMES_SHOWN = 3


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that loads a model takes."""
    parser.add_argument("model", metavar="MODEL", help="folder of a trained model, or its name on the Hub")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default a GPU if there is one")


def load_model(name: str, device: str | None = None) -> HamSpkModel:
    """Load a speaker model for use.

    Args:
        name: a folder that `save_pretrained` wrote (such as a run's `final`), or a name on the Hub.
        device: of torch; None is a GPU if there is one.

    Returns:
        The model without its head, in evaluation mode.

    Raises:
        ValueError: there is no such model, it is of another kind, it is damaged or incomplete, or there is no such
            device.
    """
    target = _device(device)
    if not Path(name).is_dir():
        _refuse_path(name)
    config = _read_config(name)
    if config.get("model_type") != _MODEL_TYPE:
        raise ValueError(
            f"{name} holds a model of type {config.get('model_type')!r}; expected {_MODEL_TYPE!r}, a speaker model of "
            "this package. To start from a pretrained speech encoder, train on it: `hamspk train --backbone "
            f"{name} ...`."
        )
    # transformers reports the head, which is left out on purpose, and more at length.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, info = AutoModel.from_pretrained(name, trust_remote_code=False, output_loading_info=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"The weights of {name} cannot be read: {error}. Copy or download the model anew.") from error
    finally:
        logging.set_verbosity(verbosity)
    absent = sorted(info["missing_keys"])
    if absent:
        shown = ", ".join(absent[:_NAMES_SHOWN]) + (", ..." if len(absent) > _NAMES_SHOWN else "")
        raise ValueError(
            f"The weights of {name} lack {len(absent)} tensors that its config.json asks for ({shown}): the two files "
            "are not of the same model. Copy or download the model anew."
        )
    return model.eval().to(target)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"There is no device {name!r} here ({str(error).splitlines()[0]}). Try --device cpu."
        ) from error
    return torch.device(name)


def _refuse_path(name: str) -> None:
    """Refuse what is neither a folder nor possibly a name on the Hub."""
    if Path(name).exists():
        raise ValueError(f"{name} is a file; give the folder that holds config.json and model.safetensors.")
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ValueError(
            f"There is no folder {name}. Give a folder with config.json and model.safetensors, such as the folder "
            "'final' of a training run, or a name on the Hub, such as owner/name."
        )


def _read_config(name: str) -> dict:
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        found = [folder / run for run in _RUN_FOLDERS if (folder / run / "config.json").is_file()]
        hint = f" Did you mean {found[0]}?" if found else " Give one that save_pretrained wrote."
        raise ValueError(f"{name} is no model: the folder holds no config.json.{hint}")
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise ValueError(f"{folder / 'config.json'} cannot be read: {error}") from error
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        hub = (
            "the Hub cannot be asked, as HF_HUB_OFFLINE is set"
            if offline
            else "none of that name could be fetched from the Hub"
        )
        raise ValueError(
            f"There is no folder {name}, and {hub}. Give a folder with config.json and model.safetensors, such as the "
            "folder 'final' of a training run, or a name on the Hub. For a private model log in with `hf auth login`."
        ) from error
    return config
