"""The handler of an endpoint, called as the toolkit calls it: what it answers, what it refuses, what it never tells."""

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bombs import refused_bombs
from card_recordings import voices
from strange_recordings import damaged_files, file_bytes, odd_bytes, silent_bomb
from strangers import without
from tiny_models import RATE

from hf_hamspk import HamSpkModel
from hf_hamspk.publishing.contents import HANDLER, plan_upload

# As the toolkit serves: the body is read whole, an exception is an answer with status 400 and its message.
SERVER = (
    without("hf_hamspk")
    + """
import importlib.util, json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import torch

torch.set_num_threads(1)
folder = sys.argv[1]
sys.path.insert(0, folder)
spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)

class Serve(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            is_audio = self.headers["Content-Type"].startswith("audio/")
            data = {"inputs": body} if is_audio else json.loads(body)
            if "inputs" not in data:
                raise ValueError("Body needs to provide a inputs key")
            status, answer = 200, json.dumps(handler(data))
        except Exception as error:
            status, answer = 400, json.dumps({"error": str(error)})
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *args):
        pass

class Server(ThreadingHTTPServer):
    request_queue_size = 100

server = Server(("127.0.0.1", 0), Serve)
print(server.server_port, flush=True)
server.serve_forever()
"""
)


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def pushed(trained, tmp_path_factory) -> Path:
    """The folder as it is on the Hub."""
    folder = tmp_path_factory.mktemp("pushed")
    for file in plan_upload(trained[0], "tester/tiny").files:
        (folder / file.name).parent.mkdir(exist_ok=True)
        (folder / file.name).write_bytes(file.read())
    return folder


@pytest.fixture(scope="module")
def handler(pushed):
    spec = importlib.util.spec_from_file_location("handler", pushed / HANDLER.name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(pushed))


def test_it_is_published_with_what_it_needs(pushed):
    assert (pushed / "handler.py").read_bytes() == HANDLER.read_bytes()
    assert re.match(r"soundfile\b", (pushed / "requirements.txt").read_text())


@pytest.mark.slow
def test_a_pair_and_a_recording(handler, pushed):
    enrolment, test = voices()
    model = HamSpkModel.from_pretrained(pushed)
    first, second = (file_bytes(wave, RATE, "WAV", "FLOAT") for wave in (enrolment, test))
    answer = handler({"inputs": {"enrolment": text_of(first), "test": text_of(second)}})
    expected = model.verifier().verify([enrolment], test, RATE).to_dict()
    assert json.loads(json.dumps(answer)) == expected
    # As `base64 FILE` and as a URL have it.
    lines = base64.encodebytes(first).decode()
    assert handler({"inputs": {"enrolment": lines, "test": base64.urlsafe_b64encode(second).decode()}}) == answer
    parameters = {"operating_point": "strict"}
    answer = handler({"inputs": {"enrolment": [text_of(first)], "test": text_of(second)}, "parameters": parameters})
    assert answer["operating_point"] == "strict"
    answer = handler(
        {"inputs": {"enrolment": text_of(first), "test": text_of(second)}, "parameters": {"threshold": "0.5"}}
    )
    assert answer["threshold"] == 0.5
    for body in (first, text_of(first), "data:audio/wav;base64," + text_of(first)):
        embedding = json.loads(json.dumps(handler({"inputs": body})))["embedding"]
        np.testing.assert_allclose(embedding, model.embed([enrolment], RATE)[0].numpy(), rtol=1e-5, atol=1e-7)


SPEECH = text_of(file_bytes(voices()[0]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "an object with 'inputs'"),
        ([1], "an object with 'inputs'"),
        ({"inputs": None}, "type NoneType"),
        ({"inputs": 5}, "type int"),
        ({"inputs": "/etc/passwd"}, "cannot be decoded|invalid base64"),
        ({"inputs": "http://127.0.0.1/a.wav"}, "invalid base64"),
        ({"inputs": {"enrolment": SPEECH}}, "must have the keys 'enrolment' and 'test'"),
        ({"inputs": {"enrolment": SPEECH, "test": SPEECH, "more": 1}}, "must have the keys 'enrolment' and 'test'"),
        ({"inputs": {"enrolment": [], "test": SPEECH}}, "enrolment recordings in inputs, got 0"),
        ({"inputs": {"enrolment": [SPEECH] * 11, "test": SPEECH}}, "enrolment recordings in inputs, got 11"),
        ({"inputs": {"enrolment": {"path": "/etc/passwd"}, "test": SPEECH}}, "type dict"),
        ({"inputs": {"enrolment": SPEECH, "test": "A" * (40 << 20)}}, "24 MiB"),
        ({"inputs": bytes(25 << 20)}, "24 MiB"),
        ({"inputs": silent_bomb(121, 16_000)}, "lasts 121 s; expected at most 120 s"),
        ({"inputs": SPEECH, "parameters": 5}, "parameters must be an object"),
        ({"inputs": SPEECH, "parameters": {"onnx_file": "a"}}, "parameters must be an object"),
        ({"inputs": SPEECH, "parameters": {"threshold": "high"}}, "threshold must be a number"),
        ({"inputs": SPEECH, "parameters": {"operating_point": ["strict"]}}, "operating_point must be a string"),
        ({"inputs": SPEECH, "parameters": {"operating_point": "bold"}}, "There is no operating point 'bold'"),
    ],
)
def test_requests_that_cannot_be_answered(handler, data, message):
    with pytest.raises(ValueError, match=message) as error:
        handler(data)
    assert type(error.value).__name__ == "RequestError"
    assert error.value.__cause__ is None and error.value.__context__ is None


def test_an_internal_error_is_told_by_its_id_only(handler, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise OSError("/root/secret/model.safetensors: no such file")

    monkeypatch.setattr(handler, "pipeline", type("P", (), {"input_error": ValueError, "__call__": fail})())
    with pytest.raises(
        RuntimeError,
        match=r"^The request failed because of an internal error\. The log describes it under the id \w{8}\.$",
    ) as error:
        handler({"inputs": SPEECH})
    assert error.value.__cause__ is None
    assert "secret" in caplog.text and str(error.value).split()[-1].rstrip(".") in caplog.text


def post(url: str, body: bytes, kind: str = "application/json") -> tuple[int, dict]:
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def peak_memory(process: subprocess.Popen) -> int:
    """The most that a process has held so far, in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) >> 10


@pytest.fixture(scope="module")
def endpoint(pushed, tmp_path_factory):
    """A process that serves the pushed folder and cannot see this package: its address, and itself."""
    home = tmp_path_factory.mktemp("endpoint")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    with open(home / "log.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(pushed)],
            env=environment,
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            port = process.stdout.readline().strip()
            assert port, (home / "log.txt").read_text()
            yield f"http://127.0.0.1:{port}/", process
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def requests() -> list[tuple[str, bytes, str]]:
    """Two hundred requests with strange recordings: raw bodies, and one side of a pair."""
    files = [*odd_bytes(), *damaged_files(200)][:200]
    found = []
    for number, (name, content) in enumerate(files):
        if number % 3 == 0:
            found.append((name, content, "audio/flac"))
            continue
        sides = (
            {"enrolment": text_of(content), "test": SPEECH}
            if number % 3 == 1
            else {"enrolment": [SPEECH], "test": text_of(content)}
        )
        found.append((name, json.dumps({"inputs": sides}).encode(), "application/json"))
    return found


def assert_clear(name: str, status: int, answer: dict) -> None:
    """An answer with a score, an embedding or a reason, or an error that says what and tells nothing else."""
    if status == 200:
        assert answer.get("score") is not None or "embedding" in answer or answer["warnings"], name
        return
    assert status == 400 and answer.keys() == {"error"} and len(answer["error"]) > 20, (name, answer)
    assert not re.search(r"/\w+/|\.py\b|Traceback|line \d|0x[0-9a-f]{6}|internal error", answer["error"]), (
        name,
        answer,
    )


@pytest.mark.slow
def test_two_hundred_strange_requests_over_http(endpoint):
    url, process = endpoint
    outcomes = []
    for name, body, kind in requests():
        status, answer = post(url, body, kind)
        assert_clear(name, status, answer)
        outcomes.append(status)
    assert len(outcomes) == 200 and set(outcomes) == {200, 400}
    assert process.poll() is None


@pytest.mark.slow
def test_a_hundred_requests_at_once_in_bounded_memory(endpoint):
    url, process = endpoint
    pair = json.dumps({"inputs": {"enrolment": SPEECH, "test": SPEECH}}).encode()
    # The largest that is decoded to its end: 61 MB of samples from a few kB.
    largest = silent_bomb(120, 128_000)
    bombs = [largest, *(content for _, content in refused_bombs())]
    # Ten recordings of two minutes, each 7.7 MB at 16 kHz.
    minutes = file_bytes(np.resize(voices()[0], 120 * RATE), RATE, "OGG", "VORBIS")
    ten = {"enrolment": [text_of(minutes)] * 10, "test": SPEECH}
    assert all(len(bomb) < 2 << 20 for bomb in bombs)
    post(url, pair)
    before = peak_memory(process)
    kinds = {
        "pair": (pair, "application/json"),
        "many": (json.dumps({"inputs": ten}).encode(), "application/json"),
        **{f"bomb {number}": (bomb, "audio/flac") for number, bomb in enumerate(bombs)},
    }
    order = ["many", *(["pair", *(name for name in kinds if "bomb" in name)] * 15)][:100]
    bodies = sum(len(kinds[name][0]) for name in order) >> 20
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda name: post(url, *kinds[name]), order))
    for name, (status, answer) in zip(order, answers, strict=True):
        if status == 400:
            said = answer["error"]
            refused = "no sound|lasts .* expected at most" if "bomb" in name else "Too many requests are running"
            assert re.search(f"{refused}|Too many requests are running", said), (name, said)
        else:
            assert "bomb" not in name and answer["decision"] == "same speaker"
    assert {status for status, _ in answers} == {200, 400}
    # Two requests at a time, each of which may take what the handler's comment says; the bodies of the others wait.
    assert peak_memory(process) - before < 2 * 400 + 3 * bodies + 200


@pytest.mark.parametrize("long", ["x" * (1 << 20), "\N{GRINNING FACE}" * 400_000])
def test_a_message_does_not_repeat_a_long_request(handler, long):
    for data in (
        {"inputs": SPEECH, "parameters": {"operating_point": long}},
        {"inputs": SPEECH, "parameters": {"combine": long}},
        {"inputs": SPEECH, "parameters": {"threshold": long}},
        {"inputs": SPEECH, "parameters": {long: 1}},
        {"inputs": {long: SPEECH, "test": SPEECH}},
        {"inputs": {"enrolment": SPEECH, "test": long}},
        {"inputs": "data:" + long},
    ):
        with pytest.raises(ValueError) as error:
            handler(data)
        assert 20 < len(str(error.value)) < 600
