"""Evaluate and calibrate speaker verification: trial lists, error rates, costs, intervals, reports and plots.

Two modules are not imported here, because each imports a large package. `hf_hamspk.evaluation.plots` imports
matplotlib. `hf_hamspk.evaluation.speaker_verification` imports the library `evaluate`; load this module with
`evaluate.load(METRIC_FILE)`.
"""

from pathlib import Path

from .calibration_metrics import (
    ActualDetectionCost,
    ConvexHull,
    actual_detection_cost,
    convex_hull,
    error_rates,
    log_likelihood_ratio_cost,
)
from .evaluating import Evaluation, EvaluationSettings, ListEvaluation, evaluate
from .intervals import BootstrapResult, PairedDifference, bootstrap, paired_test
from .metrics import (
    DetectionErrors,
    EqualErrorRate,
    MinimumDetectionCost,
    detection_cost,
    detection_errors,
    equal_error_rate,
    minimum_detection_cost,
)
from .model_calibration import CalibrationReport, calibrate
from .report import format_report
from .results import EvaluationRecord
from .speakers import TrialSpeakers, find_speakers
from .sweeps import Sweep, SweepPoint, sweep
from .trials import MissingTrialFilesError, Trials, check_trial_files, read_trials

# Path of the metric for `evaluate.load`. It is valid in a Git checkout and after `pip install`.
METRIC_FILE = str(Path(__file__).with_name("speaker_verification.py"))

__all__ = [
    "METRIC_FILE",
    "ActualDetectionCost",
    "BootstrapResult",
    "CalibrationReport",
    "ConvexHull",
    "DetectionErrors",
    "EqualErrorRate",
    "Evaluation",
    "EvaluationRecord",
    "EvaluationSettings",
    "ListEvaluation",
    "MinimumDetectionCost",
    "MissingTrialFilesError",
    "PairedDifference",
    "Sweep",
    "SweepPoint",
    "TrialSpeakers",
    "Trials",
    "actual_detection_cost",
    "bootstrap",
    "calibrate",
    "check_trial_files",
    "convex_hull",
    "detection_cost",
    "detection_errors",
    "equal_error_rate",
    "error_rates",
    "evaluate",
    "find_speakers",
    "format_report",
    "log_likelihood_ratio_cost",
    "minimum_detection_cost",
    "paired_test",
    "read_trials",
    "sweep",
]
