"""Streaming over HTTP from a server that drops connections, cuts answers short and answers 5xx at random."""

import random
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from small_shards import make_shards

from hf_hamspk.audio_hamspk import InputError
from hf_hamspk.data.dataset import SpeakerCrops
from hf_hamspk.shards.fetching import RangesError, Retry
from hf_hamspk.shards.reading import ShardReader
from hf_hamspk.shards.streaming import ShardUtterances, StreamedBatches

MOST_FAULTS = 3
"""For the same bytes and all clients together, so that each client with more attempts gets through."""

PATIENT = Retry(attempts=MOST_FAULTS + 1, first_pause=0.001, longest_pause=0.002)


class Server(ThreadingHTTPServer):
    """Serves a folder, with ranges; requests fail with this probability, at most `MOST_FAULTS` for the same bytes."""

    def __init__(self, folder: Path, faults: float):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.faults = folder, faults
        self.draws, self.lock = random.Random(0), threading.Lock()
        self.failed: Counter = Counter()
        self.faulted = 0
        self.ranges = True
        self.dead: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, path: str, span: str | None) -> str | None:
        with self.lock:
            if path in self.dead:
                return "busy"
            if self.failed[path, span] < MOST_FAULTS and self.draws.random() < self.faults:
                self.failed[path, span] += 1
                self.faulted += 1
                return self.draws.choice(["busy", "broken", "drop", "cut"])
            return None


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        fault = self.server.fault(self.path, span)
        file = self.server.folder / self.path.lstrip("/")
        if fault == "drop":
            self.close_connection = True
            return
        if fault in ("busy", "broken") or not file.is_file():
            self.send_response(404 if fault is None else 503 if fault == "busy" else 500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = file.read_bytes()
        if span is not None and self.server.ranges:
            start, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", span).groups())
            content = content[start : end + 1]
        self.send_response(206 if span is not None and self.server.ranges else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        self.close_connection = fault == "cut"

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def serve(tmp_path):
    """A function: start a server of the folder."""
    started = []

    def start(faults: float) -> Server:
        server = Server(tmp_path, faults)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.shutdown()
        server.server_close()
        thread.join()


def batches_of(source, workers=0, retry=PATIENT):
    utterances = ShardUtterances(ShardReader(source, retry))
    label_of = {speaker: label for label, speaker in enumerate(utterances.speakers)}
    return StreamedBatches(SpeakerCrops(utterances, label_of, 1_600, 0), 4, num_workers=workers)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("container", ["parquet", "webdataset"])
def test_an_epoch_over_a_bad_line_is_the_epoch_from_the_disk(tmp_path, serve, container, workers):
    make_shards(tmp_path, [[5, 4], [6], [3, 5, 2], [7]], container)
    server = serve(faults=0.5)
    streamed = batches_of(server.url, workers)
    found, wanted = list(streamed), list(batches_of(tmp_path))
    assert len(found) == len(wanted) == 8
    for one, two in zip(found, wanted, strict=True):
        assert torch.equal(one["input_values"], two["input_values"]) and torch.equal(one["labels"], two["labels"])
    crops = Counter(crop.numpy().tobytes() for batch in found for crop in batch["input_values"])
    assert len(crops) == 32 and set(crops.values()) == {1}, "nothing lost, nothing doubled"
    assert streamed.crops.failures == {}
    assert server.faulted > 3


def test_a_shard_that_stays_broken_is_reported_and_replaced(tmp_path, serve):
    make_shards(tmp_path, [[5, 4], [6], [3, 5, 2], [7]])
    server = serve(faults=0.2)
    server.dead.add("/shard-00001-of-00004.parquet")
    streamed = batches_of(server.url)
    found, wanted = list(streamed), list(batches_of(tmp_path))
    assert [len(batch["labels"]) for batch in found] == [4] * 8
    same = sum(
        torch.equal(crop, other)
        for one, two in zip(found, wanted, strict=True)
        for crop, other in zip(one["input_values"], two["input_values"], strict=True)
    )
    assert same == 32 - 6
    (failure,) = streamed.crops.failures.items()
    assert failure[0] == "shard-00001-of-00004.parquet, group 0"
    assert re.match(r"cannot be fetched: 4 attempts failed \(ClientResponseError: 503", failure[1])


@pytest.mark.parametrize("container", ["parquet", "webdataset"])
def test_a_server_that_ignores_ranges_is_named_at_once(tmp_path, serve, container):
    make_shards(tmp_path, [[3], [3], [3]], container)
    server = serve(faults=0.0)
    server.ranges = False
    with pytest.raises(RangesError, match=r"cannot be streamed from: its server ignores requests for a part of a file"):
        list(batches_of(server.url, retry=Retry()))


def test_a_folder_that_is_not_there(tmp_path, serve):
    server = serve(faults=0.0)
    with pytest.raises(InputError, match=r"manifest.json: cannot be read \(FileNotFoundError"):
        ShardReader(server.url + "/nowhere", PATIENT)


def test_a_manifest_from_afar_names_no_files_elsewhere(tmp_path, serve):
    make_shards(tmp_path, [[3]])
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace("shard-00000-of-00001.parquet", "file:///etc/hosts"))
    server = serve(faults=0.0)
    with pytest.raises(InputError, match="a remote manifest may only name files in its own folder"):
        ShardReader(server.url, PATIENT).read(0)
