"""Prepare large corpora as shards and stream them for training."""

from .indexing import index_shards
from .manifest import Manifest, Shard, load_manifest
from .planning import PrepareOptions
from .preparing import prepare
from .verifying import verify_shards

__all__ = ["Manifest", "PrepareOptions", "Shard", "index_shards", "load_manifest", "prepare", "verify_shards"]
