"""Models small enough for two cores, and speech-like noise."""

from pathlib import Path

import torch
from transformers import HubertConfig, PreTrainedConfig, Wav2Vec2BertConfig, Wav2Vec2Config, WavLMConfig

from hf_hamspk import Calibration, HamSpkConfig, HamSpkForXVector

RATE = 16000
W2V_BERT = "wav2vec2-bert"
BACKBONES = {"wavlm": WavLMConfig, "wav2vec2": Wav2Vec2Config, "hubert": HubertConfig, W2V_BERT: Wav2Vec2BertConfig}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def tiny_backbone(name: str, norm: str = "layer", **fields) -> PreTrainedConfig:
    """Two layers of width 32 on convolutions of real kernels and strides, without dropout and masking."""
    switched_off = dict.fromkeys(
        (
            "hidden_dropout",
            "attention_dropout",
            "activation_dropout",
            "feat_proj_dropout",
            "feat_quantizer_dropout",
            "final_dropout",
            "layerdrop",
            "mask_time_prob",
            "mask_feature_prob",
            "conformer_conv_dropout",
        ),
        0.0,
    )
    if name == W2V_BERT:
        sizes = {"left_max_position_embeddings": 8, "right_max_position_embeddings": 3}
        return Wav2Vec2BertConfig(**TINY, conv_depthwise_kernel_size=7, **(sizes | switched_off | fields))
    return BACKBONES[name](
        **TINY,
        conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        **(switched_off | fields),
    )


WAVLM = tiny_backbone("wavlm").to_dict()


def tiny_config(backbone: str = "ecapa", norm: str = "layer", **fields) -> HamSpkConfig:
    """A small encoder of ours, or a transformers backbone of `tiny_backbone`; 5 speakers, embeddings of 24."""
    small = {
        "campplus_head_channels": 4,
        "campplus_channels": 16,
        "campplus_layers": (2, 1),
        "campplus_dilations": (1, 2),
        "campplus_growth": 8,
        "campplus_bottleneck": 12,
        "campplus_segment": 20,
        "resnet_depth": 18,
        "resnet_channels": 4,
        "ecapa_channels": 16,
        "ecapa_output_channels": 48,
        "ecapa_bottleneck": 8,
        "ecapa_groups": 4,
        "pooling_channels": 8,
        "mhfa_heads": 4,
        "embedding_size": 24,
        "mask_mel_bins": 0,
        "mask_frames": 0,
        "num_labels": 5,
    }
    if backbone in BACKBONES:
        small["backbone_config"] = tiny_backbone(backbone, norm)
    else:
        small["backbone"] = backbone
    return HamSpkConfig(**(small | fields))


def noises(*seconds: float, seed: int = 1) -> list[torch.Tensor]:
    """Coloured noise of the given durations, in [-1, 1], each `(samples,)`."""
    generator = torch.Generator().manual_seed(seed)
    waves = []
    for duration in seconds:
        white = torch.randn(round(duration * RATE) + 2, generator=generator)
        waves.append(0.05 * (white[2:] + 1.5 * white[1:-1] + 0.9 * white[:-2]))
    return waves


def padded(waves: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded `(B, L)` and its mask."""
    values = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    lengths = torch.tensor([wave.shape[0] for wave in waves])
    return values, (torch.arange(values.shape[1]) < lengths[:, None]).long()


def settle(model: torch.nn.Module) -> torch.nn.Module:
    """Give every batch normalisation statistics and weights that are not those of a fresh layer."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
    return model.eval()


def attuned(model: torch.nn.Module) -> torch.nn.Module:
    """Give every batch normalisation the statistics of noise; in a deep random encoder nothing else tells two apart."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.stack(noises(0.6, 0.6, 0.6, seed=5)))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    return model.eval()


def cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cosine of rows, in float64."""
    return torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=-1)


def save_model(folder: Path, **fields) -> Path:
    """Save a tiny model without a calibration; `fields` are of its configuration."""
    torch.manual_seed(0)
    settle(HamSpkForXVector(tiny_config(**fields))).save_pretrained(folder)
    return folder


def save_calibrated_model(folder: Path) -> Path:
    """Save the same model with a calibration; its log-likelihood ratio is 100 x score - 90."""
    model = HamSpkForXVector.from_pretrained(save_model(folder))
    model.calibration = Calibration(model.fingerprint(), "cosine", -90.0, {"score": 100.0}, trials=100, targets=50)
    model.save_pretrained(folder)
    return folder
