"""Collator that makes batches of random crops from rows of `datasets`, for `transformers.Trainer` and other loops."""

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from datasets import Audio

from ..audio_hamspk import InputError
from .audio import SAMPLING_RATE, read_utterance
from .columns import columns_of, require_speakers
from .crops import random_crop
from .dataset import DRAWS_OF_OTHER_SPEAKER, CropAugmentation, collate

logger = logging.getLogger(__name__)


class SpeakerCollator:
    """Make a batch of random crops, with the class indices of their speakers, from rows of a data set.

    The random numbers are drawn from the generator of torch, so the seed of the training loop applies to them. A row
    that cannot be read is replaced by another row of the same batch, and a warning names it.

    Example:
        ```python
        from datasets import Dataset
        from hf_hamspk import SpeakerCollator

        sound = {"array": [0.1, -0.1] * 8000, "sampling_rate": 16000}
        data = Dataset.from_dict({"audio": [sound] * 4, "speaker": ["anna", "ben"] * 2})
        batch = SpeakerCollator(data, crop_seconds=0.5)(list(data))  # input_values (4, 8000), labels (4,)
        ```

    Args:
        dataset: training data, a `datasets.Dataset` or `IterableDataset`. The columns are found in the same way as by
            `Trainer`. The column of speakers is read unless it is a `ClassLabel` or `speakers` is given.
        crop_seconds: length of a crop in seconds. Shorter recordings are repeated.
        sampling_rate: sampling rate of the model in Hz.
        audio_column: column of audio; None finds it.
        speaker_column: column of speakers; None finds it.
        speakers: speakers in the order of the class indices; None sorts those of the data set.
        augmentation: augmentation of the crops, such as `hf_hamspk.data.Augmentation`; None leaves them clean.

    Attributes:
        speakers: speakers in the order of the class indices.

    Raises:
        ValueError: a column is missing, there are fewer than 2 speakers, `crop_seconds` is too small, or `datasets`
            would decode the column of audio but torchcodec is not installed.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        crop_seconds: float = 2.015,
        sampling_rate: int = SAMPLING_RATE,
        audio_column: str | None = None,
        speaker_column: str | None = None,
        speakers: Sequence[str] | None = None,
        augmentation: CropAugmentation | None = None,
    ):
        self.columns = columns_of(dataset, audio_column, speaker_column)
        audio = None if dataset.features is None else dataset.features.get(self.columns.audio)
        if isinstance(audio, Audio) and audio.decode and find_spec("torchcodec") is None:
            raise ValueError(
                f"datasets would decode the column {self.columns.audio!r} with torchcodec, but torchcodec is not "
                f"installed. Use dataset.cast_column({self.columns.audio!r}, Audio(decode=False)), also for training. "
                "This package then decodes the audio."
            )
        self.sampling_rate, self.crop_samples = sampling_rate, round(crop_seconds * sampling_rate)
        if self.crop_samples < 1:
            raise ValueError(f"crop_seconds must be above 0, got {crop_seconds}.")
        if speakers is None:
            names = self.columns.names
            found = (
                self.columns.speakers_in(dataset)
                if names is None
                else [self.columns.speaker_of(name, 0) for name in names]
            )
            speakers = sorted(set(found))
        self.speakers = list(speakers)
        require_speakers(self.speakers)
        self.augmentation = augmentation
        self._label_of = {speaker: label for label, speaker in enumerate(self.speakers)}
        self._reported: set[str] = set()

    def labels(self) -> dict[str, Any]:
        """Return the arguments `num_labels`, `id2label` and `label2id` of a configuration for these speakers."""
        return {
            "num_labels": len(self.speakers),
            "id2label": dict(enumerate(self.speakers)),
            "label2id": dict(self._label_of),
        }

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch.

        Returns:
            Dictionary with `input_values`, float32 `(B, L)`, and `labels`, int64 `(B,)`.

        Raises:
            ValueError: a row lacks a column or has an unknown speaker.
            InputError: no row can be read.
        """
        generator = np.random.default_rng(int(torch.randint(1 << 62, ()).item()))
        waveforms, labels = self._read(rows)
        readable = [number for number, waveform in enumerate(waveforms) if waveform is not None]
        if not readable:
            raise InputError(f"none of the {len(rows)} rows of a batch can be read; the log contains the reasons")
        others = [(waveforms[number], labels[number]) for number in readable]
        items = []
        for number in range(len(rows)):
            place = number if waveforms[number] is not None else readable[int(generator.integers(len(readable)))]
            crop = random_crop(waveforms[place], self.crop_samples, generator)
            crop = self._augment(crop, labels[place], others, generator)
            items.append({"input_values": crop, "labels": labels[place]})
        return collate(items)

    def _read(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[int]]:
        """Return the waveform of each row, or None if it cannot be read, and the class index of each row."""
        waveforms: list[Any] = []
        labels = []
        for number, row in enumerate(rows):
            missing = [name for name in (self.columns.audio, self.columns.speaker) if name not in row]
            if missing:
                raise ValueError(
                    f"Expected rows with the column {missing[0]!r}, got the columns [{', '.join(map(repr, row))}]. Set "
                    "remove_unused_columns=False in the arguments of transformers.Trainer."
                )
            speaker = self.columns.speaker_of(row[self.columns.speaker], number)
            name = self.columns.name_of(row, number)
            if speaker not in self._label_of:
                raise ValueError(f"{name}: the speaker {speaker!r} is not among the {len(self.speakers)} speakers.")
            labels.append(self._label_of[speaker])
            try:
                waveforms.append(read_utterance(self.columns.source_of(row), self.sampling_rate, name).waveform)
            except InputError as error:
                waveforms.append(None)
                self._report(error)
        return waveforms, labels

    def _augment(
        self, crop: np.ndarray, label: int, others: list[tuple[np.ndarray, int]], generator: np.random.Generator
    ) -> np.ndarray:
        if self.augmentation is None:
            return crop

        def sample_other(draws: np.random.Generator) -> np.ndarray:
            waveform = others[0][0]
            for _ in range(DRAWS_OF_OTHER_SPEAKER):
                waveform, other_label = others[int(draws.integers(len(others)))]
                if other_label != label:
                    break
            return random_crop(waveform, self.crop_samples, draws)

        try:
            return self.augmentation(crop, generator, sample_other)
        except InputError as error:
            # A file of noise or of a room response cannot be read. The crop stays clean.
            self._report(error)
            return crop

    def _report(self, error: InputError) -> None:
        if error.name not in self._reported:
            self._reported.add(error.name)
            logger.warning("Skipped in training: %s: %s", error.name, error.reason)
