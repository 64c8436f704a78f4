"""Edits of toolchain/edits.py: which there are, and that a moved and renamed function is found again."""

import ast
from pathlib import Path
from typing import Any

import pytest

from toolchain.edits import draw, edited, edits, find, places, units

SOURCE = """
class Box:
    def area(self, n: int = 3) -> int:
        "Return 1 + 1."
        assert n > 0, "1 + 1"
        if (n > 2
                and self):
            print(n - 1)
            return n * 2
        for k in range(4):
            n += k
        return n * 2
"""


def write(folder: Path, name: str, source: str) -> None:
    (folder / "fastpsl").mkdir(exist_ok=True)
    (folder / "fastpsl" / name).write_text(source)


def after_edit(folder: Path, row: dict[str, Any], name: str) -> str:
    """Find a row in a file, and return the file's source with the edit, in ast's form."""
    (found,) = find([row], places(folder))
    assert not isinstance(found, str) and found[0].name == name, found
    return ast.unparse(ast.parse(edited(*found, row["becomes"])))


def test_all_edits_of_a_function(tmp_path: Path) -> None:
    write(tmp_path, "a.py", SOURCE)
    (place,) = places(tmp_path)
    assert place.name == "Box.area"
    assert {after for unit, is_test in units(place.node) for _, after in edits(unit, is_test)} == {
        *("not (n > 2 and self)", "n > 2 or self", "n >= 2 and self", "n > 3 and self"),
        *("range(5)", "n -= k", "return n / 2", "return n * 3", "return None"),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(9))
def test_an_edit_is_found_where_its_function_went(tmp_path: Path, seed: int) -> None:
    write(tmp_path, "a.py", SOURCE)
    write(tmp_path, "other.py", SOURCE.replace("Box", "Pot").replace("area", "volume"))
    row = next(row for row in draw(tmp_path, seed, 2) if row["function"] == "Box.area")
    expected = after_edit(tmp_path, row, "a.py")
    (tmp_path / "fastpsl" / "a.py").rename(tmp_path / "fastpsl" / "b.py")
    moved = "X = 1\n" + SOURCE.replace("n > 2\n                and self", "n > 2 and self").replace(
        "Box", "Case"
    )
    write(tmp_path, "b.py", moved)
    assert after_edit(tmp_path, row, "b.py") == "X = 1\n\n" + expected.replace("Box", "Case")
    write(tmp_path, "c.py", SOURCE.replace("Box", "Jar"))
    assert find([row], places(tmp_path)) == ["in 2 places"]
