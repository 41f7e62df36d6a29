"""Make or load the model with which a training run begins."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from ..configuration_hamspk import HamSpkConfig
from ..geometry_hamspk import HEAD_PARTS
from ..loading.models import quiet_transformers
from ..loading.names import check_model
from ..losses.engine import centre_parameters
from ..modeling_hamspk import HamSpkForXVector
from ..networks_hamspk import make_head
from .arguments import DataArguments, ModelArguments, Recipe, TrainingArguments, valid_config
from .lora import has_adapters


class RecipeModel:
    """Model that a recipe describes. It is built when the training speakers are known.

    Args:
        recipe: recipe of the run.

    Raises:
        ValueError: see `build_config`.
    """

    def __init__(self, recipe: Recipe):
        self.recipe, self.config = recipe, build_config(recipe)

    def build(self, speakers: list[str], keep_centres: bool = False) -> tuple[HamSpkForXVector, str | None]:
        """Return the model for these speakers, and a sentence about its head (or None); see `build_model`."""
        return build_model(self.recipe, self.config, speakers, keep_centres)


class GivenModel:
    """Model that a Python program passes to the trainer.

    Args:
        model: model with any backbone and head.

    Raises:
        ValueError: `model` is not a `HamSpkForXVector`.
    """

    def __init__(self, model: HamSpkForXVector):
        if not isinstance(model, HamSpkForXVector):
            raise ValueError(
                "model must be a HamSpkForXVector, the speaker model with its training head, got a "
                f"{type(model).__name__}. Load it with HamSpkForXVector.from_pretrained, or make it from a config."
            )
        if has_adapters(model):
            raise ValueError(
                "model has adapters of PEFT, so it could not be saved. Merge the adapters first, or pass the model "
                "without adapters and set lora_rank."
            )
        self.model, self.config = model, model.config

    def build(self, speakers: list[str], keep_centres: bool = False) -> tuple[HamSpkForXVector, str | None]:
        """Return the model for these speakers, and a sentence about its new head (or None); see `fit_head`."""
        self.model.calibration = None
        return self.model, fit_head(self.model, speakers, keep_centres)


def gather_recipe(
    source: RecipeModel | GivenModel, args: TrainingArguments | None, train_dataset: Any, data: DataArguments | None
) -> Recipe:
    """Return the recipe of a run from the arguments of the trainer.

    Raises:
        ValueError: neither or both of `train_dataset` and `data.train_data` are set.
    """
    data = DataArguments() if data is None else dataclasses.replace(data)
    if train_dataset is not None:
        if data.train_data is not None:
            raise ValueError("Expected train_dataset or data.train_data, got both. Remove one of them.")
        data.train_data = train_dataset
    if data.train_data is None:
        raise ValueError(
            "Expected training data, got none. Pass train_dataset: a datasets.Dataset, a list of recordings such as a "
            "CSV file, or a folder of speaker/.../utterance.flac."
        )
    args = TrainingArguments() if args is None else dataclasses.replace(args)
    return Recipe(source.recipe.model if isinstance(source, RecipeModel) else arguments_of(source.config), data, args)


def arguments_of(config: HamSpkConfig) -> Any:
    """Return the `ModelArguments` that describe a configuration, for the record of a run."""
    names = {one.name for one in dataclasses.fields(ModelArguments)} - {"initial_model"}
    values: Mapping[str, Any] = config.to_diff_dict()
    return ModelArguments(**{name: values[name] for name in names if name in values})


def set_speakers(config: HamSpkConfig, speakers: list[str]) -> None:
    """Set the training speakers of a configuration, in the order of the class indices."""
    config.num_labels = len(speakers)
    config.id2label = dict(enumerate(speakers))
    config.label2id = {speaker: label for label, speaker in enumerate(speakers)}


def build_config(recipe: Recipe) -> HamSpkConfig:
    """Make the configuration that a recipe describes. The speaker names are added later, by `build_model`.

    For fine-tuning, fields that the recipe does not set keep the values of the initial model. If the recipe sets
    another head, the default scale, margin and curvature of this new head are used unless the recipe sets them.

    Raises:
        ValueError: a value is out of range, two values contradict each other, or a named model cannot be used.
    """
    fields, start = recipe.config_fields(), recipe.model
    try:
        if start.initial_model is not None:
            check_model(start.initial_model)
            values, _ = PreTrainedConfig.get_config_dict(start.initial_model)
            if values.get("model_type") != HamSpkConfig.model_type:
                raise ValueError(f"expected a speaker model of this package, got a {values.get('model_type')!r} model")
            other_head = fields.get("head", values.get("head")) != values.get("head")
            dropped = {"auto_map", "architectures", *({"scale", "margin", "curvature"} if other_head else ())}
            return valid_config({k: v for k, v in values.items() if k not in dropped} | fields)
        if recipe.pretrained_backbone is not None:
            check_model(recipe.pretrained_backbone)
            backbone = AutoConfig.from_pretrained(recipe.pretrained_backbone)
            if backbone.model_type == HamSpkConfig.model_type:
                raise ValueError(
                    "expected an encoder, got a complete speaker model. To fine-tune it, set initial_model instead"
                )
            return valid_config({"backbone_config": backbone} | fields)
    except (OSError, ValueError) as error:
        name = "initial_model" if recipe.pretrained_backbone is None else "backbone"
        raise ValueError(f"{name} {getattr(start, name)} cannot be used: {error}") from error
    return valid_config(fields)


def build_model(
    recipe: Recipe, config: HamSpkConfig, speakers: list[str], keep_centres: bool = False
) -> tuple[HamSpkForXVector, str | None]:
    """Make the model to train: a new model, a model with a pretrained backbone, or a pretrained model to fine-tune.

    Args:
        recipe: recipe of the run.
        config: configuration of the model. For a pretrained model, it contains the speakers of this model.
        speakers: training speakers in the order of the class indices.
        keep_centres: whether the speakers that a pretrained model knows keep their centres; see `fit_head`.

    Returns:
        The model, and a sentence about its head. The sentence is None unless the model is pretrained.

    Raises:
        ValueError: the weights of the initial model do not fit the configuration outside the head, or its centres
            cannot be kept.
    """
    start = recipe.model
    if start.initial_model is not None:
        model = load_initial_model(start.initial_model, config, keep_centres)
        return model, fit_head(model, speakers, keep_centres, is_new=not keep_centres)
    set_speakers(config, speakers)
    if recipe.pretrained_backbone is not None:
        return HamSpkForXVector.from_backbone(recipe.pretrained_backbone, config=config), None
    return HamSpkForXVector(config), None


def load_initial_model(folder: str, config: HamSpkConfig, keep_centres: bool) -> HamSpkForXVector:
    """Load a pretrained model without its calibration; see `build_model`."""
    # Weights that do not fit are reported below, so the table that transformers prints is suppressed.
    with quiet_transformers():
        earlier = HamSpkConfig.from_pretrained(folder)
        model, info = HamSpkForXVector.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            folder,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            calibrated=False,
        )
    names = [*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])]
    wrong = sorted(name for name in names if not name.startswith("head."))
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights of initial_model {folder} do not fit the model that the recipe "
            f"describes, for example {wrong[0]}. Remove the keys of the encoder from the recipe."
        )
    if keep_centres and (wrong != names or centre_space(earlier) != centre_space(config)):
        raise ValueError(
            f"keep_centres needs the same head, curvature and projection as in initial_model {folder}, but the recipe "
            "describes another head, or initial_model has no head. Remove the keys of the head, or keep_centres."
        )
    return model


def centre_space(config: HamSpkConfig) -> tuple[Any, ...]:
    """Return the settings on which the meaning of centres depends. Heads with equal settings can share centres."""
    heads = (config.euclidean_head, "ham") if config.head == "joint" else (config.head,)
    kinds = tuple(HEAD_PARTS[head][0] for head in heads)
    ball = (config.projection, config.curvature, config.clip_radius, config.learnable_curvature)
    return (*kinds, config.embedding_size, *(ball if "hyperbolic" in kinds else ()))


def fit_head(
    model: HamSpkForXVector, speakers: list[str], keep_centres: bool = False, is_new: bool = False
) -> str | None:
    """Give a model a head for the training speakers, unless it has one.

    If the head was made for the same speakers in the same order, it is kept. Otherwise, it is replaced by a head of the
    same kind with newly initialised centres.

    Args:
        model: model that may have been trained on other speakers.
        speakers: training speakers in the order of the class indices.
        keep_centres: whether speakers that the old head knows by name keep their centres in the new head.
        is_new: whether the head is replaced even if it was made for the same speakers.

    Returns:
        A sentence about the new head; None if the head was kept.

    Raises:
        ValueError: `keep_centres` is set, but the old head knows no training speaker.
    """
    config, old = model.config, model.head
    earlier: Any = config.id2label
    if not is_new and config.num_labels == len(speakers) and earlier == dict(enumerate(speakers)):
        return None
    rows: dict[str, int] = {name: label for label, name in earlier.items()}
    known = [name for name in speakers if name in rows]
    if keep_centres and not known:
        raise ValueError(
            f"keep_centres: the model was trained on {len(rows)} speakers, and none of them is among the "
            f"{len(speakers)} training speakers, for example {speakers[0]}. Remove keep_centres."
        )
    set_speakers(config, speakers)
    model.head = make_head(config).to(next(model.parameters()).device)
    if not keep_centres:
        return f"The model has a new {config.head} head for {len(speakers)} training speakers."
    places = {name: place for place, name in enumerate(speakers)}
    copy_centres(old, model.head, [rows[name] for name in known], [places[name] for name in known])
    return (
        f"The {config.head} head keeps the centres of {len(known)} speakers and has {len(speakers) - len(known)} new "
        f"centres. The centres of {len(rows) - len(known)} speakers were removed."
    )


@torch.no_grad()
def copy_centres(old: nn.Module, new: nn.Module, taken: list[int], places: list[int]) -> None:
    """Copy rows of the speaker centres, and all other parameters, from one head to another of the same kind.

    Args:
        old: head with the centres.
        new: head for other speakers.
        taken: row numbers of the copied centres in `old`.
        places: row numbers of the same centres in `new`, in the same order.
    """
    centres, own = centre_parameters(new), dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        if name in centres:
            parameter[places] = own[name][taken].to(parameter.device)
        else:
            parameter.copy_(own[name])
