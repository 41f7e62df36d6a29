"""Train only the last blocks of an encoder, or only the layers after it.

The other layers are the frozen part. They keep their weights and stay in evaluation mode, so that their output for a
recording is the same in every step. It can therefore be computed once and stored (see `frames.py`).

Letters: `B` batch, `C` channels, `T` frames, `D` embedding size.
"""

import hashlib
import json
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..configuration_hamspk import RESNET_BLOCKS, HamSpkConfig
from ..encoders_hamspk import CamPlusPlus, Ecapa, ResNet, norm_relu, segment_weights
from ..modeling_hamspk import HamSpkForXVector
from ..networks_hamspk import StatisticsPooling, batch_norm
from .arguments import DataArguments, Recipe

DIGEST_DIGITS = 16
# Fields of a configuration that determine the output of an encoder, besides the fields that begin with its name.
_FRONTEND_FIELDS = ("backbone", "frontend", "sampling_rate", "num_mel_bins", "kaldi_window", "kaldi_scale", "level_db")


def check_frozen_part(recipe: Recipe, config: HamSpkConfig) -> None:
    """Check that the encoder can be divided as the recipe requests, and that cached frames fit the other arguments.

    Raises:
        ValueError: the encoder has too few blocks or is a transformers backbone, or two arguments contradict each
            other.
    """
    args, data, blocks = recipe.training, recipe.data, recipe.training.train_last_blocks
    if args.initial_centres == "mean" and (data.frame_folder is None or args.keep_centres):
        other = "needs frame_folder" if data.frame_folder is None else "cannot be combined with keep_centres"
        raise ValueError(f"initial_centres 'mean' {other}. Change one of them, or set initial_centres to 'random'.")
    if blocks is None:
        if data.frame_folder is not None:
            raise ValueError(
                "frame_folder needs train_last_blocks, the number of the encoder's last blocks that are trained. Set "
                "it to 0 to train only pooling, projection and head."
            )
        return
    if config.backbone_config is not None:
        raise ValueError(
            "train_last_blocks is for the encoders of this package, got a transformers backbone. Use freeze_backbone "
            "or lora_rank."
        )
    most = count_blocks(config)
    if blocks > most:
        raise ValueError(
            f"train_last_blocks must be at most {most}, the number of blocks of {config.backbone}, got {blocks}."
        )
    if blocks == 0 and (args.freeze_backbone_epochs or args.backbone_learning_rate is not None):
        raise ValueError(
            "With train_last_blocks 0 the encoder is never trained, so freeze_backbone_epochs and "
            "backbone_learning_rate cannot be used. Remove them, or increase train_last_blocks."
        )
    if data.frame_folder is not None:
        _check_cached(data, args.shard_centres)


def _check_cached(data: DataArguments, shard_centres: bool) -> None:
    """Raise a ValueError if an argument cannot be combined with stored frames."""
    changed = {
        "augment_probability": data.augment_probability > 0,
        "level_range_db": bool(data.level_range_db),
        "speed_factors": [*data.speed_factors] != [1.0],
    }
    for name, is_set in changed.items():
        if is_set:
            raise ValueError(
                f"{name} changes the recordings in every epoch, but frame_folder keeps the frames of the unchanged "
                f"recordings. Remove {name} or frame_folder."
            )
    if data.num_workers or shard_centres:
        name = "num_workers" if data.num_workers else "shard_centres"
        raise ValueError(f"frame_folder cannot be combined with {name}. Remove {name}.")


def count_blocks(config: HamSpkConfig) -> int:
    """Return the number of blocks of the encoder: stages of a ResNet, dense blocks of CAM++, or blocks of ECAPA."""
    if config.backbone == "resnet":
        return len(RESNET_BLOCKS[config.resnet_depth])
    return len(config.campplus_layers if config.backbone == "campplus" else config.ecapa_dilations)


class DividedModel(nn.Module):
    """Speaker model that is divided into a frozen part and the last layers.

    The frozen part consists of the front-end and the first blocks of the encoder. The last layers are all layers after
    it. They are called with frames, the output of the frozen part, instead of audio.

    Args:
        model: model with an encoder of this package. The parameters of the frozen part are excluded from training.
        blocks: number of the encoder's last blocks that are trained, from 0 to `count_blocks(model.config)`.
    """

    def __init__(self, model: HamSpkForXVector, blocks: int):
        super().__init__()
        self.model, self.blocks = model, blocks
        encoder = model.hamspk.backbone
        kept = {id(one) for module in self._trained() for one in module.parameters()}
        for one in encoder.parameters():
            one.requires_grad_(one.requires_grad and id(one) in kept)
        self.frozen_training_mode()

    def _trained(self) -> list[nn.Module]:
        """Return the trained modules of the encoder."""
        encoder: Any = self.model.hamspk.backbone
        if self.blocks == 0:
            return []
        if isinstance(encoder, ResNet):
            return [*encoder.stages[-self.blocks :]]
        after = [encoder.norm] if isinstance(encoder, CamPlusPlus) else [encoder.aggregate, encoder.aggregate_norm]
        return [*encoder.blocks[-self.blocks :], *(module for module in after if module is not None)]

    def frozen_training_mode(self) -> None:
        """Set the frozen layers of the encoder to evaluation mode. The other layers keep their mode."""
        trained = self._trained()
        modes = [module.training for module in trained]
        self.model.hamspk.backbone.eval()
        for module, mode in zip(trained, modes, strict=True):
            module.train(mode)

    def digest(self) -> str:
        """Return a hash of everything that determines the output of the frozen part, in hexadecimal."""
        trained = {id(one) for module in self._trained() for one in module.state_dict(keep_vars=True).values()}
        fields = self.model.config.to_dict()
        own = {k: x for k, x in fields.items() if k in _FRONTEND_FIELDS or k.startswith(f"{fields['backbone']}_")}
        digest = hashlib.sha256(json.dumps([self.blocks, own], sort_keys=True).encode())
        for name, one in sorted(self.model.hamspk.backbone.state_dict(keep_vars=True).items()):
            if id(one) not in trained:
                digest.update(name.encode())
                digest.update(one.detach().float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:DIGEST_DIGITS]

    @torch.no_grad()
    def frozen_output(self, waveforms: Tensor) -> Tensor:
        """Return the output of the frozen part, `(B, C, T)`, for waveforms `(B, L)` without padding.

        If blocks of an ECAPA-TDNN are trained, the output consists of the concatenated channels of the first layer and
        of all frozen blocks, because the later layers need the outputs of all of them.
        """
        model = self.model.hamspk
        frontend_mode, encoder_modes = model.frontend.training, [one.training for one in model.backbone.modules()]
        model.frontend.eval()
        model.backbone.eval()
        features, _ = model.frontend(waveforms.to(model.device))
        hidden: list[Tensor] = []
        frames = model.backbone(features.to(model.dtype), None, hidden)
        model.frontend.train(frontend_mode)
        for module, mode in zip(model.backbone.modules(), encoder_modes, strict=True):
            module.training = mode
        if self.blocks == 0:
            return frames
        # The output of the first layer comes before the outputs of the blocks.
        kept = hidden[: len(hidden) - self.blocks]
        return torch.cat([one.mT for one in kept], dim=1) if isinstance(model.backbone, Ecapa) else kept[-1].mT

    @property
    def fixed_pooling(self) -> StatisticsPooling | None:
        """The pooling, if it has no parameters and the whole encoder is frozen; None otherwise.

        The statistics of such a pooling can be stored instead of the frames.
        """
        pooling = self.model.hamspk.pooling
        return pooling if self.blocks == 0 and isinstance(pooling, StatisticsPooling) else None

    def pool(self, frames: Tensor) -> Tensor:
        """Return the pooled statistics `(B, P)` for the output `(B, C, T)` of the frozen part, without padding."""
        model = self.model.hamspk
        return model.pooling(self._last_blocks(frames.to(model.dtype)), None)

    def embed_pooled(self, pooled: Tensor) -> Tensor:
        """Return the embeddings `(B, D)` of pooled statistics `(B, P)`."""
        model = self.model.hamspk
        pooled = batch_norm(model.pooled_norm, pooled.to(model.dtype), None)
        return model.embedding_norm(model.projection(pooled))

    def _last_blocks(self, x: Tensor) -> Tensor:
        """Run the trained blocks of the encoder and the layers after them."""
        encoder: Any = self.model.hamspk.backbone
        if self.blocks == 0:
            return x
        if isinstance(encoder, ResNet):
            return self._last_stages(encoder, x)
        if isinstance(encoder, CamPlusPlus):
            weights = segment_weights(x, None, encoder.segment)
            for block in encoder.blocks[-self.blocks :]:
                x = block(x, None, weights)
            return norm_relu(encoder.norm, x, None)
        first, *outputs = x.chunk(len(encoder.blocks) - self.blocks + 1, dim=1)
        x = first + sum(outputs) if encoder.sums_inputs else [first, *outputs][-1]
        for block in encoder.blocks[-self.blocks :]:
            outputs.append(block(x))
            x = x + outputs[-1] if encoder.sums_inputs else outputs[-1]
        frames = F.relu(encoder.aggregate(torch.cat(outputs, dim=1)))
        return frames if encoder.aggregate_norm is None else batch_norm(encoder.aggregate_norm, frames, None)

    def _last_stages(self, encoder: ResNet, x: Tensor) -> Tensor:
        bins = self.model.config.num_mel_bins
        # The first stage keeps the number of mel bins, and each later stage halves it.
        for _ in range(len(encoder.stages) - self.blocks - 1):
            bins = -(-bins // 2)
        x = x.unflatten(1, (-1, bins))
        for stage in encoder.stages[-self.blocks :]:
            for block in cast(nn.ModuleList, stage):
                x, _ = block(x, None)
        return x.flatten(1, 2)

    def forward(self, input_values: Tensor, labels: Tensor) -> Any:
        """Return the loss of a training step.

        Args:
            input_values: output `(B, C, T)` of the frozen part, or its pooled statistics `(B, P)`.
            labels: class indices `(B,)`.

        Returns:
            Output of the head, with the scalar `loss`.
        """
        pooled = input_values if input_values.ndim == 2 else self.pool(input_values)
        return self.model.head(self.embed_pooled(pooled), labels, False)
