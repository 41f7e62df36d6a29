"""Web page that compares two recordings: the decision, an explanation, and the score on a histogram.

Usage:
    python app.py MODEL

MODEL is a folder or a name on the Hub. On a Space, set the variable MODEL (and MODEL_REVISION, a commit) instead.
trust_remote_code=True runs the code that is saved beside the weights.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Set before gradio is imported, so that it sends no analytics.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from verdict import (
    compare,
    describe_point,
    draw_histogram,
    error_html,
    histogram_sentence,
    histograms_of,
    load_model,
    points_of,
    read_evaluation,
    verdict_html,
)

CSS = """
.verdict h2 {margin: 0 0 .4em 0; padding: .35em .7em; border-radius: 8px; color: white}
.verdict h2.same {background: #00694f} .verdict h2.different {background: #a33c00} .verdict h2.none {background: #555}
.verdict .warnings {margin: .6em 0 .6em 1.2em; list-style: disc} .verdict td {padding: .1em 1.2em .1em 0}
"""
PRIVACY = (
    "A voice is biometric data. Compare only voices of people who agreed to it. Replayed and synthetic voices are not "
    "detected. Recordings are deleted from this machine within an hour."
)
# Element id and label of each recording. The warnings of the model use the names in brackets.
RECORDINGS = {"first": "First recording (the enrolment)", "second": "Second recording (the test)"}
# Interval in seconds at which the cache is cleared, and the age in seconds from which files are deleted.
CLEARING = (600, 3000)
LARGEST_FILE = "50mb"


def chosen_model(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the name and the revision of the model, from the command line or the environment.

    Raises:
        ValueError: no model is given, or several are.
    """
    name = arguments[0] if arguments else environment.get("MODEL", "")
    if len(arguments) > 1 or not name:
        raise ValueError(
            "Give one model, a folder or a name on the Hub: python app.py MODEL, or set the environment variable MODEL."
        )
    return name, environment.get("MODEL_REVISION")


def build(model: Any, evaluation: Mapping[str, Any] | None, title: str) -> gr.Blocks:
    """Build the page for a model.

    Args:
        model: model loaded by `load_model`.
        evaluation: content of `evaluation.json`; None if the model was not evaluated.
        title: name of the model on the page.
    """
    calibration = None if model.calibration is None else model.calibration.to_dict()["checksum"]
    lists, why_none = histograms_of(evaluation, model.fingerprint(), calibration)
    points, names = points_of(model), list(lists)

    def picture(trial_list: str | None, answer: Any) -> tuple[Any, str]:
        if trial_list not in lists:
            return None, why_none
        figure = draw_histogram(trial_list, lists[trial_list], answer)
        return figure, "" if answer is None else histogram_sentence(trial_list, lists[trial_list], answer)

    def answer(first: str | None, second: str | None, point: str | None, trial_list: str | None) -> tuple:
        if not first or not second:
            return error_html("Two recordings are needed. Record or upload them first."), *picture(trial_list, None)
        try:
            found = compare(model, first, second, point)
        except ValueError as error:
            return error_html(str(error)), *picture(trial_list, None)
        return verdict_html(model, found), *picture(trial_list, found)

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=CLEARING) as page:
        gr.Markdown(f"# Same person or not?\n\nTwo recordings of a few seconds of speech each, compared by `{title}`.")
        with gr.Row():
            recordings = [
                # Omit Gradio's share button, which uploads the recording if the page runs on a Space.
                gr.Audio(
                    sources=["upload", "microphone"],
                    type="filepath",
                    label=label,
                    elem_id=name,
                    buttons=["download"],
                )
                for name, label in RECORDINGS.items()
            ]
        with gr.Row():
            point = gr.Dropdown(
                points,
                value=points[0] if points else None,
                label="Operating point",
                visible=bool(points),
                elem_id="point",
            )
            trial_list = gr.Dropdown(
                names,
                value=names[0] if names else None,
                label="Histogram of",
                visible=len(names) > 1,
                elem_id="trial-list",
            )
        explanation = gr.Markdown(describe_point(model, points[0] if points else None), elem_id="explanation")
        button = gr.Button("Compare", variant="primary", elem_id="compare")
        verdict = gr.HTML(elem_id="verdict")
        start = picture(names[0] if names else None, None)
        plot = gr.Plot(start[0], label="Scores", visible=bool(names), elem_id="histogram")
        note = gr.Markdown(start[1], elem_id="histogram-note")
        gr.Markdown(PRIVACY)
        inputs, outputs = [*recordings, point, trial_list], [verdict, plot, note]
        button.click(answer, inputs, outputs, api_name="compare")
        point.change(lambda name: describe_point(model, name), point, explanation, api_visibility="private")
    return page


def main() -> None:
    """Load the model and serve the page."""
    try:
        name, revision = chosen_model(sys.argv[1:], os.environ)
        page = build(
            load_model(name, revision), read_evaluation(name, revision), os.path.basename(os.path.abspath(name))
        )
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    # Use fonts that are installed on the visitor's machine, so that none are downloaded.
    theme = gr.themes.Default(  # pyright: ignore[reportPrivateImportUsage]
        font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )
    page.launch(theme=theme, css=CSS, max_file_size=LARGEST_FILE, show_error=False)


if __name__ == "__main__":
    main()
