"""Train a speaker model from a recipe.

Usage:
    accelerate launch examples/train.py examples/recipes/speech_small.yaml
    accelerate launch examples/train.py examples/recipes/vox2_ecapa_ham.yaml --margin 0.3 --output_dir runs/m03

Every key of a recipe can also be given on the command line, which takes precedence. To resume an interrupted run, run
the same command again.
"""

import sys

from hf_hamspk.evaluation import format_report
from hf_hamspk.training import Trainer, read_recipe


def main() -> None:
    # 1. The recipe, with the changes of the command line
    recipe = read_recipe(sys.argv[1:])

    # 2. Data, model and optimiser
    trainer = Trainer.from_recipe(recipe)

    # 3. Train, average the last epochs, evaluate
    record = trainer.train()

    # 4. Print the error rates and the folder of the model
    if trainer.accelerator.is_main_process:
        print(format_report(record))
        print(f"model: {trainer.output_dir / 'final'}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        # The message explains the problem with the input; a traceback would not help.
        sys.exit(f"train.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted; run the same command again to resume from the newest checkpoint")
