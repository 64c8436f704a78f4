"""Show docs/how_to/messages.json, the list of errors and warnings, on the page of troubleshooting."""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[2] / "how_to" / "messages.json"


def sections() -> list[dict[str, Any]]:
    """Return the sections of the file.

    A section has its `part`, `title`, `notes` in Markdown and `rows`. A row has what the program `says`, with
    "…" for what is filled in, or in Markdown what else is `seen`; its `cause` and its `remedy`. The remedy is
    empty if the message itself names it.
    """
    found: list[dict[str, Any]] = json.loads(FILE.read_text())
    return found


def messages_part() -> str:
    """Return the list as Markdown: a heading per part and section, and an item per message."""
    lines, part = list[str](), ""
    for section in sections():
        if section["part"] != part:
            part = section["part"]
            lines.append(f"### {part}")
        lines += [f"#### {section['title']}", section["notes"]]
        lines.append("\n".join(item(row) for row in section["rows"]))
    return "\n\n".join(line for line in lines if line)


def item(row: dict[str, str]) -> str:
    """Return a row as an item of a list: the message, and below it the cause and the remedy."""
    message = row["seen"] if "seen" in row else in_backticks(row["says"])
    return f"- {message}\n\n  {' '.join(ended(row[key]) for key in ('cause', 'remedy') if row[key])}\n"


def ended(text: str) -> str:
    return text if text.endswith((".", ":", "!", "?")) else f"{text}."


def in_backticks(text: str) -> str:
    """Return a text as code, which may have backticks of its own."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"
