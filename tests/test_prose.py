"""What users read is plain English by the rules of toolchain/prose_rules.py."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.test_snippets import PAGES, ROOT
from toolchain.prose_rules import __register__ as CHECKS

# What Sphinx reads and Markdown does not: marks of directives, attributes of pictures, names of roles.
MYST = re.compile(r"^:{3,}.*$|^:[\w-]+:.*$|\{[.\w-]+\}", re.MULTILINE)


def blocks(markdown: str) -> Iterator[tuple[int, str]]:
    """Yield the text of each paragraph, heading, list item and table cell, with its line.

    A code span is one word. In a table's cell a semicolon ends a sentence.
    """
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    for before, token in itertools.pairwise(tokens):
        if token.type == "inline":
            text = MYST.sub("", "".join(map(words, token.children or ())))
            if before.type in ("th_open", "td_open"):
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
    return [
        f"{line}: {fault.message}: {' '.join(text[slice(*fault.span)].split())[:60]}"
        for line, text in blocks(markdown)
        for check in CHECKS
        for fault in check.check_with_flags(text)
    ]


READ = [*PAGES, *sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))]


@pytest.mark.parametrize("page", READ, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_plain_english(page: Path) -> None:
    found = faults(markdown_of(page))
    assert not found, f"{len(found)} in {page.relative_to(ROOT)}:\n" + "\n".join(found)


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
