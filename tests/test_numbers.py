"""Numbers and arrays of any library are accepted wherever a user passes one."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from tiny_models import RATE, settle, tiny_config

from hf_hamspk import Calibration, HamSpkModel, InputError, Limits, OperatingPoint, SpeakerIndex
from hf_hamspk.audio_hamspk import check_rate, read_sound
from hf_hamspk.calibration_hamspk import Cohort, decision_rule
from hf_hamspk.data.synthetic import make_speech

HALVES = [0.5, np.float32(0.5), np.float64(0.5), np.float16(0.5), np.array(0.5), torch.tensor(0.5)]
WHOLE = [16_000, 16_000.0, np.int64(16_000), np.float32(16_000), np.array(16_000), torch.tensor(16_000)]
NO_NUMBERS = [True, np.bool_(True), "0.5", float("nan"), np.float32("inf"), torch.tensor(float("nan")), [0.5], 1j]
NO_NUMBERS += [np.array([0.5]), torch.tensor([0.5]), np.array("0.5"), np.datetime64("2020-01-01"), object()]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = settle(HamSpkModel(tiny_config()))
    model.calibration = Calibration(model.fingerprint(), "cosine", -2.0, {"score": 8.0})
    return model


def kind(value) -> str:
    # Without the address of an object, which differs between test processes.
    return f"{type(value).__module__}.{type(value).__name__}-{value!r}".split(" at 0x")[0][:60]


@pytest.mark.parametrize("half", HALVES, ids=kind)
def test_fractions_of_any_library(half, tmp_path):
    assert decision_rule(None, None, half).threshold == 0.5
    point = OperatingPoint("even", half, half, half, half, half)
    assert point == OperatingPoint("even", 0.5, 0.5, 0.5, 0.5, 0.5)
    calibration = Calibration("f", "cosine", half, {"score": half}, (point,), minimum_speech=half)
    calibration.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == calibration
    assert json.loads((tmp_path / "c.json").read_text())["weights"] == {"score": 0.5}
    assert Limits(seconds=half).seconds == 0.5


@pytest.mark.parametrize("rate", WHOLE, ids=kind)
def test_whole_numbers_of_any_library(rate, model):
    assert check_rate(rate, "x") == 16_000
    speech = make_speech(0, 0, 1.5, RATE)
    assert len(read_sound(speech, RATE, source_rate=rate).waveform) == len(speech)
    assert len(read_sound({"array": speech, "sampling_rate": rate}, RATE).waveform) == len(speech)
    assert Limits(size=rate, values=rate) == Limits(size=16_000, values=16_000)
    profile = model.enrol([speech], name="anna", sampling_rate=rate)
    assert len(model.identify(speech, [profile], sampling_rate=rate, candidates=rate).candidates) == 1


@pytest.mark.parametrize("value", NO_NUMBERS, ids=kind)
def test_what_is_no_number_is_refused_in_one_sentence(value, model):
    for error, call in (
        (ValueError, lambda: decision_rule(None, None, value)),
        (ValueError, lambda: OperatingPoint("even", value)),
        (ValueError, lambda: Calibration("f", "cosine", value, {"score": 1.0})),
        (ValueError, lambda: Calibration("f", "cosine", 0.0, {"score": value})),
        (InputError, lambda: check_rate(value, "x")),
        (InputError, lambda: Limits(seconds=value)),
        (InputError, lambda: Limits(size=value)),
        (ValueError, lambda: model.identifier([]).identify([], candidates=value)),
    ):
        with pytest.raises(error):
            call()


def arrays(values: np.ndarray) -> dict[str, object]:
    """The same values in several types, byte orders and strides."""
    wide = np.zeros((*values.shape, 2), values.dtype)
    wide[..., 0] = values
    frozen = values.copy()
    frozen.flags.writeable = False
    return {
        "big-endian": values.astype(values.dtype.newbyteorder(">")),
        "reversed": values[::-1].copy()[::-1],
        "strided": wide[..., 0],
        "Fortran": np.asfortranarray(values),
        "float64": values.astype(np.float64),
        "read-only": frozen,
        "tensor": torch.from_numpy(values.copy()),
    }


def test_embeddings_are_arrays_of_any_kind(model, tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 24)).astype(np.float32)
    tensor = torch.from_numpy(values)
    expected = model.score(tensor, tensor.flip(0))
    for name, array in arrays(values).items():
        assert torch.allclose(model.score(array, tensor.flip(0)).float(), expected), name
        assert torch.allclose(model.score_matrix(array, array).float(), model.score_matrix(tensor, tensor)), name
        assert torch.allclose(model.magnitude(array).float(), model.magnitude(tensor)), name
        index = SpeakerIndex(model, array, list("abcd"))
        assert index.search(array, 1).rows[:, 0].tolist() == [0, 1, 2, 3], name
        assert torch.equal(Cohort(array, "f").embeddings, tensor), name
    assert torch.allclose(model.score(values.tolist(), values[::-1]), expected)
    with pytest.raises(ValueError, match="Expected a tensor or an array of numbers"):
        model.score(np.array(["a"]), values)
    with pytest.raises(ValueError, match="Expected a tensor or an array of numbers"):
        model.score([Fraction(1, 2), None], values)


def test_waveforms_are_arrays_of_any_kind(model):
    speech = make_speech(0, 0, 1.5, RATE)
    expected = read_sound(speech, RATE, source_rate=RATE).waveform
    for name, array in arrays(speech).items():
        found = read_sound(array, RATE, source_rate=RATE).waveform
        assert found.dtype == np.float32 and np.array_equal(found, expected), name
    embedding = model.embed([speech], RATE)
    for name, array in arrays(speech).items():
        assert torch.equal(model.embed([array], RATE), embedding), name
    with pytest.raises(InputError, match="has shape"):
        read_sound(np.array(0.5), RATE, source_rate=RATE)
    with pytest.raises(InputError, match="has shape"):
        read_sound(torch.tensor(0.5), RATE, source_rate=RATE)
