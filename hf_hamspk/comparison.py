"""What a speaker model is for: embeddings of utterances, and how they are compared.

Letters: `B` enrolment embeddings, `K` test embeddings, `D` embedding size.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .configuration_hamspk import HamSpkConfig
from .frontend import length_mask
from .inputs import check_waveform, length_batches
from .scoring import score, score_matrix

# Padded seconds of audio that `embed` sends through the model at once.
BATCH_SECONDS = 120.0


class SpeakerComparison(nn.Module):
    """Embedding and scoring, mixed into the models: what all of them do alike once they are trained."""

    config: HamSpkConfig
    device: torch.device
    base_model: nn.Module

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

    def _scoring(self) -> dict:
        config = self.config
        return {
            "similarity": config.similarity,
            "projection": config.projection,
            "curvature": config.curvature,
            "clip_radius": config.clip_radius,
        }
