"""Build the components of a training run from its recipe: trial lists, training crops, model and optimiser."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from ..configuration_hamspk import HamSpkConfig
from ..data.augmentation import Augmentation, NoiseSource
from ..data.corpus import check_corpus, load_corpus, speaker_labels
from ..data.dataset import SpeakerCrops, collate
from ..data.sampling import GlobalBatchSampler, SpeakerBatchSampler
from ..evaluation.trials import Trials, check_trial_files, read_trials
from ..loading.models import quiet_transformers
from ..loading.names import check_model
from ..modeling_hamspk import HamSpkForXVector
from ..shards.reading import open_shards
from ..shards.streaming import NoiseShards, ShardUtterances, StreamedBatches
from .arguments import DataArguments, Recipe, TrainingArguments, valid_config
from .checkpoints import DATA_FACTS

logger = logging.get_logger(__name__)

MEGABYTE = 1 << 20
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
}
_SHARED_DATA_ARGUMENTS = (
    "crop_seconds",
    "speed_factors",
    "augment_probability",
    "augment_kinds",
    "augment_most",
    "augment_pairs",
)
# Fields of a configuration that `recipe_in_effect` adds to a recipe.
_HEAD_FIELDS = ("head", "scale", "curvature", "projection", "clip_radius", "similarity")
# Fields of a configuration that do not describe the architecture.
_NOT_ARCHITECTURE = ("transformers_version", "dtype", "architectures", "id2label", "label2id", "_name_or_path")


def check_run(args: TrainingArguments, processes: int) -> None:
    """Check that the batch is large enough for batch normalisation.

    Raises:
        ValueError: the batch is too small.
    """
    parts = processes * args.gradient_accumulation_steps
    if args.batch_size < 2 * parts and not args.freeze_batch_norm:
        raise ValueError(
            f"batch_size {args.batch_size} leaves fewer than 2 utterances for each of {parts} forward passes "
            "(processes x gradient_accumulation_steps), but batch normalisation needs 2. Increase batch_size."
        )


def on_main(accelerator: Accelerator, function: Callable[[], Any]) -> Any:
    """Call a function on the main process only.

    Returns:
        The result, on all processes.

    Raises:
        ValueError, OSError: the errors of the function, on all processes. Otherwise, the others would wait forever.
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
    """Make an Accelerator for the available devices and processes."""
    # The masking embedding of a transformers backbone gets no gradient in steps without a mask.
    unused = config.backbone_config is not None
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        cpu=args.cpu,
        log_with="tensorboard",
        project_dir=args.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
    )
    if accelerator.device.type == "cpu" and args.mixed_precision == "bf16" and not has_fast_bfloat16():
        logger.warning(
            "This CPU has no bfloat16 instructions, so mixed_precision bf16 makes training many times slower. Use "
            "--mixed_precision no."
        )
    return accelerator


def has_fast_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16 matrix products that PyTorch supports."""
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
    model = {k: v for k, v in config.to_diff_dict().items() if k not in _NOT_ARCHITECTURE}
    return json.loads(json.dumps(arguments | model))


def run_identity(recipe: Recipe, config: HamSpkConfig, crops: SpeakerCrops) -> dict[str, Any]:
    """Return the settings of a run and the facts about its data that must not change when the run is resumed.

    Returns:
        Settings as JSON values, by name; see `run_settings`.
    """
    facts = dict(zip(DATA_FACTS, (len(crops), crops.utterances.fingerprint()), strict=True))
    return run_settings(recipe, config) | facts


def recipe_in_effect(recipe: Recipe, config: HamSpkConfig, margin: float) -> dict[str, Any]:
    """Return a recipe with the values of the head that are in effect, also those that the recipe leaves out.

    Args:
        recipe: recipe of the run.
        config: configuration of the model.
        margin: margin at the end of the margin schedule.
    """
    head = {name: getattr(config, name) for name in _HEAD_FIELDS} | {"margin": margin}
    return recipe.as_dict() | head


def trial_root(data: DataArguments) -> str:
    """Return the base folder of the paths in the trial lists."""
    for root in (data.trial_root, data.audio_root):
        if root is not None:
            return root
    return "."


def read_trial_lists(data: DataArguments) -> dict[str, Trials]:
    """Read the development and test trial lists and check that their audio files exist.

    Returns:
        Trials of each list, by the path of the list.

    Raises:
        ValueError: a list is invalid, lacks targets or impostors, or names a missing file.
    """
    lists = [data.dev_trials] if data.dev_trials is not None else []
    trials = {}
    for path in [*lists, *data.test_trials]:
        trials[path] = read_trials(path)
        targets = int(trials[path].labels.sum())
        if not 0 < targets < len(trials[path]):
            raise ValueError(
                f"{path} has {targets} target and {len(trials[path]) - targets} impostor trials; error rates need "
                "both. Add lines that begin with 1 (target) or 0 (impostor)."
            )
        check_trial_files(trials[path], trial_root(data))
    return trials


def build_crops(
    recipe: Recipe, rate: int, report: Callable[[str], None], progress: bool
) -> tuple[SpeakerCrops, list[str]]:
    """Make the training set of a recipe.

    A speaker at another speed counts as a separate speaker with the name `speaker@speed`.

    Args:
        recipe: recipe of the run.
        rate: sampling rate of the model in Hz.
        report: function that receives a summary of the audio check or of the shards.
        progress: whether to show a progress bar.

    Returns:
        The training crops, and the speaker names in the order of the labels.
    """
    data = recipe.data
    corpus, speakers = _open_corpus(data, rate, report, progress)
    augmentation = None
    if data.augment_probability > 0:
        augmentation = Augmentation(
            data.augment_probability,
            tuple(data.augment_kinds),
            noise_source(data.noise_folder, rate),
            noise_source(data.rir_folder, rate),
            rate,
            data.augment_most,
            noise_source(data.music_folder, rate),
            noise_source(data.speech_folder, rate),
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


def _open_corpus(
    data: DataArguments, rate: int, report: Callable[[str], None], progress: bool
) -> tuple[Any, list[str]]:
    """Open the training utterances and list their speakers.

    Audio files are checked first. Shards are not, because they were checked when they were prepared.
    """
    reader = open_shards(str(data.train_data))
    if reader is not None:
        manifest = reader.manifest
        report(
            f"{manifest.utterances} utterances of {len(manifest.speakers)} speakers, {manifest.seconds / 3600:.2f} h, "
            f"in {len(manifest.shards)} shards at {reader.folder}"
        )
        if len(manifest.speakers) < 2:
            raise ValueError(f"Training needs at least 2 speakers, got {len(manifest.speakers)} in {reader.folder}.")
        return ShardUtterances(reader, rate), manifest.speakers
    corpus = load_corpus(str(data.train_data), data.audio_root, data.audio_column, data.speaker_column)
    if data.check_audio != "none":
        checked = check_corpus(corpus, data.check_audio == "full", progress=progress)
        report(checked.summary())
        corpus = checked.dataset
    return corpus, speaker_labels(corpus)


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
    if isinstance(crops.utterances, ShardUtterances):
        if args.utterances_per_speaker:
            raise ValueError(
                "utterances_per_speaker is for corpora in files, because a shard may contain only some utterances of "
                "a speaker. Remove it, or set train_data to a CSV file or a folder of recordings."
            )
        batches = StreamedBatches(crops, args.batch_size, rank, ranks, steps, workers, pin_memory)
        batches.epoch, batches.batch = epoch, first_batch
        return batches.batches_per_epoch, iter(batches)
    order = None if not args.utterances_per_speaker else speaker_order(crops.labels(), args, epoch)
    sampler = GlobalBatchSampler(len(crops), args.batch_size, rank, ranks, steps, args.seed, epoch, first_batch, order)
    loader = DataLoader(
        crops,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        # Without a generator, the loader would draw a seed from the global one, which masking and dropout use.
        generator=torch.Generator(),
    )
    return sampler.batches_per_epoch, iter(loader)


def speaker_order(labels: np.ndarray, args: TrainingArguments, epoch: int) -> np.ndarray:
    """Return an order of the samples of an epoch with `utterances_per_speaker` utterances of each speaker in a batch.

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
    """Split a batch of pairs into a batch of clean crops and a batch of augmented crops. Do not split other batches.

    The two batches have separate batch statistics, and their mean losses are added, as in the released trainer.
    """
    inputs = batch["input_values"]
    if inputs.ndim == 2:
        return [batch]
    return [batch | {"input_values": view} for view in inputs.unbind(1)]


def build_config(recipe: Recipe) -> HamSpkConfig:
    """Make the configuration that a recipe describes. The speaker names are added later, by `build_model`.

    For fine-tuning, fields that the recipe does not set keep the values of the initial model. If the recipe sets
    another head, scale, margin and curvature have the published values of that head unless the recipe sets them.

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
    """Make the model to train: a new one, one with a pretrained backbone, or one to fine-tune with a new head.

    Raises:
        ValueError: the weights of the initial model do not fit the configuration outside the head.
    """
    config.num_labels = len(speakers)
    config.id2label = dict(enumerate(speakers))
    config.label2id = {speaker: label for label, speaker in enumerate(speakers)}
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


def build_optimizer(args: TrainingArguments, model: nn.Module) -> torch.optim.Optimizer:
    """Make an optimiser for all trainable parameters, including centres and normalisation layers, as in the paper."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if args.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, args.learning_rate, args.momentum, weight_decay=args.weight_decay, nesterov=True
        )
    kind = torch.optim.Adam if args.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, args.learning_rate, weight_decay=args.weight_decay)
