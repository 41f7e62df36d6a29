"""Registration of the models with the Auto classes and pipelines of transformers.

Registration imports the model classes, and with them torch and transformers, which takes seconds. It is therefore
delayed until the user or a module of this package first imports the Auto classes of transformers. After the imports

    import hf_hamspk
    from transformers import AutoModel

in either order, `AutoModel` can load the models of this package. `import hf_hamspk` alone imports neither torch nor
transformers.
"""

import importlib
import importlib.metadata
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = __name__.partition(".")[0]
WATCHED_PACKAGES = (PACKAGE, "transformers")
# Module that is imported whenever one of the Auto classes is imported.
AUTO_CLASSES = "transformers.models.auto.configuration_auto"
# Oldest version of transformers that works, and the first that does not work again, as in pyproject.toml.
OLDEST_TRANSFORMERS, LATER_TRANSFORMERS = (5, 18), (6, 0)


def register_when_needed() -> None:
    """Register the models once the Auto classes of transformers are imported.

    If they are already imported, the models are registered immediately. Otherwise an import hook registers them later.
    """
    if AUTO_CLASSES in sys.modules:
        register_models()
    elif not any(isinstance(finder, ImportWatcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, ImportWatcher())


def register_models() -> None:
    """Register the configuration, the models and the pipeline with transformers.

    A second call has no effect. If the models cannot be imported, this function registers nothing and raises no error.
    The import error is raised later, when one of the models is used. A wrong version of transformers causes a warning.
    """
    try:
        transformers = importlib.import_module("transformers")
        registry = importlib.import_module("transformers.pipelines").PIPELINE_REGISTRY
        config = importlib.import_module(f"{PACKAGE}.configuration_hamspk").HamSpkConfig
        modeling = importlib.import_module(f"{PACKAGE}.modeling_hamspk")
        pipeline = importlib.import_module(f"{PACKAGE}.pipeline_hamspk")
    except (ImportError, OSError, RuntimeError):
        problem = wrong_transformers(installed_transformers())
        if problem is not None:
            warnings.warn(problem, stacklevel=2)
        return
    config.register_for_auto_class()
    modeling.HamSpkModel.register_for_auto_class("AutoModel")
    modeling.HamSpkForXVector.register_for_auto_class("AutoModelForAudioXVector")
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    transformers.AutoModel.register(config, modeling.HamSpkModel, exist_ok=True)
    transformers.AutoModelForAudioXVector.register(config, modeling.HamSpkForXVector, exist_ok=True)
    if pipeline.TASK not in registry.get_supported_tasks():
        registry.register_pipeline(
            pipeline.TASK, pipeline.SpeakerVerificationPipeline, pt_model=transformers.AutoModel, type="audio"
        )


def installed_transformers() -> str | None:
    """Return the version of transformers; None if it is not installed."""
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return None


def wrong_transformers(version: str | None) -> str | None:
    """Return a sentence with the versions of transformers that work; None if `version` is one of them."""
    numbers = re.match(r"(\d+)\.(\d+)", str(version))
    if numbers and OLDEST_TRANSFORMERS <= tuple(map(int, numbers.groups())) < LATER_TRANSFORMERS:
        return None
    oldest, later = ".".join(map(str, OLDEST_TRANSFORMERS)), LATER_TRANSFORMERS[0]
    state = "it is not installed" if version is None else f"{version} is installed"
    return (
        f"hf_hamspk needs transformers {oldest} or newer and below {later}, but {state}. Run `pip install "
        f"'transformers>={oldest},<{later}'`."
    )


@contextmanager
def explain_import_error() -> Iterator[None]:
    """Turn the error of a wrong transformers or torchaudio into an ImportError whose message contains the remedy.

    transformers imports torchaudio, and a CUDA build of torchaudio cannot be loaded together with a CPU-only torch.
    """
    try:
        yield
    except ImportError as error:
        problem = wrong_transformers(installed_transformers())
        if problem is None:
            raise
        raise ImportError(problem) from error
    except (OSError, RuntimeError) as error:
        raise ImportError(
            f"The models cannot be imported, because transformers cannot be imported ({error}). If torchaudio is a "
            "CUDA build and torch is a CPU-only build, install torch from PyPI (`pip install 'torch>=2.11,<2.15'`) or "
            "run `hamspk doctor --fix-torchaudio`."
        ) from error


class ImportWatcher:
    """Import hook that registers the models after the first import of the Auto classes, and then removes itself.

    The hook does not change which modules are found. Registration itself imports modules of transformers and of this
    package. To avoid circular imports, the hook waits until the current thread has finished all imports of both.
    """

    def __init__(self) -> None:
        self._state = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module spec of the other finders. Its loader notifies this hook when the module is loaded."""
        if name.partition(".")[0] not in WATCHED_PACKAGES:
            return None
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            self._watch(spec.loader)
        return spec

    def _watch(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self._state.depth = getattr(self._state, "depth", 0) + 1
            try:
                execute(module)
            finally:
                self._state.depth -= 1
            self._register_if_idle()

        loader.exec_module = exec_module

    def _register_if_idle(self) -> None:
        if self._state.depth == 0 and AUTO_CLASSES in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            register_models()
