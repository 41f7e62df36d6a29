"""Embed complete corpora. Threads read audio ahead of the model, and an interrupted run can be resumed."""

from .extracting import Speed, extract
from .parts import EmbeddingParts
from .sharing import embed_share, finish_embeddings
from .sources import AudioFiles, DecodedUtterance, ShardedCorpus
from .writing import EMBEDDING_FORMATS, write_embeddings

__all__ = [
    "EMBEDDING_FORMATS",
    "AudioFiles",
    "DecodedUtterance",
    "EmbeddingParts",
    "ShardedCorpus",
    "Speed",
    "embed_share",
    "extract",
    "finish_embeddings",
    "write_embeddings",
]
