"""Code under `<!-- test -->` in the documentation runs, and relative links have targets."""

import json
import multiprocessing
import os
import re
import runpy
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from docs.reference.generate.parts import expanded
from tests.warm import on_ranks

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^<!-- test -->\n+```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("*.md")])
PEERS = ("timm", "lightly", "pytorch_lightning", "ffcv")  # optional packages that the documentation uses


def peers_of(code: str) -> set[str]:
    return {*PEERS} & {*re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)}


SNIPPETS = [
    pytest.param(
        code, id=f"{page.relative_to(ROOT)}-{number}", marks=pytest.mark.slow if peers_of(code) else ()
    )
    for page in PAGES
    for number, code in enumerate(BLOCK.findall(page.read_text()))
]
FENCED = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
ADDRESS = re.compile(r"https://fastpsl\.github\.io/fastpsl/([\w/]+)\.html(?:#([\w-]+))?")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def run_code(_: int, code: str, folder: Path) -> None:
    os.chdir(folder)
    multiprocessing.set_start_method("fork", force=True)  # as in an interpreter
    torch.set_num_threads(1)
    sys.argv = ["snippet.py"]
    Path(sys.argv[0]).write_text(code)
    runpy.run_path(sys.argv[0], run_name="__main__")


@pytest.mark.parametrize("code", SNIPPETS)
def test_a_snippet_runs(code: str, tmp_path: Path) -> None:
    """Run it with narrow networks, whose last maps have 64 channels."""
    for peer in peers_of(code):
        if find_spec(peer) is None:
            pytest.skip(f"{peer} is not installed")
    on_ranks(run_code, (code.replace("512", "64"), tmp_path), 1)


def test_what_is_promised_is_shown_and_every_mark_is_a_block() -> None:
    code = "\n".join(str(snippet.values[0]) for snippet in SNIPPETS)
    for words in ("Loader(", "fastpsl.loader(", "import timm", "from lightly"):
        assert words in code, words
    for page in PAGES:
        text = page.read_text()
        assert text.count("<!-- test -->") == len(BLOCK.findall(text)), page


def test_a_task_of_your_own_imports_one_module() -> None:
    """It is the one that the version policy covers."""
    page, example = ROOT / "docs/how_to/add_a_task.md", ROOT / "docs/tutorials/example_task.py"
    cells = json.loads(example.with_name("add_a_task.ipynb").read_text())["cells"]
    files = [
        "".join(cell["source"]) for cell in cells if cell["source"][:1] and "%%writefile" in cell["source"][0]
    ]
    codes = [*BLOCK.findall(page.read_text()), example.read_text(), *files]
    found = [re.findall(r"^(?:from|import) (fastpsl\S*)", code, re.MULTILINE) for code in codes]
    # The second file of the notebook goes on with the first.
    assert found == [["fastpsl.pretext"]] * 4 + [[], ["fastpsl.pretext"]]


@cache
def anchors(page: Path) -> set[str]:
    """Return the fragments of a page's headings, as GitHub builds them."""
    text = FENCED.sub(lambda m: m[0].strip("`"), expanded(page.read_text()))
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    lost = []
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (fragment and fragment not in anchors(target)):
            lost.append(link)
    assert not lost


def test_addresses_of_the_site_lead_to_its_pages() -> None:
    folders = ("fastpsl", "recipes", "docs", "bench")
    files = [
        file for folder in folders for kind in ("*.py", "*.json") for file in (ROOT / folder).rglob(kind)
    ]
    found = {address for file in [*PAGES, *files] for address in ADDRESS.findall(file.read_text())}
    assert ("how_to/pack_a_dataset", "") in found
    for name, fragment in found:
        page = ROOT / "docs" / f"{name}.md"
        assert page.exists() or page.with_suffix(".ipynb").exists(), name
        assert not fragment or fragment in anchors(page), f"{name}#{fragment}"
