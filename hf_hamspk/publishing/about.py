"""Facts that the authors of a model state in YAML: training data, licences, limitations, measured speed.

This module checks the facts itself and does not use the strict dataclasses of huggingface_hub. Their error messages
name Python types instead of YAML values and suggest no correction for a misspelt key. They also reject whole numbers as
hours.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..files.yaml_files import load_yaml
from .licences import hub_licence

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingData:
    """Description of a training corpus.

    Attributes:
        name: name of the corpus in the card.
        licence: licence of the corpus.
        dataset: name on the Hub, `owner/name`, if the corpus is published there.
        url: web address of a description of the corpus.
        speakers: number of training speakers.
        utterances: number of training utterances.
        hours: duration of the training utterances in hours.
        note: further remarks.
    """

    name: str
    licence: str | None = None
    dataset: str | None = None
    url: str | None = None
    speakers: int | None = None
    utterances: int | None = None
    hours: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class TrialList:
    """Description of a trial list of the evaluation.

    Attributes:
        name: name of the data set in the card, for example `VoxCeleb1`.
        config: name of the list within the data set, for example `O (cleaned)`.
        dataset: name of the benchmark on the Hub, `owner/name`, if the list belongs to one.
        task: identifier of the task within the benchmark.
        revision: commit of the benchmark.
        note: further remarks.
    """

    name: str
    config: str | None = None
    dataset: str | None = None
    task: str | None = None
    revision: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class About:
    """Facts stated by the authors of a model; the card shows missing facts as "not stated".

    Example:
        ```python
        about = About(title="My model", training_data=[TrainingData("Corpus", licence="CC BY 4.0", speakers=342)])
        print(about.data_licences())
        print(About.from_dict(about.to_dict()) == about)
        ```

    Attributes:
        title: title of the card.
        summary: summary in one or two sentences.
        licence: licence of the weights; None derives it from the licences of the training data.
        licence_link: URL of a licence that the Hub does not know.
        languages: ISO 639 codes of the languages in the training data.
        base_model: name on the Hub of the model that training started from.
        training_data: training corpora.
        trial_lists: maps the name of a trial list in the evaluation to its description.
        limitations: sentences about the limits of the model.
        speed: maps the name of each measurement to its value, a text or a number.
    """

    title: str | None = None
    summary: str | None = None
    licence: str | None = None
    licence_link: str | None = None
    languages: list[str] = field(default_factory=list)
    base_model: str | None = None
    training_data: list[TrainingData] = field(default_factory=list)
    trial_lists: dict[str, TrialList] = field(default_factory=dict)
    limitations: list[str] = field(default_factory=list)
    speed: dict[str, Any] = field(default_factory=dict)

    def data_licences(self) -> list[str]:
        """Return the stated licences of the training data, as identifiers of the Hub."""
        return [hub_licence(data.licence) for data in self.training_data if data.licence is not None]

    def to_dict(self) -> dict[str, Any]:
        """Return the stated facts as a dictionary that JSON can store."""
        return _without_missing(asdict(self))

    @classmethod
    def from_dict(cls, values: Any, where: str = "about") -> "About":
        """Create the facts from a mapping.

        Args:
            values: mapping with some of the attributes as keys.
            where: source of the mapping, named in error messages.

        Raises:
            ValueError: a key is unknown (the message suggests a similar key), or a value has the wrong type.
        """
        values = dict(_known_values(cls, values, where))
        data, lists = values.get("training_data", []), values.get("trial_lists", {})
        if not isinstance(data, list):
            raise ValueError(f"{where}: training_data must be a list of corpora, got {data!r:.200}.")
        if not isinstance(lists, Mapping):
            raise ValueError(
                f"{where}: trial_lists must map names of trial lists to their descriptions, got {lists!r:.200}."
            )
        values["training_data"] = [_build_part(TrainingData, one, f"{where}: training_data") for one in data]
        values["trial_lists"] = {
            str(name): _build_part(TrialList, one, f"{where}: trial_lists: {name}") for name, one in lists.items()
        }
        return cls(**values)

    @classmethod
    def read(cls, path: str | Path) -> "About":
        """Read the facts from a YAML file, or from the JSON file beside a rendered card.

        Raises:
            ValueError: the file is missing or is not YAML, or its facts are invalid (see `from_dict`).
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"File not found: {path}. Expected YAML with some of: {', '.join(_field_names(cls))}.")
        try:
            values = load_yaml(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        if isinstance(values, dict) and "about" in values:
            values = values["about"]
        return cls.from_dict({} if values is None else values, str(path))


def _field_names(kind: type) -> list[str]:
    return [one.name for one in fields(kind)]


def _known_values(kind: type, values: Any, where: str) -> Mapping[str, Any]:
    """Check the keys of `values` and the types of their values, and return the entries that are not None."""
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{where} must be a mapping with some of {', '.join(_field_names(kind))}, got {values!r:.200}."
        )
    for key, value in values.items():
        if key not in _field_names(kind):
            near = difflib.get_close_matches(str(key), _field_names(kind), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(_field_names(kind))}."
            raise ValueError(f"{where}: unknown key {key!r:.200}. {hint}")
        if key in ("languages", "limitations"):
            fits = isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value)
            expected = "a list of strings"
        elif key in ("speakers", "utterances", "hours"):
            fits, expected = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0, "a number"
        elif key == "speed":
            fits, expected = isinstance(value, Mapping), "a mapping"
        elif key in ("training_data", "trial_lists"):
            continue
        else:
            fits, expected = isinstance(value, str), "a string"
        if not fits and value is not None:
            raise ValueError(f"{where}: {key} must be {expected}, got {json.dumps(value, default=str):.200}.")
    return {key: value for key, value in values.items() if value is not None}


def _build_part(kind: type[T], values: Any, where: str) -> T:
    given = _known_values(kind, values, where)
    if "name" not in given:
        raise ValueError(f"{where}: the key 'name' is missing in {values!r:.200}.")
    return kind(**given)


def _without_missing(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: _without_missing(one) for key, one in value.items()}
        return {key: one for key, one in kept.items() if one is not None and one != [] and one != {}}
    return [_without_missing(one) for one in value] if isinstance(value, list) else value
