"""Conventions of transformers: hidden states, refused arguments, initialised buffers, gradient checkpointing.

The tests follow `test_hidden_states_output`, `test_init_weights_can_init_buffers` and
`test_training_gradient_checkpointing_use_reentrant_true` of transformers' common tests.
"""

import pytest
import torch
from parameters import thinned
from tiny_models import noises, padded, settle, tiny_config

from hf_hamspk import HamSpkForXVector, HamSpkModel

MODELS = [
    {},
    {"ecapa_block_input": "previous", "pooling": "xvector"},
    {"backbone": "wavlm"},
    {"backbone": "wavlm", "pooling": "mhfa"},
    {"backbone": "wav2vec2", "mix_layers": False},
    {"backbone": "wav2vec2", "norm": "group", "mix_layers": False},
    {"backbone": "hubert", "norm": "group"},
]
REENTRANT = {"use_reentrant": True}


def build(fields: dict, kind: type = HamSpkForXVector, **more):
    torch.manual_seed(0)
    return settle(kind(tiny_config(**fields | more)))


@pytest.mark.parametrize("kind", [HamSpkModel, HamSpkForXVector])
@pytest.mark.parametrize("fields", thinned(MODELS, ids=str))
def test_hidden_states_are_returned_and_change_nothing(fields, kind):
    model = build(fields, kind)
    values, mask = padded(noises(0.5, 0.3))
    with torch.no_grad():
        plain, full = model(values, mask), model(values, mask, output_hidden_states=True)
        assert plain.hidden_states is None
        torch.testing.assert_close(full.embeddings, plain.embeddings, rtol=1e-5, atol=1e-6)
        layers, width = (4, 16) if "backbone" not in fields else (3, 32)
        assert len(full.hidden_states) == layers
        frames = build(fields, HamSpkModel)(values, mask).last_hidden_state
        for hidden in full.hidden_states:
            assert hidden.shape[0] == 2 and hidden.shape[2] == width
            # The pooling "xvector" has layers of its own after these.
            assert frames is None or hidden.shape[1] == frames.shape[1]
            assert torch.isfinite(hidden).all()
        assert len(model(values, mask, output_hidden_states=True, return_dict=False)) == len(full.to_tuple())


@pytest.mark.parametrize("fields", [MODELS[0], MODELS[2]], ids=str)
def test_the_configuration_can_ask_for_hidden_states(fields):
    model = build(fields, output_hidden_states=True)
    values = padded(noises(0.3, 0.3))[0]
    with torch.no_grad():
        assert model(values).hidden_states is not None
        assert model(values, output_hidden_states=False).hidden_states is None


def test_the_hidden_states_of_ecapa_are_its_layers():
    model = build({}, HamSpkModel)
    kept = []
    for layer in (model.backbone.input, *model.backbone.blocks):
        layer.register_forward_hook(lambda module, inputs, output: kept.append(output.clone()))
    with torch.no_grad():
        hidden = model(padded(noises(0.3, 0.3))[0], output_hidden_states=True).hidden_states
    assert all(torch.equal(one.mT, other) for one, other in zip(hidden, kept, strict=True))


@pytest.mark.parametrize("kind", [HamSpkModel, HamSpkForXVector])
@pytest.mark.parametrize("name", ["output_attentions", "input_ids", "output_hidden_state", "num_items_in_batch"])
def test_other_arguments_are_refused(kind, name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        build({}, kind)(padded(noises(0.3, 0.3))[0], **{name: True})


@pytest.mark.parametrize("fields", [MODELS[0], MODELS[2], MODELS[5]], ids=str)
def test_initialisation_sets_every_buffer(fields):
    """A model on the meta device has the buffers of a fresh model after initialisation."""
    config = tiny_config(**fields)
    fresh = HamSpkForXVector(config)
    with torch.device("meta"):
        model = HamSpkForXVector(config)
    # Every value that is left as it is shows.
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.fill_(7)
    model.init_weights()
    for (name, one), other in zip(model.named_buffers(), fresh.buffers(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("name", ["gradient_checkpointing_enable", "activation_checkpointing_enable"])
@pytest.mark.parametrize("kind", [HamSpkModel, HamSpkForXVector])
@pytest.mark.parametrize("options", [REENTRANT, {"preserve_rng_state": True}], ids=str)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_reentrant_checkpointing_of_wavlm_is_refused_with_the_cure(name, kind, options):
    """Its layers share the position bias, so that the backward pass would wait for ever."""
    model = build({"backbone": "wavlm"}, kind)
    if not hasattr(model, name):
        pytest.skip(f"this transformers has no {name}")
    with pytest.raises(ValueError, match="'use_reentrant': False"):
        getattr(model, name)(options)
    getattr(model, name)({"use_reentrant": False})
    getattr(model, name)()


@pytest.mark.parametrize("options", [REENTRANT, {"use_reentrant": False}], ids=str)
@pytest.mark.parametrize("backbone", ["wavlm", "wav2vec2", "hubert"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_checkpointed_training_gives_the_same_gradients(backbone, options):
    if backbone == "wavlm" and options is REENTRANT:
        pytest.skip("refused")
    values, labels = padded(noises(0.3, 0.3))[0], torch.tensor([0, 1])
    gradients = []
    for is_checkpointed in (False, True):
        model = build({"backbone": backbone}, freeze_feature_encoder=False).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable(options)
        model(values, labels=labels).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
