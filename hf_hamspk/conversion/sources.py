"""Recognises the source of a checkpoint and converts it."""

from collections.abc import Callable
from pathlib import Path

import yaml
from huggingface_hub.repocard import metadata_load

from .building import Converted
from .checkpoints import read_tensors
from .official import convert_official, is_official
from .speechbrain import SPEECHBRAIN_YAML, convert_speechbrain
from .wespeaker import WESPEAKER_YAML, convert_wespeaker
from .xvector import XVECTOR_JSON, convert_xvector, is_xvector, read_settings

SOURCES: dict[str, Callable[[Path], Converted]] = {
    "speechbrain": convert_speechbrain,
    "wespeaker": convert_wespeaker,
    "official": convert_official,
    "xvector": convert_xvector,
}
_README = "README.md"
_EXPECTED = (
    f"Expected a folder with {SPEECHBRAIN_YAML} (SpeechBrain), {WESPEAKER_YAML} (WeSpeaker) or "
    f"{XVECTOR_JSON} of a *ForXVector model (transformers), or a checkpoint file of the released code"
)


def convert(source: Path, kind: str | None = None) -> Converted:
    """Convert a local checkpoint.

    Args:
        source: a folder as its project lays it out, or a checkpoint file of the released code.
        kind: a key of `SOURCES`; None recognises it by the files.

    Raises:
        ValueError: there is no such source, it is not recognised, or it cannot be read or converted.
    """
    if not source.exists():
        raise ValueError(f"There is no file or folder {source}. Only local files are converted: download them first.")
    if kind is None:
        kind = detect(source)
    if kind not in SOURCES:
        raise ValueError(f"There is no kind of source {kind!r}; known are {', '.join(SOURCES)}.")
    if source.is_dir() and kind == "official":
        raise ValueError(f"{source} is a folder; give the checkpoint file of the released code, such as exps/x.model.")
    if source.is_file() and kind != "official":
        source = source.parent
    return SOURCES[kind](source)


def detect(source: Path) -> str:
    """The key of `SOURCES` that fits the files.

    Raises:
        ValueError: none does, or it is a model of this package already.
    """
    folder = source if source.is_dir() else source.parent
    if (folder / SPEECHBRAIN_YAML).is_file():
        return "speechbrain"
    if (folder / WESPEAKER_YAML).is_file():
        return "wespeaker"
    if (folder / XVECTOR_JSON).is_file():
        settings = read_settings(folder / XVECTOR_JSON)
        if settings.get("model_type") == "hamspk":
            raise ValueError(f"{folder} is a model of this package already; it needs no conversion.")
        if is_xvector(settings):
            return "xvector"
        raise ValueError(
            f"{folder} holds a {settings.get('architectures')} of type {settings.get('model_type')!r}, which is no "
            "*ForXVector model. To start from a pretrained speech encoder, train on it: `hamspk train --backbone ...`."
        )
    if source.is_file() and is_official(read_tensors(source)):
        return "official"
    raise ValueError(f"{source} is not recognised. {_EXPECTED}. Choose with --from {'|'.join(SOURCES)}.")


def stated_licence(source: Path) -> str | None:
    """The licence in the metadata of the `README.md` beside the source; None if there is none."""
    readme = (source if source.is_dir() else source.parent) / _README
    if not readme.is_file():
        return None
    try:
        metadata = metadata_load(readme)
    except (ValueError, yaml.YAMLError, UnicodeDecodeError):
        # A broken description is no reason to refuse the weights; the licence stays unknown.
        return None
    licence = metadata.get("license") if isinstance(metadata, dict) else None
    return licence if isinstance(licence, str) else None
