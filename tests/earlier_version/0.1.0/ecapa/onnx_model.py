"""A speaker model whose embeddings ONNX Runtime computes, from a file that `hamspk export` wrote.

The file says of which weights it is: it works with their calibration and cohort, and is refused beside other weights.

Letters: `B` batch, `L` samples, `D` embedding size.
"""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import XVectorOutput

from .comparison import SpeakerComparison
from .integrity import shorten

INPUTS, OUTPUT = ("input_values", "attention_mask"), "embeddings"
METADATA_KEY = "hamspk"


@dataclass(frozen=True)
class OnnxDescription:
    """What an exported file says of itself.

    Attributes:
        fingerprint: of the weights.
        sampling_rate: in Hz.
        embedding_size: D.
        masked: whether the graph takes an attention mask; otherwise only batches without padding.
    """

    fingerprint: str
    sampling_rate: int
    embedding_size: int
    masked: bool

    def to_metadata(self) -> dict[str, str]:
        """For the file."""
        return {METADATA_KEY: json.dumps(asdict(self))}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], name: str) -> "OnnxDescription":
        """Read it.

        Raises:
            ValueError: the file was not written by this package.
        """
        try:
            return cls(**json.loads(metadata[METADATA_KEY]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name} was not written by `hamspk export`; export the model with it.") from error


class OnnxEncoder(nn.Module):
    """The exported graph in a session of ONNX Runtime, called like the model it was made of.

    Args:
        file: that `hamspk export` wrote.
        threads: of one operation; None lets ONNX Runtime choose: all cores.

    Raises:
        ImportError: ONNX Runtime is not installed.
        ValueError: the file cannot be read, or was not written by this package.
    """

    def __init__(self, file: str | os.PathLike, threads: int | None = None):
        super().__init__()
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ValueError(f"The threads of ONNX Runtime must be a whole number from 1, got {threads!r}.")
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "ONNX Runtime is not installed: `pip install onnxruntime`, or leave out onnx_file to use torch."
            ) from error
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        name = os.path.basename(os.fspath(file))
        try:
            self.session = onnxruntime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # Its exceptions have no common base but this one.
            raise ValueError(
                f"{name} cannot be read by ONNX Runtime ({type(error).__name__}). Export it anew."
            ) from error
        self.description = OnnxDescription.from_metadata(self.session.get_modelmeta().custom_metadata_map, name)

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> XVectorOutput:
        """Embed `(B, L)` waveforms, right-padded where `attention_mask` `(B, L)` is 0: `embeddings` `(B, D)`."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.long)
        elif not self.description.masked:
            # Each utterance without its padding.
            rows = [values[: int(mask.sum())] for values, mask in zip(input_values, attention_mask, strict=True)]
            return XVectorOutput(embeddings=torch.cat([self._run({INPUTS[0]: row[None]}) for row in rows]))
        feed = {INPUTS[0]: input_values}
        if self.description.masked:
            feed[INPUTS[1]] = attention_mask.long()
        return XVectorOutput(embeddings=self._run(feed))

    def _run(self, feed: dict[str, Tensor]) -> Tensor:
        arrays = {name: tensor.detach().cpu().float() if name == INPUTS[0] else tensor for name, tensor in feed.items()}
        return torch.from_numpy(self.session.run([OUTPUT], {name: a.numpy() for name, a in arrays.items()})[0])


class OnnxSpeakerModel(SpeakerComparison):
    """Embeds with ONNX Runtime; compares, verifies and is calibrated like the model that the file was made of.

    Args:
        model: whose configuration, calibration and cohort are taken.
        file: that `hamspk export` wrote.
        threads: of one operation; None lets ONNX Runtime choose.

    Raises:
        ImportError: ONNX Runtime is not installed.
        ValueError: the file cannot be read, or is of other weights than those of `model`.
    """

    def __init__(self, model: SpeakerComparison, file: str | os.PathLike, threads: int | None = None):
        super().__init__()
        encoder = OnnxEncoder(file, threads)
        described, own = encoder.description.fingerprint, model.fingerprint()
        if described != own:
            raise ValueError(
                f"{os.path.basename(os.fspath(file))} was exported from other weights ({shorten(described)}) than "
                f"those at hand ({shorten(own)}). Export this model with `hamspk export`."
            )
        self.config = model.config
        self.device = torch.device("cpu")
        self.calibration, self.cohort = model.calibration, model.cohort
        self.base_model: Any = encoder

    def fingerprint(self) -> str:
        """That of the weights that were exported."""
        return self.base_model.description.fingerprint
