"""Request handler for Inference Endpoints, whose toolkit expects this file at the root of a repository.

A verification request is

    {"inputs": {"enrolment": BASE64 or [BASE64, ...], "test": BASE64}, "parameters": {"operating_point": "strict"}}

The answer contains the score, the log-likelihood ratio, the decision and the warnings. A request with one recording, as
`{"inputs": BASE64}` or as a body of type `audio/*`, is answered with the embedding of the recording. Recordings are
WAV, FLAC, OGG, Opus or MP3 files.

If the handler raises an exception, the toolkit answers with status 400 and the message of the exception. For an invalid
request, the message explains the problem. For an internal error, the message contains only an id, and the log of the
endpoint contains the details under this id.
"""

import base64
import binascii
import logging
import os
import threading
import uuid
from typing import Any

from transformers import pipeline

LONGEST_SECONDS = 120.0
# Limit for the total size of the recordings in a request after base64 decoding: two minutes of 16-bit stereo at 48 kHz.
LARGEST_BYTES = 24 << 20
# Limit for the decoded samples of a recording times its channels, more than two minutes of stereo at 48 kHz.
LARGEST_VALUES = 1 << 24
LARGEST_ENROLMENT = 10
# Largest number of characters in an error message, which may repeat a part of the request.
LONGEST_MESSAGE = 500
# Number of requests processed at once, and the longest time that a further request waits. Besides its body, a request
# needs at most 400 MB to read and measure its recordings, and the memory of the encoder for 120 s of audio.
REQUESTS_AT_ONCE, PATIENCE_SECONDS = 2, 60.0
# Environment variable with the name of a file of `hamspk export` beside the weights, which then computes embeddings.
ONNX_VARIABLE = "HAMSPK_ONNX_FILE"
PARAMETERS = ("operating_point", "threshold", "combine", "check_voices")
_URL_SAFE = str.maketrans("-_", "+/")

logger = logging.getLogger(__name__)


class RequestError(ValueError):
    """Error for a request that cannot be answered. Its message is safe to show to the caller."""


class EndpointHandler:
    """Handler that answers requests. Several threads may call it at the same time.

    Args:
        path: folder of the model.
    """

    def __init__(self, path: str = ""):
        limits = {"seconds": LONGEST_SECONDS, "size": LARGEST_BYTES, "values": LARGEST_VALUES, "remote": False}
        file = os.environ.get(ONNX_VARIABLE, "")
        options = {"onnx_file": file} if file else {}
        # The overloads of transformers' `pipeline` do not include this task.
        make: Any = pipeline
        self.pipeline = make("speaker-verification", model=path, trust_remote_code=True, limits=limits, **options)
        # Build the verifier now, so that the first request does not wait for it.
        _ = self.pipeline.verifier
        self._slots = threading.BoundedSemaphore(REQUESTS_AT_ONCE)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Answer a request.

        Args:
            data: body of the request, with `inputs` and optional `parameters`.

        Returns:
            The answer to a verification, or the embedding of a single recording, in a form that JSON can store.

        Raises:
            RequestError: the request is invalid, or too many requests are running.
            RuntimeError: an internal error occurred; the message contains the id of its entry in the log.
        """
        try:
            inputs, parameters = _inputs(data), _parameters(data)
            if not self._slots.acquire(timeout=PATIENCE_SECONDS):
                raise RequestError("Too many requests are running. Try again later.")
            try:
                return self._answer(inputs, parameters)
            finally:
                self._slots.release()
        except (RequestError, self.pipeline.input_error) as error:
            message = str(error)
            message = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}..."
        except Exception:
            number = uuid.uuid4().hex[:8]
            logger.exception("request %s failed", number)
            raise RuntimeError(
                f"The request failed because of an internal error. The log describes it under the id {number}."
            ) from None
        raise RequestError(message)

    def _answer(self, inputs: Any, parameters: dict[str, Any]) -> dict[str, Any]:
        room = [LARGEST_BYTES]
        if not isinstance(inputs, dict):
            answer = self.pipeline(_bytes(inputs, room), return_embeddings=True, **parameters)
            return answer | {"embedding": answer["embedding"].tolist()}
        if inputs.keys() != {"enrolment", "test"}:
            raise RequestError(f"inputs must have the keys 'enrolment' and 'test', got {sorted(map(str, inputs))[:5]}.")
        several = inputs["enrolment"] if isinstance(inputs["enrolment"], list) else [inputs["enrolment"]]
        if not 0 < len(several) <= LARGEST_ENROLMENT:
            raise RequestError(f"Expected 1 to {LARGEST_ENROLMENT} enrolment recordings in inputs, got {len(several)}.")
        pair = ([_bytes(one, room) for one in several], _bytes(inputs["test"], room))
        return self.pipeline(pair, **parameters)


def _inputs(data: Any) -> Any:
    if not isinstance(data, dict) or "inputs" not in data:
        raise RequestError("Expected an object with 'inputs', or a body of type audio/*.")
    return data["inputs"]


def _parameters(data: dict[str, Any]) -> dict[str, Any]:
    given = data.get("parameters")
    if given is None:
        return {}
    if not isinstance(given, dict) or not given.keys() <= set(PARAMETERS):
        raise RequestError(f"parameters must be an object with some of {', '.join(PARAMETERS)}.")
    parameters = dict(given)
    if isinstance(parameters.get("threshold"), str):
        # The toolkit passes decimal numbers from a URL query as text.
        try:
            parameters["threshold"] = float(parameters["threshold"])
        except ValueError:
            raise RequestError("threshold must be a number.") from None
    for name in ("operating_point", "combine"):
        if not isinstance(parameters.get(name, ""), str | None):
            raise RequestError(f"{name} must be a string.")
    return parameters


def _bytes(recording: Any, room: list[int]) -> bytes:
    """Return the bytes of an audio file, decoded from base64 if necessary, and subtract their number from `room`.

    Args:
        recording: base64 text, data URL, or bytes.
        room: list with one entry, the number of bytes left for this and the following recordings of the request.

    Raises:
        RequestError: the recording is invalid or too large.
    """
    if isinstance(recording, str):
        _, comma, text = recording.partition(",") if recording.startswith("data:") else ("", ",", recording)
        if not comma:
            raise RequestError(
                "Expected a data URL data:audio/...;base64,... for a recording, got one without a comma."
            )
        # The command `base64` breaks the text into lines of 76 characters, so it may be longer by one part in 75.
        if len(text) > room[0] * 4 // 3 * 76 // 75 + 4:
            raise RequestError(_TOO_LARGE)
        try:
            recording = base64.b64decode("".join(text.split()).translate(_URL_SAFE), validate=True)
        except (binascii.Error, ValueError):
            raise RequestError("Expected an audio file in base64 for each recording, got invalid base64.") from None
    if not isinstance(recording, bytes | bytearray):
        raise RequestError(
            f"Expected an audio file in base64, as text, for each recording, got type {type(recording).__name__}."
        )
    room[0] -= len(recording)
    if room[0] < 0:
        raise RequestError(_TOO_LARGE)
    return bytes(recording)


_TOO_LARGE = (
    f"The recordings of a request must not exceed {LARGEST_BYTES >> 20} MiB in total. Compress or shorten them."
)
