"""What users read is plain English by the rules of toolchain/prose_rules.py.

Docstrings begin with a verb for a function, and with an article for a class. The other rules for words are
ruff's: D401, D417 and E501.
"""

import ast
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.test_architecture import ROOT, python_files
from tests.test_snippets import PAGES
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


NO_VERBS = """
    A About Above After Against All Along Also Always An And Another Any Around As At Average Because Before
    Both But By Cross Each Either Equal Every Everything Five Four For From Half Here How If In Into It Its
    Itself Like More Most Neither Never New No None Not Nothing Of On Once One Only Or Other Plain Random
    Same Several Since So Some Something Such Than That The Their Them Then There These They This Those
    Three To Together Two Under Until Up Upon What Whatever When Where Whether Which While Who Whoever Whole
    Whose Why With Within Without Yes You
"""
# Other words in s, ed, ing and ly are nouns, participles and adverbs.
VERBS = "Access Address Apply Bring Compress Express Feed Miss Multiply Need Pass Process"
ARTICLES = ("A", "An", "The", "One")


def word_faults(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            if not (is_property(node) or node.name.startswith("test")):
                first = first_word(node)
                if first and not is_verb(first):
                    yield f"{node.lineno}: {node.name}: begin with a verb, not {first!r}"
        elif isinstance(node, ast.ClassDef):
            first = first_word(node)
            if first and first not in ARTICLES and not is_command(node):
                yield f"{node.lineno}: {node.name}: begin with A, An, The or One, not {first!r}"


def first_word(node: ast.FunctionDef | ast.ClassDef) -> str:
    return next(iter((ast.get_docstring(node) or "").split()), "").strip(".,:;")


def is_verb(word: str) -> bool:
    ends_well = not word.endswith(("s", "ed", "ing", "ly")) or word in VERBS.split()
    return word.isascii() and word.isalpha() and word.istitle() and word not in NO_VERBS.split() and ends_well


def is_property(node: ast.FunctionDef) -> bool:
    names = [
        name.id if isinstance(name, ast.Name) else getattr(name, "attr", "") for name in node.decorator_list
    ]
    return any(name.endswith("property") for name in names)


def is_command(node: ast.ClassDef) -> bool:
    """Return whether the docstring is a command's text for --help: a class with a run(), or with commands.

    Commands that share their run() inherit it from a private class.
    """
    has_run = any(isinstance(part, ast.FunctionDef) and part.name == "run" for part in node.body)
    has_commands = any(
        isinstance(p, ast.AnnAssign) and ast.unparse(p.target) == "commands" for p in node.body
    )
    return has_run or has_commands or any(getattr(base, "id", "").startswith("_") for base in node.bases)


@pytest.mark.parametrize("folder", ["bench", "docs", "fastpsl", "recipes", "tests"])
def test_the_first_words_of_docstrings(folder: str) -> None:
    texts = {path: path.read_text() for path in python_files(folder)}
    wrong = [f"{path.relative_to(ROOT)}:{fault}" for path in texts for fault in word_faults(texts[path])]
    assert not wrong, "\n".join(wrong)


def test_what_is_a_fault_of_a_docstring() -> None:
    assert not list(
        word_faults('def f():\n "Return 1."\nclass A:\n "A list."\n @property\n def g(self):\n  "Of it."')
    )
    for text in ("Of it.", "Features of it.", "[B] it.", "The sum."):
        assert len(list(word_faults(f'def f():\n "{text}"'))) == 1
    assert len(list(word_faults('class A:\n "What it is."'))) == 1
