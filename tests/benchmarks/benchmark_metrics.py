"""Time of EER and minDCF: this package, a plain Python loop, and scikit-learn's ROC curve; of Cllr and of intervals.

Run `python tests/benchmarks/benchmark_metrics.py`; `--large` adds ten million scores, `--intervals` confidence
intervals of a million scores by 1,000 resamplings of their speakers. The contenders take turns in one process, so that
a change of the machine's speed meets all of them; the best round of each counts.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rivals

from hf_hamspk.calibration_hamspk import OperatingPoint
from hf_hamspk.evaluation.calibration_metrics import convex_hull, log_likelihood_ratio_cost
from hf_hamspk.evaluation.intervals import bootstrap
from hf_hamspk.evaluation.metrics import detection_errors
from hf_hamspk.evaluation.speakers import TrialSpeakers

PRIOR = 0.01
Contender = Callable[[np.ndarray, np.ndarray], tuple[float, float]]


def ours(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """EER and minDCF from one sort, without interpolation, ties together."""
    errors = detection_errors(scores, labels)
    return errors.equal_error_rate().eer, errors.minimum_detection_cost(PRIOR).cost


def python_loop(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Sort, then walk through the trials with running counts in Python lists: each trial is a point of its own."""
    order = sorted(range(len(scores)), key=scores.tolist().__getitem__)
    marks = labels.tolist()
    targets = sum(marks)
    impostors = len(marks) - targets
    misses, false_alarms = [0], [impostors]
    for index in order:
        misses.append(misses[-1] + marks[index])
        false_alarms.append(false_alarms[-1] - 1 + marks[index])
    nearest, rate, cheapest = 2.0, 1.0, 1.0
    for missed, alarmed in zip(misses, false_alarms, strict=True):
        miss_rate, alarm_rate = missed / targets, alarmed / impostors
        if abs(miss_rate - alarm_rate) < nearest:
            nearest, rate = abs(miss_rate - alarm_rate), max(miss_rate, alarm_rate)
        cheapest = min(cheapest, PRIOR * miss_rate + (1.0 - PRIOR) * alarm_rate)
    return rate, cheapest / min(PRIOR, 1.0 - PRIOR)


def scikit_learn(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Both numbers from `sklearn.metrics.roc_curve` with every point kept."""
    from sklearn.metrics import roc_curve

    false_positive, true_positive, _ = roc_curve(labels, scores, pos_label=1, drop_intermediate=False)
    false_negative = 1.0 - true_positive
    nearest = np.argmin(np.abs(false_negative - false_positive))
    costs = PRIOR * false_negative + (1.0 - PRIOR) * false_positive
    rate = max(false_negative[nearest], false_positive[nearest])
    return float(rate), float(costs.min()) / min(PRIOR, 1.0 - PRIOR)


def available() -> dict[str, Contender]:
    """The contenders that this machine has; the first is ours."""
    contenders: dict[str, Contender] = {"hf_hamspk": ours, "Python loop": python_loop}
    try:
        import sklearn  # noqa: F401
    except ImportError:
        print("scikit-learn is not installed: left out")
    else:
        contenders["scikit-learn roc_curve"] = scikit_learn
    return contenders


def measure(count: int, rounds: int) -> list[dict]:
    """Print the table for `count` scores, half of them targets, and return its ratios."""
    rng = np.random.default_rng(0)
    labels = (rng.random(count) < 0.5).astype(np.int64)
    scores = rng.normal(size=count) + 3.0 * labels
    contenders = available()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    results: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            results[name] = contender(scores, labels)
            seconds[name].append(time.perf_counter() - start)
    base = min(seconds["hf_hamspk"])
    print(f"\n{count:,} scores, best and median of {rounds} interleaved rounds")
    print(f"{'':24}{'best':>10}{'median':>10}{'ratio':>9}{'EER':>12}{'minDCF':>12}")
    for name, times in seconds.items():
        rate, cost = results[name]
        times_shown = f"{min(times):>8.3f} s{float(np.median(times)):>8.3f} s{min(times) / base:>8.1f}x"
        print(f"{name:24}{times_shown}{rate:>12.7f}{cost:>12.7f}")
    what = f"EER and minDCF of {count:,} scores"
    others = [name for name in seconds if name != "hf_hamspk"]
    return [{"what": what, "rival": name, "ratio": min(seconds[name]) / base} for name in others]


def measure_costs(count: int) -> None:
    """Print the time of Cllr, minCllr and the EER on the convex hull for `count` scores."""
    rng = np.random.default_rng(0)
    labels = rng.random(count) < 0.5
    ratios = 3.0 * (rng.normal(size=count) + 3.0 * (labels - 0.5))
    for name, function in (
        ("Cllr", lambda: log_likelihood_ratio_cost(ratios, labels)),
        ("minCllr", lambda: convex_hull(ratios, labels).log_likelihood_ratio_cost()),
        ("EER (convex hull)", lambda: convex_hull(ratios, labels).equal_error_rate().eer),
    ):
        start = time.perf_counter()
        value = function()
        print(f"{name:24}{time.perf_counter() - start:>8.3f} s{value:>12.7f}")


def measure_intervals(count: int, replicates: int, speakers: int = 1251) -> None:
    """Print the time of EER, two minDCFs, Cllr and two actDCFs with intervals, and the intervals.

    The speakers are as many as VoxCeleb1 has; each shifts the scores that he is part of, half the trials are targets.
    """
    rng = np.random.default_rng(0)
    labels = rng.random(count) < 0.5
    enrolment = rng.integers(speakers, size=count, dtype=np.int32)
    others = (enrolment + rng.integers(1, speakers, size=count, dtype=np.int32)) % speakers
    test = np.where(labels, enrolment, others)
    shift = 0.3 * rng.normal(size=speakers)
    ratios = 3.0 * (rng.normal(size=count) + 3.0 * (labels - 0.5) + shift[enrolment] + shift[test])
    names = tuple(map(str, range(speakers)))
    points = [OperatingPoint(f"{prior:g}", prior) for prior in (0.01, 0.05)]
    start = time.perf_counter()
    result = bootstrap(ratios, labels, TrialSpeakers(names, enrolment, test), points, True, replicates, progress=False)
    seconds = time.perf_counter() - start
    print(f"\n{count:,} scores of {speakers:,} speakers, {replicates:,} resamplings: {seconds:.1f} s on one core")
    for name, value in result.estimates.items():
        low, high = result.interval(name)
        print(f"{name:24}{value:>10.5f} [{low:.5f}, {high:.5f}]")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="ten million scores as well")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--intervals", action="store_true", help="confidence intervals of a million scores as well")
    parser.add_argument("--json", type=Path, help="write the ratios there")
    arguments = parser.parse_args()
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    sizes = (1_000_000, 10_000_000) if arguments.large else (1_000_000,)
    rows = []
    for count in sizes:
        rows += measure(count, arguments.rounds)
        measure_costs(count)
    if arguments.intervals:
        measure_intervals(1_000_000, 1000)
    rivals.write_json(arguments.json, "metrics", {"rows": rows})


if __name__ == "__main__":
    main()
