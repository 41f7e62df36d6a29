"""`hamspk train`: train a model from a recipe."""

import argparse

from ..evaluation.report import format_report
from ..training import Trainer, read_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The help only: `read_recipe` takes the arguments."""
    parser.usage = "hamspk train [recipe.yaml] [--key value ...]"
    parser.epilog = """\
The recipe is a YAML file of 'key: value' lines; every key can also be given as --key value, which wins.
A run that was stopped continues where it was when the same command is given again.

On several GPUs or machines, either of
  accelerate launch -m hf_hamspk train recipe.yaml
  accelerate launch examples/train.py recipe.yaml

What the keys mean is in the classes of hf_hamspk.training: `python -c "from hf_hamspk.training import *;
help(DataArguments); help(TrainingArguments)"`, and `help(hf_hamspk.HamSpkConfig)` for the model.

The trained model is in <output_dir>/final, with its error rates in evaluation.json and report.html beside it.
"""


def run(arguments: argparse.Namespace) -> int:
    """Train, average the last epochs, evaluate, print the error rates."""
    trainer = Trainer(read_recipe(arguments.rest))
    record = trainer.train()
    if trainer.accelerator.is_main_process:
        if record.lists:
            print(format_report(record))
        print(f"model: {trainer.output_dir / 'final'}")
    return 0
