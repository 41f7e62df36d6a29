"""Pipeline of transformers for speaker verification.

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

from .audio_hamspk import Channel, InputError, Limits, Sound, choose_channel, measure_speech, read_sound
from .calibration_hamspk import decision_rule
from .geometry_hamspk import COMBINATIONS
from .verification_hamspk import SpeakerProfile, SpeakerVerifier, pieces_warnings, read_enrolment_side, speech_detector

TASK = "speaker-verification"
ENROLMENT, TEST = "enrolment", "test"
ERRORS = ("raise", "return")


@dataclass(frozen=True)
class _Pair:
    """Recordings of a pair; `enrolment` is None if only the embedding of `test` is requested."""

    enrolment: list[Sound] | SpeakerProfile | None
    test: Sound


class SpeakerVerificationPipeline(Pipeline):
    """Pipeline that verifies pairs of recordings, or embeds recordings with `return_embeddings=True`.

    A recording is a path, a URL, the bytes of an audio file, an array, or another input that `read_sound` accepts. It
    is resampled to the sampling rate of the model.

    Example:
        ```python
        from transformers import pipeline

        verify = pipeline("speaker-verification", model="model", trust_remote_code=True)
        print(verify(("enrolment.wav", "test.wav"))["decision"])
        ```

    Args:
        check_voices: whether to check recordings for several voices, or "refuse"; see `SpeakerModelMixin.verify`.
        onnx_file: file that `hamspk export` wrote, used to compute embeddings with ONNX Runtime. It is a path, or the
            name of a file in the folder of the weights.
        onnx_threads: number of threads of ONNX Runtime; None uses all cores.
        embedder: speaker model that embeds instead of `model`, such as the result of `hf_hamspk.backends.with_backend`.
        kwargs: arguments of `transformers.Pipeline`, and default values for the arguments of `__call__`.
    """

    _load_tokenizer = _load_feature_extractor = _load_processor = False
    _load_image_processor = _load_video_processor = False
    # Errors that the caller can correct; all others are internal.
    input_error = InputError

    def __init__(
        self,
        *args: Any,
        check_voices: bool | str = True,
        onnx_file: str | os.PathLike | None = None,
        onnx_threads: int | None = None,
        embedder: Any = None,
        **kwargs: Any,
    ):
        self._verifier: SpeakerVerifier | None = None
        self._check_voices = check_voices
        super().__init__(*args, **kwargs)
        # The type that transformers declares for `self.model` has no speaker methods.
        self.embedder: Any = self.model if embedder is None else embedder
        if onnx_file is not None:
            if not isinstance(onnx_file, str | os.PathLike):
                raise InputError(f"onnx_file must be a path or a file name, got {type(onnx_file).__name__}.")
            self.embedder = self.embedder.with_onnx(onnx_file, onnx_threads)

    @property
    def verifier(self) -> SpeakerVerifier:
        """Verifier, created on first access; the weights must not change afterwards."""
        if self._verifier is None:
            self._verifier = self.embedder.verifier(self._check_voices)
        return self._verifier  # pyright: ignore[reportReturnType]

    def __call__(self, inputs: Any, *more: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Verify pairs of recordings, or embed recordings.

        Args:
            inputs: one pair, a list of pairs, or a stream of pairs (a generator or a data set). A pair is a tuple
                `(enrolment, test)` or a dictionary with the keys "enrolment" and "test". The enrolment is a recording,
                a list of recordings of one speaker, or a profile. With `return_embeddings=True`, the inputs are single
                recordings instead of pairs.
            kwargs:
                operating_point, threshold, combine, sampling_rate, channel: see `SpeakerModelMixin.verify`.
                return_embeddings: whether to return embeddings instead of decisions.
                errors: `"raise"`, or `"return"` to return `{"error": message}` for an input that cannot be used.
                limits: limits on each recording, a `Limits` or a dictionary with some of its fields.
                check_voices: replaces the value that was given to the pipeline.
                batch_size, num_workers: batch size and number of loader processes for lists and streams.

        Returns:
            Dictionary with the fields of `Verification`. With `return_embeddings`, it has the keys `embedding` (`(D,)`
            float32), `speech` (in seconds) and `warnings`. A list of inputs gives a list. A stream gives an iterator.

        Raises:
            InputError: an input cannot be used. For a list or stream, the message begins with the input's position.
        """
        if more:
            raise InputError("Expected one input, got several. Give a pair as a tuple: verify((enrolment, test)).")
        if isinstance(inputs, list | tuple) and not inputs:
            # transformers would access the first element.
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
        channel: Channel = None,
        check_voices: bool | str | None = None,
        **unknown: Any,
    ) -> tuple[dict, dict, dict]:
        if unknown:
            known = "operating_point, threshold, combine, return_embeddings, sampling_rate, errors, limits, channel"
            raise InputError(f"Unknown argument {', '.join(unknown)}; expected {known}, check_voices.")
        try:
            # With ONNX Runtime, the calibration may not apply.
            decider: Any = getattr(self, "embedder", self.model)
            decision_rule(getattr(decider, "calibration", None), operating_point, threshold)
            _ = check_voices if check_voices is None else decider.verifier(check_voices)
        except ValueError as error:
            raise InputError(str(error)) from error
        for name, value, known in (("combine", combine, COMBINATIONS), ("errors", errors, ERRORS)):
            if value is not None and value not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
        if limits is not None or channel is not None:
            limits = choose_channel(limits, channel)
        reading = {"return_embeddings": return_embeddings, "sampling_rate": sampling_rate, "errors": errors}
        deciding = {"operating_point": operating_point, "threshold": threshold, "combine": combine}
        groups = (reading | {"limits": limits}, deciding | {"check_voices": check_voices})
        given = [{name: value for name, value in group.items() if value is not None} for group in groups]
        return given[0], given[1], {}

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_: Any,
        return_embeddings: bool = False,
        sampling_rate: int | None = None,
        errors: str = "raise",
        limits: Limits | None = None,
        position: int | None = None,
    ) -> "_Pair | InputError":
        """Read the recordings of a pair, or one recording to embed."""
        rate = self.model.config.sampling_rate
        try:
            if return_embeddings:
                if isinstance(input_, tuple) or (isinstance(input_, Mapping) and ENROLMENT in input_):
                    said = "With return_embeddings=True, expected a recording or a list of recordings, got a pair."
                    raise InputError(said)
                return _Pair(None, read_sound(input_, rate, "The recording", limits, sampling_rate, strict=True))
            enrolment, test = _sides(input_)
            enrolled = read_enrolment_side(enrolment, rate, limits, sampling_rate)
            return _Pair(enrolled, read_sound(test, rate, "The test", limits, sampling_rate))
        except ValueError as error:
            where = "" if position is None else f"Input {position}: "
            # No variable may refer to the new error: its traceback would keep the samples in memory for longer.
            if errors == "raise":
                raise InputError(f"{where}{error}") from None
            return InputError(f"{where}{error}")

    def _forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_tensors: "list[_Pair | InputError]",
        operating_point: str | None = None,
        threshold: float | None = None,
        combine: str = "mean",
        check_voices: bool | str | None = None,
    ) -> list[dict[str, Any]]:
        verifier = self.verifier if check_voices is None else self.embedder.verifier(check_voices)
        pairs = [(one.enrolment, one.test) for one in input_tensors if isinstance(one, _Pair) and one.enrolment]
        decided = iter(verifier.verify_pairs(pairs, None, operating_point, threshold, combine))
        alone = [one.test for one in input_tensors if isinstance(one, _Pair) and one.enrolment is None]
        embedded = iter(self.embedder.embed_waveforms([sound.waveform for sound in alone]).cpu().float().numpy())
        answers = []
        for one in input_tensors:
            if isinstance(one, InputError):
                answers.append({"error": str(one)})
            elif one.enrolment is None:
                sound, longest = one.test, self.model.config.longest_piece
                vad = speech_detector(self.embedder, getattr(self.embedder, "calibration", None))
                speech = measure_speech(sound.waveform, sound.sampling_rate, vad).speech
                warnings = [*sound.warnings, *pieces_warnings(sound.duration, "The recording", longest)]
                if verifier.check_voices and verifier.detector is not None:
                    warnings += verifier.detector.warnings(sound, "The recording")
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
        """Yield one answer for each input. Unlike in transformers, a batch is a list: the model itself pads it."""
        numbered: Any = list(enumerate(inputs)) if isinstance(inputs, Sized) else enumerate(inputs)
        kind = PipelineDataset if isinstance(numbered, list) else PipelineIterator
        dataset = kind(numbered, self._preprocess_numbered, preprocess_params)
        workers = num_workers if isinstance(numbered, list) else min(num_workers, 1)
        for batch in DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=list):
            answers: Any = self.forward(batch, **forward_params)
            yield from answers

    def _preprocess_numbered(self, numbered: tuple[int, Any], **parameters: Any) -> "_Pair | InputError":
        return self.preprocess(numbered[1], position=numbered[0], **parameters)


def announce_pipeline(config: PreTrainedConfig) -> None:
    """Add the pipeline to `config.custom_pipelines`, so that transformers finds it."""
    pipeline = f"{__name__.rpartition('.')[2]}.{SpeakerVerificationPipeline.__name__}"
    config.custom_pipelines = {TASK: {"impl": pipeline, "pt": ["AutoModel"], "type": "audio"}}


def _sides(source: Any) -> tuple[Any, Any]:
    if isinstance(source, Mapping) and ENROLMENT in source and TEST in source:
        return source[ENROLMENT], source[TEST]
    if isinstance(source, list | tuple) and len(source) == 2:
        return source[0], source[1]
    what = f"{type(source).__name__} of {len(source)}" if isinstance(source, list | tuple) else type(source).__name__
    raise InputError(
        f"Expected a pair as a tuple (enrolment, test), or a dictionary with {ENROLMENT!r} and {TEST!r}, got {what}. "
        "Give several pairs as a list. To embed a recording, set return_embeddings=True."
    )


def _is_stream(inputs: Any) -> bool:
    """Return whether the input is a stream of pairs or recordings, such as a generator or a data set."""
    ones = (str, bytes, bytearray, memoryview, os.PathLike, np.ndarray, torch.Tensor, list, tuple, Mapping)
    if isinstance(inputs, ones) or hasattr(inputs, "read") or hasattr(inputs, "get_all_samples"):
        return False
    return hasattr(inputs, "__iter__") or (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"))
