"""Does the norm of the embeddings improve calibrated decisions, and for which heads? For the models of a study.

    hamspk study STUDY.yaml --output FOLDER --keep-models
    python examples/studies/norm_calibration.py STUDY.yaml FOLDER [--json FILE]

For each final run, two calibrations are fitted to the trials of the development lists: one of the score, and one of the
score and the logarithms of the smaller and the larger norm of the two embeddings. The table shows the Cllr of both on
each test list, averaged over the seeds, and the relative change with the standard deviation over the seeds. In heads
with a radius, the norm determines the radius; in the other heads, the loss does not depend on it, or hardly does.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_hamspk import HamSpkForXVector
from hf_hamspk.evaluation.calibrating import CalibrationTrials, fit_map
from hf_hamspk.evaluation.calibration_metrics import log_likelihood_ratio_cost
from hf_hamspk.evaluation.matrix_scoring import score_pairs
from hf_hamspk.evaluation.speakers import find_speakers
from hf_hamspk.evaluation.trials import Trials
from hf_hamspk.study.audio import StudyAudio
from hf_hamspk.study.plan import FINAL, read_study
from hf_hamspk.study.records import planned_runs
from hf_hamspk.training.arguments import parse_fields
from hf_hamspk.training.frames import FrameStore
from hf_hamspk.training.frozen import DividedModel
from hf_hamspk.training.models import build_config

SCORE, NORMS = "score", ("magnitude_min", "magnitude_max")


def features_of(model: HamSpkForXVector, audio: StudyAudio, frame_folder: str | None) -> dict[str, CalibrationTrials]:
    """Return the trials of each list with their scores and the logarithms of the norms of their embeddings."""
    lists = audio.sounds.lists
    files = sorted({file for trials in lists.values() for file in trials.files})
    waveforms = [audio.sounds.read(file) for file in files]
    if frame_folder is None:
        embeddings = model.embed_waveforms(waveforms).cpu()
    else:
        embeddings = FrameStore(frame_folder, DividedModel(model, 0)).embed(waveforms).cpu()
    row = {file: number for number, file in enumerate(files)}
    norms = embeddings.norm(dim=1).log().double().numpy()
    return {name: _trials(model, embeddings, norms, row, trials) for name, trials in lists.items()}


def _trials(model: HamSpkForXVector, embeddings: Any, norms: Any, row: dict, trials: Trials) -> CalibrationTrials:
    enrolment, test = (np.array([row[file] for file in side]) for side in (trials.enrolment, trials.test))
    pair = np.sort(np.stack([norms[enrolment], norms[test]]), axis=0)
    features = {SCORE: np.asarray(score_pairs(model, embeddings[:, None], enrolment, test), np.float64)}
    features |= dict(zip(NORMS, pair, strict=True))
    speakers = find_speakers(trials)
    return CalibrationTrials(trials.labels, features, np.stack([speakers.enrolment, speakers.test], axis=1))


def measure(trials: dict[str, CalibrationTrials], dev: Sequence[str], tests: Sequence[str]) -> dict[str, list[float]]:
    """Return the Cllr of each test list with a calibration of the score, and of the score and the norms."""
    parts = [trials[name] for name in dev]
    names = {key: np.concatenate([part.features[key] for part in parts]) for key in (SCORE, *NORMS)}
    # Numbers of speakers are not compared between lists, and the fit does not need them.
    both = CalibrationTrials(
        np.concatenate([part.labels for part in parts]), names, np.concatenate([part.speakers for part in parts])
    )
    maps = [fit_map(both, (SCORE,)), fit_map(both, (SCORE, *NORMS))]
    return {
        name: [log_likelihood_ratio_cost(found(trials[name].features), trials[name].labels) for found in maps]
        for name in tests
    }


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure calibrations with and without the norm of the embeddings.")
    parser.add_argument("study", help="file of the study")
    parser.add_argument("folder", type=Path, help="folder of the study, which was run with --keep-models")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments = parser.parse_args(words)
    study = read_study(arguments.study)
    recipe = parse_fields(study.recipe, "recipe")
    audio = StudyAudio(recipe.data, study.dev, study.tests, 0, build_config(recipe).sampling_rate)
    found: dict[str, list[dict[str, list[float]]]] = {}
    for run in planned_runs(study, arguments.folder):
        place = arguments.folder / run.name / "model"
        if run.stage == FINAL and place.is_dir():
            model: Any = HamSpkForXVector.from_pretrained(place).eval()
            trials = features_of(model, audio, recipe.data.frame_folder)
            found.setdefault(run.head, []).append(measure(trials, audio.dev, audio.tests))
            print(f"{run.name}: {found[run.head][-1]}", file=sys.stderr)
    if not found:
        print(f"No final run in {arguments.folder} has a model. Run the study with --keep-models.", file=sys.stderr)
        return 2
    print("| head | seeds | list | Cllr, score | score and norms | change |\n|---|---|---|---|---|---|")
    for head, seeds in found.items():
        for name in audio.tests:
            values = np.array([seed[name] for seed in seeds])
            change = 100 * (values[:, 1] / values[:, 0] - 1)
            spread = f" ± {change.std(ddof=1):.1f}" if len(seeds) > 1 else ""
            plain, normed = values.mean(0)
            print(f"| {head} | {len(seeds)} | {name} | {plain:.4f} | {normed:.4f} | {change.mean():+.1f}{spread} % |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
