"""Calibration, cohort and fingerprint of a model: they travel with the weights, and only with these."""

import logging
import shutil
import warnings

import pytest
import torch
from speakers import RATE, say
from tiny_models import settle, tiny_config

from hf_hamspk import HamSpkForXVector, HamSpkModel
from hf_hamspk.calibration_hamspk import CALIBRATION_FILE, COHORT_FILE, Calibration, Cohort


def make(seed: int = 0, **fields) -> HamSpkForXVector:
    torch.manual_seed(seed)
    return settle(HamSpkForXVector(tiny_config(**fields)))


def calibrate(model):
    """Give a model a calibration of normalised scores and its cohort."""
    model.cohort = Cohort(torch.randn(12, model.config.embedding_size), model.fingerprint(), "nobody")
    model.calibration = Calibration(
        model.fingerprint(),
        model.config.similarity,
        -1.0,
        {"score": 2.0, "snr_min": 0.01},
        normalisation="as",
        top=5,
        cohort=model.cohort.checksum,
    )
    return model


@pytest.fixture
def folder(tmp_path):
    calibrate(make()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [HamSpkModel, HamSpkForXVector])
def test_saved_and_loaded_again(tmp_path, folder, kind):
    saved = calibrate(make())
    loaded = kind.from_pretrained(folder)
    assert loaded.calibration == saved.calibration
    assert loaded.cohort.checksum == saved.calibration.cohort
    enrolment, test = say(1, 0), say(1, 1)
    expected = saved.eval().verifier().verify([enrolment], test, RATE)
    found = loaded.verifier().verify([enrolment], test, RATE)
    assert found.log_likelihood_ratio == pytest.approx(expected.log_likelihood_ratio, abs=1e-4)
    assert found.decision == expected.decision
    # And on, from the loaded model.
    loaded.save_pretrained(tmp_path / "again")
    again = kind.from_pretrained(tmp_path / "again")
    assert again.calibration == saved.calibration and again.cohort.checksum == loaded.cohort.checksum


def test_a_model_without_them_saves_none(tmp_path):
    make().save_pretrained(tmp_path)
    assert not (tmp_path / CALIBRATION_FILE).exists()
    loaded = HamSpkModel.from_pretrained(tmp_path)
    assert (loaded.calibration, loaded.cohort) == (None, None)
    assert loaded.verifier().verify([say(1, 0)], say(1, 1), RATE).decision is None


def test_the_fingerprint_is_that_of_the_embedding():
    model = make()
    same = {
        "again": make().fingerprint(),
        "without a head": model.hamspk.fingerprint(),
        "other speakers": make(num_labels=5).fingerprint(),
        "bfloat16": make().bfloat16().fingerprint(),
    }
    assert set(same.values()) == {model.fingerprint()}
    assert make(1).fingerprint() != model.fingerprint()
    with torch.no_grad():
        model.hamspk.projection.weight[0, 0] *= 1.05
    assert model.fingerprint() != same["again"]


@pytest.mark.parametrize("name", [CALIBRATION_FILE, COHORT_FILE])
def test_files_of_another_model_are_refused(tmp_path, folder, name):
    calibrate(make(1)).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, folder / name)
    with pytest.raises(ValueError, match=r"cannot be used\. .* was made with other weights .* again\. .* delete "):
        HamSpkModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: edit(f / CALIBRATION_FILE, '"offset": -1.0', '"offset": -0.5'), "was altered"),
        (lambda f: edit(f / CALIBRATION_FILE, '"prior": 0.01', '"prior": 0.001'), "was altered"),
        (lambda f: (f / CALIBRATION_FILE).write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / COHORT_FILE).write_bytes(b"\0" * 100), "cannot be read"),
    ],
)
def test_altered_files_are_refused_with_what_to_do(folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match=f"{message}.* To use the model without decisions, .* delete"):
        HamSpkModel.from_pretrained(folder)
    plain = HamSpkModel.from_pretrained(folder, calibrated=False)
    assert (plain.calibration, plain.cohort) == (None, None)


def edit(path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_cohort_that_was_exchanged_is_refused_by_the_verifier(folder):
    model = HamSpkModel.from_pretrained(folder)
    Cohort(torch.randn(12, 24), model.fingerprint()).save(folder / COHORT_FILE)
    with pytest.raises(ValueError, match="The cohort is not the one that the calibration was fitted with"):
        HamSpkModel.from_pretrained(folder).verifier()


def test_without_its_cohort_a_calibration_is_left_out_and_said(folder, caplog):
    (folder / COHORT_FILE).unlink()
    model = HamSpkModel.from_pretrained(folder)
    assert model.calibration is None and "the model gives scores but no decisions" in caplog.text
    assert model.verifier().calibration is None


def test_other_weights_leave_the_files_behind(folder, caplog):
    model = HamSpkModel.from_pretrained(folder)
    with torch.no_grad():
        model.projection.weight.mul_(1.1)
    with pytest.raises(ValueError, match=r"with other weights .* than this model has now"):
        model.verifier()
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        model.save_pretrained(folder)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "verification.json is not saved: the model has changed since" in caplog.text
    assert not (folder / CALIBRATION_FILE).exists() and not (folder / COHORT_FILE).exists()
    assert HamSpkModel.from_pretrained(folder).calibration is None


def test_another_precision(folder):
    assert HamSpkModel.from_pretrained(folder, dtype=torch.bfloat16).calibration is not None
    # Rounded otherwise than the model that was measured: without decisions rather than with wrong ones.
    assert HamSpkModel.from_pretrained(folder, dtype=torch.float16).calibration is None


def halved(model):
    return model.half()


def quantised(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


@pytest.mark.slow
@pytest.mark.parametrize("change", [halved, quantised])
def test_weights_that_lost_precision_after_loading_give_scores_and_no_decisions(folder, change, caplog):
    exact = HamSpkModel.from_pretrained(folder)
    profile = exact.enrol([say(1, 0)], name="anna", sampling_rate=RATE)
    model = change(HamSpkModel.from_pretrained(folder))
    assert model.fingerprint() != exact.fingerprint()
    assert model.fingerprint() == change(HamSpkModel.from_pretrained(folder)).fingerprint()
    answer = model.verify(say(1, 0), say(1, 1), sampling_rate=RATE)
    assert answer.score == pytest.approx(exact.verify(say(1, 0), say(1, 1), sampling_rate=RATE).score, abs=0.05)
    assert (answer.decision, answer.log_likelihood_ratio) == (None, None)
    assert "does not apply to quantised or float16 weights" in caplog.text
    assert model.compare([say(1, 0), say(1, 1)], RATE).log_likelihood_ratios is None
    with pytest.raises(ValueError, match="was made with other weights"):
        model.identify(say(1, 0), [profile], sampling_rate=RATE)
    # A calibration of these weights is used.
    model.calibration, model.cohort = Calibration(model.fingerprint(), "cosine", -2.0, {"score": 8.0}), None
    assert model.verify(say(1, 0), say(1, 1), sampling_rate=RATE).decision is not None


def test_another_similarity_is_refused(folder):
    model = HamSpkModel.from_pretrained(folder)
    model.config.similarity = "hyperbolic"
    with pytest.raises(ValueError, match="needs 'cosine' scores"):
        model.verifier()
