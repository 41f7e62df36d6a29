"""Speaker verification with HAM-Softmax for Hugging Face.

The names in `__all__` are imported on first use, so `import hf_hamspk` is fast. The models are registered with the
Auto classes and pipelines of transformers when a name of this package or an Auto class is first used.

Example:
    ```python
    import hf_hamspk
    from transformers import AutoConfig

    print(AutoConfig.for_model("hamspk").head)
    ```
"""

import importlib
from typing import TYPE_CHECKING, Any

from .loading.registering import explain_import_error, register_when_needed

if TYPE_CHECKING:
    from .audio_hamspk import InputError, Limits
    from .calibration_hamspk import Calibration, OperatingPoint
    from .configuration_hamspk import HamSpkConfig
    from .data.collator import SpeakerCollator
    from .evaluation.evaluating import evaluate
    from .evaluation.model_calibration import calibrate
    from .evaluation.sweeps import sweep
    from .evaluation.trials import Trials, read_trials
    from .losses.modules import (
        AAMSoftmaxLoss,
        AMSoftmaxLoss,
        HamSoftmaxLoss,
        HSoftmaxLoss,
        NormalizedSoftmaxLoss,
        RealAMSoftmaxLoss,
        SoftmaxLoss,
    )
    from .modeling_hamspk import HamSpkForXVector, HamSpkModel, HamSpkPreTrainedModel
    from .pipeline_hamspk import SpeakerVerificationPipeline
    from .search.index import SpeakerIndex
    from .training.arguments import DataArguments, TrainingArguments
    from .training.trainer import Trainer
    from .training.trial_metrics import TrialMetrics
    from .verification_hamspk import Comparison, Identification, SpeakerProfile, Verification

__version__ = "0.1.0"
__all__ = [
    "AAMSoftmaxLoss",
    "AMSoftmaxLoss",
    "Calibration",
    "Comparison",
    "DataArguments",
    "HSoftmaxLoss",
    "HamSoftmaxLoss",
    "HamSpkConfig",
    "HamSpkForXVector",
    "HamSpkModel",
    "HamSpkPreTrainedModel",
    "Identification",
    "InputError",
    "Limits",
    "NormalizedSoftmaxLoss",
    "OperatingPoint",
    "RealAMSoftmaxLoss",
    "SoftmaxLoss",
    "SpeakerCollator",
    "SpeakerIndex",
    "SpeakerProfile",
    "SpeakerVerificationPipeline",
    "Trainer",
    "TrainingArguments",
    "TrialMetrics",
    "Trials",
    "Verification",
    "calibrate",
    "evaluate",
    "read_trials",
    "sweep",
]

_MODULES = {
    "audio_hamspk": ("InputError", "Limits"),
    "calibration_hamspk": ("Calibration", "OperatingPoint"),
    "configuration_hamspk": ("HamSpkConfig",),
    "data.collator": ("SpeakerCollator",),
    "evaluation.evaluating": ("evaluate",),
    "evaluation.model_calibration": ("calibrate",),
    "evaluation.sweeps": ("sweep",),
    "evaluation.trials": ("Trials", "read_trials"),
    "losses.modules": (
        "AAMSoftmaxLoss",
        "AMSoftmaxLoss",
        "HSoftmaxLoss",
        "HamSoftmaxLoss",
        "NormalizedSoftmaxLoss",
        "RealAMSoftmaxLoss",
        "SoftmaxLoss",
    ),
    "modeling_hamspk": ("HamSpkForXVector", "HamSpkModel", "HamSpkPreTrainedModel"),
    "pipeline_hamspk": ("SpeakerVerificationPipeline",),
    "search.index": ("SpeakerIndex",),
    "training.arguments": ("DataArguments", "TrainingArguments"),
    "training.trainer": ("Trainer",),
    "training.trial_metrics": ("TrialMetrics",),
    "verification_hamspk": ("Comparison", "Identification", "SpeakerProfile", "Verification"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

register_when_needed()


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with explain_import_error():
        value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
