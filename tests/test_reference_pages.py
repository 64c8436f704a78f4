"""The generated pages of docs/reference: they are what the program makes of the code now."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.test_architecture import ROOT

SCRIPT = ROOT / "docs" / "reference" / "generate.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_reference", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(script: ModuleType) -> dict[Path, str]:
    return script.pages()


def test_the_committed_pages_are_the_generated_ones(pages: dict[Path, str]) -> None:
    committed = {path for name in ("recipes", "commands") for path in (SCRIPT.parent / name).glob("*.md")}
    names = [path.relative_to(ROOT) for path, text in pages.items()
             if path not in committed or path.read_text() != text]  # fmt: skip
    names += [path.relative_to(ROOT) for path in committed - pages.keys()]
    assert not names, "write them anew: python -m docs.reference.generate"


def test_each_recipe_and_each_command_has_a_page(pages: dict[Path, str]) -> None:
    names = {str(path.relative_to(SCRIPT.parent)) for path in pages}
    assert {f"recipes/{path.stem}.md" for path in (ROOT / "recipes").glob("*.py")} <= names
    assert {"commands/train.md", "commands/data_write.md", "commands/recipes_copy.md"} <= names


def test_each_option_stands_on_the_page_of_its_recipe(script: ModuleType, pages: dict[Path, str]) -> None:
    for path in (ROOT / "recipes").glob("*.py"):
        recipe, page = script.find_recipe(path.stem), pages[SCRIPT.parent / "recipes" / f"{path.stem}.md"]
        for option in script.described(recipe.options, recipe.paper):
            assert f"`{option.usage.split()[0]}`" in page, (path.stem, option.name)


def test_text_becomes_markdown(script: ModuleType) -> None:
    assert script.prose("give --val a*b, [x] and `--as is` <y") == (
        "give `--val` a\\*b, \\[x\\] and `--as is` \\<y"
    )
    assert script.prose("see https://a.org/b_c.") == "see <https://a.org/b_c>."
    assert script.table(("a",), [("x|y",), ("",)]) == "| a |\n| --- |\n| x\\|y |\n| – |"
    assert script.words_of((1, 2)) == "`1 2`" and script.words_of(1e-6) == "`1e-06`"
    about, rest = script.described_in_markdown(
        "What it is (PSL, Table 1).\n\nIt.\nPaper: 1 %.\n\n    fastpsl a \\\n        --b 1   # why\n",
        "../",
    )
    assert about == "What it is ([PSL](../papers.md#psl), Table 1)."
    assert rest == "It.\n\nPaper: 1 %.\n\n```bash\n# why\nfastpsl a \\\n    --b 1\n```"


def test_check_tells_whether_a_page_would_change(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
