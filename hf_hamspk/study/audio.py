"""Recordings of a study. A process decodes each recording once, and uses it in all of its runs."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..audio_hamspk import Channel
from ..data.audio import read_utterance
from ..data.dataset import INT16_SCALE, CorpusUtterances
from ..evaluation.calibration_metrics import convex_hull
from ..evaluation.evaluating import list_names
from ..evaluation.matrix_scoring import score_pairs
from ..evaluation.metrics import equal_error_rate
from ..evaluation.speakers import TrialSpeakers, find_speakers
from ..evaluation.trials import Trials, check_trial_files, read_trials
from ..modeling_hamspk import HamSpkForXVector
from ..training.arguments import DataArguments
from ..training.corpora import open_corpus
from ..training.frames import FrameStore
from ..training.trial_lists import trial_root

# Decoded audio is kept without a limit: 100 hours take 11 GB.
UNLIMITED = 1 << 40
# A held-out fold has as target trials all pairs of the first FOLD_UTTERANCES utterances of each speaker, and
# FOLD_IMPOSTORS random impostor trials.
FOLD_UTTERANCES, FOLD_IMPOSTORS = 8, 5000


class ListSounds:
    """Trial lists of a study and their recordings, which stay in memory as 16-bit integers.

    Args:
        lists: trials of each list, by the name of the list.
        root: base folder of the paths in the lists.
        rate: sampling rate in Hz.
        channel: channel of the recordings to read; see `read_sound`.

    Attributes:
        lists: trials of each list, by the name of the list.
    """

    def __init__(self, lists: Mapping[str, Trials], root: str, rate: int, channel: Channel = None):
        for trials in lists.values():
            check_trial_files(trials, root)
        self.lists, self.root, self.rate, self.channel = dict(lists), root, rate, channel
        self._sounds: dict[str, NDArray[np.int16]] = {}

    def speakers(self) -> dict[str, tuple[Trials, TrialSpeakers]]:
        """Return the trials of each list and the speakers of these trials, by the name of the list."""
        return {name: (trials, find_speakers(trials)) for name, trials in self.lists.items()}

    def score(
        self, model: HamSpkForXVector, names: Sequence[str], frames: FrameStore | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """Return the scores `(N,)` of each of the named lists.

        If `frames` is given, the embeddings are computed from these stored frames of the model and not from the audio.
        """
        files = sorted({file for name in names for file in self.lists[name].files})
        row = {file: number for number, file in enumerate(files)}
        waveforms = [self.read(file) for file in files]
        found = model.embed_waveforms(waveforms) if frames is None else frames.embed(waveforms)
        embeddings = found.cpu()[:, None]
        scores = {}
        for name in names:
            trials = self.lists[name]
            enrolment, test = (np.array([row[file] for file in side]) for side in (trials.enrolment, trials.test))
            scores[name] = score_pairs(model, embeddings, enrolment, test)
        return scores

    def read(self, file: str) -> NDArray[np.float32]:
        """Return the samples `(L,)` of a recording of the lists."""
        if file not in self._sounds:
            waveform = read_utterance(Path(self.root) / file, self.rate, channel=self.channel).waveform
            self._sounds[file] = np.clip(np.rint(waveform * INT16_SCALE), -INT16_SCALE, INT16_SCALE - 1).astype(
                np.int16
            )
        return self._sounds[file].astype(np.float32) / np.float32(INT16_SCALE)


class StudyAudio:
    """Training utterances and trial lists of a study, read when they are needed.

    Args:
        data: arguments of the data.
        dev, tests: paths of the development lists and of the test lists.
        folds: number of folds of the training speakers; 0 if the runs are tuned on the development lists.
        rate: sampling rate in Hz.
    """

    def __init__(self, data: DataArguments, dev: Sequence[str], tests: Sequence[str], folds: int, rate: int):
        self.data, self.folds, self.rate = data, folds, rate
        names = list_names([*dev, *tests])
        self.dev, self.tests = ([names[path] for path in paths] for paths in (dev, tests))
        root = trial_root(data)
        self.sounds = ListSounds({names[path]: read_trials(path) for path in (*dev, *tests)}, root, rate, data.channel)
        self._corpus: Any = None
        self._utterances: dict[int | None, CorpusUtterances] = {}

    def corpus(self) -> Any:
        """Return the checked training corpus, a data set with the columns `path` and `speaker`."""
        if self._corpus is None:
            found, _ = open_corpus(self.data, self.rate, lambda text: None, False)
            if not isinstance(found, CorpusUtterances):
                raise ValueError(
                    "train_data of a study must be a CSV file or a folder of speaker/.../utterance.flac, got shards."
                )
            self._corpus = found.corpus
        return self._corpus

    def utterances(self, fold: int | None) -> CorpusUtterances:
        """Return the training utterances, except those of the speakers of the held-out fold."""
        if fold not in self._utterances:
            rows = self.corpus()
            if fold is not None:
                held = set(self._fold_speakers(fold))
                rows = rows.select([i for i, speaker in enumerate(rows["speaker"]) if speaker not in held])
            self._utterances.clear()  # One fold at a time is in memory.
            self._utterances[fold] = CorpusUtterances(rows, self.rate, cache_bytes=UNLIMITED, channel=self.data.channel)
        return self._utterances[fold]

    def dev_sounds(self, fold: int | None) -> tuple[ListSounds, list[str]]:
        """Return the recordings and the names of the lists on which a run with this held-out fold is evaluated."""
        if fold is None:
            return self.sounds, self.dev
        name = f"fold{fold}"
        return ListSounds({name: self._fold_trials(fold)}, "", self.rate, self.data.channel), [name]

    def _fold_speakers(self, fold: int) -> list[str]:
        speakers = sorted(set(self.corpus()["speaker"]))
        order = np.random.default_rng(0).permutation(len(speakers))
        return [speakers[i] for i in order[fold - 1 :: self.folds]]

    def _fold_trials(self, fold: int) -> Trials:
        """Return trials of the speakers of a fold."""
        of_speaker: dict[str, list[str]] = {speaker: [] for speaker in self._fold_speakers(fold)}
        for row in self.corpus():
            if row["speaker"] in of_speaker:
                of_speaker[row["speaker"]].append(str(Path(row["path"]).resolve()))
        targets = [pair for own in of_speaker.values() for pair in itertools.combinations(own[:FOLD_UTTERANCES], 2)]
        everyone, draws = list(of_speaker.values()), np.random.default_rng(fold)
        impostors = []
        for _ in range(FOLD_IMPOSTORS):
            first, second = draws.choice(len(everyone), 2, replace=False)
            impostors.append(tuple(everyone[i][draws.integers(len(everyone[i]))] for i in (first, second)))
        pairs = [*targets, *impostors]
        labels = [1] * len(targets) + [0] * len(impostors)
        return Trials(np.array(labels), tuple(a for a, _ in pairs), tuple(b for _, b in pairs))


def list_errors(scores: NDArray, trials: Trials) -> dict[str, float]:
    """Return the EER and the minCllr of scores, rounded to six digits."""
    eer = equal_error_rate(scores, trials.labels).eer
    cost = convex_hull(scores, trials.labels).log_likelihood_ratio_cost()
    return {"eer": round(float(eer), 6), "min_cllr": round(cost, 6)}


def device_name(model: HamSpkForXVector) -> str:
    """Return the name of the device of a model."""
    device = model.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
