"""Speakers in PostgreSQL with the extension pgvector."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .stores import StoredRows

# Names of the tables and the index of this package. They are in the first schema of the search path.
MODEL_TABLE, SPEAKER_TABLE, CELL_INDEX = "hamspk_model", "hamspk_speakers", "hamspk_cells"


class PostgresDatabase:
    """Database in PostgreSQL; see `Database`. Each change is one transaction of the server."""

    def __init__(self, address: str):
        try:
            import pgvector.psycopg
            import psycopg
        except ImportError as error:
            raise ValueError(f"{error}. Run `pip install 'hf_hamspk[pgvector]'`.") from error
        try:
            self._connection: Any = psycopg.connect(address, autocommit=True)
            # A user with read access may not be allowed to create the extension, so it is created only if missing.
            found: Any = self._connection.execute("SELECT to_regtype('vector') IS NULL").fetchone()
            if found[0]:
                self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.Error as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"PostgreSQL with pgvector does not answer ({reason}). Check the address.") from error
        pgvector.psycopg.register_vector(self._connection)

    def describe(self) -> dict[str, Any] | None:
        """Return the description of the table; None if the table does not exist."""
        if not self._exists(MODEL_TABLE):
            return None
        import psycopg

        try:
            found = self._connection.execute(f"SELECT description FROM {MODEL_TABLE}").fetchone()
        except psycopg.Error:
            # The table has other columns, so another program created it.
            return {}
        return {} if found is None else json.loads(found[0]) | {"cells": self._exists(CELL_INDEX)}

    def create(self, description: dict[str, Any], size: int, length: int) -> None:
        """Create or replace the table, for embeddings of `size` values and keys of `length` values."""
        if self._exists(SPEAKER_TABLE) and not self._exists(MODEL_TABLE):
            raise ValueError(
                f"The database has a table {SPEAKER_TABLE} that this package did not create. Choose another schema "
                "with ?options=-csearch_path%3DNAME."
            )
        with self._connection.transaction():
            self._connection.execute(f"DROP TABLE IF EXISTS {MODEL_TABLE}, {SPEAKER_TABLE}")
            self._connection.execute(f"CREATE TABLE {MODEL_TABLE} (description text NOT NULL)")
            self._connection.execute(
                f"CREATE TABLE {SPEAKER_TABLE} (name text PRIMARY KEY, embedding vector({size}) NOT NULL, "
                f"key vector({length}) NOT NULL, profile text)"
            )
            self._connection.execute(f"INSERT INTO {MODEL_TABLE} VALUES (%s)", [json.dumps(description)])

    def count(self) -> int:
        """Return the number of speakers."""
        found: Any = self._connection.execute(f"SELECT count(*) FROM {SPEAKER_TABLE}").fetchone()
        return int(found[0])

    def insert(self, rows: StoredRows, can_replace: bool) -> None:
        """Add speakers. If `can_replace` is False and a speaker exists already, a ValueError names this speaker."""
        import psycopg

        values = zip(rows.names, rows.embeddings, np.asarray(rows.keys), rows.profiles, strict=True)
        try:
            with self._connection.transaction(), self._connection.cursor() as cursor:
                if can_replace:
                    cursor.execute(f"DELETE FROM {SPEAKER_TABLE} WHERE name = ANY(%s)", [rows.names])
                with cursor.copy(f"COPY {SPEAKER_TABLE} FROM STDIN WITH (FORMAT BINARY)") as copy:
                    copy.set_types(["text", "vector", "vector", "text"])
                    for row in values:
                        copy.write_row(row)
        except psycopg.errors.UniqueViolation as error:
            detail = str(error.diag.message_detail)
            name = detail.partition("=(")[2].rpartition(")")[0]
            raise ValueError(f"{name!r} is enrolled already. Choose another name.") from error

    def find(self, name: str) -> StoredRows:
        """Return the speaker with this name, without the key; no rows if the speaker does not exist."""
        select = f"SELECT name, embedding, profile FROM {SPEAKER_TABLE} WHERE name = %s"
        return _rows_of(self._connection.execute(select, [name]).fetchall(), 0)

    def nearest(self, vectors: NDArray[np.float32], count: int, probes: int | None) -> list[StoredRows]:
        """Return for each of the vectors `(Q, E)` the `count` speakers with the largest inner products."""
        found = []
        with self._connection.transaction(), self._connection.cursor(binary=True) as cursor:
            if probes is None:
                cursor.execute("SET LOCAL enable_indexscan = off")
            else:
                cursor.execute("SET LOCAL enable_seqscan = off")
                cursor.execute(f"SET LOCAL ivfflat.probes = {int(probes)}")
            for vector in vectors:
                # `<#>` is the negative inner product. A prepared statement would keep the plan of earlier settings.
                select = f"SELECT name, embedding, profile FROM {SPEAKER_TABLE} ORDER BY key <#> %s LIMIT %s"
                cursor.execute(select, [vector, count], prepare=False)
                found.append(_rows_of(cursor.fetchall(), len(vector)))
        return found

    def make_cells(self, cells: int) -> None:
        """Divide the keys into cells for approximate searches."""
        with self._connection.transaction():
            self._connection.execute(f"DROP INDEX IF EXISTS {CELL_INDEX}")
            # The default of 64 MB is enough only for the sample of keys of about 300 cells.
            self._connection.execute("SET LOCAL maintenance_work_mem = '1GB'")
            self._connection.execute(
                f"CREATE INDEX {CELL_INDEX} ON {SPEAKER_TABLE} USING ivfflat (key vector_ip_ops) "
                f"WITH (lists = {int(cells)})"
            )

    def _exists(self, relation: str) -> bool:
        found: Any = self._connection.execute("SELECT to_regclass(%s) IS NOT NULL", [relation]).fetchone()
        return bool(found[0])


def _rows_of(rows: list[Any], size_of_none: int) -> StoredRows:
    """Return rows of names, embeddings and profiles. `size_of_none` is the embedding size if there are no rows."""
    embeddings = [_as_array(row[1]) for row in rows]
    size = len(embeddings[0]) if embeddings else size_of_none
    values = np.array(embeddings, np.float32).reshape(len(rows), size)
    return StoredRows([row[0] for row in rows], values, None, [row[2] for row in rows])


def _as_array(vector: Any) -> NDArray[np.float32]:
    return vector if isinstance(vector, np.ndarray) else vector.to_numpy()
