"""`hamspk train`: train a model from a recipe."""

import argparse

from ..loading.names import check_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set the usage and epilog of `hamspk train`; `read_recipe` parses the arguments."""
    parser.usage = "hamspk train [recipe.yaml] [--key value ...]"
    parser.epilog = (
        "The recipe is a YAML file of 'key: value' lines. Every key can also be given as --key value on the command\n"
        "line, which takes precedence. To resume an interrupted run, run the same command again.\n"
        "\n"
        "On several GPUs or machines, use one of these commands:\n"
        "  accelerate launch -m hf_hamspk train recipe.yaml\n"
        "  accelerate launch examples/train.py recipe.yaml\n"
        "\n"
        "The keys are documented in three classes:\n"
        '  python -c "import hf_hamspk; help(hf_hamspk.DataArguments); help(hf_hamspk.TrainingArguments)"\n'
        '  python -c "import hf_hamspk; help(hf_hamspk.HamSpkConfig)"\n'
        "\n"
        "The trained model is written to <output_dir>/final, with its error rates in evaluation.json and\n"
        "report.html in the same folder."
    )


def check(arguments: argparse.Namespace) -> None:
    """Check that the recipe exists before torch is imported.

    Raises:
        ValueError: the recipe does not exist.
    """
    if arguments.rest and not arguments.rest[0].startswith("-"):
        check_recipe(arguments.rest[0])


def run(arguments: argparse.Namespace) -> int:
    """Train, average the last epochs, evaluate, and print the error rates."""
    from ..evaluation.report import format_report
    from ..training import Trainer, read_recipe

    trainer = Trainer.from_recipe(read_recipe(arguments.rest))
    record = trainer.train()
    if trainer.accelerator.is_main_process:
        if record.lists:
            print(format_report(record))
        print(f"model: {trainer.output_dir / 'final'}")
    return 0
