"""What a recipe asks for, built: trial lists, training crops, model, optimiser."""

from collections.abc import Callable

import torch
from torch import nn

from ..configuration_hamspk import HamSpkConfig
from ..data.augmentation import Augmentation
from ..data.corpus import check_corpus, load_corpus, speaker_labels
from ..data.dataset import SpeakerCrops
from ..evaluation.trials import Trials, check_trial_files, read_trials
from ..modeling_hamspk import HamSpkForXVector
from .arguments import DataArguments, Recipe, TrainingArguments

MEGABYTE = 1 << 20


def trial_root(data: DataArguments) -> str:
    """Folder of the paths in the trial lists."""
    for root in (data.trial_root, data.audio_root):
        if root is not None:
            return root
    return "."


def read_trial_lists(data: DataArguments) -> dict[str, Trials]:
    """The dev and test lists by their paths, after a check that their audio files exist."""
    lists = [data.dev_trials] if data.dev_trials is not None else []
    trials = {path: read_trials(path) for path in [*lists, *data.test_trials]}
    for each in trials.values():
        check_trial_files(each, trial_root(data))
    return trials


def build_crops(recipe: Recipe, say: Callable[[str], None], progress: bool) -> tuple[SpeakerCrops, list[str]]:
    """The training set, and the name of each of its labels.

    A speaker at another speed is a speaker of its own, named `speaker@speed`.

    Args:
        recipe: what to load.
        say: receives the report on the audio check.
        progress: show a bar.
    """
    data = recipe.data
    corpus = load_corpus(str(data.train_data), data.audio_root, data.audio_column, data.speaker_column)
    if data.check_audio != "none":
        report = check_corpus(corpus, data.check_audio == "full", progress=progress)
        say(report.summary())
        corpus = report.dataset
    speakers = speaker_labels(corpus)
    rate = recipe.config_fields().get("sampling_rate", HamSpkConfig().sampling_rate)
    augmentation = None
    if data.augment_probability > 0:
        augmentation = Augmentation(
            data.augment_probability,
            tuple(data.augment_kinds),
            data.noise_folder,
            data.rir_folder,
            rate,
            data.augment_most,
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
    )
    return crops, [s if speed == 1.0 else f"{s}@{speed:g}" for speed in data.speed_factors for s in speakers]


def build_model(recipe: Recipe, speakers: list[str]) -> HamSpkForXVector:
    """A new model, one on a pretrained backbone, or one to fine-tune with a new head."""
    fields = recipe.config_fields() | {
        "num_labels": len(speakers),
        "id2label": dict(enumerate(speakers)),
        "label2id": {speaker: label for label, speaker in enumerate(speakers)},
    }
    start = recipe.model
    if start.initial_model is not None:
        return HamSpkForXVector.from_pretrained(start.initial_model, ignore_mismatched_sizes=True, **fields)
    if start.backbone is not None:
        return HamSpkForXVector.from_backbone(start.backbone, **fields)
    return HamSpkForXVector(HamSpkConfig(**fields))


def build_optimizer(args: TrainingArguments, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over all parameters that have a gradient, centres and norms included, as in the paper."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if args.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, args.learning_rate, args.momentum, weight_decay=args.weight_decay, nesterov=True
        )
    kind = torch.optim.Adam if args.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, args.learning_rate, weight_decay=args.weight_decay)
