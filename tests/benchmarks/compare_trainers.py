"""The trainer of this package and `transformers.Trainer` on the same data: EER before and after, and the time.

Both train the same initial weights with Adam at a constant rate, on the same rows, for the same number of steps, and
without augmentation. Orders and crops are drawn differently, so the error rates agree only up to the noise of training;
`--seeds 3` shows how large it is.

python tests/benchmarks/compare_trainers.py ../shared/speech/train.csv ../shared/speech/trials/dev-o.txt \
    --audio-root ../shared/speech/audio
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import transformers
from datasets import Audio, Dataset

from hf_hamspk import (
    DataArguments,
    HamSpkConfig,
    HamSpkForXVector,
    SpeakerCollator,
    Trainer,
    TrainingArguments,
    TrialMetrics,
    Trials,
    read_trials,
)
from hf_hamspk.data.corpus import load_corpus
from hf_hamspk.losses import use_blocks

SIZES = {"ecapa_channels": 64, "ecapa_output_channels": 192, "pooling_channels": 32, "embedding_size": 64}


def build(collator: SpeakerCollator, seed: int) -> HamSpkForXVector:
    torch.manual_seed(seed)
    return HamSpkForXVector(HamSpkConfig(**SIZES, **collator.labels()))


def with_ours(arguments, data: Dataset, model: HamSpkForXVector, folder: str, seed: int) -> None:
    settings = {"optimizer": "adam", "lr_schedule": "constant", "weight_decay": 0.0, "average_last": 1}
    settings |= {"cpu": True, "report_to": ["none"], "log_steps": 10**6}
    Trainer(
        model,
        TrainingArguments(
            folder,
            seed=seed,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            **settings,
        ),
        train_dataset=data,
        data=DataArguments(crop_seconds=arguments.crop_seconds),
    ).train()


def with_transformers(arguments, data: Dataset, model: HamSpkForXVector, collator, folder: str, seed: int) -> None:
    use_blocks(model.head)
    settings = {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "adam_epsilon": 1e-8, "save_strategy": "no"}
    settings |= {"remove_unused_columns": False, "dataloader_drop_last": True, "report_to": [], "use_cpu": True}
    transformers.Trainer(
        model,
        transformers.TrainingArguments(
            folder,
            seed=seed,
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            logging_strategy="no",
            disable_tqdm=True,
            **settings,
        ),
        data_collator=collator,
        train_dataset=data,
    ).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    parser.add_argument("trials")
    parser.add_argument("--audio-root", required=True)
    parser.add_argument("--speakers", type=int, default=60, help="number of training speakers (default: 60)")
    parser.add_argument("--count", type=int, default=400, help="number of trials, drawn evenly (default: 400)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--crop-seconds", type=float, default=1.5)
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds (default: 1)")
    arguments = parser.parse_args()

    corpus = load_corpus(arguments.table, arguments.audio_root)
    chosen = set(sorted(set(corpus["speaker"]))[:: max(1, len(set(corpus["speaker"])) // arguments.speakers)])
    kept = [(path, one) for path, one in zip(corpus["path"], corpus["speaker"], strict=True) if one in chosen]
    columns = {"audio": [path for path, _ in kept], "speaker": [one for _, one in kept]}
    data = Dataset.from_dict(columns).cast_column("audio", Audio(decode=False))
    collator = SpeakerCollator(data, crop_seconds=arguments.crop_seconds)
    whole = read_trials(arguments.trials)
    places = np.linspace(0, len(whole) - 1, arguments.count).astype(int)
    names = ([column[i] for i in places] for column in (whole.enrolment, whole.test))
    trials = Trials(np.asarray(whole.labels)[places], *map(tuple, names))
    print(f"{len(data)} rows of {len(collator.speakers)} speakers, {len(trials)} trials", flush=True)
    print("seed | trainer | seconds | EER before (%) | EER after (%)")
    for seed in range(arguments.seeds):
        for name in ("hf_hamspk", "transformers"):
            model = build(collator, seed)
            metrics = TrialMetrics(model, trials, arguments.audio_root)
            before, start = metrics()["eer"], time.perf_counter()
            with TemporaryDirectory() as folder:
                if name == "hf_hamspk":
                    with_ours(arguments, data, model, str(Path(folder) / "run"), seed)
                else:
                    with_transformers(arguments, data, model, collator, folder, seed)
            seconds = time.perf_counter() - start
            after = metrics()["eer"]
            print(f"{seed} | {name} | {seconds:.0f} | {100 * before:.2f} | {100 * after:.2f}", flush=True)


if __name__ == "__main__":
    main()
