"""Module of sentence-transformers that embeds recordings, in the code of a published model.

`modules.json` of the repository names this file and its class:

    model = SentenceTransformer("owner/name", trust_remote_code=True)
    embeddings = model.encode(["a.wav", "b.wav"])
"""

from typing import Any

import torch
from transformers import AutoModel


class RecordingEmbedder(torch.nn.Module):
    """First and only module of a `SentenceTransformer`, with the methods that sentence-transformers calls.

    It does not inherit from a class of sentence-transformers, whose names change from version to version.

    Args:
        model: model that `AutoModel` returns for the repository.
    """

    # Tells sentence-transformers to save the model into the main folder.
    save_in_root = True

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    @property
    def modalities(self) -> list[str]:
        """Kinds of input that the module accepts."""
        return ["audio"]

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "RecordingEmbedder":
        """Load the model of a folder or repository; `model_kwargs` are arguments of `from_pretrained`.

        Raises:
            ValueError: another backend than torch was requested.
        """
        if kwargs.get("backend", "torch") != "torch":
            raise ValueError(
                f"Expected backend='torch', got {kwargs['backend']!r}. For ONNX, use the pipeline of transformers with "
                "onnx_file."
            )
        # sentence-transformers imports this file only with `trust_remote_code=True`.
        model = AutoModel.from_pretrained(
            model_name_or_path,
            trust_remote_code=True,
            token=token,
            cache_dir=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
            **({} if model_kwargs is None else model_kwargs),
        )
        return cls(model)

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Save the weights, the code, the calibration and the cohort of the model as safetensors, JSON and Python."""
        self.model.save_pretrained(output_path)

    def get_embedding_dimension(self) -> int:
        """Return the size `D` of an embedding."""
        return self.model.config.embedding_size

    def preprocess(self, inputs: list[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Return the recordings unchanged, because the model reads them itself.

        Args:
            inputs: paths, URLs, arrays, dictionaries with "array" and "sampling_rate", or other recordings that
                `embed` of the model accepts.
            prompt: ignored; recordings have no prompt.
            kwargs: `processing_kwargs={"audio": {"sampling_rate": 8000}}` is the rate in Hz of arrays without a rate.
        """
        audio = (kwargs.get("processing_kwargs") or {}).get("audio") or {}
        return {"recordings": inputs, "sampling_rate": audio.get("sampling_rate")}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Return `sentence_embedding`, the embeddings `(B, D)` of the recordings.

        Raises:
            RuntimeError: the module is in training mode.
            ValueError: a recording cannot be used.
        """
        if self.training:
            raise RuntimeError(
                "This model cannot be trained with sentence-transformers. Fine-tune it with the Trainer of hf_hamspk."
            )
        return {"sentence_embedding": self.model.embed(features["recordings"], features["sampling_rate"])}
