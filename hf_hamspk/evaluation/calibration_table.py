"""A calibration for people: what was tried, and the operating points."""

from ..calibration_hamspk import Calibration
from .calibration_metrics import actual_detection_cost
from .metrics import detection_errors
from .model_calibration import ModelCalibration

Row = list[str]


def candidate_table(found: ModelCalibration) -> list[Row]:
    """Head and a row for each setting that was tried, on held-out speakers; the chosen one is marked."""
    points = found.calibration.operating_points
    rows = [["", "setting", "Cllr", "EER %", *(f"actDCF {point.name}" for point in points)]]
    labels = found.trials.labels
    for candidate in found.candidates:
        ratios = candidate.fitted.held_out_ratios
        costs = [
            actual_detection_cost(ratios, labels, point.prior, point.cost_miss, point.cost_false_alarm).cost
            for point in points
        ]
        rows.append(
            [
                "*" if candidate is found.chosen else "",
                str(candidate.setting),
                f"{candidate.fitted.cost:.4f}",
                f"{100 * detection_errors(ratios, labels).equal_error_rate().eer:.2f}",
                *(f"{cost:.3f}" for cost in costs),
            ]
        )
    return rows


def point_table(calibration: Calibration) -> list[Row]:
    """Head and a row for each operating point."""
    rows = [["operating point", "prior", "costs", "threshold", "misses %", "false alarms %"]]
    for point in calibration.operating_points:
        rates = ["-" if rate is None else f"{100 * rate:.2f}" for rate in (point.miss_rate, point.false_alarm_rate)]
        costs = f"{point.cost_miss:g} : {point.cost_false_alarm:g}"
        rows.append([point.name, f"{point.prior:g}", costs, f"{point.threshold:.3f}", *rates])
    return rows
