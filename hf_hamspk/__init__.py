"""Speaker verification with HAM-Softmax for Hugging Face.

Importing registers the configuration and the models with the Auto classes of transformers, and does nothing else.
"""

from transformers import AutoConfig, AutoModel, AutoModelForAudioXVector

from .configuration_hamspk import HamSpkConfig
from .modeling_hamspk import HamSpkForXVector, HamSpkModel, HamSpkPreTrainedModel

__version__ = "0.1.0"
__all__ = ["HamSpkConfig", "HamSpkForXVector", "HamSpkModel", "HamSpkPreTrainedModel"]

HamSpkConfig.register_for_auto_class()
HamSpkModel.register_for_auto_class("AutoModel")
HamSpkForXVector.register_for_auto_class("AutoModelForAudioXVector")
AutoConfig.register("hamspk", HamSpkConfig, exist_ok=True)
AutoModel.register(HamSpkConfig, HamSpkModel, exist_ok=True)
AutoModelForAudioXVector.register(HamSpkConfig, HamSpkForXVector, exist_ok=True)
