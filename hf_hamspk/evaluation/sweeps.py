"""Error rates against the recording condition: how a model fares where recordings are short, noisy or coded.

The test side of every trial is changed and the enrolment stays as it is: people enrol with care, and are then heard
wherever they are. Scores are those of whole recordings, not normalised and not calibrated.

Letters: `N` trials, `D` embedding size.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.conditions import Condition
from ..modeling_hamspk import HamSpkPreTrainedModel
from .intervals import CONFIDENCE, FEWEST_SPEAKERS, REPLICATES, bootstrap
from .matrix_scoring import score_pairs
from .metrics import detection_errors
from .speakers import TrialSpeakers, find_speakers, group_trials
from .trials import Trials
from .verification import EmbeddedFiles, embed_files, trial_rows, usable_trials

SAME, DIFFERENT = "same", "different"


@dataclass(frozen=True)
class SweepPoint:
    """A model under one condition, or on one group of trials.

    Attributes:
        condition: its name.
        value: its strength; None where it has none.
        trials: that were scored.
        targets: of them.
        eer: equal error rate, a fraction; None where the trials are not of both kinds.
        eer_interval: confidence limits; None where the speakers are unknown or too few.
        note: why something is None.
    """

    condition: str
    value: float | None
    trials: int
    targets: int
    eer: float | None
    eer_interval: tuple[float, float] | None
    note: str | None = None

    def to_dict(self) -> dict:
        """What JSON can hold."""
        return asdict(self)


class ConditionSweep:
    """Trials whose files are embedded once as they are, and then under each condition.

    Args:
        model: embeds and compares.
        trials: the list.
        audio_root: folder of its files.
        speaker_table: file to speaker; None goes by the names of the files.
        replicates: of the intervals; 0 for none.
        confidence: of the intervals.
        progress: show bars.

    Attributes:
        trials: those that can be used.
        failures: file to the reason why it could not be.

    Raises:
        ValueError: no target or no impostor trial is left, or the table does not fit the list.
    """

    def __init__(
        self,
        model: HamSpkPreTrainedModel,
        trials: Trials,
        audio_root: str | os.PathLike[str],
        speaker_table: Mapping[str, str] | None = None,
        replicates: int = REPLICATES,
        confidence: float = CONFIDENCE,
        progress: bool = True,
    ):
        self.model, self._root, self._progress = model, audio_root, progress
        self._replicates, self._confidence = replicates, confidence
        self._clean = embed_files(model, trials.files, audio_root, progress=progress)
        self.failures = self._clean.failures
        self.trials = usable_trials(trials, self.failures)
        self._speakers: TrialSpeakers | str
        try:
            self._speakers = find_speakers(self.trials, speaker_table)
        except ValueError as error:
            if speaker_table is not None:
                raise
            self._speakers = str(error)

    def measure(self, condition: Condition) -> SweepPoint:
        """The error rate with the test recordings under a condition."""
        scores = self._scores(condition)
        return self._point(condition.label, condition.value, scores, np.ones(len(scores), dtype=bool))

    def measure_groups(self, metadata: Mapping[str, Mapping[str, str]], column: str) -> list[SweepPoint]:
        """The error rates of the recordings as they are: within each group, where both sides are alike, and differ.

        Args:
            metadata: file to columns.
            column: such as `language` or `session`.

        Raises:
            ValueError: there is no such column.
        """
        scores = self._scores(Condition("as it is", None))
        masks = group_trials(self.trials, metadata, [column])
        sides = [
            np.array([metadata.get(name, {}).get(column, "") for name in names])
            for names in (self.trials.enrolment, self.trials.test)
        ]
        known = (sides[0] != "") & (sides[1] != "")
        masks[f"{SAME} {column}"] = known & (sides[0] == sides[1])
        masks[f"{DIFFERENT} {column}"] = known & (sides[0] != sides[1])
        return [self._point(label, None, scores, mask) for label, mask in masks.items() if mask.any()]

    def _scores(self, condition: Condition) -> NDArray[np.float64]:
        table, enrolment, test = trial_rows(self.trials, self._clean)
        if condition.change is None:
            return score_pairs(self.model, table, enrolment, test)
        changed: EmbeddedFiles = embed_files(
            self.model,
            sorted(set(self.trials.test)),
            self._root,
            progress=self._progress,
            change=lambda name, waveform: condition.apply(waveform, self.model.config.sampling_rate, name),
        )
        row = {name: len(table) + i for i, name in enumerate(changed.embeddings)}
        test = np.array([row[name] for name in self.trials.test])
        return score_pairs(
            self.model, torch.cat([table, *(e[None] for e in changed.embeddings.values())]), enrolment, test
        )

    def _point(
        self, label: str, value: float | None, scores: NDArray[np.float64], mask: NDArray[np.bool_]
    ) -> SweepPoint:
        scores, labels = scores[mask], self.trials.labels[mask]
        counts = len(labels), int(labels.sum())
        if not 0 < counts[1] < counts[0]:
            return SweepPoint(label, value, *counts, None, None, "not of both kinds")
        eer = detection_errors(scores, labels).equal_error_rate().eer
        if isinstance(self._speakers, str) or self._replicates == 0:
            note = "no intervals were asked for" if self._replicates == 0 else str(self._speakers)
            return SweepPoint(label, value, *counts, eer, None, note)
        speakers = self._speakers.select(mask)
        if len(speakers.names) < FEWEST_SPEAKERS:
            return SweepPoint(
                label, value, *counts, eer, None, f"{len(speakers.names)} speakers are too few to resample"
            )
        spread = bootstrap(
            scores, labels, speakers, (), False, self._replicates, self._confidence, progress=self._progress
        )
        return SweepPoint(label, value, *counts, eer, spread.interval("eer"))


def format_sweep(kind: str, points: Sequence[SweepPoint]) -> str:
    """A table for people."""
    width = max(len(kind), *(len(point.condition) for point in points))
    lines = [f"{kind:{width}}  {'trials':>8}  {'targets':>8}  {'EER %':>7}  interval"]
    for point in points:
        eer = "-" if point.eer is None else f"{100 * point.eer:.2f}"
        limits = (
            point.note
            if point.eer_interval is None
            else "[{:.2f}, {:.2f}]".format(*(100 * limit for limit in point.eer_interval))
        )
        lines.append(f"{point.condition:{width}}  {point.trials:>8}  {point.targets:>8}  {eer:>7}  {limits}")
    return "\n".join(lines)
