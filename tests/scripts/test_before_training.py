"""What a training tells before its first step, and --dry-run."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastpsl.console.words import number_of_weights
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import open_both
from fastpsl.evaluation.trained_run import TrainedRun
from fastpsl.pipelines.datasets.subset import held_back
from fastpsl.scripts.before_training import data_line, stage_steps, unsuitable
from fastpsl.scripts.launch import launch
from fastpsl.scripts.recipe_files import find_recipe
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import tree


def test_a_run_says_how_many_images_of_how_many_classes_were_read() -> None:
    def line(*sizes: tuple[int, int] | None, **options: Any) -> str:
        def part(num_samples: int, num_classes: int) -> Any:
            labels = np.arange(3) - (num_classes == 0)
            return SimpleNamespace(num_samples=num_samples, num_classes=num_classes, labels=lambda: labels)

        parts = [size and part(*size) for size in sizes]
        values = {"data": "photos", "val": None, "preset": "paper", "order": "random"} | options
        data: Any = SimpleNamespace(train=parts[0], val=parts[1], options=SimpleNamespace(**values))
        return data_line(data)

    classes = "photos: 2,304 training images in 10 classes, 512 validation images in 9 classes"
    assert line((2304, 10), (512, 9), val="v") == classes
    few = "photos: 2 training images without labels, 1 validation image in 1 class"
    assert line((2, 0), (1, 1), val="v") == few
    assert line((2304, 10), None) == "photos: 2,304 training images in 10 classes, no validation images"
    assert "10 classes; 7 more are held back for validation" in line((63, 10), (7, 10), val="10%")
    assert "no validation images: --val 1% holds none back" in line((63, 10), None, val="1%")
    small = {"preset": "small"}
    assert "--order quasi_random reads" in line((63, 9), None, order="quasi_random", **small)
    assert line((63, 9), None, val="none", **small).endswith("no validation images")


ROTATION = {
    "backbone": "nin3", "batch-size": 4, "size-px": 48, "short-side": 64, "decoder": "pillow", "workers": 1,
    "max-steps-per-stage": 1,
}  # fmt: skip


def launched(*words: object) -> None:
    small = [f"--{name}={value}" for name, value in ROTATION.items()]
    with pytest.raises(SystemExit) as end:
        launch(find_recipe("rotation_rv50"), [*map(str, words), *small, "--epochs", "1", "1"])
    assert end.value.code == 0


def test_a_run_says_its_length_and_what_does_not_suit_the_data(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photos = tree(tmp_path / "photos", {f"{i}.jpg": jpeg(photo(i, 60, 70)) for i in range(6)})
    out = tmp_path / "out"
    launched("--data", photos, "--out", out, "--preset", "paper", "--rotations-per-image", "all")
    text = capfd.readouterr().err
    assert f"{photos}: 6 training images without labels, no validation images\n" in text
    assert "network: nin3, " in text and "images of 48 px, in fp32 on the CPU\n" in text
    steps = "2 steps of 4 images (S1 1, S2 1); --preset paper; network inputs per step: S1 8, S2 32; "
    assert f"{steps}--max-steps-per-stage cuts each at 1" in text
    assert "fewer than 150 steps were not seen to learn: S1 has 1, S2 has 1; give --epochs 50 50" in text
    assert "a step has 67% of the 6 images: give --batch-size 2\n" in text
    assert "a side of 60 px or less and are enlarged to 64 px: give --short-side 60 --size-px 45\n" in text
    config = json.loads((out / "config.json").read_text())
    assert config["differences"]["batch_size"] == [4, 32]
    assert config["images"] == {"train": 6, "val": 0} and "lr" not in config["differences"]


def test_a_share_is_held_back_and_a_cut_run_validates_as_little_as_it_trains(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = {f"{'ab'[i % 2]}/{i}.jpg": jpeg(photo(i, 64, 70)) for i in range(60)}
    photos, out = tree(tmp_path / "photos", files), tmp_path / "out"
    launched("--data", photos, "--out", out, "--val", "20%")
    config = json.loads((out / "config.json").read_text())
    held = sum(held_back(files, 0.2))
    assert held > 4 and config["images"] == {"train": 60 - held, "val": held}
    assert config["options"]["val"] == "20%" and config["options"]["preset"] == "small"
    summaries = json.loads((out / "results.json").read_text())
    assert [summary["num_val_images"] for summary in summaries] == [4, 4]
    assert f"its validation: 4 of {held} images" in capfd.readouterr().err
    options = find_recipe("rotation_rv50").parse(["--data", str(photos), "--val", "20%"], log=print)
    train, val = open_both(options)
    assert val is not None
    names = {*train.names()}, {*val.names()}
    assert names[0] | names[1] == {*files} and not names[0] & names[1]
    train.close()
    val.close()
    run = TrainedRun.of(out)
    assert run is not None and run.scored() == (str(photos), "20%") and run.held_back == 0.2


def test_a_dry_run_tells_each_stage_and_writes_nothing(cwd: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photos = tree(cwd / "photos", {f"{i % 2}/{i}.jpg": jpeg(photo(i, 64, 70)) for i in range(60)})
    launched("--data", photos, "--dry-run", "--out", "out", "--val", photos)
    text = capfd.readouterr().out
    assert "60 training images in 2 classes, 60 validation images" in text
    for stage in ("S1", "S2"):
        assert re.search(
            rf"^{stage}: 1 step of [\d.e-]+ s, validation of 4 images 0:.*, memory .* GiB; ",
            text,
            re.MULTILINE,
        )
    assert [path.name for path in cwd.iterdir()] == ["photos"]


def test_weights_are_counted_in_words() -> None:
    for num, words in (
        (23_584, "23,600"), (999, "999"), (999_999, "1 million"), (11_176_512, "11.2 million"),
        (1_279_000_000, "1,280 million"),
    ):  # fmt: skip
        assert number_of_weights(num) == f"{words} weights"


LONG = (Stage("A", 1, 1, 5, 0, num_steps=2000),)


def told(
    stages: tuple[Stage, ...] = LONG, batch_size: int = 10, crop: Any = None, **options: Any
) -> tuple[list[int], list[str]]:
    """Return the stages' steps and what is said of them, for 100 images, by a task with one view."""
    heights, widths = np.resize([10, 50, 60], 100), np.resize([90, 40, 70], 100)
    train = SimpleNamespace(
        num_samples=100, rows=lambda which: SimpleNamespace(height=heights[which], width=widths[which])
    )
    given = SimpleNamespace(batch_size=batch_size, batch_of=lambda stage=None: batch_size, **options)
    data: Any = SimpleNamespace(train=train, options=given)
    view = SimpleNamespace(crop=crop or SimpleNamespace(size_px=8), follows=None)
    experiment: Any = SimpleNamespace(stages=stages, views=lambda stage: (view,))
    return stage_steps(experiment, data), list(unsuitable(experiment, data))


def test_so_few_steps_are_told_with_the_epochs_to_give() -> None:
    """An epoch has 10 steps of 10 images, and as many where a tenth of them is given instead of 50."""
    stages = replace(LONG[0], num_steps=150), Stage("C", 1, 1, 5, 15), Stage("D", 1, 1, 5, 14)
    steps, lines = told(stages)
    assert steps == [150, 150, 140] and len(lines) == 1
    assert lines[0].endswith("not seen to learn: D has 140; give --epochs 15 15 15")
    (*_, line) = told(stages[1:], batch_size=50)[1]
    assert line.endswith("C has 30, D has 28; give --epochs 15 15")


@pytest.mark.parametrize(("batch_size", "share"), [(10, None), (11, "11%"), (50, "50%")])
def test_a_tenth_of_the_images_is_a_large_batch(batch_size: int, share: str | None) -> None:
    _, lines = told(batch_size=batch_size)
    expected = f"a step has {share} of the 100 images: give --batch-size 10"
    assert lines == ([] if share is None else [expected])


def test_a_warm_up_ends_before_the_run() -> None:
    stages = (Stage("A", 1, 1, 5, 200), Stage("B", 1, 1, 5, 300))
    assert told(stages)[1] == told(stages, warmup_epochs=499.0)[1] == told(warmup_epochs=500.0)[1] == []
    (line,) = told(stages, warmup_epochs=500.0)[1]
    assert line.startswith("the rate rises for 500 epochs, and the run has 500, so it never reaches --lr: ")
    assert line.endswith("give --warmup-epochs 50")


def test_half_of_the_images_are_as_large_as_what_is_cut_from_them() -> None:
    """The shorter sides are 10, 40 and 60 px. Some crops are of resized images. A jigsaw has whole cells."""
    for crop in ({"size_px": 40}, {"size_px": 8, "shorter_px": 40}):
        assert told(crop=SimpleNamespace(**crop))[1] == []
        larger = SimpleNamespace(**{name: px + (px == 40) for name, px in crop.items()})
        (line,) = told(crop=larger, short_side=48, size_px=(41, 20))[1]
        assert line.startswith("half of the images have a side of 40 px or less and are enlarged to 41 px: ")
        assert line.endswith("give --short-side 46 --size-px 40 19")
        assert told(crop=larger, size_px=42, grid=3)[1][0].endswith("give --size-px 39")
