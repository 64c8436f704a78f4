"""Write docs/llms.txt, a list of the site's pages for language models, in the form of https://llmstxt.org."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt

DOCS = Path(__file__).resolve().parents[2]
SITE = "https://fastpsl.github.io/fastpsl"
SHOWN = ("text", "code_inline", "softbreak")
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def llms_text() -> str:
    """Return a line for each page, in the order of the site's table of contents."""
    title, about = title_and_sentence(DOCS / "index.md")
    parts = [f"# {title}", f"> {about}"]
    for caption, names in toctrees(DOCS / "index.md"):
        lines = [line(page) for name in names for page in with_children(DOCS / name)]
        parts.append(f"## {caption}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def toctrees(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the caption and the names of pages of each table of contents on a page."""
    for block in TOCTREE.findall(text_of(page)):
        lines = block.split()
        caption = re.search(r"^:caption: (.*)$", block, re.MULTILINE)
        names = [
            word for word in lines if re.fullmatch(r"[\w./]+", word) and (page.parent / word).parent.exists()
        ]
        yield caption[1] if caption else "", [name for name in names if exists(page.parent / name)]


def exists(page: Path) -> bool:
    return any(page.with_suffix(kind).exists() for kind in (".md", ".ipynb"))


def with_children(page: Path) -> Iterator[Path]:
    """Yield a page, and those of its own tables of contents."""
    path = next(page.with_suffix(kind) for kind in (".md", ".ipynb") if page.with_suffix(kind).exists())
    yield path
    for _, names in toctrees(path):
        for name in names:
            yield from with_children(path.parent / name)


def text_of(page: Path) -> str:
    if page.suffix == ".md":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def title_and_sentence(page: Path) -> tuple[str, str]:
    """Return a page's title, and the first sentence below it without markup."""
    tokens = MarkdownIt("commonmark").parse(text_of(page))
    texts = [
        "".join(part.content or " " for part in token.children or () if part.type in SHOWN)
        for before, token in itertools.pairwise(tokens)
        if before.type in ("heading_open", "paragraph_open") and before.level == 0
    ]
    title, first, *_ = (" ".join(text.split()) for text in texts if text.strip())
    return title, re.split(r"(?<=[\w)`][.:]) (?=[A-Z`])", first)[0]


def line(page: Path) -> str:
    title, sentence = title_and_sentence(page)
    address = f"{SITE}/{page.relative_to(DOCS).with_suffix('.html')}"
    return f"- [{title}]({address}): {sentence}"
