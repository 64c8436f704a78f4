"""The values of a recipe: the paper's, the sample's, and those of an earlier run."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fastpsl.engine.options import PretrainOptions, RunOptions, TrainingOptions
from fastpsl.pipelines.views import Input
from fastpsl.scripts.recipe import Recipe, describe_choice, values_of_config
from fastpsl.scripts.recipe_files import find_recipe, recorded_recipe
from tests.cli import Cli, refused
from tests.models.test_export import checkpoint
from tests.pipelines.readers import refused as refused_value


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    lr: float = 0.5


def parse(arguments: str = "") -> Options:
    paper, sample = {"batch_size": 256, "lr": 0.01}, {"batch_size": 16}
    recipe = Recipe("recipe", "", Options, paper, sample, lambda options: pytest.fail("built"))
    return recipe.parse(arguments.split())


def write_config(folder: Path, options: dict[str, Any], recipe: str = "jigsaw_r50", **more: Any) -> None:
    config = {"options": options, "science": {"recipe": recipe}, **more}
    (folder / "config.json").write_text(json.dumps(config))


def test_paper_values_with_data_and_sample_values_without(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, values, line in (
        ("", (16, 0.01), "the embedded sample: batch_size 16 (paper 256)\n"),
        ("--data x.beton", (256, 0.01), "x.beton: all values as in the paper\n"),
        (
            "--batch-size 8 --lr 0.2",
            (8, 0.2),
            "the embedded sample: batch_size 8 (paper 256), lr 0.2 (paper 0.01)\n",
        ),
    ):
        options = parse(arguments)
        assert ((options.batch_size, options.lr), capsys.readouterr().out) == (values, line)
    with pytest.raises(SystemExit, match="0"):
        parse("--help")
    output = capsys.readouterr().out
    assert (
        "Defaults in brackets are the paper's. For the embedded sample they are --batch-size 16."
        in " ".join(output.split())
    )
    assert "[256]" in output and "[0.01]" in output


def test_first_line_tells_every_value_that_differs() -> None:
    """This includes values that the recipe does not set."""
    options = PretrainOptions(
        data="d", plan="sl", levels=(1, 2, 2), batch_size=8, seed=3, max_steps_per_stage=5
    )
    assert describe_choice(options, {"batch_size": 256})[3:].split(", ") == [
        "batch_size 8 (paper 256)", "seed 3 (default 0)", "max_steps_per_stage 5",
        "plan sl (default psl)", "levels 1 2 2 (default none)",
    ]  # fmt: skip
    assert describe_choice(RunOptions(data="d"), {"seed": 0}, "default") == "d: all values are the defaults"
    options = PretrainOptions(data="d")
    assert "crop_scale none (paper 0.1)" in describe_choice(options, {"crop_scale": (0.1,)})
    options = PretrainOptions(data="d", epochs=(1, 2, 3))
    assert describe_choice(options, {"epochs": (1, 2, 3)}).endswith("paper")


def test_paths_begin_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    script: Any = find_recipe("simclr_r50")
    given: dict[str, Any] = {"data": "~/photos", "val": "~/v*.beton", "out": Path("~/a"), "init": "~/w.pth"}
    wanted = {name: str(tmp_path / str(path)[2:]) for name, path in given.items()}
    for values in (wanted, given):
        options = script.from_values({**values, "preset": "paper"}, log=lambda line: None)
        assert {name: str(getattr(options, name)) for name in given} == wanted
    write_config(tmp_path, {"data": "~/photos"}, "simclr_r50")
    assert values_of_config(tmp_path, "simclr_r50", script.options) == {"data": f"{tmp_path}/photos"}


def test_a_config_repeats_a_run_but_for_what_is_given(tmp_path: Path) -> None:
    script: Any = find_recipe("jigsaw_r50")
    words = "--data photos --epochs 1 2 3 --permutations p.npy --seed 7 --out a --resume never"
    first = script.parse(words.split(), log=lambda line: None)
    write_config(tmp_path, first.as_dict(), command=[])
    again = script.parse(["--config", str(tmp_path), "--lr", "0.5"], log=lambda line: None)
    assert again.epochs == (1, 2, 3) and again.permutations == Path("p.npy") and again.seed == 7
    assert (again.lr, again.data, again.out, again.config) == (0.5, "photos", None, tmp_path)
    assert again.resume == "auto"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file; give a run's folder, or its config.json"),
        ("{", "it is no config.json of a run"),
        ("[]", "it is no config.json of a run"),
        ('{"options": {}, "science": {"recipe": "knn"}}', "it is of a run of knn, and this is jigsaw_r50"),
        (
            '{"options": {"colour": 1}, "science": {"recipe": "jigsaw_r50"}}',
            "jigsaw_r50 has no option colour",
        ),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with refused_value(words, path):
        values_of_config(path, "jigsaw_r50", find_recipe("jigsaw_r50").options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", "x"), ("batch_size", [8, "x"]), ("epochs", 3), ("epochs", ["a"]), ("lr", None),
        ("seed", 1.5), ("seed", True), ("plan", "theirs"), ("permutations", 7), ("init", {}), ("data", 5),
        ("tensorboard", 1), ("crop_scale", [None]), ("workers", "2"),
    ],
)  # fmt: skip
def test_a_recorded_value_of_another_kind_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    write_config(tmp_path, {name: value})
    with pytest.raises(ValueError, match=rf"^--config .*{name}.* {re.escape(ascii(value))}") as refused:
        values_of_config(tmp_path, "jigsaw_r50", find_recipe("jigsaw_r50").options)
    assert len(str(refused.value).splitlines()) == 1


def test_a_record_does_not_decide_where_is_written(tmp_path: Path) -> None:
    outside = str(tmp_path / "outside")
    options = {name: outside for name in ("out", "cache_dir", "resume", "config")} | {"seed": 3}
    write_config(tmp_path, options)
    values = values_of_config(tmp_path, "jigsaw_r50", find_recipe("jigsaw_r50").options)
    assert values == {"seed": 3}


def test_only_our_recipes_are_found_by_a_records_name(tmp_path: Path) -> None:
    assert recorded_recipe("RUN", "simclr_r50") is find_recipe("simclr_r50")
    for name in ("simclr", "knn", "simclr_r50.py", "../recipes/simclr_r50", str(tmp_path / "x.py"), ""):
        with pytest.raises(ValueError, match=f"RUN names the recipe {re.escape(name)}, .* --recipe FILE.py"):
            recorded_recipe("RUN", name)


@pytest.mark.parametrize(
    "command",
    [
        "train simclr --config RUN", "train simclr --config RUN/config.json", "train simclr --out RUN",
        "replay RUN --step 1", "eval knn RUN", "features RUN --out F.npy",
    ],
)  # fmt: skip
@pytest.mark.parametrize("damage", ["nested", "digits", "pipe", "kinds"])
def test_a_damaged_record_ends_each_command_in_a_line(command: str, damage: str, cwd: Path, cli: Cli) -> None:
    checkpoint(cwd / "RUN", "nin3", Input(size_px=48))
    path = cwd / "RUN" / "config.json"
    if damage == "pipe":
        os.mkfifo(path)
    else:
        texts = {"nested": "[" * 200_000, "digits": "9" * 5000, "kinds": '{"options": {"data": 7}}'}
        path.write_text(texts[damage])
    if damage == "pipe" and command.split()[0] not in ("train", "replay"):
        return  # the weights belong to no run
    refused(cli(*command.split()), "RUN/config.json")


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        ("--epochs 3", "the paper's 3 stages are --epochs 3 3 3"),
        ("--epochs 3 --plan end_to_end", None),
        ("--epochs 3 3", None),
    ],
)
def test_one_value_of_epochs_is_said_to_be_one_stage(arguments: str, last: str | None) -> None:
    lines = list[str]()
    find_recipe("jigsaw_r50").parse(arguments.split(), log=lines.append)
    assert len(lines) == (last is not None)
    assert last is None or lines[0].endswith(last)
