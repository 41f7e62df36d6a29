"""Find a model from its folder or its name on the Hub. This module imports neither torch nor transformers."""

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

CONFIG_NAME = "config.json"
# Names of the form owner/name or name, as on the Hub.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Folders of a training run that contain a model, in order of preference.
RUN_FOLDERS = ("final", "best", "last")
# Longest time to wait for an answer of the Hub, in seconds.
HUB_SECONDS = 5.0
WHAT_TO_GIVE = (
    "Give a folder with config.json and model.safetensors, such as the folder 'final' of a training run, or a name on "
    "the Hub, such as owner/name."
)


def check_model_name(name: str) -> None:
    """Check that `name` is a folder that contains a model, or has the form of a name on the Hub.

    The check needs no network access, so it does not find out whether the Hub has a model with this name.

    Raises:
        ValueError: `name` is not a model folder and does not have the form of a name on the Hub.
    """
    folder = Path(name)
    if folder.is_dir():
        if (folder / CONFIG_NAME).is_file():
            return
        found = [folder / run for run in RUN_FOLDERS if (folder / run / CONFIG_NAME).is_file()]
        hint = f"Did you mean {found[0]}?" if found else "Give a folder that save_pretrained wrote."
        raise ValueError(f"{name} is not a model: the folder contains no {CONFIG_NAME}. {hint}")
    if folder.exists():
        raise ValueError(
            f"Expected a model folder, but {name} is a file. Give the folder that contains config.json and "
            "model.safetensors."
        )
    if not HUB_NAME.fullmatch(name) or name.startswith("."):
        raise ValueError(f"Model folder not found: {name}. {WHAT_TO_GIVE}")


def check_model(name: str) -> None:
    """Check that a model exists in a folder, in the local cache or on the Hub.

    The Hub is asked only if `name` is not a folder and the model is not in the local cache.

    Raises:
        ValueError: the model is not found (see `find_model`).
    """
    check_model_name(name)
    if not Path(name).is_dir() and not is_cached(name):
        find_model(name)


def is_cached(name: str) -> bool:
    """Return whether the local cache of Hub files contains the configuration file of a model."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, CONFIG_NAME), str)


def find_model(name: str) -> bool:
    """Check that a model exists, and return whether it must be loaded without the Hub.

    The model can be in a folder, on the Hub or, if the Hub cannot be reached, in the local cache. The Hub is asked
    once, without retries, so that a misspelt name is reported quickly even without a network.

    Returns:
        Value for the argument `local_files_only` of transformers: True if the model is in a folder, or if only the
        local cache has it; False if the Hub has it.

    Raises:
        ValueError: the model is neither in a folder nor on the Hub nor in the local cache.
    """
    check_model_name(name)
    if Path(name).is_dir():
        return True
    from huggingface_hub import constants

    problem = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _ask_hub(name)
    if problem is None:
        return False
    if is_cached(name):
        return True
    raise ValueError(
        f"Model not found: {name}. It is neither a folder nor in the local cache of the Hub, and the Hub cannot be "
        f"reached ({problem}). {WHAT_TO_GIVE}"
    )


def _ask_hub(name: str) -> str | None:
    """Ask the Hub whether a model exists there.

    Returns:
        None if the Hub contains the configuration file of the model; otherwise the reason why the Hub did not answer.

    Raises:
        ValueError: the Hub contains no such model, or the user has no access to it.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(name, CONFIG_NAME), timeout=HUB_SECONDS)
            answer.append(None)
        # huggingface_hub also raises the errors of its HTTP library, and this library differs between its versions.
        except Exception as error:
            answer.append(error)

    # The request runs in a thread, because the look-up of the server's address has no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    if not answer:
        return f"no answer within {HUB_SECONDS:g} s"
    error = answer[0]
    if error is None:
        return None
    if isinstance(error, GatedRepoError):
        raise ValueError(f"Request access to {name} on the Hub first: {_first_line(error)}") from error
    if isinstance(error, RepositoryNotFoundError):
        raise ValueError(
            f"Model not found: {name} is neither a folder nor a model on the Hub. {WHAT_TO_GIVE} For a private model, "
            "log in with `hf auth login`."
        ) from error
    if isinstance(error, EntryNotFoundError):
        raise ValueError(f"{name} on the Hub is not a model: the repository contains no {CONFIG_NAME}.") from error
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"it answered with status {error.response.status_code}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    lines = str(error).split("\n")
    return lines[0].strip().rstrip(".") if lines[0].strip() else type(error).__name__


def read_config(name: str, local: bool) -> dict[str, Any]:
    """Read the `config.json` of a model in a folder or on the Hub.

    Args:
        name: model folder, or name on the Hub.
        local: whether to use local files only, without network access.

    Raises:
        ValueError: the file cannot be downloaded or read, or does not contain a JSON object.
    """
    path = Path(name) / CONFIG_NAME
    try:
        if not Path(name).is_dir():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(name, CONFIG_NAME, local_files_only=local))
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        where = path if Path(name).is_dir() else f"{CONFIG_NAME} of {name}"
        raise ValueError(f"{where} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{os.fspath(path)} must contain a JSON object with the configuration of a model, got a "
            f"{type(content).__name__}."
        )
    return content


def check_recipe(path: str) -> None:
    """Check that the file of a training recipe exists.

    Raises:
        ValueError: the file does not exist.
    """
    if not Path(path).is_file():
        raise ValueError(f"Recipe not found: {path}. Expected a YAML file, then any --key value pairs.")
