"""Conversion of SpeechBrain's ECAPA-TDNN, such as `spkrec-ecapa-voxceleb`.

The model folder contains `hyperparams.yaml` and `embedding_model.ckpt`. The weights have these names in SpeechBrain and
in this package:

| SpeechBrain                            | `HamSpkModel`                                   |
|----------------------------------------|-------------------------------------------------|
| `blocks.0.conv`, `.norm`               | `backbone.input.conv`, `.norm`                  |
| `blocks.N.tdnn1.conv`, `.norm`         | `backbone.blocks.N-1.reduce.conv`, `.norm`      |
| `blocks.N.res2net_block.blocks.i`      | `backbone.blocks.N-1.groups.i`                  |
| `blocks.N.tdnn2.conv`, `.norm`         | `backbone.blocks.N-1.expand.conv`, `.norm`      |
| `blocks.N.se_block.conv1`, `.conv2`    | `backbone.blocks.N-1.excitation.down`, `.up`    |
| `mfa.conv`, `.norm`                    | `backbone.aggregate`, `.aggregate_norm`         |
| `asp.tdnn.conv`, `.norm`, `asp.conv`   | `pooling.hidden`, `.norm`, `.scores`            |
| `asp_bn`, `fc`                         | `pooled_norm`, `projection`                     |

SpeechBrain wraps each convolution and normalisation in a module of the same name (`conv.conv.weight`,
`norm.norm.weight`). SpeechBrain's Res2Net blocks leave the first channel group unchanged; the blocks of this package
leave the last group unchanged. The conversion reorders the channels accordingly.

An utterance without padding has the same embedding in both projects. In a padded batch, SpeechBrain excludes the
padding from the pooling, from the squeeze-and-excitation and from the mean of the features. It does not exclude the
padding from the convolutions, or from the search for the largest feature value, which sets the lower limit of all
feature values. In SpeechBrain, padding therefore changes the embedding of an utterance. In this package, it does not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .building import Converted, Renaming, Rules, converted_config, fill_model, numbered, require_values
from .checkpoints import Tagged, read_tensors, read_yaml

SPEECHBRAIN_SOURCE = "SpeechBrain ECAPA-TDNN"
SPEECHBRAIN_YAML, SPEECHBRAIN_WEIGHTS = "hyperparams.yaml", "embedding_model.ckpt"
_LEFT_OUT = {
    "classifier.ckpt": "the classifier of the training speakers",
    "label_encoder.txt": "the names of the training speakers",
    "mean_var_norm_emb.ckpt": "a mean embedding, which SpeechBrain's verification does not use",
}
# Lower limit of a variance in SpeechBrain.
_VARIANCE_FLOOR = 1e-12

_IN_BLOCK: Rules = [
    (r"tdnn1\.(conv|norm)\.\1\.", r"reduce.\1."),
    (r"tdnn2\.(conv|norm)\.\1\.", r"expand.\1."),
    (r"res2net_block\.blocks\.(\d+)\.(conv|norm)\.\2\.", r"groups.\1.\2."),
    (r"se_block\.conv1\.conv\.", "excitation.down."),
    (r"se_block\.conv2\.conv\.", "excitation.up."),
]
SPEECHBRAIN_NAMES = Renaming(
    rules=[
        (r"blocks\.0\.(conv|norm)\.\1\.", r"backbone.input.\1."),
        (r"mfa\.conv\.conv\.", "backbone.aggregate."),
        (r"mfa\.norm\.norm\.", "backbone.aggregate_norm."),
        (r"asp\.tdnn\.conv\.conv\.", "pooling.hidden."),
        (r"asp\.tdnn\.norm\.norm\.", "pooling.norm."),
        (r"asp\.conv\.conv\.", "pooling.scores."),
        (r"asp_bn\.norm\.", "pooled_norm."),
        (r"fc\.conv\.", "projection."),
    ],
    blocks=[(r"blocks\.([1-9]\d*)\.", numbered("backbone.blocks"), _IN_BLOCK)],
)

# Default arguments of SpeechBrain's classes. Models with other features cannot be converted; only `n_mels` is free.
_FEATURES = {
    "n_mels": 40,
    "deltas": False,
    "context": False,
    "requires_grad": False,
    "sample_rate": 16000,
    "f_min": 0,
    "f_max": None,
    "n_fft": 400,
    "filter_shape": "triangular",
    "param_change_factor": 1.0,
    "param_rand_factor": 0.0,
    "left_frames": 5,
    "right_frames": 5,
    "win_length": 25,
    "hop_length": 10,
}
_NORMALIZATION = {"norm_type": "global", "std_norm": True, "mean_norm": True}
_ECAPA = {
    "input_size": None,
    "device": "cpu",
    "lin_neurons": 192,
    "channels": [512, 512, 512, 512, 1536],
    "kernel_sizes": [5, 3, 3, 3, 1],
    "dilations": [1, 2, 3, 4, 1],
    "attention_channels": 128,
    "res2net_scale": 8,
    "se_channels": 128,
    "global_context": True,
    "groups": [1, 1, 1, 1, 1],
    "dropout": 0.0,
}


def convert_speechbrain(folder: Path) -> Converted:
    """Read and convert a model folder of SpeechBrain.

    Raises:
        ValueError: a file is missing or cannot be read, or this package has no equivalent of the model.
    """
    settings = read_yaml(folder / SPEECHBRAIN_YAML)
    features = _arguments(settings, "compute_features", "Fbank", _FEATURES)
    require_values(
        f"{SPEECHBRAIN_YAML}: compute_features", features, {k: v for k, v in _FEATURES.items() if k != "n_mels"}
    )
    normalization = _arguments(settings, "mean_var_norm", "InputNormalization", _NORMALIZATION)
    require_values(
        f"{SPEECHBRAIN_YAML}: mean_var_norm",
        normalization,
        {"norm_type": "sentence", "std_norm": False, "mean_norm": True},
    )
    encoder = _arguments(settings, "embedding_model", "ECAPA_TDNN", _ECAPA)
    channels, dilations = encoder["channels"], encoder["dilations"]
    blocks = len(channels) - 2
    constant = {
        "channels": [channels[0]] * (blocks + 1) + channels[-1:],
        "kernel_sizes": [5, *[3] * blocks, 1],
        "dilations": [1, *dilations[1:-1], 1],
        "groups": [1] * (blocks + 2),
        "input_size": features["n_mels"],
    }
    require_values(f"{SPEECHBRAIN_YAML}: embedding_model", encoder, constant)
    config = converted_config(
        SPEECHBRAIN_SOURCE,
        frontend="speechbrain",
        num_mel_bins=features["n_mels"],
        ecapa_channels=channels[0],
        ecapa_output_channels=channels[-1],
        ecapa_bottleneck=encoder["se_channels"],
        ecapa_groups=encoder["res2net_scale"],
        ecapa_dilations=dilations[1:-1],
        ecapa_block_input="previous",
        ecapa_padding="reflect",
        ecapa_normalize_aggregate=True,
        pooling_channels=encoder["attention_channels"],
        pooling_context=encoder["global_context"],
        pooling_unbiased=False,
        pooling_smallest_variance=_VARIANCE_FLOOR,
        embedding_size=encoder["lin_neurons"],
        normalize_embedding=False,
    )
    tensors = convert_speechbrain_state_dict(read_tensors(folder / SPEECHBRAIN_WEIGHTS), config.ecapa_groups)
    left_out = {name: why for name, why in _LEFT_OUT.items() if (folder / name).exists()}
    return Converted(
        fill_model(config, tensors), SPEECHBRAIN_SOURCE, [SPEECHBRAIN_YAML, SPEECHBRAIN_WEIGHTS], left_out, []
    )


def speechbrain_name(name: str) -> str:
    """Translate the name of a weight of SpeechBrain's encoder to its name in `HamSpkModel`.

    Raises:
        ValueError: SpeechBrain's encoder has no weight with this name.
    """
    ours = SPEECHBRAIN_NAMES.apply(name)
    if ours is None:
        raise ValueError(
            f"{name!r} is not a weight of SpeechBrain's ECAPA_TDNN with blocks of equal width. Use the file "
            f"{SPEECHBRAIN_WEIGHTS} that SpeechBrain saved."
        )
    return ours


def convert_speechbrain_state_dict(state_dict: Mapping[str, Tensor], groups: int) -> dict[str, Tensor]:
    """Convert a state dict of SpeechBrain's encoder to a state dict of `HamSpkModel`.

    Args:
        state_dict: state dict of SpeechBrain's encoder.
        groups: number of channel groups of a Res2Net block (`res2net_scale` in SpeechBrain).

    Raises:
        ValueError: `state_dict` contains a name that SpeechBrain's encoder does not have.
    """
    return {ours: _in_our_order(ours, state_dict[name], groups) for name, ours in _renamed_weights(state_dict)}


def _renamed_weights(state_dict: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    return [(name, speechbrain_name(name)) for name in state_dict]


def _in_our_order(name: str, tensor: Tensor, groups: int) -> Tensor:
    if name == "projection.weight":
        return tensor.squeeze(-1)
    if ".reduce." in name and tensor.ndim:
        return tensor.roll(-(tensor.shape[0] // groups), 0)
    if name.endswith(".expand.conv.weight"):
        return tensor.roll(-(tensor.shape[1] // groups), 1)
    return tensor


def _arguments(settings: Mapping[str, Any], key: str, name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the entry `key` of `hyperparams.yaml` passes to the class `name` of SpeechBrain.

    Arguments that the entry does not contain have the values in `defaults`.
    """
    found = settings.get(key)
    tag = found.tag if isinstance(found, Tagged) else ""
    if not tag.startswith("new:speechbrain.") or tag.rpartition(".")[2] != name:
        raise ValueError(
            f"{SPEECHBRAIN_YAML}: {key} must be SpeechBrain's {name} (!new:speechbrain. ... .{name}), got "
            f"{tag if tag else found!r}. Only ECAPA-TDNN models with SpeechBrain's Fbank features can be converted."
        )
    given = found.value if isinstance(found, Tagged) and isinstance(found.value, dict) else {}
    unknown = sorted(given.keys() - defaults.keys())
    if unknown:
        raise ValueError(
            f"{SPEECHBRAIN_YAML}: {key} has arguments that cannot be converted: {', '.join(map(str, unknown))}."
        )
    wrong = [k for k in given if isinstance(defaults[k], list) and not _is_list_of_integers(given[k])]
    if wrong:
        raise ValueError(
            f"{SPEECHBRAIN_YAML}: {wrong[0]} of {key} must be a list of at least 3 integers, got {given[wrong[0]]}."
        )
    return {**defaults, **given}


def _is_list_of_integers(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 2 and all(isinstance(entry, int) for entry in value)
