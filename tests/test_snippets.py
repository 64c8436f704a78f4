"""The code that the README and docs/data.md show runs as it stands there: python blocks under `<!-- test -->`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^<!-- test -->\n+```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SNIPPETS = [
    pytest.param(code, id=f"{page}-{number}")
    for page in ("README.md", "docs/data.md")
    for number, code in enumerate(BLOCK.findall((ROOT / page).read_text()))
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_a_snippet_runs(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_the_loader_is_shown_and_every_mark_is_a_block() -> None:
    assert any("Loader(" in str(snippet.values[0]) for snippet in SNIPPETS)
    for page in ("README.md", "docs/data.md"):
        text = (ROOT / page).read_text()
        assert text.count("<!-- test -->") == len(BLOCK.findall(text)), page
