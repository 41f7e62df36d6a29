"""Training losses that are computed over blocks of speakers, for up to millions of speakers."""

from .engine import BlockwiseEngine, set_class_sampling, use_blocks

__all__ = ["BlockwiseEngine", "set_class_sampling", "use_blocks"]
