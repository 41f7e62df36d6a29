"""ECAPA-TDNN with its batch normalisations included in the convolutions, for export to int8.

Between two convolutions in int8, an activation is converted to float32 and back. There, a maximum for each channel
takes less time than ReLU and a batch normalisation (see `RowBlock`).
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..encoders_hamspk import ConvBlock, Ecapa, SqueezeExcitation, mirrored
from ..modeling_hamspk import HamSpkModel
from .rows import limits_of, scale_and_shift


def fold_norms(model: HamSpkModel) -> HamSpkModel:
    """Return a copy of an ECAPA-TDNN in evaluation mode that computes the same and is faster in int8.

    Only the graph of one recording may be exported from the copy. Other models are returned unchanged.
    """
    if not isinstance(model.backbone, Ecapa):
        return model
    folded = copy.deepcopy(model)
    for parent in list(folded.backbone.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, ConvBlock):
                setattr(parent, name, _FoldedBlock(layer))
            elif isinstance(layer, SqueezeExcitation):
                setattr(parent, name, _Excitation(layer))
    return folded


class _FoldedBlock(nn.Module):
    """Convolution, ReLU and batch normalisation as a convolution, a maximum and, if needed, a minimum.

    The weights of the block are changed.
    """

    lowest: Tensor
    highest: Tensor | None

    def __init__(self, block: ConvBlock):
        super().__init__()
        # The encoder asks whether `norm` may overwrite its input, which is never so during an export.
        self.margin, self.conv, self.norm = block.margin, block.conv, block.norm
        scale, shift = scale_and_shift(block.norm, block.conv.out_channels)
        with torch.no_grad():
            self.conv.weight.mul_(scale[:, None, None])
            # The convolutions of this encoder have a bias.
            self.conv.bias.mul_(scale).add_(shift)  # pyright: ignore[reportOptionalMemberAccess]
        lowest, highest = limits_of(scale, shift)
        self.register_buffer("lowest", lowest[:, None])
        self.register_buffer("highest", None if highest is None else highest[:, None])

    def forward(self, x: Tensor, mask: None = None) -> Tensor:
        if self.margin:
            x = mirrored(x, self.margin, None)
        y = torch.maximum(self.conv(x), self.lowest)
        return y if self.highest is None else torch.minimum(y, self.highest)


class _Excitation(nn.Module):
    """Squeeze-and-excitation of one recording. ONNX Runtime computes the mean of a matrix faster than of a batch."""

    def __init__(self, excitation: SqueezeExcitation):
        super().__init__()
        self.down, self.up = excitation.down, excitation.up

    def forward(self, x: Tensor, residual: Tensor, mask: None = None) -> Tensor:
        mean = x.flatten(0, 1).mean(1)[None, :, None]
        return residual + x * torch.sigmoid(self.up(F.relu(self.down(mean))))
