"""Engines that find the largest inner products: FAISS, or PyTorch in blocks if FAISS is not installed.

Letters: `N` keys, `Q` queries, `E` size of the vectors.
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
    """Finds the keys of the largest inner products."""

    def search(self, queries: Tensor, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The largest products of queries `(Q, E)` and the rows of their keys, each `(Q, count)`, largest first.

        The row is -1 if an approximate engine found fewer.
        """
        ...


def import_faiss() -> ModuleType | None:
    """FAISS, or None if it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def require_faiss() -> ModuleType:
    """FAISS.

    Raises:
        ImportError: it is not installed; the message tells how to install it.
    """
    faiss = import_faiss()
    if faiss is None:
        raise ImportError(
            "An approximate index needs FAISS: pip install 'hf_hamspk[search]' (or faiss-cpu). An exact one works "
            "without."
        )
    return faiss


class TorchEngine:
    """Computes all products, in blocks of bounded memory.

    Args:
        keys: `(N, E)` float32.
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
    """Searches a FAISS index of any kind.

    Args:
        index: trained and filled.
    """

    def __init__(self, index):
        self.index = index

    @classmethod
    def exact(cls, keys: Tensor) -> "FaissEngine":
        """All products of `(N, E)` float32."""
        index = require_faiss().IndexFlatIP(keys.shape[1])
        index.add(keys.numpy())
        return cls(index)

    @classmethod
    def cells(cls, keys: Tensor, cells: int | None, probes: int) -> "FaissEngine":
        """Products with the keys of the nearest cells alone (an inverted file).

        Args:
            keys: `(N, E)` float32.
            cells: at least 1; None is about four times the root of N.
            probes: cells that are searched.

        Raises:
            ValueError: a number out of range.
        """
        faiss, most = require_faiss(), max(1, len(keys) // KEYS_PER_CELL)
        if cells is None:
            cells = min(most, max(1, round(CELLS_PER_ROOT * len(keys) ** 0.5)))
        if not 1 <= cells <= len(keys) or not probes >= 1:
            raise ValueError(f"cells must lie between 1 and {len(keys)}, probes be at least 1, got {cells}, {probes}.")
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
        """Set how many cells are searched, at most all."""
        self.index.nprobe = min(probes, self.index.nlist)

    def search(self, queries: Tensor, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See `Engine`."""
        return self.index.search(queries.numpy(), count)

    def save(self, path: str | PathLike[str]) -> None:
        """Write FAISS's own format."""
        require_faiss().write_index(self.index, fspath(path))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "FaissEngine":
        """Read what `save` wrote; FAISS trusts the file, so its checksum is compared before."""
        return cls(require_faiss().read_index(fspath(path)))
