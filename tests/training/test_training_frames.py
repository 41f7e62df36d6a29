"""Training of the last blocks of an encoder, on frames that are computed once."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from parameters import thinned
from safetensors.torch import load_file
from tiny_models import cosine, noises, settle, tiny_config

from hf_hamspk import HamSpkForXVector, HamSpkModel, Trainer
from hf_hamspk.losses.engine import head_parts
from hf_hamspk.training import read_recipe
from hf_hamspk.training.centres import start_at_means, training_embeddings
from hf_hamspk.training.frames import FrameStore, read_frames
from hf_hamspk.training.frozen import DividedModel, count_blocks

ENCODERS = ("ecapa", "campplus", "resnet")


def made(backbone: str, **fields) -> HamSpkForXVector:
    torch.manual_seed(0)
    return settle(HamSpkForXVector(tiny_config(backbone, **fields)))


def train(words: list[str]) -> Trainer:
    trainer = Trainer.from_recipe(read_recipe(words))
    trainer.train()
    return trainer


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Path:
    """A tiny CAM++ as a model of other speakers."""
    folder = tmp_path_factory.mktemp("start") / "campplus"
    made("campplus").save_pretrained(folder)
    return folder


@pytest.fixture
def frame_words(run_words, start):
    """A function: words of a tiny run that trains the last block on frames in a folder."""

    def words(output_dir: Path, **changes) -> list[str]:
        sizes = dict.fromkeys(("ecapa_channels", "ecapa_output_channels", "pooling_channels", "embedding_size"))
        fields = {"initial_model": start, "train_last_blocks": 1, "frame_folder": output_dir.parent / "frames"}
        return run_words(output_dir, **(sizes | fields | {"average_last": 1} | changes))

    return words


CASES = [(name, blocks) for name in ENCODERS for blocks in (0, 1, 2)] + [("ecapa", 3), ("campplus", 1), ("resnet", 4)]


@pytest.mark.parametrize(("backbone", "blocks"), thinned(CASES))
def test_frames_from_files_give_the_embeddings_of_the_model(tmp_path, backbone, blocks):
    """The law: an embedding from the frames in a file is the embedding of the recording, whole, within 1e-5."""
    model = made(backbone)
    store = FrameStore(tmp_path, DividedModel(model, blocks))
    waves = [wave.numpy() for wave in noises(0.3, 0.91, 1.2)]
    expected = torch.cat([model.embed_waveforms([wave]) for wave in waves])
    for _ in range(2):  # The second time, the frames are only read.
        torch.testing.assert_close(store.embed(waves), expected, atol=1e-5, rtol=1e-5)
    assert store.computed == len(list(tmp_path.iterdir())) == 3


def test_models_with_the_same_frozen_part_and_another_pooling_share_only_frames(tmp_path):
    waves = [wave.numpy() for wave in noises(0.4)]
    for offset in (0.0, 0.5):
        model = made("campplus", pooling="statistics", pooling_variance_offset=offset)
        found = FrameStore(tmp_path, DividedModel(model, 0)).embed(waves)
        torch.testing.assert_close(found, model.embed_waveforms(waves), atol=1e-5, rtol=1e-5)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("fields", [{"ecapa_block_input": "previous", "ecapa_normalize_aggregate": True}])
def test_the_other_form_of_ecapa_is_divided_as_well(tmp_path, fields):
    model = made("ecapa", **fields)
    (wave,) = noises(0.5)
    for blocks in (1, 2):
        divided = DividedModel(model, blocks)
        found = divided.eval().embed_pooled(divided.pool(divided.frozen_output(wave[None])))
        torch.testing.assert_close(found.detach(), model.embed_waveforms([wave.numpy()]), atol=1e-5, rtol=1e-5)


def test_long_recordings_are_computed_in_pieces(tmp_path, monkeypatch):
    model = made("campplus")
    monkeypatch.setattr(type(model.config), "longest_piece", 0.5)
    store = FrameStore(tmp_path, DividedModel(model, 0))
    (wave,) = noises(1.2)
    first = store.model.frozen_output(wave[None, :6400])[0].mT
    frames = read_frames(store.find(wave.numpy()))
    np.testing.assert_allclose(frames[: len(first)], first.numpy(), atol=1e-6)


@pytest.mark.parametrize("backbone", ENCODERS)
def test_gradients_reach_only_the_last_blocks(backbone):
    model = made(backbone)
    total = len(list(model.hamspk.backbone.parameters()))
    trained = []
    for blocks in range(count_blocks(model.config) + 1):
        model = made(backbone)
        divided = DividedModel(model, blocks)
        frames = divided.frozen_output(torch.stack(noises(0.4, 0.4)))
        divided(frames, torch.tensor([0, 1])).loss.backward()
        names = {name for name, one in model.named_parameters() if one.requires_grad}
        assert names == {name for name, one in model.named_parameters() if one.grad is not None}
        trained.append(sum(name.startswith("hamspk.backbone.") for name in names))
    assert trained[0] == 0 and trained == sorted(set(trained)) and trained[-1] < total


def test_the_hash_of_the_frozen_part_ignores_the_trained_part_and_the_head():
    model = made("campplus")
    digest = DividedModel(model, 1).digest()
    assert DividedModel(made("campplus", head="am", margin=0.3), 1).digest() == digest
    assert DividedModel(model, 0).digest() != digest
    with torch.no_grad():
        model.hamspk.projection.weight.zero_()
        model.hamspk.backbone.blocks[-1].reduce.weight.zero_()
    assert DividedModel(model, 1).digest() == digest
    model.hamspk.backbone.first.norm.running_mean.add_(1)
    assert DividedModel(model, 1).digest() != digest


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
def test_the_frozen_part_keeps_its_weights_and_statistics(tmp_path, frame_words, start, cached):
    changes = {"initial_centres": "mean"} if cached else {"frame_folder": None}
    trainer = train(frame_words(tmp_path / "run", epochs=1, dev_trials=None, **changes))
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "run" / "final"))
    before = {name: tensor for name, tensor in before.items() if not name.startswith("head.")}
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    trained = ("hamspk.backbone.blocks.1.", "hamspk.backbone.norm.", "hamspk.projection.", "hamspk.pooled_norm.")
    assert moved and all(name.startswith((*trained, "hamspk.embedding_norm.")) for name in moved)
    assert any(name.endswith("blocks.1.norm.running_mean") for name in moved)
    assert HamSpkModel.from_pretrained(tmp_path / "run" / "final").embed_waveforms([noises(0.5)[0].numpy()]).shape
    assert cached == (trainer.identity.get("frozen_part") is not None)


@pytest.mark.slow
def test_training_on_frames_resumes_exactly_and_reads_the_files(tmp_path, frame_words, capsys):
    stage = {"epochs": 2, "save_steps": 1, "batch_size": 6, "dev_trials": None}
    train(frame_words(tmp_path / "whole", **stage))
    assert "The frames of 24 recordings were computed now" in capsys.readouterr().out
    for steps in (3, 6):
        train(frame_words(tmp_path / "cut", max_steps=steps, **stage))
    train(frame_words(tmp_path / "cut", **stage))
    assert "The frames of 24 recordings were computed now" not in capsys.readouterr().out
    a, b = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_run_does_not_resume_on_frames_of_another_model(tmp_path, frame_words):
    train(frame_words(tmp_path / "run", epochs=2, max_steps=2, dev_trials=None, train_last_blocks=0))
    other = tmp_path / "other"
    torch.manual_seed(1)
    settle(HamSpkForXVector(tiny_config("campplus"))).save_pretrained(other)
    with pytest.raises(ValueError, match=r"frozen_part: '[0-9a-f]{16}' in the checkpoint"):
        train(frame_words(tmp_path / "run", epochs=2, dev_trials=None, train_last_blocks=0, initial_model=other))


@pytest.mark.slow
def test_the_command_trains_on_frames(tmp_path, frame_words):
    words = frame_words(tmp_path / "run", epochs=2, train_last_blocks=0)
    recipe = {word[2:]: words[at + 1] for at, word in enumerate(words) if word.startswith("--")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({k: yaml.safe_load(v) for k, v in recipe.items()}))
    command = [sys.executable, "-m", "hf_hamspk", "train", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(
        r"The frames of 24 recordings take \d+ MB in .*frames. .* 24 recordings were computed now",
        done.stdout,
    )
    record = json.loads((tmp_path / "run" / "final" / "evaluation.json").read_text())
    assert record["training"]["epochs"] == 2
    HamSpkModel.from_pretrained(tmp_path / "run" / "best")


@pytest.mark.parametrize("head", ["ham", "am", "softmax", "joint"])
def test_centres_start_at_the_mean_embeddings_of_the_speakers(head):
    model = made("campplus", head=head)
    embeddings, labels = torch.randn(8, 24), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    before = [part.similarity.weight.detach().clone() for part in head_parts(model.head)]
    start_at_means(model.head, embeddings, labels)
    directions = torch.nn.functional.normalize(embeddings, dim=1).unflatten(0, (4, 2)).mean(1)
    for part, old in zip(head_parts(model.head), before, strict=True):
        weight = part.similarity.weight.detach()
        torch.testing.assert_close(cosine(weight[:4], directions), torch.ones(4, dtype=torch.float64))
        assert torch.equal(weight[4], old[4])  # No recording of this speaker.
        length = 3**-0.5 if part.similarity.kind == "hyperbolic" else old.norm(dim=1).mean()
        torch.testing.assert_close(weight[:4].norm(dim=1), torch.as_tensor(length).expand(4), atol=1e-4, rtol=1e-4)


def test_embeddings_for_the_centres_are_those_of_training():
    """Up to the last batch normalisation, which uses the statistics of the batch in training."""
    norm = settle(torch.nn.BatchNorm1d(24))
    values = 3 * torch.randn(40, 24) + 1
    in_evaluation = norm(values).detach()
    assert training_embeddings(in_evaluation, norm, True) is in_evaluation
    found = training_embeddings(in_evaluation, norm, False)
    torch.testing.assert_close(found, norm.train()(values).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial_model": None}, "train_last_blocks needs initial_model"),
        ({"train_last_blocks": None}, "frame_folder needs train_last_blocks"),
        ({"train_last_blocks": 3}, "train_last_blocks must be at most 2, the number of blocks of campplus, got 3"),
        ({"initial_centres": "mean", "frame_folder": None}, "initial_centres 'mean' needs frame_folder"),
        ({"train_last_blocks": -1}, "train_last_blocks must be between 0 and"),
        ({"train_last_blocks": 0, "freeze_backbone_epochs": 1}, "With train_last_blocks 0 the encoder is never"),
        ({"train_last_blocks": 0, "backbone_learning_rate": 1e-4}, "With train_last_blocks 0 the encoder is never"),
        ({"augment_probability": 0.5}, "augment_probability changes the recordings in every epoch"),
        ({"level_range_db": "-60 -20"}, "level_range_db changes the recordings in every epoch"),
        ({"speed_factors": "1.0 0.9"}, "speed_factors changes the recordings in every epoch"),
        ({"num_workers": 1}, "frame_folder cannot be combined with num_workers"),
        ({"shard_centres": "true"}, "frame_folder cannot be combined with shard_centres"),
        ({"frame_folder": __file__}, "frame_folder must be a folder, got the file"),
    ],
)
def test_contradictions_are_refused(tmp_path, frame_words, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Trainer.from_recipe(read_recipe(frame_words(tmp_path / "run", **changes)))


def test_a_damaged_file_of_frames_is_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(ValueError, match=r"is damaged .* Delete it"):
        read_frames(tmp_path / "a.npy")
