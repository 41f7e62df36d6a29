"""Upload of a model to the Hub, in one commit."""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import HFValidationError, LocalTokenNotFoundError, validate_repo_id

from ..configuration_hamspk import HamSpkConfig
from ..folders.recognising import read_small_json
from .about import About
from .contents import CARD_FILE, PICKLE_SUFFIXES, UploadPlan, is_managed_file, plan_upload
from .facts import CONFIG_FILE

MESSAGE = "Upload a speaker model with its card"
_REPOSITORY_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
# Card that the website writes for a new repository: at most a block of metadata.
_ONLY_METADATA = re.compile(r"\s*(?:---\n(?:(?!---).*\n)*---\s*)?")
_NO_LOGIN, _NO_RIGHT, _CONFLICT = 401, 403, 412


def push_to_hub(
    model_folder: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = True,
    run_folder: str | os.PathLike[str] | None = None,
    about: About | None = None,
    licence: str | None = None,
    cohort: bool = True,
    message: str = MESSAGE,
    api: HfApi | None = None,
) -> CommitInfo:
    """Publish a model folder: weights, code, calibration, cohort, recipe, evaluation, plots, card and licence.

    All files are part of one commit, so an interrupted upload leaves the repository unchanged. After an interruption,
    call the function again. Files that have arrived are not sent again.

    Args:
        model_folder: folder written by `save_pretrained`.
        repository: name on the Hub, `owner/name`; a missing repository is created.
        private: whether a new repository is private. An existing repository keeps its visibility. If it is public, an
            error is raised unless `private` is False.
        run_folder: folder of the training run, with `recipe.yaml`, `evaluation.json` and `plots/` if the model folder
            lacks them.
        about: facts stated by the authors, for the card.
        licence: licence of the weights; it takes precedence over the licence in `about`.
        cohort: whether to send the cohort, which is biometric data.
        message: commit message.
        api: client of the Hub, for another endpoint or token.

    Returns:
        The commit; its `oid` is the revision to pin.

    Raises:
        ValueError: the folder cannot be published (see `plan_upload`), the name of the repository is invalid, the
            repository is public although `private` is True, or it contains pickles, or files but no model of this
            package.
        OSError: the Hub rejects the upload, or the connection is lost.
    """
    check_repository(repository)
    stated = About() if about is None else about
    stated = stated if licence is None else replace(stated, licence=licence)
    return send(plan_upload(model_folder, repository, run_folder, stated, cohort), repository, private, message, api)


def check_repository(name: str) -> None:
    """Check that a name has the form `owner/name`.

    Raises:
        ValueError: the name has another form, or is a local folder.
    """
    if not _REPOSITORY_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name on the Hub; expected owner/name, such as alice/my-speaker-model.")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{name!r} is not a name on the Hub; expected owner/name. {error}") from error
    if Path(name).exists():
        raise ValueError(
            f"Expected the name owner/name of a repository on the Hub, but {name} is a folder here. The first argument "
            "is the model folder, the second is the repository."
        )


def send(
    plan: UploadPlan, repository: str, private: bool = True, message: str = MESSAGE, api: HfApi | None = None
) -> CommitInfo:
    """Send the files of a plan in one commit.

    Files of an earlier push that are not in the plan are deleted in the same commit; other files are kept.

    Args:
        plan: files to send.
        repository: name on the Hub, `owner/name`; a missing repository is created.
        private: whether a new repository is private. An existing public repository is an error unless this is False.
        message: commit message.
        api: client of the Hub, for another endpoint or token.

    Returns:
        The commit.

    Raises:
        ValueError: the repository is public although `private` is True, or it contains pickles.
        OSError: the Hub rejects the upload, or the connection is lost; the repository is unchanged.
    """
    client = HfApi() if api is None else api
    try:
        client.create_repo(repository, private=private, exist_ok=True)
        info = client.repo_info(repository)
        if private and info.private is False:
            raise ValueError(
                f"{repository} already exists and is public. Give --public (private=False) to publish there, or make "
                "it private in its settings."
            )
        there = client.list_repo_files(repository)
        _refuse_pickles(repository, there)
        stale = stale_files(plan, there)
        _refuse_other_content(client, repository, info.sha, there, {*plan.names, *stale})
        operations = [*_additions(plan), *(CommitOperationDelete(name) for name in stale)]
        return client.create_commit(repository, operations, commit_message=message, parent_commit=info.sha)
    except ValueError:
        raise
    except LocalTokenNotFoundError as error:
        raise OSError("No access token of the Hub found. Log in with `hf auth login`, or set HF_TOKEN.") from error
    except HfHubHTTPError as error:
        raise OSError(_explain(error, repository)) from error
    # If the connection is lost, the HTTP library and the client raise many kinds of errors.
    except Exception as error:
        cause = error if error.__cause__ is None else error.__cause__
        raise OSError(
            f"The upload to {repository} broke off ({type(cause).__name__}: {cause}). Run the same command again. "
            "Files that have arrived are not sent again. The repository is unchanged until all files have arrived."
        ) from error


def _refuse_other_content(
    client: HfApi, repository: str, commit: str | None, there: Iterable[str], touched: set[str]
) -> None:
    """Raise ValueError if an upload would replace or delete files of a repository without a model of this package.

    A new repository contains `.gitattributes`, and a `README.md` that consists of metadata only if it was made on the
    website.
    """
    files = touched & set(there) - {".gitattributes"}
    if CONFIG_FILE in there:
        path = client.hf_hub_download(repository, CONFIG_FILE, revision=commit)
        if read_small_json(Path(path)).get("model_type") == HamSpkConfig.model_type:
            return
    elif files == {CARD_FILE}:
        path = client.hf_hub_download(repository, CARD_FILE, revision=commit)
        if _ONLY_METADATA.fullmatch(Path(path).read_text("utf-8", errors="replace")):
            return
    if files:
        raise ValueError(
            f"{repository} contains no model of this package, and the upload would replace other files in it "
            f"({min(files)}). Choose a new repository."
        )


def _additions(plan: UploadPlan) -> Iterable[CommitOperationAdd]:
    for file in plan.files:
        source = file.source if isinstance(file.source, bytes) else str(file.source)
        yield CommitOperationAdd(file.name, source)


def stale_files(plan: UploadPlan, there: Iterable[str]) -> list[str]:
    """Return the files in a repository that an earlier push may have written and that are not in the plan."""
    return sorted(name for name in there if is_managed_file(name) and name not in plan.names)


def _refuse_pickles(repository: str, there: Iterable[str]) -> None:
    found = sorted(name for name in there if PurePosixPath(name).suffix.lower() in PICKLE_SUFFIXES)
    if found:
        raise ValueError(
            f"{repository} contains pickles, which can run code when they are loaded: {', '.join(found[:3])}. Delete "
            f"them first (`hf repos delete-files {repository} {found[0]}`), or choose another repository."
        )


def _explain(error: HfHubHTTPError, repository: str) -> str:
    status = error.response.status_code
    said = " ".join(str(error).split())
    if status == _NO_LOGIN or isinstance(error, RepositoryNotFoundError):
        return (
            f"You are not logged in, or your token has no access to {repository}. Log in with `hf auth login`. {said}"
        )
    if status == _NO_RIGHT:
        return (
            f"You have no right to write to {repository}. Check the owner's name and the rights of your token. {said}"
        )
    if status == _CONFLICT:
        return (
            f"{repository} was changed by another commit during the upload. Check it, and run the command again. {said}"
        )
    return f"The Hub rejected the upload to {repository}: {said}. The repository is unchanged."
