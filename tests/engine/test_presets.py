import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fastpsl.engine.options import PretrainOptions
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.scripts.recipe import MIN_STEPS, small_values, values_of_config
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.scripts.recipe_process import data_line
from tests.pipelines.photos import photo
from tests.programs import ROOT

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
    first = script.parse(
        [
            "--data",
            "photos",
            "--epochs",
            "1",
            "2",
            "3",
            "--permutations",
            "p.npy",
            "--seed",
            "7",
            "--out",
            "a",
            "--resume",
            "never",
        ],
        log=lambda line: None,
    )
    config = {"options": first.as_dict(), "science": {"recipe": "jigsaw_r50"}, "command": []}
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = script.parse(["--config", str(tmp_path), "--lr", "0.5"], log=lambda line: None)
    assert again.epochs == (1, 2, 3) and again.permutations == Path("p.npy") and again.seed == 7
    assert (again.lr, again.data, again.out, again.config) == (0.5, "photos", None, tmp_path)
    assert again.resume == "auto"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "it is no config.json of a run"),
        (None, "there is no such file; give a run's folder, or its config.json"),
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
    from fastpsl.scripts.launch import launch

    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(6):
        Image.fromarray(photo(i, 60, 70)).save(photos / f"{i}.jpg")
    recipe = find_recipe("rotation_rv50")
    options = ["--backbone", "nin3", "--batch-size", "4", "--size-px", "48", "--short-side", "64"]
    options += ["--rotations-per-image", "all", "--decoder", "pillow", "--workers", "1"]
    options += ["--max-steps-per-stage", "1"]
    with pytest.raises(SystemExit) as end:
        launch(recipe, ["--data", str(photos), "--out", str(tmp_path / "out"), *options])
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
        (["--epochs", "3"], "the paper's 3 stages are --epochs 3 3 3"),
        (["--epochs", "3", "--plan", "end_to_end"], None),
        (["--epochs", "3", "3"], None),
    ],
)
def test_one_value_of_epochs_is_said_to_be_one_stage(arguments: list[str], last: str | None) -> None:
    lines = list[str]()
    find_recipe("jigsaw_r50").parse(arguments, log=lines.append)
    assert len(lines) == (1 if last is None else 2)
    assert last is None or lines[1].endswith(last)
