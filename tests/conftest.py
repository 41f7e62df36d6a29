"""Set up before anything is imported: no network, a cache of our own, one thread."""

import os
import tempfile
from pathlib import Path

# Kept alive until the process ends.
_CACHE = tempfile.TemporaryDirectory(prefix="hamspk-tests-")
os.environ["HF_HOME"] = _CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# For the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402
from safetensors import safe_open  # noqa: E402

# Tiny models gain nothing from a second thread, and lose much to waiting for it on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers whichever tests run before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps its state for the life of a process; each test starts without."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden numbers and real speech beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder.name!r} beside the checkout: golden numbers and real speech are absent")
    return folder


@pytest.fixture(scope="session")
def golden(shared):
    """Reads a golden file: its tensors and its metadata."""

    def read(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        path = shared / "golden" / f"{name}.safetensors"
        if not path.is_file():
            pytest.skip(f"no golden file {name!r} beside the checkout")
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            return {key: file.get_tensor(key) for key in file.keys()}, {} if metadata is None else metadata  # noqa: SIM118

    return read
