"""Training on stored frames. The output of a model's frozen part is computed once for each whole recording.

Each recording has one file `<hash of the frozen part>-<hash of the samples>.npy`, which contains the frames as float32
`(T, C)`. Runs with the same frozen part share the files. A training step reads only the frames of its crops.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..audio_hamspk import InputError
from ..data.crops import random_crop
from ..data.dataset import CorpusUtterances, SpeakerCrops
from ..folders.writing import write_atomically
from ..networks_hamspk import Deviation, StatisticsPooling
from .frozen import DIGEST_DIGITS, DividedModel


class FrameStore:
    """Folder with the frames of recordings. The frames of a recording are computed when they are first needed.

    Args:
        folder: folder, made if necessary. It may also contain files of other frozen parts or other recordings.
        model: divided model, whose frozen part computes the frames.

    Attributes:
        computed: number of recordings whose frames this object computed.
    """

    def __init__(self, folder: str | Path, model: DividedModel):
        self.folder, self.model, self.prefix = Path(folder), model, model.digest()
        self.computed = 0
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"frame_folder must be a folder, got the file {self.folder}. Choose another path.")
        self.folder.mkdir(parents=True, exist_ok=True)

    def find(self, waveform: NDArray[np.float32]) -> Path:
        """Return the file with the frames of a waveform `(L,)`. If the file does not exist, write it first."""
        digest = hashlib.sha256(np.ascontiguousarray(waveform, np.float32).tobytes()).hexdigest()[:DIGEST_DIGITS]
        path = self.folder / f"{self.prefix}-{digest}.npy"
        if not path.is_file():
            frames = self.compute(waveform)
            write_atomically(path, lambda temporary: _save_frames(temporary, frames))
            self.computed += 1
        return path

    def compute(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the frames `(T, C)` of a waveform `(L,)`. Long recordings are cut into pieces, as for embeddings."""
        config = self.model.model.config
        count = max(1, math.ceil(len(waveform) / (config.longest_piece * config.sampling_rate)))
        pieces = [torch.from_numpy(np.array(piece))[None] for piece in np.array_split(waveform, count)]
        parts = [self.model.frozen_output(piece)[0].mT.float().cpu().numpy() for piece in pieces]
        return np.concatenate(parts)

    def embed(self, waveforms: Iterable[NDArray[np.float32]]) -> Tensor:
        """Return the embeddings `(N, D)` of complete waveforms `(L,)`, computed from their frames."""
        return self.embed_files([self.find(waveform) for waveform in waveforms])

    def embed_files(self, files: Sequence[Path]) -> Tensor:
        """Return the embeddings `(N, D)` of the frames in files."""
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            pooled = torch.stack([self._pool_file(file) for file in files])
            embeddings = self.model.embed_pooled(pooled.to(self.model.model.device)).float()
        self.model.train(was_training)
        return embeddings

    def _pool_file(self, file: Path) -> Tensor:
        if self.model.fixed_pooling is not None:
            return _frozen_statistics(file, self.model.fixed_pooling)
        frames = torch.from_numpy(np.array(read_frames(file))).to(self.model.model.device)
        return self.model.pool(frames.mT[None])[0]

    def crop_frames(self, samples: int) -> int:
        """Return the number of frames in a crop of `samples` samples."""
        return self.model.frozen_output(torch.zeros(1, samples)).shape[-1]


_STATISTICS: dict[tuple[Path, Deviation], Tensor] = {}


def _frozen_statistics(file: Path, pooling: StatisticsPooling) -> Tensor:
    """Return the pooled statistics `(P,)` of all frames in a file. A process pools each file only once."""
    key = file, pooling.deviation
    if key not in _STATISTICS:
        _STATISTICS[key] = pooling(torch.from_numpy(np.array(read_frames(file))).mT[None])[0]
    return _STATISTICS[key]


def _save_frames(path: Path, frames: NDArray[np.float32]) -> None:
    # With a file object, NumPy does not append .npy to the temporary name.
    with open(path, "wb") as file:
        np.save(file, frames, allow_pickle=False)


def read_frames(path: Path) -> NDArray[np.float32]:
    """Return the frames `(T, C)` in a file as a memory-mapped array, so that only the frames in use are read.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}). Delete it. The next run computes the frames again.") from error
    return frames


class FrameCrops(SpeakerCrops):
    """Training set of random crops of frames, indexed like `SpeakerCrops`.

    Args:
        crops: training set of the recordings, without augmentation and changes of speed.
        store: folder with the frames.
        progress: whether to show a progress bar while frames are computed.

    Raises:
        ValueError: the source of the utterances cannot return complete recordings.
    """

    def __init__(self, crops: SpeakerCrops, store: FrameStore, progress: bool = False):
        utterances = crops.utterances
        if not isinstance(utterances, CorpusUtterances):
            raise ValueError(
                "frame_folder needs train_data as files or a data set with random access, because each recording is "
                "read as a whole. Remove frame_folder, or pass a list of recordings."
            )
        super().__init__(utterances, crops.label_of, crops.crop_samples, crops.seed, sampling_rate=crops.sampling_rate)
        self.crop_frames = store.crop_frames(crops.crop_samples)
        self._pooling = store.model.fixed_pooling
        self._files: list[Path | None] = []
        for number in tqdm(range(len(utterances)), desc="frames", unit="file", disable=not progress, delay=1):
            self._files.append(self._find(utterances, number, store.find))

    def _find(
        self, utterances: CorpusUtterances, number: int, find: Callable[[NDArray[np.float32]], Path]
    ) -> Path | None:
        """Return the file with the frames of an utterance; None if the recording cannot be read."""
        try:
            return find(utterances.whole(number))
        except InputError as error:
            self._note_failure(error.name if error.name else utterances.name(number), error.reason)
            return None

    def embeddings(self, store: FrameStore) -> tuple[Tensor, Tensor]:
        """Return the embeddings `(N, D)` and the labels `(N,)` of all readable recordings."""
        held = [(number, file) for number, file in enumerate(self._files) if file is not None]
        labels = [self.label_of[self.utterances.speaker(number)] for number, _ in held]
        return store.embed_files([file for _, file in held]).clone(), torch.tensor(labels)

    @property
    def megabytes(self) -> float:
        """Size of the files in megabytes."""
        return sum(file.stat().st_size for file in self._files if file is not None) / 1e6

    def __getitem__(self, index: tuple[int, int]) -> dict[str, object]:
        """Return a random crop of the frames, float32 `(C, T)`, and the label; see `SpeakerCrops`.

        If the pooling has no parameters to learn, the pooled statistics `(P,)` are returned instead of the frames.
        """
        epoch, sample = index
        generator = np.random.default_rng((self.seed, epoch, sample))
        for utterance in self.utterances.candidates(sample):
            file = self._files[utterance]
            if file is not None:
                frames = read_frames(file)
                at = random_crop(np.arange(len(frames)), self.crop_frames, generator)
                label = self.label_of[self.utterances.speaker(utterance)]
                crop = np.asarray(frames[at]).T
                if self._pooling is not None:
                    crop = self._pooling(torch.from_numpy(crop)[None])[0].numpy()
                return {"input_values": np.ascontiguousarray(crop), "labels": label}
        raise InputError(f"none of the {len(self._files)} recordings can be read")
