"""Prepare large corpora as shards and stream them for training."""

from .indexing import index_shards
from .manifest import Manifest, Shard, load_manifest
from .planning import PrepareOptions
from .preparing import finish_shards, make_shards, plan_shards, prepare
from .verifying import verify_shards

__all__ = [
    "Manifest",
    "PrepareOptions",
    "Shard",
    "finish_shards",
    "index_shards",
    "load_manifest",
    "make_shards",
    "plan_shards",
    "prepare",
    "verify_shards",
]
