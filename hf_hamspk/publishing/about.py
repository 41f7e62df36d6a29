"""Facts of a model that only its authors know: training data, licences, limits, measured speed; read from YAML.

The checks are this module's own: those of huggingface_hub's strict dataclasses name types of Python instead of what to
write in YAML, refuse whole numbers as hours, and suggest no key for a misspelt one.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .licences import hub_licence

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingData:
    """A training corpus.

    Attributes:
        name: shown in the card.
        licence: licence of the corpus.
        dataset: name on the Hub, `owner/name`, if it is there.
        url: its description.
        speakers, utterances, hours: size of the used part.
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
    """The description of a trial list of the evaluation.

    Attributes:
        name: shown in the card, for example `VoxCeleb1`.
        config: which list of it, for example `O (cleaned)`.
        dataset: benchmark on the Hub, `owner/name`, if it is one.
        task: identifier of the task within that benchmark.
        revision: commit of that benchmark.
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
    """Facts stated by the authors of a model; the card says of missing ones that they are not stated.

    Example:
        ```python
        about = About(title="My model", training_data=[TrainingData("Corpus", licence="CC BY 4.0", speakers=342)])
        print(about.data_licences())
        print(About.from_dict(about.to_dict()) == about)
        ```

    Attributes:
        title: of the card.
        summary: a sentence or two.
        licence: licence of the weights; None takes one that the licences of the training data allow.
        licence_link: URL of a licence that the Hub does not know.
        languages: ISO 639 codes of the training data.
        base_model: name on the Hub of the model that this one was made from.
        training_data: corpora.
        trial_lists: name of a trial list in the evaluation to its description.
        limitations: sentences.
        speed: name of a measurement to its value, text or number.
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
        """Licences of the training data, as the Hub writes them."""
        return [hub_licence(data.licence) for data in self.training_data if data.licence is not None]

    def to_dict(self) -> dict[str, Any]:
        """The stated facts, for JSON."""
        return _without_missing(asdict(self))

    @classmethod
    def from_dict(cls, values: Any, where: str = "about") -> "About":
        """Facts from a mapping.

        Raises:
            ValueError: an unknown key (with the nearest known one) or a value of the wrong kind.
        """
        values = dict(_known_values(cls, values, where))
        data, lists = values.get("training_data", []), values.get("trial_lists", {})
        if not isinstance(data, list):
            raise ValueError(f"{where}: training_data must be a list of corpora, got {data!r}.")
        if not isinstance(lists, Mapping):
            raise ValueError(
                f"{where}: trial_lists must map names of trial lists to their descriptions, got {lists!r}."
            )
        values["training_data"] = [_build_part(TrainingData, one, f"{where}: training_data") for one in data]
        values["trial_lists"] = {
            str(name): _build_part(TrialList, one, f"{where}: trial_lists: {name}") for name, one in lists.items()
        }
        return cls(**values)

    @classmethod
    def read(cls, path: str | Path) -> "About":
        """Read a YAML file, or the JSON beside a rendered card.

        Raises:
            ValueError: no such file, not YAML, or as `from_dict`.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"There is no file {path}. Expected YAML with some of: {', '.join(_field_names(cls))}.")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        if isinstance(values, dict) and "about" in values:
            values = values["about"]
        return cls.from_dict({} if values is None else values, str(path))


def _field_names(kind: type) -> list[str]:
    return [one.name for one in fields(kind)]


def _known_values(kind: type, values: Any, where: str) -> Mapping[str, Any]:
    """The values that are not None, after a check of their keys and types."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping with some of {', '.join(_field_names(kind))}; got {values!r}.")
    for key, value in values.items():
        if key not in _field_names(kind):
            near = difflib.get_close_matches(str(key), _field_names(kind), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(_field_names(kind))}."
            raise ValueError(f"{where}: there is no key {key!r}. {hint}")
        if key in ("languages", "limitations"):
            fits = isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value)
            expected = "a list of texts"
        elif key in ("speakers", "utterances", "hours"):
            fits, expected = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0, "a number"
        elif key == "speed":
            fits, expected = isinstance(value, Mapping), "a mapping"
        elif key in ("training_data", "trial_lists"):
            continue
        else:
            fits, expected = isinstance(value, str), "a text"
        if not fits and value is not None:
            raise ValueError(f"{where}: {key} must be {expected}, got {json.dumps(value, default=str)}.")
    return {key: value for key, value in values.items() if value is not None}


def _build_part(kind: type[T], values: Any, where: str) -> T:
    given = _known_values(kind, values, where)
    if "name" not in given:
        raise ValueError(f"{where}: a name is missing in {values!r}.")
    return kind(**given)


def _without_missing(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: _without_missing(one) for key, one in value.items()}
        return {key: one for key, one in kept.items() if one is not None and one != [] and one != {}}
    return [_without_missing(one) for one in value] if isinstance(value, list) else value
