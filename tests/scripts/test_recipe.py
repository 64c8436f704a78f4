"""The values of a recipe: the paper's, the sample's, small ones, and those of an earlier run."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fastpsl.engine.options import PretrainOptions, RunOptions, TrainingOptions
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe import MIN_STEPS, Recipe, describe_choice, small_values, values_of_config
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.scripts.recipe_process import data_line
from tests.pipelines.photos import photo
from tests.programs import ROOT


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    lr: float = 0.5


def parse(arguments: str = "") -> Options:
    paper, sample = {"batch_size": 256, "lr": 0.01}, {"batch_size": 16}
    recipe = Recipe("recipe", "", Options, paper, sample, lambda options: pytest.fail("built"))
    return recipe.parse(arguments.split())


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
    assert describe_choice(options, {"batch_size": 256})[3:].rstrip(")").split("), ") == [
        "batch_size 8 (paper 256", "seed 3 (default 0", "max_steps_per_stage 5 (default None",
        "plan sl (default psl", "levels 1 2 2 (default none",
    ]  # fmt: skip
    assert describe_choice(RunOptions(data="d"), {"seed": 0}, "default") == "d: all values are the defaults"
    options = PretrainOptions(data="d", epochs=(1, 2, 3))
    assert describe_choice(options, {"epochs": (1, 2, 3)}).endswith("paper")


PAPER: dict[str, Any] = {"batch_size": 256, "lr": 0.4, "epochs": (60, 70), "queue_size": 65_536}


@pytest.mark.parametrize(
    ("num_images", "expected"),
    [
        (1_281_167, {}),
        (100_000, {"queue_size": 32_768}),
        # 19 steps of 256 in an epoch of 5,000 images, so 106 epochs have 2,000.
        (5_000, {"queue_size": 2048, "epochs": (106, 106)}),
        # A tenth of 280 is 28, so the batch is 16: 17 steps in an epoch.
        (280, {"batch_size": 16, "lr": 0.025, "epochs": (118, 118), "queue_size": 128}),
        (1, {"batch_size": 2, "lr": 0.003125, "epochs": (2000, 2000), "queue_size": 2}),
    ],
)
def test_small_values_suit_the_data(num_images: int, expected: dict[str, Any]) -> None:
    assert small_values(PAPER, {"queue_size": 0.5}, num_images) == expected
    values = PAPER | expected
    per_epoch = max(1, num_images // values["batch_size"])
    assert all(epochs * per_epoch >= MIN_STEPS for epochs in values["epochs"])


def test_a_batch_of_exactly_a_tenth_stays() -> None:
    """It need not be a power of two. Ten steps of an epoch make 2,000 in 200."""
    paper = {"batch_size": 192, "lr": 0.4, "epochs": (300, 7)}
    assert small_values(paper, {}, 1920) == {"epochs": (300, 200)}
    assert small_values(paper, {}, 1919)["batch_size"] == 128


def test_a_recipe_without_a_rate_has_small_values_too() -> None:
    assert small_values({"batch_size": 256, "epochs": (30, 300)}, {}, 480) == {
        "batch_size": 32, "epochs": (134, 300)
    }  # fmt: skip


WITH_PRESETS = [
    path.stem
    for path in sorted((ROOT / "recipes").glob("*.py"))
    if issubclass(find_recipe(path.stem).options, PretrainOptions)  # evaluations have none
]


@pytest.mark.parametrize("recipe", WITH_PRESETS)
def test_every_preset_of_every_recipe_gives_options(recipe: str) -> None:
    script = find_recipe(recipe)
    data = ["--data", str(sample_paths().train)]
    quiet: dict[str, Any] = {"log": lambda line: None}
    paper = script.parse([*data, "--preset", "paper"], **quiet)
    assert paper.science() == script.parse(data, **quiet).science()
    sample = script.parse([*data, "--preset", "sample"], **quiet)
    assert sample.science() == script.parse([], **quiet).science()
    small: Any = script.parse([*data, "--preset", "small"], **quiet)
    assert small.batch_size <= 48 and small.epochs[0] * (480 // small.batch_size) >= MIN_STEPS
    given: Any = script.parse([*data, "--preset", "small", "--batch-size", "8"], **quiet)
    assert given.batch_size == 8


def test_counting_images_leaves_no_data_open(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def open_data(source: Any, *cache: object) -> SimpleNamespace:
        events.append("opened")
        return SimpleNamespace(num_samples=280, close=lambda: events.append("closed"))

    monkeypatch.setattr("fastpsl.engine.run.open_data", open_data)
    small: Any = find_recipe("jigsaw_r50").parse(["--preset", "small"], log=lambda line: None)
    assert small.batch_size == 16
    assert events and events == ["opened", "closed"] * (len(events) // 2)


def test_a_config_repeats_a_run_but_for_what_is_given(tmp_path: Path) -> None:
    script: Any = find_recipe("jigsaw_r50")
    words = "--data photos --epochs 1 2 3 --permutations p.npy --seed 7 --out a --resume never"
    first = script.parse(words.split(), log=lambda line: None)
    config = {"options": first.as_dict(), "science": {"recipe": "jigsaw_r50"}, "command": []}
    (tmp_path / "config.json").write_text(json.dumps(config))
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
    with pytest.raises(ValueError, match=words) as excinfo:
        values_of_config(path, "jigsaw_r50", find_recipe("jigsaw_r50").options)
    assert "\n" not in str(excinfo.value) and str(path) in str(excinfo.value)


def test_a_run_says_how_many_images_of_how_many_classes_were_read() -> None:
    def line(*sizes: tuple[int, int] | None) -> str:
        parts = [size and SimpleNamespace(num_samples=size[0], num_classes=size[1]) for size in sizes]
        return data_line(SimpleNamespace(train=parts[0], val=parts[1]))  # type: ignore[arg-type]

    classes = "2,304 training images in 10 classes, 512 validation images in 9 classes"
    assert line((2304, 10), (512, 9)) == classes
    assert line((2, 0), (1, 1)) == "2 training images without labels, 1 validation image in 1 class"
    assert line((2304, 10), None) == "2,304 training images in 10 classes, no validation images"


def test_a_run_says_its_length_and_what_does_not_suit_the_data(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(6):
        Image.fromarray(photo(i, 60, 70)).save(photos / f"{i}.jpg")
    recipe = find_recipe("rotation_rv50")
    options = "--backbone nin3 --batch-size 4 --size-px 48 --short-side 64 --rotations-per-image all"
    options += " --decoder pillow --workers 1 --max-steps-per-stage 1"
    with pytest.raises(SystemExit) as end:
        launch(recipe, ["--data", str(photos), "--out", str(tmp_path / "out"), *options.split()])
    assert end.value.code == 0
    text = capfd.readouterr().err
    assert "6 training images without labels, no validation images\n" in text
    steps = "180 steps (S1 60, S2 60, S3 60); network inputs per step: S1 8, S2 16, S3 32; "
    assert f"{steps}--max-steps-per-stage cuts each at 1" in text
    assert "stages of fewer than 2,000 steps learn little: S1 has 60, S2 has 60, S3 has 60" in text
    assert "a step has 67% of the 6 images: give --batch-size 2 or less" in text
    assert "a side of 60 px or less and are enlarged to 64 px: give smaller --short-side, --size-px" in text


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
    assert len(lines) == (1 if last is None else 2)
    assert last is None or "epochs 3 (paper 60 60 60)" in lines[0]
    assert last is None or lines[1].endswith(last)
