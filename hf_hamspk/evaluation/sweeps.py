"""Measure the EER under recording conditions, such as short duration, noise, reverberation or audio coding.

`hamspk sweep` prints these measurements. A condition changes the test recording of every trial and leaves the enrolment
unchanged, because in practice speakers enrol under good conditions and are verified under any condition. The EER is
computed from the raw scores of all trials whose files can be read.

Letters: `N` trials, `D` embedding size.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..audio_hamspk import Channel, choose_channel
from ..data.conditions import SWEEPS, Condition, sweep_conditions
from ..loading.models import SomeModel, given_model
from ..modeling_hamspk import SpeakerModelMixin
from .evaluating import TrialListLike, check_replicates, list_digest, read_lists
from .intervals import CONFIDENCE, FEWEST_SPEAKERS, REPLICATES, bootstrap
from .matrix_scoring import score_pairs
from .metrics import detection_errors
from .results import PLOT_FOLDER, EvaluationRecord, software
from .speakers import TrialSpeakers, find_speakers, group_trials, speaker_table
from .trials import Trials
from .verification import EmbeddedFiles, embed_files, trial_rows, usable_trials


@dataclass(frozen=True)
class SweepPoint:
    """EER of a model under one condition, or on one group of trials.

    Attributes:
        condition: name of the condition or of the group.
        value: strength of the condition; None if the condition has no strength.
        trials: number of scored trials.
        targets: number of target trials among the scored trials.
        eer: equal error rate, a fraction in [0, 1]; None if target or impostor trials are missing.
        eer_interval: lower and upper confidence limit of the equal error rate; None if not measured.
        note: reason why `eer` or `eer_interval` is None; None if both were measured.
    """

    condition: str
    value: float | None
    trials: int
    targets: int
    eer: float | None
    eer_interval: tuple[float, float] | None
    note: str | None = None

    def to_dict(self) -> dict:
        """Return the attributes as a dictionary for JSON."""
        interval = None if self.eer_interval is None else list(self.eer_interval)
        return asdict(self) | {"eer_interval": interval}


@dataclass(frozen=True, eq=False)
class Sweep:
    """Result of `sweep`: the EER of a model on one trial list under several conditions.

    Attributes:
        record: content of `evaluation.json`.
        name: name of the trial list.
        points: maps each kind of condition, and each column of `group_by`, to its points.
        failures: maps each file that could not be used, in all or in some conditions, to the reason.
    """

    record: EvaluationRecord
    name: str
    points: dict[str, list[SweepPoint]]
    failures: dict[str, str] = field(default_factory=dict)

    def write(self, folder: str | os.PathLike[str]) -> tuple[list[Path], list[str]]:
        """Write `evaluation.json`, `report.html` and `plots/` into a folder.

        Earlier measurements of the same weights in the folder are kept, unless this result contains new measurements
        of the same kind on a trial list with the same name.

        Args:
            folder: output folder. Prefer the folder of the model, because `hamspk push` and the Space read the record
                there.

        Returns:
            The paths of the written files, and one sentence for each replaced measurement.

        Raises:
            ValueError: the folder contains an `evaluation.json` that this package did not write.
        """
        # These imports load matplotlib, so they are delayed until plots are drawn.
        from .plots import draw_sweep
        from .report import write_measurements

        return write_measurements(self.record, folder, lambda: draw_sweep(self, Path(folder) / PLOT_FOLDER))


def sweep(  # noqa: PLR0913 - the options of a command, by keyword
    model: SomeModel,
    trials: TrialListLike,
    audio_root: str | os.PathLike[str] = ".",
    over: Sequence[str] = SWEEPS,
    values: Sequence[float] | None = None,
    *,
    metadata: Mapping[str, Mapping[str, str]] | None = None,
    group_by: Sequence[str] = (),
    replicates: int = REPLICATES,
    channel: Channel = None,
    progress: bool = True,
    announce: Callable[[str, list[SweepPoint]], None] | None = None,
) -> Sweep:
    """Measure the EER of a model on a trial list under several conditions of the test recordings.

    Args:
        model: model, its folder, or its name on the Hub.
        trials: trial list, a path or `Trials`.
        audio_root: folder to which the file names in the list are relative.
        over: kinds of conditions, from `data.conditions.SWEEPS`.
        values: strengths of the conditions; only allowed if `over` has exactly one kind. None uses the default
            strengths of each kind.
        metadata: maps each file to its columns, as returned by `read_metadata`; the column `speaker_id` contains the
            speaker of the file.
        group_by: names of columns of `metadata`. For each column, the EER of the unchanged recordings is measured on
            the groups of trials that `ConditionSweep.measure_groups` describes.
        replicates: number of bootstrap draws of the speakers for the confidence intervals, at least 100; 0 measures no
            intervals.
        channel: channel of the recordings to read; see `read_sound`.
        progress: whether to show progress bars.
        announce: function to call after the points of each kind of condition, and of each column of `group_by`, have
            been measured. Its arguments are the name of the kind or column and the list of points.

    Raises:
        ValueError: a model, list or file is missing, the metadata does not match the list, an option is out of range,
            or both `over` and `group_by` are empty.
    """
    if values is not None and len(over) != 1:
        raise ValueError(
            f"values requires exactly one kind of condition in over, got {len(over)}. Name one kind, or omit values."
        )
    if not over and not group_by:
        raise ValueError("over and group_by are both empty. Name kinds of conditions (over) or columns (group_by).")
    check_replicates(replicates)
    choose_channel(None, channel)
    conditions = {kind: sweep_conditions(kind, values) for kind in over}
    ((name, chosen),) = read_lists(trials, audio_root).items()
    model = given_model(model)
    table = speaker_table(metadata) if metadata else None
    measured = ConditionSweep(model, chosen, audio_root, table, replicates, progress=progress, channel=channel)
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
        **software(model),
        "conditions": {kind: [point.to_dict() for point in of_kind] for kind, of_kind in points.items()},
    }
    return Sweep(record, name, points, measured.failures)


class ConditionSweep:
    """Measurement of one trial list under several conditions. The unchanged files are embedded only once.

    Args:
        model: model that embeds the files and scores the trials.
        trials: trial list.
        audio_root: folder to which the file names in the list are relative.
        speaker_table: maps each file to its speaker; None infers the speakers from the file names.
        replicates: number of bootstrap draws of the speakers for the confidence intervals; 0 for no intervals.
        confidence: confidence level of the intervals, in (0, 1).
        progress: whether to show progress bars.
        channel: channel of the recordings to read; see `read_sound`.

    Attributes:
        trials: trials whose files can be read.
        failures: maps each file that could not be used, in all or in some conditions, to the reason.

    Raises:
        ValueError: no target or no impostor trial remains, or the speakers in the table do not match the list.
    """

    def __init__(
        self,
        model: SpeakerModelMixin,
        trials: Trials,
        audio_root: str | os.PathLike[str],
        speaker_table: Mapping[str, str] | None = None,
        replicates: int = REPLICATES,
        confidence: float = CONFIDENCE,
        progress: bool = True,
        channel: Channel = None,
    ):
        self.model, self._root, self._progress, self._channel = model, audio_root, progress, channel
        self._replicates, self._confidence = replicates, confidence
        self._clean = embed_files(model, trials.files, audio_root, progress=progress, channel=channel)
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
        """Measure the EER with the test recordings under a condition.

        The EER of the unchanged recordings is measured only once and then reused.
        """
        if condition.change is None and self._unchanged is not None:
            return self._unchanged
        point = self._point(condition.label, condition.value, *self._scores(condition))
        if condition.change is None:
            self._unchanged = point
        return point

    def measure_groups(self, metadata: Mapping[str, Mapping[str, str]], column: str) -> list[SweepPoint]:
        """Measure the EER of the unchanged recordings on groups of trials, which a column of the metadata defines.

        Each value of the column has a group, which contains the trials whose two files both have this value. Two more
        groups contain all trials whose two files have equal values, and all trials whose two files have different
        values. Groups without trials are left out.

        Args:
            metadata: maps each file to its columns.
            column: name of a column, such as `language` or `session`.

        Raises:
            ValueError: the metadata does not contain the column.
        """
        scores, _ = self._scores(Condition("as it is", None))
        masks = group_trials(self.trials, metadata, [column])
        sides = [
            np.array([metadata.get(name, {}).get(column, "") for name in names])
            for names in (self.trials.enrolment, self.trials.test)
        ]
        known = (sides[0] != "") & (sides[1] != "")
        masks[f"same {column}"] = known & (sides[0] == sides[1])
        masks[f"different {column}"] = known & (sides[0] != sides[1])
        return [self._point(label, None, scores, mask) for label, mask in masks.items() if mask.any()]

    def _scores(self, condition: Condition) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the scores of the trials, and a mask of the trials whose test recording could be embedded."""
        table, enrolment, test = trial_rows(self.trials, self._clean)
        if condition.change is None:
            return score_pairs(self.model, table, enrolment, test), np.ones(len(test), dtype=bool)
        changed: EmbeddedFiles = embed_files(
            self.model,
            sorted(set(self.trials.test)),
            self._root,
            progress=self._progress,
            change=lambda name, waveform: condition.apply(waveform, self.model.config.sampling_rate, name),
            channel=self._channel,
        )
        row = {name: len(table) + i for i, name in enumerate(changed.embeddings)}
        test = np.array([row.get(name, -1) for name in self.trials.test])
        table = torch.cat([table, *(e[None] for e in changed.embeddings.values())])
        self.failures.update(changed.failures)
        scores, usable = np.full(len(test), np.nan), test >= 0
        scores[usable] = score_pairs(self.model, table, enrolment[usable], test[usable])
        return scores, usable

    def _point(
        self, label: str, value: float | None, scores: NDArray[np.float64], mask: NDArray[np.bool_]
    ) -> SweepPoint:
        scores, labels = scores[mask], self.trials.labels[mask]
        counts = len(labels), int(labels.sum())
        if not 0 < counts[1] < counts[0]:
            return SweepPoint(label, value, *counts, None, None, "target or impostor trials are missing")
        eer = detection_errors(scores, labels).equal_error_rate().eer
        if isinstance(self._speakers, str) or self._replicates == 0:
            note = "no intervals were requested" if self._replicates == 0 else str(self._speakers)
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
    """Format the points of a sweep as a text table."""
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
