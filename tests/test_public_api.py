"""The names and signatures that users rely on, and the examples in docstrings.

After an intended change, `python tests/test_public_api.py` writes `tests/public_api.txt`; look at the difference.
"""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import hf_hamspk

PACKAGE = Path(hf_hamspk.__file__).parent
SNAPSHOT = Path(__file__).with_name("public_api.txt")
LONGEST_LINE = 110
# Those that train are slow.
SLOW = ("train()", "export_onnx(")


def signature(value: object, only: set[str] | None = None) -> str:
    """A signature without the addresses of objects and the paths of modules, long ones with a line per parameter."""
    found = inspect.signature(value)  # pyright: ignore[reportArgumentType]
    parameters = [p for name, p in found.parameters.items() if only is None or name in only]
    returned = str(found).rpartition(" -> ")[2] if " -> " in str(found) else ""
    texts = [shorten(str(parameter)) for parameter in parameters]
    result = f" -> {shorten(returned)}" if returned not in ("", "None") else ""
    line = f"({', '.join(texts)}){result}"
    return (
        line
        if len(line) <= LONGEST_LINE
        else "\n".join(["(", *(f"        {text}," for text in texts), f"    ){result}"])
    )


def shorten(text: str) -> str:
    text = re.sub(r"<factory>|<object object at 0x[0-9a-f]+>", "...", text)
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])", "", text)


def members(name: str, value: object) -> list[str]:
    """A public name with its signature; of a class also the public methods that it has from this package."""
    if not inspect.isclass(value):
        return [f"{name}{signature(value)}"]
    public = [base for base in value.__mro__[1:] if base.__name__ in hf_hamspk.__all__]
    # Those of a configuration's base class are transformers'.
    own = set(vars(value)["__annotations__"]) if name == "HamSpkConfig" else None
    lines = [f"class {name}{signature(value, own)}"]
    for part in sorted(dir(value)):
        home, found = next(((base, vars(base)[part]) for base in value.__mro__ if part in vars(base)), (object, None))
        inherited = any(getattr(base, part, None) is getattr(value, part) for base in public)
        if part.startswith("_") or not home.__module__.startswith("hf_hamspk") or home in public or inherited:
            continue
        function = found.__func__ if isinstance(found, classmethod | staticmethod) else found
        if isinstance(found, property):
            lines.append(f"    {part}: property")
        elif inspect.isfunction(function):
            kind = type(found).__name__ + " " if isinstance(found, classmethod | staticmethod) else ""
            lines.append(f"    {kind}{part}{signature(function)}")
    return lines


def public_api() -> str:
    lines = [line for name in sorted(hf_hamspk.__all__) for line in members(name, getattr(hf_hamspk, name))]
    return "".join(f"{line}\n" for line in lines)


def test_names_and_signatures_are_those_of_the_snapshot():
    expected = SNAPSHOT.read_text(encoding="utf-8")
    assert public_api() == expected, (
        "The public interface has changed. If that is intended, write it in CHANGELOG.md and renew the snapshot: "
        "python tests/test_public_api.py"
    )


def test_every_name_is_found_where_the_type_checkers_look():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    homes = {
        alias.name: statement.module
        for statement in checked.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert homes == hf_hamspk._MODULE_OF
    assert sorted(homes) == sorted(hf_hamspk.__all__)
    for name in hf_hamspk.__all__:
        assert getattr(hf_hamspk, name).__module__ == f"hf_hamspk.{homes[name]}"


def test_the_package_shows_its_names_and_refuses_others():
    assert set(hf_hamspk.__all__) <= set(dir(hf_hamspk))
    with pytest.raises(AttributeError, match="module 'hf_hamspk' has no attribute 'HamSpkConfg'"):
        hf_hamspk.HamSpkConfg  # noqa: B018
    with pytest.raises(ImportError):
        from hf_hamspk import HamSpkConfg  # noqa: F401


def test_importing_the_package_imports_no_torch():
    code = "import sys, hf_hamspk; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("name", ["HamSpkModel", "Trainer"])
def test_a_broken_torchaudio_is_explained(name, monkeypatch):
    def broken(module, package=None):
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.delitem(vars(hf_hamspk), name, raising=False)
    explained = r"transformers cannot be imported \(libcudart\.so\.13.*hamspk doctor --fix-torchaudio"
    with pytest.raises(ImportError, match=explained):
        getattr(hf_hamspk, name)


def examples() -> list:
    """The fenced blocks of Python in the docstrings of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            docstring = ast.get_docstring(node)
            for block in re.findall(r"```python\n(.*?)```", docstring if docstring else "", re.DOTALL):
                where = f"{path.relative_to(PACKAGE).as_posix()}:{getattr(node, 'name', '')}"
                marks = [pytest.mark.slow] if any(word in block for word in SLOW) else []
                module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
                found.append(pytest.param(module, textwrap.dedent(block), id=where, marks=marks))
    return found


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with what the examples name: recordings, a calibrated model in `model`, a recipe, trial lists."""
    import soundfile
    import torch
    from tiny_models import settle, tiny_config

    from hf_hamspk.calibration_hamspk import Calibration
    from hf_hamspk.data.synthetic import make_corpus, make_speech

    folder = tmp_path_factory.mktemp("workplace")
    torch.manual_seed(0)
    model = settle(hf_hamspk.HamSpkForXVector(tiny_config()))
    model.calibration = Calibration(model.fingerprint(), "cosine", -90.0, {"score": 100.0}, trials=100, targets=50)
    model.save_pretrained(folder / "model")
    names = ("a", "b", "c", "anna1", "anna2", "anna", "bert", "test", "enrolment")
    for number, name in enumerate(names):
        soundfile.write(folder / f"{name}.wav", make_speech(number % 3, number, 2.5), 16_000)
    make_corpus(folder / "corpus", 10, 4, 3, (1.7, 2.1), test_share=0.4)
    trials = (folder / "corpus" / "trials.txt").read_text()
    for name in ("trials.txt", "dev.txt", "test.txt"):
        (folder / name).write_text(trials)
    (folder / "recipe.yaml").write_text(
        "train_data: corpus/train.csv\naudio_root: corpus\noutput_dir: run\nepochs: 1\nbatch_size: 4\ncpu: true\n"
        "ecapa_channels: 16\necapa_output_channels: 48\npooling_channels: 8\nembedding_size: 24\ncrop_seconds: 0.5\n"
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("module", "block"), examples())
def test_examples_of_docstrings_run(module, block, workplace, monkeypatch):
    """With the names of their module at hand, as in doctest."""
    monkeypatch.chdir(workplace)
    names = dict(vars(importlib.import_module(module.removesuffix(".__init__"))))
    if re.search(r"\bmodel\b", block) and "model =" not in block:
        names["model"] = hf_hamspk.HamSpkModel.from_pretrained("model")
    exec(compile(block, "example", "exec"), names)


# Used by itself by nobody: one catches it, the other is a base class.
NO_EXAMPLE = {"InputError", "HamSpkPreTrainedModel"}
# To be given one.
NO_EXAMPLE |= {"Trials"}


@pytest.mark.parametrize("name", [name for name in hf_hamspk.__all__ if name[0].isupper() and name not in NO_EXAMPLE])
def test_every_public_class_has_an_example(name):
    said = vars(getattr(hf_hamspk, name))["__doc__"]
    assert "```python" in said, f"{name}: a worked example of about three lines in its docstring"


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api(), encoding="utf-8")
