"""Training with Accelerate: arguments, schedules, checkpoints and the trainer."""

from .arguments import DataArguments, ModelArguments, Recipe, TrainingArguments, read_recipe
from .lora import load_adapter
from .trainer import Trainer

__all__ = [
    "DataArguments",
    "ModelArguments",
    "Recipe",
    "Trainer",
    "TrainingArguments",
    "load_adapter",
    "read_recipe",
]
