"""Arguments of a training run. They are read from a YAML recipe and the command line."""

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NoReturn, Union

from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, PreTrainedConfig

from ..audio_hamspk import choose_channel
from ..configuration_hamspk import ENCODERS, HamSpkConfig, check_values
from ..data.augmentation import LEVEL_RANGE_DB, check_level_range
from ..files.yaml_files import load_yaml
from ..loading.names import check_recipe

# Range of each number in `DataArguments`, also of each number in a list. NaN is outside every range.
DATA_RANGES: dict[str, tuple[float, float]] = {
    "crop_seconds": (0.1, 60),
    "speed_factors": (0.25, 4),
    "augment_probability": (0, 1),
    "augment_most": (1, 16),
    "level_range_db": LEVEL_RANGE_DB,
    "cache_megabytes": (0, 10_000_000),
    "num_workers": (0, 256),
    "samples_per_epoch": (0, 10**12),
}
# Range of each number in `TrainingArguments`.
TRAINING_RANGES: dict[str, tuple[float, float]] = {
    # The largest seed of NumPy.
    "seed": (0, 2**32 - 1),
    "epochs": (1, 1_000_000),
    "max_steps": (0, 10**12),
    "batch_size": (1, 1_000_000),
    "utterances_per_speaker": (0, 1_000_000),
    "gradient_accumulation_steps": (1, 100_000),
    "learning_rate": (1e-12, 1e6),
    "lr_decay": (1e-6, 10),
    "final_learning_rate": (1e-12, 1e6),
    "warmup_epochs": (0, 1_000_000),
    "momentum": (0, 0.99999),
    "weight_decay": (0, 1000),
    "margin_start_epoch": (0, 1_000_000),
    "margin_end_epoch": (0, 1_000_000),
    "max_grad_norm": (0, 1e12),
    "class_sampling": (1e-6, 1),
    "evaluate_every": (1, 1_000_000),
    "save_steps": (0, 10**12),
    "keep_checkpoints": (1, 1_000_000),
    "average_last": (1, 10_000),
    "log_steps": (1, 10**12),
    "freeze_backbone_epochs": (0, 1_000_000),
    "train_last_blocks": (0, 1000),
    "backbone_learning_rate": (1e-12, 1e6),
    "layer_decay": (1e-3, 1),
    "lora_rank": (0, 10_000),
    "lora_alpha": (1e-6, 1e6),
    "lora_dropout": (0, 0.99),
}
_NOT_IN_RECIPES = {"backbone", "backbone_config", "auto_map"}


def _parser_type(annotation: Any) -> Any:
    """Return a type that HfArgumentParser accepts. For a union: float if it contains float, or else the first type."""
    options = [a for a in typing.get_args(annotation) if a is not type(None)]
    if typing.get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    if float in options:
        return float
    return options[0]


def _make_model_arguments() -> type:
    """Make a dataclass with the fields of `HamSpkConfig`. None means the default of the configuration."""
    base = {f.name for f in dataclasses.fields(PreTrainedConfig)} | _NOT_IN_RECIPES
    own = [f for f in dataclasses.fields(HamSpkConfig) if f.name not in base]
    fields: list[Any] = [
        (
            "backbone",
            str | None,
            field(
                default=None,
                metadata={"help": f"{', '.join(ENCODERS)}, or name on the Hub or folder of a pretrained encoder"},
            ),
        ),
        (
            "initial_model",
            str | None,
            field(default=None, metadata={"help": "folder of a model to fine-tune with a new head"}),
        ),
    ]
    fields += [(f.name, _parser_type(f.type) | None, field(default=None)) for f in own]
    return dataclasses.make_dataclass("ModelArguments", fields)


ModelArguments = _make_model_arguments()
ModelArguments.__doc__ = """Arguments of the model: the fields of `HamSpkConfig` and the source of the initial weights.

A field that is None has the default of the configuration. `backbone` is the name of an encoder of this package, or the
name on the Hub or the folder of a pretrained encoder of transformers. `initial_model` is the folder of a model of this
package that is fine-tuned with a new head. At most one of `backbone` and `initial_model` can be set.
"""


@dataclass
class DataArguments:
    """Arguments that select and prepare the data of a training run.

    Example:
        ```python
        from hf_hamspk import DataArguments

        data = DataArguments(train_data="corpus/train.csv", audio_root="corpus", speed_factors=[1.0, 0.9, 1.1])
        ```

    Attributes:
        train_data: folder with files `speaker/.../utterance.flac`, list of recordings (a CSV file, JSON lines, a Kaldi
            folder, or an audio folder of `datasets`), or folder or URL of shards.
        audio_root: base folder of the paths in the list of recordings and, unless `trial_root` is set, in the trial
            lists.
        audio_column, speaker_column: columns of the audio and of the speakers in a table or data set. None uses the
            usual names, such as `path` and `speaker_id` in a CSV file.
        channel: channel of the recordings for training and in the trial lists: `"left"`, `"right"`, the number of the
            channel from 1, or `"mean"`. None averages the channels, with a warning if they differ.
        check_audio: check of the training files before training. `"full"` decodes every file, and `"header"` reads only
            the headers. Both leave out unusable files and report them. `"none"` skips the check; if an unusable file is
            then drawn in training, another file replaces it, and the file is reported at the end.
        crop_seconds: length of a training crop in seconds; 2.015 (200 frames) in the paper.
        speed_factors: speeds at which the training set is used, for example 1.0 0.9 1.1. The first must be 1.0, the
            original speed. At each other speed, every speaker counts as a new speaker.
        augment_probability: fraction of the crops that are augmented, in [0, 1].
        augment_kinds: kinds of augmentation, any of noise, music, babble, reverb, band, codec, equaliser and gain.
        augment_most: largest number of augmentations that are applied to the same crop.
        augment_pairs: whether each step uses two copies of every crop, one clean and one augmented, and adds the two
            losses, as in the paper. The second copy is augmented with the probability augment_probability.
        level_range_db: lowest and highest level of the training crops in dBFS, for example -70 -20. Each crop is scaled
            to a random level in this range and rounded to 16 bits, so that the model learns to recognise quiet
            recordings. An empty list leaves the levels unchanged. With augment_pairs, only the augmented crops are
            scaled.
        noise_folder, rir_folder: folders of recordings or shards for noise and reverberation; None generates both.
        music_folder: folder of recordings or shards for music, required for the kind music.
        speech_folder: folder of recordings or shards for babble; None uses the training set.
        dev_trials: trial list with which the best model is selected and the final model is calibrated.
        test_trials: trial lists that are evaluated at the end.
        trial_root: base folder of the paths in the trial lists.
        protocol: evaluation protocol. `"whole"` embeds the complete utterance. `"paper"` also embeds five 3 s segments.
        cache_megabytes: memory in megabytes for decoded audio in each loading process.
        frame_folder: folder in which the output of the frozen layers is stored. The output is computed once for each
            recording, without augmentation, and read in all later steps and runs. `train_last_blocks` must be set. If
            None, the frozen layers are computed in every step.
        num_workers: number of loading processes for each training process.
        shuffle: whether each epoch has a new random order. If False, the samples have the order of the rows. The rows
            of a streamed data set are shuffled only if its method `shuffle` was called. Shards are always shuffled.
        samples_per_epoch: number of rows of a streamed data set in an epoch. With 0, the rows are counted before
            training, by reading the column of speakers.

    Raises:
        ValueError: a number is outside its range in `DATA_RANGES`, or the channel is unknown.
    """

    train_data: str | None = None  # A Python program can also pass a data set.
    audio_root: str | None = None
    audio_column: str | None = None
    speaker_column: str | None = None
    channel: str | None = None
    check_audio: Literal["full", "header", "none"] = "full"
    crop_seconds: float = 2.015
    speed_factors: list[float] = field(default_factory=lambda: [1.0])
    augment_probability: float = 0.0
    augment_kinds: list[str] = field(default_factory=lambda: ["noise", "babble", "reverb", "band", "equaliser", "gain"])
    augment_most: int = 1
    augment_pairs: bool = False
    level_range_db: list[float] = field(default_factory=list)
    noise_folder: str | None = None
    rir_folder: str | None = None
    music_folder: str | None = None
    speech_folder: str | None = None
    dev_trials: str | None = None
    test_trials: list[str] = field(default_factory=list)
    trial_root: str | None = None
    protocol: Literal["whole", "paper"] = "whole"
    cache_megabytes: int = 0
    frame_folder: str | None = None
    num_workers: int = 0
    shuffle: bool = True
    samples_per_epoch: int = 0

    def __post_init__(self) -> None:
        _expand_home(self)
        _check_argument_numbers(self, DATA_RANGES)
        # Recipes and the command line contain the number of a channel as text.
        if isinstance(self.channel, str) and self.channel.isascii() and self.channel.isdigit():
            vars(self)["channel"] = int(self.channel)
        choose_channel(None, self.channel)
        check_level_range(self.level_range_db if self.level_range_db else None)
        if self.augment_pairs and self.augment_probability == 0:
            raise ValueError("augment_pairs needs augment_probability above 0, got 0. Set it to 1.0 as in the paper.")


@dataclass
class TrainingArguments:
    """Arguments of the optimisation, the checkpoints and the output of a training run.

    Example:
        ```python
        from hf_hamspk import TrainingArguments

        arguments = TrainingArguments(output_dir="runs/first", epochs=20, batch_size=128, mixed_precision="bf16")
        ```

    Attributes:
        output_dir: folder for checkpoints, logs and the models `best`, `last` and `final`.
        seed: seed of all random numbers.
        epochs: number of passes over the training set.
        max_steps: number of optimiser steps after which training stops (0: no limit). An incomplete last epoch counts
            as one epoch in the average of `final`.
        batch_size: number of utterances in an optimiser step, over all processes and accumulation steps.
        utterances_per_speaker: number of utterances of each speaker in a batch. The batch then has
            `batch_size / utterances_per_speaker` speakers, and all speakers are drawn equally often. With 0, utterances
            are drawn in random order. Shards support only 0.
        gradient_accumulation_steps: number of forward passes per optimiser step.
        optimizer: `"adam"` (with L2 penalty, as in the paper), `"adamw"` or `"sgd"` (with Nesterov momentum).
        learning_rate, lr_schedule, lr_decay, final_learning_rate, warmup_epochs: learning rate schedule; see
            `schedules.learning_rate`.
        momentum: momentum of `"sgd"`.
        weight_decay: weight decay of all parameters, as in the paper.
        margin_start_epoch, margin_end_epoch: margin schedule; see `schedules.margin`. Both are 0 for a constant margin.
        max_grad_norm: norm to which longer gradients are clipped (0: no clipping).
        class_sampling: fraction of the speakers that are used in the loss of a step, in (0, 1]: the speakers of the
            batch, and others drawn at random (Partial FC, for very large numbers of speakers). Weight decay and the
            momenta of the optimiser always apply to all speakers.
        shard_centres: whether the speaker centres are divided among the processes (for very large numbers of
            speakers). Saved models and checkpoints contain all centres in any case.
        mixed_precision: precision of the encoder under autocast; geometry and loss stay in float32. None uses the
            precision that is set by `accelerate launch`, its configuration file or the variable
            `ACCELERATE_MIXED_PRECISION`, or `"no"` if none of them sets one.
        freeze_batch_norm: whether batch normalisation uses its running statistics and does not update them.
        sync_batch_norm: whether batch statistics are computed over all processes (GPUs only).
        evaluate_every: number of epochs between evaluations on `dev_trials`.
        save_steps: number of optimiser steps between checkpoints, in addition to a checkpoint at the end of each epoch
            (0: only at the end of each epoch).
        keep_checkpoints: number of checkpoints that are kept.
        average_last: number of epochs at the end of training whose weights are averaged into `final`; 5 in the paper.
        log_steps: number of optimiser steps between log entries.
        resume: whether to continue from the newest checkpoint in `output_dir`, if there is one. False removes the
            checkpoints of an earlier run.
        cpu: whether to use the CPU even if a GPU is available.
        report_to: trackers that receive the metrics: any trackers of Accelerate, such as `"tensorboard"`, `"trackio"`
            and `"wandb"`, or `"none"`.
        project: name of the project in the trackers.
        run_name: name of the run in the trackers. None uses the name of `output_dir`; TensorBoard then writes to
            `logs/`.
        push_to_hub: whether to publish the model on the Hub, with its code and card (see `publishing.push_to_hub`).
        hub_model_id: name of the repository, `owner/name`.
        hub_strategy: `"end"` publishes `final`; `"every_epoch"` also publishes `last` after every epoch.
        hub_private: whether a new repository is private.
        keep_centres: whether training speakers keep their centres if the initial model has centres with their names.
            The other training speakers get new centres, and all other centres of the initial model are removed. If
            False, the head is new.
        freeze_backbone_epochs: number of epochs at the beginning in which the backbone is in evaluation mode and is not
            trained.
        train_last_blocks: number of blocks at the end of an encoder of this package that are trained. Pooling,
            projection and head are always trained; with 0, nothing else is. The other layers keep their weights and
            batch statistics. In a recipe, `initial_model` must be set. None trains all layers.
        initial_centres: `"random"` or `"mean"`. With `"mean"`, each centre of a new head begins at the mean embedding
            of its speaker, so that the first steps do not disturb a pretrained model; `frame_folder` must be set.
        backbone_learning_rate: largest learning rate of the backbone, with the same schedule as the other layers; None
            for `learning_rate`.
        layer_decay: ratio of the learning rates of a layer of a transformers backbone and the next layer. Below 1, the
            first layers change least; 1.0 for equal rates.
        lora_rank: rank of the LoRA adapters that are trained instead of a transformers backbone; 0 for no adapters. The
            package PEFT is needed. Saved models contain merged adapters, and the folder `adapter` contains the adapters
            alone. To average the last epochs, each of the two factors of an adapter is averaged.
        lora_alpha: number that is divided by the rank to give the scale of the adapters; None for twice the rank.
        lora_dropout: dropout probability of the input of the adapters.
        lora_targets: names of the layers that get adapters, such as `output_dense`. An empty list means all layers
            whose adapters can learn: the feed-forward networks and, except in WavLM, the attention.

    Raises:
        ValueError: a number is outside its range in `TRAINING_RANGES`, or two arguments contradict each other.
    """

    output_dir: str = "runs/hamspk"
    seed: int = 0
    epochs: int = 100
    max_steps: int = 0
    batch_size: int = 256
    utterances_per_speaker: int = 0
    gradient_accumulation_steps: int = 1
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-3
    lr_schedule: Literal["epoch_decay", "exponential", "constant"] = "epoch_decay"
    lr_decay: float = 0.97
    final_learning_rate: float = 5e-5
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 2e-5
    margin_start_epoch: float = 0.0
    margin_end_epoch: float = 0.0
    max_grad_norm: float = 0.0
    class_sampling: float = 1.0
    shard_centres: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    freeze_batch_norm: bool = False
    sync_batch_norm: bool = False
    evaluate_every: int = 1
    save_steps: int = 0
    keep_checkpoints: int = 2
    average_last: int = 5
    log_steps: int = 10
    resume: bool = True
    cpu: bool = False
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    project: str = "hf_hamspk"
    run_name: str | None = None
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_strategy: Literal["end", "every_epoch"] = "end"
    hub_private: bool = True
    keep_centres: bool = False
    freeze_backbone_epochs: int = 0
    train_last_blocks: int | None = None
    initial_centres: Literal["random", "mean"] = "random"
    backbone_learning_rate: float | None = None
    layer_decay: float = 1.0
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_targets: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _expand_home(self)
        self._check_hub()
        _check_argument_numbers(self, TRAINING_RANGES)
        if self.lora_targets and self.lora_rank == 0:
            raise ValueError("lora_targets needs lora_rank above 0, got 0. Set lora_rank, for example to 8.")
        if 0 < self.epochs <= self.freeze_backbone_epochs:
            raise ValueError(
                f"freeze_backbone_epochs must be below epochs ({self.epochs}), got {self.freeze_backbone_epochs}. To "
                "never train a transformers backbone, set freeze_backbone: true."
            )
        if self.utterances_per_speaker and self.batch_size % self.utterances_per_speaker:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of utterances_per_speaker "
                f"({self.utterances_per_speaker})."
            )
        if self.shard_centres and self.mixed_precision == "fp16":
            raise ValueError(
                "shard_centres needs mixed_precision 'bf16' or 'no', got 'fp16'. With fp16, the loss scale could "
                "differ between processes."
            )
        if not 0 <= self.margin_start_epoch <= self.margin_end_epoch:
            raise ValueError(
                f"margin_start_epoch ({self.margin_start_epoch}) and margin_end_epoch ({self.margin_end_epoch}) must "
                "be at least 0, and the first must not exceed the second."
            )

    def _check_hub(self) -> None:
        if self.push_to_hub != (self.hub_model_id is not None):
            raise ValueError(
                "push_to_hub and hub_model_id belong together, got "
                f"push_to_hub {self.push_to_hub} and hub_model_id {self.hub_model_id!r}. Set both, or neither."
            )


@dataclass(frozen=True)
class Recipe:
    """Recipe of a training run: all its arguments.

    Attributes:
        model: arguments of the model (`ModelArguments`).
        data: arguments of the data.
        training: arguments of the optimisation, the checkpoints and the output.
    """

    model: Any
    data: DataArguments
    training: TrainingArguments

    def config_fields(self) -> dict[str, Any]:
        """Return the fields of `HamSpkConfig` that the recipe sets."""
        given = dataclasses.asdict(self.model)
        others = {"initial_model"} if self.pretrained_backbone is None else {"initial_model", "backbone"}
        return {k: v for k, v in given.items() if v is not None and k not in others}

    @property
    def pretrained_backbone(self) -> str | None:
        """Hub name or folder of the pretrained transformers encoder; None if the recipe names none."""
        return None if self.model.backbone in ENCODERS else self.model.backbone

    def with_precision(self, mixed_precision: str) -> "Recipe":
        """Return the recipe with the precision that Accelerate uses.

        Raises:
            ValueError: another argument does not allow this precision.
        """
        return dataclasses.replace(self, training=dataclasses.replace(self.training, mixed_precision=mixed_precision))

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as a flat dictionary. If it is saved as YAML, `read_recipe` reads the same recipe."""
        # Not `asdict`, which would copy a data set.
        data = {one.name: getattr(self.data, one.name) for one in dataclasses.fields(self.data)}
        if not isinstance(self.data.train_data, str | None):
            data["train_data"] = f"({type(self.data.train_data).__name__} of a program)"
        parts = (self.config_fields(), data, dataclasses.asdict(self.training))
        flat = {key: value for part in parts for key, value in part.items() if value is not None and value != []}
        starts = {name: getattr(self.model, name) for name in ("backbone", "initial_model")}
        return {k: v for k, v in starts.items() if v is not None} | flat


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def read_recipe(arguments: Sequence[str]) -> Recipe:
    """Read a recipe from arguments of the form `[recipe.yaml] [--key value ...]`.

    Values on the command line take precedence over the file. Relative paths are relative to the working directory.

    Raises:
        ValueError: the recipe is missing or is not a flat YAML mapping, a key is unknown (the message suggests a
            similar key), or a value has the wrong type or is out of range.
    """
    words: list[str] = []
    rest = list(arguments)
    if rest and not rest[0].startswith("-"):
        path = rest.pop(0)
        words += _words(_read_fields(path), path)
    for word in rest:
        if word.endswith((".yaml", ".yml")):
            raise ValueError(
                f"The recipe must be the first argument, but {word} comes later. Put it before the --key value pairs."
            )
        if word.startswith("--"):
            _check_key(word[2:].split("=")[0].replace("-", "_").removeprefix("no_"), "the command line")
    return _parse([*words, *rest])


def change_recipe(recipe: str | os.PathLike[str] | Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return a copy of a recipe with changed values.

    Args:
        recipe: YAML file or recipe.
        changes: new values by key; None resets a key to its default.

    Raises:
        ValueError: the recipe or a change is invalid (see `read_recipe`).
    """
    for key in changes:
        _check_key(key, "the changes")
    if isinstance(recipe, Recipe):
        return parse_fields(recipe.as_dict() | dict(changes), "the recipe")
    return parse_fields(_read_fields(recipe) | dict(changes), os.fspath(recipe))


def parse_fields(fields: Mapping[str, Any], where: str) -> Recipe:
    """Return the recipe with the given keys and values.

    Args:
        fields: values by key.
        where: origin of the fields, for error messages.

    Raises:
        ValueError: a key or value is invalid (see `read_recipe`).
    """
    return _parse(_words(fields, where))


def _parse(words: Sequence[str]) -> Recipe:
    """Parse command-line arguments `--key value` with known keys into a recipe."""
    parser = _Parser(_parts(), allow_abbrev=False, prog="train")
    model, data, training, unused = parser.parse_args_into_dataclasses(list(words), return_remaining_strings=True)
    if unused:
        raise ValueError(
            f"Expected --key value, got the additional words {' '.join(unused)}. Only list arguments take several "
            "values."
        )
    if model.backbone is not None and model.initial_model is not None:
        raise ValueError(
            "Set only one of backbone (a new model on a pretrained encoder) and initial_model (fine-tuning), not both."
        )
    _check_initial_model(model.initial_model, training)
    if data.train_data is None:
        raise ValueError(
            "train_data is missing. Set it to a folder of speaker/.../utterance.flac or to a list of recordings."
        )
    _expand_home(model)
    recipe = Recipe(model, data, training)
    if recipe.pretrained_backbone is None and model.initial_model is None:
        valid_config(recipe.config_fields())  # raises before any data is read
    return recipe


def _check_initial_model(initial_model: str | None, training: TrainingArguments) -> None:
    """Raise ValueError if `initial_model` is needed but not set, or if it is in the output folder of the run."""
    if initial_model is None:
        if training.keep_centres:
            raise ValueError(
                "keep_centres needs initial_model, the model whose centres are kept. Set both, or neither."
            )
        if training.train_last_blocks is not None:
            raise ValueError(
                "train_last_blocks needs initial_model, because the other layers keep the weights of this model. Set "
                "both. For a pretrained encoder of transformers, use freeze_backbone instead."
            )
        return
    if Path(initial_model).expanduser().resolve().is_relative_to(Path(training.output_dir).resolve()):
        raise ValueError(
            f"initial_model {initial_model} is in the output folder {training.output_dir}, where the new run would "
            "replace it. Choose another output_dir."
        )


def valid_config(fields: dict[str, Any]) -> HamSpkConfig:
    """Make a configuration from its fields.

    Raises:
        ValueError: a value is invalid. The message is the one that the configuration gives.
    """
    try:
        return HamSpkConfig(**fields)
    except StrictDataclassError as error:
        raise ValueError(str(error if error.__cause__ is None else error.__cause__)) from error


def _read_fields(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the fields of a YAML recipe."""
    check_recipe(os.fspath(path))
    try:
        content = load_yaml(path)
    except ValueError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain 'key: value' lines without nesting, got a {type(content).__name__}.")
    return {str(key): value for key, value in content.items()}


def _words(fields: Mapping[str, Any], where: str) -> list[str]:
    """Convert the fields of a recipe to command-line arguments."""
    words = []
    for key, value in fields.items():
        _check_key(key, where)
        if isinstance(value, dict):
            raise ValueError(
                f"{where}: expected a value or a list for {key}, got a mapping. Recipes have no nested keys."
            )
        if key == "mixed_precision" and value is False:
            value = "no"  # YAML reads a plain `no` as False.
        values = value if isinstance(value, list | tuple) else [value]
        if value is not None and values:
            words += [f"--{key}", *map(str, values)] if isinstance(value, list | tuple) else [f"--{key}={value}"]
    return words


def _parts() -> list[Any]:
    """Return the dataclasses whose fields are the keys of a recipe."""
    return [ModelArguments, DataArguments, TrainingArguments]


def _check_key(key: str, where: str) -> None:
    known = {field.name for part in _parts() for field in dataclasses.fields(part)}
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" The known arguments are {', '.join(sorted(known))}."
        raise ValueError(f"{where}: unknown argument {key!r:.200}.{hint}")


def _check_argument_numbers(arguments: Any, ranges: dict[str, tuple[float, float]]) -> None:
    """Raise a ValueError if a number is outside its range, or if a value or an entry of a list is not a number."""
    for spec in dataclasses.fields(arguments):
        if spec.name not in ranges:
            continue
        value: Any = getattr(arguments, spec.name)
        kinds = typing.get_args(spec.type) if isinstance(spec.type, types.UnionType) else (spec.type,)
        default = spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory()
        if (value is None or value == []) and value == default:
            continue
        is_list = not {int, float} & set(kinds)
        if is_list and not isinstance(value, list | tuple):
            raise ValueError(f"{spec.name} must be a list of numbers, got {value!r:.200}.")
        entries: list[Any] = [*value] if is_list and value is not None else [value]
        expected, kind = (Integral, "a whole number") if int in kinds else (Real, "a number")
        for one in entries:
            if isinstance(one, bool) or not isinstance(one, expected):
                raise ValueError(f"{spec.name} must be {kind}, got {one!r:.200}.")
        plain = [one if isinstance(one, int) else float(one) for one in entries]
        check_values({spec.name: plain if is_list else plain[0]}, ranges)


def _expand_home(arguments: Any) -> None:
    """Replace a leading `~` in the paths of the arguments by the home folder, as a shell does."""
    for one in dataclasses.fields(arguments):
        value = getattr(arguments, one.name)
        if isinstance(value, str) and value.startswith("~"):
            setattr(arguments, one.name, os.path.expanduser(value))
        elif isinstance(value, list):
            expanded = [os.path.expanduser(v) if isinstance(v, str) and v.startswith("~") else v for v in value]
            setattr(arguments, one.name, expanded)
