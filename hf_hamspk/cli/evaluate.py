"""`hamspk evaluate`: error rates of a model on trial lists, with what they are worth."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..calibration_hamspk import OperatingPoint
from ..evaluation.evaluating import (
    EvaluationSettings,
    ListEvaluation,
    applies_calibration,
    draw_plots,
    evaluate_list,
    read_lists,
)
from ..evaluation.intervals import CONFIDENCE, FEWEST_REPLICATES, REPLICATES, paired_test
from ..evaluation.report import format_report, write_html
from ..evaluation.results import evaluation_record, write_record
from ..evaluation.speakers import read_metadata
from ..evaluation.trials import OFFICIAL_LISTS, Trials, official_title
from ..evaluation.verification import PRIORS, PROTOCOLS, embed_files
from ..loading.models import load_model
from ..modeling_hamspk import HamSpkPreTrainedModel
from .options import add_model_arguments

EPILOG = """\
A trial list has lines 'label enrolment test': 1 for the same speaker, 0 for different ones, and two audio files,
relative to --audio-root. Lists of CN-Celeb and SITW ('model test label') are recognised; --enrolment gives the files
of their models ('model file file ...'; enroll.map of CN-Celeb, enroll-core.lst of SITW). Who speaks is read off the
names (a folder or the first part of the file name that agrees in all pairs of one speaker and differs in all others),
or off the column speaker_id of --metadata. A calibrated model is judged by its log-likelihood ratios, and its raw
scores are shown beside them; --uncalibrated leaves the calibration out. --output takes a folder: evaluation.json,
report.html (one file with everything) and plots/ are written there; given the model's own folder, the model card
takes its numbers from it.
"""
RECORD_FILE, REPORT_FILE, PLOTS_FOLDER = "evaluation.json", "report.html", "plots"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk evaluate`."""
    add_model_arguments(parser)
    parser.add_argument("trials", nargs="+", metavar="TRIALS", help="trial lists")
    parser.add_argument("--enrolment", metavar="FILE", help="files of each enrolment model, for lists that name models")
    parser.add_argument(
        "--official",
        nargs="+",
        choices=tuple(OFFICIAL_LISTS),
        default=[],
        metavar="LIST",
        help=f"refuse the trial lists, in this order, unless they have the size of: {', '.join(OFFICIAL_LISTS)}",
    )
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
        help="probabilities of a target trial for the detection costs (default: %(default)s)",
    )
    parser.add_argument("--output", metavar="DIR", help="write numbers, report and plots into this folder")
    parser.add_argument("--metadata", metavar="FILE.csv", help="table of the files: path, speaker_id, gender, age, ...")
    parser.add_argument("--group-by", nargs="+", default=[], metavar="COLUMN", help="columns of --metadata")
    parser.add_argument("--subtract-mean", action="store_true", help="subtract the mean of the model's cohort")
    parser.add_argument("--uncalibrated", action="store_true", help="raw scores, whatever the model brings along")
    parser.add_argument("--compare", metavar="MODEL", help="test the difference from another model on the same trials")
    parser.add_argument(
        "--replicates",
        type=int,
        default=REPLICATES,
        metavar="N",
        help="resamplings of the speakers for the intervals, 0 for none (default: %(default)s)",
    )
    parser.add_argument(
        "--confidence", type=float, default=CONFIDENCE, metavar="P", help="of the intervals (default: %(default)s)"
    )
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Embed each file once over all lists, then score every list."""
    _check(arguments)
    lists = read_lists(arguments.trials, arguments.audio_root, arguments.enrolment, arguments.official)
    for name, trials in lists.items():
        title = official_title(trials)
        if title is not None:
            print(f"{name} has the size of {title}: {len(trials):,} trials")
    settings = EvaluationSettings(
        protocol=arguments.protocol,
        priors=tuple(dict.fromkeys(arguments.prior)),
        replicates=arguments.replicates,
        confidence=arguments.confidence,
        metadata={} if arguments.metadata is None else read_metadata(arguments.metadata),
        group_by=arguments.group_by,
        subtract_mean=arguments.subtract_mean,
        calibrated=not arguments.uncalibrated,
    )
    model, results = _evaluate(arguments.model, arguments, lists, settings)
    record = evaluation_record(model, arguments.model, results, settings)
    if arguments.compare is not None:
        _compare(record, results, arguments, lists, settings)
    print(format_report(record))
    if arguments.output is not None:
        for file in write_all(record, results, Path(arguments.output), model):
            print(f"written: {file}")
    return 0


def write_all(
    record: Mapping[str, Any], results: Mapping[str, ListEvaluation], folder: Path, model: HamSpkPreTrainedModel
) -> list[Path]:
    """The numbers, the plots and the report; their paths."""
    pictures = draw_plots(results, folder / PLOTS_FOLDER, model)
    files = [write_record(record, folder / RECORD_FILE), write_html(record, pictures, folder / REPORT_FILE)]
    return [*files, *pictures.values()]


def _evaluate(
    name: str, arguments: argparse.Namespace, lists: Mapping[str, Trials], settings: EvaluationSettings
) -> tuple[HamSpkPreTrainedModel, dict[str, ListEvaluation]]:
    model = load_model(name, arguments.device)
    files = sorted({file for trials in lists.values() for file in trials.files})
    measure = settings.calibrated and applies_calibration(model, settings)
    embedded = embed_files(model, files, arguments.audio_root, arguments.protocol, measure=measure)
    model.cpu()  # The embeddings are there, too.
    return model, {list_name: evaluate_list(model, trials, embedded, settings) for list_name, trials in lists.items()}


def _compare(
    record: dict[str, Any],
    results: Mapping[str, ListEvaluation],
    arguments: argparse.Namespace,
    lists: Mapping[str, Trials],
    settings: EvaluationSettings,
) -> None:
    """Add the differences from another model to the record."""
    usable = {name: result.trials for name, result in results.items()}
    other, others = _evaluate(arguments.compare, arguments, usable, settings)
    record["compared_with"] = evaluation_record(other, arguments.compare, others, settings)["model"]
    points = [OperatingPoint(f"{prior:g}", prior) for prior in settings.priors]
    for name, result in results.items():
        if result.speakers is None or result.record["replicates"] is None:
            raise ValueError(f"--compare needs to know the speakers of {name}: {result.record['interval_note']}")
        if len(others[name].trials) != len(result.trials):
            raise ValueError(
                f"{arguments.compare} refuses {others[name].record['skipped']} trials of {name} that the first model "
                "answers; give --uncalibrated to compare the raw scores of all."
            )
        scores = others[name].scores, result.scores
        options = settings.replicates, settings.confidence
        tested = paired_test(*scores, result.trials.labels, result.speakers, points, False, *options)
        record["lists"][name]["compared"] = {
            number.replace("min_dcf ", "minDCF(") + (")" if number.startswith("min_dcf") else ""): {
                "this": found.second,
                "other": found.first,
                "difference": found.difference,
                "interval": list(found.interval),
                "p_value": found.p_value,
            }
            for number, found in tested.items()
        }


def _check(arguments: argparse.Namespace) -> None:
    for prior in arguments.prior:
        if not 0 < prior < 1:
            raise ValueError(f"--prior must lie strictly between 0 and 1, got {prior}; customary are 0.01 and 0.05.")
    if arguments.replicates != 0 and arguments.replicates < FEWEST_REPLICATES:
        raise ValueError(f"--replicates must be 0 or at least {FEWEST_REPLICATES}, got {arguments.replicates}.")
    if not 0 < arguments.confidence < 1:
        raise ValueError(f"--confidence must lie between 0 and 1, got {arguments.confidence}; 0.95 is customary.")
    if arguments.group_by and arguments.metadata is None:
        raise ValueError("--group-by names columns of a table: give it with --metadata.")
    if arguments.compare is not None and arguments.replicates == 0:
        raise ValueError("--compare tests a difference by resampling; leave --replicates 0 out.")
    if arguments.output is not None and (Path(arguments.output).suffix == ".json" or Path(arguments.output).is_file()):
        raise ValueError(
            f"--output is a folder, in which {RECORD_FILE}, {REPORT_FILE} and {PLOTS_FOLDER}/ are written; got "
            f"{arguments.output}."
        )
