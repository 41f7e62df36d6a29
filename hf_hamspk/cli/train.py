"""`hamspk train`: train a model from a recipe."""

import argparse

from ..training import Trainer, format_results, read_recipe

EPILOG = """\
The recipe is a YAML file of 'key: value' lines; every key can also be given as --key value, which wins.
A run that was stopped continues where it was when the same command is given again.

On several GPUs or machines, either of
  accelerate launch -m hf_hamspk train recipe.yaml
  accelerate launch examples/train.py recipe.yaml

What the keys mean is in the classes of hf_hamspk.training: `python -c "from hf_hamspk.training import *;
help(DataArguments); help(TrainingArguments)"`, and `help(hf_hamspk.HamSpkConfig)` for the model.

The model to use is then in <output_dir>/final, the error rates in <output_dir>/results.json.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Only for the help: the words go to `read_recipe` as they are."""
    parser.usage = "hamspk train [recipe.yaml] [--key value ...]"
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Train, average the last epochs, evaluate, print the error rates."""
    trainer = Trainer(read_recipe(arguments.rest))
    results = trainer.train()
    if trainer.accelerator.is_main_process:
        print(format_results(results))
        print(f"model: {trainer.output_dir / 'final'}")
    return 0
