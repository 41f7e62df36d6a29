"""A saved model goes to a machine without this package, gives the same numbers there, and can be saved again.

The other side is a fresh process in which importing `hf_hamspk` fails, with a Hub cache of its own and no network.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import W2V_BERT, noises, padded, settle, tiny_config
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioXVector
from transformers.dynamic_module_utils import get_relative_import_files

import hf_hamspk
from hf_hamspk import HamSpkConfig, HamSpkForXVector, HamSpkModel
from hf_hamspk.configuration_hamspk import ENCODERS

PACKAGE = Path(hf_hamspk.__file__).parent
TRUNK = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
REVISION = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "me/tiny"
REPOSITORY_FOLDER = f"models--{REPOSITORY.replace('/', '--')}"

OTHER_SIDE = """
import json, sys, warnings
from pathlib import Path

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_hamspk":
            raise ImportError("hf_hamspk is not installed here")

sys.meta_path.insert(0, Absent())
try:
    import hf_hamspk
except ImportError:
    pass
else:
    raise SystemExit("hf_hamspk can be imported: this proves nothing")

source, work = sys.argv[1], Path(sys.argv[2])
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioXVector

torch.set_num_threads(1)
batch = load_file(work / "batch.safetensors")
trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(source, **trust)
bare, bare_info = AutoModel.from_pretrained(source, output_loading_info=True, **trust)
model, info = AutoModelForAudioXVector.from_pretrained(source, output_loading_info=True, **trust)
extractor = AutoFeatureExtractor.from_pretrained(source, **trust)

waves = [wave[: int(mask.sum())].numpy() for wave, mask in zip(batch["input_values"], batch["attention_mask"])]
inputs = extractor(waves, sampling_rate=16000, padding=True, return_tensors="pt")
results = {f"buffer.{name}": buffer for name, buffer in model.named_buffers()}
with torch.no_grad():
    of_bare = bare(batch["input_values"], batch["attention_mask"])
    output = model(**batch)
    results |= {
        "bare": of_bare.embeddings,
        "embeddings": output.embeddings,
        "logits": output.logits,
        "loss": output.loss,
        "extracted": bare(**inputs).embeddings,
        "embed": model.embed(waves, 16000),
        "score": model.score(output.embeddings[:1], output.embeddings[1:2]),
    }
save_file({name: tensor.contiguous().clone() for name, tensor in results.items()}, work / "results.safetensors")
model.save_pretrained(work / "again")
extractor.save_pretrained(work / "again")
report = {
    "classes": [type(x).__name__ for x in (config, bare, model, extractor)],
    "modules": [type(x).__module__ for x in (config, bare, model)],
    "problems": {k: sorted(map(str, i[k])) for i in (bare_info, info) for k in i if i[k]},
    "loaded": sorted(name for name in sys.modules if name.split(".")[0] == "hf_hamspk"),
}
(work / "report.json").write_text(json.dumps(report))
"""


def test_the_trunk_is_what_the_loader_copies():
    entries = [PACKAGE / "configuration_hamspk.py", PACKAGE / "modeling_hamspk.py"]
    copied = {path.name for path in entries}
    for entry in entries:
        copied |= {Path(path).name for path in get_relative_import_files(entry)}
    assert copied == TRUNK


def build(backbone: str) -> HamSpkForXVector:
    if backbone in ENCODERS:
        return settle(HamSpkForXVector(tiny_config(backbone, head="joint")))
    fields = {"projection": "curved", "curvature": 1.0, "learnable_curvature": True, "similarity": "hyperbolic"}
    return settle(HamSpkForXVector(tiny_config(backbone, pooling="mhfa", **fields)))


def batch() -> dict[str, torch.Tensor]:
    values, mask = padded(noises(0.5, 0.8, 1.1))
    return {"input_values": values, "attention_mask": mask, "labels": torch.tensor([0, 3, 4])}


def expected_results(model: HamSpkForXVector) -> dict[str, torch.Tensor]:
    inputs = batch()
    waves = [
        wave[: int(mask.sum())] for wave, mask in zip(inputs["input_values"], inputs["attention_mask"], strict=True)
    ]
    with torch.no_grad():
        output = model(**inputs)
        return {f"buffer.{name}": buffer for name, buffer in model.named_buffers()} | {
            "bare": output.embeddings,
            "embeddings": output.embeddings,
            "logits": output.logits,
            "loss": output.loss,
            "extracted": output.embeddings,
            "embed": model.embed(waves, 16000),
            "score": model.score(output.embeddings[:1], output.embeddings[1:2]),
        }


def as_hub_cache(home: Path, model: HamSpkForXVector) -> None:
    """Lay a saved model out as `huggingface_hub` keeps what it downloaded."""
    repository = home / "hub" / REPOSITORY_FOLDER
    model.save_pretrained(repository / "snapshots" / REVISION)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)


def visit(source: str | Path, home: Path, work: Path) -> tuple[dict[str, torch.Tensor], dict, str]:
    """Load `source` on the other side: its results, its report, and what it wrote to its standard error."""
    work.mkdir(parents=True, exist_ok=True)
    save_file(batch(), work / "batch.safetensors")
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_MODULES_CACHE", "HF_HUB_CACHE", "PYTHONPATH")}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OTHER_SIDE, str(source), str(work)],
        capture_output=True,
        text=True,
        cwd=work,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return load_file(work / "results.safetensors"), json.loads((work / "report.json").read_text()), done.stderr


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in (*ENCODERS, "wavlm", W2V_BERT)]
)
def journey(request, tmp_path_factory):
    """A model, and what came of it on the other side, from the Hub's cache."""
    torch.manual_seed(3)
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    as_hub_cache(home, build(request.param))
    # Weights from a file lie at other addresses than new ones, and on some processors the last bit depends on that.
    model = HamSpkForXVector.from_pretrained(home / "hub" / REPOSITORY_FOLDER / "snapshots" / REVISION)
    return model, home, work, visit(REPOSITORY, home, work)


def assert_same(results: dict[str, torch.Tensor], model: HamSpkForXVector) -> None:
    expected = expected_results(model)
    assert results.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(results[name], tensor), name


def test_the_other_side_gives_the_same_numbers_bit_for_bit(journey):
    model, _, _, (results, report, _) = journey
    assert report["classes"] == ["HamSpkConfig", "HamSpkModel", "HamSpkForXVector", "Wav2Vec2FeatureExtractor"]
    assert all(module.startswith("transformers_modules.") for module in report["modules"])
    assert report["loaded"] == []
    assert_same(results, model)


def test_the_other_side_is_told_nothing(journey):
    """No missing, unexpected or newly initialised weights, in the report or in words."""
    *_, (_, report, errors) = journey
    assert report["problems"] == {}
    for word in ("MISSING", "UNEXPECTED", "newly initialized", "not used", "You should probably TRAIN"):
        assert word not in errors


@pytest.mark.slow
def test_saved_again_it_still_carries_its_code(journey):
    model, _, work, _ = journey
    again = work / "again"
    assert {path.name for path in again.glob("*.py")} >= TRUNK
    results, report, _ = visit(again, work / "another home", work / "second")
    assert report["problems"] == {}
    assert_same(results, model)


def test_saved_again_it_is_what_was_saved(journey, tmp_path):
    model, _, work, _ = journey
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (work / "again").iterdir()}
    for path in tmp_path.glob("*.py"):
        assert path.read_bytes() == (work / "again" / path.name).read_bytes(), path.name
        assert path.read_bytes() == (PACKAGE / path.name).read_bytes(), path.name
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, work / "again"))
    assert ours["auto_map"] == theirs["auto_map"]
    left, right = (load_file(folder / "model.safetensors") for folder in (tmp_path, work / "again"))
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
@pytest.mark.parametrize("trust", [None, False, True])
def test_here_the_installed_classes_win(trust, tmp_path, caplog):
    model = build("ecapa")
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path, trust_remote_code=trust)) is HamSpkConfig
    bare, info = AutoModel.from_pretrained(tmp_path, trust_remote_code=trust, output_loading_info=True)
    assert type(bare) is HamSpkModel
    assert not any(info.values())
    xvector, info = AutoModelForAudioXVector.from_pretrained(
        tmp_path, trust_remote_code=trust, output_loading_info=True
    )
    assert type(xvector) is HamSpkForXVector
    assert not any(info.values())
    assert not caplog.records
    assert AutoFeatureExtractor.from_pretrained(tmp_path).return_attention_mask
    with torch.no_grad():
        inputs = {name: batch()[name] for name in ("input_values", "attention_mask")}
        assert torch.equal(bare(**inputs).embeddings, model(**inputs).embeddings)
