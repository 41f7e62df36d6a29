"""`level_db`: a quiet recording has the embedding of a loud one, whatever computes it."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny_models import tiny_config

from hf_hamspk import HamSpkModel
from hf_hamspk.data.synthetic import make_speech

RATE = 16000
ENCODERS = {
    "fbank": {},
    "kaldi": {"frontend": "kaldi"},
    "speechbrain": {"frontend": "speechbrain"},
    "waveform": {"backbone": "wavlm", "normalize_waveform": False},
}


def make_model(level: float | None, **fields) -> HamSpkModel:
    torch.manual_seed(0)
    model = HamSpkModel(tiny_config(**fields, level_db=level)).eval()
    return model


@pytest.mark.parametrize("name", ENCODERS)
def test_the_level_does_not_matter(name):
    model, plain = make_model(-26.0, **ENCODERS[name]), make_model(None, **ENCODERS[name])
    speech = 0.3 * make_speech(1, 0, 2.0)
    recordings = [speech, speech * 1e-3 + 0.01, speech * 20]
    loud, quiet, louder = model.embed_waveforms([np.float32(one) for one in recordings])
    torch.testing.assert_close(quiet, loud, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(louder, loud, rtol=1e-4, atol=1e-4)
    if name == "fbank":
        first, second = plain.embed_waveforms([np.float32(one) for one in recordings[:2]])
        assert (first - second).abs().max() > 10 * (loud - quiet).abs().max()


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_does_not_matter(name):
    model = make_model(-26.0, **ENCODERS[name])
    short, long = (np.float32(1e-3 * make_speech(2, 0, seconds)) for seconds in (1.0, 2.0))
    values = torch.zeros(2, len(long))
    values[0, : len(short)], values[1] = torch.from_numpy(short), torch.from_numpy(long)
    # Whatever stands in the padding is ignored.
    values[0, len(short) :] = 5.0
    mask = torch.ones_like(values)
    mask[0, len(short) :] = 0
    with torch.inference_mode():
        together = model(values, mask).embeddings
    alone = model.embed_waveforms([short, long])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


def test_an_utterance_at_the_level_is_unchanged():
    model, plain = make_model(-26.0), make_model(None)
    speech = make_speech(3, 0, 2.0) - make_speech(3, 0, 2.0).mean()
    speech = np.float32(speech * 10 ** (-26 / 20) / np.sqrt(np.mean(speech**2)))
    torch.testing.assert_close(model.embed_waveforms([speech]), plain.embed_waveforms([speech]), rtol=1e-4, atol=1e-4)


def test_silence_is_finite_and_has_gradients():
    model = make_model(-26.0)
    values = torch.zeros(2, RATE, requires_grad=True)
    embeddings = model(values).embeddings
    embeddings.sum().backward()
    assert embeddings.isfinite().all() and values.grad is not None and values.grad.isfinite().all()


@pytest.mark.slow
def test_the_level_is_part_of_the_fingerprint(tmp_path):
    """A calibration does not apply to the embeddings of another level."""
    plain, first, second = make_model(None), make_model(-26.0), make_model(-20)
    assert len({model.fingerprint() for model in (plain, first, second)}) == 3
    first.save_pretrained(tmp_path)
    assert HamSpkModel.from_pretrained(tmp_path).fingerprint() == first.fingerprint()
    assert HamSpkModel.from_pretrained(tmp_path, level_db=None).fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("level", [-60.1, 1, float("nan"), -float("inf")])
def test_levels_out_of_range_are_refused(level):
    with pytest.raises(StrictDataclassClassValidationError, match="level_db must be between -60 and 0, got"):
        tiny_config(level_db=level)
