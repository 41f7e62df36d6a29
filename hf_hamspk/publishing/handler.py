"""The handler of Inference Endpoints; their toolkit looks for this file at the root of a repository.

    {"inputs": {"enrolment": BASE64 or [BASE64, ...], "test": BASE64}, "parameters": {"operating_point": "strict"}}

gives the score, the log-likelihood ratio, the decision and the warnings. A single recording, as `{"inputs": BASE64}` or
as a body of type `audio/*`, gives its embedding. Recordings are files of WAV, FLAC, OGG, Opus or MP3.

The toolkit answers an exception with status 400 and its message. Messages say what is wrong with the request; those of
internal errors give only an id, under which the log of the endpoint has the details.
"""

import base64
import binascii
import logging
import threading
import uuid
from typing import Any

from transformers import pipeline

LONGEST_SECONDS = 120.0
# All recordings of a request together, decoded from base64: two minutes of 48 kHz stereo in 16 bits.
LARGEST_BYTES = 24 << 20
LARGEST_ENROLMENT = 10
# Requests decoded and computed at once, each with up to a few hundred MB, and how long another request waits.
REQUESTS_AT_ONCE, PATIENCE_SECONDS = 2, 60.0
PARAMETERS = ("operating_point", "threshold", "combine")
_URL_SAFE = str.maketrans("-_", "+/")

logger = logging.getLogger(__name__)


class RequestError(ValueError):
    """A request that cannot be answered. The message is safe to show to the caller."""


class EndpointHandler:
    """Answers requests; may be called from several threads.

    Args:
        path: the folder of the model.
    """

    def __init__(self, path: str = ""):
        limits = {"seconds": LONGEST_SECONDS, "size": LARGEST_BYTES, "remote": False}
        # Its name is not among the overloads of transformers.
        make: Any = pipeline
        self.pipeline = make("speaker-verification", model=path, trust_remote_code=True, limits=limits)
        # Built now, so that the first request does not wait for it.
        _ = self.pipeline.verifier
        self._slots = threading.BoundedSemaphore(REQUESTS_AT_ONCE)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Answer a request.

        Args:
            data: the body: `inputs`, and optional `parameters`.

        Raises:
            RequestError: the request is invalid, or there are too many at once.
            RuntimeError: an internal error, with an id for the log.
        """
        try:
            inputs, parameters = _inputs(data), _parameters(data)
            if not self._slots.acquire(timeout=PATIENCE_SECONDS):
                raise RequestError("Too many requests at once; try again later.")
            try:
                return self._answer(inputs, parameters)
            finally:
                self._slots.release()
        except (RequestError, self.pipeline.input_error) as error:
            message = str(error)
        except Exception:
            number = uuid.uuid4().hex[:8]
            logger.exception("request %s failed", number)
            raise RuntimeError(f"The request failed by an internal error, id {number} in the log.") from None
        raise RequestError(message)

    def _answer(self, inputs: Any, parameters: dict[str, Any]) -> dict[str, Any]:
        room = [LARGEST_BYTES]
        if not isinstance(inputs, dict):
            answer = self.pipeline(_bytes(inputs, room), return_embeddings=True, **parameters)
            return answer | {"embedding": answer["embedding"].tolist()}
        if inputs.keys() != {"enrolment", "test"}:
            raise RequestError(
                f"inputs is an object with the keys {sorted(map(str, inputs))[:5]}; expected 'enrolment' and 'test'."
            )
        several = inputs["enrolment"] if isinstance(inputs["enrolment"], list) else [inputs["enrolment"]]
        if not 0 < len(several) <= LARGEST_ENROLMENT:
            raise RequestError(f"inputs has {len(several)} enrolment recordings; expected 1 to {LARGEST_ENROLMENT}.")
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
        # From a query, all but whole numbers come as text.
        try:
            parameters["threshold"] = float(parameters["threshold"])
        except ValueError:
            raise RequestError("threshold must be a number.") from None
    for name in ("operating_point", "combine"):
        if not isinstance(parameters.get(name, ""), str | None):
            raise RequestError(f"{name} must be a text.")
    return parameters


def _bytes(recording: Any, room: list[int]) -> bytes:
    """The bytes of an audio file, decoded if they are base64; `room` is the size that the request has left."""
    if isinstance(recording, str):
        _, comma, text = recording.partition(",") if recording.startswith("data:") else ("", ",", recording)
        if not comma:
            raise RequestError("A recording is a data URL without a comma; expected data:audio/...;base64,...")
        # Line breaks, as the tool `base64` makes them, are a seventieth of the text at most.
        if len(text) > room[0] * 4 // 3 * 76 // 75 + 4:
            raise RequestError(_TOO_LARGE)
        try:
            recording = base64.b64decode("".join(text.split()).translate(_URL_SAFE), validate=True)
        except (binascii.Error, ValueError):
            raise RequestError("A recording is no base64; expected the base64 of an audio file.") from None
    if not isinstance(recording, bytes | bytearray):
        raise RequestError(
            f"A recording is of type {type(recording).__name__}; expected the base64 of an audio file as text."
        )
    room[0] -= len(recording)
    if room[0] < 0:
        raise RequestError(_TOO_LARGE)
    return bytes(recording)


_TOO_LARGE = f"The recordings of a request may have {LARGEST_BYTES >> 20} MiB; send compressed or shorter ones."
