"""The models: the padding law, a step of every head on every backbone, saving, freezing, and errors that teach."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parameters import thinned
from tiny_models import BACKBONES, RATE, W2V_BERT, attuned, cosine, noises, padded, settle, tiny_backbone, tiny_config
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, feature_extraction_utils, modeling_utils
from transformers.utils import PushToHubMixin

from hf_hamspk import HamSpkForXVector, HamSpkModel, configuration_hamspk
from hf_hamspk.geometry_hamspk import HEAD_PARTS
from hf_hamspk.modeling_hamspk import length_batches

HEADS = [*HEAD_PARTS, "joint"]
ENCODERS = list(configuration_hamspk.ENCODERS)
FAMILIES = [*ENCODERS, *BACKBONES]
SHORT_TO_LONG = (0.5, 0.73, 1.1, 2.05, 4.4, 8.0)


def build(backbone: str = "ecapa", norm: str = "layer", **fields) -> HamSpkForXVector:
    model = settle(HamSpkForXVector(tiny_config(backbone, norm, **fields)))
    return attuned(model) if backbone == "campplus" else model


def training_batch(count: int = 6, seconds: float = 0.5) -> dict[str, torch.Tensor]:
    values, mask = padded(noises(*[seconds - 0.02 * i for i in range(count)]))
    return {"input_values": values, "attention_mask": mask, "labels": torch.arange(count) % 5}


# --- the padding law

PADDING_CASES = [
    pytest.param(encoder, {"frontend": frontend, "pooling": pooling}, "layer", id=f"{encoder}-{frontend}-{pooling}")
    for encoder in ENCODERS
    for frontend in ("fbank", "kaldi")
    for pooling in ("attentive", "statistics")
] + [
    pytest.param(
        backbone,
        {"pooling": pooling},
        norm,
        id=f"{backbone}-{norm}-{pooling}",
        marks=[] if (backbone, norm) in (("wavlm", "layer"), ("wav2vec2", "group")) else pytest.mark.slow,
    )
    for backbone in BACKBONES
    for norm in ("layer", "group")
    for pooling in ("attentive", "statistics", "mhfa")
    if (backbone, norm) != (W2V_BERT, "group")
]


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "fields", "norm"), PADDING_CASES)
def test_embeddings_do_not_depend_on_the_padding(backbone, fields, norm):
    model = build(backbone, norm, **fields)
    waves = [wave + 0.01 for wave in noises(*SHORT_TO_LONG)]
    values, mask = padded(waves)
    with torch.no_grad():
        alone = torch.cat([model(wave[None]).embeddings for wave in waves])
        shuffled = [4, 0, 5, 2, 1, 3]
        ways = {
            "one batch": model(values, mask).embeddings,
            "wider batch": model(*(torch.nn.functional.pad(t, (0, 5000)) for t in (values, mask))).embeddings,
            "garbage in the padding": model(values + (1 - mask) * torch.randn_like(values), mask).embeddings,
            "embed": model.embed(waves, RATE),
            "embed, small batches": model.embed([waves[i] for i in shuffled], RATE, 5.0)[np.argsort(shuffled)],
        }
    apart = (1 - cosine(alone[:1], alone[1:])).min()
    assert apart > 1e-5, "the utterances must be told apart"
    for way, together in ways.items():
        assert (1 - cosine(alone, together)).max() < min(1e-5, apart / 10), way


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_equal_lengths_in_a_wider_batch_are_padding_too(norm):
    model = build("wavlm", norm)
    values = torch.stack(noises(1.0, 1.0))
    wider = torch.nn.functional.pad(values, (0, 4000))
    mask = torch.nn.functional.pad(torch.ones_like(values), (0, 4000))
    with torch.no_grad():
        assert (1 - cosine(model(values).embeddings, model(wider, mask).embeddings)).max() < 1e-5


def test_hidden_frames_are_zero_where_not_valid():
    values, mask = padded(noises(0.5, 1.0))
    for backbone, norm in (*((one, "layer") for one in (*ENCODERS, "wavlm", W2V_BERT)), ("wavlm", "group")):
        model = build(backbone, norm).hamspk
        with torch.no_grad():
            frames = model(values, mask).last_hidden_state
            alone = model(values[:1, : int(mask[0].sum())]).last_hidden_state
        torch.testing.assert_close(frames[0, : alone.shape[1]], alone[0], rtol=1e-3, atol=1e-4)
        assert (frames[0, alone.shape[1] :] == 0).all()


def test_embed_takes_arrays_lists_and_half_precision_and_keeps_the_order():
    model = build()
    waves = noises(1.0, 0.3, 0.6)
    expected = model.embed(waves, RATE)
    assert expected.shape == (3, 24) and expected.dtype == torch.float32 and not expected.requires_grad
    mixed = [waves[0].numpy(), waves[1].tolist(), waves[2].double()]
    assert (1 - cosine(model.embed(mixed, RATE), expected)).max() < 1e-5
    assert (1 - cosine(model.embed([wave.half() for wave in waves], RATE), expected)).max() < 1e-3
    assert model.embed([], RATE).shape == (0, 24)
    # What `embed` gives can be trained on.
    torch.nn.Linear(24, 1)(model.embed(waves, RATE)).sum().backward()


@pytest.mark.parametrize("mode", [True, False])
def test_embed_is_in_evaluation_mode_and_gives_the_mode_back(mode):
    model = build(mask_frames=9)
    expected = model.embed(noises(1.0), RATE)
    before = copy.deepcopy(model.state_dict())
    model.train(mode)
    assert torch.equal(model.embed(noises(1.0), RATE), expected)
    assert model.training is mode and model.hamspk.frontend.training is mode
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_length_batches():
    lengths = [30, 10, 20, 100, 11, 10]
    batches = length_batches(lengths, 40)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert batches == [[1, 5, 4], [2], [0], [3]]
    assert length_batches([], 40) == []
    # Room alone does not join what would be padded by more than a tenth.
    assert length_batches([10, 20, 21, 22], 1000) == [[0], [1, 2, 3]]


# --- training

FAST_STEPS = {("ecapa", "ham"), ("ecapa", "joint"), ("ecapa", "aam"), ("wavlm", "ham"), ("wav2vec2", "am")}
FAST_STEPS |= {("hubert", "softmax"), ("ecapa", "h"), ("wavlm", "ram")}
FAST_STEPS |= {("campplus", "ham"), ("resnet", "am"), (W2V_BERT, "ham")}


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        pytest.param(backbone, head, marks=[] if (backbone, head) in FAST_STEPS else pytest.mark.slow)
        for backbone in FAMILIES
        for head in HEADS
    ],
)
def test_one_step_of_every_head_on_every_backbone_lowers_the_loss(backbone, head):
    model = HamSpkForXVector(tiny_config(backbone, head=head)).train()
    batch = training_batch()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = model(**batch, return_logits=True)
    assert before.logits.shape == (6, 5) and before.embeddings.shape == (6, 24)
    before.loss.backward()
    for name, parameter in model.named_parameters():
        # A layer norm of a tiny backbone may follow unused weights; what has a gradient has a finite one.
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    with torch.no_grad():
        after = model(**batch).loss
    assert after < before.loss


@pytest.mark.parametrize("projection", ["released", "curved"])
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_padded_batch_trains(norm, projection):
    fields = {"projection": projection, "learnable_curvature": projection == "curved"}
    model = HamSpkForXVector(tiny_config("wav2vec2", norm, **fields)).train()
    model(**training_batch()).loss.backward()
    for module in (model.head, model.hamspk.pooling, model.hamspk.layer_mix):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("backbone", "pooling"),
    [
        *((encoder, pooling) for encoder in ENCODERS for pooling in ("attentive", "statistics")),
        *((backbone, pooling) for backbone in ("wavlm", W2V_BERT) for pooling in ("attentive", "mhfa")),
    ],
)
def test_a_bf16_autocast_step(backbone, pooling):
    model = HamSpkForXVector(tiny_config(backbone, pooling=pooling)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**training_batch())
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("backbone", thinned([*ENCODERS, "wavlm", W2V_BERT]))
def test_a_model_in_bf16_embeds_nearly_the_same(backbone):
    model, waves = build(backbone), noises(0.8, 1.2)
    expected = model.embed(waves, RATE)
    actual = model.bfloat16().embed(waves, RATE)
    assert actual.dtype == torch.float32
    assert (1 - cosine(actual, expected)).max() < 0.02


def test_set_margin_reaches_the_configuration(tmp_path):
    model = build(head="joint")
    model.set_margin(0.35)
    assert model.head.euclidean.margin == model.head.hyperbolic.margin == 0.35
    model.save_pretrained(tmp_path)
    assert HamSpkForXVector.from_pretrained(tmp_path).head.margin == 0.35
    with pytest.raises(ValueError, match="at least 0 and below 3"):
        model.set_margin(-1.0)
    assert model.config.margin == 0.35


@pytest.mark.parametrize("name", list(BACKBONES))
def test_checkpointing_of_a_backbone_changes_no_gradient(name):
    model = HamSpkForXVector(tiny_config(name)).train()
    batch = training_batch()
    model(**batch).loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    # Through the method that both its names, the older and the newer, call.
    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=_reentrant_free_checkpoint)
    model(**batch).loss.backward()
    actual = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert expected.keys() == actual.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(actual[key], gradient, rtol=1e-4, atol=1e-6, msg=key)


def _reentrant_free_checkpoint(*args):
    return checkpoint(*args, use_reentrant=False)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_checkpointing_of_ecapa_is_refused_and_switching_it_off_is_not():
    model = build()
    with pytest.raises(ValueError, match=re.escape("Gradient checkpointing is supported for transformers backbones")):
        model.gradient_checkpointing_enable()
    model.gradient_checkpointing_disable()
    wavlm = build("wavlm")
    wavlm.gradient_checkpointing_enable()
    assert wavlm.hamspk.backbone.encoder.gradient_checkpointing
    wavlm.gradient_checkpointing_disable()
    assert not wavlm.hamspk.backbone.encoder.gradient_checkpointing


# --- saving


def same_weights(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("backbone", thinned(FAMILIES))
def test_a_saved_model_is_the_same_bit_for_bit(backbone, tmp_path):
    model = build(backbone)
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".py", ".safetensors"}
    loaded, info = HamSpkForXVector.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not loaded.training and same_weights(model, loaded)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, loaded.get_buffer(name)), name
    values, mask = padded(noises(0.5, 1.0))
    with torch.no_grad():
        assert torch.equal(model(values, mask).embeddings, loaded(values, mask).embeddings)


def test_the_model_without_head_loads_from_the_one_with_it_and_back(tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "with")
    bare, info = HamSpkModel.from_pretrained(tmp_path / "with", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert same_weights(bare, model.hamspk)
    bare.save_pretrained(tmp_path / "without")
    # Weights have the permissions of other files.
    (tmp_path / "plain").touch()
    assert (tmp_path / "without" / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    again = HamSpkForXVector.from_pretrained(tmp_path / "without")
    assert same_weights(again.hamspk, model.hamspk)


@pytest.mark.parametrize("head", ["ham", "am", "softmax", "joint"])
def test_a_new_number_of_speakers_replaces_the_centres_only(head, tmp_path):
    model = build(head=head)
    model.save_pretrained(tmp_path)
    loaded = HamSpkForXVector.from_pretrained(tmp_path, num_labels=9, ignore_mismatched_sizes=True)
    assert same_weights(loaded.hamspk, model.hamspk)
    batch = training_batch()
    batch["labels"] = torch.arange(6) + 3
    output = loaded(**batch)
    assert output.logits.shape == (6, 9) and output.loss.isfinite()
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())


def test_a_half_precision_load_keeps_the_filter_bank(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    loaded = HamSpkForXVector.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.hamspk.frontend.bank, model.hamspk.frontend.bank)
    waves = noises(1.0)
    assert (1 - cosine(loaded.embed(waves, RATE), model.embed(waves, RATE))).max() < 0.02


@pytest.mark.parametrize("clip_radius", [0.7, 1.0])
def test_a_learned_curvature_is_saved_for_scoring(clip_radius, tmp_path):
    model = build(
        projection="curved", learnable_curvature=True, similarity="hyperbolic", clip_radius=clip_radius, curvature=1.0
    )
    with torch.no_grad():
        model.head.similarity.log_curvature.fill_(20.0)
    x, y = torch.randn(2, 3, 24)
    expected = model.score(x, y)
    assert model.config.curvature == (5 / clip_radius) ** 2
    model.config.curvature = 1.0
    torch.testing.assert_close(model.score_matrix(x, y).diagonal(), expected, rtol=1e-3, atol=1e-3)
    radius = model.magnitude(x)
    model.config.curvature = 1.0
    assert torch.equal(model.magnitude(x), radius)
    model.save_pretrained(tmp_path)
    assert torch.equal(HamSpkForXVector.from_pretrained(tmp_path).score(x, y), expected)
    assert torch.equal(HamSpkModel.from_pretrained(tmp_path).score(x, y), expected)


@pytest.mark.parametrize("similarity", ["cosine", "hyperbolic"])
def test_embeddings_are_scored_as_arrays_too(similarity):
    model = build(similarity=similarity).hamspk
    x, y = torch.randn(2, 3, 24)
    assert torch.equal(model.score(x.numpy(), y), model.score(x, y))
    assert torch.equal(model.score_matrix(x.numpy(), y.numpy()), model.score_matrix(x, y))
    assert torch.equal(model.magnitude(x.numpy()), model.magnitude(x))


def test_only_the_main_process_writes_the_feature_extractor(tmp_path):
    build().save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / "preprocessor_config.json").exists()


def test_saving_to_the_hub_takes_the_feature_extractor_along(tmp_path, monkeypatch):
    uploads = []

    def upload(self, folder, repo_id, files_timestamps, **kwargs):
        uploads.append((repo_id, {path.name for path in Path(folder).iterdir()} - set(files_timestamps)))

    for module in (modeling_utils, feature_extraction_utils):
        monkeypatch.setattr(
            module, "hf_api", lambda: SimpleNamespace(create_repo=lambda name, **_: SimpleNamespace(repo_id=name))
        )
    monkeypatch.setattr(PushToHubMixin, "_upload_modified_files", upload)
    build().save_pretrained(tmp_path, push_to_hub=True, repo_id="me/tiny", private=True)
    ((repository, sent),) = uploads
    assert repository == "me/tiny"
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_hamspk.py"} <= sent


# --- pretrained backbones


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wavlm")
    backbone = AutoModel.from_config(tiny_backbone("wavlm"))
    backbone.save_pretrained(folder)
    return folder, backbone


def gradients_of(module: torch.nn.Module) -> set[bool]:
    return {parameter.requires_grad for parameter in module.parameters()}


def test_from_backbone_keeps_the_weights_of_the_backbone(pretrained):
    folder, backbone = pretrained
    model = HamSpkForXVector.from_backbone(folder, head="am", num_labels=7, embedding_size=24, pooling_channels=8)
    assert same_weights(model.hamspk.backbone, backbone)
    assert model.config.head == "am" and model.head.similarity.weight.shape == (7, 24)
    # Fine-tuning leaves the convolutional encoder as it is.
    assert gradients_of(model.hamspk.backbone.feature_extractor) == {False}
    assert gradients_of(model.hamspk.backbone.encoder) == {True}


def test_from_backbone_frozen_and_saved(pretrained, tmp_path):
    folder, backbone = pretrained
    model = HamSpkForXVector.from_backbone(
        folder, freeze_backbone=True, pooling="mhfa", mhfa_heads=4, pooling_channels=8, embedding_size=24, num_labels=5
    )
    assert gradients_of(model.hamspk.backbone) == {False}
    model.save_pretrained(tmp_path)
    loaded = HamSpkForXVector.from_pretrained(tmp_path)
    assert same_weights(loaded.hamspk.backbone, backbone)
    assert gradients_of(loaded.hamspk.backbone) == {False}
    assert gradients_of(HamSpkModel.from_pretrained(tmp_path).backbone) == {False}


def test_a_frozen_backbone_stays_frozen_and_thaws():
    model = HamSpkForXVector(tiny_config("wavlm", freeze_backbone=True))
    bare = model.hamspk
    for _ in range(2):
        model.train()
        assert model.training and bare.pooling.training and not any(m.training for m in bare.backbone.modules())
    before = copy.deepcopy(bare.backbone.state_dict())
    model(**training_batch()).loss.backward()
    assert all(p.grad is None for p in bare.backbone.parameters())
    assert all(p.grad is not None for p in bare.pooling.parameters())
    torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1).step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in bare.backbone.state_dict().items())
    bare.unfreeze_backbone()
    assert bare.backbone.training and not model.config.freeze_backbone
    assert gradients_of(bare.backbone.encoder) == {True}
    assert gradients_of(bare.backbone.feature_extractor) == {False}
    bare.freeze_backbone()
    assert gradients_of(bare.backbone) == {False} and not bare.backbone.training
    assert model.config.freeze_backbone


# --- errors that teach


@pytest.mark.parametrize(
    ("values", "mask", "message"),
    [
        ((16000,), None, "input_values must be mono audio of shape (batch, samples), got shape (16000,)."),
        ((2, 1, 16000), None, "input_values must be mono audio of shape (batch, samples), got shape (2, 1, 16000)."),
        ((2, 16000), (2, 100), "attention_mask must have the shape of input_values, (2, 16000), got (2, 100)"),
        (
            (2, 399),
            None,
            "input_values has 399 samples; expected at least 400 (one analysis window); 0.1 s or more are recommended.",
        ),
    ],
)
@pytest.mark.parametrize("backbone", ["ecapa", "wavlm"])
def test_wrong_shapes_are_refused(backbone, values, mask, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(backbone)(torch.zeros(values), None if mask is None else torch.ones(mask))


def test_wrong_masks_are_refused():
    model, values = build(), torch.stack(noises(0.5, 0.5))
    mask = torch.ones(2, 8000, dtype=torch.long)
    mask[1, :100] = 0
    with pytest.raises(
        ValueError, match=re.escape("attention_mask has 0 before 1; expected utterances that are padded")
    ):
        model(values, mask)
    mask[1] = 0
    with pytest.raises(
        ValueError, match=re.escape("attention_mask marks only 0 samples of an utterance; expected at least")
    ):
        model(values, mask)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        ("a.wav", "Recording 2 a.wav: no such file; check the path"),
        (
            torch.tensor(0.5),
            "Recording 2: has shape (); expected (samples,), (channels, samples) or (samples, channels)",
        ),
        (
            torch.zeros(2, 3, 16000),
            "Recording 2: has shape (2, 3, 16000); expected (samples,), (channels, samples) or (samples, channels)",
        ),
        (torch.zeros(1599), "Recording 2: lasts 0.0999 s; expected at least 0.1 s"),
        (torch.full((16000,), torch.nan), "Recording 2: contains NaN or infinite samples (16000 of 16000)"),
        (torch.full((16000,), torch.inf), "Recording 2: contains NaN or infinite samples (16000 of 16000)"),
        (torch.zeros(16000), "Recording 2: holds no sound (every sample is 0)"),
        (torch.ones(16000, dtype=torch.int64), "Recording 2: has int64 samples; expected floating point in [-1, 1]"),
    ],
)
def test_wrong_recordings_are_refused_by_their_number(waveform, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build().embed([*noises(0.5), waveform], RATE)


def test_one_recording_is_no_list():
    with pytest.raises(ValueError, match="embed expects a list of recordings, got one"):
        build().embed("a.wav")


def test_embed_takes_channels_integers_and_other_rates():
    model, (wave,) = build(), noises(1.0)
    expected = model.embed([wave], RATE)
    stereo, integers = torch.stack([wave, wave]), (wave * 32768).round().to(torch.int16)
    for same in (stereo, stereo.T, {"array": wave.numpy(), "sampling_rate": RATE}):
        torch.testing.assert_close(model.embed([same], RATE), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.embed([integers], RATE), expected, rtol=1e-2, atol=1e-2)
    twice = model.embed([wave.repeat_interleave(2)], 2 * RATE)
    assert twice.shape == expected.shape and torch.isfinite(twice).all()


@pytest.mark.parametrize("labels", [[0, 5], [-100, 0]])
def test_labels_out_of_range_are_refused(labels):
    message = f"Labels must be in [0, 5) for a model with num_labels=5, got labels from {min(labels)} to {max(labels)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        build()(torch.stack(noises(0.5, 0.5)), labels=torch.tensor(labels))


def test_a_single_utterance_cannot_train_a_batch_normalisation():
    with pytest.raises(ValueError, match=re.escape("Batch normalisation in training needs at least 2 utterances")):
        build().train()(torch.stack(noises(0.5)), labels=torch.tensor([0]))


def test_freezing_ecapa_is_refused():
    with pytest.raises(ValueError, match=re.escape("freeze_backbone is supported for transformers backbones")):
        build().hamspk.freeze_backbone()


def test_tuples_are_given_where_asked_for():
    model, values = build(), torch.stack(noises(0.5, 0.5))
    loss, logits, embeddings = model(values, labels=torch.tensor([0, 1]), return_dict=False)
    assert loss.ndim == 0 and logits.shape == (2, 5) and embeddings.shape == (2, 24)
    assert model.hamspk(values, return_dict=False)[0].shape == (2, 24)
