"""Embeddings of whole corpora: read ahead, embedded by length, kept part by part, resumed after a kill."""

from .extracting import Speed, extract
from .parts import EmbeddingParts
from .sources import AudioFiles, Recording, ShardedCorpus
from .writing import FORMATS, write_embeddings

__all__ = [
    "FORMATS",
    "AudioFiles",
    "EmbeddingParts",
    "Recording",
    "ShardedCorpus",
    "Speed",
    "extract",
    "write_embeddings",
]
