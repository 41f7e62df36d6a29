"""What a name given for a model means: a folder, or a model on the Hub. Imports neither torch nor transformers."""

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

CONFIG_NAME = "config.json"
# owner/name or name, as the Hub allows them.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Folders of a training run that hold a model, best first.
RUN_FOLDERS = ("final", "best", "last")
# Longest wait for the Hub's answer to whether it has a model.
HUB_SECONDS = 5.0
WHAT_TO_GIVE = (
    "Give a folder with config.json and model.safetensors, such as the folder 'final' of a training run, or a name on "
    "the Hub, such as owner/name."
)


def check_model_name(name: str) -> None:
    """Refuse a name that is neither a folder with a model nor possibly a name on the Hub; asks no server.

    Raises:
        ValueError: says what to give instead.
    """
    folder = Path(name)
    if folder.is_dir():
        if (folder / CONFIG_NAME).is_file():
            return
        found = [folder / run for run in RUN_FOLDERS if (folder / run / CONFIG_NAME).is_file()]
        hint = f"Did you mean {found[0]}?" if found else "Give one that save_pretrained wrote."
        raise ValueError(f"{name} is no model: the folder holds no {CONFIG_NAME}. {hint}")
    if folder.exists():
        raise ValueError(f"{name} is a file; give the folder that holds config.json and model.safetensors.")
    if not HUB_NAME.fullmatch(name) or name.startswith("."):
        raise ValueError(f"There is no folder {name}. {WHAT_TO_GIVE}")


def check_model(name: str) -> None:
    """Refuse a name of which there is no model; asks the Hub about a name that is neither a folder nor in its cache.

    Raises:
        ValueError: as `find_model`.
    """
    check_model_name(name)
    if not Path(name).is_dir() and not is_cached(name):
        find_model(name)


def is_cached(name: str) -> bool:
    """Whether the local cache of the Hub holds the configuration file of a model."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, CONFIG_NAME), str)


def find_model(name: str) -> bool:
    """Whether a model is read from this machine alone: a folder, or the local cache if the Hub cannot be asked.

    The Hub is asked once, without retries, so that a misspelt name is answered at once without network, too.

    Returns:
        The value for `local_files_only` of transformers.

    Raises:
        ValueError: there is no such folder, and no such model on the Hub or in the local cache.
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
        f"There is no folder {name}, and the Hub cannot be asked ({problem}); its local cache holds no model of that "
        f"name either. {WHAT_TO_GIVE}"
    )


def _ask_hub(name: str) -> str | None:
    """Ask the Hub for a model's configuration file; returns why it could not be asked, or None if it has the file.

    Raises:
        ValueError: the Hub has no such model, or does not give it to this user.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(name, CONFIG_NAME), timeout=HUB_SECONDS)
            answer.append(None)
        # Besides its own errors, huggingface_hub raises those of its HTTP library, which differs between versions.
        except Exception as error:
            answer.append(error)

    # In a thread, because looking up the server's address has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    if not answer:
        return f"no answer within {HUB_SECONDS:g} s"
    error = answer[0]
    if error is None:
        return None
    if isinstance(error, GatedRepoError):
        raise ValueError(f"Access to {name} on the Hub must be granted first: {_first_line(error)}") from error
    if isinstance(error, RepositoryNotFoundError):
        raise ValueError(
            f"There is no folder {name}, and no model of that name on the Hub. {WHAT_TO_GIVE} For a private model log "
            "in with `hf auth login`."
        ) from error
    if isinstance(error, EntryNotFoundError):
        raise ValueError(f"{name} on the Hub is no model: it holds no {CONFIG_NAME}.") from error
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"it answered with status {error.response.status_code}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    lines = str(error).split("\n")
    return lines[0].strip().rstrip(".") if lines[0].strip() else type(error).__name__


def read_config(name: str, local: bool) -> dict[str, Any]:
    """The content of a model's `config.json`, by the file itself or by huggingface_hub.

    Args:
        name: folder, or name on the Hub.
        local: ask no server.

    Raises:
        ValueError: it cannot be fetched, or is no JSON object.
    """
    path = Path(name) / CONFIG_NAME
    try:
        if not Path(name).is_dir():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(name, CONFIG_NAME, local_files_only=local))
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        where = path if Path(name).is_dir() else f"{CONFIG_NAME} of {name}"
        raise ValueError(f"{where} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{os.fspath(path)} holds no JSON object; expected the configuration of a model.")
    return content


def check_recipe(path: str) -> None:
    """Refuse a recipe that is not there.

    Raises:
        ValueError: there is no such file.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no recipe {path}. Expected a YAML file, followed by --key value pairs.")
