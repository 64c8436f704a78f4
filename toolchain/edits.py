"""Edits of single expressions in the functions of fastpsl/, and their places in a tree of moved files."""

import ast
import collections
import copy
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from re import compile as pattern
from typing import Any, NamedTuple

LONG = 30  # characters that find a statement without its function's name
_PAIRS = (
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
    *((ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.Div), ("min", "max"), ("any", "all")),
)  # fmt: skip
_OTHER: dict[Any, Any] = {ast.FloorDiv: ast.Mult, **dict(_PAIRS), **{b: a for a, b in _PAIRS}}
_SAYS = pattern(r"(^|[._])(print|warn\w*|info|log|log_choice|say|add_note|hint|set_\w*(label|title))$|Error$")
_COMPILED = pattern(r"jit|overload")  # numba's and Triton's functions, which Python does not run
_BLOCKS = (ast.stmt, ast.excepthandler, ast.withitem, ast.match_case)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Place(NamedTuple):
    """A function in a file."""

    path: Path
    name: str
    node: Any


def places(checkout: Path) -> list[Place]:
    """Return the functions below fastpsl/ with their qualified names, such as Flip.draw."""
    found = []

    def visit(path: Path, node: ast.AST, names: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.ClassDef, *_FUNCTIONS)):
                visit(path, child, names)
            elif not any(_COMPILED.search(ast.unparse(decorator)) for decorator in child.decorator_list):
                if isinstance(child, _FUNCTIONS):
                    found.append(Place(path, ".".join((*names, child.name)), child))
                visit(path, child, (*names, child.name))

    for path in sorted((checkout / "fastpsl").rglob("*.py")):
        visit(path, ast.parse(path.read_text()), ())
    return found


def units(function: Any) -> Iterator[tuple[Any, bool]]:
    """Yield a function's simple statements and the expressions at the head of others; True for a test."""
    rest = [*function.body]
    while rest:
        node = rest.pop(0)
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Assert, ast.Raise)):
            continue
        blocks = [child for child in ast.iter_child_nodes(node) if isinstance(child, _BLOCKS)]
        if blocks or isinstance(node, _BLOCKS[1:]):
            heads = {field: getattr(node, field, None) for field in ("test", "iter", "context_expr")}
            yield from ((head, field == "test") for field, head in heads.items() if head)
            rest[:0] = blocks
        else:
            yield node, False


def edits(unit: Any, is_test: bool) -> Iterator[tuple[str, str]]:
    """Yield the kind of each possible edit, and the unit's text after it."""
    if is_test:
        yield "condition", ast.unparse(_negated(unit))
    if isinstance(unit, ast.Expr) and isinstance(unit.value, ast.Call) and [*_nodes(unit.value)]:
        yield "dropped", "pass"
    for i, node in enumerate(_nodes(unit)):
        if kind_and_change := _change(node):
            changed = copy.deepcopy(unit)
            kind_and_change[1]([*_nodes(changed)][i])
            yield kind_and_change[0], ast.unparse(changed)


def _negated(test: Any) -> ast.expr:
    is_negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    return test.operand if is_negated else ast.UnaryOp(ast.Not(), test)


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a tree, without texts, type hints, what is printed, and zip's `strict`."""
    is_said = isinstance(node, ast.Call) and _SAYS.search(ast.unparse(node.func))
    if is_said or isinstance(node, ast.JoinedStr) or (isinstance(node, ast.keyword) and node.arg == "strict"):
        return
    yield node
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and field != "annotation":
                yield from _nodes(child)


def _change(node: Any) -> tuple[str, Callable[[Any], object]] | None:
    """Return the kind of edit that a node can have, and a function that makes it."""
    match node:
        case ast.Compare(ops=[op, *_]) if type(op) in _OTHER:
            return "comparison", lambda n: n.ops.__setitem__(0, _OTHER[type(op)]())
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op) if type(op) in _OTHER:
            has_text = any(isinstance(getattr(n, "value", 0), str) for n in ast.walk(node))
            return None if has_text else ("operator", lambda n: setattr(n, "op", _OTHER[type(op)]()))
        case ast.Name(id=name) if name in _OTHER:
            return "operator", lambda n: setattr(n, "id", _OTHER[name])
        case ast.Constant(value=bool(value)):
            return "constant", lambda n: setattr(n, "value", not value)
        case ast.Constant(value=int(value) | float(value)):
            return "constant", lambda n: setattr(n, "value", value + 1)
        case ast.IfExp(test=test):
            return "condition", lambda n: setattr(n, "test", _negated(test))
        case ast.comprehension(ifs=[test, *_]):
            return "condition", lambda n: n.ifs.__setitem__(0, _negated(test))
        case ast.Return(value=ast.expr() as value) if [*_nodes(value)] and ast.unparse(value) != "None":
            return "dropped", lambda n: setattr(n, "value", ast.Constant(None))
    return None


def draw(checkout: Path, seed: int, num: int) -> list[dict[str, Any]]:
    """Return edits at random, at most one of a function; long functions have one more often."""
    chance, drawn = random.Random(seed), []
    for place in places(checkout):
        num_before, of_kind = collections.Counter[str](), collections.defaultdict(list)
        for unit, is_test in units(place.node):
            text = ast.unparse(unit)
            for kind, after in edits(unit, is_test):
                of_kind[kind].append({"text": text, "occurrence": num_before[text], "becomes": after})
            num_before[text] += 1
        if of_kind:
            row = chance.choice(of_kind[chance.choice(sorted(of_kind))])
            key = chance.random() ** (1 / (place.node.end_lineno - place.node.lineno + 1))
            drawn.append(
                (key, {"file": str(place.path.relative_to(checkout)), "function": place.name, **row})
            )
    return [row for _, row in sorted(drawn, key=lambda pair: -pair[0])[:num]]


def find(rows: Sequence[dict[str, Any]], functions: Sequence[Place]) -> list[tuple[Path, Any] | str]:
    """Return the file and the node of each edit, or why there is none.

    The function is found by its qualified name, else by the last part, else by a long text alone. Of several,
    the one in a file called as before counts.
    """
    by_text = collections.defaultdict(list)
    for place in functions:
        num_before = collections.Counter[str]()
        for unit, _ in units(place.node):
            text = ast.unparse(unit)
            by_text[text, num_before[text]].append((place, unit))
            num_before[text] += 1
    return [_choose(row, by_text[row["text"], row["occurrence"]]) for row in rows]


def _choose(row: dict[str, Any], fits: Sequence[tuple[Place, Any]]) -> tuple[Path, Any] | str:
    last = row["function"].rpartition(".")[2]
    for level in (
        [fit for fit in fits if fit[0].name == row["function"]],
        [fit for fit in fits if fit[0].node.name == last],
        fits if len(row["text"]) >= LONG else [],
    ):
        for some in (level, [fit for fit in level if fit[0].path.stem == Path(row["file"]).stem]):
            if len(some) == 1:
                return some[0][0].path, some[0][1]
        if level:
            return f"in {len(level)} places"
    return "not found"


def edited(path: Path, node: Any, text: str) -> str:
    """Return the source of a file with another text for a node."""
    lines = path.read_bytes().splitlines(keepends=True)  # ast counts bytes
    before = b"".join(lines[: node.lineno - 1]) + lines[node.lineno - 1][: node.col_offset]
    after = lines[node.end_lineno - 1][node.end_col_offset :] + b"".join(lines[node.end_lineno :])
    return (before + text.encode() + after).decode()
