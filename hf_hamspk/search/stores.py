"""Enrolled speakers in a database (LanceDB, or PostgreSQL with pgvector), also more than fit into memory.

For each speaker, the database contains the name, the embedding, the profile and a key. The key is a vector: sorting the
speakers by the inner products of their keys with a query vector is the same as sorting them by score (see `products`).
The database also contains the fingerprint and the similarity of the model. With another model, it cannot be opened. The
database selects the candidates with the largest inner products in float32. The candidates are then scored in float64
with the similarity of the model, and sorted.

Letters in shapes: `N` speakers, `Q` queries, `D` embedding size, `E` size of the keys.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..audio_hamspk import InputError
from ..calibration_hamspk import check_same_model
from ..folders.addresses import LANCE_ADDRESS, POSTGRES_ADDRESSES
from ..geometry_hamspk import as_tensor
from ..verification_hamspk import Identification, SpeakerProfile
from .index import CANDIDATES_PER_NEIGHBOUR, MORE_CANDIDATES, SpeakerIndex
from .products import ScoringModel, Similarity

STORE_KIND = "speaker store"
# Number of speakers that are written in one transaction.
SPEAKERS_AT_ONCE = 20_000
# Number of speakers that `identify` compares with a recording.
COMPARED_SPEAKERS = 100


class StoredRows(NamedTuple):
    """Rows of a database: names of speakers, embeddings `(N, D)` and keys `(N, E)` in float32, and profiles.

    A profile is JSON text, or None. The rows that a search returns have no keys.
    """

    names: list[str]
    embeddings: NDArray[np.float32]
    keys: NDArray[np.float32] | None
    profiles: list[str | None]


class Database(Protocol):
    """Table of speakers in a database. Each change is one transaction. An interrupted change has no effect."""

    def describe(self) -> dict[str, Any] | None:
        """Return the description of the table; None if the table does not exist."""
        ...

    def create(self, description: dict[str, Any], size: int, length: int) -> None:
        """Create or replace the table, for embeddings of `size` values and keys of `length` values."""
        ...

    def count(self) -> int:
        """Return the number of speakers."""
        ...

    def insert(self, rows: StoredRows, can_replace: bool) -> None:
        """Add speakers. If `can_replace` is False and a speaker exists already, a ValueError names this speaker."""
        ...

    def find(self, name: str) -> StoredRows:
        """Return the speaker with this name, without the key; no rows if the speaker does not exist."""
        ...

    def nearest(self, vectors: NDArray[np.float32], count: int, probes: int | None) -> list[StoredRows]:
        """Return for each of the vectors `(Q, E)` the `count` speakers with the largest inner products.

        If `probes` is None, all speakers are compared; otherwise those in the `probes` cells nearest to the vector.
        """
        ...

    def make_cells(self, cells: int) -> None:
        """Divide the keys into cells for approximate searches."""
        ...


class StoredSpeakers(NamedTuple):
    """Result of a search in a database. For each query, it contains the k nearest speakers, nearest first.

    Attributes:
        scores: for each query, the scores of the model in float64, at most k.
        names: for each query, the names of the speakers.
        profiles: for each query, the profiles of the speakers; None for a speaker that was added as an embedding.
    """

    scores: list[NDArray[np.float64]]
    names: list[list[str]]
    profiles: list[list[SpeakerProfile | None]]


def open_database(address: str) -> Database:
    """Connect to the database at an address, `lancedb://FOLDER` or `postgresql://USER@HOST/NAME`.

    Raises:
        ValueError: the address has another form, the package for the database is not installed, or the server does not
            answer.
    """
    if address.startswith(LANCE_ADDRESS):
        from .lance import LanceDatabase

        return LanceDatabase(address.removeprefix(LANCE_ADDRESS))
    if address.startswith(POSTGRES_ADDRESSES):
        from .postgres import PostgresDatabase

        return PostgresDatabase(address)
    raise ValueError(f"Expected lancedb://FOLDER or postgresql://USER@HOST/NAME, got {address!r}.")


class SpeakerStore:
    """Speakers enrolled with one model, in LanceDB (extra `lancedb`) or PostgreSQL (extra `pgvector`).

    Example:
        ```python
        from hf_hamspk.search import SpeakerStore

        store = SpeakerStore.open("lancedb://speakers", model, create=True)
        store.add(torch.randn(2, model.config.embedding_size), ["anna", "ben"])
        print(store.search(torch.randn(1, model.config.embedding_size), k=1).names)
        ```
    """

    def __init__(self, database: Database, model: ScoringModel, address: str):
        self._database, self._model, self.address = database, model, address
        self.similarity, self.has_cells = Similarity.of(model), False

    @classmethod
    def open(cls, address: str, model: ScoringModel, create: bool = False) -> "SpeakerStore":
        """Open the speakers at an address.

        Args:
            address: `lancedb://FOLDER` or `postgresql://USER@HOST/NAME`. FOLDER may be on an object store, such as
                `s3://bucket/speakers`. The second form is the address that `psql` takes.
            model: model that computed the embeddings.
            create: whether to create the table if it does not exist.

        Raises:
            ValueError: the table does not exist, was made with another model or another similarity, or the database
                cannot be used.
        """
        database = open_database(address)
        store, found = cls(database, model, address), database.describe()
        if found is None:
            if not create:
                raise ValueError(
                    f"No speakers in {address}. Enrol them with `hamspk enrol MODEL ... --profiles {address}`."
                )
            store._create()
            return store
        if found.get("kind") != STORE_KIND:
            raise ValueError(f"The table in {address} was not written by this package. Use another address.")
        check_same_model(
            found["fingerprint"], model.fingerprint(), f"The table in {address}", "enrol the speakers again"
        )
        if Similarity(**found["similarity"]) != store.similarity:
            raise ValueError(
                f"{address} was made with {Similarity(**found['similarity'])}, but the configuration of the model now "
                f"declares {store.similarity}. Enrol the speakers again."
            )
        store.has_cells = bool(found.get("cells"))
        return store

    @classmethod
    def of_index(cls, address: str, model: ScoringModel, index: SpeakerIndex) -> "SpeakerStore":
        """Write the speakers of an index to a new or empty table. The index must contain names.

        Raises:
            ValueError: the index has no names or was made with another model, or the table contains speakers already.
        """
        check_same_model(index.fingerprint, model.fingerprint(), "The index", "make the index again")
        if index.names is None:
            raise ValueError("The index has no names, and a database needs them. Make the index with names.")
        store = cls.open(address, model, create=True)
        store.add(index.embeddings, index.names)
        return store

    def reenrol(self, model: ScoringModel, profiles: Iterable[SpeakerProfile]) -> "SpeakerStore":
        """Replace all speakers by the profiles of another model, for example after further training of the model.

        If the call is interrupted, the table contains some of the new profiles and none of the old ones.

        Args:
            model: model that made the new profiles.
            profiles: new profiles of all speakers. A generator can make them one by one.
        """
        store = SpeakerStore(self._database, model, self.address)
        profiles = list(profiles)
        for profile in profiles:
            profile.check_model(model.fingerprint())
        store._create()
        store.add_profiles(profiles)
        return store

    def __len__(self) -> int:
        """Return the number of speakers."""
        return self._database.count()

    def add(self, embeddings: Tensor, names: Sequence[str], can_replace: bool = False) -> None:
        """Add speakers as embeddings `(N, D)`. They are stored permanently when this method returns.

        Raises:
            ValueError: the embeddings or names are invalid, or a speaker exists already and `can_replace` is False. In
                the second case, speakers that come earlier in the list may have been added.
        """
        self._add(embeddings, list(names), [None] * len(names), can_replace)

    def add_profiles(self, profiles: Sequence[SpeakerProfile], can_replace: bool = False) -> None:
        """Add speakers as profiles with names.

        `identify` needs profiles, because they contain quality measures, which a calibration may use.

        Raises:
            ValueError: a profile has no name or was made by another model; see also `add`.
        """
        fingerprint = self._model.fingerprint()
        for profile in profiles:
            profile.check_model(fingerprint)
            if profile.name is None:
                raise ValueError("A profile has no name. Give the name when you enrol the speaker.")
        if profiles:
            fields = [{key: x for key, x in vars(one).items() if key != "embedding"} for one in profiles]
            embeddings = torch.stack([one.embedding for one in profiles])
            self._add(embeddings, [str(one.name) for one in profiles], [json.dumps(one) for one in fields], can_replace)

    def find(self, name: str) -> SpeakerProfile | None:
        """Return the profile of a speaker; None if the speaker does not exist or has no profile."""
        rows = self._database.find(name)
        return _read_profile(rows.profiles[0], rows.embeddings[0]) if rows.names else None

    def make_cells(self, cells: int | None = None) -> None:
        """Divide the speakers into cells for approximate searches. Speakers that are added later are also found.

        Args:
            cells: number of cells; None means about sqrt(N).
        """
        count = len(self)
        cells = max(1, round(count**0.5)) if cells is None else cells
        if not 1 <= cells <= max(1, count):
            raise ValueError(f"cells must be from 1 to {max(1, count)}, got {cells}.")
        self._database.make_cells(cells)
        self.has_cells = True

    def search(self, queries: Tensor, k: int = 10, probes: int | None = None) -> StoredSpeakers:
        """Find the `k` nearest speakers of each query.

        Args:
            queries: query embeddings of the same model, `(Q, D)`, finite.
            k: number of results per query, at least 1.
            probes: number of cells that an approximate search visits; `make_cells` must have been called before. None
                compares all speakers.

        Raises:
            ValueError: the queries have another shape or are not finite, or `k` or `probes` is below 1.
        """
        queries = _checked(queries, self._model.config.embedding_size)
        if k < 1 or (probes is not None and (probes < 1 or not self.has_cells)):
            raise ValueError(
                f"k and probes must be at least 1, got k={k} and probes={probes}. Call `make_cells` before a search "
                "with probes."
            )
        count = CANDIDATES_PER_NEIGHBOUR * k + MORE_CANDIDATES
        found = self._database.nearest(self.similarity.query_vectors(queries).numpy(), count, probes)
        ranked = [self._rank(*one, k) for one in zip(queries, found, strict=True)]
        return StoredSpeakers([one[0] for one in ranked], [one[1] for one in ranked], [one[2] for one in ranked])

    def identify(
        self, recording: Any, sampling_rate: int | None = None, check_voices: bool | str = True, **options: Any
    ) -> Identification:
        """Identify the speaker of a recording among all stored speakers.

        Only the hundred speakers with the highest scores are compared with the recording, in the same way as in
        `SpeakerModelMixin.identify`. The likelihood ratio of "one of the enrolled speakers" is the sum of the hundred
        likelihood ratios, divided by the number of all stored speakers. Including the other speakers would usually
        increase this value by less than the smallest of the hundred likelihood ratios.

        Args:
            recording: recording that `read_sound` accepts.
            sampling_rate: sampling rate in Hz, if the recording is an array without one.
            check_voices: see `SpeakerModelMixin.identifier`.
            options: further arguments of `SpeakerIdentifier.identify`, such as operating_point and candidates.

        Raises:
            ValueError: the store is empty or contains embeddings without profiles; see also `SpeakerIdentifier`.
        """
        model: Any = self._model
        try:
            query = model.embed([recording], sampling_rate)
        except InputError:
            # Silence has no embedding, and the answer for silence does not depend on the speakers. Other errors are
            # raised below.
            query = torch.ones(1, model.config.embedding_size)
        near = self.search(query, COMPARED_SPEAKERS)
        profiles = [one for one in near.profiles[0] if one is not None]
        if not profiles or len(profiles) < len(near.names[0]):
            raise ValueError(
                f"Of the speakers in {self.address} that are nearest to this recording, {len(profiles)} have a profile "
                f"and {len(near.names[0]) - len(profiles)} have none. Enrol speakers with `hamspk enrol`."
            )
        identifier = model.identifier(profiles, check_voices)
        identifier.enrolled = len(self)
        return identifier.identify([recording], sampling_rate, **options)[0]

    def _create(self) -> None:
        size = self._model.config.embedding_size
        length = self.similarity.key_vectors(torch.ones(1, size)).shape[1]
        description = {"kind": STORE_KIND, "fingerprint": self._model.fingerprint()}
        self._database.create(description | {"similarity": self.similarity._asdict()}, size, length)

    def _add(self, embeddings: Tensor, names: list[str], profiles: list[str | None], can_replace: bool) -> None:
        embeddings = _checked(embeddings, self._model.config.embedding_size)
        if len(names) != len(embeddings) or len(set(names)) < len(names) or not all(names):
            raise ValueError(f"Expected {len(embeddings)} different names, one for each embedding, got {len(names)}.")
        for start in range(0, len(names), SPEAKERS_AT_ONCE):
            at = slice(start, start + SPEAKERS_AT_ONCE)
            keys = self.similarity.key_vectors(embeddings[at]).numpy()
            self._database.insert(StoredRows(names[at], embeddings[at].numpy(), keys, profiles[at]), can_replace)

    def _rank(
        self, query: Tensor, found: StoredRows, k: int
    ) -> tuple[NDArray[np.float64], list[str], list[SpeakerProfile | None]]:
        scores = self.similarity.score(torch.from_numpy(found.embeddings), query).numpy()
        # Equal scores are sorted by name, because databases return rows in any order.
        order = sorted(range(len(scores)), key=lambda row: (-scores[row], found.names[row]))[:k]
        names = [found.names[row] for row in order]
        return scores[order], names, [_read_profile(found.profiles[row], found.embeddings[row]) for row in order]


def _checked(embeddings: Tensor, size: int) -> Tensor:
    embeddings = as_tensor(embeddings).detach().cpu().float()
    if embeddings.ndim != 2 or embeddings.shape[1] != size or not bool(embeddings.isfinite().all()):
        raise ValueError(
            f"Expected embeddings of shape (N, {size}) without NaN or infinite values, got the shape "
            f"{tuple(embeddings.shape)}."
        )
    return embeddings.contiguous()


def _read_profile(text: str | None, embedding: NDArray[np.float32]) -> SpeakerProfile | None:
    if text is None:
        return None
    fields: Any = {key: tuple(x) if isinstance(x, list) else x for key, x in json.loads(text).items()}
    return SpeakerProfile(embedding=torch.from_numpy(embedding.copy()), **fields)
