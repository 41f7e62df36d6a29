"""The configuration is part of what computes an embedding: what was made with other settings is refused.

Every field of the configuration, and every field of a backbone's configuration, is changed while the weights stay the
same. If an embedding, a score or a combination changes, then the fingerprint must change.
"""

import copy
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from parameters import thinned
from speakers import RATE, say
from tiny_models import W2V_BERT, noises, padded, settle, tiny_backbone, tiny_config
from transformers import Data2VecAudioConfig, WavLMConfig

from hf_hamspk import HamSpkConfig, HamSpkForXVector, HamSpkModel, SpeakerIndex, SpeakerProfile
from hf_hamspk.__main__ import main
from hf_hamspk.calibration_hamspk import CALIBRATION_FILE, COHORT_FILE, Calibration, Cohort, dict_checksum
from hf_hamspk.configuration_hamspk import NEUTRAL_FIELDS
from hf_hamspk.geometry_hamspk import combine_embeddings

HYPERBOLIC: dict[str, Any] = {"similarity": "hyperbolic", "projection": "curved", "curvature": 1.0, "head": "ram"}
WAVLM: dict[str, Any] = {"backbone": "wavlm"}
CAMPPLUS: dict[str, Any] = {"backbone": "campplus"}
RESNET: dict[str, Any] = {"backbone": "resnet"}
KALDI: dict[str, Any] = {"frontend": "kaldi"}
XVECTOR = {"pooling": "xvector", "tdnn_channels": [8] * 5}
# A change of each field: the other fields of the model, and the new value.
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "backbone": ({}, "resnet"),
    "campplus_head_channels": (CAMPPLUS, 8),
    "campplus_channels": (CAMPPLUS, 24),
    "campplus_layers": (CAMPPLUS, [2, 2]),
    "campplus_dilations": (CAMPPLUS, [1, 3]),
    "campplus_growth": (CAMPPLUS, 4),
    "campplus_bottleneck": (CAMPPLUS, 8),
    "campplus_segment": (CAMPPLUS, 3),
    "resnet_depth": (RESNET, 34),
    "resnet_channels": (RESNET, 8),
    "kaldi_window": (KALDI, "povey"),
    "kaldi_scale": (KALDI, 1.0),
    "ecapa_channels": ({}, 24),
    "ecapa_output_channels": ({}, 32),
    "ecapa_bottleneck": ({}, 4),
    "ecapa_groups": ({}, 2),
    "ecapa_dilations": ({}, [2, 3, 5]),
    "ecapa_block_input": ({}, "previous"),
    "ecapa_padding": ({}, "reflect"),
    "ecapa_normalize_aggregate": ({}, True),
    "mix_layers": (WAVLM, False),
    "freeze_backbone": (WAVLM, True),
    "freeze_feature_encoder": (WAVLM, False),
    "frontend": ({}, "kaldi"),
    "sampling_rate": ({}, 8000),
    "num_mel_bins": ({}, 64),
    "level_db": ({}, -26.0),
    "normalize_waveform": (WAVLM, False),
    "mask_mel_bins": ({}, 5),
    "mask_frames": ({}, 5),
    "pooling": ({}, "statistics"),
    "pooling_channels": ({}, 4),
    "pooling_context": ({}, False),
    "pooling_hidden_norm": ({}, False),
    "pooling_unbiased": ({}, False),
    "pooling_variance_offset": ({}, 0.5),
    "pooling_smallest_variance": ({}, 1.0),
    "tdnn_channels": (XVECTOR, [8, 8, 8, 8, 4]),
    "tdnn_kernel_sizes": (XVECTOR, [5, 3, 1, 1, 1]),
    "tdnn_dilations": (XVECTOR, [1, 2, 4, 1, 1]),
    "mhfa_heads": (WAVLM | {"pooling": "mhfa"}, 2),
    "embedding_size": ({}, 16),
    "normalize_pooled": ({}, False),
    "normalize_embedding": ({}, False),
    "head": ({"curvature": 3.0}, "aam"),
    "scale": ({}, 20.0),
    "margin": ({}, 0.3),
    "curvature": ({}, 2.0),
    "projection": ({}, "curved"),
    "clip_radius": ({"projection": "curved"}, 0.5),
    "learnable_curvature": ({"projection": "curved"}, True),
    "euclidean_head": ({"head": "joint"}, "aam"),
    "euclidean_weight": ({"head": "joint"}, 0.4),
    "hyperbolic_weight": ({"head": "joint"}, 0.6),
    "similarity": ({}, "hyperbolic"),
    "converted_from": ({}, "another project"),
    "source_licence": ({}, "mit"),
    "auto_map": ({}, {"AutoModel": "other.Model"}),
}
BACKBONES = {
    "wavlm": tiny_backbone("wavlm"),
    "wav2vec2": tiny_backbone("wav2vec2"),
    "wav2vec2 with group norm": tiny_backbone("wav2vec2", "group"),
    "hubert": tiny_backbone("hubert"),
    W2V_BERT: tiny_backbone(W2V_BERT),
    "data2vec": Data2VecAudioConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, conv_dim=(32,) * 7
    ),
}


def build(config: HamSpkConfig, weights: dict[str, torch.Tensor] | None = None) -> HamSpkModel:
    """A model, with these weights if they are given."""
    torch.manual_seed(0)
    model: Any = settle(HamSpkModel(config))
    if weights is not None:
        model.load_state_dict(weights)
    elif config.backbone == "campplus":
        # The masks of fresh layers are nearly constant.
        with torch.no_grad():
            for parameter in model.backbone.parameters():
                parameter.mul_(3 if parameter.ndim > 1 else 1)
    return model


def results(model: HamSpkModel) -> list[torch.Tensor]:
    """What decisions depend on: embeddings (in a batch, and of a quiet recording), scores, magnitudes, combinations."""
    waves = noises(0.3, 0.4, 0.3)
    config: Any = model.config
    with torch.no_grad():
        embeddings = model(*padded(waves)).embeddings
        alone = model(1e-4 * waves[0][None]).embeddings  # A quiet recording reaches the limits of filter banks.
    ball = config.projection, float(config.curvature), float(config.clip_radius)
    mean = combine_embeddings(embeddings, "barycentre", [1.0, 2.0, 3.0], *ball)
    return [embeddings, alone, model.score_matrix(embeddings, embeddings), model.magnitude(embeddings), mean]


def is_alike(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(first, second, strict=True))


@functools.cache
def unchanged(others: str) -> tuple[HamSpkModel, list[torch.Tensor]]:
    """The model before a change of a field, given its other fields as JSON, and its results."""
    model = build(tiny_config(**json.loads(others)))
    return model, results(model)


def test_a_change_of_every_field_is_listed():
    assert CHANGES.keys() == HamSpkConfig.__annotations__.keys() - {"backbone_config"}
    assert CHANGES.keys() >= NEUTRAL_FIELDS


@pytest.mark.parametrize("name", thinned(CHANGES))
def test_a_field_that_changes_results_changes_the_fingerprint(name):
    others, value = CHANGES[name]
    before, expected = unchanged(json.dumps(others))
    assert getattr(before.config, name) != value
    changed = tiny_config(**(others | {name: value}))
    weights = before.state_dict()
    try:
        after = build(changed, weights)
    except RuntimeError:
        # The field changes the weights themselves.
        assert name not in NEUTRAL_FIELDS and build(changed).fingerprint() != before.fingerprint()
        return
    is_neutral = is_alike(expected, results(after))
    assert is_neutral == (name in NEUTRAL_FIELDS)
    assert (after.fingerprint() == before.fingerprint()) == is_neutral
    assert after.fingerprint().partition("-")[0] == before.fingerprint().partition("-")[0] or name == "level_db"


def other_values(value: Any) -> list[Any]:
    """Values of the same type."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value * 2 + type(value)(1), value / 2]
    if isinstance(value, str):
        return [word for word in ("relu", "group", "layer", "sum") if word != value]
    if isinstance(value, list | tuple) and value:
        return [[*value[:-1], other] for other in other_values(value[-1])]
    return [1]


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_a_field_of_the_backbone_that_changes_results_changes_the_fingerprint(name):
    own = BACKBONES[name]
    model = build(tiny_config("wavlm", backbone_config=own, pooling="statistics"))
    expected, weights, found = results(model), model.state_dict(), set()
    for field, value in own.to_dict().items():
        for other in other_values(value):
            backbone = copy.deepcopy(own).to_dict() | {field: other}
            try:
                changed = build(tiny_config("wavlm", backbone_config=backbone, pooling="statistics"), weights)
                given = results(changed)
            except Exception:
                # A value that the configuration or the backbone refuses, or other weights.
                continue
            if not is_alike(given, expected):
                found.add(field)
                assert changed.fingerprint() != model.fingerprint(), (field, other)
    own = set() if name == W2V_BERT else {"feat_extract_activation", "conv_stride"}
    assert found >= {"hidden_act", "layer_norm_eps"} | own


def test_models_of_other_backbones_with_the_same_weights_differ():
    first = build(tiny_config("wavlm", backbone_config=tiny_backbone("wav2vec2"), pooling="statistics"))
    second = build(tiny_config("wavlm", backbone_config=tiny_backbone("hubert"), pooling="statistics"))
    assert first.state_dict().keys() == second.state_dict().keys()
    assert first.config.hash_settings() != second.config.hash_settings()


def test_the_digest_of_the_settings_is_the_same_in_all_versions():
    """If these values change, the calibrations and profiles of all models are refused."""
    assert HamSpkConfig().hash_settings() == "44136fa355b3678a"
    assert HamSpkConfig(backbone_config=WavLMConfig()).hash_settings() == "77f2a8efc3138340"


@pytest.mark.parametrize("fields", [{}, {"ecapa_dilations": (2, 3, 4), "curvature": 3}, WAVLM, XVECTOR])
def test_saving_and_loading_keeps_the_fingerprint(fields, tmp_path):
    model = build(tiny_config(**fields))
    model.save_pretrained(tmp_path)
    assert HamSpkModel.from_pretrained(tmp_path).fingerprint() == model.fingerprint()


def test_a_learned_curvature_is_the_same_with_and_without_a_head_and_in_bfloat16(tmp_path):
    torch.manual_seed(0)
    config = tiny_config(projection="curved", curvature=0.7, learnable_curvature=True)
    model: Any = settle(HamSpkForXVector(config))
    before = model.fingerprint()
    assert model.config.curvature == 0.7
    with torch.no_grad():
        model.head.similarity.log_curvature.add_(0.05)
    assert model.fingerprint() != before
    assert model.config.curvature == pytest.approx(0.7 * 1.0512711)
    model.save_pretrained(tmp_path)
    found = {
        kind.from_pretrained(tmp_path, dtype=dtype).fingerprint()
        for kind in (HamSpkModel, HamSpkForXVector)
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert found == {model.fingerprint()}


def decisions(folder: Path) -> HamSpkModel:
    """Save a model with a calibration of normalised scores, its cohort, and a profile."""
    model = build(tiny_config())
    model.cohort = Cohort(torch.randn(12, 24), model.fingerprint())
    model.calibration = Calibration(
        model.fingerprint(), "cosine", -1.0, {"score": 2.0}, normalisation="as", top=5, cohort=model.cohort.checksum
    )
    model.save_pretrained(folder)
    model.enrol([say(1, 0)], "anna", sampling_rate=RATE).save(folder / "anna.safetensors")
    SpeakerIndex(model, torch.randn(3, 24)).save(folder / "index.safetensors")
    return model


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


CHANGED = r"was made with another configuration than this model has now: .* has changed\. Restore .*, or "
EDITS = {"sampling_rate": 8000, "frontend": "kaldi", "curvature": 2.0, "ecapa_block_input": "previous"}
each_edit = pytest.mark.parametrize("name", EDITS)


@pytest.mark.slow
@each_edit
def test_an_edited_configuration_is_said_at_every_door(name, tmp_path, capsys):
    decisions(tmp_path)
    edit_config(tmp_path, **{name: EDITS[name]})
    with pytest.raises(ValueError, match=f"This calibration {CHANGED}calibrate the model again.*calibrated=False"):
        HamSpkModel.from_pretrained(tmp_path)
    model = HamSpkModel.from_pretrained(tmp_path, calibrated=False)
    fingerprint = model.fingerprint()
    with pytest.raises(ValueError, match=f"cohort.safetensors {CHANGED}embed the cohort again"):
        Cohort.load(tmp_path / COHORT_FILE, fingerprint)
    with pytest.raises(ValueError, match=f"The profile of 'anna' .*{CHANGED}enrol the speaker again"):
        SpeakerProfile.load(tmp_path / "anna.safetensors", fingerprint)
    profile = SpeakerProfile.load(tmp_path / "anna.safetensors")
    for ask in (model.verify, lambda one, test: model.identify(test, [one])):
        with pytest.raises(ValueError, match=CHANGED):
            ask(profile, say(1, 1))
    with pytest.raises(ValueError, match=f"{CHANGED}|configuration of the model now declares"):
        SpeakerIndex.load(tmp_path / "index.safetensors", model)
    (tmp_path / CALIBRATION_FILE).unlink()
    (tmp_path / COHORT_FILE).unlink()
    arguments = ["verify", tmp_path, tmp_path / "anna.safetensors", __file__, "--threshold", "0.5"]
    assert main([str(word) for word in arguments]) == 2
    assert re.search(CHANGED, capsys.readouterr().err)


@pytest.mark.slow
@each_edit
def test_a_configuration_that_changes_after_loading_is_said(name, tmp_path):
    decisions(tmp_path)
    model = HamSpkModel.from_pretrained(tmp_path)
    profile = SpeakerProfile.load(tmp_path / "anna.safetensors")
    assert model.verify(profile, say(1, 1), sampling_rate=RATE).decision is not None
    setattr(model.config, name, EDITS[name])
    with pytest.raises(ValueError, match=CHANGED):
        model.verify(say(1, 0), say(1, 1), sampling_rate=RATE)
    model.calibration = model.cohort = None
    with pytest.raises(ValueError, match=CHANGED):
        model.verify(profile, say(1, 1), sampling_rate=RATE)


def test_files_without_settings_are_used_as_before(tmp_path):
    """Version 0.1.0 compared only the weights."""
    model = decisions(tmp_path)
    weights, settings = model.fingerprint().split("-")
    assert model.cohort is not None
    assert len(weights) == 64 and len(settings) == 16
    Cohort(model.cohort.embeddings, weights).save(tmp_path / COHORT_FILE)
    earlier = json.loads((tmp_path / CALIBRATION_FILE).read_text()) | {"fingerprint": weights}
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(earlier | {"checksum": dict_checksum(earlier)}))
    edit_config(tmp_path, sampling_rate=8000)
    found = HamSpkModel.from_pretrained(tmp_path)
    assert found.verify(say(1, 0), say(1, 1), sampling_rate=RATE).decision is not None
    found.save_pretrained(tmp_path / "again")
    assert Calibration.load(tmp_path / "again" / CALIBRATION_FILE).fingerprint == weights
