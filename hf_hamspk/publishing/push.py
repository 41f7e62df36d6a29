"""The upload of a model to the Hub, as one commit."""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import HFValidationError, LocalTokenNotFoundError, validate_repo_id

from .about import About
from .contents import PICKLE_SUFFIXES, UploadPlan, is_managed_file, plan_upload

MESSAGE = "Upload a speaker model with its card"
_REPOSITORY_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
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

    All files go in one commit: an interrupted upload leaves the repository unchanged. Call the function again; files
    that have arrived are not sent again.

    Args:
        model_folder: written by `save_pretrained`.
        repository: `owner/name`; it is made if it is not there.
        private: whether a new repository is private. An existing one keeps its visibility, and a public one is
            refused unless this is False.
        run_folder: holds `recipe.yaml`, `evaluation.json` and `plots/` if the model folder does not.
        about: facts stated by the authors, for the card.
        licence: licence of the weights; takes precedence over the one in `about`.
        cohort: send the cohort, which is data of people.
        message: of the commit.
        api: client with another endpoint or token.

    Returns:
        The commit; its `oid` is the revision to pin.

    Raises:
        ValueError: see `plan_upload`; or the repository is public, or holds pickles.
        OSError: the Hub refuses, or the connection is lost.
    """
    check_repository(repository)
    stated = About() if about is None else about
    stated = stated if licence is None else replace(stated, licence=licence)
    return send(plan_upload(model_folder, repository, run_folder, stated, cohort), repository, private, message, api)


def check_repository(name: str) -> None:
    """Refuse a name that is not `owner/name`.

    Raises:
        ValueError: the name has another form, or is a folder.
    """
    if not _REPOSITORY_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name on the Hub; expected owner/name, such as alice/my-speaker-model.")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{name!r} is not a name on the Hub; expected owner/name. {error}") from error
    if Path(name).exists():
        raise ValueError(f"{name} is a folder here; expected owner/name on the Hub. The model folder comes first.")


def send(
    plan: UploadPlan, repository: str, private: bool = True, message: str = MESSAGE, api: HfApi | None = None
) -> CommitInfo:
    """Send the files of a plan.

    Files of an earlier push that the plan does not have are deleted in the same commit; other files stay.

    Raises:
        ValueError: the repository is public and `private` was asked for, or it holds pickles.
        OSError: the Hub refuses, or the connection is lost; the repository is unchanged.
    """
    client = HfApi() if api is None else api
    try:
        client.create_repo(repository, private=private, exist_ok=True)
        info = client.repo_info(repository)
        if private and info.private is False:
            raise ValueError(
                f"{repository} exists and is public. Give --public (private=False) to publish there, or make it "
                "private in its settings."
            )
        there = client.list_repo_files(repository)
        _refuse_pickles(repository, there)
        operations = [*_additions(plan), *(CommitOperationDelete(name) for name in stale_files(plan, there))]
        return client.create_commit(repository, operations, commit_message=message, parent_commit=info.sha)
    except ValueError:
        raise
    except LocalTokenNotFoundError as error:
        raise OSError("There is no token of the Hub here. Log in with `hf auth login`, or set HF_TOKEN.") from error
    except HfHubHTTPError as error:
        raise OSError(_explain(error, repository)) from error
    # The client's HTTP library has many errors for a lost connection, and the client wraps them in its own.
    except Exception as error:
        cause = error if error.__cause__ is None else error.__cause__
        raise OSError(
            f"The upload to {repository} broke off ({type(cause).__name__}: {cause}). Give the same command again: "
            "files that have arrived are not sent again, and the repository changes only when all are there."
        ) from error


def _additions(plan: UploadPlan) -> Iterable[CommitOperationAdd]:
    for file in plan.files:
        source = file.source if isinstance(file.source, bytes) else str(file.source)
        yield CommitOperationAdd(file.name, source)


def stale_files(plan: UploadPlan, there: Iterable[str]) -> list[str]:
    """The files in a repository that an earlier push may have written and the plan does not have."""
    return sorted(name for name in there if is_managed_file(name) and name not in plan.names)


def _refuse_pickles(repository: str, there: Iterable[str]) -> None:
    found = sorted(name for name in there if PurePosixPath(name).suffix.lower() in PICKLE_SUFFIXES)
    if found:
        raise ValueError(
            f"{repository} holds {', '.join(found[:3])}: pickles, which can run code when they are read. Delete them "
            f"there first (`hf repos delete-files {repository} {found[0]}`), or choose another name."
        )


def _explain(error: HfHubHTTPError, repository: str) -> str:
    status = error.response.status_code
    said = " ".join(str(error).split())
    if status == _NO_LOGIN or isinstance(error, RepositoryNotFoundError):
        return (
            f"Log in with `hf auth login`: the Hub does not know you, or your token cannot reach {repository}. {said}"
        )
    if status == _NO_RIGHT:
        return (
            f"You have no right to write to {repository}: check the owner's name and the rights of your token. {said}"
        )
    if status == _CONFLICT:
        return f"Somebody else changed {repository} meanwhile. Look at it, and give the command again. {said}"
    return f"The Hub refused the upload to {repository}: {said}. Nothing was changed there."
