"""The Space without its page: read two recordings, compare them, explain the answer, place the score on a histogram.

Needs torch, transformers, huggingface_hub, numpy, soundfile, av and matplotlib, not the package that made the model:
the code that travels with the model reads the recordings.
"""

import html
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from matplotlib.figure import Figure
from transformers import AutoModel

EVALUATION_FILE = "evaluation.json"
RATIO = "log-likelihood ratio"
SAME, DIFFERENT = "same speaker", "different speakers"
_HEADLINES = {SAME: "Same speaker", DIFFERENT: "Different speakers", "not enough speech": "Not enough speech"}
_CLASSES = {SAME: "same", DIFFERENT: "different"}
# Larger ratios are not supported by any calibration data.
_MOST_TIMES = 1e6
_TARGETS, _IMPOSTORS = "#0072B2", "#D55E00"


def load_model(name: str, revision: str | None = None) -> Any:
    """The model of a folder, or of a name on the Hub, with the code that travels with it.

    Raises:
        ValueError: a folder without a model, or a model of another kind.
        OSError: neither a folder nor a model on the Hub has this name.
    """
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "config.json")):
        raise ValueError(
            f"The folder {name} holds no config.json; give the folder of a model, such as a run's 'final'."
        )
    if not os.path.isdir(name) and (os.path.isabs(name) or name.count("/") > 1 or name.startswith(".")):
        raise ValueError(f"There is no folder {name}; give the folder of a model, or its name on the Hub.")
    model = AutoModel.from_pretrained(name, revision=revision, trust_remote_code=True)
    if not hasattr(model, "verify"):
        raise ValueError(f"{name} is no speaker verification model: it has no verify().")
    return model.eval()


def read_evaluation(name: str, revision: str | None = None) -> dict[str, Any] | None:
    """The content of `evaluation.json` beside the weights; None if there is none."""
    if os.path.isdir(name):
        path = Path(name) / EVALUATION_FILE
        if not path.is_file():
            return None
    else:
        try:
            path = Path(hf_hub_download(name, EVALUATION_FILE, revision=revision))
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return None
    values = json.loads(path.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else None


def compare(model: Any, first: str, second: str, operating_point: str | None = None) -> Any:
    """The model's answer for two files; a model without a calibration gives a score and no decision.

    Raises:
        ValueError: a recording cannot be used; the message can be shown.
    """
    # As bytes: messages would name the paths of this machine.
    recordings = [Path(path).read_bytes() for path in (first, second)]
    return model.verify(*recordings, operating_point=operating_point)


def points_of(model: Any) -> list[str]:
    """Names of the operating points, the default first; none for a model without a calibration."""
    return [] if model.calibration is None else [point.name for point in model.calibration.operating_points]


def describe_point(model: Any, name: str | None) -> str:
    """The assumptions of an operating point, in words."""
    if model.calibration is None:
        return "This model is not calibrated: it gives scores, no decisions."
    point = model.calibration.operating_point(name)
    return (
        f"“{point.name}”: before the comparison, {100 * point.prior:g} % of the pairs are taken to be of one speaker; "
        f"taking one speaker for two costs {point.cost_miss:g}, two for one costs {point.cost_false_alarm:g}. So "
        f"the {RATIO} must reach {point.threshold:.2f}."
    )


def meaning_of(model: Any, answer: Any) -> list[str]:
    """Sentences that explain the numbers of an answer."""
    if answer.score is None:
        return ["No score is given: too little speech was found to compare voices."]
    sentences = []
    ratio = answer.log_likelihood_ratio
    if ratio is None:
        sentences.append(
            f"The score is {answer.score:.3f} ({model.config.similarity}; larger is more alike). The model is not "
            f"calibrated, so it has no {RATIO}."
        )
    else:
        times = min(math.exp(min(abs(ratio), 50.0)), _MOST_TIMES)
        more = "more than " if times == _MOST_TIMES else ""
        than = ("one speaker", "two") if ratio >= 0 else ("two speakers", "one")
        sentences.append(
            f"The {RATIO} is {ratio:.2f}: recordings like these are {more}{_number(times)} times likelier if they are "
            f"of {than[0]} than if of {than[1]}."
        )
    if answer.decision is None:
        sentences.append("Nothing is decided: that takes a threshold, measured on recordings like these.")
    else:
        side = "reaches" if answer.decision == SAME else "stays below"
        sentences.append(f"That {side} {answer.threshold:.2f}, the threshold at “{answer.operating_point}”.")
    return sentences


def verdict_html(model: Any, answer: Any) -> str:
    """The answer as HTML."""
    headline = "A score, no decision" if answer.decision is None else _HEADLINES[answer.decision]
    parts = [f'<h2 class="{_CLASSES.get(str(answer.decision), "none")}">{headline}</h2>']
    parts += [f"<p>{html.escape(sentence)}</p>" for sentence in meaning_of(model, answer)]
    if answer.warnings:
        items = "".join(f"<li>{html.escape(warning)}</li>" for warning in answer.warnings)
        parts.append(f'<ul class="warnings">{items}</ul>')
    rows = [("speech in the first recording", f"{sum(answer.enrolment_speech):.1f} s")]
    rows.append(("speech in the second recording", f"{answer.test_speech:.1f} s"))
    if answer.score is not None:
        rows.append((f"score ({model.config.similarity})", f"{answer.score:.4f}"))
    if answer.normalised_score is not None:
        rows.append(("normalised score", f"{answer.normalised_score:.4f}"))
    table = "".join(f"<tr><td>{html.escape(name)}</td><td>{value}</td></tr>" for name, value in rows)
    return f'<div class="verdict">{"".join(parts)}<table>{table}</table></div>'


def error_html(message: str) -> str:
    """An error message as HTML."""
    return f'<div class="verdict"><h2 class="none">No answer</h2><p>{html.escape(message)}</p></div>'


def histograms_of(
    evaluation: Mapping[str, Any] | None, fingerprint: str, calibration: str | None = None
) -> tuple[dict[str, dict[str, Any]], str]:
    """The histograms of an evaluation that the answers of a model can be placed on.

    Args:
        evaluation: content of `evaluation.json`.
        fingerprint: of the model.
        calibration: checksum of the model's calibration; None if the model is not calibrated.

    Returns:
        Name of a trial list to `scores` and `histogram` (of log-likelihood ratios if they were measured with this
        calibration, else of raw scores), and the reason if there are none.
    """
    if evaluation is None:
        return {}, f"The model comes without {EVALUATION_FILE}, so there is no histogram to place the score on."
    of = evaluation.get("model")
    if isinstance(of, Mapping) and of.get("fingerprint") not in (None, fingerprint):
        return {}, f"{EVALUATION_FILE} was measured with other weights than these: the score is not placed on it."
    lists, found = evaluation.get("lists"), {}
    for name, record in lists.items() if isinstance(lists, Mapping) else ():
        if not isinstance(record, Mapping):
            continue
        decisions = record.get("decisions")
        if isinstance(decisions, Mapping) and decisions.get("calibration") in (None, calibration):
            record = decisions if isinstance(decisions.get("histogram"), Mapping) else record
        if isinstance(record.get("histogram"), Mapping):
            found[str(name)] = {key: record.get(key) for key in ("scores", "histogram")}
    return found, "" if found else f"{EVALUATION_FILE} holds no histogram of scores."


def place_on(record: Mapping[str, Any], answer: Any) -> tuple[float | None, float | None]:
    """The value of an answer and its threshold on the histogram of a list; None for one that does not exist there."""
    if record.get("scores") == RATIO:
        return answer.log_likelihood_ratio, answer.threshold
    return answer.score, None


def shares(histogram: Mapping[str, Any], value: float) -> tuple[float, float]:
    """The share of targets that score lower than a value, and the share of impostors that score at least as high.

    Trials are taken to be spread evenly within a bin.
    """
    edges = np.asarray(histogram["edges"], dtype=np.float64)
    below = []
    for kind in ("targets", "impostors"):
        counts = np.asarray(histogram[kind], dtype=np.float64)
        total = np.concatenate([[0.0], np.cumsum(counts)])
        below.append(float(np.interp(value, edges, total) / total[-1]) if total[-1] > 0 else math.nan)
    return below[0], 1.0 - below[1]


def histogram_sentence(name: str, record: Mapping[str, Any], answer: Any) -> str:
    """The place of an answer among the trials of a list, in words."""
    value, _ = place_on(record, answer)
    if value is None:
        return "There is no score to place." if answer.score is None else f"{name} was measured with other scores."
    lower, higher = shares(record["histogram"], value)
    return (
        f"On {name}, {_percent(lower)} of the pairs of one speaker scored lower than this, and {_percent(higher)} of "
        "the pairs of two speakers higher. That list is not your recordings: microphones and languages shift both."
    )


def draw_histogram(name: str, record: Mapping[str, Any], answer: Any = None) -> Figure:
    """The scores of a trial list, each kind as a density, with the answer and its threshold as lines."""
    histogram = record["histogram"]
    edges = np.asarray(histogram["edges"], dtype=np.float64)
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for label, kind, colour in (("one speaker", "targets", _TARGETS), ("two speakers", "impostors", _IMPOSTORS)):
        counts = np.asarray(histogram[kind], dtype=np.float64)
        area = float((counts * np.diff(edges)).sum())
        density = counts / area if area > 0 else counts
        axes.stairs(density, edges, fill=True, alpha=0.3, color=colour)
        axes.stairs(density, edges, linewidth=1.4, color=colour, label=f"{label} ({counts.sum():.0f} pairs)")
    value, threshold = (None, None) if answer is None else place_on(record, answer)
    if threshold is not None:
        axes.axvline(threshold, color="#555555", linestyle="--", linewidth=1.2, label=f"threshold {threshold:.2f}")
    if value is not None:
        axes.axvline(value, color="black", linewidth=2.2, label=f"yours {value:.2f}")
    axes.set_xlabel(str(record.get("scores", "score")))
    axes.set_ylabel("density")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    # Outside, as the histogram may leave no room.
    figure.legend(loc="outside right upper", frameon=False, title=name)
    return figure


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _number(value: float) -> str:
    """A factor of likelihoods to two significant figures."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:.1f}"
