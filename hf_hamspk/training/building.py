"""Build the parts of a training run: the Accelerator, the training crops and the optimiser."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, LoggerType, broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader
from transformers.utils import logging

from ..configuration_hamspk import HamSpkConfig
from ..data.augmentation import Augmentation, NoiseSource
from ..data.columns import sequential_order
from ..data.dataset import SpeakerCrops, collate
from ..data.sampling import GlobalBatchSampler, SpeakerBatchSampler
from ..publishing.push import check_repository
from ..shards.reading import open_shards
from ..shards.row_streams import RowBatches, StreamUtterances
from ..shards.streaming import NoiseShards, ShardUtterances, StreamedBatches
from .arguments import DataArguments, Recipe, TrainingArguments
from .checkpoints import DATA_FACTS
from .corpora import MEGABYTE, open_corpus
from .stages import parameter_groups

logger = logging.get_logger(__name__)

PRECISION_VARIABLE = "ACCELERATE_MIXED_PRECISION"
# Methods that divide a model among processes, with the environment variables that `accelerate launch` sets for them.
DIVIDING = {
    "FSDP": "ACCELERATE_USE_FSDP",
    "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
}
# Arguments that may change when a run is resumed.
_FREE_ARGUMENTS = {
    "output_dir",
    "max_steps",
    "gradient_accumulation_steps",
    "keep_checkpoints",
    "log_steps",
    "save_steps",
    "resume",
    "shard_centres",
    "cpu",
    "report_to",
    "project",
    "run_name",
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "hub_private",
}
# Arguments that are missing in checkpoints of earlier versions.
_LATER_ARGUMENTS = (
    *("keep_centres", "freeze_backbone_epochs", "backbone_learning_rate", "layer_decay", "train_last_blocks"),
    *("initial_centres", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets"),
    *("channel", "level_range_db", "shuffle"),
)
_SHARED_DATA_ARGUMENTS = (
    "crop_seconds",
    "speed_factors",
    "augment_probability",
    "augment_kinds",
    "augment_most",
    "augment_pairs",
    "channel",
    "level_range_db",
    "shuffle",
)
# Fields of a configuration that `recipe_in_effect` adds to a recipe.
_HEAD_FIELDS = ("head", "scale", "curvature", "projection", "clip_radius", "similarity")
# Fields of a configuration that do not describe the architecture.
_NOT_ARCHITECTURE = ("transformers_version", "dtype", "architectures", "id2label", "label2id", "_name_or_path")


def check_run(args: TrainingArguments, processes: int) -> None:
    """Check that the batch is large enough for batch normalisation, and that `hub_model_id` is a valid name.

    Raises:
        ValueError: the batch is too small, or `hub_model_id` is not the name of a repository.
    """
    if args.hub_model_id is not None:
        check_repository(args.hub_model_id)
    parts = processes * args.gradient_accumulation_steps
    if args.batch_size < 2 * parts and not args.freeze_batch_norm:
        raise ValueError(
            f"With batch_size {args.batch_size}, each of the {parts} forward passes of a step (processes x "
            "gradient_accumulation_steps) has fewer than 2 utterances, but batch normalisation needs 2. Increase "
            "batch_size."
        )


def on_main(accelerator: Accelerator, function: Callable[[], Any]) -> Any:
    """Call a function on the main process only.

    Returns:
        The result, on all processes.

    Raises:
        ValueError, OSError: the function raised this error. It is raised on all processes, because otherwise the other
            processes would wait for the result forever.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function()
        except (ValueError, OSError) as error:
            if accelerator.num_processes == 1:
                raise
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def make_accelerator(args: TrainingArguments, config: HamSpkConfig) -> Accelerator:
    """Make an Accelerator for the available devices and processes.

    Raises:
        ValueError: a tracker is unknown or not installed, `mixed_precision` contradicts `accelerate launch`, or
            `accelerate launch` divides the model among the processes.
    """
    check_launch()
    # In steps without masked frames, the mask embedding of a transformers backbone gets no gradient.
    unused = config.backbone_config is not None or args.freeze_backbone_epochs > 0
    accelerator = Accelerator(
        mixed_precision=chosen_precision(args),
        cpu=args.cpu,
        log_with=[*chosen_trackers(args)] or None,
        project_dir=args.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
    )
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16" and not has_fast_bfloat16():
        logger.warning(
            "This CPU has no bfloat16 instructions, so mixed_precision bf16 makes training many times slower. Use "
            "--mixed_precision no."
        )
    return accelerator


def check_launch(accelerator: Accelerator | None = None) -> None:
    """Check that the model is not divided among the processes.

    `accelerate launch` stores a request to divide the model in an environment variable. On CPUs, Accelerate would
    ignore this request.

    Args:
        accelerator: Accelerator of the run; None checks only the environment.

    Raises:
        ValueError: FSDP, DeepSpeed or Megatron-LM was requested.
    """
    kind = None if accelerator is None else accelerator.distributed_type.value
    asked = [name for name, key in DIVIDING.items() if os.environ.get(key, "false").lower() in ("1", "true")]
    asked += [name for name in DIVIDING if kind == name.upper().replace("-", "_")]
    if asked:
        raise ValueError(
            f"Training with {asked[0]} is not supported, because evaluation and saving need the complete model in each "
            "process. Launch with --multi_gpu, and use lora_rank or mixed_precision bf16 for large encoders."
        )


def chosen_precision(args: TrainingArguments) -> str | None:
    """Return the precision to pass to Accelerate. If it is None, Accelerate reads its environment variables.

    `accelerate launch` stores the precision of its option `--mixed_precision` or of its configuration file in an
    environment variable. If neither sets a precision, it stores `no`. The value `no` is therefore not treated as a
    contradiction to the arguments.

    Raises:
        ValueError: the arguments and `accelerate launch` name different precisions.
    """
    launched = os.environ.get(PRECISION_VARIABLE, "no").lower()
    if args.mixed_precision is not None and launched not in ("no", args.mixed_precision):
        raise ValueError(
            f"The recipe sets mixed_precision {args.mixed_precision}, but accelerate launch or {PRECISION_VARIABLE} "
            f"sets {launched}. Remove one of the two, or set both to the same value."
        )
    return args.mixed_precision


def chosen_trackers(args: TrainingArguments) -> list[str]:
    """Return the names of the trackers of a run.

    Raises:
        ValueError: a tracker is unknown or its package is not installed.
    """
    names = [name for name in args.report_to if name != "none"]
    known = [str(name) for name in LoggerType.list() if name != "all"]
    for name in names:
        if name not in known:
            raise ValueError(f"report_to: unknown tracker {name!r}. Use any of {', '.join(known)}, or none.")
        if name not in [str(one) for one in get_available_trackers()]:
            package = "comet_ml" if name == "comet_ml" else name
            raise ValueError(f"report_to: the tracker {name} is not installed. Run `pip install {package}`.")
    return names


def has_fast_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16 matrix products, and PyTorch uses them."""
    if not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def run_settings(recipe: Recipe, config: HamSpkConfig) -> dict[str, Any]:
    """Return the settings of model and training that must not change when a run is resumed.

    Returns:
        Settings as JSON values, by name.
    """
    arguments = {k: v for k, v in dataclasses.asdict(recipe.training).items() if k not in _FREE_ARGUMENTS}
    arguments |= {name: getattr(recipe.data, name) for name in _SHARED_DATA_ARGUMENTS}
    defaults = dataclasses.asdict(TrainingArguments()) | dataclasses.asdict(DataArguments())
    for name in _LATER_ARGUMENTS:
        if arguments[name] == defaults[name]:
            del arguments[name]
    model = {k: v for k, v in config.to_diff_dict().items() if k not in _NOT_ARCHITECTURE}
    return json.loads(json.dumps(arguments | model))


def run_identity(recipe: Recipe, config: HamSpkConfig, crops: SpeakerCrops) -> dict[str, Any]:
    """Return the settings of a run and the facts about its data that must not change when the run is resumed.

    Returns:
        Settings as JSON values, by name; see `run_settings`.
    """
    utterances = crops.utterances
    facts = dict(zip(DATA_FACTS, (len(crops), utterances.fingerprint(), utterances.contents()), strict=True))
    return run_settings(recipe, config) | facts


def recipe_in_effect(recipe: Recipe, config: HamSpkConfig, margin: float) -> dict[str, Any]:
    """Return all values of a recipe. Values of the head that the recipe does not set are read from `config`.

    Args:
        recipe: recipe of the run.
        config: configuration of the model.
        margin: margin at the end of the margin schedule.
    """
    head = {name: getattr(config, name) for name in _HEAD_FIELDS} | {"margin": margin}
    return recipe.as_dict() | head


def build_crops(
    recipe: Recipe,
    rate: int,
    report: Callable[[str], None],
    progress: bool,
    speakers: Sequence[str] | None = None,
) -> tuple[SpeakerCrops, list[str]]:
    """Make the training set of a recipe.

    With `speed_factors`, a speaker at another speed than 1.0 is a separate speaker with the name `speaker@speed`.

    Args:
        recipe: recipe of the run.
        rate: sampling rate of the model in Hz.
        report: function that receives a summary of the audio check or of the shards.
        progress: whether to show a progress bar.
        speakers: training speakers in the order of their class indices; None uses the sorted speakers of the data.

    Returns:
        The training crops, and the speaker names in the order of the labels.

    Raises:
        ValueError: the data cannot be used, or a speaker of the data is not in `speakers`.
    """
    data = recipe.data
    corpus, found = open_corpus(data, rate, report, progress, speakers)
    speakers = found if speakers is None else list(speakers)
    missing = sorted(set(found) - set(speakers))
    if missing or len(set(speakers)) != len(speakers):
        raise ValueError(
            f"speakers must contain each speaker of the training data once, but {len(missing)} are missing, for "
            f"example {missing[:3]}. Complete the list, or leave it out."
        )
    augmentation = None
    if data.augment_probability > 0 or data.level_range_db:
        augmentation = Augmentation(
            data.augment_probability,
            tuple(data.augment_kinds),
            noise_source(data.noise_folder, rate),
            noise_source(data.rir_folder, rate),
            rate,
            data.augment_most,
            noise_source(data.music_folder, rate),
            noise_source(data.speech_folder, rate),
            (data.level_range_db[0], data.level_range_db[1]) if data.level_range_db else None,
        )
    crops = SpeakerCrops(
        corpus,
        {speaker: label for label, speaker in enumerate(speakers)},
        round(data.crop_seconds * rate),
        recipe.training.seed,
        data.speed_factors,
        augmentation,
        sampling_rate=rate,
        cache_bytes=data.cache_megabytes * MEGABYTE,
        pairs=data.augment_pairs,
    )
    return crops, [s if speed == 1.0 else f"{s}@{speed:g}" for speed in data.speed_factors for s in speakers]


def noise_source(folder: str | None, rate: int) -> NoiseSource | str | None:
    """Return the shards in a folder as a source of noise, or the folder itself if it contains no shards."""
    reader = None if folder is None else open_shards(folder)
    return folder if reader is None else NoiseShards(reader, rate)


def training_batches(
    recipe: Recipe, crops: SpeakerCrops, epoch: int, first_batch: int, accelerator: Accelerator
) -> tuple[int, Iterator[dict[str, torch.Tensor]]]:
    """Return the batches of this rank for an epoch, starting with the global batch number `first_batch`.

    Returns:
        The number of global batches in the complete epoch, and an iterator over the micro-batches of this rank:
        `gradient_accumulation_steps` micro-batches for each remaining global batch.

    Raises:
        ValueError: `utterances_per_speaker` is set for shards, or the batch size does not fit the data or the ranks.
    """
    args, workers = recipe.training, recipe.data.num_workers
    rank, ranks = accelerator.process_index, accelerator.num_processes
    steps, pin_memory = args.gradient_accumulation_steps, accelerator.device.type == "cuda"
    streamed = isinstance(crops.utterances, ShardUtterances | StreamUtterances)
    if streamed and args.utterances_per_speaker:
        raise ValueError(
            "utterances_per_speaker is for corpora in files, because a shard or a part of a stream may contain only "
            "some utterances of a speaker. Remove it, or set train_data to a CSV file or a folder of recordings."
        )
    if isinstance(crops.utterances, ShardUtterances):
        batches = StreamedBatches(crops, args.batch_size, rank, ranks, steps, workers, pin_memory)
        batches.epoch, batches.batch = epoch, first_batch
        return batches.batches_per_epoch, iter(batches)
    if isinstance(crops.utterances, StreamUtterances):
        batches = RowBatches(crops, args.batch_size, rank, ranks, steps, workers, pin_memory)
        batches.epoch, batches.batch = epoch, first_batch
        return batches.batches_per_epoch, iter(batches)
    order = None if recipe.data.shuffle else sequential_order(len(crops.utterances), len(crops.speed_factors))
    if args.utterances_per_speaker:
        order = speaker_order(crops.labels(), args, epoch)
    sampler = GlobalBatchSampler(len(crops), args.batch_size, rank, ranks, steps, args.seed, epoch, first_batch, order)
    loader = DataLoader(
        crops,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        # Without a generator, the loader would draw a seed from the global generator, which masking and dropout use.
        generator=torch.Generator(),
    )
    return sampler.batches_per_epoch, iter(loader)


def speaker_order(labels: np.ndarray, args: TrainingArguments, epoch: int) -> np.ndarray:
    """Return the order of the samples in an epoch if `utterances_per_speaker` is set.

    Each global batch contains `utterances_per_speaker` utterances of each of its speakers.

    Returns:
        Sample numbers in the order of the global batches.

    Raises:
        ValueError: there are fewer speakers than one batch needs.
    """
    each = args.utterances_per_speaker
    batches = len(labels) // args.batch_size
    sampler = SpeakerBatchSampler(labels, args.batch_size // each, each, args.seed, epoch, batches=batches)
    return np.array([sample for batch in sampler for _, sample in batch])


def views(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Split a batch of pairs into a batch of clean crops and a batch of augmented crops.

    Other batches are returned unchanged, as the only entry of the list.

    The two batches have separate batch statistics, and their mean losses are added, as in the code that was published
    with the paper.
    """
    inputs = batch["input_values"]
    if inputs.ndim == 2:
        return [batch]
    return [batch | {"input_values": view} for view in inputs.unbind(1)]


def build_optimizer(args: TrainingArguments, model: nn.Module) -> torch.optim.Optimizer:
    """Make an optimiser for all trainable parameters, including centres and normalisation layers, as in the paper."""
    parameters = parameter_groups(args, model)
    if args.optimizer == "sgd":
        nesterov = args.momentum > 0
        return torch.optim.SGD(
            parameters, args.learning_rate, args.momentum, weight_decay=args.weight_decay, nesterov=nesterov
        )
    kind = torch.optim.Adam if args.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, args.learning_rate, weight_decay=args.weight_decay)


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, args: TrainingArguments) -> None:
    """Check that an optimiser contains every trainable parameter of a model.

    Raises:
        ValueError: a parameter is missing, for example because the trainer replaced the head. Or the arguments set
            learning rates for single layers, which do not apply to a given optimiser.
    """
    if args.backbone_learning_rate is not None or args.layer_decay != 1 or args.lora_rank:
        raise ValueError(
            "backbone_learning_rate, layer_decay and lora_rank do not apply to the optimiser that was passed. Give its "
            "parameter groups their own rates, or pass no optimiser."
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, one in model.named_parameters() if one.requires_grad and id(one) not in held]
    if missing:
        raise ValueError(
            f"The optimiser lacks {len(missing)} trainable parameters of the model, for example {missing[0]}. If the "
            "trainer replaced the head, give the model a head for the training speakers before you make the optimiser, "
            "or pass no optimiser."
        )


def without_gradient(model: nn.Module) -> list[str]:
    """Return the names of the trainable parameters that have no gradient."""
    return [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
