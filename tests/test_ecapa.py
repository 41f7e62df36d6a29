"""ECAPA-TDNN: masks all the way, and nothing that breaks at the edges."""

import pytest
import torch
from tiny_models import noises, padded, settle, tiny_config
from torch import nn

from hf_hamspk import HamSpkModel
from hf_hamspk.encoders_hamspk import Ecapa
from hf_hamspk.networks_hamspk import batch_norm


def features(*frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features `(B, 80, T)`, 0 where not valid, and their mask."""
    size = max(frames)
    mask = torch.arange(size) < torch.tensor(frames)[:, None]
    return torch.randn(len(frames), 80, size) * mask[:, None], mask


def test_encoder_does_not_see_the_padding():
    encoder = settle(Ecapa(tiny_config()))
    x, mask = features(1, 2, 7, 30, 50)
    together = encoder(x, mask)
    assert (together.mT[~mask] == 0).all()
    for i, frames in enumerate(mask.sum(-1).tolist()):
        torch.testing.assert_close(together[i, :, :frames], encoder(x[i : i + 1, :, :frames])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"ecapa_block_input": "sum"}, {"ecapa_padding": "reflect"}])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_overwriting_changes_nothing(fields, compute):
    """Without gradients memory is used again; the frames, the pooled statistics and the input stay what they were."""
    model = settle(HamSpkModel(tiny_config(frontend="kaldi", pooling_hidden_norm=True, **fields)))
    model.to(getattr(torch, compute))
    x, mask = features(7, 30, 50)
    x, before = x.to(model.dtype), x.clone()
    for own in (None, mask):
        frames = model.backbone(x, own)
        pooled = model.pooling(frames, own)
        with torch.no_grad():
            overwritten = model.backbone(x, own)
            kept = overwritten.clone()
            torch.testing.assert_close(overwritten, frames, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(model.pooling(overwritten, own), pooled, rtol=1e-5, atol=1e-5)
        assert torch.equal(overwritten, kept)
    assert torch.equal(x, before.to(x.dtype))


def test_part_of_the_encoder_in_training_mode():
    """What overwrites and what does not can be mixed."""
    encoder = settle(Ecapa(tiny_config()))
    encoder.blocks[1].reduce.norm.train()
    x, mask = features(7, 30, 50)
    expected = encoder(x, mask)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x, mask), expected, rtol=1e-4, atol=1e-4)


def test_batch_statistics_are_those_of_the_valid_frames():
    masked, concatenated = nn.BatchNorm1d(4).train(), nn.BatchNorm1d(4).train()
    mask = torch.arange(9) < torch.tensor([9, 3, 1])[:, None]
    x = torch.randn(3, 4, 9) + 5
    utterances = [x[i, :, :n] for i, n in enumerate(mask.sum(-1).tolist())]
    # Whatever the padding holds.
    output = batch_norm(masked, x.where(mask[:, None], torch.tensor(100.0)), mask)
    expected = concatenated(torch.cat(utterances, dim=1)[None])[0]
    torch.testing.assert_close(torch.cat([output[i, :, :n] for i, n in enumerate([9, 3, 1])], dim=1), expected)
    assert (output.mT[~mask] == 0).all()
    torch.testing.assert_close(masked.running_mean, concatenated.running_mean)
    torch.testing.assert_close(masked.running_var, concatenated.running_var)


def test_training_does_not_see_the_padding():
    """More padding changes neither the output of a training step, nor its statistics, nor its gradients."""
    encoders = [Ecapa(tiny_config()).train() for _ in range(2)]
    encoders[1].load_state_dict(encoders[0].state_dict())
    x, mask = features(20, 31, 12)
    short = encoders[0](x, mask)
    long = encoders[1](nn.functional.pad(x, (0, 25)), nn.functional.pad(mask, (0, 25)))
    torch.testing.assert_close(long[..., :31], short, rtol=1e-4, atol=1e-5)
    for output in (short, long):
        output.square().sum().backward()
        assert output.isfinite().all()
    for name, buffer in encoders[0].named_buffers():
        torch.testing.assert_close(buffer, encoders[1].get_buffer(name), rtol=1e-4, atol=1e-5, msg=name)
    for name, parameter in encoders[0].named_parameters():
        torch.testing.assert_close(
            encoders[1].get_parameter(name).grad, parameter.grad, rtol=1e-2, atol=1e-2, msg=f"gradient of {name}"
        )


@pytest.mark.parametrize("pooling", ["attentive", "statistics"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_single_frame_is_finite(pooling, mode):
    model = HamSpkModel(tiny_config(pooling=pooling, frontend="kaldi"))
    getattr(model, mode)()
    x = torch.stack(noises(0.025, 0.025))
    for mask in (None, torch.ones_like(x)):
        output = model(x, mask)
        assert output.last_hidden_state.shape == (2, 1, 48)
        assert output.embeddings.isfinite().all()


@pytest.mark.parametrize("frontend", ["fbank", "kaldi"])
@pytest.mark.parametrize("pooling", ["attentive", "statistics"])
def test_gradients_of_silence_are_finite(frontend, pooling):
    model = HamSpkModel(tiny_config(frontend=frontend, pooling=pooling)).train()
    values, mask = padded([torch.zeros(16000), torch.zeros(8000), *noises(0.7)])
    embeddings = model(values, mask).embeddings
    embeddings.square().sum().backward()
    assert embeddings.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_more_blocks_can_be_asked_for():
    encoder = Ecapa(tiny_config(ecapa_dilations=(2, 3, 4, 5))).eval()
    assert encoder(torch.randn(2, 80, 11)).shape == (2, 48, 11)
