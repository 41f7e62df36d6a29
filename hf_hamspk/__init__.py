"""Speaker verification with HAM-Softmax for Hugging Face.

Importing registers the configuration and the models with the Auto classes of transformers, and does nothing else. Only
where the command line is what imports the package does this wait until a command needs a model: so `hamspk --help`
answers at once, and `hamspk doctor` works where transformers cannot be imported.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_hamspk import HamSpkConfig
    from .modeling_hamspk import HamSpkForXVector, HamSpkModel, HamSpkPreTrainedModel

__version__ = "0.1.0"
__all__ = ["HamSpkConfig", "HamSpkForXVector", "HamSpkModel", "HamSpkPreTrainedModel"]


def register() -> None:
    """Import the models and register them with the Auto classes of transformers; importing the package calls it.

    Raises:
        ImportError: transformers cannot be imported, as where torchaudio does not fit torch; it says what to do.
    """
    try:
        from transformers import AutoConfig, AutoModel, AutoModelForAudioXVector

        from .configuration_hamspk import HamSpkConfig
        from .modeling_hamspk import HamSpkForXVector, HamSpkModel, HamSpkPreTrainedModel
    except (OSError, RuntimeError) as error:
        raise ImportError(
            f"transformers cannot be imported ({error}). It imports torchaudio, which fails like this where it is not "
            "the same kind of build as torch, such as a CUDA build beside a CPU-only torch. "
            "`python -m hf_hamspk.cli.doctor` says what is wrong, and with --fix-torchaudio it can mend that."
        ) from error
    for public in (HamSpkConfig, HamSpkForXVector, HamSpkModel, HamSpkPreTrainedModel):
        globals()[public.__name__] = public
    HamSpkConfig.register_for_auto_class()
    HamSpkModel.register_for_auto_class("AutoModel")
    HamSpkForXVector.register_for_auto_class("AutoModelForAudioXVector")
    AutoConfig.register("hamspk", HamSpkConfig, exist_ok=True)
    AutoModel.register(HamSpkConfig, HamSpkModel, exist_ok=True)
    AutoModelForAudioXVector.register(HamSpkConfig, HamSpkForXVector, exist_ok=True)


def _is_command_line() -> bool:
    """Whether this process was started as `hamspk ...`, `python -m hf_hamspk ...` or `python -m hf_hamspk.cli...`."""
    program = sys.argv[0] if sys.argv else ""
    if program != "-m":
        return Path(program).name in ("hamspk", "hamspk.exe")
    # Python puts "-m" there while it looks for the module, which is when it imports the package.
    words = sys.orig_argv
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    return module in (__name__, f"{__name__}.__main__") or module.startswith(f"{__name__}.cli.")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    return globals()[name]


if not _is_command_line():
    register()
