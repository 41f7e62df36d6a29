"""Measure the hierarchy of the embeddings and centres of a model. Each statistic is compared with random points."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..audio_hamspk import Channel
from ..modeling_hamspk import HamSpkForXVector
from ..study.statistics import holm
from .measures import (
    FEWEST_POINTS,
    FEWEST_VALUES,
    Dendrogram,
    average_linkage,
    cophenetic_correlation,
    correlation,
    four_point,
    permutation_p_value,
    permute_within,
    rank_effect,
    ranks_within,
    tree_distortion,
)
from .points import Points, Space, centre_weights, matched_directions, space_of, uniform_directions, unit
from .recordings import EmbeddedRecordings, LabelledTable, embed_table, read_labelled_table, table_root

HIERARCHY_SCHEMA = 1
CENTRES, MEANS, EMBEDDINGS = "centres", "means of speakers", "embeddings"
SPEAKER, OWN_CENTRE = "speaker", "cosine to own centre"
EMBEDDING_NUMBERS = ("seconds", "SNR", "cosine to own speaker")
_TOO_FEW = "there are too few known values, or all values are equal, or no value occurs twice"
# Largest number of points in a dendrogram; number of subsets for the four-point condition; points in each subset.
MOST_POINTS, SUBSETS, SUBSET_POINTS = 400, 4, 40
# A label with more different numbers than this is treated as a number. For dendrograms, the numbers are divided into
# quarters.
MOST_CLASSES = 12
# Fewest draws with which a p-value can reach 0.05.
FEWEST_DRAWS = 19
SHAPE_STATISTICS = ("delta_largest", "delta_mean", "cophenetic", "distortion")
# Whether low or high values of each statistic speak for a hierarchy.
SHAPE_TAILS = {"delta_largest": "low", "delta_mean": "low", "cophenetic": "high", "distortion": "low"}


@dataclass(frozen=True)
class HierarchySettings:
    """Settings of the measurement.

    Attributes:
        labels: columns of the table.
        within: one of `labels`, with one value for each speaker. Speakers are compared, and exchanged by permutations,
            only with speakers that have the same value. If None, all speakers are compared.
        permutations: number of permutations of labels and radii.
        draws: number of random sets of points for each null distribution of the shape. If 0, the shape is not measured.
        seed: random seed.
    """

    labels: tuple[str, ...] = ()
    within: str | None = None
    permutations: int = 999
    draws: int = 99
    seed: int = 0

    def __post_init__(self) -> None:
        if self.within is not None and self.within not in self.labels:
            raise ValueError(f"within must be one of the labels {', '.join(self.labels)}, got {self.within!r}.")
        for name, value in (("permutations", self.permutations), ("draws", self.draws)):
            if value < FEWEST_DRAWS and not (name == "draws" and value == 0):
                also = ", or 0 to leave the shape out" if name == "draws" else ""
                raise ValueError(
                    f"{name} must be at least {FEWEST_DRAWS}, so that p can reach 0.05{also}, got {value}."
                )


@dataclass(frozen=True)
class Measured:
    """Result of `measure_hierarchy`.

    Attributes:
        record: all results, as JSON values.
        sets: the sets of points, by name.
        labels: for each label, the text of each speaker in `speakers`; "" if unknown.
        counts: for each speaker in `speakers`, the number of rows in the table.
        speakers: names of the speakers, in the order of the means.
        centre_speakers: for each centre, the index of its speaker in `speakers`.
        numbers: numeric properties `(N,)` of the speakers by name, NaN if unknown; see `_speaker_numbers`.
    """

    record: dict[str, Any]
    sets: dict[str, Points]
    labels: dict[str, list[str]]
    counts: NDArray[np.int64]
    speakers: list[str]
    centre_speakers: NDArray[np.int64]
    numbers: dict[str, NDArray[np.float64]]


def measure_hierarchy(
    model: HamSpkForXVector,
    table: str | os.PathLike[str],
    settings: HierarchySettings,
    audio_root: str | None = None,
    space: str | None = None,
    channel: Channel = None,
    columns: Mapping[str, str] | None = None,
    centres: bool = True,
    progress: bool = True,
) -> Measured:
    """Embed the recordings of a table, and measure the hierarchy of the embeddings and of the centres of the head.

    Args:
        model: model with its head. Centres are measured only for speakers of the table that the model was trained on.
        table: list of recordings with the speakers and labels.
        settings: settings of the measurement.
        audio_root: base folder of the paths; None for the folder of the table.
        space: space of the head, one of `points.SPACES`; None for the space of the configuration.
        channel: channel of the recordings; see `read_sound`.
        columns: `audio_column` and `speaker_column` of the table (see `read_labelled_table`).
        centres: whether the model has trained centres.
        progress: whether to show a progress bar.

    Raises:
        ValueError: the table or the settings are invalid, or fewer than 4 speakers have usable recordings.
    """
    where = space_of(model.config, space)
    rows = read_labelled_table(table, settings.labels, **({} if columns is None else columns))
    _check_within(rows, settings.within)
    found = embed_table(model, rows, table_root(table, audio_root), channel, progress)
    weights = centre_weights(model.head) if centres else np.empty((0, 0))
    names: Any = model.config.id2label
    known = {str(names[label]): row for label, row in enumerate(weights)}
    own = {speaker: known[speaker] for speaker in set(found.table.speakers) if speaker in known}
    measured = analyse(found, own, where, settings)
    measured.record["model"] = {
        "head": model.config.head,
        "fingerprint": model.fingerprint(),
        "space": {"name": where.name, "curvature": where.curvature, "clip_radius": where.clip_radius},
    }
    return measured


def analyse(
    found: EmbeddedRecordings,
    centres: Mapping[str, NDArray[np.float64]],
    space: Space,
    settings: HierarchySettings,
) -> Measured:
    """Measure the hierarchy of embeddings and centres.

    Args:
        found: embeddings with their speakers and labels.
        centres: centres `(D,)` by speaker. Speakers without a centre are left out.
        space: space of the embeddings and centres.
        settings: settings of the measurement.

    Raises:
        ValueError: there are fewer than 4 speakers, or a speaker has several values of the column `within`.
    """
    _check_within(found.table, settings.within)
    generator = np.random.default_rng(settings.seed)
    speakers, of_speaker = np.unique(np.array(found.table.speakers), return_inverse=True)
    if len(speakers) < FEWEST_POINTS:
        raise ValueError(f"Expected at least {FEWEST_POINTS} speakers with usable recordings, got {len(speakers)}.")
    directions, count = unit(found.embeddings), np.bincount(of_speaker)
    norms = np.bincount(of_speaker, np.linalg.norm(found.embeddings, axis=1)) / count
    means = unit(np.stack([directions[of_speaker == one].mean(0) for one in range(len(speakers))])) * norms[:, None]
    with_centre = np.array([place for place, name in enumerate(speakers) if str(name) in centres], int)
    sets = {MEANS: Points(means, space), EMBEDDINGS: Points(found.embeddings, space)}
    if len(with_centre) >= FEWEST_POINTS:
        sets = {CENTRES: Points(np.stack([centres[str(speakers[i])] for i in with_centre]), space)} | sets
    labels, own_labels = _speaker_labels(found, of_speaker, len(speakers), settings.labels)
    strata = _strata(labels.get(settings.within or "", [""] * len(speakers)))
    measured = sets if settings.draws else {}
    shapes = {name: measure_shape(points, settings, generator) for name, points in measured.items()}
    numbers = _speaker_numbers(found, of_speaker, len(speakers))
    if CENTRES in sets:
        numbers |= {OWN_CENTRE: _own_cosines(found, of_speaker, sets[CENTRES], with_centre, len(speakers))}
    radii = _radius_rows(found, sets, of_speaker, with_centre, labels, numbers, strata, settings, generator)
    trees = _tree_rows(found, sets, of_speaker, with_centre, labels, own_labels, strata, settings, generator)
    record = {
        "schema": HIERARCHY_SCHEMA,
        "counts": {
            "speakers": len(speakers),
            "recordings": len(found.embeddings),
            "centres": len(with_centre),
            "unusable": len(found.unusable),
        },
        "settings": asdict(settings) | {"labels": list(settings.labels)},
        "radii": {name: _summary(points.radii) for name, points in sets.items()},
        "shape": shapes,
        "radius_relations": radii,
        "trees": trees,
        "left_out": _omissions(found, sets, labels, own_labels, numbers, radii, trees),
        "unusable_files": found.unusable,
    }
    rows = np.bincount(of_speaker, found.table.repetitions).astype(int)
    return Measured(record, sets, labels, rows, [str(name) for name in speakers], with_centre, numbers)


def _summary(radii: NDArray[np.float64]) -> dict[str, float]:
    quantiles = np.quantile(radii, [0.05, 0.5, 0.95])
    spread = float(radii.std() / radii.mean()) if radii.mean() > 0 else 0.0
    names = ("low", "median", "high")
    return {name: _digits(float(value)) for name, value in zip(names, quantiles, strict=True)} | {
        "relative_spread": _digits(spread)
    }


def _digits(value: float) -> float:
    return float(f"{value:.5g}")


# -- shape -------------------------------------------------------------------------------------------------------------


def measure_shape(points: Points, settings: HierarchySettings, generator: np.random.Generator) -> dict[str, Any]:
    """Measure how similar the distances of points are to distances in a tree.

    Args:
        points: points; at most 400 of them are drawn.
        settings: settings of the measurement.
        generator: source of the random draws.

    Returns:
        A dictionary for each of `SHAPE_STATISTICS`. It has the observed `value`. For each of the null distributions
        `"uniform"` and `"matched"`, it has the `mean` of the draws and the p-value `p`, which is the probability that a
        draw is at least as similar to a tree.
    """
    if len(points) > MOST_POINTS:
        points = points.take(generator.permutation(len(points))[:MOST_POINTS])
    subsets = [generator.permutation(len(points))[:SUBSET_POINTS] for _ in range(SUBSETS)]
    observed = _shape_of(points, subsets)
    result: dict[str, Any] = {name: {"value": _digits(observed[name])} for name in SHAPE_STATISTICS}
    for kind, source in (("uniform", uniform_directions(points)), ("matched", matched_directions(points))):
        drawn = [_shape_of(source(generator), subsets) for _ in range(settings.draws)]
        for name in SHAPE_STATISTICS:
            values = [one[name] for one in drawn]
            result[name][kind] = {
                "mean": _digits(float(np.mean(values))),
                "p": permutation_p_value(observed[name], values, SHAPE_TAILS[name]),
            }
    return result


def _shape_of(points: Points, subsets: Sequence[NDArray]) -> dict[str, float]:
    distances = points.distances()
    deltas = [four_point(distances[np.ix_(subset, subset)]) for subset in subsets]
    tree = average_linkage(distances)
    return {
        "delta_largest": float(np.mean([delta.largest for delta in deltas])),
        "delta_mean": float(np.mean([delta.mean for delta in deltas])),
        "cophenetic": cophenetic_correlation(distances, tree),
        "distortion": tree_distortion(distances, int(subsets[0][0])),
    }


# -- labels ------------------------------------------------------------------------------------------------------------


def _speaker_labels(
    found: EmbeddedRecordings, of_speaker: NDArray, speakers: int, names: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the values of labels that are constant within each speaker, and the names of the other labels."""
    of_speakers: dict[str, list[str]] = {}
    varying = []
    for name in names:
        values: list[set[str]] = [set() for _ in range(speakers)]
        for place, value in zip(of_speaker, found.table.labels[name], strict=True):
            values[place] |= {value} - {""}
        if any(len(one) > 1 for one in values):
            varying.append(name)
        else:
            of_speakers[name] = [next(iter(one), "") for one in values]
    return of_speakers, varying


def _check_within(table: LabelledTable, within: str | None) -> None:
    """Raise a ValueError if a speaker has several values of the column `within`."""
    first: dict[str, str] = {}
    values = [] if within is None else zip(table.speakers, table.labels[within], strict=True)
    for speaker, value in values:
        if value and first.setdefault(speaker, value) != value:
            raise ValueError(
                f"Expected one value of the column {within!r} for each speaker, but {speaker} has {first[speaker]!r} "
                f"and {value!r}. Choose another column for within."
            )


def label_classes(values: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Divide values into classes. Return the index of each value's class (-1 for ""), and the names of the classes.

    Usually each distinct value is a class. If the values are numbers and many of them differ, the classes are the four
    quarters of the sorted numbers, and the name of a class is its range.
    """
    known = [value for value in values if value]
    numbers = label_numbers(values)
    if numbers is not None and len(set(known)) > MOST_CLASSES:
        edges = np.quantile(numbers[np.isfinite(numbers)], [0.25, 0.5, 0.75])
        quarter = np.searchsorted(edges, numbers, side="right")
        classes = np.where(np.isfinite(numbers), quarter, -1)
        own = [numbers[classes == one] for one in range(4)]
        return classes, [f"{one.min():g} to {one.max():g}" if len(one) else "none" for one in own]
    names = sorted(set(known))
    place = {name: number for number, name in enumerate(names)}
    return np.array([place.get(value, -1) for value in values]), names


def label_numbers(values: Sequence[str]) -> NDArray[np.float64] | None:
    """Return the values as numbers, with NaN for "". Return None if a value is not a number, or if all are equal."""
    try:
        numbers = np.array([float(value) if value else np.nan for value in values])
    except ValueError:
        return None
    known = numbers[np.isfinite(numbers)]
    return numbers if len(known) and known.min() < known.max() else None


def _strata(values: Sequence[str]) -> NDArray[np.int64]:
    return np.unique(np.array(values), return_inverse=True)[1]


# -- radii -------------------------------------------------------------------------------------------------------------


def _radius_rows(
    found: EmbeddedRecordings,
    sets: Mapping[str, Points],
    of_speaker: NDArray[np.int64],
    with_centre: NDArray[np.int64],
    labels: Mapping[str, Sequence[str]],
    numbers: Mapping[str, NDArray[np.float64]],
    strata: NDArray[np.int64],
    settings: HierarchySettings,
    generator: np.random.Generator,
) -> list[dict[str, Any]]:
    """Return the relations of radii with numbers and labels. The p-values are corrected for the number of relations."""
    everyone = np.arange(len(strata))
    rows = []
    for name, places in ((CENTRES, with_centre), (MEANS, everyone)):
        if name not in sets or _is_constant(sets[name].radii):
            continue
        known = {one: values for one, values in numbers.items() if name == CENTRES or one != OWN_CENTRE}
        for note in dict.fromkeys([None, settings.within]):
            group = np.zeros_like(strata) if note is None else strata
            rows += _relate(name, sets[name].radii, known, labels, places, group, note, settings, generator)
    if not _is_constant(sets[EMBEDDINGS].radii):
        values = (found.seconds, found.snr, _leave_one_out(found, of_speaker))
        own: dict[str, NDArray[np.float64]] = dict(zip(EMBEDDING_NUMBERS, values, strict=True))
        places, radii = np.arange(len(of_speaker)), sets[EMBEDDINGS].radii
        rows += _relate(EMBEDDINGS, radii, own, {}, places, of_speaker, SPEAKER, settings, generator)
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["holm"] = round(corrected, 6)
    return rows


def _omissions(
    found: EmbeddedRecordings,
    sets: Mapping[str, Points],
    labels: Mapping[str, Sequence[str]],
    varying: Sequence[str],
    numbers: Mapping[str, NDArray[np.float64]],
    radii: Sequence[Mapping[str, Any]],
    trees: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Return the parts of the tables that are missing, each with the reason."""
    sentences = []
    for name in [*labels, *varying]:
        empty = found.table.labels[name].count("")
        if empty:
            sentences.append(f"{empty} of {len(found.embeddings)} recordings, which have no value in the column {name}")
    sentences += [f"relations of radii with {name}, because its values vary within a speaker" for name in varying]
    for points in sets:
        of_speakers = points != EMBEDDINGS
        own = {*numbers, *labels} if of_speakers else {*EMBEDDING_NUMBERS}
        own -= set() if points == CENTRES else {OWN_CENTRE}
        missing = sorted(own - {row["what"] for row in radii if row["points"] == points})
        if _is_constant(sets[points].radii):
            sentences.append(f"relations of the radii of {points}, because these radii are all equal")
        elif missing:
            sentences.append(f"relations of the radii of {points} with {', '.join(missing)}: {_TOO_FEW}")
        known = {row["label"] for row in trees if row["points"] == points}
        missing = sorted({*(labels if of_speakers else varying)} - known)
        if missing:
            sentences.append(f"dendrograms of {points} and {', '.join(missing)}: {_TOO_FEW}")
    return sentences


def _is_constant(radii: NDArray[np.float64]) -> bool:
    """Return whether radii do not vary, for example because all vectors are clipped."""
    return float(np.ptp(radii)) <= 1e-6 * float(radii.max())


def _relate(
    points: str,
    radii: NDArray[np.float64],
    numbers: Mapping[str, NDArray[np.float64]],
    labels: Mapping[str, Sequence[str]],
    places: NDArray[np.int64],
    strata: NDArray[np.int64],
    within: str | None,
    settings: HierarchySettings,
    generator: np.random.Generator,
) -> list[dict[str, Any]]:
    """Return how radii are related to numbers (rank correlation) and to labels (share of the rank variance)."""
    given = [(name, values[places], False) for name, values in numbers.items()]
    for name, values in labels.items():
        own = [str(values[i]) for i in places]
        as_numbers = label_numbers(own) if len(set(own)) > 2 else None
        classes = label_classes(own)[0].astype(float)
        given.append((name, classes, True) if as_numbers is None else (name, as_numbers, False))
    rows = []
    for name, values, is_class in given:
        known = (values >= 0) if is_class else np.isfinite(values)
        group, chosen, own = strata[places][known], values[known], radii[known]
        if name == within or len(chosen) < FEWEST_VALUES or len(np.unique(chosen)) < 2:
            continue
        ranks = ranks_within(own, group)
        others = np.unique(chosen, return_inverse=True)[1] if is_class else ranks_within(chosen, group)
        if not others.any():
            continue
        statistic = rank_effect if is_class else correlation
        observed = statistic(ranks, others)
        drawn = [statistic(ranks[permute_within(group, generator)], others) for _ in range(settings.permutations)]
        rows.append(
            {
                "points": points,
                "what": name,
                "kind": "share" if is_class else "correlation",
                "within": within,
                "count": len(chosen),
                "value": _digits(observed),
                "null": _digits(float(np.mean(drawn))),
                "p": permutation_p_value(observed, drawn, "high" if is_class else "both"),
            }
        )
    return rows


def _speaker_numbers(found: EmbeddedRecordings, of_speaker: NDArray[np.int64], count: int) -> dict[str, NDArray]:
    """Return the number of rows, the mean angle between embeddings, the mean duration and the mean SNR by speaker."""
    sizes = np.bincount(of_speaker, minlength=count)
    spread, directions = np.full(count, np.nan), unit(found.embeddings)
    for one in range(count):
        own = directions[of_speaker == one]
        if len(own) > 1:
            cosines = (own @ own.T)[np.triu_indices(len(own), 1)]
            spread[one] = float(np.arccos(np.clip(cosines, -1, 1)).mean())
    return {
        "utterances": np.bincount(of_speaker, found.table.repetitions, minlength=count).astype(float),
        "spread": spread,
        "seconds": np.bincount(of_speaker, found.seconds, minlength=count) / sizes,
        "SNR": np.bincount(of_speaker, found.snr, minlength=count) / sizes,
    }


def _own_cosines(
    found: EmbeddedRecordings, of_speaker: NDArray, centres: Points, with_centre: NDArray, count: int
) -> NDArray[np.float64]:
    """Return the mean cosine of the embeddings of each speaker to the centre of the speaker; NaN without a centre."""
    directions = np.full((count, found.embeddings.shape[1]), np.nan)
    directions[with_centre] = centres.directions
    cosines = (unit(found.embeddings) * directions[of_speaker]).sum(1)
    return np.bincount(of_speaker, cosines, minlength=count) / np.bincount(of_speaker, minlength=count)


def _leave_one_out(found: EmbeddedRecordings, of_speaker: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the cosine of each embedding to the mean direction of its speaker's other embeddings; NaN if none."""
    directions = unit(found.embeddings)
    sums = np.zeros((int(of_speaker.max()) + 1, directions.shape[1]))
    np.add.at(sums, of_speaker, directions)
    others = sums[of_speaker] - directions
    alone = np.bincount(of_speaker)[of_speaker] == 1
    return np.where(alone, np.nan, (directions * unit(others)).sum(1))


# -- trees -------------------------------------------------------------------------------------------------------------


def _tree_rows(
    found: EmbeddedRecordings,
    sets: Mapping[str, Points],
    of_speaker: NDArray[np.int64],
    with_centre: NDArray[np.int64],
    labels: Mapping[str, Sequence[str]],
    varying: Sequence[str],
    strata: NDArray[np.int64],
    settings: HierarchySettings,
    generator: np.random.Generator,
) -> list[dict[str, Any]]:
    """Return the agreement of dendrograms with labels. The p-values are corrected for the number of rows."""
    rows = []
    for name, places in ((CENTRES, with_centre), (MEANS, np.arange(len(strata)))):
        if name not in sets:
            continue
        kept = generator.permutation(len(places))[:MOST_POINTS]
        distances, where = sets[name].take(kept).distances(), places[kept]
        for label, values in labels.items():
            classes = label_classes([str(values[i]) for i in where])[0]
            rows += _agree(name, label, distances, classes, np.zeros(len(where), int), None, settings, generator)
            if settings.within is not None and label != settings.within:
                rows += _agree(name, label, distances, classes, strata[where], settings.within, settings, generator)
    chosen = _whole_speakers(of_speaker, generator)
    distances = sets[EMBEDDINGS].take(chosen).distances()
    one = np.zeros(len(chosen), int)
    rows += _agree(EMBEDDINGS, SPEAKER, distances, of_speaker[chosen], one, None, settings, generator)
    for label in varying:
        classes = label_classes([found.table.labels[label][i] for i in chosen])[0]
        rows += _agree(EMBEDDINGS, label, distances, classes, of_speaker[chosen], SPEAKER, settings, generator)
    for key in ("purity", "agreement"):
        for row, corrected in zip(rows, holm([row[key]["p"] for row in rows]), strict=True):
            row[key]["holm"] = round(corrected, 6)
    return rows


def _whole_speakers(of_speaker: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw speakers until they have `MOST_POINTS` or more embeddings, and return the indices of these embeddings."""
    chosen: list[int] = []
    for speaker in generator.permutation(int(of_speaker.max()) + 1):
        chosen += np.flatnonzero(of_speaker == speaker).tolist()
        if len(chosen) >= MOST_POINTS:
            break
    return np.array(chosen[: 2 * MOST_POINTS])


def _agree(
    points: str,
    label: str,
    distances: NDArray[np.float64],
    classes: NDArray[np.int64],
    strata: NDArray[np.int64],
    within: str | None,
    settings: HierarchySettings,
    generator: np.random.Generator,
) -> list[dict[str, Any]]:
    """Return purity and agreement of a dendrogram for one label, or [] if it has fewer than two usable classes."""
    known = classes >= 0
    classes, strata = np.unique(classes[known], return_inverse=True)[1], strata[known]
    sizes = np.bincount(classes) if len(classes) else np.zeros(0, int)
    is_fixed = all(len(np.unique(classes[strata == one])) == 1 for one in np.unique(strata))
    if len(classes) < FEWEST_POINTS or len(sizes) < 2 or sizes.max() < 2 or is_fixed:
        return []
    tree = Dendrogram(average_linkage(distances[np.ix_(known, known)]))
    statistics: dict[str, Callable[[NDArray[np.int64]], float]] = {"purity": tree.purity, "agreement": tree.agreement}
    orders = [permute_within(strata, generator) for _ in range(settings.permutations)]
    row: dict[str, Any] = {
        "points": points,
        "label": label,
        "within": within,
        "count": len(classes),
        "classes": len(sizes),
    }
    for name, statistic in statistics.items():
        observed, drawn = statistic(classes), [statistic(classes[order]) for order in orders]
        row[name] = {
            "value": _digits(observed),
            "null": _digits(float(np.mean(drawn))),
            "p": permutation_p_value(observed, drawn, "high"),
        }
    return [row]
