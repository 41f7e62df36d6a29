"""Choice of the files to upload, by an allow list. All other files of the model folder are reported with a reason."""

import importlib.metadata
import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from ..calibration_hamspk import CALIBRATION_FILE, COHORT_FILE
from ..configuration_hamspk import HamSpkConfig
from ..encoders_hamspk import OVERLAP_FILE
from ..evaluation.results import EVALUATION_FILE, PLOT_FOLDER
from ..folders.ownership import EARLIER_CODE
from ..folders.writing import write_atomically
from .about import About
from .card import chosen_licence, evaluation_files, given_licences, render_card
from .code import TravellingCode, dump_config, travelling_code
from .facts import (
    CONFIG_FILE,
    RECIPE_FILE,
    WEIGHTS_INDEX,
    CardFacts,
    find_file,
    gather_facts,
    read_json_object,
    weight_files,
)
from .leaks import Private, find_leaks, refuse_leaks
from .licences import MIT_LICENCE, dropped_conditions
from .origin import check_origin
from .sentences import sentence_transformers_files

CARD_FILE, LICENCE_FILE, HANDLER_FILE, REQUIREMENTS_FILE = "README.md", "LICENSE", "handler.py", "requirements.txt"
HANDLER = Path(__file__).with_name(HANDLER_FILE)
EXTRACTOR_FILE = "preprocessor_config.json"
# Packages that the handler needs besides torch and transformers, which every endpoint has.
HANDLER_PACKAGES = ("soundfile",)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")
_PNG = b"\x89PNG\r\n\x1a\n"
# Escaped line breaks and tabs in JSON strings. They are replaced by spaces, so that paths after them are found.
_ESCAPED_SPACE = re.compile(r"(?<!\\)\\[nrt]")
# Keys of an evaluation record whose values map file names to reasons.
_FILE_REASONS = ("unusable_files", "short_files", "unreadable_files")
# First bytes of the pickle protocols 2 to 5.
_PICKLE_STARTS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
# Files besides the code that this package writes into a repository, and may therefore delete there.
_MANAGED = re.compile(
    r"(?:preprocessor_config|verification|evaluation)\.json|recipe\.yaml|cohort\.safetensors|overlap_detector\.safetensors|"
    r"model(?:-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|plots/[^/]+\.png"
)


@dataclass(frozen=True)
class PlannedFile:
    """File to upload.

    Attributes:
        name: path of the file in the repository.
        source: path of the local file, or its content.
    """

    name: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def read(self) -> bytes:
        """Return the content."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


@dataclass(frozen=True)
class UploadPlan:
    """Files of an upload, and remarks about them.

    Attributes:
        files: files to upload, sorted by name.
        left_out: maps the name of each file of the model folder that is not uploaded, or is replaced, to the reason.
        notes: remarks to read before the upload.
        facts: facts of the card.
    """

    files: list[PlannedFile]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: CardFacts | None = None

    @property
    def names(self) -> list[str]:
        """Paths of the files in the repository."""
        return [file.name for file in self.files]

    @property
    def size(self) -> int:
        """Total size of the files in bytes."""
        return sum(file.size for file in self.files)


def plan_upload(
    model_folder: str | os.PathLike[str],
    repository: str,
    run_folder: str | os.PathLike[str] | None = None,
    about: About | None = None,
    cohort: bool = True,
    speaker_names: bool = False,
) -> UploadPlan:
    """Choose the files, render the card, and search all files for private paths and tokens, without network access.

    Args:
        model_folder: folder written by `save_pretrained`.
        repository: name on the Hub, `owner/name`.
        run_folder: folder of the training run, with `recipe.yaml`, `evaluation.json` and `plots/` if the model folder
            lacks them.
        about: facts stated by the authors.
        cohort: whether to upload the cohort, which contains embeddings of speakers.
        speaker_names: whether to upload the names of training speakers and unusable files instead of numbers.

    Raises:
        ValueError: the folder contains no model of this package, the installed version does not load the model, the
            folder contains a pickle, a file cannot be read, or a file contains a path of a machine or a token (the
            message gives file and line).
    """
    folder = Path(model_folder)
    check_model_folder(folder, run_folder)
    facts = gather_facts(folder, repository, run_folder, about, cohort)
    notes: list[str] = []
    code = travelling_code(folder)
    if code.changed:
        notes.append(
            "the code of the installed package is uploaded, because these code files in the folder are missing or "
            f"different: {', '.join(code.changed)}"
        )
    files: dict[str, Path | bytes] = {CONFIG_FILE: _config(folder, code, speaker_names, notes)}
    files |= {path.name: path for path in weight_files(folder)}
    files |= code.files
    optional = [WEIGHTS_INDEX, EXTRACTOR_FILE, *([] if facts.verification is None else [CALIBRATION_FILE])]
    optional += [OVERLAP_FILE, *([COHORT_FILE] if cohort else [])]
    if "model.safetensors" in files:
        optional.remove(WEIGHTS_INDEX)
    files |= {name: folder / name for name in optional if (folder / name).is_file()}
    evaluation = find_file(EVALUATION_FILE, folder, run_folder)
    if evaluation is not None:
        files[EVALUATION_FILE] = evaluation if speaker_names else _without_file_names(evaluation, notes)
    if facts.recipe is not None:
        files[RECIPE_FILE] = yaml.safe_dump(facts.recipe, sort_keys=False, allow_unicode=True).encode()
    files |= _plots(folder, run_folder)
    if HANDLER.is_file():
        files[HANDLER_FILE] = HANDLER
        files[REQUIREMENTS_FILE] = "".join(f"{line}\n" for line in _requirements()).encode()
    files |= sentence_transformers_files(_required_packages())
    files |= {name: text.encode() for name, text in evaluation_files(facts).items()}
    files[LICENCE_FILE] = folder / LICENCE_FILE if (folder / LICENCE_FILE).is_file() else _licence_text(facts).encode()
    files[CARD_FILE] = render_card(facts).encode()
    planned = [PlannedFile(name, source) for name, source in sorted(files.items())]
    check_contents(planned, Private.of_this_machine([folder] if run_folder is None else [folder, run_folder]))
    check_origin(folder, facts)
    notes += _notes(facts, files)
    if facts.verification is None and (folder / CALIBRATION_FILE).is_file():
        notes.append(
            f"{CALIBRATION_FILE} is not uploaded, because it needs the cohort, so the published model gives scores but "
            "no decisions. For decisions without a cohort, run `hamspk calibrate --normalisation none`"
        )
    if facts.recipe is None and run_folder is None and (folder.parent / RECIPE_FILE).is_file():
        notes.append(f"{folder.parent} contains {RECIPE_FILE}; give --run {folder.parent} to include the recipe")
    return UploadPlan(planned, _left_out(folder, files, cohort), notes, facts)


def write_plan(plan: UploadPlan, folder: Path) -> None:
    """Write the files of an upload into a folder, in which files with the same names are replaced."""
    for file in plan.files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file.source, bytes):
            content = file.source
            write_atomically(path, lambda temporary, content=content: temporary.write_bytes(content))
        else:
            source = file.source
            write_atomically(path, lambda temporary, source=source: shutil.copyfile(source, temporary))


def check_model_folder(folder: Path, run_folder: str | os.PathLike[str] | None) -> None:
    """Check that a folder contains a model of this package and no pickle, and that the run folder exists.

    Raises:
        ValueError: a folder does not exist, the model is missing or of another type, or a file is a pickle.
    """
    if not folder.is_dir():
        raise ValueError(f"Folder not found: {folder}. Give the folder of a trained model, such as a run's 'final'.")
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"No {CONFIG_FILE} in {folder}. Give the folder of a trained model, such as a run's 'final'.")
    if run_folder is not None and not Path(run_folder).is_dir():
        raise ValueError(f"Run folder not found: {run_folder}. Give the output_dir of the training run.")
    found = read_json_object(folder / CONFIG_FILE).get("model_type")
    if found != HamSpkConfig.model_type:
        raise ValueError(
            f"Expected a model of this package, of type {HamSpkConfig.model_type!r}, but {folder} contains a model of "
            f"type {found!r}."
        )
    for path in sorted(folder.rglob("*")):
        if path.is_file() and is_pickle(path):
            raise ValueError(
                f"{path.relative_to(folder)} is a pickle, which can run code when it is loaded. Weights are published "
                "as safetensors only. Remove it, or save the model with save_pretrained into an empty folder."
            )


def is_pickle(path: Path) -> bool:
    """Check the name and the content of a file, and return whether it is a pickle or a zip archive with a pickle."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return True
    with open(path, "rb") as file:
        if file.read(2) in _PICKLE_STARTS:
            return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".pkl") for name in archive.namelist())


def _config(folder: Path, code: TravellingCode, speaker_names: bool, notes: list[str]) -> Path | bytes:
    """Return `config.json`. Labels are names of speakers; numbers replace them unless `speaker_names` is True."""
    labels = code.config.get("id2label")
    numbers = {key: f"LABEL_{key}" for key in labels} if isinstance(labels, Mapping) else None
    if speaker_names or numbers is None or numbers == labels:
        return dump_config(code.config) if CONFIG_FILE in code.changed else folder / CONFIG_FILE
    notes.append(f"the names of {len(numbers)} training speakers in {CONFIG_FILE} are replaced by numbers")
    relabelled = {"id2label": numbers, "label2id": {name: int(key) for key, name in numbers.items()}}
    return dump_config(code.config | relabelled)


def _without_file_names(evaluation: Path, notes: list[str]) -> Path | bytes:
    """Return the evaluation record with numbers for the names of unusable files, which may contain names of people."""
    count = 0

    def replace_names(value: Any, of_files: bool = False) -> Any:
        nonlocal count
        if isinstance(value, list):
            return [replace_names(one) for one in value]
        if not isinstance(value, dict):
            return value
        if not of_files:
            return {key: replace_names(one, key in _FILE_REASONS) for key, one in value.items()}
        count += len(value)
        return {f"file {number}": reason for number, reason in enumerate(value.values(), start=1)}

    record = replace_names(read_json_object(evaluation))
    if count == 0:
        return evaluation
    notes.append(f"the names of {count} unusable files in {EVALUATION_FILE} are replaced by numbers")
    return (json.dumps(record, indent=2) + "\n").encode()


def _plots(folder: Path, run_folder: str | os.PathLike[str] | None) -> dict[str, Path]:
    for base in (folder, run_folder):
        found = [] if base is None else sorted((Path(base) / PLOT_FOLDER).glob("*.png"))
        if found:
            return {f"{PLOT_FOLDER}/{path.name}": path for path in found}
    return {}


def _requirements() -> list[str]:
    """Return the packages that an endpoint installs for the handler, with the versions that this package requires."""
    return [f"{name}{_required_packages().get(name, '')}" for name in HANDLER_PACKAGES]


def _required_packages() -> dict[str, str]:
    """Map each package that this package always requires to its versions, such as `>=5.18,<6`."""
    required = importlib.metadata.requires("hf_hamspk")
    found = (re.fullmatch(r"([\w.-]+)(.*)", one) for one in ([] if required is None else required) if ";" not in one)
    return {one[1]: one[2] for one in found if one is not None}


def _licence_text(facts: CardFacts) -> str:
    """Return the licence file: the licences of the weights and the training data, and the full licence of the code."""
    licence = chosen_licence(facts)
    weights = "not stated; ask before you use them" if licence is None else licence
    link = "" if facts.about.licence_link is None else f" ({facts.about.licence_link})"
    data = "".join(
        f"  {one.name}: {'not stated' if one.licence is None else one.licence}\n" for one in facts.about.training_data
    )
    # An editable installation may be found twice, the first time without its files.
    found = (one.read_text("licenses/LICENSE") for one in importlib.metadata.distributions(name="hf_hamspk"))
    code = next((text for text in found if text is not None), None)
    text = "https://www.apache.org/licenses/LICENSE-2.0" if code is None else f"the text follows.\n\n{code}"
    return (
        f"Weights (*.safetensors): {weights}{link}.\n"
        + _licence_of_detector(facts)
        + (f"Licences of the training data:\n{data}" if data else "")
        + f"Code (*.py): Apache License 2.0, {text}"
    ).rstrip() + "\n"


def _licence_of_detector(facts: CardFacts) -> str:
    """Return the line of the licence file about the overlap detector; empty if there is none."""
    if facts.overlap_detector is None:
        return ""
    origin, licence = facts.overlap_detector.get("origin"), facts.overlap_detector.get("licence")
    text = f" This licence:\n\n{MIT_LICENCE}\n" if licence == "mit" else ""
    return f"Except {OVERLAP_FILE} ({origin}): {'not stated' if licence is None else licence}.{text}\n"


def check_contents(files: list[PlannedFile], private: Private) -> None:
    """Check that the content of each file fits its name, and contains no path of a machine and no token.

    Raises:
        ValueError: a file fails the check; the message gives file and line.
    """
    leaks = []
    for file in files:
        if file.name.endswith(".safetensors"):
            # Only the header contains text; the tensors are numbers.
            leaks += find_leaks(file.name, _tensor_header(file), private, has_lines=False)
        elif file.name.endswith(".png"):
            content = file.read()
            if not content.startswith(_PNG):
                raise ValueError(f"{file.name} is not a PNG image. Remove it from the folder of plots.")
            leaks += find_leaks(file.name, content.decode("latin-1"), private, has_lines=False, strict=False)
        else:
            leaks += find_leaks(file.name, _checked_text(file), private)
    refuse_leaks(leaks)


def _tensor_header(file: PlannedFile) -> str:
    if isinstance(file.source, bytes):
        raise ValueError(f"{file.name} must be a path of a safetensors file, got bytes.")
    with safe_open(file.source, "np") as tensors:
        return json.dumps([tensors.metadata(), list(tensors.keys())], ensure_ascii=False)


def _checked_text(file: PlannedFile) -> str:
    try:
        text = file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file.name} must be UTF-8 text, so that it can be searched for paths and tokens, but it is not ({error})."
        ) from error
    if file.name.endswith(".json"):
        try:
            json.loads(text)
        except ValueError as error:
            raise ValueError(f"{file.name} is not JSON: {error}") from error
        return _ESCAPED_SPACE.sub(" ", text)
    return text


def _left_out(folder: Path, files: Mapping[str, Any], cohort: bool) -> dict[str, str]:
    reasons = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in files:
            reasons[name] = (
                "left out on request" if name == COHORT_FILE and not cohort else "not part of a published model"
            )
        elif path.is_file() and name in (CARD_FILE, RECIPE_FILE):
            reasons[name] = (
                "replaced by the rendered card"
                if name == CARD_FILE
                else "replaced by a copy without the folders in its paths"
            )
    return reasons


def _notes(facts: CardFacts, files: Mapping[str, Any]) -> list[str]:
    notes = []
    if COHORT_FILE in files:
        notes.append(
            f"{COHORT_FILE} contains {facts.cohort} embeddings of training speakers, which are biometric data; leave "
            "it out with --no-cohort (cohort=False) unless you may publish them"
        )
    licence = chosen_licence(facts)
    if licence is None:
        notes.append("no licence is stated; give --licence, or the licences of the training data with --about")
    elif facts.about.licence is not None and (dropped := dropped_conditions(licence, given_licences(facts))):
        notes.append(
            "the licences of the training data or of the converted weights have conditions that "
            f"{licence} lacks: {'; '.join(dropped)}; the card lists them"
        )
    absent = [
        what
        for what, value in (
            ("evaluation", facts.evaluation),
            ("calibration", facts.verification),
            ("recipe", facts.recipe),
        )
        if value is None
    ]
    if absent:
        notes.append(f"missing in the card: {', '.join(absent)}")
    return notes


def is_managed_file(name: str) -> bool:
    """Return whether this package may have written a file in a repository, so that `push` may delete it."""
    code = {path.name for path in Path(__file__).parents[1].glob("*.py")}
    return name in code or name in EARLIER_CODE or _MANAGED.fullmatch(name) is not None
