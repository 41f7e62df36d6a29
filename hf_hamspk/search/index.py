"""Search for the nearest of many enrolled speakers.

The search has two steps. First, FAISS or PyTorch computes inner products of the query and the enrolled embeddings in
float32, and selects the embeddings with the largest products as candidates. Then the candidates are scored in float64
with the similarity of the model, and sorted.

An exact index also checks that the candidates include the k nearest embeddings. The float32 product of every other
embedding is at most the smallest product of a candidate. If this smallest product plus the largest possible rounding
error is below the float64 product of the k-th result, no other embedding can be nearer. If the check fails, for example
because of equal or nearly equal scores, the query is scored against every embedding in float64. The results are
therefore the same as if all embeddings were scored in float64 (`geometry_hamspk.score`). Equal scores are sorted by row
number.

Letters in shapes: `N` enrolled embeddings, `Q` queries, `D` embedding size.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..calibration_hamspk import check_same_model, load_array, save_array
from ..folders.recognising import check_replaceable, is_index_file
from ..folders.writing import hash_file
from ..geometry_hamspk import as_tensor
from ..verification_hamspk import SpeakerProfile
from .engines import Engine, FaissEngine, TorchEngine
from .products import ScoringModel, Similarity, rounding_bound

INDEX_KINDS = ("exact", "cells")
INDEX_KIND = "speaker index"
INDEX_SUFFIX, ENGINE_SUFFIX = ".safetensors", ".faiss"
# Default number of cells that an approximate index searches for each query.
PROBES = 32
# For k results, 2 k + 16 candidates are scored, so that rounding errors rarely exclude one of the k nearest embeddings.
CANDIDATES_PER_NEIGHBOUR, MORE_CANDIDATES = 2, 16
# Largest number of float64 values in memory at once: 64 MiB.
SCORED_AT_ONCE = 1 << 23


class SearchResult(NamedTuple):
    """Result of a search: the nearest enrolled embeddings of each query, nearest first.

    Attributes:
        scores: scores of the model, `(Q, k)` float64. If an approximate index finds fewer than k embeddings, the
            remaining scores are minus infinity.
        rows: row numbers of the enrolled embeddings, `(Q, k)` int64; the remaining ones are -1.
    """

    scores: NDArray[np.float64]
    rows: NDArray[np.int64]


class SpeakerIndex:
    """Index that finds the nearest of many speakers enrolled with one model.

    Example:
        ```python
        import torch
        from hf_hamspk import SpeakerIndex

        index = SpeakerIndex(model, torch.randn(1000, model.config.embedding_size))
        scores, rows = index.search(torch.randn(3, model.config.embedding_size), k=5)
        ```

    Args:
        model: model that computed the embeddings. The index stores the similarity and the fingerprint of the model, but
            not the model itself.
        embeddings: enrolled embeddings, `(N, D)`, finite.
        names: N speaker names, one per embedding; None for an index without names.
        kind: `"exact"` or `"cells"`. A `"cells"` index is approximate: it divides the embeddings into cells of similar
            embeddings and searches only the cells nearest to the query. It needs FAISS.
        cells: number of cells of an approximate index, from 1 to N; None means about 4 sqrt(N).
        probes: number of cells that an approximate index searches for each query. A larger number gives more complete
            results but takes longer.
        use_faiss: whether an exact index uses FAISS instead of PyTorch. The results are the same. In measurements with
            10,000 speakers or more, PyTorch was at least as fast. None uses PyTorch.

    Raises:
        ValueError: the kind is unknown, a number is out of range, or the embeddings or names are invalid.
        ImportError: FAISS is needed but not installed.
    """

    def __init__(
        self,
        model: ScoringModel,
        embeddings: Tensor,
        names: Sequence[str] | None = None,
        kind: str = "exact",
        cells: int | None = None,
        probes: int = PROBES,
        use_faiss: bool | None = None,
    ):
        if kind not in INDEX_KINDS:
            raise ValueError(f"kind must be one of {', '.join(INDEX_KINDS)}, got {kind!r}.")
        self._keep(embeddings, names)
        self.similarity, self.fingerprint, self.kind = Similarity.of(model), model.fingerprint(), kind
        keys = self._key_vectors()
        if kind == "cells":
            self._engine: Engine = FaissEngine.cells(keys, cells, probes)
        else:
            self._engine = self._exact_engine(keys, use_faiss)

    @classmethod
    def of_profiles(cls, model: ScoringModel, profiles: Sequence[SpeakerProfile], **options: Any) -> "SpeakerIndex":
        """Make an index of speaker profiles.

        Args:
            model: model that made the profiles.
            profiles: speaker profiles, at least one.
            options: further arguments of `SpeakerIndex`: kind, cells, probes, use_faiss.

        Raises:
            ValueError: no profiles are given, or a profile was made by another model.
        """
        if not profiles:
            raise ValueError("An index needs at least one profile, got none.")
        fingerprint = model.fingerprint()
        for profile in profiles:
            profile.check_model(fingerprint)
        names = ["" if profile.name is None else profile.name for profile in profiles]
        return cls(model, torch.stack([profile.embedding for profile in profiles]), names, **options)

    def __len__(self) -> int:
        """Return the number of enrolled embeddings."""
        return len(self._embeddings)

    @property
    def embeddings(self) -> Tensor:
        """Enrolled embeddings, `(N, D)` float32."""
        return self._embeddings

    def search(self, queries: Tensor, k: int = 10) -> SearchResult:
        """Find the `k` enrolled embeddings that are nearest to each query, or all if there are fewer than `k`.

        Args:
            queries: query embeddings of the same model, `(Q, D)`, finite.
            k: number of results per query, at least 1.

        Raises:
            ValueError: the queries have another shape or are not finite, or `k` is below 1.
        """
        queries = as_tensor(queries).detach().cpu().float()
        if queries.ndim != 2 or queries.shape[1] != self._embeddings.shape[1] or not bool(queries.isfinite().all()):
            raise ValueError(
                f"Expected query embeddings of shape (Q, {self._embeddings.shape[1]}) without NaN or infinite values, "
                f"got the shape {tuple(queries.shape)}."
            )
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        k = min(k, len(self))
        count = min(len(self), CANDIDATES_PER_NEIGHBOUR * k + MORE_CANDIDATES)
        size = max(1, SCORED_AT_ONCE // (count * queries.shape[1]))
        parts = [self._search_block(block, k, count) for block in queries.split(size)]
        if not parts:
            return SearchResult(np.empty((0, k)), np.empty((0, k), np.int64))
        return SearchResult(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def set_probes(self, probes: int) -> None:
        """Set the number of cells that later searches visit for each query.

        Raises:
            ValueError: the index is exact, or `probes` is below 1.
        """
        if not isinstance(self._engine, FaissEngine) or self.kind != "cells" or probes < 1:
            raise ValueError(
                "Expected at least 1 probe and an index of the kind 'cells' (an exact index has no probes), got "
                f"probes={probes} for an index of the kind {self.kind!r}."
            )
        self._engine.set_probes(probes)

    def name_of(self, row: int) -> str:
        """Return the speaker name for a row number that `search` returned.

        Raises:
            ValueError: the index has no names, or the row is -1 (no result).
        """
        if self.names is None or row < 0:
            raise ValueError(
                f"Row {row} has no speaker name: the index was made without names, or the row is -1 (no result)."
            )
        return self.names[row]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a safetensors file with a checksum.

        For an approximate index, the cells are written to a second file in the same folder, with the suffix `.faiss`
        and in the format of FAISS. The safetensors file contains a checksum of this second file.

        Raises:
            ValueError: the path does not end in `.safetensors`, or is a file that is not a speaker index.
        """
        target = _index_path(path)
        check_replaceable(target, is_index_file, "a speaker index")
        if not target.exists():
            check_replaceable(target.with_suffix(ENGINE_SUFFIX), lambda _: False, "a part of a speaker index")
        target.parent.mkdir(parents=True, exist_ok=True)
        description = {
            "kind": INDEX_KIND,
            "index": self.kind,
            "similarity": self.similarity._asdict(),
            "fingerprint": self.fingerprint,
            "names": self.names,
            "engine": None,
        }
        if isinstance(self._engine, FaissEngine) and self.kind == "cells":
            self._engine.save(target.with_suffix(ENGINE_SUFFIX))
            description["engine"] = hash_file(target.with_suffix(ENGINE_SUFFIX))
        save_array(target, "embeddings", self._embeddings.numpy(), description)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: ScoringModel, use_faiss: bool | None = None) -> "SpeakerIndex":
        """Read an index from a file.

        Args:
            path: file written by `save`.
            model: model that made the embeddings.
            use_faiss: whether an exact index uses FAISS; see `SpeakerIndex`.

        Raises:
            ValueError: the file is missing, was altered or is not a speaker index, or the index was made with another
                model or another similarity.
            ImportError: FAISS is needed but not installed.
        """
        source = _index_path(path)
        array, description = load_array(source, "embeddings")
        if description.get("kind") != INDEX_KIND:
            raise ValueError(
                f"{source} is not a speaker index: expected the kind {INDEX_KIND!r} in its description, got "
                f"{description.get('kind')!r}. Give a file that SpeakerIndex.save wrote."
            )
        index = cls.__new__(cls)
        index._keep(torch.from_numpy(np.array(array)), description["names"])
        index.similarity = Similarity(**description["similarity"])
        index.fingerprint, index.kind = description["fingerprint"], description["index"]
        index._check_model(model, source)
        if index.kind != "cells":
            index._engine = index._exact_engine(index._key_vectors(), use_faiss)
            return index
        cells = source.with_suffix(ENGINE_SUFFIX)
        if not cells.is_file() or hash_file(cells) != description["engine"]:
            state = "is missing" if not cells.is_file() else "was altered or belongs to another index"
            raise ValueError(
                f"{source} needs the file {cells}, which {state}. Copy both files together, or make the index again."
            )
        index._engine = FaissEngine.load(cells)
        return index

    def _check_model(self, model: ScoringModel, source: Path) -> None:
        if self.similarity != Similarity.of(model):
            raise ValueError(
                f"{source} was made with {self.similarity}, but the configuration of the model now declares "
                f"{Similarity.of(model)}. Make the index again."
            )
        check_same_model(self.fingerprint, model.fingerprint(), str(source), "enrol the speakers again")

    def _keep(self, embeddings: Tensor, names: Sequence[str] | None) -> None:
        embeddings = as_tensor(embeddings)
        if embeddings.ndim != 2 or 0 in embeddings.shape or not bool(embeddings.isfinite().all()):
            raise ValueError(
                "Expected embeddings of shape (N, D) without NaN or infinite values, with N and D at least 1, got the "
                f"shape {tuple(embeddings.shape)}."
            )
        if names is not None and len(names) != len(embeddings):
            raise ValueError(f"Expected {len(embeddings)} names, one for each embedding, got {len(names)}.")
        self._embeddings = embeddings.detach().cpu().float().contiguous()
        self.names = None if names is None else list(names)

    def _key_vectors(self) -> Tensor:
        rows = max(1, SCORED_AT_ONCE // self._embeddings.shape[1])
        blocks = [self.similarity.key_vectors(block) for block in self._embeddings.split(rows)]
        return torch.cat(blocks) if len(blocks) > 1 else blocks[0]

    def _exact_engine(self, keys: Tensor, use_faiss: bool | None) -> Engine:
        self._longest_key = float(torch.linalg.vector_norm(keys, dim=1).max())
        return FaissEngine.exact(keys) if use_faiss else TorchEngine(keys)

    def _search_block(self, queries: Tensor, k: int, count: int) -> SearchResult:
        vectors = self.similarity.query_vectors(queries)
        products, rows = self._engine.search(vectors, count)
        # Candidates are sorted by row number, so that equal scores stay in the order of the rows.
        rows = np.sort(rows, axis=1)
        chosen = torch.from_numpy(rows)
        scores = self.similarity.score(self._embeddings[chosen.clamp_min(0)], queries[:, None]).numpy()
        scores[rows < 0] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        result = SearchResult(np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1))
        if self.kind == "exact" and count < len(self):
            for row in np.flatnonzero(~self._proven(queries, vectors, result, products)):
                result.scores[row], result.rows[row] = self._brute_force(queries[row], k)
        return result

    def _proven(
        self, queries: Tensor, vectors: Tensor, result: SearchResult, products: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Return for each query whether `result` provably contains the nearest of all enrolled embeddings.

        Args:
            queries: query embeddings, `(Q, D)`.
            vectors: query vectors from which inner products are computed, `(Q, E)` float32.
            result: nearest candidates of each query.
            products: inner products of each query with all candidates, `(Q, candidates)` float32.

        Returns:
            `(Q,)` bool. False means that an embedding outside the candidates could be nearer.
        """
        last = self.similarity.product_of_score(torch.from_numpy(result.scores[:, -1:]), queries)[:, 0]
        error = rounding_bound(vectors.shape[1]) * self._longest_key * torch.linalg.vector_norm(vectors, dim=1).double()
        return (last > torch.from_numpy(products.min(axis=1)).double() + error).numpy()

    def _brute_force(self, query: Tensor, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        rows = max(1, SCORED_AT_ONCE // len(query))
        scores = torch.cat([self.similarity.score(block, query) for block in self._embeddings.split(rows)]).numpy()
        candidates = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
        found = candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
        return scores[found], found


def _index_path(path: str | os.PathLike[str]) -> Path:
    if Path(path).suffix != INDEX_SUFFIX:
        raise ValueError(f"The path of an index must end in {INDEX_SUFFIX}, got {os.fspath(path)!r}.")
    return Path(path)
