"""Texts of strangers in Markdown, against what a parser of CommonMark makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from fastpsl.models.export import block, code, model_card, plain, table_row
from fastpsl.models.weights import load_pretrained
from tests.models.test_export import checkpoint
from tests.models.test_model_card import RECORD, result

HOSTILE = [
    "plain words", "top1_B4", "_a_ __b__ *c* **d** ~~e~~", "`a` ``b`` ```c```", "[a](http://b.c) ![d](e)",
    "<script>alert(1)</script> <http://a.b> <!-- c -->", "&lt; &amp; &#65; &", "a\\*b\\", "a|b \\| c",
    "http://a.b/c?d=e www.a.b a@b.c", "# a", "- a", "> a", "1. a", "===", "---", "    a",
    "$a$ $$b$$", "[^1]: a", "| a | b |", "ünï 中 \U0001f984", "```\n# heading\n```", "a\n\n# b\n- c\n<b>",
    "a\r\nb\tc\x1b[2J\u2028d", "\udcff", "`", " a ", "",
]  # fmt: skip
WORD = "<b>`\n```\n~~~\n# owned\n<script>x |"


def parsed(text: str) -> SyntaxTreeNode:
    return SyntaxTreeNode(MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text))


def shown(text: str) -> str:
    """Return a text as it can be seen on one line: without characters that cannot be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def content(node: SyntaxTreeNode) -> str:
    """Return the text of a node that holds text alone, and fail for any other mark."""
    (inline,) = node.children
    assert {child.type for child in inline.children} <= {"text", "text_special"}, inline.pretty()
    return " ".join("".join(child.content for child in inline.children).split())


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_shown_as_it_is(text: str) -> None:
    (paragraph,) = parsed(f"A {plain(text)} z").children
    assert content(paragraph) == shown(f"A {text} z") and paragraph.type == "paragraph"
    (table,) = parsed(f"| a | b |\n|---|---|\n{table_row(['x' + plain(text), code(text)])}\n").children
    (row,) = table.children[1].children
    cell, coded = row.children
    assert content(cell) == shown(f"x{text}")
    (span,) = coded.children[0].children
    assert span.type == "code_inline" and shown(span.content) == shown(text)
    (fence, after) = parsed(f"{block(text, 'bash')}\n\nafter").children
    assert fence.type == "fence" and fence.info == "bash" and content(after) == "after"
    assert [shown(line) for line in fence.content.split("\n")[:-1]] == [
        shown(line) for line in text.split("\n")
    ]


def test_words_of_a_run_stay_words_in_the_model_card(tmp_path: Path) -> None:
    checkpoint(tmp_path, "nin3")
    config = {"options": {}, "science": {}, "command": ["simclr.py", "--note", WORD]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    record: dict[str, Any] = RECORD | {"science": {"recipe": WORD, WORD: WORD}, "backbone": WORD}
    record["source"] = {"name": WORD, "sha256": WORD, "kind": WORD}
    hostile = result("abc", WORD) | {"numbers": {WORD: 1.0}, "data": {"num_val": WORD}}
    card = model_card(load_pretrained(tmp_path), record, WORD, [hostile], WORD)
    nodes = list(parsed(card.split("---\n", 2)[2]).walk())
    assert not [node for node in nodes if node.type in ("html_block", "html_inline", "link", "image")]
    headings = [node.children[0].content for node in nodes if node.type == "heading"]
    assert headings[1:] == ["How to load it", "Input", "Training", "Evaluations"]
    fences = [node.content for node in nodes if node.type == "fence"]
    assert "# owned" in fences[-2] and json.loads(fences[-1])[WORD] == WORD
    (body,) = (node for node in nodes if node.type == "tbody")
    assert [len(row.children) for row in body.children] == [4]
