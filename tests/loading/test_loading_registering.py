"""Registration with transformers, whichever of the two packages is imported first."""

import subprocess
import sys
import textwrap

import pytest

SAVE = "AutoConfig.for_model('hamspk', ecapa_channels=16, ecapa_output_channels=48, pooling_channels=16)"
IS_REGISTERED = f"""
from transformers import AutoConfig, AutoModel, AutoModelForAudioXVector
from transformers.pipelines import PIPELINE_REGISTRY
config = {SAVE}
assert type(config).__module__ == "hf_hamspk.configuration_hamspk"
assert type(AutoModel.from_config(config)).__name__ == "HamSpkModel"
assert type(AutoModelForAudioXVector.from_config(config)).__name__ == "HamSpkForXVector"
assert "speaker-verification" in PIPELINE_REGISTRY.get_supported_tasks()
assert not [finder for finder in sys.meta_path if type(finder).__name__ == "ImportWatcher"]
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", "import sys\n" + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_importing_the_package_imports_nothing_heavy():
    out = python(
        "import hf_hamspk\n"
        "print(hf_hamspk.__version__, [m for m in ('torch', 'transformers', 'numpy', 'huggingface_hub', 'yaml')"
        " if m in sys.modules])"
    )
    assert out == "0.1.0 []\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "import hf_hamspk",
        "from transformers import AutoModel; import hf_hamspk",
        "import hf_hamspk; from transformers import pipeline",
        "from hf_hamspk.modeling_hamspk import HamSpkModel",
        "from hf_hamspk.training import Trainer",
    ],
)
def test_models_are_registered_in_any_order(first):
    python(f"{first}\n{IS_REGISTERED}")


@pytest.mark.slow
def test_the_hook_leaves_other_imports_as_they_are():
    python(
        textwrap.dedent(
            """
            import hf_hamspk, inspect
            import transformers.activations
            assert "class GELUActivation" in inspect.getsource(transformers.activations)
            try:
                import transformers.no_such_module
            except ModuleNotFoundError as error:
                assert error.name == "transformers.no_such_module"
            else:
                raise AssertionError
            import hf_hamspk.losses.lifting
            from importlib.util import find_spec
            assert find_spec("transformers.no_such_module") is None
            """
        )
    )
