"""`hamspk verify`: are these recordings of the same speaker?"""

import argparse
import json
import math
from dataclasses import asdict, dataclass

from torch import Tensor

from ..data.audio import read_audio
from ..modeling_hamspk import HamSpkModel
from ..scoring import normalize
from .models import add_model_arguments, load_model

# Shorter recordings are decided with clearly more errors.
RELIABLE_SECONDS = 2.0
SAME, DIFFERENT = "same speaker", "different speakers"
NO_THRESHOLD = (
    "No decision: the model has no threshold. Measure one on trials of your own, `hamspk evaluate MODEL TRIALS "
    "--audio-root DIR` (the threshold at the equal error rate), and give it with --threshold."
)
SEVERAL = (
    "The threshold was measured with one enrolment file per trial; with several, scores tend to be higher. Measure one "
    "of your own and give it with --threshold."
)


@dataclass(frozen=True)
class Verification:
    """The answer.

    Attributes:
        score: larger is more alike.
        similarity: what the score is: cosine or hyperbolic.
        threshold: None where there is none.
        threshold_from: "option --threshold", "the model's configuration" or None.
        decision: `SAME`, `DIFFERENT` or None.
        seconds: of audio, by file.
        warnings: sentences.
    """

    score: float
    similarity: str
    threshold: float | None
    threshold_from: str | None
    decision: str | None
    seconds: dict[str, float]
    warnings: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hamspk verify`."""
    add_model_arguments(parser)
    parser.add_argument("enrolment", nargs="+", metavar="ENROLMENT", help="recordings of the claimed speaker")
    parser.add_argument("--test", required=True, metavar="TEST", help="the recording in question")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="X",
        help="decide 'same speaker' at this score or above; default: the model's",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Score, decide, print."""
    if arguments.threshold is not None and not math.isfinite(arguments.threshold):
        raise ValueError(f"--threshold must be a finite number, got {arguments.threshold}.")
    model = load_model(arguments.model, arguments.device)
    answer = verify(model, arguments.enrolment, arguments.test, arguments.threshold)
    print(json.dumps(asdict(answer), indent=2) if arguments.json else format_answer(answer))
    return 0


def verify(model: HamSpkModel, enrolment: list[str], test: str, threshold: float | None) -> Verification:
    """Score a recording against one or several enrolment recordings, and decide if there is a threshold.

    Raises:
        AudioError: a recording cannot be used.
    """
    rate = model.config.sampling_rate
    names = [*enrolment, test]
    waveforms = [read_audio(name, rate) for name in names]
    seconds = {name: len(waveform) / rate for name, waveform in zip(names, waveforms, strict=True)}
    embeddings = model.embed(waveforms, rate)
    score = model.score(enrolment_embedding(embeddings[:-1]), embeddings[-1]).item()
    warnings = [
        f"{name} lasts {duration:.2f} s; below {RELIABLE_SECONDS:g} s decisions are unreliable."
        for name, duration in seconds.items()
        if duration < RELIABLE_SECONDS
    ]
    source = None if threshold is None else "option --threshold"
    if threshold is None and model.config.threshold is not None:
        threshold, source = float(model.config.threshold), "the model's configuration"
        if len(enrolment) > 1:
            warnings.append(SEVERAL)
    decision = None if threshold is None else SAME if score >= threshold else DIFFERENT
    return Verification(score, model.config.similarity, threshold, source, decision, seconds, warnings)


def enrolment_embedding(embeddings: Tensor) -> Tensor:
    """Mean direction of embeddings `(N, D)`, with their mean norm, which hyperbolic scoring looks at: `(D,)`."""
    return normalize(normalize(embeddings).mean(0)) * embeddings.norm(dim=-1).mean()


def format_answer(answer: Verification) -> str:
    """Lines for people."""
    lines = [f"audio      {seconds:.2f} s  {name}" for name, seconds in answer.seconds.items()]
    lines.append(f"score      {answer.score:.4f} ({answer.similarity} similarity)")
    if answer.threshold is None:
        lines.append(NO_THRESHOLD)
    else:
        lines.append(f"threshold  {answer.threshold:.4f} (from {answer.threshold_from})")
        lines.append(f"decision   {answer.decision}")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in answer.warnings)])
