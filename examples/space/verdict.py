"""Functions of the Space: compare two recordings, explain the answer, and draw the score on a histogram.

torch, transformers, huggingface_hub, numpy, soundfile, av and matplotlib are needed, but not the package that made the
model: the code beside the weights reads the recordings.
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
# Seconds of the longest recording, and largest number of decoded samples times channels, as at the endpoint. They bound
# the memory that a visitor's file can take.
LIMITS = {"seconds": 120.0, "values": 1 << 24, "remote": False}
_HEADLINES = {SAME: "Same speaker", DIFFERENT: "Different speakers", "not enough speech": "Not enough speech"}
_CLASSES = {SAME: "same", DIFFERENT: "different"}
# No calibration data supports larger likelihood ratios.
_MOST_TIMES = 1e6
_TARGETS, _IMPOSTORS = "#0072B2", "#D55E00"


def load_model(name: str, revision: str | None = None) -> Any:
    """Load a model from a folder or from the Hub, with the code that is saved beside its weights.

    Raises:
        ValueError: the folder does not exist or contains no model, or the model cannot verify speakers.
        OSError: the Hub has no model with this name.
    """
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "config.json")):
        raise ValueError(f"No config.json in the folder {name}. Give the folder of a model, such as a run's 'final'.")
    if not os.path.isdir(name) and (os.path.isabs(name) or name.count("/") > 1 or name.startswith(".")):
        raise ValueError(f"Folder not found: {name}. Give the folder of a model, or its name on the Hub.")
    model = AutoModel.from_pretrained(name, revision=revision, trust_remote_code=True)
    if not hasattr(model, "verify"):
        raise ValueError(f"{name} is not a speaker verification model: it has no method verify().")
    return model.eval()


def read_evaluation(name: str, revision: str | None = None) -> dict[str, Any] | None:
    """Read `evaluation.json` beside the weights; return None if the file does not exist."""
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
    """Return the model's answer for two files; a model without a calibration gives a score but no decision.

    Raises:
        ValueError: a recording cannot be used; the message is safe to show to the visitor.
    """
    # As bytes, because error messages would name the paths on this machine.
    recordings = [Path(path).read_bytes() for path in (first, second)]
    return model.verify(*recordings, operating_point=operating_point, limits=LIMITS)


def points_of(model: Any) -> list[str]:
    """Return the names of the operating points, the default first; empty for a model without a calibration."""
    return [] if model.calibration is None else [point.name for point in model.calibration.operating_points]


def describe_point(model: Any, name: str | None) -> str:
    """Return a sentence that explains prior, costs and threshold of an operating point."""
    if model.calibration is None:
        return "This model is not calibrated: it gives scores but no decisions."
    point = model.calibration.operating_point(name)
    flaw = getattr(point, "flaw", None)
    warning = "" if flaw is None else f"**{flaw}** "
    return (
        f"{warning}"
        f"Operating point “{point.name}”: the prior probability of the same speaker is {100 * point.prior:g} %. A miss "
        f"(one speaker taken for two) costs {point.cost_miss:g}, a false alarm (two speakers taken for one) costs "
        f"{point.cost_false_alarm:g}. The {RATIO} must therefore reach {point.threshold:.2f} for “same speaker”."
    )


def meaning_of(model: Any, answer: Any) -> list[str]:
    """Return sentences that explain the numbers of an answer."""
    if answer.score is None:
        return ["There is no score, because the recordings contain too little speech."]
    sentences = []
    ratio = answer.log_likelihood_ratio
    if ratio is None:
        sentences.append(
            f"The score is {answer.score:.3f} ({model.config.similarity}; a larger score means more similar voices). "
            f"The model is not calibrated, so it gives no {RATIO}."
        )
    else:
        times = min(math.exp(min(abs(ratio), 50.0)), _MOST_TIMES)
        more = "more than " if times == _MOST_TIMES else ""
        than = ("one speaker", "two") if ratio >= 0 else ("two speakers", "one")
        sentences.append(
            f"The {RATIO} is {ratio:.2f}: recordings like these are {more}{_number(times)} times more probable if they "
            f"are of {than[0]} than if they are of {than[1]}."
        )
    if answer.decision is None:
        sentences.append("There is no decision: it needs a threshold that was measured on recordings like these.")
    else:
        side = "reaches" if answer.decision == SAME else "stays below"
        sentences.append(f"That {side} {answer.threshold:.2f}, the threshold at “{answer.operating_point}”.")
    return sentences


def verdict_html(model: Any, answer: Any) -> str:
    """Format an answer as HTML."""
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
    """Format an error message as HTML."""
    return f'<div class="verdict"><h2 class="none">No answer</h2><p>{html.escape(message)}</p></div>'


def histograms_of(
    evaluation: Mapping[str, Any] | None, fingerprint: str, calibration: str | None = None
) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the histograms of an evaluation on which the answers of a model can be marked.

    Args:
        evaluation: content of `evaluation.json`; None if the model was not evaluated.
        fingerprint: fingerprint of the model's weights.
        calibration: checksum of the model's calibration; None if the model is not calibrated.

    Returns:
        A mapping of each trial list to its `scores` and `histogram`, and the reason if the mapping is empty. The
        histogram is of log-likelihood ratios if they were measured with this calibration, and else of raw scores.
    """
    if evaluation is None:
        return {}, f"The model has no {EVALUATION_FILE}, so there is no histogram of scores."
    of = evaluation.get("model")
    measured = str((of.get("fingerprint") if isinstance(of, Mapping) else None) or fingerprint)
    # Fingerprints of earlier versions do not contain the settings of the model at their end.
    if not (fingerprint.startswith(measured) or measured.startswith(fingerprint)):
        return {}, f"{EVALUATION_FILE} was measured with other weights or settings, so its histogram is not shown."
    lists, found = evaluation.get("lists"), {}
    for name, record in lists.items() if isinstance(lists, Mapping) else ():
        if not isinstance(record, Mapping):
            continue
        decisions = record.get("decisions")
        if isinstance(decisions, Mapping) and decisions.get("calibration") in (None, calibration):
            record = decisions if isinstance(decisions.get("histogram"), Mapping) else record
        if isinstance(record.get("histogram"), Mapping):
            found[str(name)] = {key: record.get(key) for key in ("scores", "histogram")}
    return found, "" if found else f"{EVALUATION_FILE} contains no histogram of scores."


def place_on(record: Mapping[str, Any], answer: Any) -> tuple[float | None, float | None]:
    """Return the value of an answer and the threshold on the axis of a list's histogram; None for a missing one."""
    if record.get("scores") == RATIO:
        return answer.log_likelihood_ratio, answer.threshold
    return answer.score, None


def shares(histogram: Mapping[str, Any], value: float) -> tuple[float, float]:
    """Return the share of targets with a score below a value, and the share of impostors with a score at or above it.

    The scores are assumed to be spread evenly within each bin.
    """
    edges = np.asarray(histogram["edges"], dtype=np.float64)
    below = []
    for kind in ("targets", "impostors"):
        counts = np.asarray(histogram[kind], dtype=np.float64)
        total = np.concatenate([[0.0], np.cumsum(counts)])
        below.append(float(np.interp(value, edges, total) / total[-1]) if total[-1] > 0 else math.nan)
    return below[0], 1.0 - below[1]


def histogram_sentence(name: str, record: Mapping[str, Any], answer: Any) -> str:
    """Return a sentence that compares an answer with the trials of a list."""
    value, _ = place_on(record, answer)
    if value is None:
        return (
            "There is no score to compare."
            if answer.score is None
            else f"{name} was measured with another kind of scores, so the answer is not marked on it."
        )
    lower, higher = shares(record["histogram"], value)
    return (
        f"On {name}, {_percent(lower)} of the pairs of one speaker scored lower than your pair, and {_percent(higher)} "
        "of the pairs of two speakers scored at least as high. Both shares depend on microphones and languages."
    )


def draw_histogram(name: str, record: Mapping[str, Any], answer: Any = None) -> Figure:
    """Draw the score densities of targets and impostors of a trial list, with the answer and threshold as lines."""
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
    # Outside the axes, because the histogram may leave no space.
    figure.legend(loc="outside right upper", frameon=False, title=name)
    return figure


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _number(value: float) -> str:
    """Format a likelihood ratio with two significant figures."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:.1f}"
