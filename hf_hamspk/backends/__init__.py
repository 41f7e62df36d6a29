"""Fast embedding on a CPU with PyTorch, ONNX Runtime or OpenVINO, in float32, bfloat16 or int8."""

from .choosing import BACKENDS, DTYPES, Choice, with_backend
from .models import BackendModel
from .quantising import quantise_onnx

__all__ = ["BACKENDS", "DTYPES", "BackendModel", "Choice", "quantise_onnx", "with_backend"]
