"""What users read is plain English by the rules of toolchain/prose_rules.py."""

import ast
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.test_architecture import python_files
from tests.test_snippets import PAGES, ROOT
from toolchain.prose_rules import __register__ as CHECKS

MAX_WORDS_OF_A_PAGE = 1500  # of prose: code and tables are not counted
CODE = re.compile(r"`+[^`]+`+")
PARAMETER = re.compile(r"^    \w+: ", re.MULTILINE)  # of a docstring: the name, which may be any word
# What Sphinx reads and Markdown does not: marks of directives, attributes of pictures, names of roles.
MYST = re.compile(r"^:{3,}.*$|^:[\w-]+:.*$|\{[.\w-]+\}", re.MULTILINE)


def blocks(markdown: str, *, cells: bool = True) -> Iterator[tuple[int, str]]:
    """Yield the text of each paragraph, heading, list item and (if `cells`) table cell, with its line.

    A code span is one word. In a table's cell a semicolon ends a sentence.
    """
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    for before, token in itertools.pairwise(tokens):
        is_cell = before.type in ("th_open", "td_open")
        if token.type == "inline" and (cells or not is_cell):
            text = MYST.sub("", "".join(map(words, token.children or ())))
            if is_cell:
                text = text.replace(";", ".")
            yield (token.map[0] + 1 if token.map else 0), f"\n{text}\n"


def words(token: Token) -> str:
    """Return a token's text: that of links is kept, that of code is the word "code"."""
    if token.type == "code_inline":
        return "code"
    if token.type in ("softbreak", "hardbreak"):
        return "\n" if token.type == "hardbreak" else " "
    return token.content if token.type == "text" else ""


def markdown_of(page: Path) -> str:
    """Return a page's Markdown; of a notebook, that of its cells."""
    if page.suffix == ".md":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def faults(markdown: str) -> list[str]:
    """Return a line per fault: its line number, the rule's message, and where it is."""
    return [f"{line}: {fault}" for line, text in blocks(markdown) for fault in faults_of(text)]


def faults_of(text: str) -> list[str]:
    """Return a line per fault of a text without markup."""
    text = f"\n{text}\n"
    return [
        f"{fault.message}: {' '.join(text[slice(*fault.span)].split())[:60]}"
        for check in CHECKS
        for fault in check.check_with_flags(text)
    ]


def literal_faults(path: Path) -> list[str]:
    """Return the faults of a Python file's texts: of literals of three words and more that are no docstrings.

    What is filled in is one word.
    """
    tree = ast.parse(path.read_text())
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    parts |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in parts:
            values = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(str(v.value) if isinstance(v, ast.Constant) else "code" for v in values)
            if text.count(" ") >= 2:
                text = CODE.sub("code", text).replace(";", ".")
                found += [f"{path.relative_to(ROOT)}:{node.lineno}: {fault}" for fault in faults_of(text)]
    return found


def docstring_faults(path: Path) -> list[str]:
    """Return the faults of the docstrings of a module, its classes and functions without an underscore.

    Indented blocks are code.
    """
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            name = getattr(node, "name", "the module")
            if not name.startswith("_"):
                docstring = PARAMETER.sub("    ", ast.get_docstring(node) or "")
                found += [f"{path.relative_to(ROOT)}: {name}: {fault}" for fault in faults(docstring)]
    return found


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


READ = [*PAGES, *sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))]


@pytest.mark.parametrize("page", READ, ids=relative)
def test_a_page_is_plain_english(page: Path) -> None:
    found = faults(markdown_of(page))
    assert not found, f"{len(found)} in {page.relative_to(ROOT)}:\n" + "\n".join(found)


@pytest.mark.parametrize("page", [page for page in READ if page.is_relative_to(ROOT / "docs")], ids=relative)
def test_a_page_is_read_in_minutes(page: Path) -> None:
    texts = (text for _, text in blocks(markdown_of(page), cells=False))
    assert sum(len(text.split()) for text in texts) <= MAX_WORDS_OF_A_PAGE


@pytest.mark.parametrize("of", [literal_faults, docstring_faults])
def test_what_the_source_says_is_plain_english(of: Callable[[Path], list[str]]) -> None:
    paths = [path for folder in ("fastpsl", "recipes", "bench") for path in python_files(folder)]
    found = [fault for path in paths for fault in of(path)]
    assert not found, f"{len(found)}:\n" + "\n".join(found)


def test_what_is_a_fault() -> None:
    long = "word " * 25 + "`several words of code`"
    assert faults(f"- {long}.") == ["1: a sentence of 26 words; at most 25: " + ("word " * 12)]
    assert not faults(f"{long[5:]}. Another.") and not faults(f"```text\n{long}\n```\n")
    for text, message in (
        ("a picture", "write 'image', not 'picture'"), ("100 images a second", "write 'per', not 'a'"),
        ("It simply runs.", "leave out 'simply'"), ("held-out images", "write 'validation', not 'held-out'"),
        ("| a |\n|---|\n| *pictures* |", "write 'images', not 'pictures'"),
    ):  # fmt: skip
        assert [message in fault for fault in faults(text)] == [True], text
    assert not faults("![a](x.png){.only-light}\n\n`picture` [`beton`](beton.md)\n\n:::{note}\nYes.\n:::\n")
