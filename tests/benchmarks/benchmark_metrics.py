"""Time of EER and minDCF: this package, a plain Python loop, and scikit-learn's ROC curve.

Run `python tests/benchmarks/benchmark_metrics.py`; `--large` adds ten million scores. The contenders take turns in one
process, so that a change of the machine's speed meets all of them; the best round of each counts.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from hf_hamspk.evaluation.metrics import detection_errors

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


def measure(count: int, rounds: int) -> None:
    """Print the table for `count` scores, half of them targets."""
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


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="ten million scores as well")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: %(default)s)")
    arguments = parser.parse_args()
    measure(1_000_000, arguments.rounds)
    if arguments.large:
        measure(10_000_000, arguments.rounds)


if __name__ == "__main__":
    main()
