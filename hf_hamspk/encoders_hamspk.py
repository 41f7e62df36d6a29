"""Encoders of filter banks (ECAPA-TDNN, CAM++ and ResNet) for padded batches, and other networks.

`make_encoder` and `make_frontend` create the encoder and the front-end of a model. `OnnxEncoder` runs an exported
model. `OverlapDetector` finds two people who speak at the same time; a model can have one, but need not.

Letters: `B` batch, `L` samples, `T` frames, `F` mel bins, `C` channels, `S` segments, `N` recordings.

**ECAPA-TDNN** (Desplanques et al. 2020, arXiv 2005.07143): each layer is a convolution, then ReLU, then batch
normalisation. With the defaults of the configuration, encoder and pooling are those of the code that was published
with arXiv 2601.19709 (with C = 1024). Other options give the models of SpeechBrain and WeSpeaker.

**CAM++** (Wang et al. 2023, arXiv 2303.00332): a small convolutional network over time and frequency, then a densely
connected time-delay network whose layers are multiplied by context-aware masks. A mask depends on the mean over the
utterance and on the mean over each segment of `campplus_segment` frames. Except in the first layers, batch
normalisation and ReLU precede each convolution. The output has one frame for every two frames of the features.

**ResNet** (He et al. 2016; in the form of WeSpeaker, Wang et al. 2023, arXiv 2210.17016): two-dimensional convolutions
over time and frequency. ResNet18 and ResNet34 have residual blocks of two convolutions; deeper networks have bottleneck
blocks of three convolutions. The output has one frame for every eight frames of the features.

In all three encoders, frames outside the mask are set to zero before each convolution over time. An utterance therefore
has the same embedding in a padded batch as alone. After a layer with a stride over time, every second frame of the mask
is kept. In training, batch statistics are computed from valid frames only.

**w2v-BERT 2.0** (Barrault et al. 2023, arXiv 2312.05187) is an encoder of transformers. Its inputs are features, not
samples. `StackedFilterBank` computes these features from waveforms, in the same way as `SeamlessM4TFeatureExtractor`.

**Segmentation** (Bredin 2023, Plaquet and Bredin 2023) is the network of pyannote's `segmentation-3.0`: convolutions of
the waveform, then a bidirectional LSTM, then a classification of each frame (nobody, one of three people, or two of
them at once). The outputs of the convolutions are normalised over the whole utterance. Therefore all utterances of a
batch must have the same length.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_weights
from transformers.modeling_outputs import XVectorOutput

from .audio_hamspk import Sound, plain_number, resample
from .calibration_hamspk import replacing
from .configuration_hamspk import RESNET_BLOCKS, RESNET_EXPANSION, HamSpkConfig
from .geometry_hamspk import at_least_float32, length_mask
from .networks_hamspk import (
    VARIANCE_OFFSET,
    Features,
    FilterBank,
    Waveform,
    batch_norm,
    keep_valid,
    masked_mean,
    reflected_positions,
)
from .verification_hamspk import overlap_warnings

# Constants of CAM++: number of residual blocks in each of the two stages at the input, kernel size of the dense layers,
# and kernel size of the first time-delay layer.
HEAD_BLOCKS, DENSE_KERNEL, FIRST_KERNEL = 2, 3, 5
# Largest accepted difference between embeddings of an ONNX file and of the model, relative to the largest value of the
# embeddings. Rounding errors are far smaller.
LARGEST_DIFFERENCE = 1e-4
# Names of the inputs and of the output of an exported graph, and key of its description in the metadata of the file.
INPUTS, OUTPUT, METADATA_KEY = ("input_values", "attention_mask"), "embeddings", "hamspk"
OVERLAP_FILE, OVERLAP_KIND = "overlap_detector.safetensors", "overlap detector"
# Segmentation: sampling rate in Hz, number of samples from one frame to the next, and sizes of the layers.
SEGMENTATION_RATE, SEGMENTATION_STEP = 16_000, 270
SEGMENTATION_FILTERS, SEGMENTATION_KERNEL, SEGMENTATION_STRIDE = 80, 251, 10
SEGMENTATION_CHANNELS, SEGMENTATION_WIDTH, SEGMENTATION_LAYERS = 60, 128, 4
# Number of classes of a frame (nobody, three people, and three pairs of them), and number of the first pair.
SEGMENTATION_CLASSES, FIRST_PAIR = 7, 4
# Samples in a window, samples in the shortest recording that is measured, and number of windows computed at once.
WINDOW_SAMPLES, SHORTEST_WINDOW, WINDOWS_AT_ONCE = 10 * SEGMENTATION_RATE, 1600, 8
# Two people at once are reported above this share of the speech; see `tests/benchmarks/measure_two_voices.py`.
OVERLAP_SHARE = 0.2


def overwrites(norm: nn.Module, x: Tensor) -> bool:
    """Return whether the layer `norm` may overwrite its input `x`, provided that no other layer reads `x`.

    Overwriting is allowed only in evaluation mode, without gradients, on a CPU and in float32 or float64. On a CPU,
    allocating new memory takes longer than the arithmetic. Compilers and exporters plan the memory themselves.
    """
    plain = x.device.type == "cpu" and x.dtype == norm.weight.dtype == at_least_float32(x).dtype
    return plain and not (norm.training or torch.is_grad_enabled() or torch.compiler.is_compiling())


def folded_norm(norm: nn.Module, x: Tensor, mask: Tensor | None, out: Tensor) -> Tensor:
    """Apply a batch normalisation in evaluation mode as one product and one sum. The result is 0 outside `mask`."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = cast(Tensor, norm.weight) * (variance + cast(float, norm.eps)).rsqrt()
    shift = cast(Tensor, norm.bias) - mean * scale
    torch.addcmul(shift[:, None], x, scale[:, None], out=out)
    return out if mask is None else out.mul_(mask[:, None])


class ConvBlock(nn.Module):
    """Convolution, ReLU and batch normalisation. The input is `(B, C, T)` and the output `(B, C', T)`.

    If `reflect` is True, each utterance is padded with its mirror image instead of zeros.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 1, dilation: int = 1, reflect: bool = False):
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.margin = padding if reflect else 0
        self.conv = nn.Conv1d(inputs, outputs, kernel_size, padding=padding - self.margin, dilation=dilation)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor, mask: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Return the output `(B, C', T)`, which is 0 outside `mask` `(B, T)`.

        If `overwrites` permits it, the output is written to `out`. `out` may be `x`.
        """
        if self.margin:
            x = mirrored(x, self.margin, mask)
        x = F.relu(self.conv(x), inplace=True)
        if overwrites(self.norm, x):
            return folded_norm(self.norm, x, mask, x if out is None else out)
        return keep_valid(batch_norm(self.norm, x, mask), mask)


def mirrored(x: Tensor, margin: int, mask: Tensor | None) -> Tensor:
    """Extend each utterance in `(B, C, T)` by mirror images at both ends. The result is `(B, C, T + 2 * margin)`."""
    lengths = None if mask is None else mask.sum(-1)
    at = reflected_positions(x.shape[-1], margin, lengths, x.device)
    if mask is None:
        return x.index_select(-1, at[0])
    return x.gather(-1, at[:, None].expand(-1, x.shape[1], -1))


class SqueezeExcitation(nn.Module):
    """Layer that multiplies each channel of `(B, C, T)` by a gate, which depends on the means over valid frames."""

    def __init__(self, channels: int, bottleneck: int):
        super().__init__()
        self.down = nn.Conv1d(channels, bottleneck, 1)
        self.up = nn.Conv1d(bottleneck, channels, 1)

    def forward(self, x: Tensor, residual: Tensor, mask: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Return `residual + gate * x`, in `out` if it is given. `x` and `residual` must be 0 outside `mask`."""
        gate = torch.sigmoid(self.up(F.relu(self.down(masked_mean(x, mask)[..., None]))))
        return torch.addcmul(residual, x, gate, out=out)


class SERes2Block(nn.Module):
    """Residual block with a Res2Net convolution and squeeze-and-excitation. Input and output are `(B, C, T)`."""

    def __init__(self, config: HamSpkConfig, dilation: int):
        super().__init__()
        channels, groups = config.ecapa_channels, config.ecapa_groups
        width = channels // groups
        reflect = config.ecapa_padding == "reflect"
        self.reduce = ConvBlock(channels, channels)
        # The last group is not convolved.
        self.groups = nn.ModuleList(ConvBlock(width, width, 3, dilation, reflect) for _ in range(groups - 1))
        self.expand = ConvBlock(channels, channels)
        self.excitation = SqueezeExcitation(channels, config.ecapa_bottleneck)

    def forward(self, x: Tensor, mask: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Return the output `(B, C, T)`. If `out` is given and `overwrites` permits it, it is written to `out`."""
        frames = self.reduce(x, mask)
        if overwrites(self.reduce.norm, frames):
            return self._overwrite(frames, x, mask, out)
        *parts, last = frames.chunk(len(self.groups) + 1, dim=1)
        outputs: list[Tensor] = []
        for part, group in zip(parts, self.groups, strict=True):
            outputs.append(group(part + outputs[-1] if outputs else part, mask))
        return self.excitation(self.expand(torch.cat([*outputs, last], dim=1), mask), x, mask)

    def _overwrite(self, frames: Tensor, x: Tensor, mask: Tensor | None, out: Tensor | None) -> Tensor:
        """Compute the layers after `reduce`. To save memory, the output of each channel group overwrites its input."""
        before = None
        for part, group in zip(frames.chunk(len(self.groups) + 1, dim=1), self.groups, strict=False):
            before = group(part if before is None else part.add_(before), mask, out=part)
        expanded = self.expand(frames, mask)
        return self.excitation(expanded, x, mask, out=expanded if out is None else out)


class Ecapa(nn.Module):
    """ECAPA-TDNN encoder, which maps features `(B, F, T)` to frames `(B, ecapa_output_channels, T)`."""

    stride = 1

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        channels, self.output_channels = config.ecapa_channels, config.ecapa_output_channels
        self.sums_inputs = config.ecapa_block_input == "sum"
        self.input = ConvBlock(config.num_mel_bins, channels, 5, reflect=config.ecapa_padding == "reflect")
        self.blocks = nn.ModuleList(SERes2Block(config, dilation) for dilation in config.ecapa_dilations)
        self.aggregate = nn.Conv1d(len(self.blocks) * channels, config.ecapa_output_channels, 1)
        normalize = config.ecapa_normalize_aggregate
        self.aggregate_norm = nn.BatchNorm1d(config.ecapa_output_channels) if normalize else None

    def forward(self, x: Tensor, mask: Tensor | None = None, hidden: list[Tensor] | None = None) -> Tensor:
        """Encode features `(B, F, T)`, which must be 0 outside the bool `mask` `(B, T)`.

        The outputs `(B, T, C)` of the first layer and of each block are added to `hidden`.
        """
        first = x = self.input(x, mask)
        slots: list[Tensor | None] = [None] * len(self.blocks)
        together = None
        if overwrites(self.input.norm, x):
            # All blocks write their outputs into one common tensor, so that `torch.cat` is not needed.
            together = x.new_empty(x.shape[0], len(slots) * x.shape[1], x.shape[2])
            slots = list(together.chunk(len(slots), dim=1))
        outputs = []
        for block, slot in zip(self.blocks, slots, strict=True):
            outputs.append(block(x, mask, slot))
            x = x + outputs[-1] if self.sums_inputs else outputs[-1]
        if together is None or any(output is not slot for output, slot in zip(outputs, slots, strict=True)):
            together = torch.cat(outputs, dim=1)
        if hidden is not None:
            hidden += [layer.mT for layer in (first, *outputs)]
        frames = F.relu(self.aggregate(together), inplace=True)
        if self.aggregate_norm is not None:
            frames = batch_norm(self.aggregate_norm, frames, mask)
        return keep_valid(frames, mask)


class ConvNorm(nn.Module):
    """Convolution without bias, then batch normalisation.

    Args:
        conv: convolution over time (`nn.Conv1d`), from `(B, C, T)` to `(B, C', T')`, or over frequency and time
            (`nn.Conv2d`), from `(B, C, F, T)` to `(B, C', F', T')`.
    """

    def __init__(self, conv: nn.Conv1d | nn.Conv2d):
        super().__init__()
        self.conv = conv
        self.norm = (nn.BatchNorm1d if isinstance(conv, nn.Conv1d) else nn.BatchNorm2d)(conv.out_channels)
        self.stride = int(conv.stride[-1])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the output, which is not zero in the padding. `mask` `(B, T')` marks the valid output frames."""
        norm: Any = self.norm
        conv = self.conv
        # If normalising the output would take longer than normalising the weights, the weights are normalised.
        if not overwrites(norm, x) or conv.weight[0].numel() > x.numel() // x.shape[1]:
            return batch_norm(norm, conv(x), mask)
        weight, bias = fuse_conv_bn_weights(
            conv.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        return conv._conv_forward(x, weight, bias)  # pyright: ignore[reportArgumentType]


def conv1d(inputs: int, outputs: int, kernel_size: int = 1, stride: int = 1, dilation: int = 1) -> nn.Conv1d:
    """Return a convolution over time without bias. Zeros are added at both ends so that frames keep their places."""
    padding = dilation * (kernel_size - 1) // 2
    return nn.Conv1d(inputs, outputs, kernel_size, stride, padding, dilation, bias=False)


def conv2d(inputs: int, outputs: int, kernel_size: int, stride: tuple[int, int] = (1, 1)) -> nn.Conv2d:
    """Return a convolution over frequency and time without bias. `stride` is in mel bins and frames."""
    return nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, bias=False)


def rectified(x: Tensor, mask: Tensor | None) -> Tensor:
    """Apply ReLU to `x`, and set the frames outside `mask` `(B, T)` to zero. `x` may be overwritten."""
    return keep_valid(F.relu(x, inplace=True), mask)


class ResidualBlock(nn.Module):
    """Residual block of two convolutions, or of three with a bottleneck.

    It maps `(B, C, F, T)` to `(B, C', F', T')`.

    Args:
        inputs: number of input channels, C.
        width: number of channels of the 3x3 convolutions.
        expansion: C' divided by `width`; 1 for a block of two convolutions, above 1 for a bottleneck.
        stride: stride in mel bins and frames.
    """

    def __init__(self, inputs: int, width: int, expansion: int, stride: tuple[int, int]):
        super().__init__()
        outputs = width * expansion
        if expansion == 1:
            convolutions = [conv2d(inputs, width, 3, stride), conv2d(width, width, 3)]
        else:
            convolutions = [conv2d(inputs, width, 1), conv2d(width, width, 3, stride), conv2d(width, outputs, 1)]
        self.layers = nn.ModuleList(ConvNorm(convolution) for convolution in convolutions)
        is_same = stride == (1, 1) and inputs == outputs
        self.shortcut = None if is_same else ConvNorm(conv2d(inputs, outputs, 1, stride))

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the output and its mask `(B, T')`. `x` must be 0 outside `mask` `(B, T)`."""
        y = x
        for layer in self.layers:
            of_output = subsampled(mask, cast(int, layer.stride))
            y = layer(y if y is x else rectified(y, mask), of_output)
            mask = of_output
        residual = x if self.shortcut is None else self.shortcut(x, mask)
        y = y + residual if y.requires_grad else y.add_(residual)
        return rectified(y, mask), mask


def subsampled(mask: Tensor | None, stride: int) -> Tensor | None:
    """Return the mask `(B, ceil(T / stride))` of every `stride`-th frame; None if `mask` is None."""
    return mask if mask is None or stride == 1 else mask[:, ::stride]


class ResNet(nn.Module):
    """ResNet encoder, which maps features `(B, F, T)` to frames `(B, C, ceil(T / 8))`.

    C is the number of channels of the last stage times the number of remaining mel bins.

    Args:
        config: configuration with `num_mel_bins`, `resnet_depth` and `resnet_channels`.
    """

    stride = 8

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        channels, expansion = config.resnet_channels, RESNET_EXPANSION[config.resnet_depth]
        self.input = ConvNorm(conv2d(1, channels, 3))
        self.stages = nn.ModuleList()
        for stage, count in enumerate(RESNET_BLOCKS[config.resnet_depth]):
            blocks, width = nn.ModuleList(), config.resnet_channels << stage
            for number in range(count):
                stride = (2, 2) if stage > 0 and number == 0 else (1, 1)
                blocks.append(ResidualBlock(channels, width, expansion, stride))
                channels = width * expansion
            self.stages.append(blocks)
        self.output_channels = channels * -(-config.num_mel_bins // self.stride)

    def forward(self, x: Tensor, mask: Tensor | None = None, hidden: list[Tensor] | None = None) -> Tensor:
        """Encode features `(B, F, T)`, which must be 0 outside the bool `mask` `(B, T)`.

        The outputs `(B, T', C' F')` of the first layer and of each of the four stages are added to `hidden`.
        """
        x = rectified(self.input(x[:, None], mask), mask)
        layers = [x]
        for stage in self.stages:
            for block in cast(nn.ModuleList, stage):
                x, mask = block(x, mask)
            layers.append(x)
        if hidden is not None:
            hidden += [layer.flatten(1, 2).mT for layer in layers]
        return x.flatten(1, 2)


class ContextMask(nn.Module):
    """Convolution over time, from `(B, C, T)` to `(B, C', T)`, whose output is multiplied by a context-aware mask.

    Args:
        inputs: number of input channels, C.
        outputs: number of output channels, C'.
        dilation: dilation of the convolution in frames.
        segment: length, in frames, of the segments. The mean over each segment is part of the context.
    """

    def __init__(self, inputs: int, outputs: int, dilation: int, segment: int):
        super().__init__()
        self.segment = segment
        self.local = conv1d(inputs, outputs, DENSE_KERNEL, dilation=dilation)
        self.down = nn.Conv1d(inputs, max(1, inputs // 2), 1)
        self.up = nn.Conv1d(max(1, inputs // 2), outputs, 1)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the output `(B, C', T)`, which is not zero in the padding. In `x`, the padding must be 0.

        `weights` are the `segment_weights` of `x`.
        """
        count = weights.shape[-1]
        padded = F.pad(x, (0, count * self.segment - x.shape[-1]))
        context = padded.unflatten(-1, (count, self.segment)).sum(-1) @ weights
        gates = torch.sigmoid(self.up(F.relu(self.down(context))))
        return self.local(x) * gates[..., None].expand(*gates.shape, self.segment).flatten(2)[..., : x.shape[-1]]


def segment_sizes(x: Tensor, mask: Tensor | None, segment: int) -> Tensor:
    """Return the number of valid frames in each segment of `x` `(B, C, T)`.

    The result is `(B, S)`, or `(1, S)` without a mask. Each segment has `segment` frames; the last may have fewer.
    """
    size = x.shape[-1]
    count = (size + segment - 1) // segment
    valid = torch.ones(1, size, dtype=torch.long, device=x.device) if mask is None else mask.long()
    return F.pad(valid, (0, count * segment - size)).unflatten(-1, (count, segment)).sum(-1)


def segment_weights(x: Tensor, mask: Tensor | None, segment: int) -> Tensor:
    """Return the matrix by which sums over segments are multiplied to give contexts, `(B, S, S)`, or `(1, S, S)`.

    The context of a segment is the mean of `x` `(B, C, T)` over the segment plus its mean over the utterance. All dense
    layers use the same matrix.
    """
    # In half precision, a large number of frames would be rounded or overflow.
    numbers = segment_sizes(x, mask, segment).to(torch.promote_types(x.dtype, torch.float32))
    of_utterance = numbers.sum(-1)[:, None, None].clamp_min(1).reciprocal()
    return (torch.diag_embed(numbers.clamp_min(1).reciprocal()) + of_utterance).to(x.dtype)


class DenseLayer(nn.Module):
    """Layer of a densely connected block. It maps `(B, C, T)` to `(B, C', T)`, the channels that it adds.

    C' is `campplus_growth`.

    Args:
        config: configuration with the fields that begin with `campplus_`.
        inputs: number of input channels, C.
        dilation: dilation in frames.
    """

    def __init__(self, config: HamSpkConfig, inputs: int, dilation: int):
        super().__init__()
        bottleneck = config.campplus_bottleneck
        self.norm = nn.BatchNorm1d(inputs)
        self.reduce = ConvNorm(conv1d(inputs, bottleneck))
        self.masked = ContextMask(bottleneck, config.campplus_growth, dilation, config.campplus_segment)

    def forward(self, x: Tensor, mask: Tensor | None, weights: Tensor) -> Tensor:
        return self.masked(rectified(self.reduce(norm_relu(self.norm, x, mask), mask), mask), weights)


def norm_relu(norm: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """Apply batch normalisation and ReLU to frames `(B, C, T)` without overwriting them."""
    if overwrites(norm, x) and not x.is_contiguous():
        # The normalisation of torch is fast only for contiguous frames, but `x` is a view of a larger tensor.
        return folded_norm(norm, x, None, torch.empty_like(x)).relu_()
    return F.relu(batch_norm(norm, x, mask), inplace=True)


class DenseBlock(nn.Module):
    """Densely connected layers, then a convolution that halves the channels. It maps `(B, C, T)` to `(B, C', T)`.

    Args:
        config: configuration with the fields that begin with `campplus_`.
        inputs: number of input channels, C.
        layers: number of dense layers.
        dilation: dilation of the dense layers in frames.
    """

    def __init__(self, config: HamSpkConfig, inputs: int, layers: int, dilation: int):
        super().__init__()
        growth = config.campplus_growth
        self.layers = nn.ModuleList(DenseLayer(config, inputs + i * growth, dilation) for i in range(layers))
        joined = inputs + layers * growth
        self.norm, self.reduce, self.output_channels = nn.BatchNorm1d(joined), conv1d(joined, joined // 2), joined // 2

    def forward(self, x: Tensor, mask: Tensor | None, weights: Tensor) -> Tensor:
        """Return the output, which is not zero outside `mask`. For `weights`, see `segment_weights`."""
        if overwrites(self.norm, x):
            joined = self._overwrite(x, mask, weights)
        else:
            joined = x
            for layer in self.layers:
                joined = torch.cat([joined, layer(joined, mask, weights)], dim=1)
        return self.reduce(norm_relu(self.norm, joined, mask))

    def _overwrite(self, x: Tensor, mask: Tensor | None, weights: Tensor) -> Tensor:
        """Compute the dense layers. To save memory, all layers write their channels into one common tensor."""
        joined = x.new_empty(x.shape[0], cast(nn.BatchNorm1d, self.norm).num_features, x.shape[2])
        end = x.shape[1]
        joined[:, :end] = x
        for layer in self.layers:
            added = layer(joined[:, :end], mask, weights)
            joined[:, end : end + added.shape[1]] = added
            end += added.shape[1]
        return joined


class CamPlusPlus(nn.Module):
    """CAM++ encoder, which maps features `(B, F, T)` to frames `(B, C, ceil(T / 2))`.

    Args:
        config: configuration with `num_mel_bins` and the fields that begin with `campplus_`.
    """

    stride = 2

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        width, bins = config.campplus_head_channels, -(-config.num_mel_bins // 8)
        self.input = ConvNorm(conv2d(1, width, 3))
        strides = [(2, 1) if number == 0 else (1, 1) for _ in range(2) for number in range(HEAD_BLOCKS)]
        self.head = nn.ModuleList(ResidualBlock(width, width, 1, stride) for stride in strides)
        self.head_output = ConvNorm(conv2d(width, width, 3, (2, 1)))
        channels, self.segment = config.campplus_channels, config.campplus_segment
        self.first = ConvNorm(conv1d(width * bins, channels, FIRST_KERNEL, self.stride))
        self.blocks = nn.ModuleList()
        for layers, dilation in zip(config.campplus_layers, config.campplus_dilations, strict=True):
            self.blocks.append(block := DenseBlock(config, channels, layers, dilation))
            channels = block.output_channels
        self.norm, self.output_channels = nn.BatchNorm1d(channels), channels

    def forward(self, x: Tensor, mask: Tensor | None = None, hidden: list[Tensor] | None = None) -> Tensor:
        """Encode features `(B, F, T)`, which must be 0 outside the bool `mask` `(B, T)`.

        The outputs `(B, ceil(T / 2), C')` of the first time-delay layer and of each block are added to `hidden`.
        """
        x = rectified(self.input(x[:, None], mask), mask)
        for block in self.head:
            x, _ = block(x, mask)
        x = rectified(self.head_output(x, mask), mask).flatten(1, 2)
        mask = subsampled(mask, self.stride)
        x = rectified(self.first(x, mask), mask)
        layers, weights = [x], segment_weights(x, mask, self.segment)
        for block in self.blocks:
            layers.append(x := block(x, mask, weights))
        if hidden is not None:
            hidden += [keep_valid(layer, mask).mT for layer in layers]
        return keep_valid(norm_relu(self.norm, x, mask), mask)


def make_encoder(config: HamSpkConfig) -> Ecapa | CamPlusPlus | ResNet:
    """Create the encoder `config.backbone` of a model without a transformers backbone."""
    kinds: dict[str | None, type[Ecapa | CamPlusPlus | ResNet]] = {"campplus": CamPlusPlus, "resnet": ResNet}
    return kinds.get(config.backbone, Ecapa)(config)


class StackedFilterBank(FilterBank):
    """Front-end of w2v-BERT. It maps waveforms `(B, L)` to `(B, T, N * F)`; N is the number of frames that are stacked.

    Each mel bin of Kaldi's filter bank is normalised to mean 0 and variance 1 over the utterance. Then every N adjacent
    frames are joined into one. If fewer than N frames remain at the end, they contribute to mean and variance but are
    left out of the output; transformers pads and masks them instead.

    As in transformers, the computation is in float64, because in a loud frame the rounding errors of a Fourier
    transform in float32 are as large as the weakest bins of 16-bit audio. Devices without float64 use float32.

    Args:
        config: configuration with `num_mel_bins`, and with a `backbone_config` whose `feature_projection_input_dim` is
            N times `num_mel_bins`.
    """

    def __init__(self, config: HamSpkConfig):
        options = {name: getattr(config, name) for name in ("sampling_rate", "num_mel_bins", "level_db")}
        # The backbone itself masks features in training.
        super().__init__(
            HamSpkConfig(frontend="kaldi", kaldi_window="povey", mask_mel_bins=0, mask_frames=0, **options)
        )
        backbone: Any = config.backbone_config
        width = backbone.feature_projection_input_dim
        if width % config.num_mel_bins:
            raise ValueError(
                f"feature_projection_input_dim of backbone_config ({width}) must be a multiple of num_mel_bins "
                f"({config.num_mel_bins})."
            )
        if backbone.position_embeddings_type == "rotary":
            # Transformers reuses these positions in later calls, even if the mode or the precision has changed.
            raise ValueError("w2v-BERT is not supported with position_embeddings_type 'rotary', only 'relative_key'.")
        self.stacked = width // config.num_mel_bins
        self.smallest_length = self.window_length + (self.stacked - 1) * self.hop

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None, constants: tuple[Tensor, Tensor] | None = None
    ) -> Features:
        """Compute features of `waveforms` `(B, L)`. `lengths` `(B,)` counts the valid samples; None without padding."""
        if constants is None:
            window, bank = self.constants(np.float32 if waveforms.device.type == "mps" else np.float64)
            constants = window.to(waveforms.device), bank.to(waveforms.device)
        values, lengths = super().forward(waveforms, lengths, constants)
        with torch.autocast(waveforms.device.type, enabled=False):
            freedom = values.shape[-1] - 1 if lengths is None else (lengths - 1)[:, None, None]
            values = values / (values.square().sum(-1, keepdim=True) / freedom + VARIANCE_OFFSET).sqrt()
            # Indices are used, because the exporter of PyTorch cannot divide the number of frames in a view.
            first = self.stacked * torch.arange(values.shape[-1] // self.stacked, device=values.device)
            at = first[:, None] + torch.arange(self.stacked, device=values.device)
            values = values.mT[:, at].flatten(2)
            if lengths is not None:
                lengths = torch.div(lengths, self.stacked, rounding_mode="floor")
                values = values * length_mask(lengths, values.shape[1])[..., None]
        return Features(values, lengths)


def make_frontend(config: HamSpkConfig) -> FilterBank | Waveform | StackedFilterBank:
    """Create the front-end with the name `config.frontend`."""
    kinds = {"waveform": Waveform, "seamless": StackedFilterBank}
    return kinds.get(cast(str, config.frontend), FilterBank)(config)


@dataclass(frozen=True)
class OnnxDescription:
    """Metadata of an exported file. If `masked` is False, the graph accepts only batches without padding."""

    fingerprint: str
    sampling_rate: int
    embedding_size: int
    masked: bool

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], name: str) -> "OnnxDescription":
        """Parse the metadata of a file. If they are invalid, raise a ValueError with the name of the file."""
        try:
            return cls(**json.loads(metadata[METADATA_KEY]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{name} was not written by `hamspk export`. Export the model with it.") from error


class OnnxEncoder(nn.Module):
    """Encoder that runs a file of `hamspk export` in ONNX Runtime. It is called like the exported model.

    Each operation uses `threads` threads, or all cores if `threads` is None.
    """

    def __init__(self, file: str | os.PathLike, threads: int | None = None):
        super().__init__()
        threads = plain_number(threads)
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ValueError(f"The number of ONNX Runtime threads must be an integer of at least 1, got {threads!r}.")
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "ONNX Runtime is not installed. Run `pip install onnxruntime`, or omit onnx_file to use torch."
            ) from error
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        name = os.path.basename(os.fspath(file))
        try:
            self.session = onnxruntime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # The exceptions of ONNX Runtime have no other common base class.
            raise ValueError(
                f"ONNX Runtime cannot read {name} ({type(error).__name__}). Export the model again."
            ) from error
        self.description = OnnxDescription.from_metadata(self.session.get_modelmeta().custom_metadata_map, name)

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> XVectorOutput:
        """Embed the waveforms `input_values` `(B, L)`; `attention_mask` `(B, L)` is 0 for padding on the right."""
        if attention_mask is not None and not self.description.masked:
            # The graph accepts no padding, so each utterance is embedded alone.
            rows = [self(row[None, : int(mask.sum())]) for row, mask in zip(input_values, attention_mask, strict=True)]
            return XVectorOutput(embeddings=torch.cat([row.embeddings for row in rows]))
        feed = {INPUTS[0]: input_values.detach().cpu().float().numpy()}
        if self.description.masked:
            mask = torch.ones_like(input_values) if attention_mask is None else attention_mask
            feed[INPUTS[1]] = mask.cpu().long().numpy()
        return XVectorOutput(embeddings=torch.from_numpy(self.session.run([OUTPUT], feed)[0]))

    def difference_from(self, model: Any) -> float:
        """Return the largest difference from the embeddings of `model`, relative to the largest value in these.

        A difference of at most `LARGEST_DIFFERENCE` is returned as 0.0.
        """
        rate = model.config.sampling_rate
        noise = torch.randn(1, 2 * rate, generator=torch.Generator().manual_seed(0))
        signal = 0.1 * noise + 0.1 * torch.sin(torch.arange(2 * rate) * (2 * math.pi * 150 / rate))
        was_training = model.training
        try:
            with torch.inference_mode():
                expected = model.eval().base_model(signal.to(model.device)).embeddings.float().cpu()
                found = self(signal).embeddings
        finally:
            model.train(was_training)
        if found.shape != expected.shape:
            return math.inf
        difference = float((found - expected).abs().max() / expected.abs().max())
        return 0.0 if difference <= LARGEST_DIFFERENCE else difference


class Segmentation(nn.Module):
    """Network that finds who speaks when. It maps waveforms `(B, L)` at 16 kHz to log probabilities `(B, T, 7)`.

    Frames are 61.9 ms long, and begin every 16.9 ms. The seven classes are: nobody; person 1, 2 or 3; persons 1 and 2,
    1 and 3, or 2 and 3. The numbers of the persons are valid only within one waveform.
    """

    def __init__(self):
        super().__init__()
        filters, channels, width = SEGMENTATION_FILTERS, SEGMENTATION_CHANNELS, SEGMENTATION_WIDTH
        self.input_norm = nn.InstanceNorm1d(1, affine=True)
        first = nn.Conv1d(1, filters, SEGMENTATION_KERNEL, SEGMENTATION_STRIDE, bias=False)
        self.convs = nn.ModuleList([first, nn.Conv1d(filters, channels, 5), nn.Conv1d(channels, channels, 5)])
        self.norms = nn.ModuleList(nn.InstanceNorm1d(size, affine=True) for size in (filters, channels, channels))
        self.lstm = nn.LSTM(channels, width, SEGMENTATION_LAYERS, batch_first=True, bidirectional=True)
        self.layers = nn.ModuleList([nn.Linear(2 * width, width), nn.Linear(width, width)])
        self.classes = nn.Linear(width, SEGMENTATION_CLASSES)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Return log probabilities `(B, T, 7)` for waveforms `(B, L)` without padding. L must be at least 1,600."""
        x = self.input_norm(waveforms[:, None])
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = conv(x)
            x = F.leaky_relu(norm(F.max_pool1d(x if number else x.abs(), 3)))
        x = self.lstm(x.mT)[0]
        for layer in self.layers:
            x = F.leaky_relu(layer(x))
        return self.classes(x).log_softmax(-1)


class OverlapDetector:
    """Detector of two people who speak at the same time, stored beside a model in the file `OVERLAP_FILE`.

    The detector is not a part of the model: it has no effect on embeddings, and `model.to(device)` does not move it.

    Example:
        ```python
        detector = OverlapDetector(Segmentation(), "my own training", "apache-2.0")
        detector.save("overlap_detector.safetensors")
        print(OverlapDetector.load("overlap_detector.safetensors").licence)
        ```

    Args:
        network: network with trained weights.
        origin: name of the project or checkpoint from which the weights come.
        licence: licence of the weights; None if unknown.
    """

    def __init__(self, network: Segmentation, origin: str, licence: str | None = None):
        self.network, self.origin, self.licence = network.eval().requires_grad_(False), origin, licence

    def mark(self, groups: Sequence[Sequence[Any]], sampling_rate: int) -> list[list[Any]]:
        """Return the groups of `MeasuredRecording`, with `overlap` set for recordings with enough speech."""
        samples = {one.digest: one.samples for group in groups for one in group if one.embedding is not None}
        found = dict(zip(samples, self.find(list(samples.values()), sampling_rate), strict=True))
        return [[one._replace(overlap=found.get(one.digest, 0.0)) for one in group] for group in groups]

    def warnings(self, sound: Sound, label: str) -> list[str]:
        """Return a warning if two people speak at once in a recording; otherwise an empty list."""
        return overlap_warnings(self.find([sound.waveform], sound.sampling_rate)[0], label)

    def find(self, waveforms: Sequence[np.ndarray], sampling_rate: int) -> list[float]:
        """Return the number of seconds in which two people speak at once, for each waveform `(L,)` in [-1, 1].

        If it is at most the share `OVERLAP_SHARE` of the speech, 0.0 is returned.
        """
        seconds = self.measure(waveforms, sampling_rate).tolist()
        return [overlap if overlap > OVERLAP_SHARE * speech else 0.0 for speech, overlap in seconds]

    def measure(self, waveforms: Sequence[np.ndarray], sampling_rate: int) -> np.ndarray:
        """Return, for each of N waveforms `(L,)`, the seconds of speech and of two people at once, as `(N, 2)`.

        Both numbers are expected values under the probabilities of the network. A waveform of more than 10 s is cut
        into windows of 10 s; the last window overlaps with the one before it if less than 10 s remain. The result for a
        waveform does not depend on the other waveforms. It is 0 for waveforms shorter than 0.1 s.
        """
        windows: dict[tuple[int, int], np.ndarray] = {}
        for number, waveform in enumerate(waveforms):
            wave = resample(waveform, sampling_rate, SEGMENTATION_RATE)
            last = len(wave) - WINDOW_SAMPLES
            starts = [*range(0, last, WINDOW_SAMPLES), last] if last > 0 else [0] * (len(wave) >= SHORTEST_WINDOW)
            windows |= {(number, start): wave[start : start + WINDOW_SAMPLES] for start in starts}
        found, of_length = np.zeros((len(waveforms), 2)), dict[int, list[tuple[int, int]]]()
        for key, window in windows.items():
            of_length.setdefault(len(window), []).append(key)
        for keys in of_length.values():
            for first in range(0, len(keys), WINDOWS_AT_ONCE):
                batch = keys[first : first + WINDOWS_AT_ONCE]
                probabilities = self._probabilities([windows[key] for key in batch])
                for (number, start), frames in zip(batch, probabilities, strict=True):
                    # Frames that also belong to the previous window are not counted again.
                    own = frames[round(-start % WINDOW_SAMPLES / SEGMENTATION_STEP) :]
                    found[number] += (1 - own[:, 0]).sum(), own[:, FIRST_PAIR:].sum()
        return found * (SEGMENTATION_STEP / SEGMENTATION_RATE)

    def _probabilities(self, windows: Sequence[np.ndarray]) -> np.ndarray:
        values = torch.from_numpy(np.stack(windows)).to(self.network.classes.weight.device)
        with torch.inference_mode():
            return self.network(values).exp().cpu().double().numpy()

    def save(self, path: str | os.PathLike) -> None:
        """Write the detector to a safetensors file, with its origin, its licence and a checksum."""
        state = {name: tensor.cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        described = {"kind": OVERLAP_KIND, "origin": self.origin, "licence": self.licence}
        described["checksum"] = _weights_checksum(state)
        with replacing(path) as temporary:
            save_file(state, temporary, {"description": json.dumps(described, sort_keys=True)})

    @staticmethod
    def save_beside_weights(detector: "OverlapDetector | None", folder: str | os.PathLike) -> None:
        """Save a detector, if any, beside the weights, and give all weight files the permissions of `config.json`.

        Newer versions of safetensors would write files that only the owner can read.
        """
        if detector is not None:
            detector.save(os.path.join(folder, OVERLAP_FILE))
        mode = os.stat(os.path.join(folder, "config.json")).st_mode
        for path in (os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".safetensors")):
            if os.stat(path).st_mode != mode:
                os.chmod(path, mode)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "OverlapDetector":
        """Read a saved detector. Raise a ValueError if the file is damaged or contains something else."""
        with torch.device("meta"):
            network = Segmentation()
        shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
        remedy = "Store the detector again with `hamspk convert FILE --into MODEL`, or delete the file."
        try:
            with safe_open(path, "pt") as file:
                metadata, names = file.metadata(), list(file.keys())
                # The shapes are checked before the tensors are read, so that a large other file is not read.
                stored = {name: file.get_slice(name) for name in names}
                is_detector = {
                    name: one.get_shape() for name, one in stored.items() if one.get_dtype() == "F32"
                } == shapes
                state = {name: file.get_tensor(name) for name in names} if is_detector else {}
            described = json.loads("{}" if metadata is None else metadata.get("description", "{}"))
            origin, licence = described["origin"], described["licence"]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)} is not an overlap detector: {str(error)[:200]}. {remedy}") from error
        texts = all(isinstance(one, str) and one.isprintable() for one in (origin, "" if licence is None else licence))
        if not is_detector or not texts or described.get("kind") != OVERLAP_KIND:
            raise ValueError(f"{os.fspath(path)} is not an overlap detector: it has other weights or fields. {remedy}")
        if described.get("checksum") != _weights_checksum(state):
            raise ValueError(f"{os.fspath(path)} was altered: its checksum does not match its weights. {remedy}")
        network.load_state_dict(state, assign=True)
        return cls(network, origin, licence)


def _weights_checksum(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names and values of float32 weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
