"""The trainer as a Python program uses it: models, callbacks, trackers, optimisers, signals, precision."""

import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_hamspk import DataArguments, HamSpkConfig, HamSpkForXVector, Trainer, TrainingArguments, read_trials
from hf_hamspk.training.building import chosen_precision
from hf_hamspk.training.interruption import EXIT_STATUS
from hf_hamspk.training.trial_lists import gather_trial_lists

TINY = {"ecapa_channels": 16, "ecapa_output_channels": 48, "pooling_channels": 16, "embedding_size": 16}
EVENTS = ["train_begin", "epoch_begin", "step_begin", "pre_optimizer_step", "optimizer_step", "step_end", "log"]


class Recorder(TrainerCallback):
    """Records the events of a run."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.metrics: list[dict] = []

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.events.append("evaluate")
        self.metrics.append(metrics)


def _note(name):
    def note(self, args, state, control, **kwargs):
        self.events.append(name)

    return note


for _name in (*EVENTS, "init_end", "epoch_end", "save", "train_end", "substep_end"):
    setattr(Recorder, f"on_{_name}", _note(_name))


def tiny_model(**changes) -> HamSpkForXVector:
    torch.manual_seed(3)
    return HamSpkForXVector(HamSpkConfig(**TINY, **changes))


@pytest.fixture
def make_trainer(tmp_path, corpus):
    """A function that makes a trainer on the corpus of CSV and files, with changes."""

    def make(name: str = "run", model=None, dev: bool = True, **changes) -> Trainer:
        given = {key: changes.pop(key) for key in ("callbacks", "optimizers", "test_trials") if key in changes}
        settings = {"epochs": 3, "batch_size": 6, "log_steps": 1, "cpu": True, "report_to": ["none"]} | changes
        return Trainer(
            tiny_model() if model is None else model,
            TrainingArguments(output_dir=str(tmp_path / name), **settings),
            train_dataset=str(corpus / "train.csv"),
            dev_trials=read_trials(corpus / "dev.txt") if dev else None,
            data=DataArguments(audio_root=str(corpus / "audio"), crop_seconds=0.5),
            **given,
        )

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_model_of_a_program_gets_a_head_for_the_speakers_and_learns(make_trainer, tmp_path, capsys):
    trainer = make_trainer(model=tiny_model(head="am"))
    assert "new am head for 6 training speakers" in capsys.readouterr().out
    assert trainer.bare_model.config.num_labels == 6 and trainer.bare_model.config.id2label[0] == "s0"
    record = trainer.train()
    assert set(record.lists) == {"dev"}
    assert HamSpkForXVector.from_pretrained(tmp_path / "run" / "final").config.head == "am"
    assert trainer.evaluate()["eval_eer"] == record.lists["dev"]["eer"]


@pytest.mark.slow
def test_a_head_for_the_same_speakers_is_kept(make_trainer, tmp_path, capsys):
    make_trainer("first", epochs=1).train()
    capsys.readouterr()
    model = HamSpkForXVector.from_pretrained(tmp_path / "first" / "final")
    before = model.head.similarity.weight.clone() if hasattr(model.head, "similarity") else None
    make_trainer("second", model=model)
    assert "new ham head" not in capsys.readouterr().out
    assert before is None or torch.equal(model.head.similarity.weight, before)


@pytest.mark.slow
def test_callbacks_receive_the_events_of_transformers_in_order(make_trainer):
    recorder = Recorder()
    make_trainer(callbacks=[recorder], epochs=1, gradient_accumulation_steps=2, freeze_batch_norm=True).train()
    assert recorder.events[:3] == ["init_end", "train_begin", "epoch_begin"]
    step = ["step_begin", "substep_end", "pre_optimizer_step", "optimizer_step", "step_end", "log"]
    assert recorder.events[3:9] == step
    assert recorder.events[-5:] == ["epoch_end", "log", "evaluate", "save", "train_end"]
    assert set(recorder.metrics[0]) >= {"eval_eer", "eval_min_dcf_0.01"}


@pytest.mark.slow
def test_early_stopping_stops_and_its_patience_survives_a_resumption(make_trainer, tmp_path):
    class NoBetter(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            metrics["eval_eer"] = 0.5  # Early stopping comes after this callback.

    stop = EarlyStoppingCallback(early_stopping_patience=2)
    record = make_trainer(callbacks=[NoBetter(), stop], epochs=9).train()
    assert record.training is not None and record.training["epochs"] == 3
    state = json.loads(next((tmp_path / "run" / "checkpoints").glob("*/trainer_state.json")).read_text())
    assert "EarlyStoppingCallback" in state["stateful_callbacks"]
    assert state["log_history"] and state["best_model_checkpoint"].endswith("best")


@pytest.mark.slow
def test_a_callback_can_ask_for_the_end_and_for_a_checkpoint(make_trainer, tmp_path):
    class Ask(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = state.global_step == 2
            control.should_training_stop = state.global_step == 3

    recorder = Recorder()
    trainer = make_trainer(callbacks=[Ask(), recorder])
    trainer.train()
    assert trainer.progress.step == 3
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} >= {"step-00000002"}


@pytest.mark.slow
def test_a_callback_that_fails_is_named_and_the_checkpoint_stays_usable(make_trainer, tmp_path):
    class Broken(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            if state.global_step > 0:
                raise KeyError("speaker")

    with pytest.raises(RuntimeError, match=r"callback Broken failed in on_epoch_begin: KeyError: 'speaker'"):
        make_trainer(callbacks=[Broken()]).train()
    make_trainer().train()
    make_trainer("other").train()
    assert same(tmp_path / "run" / "final", tmp_path / "other" / "final")


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 4, 6])
def test_sigterm_leaves_a_checkpoint_and_the_same_final_weights(make_trainer, tmp_path, at):
    class Terminate(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == at - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    class Count(TrainerCallback, ExportableState):
        def __init__(self):
            self.steps = 0

        def on_step_end(self, args, state, control, **kwargs):
            self.steps += 1

        def state(self):
            return {"args": {}, "attributes": {"steps": self.steps}}

    with pytest.raises(SystemExit) as stopped:
        make_trainer(callbacks=[Terminate(), Count()], dev=False).train()
    assert stopped.value.code == EXIT_STATUS == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    count = Count()
    trainer = make_trainer(callbacks=[count], dev=False)
    trainer.train()
    assert count.steps == trainer.progress.step == 12
    make_trainer("whole", dev=False).train()
    assert same(tmp_path / "run" / "final", tmp_path / "whole" / "final")


@pytest.mark.slow
def test_an_optimiser_and_a_schedule_of_a_program(make_trainer, tmp_path):
    def parts(model):
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def named() -> HamSpkForXVector:
        speakers = dict(enumerate(f"s{number}" for number in range(6)))
        return tiny_model(num_labels=6, id2label=speakers, label2id={name: n for n, name in speakers.items()})

    def run(name: str, **changes) -> Trainer:
        model = named()
        trainer = make_trainer(name, model=model, optimizers=parts(model), dev=False, **changes)
        trainer.train()
        return trainer

    whole = run("whole")
    assert whole.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**12)
    run("parts", max_steps=5)
    run("parts")
    assert same(tmp_path / "whole" / "final", tmp_path / "parts" / "final")
    model = tiny_model()
    with pytest.raises(ValueError, match="The optimiser lacks"):
        make_trainer("other", model=model, optimizers=parts(model))


class LogEER(TrainerCallback):
    """Logs the EER of each evaluation, as a user's own callback does."""

    def __init__(self) -> None:
        self.found: list[tuple[int, float]] = []

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.found.append((state.global_step, metrics["eval_eer"]))


@pytest.mark.slow
def test_trackers_and_a_callback_of_the_user_receive_the_eer(make_trainer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackio = pytest.importorskip("trackio.utils")
    log = LogEER()
    trackers = {"report_to": ["trackio", "tensorboard"], "project": "voices", "run_name": "first"}
    record = make_trainer(callbacks=[log], epochs=2, **trackers).train()
    assert [step for step, _ in log.found] == [4, 8]
    assert min(eer for _, eer in log.found) == record.training["best_dev_eer"]
    with closing(sqlite3.connect(trackio.TRACKIO_DIR / "voices.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    tracked = [(name, step, json.loads(values)) for name, step, values in rows]
    assert {name for name, _, _ in tracked} == {"first"}
    assert [(step, values["dev_eer"]) for _, step, values in tracked if "dev_eer" in values] == log.found
    assert [step for _, step, values in tracked if "loss" in values] == list(range(1, 9))
    board = next((tmp_path / "run" / "logs").rglob("events.out.tfevents*")).parent
    events = EventAccumulator(str(board)).Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("dev_eer")]
    assert [step for step, _ in scalars] == [4, 8]
    assert [value for _, value in scalars] == pytest.approx([eer for _, eer in log.found])


@pytest.mark.parametrize(
    ("name", "message"),
    [("tensorbord", "unknown tracker 'tensorbord'"), ("clearml", "tracker clearml is not installed")],
)
def test_trackers_that_cannot_be_used_are_refused_before_the_data_is_read(tmp_path, name, message):
    arguments = TrainingArguments(output_dir=str(tmp_path / "run"), report_to=[name], cpu=True)
    with pytest.raises(ValueError, match=message):
        Trainer(tiny_model(), arguments, train_dataset="nowhere")


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_model_is_not_divided_among_processes(monkeypatch, tmp_path, name):
    """As `accelerate launch --use_fsdp` stores it, also on CPUs, where Accelerate would ignore it."""
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    arguments = TrainingArguments(output_dir=str(tmp_path / "run"), cpu=True)
    with pytest.raises(ValueError, match="is not supported, because evaluation and saving need the complete model"):
        Trainer(tiny_model(), arguments, train_dataset="nowhere")


def test_precision_of_accelerate_launch(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert chosen_precision(TrainingArguments()) is None
    assert chosen_precision(TrainingArguments(mixed_precision="bf16")) == "bf16"
    with pytest.raises(ValueError, match="sets mixed_precision no, but accelerate launch"):
        chosen_precision(TrainingArguments(mixed_precision="no"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert chosen_precision(TrainingArguments(mixed_precision="bf16")) == "bf16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": torch.nn.Linear(1, 1)}, "model must be a HamSpkForXVector"),
        ({"train_dataset": None}, "Expected training data, got none"),
        ({"data": DataArguments(train_data="x")}, "got both"),
        ({"callbacks": [print]}, "callbacks must be instances or subclasses"),
        ({"speakers": ["s0"]}, "speakers must contain each speaker"),
    ],
)
def test_mistakes_are_explained(tmp_path, corpus, arguments, message):
    whole = {
        "model": tiny_model(),
        "args": TrainingArguments(output_dir=str(tmp_path / "run"), batch_size=6, cpu=True, report_to=["none"]),
        "train_dataset": str(corpus / "train.csv"),
    }
    data = {"data": DataArguments(audio_root=str(corpus / "audio"))}
    with pytest.raises(ValueError, match=message):
        Trainer(**(whole | data | arguments))


def test_a_home_folder_and_a_plain_no_are_understood(monkeypatch, tmp_path):
    from hf_hamspk.training.arguments import read_recipe

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text(
        "train_data: ~/data\noutput_dir: ~/run\nmixed_precision: no\ntest_trials: [~/a.txt]\n"
    )
    recipe = read_recipe([str(tmp_path / "recipe.yaml")])
    assert recipe.data.train_data == str(tmp_path / "data") and recipe.training.output_dir == str(tmp_path / "run")
    assert recipe.training.mixed_precision == "no" and recipe.data.test_trials == [str(tmp_path / "a.txt")]


def test_trial_lists_of_one_name_never_replace_each_other(corpus):
    dev = read_trials(corpus / "dev.txt")
    root = str(corpus / "audio")
    with pytest.raises(ValueError, match="Two trial lists have the name 'dev'"):
        gather_trial_lists(dev, str(corpus / "dev.txt"), root)
    lists = gather_trial_lists(dev, [dev, corpus / "dev.txt"][:1], root)
    assert (lists.dev, lists.tests) == ("dev", ("dev",))
    other = read_trials(corpus / "dev.txt")
    lists = gather_trial_lists(corpus / "dev.txt", [dev, other, str(corpus / "dev.txt")], root)
    assert (lists.dev, lists.tests) == ("dev", ("test", "test2", "dev")) and lists.trials["test2"] is other
    assert gather_trial_lists(None, {"easy": dev, "hard": other}, root).tests == ("easy", "hard")


@pytest.mark.slow
def test_uploads_while_training(make_trainer, monkeypatch, capsys):
    calls = []

    def push(folder, repository, *, private, run_folder):
        calls.append((Path(folder).name, repository, private))
        if len(calls) == 1:
            raise OSError("no network")

    monkeypatch.setattr("hf_hamspk.training.trainer.push_to_hub", push)
    make_trainer(epochs=2, push_to_hub=True, hub_model_id="ann/voices", hub_strategy="every_epoch").train()
    assert calls == [("last", "ann/voices", True), ("last", "ann/voices", True), ("final", "ann/voices", True)]
    assert "The upload after epoch 1 failed: no network." in capsys.readouterr().out
    with pytest.raises(ValueError, match="belong together"):
        TrainingArguments(push_to_hub=True)
    with pytest.raises(ValueError, match="is not a name on the Hub"):
        make_trainer("other", push_to_hub=True, hub_model_id="voices")
