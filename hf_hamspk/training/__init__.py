"""Training with Accelerate: arguments, schedules, checkpoints and the trainer."""

from .arguments import DataArguments, ModelArguments, Recipe, TrainingArguments, read_recipe
from .trainer import Trainer

__all__ = [
    "DataArguments",
    "ModelArguments",
    "Recipe",
    "Trainer",
    "TrainingArguments",
    "read_recipe",
]
