# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_hamspk[m4a]", "trackio>=0.43"]
#
# [tool.hf-jobs]
# name = "hamspk-finetune"
# flavor = "a10g-small"
# timeout = "4h"
# secrets = ["HF_TOKEN"]
# ///
"""Fine-tune a speaker model on a data set of the Hub, and publish it, in one file for `uv run` and Hugging Face Jobs.

Usage:
    uv run examples/finetune_job.py --data you/voices --model you/base --push you/mine
    hf jobs uv run examples/finetune_job.py --data you/voices --model you/base --push you/mine

The data set has a column of audio and a column of speakers. The table `tool.hf-jobs` in the header names the hardware,
the time limit and the secret with which the job publishes; options of `hf jobs uv run` take precedence. If your index
of packages does not have hf_hamspk, replace it in the header by `hf_hamspk @ git+URL` with the address of a copy.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import load_dataset

from hf_hamspk import DataArguments, HamSpkConfig, HamSpkForXVector, Trainer, TrainingArguments


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fine-tune a speaker model on a data set of the Hub.")
    parser.add_argument("--data", required=True, help="data set on the Hub, or a folder speaker/.../utterance.wav")
    parser.add_argument("--split", default="train", help="split of the data set")
    parser.add_argument("--speaker-column", help="column of the speakers; without it, the usual names are tried")
    parser.add_argument("--model", help="speaker model to start from; without it, a new ECAPA-TDNN is trained")
    parser.add_argument("--push", metavar="OWNER/NAME", help="repository for the model, updated after every epoch")
    parser.add_argument("--output-dir", default="runs/job", help="folder of the run")
    parser.add_argument("--epochs", type=int, default=10, help="number of epochs (default: 10)")
    parser.add_argument("--batch-size", type=int, default=64, help="crops per step (default: 64)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="largest learning rate (default: 1e-4)")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    # 1. The data: a folder, or a data set that is downloaded but not decoded
    data: Any = options.data if Path(options.data).is_dir() else load_dataset(options.data, split=options.split)

    # 2. The model, which gets a new head for the speakers of the data
    model: Any = (
        HamSpkForXVector(HamSpkConfig()) if options.model is None else HamSpkForXVector.from_pretrained(options.model)
    )

    # 3. The run. The disk of a job is deleted at its end, so the model is published after every epoch.
    arguments = TrainingArguments(
        options.output_dir,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        report_to=["trackio"] if options.push else ["none"],
        push_to_hub=options.push is not None,
        hub_model_id=options.push,
        hub_strategy="every_epoch",
    )
    trainer = Trainer(model, arguments, data, data=DataArguments(speaker_column=options.speaker_column))
    trainer.train()
    print(f"model: {trainer.output_dir / 'final'}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"finetune_job.py: error: {error}")
