"""Write the pages of commands, and the options on pages of methods and evaluations, from what --help shows.

Start it by `python -m docs.reference.generate`. The pages are committed. With --check nothing is written, and
the exit code is 1 if a page would change. Options stand between <!-- options of NAME ... --> and
<!-- end of options -->; the rest of such a page is people's.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from docs.reference.generate.command_pages import all_commands, command_page, commands_index
from docs.reference.generate.recipe_pages import common_page, pages_of_recipes, with_options

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "docs" / "reference"
NOTICE = "<!-- Generated from the code by `python -m docs.reference.generate`. Do not edit. -->"


def pages() -> dict[Path, str]:
    """Return the text of each generated page by its path."""
    out = {ROOT / "docs" / "methods" / "common_options.md": common_page()}
    commands = dict(all_commands())
    for words, kind in commands.items():
        out[FOLDER / "commands" / f"{words.replace(' ', '_')}.md"] = command_page(words, kind)
    out[FOLDER / "commands" / "index.md"] = commands_index(commands)
    made = {path: f"{NOTICE}\n\n{text.strip()}\n" for path, text in out.items()}
    return made | {path: with_options(path) for path in pages_of_recipes().values()}


def stale(wanted: Mapping[Path, str]) -> tuple[list[Path], list[Path]]:
    """Return the pages whose text is to be another, and those that are not to be there."""
    changed = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    return changed, sorted({*(FOLDER / "commands").glob("*.md")} - wanted.keys())


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
