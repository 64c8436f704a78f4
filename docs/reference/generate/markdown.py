"""Turn the plain text of docstrings and help texts into Markdown."""

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence

PAPERS = {"PSL": "psl", "UIC": "uic", "SSL++": "ssl"}

FILES = "beton|bin|csv|html|jsonl?|md|np[yz]|onnx|pkl|png|pth|py|safetensors|tar|txt"  # endings of files


def in_code(text: str) -> str:
    """Return plain text with its options, globs and names of files in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    token = re.compile(
        r"https?://[^\s,;()]+[\w/]|(?<!\w)fastpsl [a-z]+(?: [A-Z]+(?![a-z])| \[[^]]*\]| --[a-z-]+)+"
        r"|(?<![\w-])--(?:\[no-\])?[a-z][\w-]*|'[^' ]*\*[^' ]*'|[\w./*-]*\.(?:" + FILES + r")\b"
    )
    for i in range(0, len(parts), 2):
        parts[i] = token.sub(lambda m: f"<{m[0]}>" if m[0].startswith("http") else f"`{m[0]}`", parts[i])
    return "".join(parts)


def prose(text: str) -> str:
    """Return plain text as Markdown: options in backticks, and characters that have a meaning escaped."""
    parts = re.split(r"(`[^`]*`|<https?:[^>]*>)", in_code(text))
    parts[::2] = [re.sub(r"([<*\[\]])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def cell(text: str) -> str:
    """Return Markdown for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|") or "–"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell(each) for each in line)} |" for line in lines)


def wrapped(text: str) -> str:
    return textwrap.fill(text, 138, break_long_words=False, break_on_hyphens=False)


def described_in_markdown(docstring: str, depth: str) -> tuple[str, str]:
    """Return a docstring's first paragraph, and the rest with its indented commands as code.

    Args:
        docstring: The docstring.
        depth: The path from the page to docs/reference/, such as "../".
    """
    linked = set[str]()

    def with_links(text: str) -> str:
        for paper, anchor in PAPERS.items():
            cited = re.compile(rf"(?<![\w+]){re.escape(paper)}(?=,? \(?(?:Table|section|Fig))")
            if paper not in linked and cited.search(text):
                text = cited.sub(f"[{paper}]({depth}papers.md#{anchor})", text, count=1)
                linked.add(paper)
        return text

    blocks = list[str]()
    for paragraph in inspect.cleandoc(docstring).split("\n\n"):
        for is_command, lines in _alike(paragraph.split("\n")):
            if is_command:
                blocks.append("```bash\n" + "\n".join(_commands(lines)) + "\n```")
                continue
            for part in re.split(r"\n(?=Paper[ ,:(])", "\n".join(lines)):
                blocks.append(wrapped(with_links(prose(" ".join(part.split())))))
    joined = re.sub(r"\n```\n\n```bash\n", "\n\n", "\n\n".join(blocks[1:]))
    return blocks[0], joined


def _alike(lines: Sequence[str]) -> Iterator[tuple[bool, list[str]]]:
    """Yield runs of lines that are indented, or are not."""
    run = list[str]()
    for line in lines:
        if run and run[0].startswith("    ") != line.startswith("    "):
            yield run[0].startswith("    "), run
            run = []
        run.append(line)
    yield run[0].startswith("    "), run


def _commands(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines of commands, with each comment above its command."""
    command = list[str]()
    for line in lines:
        text, _, comment = line[4:].rstrip().partition("  # ")
        command.append(text.rstrip())
        if comment:
            command.insert(0, f"# {comment.strip()}")
        if not text.endswith("\\"):
            yield from command
            command = []
    yield from command


def toctree(stems: Sequence[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", "", *stems, "```"])
