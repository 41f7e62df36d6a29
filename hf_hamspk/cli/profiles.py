"""Save profiles without replacing profiles of other recordings, and find recordings that two profiles share."""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..folders.addresses import is_store
from ..folders.recognising import is_profile_file, safetensors_metadata
from .options import LONGEST_NAME, PROFILE_EXTENSION

if TYPE_CHECKING:
    from ..modeling_hamspk import HamSpkModel
    from ..search import SpeakerStore
    from ..verification_hamspk import SpeakerProfile


def add_replace_argument(parser: argparse.ArgumentParser) -> None:
    """Add --replace, the argument of the commands that write profiles."""
    parser.add_argument(
        "--replace",
        action="store_true",
        help="replace an existing profile of the same name, even if it was made from other recordings",
    )


def is_profile_name(name: str) -> bool:
    """Return whether the name of a speaker can become the name of a file in a folder of profiles."""
    return Path(name).name == name not in ("", "..") and "\0" not in name and len(os.fsencode(name)) <= LONGEST_NAME


def check_profile_name(name: str, place: str) -> None:
    """Raise ValueError if the name of a speaker cannot become a file name; the message begins with `place`."""
    if not is_profile_name(name):
        raise ValueError(
            f"{place} must not be empty or longer than {LONGEST_NAME} bytes and must not contain a folder, because it "
            f"becomes a file name, got {name!r:.100}."
        )


def save_profile(profile: "SpeakerProfile", path: Path, can_replace: bool) -> None:
    """Save a profile, unless this would replace a profile that was made from other recordings.

    Args:
        profile: profile to save.
        path: path of the file.
        can_replace: whether to replace any existing profile.

    Raises:
        ValueError: the existing profile was made from other recordings, or cannot be read. It is not replaced.
    """
    if path.exists() and not can_replace:
        earlier = profile.load(path)
        if set(earlier.recordings) != set(profile.recordings):
            raise ValueError(
                f"{path} is not replaced, because it was made from other recordings, perhaps of another person. Choose "
                "another name, or replace it with --replace."
            )
    profile.save(path)


class ProfileFolder:
    """Folder in which profiles are saved. It finds recordings that are in the profiles of two speakers.

    Args:
        folder: path of the folder, which is created if it is missing.
        can_replace: whether profiles of other recordings are replaced.
    """

    def __init__(self, folder: Path, can_replace: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._can_replace = folder, can_replace
        self._saved: dict[str, SpeakerProfile] = {}
        # Name of the profile that contains a recording, which is given by the SHA-256 of its samples.
        self._owners: dict[str, str] = {}
        for path in sorted(folder.glob(f"*{PROFILE_EXTENSION}")):
            if is_profile_file(path):
                recordings = json.loads(safetensors_metadata(path)["description"]).get("recordings")
                self._owners |= dict.fromkeys(map(str, recordings if isinstance(recordings, list) else ()), path.stem)

    def save(self, profile: "SpeakerProfile") -> "SpeakerProfile":
        """Save a profile under its name, and return it.

        If another profile has one of its recordings, the profile gets a warning. The other profile gets it as well if
        it was saved by this object.

        Raises:
            ValueError: the name cannot become a file name, or another profile would be replaced (see `save_profile`).
        """
        name = "" if profile.name is None else profile.name
        check_profile_name(name, "The name of a speaker")
        owners = {self._owners[one] for one in profile.recordings if self._owners.get(one, name) != name}
        for other in sorted(owners):
            profile = _with_warning(profile, other)
        save_profile(profile, self._path(name), self._can_replace)
        for other in owners & self._saved.keys():
            self._saved[other] = _with_warning(self._saved[other], name)
            self._saved[other].save(self._path(other))
        self._saved[name] = profile
        # The profile that this one replaced may have had other recordings.
        others = {recording: owner for recording, owner in self._owners.items() if owner != name}
        self._owners = others | dict.fromkeys(profile.recordings, name)
        return profile

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{PROFILE_EXTENSION}"


class ProfileStore:
    """Database in which profiles are saved, one transaction each.

    Args:
        store: opened database.
        can_replace: whether profiles of other recordings are replaced.
    """

    def __init__(self, store: "SpeakerStore", can_replace: bool):
        self._store, self._can_replace = store, can_replace

    def save(self, profile: "SpeakerProfile") -> "SpeakerProfile":
        """Save a profile under its name, and return it.

        Raises:
            ValueError: a speaker of this name is enrolled with other recordings, and must not be replaced.
        """
        earlier = None if self._can_replace else self._store.find(str(profile.name))
        is_same = earlier is not None and set(earlier.recordings) == set(profile.recordings)
        try:
            self._store.add_profiles([profile], self._can_replace or is_same)
        except ValueError as error:
            reason = "" if earlier is None else " That profile has other recordings, perhaps of another person."
            raise ValueError(f"{error}{reason} To replace it, use --replace.") from error
        return profile


def open_profiles(address: str, model: "HamSpkModel", can_replace: bool) -> ProfileFolder | ProfileStore:
    """Open a folder or a database for the profiles of a model, and create it if it is missing.

    Raises:
        ValueError: the database cannot be used, or contains the speakers of another model.
    """
    if not is_store(address):
        return ProfileFolder(Path(address), can_replace)
    from ..search import SpeakerStore

    return ProfileStore(SpeakerStore.open(address, model, create=True), can_replace)


def _with_warning(profile: "SpeakerProfile", other: str) -> "SpeakerProfile":
    warning = f"One of the recordings is also in the profile of {other}. Check who speaks in it."
    return replace(profile, warnings=(*profile.warnings, warning))
