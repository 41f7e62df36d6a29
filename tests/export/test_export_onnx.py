"""Exported files agree with the model, are tied to its weights, and work in the pipeline."""

import sys

import numpy as np
import pytest
import torch
from tiny_models import RATE, W2V_BERT, noises, settle, tiny_config
from transformers import pipeline

from hf_hamspk import HamSpkForXVector, HamSpkModel
from hf_hamspk.__main__ import main
from hf_hamspk.calibration_hamspk import Calibration, Cohort
from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.encoders_hamspk import LARGEST_DIFFERENCE, OnnxEncoder
from hf_hamspk.export.onnx_graph import CHECKED_SECONDS, check_agreement, export_onnx
from hf_hamspk.modeling_hamspk import OnnxSpeakerModel

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A calibrated model in a folder, its file, and what `hamspk export` made of it."""
    torch.manual_seed(0)
    model = settle(HamSpkForXVector(tiny_config()))
    model.calibration = Calibration(model.fingerprint(), "cosine", -2.0, {"score": 8.0}, trials=99, targets=9)
    folder = tmp_path_factory.mktemp("export") / "final"
    model.save_pretrained(folder)
    assert main(["export", str(folder), str(folder / "model.onnx")]) == 0
    return model, folder


@pytest.mark.slow
def test_the_file_agrees_at_other_lengths_than_it_was_traced_with(exported):
    model, folder = exported
    found = check_agreement(model.base_model, folder / "model.onnx", (0.1, 0.5, 2.0, 7.3, 20.0), (1, 4))
    assert len(found) == 10 and max(one.difference for one in found) < 1e-5 < LARGEST_DIFFERENCE
    assert [path.name for path in folder.glob("model.onnx*")] == ["model.onnx"]


@pytest.mark.slow
def test_it_embeds_and_verifies_as_the_model(exported):
    model, folder = exported
    with_onnx = OnnxSpeakerModel(model, folder / "model.onnx", threads=1)
    waves = noises(0.7, 2.0, 1.1, 2.0)
    np.testing.assert_allclose(with_onnx.embed(waves, RATE), model.embed(waves, RATE), rtol=1e-4, atol=1e-5)
    assert with_onnx.fingerprint() == model.fingerprint()
    speech = [make_speech(0, 0, 3.2, RATE), make_speech(1, 0, 3.4, RATE)]
    torch_answer, onnx_answer = (
        pipeline("speaker-verification", model=str(folder), trust_remote_code=True, device="cpu", **options)(
            tuple(speech)
        )
        for options in ({}, {"onnx_file": "model.onnx", "onnx_threads": 1})
    )
    assert onnx_answer["decision"] == torch_answer["decision"]
    assert onnx_answer["log_likelihood_ratio"] == pytest.approx(torch_answer["log_likelihood_ratio"], abs=1e-3)


@pytest.mark.slow
def test_a_quantised_graph_gives_scores_and_no_decisions(exported, tmp_path, caplog):
    """Calibration, cohort, profiles and indices belong to what computes the embeddings."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, folder = exported
    quantize_dynamic(folder / "model.onnx", tmp_path / "int8.onnx", weight_type=QuantType.QUInt8)
    quantised = OnnxSpeakerModel(model, tmp_path / "int8.onnx", threads=1)
    assert "int8.onnx computes other embeddings than the model" in caplog.text
    assert (quantised.calibration, quantised.cohort) == (None, None)
    assert quantised.fingerprint() != model.fingerprint()
    enrolment, test = make_speech(0, 0, 3.2, RATE), make_speech(1, 0, 3.4, RATE)
    answer = quantised.verify(enrolment, test, sampling_rate=RATE)
    assert answer.score is not None
    assert (answer.decision, answer.log_likelihood_ratio) == (None, None)
    profile = model.enrol([enrolment], name="anna", sampling_rate=RATE)
    with pytest.raises(ValueError, match=r"The profile of 'anna'.* was made with other weights"):
        quantised.verify(profile, test, sampling_rate=RATE)
    with pytest.raises(ValueError, match="was made with other weights"):
        quantised.identify(test, [profile], sampling_rate=RATE)
    with pytest.raises(ValueError, match="was made with other weights"):
        Cohort(torch.randn(5, 24), model.fingerprint()).check_model(quantised.fingerprint())
    with pytest.raises(ValueError, match="is not calibrated"):
        quantised.verify(enrolment, test, "balanced", sampling_rate=RATE)
    verify = pipeline(
        "speaker-verification",
        model=str(folder),
        trust_remote_code=True,
        device="cpu",
        onnx_file=str(tmp_path / "int8.onnx"),
    )
    assert verify((enrolment, test))["decision"] is None
    with pytest.raises(ValueError, match="is not calibrated"):
        verify((enrolment, test), operating_point="balanced")


@pytest.mark.slow
def test_a_file_of_other_weights_is_refused(exported):
    _, folder = exported
    torch.manual_seed(5)
    other = settle(HamSpkModel(tiny_config()))
    with pytest.raises(ValueError, match=r"model\.onnx was exported from another model"):
        OnnxSpeakerModel(other, folder / "model.onnx")


@pytest.mark.slow
def test_a_file_that_does_not_agree_is_refused(exported):
    _, folder = exported
    torch.manual_seed(5)
    with pytest.raises(ValueError, match="differs from the model"):
        check_agreement(settle(HamSpkModel(tiny_config())), folder / "model.onnx", (1.0,), (1,))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["campplus", "resnet", W2V_BERT])
def test_the_other_encoders_agree_at_four_lengths_and_two_batch_sizes(backbone, tmp_path):
    model = settle(HamSpkModel(tiny_config(backbone)))
    found = export_onnx(model, tmp_path / "model.onnx")
    assert found.masked and len(found.agreements) == 8
    assert {(one.seconds, one.batch) for one in found.agreements} == {(s, b) for s in CHECKED_SECONDS for b in (1, 4)}
    assert max(one.difference for one in found.agreements) < LARGEST_DIFFERENCE


@pytest.mark.slow
def test_a_backbone_that_normalises_over_time_takes_no_mask(tmp_path):
    model = settle(HamSpkModel(tiny_config("wav2vec2", norm="group")))
    found = export_onnx(model, tmp_path / "model.onnx", (0.5, 2.0), (1, 2))
    assert not found.masked
    waves = noises(0.7, 1.3, 1.3)
    with_onnx = OnnxSpeakerModel(model, tmp_path / "model.onnx", threads=1)
    np.testing.assert_allclose(with_onnx.embed(waves, RATE), model.embed(waves, RATE), rtol=1e-4, atol=1e-5)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"ONNX Runtime cannot read a\.onnx"):
        OnnxEncoder(tmp_path / "a.onnx")
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [other])
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "b.onnx")
    with pytest.raises(ValueError, match=r"b\.onnx was not written by `hamspk export`"):
        OnnxEncoder(tmp_path / "b.onnx")


def test_without_onnxruntime_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        OnnxEncoder(tmp_path / "a.onnx")


def test_what_cannot_be_exported_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="float32 on the CPU"):
        export_onnx(HamSpkModel(tiny_config()).double(), tmp_path / "a.onnx")
    model = pipeline("speaker-verification", model=settle(HamSpkModel(tiny_config())), device="cpu")
    with pytest.raises(ValueError, match=r"a\.onnx not found"):
        type(model)(model.model, device="cpu", onnx_file="a.onnx")
    for output in ("a.txt", "no/such/a.onnx"):
        assert main(["export", "some/model", str(tmp_path / output)]) == 2
    assert "must be a file name that ends in .onnx" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
