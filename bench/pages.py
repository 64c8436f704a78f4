"""Fill the generated parts of README and docs, what stands between <!-- NAME begin --> and <!-- NAME end -->.

A part may stand on several pages. A page is found by its marks, so a part moves with them. Links in a part
begin with a slash at the repository's root, and become relative to the page.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path


def filled(text: str, parts: Mapping[str, str]) -> str:
    """Return a page with its marked parts replaced.

    Raises:
        ValueError: A marker is missing or repeated.
    """
    for name, content in parts.items():
        marked = re.compile(rf"(<!-- {name} begin[^>]*-->\n).*?(<!-- {name} end -->)", re.DOTALL)
        text, num = marked.subn(lambda found: f"{found[1]}\n{content}\n\n{found[2]}", text)  # noqa: B023
        if num != 1:
            raise ValueError(
                f"{num} parts are marked <!-- {name} begin --> ... <!-- {name} end -->; there must be one"
            )
    return text


def marks(text: str) -> list[str]:
    """Return the names of the parts that begin on a page."""
    return re.findall(r"^<!-- (.+?) begin\b[^>]*-->$", text, re.MULTILINE)


def written(root: Path, parts: Mapping[str, str]) -> dict[Path, str]:
    """Return page → its text with its parts, of README.md and of all pages of docs/ that have some.

    Args:
        root: The repository.
        parts: Name → content.

    Raises:
        ValueError: No page has the marks of a part, or one has them twice.
    """
    texts, found = {}, set[str]()
    for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        text = page.read_text()
        here = {name: linked(parts[name], page, root) for name in marks(text) if name in parts}
        if here:
            texts[page] = filled(text, here)
            found.update(here)
    for name in parts:
        if name not in found:
            raise ValueError(f"no page of docs/ has the marks <!-- {name} begin --> and <!-- {name} end -->")
    return texts


def linked(text: str, page: Path, root: Path) -> str:
    """Return a part with its links relative to a page."""
    return re.sub(r"\]\(/([^)#]+)", lambda link: f"]({os.path.relpath(root / link[1], page.parent)}", text)
