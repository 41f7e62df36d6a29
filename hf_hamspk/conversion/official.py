"""Conversion of the ECAPA-TDNN encoder of the HAM-Softmax code, the code that was published with arXiv 2601.19709.

The encoder is the model of the GitHub repository TaoRuijie/ECAPA-TDNN.

The weights have these names in the HAM-Softmax code and in this package:

| HAM-Softmax code               | `HamSpkModel`                                        |
|--------------------------------|------------------------------------------------------|
| `conv1`, `bn1`                 | `backbone.input.conv`, `.norm`                       |
| `layerN.conv1`, `.bn1`         | `backbone.blocks.N-1.reduce.conv`, `.norm`           |
| `layerN.convs.i`, `.bns.i`     | `backbone.blocks.N-1.groups.i.conv`, `.norm`         |
| `layerN.conv3`, `.bn3`         | `backbone.blocks.N-1.expand.conv`, `.norm`           |
| `layerN.se.se.1`, `.se.se.3`   | `backbone.blocks.N-1.excitation.down`, `.up`         |
| `layer4`                       | `backbone.aggregate`                                 |
| `attention.0`, `.2`, `.4`      | `pooling.hidden`, `.norm`, `.scores`                 |
| `bn5`, `fc6`, `bn6`            | `pooled_norm`, `projection`, `embedding_norm`        |
| `torchfbank.*`                 | left out: the front-end computes its constants       |

In a checkpoint that the trainer of the HAM-Softmax code saved, these names have the prefix `speaker_encoder.`. Such a
checkpoint also contains the classifier, which is left out.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..configuration_hamspk import HamSpkConfig
from ..networks_hamspk import FilterBank
from .building import Converted, Renaming, Rules, converted_config, fill_model, numbered, shown
from .checkpoints import read_tensors

OFFICIAL_SOURCE = "TaoRuijie ECAPA-TDNN"
_PREFIX = "speaker_encoder."
_FILTERS, _WINDOW = "torchfbank.1.mel_scale.fb", "torchfbank.1.spectrogram.window"
# These dilations are constants in the HAM-Softmax code.
OFFICIAL_DILATIONS = (2, 3, 4)
# Largest accepted difference of a filter value. The HAM-Softmax code computes the filters in float32, this package in
# float64.
_LARGEST_FILTER_ERROR = 1e-3

_OFFICIAL_BLOCK: Rules = [
    (r"conv1\.", "reduce.conv."),
    (r"bn1\.", "reduce.norm."),
    (r"convs\.(\d+)\.", r"groups.\1.conv."),
    (r"bns\.(\d+)\.", r"groups.\1.norm."),
    (r"conv3\.", "expand.conv."),
    (r"bn3\.", "expand.norm."),
    (r"se\.se\.1\.", "excitation.down."),
    (r"se\.se\.3\.", "excitation.up."),
]
OFFICIAL_NAMES = Renaming(
    rules=[
        (r"conv1\.", "backbone.input.conv."),
        (r"bn1\.", "backbone.input.norm."),
        (r"layer4\.", "backbone.aggregate."),
        (r"attention\.0\.", "pooling.hidden."),
        (r"attention\.2\.", "pooling.norm."),
        (r"attention\.4\.", "pooling.scores."),
        (r"bn5\.", "pooled_norm."),
        (r"fc6\.", "projection."),
        (r"bn6\.", "embedding_norm."),
    ],
    blocks=[(r"layer([1-3])\.", numbered("backbone.blocks"), _OFFICIAL_BLOCK)],
)


def official_name(name: str) -> str | None:
    """Translate the name of a weight in the HAM-Softmax code to its name in `HamSpkModel`.

    Returns:
        The name in `HamSpkModel`; None for the constants of the front-end, which are not converted.

    Raises:
        ValueError: the encoder of the HAM-Softmax code has no weight with this name.
    """
    if name.startswith("torchfbank."):
        return None
    ours = OFFICIAL_NAMES.apply(name)
    if ours is not None:
        return ours
    raise ValueError(
        f"{name!r} is not a weight of the ECAPA-TDNN encoder of the HAM-Softmax code. If the checkpoint contains "
        "the complete trainer, pass only the weights of the encoder, without the prefix 'speaker_encoder.'."
    )


def convert_official_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of the encoder of the HAM-Softmax code to a state dict of `HamSpkModel`.

    The result fits a `HamSpkModel` with the ECAPA backbone, the fbank front-end and attentive pooling.

    Raises:
        ValueError: `state_dict` contains a name that the encoder of the HAM-Softmax code does not have.
    """
    named = ((official_name(name), tensor) for name, tensor in state_dict.items())
    return {name: tensor for name, tensor in named if name is not None}


def is_official(names: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are weights of the encoder of the HAM-Softmax code, with or without the prefix."""
    return any({f"{prefix}conv1.weight", f"{prefix}fc6.weight"} <= names.keys() for prefix in ("", _PREFIX))


def convert_official(path: Path) -> Converted:
    """Read and convert a checkpoint file of the HAM-Softmax code or of TaoRuijie/ECAPA-TDNN.

    Args:
        path: checkpoint that the trainer of the code saved, or checkpoint that contains only the encoder.

    Raises:
        ValueError: the file cannot be read, contains another model, or contains a model with a different front-end.
    """
    tensors = read_tensors(path)
    if not is_official(tensors):
        raise ValueError(
            f"{path} does not contain an ECAPA-TDNN encoder of the HAM-Softmax code: expected conv1.weight and "
            f"fc6.weight, with or without the prefix '{_PREFIX}', found {shown(sorted(tensors))}."
        )
    encoder = {name.removeprefix(_PREFIX): t for name, t in tensors.items() if name.startswith(_PREFIX)}
    others = [name for name in tensors if not name.startswith(_PREFIX)] if encoder else []
    weights = encoder if encoder else tensors
    sizes = {name: list(tensor.shape) for name, tensor in weights.items()}
    ours = convert_official_state_dict(weights)
    try:
        config = converted_config(
            OFFICIAL_SOURCE,
            ecapa_channels=sizes["conv1.weight"][0],
            num_mel_bins=sizes["conv1.weight"][1],
            ecapa_output_channels=sizes["layer4.weight"][0],
            ecapa_bottleneck=sizes["layer1.se.se.1.weight"][0],
            ecapa_groups=sizes["conv1.weight"][0] // sizes["layer1.convs.0.weight"][0],
            ecapa_dilations=OFFICIAL_DILATIONS,
            pooling_channels=sizes["attention.0.weight"][0],
            embedding_size=sizes["fc6.weight"][0],
        )
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path} is not a complete encoder of the HAM-Softmax code: {error} is missing or has a wrong shape."
        ) from error
    _check_filters(weights, config, path)
    left_out = {shown(others): "the classifier of the training speakers"} if others else {}
    return Converted(fill_model(config, ours), OFFICIAL_SOURCE, [path.name], left_out, [])


def _check_filters(weights: Mapping[str, Tensor], config: HamSpkConfig, path: Path) -> None:
    """Check that the encoder was trained with the same window and mel filters as this package uses."""
    window, bank = FilterBank(config).constants()
    for name, ours in ((_WINDOW, window), (_FILTERS, bank)):
        theirs = weights.get(name)
        if theirs is None:
            continue
        if theirs.shape != ours.shape or float((theirs - ours).abs().max()) > _LARGEST_FILTER_ERROR:
            raise ValueError(
                f"{path} was trained with another front-end: its {name} differs from that of the HAM-Softmax code "
                "(16 kHz, 25 ms Hamming windows, filters from 20 to 7,600 Hz). It cannot be converted."
            )
