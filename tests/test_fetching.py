"""Fetching a recording from a URL: where redirects may lead, and how long it may take in all."""

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
from tiny_models import RATE

from hf_hamspk import audio_hamspk
from hf_hamspk.audio_hamspk import InputError, Limits, read_sound
from hf_hamspk.data.synthetic import make_speech

ELSEWHERE = {
    "/to-ftp": "ftp://localhost/speech.wav",
    "/to-file": "file:///etc/hostname",
    "/to-data": "data:audio/wav;base64,UklGRg==",
    "/to-gopher": "gopher://localhost/speech.wav",
    "/round": "/round",
    "/near": "/speech.wav",
}


def speech_file() -> bytes:
    """A WAV file of 0.5 s."""
    buffer = io.BytesIO()
    soundfile.write(buffer, make_speech(1, 1, 0.5), RATE, format="WAV")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server whose paths say how it answers."""
    content, closing = speech_file(), threading.Event()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/slow-header":
                self._trickle(b"HTTP/1.0 200 OK\r\nX: " + bytes(9999))
                return
            if self.path in ELSEWHERE or self.path == "/absolute":
                self.send_response(302)
                here = f"HTTP://{self.headers['Host']}/speech.wav"
                self.send_header("Location", ELSEWHERE.get(self.path, here))
                self.end_headers()
                return
            self.send_response(404 if self.path == "/missing" else 200)
            if self.path == "/short":
                self.send_header("Content-Length", str(2 * len(content)))
            self.end_headers()
            if self.path == "/slow-body":
                self._trickle(content)
            else:
                self.wfile.write(content)

        def _trickle(self, words: bytes) -> None:
            for byte in words:
                if closing.wait(0.05):
                    return
                self.wfile.write(bytes([byte]))

        def log_message(self, *words) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        closing.set()
        serving.shutdown()


@pytest.mark.parametrize("path", ["/speech.wav", "/near", "/absolute"])
def test_a_recording_is_fetched(server, path):
    sound = read_sound(server + path, RATE)
    np.testing.assert_array_equal(sound.waveform, read_sound(speech_file(), RATE).waveform)


@pytest.mark.parametrize("path", ["/to-ftp", "/to-file", "/to-data", "/to-gopher"])
def test_a_redirect_stays_on_the_web(server, path):
    with pytest.raises(InputError, match=r"cannot be fetched \((redirected to ftp|the server answered 302)"):
        read_sound(server + path, RATE)


@pytest.mark.parametrize(
    ("path", "words"), [("/missing", "the server answered 404"), ("/round", "the server answered 302")]
)
def test_an_answer_without_a_file(server, path, words):
    with pytest.raises(InputError, match=words):
        read_sound(server + path, RATE)


@pytest.mark.parametrize("path", ["/slow-body", "/slow-header"])
def test_all_reads_together_have_a_time_limit(server, path, monkeypatch):
    """No single read is slow."""
    monkeypatch.setattr(audio_hamspk, "LONGEST_FETCH", 0.5)
    with pytest.raises(InputError, match=r"cannot be fetched \(not complete after"):
        read_sound(server + path, RATE)


def test_no_more_is_fetched_than_the_limit(server):
    with pytest.raises(InputError, match="is larger than 0 MiB"):
        read_sound(server + "/speech.wav", RATE, limits=Limits(size=1000))


def test_a_connection_that_breaks_gives_a_recording_that_is_cut_short(server):
    sound = read_sound(server + "/short", RATE)
    assert len(sound.waveform) == RATE // 2
    with pytest.raises(InputError, match="cannot be fetched"):
        read_sound("http://127.0.0.1:9/speech.wav", RATE)
