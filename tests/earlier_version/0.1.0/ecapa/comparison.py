"""What a speaker model is for: embeddings of utterances, and how they are compared.

Letters: `B` enrolment embeddings, `K` test embeddings, `D` embedding size.
"""

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .calibration import CALIBRATION_FILE, Calibration
from .configuration_hamspk import HamSpkConfig
from .enrolment import SpeakerProfile
from .frontend import length_mask
from .identification import SpeakerIdentifier
from .inputs import check_waveform, length_batches
from .normalisation import COHORT_FILE, Cohort
from .scoring import magnitude, score, score_matrix
from .verifier import SpeakerVerifier

# Padded seconds of audio that `embed` sends through the model at once.
BATCH_SECONDS = 120.0
# Arguments of `from_pretrained` that say where a file is looked for.
FETCHING_ARGUMENTS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")

logger = logging.get_logger(__name__)


class SpeakerComparison(nn.Module):
    """Embedding and scoring, mixed into the models: what all of them do alike once they are trained."""

    config: HamSpkConfig
    device: torch.device
    base_model: nn.Module
    calibration: Calibration | None = None
    cohort: Cohort | None = None

    def embed(
        self,
        waveforms: Sequence[np.ndarray | Tensor | Sequence[float]],
        sampling_rate: int,
        batch_seconds: float = BATCH_SECONDS,
    ) -> Tensor:
        """Embed utterances of any lengths, in evaluation mode, batched by length.

        Args:
            waveforms: mono utterances, each `(L,)` in [-1, 1].
            sampling_rate: of all of them, in Hz; must be the model's.
            batch_seconds: padded audio of one forward pass, in seconds.

        Returns:
            `(len(waveforms), D)` float32 on the model's device, in the order given. An embedding does not depend on the
            others.

        Raises:
            ValueError: another sampling rate, a waveform that is not one-dimensional, shorter than 0.1 s, of integers,
                silent, or that holds NaN or infinite samples; the message names its position.
        """
        if sampling_rate != self.config.sampling_rate:
            raise ValueError(
                f"This model works at {self.config.sampling_rate} Hz, the audio has {sampling_rate} Hz. Resample it "
                "first, for example with torchaudio.functional.resample."
            )
        tensors = [check_waveform(waveform, i, sampling_rate) for i, waveform in enumerate(waveforms)]
        sizes = [tensor.shape[0] for tensor in tensors]
        embeddings = torch.empty(len(tensors), self.config.embedding_size, device=self.device)
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                for batch in length_batches(sizes, int(batch_seconds * sampling_rate)):
                    lengths = torch.tensor([sizes[i] for i in batch])
                    values = nn.utils.rnn.pad_sequence([tensors[i] for i in batch], batch_first=True).to(self.device)
                    mask = None
                    if lengths[0] != lengths[-1]:
                        mask = length_mask(lengths, values.shape[1]).to(self.device)
                    embeddings[batch] = self.base_model(values, attention_mask=mask).embeddings.float()
        finally:
            self.train(was_training)
        return embeddings

    def score(self, enrolment: Tensor, test: Tensor) -> Tensor:
        """Score pairs of embeddings, row by row, as the configuration says (`similarity`); larger is more alike.

        Args:
            enrolment: `(..., D)`.
            test: `(..., D)`.

        Returns:
            `(...)`: the cosine, or minus the hyperbolic distance.
        """
        return score(enrolment, test, **self._scoring())

    def score_matrix(self, enrolment: Tensor, test: Tensor) -> Tensor:
        """Score all of `enrolment` `(..., B, D)` against all of `test` `(..., K, D)`: `(..., B, K)`."""
        return score_matrix(enrolment, test, **self._scoring())

    def magnitude(self, embeddings: Tensor) -> Tensor:
        """Distance of embeddings `(..., D)` from the origin, `(...)`: their norm, or their hyperbolic radius."""
        return magnitude(embeddings, **self._scoring())

    def fingerprint(self) -> str:
        """What this model is: the same for the same weights, with or without head, in float32 or bfloat16.

        Returns:
            SHA-256, in hexadecimal, over name, shape and values, rounded to bfloat16, of the parameters and buffers
            that make the embedding. Computed at each call, as weights may change; 0.1 s for 20 million on a CPU. A
            float16 or quantised load has rounded otherwise and has another fingerprint.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.base_model.state_dict().items()):
            # Counters of batches do not enter an embedding.
            if tensor.is_floating_point():
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                values = tensor.detach().to(torch.bfloat16).contiguous().cpu()
                digest.update(values.view(torch.int16).numpy())
        return digest.hexdigest()

    def verifier(self, check_voices: bool = True) -> SpeakerVerifier:
        """What answers whether recordings are of one speaker, with the calibration and the cohort of this model.

        Raises:
            ValueError: they are of other weights, for example of those before further training.
        """
        return SpeakerVerifier(self, self.calibration, self.cohort, check_voices)

    def identifier(self, profiles: Sequence[SpeakerProfile], check_voices: bool = True) -> SpeakerIdentifier:
        """What answers who of the enrolled speakers a recording is of, if any.

        Raises:
            ValueError: no profile, a profile without a name of its own, or anything of another model.
        """
        return SpeakerIdentifier(self, profiles, self.calibration, self.cohort, check_voices)

    def load_verification(self, source: str | os.PathLike, **where) -> None:
        """Read the calibration and the cohort beside the weights of this model, if they are there.

        Args:
            source: folder, or name on the Hub.
            where: arguments of `from_pretrained`: revision, token, cache_dir, subfolder, local_files_only, ...

        Raises:
            ValueError: a file was altered or is of another model; the message says which to delete.
        """
        files = {}
        for name in (CALIBRATION_FILE, COHORT_FILE):
            path = cached_file(
                source,
                name,
                **{key: value for key, value in where.items() if key in FETCHING_ARGUMENTS},
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            if path is not None:
                files[name] = path
        if not files:
            return
        if not self._keeps_fingerprint():
            logger.warning(
                f"{source} holds a calibration, which is left out: these weights were rounded otherwise than it was "
                "measured with. Load the model in float32 or bfloat16 to use it."
            )
            return
        fingerprint = self.fingerprint()
        try:
            if CALIBRATION_FILE in files:
                calibration = Calibration.load(files[CALIBRATION_FILE])
                calibration.check_model(fingerprint, self.config.similarity)
                if calibration.normalisation != "none" and COHORT_FILE not in files:
                    logger.warning(
                        f"{source} holds a calibration of scores that are normalised with a cohort, and no "
                        f"{COHORT_FILE}: the model gives scores, no decisions. Calibrate it anew for those."
                    )
                    return
                self.calibration = calibration
            if COHORT_FILE in files:
                self.cohort = Cohort.load(files[COHORT_FILE], fingerprint)
        except ValueError as error:
            raise ValueError(
                f"The weights of {source} come with files that do not fit them. {error} To use the model without "
                f"decisions, load it with calibrated=False, or delete {' and '.join(files.values())}."
            ) from error

    def save_verification(self, folder: str | os.PathLike) -> list[str]:
        """Write the calibration and the cohort into a folder, if they are of the weights as they are now.

        What is there of another model, or is left out, is deleted: beside these weights it would be refused.

        Returns:
            The names of the files that were written.
        """
        written = []
        kept = {CALIBRATION_FILE: self.calibration, COHORT_FILE: self.cohort}
        fingerprint = None if self.calibration is None and self.cohort is None else self.fingerprint()
        for name, part in kept.items():
            path = os.path.join(os.fspath(folder), name)
            if part is not None and part.fingerprint == fingerprint:
                part.save(path)
                written.append(name)
                continue
            if part is not None:
                logger.warning(f"{name} is not saved: it was measured with other weights than these. Calibrate anew.")
            if os.path.exists(path):
                os.remove(path)
        return written

    def _keeps_fingerprint(self) -> bool:
        """Whether rounding to bfloat16 gives the same numbers as it gave of the float32 weights."""
        exact = (torch.float64, torch.float32, torch.bfloat16)
        weights = list(self.base_model.parameters())
        return all(weight.dtype in exact and not weight.is_meta for weight in weights)

    def _scoring(self) -> dict:
        config = self.config
        return {
            "similarity": config.similarity,
            "projection": config.projection,
            "curvature": config.curvature,
            "clip_radius": config.clip_radius,
        }
