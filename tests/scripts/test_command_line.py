"""Command lines: their errors in one line, and what --help shows."""

import io
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
import tyro
from tyro.conf import arg

from fastpsl import cli
from fastpsl.engine.options import PretrainOptions
from fastpsl.pipelines.decoders.choose import NAMES
from fastpsl.scripts.command_line import Option, options_of, parse
from fastpsl.scripts.recipe_files import find_recipe
from tests.programs import ROOT, interpreted


@dataclass(frozen=True)
class More:
    workers: int | None = None
    fast: bool = True


@dataclass(frozen=True, kw_only=True)
class Show:
    source: tyro.conf.Positional[
        Annotated[Literal["k-means", "random"], tyro.conf.arg(metavar="k-means|random")]
    ]
    file: tyro.conf.Positional[Annotated[str, arg(metavar="FILE")]]
    out: str
    lr: float = 0.1
    num_heads: Literal[1, 2] = 1
    channels: Literal["RGB", "L"] | None = None
    mean: tuple[float, ...] | None = None
    epochs: tuple[int, ...] = (1,)
    parts: tuple[Literal["head", "blocks"], ...] = ()
    fold: Literal["auto", "on", "off"] = field(default="auto", metadata={"bare": "on"})
    more: More = field(default_factory=More)

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ValueError(f"--lr {self.lr:g}: it must be 0 or more")


SEE = "see fastpsl show --help"
LIKE = "as in `fastpsl show SOURCE FILE --out NAME`"
GIVEN = ("random", "a", "--out", "b")
CASES = (
    ((), f"SOURCE, FILE and --out are missing, {LIKE}; {SEE}"),
    (GIVEN[:2], f"--out is missing, {LIKE}; {SEE}"),
    ((*GIVEN[:2], "--oout", "b"), f"--oout: there is no such option; perhaps you meant --out; {SEE}"),
    ((*GIVEN, "--wrkers=1"), f"--wrkers: there is no such option; perhaps you meant --workers; {SEE}"),
    ((*GIVEN, "--zzz", "1"), f"--zzz: there is no such option; {SEE}"),
    (("--source=random",), f"--source: give it without a flag, as in `fastpsl show SOURCE`; {SEE}"),
    (("random", "--file", "a"), f"--file: give it without a flag, as in `fastpsl show SOURCE FILE`; {SEE}"),
    ((*GIVEN, "--lr"), f"--lr without a value; give a number; {SEE}"),
    ((*GIVEN, "--channels"), f"--channels without a value; allowed are RGB, L; {SEE}"),
    ((*GIVEN, "--epochs"), "--epochs without a value; give whole numbers"),
    ((*GIVEN, "--lr", "abc"), "--lr abc: give a number"),
    ((*GIVEN, "--lr=-1"), "--lr -1: it must be 0 or more"),
    ((*GIVEN, "--workers", "1.5"), "--workers 1.5: give a whole number"),
    ((*GIVEN, "--epochs", "1", "x"), "--epochs 1 x: give whole numbers"),
    ((*GIVEN, "--channels", "rgb"), "--channels rgb: allowed are RGB, L; perhaps you meant RGB"),
    ((*GIVEN, "--num-heads", "3"), "--num-heads 3: allowed are 1, 2"),
    ((*GIVEN, "--parts", "heads"), "--parts heads: allowed are head, blocks; perhaps you meant head"),
    ((*GIVEN, "--fold", "on", "off"), "--fold on off: allowed are auto, on, off"),
    (("kmeans", *GIVEN[1:]), "SOURCE kmeans: allowed are k-means, random; perhaps you meant k-means"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "line"), CASES, ids=lambda case: case if isinstance(case, str) else " ".join(case)
)
def test_an_error_says_what_was_given_and_what_is_allowed(arguments: tuple[str, ...], line: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(Show, arguments, prog="fastpsl show")
    assert str(caught.value) == line


def test_values_reach_their_fields() -> None:
    words = "--epochs 3 4 --out b random a --channels L --mean 1 0.5 --no-fast --workers=7 --parts"
    assert parse(Show, words.split()) == Show(
        source="random", file="a", out="b", channels="L", mean=(1.0, 0.5), epochs=(3, 4), more=More(7, False)
    )
    assert parse(Show, GIVEN) == Show(source="random", file="a", out="b")
    folds = [
        parse(Show, [*GIVEN, *words.split()]).fold for words in ("", "--fold", "--fold off", "--fold --parts")
    ]
    assert folds == ["auto", "on", "off", "on"]


def test_a_missing_value_is_told_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    """tyro's boxes have other frames where the encoding lacks lines."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with pytest.raises(ValueError, match="^--lr without a value; give a number; see"):
        parse(Show, [*GIVEN, "--lr"])


def test_the_errors_of_a_recipe() -> None:
    for arguments, line in (
        (("--batch-size", "0"), "--batch-size 0: it must be above 0"),
        (("--decoder", "gpu"), f"--decoder gpu: allowed are auto, {', '.join(NAMES)}"),
    ):
        with pytest.raises(ValueError) as caught:
            find_recipe("jigsaw_r50").parse(arguments)
        assert str(caught.value) == line


def test_paragraphs_are_joined_and_commands_stay(capsys: pytest.CaptureFixture[str]) -> None:
    about = 'One\n"two" 3\n(four).\n\n    run --a \\\n        --b 1\n\nMore.'
    with pytest.raises(SystemExit, match="0"):
        parse(Show, ["--help"], prog="show", description=about)
    text = capsys.readouterr().out
    assert '\n\nOne "two" 3 (four).\n\n    run --a \\\n        --b 1\n\nMore.\n\n' in text


RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))


def shown(name: str) -> dict[str, Option]:
    """Return the options that a recipe's --help shows."""
    recipe = find_recipe(name)
    options = options_of(recipe.options, recipe.with_paper())
    return {option.name: option for option in options if option.name not in recipe.options.without}


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        find_recipe(name).parse(["--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def command_help(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    try:
        cli.main([*words.split(), "--help"])
    except SystemExit as end:
        assert end.code == 0
    return capsys.readouterr().out


def too_long(text: str, columns: int) -> list[str]:
    """Return the lines that are too long, but for addresses and commands, which stay whole to be copied."""
    return [line for line in text.splitlines() if len(line) > columns and re.match(" {0,3}[^ ]+ ", line)]


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("name", RECIPES)
def test_every_line_fits_and_no_word_is_broken(
    name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_of(name, capsys)
    assert not too_long(text, columns)
    words = set(re.findall(r"[\w.'-]+", text))
    for option in shown(name).values():
        usage = option.usage.replace("[no-]", "")
        assert option.text and set(re.findall(r"[\w.'-]+", f"{usage} {option.text}")) <= words
    assert not re.search(r"None|\(default|INT|psl\.txt", text)


def test_options_stand_in_groups_of_which_the_recipes_own_is_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = help_of("jigsaw_r50", capsys)
    groups = ["data", "output", "optimisation", "speed", "monitoring", "plan"]
    assert re.findall(r"╭─ ([a-z ]+) ─", text) == ["options", *(f"{group} options" for group in groups)]
    assert text.index("│ --lr ") < text.index("│ --data ") < text.index("│ --batch-size ")
    assert {option.group for option in options_of(PretrainOptions)} == {*groups}


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("knn", "lr checkpoint_minutes tensorboard compile accumulate order"),
        ("few_shot", "val whole log_steps"),
        ("simclr_r50", "accumulate apex"),
        ("uic_r50", "order lanes"),
        ("voc_detection", "whole size_px val on_bad_sample"),
    ],
)
def test_options_without_effect_are_not_listed(
    name: str, without: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(name) and not shown(name).keys() & {*without.split()}
    listed = re.findall(r"│ --(\S+)", help_of(name, capsys))
    assert listed and not {name.replace("-", "_").rstrip(",") for name in listed} & {*without.split()}


PARTS = ["recipes copy", "recipes list", "data write", "data verify", "data info", "data show"]


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("words", ["", *cli.Fastpsl.commands, *PARTS])
def test_commands_have_help_of_the_same_kind(
    words: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = command_help(words, capsys)
    assert text.startswith(f"usage: {' '.join(['fastpsl', *words.split()])}")
    assert not too_long(text, columns)
    assert not re.search(r"\{None\}|\(default", text)


def test_help_does_not_import_torch() -> None:
    code = """if True:
    import runpy, sys
    for path in sys.argv[1:-1]:
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit:
            print("loaded", [name for name in ("torch", "numba", "matplotlib") if name in sys.modules])
    """
    names = [ROOT / "recipes" / f"{name}.py" for name in ("jigsaw_r50", "knn", "voc_segmentation")]
    run = interpreted(code, *names, "--help")
    loaded = [line for line in run.stdout.splitlines() if line.startswith("loaded ")]
    assert loaded == ["loaded []"] * 3, run.stderr


def test_threads_parse_at_once() -> None:
    """tyro's state and the redirected stdout are those of the whole process."""
    before, interval = sys.stdout, sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            read = pool.map(lambda epochs: parse(Show, [*GIVEN, f"--epochs={epochs}"]).epochs, range(1, 41))
            assert list(read) == [(epochs,) for epochs in range(1, 41)] and sys.stdout is before
    finally:
        sys.setswitchinterval(interval)
