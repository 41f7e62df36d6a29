"""`hamspk demo`: make a synthetic corpus, train on it, evaluate and verify, without any download."""

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..folders.ownership import files_in, is_run_file, remove_own_files

if TYPE_CHECKING:
    from ..evaluation.trials import Trials
    from ..evaluation.verification import VerificationResult
    from ..modeling_hamspk import HamSpkPreTrainedModel

MARKER = ".hamspk-demo"
_DEMO_FILE = re.compile(
    r"(?:dev|test)\.txt|recipe\.yaml|results\.json|(?:det|scores)\.png|corpus/(?:train|test)\.csv|corpus/trials\.txt|"
    r"corpus/(?:train|test)/[^/]+/[^/]+/[^/]+\.flac"
)
CAVEAT = (
    "These voices are synthetic. The numbers show that training and evaluation work, but they say nothing about real "
    "voices."
)
# Seconds between updates of the progress bar.
WATCH_SECONDS = 0.5
# Model that trains on a CPU within minutes on a corpus of the sizes below.
MODEL = {
    "head": "ham",
    "ecapa_channels": 64,
    "ecapa_output_channels": 192,
    "ecapa_bottleneck": 32,
    "pooling_channels": 64,
    "embedding_size": 96,
}


@dataclass(frozen=True)
class Size:
    """Size of the demo.

    Attributes:
        training_speakers: number of speakers for training.
        held_out_speakers: number of speakers outside the training data, half of them for the dev list and half for the
            test list.
        utterances: number of utterances per speaker.
        epochs: number of passes over the training utterances.
        batch_size: number of utterances per step.
    """

    training_speakers: int
    held_out_speakers: int
    utterances: int
    epochs: int
    batch_size: int


FULL = Size(training_speakers=100, held_out_speakers=40, utterances=10, epochs=12, batch_size=50)
QUICK = Size(training_speakers=8, held_out_speakers=8, utterances=4, epochs=2, batch_size=16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hamspk demo`."""
    parser.add_argument(
        "--output", default="hamspk-demo", metavar="DIR", help="folder for all files (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the voices and of the training (default: %(default)s)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="use few speakers and train for a few steps: each stage of the demo runs, but the model learns nothing",
    )
    parser.epilog = f"The demo takes a few minutes on two cores.\n{CAVEAT}"


def check(arguments: argparse.Namespace) -> None:
    """Check the arguments before torch is imported, and empty the folder of an earlier demo.

    Raises:
        ValueError: the seed is negative, or the output folder is not empty and was not made by a demo.
    """
    if arguments.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {arguments.seed}.")
    prepare_folder(Path(arguments.output).resolve())


def run(arguments: argparse.Namespace) -> int:
    """Generate synthetic voices, train a model on them, and show what it has learned in numbers and plots."""
    import torch

    from ..evaluation.trials import read_trials
    from ..loading.models import load_model
    from ..training import Trainer

    began = time.monotonic()
    folder, size = Path(arguments.output).resolve(), QUICK if arguments.quick else FULL
    # A second thread would hardly speed up such a small model.
    torch.set_num_threads(1)

    _headline(1, f"{size.training_speakers + size.held_out_speakers} synthetic speakers")
    make_voices(folder, size, arguments.seed)
    test = read_trials(folder / "test.txt")

    _headline(2, "training a small ECAPA-TDNN with HAM")
    trainer = Trainer.from_recipe(write_recipe(folder, size, arguments.seed))
    untrained = _evaluate_on(trainer.bare_model, test, folder)
    began_training = time.monotonic()
    trainer.train()
    training_seconds = time.monotonic() - began_training

    _headline(3, "evaluation on speakers outside the training data")
    model = load_model(str(folder / "run" / "final"), "cpu")
    trained = _evaluate_on(model, test, folder)
    print(f"EER untrained {100 * untrained.eer:.2f} %, trained {100 * trained.eer:.2f} %")

    _headline(4, "the model in a fresh process that cannot import this package")
    pairs = choose_pairs(test)
    answers = ask_stranger(folder, pairs)
    for kind, answer in zip(pairs, answers, strict=True):
        print(f"{kind:<19} {format_stranger(answer)}")

    _headline(5, "plots")
    draw(folder, untrained, trained, model.config.similarity)
    facts = {
        "untrained": untrained.summary(),
        "trained": trained.summary(),
        "fresh_process": dict(zip(pairs, answers, strict=True)),
        "training_seconds": training_seconds,
        "seconds": time.monotonic() - began,
        "note": CAVEAT,
    }
    (folder / "results.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(format_summary(folder, size, facts))
    return 0


def prepare_folder(folder: Path) -> None:
    """Make an empty folder, and mark it as the folder of a demo. Remove the files of an earlier demo.

    Raises:
        ValueError: the path is a file, or the folder contains files that no demo wrote. Nothing is removed then.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output must be a folder, but {folder} is a file. Choose another folder.")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise ValueError(f"{folder} is not empty and was not made by a demo. Choose another folder with --output.")
        other = min((name for name in files_in(folder) if not is_demo_file(name)), default=None)
        if other is not None:
            raise ValueError(
                f"{folder} contains a file that no demo wrote ({other}). Move it, or choose another folder with "
                "--output."
            )
        remove_own_files(folder, lambda name: name != MARKER)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("Made by `hamspk demo`, which empties this folder when it runs again.\n")


def is_demo_file(name: str) -> bool:
    """Return whether a demo writes a file with this path, relative to its folder."""
    place, _, rest = name.partition("/")
    if place == "run":
        return is_run_file(rest)
    if place == "modules":
        return rest == "" or rest.endswith((".py", ".pyc", ".json"))
    return name == MARKER or _DEMO_FILE.fullmatch(name) is not None


def make_voices(folder: Path, size: Size, seed: int) -> None:
    """Write `corpus/`, and the trial lists `dev.txt` and `test.txt`, each with half of the held-out speakers."""
    from ..data.synthetic import make_corpus

    speakers = size.training_speakers + size.held_out_speakers
    corpus = folder / "corpus"
    with _count_files(corpus, speakers * size.utterances):
        make_corpus(
            corpus,
            speakers,
            size.utterances,
            seed,
            duration_range=(1.5, 3.0),
            test_share=size.held_out_speakers / speakers,
        )
    lines = (corpus / "trials.txt").read_text(encoding="utf-8").splitlines()
    pairs = [[Path(name).parts[1] for name in line.split()[1:]] for line in lines]  # test/SPEAKER/session/utterance
    held_out = sorted({speaker for pair in pairs for speaker in pair})
    half = len(held_out) // 2
    for name, own in (("dev.txt", set(held_out[:half])), ("test.txt", set(held_out[half:]))):
        kept = [line for line, pair in zip(lines, pairs, strict=True) if own.issuperset(pair)]
        (folder / name).write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def write_recipe(folder: Path, size: Size, seed: int) -> Path:
    """Write the recipe that `hamspk train` reads, and return its path."""
    import yaml

    corpus = folder / "corpus"
    recipe = MODEL | {
        "train_data": str(corpus / "train.csv"),
        "audio_root": str(corpus),
        "dev_trials": str(folder / "dev.txt"),
        "output_dir": str(folder / "run"),
        "cache_megabytes": 500,
        "crop_seconds": 1.5,
        "epochs": size.epochs,
        "batch_size": size.batch_size,
        "learning_rate": 0.002,
        "average_last": 3,
        "evaluate_every": 2,
        "seed": seed,
        "cpu": True,
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return file


def choose_pairs(trials: "Trials") -> dict[str, tuple[str, str]]:
    """Return the first target trial and the first impostor trial: `{"same speaker": (enrolment, test), ...}`."""
    found = {}
    for kind, label in (("same speaker", 1), ("different speakers", 0)):
        row = trials.labels.tolist().index(label)
        found[kind] = (trials.enrolment[row], trials.test[row])
    return found


def ask_stranger(folder: Path, pairs: dict[str, tuple[str, str]]) -> list[dict]:
    """Run `stranger.py` on pairs of recordings in a separate offline process.

    Args:
        folder: folder of the demo. The process stores its copy of the model's code in the subfolder `modules`.
        pairs: maps a description of each pair to the enrolment file and the test file, from `choose_pairs`.

    Returns:
        The answer to each pair, in the form that `Verification.to_dict` returns.

    Raises:
        ValueError: the process failed; the message contains the end of its error output.
    """
    files = [str(folder / "corpus" / name) for pair in pairs.values() for name in pair]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    script = Path(__file__).with_name("stranger.py")
    command = [sys.executable, "-P", str(script), str(folder / "run" / "final"), *files]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise ValueError(f"The model could not be used in a fresh process: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def format_stranger(answer: dict) -> str:
    """Return the answer of `stranger.py` to a pair, as one line of text."""
    if answer["score"] is None:
        return answer["decision"]
    score = f"score {answer['score']:.4f}"
    if answer["log_likelihood_ratio"] is None:
        return f"{score}; no decision, because the model is not calibrated"
    ratio = f"log-likelihood ratio {answer['log_likelihood_ratio']:.2f}, threshold {answer['threshold']:.2f}"
    return f"{score}, {ratio}: {answer['decision']}"


def draw(folder: Path, untrained: "VerificationResult", trained: "VerificationResult", similarity: str) -> None:
    """Draw the DET plot `det.png`, and the score histogram `scores.png` with the threshold at the EER."""
    from ..evaluation.plots import plot_det, plot_score_histogram

    curves = {name: (r.scores, r.labels) for name, r in (("untrained", untrained), ("trained", trained))}
    plot_det(curves, folder / "det.png", "Synthetic voices")
    threshold, title = trained.eer_threshold, "Synthetic voices, trained model"
    plot_score_histogram(trained.scores, trained.labels, folder / "scores.png", threshold, similarity, title)


def format_summary(folder: Path, size: Size, facts: dict) -> str:
    """Format the results and the paths of all files for printing."""
    trained = facts["trained"]
    utterances = size.training_speakers * size.utterances
    rows = {
        "trained on": f"{size.training_speakers} synthetic speakers, {utterances} utterances",
        "tested on": f"{size.held_out_speakers // 2} other speakers, {trained['trials']} trials",
        "EER, untrained": f"{100 * facts['untrained']['eer']:.2f} %",
        "EER, trained": f"{100 * trained['eer']:.2f} %",
        "time": f"{facts['seconds']:.0f} s, of which training {facts['training_seconds']:.0f} s",
        "model": folder / "run" / "final",
        "recipe": folder / "recipe.yaml",
        "corpus": folder / "corpus",
        "DET plot": folder / "det.png",
        "score histogram": folder / "scores.png",
        "numbers": folder / "results.json",
    }
    return "\n".join(["", *(f"{name:<17}{value}" for name, value in rows.items()), "", CAVEAT])


def _evaluate_on(model: "HamSpkPreTrainedModel", trials: "Trials", folder: Path) -> "VerificationResult":
    from ..evaluation.verification import embed_files, verify_trials

    return verify_trials(model, trials, embed_files(model, trials.files, folder / "corpus"))


def _headline(number: int, text: str) -> None:
    print(f"\n[{number}/5] {text}", flush=True)


@contextmanager
def _count_files(folder: Path, total: int) -> Iterator[None]:
    """Show a progress bar that counts the audio files in `folder` while they are written."""
    from tqdm import tqdm

    done = threading.Event()
    with tqdm(total=total, desc="making voices", unit="file") as bar:

        def watch() -> None:
            while not done.wait(WATCH_SECONDS):
                bar.update(sum(1 for _ in folder.rglob("*.flac")) - bar.n)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
            bar.update(total - bar.n)
        finally:
            done.set()
            watcher.join()
