"""The generated pages of docs/reference: they are what the program makes of the code now."""

from pathlib import Path

import pytest

from docs.reference.generate import __main__ as script
from docs.reference.generate.markdown import described_in_markdown, prose, table
from docs.reference.generate.options import words_of
from fastpsl.scripts.command_line import options_of
from fastpsl.scripts.recipe_files import find_recipe
from tests.test_architecture import ROOT


@pytest.fixture(scope="module")
def pages() -> dict[Path, str]:
    return script.pages()


def test_the_committed_pages_are_the_generated_ones(pages: dict[Path, str]) -> None:
    changed, surplus = script.stale(pages)
    assert not changed + surplus, "write them anew: python -m docs.reference.generate"


def test_each_recipe_and_each_command_has_a_page(pages: dict[Path, str]) -> None:
    names = {str(path.relative_to(script.FOLDER)) for path in pages}
    assert {f"recipes/{path.stem}.md" for path in (ROOT / "recipes").glob("*.py")} <= names
    assert {"commands/train.md", "commands/data_write.md", "commands/recipes_copy.md"} <= names


def test_each_option_stands_on_the_page_of_its_recipe(pages: dict[Path, str]) -> None:
    for path in (ROOT / "recipes").glob("*.py"):
        recipe, page = find_recipe(path.stem), pages[script.FOLDER / "recipes" / f"{path.stem}.md"]
        for option in options_of(recipe.options):
            is_listed = f"`{option.usage.split()[0]}`" in page
            assert is_listed or option.name in recipe.options.without, (path.stem, option.name)


def test_text_becomes_markdown() -> None:
    assert prose("give --val a*b, [x] and `--as is` <y") == ("give `--val` a\\*b, \\[x\\] and `--as is` \\<y")
    assert prose("see https://a.org/b_c.") == "see <https://a.org/b_c>."
    assert table(("a",), [("x|y",), ("",)]) == "| a |\n| --- |\n| x\\|y |\n| – |"
    assert words_of((1, 2)) == "`1 2`" and words_of(1e-6) == "`1e-06`"
    about, rest = described_in_markdown(
        "What it is (PSL, Table 1).\n\nIt.\nPaper: 1 %.\n\n    fastpsl a \\\n        --b 1   # why\n",
        "../",
    )
    assert about == "What it is ([PSL](../papers.md#psl), Table 1)."
    assert rest == "It.\n\nPaper: 1 %.\n\n```bash\n# why\nfastpsl a \\\n    --b 1\n```"


def test_check_tells_whether_a_page_would_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "recipes" / "a.md"
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "pages", lambda: {page: "text\n"})
    assert script.main(["--check"]) == 1 and not page.exists()
    assert script.main([]) == 0 and page.read_text() == "text\n"
    assert script.main(["--check"]) == 0
    (surplus := tmp_path / "commands").mkdir()
    (surplus / "b.md").write_text("old")
    assert script.main(["--check"]) == 1
    assert script.main([]) == 0 and not (surplus / "b.md").exists()
