"""Engines that find, for each query vector, the key vectors with the largest inner products.

Exact search uses FAISS or PyTorch. Approximate search needs FAISS.

Letters in shapes: `N` keys, `Q` queries, `E` size of a vector.
"""

from os import PathLike, fspath
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Largest number of inner products in memory at once: 64 MiB of float32.
PRODUCTS_AT_ONCE = 1 << 24
# FAISS recommends about 4 sqrt(N) cells, and at least 39 keys in each cell.
CELLS_PER_ROOT, KEYS_PER_CELL = 4, 39
# The cells are learned from this number of keys for each cell. More keys hardly change the cells.
TRAINING_KEYS_PER_CELL = 64


class Engine(Protocol):
    """Interface of an engine that finds, for each query, the keys with the largest inner products."""

    def search(self, queries: Tensor, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the `count` keys that have the largest inner products with each query.

        Args:
            queries: query vectors, `(Q, E)` float32.
            count: number of keys per query, at least 1.

        Returns:
            The inner products and the row numbers of the keys, each `(Q, count)`, with the largest product first. If
            an approximate engine finds fewer than `count` keys for a query, the remaining row numbers are -1.
        """
        ...


def import_faiss() -> ModuleType | None:
    """Return the module `faiss`, or None if it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def require_faiss() -> ModuleType:
    """Return the module `faiss`.

    Raises:
        ImportError: FAISS is not installed. The message explains how to install it.
    """
    faiss = import_faiss()
    if faiss is None:
        raise ImportError(
            "An approximate index needs FAISS. Run `pip install 'hf_hamspk[search]'` (or `pip install faiss-cpu`), or "
            "use an exact index, which does not need FAISS."
        )
    return faiss


class TorchEngine:
    """Exact engine that computes all inner products with PyTorch, in blocks of bounded memory.

    Args:
        keys: key vectors, `(N, E)` float32.
    """

    def __init__(self, keys: Tensor):
        self._keys = keys

    def search(self, queries: Tensor, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the `count` keys that have the largest inner products with each query; see `Engine`."""
        best = torch.empty(len(queries), 0)
        rows = torch.empty(len(queries), 0, dtype=torch.int64)
        size = max(count, PRODUCTS_AT_ONCE // max(1, len(queries)))
        for start in range(0, len(self._keys), size):
            products = queries @ self._keys[start : start + size].mT
            found, at = products.topk(min(count, products.shape[1]), dim=1)
            best, rows = torch.cat([best, found], dim=1), torch.cat([rows, at + start], dim=1)
            best, chosen = best.topk(min(count, best.shape[1]), dim=1)
            rows = rows.gather(1, chosen)
        return best.numpy(), rows.numpy()


class FaissEngine:
    """Engine that searches an existing FAISS index.

    Args:
        index: trained FAISS index for inner products that contains the keys.
    """

    def __init__(self, index):
        self.index = index

    @classmethod
    def exact(cls, keys: Tensor) -> "FaissEngine":
        """Make an exact engine. It compares each query with all keys, `(N, E)` float32."""
        index = require_faiss().IndexFlatIP(keys.shape[1])
        index.add(keys.numpy())
        return cls(index)

    @classmethod
    def cells(cls, keys: Tensor, cells: int | None, probes: int) -> "FaissEngine":
        """Make an approximate engine. It compares each query only with the keys in the nearest cells.

        Each cell contains similar keys, as in the inverted file (IVF) of FAISS.

        Args:
            keys: key vectors, `(N, E)` float32.
            cells: number of cells, from 1 to N; None means about 4 sqrt(N).
            probes: number of cells that are searched for each query, at least 1.

        Raises:
            ValueError: `cells` or `probes` is out of range.
        """
        faiss, most = require_faiss(), max(1, len(keys) // KEYS_PER_CELL)
        if cells is None:
            cells = min(most, max(1, round(CELLS_PER_ROOT * len(keys) ** 0.5)))
        if not 1 <= cells <= len(keys) or not probes >= 1:
            raise ValueError(f"cells must be from 1 to {len(keys)} and probes at least 1, got {cells} and {probes}.")
        size = keys.shape[1]
        nearest, largest = faiss.IndexFlatL2(size), faiss.IndexFlatIP(size)
        index = faiss.IndexIVFFlat(nearest, size, cells, faiss.METRIC_INNER_PRODUCT)
        # Cells are learned by distance and searched by inner product. (FAISS would use the inner product for both.) In
        # measurements with equal probes, this raised the recall by up to one half for hyperbolic keys, because their
        # norms differ. It did not change the recall for unit vectors.
        index.cp.spherical = False
        # This avoids a warning of FAISS about few keys per cell, which are harmless in small indexes.
        index.cp.min_points_per_centroid = 1
        step = max(1, len(keys) // (cells * TRAINING_KEYS_PER_CELL))
        index.train(np.ascontiguousarray(keys[::step].numpy()))
        index.add(keys.numpy())
        largest.add(nearest.reconstruct_n(0, cells))
        index.quantizer = largest
        # FAISS does not keep a reference to the quantizer, so Python would delete it.
        index.referenced_objects = [largest]
        engine = cls(index)
        engine.set_probes(probes)
        return engine

    def set_probes(self, probes: int) -> None:
        """Set the number of cells that are searched for each query. If there are fewer cells, all are searched."""
        self.index.nprobe = min(probes, self.index.nlist)

    def search(self, queries: Tensor, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the `count` keys that have the largest inner products with each query; see `Engine`."""
        return self.index.search(queries.numpy(), count)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the index to a file in the format of FAISS."""
        require_faiss().write_index(self.index, fspath(path))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "FaissEngine":
        """Read a file written by `save`. FAISS does not validate files, so the caller must verify a checksum first."""
        return cls(require_faiss().read_index(fspath(path)))
