"""Write the reference pages of recipes from what --help shows, and docs/llms.txt from the pages.

Start it by `python -m docs.reference.generate`. The pages are committed. With --check nothing is written, and
the exit code is 1 if a page would change.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from docs.reference.generate.llms import llms_text
from docs.reference.generate.recipe_pages import common_page, recipe_page, recipes_index
from fastpsl.commands.train import Eval, Train

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "docs" / "reference"
NOTICE = "<!-- Generated from the code by `python -m docs.reference.generate`. Do not edit. -->"


def pages() -> dict[Path, str]:
    """Return the text of each generated page by its path."""
    names = [("train", short, stem) for short, stem in Train.names.items()]
    names += [("eval", short, stem) for short, stem in Eval.names.items()]
    out = {
        FOLDER / "recipes" / f"{stem}.md": recipe_page(command, short, stem) for command, short, stem in names
    }
    out[FOLDER / "recipes" / "common_options.md"] = common_page()
    out[FOLDER / "recipes" / "index.md"] = recipes_index(names)
    return {path: f"{NOTICE}\n\n{text.strip()}\n" for path, text in out.items()} | {
        ROOT / "docs" / "llms.txt": llms_text()
    }


def stale(wanted: Mapping[Path, str]) -> tuple[list[Path], list[Path]]:
    """Return the pages whose text is to be another, and those that are not to be there."""
    present = set((FOLDER / "recipes").glob("*.md"))
    changed = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    return changed, sorted(present - wanted.keys())


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or check them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page would change")
    check = parser.parse_args(arguments).check
    wanted = pages()
    changed, surplus = stale(wanted)
    for path in [*changed, *surplus]:
        print(path.relative_to(ROOT))
    if check:
        return int(bool(changed or surplus))
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path])
    for path in surplus:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
