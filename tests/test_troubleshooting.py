"""The pages on troubleshooting have a row for each error and warning in the source, and no other row."""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from tests.messages import GAP, Message, messages
from tests.test_architecture import ROOT

FOLDER = ROOT / "docs" / "how_to" / "troubleshooting"
HEADER = ["Message", "Cause", "Remedy"]


@dataclass(frozen=True)
class Row:
    page: str
    message: str
    cause: str
    remedy: str

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The messages that a row is about: "…" stands for any text."""
        return re.compile(".*".join(map(re.escape, self.message.split(GAP))))


def rows_of(page: Path) -> list[Row]:
    """Return the rows of a page's tables of messages: those whose header is HEADER."""
    found = []
    for table in SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(page.read_text())).walk():
        if table.type == "table":
            rows = [
                [cell.children[0] for cell in row.children]
                for part in table.children
                for row in part.children
            ]
            if [cell.content for cell in rows[0]] == HEADER:
                for message, cause, remedy in rows[1:]:
                    (code,) = message.children
                    found.append(
                        Row(page.name, " ".join(code.content.split()), cause.content, remedy.content)
                    )
    return found


@cache
def rows() -> list[Row]:
    return [row for page in sorted(FOLDER.glob("*.md")) for row in rows_of(page)]


@cache
def said() -> list[Message]:
    return messages("fastpsl", "recipes")


def test_each_message_has_a_row() -> None:
    lacking = [
        f"{message.where}: {message.text}"
        for message in said()
        if not any(row.pattern.fullmatch(message.text) for row in rows())
    ]
    assert not lacking, f"{len(lacking)}:\n" + "\n".join(lacking)


def test_each_row_is_of_a_message() -> None:
    unknown = [row for row in rows() if not any(row.pattern.fullmatch(message.text) for message in said())]
    assert not unknown, "\n".join(f"{row.page}: {row.message}" for row in unknown)


def test_a_row_is_once_and_says_something() -> None:
    found = [row.message for row in rows()]
    assert len(set(found)) == len(found), {message for message in found if found.count(message) > 1}
    for row in rows():
        assert row.cause and row.remedy, row
        assert len(re.findall(r"\w+", row.message)) >= 2, f"{row} matches too much"


def test_what_a_row_is_about() -> None:
    for message, text, is_about in (
        ("…: is empty; …", "x.beton: is empty; copy it again", True),
        ("…: is empty; …", "x.beton: is empty", False),
        ("--k …: it must be 1 or more", "--k 0: it must be 1 or more", True),
        ("--k …: it must be 1 or more", "--k 0: it must be 1 or more, or 0", False),
    ):
        assert bool(Row("", message, "", "").pattern.fullmatch(text)) == is_about, (message, text)
