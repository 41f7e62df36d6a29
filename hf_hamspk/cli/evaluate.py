"""`hamspk evaluate`: error rates of a model on trial lists."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evaluation.plots import plot_det, plot_score_histogram
from ..evaluation.trials import Trials, check_trial_files, read_trials
from ..evaluation.verification import (
    PRIORS,
    PROTOCOLS,
    EmbeddedFiles,
    VerificationResult,
    embed_files,
    verify_trials,
)
from .models import add_model_arguments, load_model

EPILOG = """\
A trial list has lines 'label enrolment test': 1 for the same speaker, 0 for different ones, and two audio files,
relative to --audio-root. The threshold in the table is the score at the equal error rate: measured on trials like
yours, it is what `hamspk verify --threshold` decides with.
"""
FILES_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk evaluate`."""
    add_model_arguments(parser)
    parser.add_argument("trials", nargs="+", metavar="TRIALS", help="trial lists")
    parser.add_argument("--audio-root", required=True, metavar="DIR", help="folder of the files in the lists")
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="whole",
        help="whole utterances (the default), or the paper's: whole utterances and five 3 s segments",
    )
    parser.add_argument(
        "--prior",
        type=float,
        nargs="+",
        default=list(PRIORS),
        metavar="P",
        help="probabilities of a target trial for minDCF (default: %(default)s)",
    )
    parser.add_argument("--output", metavar="FILE.json", help="write the numbers here")
    parser.add_argument("--plots", metavar="DIR", help="write a DET plot and histograms of the scores here")
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Embed each file once over all lists, then score every list."""
    _check_priors(arguments.prior)
    lists = read_lists(arguments.trials, arguments.audio_root)
    model = load_model(arguments.model, arguments.device)
    files = sorted({file for trials in lists.values() for file in trials.files})
    embedded = embed_files(model, files, arguments.audio_root, arguments.protocol)
    model.cpu()  # The embeddings are there, too.
    results = {
        name: verify_trials(model, trials, _part(embedded, trials), arguments.prior) for name, trials in lists.items()
    }
    print(format_table(results))
    _report_failures(embedded)
    facts = {"model": arguments.model, "protocol": arguments.protocol, "similarity": model.config.similarity}
    if arguments.output is not None:
        target = Path(arguments.output)
        target.parent.mkdir(parents=True, exist_ok=True)
        summaries = {name: result.summary() for name, result in results.items()}
        target.write_text(json.dumps(facts | {"test": summaries}, indent=2) + "\n", encoding="utf-8")
        print(f"numbers: {target}")
    if arguments.plots is not None:
        for plot in draw_plots(results, Path(arguments.plots), model.config.similarity):
            print(f"plot: {plot}")
    return 0


def read_lists(paths: list[str], audio_root: str) -> dict[str, Trials]:
    """Trial lists by a short name, their files all there.

    Raises:
        ValueError: the folder, a list or a file of a list is missing, or a list is malformed.
    """
    if not Path(audio_root).is_dir():
        raise ValueError(f"There is no folder {audio_root} (--audio-root).")
    stems = [Path(path).stem for path in paths]
    lists = {}
    for path, stem in zip(paths, stems, strict=True):
        if not Path(path).is_file():
            raise ValueError(f"There is no trial list {path}.")
        trials = read_trials(path)
        check_trial_files(trials, audio_root)
        lists[stem if stems.count(stem) == 1 else path] = trials
    return lists


def format_table(results: Mapping[str, VerificationResult]) -> str:
    """A line for each trial list."""
    priors = list(next(iter(results.values())).min_dcf)
    width = max(len("trial list"), *map(len, results)) + 2
    head = f"{'trial list':<{width}}{'trials':>9}{'skipped':>9}{'EER %':>9}{'threshold':>11}"
    lines = [head + "".join(f"{f'minDCF({prior:g})':>15}" for prior in priors)]
    for name, result in results.items():
        numbers = f"{len(result.labels):>9}{result.skipped:>9}{100 * result.eer:>9.2f}{result.eer_threshold:>11.4f}"
        lines.append(f"{name:<{width}}{numbers}" + "".join(f"{cost:>15.3f}" for cost in result.min_dcf.values()))
    return "\n".join(lines)


def draw_plots(results: Mapping[str, VerificationResult], folder: Path, similarity: str) -> list[Path]:
    """One DET plot of all, and a histogram of the scores of each."""
    curves: dict[str, Any] = {name: (result.scores, result.labels) for name, result in results.items()}
    plots = [plot_det(curves, folder / "det.png")]
    for name, result in results.items():
        file = folder / f"scores-{name.replace('/', '-').lstrip('.-')}.png"
        plots.append(plot_score_histogram(result.scores, result.labels, file, result.eer_threshold, similarity, name))
    return plots


def _check_priors(priors: list[float]) -> None:
    for prior in priors:
        if not 0 < prior < 1:
            raise ValueError(f"--prior must lie strictly between 0 and 1, got {prior}; customary are 0.01 and 0.05.")


def _part(embedded: EmbeddedFiles, trials: Trials) -> EmbeddedFiles:
    """What concerns one trial list."""
    files = set(trials.files)
    return EmbeddedFiles(
        {name: rows for name, rows in embedded.embeddings.items() if name in files},
        {name: reason for name, reason in embedded.failures.items() if name in files},
    )


def _report_failures(embedded: EmbeddedFiles) -> None:
    if not embedded.failures:
        return
    print(f"{len(embedded.failures)} files could not be used; their trials were skipped:")
    for name, reason in list(embedded.failures.items())[:FILES_SHOWN]:
        print(f"  {name}: {reason}")
    hidden = len(embedded.failures) - FILES_SHOWN
    if hidden > 0:
        print(f"  and {hidden} more")
