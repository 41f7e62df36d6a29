"""`hamspk calibrate`: from the scores of a model to decisions, by pairs of one's own recordings."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from ..audio_hamspk import MINIMUM_SPEECH
from ..calibration_hamspk import CALIBRATION_FILE, DEFAULT_OPERATING_POINTS, NORMALISATIONS, Cohort, OperatingPoint
from ..data.corpus import load_corpus
from ..evaluation.calibration_table import candidate_table, point_table
from ..evaluation.cohorts import UTTERANCES, EmbeddedCohort, choose_utterances, embed_cohort
from ..evaluation.model_calibration import AUTO, ModelCalibration, calibrate, known_speakers
from ..evaluation.report import format_text
from ..evaluation.scored_trials import QUALITY_GROUPS, ScoredTrials
from ..evaluation.speakers import read_metadata, speaker_table
from ..evaluation.sufficiency import assess_size
from ..evaluation.trials import check_trial_files, join_trials, read_trials
from ..evaluation.verification import embed_files
from ..loading.models import load_model
from ..modeling_hamspk import HamSpkModel
from ..publishing.code import renew_code
from .options import add_model_arguments

NONE = "none"
_NAMES_SHOWN = 5
# What is not taken along into another folder: an evaluation of before says nothing of the calibrated model.
_STALE = (CALIBRATION_FILE, "evaluation.json", "report.html", "plots", "__pycache__")
EPILOG = """\
PAIRS are lists with lines 'label enrolment test': 1 for the same speaker, 0 for different ones, and two audio files,
relative to --audio-root. Take recordings like those to be decided on, of speakers that the model was not trained on: at
least 20 pairs of each kind, better some dozens of speakers with a few recordings each; the command says how sure the
thresholds are. Who speaks is read off the names, or off the column speaker_id of --metadata.

The calibration (verification.json) and the cohort (cohort.safetensors) are written beside the weights and are used
from then on wherever the model is loaded. What is chosen, normalisation and quality measures, is what lowers the cost
on speakers that were not fitted on.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk calibrate`."""
    add_model_arguments(parser)
    parser.add_argument("pairs", nargs="+", metavar="PAIRS", help="lists of labelled pairs")
    parser.add_argument("--audio-root", required=True, metavar="DIR", help="folder of the files in the lists")
    parser.add_argument("--metadata", metavar="FILE.csv", help="table of the files: path, speaker_id")
    parser.add_argument(
        "--cohort",
        metavar="DIR|FILE.csv",
        help="recordings of some hundred other speakers, best those of the training, as `hamspk train` takes them; by "
        "default the cohort that the model has already, if any",
    )
    parser.add_argument("--cohort-root", metavar="DIR", help="folder of the paths in the CSV file of --cohort")
    parser.add_argument(
        "--normalisation",
        choices=(AUTO, *NORMALISATIONS),
        default=AUTO,
        help="of the scores, with the cohort; auto (the default) is AS-norm where it helps",
    )
    parser.add_argument("--top", type=int, metavar="N", help="cohort scores of AS-norm; by default the best of some")
    parser.add_argument(
        "--quality",
        nargs="+",
        choices=(AUTO, NONE, *QUALITY_GROUPS),
        default=[AUTO],
        help="measures of the recordings that the ratio takes into account; auto (the default) those that help",
    )
    parser.add_argument(
        "--operating-point",
        action="append",
        type=parse_point,
        metavar="NAME=PRIOR[,COST_MISS,COST_FALSE_ALARM]",
        help="where decisions are made, again for another one; the first is the default of the model. Without any: "
        + ", ".join(f"{p.name}={p.prior:g},{p.cost_miss:g},{p.cost_false_alarm:g}" for p in DEFAULT_OPERATING_POINTS),
    )
    parser.add_argument(
        "--minimum-speech",
        type=float,
        default=MINIMUM_SPEECH,
        metavar="SECONDS",
        help="of speech, below which nothing is decided (default: %(default)s)",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="a new folder for the calibrated model; by default MODEL itself"
    )
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Embed, choose, fit, write, and say how sure it is."""
    quality = () if arguments.quality == [NONE] else tuple(arguments.quality)
    points = tuple(arguments.operating_point) if arguments.operating_point else DEFAULT_OPERATING_POINTS
    if NONE in quality or (AUTO in quality and len(quality) > 1):
        raise ValueError(f"--quality {NONE} and {AUTO} stand alone, got {' '.join(arguments.quality)}.")
    _check_output(arguments.model, arguments.output)
    trials = join_trials([read_trials(path) for path in arguments.pairs])
    check_trial_files(trials, arguments.audio_root)
    table = None if arguments.metadata is None else speaker_table(read_metadata(arguments.metadata))
    files = _cohort_files(arguments)
    model = load_model(arguments.model, arguments.device)
    embedded = embed_files(model, trials.files, arguments.audio_root, measure=True)
    cohort = None if files is None else _cohort(model, files, arguments.cohort)
    model.cpu()
    scored = ScoredTrials(model, trials, embedded, arguments.minimum_speech, table)
    used = None if cohort is None else _without_speakers(cohort, scored.speakers.names)
    audio = ", ".join(Path(path).name for path in arguments.pairs)
    found = calibrate(
        scored,
        model.cohort if used is None else used,
        arguments.normalisation,
        arguments.top,
        quality,
        points,
        arguments.minimum_speech,
        audio,
    )
    _report(found, scored, model)
    model.calibration = found.calibration
    model.cohort = used if used is not None else model.cohort
    folder = _output_folder(arguments.model, arguments.output)
    for name in model.save_verification(folder):
        print(f"written: {folder / name}")
    renewed = renew_code(folder)
    if renewed:
        print(f"renewed: {len(renewed)} files of code in {folder}, which were of another version of this package")
    return 0


def parse_point(text: str) -> OperatingPoint:
    """An operating point of `name=prior` or `name=prior,cost_miss,cost_false_alarm`."""
    name, _, numbers = text.partition("=")
    try:
        values = [float(number) for number in numbers.split(",")]
        if len(values) not in (1, 3):
            raise ValueError(f"{len(values)} numbers")
        return OperatingPoint(name.strip(), *values)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no operating point ({error}); expected NAME=PRIOR or NAME=PRIOR,COST_MISS,COST_FALSE_ALARM, "
            "such as strict=0.01,1,1."
        ) from None


def _cohort_files(arguments: argparse.Namespace) -> dict[str, list[str]] | None:
    """The recordings of each speaker of the cohort that was named."""
    if arguments.cohort is None:
        if arguments.cohort_root is not None:
            raise ValueError("--cohort-root is the folder of the paths in --cohort; give that, too.")
        return None
    try:
        corpus = load_corpus(arguments.cohort, arguments.cohort_root)
    except ValueError as error:
        raise ValueError(f"--cohort (whose paths are below --cohort-root): {error}") from error
    return choose_utterances(corpus["path"], corpus["speaker"])


def _cohort(model: HamSpkModel, files: dict[str, list[str]], name: str) -> EmbeddedCohort:
    """The cohort, embedded."""
    source = f"{Path(name).name}: {len(files)} speakers, up to {UTTERANCES} utterances each"
    embedded = embed_cohort(model, files, source)
    for file, reason in list(embedded.failures.items())[:_NAMES_SHOWN]:
        print(f"cohort: left out {file}: {reason}", file=sys.stderr)
    return embedded


def _without_speakers(embedded: EmbeddedCohort, speakers: Sequence[str]) -> Cohort:
    """The cohort without those who speak in the pairs: their own scores are no impostor scores."""
    taken = {name.rpartition("/")[2] for name in speakers}
    rows = [i for i, name in enumerate(embedded.speakers) if name.rpartition("/")[2] not in taken]
    left_out = len(embedded.speakers) - len(rows)
    if not left_out:
        return embedded.cohort
    if len(rows) < 2:
        raise ValueError(
            f"{left_out} of {len(embedded.speakers)} speakers of the cohort are in the pairs, too; a cohort is of "
            "other speakers, best those of the training."
        )
    print(f"cohort: left out {left_out} speakers who are in the pairs, too", file=sys.stderr)
    return Cohort(embedded.cohort.embeddings[rows], embedded.cohort.fingerprint, embedded.cohort.audio)


def _report(found: ModelCalibration, scored: ScoredTrials, model: HamSpkModel) -> None:
    calibration = found.calibration
    print(
        f"{calibration.trials} pairs, {calibration.targets} of the same speaker, of {calibration.speakers} speakers; "
        f"{len(scored.skipped)} files left out"
    )
    for file, reason in list(scored.skipped.items())[:_NAMES_SHOWN]:
        print(f"  {file}: {reason}")
    if len(scored.skipped) > _NAMES_SHOWN:
        print(f"  and {len(scored.skipped) - _NAMES_SHOWN} more")
    known = known_speakers(model, scored.speakers.names)
    if known:
        print(
            f"warning: the model was trained on {len(known)} of these speakers ({', '.join(known[:_NAMES_SHOWN])}"
            f"{', ...' if len(known) > _NAMES_SHOWN else ''}): their scores are better than those of others will be."
        )
    print(f"\n{format_text(candidate_table(found))}")
    print("Cllr and the rates are those of speakers who were not fitted on; * is what was chosen.\n")
    print(format_text(point_table(calibration)))
    print()
    for sentence in assess_size(found.trials, found.chosen.fitted.map, calibration.operating_points).sentences():
        print(sentence)
    if found.chosen.fitted.constant:
        print(f"left out, being the same in all pairs: {', '.join(found.chosen.fitted.constant)}")
    print()


def _check_output(model: str, output: str | None) -> None:
    if _in_place(model, output):
        if not Path(model).is_dir():
            raise ValueError(f"{model} is no folder here: give --output, a new folder for the calibrated model.")
    elif (
        output is not None and Path(output).exists() and not (Path(output).is_dir() and not any(Path(output).iterdir()))
    ):
        raise ValueError(f"--output {output} is there already; give a new folder, or delete it.")


def _in_place(model: str, output: str | None) -> bool:
    return output is None or (Path(model).is_dir() and Path(output).resolve() == Path(model).resolve())


def _output_folder(model: str, output: str | None) -> Path:
    """The folder to write to, with the model in it."""
    if output is None or _in_place(model, output):
        return Path(model)
    folder = Path(output)
    if Path(model).is_dir():
        shutil.copytree(model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_STALE))
    else:
        snapshot_download(model, local_dir=folder)
    return folder
