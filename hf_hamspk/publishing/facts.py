"""The facts of a model, gathered from its files: the JSON that a card is rendered from."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from ..calibration_hamspk import CALIBRATION_FILE, CHECKSUM, COHORT_FILE
from ..configuration_hamspk import HamSpkConfig
from ..evaluation.results import EVALUATION_FILE, EvaluationRecord
from .about import About

CARD_SCHEMA = 1
CONFIG_FILE, RECIPE_FILE = "config.json", "recipe.yaml"
WEIGHTS_FILE, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# Fields of a backbone's configuration that a card keeps.
_OF_BACKBONE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")
# Arguments of a recipe that name a model on the Hub or a folder.
_STARTS = ("backbone", "initial_model")
_HEAD = "head."


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card says.

    Attributes:
        name: what the snippets load: a name on the Hub, or the folder that a recipe writes its model to.
        published: whether `name` is on the Hub.
        config: configuration of the model, without the names of training speakers.
        evaluation: content of `evaluation.json`; None if the model was not evaluated.
        verification: content of `verification.json`; None if the model is not calibrated.
        recipe: training recipe, without folders; None if unknown.
        weights: `numbers` stored (without the training head) and `bytes`; None if there are no weights.
        cohort: number of embeddings in the published cohort; None without one.
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
    about: About = field(default_factory=About)

    @property
    def title(self) -> str:
        """Heading of the card."""
        if self.about.title is not None:
            return self.about.title
        return PurePosixPath(self.name).name if self.published else "Speaker verification with HAM-Softmax"

    def to_json(self) -> str:
        """The facts as JSON: the same text for the same facts."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)} | {
            "about": self.about.to_dict()
        }
        return json.dumps({"schema": CARD_SCHEMA} | values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> "CardFacts":
        """Facts from the text that `to_json` returned.

        Raises:
            ValueError: not JSON, another schema, or not the facts of a card.
        """
        try:
            values = json.loads(text)
            schema = values.pop("schema")
            if schema != CARD_SCHEMA:
                raise ValueError(
                    f"{where} has schema {schema!r}; this version reads {CARD_SCHEMA}. Render the card again."
                )
            about = About.from_dict(values.pop("about", {}), f"{where}: about")
            if values.get("evaluation") is not None:
                record = EvaluationRecord.from_dict(values["evaluation"], f"{where}: evaluation")
                values["evaluation"] = record.to_dict()
            return cls(**values, about=about)
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{where} does not hold the facts of a card: {error!r}.") from error


def gather_facts(
    model_folder: str | os.PathLike[str],
    name: str | None = None,
    run_folder: str | os.PathLike[str] | None = None,
    about: About | None = None,
    with_cohort: bool = True,
) -> CardFacts:
    """The facts of a trained model.

    Args:
        model_folder: written by `save_pretrained`.
        name: on the Hub; None for a model that is not there, the snippets then name the folder of the recipe.
        run_folder: holds `recipe.yaml` and `evaluation.json` if the model folder does not.
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
    cohort_file = folder / COHORT_FILE
    return CardFacts(
        name=_recipe_model(recipe) if name is None else name,
        published=name is not None,
        config=_card_config(read_json_object(folder / CONFIG_FILE)),
        evaluation=None if record is None else record.to_dict(),
        verification=verification,
        recipe=recipe,
        weights=measure_weights(weight_files(folder)),
        cohort=_count_rows(cohort_file) if with_cohort and cohort_file.is_file() else None,
        about=About() if about is None else about,
    )


def facts_of_recipe(recipe_file: str | os.PathLike[str], about: About | None = None) -> CardFacts:
    """The facts of a recipe that was not run: a configuration, and no numbers.

    Raises:
        ValueError: the recipe cannot be read, or its model is refused.
    """
    recipe = read_public_recipe(Path(recipe_file))
    given = {key: value for key, value in recipe.items() if key in _config_fields()}
    try:
        config = HamSpkConfig(**given).to_dict() if "backbone" not in recipe else given
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
    """The folder that a training run writes its model to."""
    return f"runs/{'hamspk' if recipe is None else recipe.get('output_dir', 'hamspk')}/final"


def find_file(name: str, model_folder: Path, run_folder: str | os.PathLike[str] | None) -> Path | None:
    """A file of the model folder, or of the run folder if it is not there; None if it is in neither."""
    for folder in (model_folder, run_folder):
        if folder is not None and (Path(folder) / name).is_file():
            return Path(folder) / name
    return None


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: no such file, not JSON, or not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object; it holds a {type(values).__name__}.")
    return values


def _drop_other_decisions(record: EvaluationRecord, verification: Mapping[str, Any] | None) -> None:
    """Replace decisions that were measured with another calibration than the published one by a note."""
    published = None if verification is None else verification.get(CHECKSUM)
    for values in record.lists.values():
        decisions = values.get("decisions")
        if decisions and decisions.get("calibration") not in (None, published):
            values["decisions"] = {"note": "they were measured with another calibration than that of this model"}


def needs_cohort(verification: Mapping[str, Any]) -> bool:
    """Whether a calibration is one of scores normalised with a cohort."""
    return verification.get("normalisation", "none") != "none"


def read_public_recipe(path: Path) -> dict[str, Any]:
    """A recipe without the folders of the machine that ran it.

    Every path is cut to its last part; a name on the Hub (of `backbone` or `initial_model`) and a URL stay.

    Raises:
        ValueError: no such file, or not a YAML mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold 'key: value' lines; it holds a {type(values).__name__}.")
    return {str(key): _without_folders(str(key), value) for key, value in values.items()}


def _without_folders(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_without_folders(key, one) for one in value]
    if not isinstance(value, str) or ("://" in value and not value.startswith("file:")):
        return value
    local = value.startswith((".", "/", "~")) or Path(value).expanduser().exists()
    if key in _STARTS and value.count("/") == 1 and not local:
        return value
    return value.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _config_fields() -> set[str]:
    """Fields of a configuration of this package that transformers' own do not have."""
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
    """The safetensors files of a model folder, one or the parts of an index.

    Raises:
        ValueError: there are none, or one is missing.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / WEIGHTS_INDEX).is_file():
        raise ValueError(
            f"{folder} holds no {WEIGHTS_FILE}. Give the folder that save_pretrained wrote; weights in another format "
            "are not published."
        )
    parts = sorted(set(read_json_object(folder / WEIGHTS_INDEX).get("weight_map", {}).values()))
    missing = [name for name in parts if Path(name).name != name or not (folder / name).is_file()]
    if missing or not parts:
        raise ValueError(
            f"{folder / WEIGHTS_INDEX} names {missing if parts else 'no files'}; expected files beside it."
        )
    return [folder / name for name in parts]


def measure_weights(files: list[Path]) -> dict[str, int]:
    """Count the numbers without those of the training head, and the bytes of all files.

    Raises:
        ValueError: a file is not a safetensors file.
    """
    numbers = 0
    for path in files:
        try:
            with safe_open(path, "np") as file:
                for name in file.keys():  # noqa: SIM118
                    if not name.startswith(_HEAD):
                        numbers += _product(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
    return {"numbers": numbers, "bytes": sum(path.stat().st_size for path in files)}


def _count_rows(path: Path) -> int:
    try:
        with safe_open(path, "np") as file:
            return file.get_slice("embeddings").get_shape()[0]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a cohort: {error}") from error


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
