"""Stages of a training run (first epochs in which the backbone is not trained), and learning rates by layer."""

import re
from typing import Any

from torch import nn

from ..configuration_hamspk import HamSpkConfig
from ..modeling_hamspk import HamSpkForXVector
from .arguments import TrainingArguments

RATE_FACTOR = "rate_factor"
"""Key, in a parameter group of the optimiser, of the factor by which the learning rate is multiplied."""
_LAYER = re.compile(r"\blayers?\.(\d+)\.")


def check_stages(args: TrainingArguments, config: HamSpkConfig) -> None:
    """Check that a model can be trained in the stages that the arguments describe.

    Raises:
        ValueError: an argument for the training of the backbone is set although the backbone is never trained, or
            `layer_decay` is set for a backbone that does not support it.
    """
    if config.freeze_backbone and (args.freeze_backbone_epochs or args.backbone_learning_rate is not None):
        raise ValueError(
            "With freeze_backbone the backbone is never trained, so freeze_backbone_epochs and backbone_learning_rate "
            "cannot be used. Remove freeze_backbone."
        )
    if args.layer_decay != 1 and config.backbone_config is None:
        raise ValueError(
            f"layer_decay is only for transformers backbones, got {args.layer_decay} for {config.backbone}. Remove it, "
            "or use backbone_learning_rate."
        )


class BackboneStage:
    """Switch that excludes the backbone from training in the first epochs of a run, and includes it afterwards.

    Args:
        model: model to train. Its trainable parameters must have been chosen before.
        epochs: number of epochs at the beginning in which the backbone is not trained.
    """

    def __init__(self, model: HamSpkForXVector, epochs: int):
        self.backbone, self.epochs = model.hamspk.backbone, epochs
        self._trainable = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]

    def enter(self, epoch: int) -> None:
        """Include or exclude the backbone for an epoch, numbered from 0. The model must be in training mode."""
        if self.epochs == 0:
            return
        is_frozen = epoch < self.epochs
        for parameter in self._trainable:
            parameter.requires_grad_(not is_frozen)
        if is_frozen:
            self.backbone.eval()

    def starts(self, epoch: int, batch: int) -> bool:
        """Return whether a stage starts at this batch of an epoch, both numbered from 0."""
        return batch == 0 and epoch in (0, self.epochs)


def parameter_groups(args: TrainingArguments, model: nn.Module) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups for an optimiser. Each group has its own learning rate.

    The first group contains the parameters outside the backbone. The last layer of the backbone has the rate
    `backbone_learning_rate`. The rate of each earlier layer is the rate of the next layer times `layer_decay`. The
    parameters before the first layer are treated as one more layer.
    """
    named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    rate = args.learning_rate if args.backbone_learning_rate is None else args.backbone_learning_rate
    if rate == args.learning_rate and args.layer_decay == 1:
        return [{"params": [one for _, one in named]}]
    depths = {name: _depth(name) for name, _ in named if _in_backbone(name)}
    last = max((depth for depth in depths.values() if depth is not None), default=0)
    groups: dict[int | None, list[nn.Parameter]] = {None: []}
    for name, one in named:
        depth = (last if depths[name] is None else depths[name]) if name in depths else None
        groups.setdefault(depth, []).append(one)
    factor = rate / args.learning_rate
    factors = {depth: 1.0 if depth is None else factor * args.layer_decay ** (last - depth) for depth in groups}
    return [{"params": ones, RATE_FACTOR: factors[depth]} for depth, ones in groups.items() if ones]


def _in_backbone(name: str) -> bool:
    return name.startswith("hamspk.backbone.")


def _depth(name: str) -> int | None:
    """Return the depth of a parameter of the backbone: 0 before the first layer, and None after the last layer."""
    layer = _LAYER.search(name)
    if layer is not None:
        return int(layer[1]) + 1
    return None if name.startswith("hamspk.backbone.encoder.layer_norm.") else 0


def fold_names(names: list[str]) -> str:
    """Return names of parameters as one text. Names that differ only in one number are combined.

    For example, `layers.0.q_proj.weight` to `layers.11.q_proj.weight` become `layers.{0-11}.q_proj.weight`.
    """
    found: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        pattern = name if number is None else f"{name[: number.start()]}#{name[number.end() :]}"
        found.setdefault(pattern, []).extend([] if number is None else [int(number[0])])
    return ", ".join(pattern.replace("#", f"{{{_number_runs(sorted(rows))}}}") for pattern, rows in found.items())


def _number_runs(numbers: list[int]) -> str:
    """Return sorted numbers as text, with consecutive numbers written as a range."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
