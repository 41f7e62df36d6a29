"""`hamspk doctor`, on facts made up and on a torchaudio that cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_hamspk.cli import doctor

VERSIONS: dict[str, str | None] = {
    "torch": "2.14.1",
    "torchaudio": "2.11.0",
    "transformers": "5.23.0",
    "datasets": "5.2.0",
    "accelerate": "1.15.0",
    "soundfile": "0.14.0",
}
SAID = "OSError: libcudart.so.13: cannot open shared object file: No such file or directory"


def facts(torch_build="CPU", torchaudio_build="CUDA 13.0", extension=(), errors=None, **versions) -> doctor.Facts:
    return doctor.Facts(VERSIONS | versions, torch_build, torchaudio_build, extension, {} if errors is None else errors)


def fake_torchaudio(root: Path, library: bytes = b"\x7fELF libcudart.so.13", version: str = "2.11.0+cu130") -> Path:
    """A torchaudio that raises as the CUDA build does beside a CPU-only torch, as long as its extension is there."""
    folder = root / "torchaudio"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "_torchaudio.abi3.so").write_bytes(library)
    (folder / "lib" / "libtorchaudio.abi3.so").write_bytes(library)
    (folder / "version.py").write_text(f"__version__ = '{version}'\n")
    (folder / "functional.py").touch()
    (folder / "__init__.py").write_text(
        "from pathlib import Path\n"
        "if list((Path(__file__).parent / 'lib').glob('*.so')):\n"
        f"    raise OSError({SAID.removeprefix('OSError: ')!r})\n"
    )
    return folder


def test_all_well():
    assert doctor.diagnose(facts("CUDA 13.0")) == []
    assert doctor.diagnose(facts("CPU", "CPU")) == []
    assert doctor.diagnose(facts("CPU", "pure Python")) == []


def test_cuda_torchaudio_beside_cpu_torch():
    errors = {"torchaudio": SAID, "transformers": SAID}
    (problem,) = doctor.diagnose(facts(errors=errors))
    assert "torchaudio is a CUDA 13.0 build and torch a CPU build" in problem
    assert "libcudart.so.13" in problem
    assert "hamspk doctor --fix-torchaudio" in problem


def test_two_versions_of_cuda():
    errors = {"torchaudio": "RuntimeError: Detected that PyTorch and TorchAudio were compiled with different CUDA"}
    (problem,) = doctor.diagnose(facts("CUDA 13.2", errors=errors))
    assert "Install both from the same index" in problem
    assert "--fix-torchaudio" not in problem


def test_absent_and_broken_packages():
    problems = doctor.diagnose(facts("CPU", "CPU", errors={"datasets": "ImportError: no pyarrow"}, soundfile=None))
    assert problems == [
        "soundfile is not installed: `pip install soundfile`.",
        "datasets cannot be imported (ImportError: no pyarrow). Install it again.",
    ]


@pytest.mark.parametrize(
    ("library", "version", "build"),
    [
        (b"\x7fELF libcudart.so.13", "2.11.0+cu130", "CUDA 13.0"),
        (b"\x7fELF libtorch_cuda.so", "2.11.0", "CUDA"),
        (b"\x7fELF libtorch_cpu.so", "2.11.0+cpu", "CPU"),
    ],
)
def test_build_of_torchaudio_is_read_from_its_files(tmp_path, library, version, build):
    folder = fake_torchaudio(tmp_path, library, version)
    assert doctor._build_of_torchaudio(folder) == build
    for file in (folder / "lib").glob("*.so"):
        file.unlink()
    assert doctor._build_of_torchaudio(folder) == "pure Python"


def test_report_of_this_environment(hamspk):
    code, out, _ = hamspk("doctor")
    assert code == 0, out
    for name in VERSIONS:
        assert f"\n{name}" in out
    assert "no problems found" in out


def test_run_as_a_module(capsys):
    assert doctor.run_alone(["--fix-torchaudio"]) == 2
    assert capsys.readouterr().err.startswith("hamspk: error: --fix-torchaudio is only for")


def test_fix_removes_the_extension_beside_cpu_torch_only(tmp_path):
    folder = fake_torchaudio(tmp_path)
    files = tuple(sorted((folder / "lib").glob("*.so")))
    with pytest.raises(ValueError, match=r"only for CPU-only builds of torch, but this torch is a CUDA 13\.0 build"):
        doctor.remove_extension(facts("CUDA 13.0", extension=files))
    with pytest.raises(ValueError, match="torch cannot be imported"):
        doctor.remove_extension(facts(None, extension=files))
    with pytest.raises(ValueError, match="torchaudio is not installed"):
        doctor.remove_extension(facts("CPU", None))
    assert doctor.remove_extension(facts("CPU", "CPU", files)) == []
    assert all(file.exists() for file in files)
    assert doctor.remove_extension(facts("CPU", "CUDA 13.0", files)) == list(files)
    assert not list((folder / "lib").glob("*.so"))


def test_fix_end_to_end(tmp_path, hamspk, monkeypatch):
    folder = fake_torchaudio(tmp_path)
    saved = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchaudio"}
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "_build_of_torch", lambda: "CPU")
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "torchaudio", "soundfile"))
    # Only torchaudio is imported anew: the rest of this process needs its transformers.
    forget = doctor._forget
    monkeypatch.setattr(doctor, "_forget", lambda *_: forget("torchaudio"))
    forget("torchaudio")
    try:
        code, out, _ = hamspk("doctor")
        assert code == 1
        assert "problem: torchaudio is a CUDA 13.0 build and torch a CPU build" in out
        code, out, _ = hamspk("doctor", "--fix-torchaudio")
        assert code == 0
        assert f"removed {folder / 'lib' / '_torchaudio.abi3.so'}" in out
        assert f"removed {folder / 'lib' / 'libtorchaudio.abi3.so'}" in out
        assert "(pure Python build)" in out
        assert "no problems found" in out
        assert "nothing to remove" in hamspk("doctor", "--fix-torchaudio")[1]
    finally:
        forget("torchaudio")
        sys.modules.update(saved)


@pytest.mark.slow
def test_doctor_works_where_transformers_cannot_be_imported(tmp_path):
    fake_torchaudio(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)

    for words in (["hf_hamspk", "doctor"], ["hf_hamspk.cli.doctor"]):
        done = python("-m", *words)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "transformers  " in done.stdout
        assert "problem: torchaudio" in done.stdout
        assert "libcudart.so.13" in done.stdout
    # Everything else says in one line what to do.
    for name in ("a.wav", "b.wav", "model/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    done = python("-m", "hf_hamspk", "verify", *(str(tmp_path / name) for name in ("model", "a.wav", "b.wav")))
    assert done.returncode == 2
    refusal = "The models cannot be imported, because transformers cannot be imported ("
    assert done.stderr.startswith(f"hamspk: error: {refusal}")
    assert "libcudart.so.13" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "--fix-torchaudio" in done.stderr
    done = python("-c", "from hf_hamspk import HamSpkModel")
    assert f"ImportError: {refusal}" in done.stderr
    assert "libcudart.so.13" in done.stderr
