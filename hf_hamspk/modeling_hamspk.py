"""Speaker models: `HamSpkModel` embeds waveforms, `HamSpkForXVector` adds the training head, and `OnnxSpeakerModel`
embeds with ONNX Runtime. All of them inherit the inference methods of `SpeakerModelMixin`.

Symbols in shapes: `B` batch size or number of enrolment embeddings, `L` samples, `T` frames, `C` channels, `D`
embedding size, `K` number of speakers or of test embeddings, `N` recordings.
"""

import hashlib
import math
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, Wav2Vec2FeatureExtractor
from transformers import initialization as init
from transformers.modeling_outputs import XVectorOutput
from transformers.utils import logging
from transformers.utils.generic import ModelOutput
from transformers.utils.hub import cached_file

from .audio_hamspk import SHORTEST_SECONDS, Channel, InputError, Limits, Vad, choose_channel, speech_weights
from .calibration_hamspk import CALIBRATION_FILE, COHORT_FILE, Calibration, Cohort, OperatingPoint, is_same_model
from .configuration_hamspk import HamSpkConfig
from .encoders_hamspk import OVERLAP_FILE, OnnxEncoder, OverlapDetector, make_encoder, make_frontend, subsampled
from .geometry_hamspk import (
    CosineSimilarity,
    HyperbolicSimilarity,
    LinearSimilarity,
    as_tensor,
    length_mask,
    magnitude,
    mean_direction,
    score,
    score_matrix,
)
from .networks_hamspk import (
    FactorisedAttentivePooling,
    FilterBank,
    LayerMix,
    batch_norm,
    keep_valid,
    make_head,
    make_pooling,
)
from .pipeline_hamspk import announce_pipeline
from .verification_hamspk import (
    Comparison,
    Identification,
    SpeakerIdentifier,
    SpeakerProfile,
    SpeakerVerifier,
    Verification,
    read_recording,
)

# Seconds of audio, including padding, in one forward pass of `embed`.
BATCH_SECONDS = 120.0
# Largest share of padding in a batch: computing more padding than this costs more than another batch.
MOST_PADDING = 0.1
# Seconds of audio that `embed` reads before it computes the embeddings.
HELD_SECONDS = 600.0
# Lock for the number of threads that embed with a model. The model is in evaluation mode while it is above 0.
MODE_LOCK = threading.Lock()
# Arguments of `from_pretrained` that determine where a file is found.
FETCHING_ARGUMENTS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")
# Rest of a warning about a calibration.
NOT_APPLICABLE = (
    "does not apply to quantised or float16 weights. The model gives scores but no decisions. For decisions, load the "
    "model in float32 or bfloat16, or calibrate these weights."
)

logger = logging.get_logger(__name__)


class SpeakerModelMixin(nn.Module):
    """Inference methods of all models: embed, score, enrol, verify, identify and compare.

    Attributes:
        calibration, cohort: calibration of the model and its cohort; None if it has none.
        vad: detector of speech that replaces the detector of this package; see `measure_speech`. Set it before
            calibrating, and whenever a model that was calibrated with it is loaded. It is not saved.
        overlap_detector: detector of two people who speak at once, loaded and saved with the model; None if missing.
    """

    config: HamSpkConfig
    device: torch.device
    base_model: nn.Module
    calibration: Calibration | None = None
    cohort: Cohort | None = None
    vad: Vad = None
    overlap_detector: OverlapDetector | None = None
    _known_fingerprint: tuple[Any, str] | None = None
    _embedding_threads, _was_training = 0, False

    def embed(
        self,
        recordings: Iterable[Any],
        sampling_rate: int | None = None,
        batch_seconds: float = BATCH_SECONDS,
        limits: Limits | None = None,
        channel: Channel = None,
    ) -> Tensor:
        """Embed recordings of any length and sampling rate in evaluation mode, batched by length.

        At any time, at most about ten minutes of audio and one more recording are in memory. Long recordings are
        embedded in pieces; see `embed_waveforms`.

        Args:
            recordings: paths, arrays, dictionaries or other inputs that `read_sound` accepts.
            batch_seconds: seconds of audio, including padding, in one forward pass.
            sampling_rate, limits, channel: see `verify`. Arrays without a sampling rate cause no warning.

        Returns:
            Embeddings `(N, D)` in the order of the input, float32 on the model's device, each independent of the rest.

        Raises:
            InputError: a recording is unreadable, truncated, silent or shorter than 0.1 s. The message contains the
                number of the recording, counted from 1.
        """
        if isinstance(recordings, str | bytes | os.PathLike | dict):
            raise InputError(f"embed expects a list of recordings, got one ({type(recordings).__name__})")
        rate, limits = self.config.sampling_rate, choose_channel(limits, channel)
        assumed = rate if sampling_rate is None else sampling_rate
        rows, held, warnings = [], [], []
        for number, one in enumerate(recordings, 1):
            sound = read_recording(one, rate, f"Recording {number}", limits, assumed, strict=True)
            held.append(sound.waveform)
            warnings += sound.warnings
            if sum(map(len, held)) > HELD_SECONDS * rate:
                rows.append(self.embed_waveforms(held, batch_seconds))
                held = []
        if warnings:
            more = f" ({len(warnings) - 1} more warnings about other recordings)" if len(warnings) > 1 else ""
            logger.warning(f"{warnings[0]}{more}")
        return torch.cat([*rows, self.embed_waveforms(held, batch_seconds)])

    def embed_waveforms(self, waveforms: Sequence[np.ndarray], batch_seconds: float = BATCH_SECONDS) -> Tensor:
        """Embed waveforms that `read_sound` returned; like `embed`, return `(N, D)` float32.

        A recording of more than `config.longest_piece` seconds is cut into pieces of equal length, each at most this
        long. The embedding of the recording is the `mean_direction` of the embeddings of its pieces, weighted by their
        seconds of speech. Several threads may embed at the same time, but the model must not be trained meanwhile.

        Args:
            waveforms: finite float32 waveforms `(L,)` at the model's sampling rate. They are not checked.
            batch_seconds: seconds of audio, including padding, in one forward pass; a longer piece forms its own batch.
        """
        rate = self.config.sampling_rate
        counts = [math.ceil(len(waveform) / (self.config.longest_piece * rate)) for waveform in waveforms]
        pieces = [np.array_split(waveform, max(1, count)) for waveform, count in zip(waveforms, counts, strict=True)]
        embeddings = self._embed_pieces([piece for own in pieces for piece in own], int(batch_seconds * rate))
        if len(embeddings) == len(pieces):
            return embeddings
        logger.warning_once(f"Recordings longer than {self.config.longest_piece:g} s are embedded in pieces.")
        parts = zip(pieces, embeddings.split([len(own) for own in pieces]), strict=True)
        weighted = [(part, torch.tensor(speech_weights(own, rate))) for own, part in parts]
        return torch.stack([part[0] if len(part) == 1 else mean_direction(part, shares) for part, shares in weighted])

    def _embed_pieces(self, waveforms: Sequence[np.ndarray], budget: int) -> Tensor:
        tensors = [torch.from_numpy(np.ascontiguousarray(waveform)) for waveform in waveforms]
        sizes = [len(tensor) for tensor in tensors]
        embeddings = torch.empty(len(tensors), self.config.embedding_size, device=self.device)
        with self._evaluating(), torch.inference_mode():
            for batch in length_batches(sizes, budget):
                lengths = torch.tensor([sizes[i] for i in batch])
                values = nn.utils.rnn.pad_sequence([tensors[i] for i in batch], batch_first=True).to(self.device)
                is_padded = lengths[0] != lengths[-1]
                mask = length_mask(lengths, values.shape[1]).to(self.device) if is_padded else None
                embeddings[batch] = self.base_model(values, attention_mask=mask).embeddings.float()
        return embeddings

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Keep the model in evaluation mode while any thread embeds, and then restore the earlier mode."""
        with MODE_LOCK:
            if self._embedding_threads == 0:
                self._was_training = self.base_model.training
                self.base_model.eval()
            self._embedding_threads += 1
        try:
            yield
        finally:
            with MODE_LOCK:
                self._embedding_threads -= 1
                if self._embedding_threads == 0:
                    self.base_model.train(self._was_training)

    def enrol(
        self,
        recordings: Sequence[Any],
        name: str | None = None,
        combine: str = "mean",
        sampling_rate: int | None = None,
        limits: Limits | None = None,
        channel: Channel = None,
        check_voices: bool | str = True,
    ) -> SpeakerProfile:
        """Return the profile of a speaker, made from recordings; see `SpeakerVerifier.enrol` and `verify`."""
        return self.verifier(check_voices).enrol(recordings, sampling_rate, combine, name, limits, channel)

    def verify(
        self,
        enrolment: Any,
        test: Any,
        operating_point: str | OperatingPoint | None = None,
        threshold: float | None = None,
        combine: str = "mean",
        sampling_rate: int | None = None,
        limits: Limits | None = None,
        channel: Channel = None,
        check_voices: bool | str = True,
    ) -> Verification:
        """Decide whether two recordings, or the recordings of an enrolment and a test, are of the same speaker.

        Args:
            enrolment: recording, list of recordings of one speaker, profile, or path of a profile.
            test: recording to compare. Recordings may have any form that `read_sound` accepts.
            sampling_rate: sampling rate in Hz of arrays that have none; None assumes the model's rate, with a warning.
            operating_point: `OperatingPoint` or name of one; None uses the first one of the calibration.
            threshold: threshold on the score, instead of an operating point; it needs no calibration.
            combine: method that combines several enrolment recordings; see `geometry_hamspk.COMBINATIONS`.
            limits: limits on the length and size of each recording; None uses the defaults of `Limits`.
            channel: channel of the recordings to read; see `read_sound`. To read different channels of the two sides,
                read them with `read_sound` first.
            check_voices: True warns of several voices in a recording, False does not check for them. "refuse" gives the
                decision "several voices" and no score if `overlap_detector` finds two people who speak at once.

        Raises:
            ValueError: a recording cannot be used, the profile is of another model, or the operating point does not
                exist. Silence and short recordings are not errors.
        """
        options = (sampling_rate, operating_point, threshold, combine, limits, channel)
        return self.verifier(check_voices).verify(enrolment, test, *options)

    def identify(self, recording: Any, profiles: Sequence[SpeakerProfile], **options: Any) -> Identification:
        """Decide which enrolled speaker, if any, is speaking; for `options` see `SpeakerIdentifier.identify`."""
        return self.identifier(profiles).identify([recording], **options)[0]

    def compare(
        self,
        recordings: Iterable[Any],
        sampling_rate: int | None = None,
        limits: Limits | None = None,
        channel: Channel = None,
    ) -> Comparison:
        """Score all pairs of recordings, with log-likelihood ratios if the model is calibrated.

        Args:
            recordings: inputs that `read_sound` accepts.
            sampling_rate, limits, channel: see `verify`.

        Raises:
            InputError: a recording cannot be used.
        """
        return self.verifier().compare(recordings, sampling_rate, limits, channel)

    def score(self, enrolment: Any, test: Any) -> Tensor:
        """Score pairs of embeddings, which are tensors or arrays: row i of `enrolment` against row i of `test`.

        Returns:
            Scores `(...)` for two inputs `(..., D)`. A score is the cosine similarity or the negative hyperbolic
            distance, depending on the configuration. Larger scores mean more similar voices.
        """
        return score(as_tensor(enrolment), as_tensor(test), **self._scoring())

    def score_matrix(self, enrolment: Any, test: Any) -> Tensor:
        """Return the scores `(..., B, K)` of each enrolment `(..., B, D)` against each test `(..., K, D)`."""
        return score_matrix(as_tensor(enrolment), as_tensor(test), **self._scoring())

    def magnitude(self, embeddings: Any) -> Tensor:
        """Return the distance `(...)` of embeddings `(..., D)` from the origin: their norm or hyperbolic radius."""
        return magnitude(as_tensor(embeddings), **self._scoring())

    def fingerprint(self) -> str:
        """Return hashes of weights and settings, which are the same with or without head and in float32 or bfloat16.

        Returns:
            SHA-256 in hexadecimal of the bfloat16 values of all tensors that affect the embedding (and of `level_db` if
            it is set), "-", and `config.hash_settings()`. The hash of the weights takes 0.1 s for 20 million
            parameters on a CPU, and is cached until they change. A model that was quantised or loaded in float16 is
            rounded differently and has a different fingerprint.
        """
        self._scoring()
        return f"{self._hash_weights()}-{self.config.hash_settings()}"

    def _hash_weights(self) -> str:
        state = _embedding_state(self.base_model)
        # The sums reveal changes that do not increase a tensor's version (`parameter.data.mul_(2)`).
        tensors, level = sorted(state.items()), self.config.level_db
        key = level, [(name, t.data_ptr(), t.dtype, tuple(t.shape), float(t.sum())) for name, t in tensors]
        if self._known_fingerprint is None or self._known_fingerprint[0] != key:
            digest = hashlib.sha256(b"" if level is None else f"level_db {float(level)}".encode())
            for name, tensor in tensors:
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                digest.update(tensor.to(torch.bfloat16).contiguous().cpu().view(torch.int16).numpy())
            self._known_fingerprint = (key, digest.hexdigest())
        return self._known_fingerprint[1]

    def verifier(self, check_voices: bool | str = True) -> SpeakerVerifier:
        """Return a `SpeakerVerifier`; raise a ValueError if the calibration or cohort was made with other weights."""
        return SpeakerVerifier(self, *self.usable_calibration(), check_voices)

    def identifier(self, profiles: Sequence[SpeakerProfile], check_voices: bool | str = True) -> SpeakerIdentifier:
        """Return a `SpeakerIdentifier` of the speakers with these `profiles`; its class documents the errors."""
        return SpeakerIdentifier(self, profiles, *self.usable_calibration(), check_voices)

    def usable_calibration(self) -> tuple[Calibration | None, Cohort | None]:
        """Return the calibration and the cohort if they apply to the current weights.

        If the weights are quantised or in float16, but the calibration was made with other weights (usually before the
        conversion), both are None, with a warning.
        """
        own = [part for part in (self.calibration, self.cohort) if part is not None]
        if self._keeps_fingerprint() or all(is_same_model(part.fingerprint, self.fingerprint()) for part in own):
            return self.calibration, self.cohort
        logger.warning(f"The calibration {NOT_APPLICABLE}")
        return None, None

    def _keeps_fingerprint(self) -> bool:
        """Return whether all weights that affect the embedding are float64, float32 or bfloat16.

        Conversion among these types does not change the fingerprint. Quantisation and float16 change it.
        """
        exact, state = (torch.float64, torch.float32, torch.bfloat16), self.base_model.state_dict().values()
        return all(isinstance(t, Tensor) and not t.is_meta and (t.dtype in exact or not _is_weight(t)) for t in state)

    def with_onnx(self, file: str | os.PathLike, threads: int | None = None) -> "OnnxSpeakerModel":
        """Return an `OnnxSpeakerModel`, given the path of an exported file or its name beside the weights."""
        return OnnxSpeakerModel(self, _find_beside(file, self.config), threads)

    def _scoring(self) -> dict[str, Any]:
        names = ("similarity", "projection", "curvature", "clip_radius")
        return {name: getattr(self.config, name) for name in names}


def make_feature_extractor(sampling_rate: int) -> Wav2Vec2FeatureExtractor:
    """Return a feature extractor that pads waveforms and returns a mask; the model itself computes the features."""
    return Wav2Vec2FeatureExtractor(sampling_rate=sampling_rate, do_normalize=False, return_attention_mask=True)


def check_batch(input_values: Tensor, attention_mask: Tensor | None, smallest_length: int) -> None:
    """Raise a ValueError if a batch is not `(B, L)`, its mask has another shape, or an utterance is too short.

    The values of the mask are checked only on the CPU, because reading them from another device would block.
    """
    shape = tuple(input_values.shape)
    if len(shape) != 2:
        raise ValueError(f"input_values must be mono audio of shape (batch, samples), got shape {shape}.")
    least = f"expected at least {smallest_length} (one analysis window); {SHORTEST_SECONDS} s or more are recommended."
    if shape[1] < smallest_length:
        raise ValueError(f"input_values has {shape[1]} samples; {least}")
    if attention_mask is None:
        return
    if attention_mask.shape != shape:
        given = tuple(attention_mask.shape)
        raise ValueError(f"attention_mask must have the shape of input_values, {shape}, got {given}.")
    if attention_mask.device.type == "cpu" and attention_mask.shape[0] and not torch.compiler.is_compiling():
        mask = attention_mask.long()
        if bool((mask[:, 1:] > mask[:, :-1]).any()):
            raise ValueError("attention_mask has 0 before 1; expected utterances that are padded on the right.")
        shortest = int(mask.sum(-1).min())
        if shortest < smallest_length:
            raise ValueError(f"attention_mask marks only {shortest} samples of an utterance; {least}")


def check_labels(labels: Tensor, speakers: int) -> None:
    """Raise a ValueError if one of the labels `(B,)` is outside [0, speakers)."""
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < speakers:
        raise ValueError(
            f"Labels must be in [0, {speakers}) for a model with num_labels={speakers}, got labels from "
            f"{int(labels.min())} to {int(labels.max())}. Create the head with the num_labels of the training set."
        )


def length_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices by similar `lengths` into batches of one utterance or of at most `budget` samples with padding."""
    batches: list[list[int]] = []
    held = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        padded = (len(batches[-1]) + 1) * lengths[i] if batches else 0
        if batches and padded <= budget and padded - held - lengths[i] <= MOST_PADDING * padded:
            batches[-1].append(i)
            held += lengths[i]
        else:
            batches.append([i])
            held = lengths[i]
    return batches


@dataclass
class HamSpkOutput(ModelOutput):
    """Output of `HamSpkModel`.

    Args:
        embeddings: embeddings `(B, D)`, neither normalised to length 1 nor projected into the ball.
        last_hidden_state: frames `(B, T, C)` before pooling, 0 for padding; None with MHFA pooling.
        hidden_states: outputs `(B, T, C)` of the first layer and of each block or layer after it; None if not computed.
    """

    embeddings: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class HamSpkPreTrainedModel(SpeakerModelMixin, PreTrainedModel):
    """Base class of the models with and without head: initialisation, loading and saving."""

    config: HamSpkConfig
    config_class = HamSpkConfig
    base_model_prefix = "hamspk"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    # `HamSpkModel` ignores the head of a trained model.
    _keys_to_ignore_on_load_unexpected = [r"^head\."]  # noqa: RUF012 (transformers declares it so)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            super()._init_weights(module)
        elif isinstance(module, LinearSimilarity | CosineSimilarity | HyperbolicSimilarity):
            module.reset_centres()
        elif isinstance(module, LayerMix):
            module.restart()
        elif isinstance(module, FilterBank):
            module.restore_constants()

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs) -> None:
        if self.config.backbone_config is not None:
            options = getattr(kwargs.get("gradient_checkpointing_func"), "keywords", {"use_reentrant": False})
            is_wavlm = getattr(self.config.backbone_config, "model_type", None) == "wavlm"
            if enable and is_wavlm and options.get("use_reentrant") is not False:
                raise ValueError("Reentrant checkpointing hangs with WavLM. Pass {'use_reentrant': False}.")
            super()._set_gradient_checkpointing(enable, *args, **kwargs)
        elif enable:
            raise ValueError(
                "Gradient checkpointing is supported for transformers backbones only. In other encoders it would "
                "update the batch statistics twice. To save memory, use smaller batches or shorter crops."
            )

    def get_input_embeddings(self) -> None:
        """Return None: waveforms have no input embeddings. Quantizers call this method."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args, calibrated: bool = True, **kwargs
    ):
        """Load a model from safetensors, with its calibration, cohort and overlap detector if they are stored with it.

        Args:
            pretrained_model_name_or_path, args, kwargs: see `PreTrainedModel.from_pretrained` of transformers.
            calibrated: whether to load calibration, cohort and overlap detector; False is useful before training.

        Raises:
            ValueError: one of these files was altered or belongs to another model.
        """
        # Loading a pickle can execute code.
        kwargs.setdefault("use_safetensors", True)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None and calibrated:
            commit = getattr(model.config, "_commit_hash", None)
            where = kwargs if commit is None else kwargs | {"revision": commit}
            model.load_verification(pretrained_model_name_or_path, **where)
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, *args, **kwargs) -> None:
        """Save the model as transformers does, with feature extractor, calibration, cohort, detector and pipeline."""
        announce_pipeline(self.config)
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            self._save_beside(save_directory)

    def _save_beside(self, folder: str | os.PathLike) -> None:
        make_feature_extractor(self.config.sampling_rate).save_pretrained(os.fspath(folder))
        self.save_verification(folder)
        OverlapDetector.save_beside_weights(self.overlap_detector, folder)

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args, **kwargs):
        # With `push_to_hub=True`, transformers uploads the folder before its `save_pretrained` returns.
        self._save_beside(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def load_verification(self, source: str | os.PathLike, **where) -> None:
        """Load the calibration, cohort and overlap detector that are stored with the weights, if these files exist.

        Args:
            source: folder of the model, or its name on the Hub.
            where: arguments of `from_pretrained` that determine where files are found, such as revision or token.
        """
        where = {key: value for key, value in where.items() if key in FETCHING_ARGUMENTS}
        found = {name: _find_file(source, name, **where) for name in (CALIBRATION_FILE, COHORT_FILE, OVERLAP_FILE)}
        files = {name: path for name, path in found.items() if path is not None}
        if OVERLAP_FILE in files:
            self.overlap_detector = OverlapDetector.load(files.pop(OVERLAP_FILE))
        if not files:
            return
        if not self._keeps_fingerprint():
            logger.warning(f"The calibration in {source} {NOT_APPLICABLE}")
            return
        fingerprint = self.fingerprint()
        try:
            if CALIBRATION_FILE in files:
                calibration = Calibration.load(files[CALIBRATION_FILE])
                calibration.check_model(fingerprint, self.config.similarity)
                if calibration.normalisation != "none" and COHORT_FILE not in files:
                    logger.warning(f"Without {COHORT_FILE}, the model gives scores but no decisions. Calibrate it.")
                    return
                self.calibration = calibration
            if COHORT_FILE in files:
                self.cohort = Cohort.load(files[COHORT_FILE], fingerprint)
        except ValueError as error:
            raise ValueError(
                f"The calibration of {source} cannot be used. {error} To use the model without decisions, load it with "
                f"calibrated=False, or delete {' and '.join(files.values())}."
            ) from error

    def save_verification(self, folder: str | os.PathLike) -> list[str]:
        """Write the calibration and the cohort into a folder, and return the names of the files.

        A calibration or cohort of other weights is deleted from the folder, because loading the model would fail.
        """
        written = []
        for name, part in {CALIBRATION_FILE: self.calibration, COHORT_FILE: self.cohort}.items():
            path = os.path.join(os.fspath(folder), name)
            if part is not None and is_same_model(part.fingerprint, self.fingerprint()):
                part.save(path)
                written.append(name)
                continue
            if part is not None:
                logger.warning(f"{name} is not saved: the model has changed since it was made. Calibrate again.")
            if os.path.exists(path):
                os.remove(path)
        return written


class HamSpkModel(HamSpkPreTrainedModel):
    """Model that maps waveforms to embeddings: front-end, encoder or transformers backbone, pooling, projection.

    Example:
        ```python
        model = HamSpkModel.from_pretrained("model")
        embeddings = model.embed(["a.wav", "b.wav"])  # (2, D)
        print(model.verify("a.wav", "b.wav").decision)
        ```
    """

    def __init__(self, config: HamSpkConfig):
        super().__init__(config)
        self.frontend = make_frontend(config)
        self.layer_mix: LayerMix | None = None
        layers = 0
        if config.backbone_config is None:
            self.backbone = make_encoder(config)
            channels = self.backbone.output_channels
        else:
            backbone_config = config.backbone_config
            if not isinstance(backbone_config, PreTrainedConfig):
                raise ValueError("backbone_config must be a PreTrainedConfig, or a dict that HamSpkConfig converts.")
            self.backbone = AutoModel.from_config(backbone_config)
            channels = backbone_config.hidden_size
            layers = backbone_config.num_hidden_layers + 1
            if config.pooling != "mhfa" and config.mix_layers:
                self.layer_mix = LayerMix(layers)
        self.pooling = make_pooling(config, channels, layers)
        size = self.pooling.output_size
        self.pooled_norm = nn.BatchNorm1d(size) if config.normalize_pooled else nn.Identity()
        self.projection = nn.Linear(size, config.embedding_size)
        self.embedding_norm = nn.BatchNorm1d(config.embedding_size) if config.normalize_embedding else nn.Identity()
        self._freeze()
        self.post_init()

    @property
    def groups_by_length(self) -> bool:
        """Whether the backbone runs once for each length in a batch, because padding would change its output."""
        backbone_config = self.config.backbone_config
        over_time = getattr(backbone_config, "feat_extract_norm", "layer") == "group"
        # data2vec-audio zeroes the padding only before the first of several convolutions.
        return over_time or getattr(backbone_config, "model_type", None) == "data2vec-audio"

    def freeze_backbone(self) -> None:
        """Exclude a transformers backbone from training, and keep it in evaluation mode even after `train()`."""
        if self.config.backbone_config is None:
            raise ValueError("freeze_backbone is supported for transformers backbones only, got another encoder.")
        self.config.freeze_backbone = True
        self._freeze()

    def unfreeze_backbone(self) -> None:
        """Include the backbone in training, except its feature encoder if `config.freeze_feature_encoder` is True."""
        self.config.freeze_backbone = False
        self.backbone.requires_grad_(True)
        self.backbone.train(self.training)
        self._freeze()

    def _freeze(self) -> None:
        if self.config.freeze_backbone:
            self.backbone.requires_grad_(False)
            self.backbone.eval()
        elif self.config.freeze_feature_encoder and hasattr(self.backbone, "feature_extractor"):
            self.backbone.get_submodule("feature_extractor").requires_grad_(False)

    def train(self, mode: bool = True) -> "HamSpkModel":
        super().train(mode)
        # `from_pretrained` creates parameters that require a gradient, and then calls `eval()`.
        self._freeze()
        return self

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> HamSpkOutput | tuple:
        """Embed a batch of waveforms.

        Args:
            input_values: waveforms `(B, L)` in [-1, 1] at `config.sampling_rate`, padded on the right.
            attention_mask: mask `(B, L)` with 1 for samples and 0 for padding; None if there is no padding.
            return_dict: False returns a plain tuple instead of an output object.
            output_hidden_states: whether to return hidden states; None takes the value of the configuration.

        Raises:
            ValueError: `input_values` is not two-dimensional, the mask has another shape or pads on the left, an
                utterance is shorter than one analysis window (25 ms), or a batch in training has only one utterance.
        """
        check_batch(input_values, attention_mask, self.frontend.smallest_length)
        norms = [norm for norm in (self.pooled_norm, self.embedding_norm) if not isinstance(norm, nn.Identity)]
        if any(norm.training for norm in norms) and input_values.shape[0] < 2:
            raise ValueError("Batch normalisation in training needs at least 2 utterances. Drop a last batch of 1.")
        lengths = None if attention_mask is None else attention_mask.long().sum(-1)
        features, lengths = self.frontend(input_values, lengths)
        is_complete = bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)
        if self.config.backbone_config is None:
            mask = None if lengths is None else length_mask(lengths, features.shape[-1])
            hidden: Any = [] if is_complete else None
            frames = self.backbone(features.to(self.dtype), mask, hidden)
            pooled = self.pooling(frames, subsampled(mask, cast(int, self.backbone.stride)))
        else:
            frames, pooled, hidden = self._pool_layers(features.to(self.dtype), lengths, is_complete)
        pooled = batch_norm(self.pooled_norm, pooled.to(self.dtype), None)
        embeddings = self.embedding_norm(self.projection(pooled))
        output = HamSpkOutput(embeddings, None if frames is None else frames.mT, tuple(hidden) if is_complete else None)
        return output.to_tuple() if return_dict is False else output

    def _pool_layers(
        self, waveforms: Tensor, lengths: Tensor | None, is_complete: bool
    ) -> tuple[Tensor | None, Tensor, tuple[Tensor, ...]]:
        """Return a transformers backbone's frames `(B, C, T)` (None for MHFA), the pooled frames, and its layers."""
        if lengths is not None and self.groups_by_length:
            hidden = self._layers_by_length(waveforms, lengths, is_complete)
        else:
            samples_mask = None if lengths is None else length_mask(lengths, waveforms.shape[1]).long()
            hidden = self._layers(waveforms, samples_mask, is_complete)
        mask = None
        if lengths is not None:
            # Every speech encoder of transformers has this method, which the type checker does not know.
            frame_lengths = self.backbone._get_feat_extract_output_lengths(lengths)  # pyright: ignore[reportCallIssue]
            mask = length_mask(frame_lengths.clamp_min(1), hidden[0].shape[1])
        if isinstance(self.pooling, FactorisedAttentivePooling):
            return None, self.pooling(hidden[1:], mask), hidden[1:]
        mixed = hidden[0] if self.layer_mix is None else self.layer_mix(hidden[1:])
        frames = keep_valid(mixed.mT, mask)
        return frames, self.pooling(frames, mask), hidden[1:]

    def _layers(self, waveforms: Tensor, samples_mask: Tensor | None, is_complete: bool) -> tuple[Tensor, ...]:
        """Return the output `(B, T, C)` of the backbone, then all its hidden states if they are pooled or asked for."""
        is_pooled = self.layer_mix is not None or isinstance(self.pooling, FactorisedAttentivePooling)
        is_needed = is_pooled or is_complete
        output = self.backbone(waveforms, attention_mask=samples_mask, output_hidden_states=is_needed)
        return (output.last_hidden_state, *(output.hidden_states if is_needed else ()))

    def _layers_by_length(self, waveforms: Tensor, lengths: Tensor, is_complete: bool) -> tuple[Tensor, ...]:
        """Return the same as `_layers`, but run the backbone without padding, once for each length in the batch."""
        groups, places = [], []
        for length in lengths.unique().tolist():
            at = (lengths == length).nonzero()[:, 0]
            groups.append(self._layers(waveforms[at, :length], None, is_complete))
            places.append(at)
        # The last group is the longest.
        size, order = groups[-1][0].shape[1], torch.cat(places).argsort()
        return tuple(
            torch.cat([nn.functional.pad(part, (0, 0, 0, size - part.shape[1])) for part in layer])[order]
            for layer in zip(*groups, strict=True)
        )


class HamSpkForXVector(HamSpkPreTrainedModel):
    """Speaker model with its training head, which returns logits over the training speakers and the loss.

    Example:
        ```python
        model = HamSpkForXVector(HamSpkConfig(num_labels=2))
        output = model(torch.randn(4, 16_000), labels=torch.tensor([0, 1, 0, 1]))
        output.loss.backward()
        ```
    """

    def __init__(self, config: HamSpkConfig):
        super().__init__(config)
        self.hamspk = HamSpkModel(config)
        self.head = make_head(config)
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike,
        backbone_kwargs: dict | None = None,
        config: HamSpkConfig | None = None,
        **config_fields,
    ):
        """Return a model with a pretrained speech encoder of transformers and newly initialised other layers.

        Args:
            backbone: name on the Hub or folder of the encoder, for example `"microsoft/wavlm-base-plus"`.
            backbone_kwargs: arguments of `AutoModel.from_pretrained`, for example `{"revision": "main"}`.
            config: configuration of the complete model, with a `backbone_config`; `config_fields` are then ignored.
            config_fields: fields of `HamSpkConfig`, such as `head`, `num_labels` and `id2label`.
        """
        kwargs = {} if backbone_kwargs is None else backbone_kwargs
        if config is not None:
            kwargs = kwargs | {"config": config.backbone_config}
        pretrained = AutoModel.from_pretrained(backbone, **kwargs)
        if config is None:
            config = HamSpkConfig(backbone_config=pretrained.config, **config_fields)
        model = cls(config)
        model.hamspk.backbone = pretrained
        model.hamspk._freeze()
        return model

    def set_margin(self, margin: float) -> None:
        """Set the margin of the loss, in [0, 3), and write it to the configuration, which is saved with the model."""
        self.head.set_margin(margin)
        self.config.margin = self.head.margin

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """Save the model like `HamSpkModel`, after writing a learned curvature to the configuration for scoring."""
        self._record_curvature()
        super().save_pretrained(save_directory, *args, **kwargs)

    def _scoring(self) -> dict[str, Any]:
        self._record_curvature()
        return super()._scoring()

    def _record_curvature(self) -> None:
        for module in self.head.modules():
            if isinstance(module, HyperbolicSimilarity) and module.log_curvature is not None:
                learned, known = module.recorded_curvature(), cast(float, self.config.curvature)
                # In bfloat16, the curvature is a rounded copy of the recorded one.
                rounding = torch.finfo(module.log_curvature.dtype).eps * (1 + abs(math.log(known)))
                self.config.curvature = known if abs(math.log(learned / known)) < rounding else learned

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        return_logits: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> XVectorOutput | tuple:
        """Return embeddings, logits and loss of a batch.

        Args:
            input_values, attention_mask, return_dict, output_hidden_states: see `HamSpkModel.forward`.
            labels: speakers `(B,)` in [0, num_labels); None computes no loss.
            return_logits: whether to compute logits; see `SpeakerHead.forward`.

        Returns:
            Scalar `loss` with margin, scaled `logits` `(B, K)` without margin, and `embeddings` `(B, D)`. A loss or
            logits that are not computed are None, and missing from a plain tuple.

        Raises:
            ValueError: a label is out of range (checked only on the CPU, not when compiled), or an input is invalid.
        """
        if labels is not None and labels.device.type == "cpu" and not torch.compiler.is_compiling():
            check_labels(labels, cast(int, self.config.num_labels))
        encoded = self.hamspk(input_values, attention_mask, output_hidden_states=output_hidden_states)
        logits, loss = self.head(encoded.embeddings, labels, return_logits)
        output = XVectorOutput(loss, logits, encoded.embeddings, encoded.hidden_states)
        return output.to_tuple() if return_dict is False else output


class OnnxSpeakerModel(SpeakerModelMixin):
    """Speaker model that computes embeddings with ONNX Runtime.

    The graph may compute other embeddings than `model`, for example because it was quantised. If the embeddings of a
    test signal differ (see `OnnxEncoder.difference_from`), the graph has its own fingerprint, and the calibration,
    cohort and profiles of `model` do not apply to it.
    """

    def __init__(self, model: SpeakerModelMixin, file: str | os.PathLike, threads: int | None = None):
        super().__init__()
        encoder = OnnxEncoder(file, threads)
        name, own = os.path.basename(os.fspath(file)), model.fingerprint()
        if not is_same_model(encoder.description.fingerprint, own):
            raise ValueError(f"{name} was exported from another model, or before it changed. Export this model again.")
        self.config, self.device, self.vad = model.config, torch.device("cpu"), model.vad
        self.overlap_detector = model.overlap_detector
        self.base_model: Any = encoder
        self._weights, difference = own.partition("-")[0], encoder.difference_from(model)
        if not difference:
            self.calibration, self.cohort = model.usable_calibration()
            return
        with open(file, "rb") as graph:
            parts = self._weights.encode(), hashlib.file_digest(graph, "sha256").digest()
        self._weights = hashlib.sha256(b"".join(parts)).hexdigest()
        logger.warning(
            f"{name} computes other embeddings than the model (relative difference {difference:.1g}), for example "
            "because it was quantised. It gives scores but no decisions, because the calibration does not apply. For "
            "decisions use the file of `hamspk export` with a model in float32."
        )

    def _hash_weights(self) -> str:
        return self._weights


def _is_weight(tensor: Tensor) -> bool:
    """Return whether a tensor of a state dictionary affects embeddings; counters and indices do not."""
    return tensor.is_floating_point() or tensor.is_quantized or tensor.dtype in (torch.int8, torch.uint8)


def _embedding_state(module: nn.Module) -> dict[str, Any]:
    """Return the tensors that affect the embedding, by name. Quantised tensors are converted to float32."""
    found = {}
    for name, value in module.state_dict().items():
        # Dynamic quantisation packs weight and bias into a tuple.
        parts = {f"{name}.{number}": part for number, part in enumerate(value)} if isinstance(value, tuple) else {}
        for key, part in (parts if parts else {name: value}).items():
            if isinstance(part, Tensor) and _is_weight(part):
                tensor = part.detach().dequantize() if part.is_quantized else part.detach()
                found[key] = tensor if tensor.is_floating_point() else tensor.float()
    return found


def _find_file(source: str | os.PathLike, name: str | os.PathLike, **where) -> str | None:
    """Return the path of a file in a folder or repository; None if it is missing or cannot be fetched."""
    cases = ("gated_repo", "missing_entries", "connection_errors")
    return cached_file(source, os.fspath(name), **where, **{f"_raise_exceptions_for_{case}": False for case in cases})


def _find_beside(file: str | os.PathLike, config: Any) -> str | os.PathLike:
    """Return the path of an exported `file`, given as a path or a name in the folder or repository of the weights."""
    if os.path.isfile(file):
        return file
    commit = getattr(config, "_commit_hash", None)
    found = _find_file(config.name_or_path, file, revision=commit) if config.name_or_path else None
    if found is None:
        raise ValueError(f"{os.fspath(file)} not found, neither as a path nor beside the weights. Run `hamspk export`.")
    return found
