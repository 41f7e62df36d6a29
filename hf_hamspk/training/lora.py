"""Low-rank adapters (LoRA, Hu et al. 2022) of a transformers backbone, with the package PEFT.

The weights of the backbone stay unchanged. Instead, adapters of some of its linear layers are trained, together with
the layers after the backbone. Models are saved with merged adapters, so that they can be loaded without PEFT.
"""

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedConfig

from ..configuration_hamspk import HamSpkConfig
from ..folders.writing import write_atomically
from ..loading.names import read_config
from ..modeling_hamspk import HamSpkForXVector
from .arguments import TrainingArguments

ADAPTER_MARK = ".lora_"
"""Text that the names of all parameters of adapters contain."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj", "linear_q", "linear_k", "linear_v", "linear_out")
FEED_FORWARD = ("intermediate_dense", "output_dense")
FUSED_ATTENTION = ("wavlm",)
"""Types of backbones whose attention reads the weights of its linear layers and does not call these layers."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Layers after the backbone that are saved with the adapters.
_OTHER_LAYERS = ("hamspk.layer_mix", "hamspk.pooling", "hamspk.pooled_norm", "hamspk.projection")
_OTHER_LAYERS += ("hamspk.embedding_norm", "head")


def check_lora(args: TrainingArguments, config: HamSpkConfig) -> None:
    """Check that a model can be trained with the adapters that the arguments describe.

    Raises:
        ValueError: the model has no transformers backbone, the backbone is excluded from training, PEFT is not
            installed, or the attention of the backbone would ignore adapters.
    """
    if args.lora_rank == 0:
        return
    backbone = config.backbone_config
    if backbone is None:
        raise ValueError(
            f"lora_rank is for transformers backbones, such as WavLM, got {config.backbone}. Remove lora_rank."
        )
    if config.freeze_backbone:
        raise ValueError("freeze_backbone excludes the adapters of lora_rank from training. Remove one of the two.")
    fused = [name for name in args.lora_targets if name in ATTENTION]
    kind = getattr(backbone, "model_type", None)
    if kind in FUSED_ATTENTION and fused:
        raise ValueError(
            f"lora_targets: adapters of {', '.join(fused)} get no gradient in {kind}, because its attention does not "
            f"call these layers. Use {' '.join(FEED_FORWARD)}, or leave lora_targets out."
        )
    if find_spec("peft") is None:
        raise ValueError("lora_rank needs the package PEFT. Run `pip install 'hf_hamspk[lora]'`.")


def add_adapters(model: HamSpkForXVector, args: TrainingArguments) -> None:
    """Add an adapter to each target layer of the backbone, and exclude the backbone's own weights from training.

    Raises:
        ValueError: a target is not a linear layer of the backbone.
    """
    from peft import LoraConfig, inject_adapter_in_model

    backbone = model.hamspk.backbone
    chosen = LoraConfig(**adapter_settings(args), target_modules=target_layers(backbone, args, model.config))
    inject_adapter_in_model(chosen, backbone)


def adapter_settings(args: TrainingArguments) -> dict[str, Any]:
    """Return the settings of the adapters for `peft.LoraConfig`, without the target layers."""
    alpha = 2 * args.lora_rank if args.lora_alpha is None else args.lora_alpha
    return {"r": args.lora_rank, "lora_alpha": alpha, "lora_dropout": args.lora_dropout}


def target_layers(backbone: nn.Module, args: TrainingArguments, config: HamSpkConfig) -> list[str]:
    """Return the complete names of the layers of a backbone that get adapters.

    Without `lora_targets`, these are the layers of the feed-forward networks and of the attention. The attention is
    left out if it would ignore adapters.

    Raises:
        ValueError: a target is not a linear layer of the encoder, or the encoder has none of the usual layers.
    """
    linear = [name for name, one in backbone.named_modules() if isinstance(one, nn.Linear) and "encoder." in name]
    known = sorted({name.rpartition(".")[2] for name in linear})
    fused = getattr(config.backbone_config, "model_type", None) in FUSED_ATTENTION
    wanted = args.lora_targets if args.lora_targets else [*(() if fused else ATTENTION), *FEED_FORWARD]
    wrong = [name for name in args.lora_targets if name not in known]
    found = [name for name in linear if name.rpartition(".")[2] in wanted]
    if wrong or not found:
        raise ValueError(
            f"lora_targets: {wrong[0] if wrong else 'none of the usual layers'} is not a linear layer of the encoder. "
            f"Set lora_targets to any of {', '.join(known)}."
        )
    return found


def has_adapters(model: nn.Module) -> bool:
    """Return whether a model has adapters that are not merged."""
    return any(ADAPTER_MARK in name for name, _ in model.named_parameters())


def merge_adapters(model: nn.Module, keep: bool = True) -> None:
    """Replace each layer of a model that has an adapter by a plain layer, in place.

    Args:
        model: model with adapters.
        keep: whether the adapters are merged into the weights. If False, the plain layers have the original weights.
    """
    from peft.tuners.lora import LoraLayer

    adapted = [(name, one) for name, one in model.named_modules() if isinstance(one, LoraLayer)]
    for name, one in adapted:
        if keep:
            one.merge(safe_merge=True)  # pyright: ignore[reportAttributeAccessIssue]
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, one.get_base_layer())


def merged_copy(model: HamSpkForXVector) -> HamSpkForXVector:
    """Return a copy of a model with merged adapters, or the model itself if it has none."""
    if not has_adapters(model):
        return model
    merged = copy.deepcopy(model)
    merge_adapters(merged)
    return merged


def save_adapter(model: HamSpkForXVector, args: TrainingArguments, base: str | None, folder: Path) -> None:
    """Write the adapters and the layers after the backbone as files that `peft.PeftModel.from_pretrained` reads.

    Args:
        model: model with adapters.
        args: arguments of the run.
        base: encoder or speaker model that the run began with, as a folder or a name on the Hub; None if not known.
        folder: existing folder for `adapter_config.json`, `adapter_model.safetensors` and `config.json`.
    """
    from peft import LoraConfig, PeftModel
    from peft.utils import get_peft_model_state_dict

    plain = copy.deepcopy(model)
    merge_adapters(plain, keep=False)
    targets = [f"hamspk.backbone.{name}" for name in target_layers(plain.hamspk.backbone, args, plain.config)]
    layers = dict(plain.named_modules())
    others = [name for name in _OTHER_LAYERS if name in layers and layers[name].state_dict()]
    settings = LoraConfig(
        **adapter_settings(args),
        target_modules=targets,
        modules_to_save=others,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    whole = PeftModel(cast(Any, plain), settings)
    adapters = {name: one for name, one in model.state_dict().items() if ADAPTER_MARK in name}
    whole.get_base_model().load_state_dict(adapters, strict=False)
    weights = get_peft_model_state_dict(whole, save_embedding_layers=False)
    tensors = {name: one.detach().cpu().contiguous() for name, one in weights.items()}
    write_atomically(folder / ADAPTER_WEIGHTS, lambda path: save_file(tensors, path))
    settings.save_pretrained(str(folder))
    model.config.save_pretrained(folder)


def load_adapter(folder: str | Path, base: HamSpkForXVector | str | None = None) -> HamSpkForXVector:
    """Load the adapter of a training run, and merge it into the model that the run began with.

    Args:
        folder: folder `adapter` of a training run.
        base: encoder or speaker model that the run began with, as a folder or a name on the Hub, or as a loaded speaker
            model with this encoder. None uses the name that is stored in the adapter.

    Returns:
        The same model as in the folder `final` of the run, except for rounding errors, and without the calibration.

    Raises:
        ValueError: the adapter does not name the model that the run began with, and `base` is None.
    """
    from peft import LoraConfig, PeftModel

    config = HamSpkConfig.from_pretrained(folder)
    base = LoraConfig.from_pretrained(str(folder)).base_model_name_or_path if base is None else base
    if base is None:
        raise ValueError(f"{folder} does not name the model that the run began with. Pass this model as base.")
    if isinstance(base, str):
        base = _load_base(base, config)
    adapted = PeftModel.from_pretrained(cast(Any, base), str(folder))
    merged: Any = adapted.merge_and_unload()  # pyright: ignore[reportCallIssue]
    return merged.eval()


def _load_base(name: str, config: HamSpkConfig) -> HamSpkForXVector:
    is_speaker_model = read_config(name, Path(name).is_dir()).get("model_type") == HamSpkConfig.model_type
    if not is_speaker_model:
        return HamSpkForXVector.from_backbone(name, config=config)
    # The head of the adapter replaces a head of other speakers.
    model: Any = HamSpkForXVector.from_pretrained(name, config=config, ignore_mismatched_sizes=True, calibrated=False)
    return model


def base_name(model: HamSpkForXVector, backbone: str | None, initial_model: str | None) -> str | None:
    """Return the name of the encoder or speaker model that a run began with; None if not known."""
    encoder = model.config.backbone_config
    encoder_name = encoder.name_or_path if isinstance(encoder, PreTrainedConfig) else None
    return next((name for name in (backbone, initial_model, model.name_or_path, encoder_name) if name), None)


def check_adapter_gradients(names: list[str], model: nn.Module) -> None:
    """Check that each adapter takes part in the loss.

    Args:
        names: names of the trainable parameters without a gradient.
        model: model with adapters, after a backward pass.

    Raises:
        ValueError: an adapter has no gradient.
    """
    idle = [name for name in names if ADAPTER_MARK in name]
    if idle:
        layers = sorted({name.partition(ADAPTER_MARK)[0].rpartition(".")[2] for name in idle})
        count = sum(ADAPTER_MARK in name for name, _ in model.named_parameters())
        raise ValueError(
            f"{len(idle)} of {count} parameters of LoRA adapters get no gradient. They belong to {', '.join(layers)}. "
            "Set lora_targets to other layers."
        )
