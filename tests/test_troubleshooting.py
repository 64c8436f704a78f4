"""Each error and warning in the source tells its remedy, or has a row in docs/how_to/messages.json."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

from docs.reference.generate.messages import FILE, messages_part, sections
from tests.test_architecture import ROOT, python_files
from tests.test_prose import faults
from tests.test_snippets import LINK, anchors

GAP = "…"
# A remedy in a message: a clause that begins with a verb or an option, the values that are allowed, a
# command, or "; …" at the end, where the source puts a remedy that it computes.
_VERBS = r"""(add|append|ask|call|choose|close|copy|correct|cut|download|end|evaluate|extract|free|give|go
|install|keep|leave|let|lower|look|make|mend|name|open|pass|pip|put|raise|read|remove|repair|repeat|replace
|report|resume|run|save|set|shrink|start|train|try|unset|update|use|wait|write)\b""".replace("\n", "")
_REMEDY = re.compile(
    rf"(^|[;:,(] ?)((or|and|so|then) )?{_VERBS}|; --[a-z]|; {GAP}$|\bmust\b|\ballowed (is|are)\b"
    r"|\b(is|are) (allowed|wanted)\b|`fastpsl |did you mean|installs it"
)


@dataclass(frozen=True)
class Message:
    """The text of an error or a warning, and where it stands: file:line."""

    text: str
    where: str


def messages(*folders: str) -> list[Message]:
    """Return the messages of all Python files in folders of the repository, in their order.

    A message is the first argument of an exception that is raised or returned, or of `warnings.warn`. If a
    function makes the exception from its arguments, a call of that function is a message too. A text that is
    all values is left out.
    """
    paths = [path for folder in folders for path in python_files(folder)]
    trees = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}
    found = [
        Message(" ".join(text.split()), f"{path}:{node.lineno}")
        for path, tree in trees.items()
        for node, text in _texts(tree, _makers(tree) | _imported(tree, trees))
    ]
    return [message for message in found if message.text.strip(f"{GAP} :;,.()")]


@cache
def _makers(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    """Return a module's functions and methods that make exceptions from their arguments, by name."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {function.name: function for function in functions if _made_by(function) is not None}


def _imported(tree: ast.Module, trees: dict[str, ast.Module]) -> dict[str, ast.FunctionDef]:
    """Return such functions of other modules that a module imports by name."""
    found: dict[str, ast.FunctionDef] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            source = trees.get(f"{node.module.replace('.', '/')}.py")
            makers = _makers(source) if source else {}
            found |= {name.name: makers[name.name] for name in node.names if name.name in makers}
    return found


def _made_by(function: ast.FunctionDef) -> ast.expr | None:
    """Return the text that a function puts into the exception that it returns, if it ends so."""
    end = function.body[-1]
    return _argument(end.value) if isinstance(end, ast.Return) else None


def _argument(call: ast.expr | None) -> ast.expr | None:
    """Return the text of an exception or a warning that is made, if this is a call that makes one."""
    if not isinstance(call, ast.Call) or not call.args:
        return None
    name = ast.unparse(call.func).rpartition(".")[2]
    is_message = name.endswith(("Error", "BadImage", "SystemExit", "KeyboardInterrupt")) or name == "warn"
    return call.args[0] if is_message else None


def _texts(tree: ast.Module, makers: dict[str, ast.FunctionDef]) -> Iterator[tuple[ast.Call, str]]:
    constants = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    in_makers = {id(node) for maker in makers.values() for node in ast.walk(maker)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        maker = makers.get(ast.unparse(node.func).rpartition(".")[2])
        if maker is not None:
            yield node, _text(_made_by(maker), constants | _arguments(maker, node))
        elif id(node) not in in_makers and (argument := _argument(node)) is not None:
            yield node, _text(argument, constants)


def _arguments(maker: ast.FunctionDef, call: ast.Call) -> dict[str, ast.expr]:
    """Return the value of each of a function's parameters in a call; of a default, that."""
    arguments = maker.args
    names = [argument.arg for argument in arguments.args if argument.arg != "self"]
    defaults = dict(zip(reversed(names), reversed(arguments.defaults), strict=False))
    given = dict(zip(names, call.args, strict=False))
    return defaults | given | {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def _text(node: ast.expr | None, values: dict[str, ast.expr]) -> str:
    """Return a text as far as the source has it: of literals, of constants of the module, of arguments."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "worded":
        return _text(node.args[0], values)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value, values) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, values) if isinstance(node.value, ast.Name) else GAP
    if isinstance(node, ast.BinOp):
        return _text(node.left, values) + _text(node.right, values)
    if isinstance(node, ast.Name) and node.id in values:
        return _text(values[node.id], {name: value for name, value in values.items() if name != node.id})
    return GAP


@dataclass(frozen=True)
class Row:
    message: str
    cause: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(".*".join(map(re.escape, self.message.split(GAP))))

    def is_of(self, text: str) -> bool:
        """Return whether the row is about a message. "…" stands for any text."""
        return text.endswith(self.message.rpartition(GAP)[2]) and bool(self.pattern.fullmatch(text))


@cache
def rows() -> list[Row]:
    found = (row for section in sections() for row in section["rows"] if "says" in row)
    return [Row(row["says"], row["cause"]) for row in found]


@cache
def said() -> list[Message]:
    return messages("fastpsl", "recipes")


def test_each_message_has_a_remedy_or_a_row() -> None:
    lacking = [
        f"{message.where}: {message.text}"
        for message in said()
        if not _REMEDY.search(message.text) and not any(row.is_of(message.text) for row in rows())
    ]
    assert not lacking, f"{len(lacking)}:\n" + "\n".join(lacking)


def test_each_row_is_of_a_message() -> None:
    unknown = [row.message for row in rows() if not any(row.is_of(message.text) for message in said())]
    assert not unknown, "\n".join(unknown)


def test_a_row_is_once_and_says_something() -> None:
    found = [row.message for row in rows()]
    assert len(set(found)) == len(found), {message for message in found if found.count(message) > 1}
    for row in rows():
        assert row.cause, row
        assert len(re.findall(r"\w+", row.message)) >= 2, f"{row} matches too much"


def test_links_lead_somewhere_and_sentences_are_plain() -> None:
    part = messages_part()
    here = anchors(FILE.with_name("troubleshooting.md"))
    for link in LINK.findall(part):
        path, _, fragment = link.partition("#")
        target = (FILE.parent / path).resolve()
        if not link.startswith("https:"):
            assert target.exists(), link
            assert not fragment or fragment in (anchors(target) if path else here), link
    assert not faults(part)


def test_what_a_row_is_about() -> None:
    for message, text, is_about in (
        ("…: is empty; …", "x.beton: is empty; copy it again", True),
        ("…: is empty; …", "x.beton: is empty", False),
        ("--k …: it must be 1 or more", "--k 0: it must be 1 or more", True),
        ("--k …: it must be 1 or more", "--k 0: it must be 1 or more, or 0", False),
    ):
        assert Row(message, "").is_of(text) == is_about, (message, text)


def test_what_counts_as_a_remedy() -> None:
    texts = "x: 0; it must be 1", "x: is empty; copy it", "x: is empty; …", "x: is empty", "x: is bad (…)"
    assert [bool(_REMEDY.search(text)) for text in texts] == [True, True, True, False, False]
