"""Error rates against the recording condition: short, noisy, reverberant or coded recordings; `hamspk sweep`.

The test side of every trial is changed and the enrolment is not: people enrol under good conditions and are verified
under any. Scores are the raw ones of whole recordings, over all trials whose files can be read.

Letters: `N` trials, `D` embedding size.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.conditions import SWEEPS, Condition, sweep_conditions
from ..modeling_hamspk import HamSpkPreTrainedModel
from .evaluating import SomeModel, TrialListLike, check_replicates, given_model, list_digest, read_lists
from .intervals import CONFIDENCE, FEWEST_SPEAKERS, REPLICATES, bootstrap
from .matrix_scoring import score_pairs
from .metrics import detection_errors
from .results import PLOT_FOLDER, EvaluationRecord, software
from .speakers import TrialSpeakers, find_speakers, group_trials, speaker_table
from .trials import Trials
from .verification import EmbeddedFiles, embed_files, trial_rows, usable_trials


@dataclass(frozen=True)
class SweepPoint:
    """A model under one condition, or on one group of trials.

    Attributes:
        condition: name.
        value: strength; None if it has none.
        trials: number of scored trials.
        targets: number of target trials among them.
        eer: equal error rate, a fraction; None if the trials are not of both kinds.
        eer_interval: confidence limits; None if the speakers are unknown or too few.
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
        """For JSON."""
        interval = None if self.eer_interval is None else list(self.eer_interval)
        return asdict(self) | {"eer_interval": interval}


@dataclass(frozen=True, eq=False)
class Sweep:
    """A model on one trial list under several conditions; what `sweep` returns.

    Attributes:
        record: the content of `evaluation.json`.
        name: of the trial list.
        points: kind of condition to its points.
        failures: unreadable file to reason.
    """

    record: EvaluationRecord
    name: str
    points: dict[str, list[SweepPoint]]
    failures: dict[str, str] = field(default_factory=dict)

    def write(self, folder: str | os.PathLike[str]) -> tuple[list[Path], list[str]]:
        """Write `evaluation.json`, `report.html` and `plots/`, together with what is there of the same weights.

        Args:
            folder: best the model's own, where `hamspk push` and the Space look for the record.

        Returns:
            The paths of the files, and sentences about what was replaced.

        Raises:
            ValueError: the folder holds an `evaluation.json` that this package did not write.
        """
        # matplotlib is imported only where something is drawn.
        from .plots import draw_sweep
        from .report import write_measurements

        return write_measurements(self.record, folder, lambda: draw_sweep(self, Path(folder) / PLOT_FOLDER))


def sweep(
    model: SomeModel,
    trials: TrialListLike,
    audio_root: str | os.PathLike[str] = ".",
    over: Sequence[str] = SWEEPS,
    values: Sequence[float] | None = None,
    *,
    metadata: Mapping[str, Mapping[str, str]] | None = None,
    group_by: Sequence[str] = (),
    replicates: int = REPLICATES,
    progress: bool = True,
    announce: Callable[[str, list[SweepPoint]], None] | None = None,
) -> Sweep:
    """Measure the EER of a model with the test recordings under several conditions.

    Args:
        model: a model, its folder, or its name on the Hub.
        trials: a list: a path or `Trials`.
        audio_root: folder of the files in the list.
        over: kinds of conditions, of `data.conditions.SWEEPS`.
        values: strengths, if `over` names one kind; None for those of the kind.
        metadata: file to columns, from `read_metadata`; the column `speaker_id` gives the speakers.
        group_by: columns of `metadata`; the error rates of the unchanged recordings are measured within each of their
            values, and where both sides are the same or differ.
        replicates: resamplings of the speakers for the intervals; 0 for no intervals.
        progress: show progress bars.
        announce: called with each kind and its points as soon as they are measured.

    Raises:
        ValueError: a model, list or file is missing, the metadata does not fit, or there is nothing to measure.
    """
    if values is not None and len(over) != 1:
        raise ValueError(f"values belong to one condition; over names {len(over)}.")
    if not over and not group_by:
        raise ValueError("There is nothing to sweep: name conditions (over) or columns (group_by).")
    check_replicates(replicates)
    conditions = {kind: sweep_conditions(kind, values) for kind in over}
    ((name, chosen),) = read_lists(trials, audio_root).items()
    model = given_model(model)
    table = speaker_table(metadata) if metadata else None
    measured = ConditionSweep(model, chosen, audio_root, table, replicates, progress=progress)
    points: dict[str, list[SweepPoint]] = {}
    for kind, steps in conditions.items():
        points[kind] = [measured.measure(step) for step in steps]
        if announce is not None:
            announce(kind, points[kind])
    for column in group_by:
        points[column] = measured.measure_groups({} if metadata is None else metadata, column)
        if announce is not None:
            announce(column, points[column])
    record = EvaluationRecord.of_model(model)
    record.sweeps[name] = {
        "digest": list_digest(chosen),
        "trials": len(measured.trials),
        "targets": int(measured.trials.labels.sum()),
        "skipped": len(chosen) - len(measured.trials),
        "unusable_files": measured.failures,
        "scores": model.config.similarity,
        "confidence": CONFIDENCE,
        "replicates": replicates,
        **software(),
        "conditions": {kind: [point.to_dict() for point in of_kind] for kind, of_kind in points.items()},
    }
    return Sweep(record, name, points, measured.failures)


class ConditionSweep:
    """Trials whose files are embedded once unchanged, and then under each condition.

    Args:
        model: embeds and scores.
        trials: the list.
        audio_root: folder of its files.
        speaker_table: file to speaker; None takes the speakers from the names of the files.
        replicates: of the intervals; 0 for no intervals.
        confidence: of the intervals.
        progress: show progress bars.

    Attributes:
        trials: those whose files can be read.
        failures: unreadable file to reason.

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
        self._unchanged: SweepPoint | None = None
        self._speakers: TrialSpeakers | str
        try:
            self._speakers = find_speakers(self.trials, speaker_table)
        except ValueError as error:
            if speaker_table is not None:
                raise
            self._speakers = str(error)

    def measure(self, condition: Condition) -> SweepPoint:
        """The error rate with the test recordings under a condition; that of the unchanged ones is measured once."""
        if condition.change is None and self._unchanged is not None:
            return self._unchanged
        scores = self._scores(condition)
        point = self._point(condition.label, condition.value, scores, np.ones(len(scores), dtype=bool))
        if condition.change is None:
            self._unchanged = point
        return point

    def measure_groups(self, metadata: Mapping[str, Mapping[str, str]], column: str) -> list[SweepPoint]:
        """The error rates of the unchanged recordings within each group, and where both sides are the same or differ.

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
        masks[f"same {column}"] = known & (sides[0] == sides[1])
        masks[f"different {column}"] = known & (sides[0] != sides[1])
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
    """A sweep as a text table."""
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
