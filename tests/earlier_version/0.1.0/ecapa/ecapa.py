"""ECAPA-TDNN, the frame encoder of the paper, with masks all the way.

Letters: `B` batch, `F` mel bins, `C` channels, `T` frames.

Every layer is convolution, ReLU, batch normalisation, in this order. Frames outside the mask are zeroed after each, so
that a padded batch gives what each utterance gives alone, and batch statistics in training see valid frames only.

References: Desplanques et al. 2020, arXiv 2005.07143; with the defaults of the configuration it agrees with the encoder
that the released code of arXiv 2601.19709 uses (C = 1024 there), with its options with SpeechBrain's and WeSpeaker's.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_hamspk import HamSpkConfig
from .pooling import batch_norm, folded_norm, keep_valid, overwrites, reflected_positions


class ConvBlock(nn.Module):
    """Convolution that keeps the number of frames, ReLU, batch normalisation: `(B, C, T)` to `(B, C', T)`.

    Args:
        inputs: C.
        outputs: C'.
        kernel_size: odd, in frames.
        dilation: in frames.
        reflect: mirror the frames at both ends of each utterance, where otherwise zeros are.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 1, dilation: int = 1, reflect: bool = False):
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.margin = padding if reflect else 0
        self.conv = nn.Conv1d(inputs, outputs, kernel_size, padding=padding - self.margin, dilation=dilation)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor, mask: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Frames `(B, C, T)` to `(B, C', T)`, 0 outside `mask`.

        Args:
            x: frames.
            mask: `(B, T)` bool, or None where all are valid.
            out: `(B, C', T)`, where the result is written if `overwrites` holds; it may be `x`.
        """
        if self.margin:
            x = mirrored(x, self.margin, mask)
        x = F.relu(self.conv(x), inplace=True)
        if overwrites(self.norm, x):
            return folded_norm(self.norm, x, mask, x if out is None else out)
        return keep_valid(batch_norm(self.norm, x, mask), mask)


def mirrored(x: Tensor, margin: int, mask: Tensor | None) -> Tensor:
    """Mirror `(B, C, T)` at both ends of each utterance: `(B, C, T + 2 * margin)`."""
    lengths = None if mask is None else mask.sum(-1)
    at = reflected_positions(x.shape[-1], margin, lengths, x.device)
    if mask is None:
        return x.index_select(-1, at[0])
    return x.gather(-1, at[:, None].expand(-1, x.shape[1], -1))


class SqueezeExcitation(nn.Module):
    """Weigh the channels of `(B, C, T)` by a gate computed from their means over the valid frames, and add the rest."""

    def __init__(self, channels: int, bottleneck: int):
        super().__init__()
        self.down = nn.Conv1d(channels, bottleneck, 1)
        self.up = nn.Conv1d(bottleneck, channels, 1)

    def forward(self, x: Tensor, residual: Tensor, mask: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """`residual` plus the gated `x`, both `(B, C, T)` and 0 outside `mask`; written to `out` if that is given."""
        mean = x.mean(-1) if mask is None else x.sum(-1) / mask.sum(-1, keepdim=True).clamp_min(1)
        gate = torch.sigmoid(self.up(F.relu(self.down(mean[..., None]))))
        return torch.addcmul(residual, x, gate, out=out)


class SERes2Block(nn.Module):
    """Residual block of hierarchical convolutions over channel groups, with squeeze-and-excitation: shape kept."""

    def __init__(self, config: HamSpkConfig, dilation: int):
        super().__init__()
        channels, groups = config.ecapa_channels, config.ecapa_groups
        width = channels // groups
        reflect = config.ecapa_padding == "reflect"
        self.reduce = ConvBlock(channels, channels)
        # The last group passes unchanged.
        self.groups = nn.ModuleList(ConvBlock(width, width, 3, dilation, reflect) for _ in range(groups - 1))
        self.expand = ConvBlock(channels, channels)
        self.excitation = SqueezeExcitation(channels, config.ecapa_bottleneck)

    def forward(self, x: Tensor, mask: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Frames `(B, C, T)` to as many; written to `out` if `overwrites` holds."""
        frames = self.reduce(x, mask)
        if overwrites(self.reduce.norm, frames):
            return self._overwrite(frames, x, mask, out)
        *parts, last = frames.chunk(len(self.groups) + 1, dim=1)
        outputs: list[Tensor] = []
        for part, group in zip(parts, self.groups, strict=True):
            outputs.append(group(part + outputs[-1] if outputs else part, mask))
        return self.excitation(self.expand(torch.cat([*outputs, last], dim=1), mask), x, mask)

    def _overwrite(self, frames: Tensor, x: Tensor, mask: Tensor | None, out: Tensor | None) -> Tensor:
        """What `forward` makes of the reduced frames, each group written where its input was."""
        before = None
        for part, group in zip(frames.chunk(len(self.groups) + 1, dim=1), self.groups, strict=False):
            before = group(part if before is None else part.add_(before), mask, out=part)
        expanded = self.expand(frames, mask)
        return self.excitation(expanded, x, mask, out=expanded if out is None else out)


class Ecapa(nn.Module):
    """Frame encoder: `(B, F, T)` to `(B, ecapa_output_channels, T)`.

    The outputs of all blocks are aggregated.

    Args:
        config: `num_mel_bins` and the fields that begin with `ecapa_`.
    """

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        channels = config.ecapa_channels
        self.sums_inputs = config.ecapa_block_input == "sum"
        self.input = ConvBlock(config.num_mel_bins, channels, 5, reflect=config.ecapa_padding == "reflect")
        self.blocks = nn.ModuleList(SERes2Block(config, dilation) for dilation in config.ecapa_dilations)
        self.aggregate = nn.Conv1d(len(self.blocks) * channels, config.ecapa_output_channels, 1)
        normalize = config.ecapa_normalize_aggregate
        self.aggregate_norm = nn.BatchNorm1d(config.ecapa_output_channels) if normalize else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode features `(B, F, T)`, zero outside `mask` `(B, T)` bool (None: all frames are valid)."""
        x = self.input(x, mask)
        slots: list[Tensor | None] = [None] * len(self.blocks)
        together = None
        if overwrites(self.input.norm, x):
            # The blocks write side by side into what they would be copied to.
            together = x.new_empty(x.shape[0], len(slots) * x.shape[1], x.shape[2])
            slots = list(together.chunk(len(slots), dim=1))
        outputs = []
        for block, slot in zip(self.blocks, slots, strict=True):
            outputs.append(block(x, mask, slot))
            x = x + outputs[-1] if self.sums_inputs else outputs[-1]
        if together is None or any(output is not slot for output, slot in zip(outputs, slots, strict=True)):
            together = torch.cat(outputs, dim=1)
        frames = F.relu(self.aggregate(together), inplace=True)
        if self.aggregate_norm is not None:
            frames = batch_norm(self.aggregate_norm, frames, mask)
        return keep_valid(frames, mask)
