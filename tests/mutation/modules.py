"""Modules to mutate, and the test files that are named for each: the fast ones first, then the slow ones."""

from typing import NamedTuple


class Module(NamedTuple):
    """Module under mutation.

    Attributes:
        count: number of mutants to draw.
        fast: test files whose fast tests run for each mutant.
        slow: test files whose slow tests run for a mutant that the fast tests let through.
    """

    count: int
    fast: tuple[str, ...]
    slow: tuple[str, ...] = ()


_HEADS = ("tests/test_heads.py", "tests/losses/test_losses_fused.py", "tests/losses/test_losses_sharding.py")
_EVALUATION = "tests/evaluation/test_evaluation_"

MODULES = {
    "geometry_hamspk.py": Module(
        36, ("tests/test_poincare.py", "tests/test_scoring.py", "tests/test_enrolment.py", "tests/test_heads.py")
    ),
    "networks_hamspk.py": Module(
        24,
        (
            "tests/test_frontend.py",
            "tests/test_pooling.py",
            "tests/test_ecapa.py",
            "tests/test_modeling.py",
        ),
        ("tests/test_modeling.py",),
    ),
    "calibration_hamspk.py": Module(
        24,
        (
            "tests/test_calibration.py",
            "tests/test_normalisation.py",
            "tests/test_scorer.py",
            "tests/test_integrity.py",
            f"{_EVALUATION}calibrating.py",
        ),
        (f"{_EVALUATION}calibrating.py",),
    ),
    "verification_hamspk.py": Module(
        30,
        (
            "tests/test_verifier.py",
            "tests/test_identification.py",
            "tests/test_enrolment.py",
            "tests/test_comparison.py",
            "tests/test_doors.py",
        ),
        ("tests/test_doors.py", "tests/test_modeling.py"),
    ),
    "evaluation/metrics.py": Module(
        24,
        (f"{_EVALUATION}metrics.py", f"{_EVALUATION}conventions.py", f"{_EVALUATION}verification.py"),
        (f"{_EVALUATION}metrics.py",),
    ),
    "evaluation/intervals.py": Module(24, (f"{_EVALUATION}intervals.py",), (f"{_EVALUATION}intervals.py",)),
    "evaluation/calibration_metrics.py": Module(
        20, (f"{_EVALUATION}calibration_metrics.py", f"{_EVALUATION}calibrating.py"), (f"{_EVALUATION}calibrating.py",)
    ),
    "evaluation/speakers.py": Module(16, (f"{_EVALUATION}speakers.py", f"{_EVALUATION}official_lists.py")),
    "evaluation/matrix_scoring.py": Module(
        12, (f"{_EVALUATION}matrix_scoring.py",), (f"{_EVALUATION}matrix_scoring.py",)
    ),
    "evaluation/sufficiency.py": Module(10, (f"{_EVALUATION}calibrating.py",), (f"{_EVALUATION}calibrating.py",)),
    "shards/order.py": Module(24, ("tests/shards/test_shards_order.py",), ("tests/shards/test_shards_order.py",)),
    "data/sampling.py": Module(
        20,
        ("tests/data/test_data_sampling.py", "tests/data/test_data_dataset.py"),
        ("tests/training/test_training_balanced.py",),
    ),
    "training/schedules.py": Module(10, ("tests/training/test_training_schedules.py",)),
    "search/products.py": Module(10, ("tests/search/test_search_index.py",)),
    "losses/blocks.py": Module(20, _HEADS, _HEADS[1:]),
    "losses/lifting.py": Module(20, (*_HEADS, "tests/test_scoring.py"), _HEADS[1:]),
    "losses/fused.py": Module(10, _HEADS, _HEADS[1:]),
    "losses/sharding.py": Module(10, _HEADS[::-1], _HEADS[1:]),
}
