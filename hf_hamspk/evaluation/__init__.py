"""Evaluation of speaker verification: error rates, trial lists, plots and the module for `evaluate`.

The names below need NumPy alone. Two modules bring a heavier package and are therefore imported by their own name:
`hf_hamspk.evaluation.plots` (matplotlib) and `hf_hamspk.evaluation.speaker_verification` (evaluate).
"""

from .metrics import (
    DetectionErrors,
    EqualErrorRate,
    MinimumDetectionCost,
    detection_errors,
    equal_error_rate,
    minimum_detection_cost,
)
from .trials import MissingTrialFilesError, Trials, check_trial_files, read_trials

__all__ = [
    "DetectionErrors",
    "EqualErrorRate",
    "MinimumDetectionCost",
    "MissingTrialFilesError",
    "Trials",
    "check_trial_files",
    "detection_errors",
    "equal_error_rate",
    "minimum_detection_cost",
    "read_trials",
]
