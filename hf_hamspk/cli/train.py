"""`hamspk train`: train a model from a recipe."""

import argparse

from ..loading.names import check_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For the help only: `read_recipe` parses the words."""
    parser.usage = "hamspk train [recipe.yaml] [--key value ...]"
    parser.epilog = (
        "The recipe is a YAML file of 'key: value' lines. Every key can also be given as --key value, which takes\n"
        "precedence. The same command continues a run that was interrupted.\n"
        "\n"
        "On several GPUs or machines, either of\n"
        "  accelerate launch -m hf_hamspk train recipe.yaml\n"
        "  accelerate launch examples/train.py recipe.yaml\n"
        "\n"
        "The keys are described in three classes:\n"
        '  python -c "import hf_hamspk; help(hf_hamspk.DataArguments); help(hf_hamspk.TrainingArguments)"\n'
        '  python -c "import hf_hamspk; help(hf_hamspk.HamSpkConfig)"\n'
        "\n"
        "The trained model is in <output_dir>/final, its error rates are in evaluation.json and\n"
        "report.html beside it."
    )


def check(arguments: argparse.Namespace) -> None:
    """Refuse a recipe that is not there before torch is imported."""
    if arguments.rest and not arguments.rest[0].startswith("-"):
        check_recipe(arguments.rest[0])


def run(arguments: argparse.Namespace) -> int:
    """Train, average the last epochs, evaluate, print the error rates."""
    from ..evaluation.report import format_report
    from ..training import Trainer, read_recipe

    trainer = Trainer.from_recipe(read_recipe(arguments.rest))
    record = trainer.train()
    if trainer.accelerator.is_main_process:
        if record.lists:
            print(format_report(record))
        print(f"model: {trainer.output_dir / 'final'}")
    return 0
