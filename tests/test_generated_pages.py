"""Pages of the documentation that are made from the code or from runs: they are as these are now."""

import re
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs.images import make_training_screen as screen
from docs.reference.generate import __main__ as script
from docs.reference.generate.command_pages import all_commands, boxes_of_command
from docs.reference.generate.llms import SITE, llms_text
from docs.reference.generate.markdown import described_in_markdown, prose, table
from docs.reference.generate.options import words_of
from docs.reference.generate.parts import expanded
from docs.reference.generate.recipe_pages import NAMES, options_of_recipes, pages_of_recipes
from fastpsl.commands.train import Eval, Train
from fastpsl.console.screen import Numbers
from fastpsl.scripts.command_line import options_of
from fastpsl.scripts.recipe_files import find_recipe
from tests.test_architecture import ROOT


def test_the_committed_list_is_the_generated_one() -> None:
    assert script.FILE.read_text() == llms_text(), "write it anew: python -m docs.reference.generate"


def test_each_recipe_has_a_page_and_each_command_a_section() -> None:
    assert pages_of_recipes().keys() == {*Train.names, *Eval.names}
    page = expanded((ROOT / "docs" / "reference" / "commands.md").read_text())
    for words, kind in all_commands():
        section = page.partition(f"\n## fastpsl {words}\n")[2].partition("\n## ")[0]
        flags = [row.usage for rows in boxes_of_command(kind).values() for row in rows]
        assert section and all(f"`{flag}`" in section for flag in flags), words


def test_each_option_stands_on_the_page_of_its_recipe_or_on_the_common_one() -> None:
    common = expanded((ROOT / "docs" / "methods" / "common_options.md").read_text())
    for name, path in pages_of_recipes().items():
        recipe, page = find_recipe(NAMES[name]), expanded(path.read_text())
        for option in options_of(recipe.options):
            words = f"`{option.usage.split()[0]}`"
            is_listed = words in page or f"| {words} |" in common
            assert is_listed or option.name in recipe.options.without, (name, option.name)


def test_defaults_stand_in_a_column_for_each_recipe() -> None:
    lines = options_of_recipes(["sslpp-rotation", "sslpp-aet"]).splitlines()
    assert lines[0] == "| option | `sslpp-rotation` | `sslpp-aet` | meaning |"
    cells = {words[0]: words[1:3] for words in (line.strip("| ").split(" | ") for line in lines[2:])}
    assert cells["`--epochs`"] == ["`200`", "`1500`"] and cells["`--batch-size`"] == ["`128`", "`512`"]
    assert cells["`--transform`"] == ["–", "`projective`"]
    assert "`--seed`" not in cells  # a shared one, with the shared default


def test_the_list_for_language_models_has_each_page_once() -> None:
    text = llms_text()
    assert text.startswith("# fastpsl\n\n> ")
    listed = re.findall(rf"^- \[.+\]\({SITE}/(.+)\.html\): \S.*$", text, re.MULTILINE)
    docs = ROOT / "docs"
    sources = [
        path for kind in ("md", "ipynb") for path in docs.rglob(f"*.{kind}") if "runs" not in path.parts
    ]
    names = {str(path.relative_to(docs).with_suffix("")) for path in sources} - {"index"}
    assert len(listed) == len(set(listed)) and set(listed) == names


def test_text_becomes_markdown() -> None:
    assert prose("give --val a*b, [x] and `--as is` <y") == ("give `--val` a\\*b, \\[x\\] and `--as is` \\<y")
    assert prose("see https://a.org/b_c.") == "see <https://a.org/b_c>."
    assert table(("a",), [("x|y",), ("",)]) == "| a |\n| --- |\n| x\\|y |\n| – |"
    assert words_of((1, 2)) == "`1 2`" and words_of(1e-6) == "`1e-06`"
    about, rest = described_in_markdown(
        "What it is (PSL, Table 1).\n\nIt.\nPaper: 1 %.\n\n    fastpsl a \\\n        --b 1   # why\n", "../"
    )
    assert about == "What it is ([PSL](../papers.md#psl), Table 1)."
    assert rest == "It.\n\nPaper: 1 %.\n\n```bash\n# why\nfastpsl a \\\n    --b 1\n```"


def test_check_tells_whether_the_list_would_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "FILE", tmp_path / "llms.txt")
    monkeypatch.setattr(script, "llms_text", lambda: "text\n")
    assert script.main(["--check"]) == 1 and not script.FILE.exists()
    assert script.main([]) == 0 and script.FILE.read_text() == "text\n"
    assert script.main(["--check"]) == 0


ZOO = (ROOT / "docs" / "project" / "model_zoo.md").read_text()
ROWS = [line for line in ZOO.splitlines() if line.startswith(("| [`", "| `")) and line.count("|") == 6]
RUNS = [path for path in (ROOT / "docs" / "runs").iterdir() if path.is_dir() and path.name != "faults"]


def test_every_training_recipe_has_a_row() -> None:
    names = {re.match(r"\| \[?`([^`]+)`", row)[1] for row in ROWS}  # type: ignore[index]
    assert {name for name in names if not name.startswith("eval ")} == set(Train.names)
    assert all(("| not run |" in row) != ("](../runs/" in row) for row in ROWS)


def test_every_run_has_a_row_with_its_commit_and_digest() -> None:
    for run in RUNS:
        rows = [row for row in ROWS if f"](../runs/{run.name}/results.json)" in row]
        record = run.joinpath("results.json").read_text()
        if (environment := run / "environment.json").exists():
            record += environment.read_text()
        assert rows, run.name
        for row in rows:
            for commit in re.findall(r"commit ([0-9a-f]{10})", row):
                assert f'"commit": "{commit}' in record, run.name
            for digest in re.findall(r"`([0-9a-f]{12})`", row):
                assert f'"weights_sha256": "{digest}' in record, run.name


def words_in(svg: str) -> str:
    ElementTree.fromstring(svg)
    return " ".join(unescape(re.sub("<style>.*?</style>|<[^>]*>", " ", svg, flags=re.DOTALL)).split())


def test_a_picture_has_the_lines_and_the_numbers() -> None:
    numbers = Numbers(
        "S2", 2, 2, 3, 15, 30, 45, {"loss": 0.25}, 0.1, images_per_s=640.0, eta_s=61.0, run_eta_s=610.0
    )
    for theme in screen.THEMES.values():
        text = words_in(screen.svg(["S1 [bold] (level G1): 45 steps"], numbers, theme))
        lines = ("S1 [bold] (level G1): 45 steps", "stage 2 of 3", "0:10:10", "640 images/s")
        for expected in (*lines, screen.TITLE):
            assert expected in text


def test_the_committed_pictures_show_one_run() -> None:
    light, dark = (
        words_in((screen.FOLDER / f"training-screen-{name}.svg").read_text()) for name in screen.THEMES
    )
    assert light == dark and screen.TITLE in light
    for expected in ("stage 3 of 3 (S3, level G1)", "kNN", "ETA", "images/s", "data wait", "loss"):
        assert expected in light
