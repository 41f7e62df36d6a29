"""Finding a model by its name: at once, without the network, and from the cache."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import settle, tiny_config

from hf_hamspk import HamSpkForXVector
from hf_hamspk.loading import names
from hf_hamspk.loading.models import load_model, quiet_transformers


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    settle(HamSpkForXVector(tiny_config())).save_pretrained(folder)
    return folder


def in_cache(home: Path, saved: Path) -> None:
    """Lay a model into the Hub's cache, as huggingface_hub does."""
    repository, commit = home / "hub" / "models--owner--tiny", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(saved, repository / "snapshots" / commit)


@contextlib.contextmanager
def broken_hub(close: bool) -> Iterator[tuple[int, list]]:
    """A port that closes each connection at once, or never answers; and the list of its connections."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        connections: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connections.append(server.accept()[0])
                    if close:
                        connections[-1].close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], connections


def process(code: str, home: Path, port: int) -> subprocess.CompletedProcess[str]:
    """A fresh process with a Hub at a port of this machine and a cache of its own."""
    kept = {k: v for k, v in os.environ.items() if "offline" not in k.lower() and "proxy" not in k.lower()}
    environment = kept | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=600)


MISSPELT = "import sys; from hf_hamspk.__main__ import main; sys.exit(main(['verify', 'owner/tiny', {0!r}, {0!r}]))"


def test_a_misspelt_name_without_network_is_answered_at_once(tmp_path):
    with broken_hub(close=True) as (port, connections):
        done = process(MISSPELT.format(__file__), tmp_path, port)
    assert len(connections) <= 2
    assert done.returncode == 2
    assert done.stderr.startswith(
        "hamspk: error: Model not found: owner/tiny. It is neither a folder nor in the local cache of the Hub"
    )
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_not_waited_for(tmp_path):
    code = f"from hf_hamspk.loading import names; names.HUB_SECONDS = 0.5\n{MISSPELT.format(__file__)}"
    with broken_hub(close=False) as (port, connections):
        done = process(code, tmp_path, port)
    assert "the Hub cannot be reached (" in done.stderr
    assert len(connections) <= 2


@pytest.mark.slow
def test_a_model_in_the_cache_loads_without_network(tmp_path, saved):
    in_cache(tmp_path, saved)
    code = "from hf_hamspk.loading.models import load_model; print(type(load_model('owner/tiny')).__name__)"
    with broken_hub(close=True) as (port, connections):
        done = process(code, tmp_path, port)
    assert len(connections) <= 2
    assert done.stdout == "HamSpkModel\n", done.stderr
    assert "onnection" not in done.stderr and "etry" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "header", "message"),
    [
        (401, "RepoNotFound", "Model not found: owner/x is neither a folder nor a model on the Hub. Give a folder"),
        (403, "GatedRepo", "Request access to owner/x on the Hub first"),
        (404, "EntryNotFound", "owner/x on the Hub is not a model: the repository contains no config.json"),
        (503, "", "the Hub cannot be reached (it answered with status 503)"),
    ],
)
def test_answers_of_the_hub_in_one_sentence(tmp_path, status, header, message):
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.send_header("X-Error-Code", header)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = "from hf_hamspk.loading.names import *\ntry: find_model('owner/x')\nexcept ValueError as e: print(e)"
    try:
        done = process(code, tmp_path, server.server_address[1])
    finally:
        server.shutdown()
    assert message in done.stdout, done.stderr


def test_offline_only_the_cache_is_read(monkeypatch):
    """The tests run with HF_HUB_OFFLINE."""
    monkeypatch.setattr(names, "_ask_hub", lambda name: pytest.fail("the Hub was asked"))
    with pytest.raises(ValueError, match=r"the Hub cannot be reached \(HF_HUB_OFFLINE is set\)"):
        load_model("owner/nope")


def test_a_folder_is_found_without_the_hub(saved, monkeypatch):
    monkeypatch.setattr(names, "_ask_hub", lambda name: pytest.fail("the Hub was asked"))
    assert names.find_model(str(saved))
    assert load_model(saved, "cpu").config.embedding_size == 24


def test_transformers_is_as_talkative_afterwards_as_before():
    from transformers.utils import logging

    before = logging.get_verbosity()
    with pytest.raises(KeyError), quiet_transformers():
        assert logging.get_verbosity() == logging.ERROR
        raise KeyError
    assert logging.get_verbosity() == before
