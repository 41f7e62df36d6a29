"""Facts of a model card, gathered from the files of a model or from a recipe, and stored as JSON."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from ..calibration_hamspk import CALIBRATION_FILE, CHECKSUM, COHORT_FILE
from ..configuration_hamspk import ENCODERS, HamSpkConfig
from ..encoders_hamspk import OVERLAP_FILE, OverlapDetector
from ..evaluation.results import EVALUATION_FILE, EvaluationRecord
from ..files.yaml_files import load_yaml
from .about import About

CARD_SCHEMA = 1
CONFIG_FILE, RECIPE_FILE = "config.json", "recipe.yaml"
WEIGHTS_FILE, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# Fields of the backbone's configuration that the facts include.
_OF_BACKBONE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")
# Recipe arguments whose value is the name of a model on the Hub or a folder.
_STARTS = ("backbone", "initial_model")
_HEAD = "head."


@dataclass(frozen=True)
class CardFacts:
    """All facts that a card is rendered from.

    Attributes:
        name: name of the model in the code examples: a name on the Hub, or the folder that the training run writes.
        published: whether `name` is a name on the Hub.
        config: configuration of the model, without the names of training speakers.
        evaluation: content of `evaluation.json`; None if the model was not evaluated.
        verification: content of `verification.json`; None if the model is not calibrated.
        recipe: training recipe, with paths shortened to their last part; None if unknown.
        weights: number of stored values without the training head (`numbers`), and file size (`bytes`); None if the
            model has no weights.
        cohort: number of embeddings in the published cohort; None if no cohort is published.
        overlap_detector: `origin` and `licence` of the overlap detector; None if the folder contains none.
        about: facts stated by the authors.
    """

    name: str
    published: bool
    config: dict[str, Any]
    evaluation: dict[str, Any] | None = None
    verification: dict[str, Any] | None = None
    recipe: dict[str, Any] | None = None
    weights: dict[str, int] | None = None
    cohort: int | None = None
    overlap_detector: dict[str, str | None] | None = None
    about: About = field(default_factory=About)

    @property
    def title(self) -> str:
        """Title of the card."""
        if self.about.title is not None:
            return self.about.title
        return PurePosixPath(self.name).name if self.published else "Speaker verification with HAM-Softmax"

    def to_json(self) -> str:
        """Return the facts as JSON; the same facts give the same text."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)} | {
            "about": self.about.to_dict()
        }
        if self.overlap_detector is None:
            del values["overlap_detector"]
        return json.dumps({"schema": CARD_SCHEMA} | values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> "CardFacts":
        """Create the facts from the text that `to_json` returned.

        Args:
            text: JSON text.
            where: source of the text, named in error messages.

        Raises:
            ValueError: the text is not JSON, has another schema, or does not contain the facts of a card.
        """
        try:
            values = json.loads(text)
            schema = values.pop("schema")
            if schema != CARD_SCHEMA:
                raise ValueError(
                    f"Expected schema {CARD_SCHEMA} in {where}, got {schema!r:.80}. Render the card from the model "
                    "again."
                )
            about = About.from_dict(values.pop("about", {}), f"{where}: about")
            if values.get("evaluation") is not None:
                record = EvaluationRecord.from_dict(values["evaluation"], f"{where}: evaluation")
                values["evaluation"] = record.to_dict()
            for key in ("config", "verification", "recipe", "weights", "overlap_detector"):
                if not isinstance(values.get(key, {}), dict | None):
                    raise TypeError(f"{key} is a {type(values[key]).__name__}, expected a JSON object")
            return cls(**values, about=about)
        except (TypeError, KeyError, AttributeError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(f"{where} does not contain the facts of a card: {error!r:.400}.") from error


def gather_facts(
    model_folder: str | os.PathLike[str],
    name: str | None = None,
    run_folder: str | os.PathLike[str] | None = None,
    about: About | None = None,
    with_cohort: bool = True,
) -> CardFacts:
    """Gather the facts of a trained model.

    Args:
        model_folder: folder written by `save_pretrained`.
        name: name on the Hub; None if the model is not published. The code examples then use the folder of the recipe,
            or the name of the model folder if there is no recipe.
        run_folder: folder of the training run, with `recipe.yaml` and `evaluation.json` if the model folder lacks them.
        about: facts stated by the authors.
        with_cohort: whether the cohort is published.

    Raises:
        ValueError: a file cannot be read.
    """
    folder = Path(model_folder)
    recipe_file = find_file(RECIPE_FILE, folder, run_folder)
    evaluation_file = find_file(EVALUATION_FILE, folder, run_folder)
    calibration_file = find_file(CALIBRATION_FILE, folder, None)
    recipe = None if recipe_file is None else read_public_recipe(recipe_file)
    record = None if evaluation_file is None else EvaluationRecord.read(evaluation_file)
    verification = None if calibration_file is None else read_json_object(calibration_file)
    if not with_cohort and verification is not None and needs_cohort(verification):
        verification = None
    if record is not None:
        _drop_other_decisions(record, verification)
    cohort_file, detector_file = folder / COHORT_FILE, folder / OVERLAP_FILE
    detector = OverlapDetector.load(detector_file) if detector_file.is_file() else None
    return CardFacts(
        name=name if name is not None else folder.resolve().name if recipe is None else _recipe_model(recipe),
        published=name is not None,
        config=_card_config(read_json_object(folder / CONFIG_FILE)),
        evaluation=None if record is None else record.to_dict(),
        verification=verification,
        recipe=recipe,
        weights=measure_weights(weight_files(folder)),
        cohort=_count_rows(cohort_file) if with_cohort and cohort_file.is_file() else None,
        overlap_detector=None if detector is None else {"origin": detector.origin, "licence": detector.licence},
        about=About() if about is None else about,
    )


def facts_of_recipe(recipe_file: str | os.PathLike[str], about: About | None = None) -> CardFacts:
    """Gather the facts of a recipe that was not run: a configuration without weights or measured numbers.

    Raises:
        ValueError: the recipe cannot be read, or its configuration of the model is invalid.
    """
    recipe = read_public_recipe(Path(recipe_file))
    given = {key: value for key, value in recipe.items() if key in _config_fields()}
    is_pretrained = recipe.get("backbone") not in (None, *ENCODERS)
    if is_pretrained:
        del given["backbone"]
    try:
        config = given if is_pretrained else HamSpkConfig(**given).to_dict()
    except StrictDataclassError as error:
        raise ValueError(f"{recipe_file}: {error if error.__cause__ is None else error.__cause__}") from error
    return CardFacts(
        name=_recipe_model(recipe),
        published=False,
        config=_card_config(config),
        recipe=recipe,
        about=About() if about is None else about,
    )


def _recipe_model(recipe: Mapping[str, Any] | None) -> str:
    """Return the folder that a training run with this recipe writes its model to."""
    return f"runs/{'hamspk' if recipe is None else recipe.get('output_dir', 'hamspk')}/final"


def find_file(name: str, model_folder: Path, run_folder: str | os.PathLike[str] | None) -> Path | None:
    """Return the path of a file in the model folder, or else in the run folder; None if neither contains it."""
    for folder in (model_folder, run_folder):
        if folder is not None and (Path(folder) / name).is_file():
            return Path(folder) / name
    return None


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        ValueError: the file is missing, is not JSON, or contains no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"Expected a JSON object in {path}, got a {type(values).__name__}.")
    return values


def _drop_other_decisions(record: EvaluationRecord, verification: Mapping[str, Any] | None) -> None:
    """Replace decisions by a note if they were measured with a calibration other than the published one."""
    published = None if verification is None else verification.get(CHECKSUM)
    for values in record.lists.values():
        decisions = values.get("decisions")
        if decisions and decisions.get("calibration") not in (None, published):
            values["decisions"] = {
                "note": "they were measured with a calibration that is not the published calibration"
            }


def needs_cohort(verification: Mapping[str, Any]) -> bool:
    """Return whether a calibration needs scores that are normalised with a cohort."""
    return verification.get("normalisation", "none") != "none"


def read_public_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe, and remove the folders of the machine that ran it.

    Each path is shortened to its last part. URLs, and names on the Hub in `backbone` and `initial_model`, are kept.

    Raises:
        ValueError: the file is missing or is not a YAML mapping.
    """
    try:
        values = load_yaml(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"Expected 'key: value' lines in {path}, got a {type(values).__name__}.")
    return {str(key): _without_folders(str(key), value) for key, value in values.items()}


def _without_folders(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_without_folders(key, one) for one in value]
    if not isinstance(value, str) or ("://" in value and not value.startswith("file:")):
        return value
    local = value.startswith((".", "/", "~")) or os.path.exists(os.path.expanduser(value))
    if key in _STARTS and value.count("/") == 1 and not local:
        return value
    return value.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _config_fields() -> set[str]:
    """Return the fields of `HamSpkConfig` that its base class in transformers lacks."""
    return {one.name for one in dataclasses.fields(HamSpkConfig)} - {
        one.name for one in dataclasses.fields(PreTrainedConfig)
    }


def _card_config(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: values[key] for key in sorted(_config_fields() & values.keys()) if values[key] is not None}
    if isinstance(values.get("id2label"), Mapping):
        kept["num_labels"] = len(values["id2label"])
    backbone = values.get("backbone_config")
    if isinstance(backbone, Mapping):
        kept["backbone_config"] = {key: backbone[key] for key in _OF_BACKBONE if key in backbone}
    return kept


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder: a single file, or the files that an index lists.

    Raises:
        ValueError: the folder contains no weights, or a file in the index is missing.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / WEIGHTS_INDEX).is_file():
        raise ValueError(
            f"No {WEIGHTS_FILE} in {folder}. Give a folder that save_pretrained wrote; weights in other formats are "
            "not published."
        )
    parts = sorted(set(read_json_object(folder / WEIGHTS_INDEX).get("weight_map", {}).values()))
    missing = [name for name in parts if Path(name).name != name or not (folder / name).is_file()]
    if missing or not parts:
        raise ValueError(
            f"{folder / WEIGHTS_INDEX} must list weight files in its own folder, but it lists "
            f"{missing if parts else 'no files'}."
        )
    return [folder / name for name in parts]


def measure_weights(files: list[Path]) -> dict[str, int]:
    """Measure the size of the weights.

    Returns:
        Number of stored values without the training head (`numbers`), and size of all files (`bytes`).

    Raises:
        ValueError: a file is not a safetensors file.
    """
    numbers = 0
    for path in files:
        try:
            with safe_open(path, "np") as file:
                for name in file.keys():  # noqa: SIM118
                    if not name.startswith(_HEAD):
                        numbers += math.prod(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
    return {"numbers": numbers, "bytes": sum(path.stat().st_size for path in files)}


def _count_rows(path: Path) -> int:
    try:
        with safe_open(path, "np") as file:
            return file.get_slice("embeddings").get_shape()[0]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a cohort: {error}") from error
