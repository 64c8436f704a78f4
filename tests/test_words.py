"""The first words of docstrings: a verb for a function, an article for a class.

The other rules for words are ruff's: D401, D417 and E501.
"""

import ast
from collections.abc import Iterator

import pytest

from tests.test_architecture import ROOT, python_files

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


def faults(source: str) -> Iterator[str]:
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
    wrong = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in python_files(folder)
        for fault in faults(path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_what_is_a_fault() -> None:
    assert not list(
        faults('def f():\n "Return 1."\nclass A:\n "A list."\n @property\n def g(self):\n  "Of it."')
    )
    for text in ("Of it.", "Features of it.", "[B] it.", "The sum."):
        assert len(list(faults(f'def f():\n "{text}"'))) == 1
    assert len(list(faults('class A:\n "What it is."'))) == 1
