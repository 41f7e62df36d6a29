"""Engines that find the largest inner products: FAISS, or PyTorch in blocks if FAISS is not installed.

Letters: `N` keys, `Q` queries, `E` vector size.
"""

from os import PathLike, fspath
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Products held at once: 64 MiB of float32.
PRODUCTS_AT_ONCE = 1 << 24
# FAISS's own advice for the number of cells, as a multiple of the root of N; and it wants 39 keys and more in each.
CELLS_PER_ROOT, KEYS_PER_CELL = 4, 39
# Keys per cell that the cells are learned from: more change them little.
TRAINING_KEYS_PER_CELL = 64


class Engine(Protocol):
    """Interface of a search for the keys with the largest inner products."""

    def search(self, queries: Tensor, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the `count` keys that have the largest inner products with each query.

        Args:
            queries: `(Q, E)` float32.
            count: number of keys per query, at least 1.

        Returns:
            The products and the row numbers of the keys, each `(Q, count)`, in descending order of the product. Row
            numbers are -1 if an approximate engine finds fewer keys.
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
            "An approximate index needs FAISS. Install it with pip install 'hf_hamspk[search]' (or faiss-cpu), or use "
            "an exact index, which does not need it."
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
        """See `Engine`."""
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
    """Engine that searches a FAISS index of any kind.

    Args:
        index: FAISS index that is trained and contains the keys.
    """

    def __init__(self, index):
        self.index = index

    @classmethod
    def exact(cls, keys: Tensor) -> "FaissEngine":
        """Make an exact engine, which compares each query with all keys `(N, E)` float32."""
        index = require_faiss().IndexFlatIP(keys.shape[1])
        index.add(keys.numpy())
        return cls(index)

    @classmethod
    def cells(cls, keys: Tensor, cells: int | None, probes: int) -> "FaissEngine":
        """Make an approximate engine, which compares each query only with the keys of the nearest cells.

        This is the inverted file (IVF) of FAISS.

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
        # Keys of unlike norms make better cells by distance, and queries find theirs by product (FAISS would do both by
        # product): measured, recall at equal probes rises by up to a half for hyperbolic keys, and stays for unit ones.
        index.cp.spherical = False
        # FAISS warns about fewer keys per cell; with few keys it does not matter.
        index.cp.min_points_per_centroid = 1
        step = max(1, len(keys) // (cells * TRAINING_KEYS_PER_CELL))
        index.train(np.ascontiguousarray(keys[::step].numpy()))
        index.add(keys.numpy())
        largest.add(nearest.reconstruct_n(0, cells))
        index.quantizer = largest
        # The index does not own it; without this it would be collected.
        index.referenced_objects = [largest]
        engine = cls(index)
        engine.set_probes(probes)
        return engine

    def set_probes(self, probes: int) -> None:
        """Set the number of cells that are searched for each query; numbers above the number of cells mean all."""
        self.index.nprobe = min(probes, self.index.nlist)

    def search(self, queries: Tensor, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See `Engine`."""
        return self.index.search(queries.numpy(), count)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the index to a file in the format of FAISS."""
        require_faiss().write_index(self.index, fspath(path))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "FaissEngine":
        """Read a file written by `save`. FAISS does not validate files, so the caller must check the checksum first."""
        return cls(require_faiss().read_index(fspath(path)))
