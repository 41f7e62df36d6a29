"""Small changes of Python source text, each of which a test should notice.

Changed are comparisons, arithmetic and logical operators, negations, conditions, numbers, booleans and names with an
opposite (`min` and `max`). Calls whose value is not used are removed. Annotations, decorators, docstrings, f-strings
and other texts are left alone, because they change no result.
"""

import ast
import random
from collections.abc import Iterator
from typing import NamedTuple

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult, ast.Div),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.LShift: (ast.RShift,),
}
_PAIRS = (
    ("min", "max"),
    ("amin", "amax"),
    ("minimum", "maximum"),
    ("argmin", "argmax"),
    ("clamp_min", "clamp_max"),
    ("any", "all"),
    ("floor", "ceil"),
    ("sum", "mean"),
    ("sin", "cos"),
    ("sinh", "cosh"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
    ("sqrt", "square"),
    ("exp", "log"),
    ("add", "sub"),
    ("mul", "div"),
)
OPPOSITES = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}
# Opposites that are functions of Python itself; the others are methods, or functions of a module.
BUILT_IN = {"min", "max", "any", "all"}


class Mutant(NamedTuple):
    """A changed version of a module.

    Attributes:
        place: name of the function or class around the change, `<module>` outside of any.
        line: number of the first changed line.
        before, after: the changed statement line without indentation, and its new text.
        source: text of the complete changed module.
    """

    place: str
    line: int
    before: str
    after: str
    source: str


class _Site(NamedTuple):
    """A node that can be changed, the texts that can replace it, and the name of the function around it."""

    node: ast.expr | ast.stmt
    texts: list[str]
    place: str


def mutants(source: str) -> Iterator[list[Mutant]]:
    """Yield for each place of the module that can be changed its changed versions (one or more)."""
    lines = source.encode().splitlines(keepends=True)
    for site in _sites(ast.parse(source), "<module>"):
        yield [_changed(lines, site, text) for text in site.texts]


def draw(source: str, count: int, seed: str) -> list[Mutant]:
    """Draw at most `count` mutants of a module, each at another place, reproducible by the seed."""
    generator, places = random.Random(seed), list(mutants(source))
    return [generator.choice(versions) for versions in generator.sample(places, min(count, len(places)))]


def _sites(node: ast.AST, place: str) -> Iterator[_Site]:
    """Yield the sites below a node in the order of the source text."""
    if isinstance(node, ast.expr | ast.stmt):
        texts = _replacements(node)
        if texts:
            yield _Site(node, texts, place)
    if isinstance(node, ast.If | ast.While | ast.IfExp) and isinstance(node.test, ast.Name | ast.Attribute | ast.Call):
        yield _Site(node.test, [f"(not {ast.unparse(node.test)})"], place)
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        place = node.name if place == "<module>" else f"{place}.{node.name}"
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            # The positions of the parts of an f-string are wrong before Python 3.12.
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield from _sites(child, place)


def _replacements(node: ast.expr | ast.stmt) -> list[str]:
    """Return the texts that can replace a node; none for most kinds of nodes."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        changed = [ast.Compare(node.left, [new()], node.comparators) for new in COMPARISONS[type(node.ops[0])]]
    elif isinstance(node, ast.Compare):
        # A chain such as `0 <= x < n`: change one of the comparisons to its first alternative.
        changed = []
        for position, operator in enumerate(node.ops):
            operators = list(node.ops)
            operators[position] = COMPARISONS[type(operator)][0]()
            changed.append(ast.Compare(node.left, operators, node.comparators))
    elif isinstance(node, ast.BinOp) and not _is_text(node.left) and not _is_text(node.right):
        changed = [ast.BinOp(node.left, new(), node.right) for new in OPERATORS.get(type(node.op), ())]
    elif isinstance(node, ast.BoolOp):
        changed = [ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        changed = [node.operand]
    elif isinstance(node, ast.Constant):
        changed = [ast.Constant(value) for value in _other_values(node.value)]
    else:
        return _other_statements(node)
    return [f"({ast.unparse(one)})" for one in changed]


def _other_statements(node: ast.expr | ast.stmt) -> list[str]:
    """Return the replacements of names, attributes, conditions, and statements."""
    # `math` has no `square`.
    is_math = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "math"
    if isinstance(node, ast.Attribute) and node.attr in OPPOSITES and not is_math:
        return [ast.unparse(ast.Attribute(node.value, OPPOSITES[node.attr], ast.Load()))]
    if isinstance(node, ast.Name) and node.id in BUILT_IN:
        return [OPPOSITES[node.id]]
    if isinstance(node, ast.IfExp):
        return [f"({ast.unparse(ast.IfExp(node.test, node.orelse, node.body))})"]
    if isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        return [ast.unparse(ast.AugAssign(node.target, new(), node.value)) for new in OPERATORS[type(node.op)]]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ["pass"]
    if isinstance(node, ast.Continue | ast.Break):
        return ["pass"]
    return []


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _other_values(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1] if value else [1]
    if isinstance(value, float):
        return [value * 2, value / 2] if value else [1.0]
    return []


def _changed(lines: list[bytes], site: _Site, text: str) -> Mutant:
    node = site.node
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    head, tail = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
    # Lines keep their numbers, because the lines that a test runs are recorded by number.
    inside, after = (b"\\\n", b"") if isinstance(node, ast.expr) else (b"", b"\n")
    count = last - first
    new = [*lines[:first], head + text.encode() + inside * count + tail + after * count, *lines[last + 1 :]]
    before = b"".join(lines[first : last + 1])
    return Mutant(
        site.place,
        node.lineno,
        " ".join(before.decode().split()),
        " ".join((head + text.encode() + tail).decode().split()),
        b"".join(new).decode(),
    )
