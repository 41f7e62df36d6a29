"""`transformers.Trainer` with the collator and the metrics of this package."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from datasets import Audio, ClassLabel, Dataset
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback

from hf_hamspk import HamSpkConfig, HamSpkForXVector, InputError, SpeakerCollator, TrialMetrics
from hf_hamspk.data import Augmentation
from hf_hamspk.losses import BlockwiseEngine, use_blocks

TINY = {"ecapa_channels": 16, "ecapa_output_channels": 48, "pooling_channels": 16, "embedding_size": 16}


# Loads the saved model as remote code, where importing the package fails.
WITHOUT_THE_PACKAGE = """
import sys
sys.modules["hf_hamspk"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForAudioXVector

torch.set_num_threads(1)
folder = sys.argv[1]
model = AutoModelForAudioXVector.from_pretrained(f"{folder}/final", trust_remote_code=True).eval()
with torch.no_grad():
    found = model(load_file(f"{folder}/wave.safetensors")["wave"]).embeddings
save_file({"found": found}, f"{folder}/found.safetensors")
print(model.config.num_labels, model.config.id2label[5], type(model).__module__.split(".")[0])
"""


@pytest.fixture(scope="module")
def rows(corpus) -> Dataset:
    """The corpus as a data set with an undecoded `Audio` column, speakers as text."""
    lines = [line.split(",") for line in (corpus / "train.csv").read_text().splitlines()[1:]]
    content = {"audio": [str(corpus / "audio" / path) for path, _ in lines], "speaker": [one for _, one in lines]}
    return Dataset.from_dict(content).cast_column("audio", Audio(decode=False))


def make_trainer(rows, corpus, folder: Path, model: HamSpkForXVector, collator: SpeakerCollator, **changes):
    settings = {"num_train_epochs": 8, "per_device_train_batch_size": 6, "learning_rate": 3e-3, "logging_steps": 4}
    settings |= {"eval_strategy": "epoch", "save_strategy": "epoch", "metric_for_best_model": "eer"}
    settings |= {"greater_is_better": False, "load_best_model_at_end": True, "save_total_limit": 1, "seed": 1}
    settings |= {"remove_unused_columns": False, "dataloader_drop_last": True, "report_to": [], "use_cpu": True}
    settings |= {"per_device_eval_batch_size": 2}
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(str(folder), **(settings | changes)),
        data_collator=collator,
        train_dataset=rows,
        eval_dataset=rows.select(range(2)) if isinstance(rows, Dataset) else None,
        compute_metrics=TrialMetrics(model, corpus / "dev.txt", corpus / "audio"),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=20)],
    )


@pytest.mark.slow
def test_the_loss_falls_and_the_eer_is_reported(rows, corpus, tmp_path):
    collator = SpeakerCollator(rows, crop_seconds=0.5, augmentation=Augmentation(0.5, ("noise", "babble")))
    torch.manual_seed(0)
    model = HamSpkForXVector(HamSpkConfig(**TINY, **collator.labels()))
    trainer = make_trainer(rows, corpus, tmp_path / "run", model, collator)
    trainer.train()
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    evaluated = [entry for entry in history if "eval_eer" in entry]
    assert len(evaluated) == 8 and all({"eval_loss", "eval_min_dcf_0.01"} <= entry.keys() for entry in evaluated)
    assert trainer.state.best_metric == min(entry["eval_eer"] for entry in evaluated)
    assert trainer.evaluate()["eval_eer"] == trainer.state.best_metric, "the best model was loaded at the end"
    assert TrialMetrics(model, corpus / "dev.txt", corpus / "audio")()["eer"] == trainer.state.best_metric
    trainer.save_model(str(tmp_path / "final"))
    save_file({"wave": torch.randn(2, 16000)}, tmp_path / "wave.safetensors")
    words = [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(tmp_path)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=os.environ | {"HF_HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["6", "s5", "transformers_modules"]
    with torch.no_grad():
        expected = model.eval()(load_file(tmp_path / "wave.safetensors")["wave"]).embeddings
    torch.testing.assert_close(load_file(tmp_path / "found.safetensors")["found"], expected)


@pytest.mark.slow
def test_a_stream_a_trained_encoder_and_the_blockwise_engine(rows, corpus, tmp_path):
    collator = SpeakerCollator(rows.to_iterable_dataset(), crop_seconds=0.5)
    assert collator.speakers == [f"s{number}" for number in range(6)]
    HamSpkForXVector(HamSpkConfig(**TINY, num_labels=3)).save_pretrained(tmp_path / "start")
    model = HamSpkForXVector.from_pretrained(tmp_path / "start", ignore_mismatched_sizes=True, **collator.labels())
    use_blocks(model.head)
    changes = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "max_steps": 4}
    trainer = make_trainer(rows.to_iterable_dataset(), corpus, tmp_path / "run", model, collator, **changes)
    trainer.remove_callback(EarlyStoppingCallback)
    trainer.train()
    assert isinstance(model.head.engine, BlockwiseEngine)
    trainer.save_model(str(tmp_path / "final"))
    config = json.loads((tmp_path / "final" / "config.json").read_text())
    assert config["id2label"] == {str(number): f"s{number}" for number in range(6)}


def test_batches_depend_on_the_seed_of_torch_only(rows):
    collator = SpeakerCollator(rows, crop_seconds=0.5, augmentation=Augmentation(1.0, ("babble", "gain")))
    batch = [rows[number] for number in (0, 5, 9)]
    first, again, other = (torch.manual_seed(seed) and collator(batch) for seed in (1, 1, 2))
    assert first["input_values"].shape == (3, 8000) and first["input_values"].dtype == torch.float32
    assert first["labels"].tolist() == [0, 1, 2]
    assert torch.equal(first["input_values"], again["input_values"])
    assert not torch.equal(first["input_values"], other["input_values"])


def test_class_labels_and_given_speakers(rows):
    names = ClassLabel(names=[f"s{number}" for number in reversed(range(6))])
    labelled = rows.cast_column("speaker", names)
    assert SpeakerCollator(labelled).speakers == [f"s{number}" for number in range(6)]
    assert SpeakerCollator(labelled)([labelled[0], labelled[23]])["labels"].tolist() == [0, 5]
    collator = SpeakerCollator(rows, speakers=["s9", *(f"s{number}" for number in range(6))])
    assert collator([rows[0]])["labels"].tolist() == [1]
    assert collator.labels()["num_labels"] == 7 and collator.labels()["label2id"]["s9"] == 0


def test_a_row_that_cannot_be_read_is_replaced(rows, tmp_path, caplog):
    collator = SpeakerCollator(rows, crop_seconds=0.5)
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    bad = {"audio": {"path": str(tmp_path / "bad.wav"), "bytes": None}, "speaker": "s0"}
    batch = collator([bad, rows[20], rows[21]])
    assert batch["labels"].tolist() == [5, 5, 5]
    collator([bad, rows[0]])
    assert caplog.text.count("bad.wav") == 1
    with pytest.raises(InputError, match="none of the 1 rows of a batch can be read"):
        collator([bad])


def test_mistakes_are_explained(rows, corpus, monkeypatch, tmp_path):
    collator = SpeakerCollator(rows)
    with pytest.raises(ValueError, match="Set remove_unused_columns=False in the arguments"):
        collator([{"speaker": "s0"}])
    with pytest.raises(ValueError, match="the speaker 'new' is not among the 6 speakers"):
        collator([rows[0] | {"speaker": "new"}])
    with pytest.raises(ValueError, match="no column 'sound'"):
        SpeakerCollator(rows, audio_column="sound")
    with pytest.raises(ValueError, match="crop_seconds must be above 0, got 0"):
        SpeakerCollator(rows, crop_seconds=0)
    with pytest.raises(ValueError, match="at least 2 speakers, got only 's0'"):
        SpeakerCollator(rows.filter(lambda row: row["speaker"] == "s0"))
    if importlib.util.find_spec("torchcodec") is None:
        with pytest.raises(ValueError, match=r"Use dataset.cast_column\('audio', Audio\(decode=False\)\)"):
            SpeakerCollator(rows.cast_column("audio", Audio()))
    model = HamSpkForXVector(HamSpkConfig(**TINY))
    with pytest.raises(ValueError, match="12 of 12 files of the trial list are missing"):
        TrialMetrics(model, corpus / "dev.txt", tmp_path)
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(16000), 16000)
    (tmp_path / "silent.txt").write_text("1 0.wav 1.wav\n0 2.wav 3.wav\n")
    with pytest.raises(ValueError):
        TrialMetrics(model, tmp_path / "silent.txt", tmp_path)()
