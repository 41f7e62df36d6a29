"""Training losses for up to millions of speakers, computed over blocks of speakers. Only torch is needed."""

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
