"""The mutants themselves: what is changed and what is left alone, and the code of functions put in place."""

import ast
import json

import pytest
from forks import is_within_functions, swap_code
from modules import MODULES
from mutants import draw, mutants
from run import HARMLESS, REPOSITORY

SOURCE = '''"""1 + 1"""
SIZE: int = 4


def smallest(numbers, other=True):
    """The 2 smallest."""
    check(numbers)
    if not numbers or other:
        raise ValueError(f"{numbers + 1}")
    return min(
        numbers[0] - 1,
        SIZE,
    )
'''


def changed(source: str) -> list[str]:
    return [f"{one.place} {one.line}: {one.after}" for versions in mutants(source) for one in versions]


def test_what_is_changed():
    assert changed(SOURCE) == [
        "<module> 2: SIZE: int = (5)",
        "<module> 2: SIZE: int = (3)",
        "smallest 5: def smallest(numbers, other=(False)):",
        "smallest 7: pass",
        "smallest 8: if (not numbers and other):",
        "smallest 8: if (numbers) or other:",
        "smallest 10: return max(",
        "smallest 11: (numbers[0] + 1),",
        "smallest 11: numbers[(1)] - 1,",
        "smallest 11: numbers[0] - (2),",
        "smallest 11: numbers[0] - (0),",
    ]


def test_comparisons_operators_and_names():
    assert [one.split(": ")[1] for one in changed("x = a < b")] == ["x = (a <= b)", "x = (a > b)"]
    assert [one.split(": ")[1] for one in changed("x = a <= b < c")] == ["x = (a < b < c)", "x = (a <= b <= c)"]
    assert [one.split(": ")[1] for one in changed("x = a ** b")] == ["x = (a * b)"]
    assert [one.split(": ")[1] for one in changed("x = -a.sum()")] == ["x = (a.sum())", "x = -a.mean()"]
    assert [one.split(": ")[1] for one in changed("x = a if b else c")] == [
        "x = (c if b else a)",
        "x = a if (not b) else c",
    ]
    assert changed("x = math.sqrt(y)\ny = 'a' + b\nimport c") == []


@pytest.mark.slow
def test_mutants_parse_keep_the_lines_and_are_drawn_again_by_their_seed():
    path = REPOSITORY / "hf_hamspk" / "geometry_hamspk.py"
    source = path.read_text(encoding="utf-8")
    drawn = draw(source, 50, "0")
    assert drawn == draw(source, 50, "0") != draw(source, 50, "1")
    for one in drawn:
        assert ast.dump(ast.parse(one.source)) != ast.dump(ast.parse(source))
        assert one.source.count("\n") == source.count("\n")


def test_the_code_of_a_function_is_swapped(tmp_path):
    path = str(tmp_path / "module.py")
    original = "def outer():\n    def inner(x):\n        return x + 1\n    return inner\n\n\nFOUR = 4\n"
    names: dict = {}
    exec(compile(original, path, "exec"), names)
    inner = names["outer"]()
    mutant = original.replace("x + 1", "x - 1")
    assert is_within_functions(original, mutant)
    assert not is_within_functions(original, original.replace("4", "5"))
    assert not is_within_functions("def f(x=1): pass", "def f(x=2): pass")
    swap_code([inner, names["outer"]], path, mutant)
    assert (inner(1), names["outer"]()(1)) == (0, 0)


def test_each_harmless_mutant_has_a_module_and_a_reason():
    for reason, keys in json.loads(HARMLESS.read_text(encoding="utf-8")).items():
        assert reason
        for key in keys:
            assert key.split(" ", 1)[0] in MODULES and " -> " in key, key
    for module in MODULES.values():
        for name in (*module.fast, *module.slow):
            assert (REPOSITORY / name).is_file(), name
