"""Training losses that are computed over blocks of speakers, for up to millions of speakers. Only torch is needed."""

from .engine import BlockwiseEngine, set_class_sampling, use_blocks
from .modules import (
    AAMSoftmaxLoss,
    AMSoftmaxLoss,
    HamSoftmaxLoss,
    HSoftmaxLoss,
    NormalizedSoftmaxLoss,
    RealAMSoftmaxLoss,
    SoftmaxLoss,
    SpeakerLoss,
)

__all__ = [
    "AAMSoftmaxLoss",
    "AMSoftmaxLoss",
    "BlockwiseEngine",
    "HSoftmaxLoss",
    "HamSoftmaxLoss",
    "NormalizedSoftmaxLoss",
    "RealAMSoftmaxLoss",
    "SoftmaxLoss",
    "SpeakerLoss",
    "set_class_sampling",
    "use_blocks",
]
