"""Models that a training run begins with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ..configuration_hamspk import HamSpkConfig
from ..loading.models import quiet_transformers
from ..loading.names import check_model
from ..modeling_hamspk import HamSpkForXVector
from ..networks_hamspk import make_head
from .arguments import DataArguments, ModelArguments, Recipe, TrainingArguments, valid_config


class RecipeModel:
    """Model that a recipe describes, built when the training speakers are known.

    Args:
        recipe: recipe of the run.

    Raises:
        ValueError: see `build_config`.
    """

    def __init__(self, recipe: Recipe):
        self.recipe, self.config = recipe, build_config(recipe)

    def build(self, speakers: list[str]) -> HamSpkForXVector:
        """Return the model for these speakers; see `build_model`."""
        return build_model(self.recipe, self.config, speakers)


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
        self.model, self.config = model, model.config
        self.kept_head = True

    def build(self, speakers: list[str]) -> HamSpkForXVector:
        """Return the model for these speakers.

        The head is kept if it was made for the same speakers in the same order. Otherwise, it is replaced by a new head
        of the same kind, with newly initialised centres.
        """
        labels = dict(enumerate(speakers))
        same = self.config.num_labels == len(speakers) and self.config.id2label == labels
        if not same:
            set_speakers(self.config, speakers)
            device = next(self.model.parameters()).device
            self.model.head = make_head(self.config).to(device)
            self.kept_head = False
        self.model.calibration = None
        return self.model


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
    names = {one.name for one in dataclasses.fields(ModelArguments)} - {"backbone", "initial_model"}
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
            new_head = (
                {"scale", "margin", "curvature"}
                if fields.get("head", values.get("head")) != values.get("head")
                else set()
            )
            dropped = {"auto_map", "architectures", "id2label", "label2id", "num_labels", *new_head}
            return valid_config({k: v for k, v in values.items() if k not in dropped} | fields)
        if start.backbone is not None:
            check_model(start.backbone)
            backbone = AutoConfig.from_pretrained(start.backbone)
            if backbone.model_type == HamSpkConfig.model_type:
                raise ValueError(
                    "expected an encoder, got a complete speaker model. To fine-tune it, set initial_model instead"
                )
            return valid_config({"backbone_config": backbone} | fields)
    except (OSError, ValueError) as error:
        name = "initial_model" if start.backbone is None else "backbone"
        raise ValueError(f"{name} {getattr(start, name)} cannot be used: {error}") from error
    return valid_config(fields)


def build_model(recipe: Recipe, config: HamSpkConfig, speakers: list[str]) -> HamSpkForXVector:
    """Make the model to train: a new model, a model with a pretrained backbone, or a pretrained model to fine-tune.

    Raises:
        ValueError: the weights of the initial model do not fit the configuration outside the head.
    """
    set_speakers(config, speakers)
    start = recipe.model
    if start.backbone is not None:
        return HamSpkForXVector.from_backbone(start.backbone, config=config)
    if start.initial_model is None:
        return HamSpkForXVector(config)
    # Weights that do not fit are reported below, so the table that transformers prints is suppressed.
    with quiet_transformers():
        model, info = HamSpkForXVector.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            start.initial_model,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            calibrated=False,
        )
    names = [*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])]
    wrong = sorted(name for name in names if not name.startswith("head."))
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights of initial_model {start.initial_model} do not fit the model that the recipe "
            f"describes, for example {wrong[0]}. Remove the keys of the encoder from the recipe."
        )
    return model
