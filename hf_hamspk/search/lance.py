"""Speakers in LanceDB, an embedded database whose files lie in a folder or on an object store."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .stores import StoredRows

TABLE, DESCRIPTION = "speakers", b"hf_hamspk"
# Number of queries in one search.
QUERIES_AT_ONCE = 64


class LanceDatabase:
    """Database in LanceDB; see `Database`. Each change makes a new version of the table, in one transaction."""

    def __init__(self, folder: str):
        try:
            import lancedb
        except ImportError as error:
            raise ValueError("LanceDB is not installed. Run `pip install 'hf_hamspk[lancedb]'`.") from error
        if not folder:
            raise ValueError("Expected lancedb://FOLDER, got an address without a folder.")
        self._folder = folder
        self._table: Any = None
        # Connecting creates a missing local folder, so only `create` connects to one.
        if "://" in folder or Path(folder).expanduser().is_dir():
            connection = lancedb.connect(folder)
            if TABLE in connection.list_tables().tables:
                self._table = connection.open_table(TABLE)

    def describe(self) -> dict[str, Any] | None:
        """Return the description of the table; None if the table does not exist."""
        if self._table is None:
            return None
        found = (self._table.schema.metadata or {}).get(DESCRIPTION)
        return {} if found is None else json.loads(found) | {"cells": bool(self._table.list_indices())}

    def create(self, description: dict[str, Any], size: int, length: int) -> None:
        """Create or replace the table, for embeddings of `size` values and keys of `length` values."""
        import lancedb
        import pyarrow

        columns = [("name", pyarrow.string()), ("embedding", pyarrow.list_(pyarrow.float32(), size))]
        columns += [("key", pyarrow.list_(pyarrow.float32(), length)), ("profile", pyarrow.string())]
        schema = pyarrow.schema(columns, metadata={DESCRIPTION: json.dumps(description).encode()})
        mode = "create" if self._table is None else "overwrite"
        self._table = lancedb.connect(self._folder).create_table(TABLE, schema=schema, mode=mode)

    def count(self) -> int:
        """Return the number of speakers."""
        return self._table.count_rows()

    def insert(self, rows: StoredRows, can_replace: bool) -> None:
        """Add speakers. If `can_replace` is False and a speaker exists already, a ValueError names this speaker."""
        import pyarrow
        from pyarrow import compute

        def vectors(values: NDArray[np.float32]) -> Any:
            return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.ravel()), values.shape[1])

        columns = {"name": rows.names, "embedding": vectors(rows.embeddings), "key": vectors(np.asarray(rows.keys))}
        columns["profile"] = pyarrow.array(rows.profiles, pyarrow.string())
        data = pyarrow.table(columns)
        known = self._table.search().select(["name"]).limit(max(1, self.count())).to_arrow()["name"]
        is_known = compute.is_in(data["name"], value_set=known.combine_chunks())  # pyright: ignore[reportAttributeAccessIssue]
        both = data["name"].filter(is_known)
        if not len(both):
            self._table.add(data)
        elif can_replace:
            merge = self._table.merge_insert("name").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(data)
        else:
            raise ValueError(f"{both[0].as_py()!r} is enrolled already. Choose another name.")

    def find(self, name: str) -> StoredRows:
        """Return the speaker with this name, without the key; no rows if the speaker does not exist."""
        quoted = name.replace("'", "''")
        query = self._table.search().where(f"name = '{quoted}'").select(["name", "embedding", "profile"])
        return _as_rows(query.limit(1).to_arrow())

    def nearest(self, vectors: NDArray[np.float32], count: int, probes: int | None) -> list[StoredRows]:
        """Return for each of the vectors `(Q, E)` the `count` speakers with the largest inner products."""
        found = []
        for start in range(0, len(vectors), QUERIES_AT_ONCE):
            block = vectors[start : start + QUERIES_AT_ONCE]
            # One vector is repeated, because LanceDB returns no query numbers if there is only one vector.
            query = self._table.search([*block, block[0]], vector_column_name="key").distance_type("dot")
            query = query.bypass_vector_index() if probes is None else query.nprobes(probes)
            table = query.select(["name", "embedding", "profile", "_distance"]).limit(count).to_arrow()
            numbers = table["query_index"].to_numpy()
            for number in range(len(block)):
                found.append(_as_rows(table.take(np.flatnonzero(numbers == number))))
        return found

    def make_cells(self, cells: int) -> None:
        """Divide the keys into cells for approximate searches."""
        from lancedb.index import IvfFlat

        self._table.create_index("key", config=IvfFlat(distance_type="dot", num_partitions=cells), replace=True)


def _as_rows(table: Any) -> StoredRows:
    embeddings = table["embedding"].combine_chunks()
    values = np.array(embeddings.flatten(), np.float32).reshape(len(table), embeddings.type.list_size)
    return StoredRows(table["name"].to_pylist(), values, None, table["profile"].to_pylist())
