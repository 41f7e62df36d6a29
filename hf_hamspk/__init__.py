"""Speaker verification with HAM-Softmax for Hugging Face.

Importing registers the configuration and the models with the Auto classes of transformers and the pipeline with its
pipelines, and does nothing else.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["HamSpkConfig", "HamSpkForXVector", "HamSpkModel", "HamSpkPreTrainedModel", "SpeakerVerificationPipeline"]

_failure: Exception | None = None
try:
    from transformers import AutoConfig, AutoModel, AutoModelForAudioXVector
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_hamspk import HamSpkConfig
    from .modeling_hamspk import HamSpkForXVector, HamSpkModel, HamSpkPreTrainedModel
    from .pipeline_hamspk import TASK, SpeakerVerificationPipeline

    HamSpkConfig.register_for_auto_class()
    HamSpkModel.register_for_auto_class("AutoModel")
    HamSpkForXVector.register_for_auto_class("AutoModelForAudioXVector")
    AutoConfig.register("hamspk", HamSpkConfig, exist_ok=True)
    AutoModel.register(HamSpkConfig, HamSpkModel, exist_ok=True)
    AutoModelForAudioXVector.register(HamSpkConfig, HamSpkForXVector, exist_ok=True)
    PIPELINE_REGISTRY.register_pipeline(TASK, SpeakerVerificationPipeline, pt_model=AutoModel, type="audio")
except (OSError, RuntimeError) as error:
    # transformers imports torchaudio, and that fails where it is a build for CUDA beside a CPU-only torch. The error is
    # raised when a name is asked for, so that `hamspk doctor`, which mends it, can be run.
    _failure = error


def __getattr__(name: str) -> Any:
    if name not in __all__ or _failure is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise ImportError(
        f"The models cannot be imported, because transformers cannot ({_failure}). If torchaudio is a build for CUDA "
        "and torch is CPU-only, install torch from PyPI (`pip install 'torch>=2.11,<2.15'`), or run `hamspk doctor "
        "--fix-torchaudio`."
    ) from _failure
