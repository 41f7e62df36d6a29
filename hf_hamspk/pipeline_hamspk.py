"""The pipeline of transformers for speaker verification.

verify = pipeline("speaker-verification", model="owner/name", trust_remote_code=True)
answer = verify(("enrolment.wav", "test.wav"))
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Pipeline, PreTrainedConfig
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .audio_hamspk import InputError, Limits, Sound, measure_sound, read_sound
from .geometry_hamspk import COMBINATIONS
from .verification_hamspk import SpeakerProfile, SpeakerVerifier, decision_rule, read_enrolment_side

TASK = "speaker-verification"
ENROLMENT, TEST = "enrolment", "test"
ERRORS = ("raise", "return")


@dataclass(frozen=True)
class _Pair:
    """A pair that was read; `enrolment` is None if only an embedding is requested."""

    enrolment: list[Sound] | SpeakerProfile | None
    test: Sound


class SpeakerVerificationPipeline(Pipeline):
    """Verifies pairs of recordings, or embeds recordings with `return_embeddings=True`.

    A recording is a path, a URL, the bytes of an audio file, an array or tensor of samples in [-1, 1], a decoder of
    torchcodec, or a dictionary: `{"array" or "raw", "sampling_rate"}` or `{"bytes", "path"}`, as in `datasets`.
    Channels are averaged, other sampling rates are resampled.

    Example:
        ```python
        from transformers import pipeline

        verify = pipeline("speaker-verification", model="model", trust_remote_code=True)
        print(verify(("enrolment.wav", "test.wav"))["decision"])
        ```

    Args:
        check_voices: whether long recordings are searched for several voices, which about doubles the time.
        onnx_file: file of `hamspk export` from which ONNX Runtime computes the embeddings: a path, or a name beside the
            weights.
        onnx_threads: threads of ONNX Runtime; None uses all cores.
        kwargs: arguments of transformers' pipelines, and defaults for the arguments of a call.
    """

    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_processor = False
    # What the caller can mend; any other error is internal.
    input_error = InputError

    def __init__(
        self,
        *args: Any,
        check_voices: bool = True,
        onnx_file: str | os.PathLike | None = None,
        onnx_threads: int | None = None,
        **kwargs: Any,
    ):
        self._verifier: SpeakerVerifier | None = None
        self._check_voices = check_voices
        super().__init__(*args, **kwargs)
        # transformers declares any model of its own.
        self.embedder: Any = self.model
        if onnx_file is not None:
            if not isinstance(onnx_file, str | os.PathLike):
                raise InputError(
                    f"onnx_file is {type(onnx_file).__name__}; expected a path, or a name beside the weights."
                )
            self.embedder = self.embedder.with_onnx(onnx_file, onnx_threads)

    @property
    def verifier(self) -> SpeakerVerifier:
        """Verifier, made at its first use; the weights must not change afterwards.

        Raises:
            ValueError: the calibration belongs to other weights.
        """
        if self._verifier is None:
            self._verifier = self.embedder.verifier(self._check_voices)
        return self._verifier  # pyright: ignore[reportReturnType]

    def __call__(self, inputs: Any, *more: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Verify pairs, or embed recordings.

        Args:
            inputs: a pair `(enrolment, test)` or `{"enrolment": ..., "test": ...}`, where the enrolment is a recording,
                a list of recordings of one speaker, or a speaker's profile; a list of pairs; or a stream of pairs (a
                generator, a data set). With `return_embeddings=True`, recordings take the place of pairs.
            kwargs:
                operating_point: name of an operating point of the calibration; the first one by default.
                threshold: threshold on the score instead. With neither calibration nor threshold nothing is decided.
                combine: `"mean"`, `"length_weighted"` or `"barycentre"`, for several enrolment recordings.
                return_embeddings: whether recordings are embedded instead.
                sampling_rate: rate of arrays that have none, in Hz; the model's by default, with a warning.
                errors: `"raise"`, or `"return"` for `{"error": message}` in place of an answer.
                limits: limits on each recording: `Limits`, or a dictionary with some of its fields.
                batch_size, num_workers: as in transformers, for lists and streams.

        Returns:
            The dictionary of a `Verification`; with `return_embeddings` one with `embedding` (`(D,)` float32), `speech`
            (seconds) and `warnings`. A list for a list, and a lazy iterator for a stream.

        Raises:
            InputError: an input cannot be used; in a list or stream the message begins with its position.
        """
        if more:
            raise InputError("Expected one input; give a pair as a tuple: verify((enrolment, test)).")
        if isinstance(inputs, list | tuple) and not inputs:
            # transformers looks at the first.
            return [] if isinstance(inputs, list) else _sides(inputs)
        return super().__call__((one for one in inputs) if _is_stream(inputs) else inputs, **kwargs)

    def _sanitize_parameters(
        self,
        operating_point: str | None = None,
        threshold: float | None = None,
        combine: str | None = None,
        return_embeddings: bool | None = None,
        sampling_rate: int | None = None,
        errors: str | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> tuple[dict, dict, dict]:
        if unknown:
            known = "operating_point, threshold, combine, return_embeddings, sampling_rate, errors, limits"
            raise InputError(f"This pipeline has no argument {', '.join(unknown)}; it takes {known}.")
        try:
            decision_rule(getattr(self.model, "calibration", None), operating_point, threshold)
        except ValueError as error:
            raise InputError(str(error)) from error
        for name, value, known in (("combine", combine, COMBINATIONS), ("errors", errors, ERRORS)):
            if value is not None and value not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
        if limits is not None and not isinstance(limits, Limits):
            limits = _make_limits(limits)
        reading = {"return_embeddings": return_embeddings, "sampling_rate": sampling_rate, "errors": errors}
        deciding = {"operating_point": operating_point, "threshold": threshold, "combine": combine}
        return _given(reading | {"limits": limits}), _given(deciding), {}

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_: Any,
        return_embeddings: bool = False,
        sampling_rate: int | None = None,
        errors: str = "raise",
        limits: Limits | None = None,
        position: int | None = None,
    ) -> "_Pair | InputError":
        """Read a pair or a recording."""
        rate = self.model.config.sampling_rate
        try:
            if return_embeddings:
                return _read_recording(input_, rate, limits, sampling_rate)
            enrolment, test = _sides(input_)
            enrolled = read_enrolment_side(enrolment, rate, limits, sampling_rate)
            return _Pair(enrolled, read_sound(test, rate, "The test", limits, sampling_rate))
        except ValueError as error:
            where = "" if position is None else f"Input {position}: "
            # Not kept in a variable: its traceback would hold the samples until garbage is collected.
            if errors == "raise":
                raise InputError(f"{where}{error}") from None
            return InputError(f"{where}{error}")

    def _forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_tensors: "list[_Pair | InputError]",
        operating_point: str | None = None,
        threshold: float | None = None,
        combine: str = "mean",
    ) -> list[dict[str, Any]]:
        pairs = [(one.enrolment, one.test) for one in input_tensors if isinstance(one, _Pair) and one.enrolment]
        decided = iter(self.verifier.verify_pairs(pairs, None, operating_point, threshold, combine))
        alone = [one.test for one in input_tensors if isinstance(one, _Pair) and one.enrolment is None]
        embedded = iter(self.embedder.embed_waveforms([sound.waveform for sound in alone]).cpu().float().numpy())
        answers = []
        for one in input_tensors:
            if isinstance(one, InputError):
                answers.append({"error": str(one)})
            elif one.enrolment is None:
                speech, warnings = measure_sound(one.test).speech, one.test.warnings
                answers.append({"embedding": next(embedded), "speech": speech, "warnings": warnings})
            else:
                answers.append(next(decided).to_dict())
        return answers

    def postprocess(self, model_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return model_outputs

    def run_single(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict
    ) -> dict[str, Any]:
        answers: Any = self.forward([self.preprocess(inputs, **preprocess_params)], **forward_params)
        return answers[0]

    def get_iterator(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs: Iterable,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Iterator[dict[str, Any]]:
        """Yield answers as transformers does, but with lists as batches: the model batches recordings by length."""
        numbered: Any = list(enumerate(inputs)) if isinstance(inputs, Sized) else enumerate(inputs)
        dataset = (PipelineDataset if isinstance(numbered, list) else PipelineIterator)(
            numbered, self._preprocess_numbered, preprocess_params
        )
        workers = num_workers if isinstance(numbered, list) else min(num_workers, 1)
        for batch in DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=list):
            answers: Any = self.forward(batch, **forward_params)
            yield from answers

    def _preprocess_numbered(self, numbered: tuple[int, Any], **parameters: Any) -> "_Pair | InputError":
        return self.preprocess(numbered[1], position=numbered[0], **parameters)


def announce_pipeline(config: PreTrainedConfig) -> None:
    """Name the pipeline in the configuration, where transformers looks for it."""
    pipeline = f"{__name__.rpartition('.')[2]}.{SpeakerVerificationPipeline.__name__}"
    config.custom_pipelines = {TASK: {"impl": pipeline, "pt": ["AutoModel"], "type": "audio"}}


def _read_recording(source: Any, rate: int, limits: Limits | None, sampling_rate: int | None) -> _Pair:
    """Read a recording that is to be embedded."""
    if isinstance(source, tuple) or (isinstance(source, Mapping) and ENROLMENT in source):
        raise InputError("With return_embeddings=True a recording is embedded; several are given as a list.")
    return _Pair(None, read_sound(source, rate, "The recording", limits, sampling_rate, strict=True))


def _sides(source: Any) -> tuple[Any, Any]:
    if isinstance(source, Mapping) and ENROLMENT in source and TEST in source:
        return source[ENROLMENT], source[TEST]
    if isinstance(source, list | tuple) and len(source) == 2:
        return source[0], source[1]
    what = f"{type(source).__name__} of {len(source)}" if isinstance(source, list | tuple) else type(source).__name__
    raise InputError(
        f"Expected a pair as a tuple (enrolment, test), or a dictionary with {ENROLMENT!r} and {TEST!r}; got {what}. A "
        "list is of several pairs; for the embedding of a recording, give return_embeddings=True."
    )


def _is_stream(inputs: Any) -> bool:
    """Return whether an input is an iterable that is read one by one."""
    ones = (str, bytes, bytearray, memoryview, os.PathLike, np.ndarray, torch.Tensor, list, tuple, Mapping)
    if isinstance(inputs, ones) or hasattr(inputs, "read") or hasattr(inputs, "get_all_samples"):
        return False
    return hasattr(inputs, "__iter__") or (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"))


def _given(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def _make_limits(fields: Any) -> Limits:
    if not isinstance(fields, Mapping):
        raise InputError(
            f"limits is {type(fields).__name__}; expected a dictionary with seconds, size, values, remote."
        )
    try:
        return Limits(**fields)
    except TypeError as error:
        given = ", ".join(map(str, fields))
        raise InputError(f"limits has the keys {given}; expected seconds, size, values, remote.") from error
