"""The training losses computed over blocks of speakers, for up to millions of them."""

from .engine import BlockwiseEngine, set_class_sampling, use_blocks

__all__ = ["BlockwiseEngine", "set_class_sampling", "use_blocks"]
