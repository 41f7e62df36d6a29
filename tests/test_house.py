"""CONTRIBUTING's rules, held as data and checked on the source text."""

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hf_hamspk"

# The trunk, level by level: a file imports only from lines above its own here (lower in the drawing).
TRUNK = [
    ["geometry_hamspk", "audio_hamspk"],
    ["configuration_hamspk", "calibration_hamspk"],
    ["networks_hamspk", "verification_hamspk"],
    ["pipeline_hamspk", "encoders_hamspk"],
    ["modeling_hamspk"],
]
LEVEL = {name: level for level, names in enumerate(TRUNK) for name in names}
TRUNK_PACKAGES = {"torch", "numpy", "transformers", "huggingface_hub", "safetensors"}
# What a trunk file may use where it is installed. The Hub's loader asks nobody for what is imported within `try`.
OPTIONAL_PACKAGES = {"soundfile": {"audio_hamspk"}, "av": {"audio_hamspk"}, "onnxruntime": {"encoders_hamspk"}}

# Which rooms a room may import besides the trunk.
ROOMS = {
    "folders": set(),
    "files": set(),
    "loading": set(),
    "data": {"files", "folders"},
    "losses": set(),
    "evaluation": {"data", "files", "folders", "loading"},
    "shards": {"data", "files", "folders"},
    "training": {"losses", "shards", "evaluation", "data", "files", "folders", "loading", "publishing"},
    "study": {"training", "evaluation", "data", "files", "folders"},
    "hierarchy": {"study", "evaluation", "data", "files", "folders"},
    "embedding": {"shards", "data", "files", "folders"},
    "clusters": {"shards", "embedding", "loading"},
    "conversion": {"files", "loading"},
    "search": {"folders"},
    "publishing": {"evaluation", "files", "folders", "loading"},
    "export": {"folders"},
    "backends": {"export", "folders"},
    "cli": {
        *("shards", "embedding", "training", "evaluation", "data", "conversion", "publishing", "search", "export"),
        *("files", "folders", "loading", "study", "hierarchy", "backends"),
    },
}
# Third-party packages with one home: paths, or folders that end in a slash.
HOMES = {
    "accelerate": ("training/", "cli/"),
    "datasets": ("data/", "shards/"),
    "av": ("audio_hamspk.py", "shards/"),
    "matplotlib": ("evaluation/plots.py",),
    "scipy": ("evaluation/", "hierarchy/"),
    "datatrove": ("clusters/",),
    "faiss": ("search/",),
    "lancedb": ("search/lance.py",),
    "psycopg": ("search/postgres.py",),
    "pgvector": ("search/postgres.py",),
    "peft": ("training/lora.py",),
    "onnx": ("export/", "backends/"),
    "onnxruntime": ("encoders_hamspk.py", "backends/"),
    "openvino": ("backends/",),
    "onnxscript": ("export/",),
    "evaluate": ("evaluation/speaker_verification.py",),
}
# `evaluate` copies this file elsewhere, where a relative import leads nowhere.
BY_FULL_NAME = {"evaluation/speaker_verification.py"}
LONGEST_FILE, LONGEST_FUNCTION = 1000, 50
# All travelling files together. What is in them runs wherever a model runs: reading within limits, measures of speech,
# front-ends, pooling, plain heads, scores, decisions with their warnings, and checks of what callers and files can get
# wrong.
LONGEST_TRUNK = 5300
# The travelling file of the encoders is not counted: it grows with every encoder.
ENCODER_FILES = {"encoders_hamspk.py"}
# Names that several files define: the parts of a command, and the logger of a module.
SHARED_NAMES = {"add_arguments", "check", "run", "logger"}

FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]
TRUNK_NAMES = [name for name in NAMES if "/" not in name and not name.startswith("__")]


def for_each(names: list[str]) -> Callable[[Callable[[str], None]], Callable[[], None]]:
    """One test over many files that names those which break its rule; a test for each would take twice the time."""

    def over_all(rule: Callable[[str], None]) -> Callable[[], None]:
        def test() -> None:
            broken = []
            for name in names:
                try:
                    rule(name)
                except AssertionError as error:
                    broken.append(f"{name}: {error}")
            assert not broken, "\n\n".join(broken)

        test.__name__, test.__doc__ = rule.__name__, rule.__doc__
        return test

    return over_all


every_file = for_each(NAMES)
every_trunk_file = for_each(TRUNK_NAMES)


def source(name: str) -> str:
    return (PACKAGE / name).read_text(encoding="utf-8")


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(source(name))


@functools.cache
def nodes(name: str) -> list[ast.AST]:
    """All nodes of a file, walked once for all rules."""
    return list(ast.walk(tree(name)))


def room_of(name: str) -> str | None:
    return name.split("/")[0] if "/" in name else None


@functools.cache
def imports(name: str) -> list[tuple[str, ast.stmt]]:
    """What a file imports, relative imports resolved: `hf_hamspk.data.audio`, `torch.nn`, ..."""
    package = ["hf_hamspk", *name.split("/")[:-1]]
    found = []
    for node in nodes(name):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            if node.module is None:
                found += [(".".join([*base, alias.name]), node) for alias in node.names]
            else:
                found.append((".".join([*base, node.module]), node))
    return found


def within(imported: str) -> str | None:
    """Of an import of this package, the name below it; None for another package."""
    first, _, rest = imported.partition(".")
    return rest if first == "hf_hamspk" else None


def top_level_names(name: str) -> list[str]:
    """What a file defines: functions, classes, constants."""
    found: list[str] = []
    for node in tree(name).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    return [one for one in found if not one.startswith("__")]


def test_no_top_level_name_is_defined_twice():
    homes: dict[str, set[str]] = {}
    for name in NAMES:
        for one in top_level_names(name):
            homes.setdefault(one, set()).add(name)
    twice = {one: sorted(files) for one, files in homes.items() if len(files) > 1 and one not in SHARED_NAMES}
    assert not twice, "\n".join(f"{one}: {', '.join(files)}" for one, files in sorted(twice.items()))


def test_the_trunk_is_flat_and_short():
    counted = [name for name in TRUNK_NAMES if name not in ENCODER_FILES]
    assert len(counted) == 8
    assert len(TRUNK) <= 5
    assert sum(len(source(name).splitlines()) for name in counted) <= LONGEST_TRUNK


def test_modeling_imports_every_other_travelling_file_itself():
    """Loaders that copy only what the entry file imports then work, too."""
    direct = {within(imported) for imported, _ in imports("modeling_hamspk.py")} - {None}
    assert direct == set(LEVEL) - {"modeling_hamspk"}


def test_the_trunk_is_what_is_drawn():
    assert {name.removesuffix(".py") for name in TRUNK_NAMES} == set(LEVEL)
    assert {name.split("/")[0] for name in NAMES if "/" in name} == set(ROOMS)


@every_trunk_file
def test_a_trunk_file_imports_from_a_lower_line_only(name):
    own = LEVEL[name.removesuffix(".py")]
    for imported, node in imports(name):
        below = within(imported)
        if below is None:
            continue
        assert isinstance(node, ast.ImportFrom) and node.level == 1, f"{name}:{node.lineno}: from .sibling import name"
        assert below in LEVEL, f"{name}:{node.lineno}: {below!r} is not of the trunk"
        assert LEVEL[below] < own, f"{name}:{node.lineno}: {below!r} is not on a lower line"


def tried(name: str) -> set[int]:
    """Lines of the imports within `try`."""
    bodies = [node.body for node in nodes(name) if isinstance(node, ast.Try)]
    return {node.lineno for body in bodies for node in body if isinstance(node, ast.Import | ast.ImportFrom)}


@every_trunk_file
def test_a_trunk_file_needs_no_other_package(name):
    optional = {first for first, files in OPTIONAL_PACKAGES.items() if name.removesuffix(".py") in files}
    for imported, node in imports(name):
        first = imported.split(".")[0]
        if first in optional and node.lineno in tried(name):
            continue
        allowed = first in TRUNK_PACKAGES or first in sys.stdlib_module_names or first == "hf_hamspk"
        assert allowed, f"{name}:{node.lineno}: {first!r}"


@every_trunk_file
def test_a_trunk_file_imports_at_its_top(name):
    top = set(tree(name).body)
    lines = {node.lineno for node in top} | tried(name)
    for imported, node in imports(name):
        assert node.lineno in lines, f"{name}:{node.lineno}: the import of {imported!r} is not at the top of the file"


@every_trunk_file
def test_no_line_of_a_trunk_file_looks_like_a_relative_import_without_being_one(name):
    """The Hub's loader reads the raw text, docstrings included."""
    text = source(name)
    real = {node.lineno for node in nodes(name) if isinstance(node, ast.ImportFrom)}
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s*(from|import)\s+\.", line):
            assert number in real, f"{name}:{number}: {line!r}"


@every_trunk_file
def test_a_trunk_file_holds_no_state(name):
    """At module level: imports, constants, definitions; and no global statement."""
    for node in tree(name).body:
        allowed = ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign | ast.ClassDef | ast.FunctionDef
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_optional = isinstance(node, ast.Try) and all(isinstance(one, ast.Import) for one in node.body)
        assert isinstance(node, allowed) or is_docstring or is_optional, f"{name}:{node.lineno}"
    assert not any(isinstance(node, ast.Global) for node in nodes(name))


@every_file
def test_nobody_imports_a_whole_folder(name):
    for node in nodes(name):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{name}:{node.lineno}: from . import"
            assert all(alias.name != "*" for alias in node.names), f"{name}:{node.lineno}: import *"


@for_each([name for name in NAMES if room_of(name) is not None])
def test_a_room_imports_only_the_rooms_it_may(name):
    own = room_of(name)
    for imported, node in imports(name):
        below = within(imported)
        if below is None:
            continue
        other = below.split(".")[0]
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        assert relative or name in BY_FULL_NAME, f"{name}:{node.lineno}: import it relatively"
        allowed = other in LEVEL or other == own or other in ROOMS[own] or other == "__version__" or not other
        assert allowed, f"{name}:{node.lineno}: {own} may not import {other!r}"


def test_the_package_itself_imports_only_what_is_light():
    """All else it imports when a name is used; type checkers see it under `TYPE_CHECKING`."""
    for_checkers = {
        statement.lineno
        for node in tree("__init__.py").body
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"
        for statement in node.body
    }
    run = {imported for imported, node in imports("__init__.py") if node.lineno not in for_checkers}
    assert run == {"importlib", "typing", "hf_hamspk.loading.registering"}


@every_file
def test_packages_are_imported_in_their_homes_only(name):
    for imported, node in imports(name):
        homes = HOMES.get(imported.split(".")[0])
        assert homes is None or name.startswith(homes), f"{name}:{node.lineno}: {imported!r} belongs to {homes}"


@every_file
def test_only_the_command_line_prints(name):
    if name.startswith("cli/") or name == "__main__.py":
        return
    for node in nodes(name):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{name}:{node.lineno}: print"


@every_file
def test_errors_are_no_assertions(name):
    for node in nodes(name):
        assert not isinstance(node, ast.Assert), f"{name}:{node.lineno}: raise a ValueError that teaches"


@every_file
def test_files_and_functions_are_short(name):
    lines = len(source(name).splitlines())
    assert lines <= LONGEST_FILE, f"{name}: {lines} lines"
    for node in nodes(name):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            length = node.end_lineno - body[0].lineno + 1 if body else 0
            assert length <= LONGEST_FUNCTION, f"{name}:{node.lineno}: {node.name} has {length} lines"


def _defaulted_by_or(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[int]:
    """Lines where a value is `parameter or something`."""
    arguments = function.args
    parameters = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    lines = []
    for node in ast.walk(function):
        value = getattr(node, "value", None) if isinstance(node, ast.Assign | ast.AnnAssign | ast.keyword) else None
        if isinstance(value, ast.BoolOp) and isinstance(value.op, ast.Or):
            first = value.values[0]
            if isinstance(first, ast.Name) and first.id in parameters:
                lines.append(value.lineno)
    return lines


@every_file
def test_no_parameter_is_defaulted_by_or(name):
    """`x or default` takes the default for 0 as well."""
    for node in nodes(name):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert not _defaulted_by_or(node), f"{name}:{_defaulted_by_or(node)}"


def test_the_checks_see_what_they_look_for():
    function = ast.parse("def f(x, *, y=None):\n    x = x or 1\n    g(y=y or 2)\n    z = x and y").body[0]
    assert isinstance(function, ast.FunctionDef)
    assert _defaulted_by_or(function) == [2, 3]


QUIET = """
import json, logging, sys, warnings
import torch, transformers
def state():
    return [repr(warnings.filters), repr(logging.getLogger().handlers), logging.getLogger().level,
            transformers.logging.get_verbosity(), str(torch.get_default_dtype()), torch.get_num_threads(),
            torch.random.initial_seed()]
# What transformers itself does when these are used is not ours.
from transformers import AutoConfig, AutoModel, AutoModelForAudioXVector, PreTrainedModel, Wav2Vec2FeatureExtractor
before = state()
import hf_hamspk
rooms = [name for name in sys.modules if name.startswith("hf_hamspk.") and name.count(".") > 1]
sys.stderr.write(json.dumps({"before": before, "after": state(), "rooms": rooms}))
"""


@pytest.mark.slow
def test_importing_is_silent_and_changes_nothing():
    result = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True)
    assert result.stdout == ""
    report = json.loads(result.stderr)
    assert report["before"] == report["after"]
    assert report["rooms"] == ["hf_hamspk.loading.registering"], "importing the package must not import the rooms"
