"""CAM++ and ResNet: masks all the way, sizes of the published models, and precisions."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from tiny_models import RATE, WAVLM, attuned, cosine, noises, padded, settle, tiny_config
from torch import nn

from hf_hamspk import HamSpkConfig, HamSpkModel
from hf_hamspk.configuration_hamspk import RESNET_BLOCKS
from hf_hamspk.encoders_hamspk import CamPlusPlus, ContextMask, ResNet, make_encoder, segment_sizes, segment_weights
from hf_hamspk.networks_hamspk import batch_norm

ENCODERS = ["campplus", "resnet"]
BOTTLENECK = {"backbone": "resnet", "resnet_depth": 50}
CASES = [{"backbone": "campplus"}, {"backbone": "resnet"}, BOTTLENECK]


def features(*frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features `(B, 80, T)`, 0 where not valid, and their mask."""
    size = max(frames)
    mask = torch.arange(size) < torch.tensor(frames)[:, None]
    return torch.randn(len(frames), 80, size) * mask[:, None], mask


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_an_encoder_does_not_see_the_padding(fields):
    encoder = settle(make_encoder(tiny_config(**fields)))
    x, mask = features(1, 2, 7, 30, 41, 50)
    kept = mask[:, :: encoder.stride]
    for with_gradients in (True, False):
        with torch.set_grad_enabled(with_gradients):
            together = encoder(x, mask)
            assert together.shape == (6, encoder.output_channels, kept.shape[1])
            assert (together.mT[~kept] == 0).all()
            for i, frames in enumerate(mask.sum(-1).tolist()):
                alone = encoder(x[i : i + 1, :, :frames])[0]
                assert alone.shape[-1] == kept[i].sum() == math.ceil(frames / encoder.stride)
                torch.testing.assert_close(together[i, :, : alone.shape[-1]], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_overwriting_changes_nothing(fields):
    """Without gradients memory is used again and normalisation is part of the convolutions."""
    encoder = settle(make_encoder(tiny_config(**fields)))
    x, mask = features(7, 30, 50)
    before = x.clone()
    for own in (None, mask):
        layers, kept = [], []
        expected = encoder(x, own, layers)
        with torch.no_grad():
            torch.testing.assert_close(encoder(x, own, kept), expected, rtol=1e-4, atol=1e-5)
        assert len(layers) == len(kept) == (3 if fields["backbone"] == "campplus" else 5)
        for one, other in zip(layers, kept, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    assert torch.equal(x, before)


@pytest.mark.slow
@pytest.mark.parametrize("fields", CASES, ids=str)
def test_training_does_not_see_the_padding(fields):
    """More padding changes neither the output of a training step, nor its statistics, nor its gradients."""
    encoders = [make_encoder(tiny_config(**fields)).double().train() for _ in range(2)]
    encoders[1].load_state_dict(encoders[0].state_dict())
    x, mask = features(20, 31, 12)
    x = x.double()
    short = encoders[0](x, mask)
    long = encoders[1](nn.functional.pad(x, (0, 25)), nn.functional.pad(mask, (0, 25)))
    torch.testing.assert_close(long[..., : short.shape[-1]], short)
    for output in (short, long):
        output.square().sum().backward()
    for name, buffer in encoders[0].named_buffers():
        torch.testing.assert_close(buffer, encoders[1].get_buffer(name), msg=name)
    for name, parameter in encoders[0].named_parameters():
        assert parameter.grad.isfinite().all(), name
        torch.testing.assert_close(encoders[1].get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_batch_statistics_of_planes_are_those_of_the_valid_frames():
    masked, concatenated = nn.BatchNorm2d(4).train(), nn.BatchNorm2d(4).train()
    mask = torch.arange(9) < torch.tensor([9, 3, 1])[:, None]
    x = torch.randn(3, 4, 5, 9) + 5
    utterances = [x[i, :, :, :n] for i, n in enumerate(mask.sum(-1).tolist())]
    output = batch_norm(masked, x.where(mask[:, None, None], torch.tensor(100.0)), mask)
    expected = concatenated(torch.cat(utterances, dim=-1)[None])[0]
    valid = torch.cat([output[i, :, :, :n] for i, n in enumerate([9, 3, 1])], dim=-1)
    torch.testing.assert_close(valid, expected)
    assert (output.movedim(-1, 1)[~mask] == 0).all()
    torch.testing.assert_close(masked.running_var, concatenated.running_var)


def test_segments_are_those_of_the_utterance():
    x = torch.arange(10.0)[None, None].repeat(2, 1, 1)
    mask = torch.arange(10) < torch.tensor([10, 5])[:, None]
    assert segment_sizes(x, None, 4).tolist() == [[4, 4, 2]]
    assert segment_sizes(x, mask, 4).tolist() == [[4, 4, 2], [4, 1, 0]]
    assert segment_sizes(x, None, 100).tolist() == [[10]]


def test_the_context_of_a_mask_is_its_utterance_and_its_segment():
    """The reference computes the context of each frame separately."""
    layer = ContextMask(6, 4, 2, segment=7)
    x = torch.randn(2, 6, 24)
    rows = []
    for t in range(24):
        start = t - t % 7
        context = x.mean(-1) + x[..., start : start + 7].mean(-1)
        hidden = torch.relu(layer.down(context[..., None]))
        rows.append(torch.sigmoid(layer.up(hidden)))
    torch.testing.assert_close(layer(x, segment_weights(x, None, 7)), layer.local(x) * torch.cat(rows, dim=-1))


def test_the_frames_of_a_long_utterance_are_counted_in_half_precision():
    x = torch.zeros(1, 4, 70_011)
    found, exact = segment_weights(x.half(), None, 100), segment_weights(x.double(), None, 100)
    torch.testing.assert_close(found.double(), exact, atol=1e-7, rtol=1e-3)


# --- sizes


@pytest.mark.parametrize(
    ("fields", "millions"),
    [
        # WeSpeaker's table, v2: embeddings of 256, TSTP pooling, without batch normalisation after it.
        ({"backbone": "resnet", "resnet_depth": 34}, 6.63),
        ({"backbone": "resnet", "resnet_depth": 221}, 23.79),
        ({"backbone": "resnet", "resnet_depth": 293}, 28.62),
        # 3D-Speaker's table and WeSpeaker's: embeddings of 512.
        ({"backbone": "campplus", "embedding_size": 512}, 7.18),
    ],
    ids=str,
)
def test_published_sizes(fields, millions):
    with torch.device("meta"):
        config = HamSpkConfig(
            **({"embedding_size": 256, "normalize_pooled": False} | fields), normalize_embedding=False
        )
        model = HamSpkModel(config)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == pytest.approx(millions, abs=0.011)


@pytest.mark.slow
def test_every_depth_can_be_built():
    for depth, blocks in RESNET_BLOCKS.items():
        with torch.device("meta"):
            encoder = ResNet(tiny_config("resnet", resnet_depth=depth))
        layers = sum(len(block.layers) for stage in encoder.stages for block in stage)
        # As they are counted: the first convolution and the linear layer of the embedding are layers, too.
        assert layers + 2 == depth and len(encoder.stages) == len(blocks) == 4


def test_mel_bins_that_no_stride_divides():
    for backbone in ENCODERS:
        model = settle(HamSpkModel(tiny_config(backbone, num_mel_bins=43)))
        assert model(torch.stack(noises(0.3, 0.3))).embeddings.shape == (2, 24)


# --- edges


@pytest.mark.parametrize("pooling", ["attentive", "statistics", "xvector"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("backbone", ENCODERS)
def test_a_single_frame_is_finite(backbone, mode, pooling):
    model = HamSpkModel(tiny_config(backbone, pooling=pooling))
    getattr(model, mode)()
    x = torch.stack(noises(0.025, 0.025))
    for mask in (None, torch.ones_like(x)):
        output = model(x, mask)
        assert output.last_hidden_state.shape[1] == 1
        assert output.embeddings.isfinite().all()


@pytest.mark.parametrize("backbone", ENCODERS)
def test_gradients_of_silence_are_finite(backbone):
    model = HamSpkModel(tiny_config(backbone)).train()
    values, mask = padded([torch.zeros(16000), torch.zeros(8000), *noises(0.7)])
    embeddings = model(values, mask).embeddings
    embeddings.square().sum().backward()
    assert embeddings.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("backbone", ENCODERS)
def test_hidden_states_are_the_first_layer_and_the_stages(backbone):
    model = settle(HamSpkModel(tiny_config(backbone)))
    values, mask = padded(noises(0.5, 0.3))
    with torch.no_grad():
        plain, full = model(values, mask), model(values, mask, output_hidden_states=True)
    torch.testing.assert_close(full.embeddings, plain.embeddings)
    shapes = [tuple(hidden.shape) for hidden in full.hidden_states]
    frames = {"campplus": [(2, 24, 16), (2, 24, 16), (2, 24, 12)]}
    frames["resnet"] = [(2, 48, 320), (2, 48, 320), (2, 24, 320), (2, 12, 320), (2, 6, 320)]
    assert shapes == frames[backbone]


@pytest.mark.parametrize("backbone", ENCODERS)
def test_initialisation_sets_every_buffer(backbone):
    config = tiny_config(backbone)
    fresh = HamSpkModel(config)
    with torch.device("meta"):
        model = HamSpkModel(config)
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.fill_(7)
    model.init_weights()
    for (name, one), other in zip(model.named_buffers(), fresh.buffers(), strict=True):
        assert torch.equal(one, other), name
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# --- precisions


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ENCODERS)
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_half_precision_and_int8_embed_nearly_the_same(backbone):
    model = settle(HamSpkModel(tiny_config(backbone)))
    waves = noises(0.8, 1.2)
    expected = model.embed(waves, RATE)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    found = {"int8": quantised.embed(waves, RATE)}
    for kind in (torch.float16, torch.bfloat16):
        found[str(kind)] = settle(HamSpkModel(tiny_config(backbone))).to(kind)
        found[str(kind)].load_state_dict(model.state_dict())
        found[str(kind)] = found[str(kind)].embed(waves, RATE)
    for name, embeddings in found.items():
        assert embeddings.dtype == torch.float32
        assert (1 - cosine(embeddings, expected)).max() < 1e-3, name


# --- the configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"backbone": "campplus", "backbone_config": WAVLM},
            "backbone 'campplus' and backbone_config are two encoders. Set only one of them.",
        ),
        ({"backbone": "resnet", "frontend": "waveform"}, "The other encoders need a filter bank such as 'fbank'."),
        ({"backbone": "resnet", "pooling": "mhfa"}, "pooling 'mhfa' needs a transformers backbone."),
        ({"backbone": "campplus", "freeze_backbone": True}, "freeze_backbone is for transformers backbones."),
        (
            {"campplus_layers": [1, 2]},
            "campplus_layers and campplus_dilations need equal lengths, got [2, 3].",
        ),
        ({"kaldi_scale": 0.5}, "kaldi_scale must be between 1 and 1000000.0, got 0.5."),
        ({"resnet_channels": 0}, "resnet_channels must be between 1 and 512, got 0."),
        (
            {"backbone": "resnet", "resnet_depth": 293, "resnet_channels": 512, "num_mel_bins": 1024},
            "weights, above the limit of",
        ),
        (
            {"backbone": "campplus", "campplus_layers": [128] * 3, "campplus_growth": 4096},
            "weights, above the limit of",
        ),
        ({"backbone": "campplus", "campplus_head_channels": 512, "num_mel_bins": 1024, "campplus_channels": 4096}, ""),
    ],
    ids=str,
)
def test_configurations_that_fit_no_encoder_are_refused(fields, message):
    if not message:
        HamSpkConfig(**fields)
        return
    with pytest.raises(StrictDataclassClassValidationError) as raised:
        HamSpkConfig(**fields)
    assert message in str(raised.value.__cause__)


def test_a_depth_that_no_resnet_has_is_refused():
    with pytest.raises(StrictDataclassFieldValidationError, match=r"resnet_depth.* got 35"):
        HamSpkConfig(backbone="resnet", resnet_depth=35)


def test_open_fields_follow_the_encoder():
    config = HamSpkConfig()
    assert (config.backbone, config.frontend, config.pooling) == ("ecapa", "fbank", "attentive")
    for backbone in ENCODERS:
        config = HamSpkConfig(backbone=backbone)
        assert (config.backbone, config.frontend, config.pooling) == (backbone, "kaldi", "statistics")
    config = HamSpkConfig(backbone_config=WAVLM)
    assert (config.backbone, config.frontend, config.pooling) == (None, "waveform", "attentive")
    assert HamSpkConfig(backbone="resnet").longest_piece < HamSpkConfig(backbone="campplus").longest_piece
    assert isinstance(make_encoder(tiny_config("campplus")), CamPlusPlus)


def test_windows_of_kaldi():
    hamming, povey = (HamSpkModel(tiny_config("resnet", kaldi_window=one)).frontend for one in ("hamming", "povey"))
    assert float(hamming.window[0]) == pytest.approx(0.08) and float(povey.window[0]) == 0
    assert float(povey.window[100]) == pytest.approx((0.5 - 0.5 * math.cos(2 * math.pi * 100 / 399)) ** 0.85)
    # The scale of the samples is a constant of the logarithm, which the mean removes, unless the signal is faint.
    loud = noises(0.5)[0][None]
    small = HamSpkModel(tiny_config("resnet", kaldi_scale=1.0)).frontend
    torch.testing.assert_close(small(loud).values, hamming(loud).values, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(small(1e-5 * loud).values, hamming(1e-5 * loud).values, atol=0.1)


def test_tiny_encoders_tell_utterances_apart():
    model = attuned(settle(HamSpkModel(tiny_config("campplus"))))
    embeddings = model.embed(noises(0.8, 1.2), RATE)
    assert 1 - cosine(embeddings[:1], embeddings[1:]) > 1e-3
