"""Train a speaker model from a recipe.

Usage:
    accelerate launch examples/train.py examples/recipes/speech_small.yaml
    accelerate launch examples/train.py examples/recipes/vox2_ecapa_ham.yaml --margin 0.3 --output_dir runs/m03

Every argument of a recipe can be given on the command line, which wins. A run that was stopped continues where it was
when the same command is given again.
"""

import sys

from hf_hamspk.training import Trainer, format_results, read_recipe


def main() -> None:
    # 1. The recipe, and what the command line changes in it
    recipe = read_recipe(sys.argv[1:])

    # 2. Data, model and optimiser
    trainer = Trainer(recipe)

    # 3. Train, average the last epochs, evaluate
    results = trainer.train()

    # 4. The error rates, and where the model is
    if trainer.accelerator.is_main_process:
        print(format_results(results))
        print(f"model: {trainer.output_dir / 'final'}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        # What was wrong with the input is in the message; where it was noticed is of no interest.
        sys.exit(f"train.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted; the same command continues from the newest checkpoint")
