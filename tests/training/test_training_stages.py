"""Second stages of training: kept centres, epochs without the backbone, learning rates by layer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import settle, tiny_backbone, tiny_config
from transformers import AutoModel

from hf_hamspk import DataArguments, HamSpkForXVector, Trainer, TrainingArguments
from hf_hamspk.training import read_recipe
from hf_hamspk.training.building import build_optimizer
from hf_hamspk.training.models import fit_head
from hf_hamspk.training.stages import fold_names

ROOT = Path(__file__).parents[2]
NAMES = [f"s{number}" for number in range(6)]


def train(words: list[str]) -> Trainer:
    trainer = Trainer.from_recipe(read_recipe(words))
    trainer.train()
    return trainer


def labelled(names: list[str], head: str = "ham", **fields) -> HamSpkForXVector:
    labels = dict(enumerate(names))
    return HamSpkForXVector(
        tiny_config(
            head=head, num_labels=len(names), id2label=labels, label2id={n: i for i, n in labels.items()}, **fields
        )
    )


def centres(model: HamSpkForXVector) -> torch.Tensor:
    return model.head.similarity.weight.detach().clone()


@pytest.fixture(scope="session")
def ssl_folder(tmp_path_factory) -> Path:
    """A tiny random WavLM as a pretrained encoder."""
    folder = tmp_path_factory.mktemp("ssl")
    torch.manual_seed(0)
    AutoModel.from_config(tiny_backbone("wavlm")).save_pretrained(folder)
    return folder


@pytest.fixture
def ssl_words(run_words, ssl_folder):
    """A function: words of a tiny run on this encoder."""

    def words(output_dir: Path, **changes) -> list[str]:
        fields = {"backbone": ssl_folder, "pooling": "statistics"}
        fields |= dict.fromkeys(("ecapa_channels", "ecapa_output_channels", "pooling_channels"))
        return run_words(output_dir, **(fields | changes))

    return words


# -- kept centres ----------------------------------------------------------------------------------------------------


def test_speakers_keep_their_centres_by_name_and_the_others_leave():
    model = labelled([*NAMES, *(f"{name}@0.9" for name in NAMES)])
    before = centres(model)
    said = fit_head(model, ["new", "s4", "s1"], keep_centres=True)
    assert said == (
        "The ham head keeps the centres of 2 speakers and has 1 new centres. The centres of 10 speakers were removed."
    )
    after = centres(model)
    assert after.shape[0] == model.config.num_labels == 3 and model.config.id2label == {0: "new", 1: "s4", 2: "s1"}
    assert torch.equal(after[1], before[4]) and torch.equal(after[2], before[1])
    assert not (after[0] == before).all(1).any()


@pytest.mark.parametrize("head", ["joint", "softmax"])
def test_all_centres_and_biases_of_a_head_move(head):
    model = labelled(NAMES, head)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.normal_()
    before = {name: parameter.clone() for name, parameter in model.head.named_parameters()}
    fit_head(model, NAMES[::-1], keep_centres=True)
    for name, parameter in model.head.named_parameters():
        assert torch.equal(parameter, before[name].flip(0)), name


def test_a_learned_curvature_stays():
    model = labelled(NAMES, projection="curved", learnable_curvature=True)
    with torch.no_grad():
        model.head.similarity.log_curvature.fill_(0.25)
    fit_head(model, NAMES[:3], keep_centres=True)
    assert model.head.similarity.log_curvature.item() == 0.25


def test_centres_of_strangers_are_refused():
    with pytest.raises(ValueError, match="trained on 6 speakers, and none of them is among the 2 training speakers"):
        fit_head(labelled(NAMES), ["a", "b"], keep_centres=True)


@pytest.mark.slow
def test_large_margin_stage_from_a_finished_run(tmp_path, run_words, capsys):
    """Long crops, a larger margin, a small rate; the speakers of other speeds leave the head."""
    train(run_words(tmp_path / "first", speed_factors="1.0 0.9 1.1"))
    first = HamSpkForXVector.from_pretrained(tmp_path / "first" / "final")
    assert first.config.num_labels == 18
    stage = {"crop_seconds": 0.8, "margin": 0.4, "learning_rate": 1e-5, "lr_schedule": "constant", "epochs": 2}
    words = run_words(tmp_path / "second", initial_model=tmp_path / "first/final", keep_centres="true", **stage)
    trainer = Trainer.from_recipe(read_recipe(words))
    assert "The ham head keeps the centres of 6 speakers and has 0 new centres. The" in capsys.readouterr().out
    assert torch.equal(centres(trainer.bare_model), centres(first)[:6])
    trainer.train()
    second = HamSpkForXVector.from_pretrained(tmp_path / "second" / "final")
    assert (second.config.num_labels, second.config.margin) == (6, 0.4)
    assert (centres(second) - centres(first)[:6]).abs().max() < 1e-3
    assert not torch.equal(second.hamspk.projection.weight, first.hamspk.projection.weight)


@pytest.mark.slow
def test_the_same_stage_from_python_gives_the_same_weights(tmp_path, run_words, corpus):
    train(run_words(tmp_path / "first", epochs=1, speed_factors="1.0 0.9"))
    start = tmp_path / "first" / "final"
    stage = {"margin": 0.4, "learning_rate": 1e-5, "epochs": 1}
    train(run_words(tmp_path / "recipe", initial_model=start, keep_centres="true", **stage))
    model = HamSpkForXVector.from_pretrained(start, calibrated=False)
    model.set_margin(0.4)
    arguments = TrainingArguments(
        str(tmp_path / "python"), epochs=1, batch_size=6, learning_rate=1e-5, log_steps=1, cpu=True, keep_centres=True
    )
    data = DataArguments(audio_root=str(corpus / "audio"), crop_seconds=0.5)
    trials = str(corpus / "dev.txt")
    Trainer(model, arguments, str(corpus / "train.csv"), trials, data=data).train()
    a, b = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("recipe", "python"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_two_stages_many_speakers_then_a_new_head_on_fewer(tmp_path, run_words, corpus):
    train(run_words(tmp_path / "many", epochs=1))
    rows = (corpus / "train.csv").read_text().splitlines()
    few = tmp_path / "few.csv"
    few.write_text("\n".join([rows[0], *(row for row in rows[1:] if row[-1] in "012")]) + "\n")
    words = {"initial_model": tmp_path / "many/final", "train_data": few, "freeze_backbone_epochs": 1, "epochs": 2}
    trainer = train(run_words(tmp_path / "few", **words))
    assert trainer.bare_model.config.id2label == {0: "s0", 1: "s1", 2: "s2"}
    many = of_backbone(load_file(tmp_path / "many" / "final" / "model.safetensors"))
    first, second = (
        of_backbone(load_file(tmp_path / f"few/epochs/epoch-000{number}.safetensors")) for number in (1, 2)
    )
    # The encoder, its running statistics included, waits until the new head is no longer random.
    assert all(torch.equal(many[name], first[name]) for name in many)
    assert not any(torch.equal(many[name], second[name]) for name in many if name.endswith("conv.weight"))


@pytest.mark.slow
def test_a_new_head_of_as_many_speakers_is_new(tmp_path, run_words):
    """Speakers of another corpus do not get the centres of the old ones."""
    train(run_words(tmp_path / "first", epochs=1))
    first = HamSpkForXVector.from_pretrained(tmp_path / "first" / "final")
    trainer = Trainer.from_recipe(read_recipe(run_words(tmp_path / "second", initial_model=tmp_path / "first/final")))
    assert not torch.equal(centres(trainer.bare_model), centres(first))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_centres": "true"}, "keep_centres needs initial_model"),
        (
            {"keep_centres": "true", "initial_model": "MODEL", "head": "am"},
            "keep_centres needs the same head",
        ),
        ({"keep_centres": "true", "initial_model": "MODEL", "curvature": 5}, "keep_centres needs the same head"),
        ({"keep_centres": "true", "initial_model": "MODEL"}, "none of them is among the 6 training speakers"),
        ({"initial_model": "RUN"}, "Did you mean {RUN}/final?"),
        ({"initial_model": "INSIDE"}, "Choose another output_dir"),
        ({"freeze_backbone_epochs": 3}, "freeze_backbone_epochs must be below epochs (3), got 3"),
        ({"layer_decay": 0.9}, "layer_decay is only for transformers backbones, got 0.9 for ecapa."),
        ({"backbone_learning_rate": 0}, "backbone_learning_rate must be between"),
    ],
)
def test_stages_that_cannot_work_are_refused(tmp_path, run_words, changes, message):
    run = tmp_path / "earlier"
    settle(labelled(["a", "b"])).save_pretrained(run / "final")
    places = {"MODEL": run / "final", "RUN": run, "INSIDE": tmp_path / "run" / "final"}
    changes = {key: places.get(value, value) for key, value in changes.items()}
    if "initial_model" in changes:
        changes |= dict.fromkeys(("ecapa_channels", "ecapa_output_channels", "pooling_channels", "embedding_size"))
    with pytest.raises(ValueError, match=re.escape(message.replace("{RUN}", str(run)))):
        Trainer.from_recipe(read_recipe(run_words(tmp_path / "run", **changes)))


# -- epochs without the backbone, learning rates by layer ------------------------------------------------------------


def of_backbone(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if name.startswith("hamspk.backbone.")}


@pytest.mark.slow
def test_the_backbone_rests_in_the_first_epochs_and_then_learns(tmp_path, ssl_words, ssl_folder, capsys):
    words = ssl_words(tmp_path, epochs=3, freeze_backbone_epochs=2, layer_decay=0.5, backbone_learning_rate=1e-4)
    train(words)
    start = load_file(ssl_folder / "model.safetensors")
    epochs = [load_file(tmp_path / "epochs" / f"epoch-000{number}.safetensors") for number in (1, 2, 3)]
    for weights in epochs[:2]:
        for name, tensor in of_backbone(weights).items():
            assert torch.equal(tensor, start[name.removeprefix("hamspk.backbone.")]), name
    moved = {
        name
        for name, tensor in of_backbone(epochs[2]).items()
        if not torch.equal(tensor, start[name.removeprefix("hamspk.backbone.")])
    }
    assert any("layers.0" in name for name in moved) and any("layers.1" in name for name in moved)
    assert not any("feature_extractor" in name for name in moved)
    assert not torch.equal(epochs[0]["hamspk.projection.weight"], epochs[1]["hamspk.projection.weight"])
    said = capsys.readouterr().out
    # Named once it takes part.
    assert "no gradient in step 1:" not in said
    assert re.search(r"no gradient in step 9: hamspk\.backbone\.encoder\.layer_norm\.weight", said), said


@pytest.mark.slow
def test_staged_training_resumes_exactly(tmp_path, ssl_words):
    stage = {"epochs": 3, "freeze_backbone_epochs": 1, "layer_decay": 0.5, "save_steps": 1}
    train(ssl_words(tmp_path / "whole", **stage))
    for steps in (3, 6):
        train(ssl_words(tmp_path / "cut", max_steps=steps, **stage))
    train(ssl_words(tmp_path / "cut", **stage))
    a, b = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_stages_hold_on_two_processes(tmp_path, ssl_words):
    stage = {"epochs": 2, "freeze_backbone_epochs": 1, "layer_decay": 0.5, "freeze_batch_norm": "true"}
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for count in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        words = ssl_words(tmp_path / str(count), **stage)
        done = subprocess.run(
            [*launch, str(ROOT / "examples" / "train.py"), *words], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / count / "final" / "model.safetensors") for count in ("1", "2"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=1e-3)


def test_layers_have_their_own_rates():
    model = HamSpkForXVector(tiny_config("wavlm"))
    plain = build_optimizer(TrainingArguments(), model).param_groups
    assert len(plain) == 1 and "rate_factor" not in plain[0]
    arguments = TrainingArguments(learning_rate=1e-3, backbone_learning_rate=1e-4, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: group["rate_factor"]
        for group in build_optimizer(arguments, model).param_groups
        for parameter in group["params"]
    }
    assert found.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {
        "head.similarity.weight": 1.0,
        "hamspk.projection.weight": 1.0,
        "hamspk.backbone.encoder.layers.1.attention.q_proj.weight": 0.1,
        "hamspk.backbone.encoder.layer_norm.weight": 0.1,
        "hamspk.backbone.encoder.layers.0.attention.q_proj.weight": 0.05,
        "hamspk.backbone.feature_projection.projection.weight": 0.025,
    }
    assert {name: pytest.approx(found[name]) for name in expected} == expected


def test_ecapa_has_a_rate_of_its_own():
    model = HamSpkForXVector(tiny_config())
    groups = build_optimizer(TrainingArguments(learning_rate=1e-3, backbone_learning_rate=1e-4), model).param_groups
    assert [group["rate_factor"] for group in groups] == [1.0, pytest.approx(0.1)]
    assert len(groups[1]["params"]) == len(list(model.hamspk.backbone.parameters()))


def test_names_of_parameters_are_folded():
    names = [*(f"encoder.layers.{number}.q.weight" for number in (0, 1, 2, 5)), "mask"]
    assert fold_names(names) == "encoder.layers.{0-2,5}.q.weight, mask"
