"""Conversion of the speaker models of transformers (`WavLMForXVector`, `Wav2Vec2ForXVector`, ...).

The model folder contains `config.json`, `preprocessor_config.json` and the weights. The weights have these names in
transformers and in this package:

| transformers                   | `HamSpkModel`                                        |
|--------------------------------|------------------------------------------------------|
| the backbone (`wavlm`, ...)    | `backbone`                                           |
| `layer_weights`                | `layer_mix.weight`                                   |
| `projector`, `tdnn.i.kernel`   | `pooling.project`, `pooling.layers.i`                |
| `feature_extractor`            | `projection`                                         |

The embedding is the output of the layer `feature_extractor` of transformers. An utterance without padding has the same
embedding in both projects. In a padded batch, transformers includes some frames of the padding in the statistics (6
with the usual layers), because its `_get_tdnn_output_lengths` ignores the dilation. In this package, padding does not
change the embedding.

In transformers, w2v-BERT takes features instead of samples. The converted model computes these features from samples.
w2v-BERT combines pairs of frames of the filter bank. If the number of frames is odd, transformers pads the last frame,
and this package leaves it out.
"""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForAudioXVector, PreTrainedConfig, PreTrainedModel

from ..loading.models import quiet_transformers
from .building import Converted, converted_config, fill_model, shown
from .checkpoints import refusal

XVECTOR_JSON, PREPROCESSOR = "config.json", "preprocessor_config.json"
XVECTOR_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Supported model types. For each, the converted embeddings were compared with the embeddings of transformers.
XVECTOR_TYPES = ("wavlm", "wav2vec2", "wav2vec2-bert", "unispeech-sat", "data2vec-audio")
# Weights that may be missing: the classifier, which is left out, and a mask that is used only in training.
_NOT_NEEDED = ("classifier.weight", "classifier.bias", "objective.weight", "masked_spec_embed")
# The square root needs a lower limit to have a gradient at a variance of 0. transformers has no such limit.
_ROOT_FLOOR = 1e-12


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        ValueError: the file is missing or does not contain a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain a JSON object, got a {type(content).__name__}.")
    return content


def convert_xvector(folder: Path) -> Converted:
    """Read and convert the folder of a `*ForXVector` model of transformers.

    Raises:
        ValueError: a file is missing or cannot be read, or this package has no equivalent of the model.
    """
    settings = read_settings(folder / XVECTOR_JSON)
    kind = settings.get("model_type")
    if kind not in XVECTOR_TYPES:
        raise ValueError(
            f"{folder / XVECTOR_JSON} describes a {kind!r} model. Only {', '.join(XVECTOR_TYPES)} can be converted."
        )
    theirs, weights = _load_theirs(folder)
    backbone_config: PreTrainedConfig = copy.deepcopy(theirs.base_model.config)  # pyright: ignore[reportAssignmentType]
    # The path of the folder may contain private names, so it is not stored in the model.
    backbone_config.name_or_path = ""
    notes = []
    if (folder / PREPROCESSOR).is_file():
        preprocessor = read_settings(folder / PREPROCESSOR)
    else:
        preprocessor = {}
        notes.append(
            f"{PREPROCESSOR} is missing, so the defaults of transformers are used (normalised input at 16 kHz)"
        )
    source = f"transformers {type(theirs).__name__}"
    config = converted_config(
        source,
        backbone_config=backbone_config,
        sampling_rate=preprocessor.get("sampling_rate", 16000),
        normalize_waveform=preprocessor.get("do_normalize", True),
        num_mel_bins=preprocessor.get("num_mel_bins", 80),
        mix_layers=bool(theirs.config.use_weighted_layer_sum),
        pooling="xvector",
        pooling_smallest_variance=_ROOT_FLOOR,
        tdnn_channels=list(theirs.config.tdnn_dim),
        tdnn_kernel_sizes=list(theirs.config.tdnn_kernel),
        tdnn_dilations=list(theirs.config.tdnn_dilation),
        normalize_pooled=False,
        embedding_size=theirs.config.xvector_output_dim,
        normalize_embedding=False,
    )
    if config.frontend == "seamless":
        stride, size = preprocessor.get("stride", 2), theirs.config.feature_projection_input_dim
        if stride != size / config.num_mel_bins:
            raise ValueError(
                f"{PREPROCESSOR} describes features of {stride!r:.40} times {config.num_mel_bins} values, but the "
                f"model of {XVECTOR_JSON} takes {size}. Use the files of one model."
            )
    read = [XVECTOR_JSON, *([PREPROCESSOR] if preprocessor else []), weights]
    left_out = {"classifier.*, objective.*": "the classifier of the training speakers"}
    return Converted(fill_model(config, convert_xvector_weights(theirs)), source, read, left_out, notes)


def convert_xvector_weights(theirs: PreTrainedModel) -> dict[str, Tensor]:
    """Convert the weights of a `*ForXVector` model of transformers to a state dict of `HamSpkModel`."""
    state, config = theirs.state_dict(), theirs.config
    prefix = f"{theirs.base_model_prefix}."
    ours = {f"backbone.{name.removeprefix(prefix)}": t for name, t in state.items() if name.startswith(prefix)}
    if config.use_weighted_layer_sum:
        ours["layer_mix.weight"] = state["layer_weights"]
    ours["pooling.project.weight"] = state["projector.weight"][..., None]
    ours["pooling.project.bias"] = state["projector.bias"]
    inputs = config.tdnn_dim[0]
    for i, (outputs, size) in enumerate(zip(config.tdnn_dim, config.tdnn_kernel, strict=True)):
        # In transformers, each layer is a linear layer over the concatenated frames of its context.
        ours[f"pooling.layers.{i}.weight"] = state[f"tdnn.{i}.kernel.weight"].view(outputs, size, inputs).mT
        ours[f"pooling.layers.{i}.bias"] = state[f"tdnn.{i}.kernel.bias"]
        inputs = outputs
    return ours | {f"projection.{name}": state[f"feature_extractor.{name}"] for name in ("weight", "bias")}


def _load_theirs(folder: Path) -> tuple[PreTrainedModel, str]:
    """Load a `*ForXVector` model of transformers from a folder.

    Returns:
        The model in evaluation mode, and the name of its weights file.

    Raises:
        ValueError: the weights file is missing, cannot be read, or does not contain all weights of the model.
    """
    weights = next((name for name in XVECTOR_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ValueError(
            f"Expected one of {', '.join(XVECTOR_WEIGHTS)} in {folder}, found none. Use the complete model folder."
        )
    try:
        with quiet_transformers():
            model, info = AutoModelForAudioXVector.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, output_loading_info=True, dtype="float32"
            )
    except (pickle.UnpicklingError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ValueError(refusal(folder / weights, error)) from error
    missing = sorted(name for name in info["missing_keys"] if not name.endswith(_NOT_NEEDED))
    wrong = [*missing, *sorted(map(str, info["mismatched_keys"]))]
    if wrong:
        raise ValueError(
            f"{folder / weights} lacks {len(wrong)} weights of a {type(model).__name__} ({shown(wrong)}). A speech "
            "encoder alone is not a speaker model. To train a speaker model on it, use `hamspk train --backbone ...`."
        )
    return model.eval(), weights


def is_xvector(settings: dict[str, Any]) -> bool:
    """Return whether the content of a `config.json` describes a `*ForXVector` model of transformers."""
    architectures = settings.get("architectures")
    return isinstance(architectures, list) and any(str(name).endswith("ForXVector") for name in architectures)
