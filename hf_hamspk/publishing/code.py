"""Code files of the installed package that a model folder needs, for an upload and after a calibration."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from ..configuration_hamspk import HamSpkConfig
from ..folders.writing import write_atomically
from ..loading.models import quiet_transformers
from ..modeling_hamspk import HamSpkModel
from ..pipeline_hamspk import announce_pipeline
from .facts import CONFIG_FILE, read_json_object

CODE_FOLDER = Path(__file__).parents[1]
# Keys of the configuration that tell transformers where to find the code.
_NAMING = ("auto_map", "custom_pipelines")


@dataclass(frozen=True)
class TravellingCode:
    """Code files that transformers needs to load a model without this package.

    Attributes:
        config: configuration of the model, with the references to the code files.
        files: maps the name of each code file to its path in this package.
        changed: names of the files that are missing in the model folder or differ from these files; may include
            `config.json`.
    """

    config: dict[str, Any]
    files: dict[str, Path]
    changed: list[str]


def travelling_code(folder: Path) -> TravellingCode:
    """Return the code files of this package that a model folder needs.

    Raises:
        ValueError: the code in the folder differs from the package's code, and the model does not load with the latter.
    """
    saved = read_json_object(folder / CONFIG_FILE)
    fresh = HamSpkConfig()
    announce_pipeline(fresh)
    naming = json.loads(json.dumps({key: getattr(fresh, key) for key in _NAMING}))
    modules = {reference.partition(".")[0] for reference in fresh.auto_map.values()} if fresh.auto_map else set()
    modules |= {part["impl"].partition(".")[0] for part in naming["custom_pipelines"].values()}
    files: dict[str, Path] = {}
    for module in sorted(modules):
        path = CODE_FOLDER / f"{module}.py"
        files |= {Path(one).name: Path(one) for one in (path, *get_relative_import_files(path))}
    changed = [name for name, path in sorted(files.items()) if not _has_content_of(folder / name, path)]
    if any(saved.get(key) != value for key, value in naming.items()):
        changed.append(CONFIG_FILE)
    if changed:
        _check_loads(folder)
    return TravellingCode(saved | naming, files, changed)


def renew_code(folder: Path) -> list[str]:
    """Replace the code in a model folder by the code of this package.

    Returns:
        The names of the files that were replaced; empty if all files were up to date.

    Raises:
        ValueError: the model does not load with the package's code. In this case nothing is written.
    """
    code = travelling_code(folder)
    for name in code.changed:
        content = dump_config(code.config) if name == CONFIG_FILE else code.files[name].read_bytes()
        write_atomically(folder / name, lambda path, content=content: path.write_bytes(content))
    return code.changed


def dump_config(config: Mapping[str, Any]) -> bytes:
    """Return the bytes of a `config.json`, in the format of transformers."""
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _has_content_of(one: Path, other: Path) -> bool:
    return one.is_file() and one.read_bytes() == other.read_bytes()


def _check_loads(folder: Path) -> None:
    """Raise ValueError if a model does not load with the code of this package."""
    remedy = (
        f"The code in {folder} differs from the code of the installed package, and the model does not load with the "
        "installed code. Install the version of the package that saved the model."
    )
    try:
        with quiet_transformers():
            loaded: Any = HamSpkModel.from_pretrained(folder, calibrated=False, output_loading_info=True)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{remedy} ({error})") from error
    absent = sorted(loaded[1]["missing_keys"])
    if absent:
        raise ValueError(f"{remedy} ({len(absent)} tensors are missing: {', '.join(absent[:3])})")
