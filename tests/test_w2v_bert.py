"""w2v-BERT 2.0: features and hidden states are those of transformers, whatever the padding and the precision."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny_models import RATE, W2V_BERT, cosine, noises, padded, settle, tiny_backbone, tiny_config
from transformers import AutoModel, SeamlessM4TFeatureExtractor

from hf_hamspk import HamSpkConfig, HamSpkForXVector, HamSpkModel
from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.encoders_hamspk import make_frontend

# Two frames of a filter bank, the least; an even and an odd number of frames; longer than a second.
LENGTHS = [560, 719, 720, 1600, 8000, 11_696, 17_600]


def recordings() -> list[torch.Tensor]:
    """Noise of several lengths, and speech-like sounds with weak high frequencies, as 16-bit audio has them."""
    waves = [wave[:length] for wave, length in zip(noises(*[1.2] * len(LENGTHS)), LENGTHS, strict=True)]
    loud = [torch.as_tensor(np.asarray(make_speech(i, 0, 1.5 + i, RATE), np.float32)) for i in range(2)]
    return waves + [(wave / wave.abs().max() * 32767).round() / 32768 for wave in loud]


def of_transformers(waves: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    arrays = [wave.numpy() for wave in waves]
    return dict(SeamlessM4TFeatureExtractor()(arrays, sampling_rate=RATE, return_tensors="pt"))


def test_features_are_those_of_transformers():
    frontend, waves = make_frontend(tiny_config(W2V_BERT)).eval(), recordings()
    for wave in waves:
        theirs = of_transformers([wave])
        expected = theirs["input_features"][0, : int(theirs["attention_mask"].sum())]
        values, lengths = frontend(wave[None])
        assert lengths is None and values.shape[1:] == expected.shape
        torch.testing.assert_close(values[0].float(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("more", [0, 5000])
def test_features_of_a_padded_batch_are_those_of_transformers(more):
    frontend, waves = make_frontend(tiny_config(W2V_BERT)).eval(), recordings()
    theirs = of_transformers(waves)
    inputs, mask = (torch.nn.functional.pad(one, (0, more)) for one in padded(waves))
    # The content of the padding is ignored.
    values, lengths = frontend(inputs + (1 - mask) * torch.randn(inputs.shape), mask.sum(-1))
    assert lengths.tolist() == theirs["attention_mask"].sum(-1).tolist()
    for found, expected, length in zip(values, theirs["input_features"], lengths.tolist(), strict=True):
        torch.testing.assert_close(found[:length].float(), expected[:length], rtol=0, atol=1e-4)
        assert (found[length:] == 0).all()


def test_hidden_states_are_those_of_transformers():
    torch.manual_seed(0)
    encoder = AutoModel.from_config(tiny_backbone(W2V_BERT)).eval()
    model = HamSpkModel(tiny_config(W2V_BERT)).eval()
    model.backbone.load_state_dict(encoder.state_dict())
    # With two or three frames, the means of transformers, in float32, differ by 2e-5.
    waves = recordings()[2:]
    theirs = of_transformers(waves)
    with torch.no_grad():
        expected = encoder(**theirs, output_hidden_states=True).hidden_states
        found = model(*padded(waves), output_hidden_states=True).hidden_states
    assert len(found) == len(expected) == 3
    for ours, other in zip(found, expected, strict=True):
        for row, reference, length in zip(ours, other, theirs["attention_mask"].sum(-1).tolist(), strict=True):
            difference = (row[:length] - reference[:length]).abs().max() / reference[:length].abs().max()
            assert difference < 1e-5


def test_the_least_is_two_frames():
    model = settle(HamSpkModel(tiny_config(W2V_BERT)))
    assert model.frontend.smallest_length == 560
    assert model(noises(0.035)[0][None]).last_hidden_state.shape[1] == 1
    with pytest.raises(ValueError, match="input_values has 559 samples; expected at least 560"):
        model(noises(0.035)[0][None, :559])


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_half_precision_and_int8_embed_nearly_the_same():
    model, waves = settle(HamSpkModel(tiny_config(W2V_BERT))), noises(0.8, 1.2)
    expected = model.embed(waves, RATE)
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert (1 - cosine(quantised.embed(waves, RATE), expected)).max() < 1e-3
    for kind in (torch.float16, torch.bfloat16):
        cast = settle(HamSpkModel(tiny_config(W2V_BERT))).to(kind)
        cast.load_state_dict(model.state_dict())
        # Features do not lose precision when the model does.
        features = [one.frontend(waves[0][None]).values for one in (model, cast)]
        assert torch.equal(*features)
        assert (1 - cosine(cast.embed(waves, RATE), expected)).max() < 2e-3


def test_a_pretrained_folder_is_a_backbone(tmp_path):
    encoder = AutoModel.from_config(tiny_backbone(W2V_BERT, layerdrop=0.1))
    encoder.save_pretrained(tmp_path)
    for pooling in ("mhfa", "attentive"):
        model = HamSpkForXVector.from_backbone(
            tmp_path, pooling=pooling, mhfa_heads=2, pooling_channels=4, num_labels=2
        )
        config = model.config
        assert (config.frontend, config.backbone_config.layerdrop, config.longest_piece) == ("seamless", 0.0, 20.0)
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(model.hamspk.backbone.state_dict()[name], tensor)
        model(*padded(noises(0.5, 0.7)), labels=torch.tensor([0, 1])).loss.backward()
        mixes = [p for name, p in model.named_parameters() if "mix.weight" in name]
        assert mixes and all(p.grad.isfinite().all() for p in mixes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frontend": "waveform"}, "With a backbone_config of 'wav2vec2-bert', frontend must be 'seamless'"),
        ({"num_mel_bins": 64}, "backbone_config (160) must be a multiple of num_mel_bins (64)."),
        (
            {"backbone_config": tiny_backbone(W2V_BERT, position_embeddings_type="rotary")},
            "w2v-BERT is not supported with position_embeddings_type 'rotary', only 'relative_key'.",
        ),
        ({"backbone_config": None, "frontend": "seamless"}, "frontend 'seamless' needs a backbone_config."),
        ({"backbone_config": tiny_backbone(W2V_BERT, add_adapter=True)}, "Set add_adapter=False in backbone_config"),
    ],
    ids=["front-end", "bins", "positions", "no backbone", "adapter"],
)
def test_what_fits_no_w2v_bert_is_refused(fields, message):
    with pytest.raises((ValueError, StrictDataclassClassValidationError)) as raised:
        HamSpkModel(HamSpkConfig(**({"backbone_config": tiny_backbone(W2V_BERT)} | fields)))
    assert message in str(raised.value if raised.value.__cause__ is None else raised.value.__cause__)
