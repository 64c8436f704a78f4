import re
import subprocess
import sys

import pytest

from fastpsl import cli
from fastpsl.engine.options import RunOptions
from fastpsl.scripts.command_line import BOXES, MACHINE_BOX, METHOD, described, wrapped
from fastpsl.scripts.recipe_files import find_recipe
from tests.programs import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))


def help_of(name: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        find_recipe(name).parse(arguments or ["--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("name", RECIPES)
def test_every_line_fits_and_no_word_is_broken(
    name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_of(name, capsys, "--help-all")
    assert all(len(line) <= columns for line in text.splitlines())
    words = set(re.findall(r"[\w.'-]+", text))
    for option in described(find_recipe(name).options, find_recipe(name).paper):
        assert option.text and set(re.findall(r"[\w.'-]+", f"{option.usage} {option.text}")) <= words
    assert not re.search(r"\{None\}|\(default: \)|\[INT|psl\.txt", text)


def test_boxes_come_in_order_and_speed_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    titles = re.findall(r"╭─ ([a-z ]+) ─", help_of("jigsaw_r50", capsys, "--help-all"))
    assert titles == list(BOXES)
    short = help_of("jigsaw_r50", capsys)
    assert re.findall(r"╭─ ([a-z ]+) ─", short) == [title for title in BOXES if title != MACHINE_BOX]
    assert "--help-all" in short and "│ --decoder" not in short
    # A recipe's own options come first in a box.
    assert short.index("│ --lr ") < short.index("│ --batch-size ")


def test_every_shared_option_has_a_box_of_its_kind() -> None:
    boxed = {name for names in BOXES.values() for name in names}
    shared = {option.name for option in described(RunOptions, {})}
    assert shared <= boxed and not BOXES[METHOD]


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("knn", ("lr", "checkpoint_minutes", "tensorboard", "compile", "accumulate", "order")),
        ("few_shot", ("val", "whole", "log_steps")),
        ("simclr_r50", ("accumulate", "apex")),
        ("uic_r50", ("order", "lanes")),
        ("voc_detection", ("whole", "size_px", "val", "on_bad_sample")),
    ],
)
def test_options_without_effect_are_not_listed(name: str, without: tuple[str, ...]) -> None:
    script = find_recipe(name)
    names = {option.name for option in described(script.options, script.paper)}
    assert names and not names.intersection(without)


def test_defaults_and_texts() -> None:
    options = {o.name: o for o in described(find_recipe("jigsaw_r50").options, {"counts": (5, 6), "grid": 1})}
    assert options["counts"].usage == "--counts N ..." and options["counts"].text.endswith(" [5 6]")
    assert options["grid"].text.endswith(" [1]") and options["checkpoint_steps"].text.endswith(" [0]")
    assert options["wandb"].usage == "--wandb" and not options["wandb"].text.endswith("]")
    assert options["tensorboard"].usage == "--[no-]tensorboard" and options["tensorboard"].text.endswith(
        "[yes]"
    )
    assert options["plan"].usage == "--plan psl|sl|psl_f|end_to_end"
    assert options["val"].text.startswith("Validation images") and not options["val"].text.endswith("]")


def test_long_commands_go_on_after_a_backslash() -> None:
    text = wrapped("One two three.\n\n    run --a b \\\n        --c d             # a minute", 20)
    assert text == "One two three.\n\n    # a minute\n    run --a b \\\n        --c d"


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize(
    "words",
    [
        "",
        *cli.Fastpsl.commands,
        "recipes copy",
        "recipes list",
        "data write",
        "data verify",
        "data info",
        "data show",
    ],
)
def test_commands_have_help_of_the_same_kind(
    words: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    cli.main([*words.split(), "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {' '.join(['fastpsl', *words.split()])}")
    assert all(len(line) <= columns for line in text.splitlines())
    assert not re.search(r"\{None\}|\(default", text)


def test_commands_of_a_command_stand_in_a_box(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["recipes", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: fastpsl recipes COMMAND\n")
    assert re.findall(r"╭─ ([a-z]+) ─", text) == ["commands"]
    assert re.findall(r"^│ (\w+)  +\w", text, re.MULTILINE) == ["list", "copy"]


def test_a_commands_arguments_options_and_requirements(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["features", "-h"])
    text = capsys.readouterr().out
    assert "usage: fastpsl features CKPT DATA [options]" in text
    assert re.findall(r"╭─ ([a-z ]+) ─", text) == ["arguments", "options", "extraction"]
    assert re.search(r"--out F.npy +The file to write. \(required\)", text) and "[224]" in text


def test_help_does_not_import_torch() -> None:
    program = (
        "import sys, runpy; sys.argv = ['{path}', '--help']\n"
        "try: runpy.run_path('{path}', run_name='__main__')\n"
        "except SystemExit: print([n for n in ('torch', 'numba', 'matplotlib') if n in sys.modules])"
    )
    for name in ("jigsaw_r50", "knn", "voc_segmentation"):
        code = program.format(path=ROOT / "recipes" / f"{name}.py")
        run = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
        )
        assert run.stdout.splitlines()[-1] == "[]", name
