"""The presets: values that suit the number of images, and the share that is held back."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastpsl.engine.options import PretrainOptions
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.subset import held_back
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.scripts import forecast, launch, presets
from fastpsl.scripts.presets import CPU_PRESETS, MIN_STEPS, cpu_values, small_values
from fastpsl.scripts.recipe import Recipe
from fastpsl.scripts.recipe_files import find_recipe
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import tree
from tests.programs import ROOT
from tests.scripts.test_recipe import write_config

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


def test_the_rate_stays_where_there_is_none_or_the_recipe_scales_it() -> None:
    without, expected = {"batch_size": 256, "epochs": (30, 300)}, {"batch_size": 32, "epochs": (134, 300)}
    assert small_values(without, {}, 480) == expected
    assert small_values(without | {"lr": 0.4}, {}, 480, scales_rate=True) == expected


def test_a_given_batch_makes_the_length() -> None:
    """Of 140 images, 4 make 35 steps in an epoch."""
    values = small_values(PAPER | {"queue_size": 2}, {}, 140, 4)
    assert values == {"batch_size": 4, "lr": 0.00625}
    assert small_values(PAPER, {}, 140, 5)["epochs"] == (72, 72)


def parsed(*words: object, recipe: str = "jigsaw_r50") -> Any:
    return find_recipe(recipe).parse([str(word) for word in words], log=lambda line: None)


WITH_PRESETS = [
    path.stem
    for path in sorted((ROOT / "recipes").glob("*.py"))
    if issubclass(find_recipe(path.stem).options, PretrainOptions)  # evaluations have none
]


@pytest.mark.parametrize("recipe", WITH_PRESETS)
def test_every_preset_of_every_recipe_gives_options(recipe: str) -> None:
    script, data = find_recipe(recipe), ["--data", sample_paths().train]
    paper = parsed(*data, "--preset", "paper", recipe=recipe)
    assert {name: getattr(paper, name) for name in script.paper} == {**script.paper} and paper.val is None
    sample = parsed(*data, "--preset", "sample", recipe=recipe)
    assert sample.science() == parsed(recipe=recipe).science()
    small = parsed(*data, recipe=recipe)
    assert (small.preset, small.val) == ("small", "10%")
    with Beton(sample_paths().train) as beton:
        num_train = int((~held_back(beton.names(), 0.1)).sum())
    assert small.batch_size <= 48 and small.epochs[0] * (num_train // small.batch_size) >= MIN_STEPS
    given = parsed(*data, "--preset", "small", "--batch-size", 8, recipe=recipe)
    assert given.batch_size == 8 and given.epochs[0] * (num_train // 8) >= MIN_STEPS


def test_a_file_of_pseudo_labels_has_all_images_learn(tmp_path: Path) -> None:
    data = ("--data", sample_paths().train, "--pseudo-labels")
    (tmp_path / "labels.npz").touch()
    kept = [parsed(*data, name, recipe="sslpp_rotation").val for name in (tmp_path / "labels.npz", "none")]
    assert kept == [None, "10%"]


def test_a_recipe_need_not_set_what_all_have(tmp_path: Path) -> None:
    recipe: Any = Recipe("mine", "", PretrainOptions, {}, {}, lambda options: pytest.fail("built"))
    options = recipe.parse(["--data", str(folder(tmp_path, 60))], log=print)
    assert (options.preset, options.batch_size, options.epochs) == ("small", 4, (154,) * 3)
    assert recipe.parse(["--data", str(tmp_path), "--preset", "paper"], log=print).batch_size == 256


def folder(root: Path, num: int, classes: tuple[str, ...] = ("a", "b")) -> Path:
    """Write files that only their names make images, because nothing else is looked at."""
    return tree(root, {f"{classes[i % len(classes)]}/{i}.jpg": b"" for i in range(num)})


def test_the_preset_follows_from_the_number_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets, "SMALL_BELOW", 60)
    few, many = folder(tmp_path / "few", 59), folder(tmp_path / "many", 60)
    assert (parsed("--data", few).preset, parsed("--data", many).preset) == ("small", "paper")
    assert parsed("--data", many).val is None
    options = parsed("--data", few, "--lr", "0.5", "--val", many)
    assert (options.lr, options.val, options.batch_size) == (0.5, str(many), 4)
    assert parsed("--data", few, "--val", "none").val == "none"
    assert parsed("--data", few, "--order", "quasi_random").val is None
    assert parsed("--data", folder(tmp_path / "one class", 59, ("a",))).val is None
    assert parsed("--data", folder(tmp_path / "flat", 59, (".",))).val is None
    assert parsed("--data", tmp_path / "nothere").preset == "auto"  # whoever opens it says so


def test_counting_stops_where_the_preset_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "SMALL_BELOW", 60)
    (folder(tmp_path, 60) / "z").symlink_to(tmp_path / "no folder")
    monkeypatch.setattr("fastpsl.pipelines.datasets.open.Beton", lambda *_: pytest.fail("opened"))
    assert parsed("--data", tmp_path).preset == "paper"
    assert parsed("--data", sample_paths().train).preset == "paper"  # by its header


def test_few_images_are_refused_with_what_was_found(tmp_path: Path) -> None:
    few = folder(tmp_path / "few", 49)
    words = f"{few}: holds 49 images \\(49 .jpg\\) in 2 folders \\(a, b\\), and .* 50 or more: give"
    with pytest.raises(ValueError, match=words):
        parsed("--data", few)
    for more in (("--preset", "small"), ("--batch-size", "4"), ("--preset", "paper")):
        assert parsed("--data", few, *more).data == str(few)
    assert parsed("--data", folder(few, 50)).preset == "small"
    nothing = tree(tmp_path / "nothing", {"a/x.mp4": b"x", "a/y.mp4": b"x", "b/z.txt": b"x"})
    with pytest.raises(ValueError, match=r"2 \.mp4, 1 \.txt\), in 2 folders \(a, b\)"):
        parsed("--data", nothing)


def test_a_run_that_goes_on_keeps_its_preset_and_its_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ("--data", folder(tmp_path / "photos", 60), "--out", tmp_path / "out")
    first = parsed(*data)
    assert (first.preset, first.val) == ("small", "10%")
    (tmp_path / "out").mkdir()
    write_config(tmp_path / "out", first.as_dict())
    monkeypatch.setattr(presets, "SMALL_BELOW", 60)  # as if there were more images now
    assert parsed(*data) == first
    assert parsed(*data[:2], "--resume", tmp_path / "out/checkpoints/x.pt").preset == "small"
    assert parsed("--config", tmp_path / "out").preset == "small"
    assert parsed(*data, "--resume", "never").preset == parsed(*data[:2]).preset == "paper"
    # Of a version in which that was the paper's.
    write_config(tmp_path / "out", first.as_dict() | {"preset": "auto", "val": None})
    monkeypatch.setattr(presets, "SMALL_BELOW", 61)
    assert (parsed(*data).preset, parsed(*data).val) == ("paper", None)


@pytest.mark.parametrize(
    ("option", "begun", "given", "expected"),
    [
        ("auto", "fp32", (), "fp32"),
        ("auto", "bf16", ("--precision", "auto"), "bf16"),
        ("auto", "fp32", ("--precision", "bf16"), "bf16"),  # which the checkpoint then refuses
        ("bf16", "bf16", (), "bf16"),
        ("auto", "fp16", (), "auto"),  # of a GPU, and on a CPU the checkpoint refuses what auto is there
    ],
)
def test_a_run_that_goes_on_keeps_its_precision(
    option: str, begun: str, given: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    """So a run in fp32 goes on where auto has become bf16, and a repetition computes as it did."""
    photos = folder(tmp_path / "photos", 60)
    record = {"options": {"precision": option}, "science": {"recipe": "jigsaw_r50", "precision": begun}}
    checkpoint = tree(tmp_path / "out", {"checkpoints/step-00000001.pt": b""}) / "checkpoints"
    (tmp_path / "out" / "config.json").write_text(json.dumps(record))
    assert parsed("--data", photos, "--out", tmp_path / "out", *given).precision == expected
    assert parsed("--data", photos, "--resume", next(checkpoint.iterdir()), *given).precision == expected
    assert parsed("--config", tmp_path / "out", "--data", photos, *given).precision == expected
    anew = parsed("--data", photos, "--out", tmp_path / "out", "--resume", "never", *given)
    assert anew.precision == (given[1] if given else "auto")


@pytest.mark.parametrize("recipe", WITH_PRESETS)
@pytest.mark.parametrize("name", CPU_PRESETS)
def test_a_cpu_preset_is_the_samples_training_larger_and_longer(recipe: str, name: str) -> None:
    """Each stage sees as many images as on the sample, times the length. Sides end at the paper's."""
    script, preset = find_recipe(recipe), CPU_PRESETS[name]
    options = parsed("--data", sample_paths().train, "--val", "none", "--preset", name, recipe=recipe)
    usual = {**script.paper, **script.sample}
    assert options.preset == name and options.backbone not in ("resnet50", "revnet50")
    least = -(-150 // (480 // options.batch_size))  # steps of a stage
    assert options.epochs == tuple(max(least, preset.length * epochs) for epochs in usual["epochs"])
    for side in {"size_px", "short_side"} & usual.keys():
        assert getattr(options, side) == min(script.paper[side], int(preset.side * usual[side]))
    for value in {"temperature", "trust", "momentum", "rotations_per_image"} & usual.keys():
        assert getattr(options, value) == usual[value]
    assert options.batch_size == min(usual["batch_size"], 32 if usual["batch_size"] > 48 else 48)


def test_a_cpu_preset_suits_the_number_of_images() -> None:
    """Of 200 images a batch has 16, with half the rate; of 5 million, a stage has one epoch."""
    paper: dict[str, Any] = PAPER | {"backbone": "resnet50", "size_px": 224}
    sample = {"batch_size": 32, "epochs": (6, 4), "size_px": 40}
    few = cpu_values(CPU_PRESETS["cpu-medium"], paper, sample, {"queue_size": 0.5}, 200)
    assert few == {
        "batch_size": 16, "lr": 0.2, "epochs": (86, 58), "queue_size": 64, "backbone": "resnet18",
        "size_px": 60,
    }  # fmt: skip
    many = cpu_values(CPU_PRESETS["cpu-small"], paper, sample, {"queue_size": 0.5}, 5_000_000)
    assert (many["epochs"], many["batch_size"], many["size_px"]) == ((1, 1), 32, 40)
    short = cpu_values(CPU_PRESETS["cpu-small"], paper | {"warmup_epochs": 9.0}, sample, {}, 5_000_000)
    assert short["warmup_epochs"] == 0.2
    # A plan of one stage sees as many images, and one of several in the paper's shares, but for 150 steps.
    one = cpu_values(CPU_PRESETS["cpu-small"], paper | {"epochs": (9,)}, sample, {}, 480)
    two = cpu_values(
        CPU_PRESETS["cpu-small"], paper | {"epochs": (30, 10)}, sample | {"epochs": (8,)}, {}, 480
    )
    assert (one["epochs"], two["epochs"]) == ((30,), (18, 10))


STEP_S = {"cpu-large": 0.005, "cpu-medium": 0.04, "cpu-small": 1.0}  # of each stage of each preset


@pytest.mark.parametrize(("expected", "step_s"), STEP_S.items())
def test_the_machine_chooses_by_a_clock_once(
    expected: str, step_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed, repeated by --config, named or started as a script, nothing is timed."""
    files = {f"{'ab'[i % 2]}/{i}.jpg": jpeg(photo(i, 120, 130)) for i in range(60)}
    photos, command = tree(tmp_path / "photos", files), "fastpsl train simclr"
    timed = list[int]()

    def measured(opened: Any, number: int, **more: Any) -> tuple[float, float, str]:
        timed.append(number)
        return step_s, 0.0, ""

    monkeypatch.setattr(forecast, "_measured", measured)
    monkeypatch.setattr(presets, "_has_gpu", lambda options: False)
    words = ["--data", str(photos), "--out", str(tmp_path / "out"), "--batch-size", "4", "--device", "cpu"]
    script = find_recipe("simclr_r50")
    options = launch.parsed(script, words, command)
    assert (options.preset, options.batch_size, options.val) == (expected, 4, "10%")
    assert timed == [0, 1, 2] * (1 + list(STEP_S).index(expected))
    timed.clear()
    assert options.size_px == int(32 * CPU_PRESETS[expected].side)
    (tmp_path / "out").mkdir()
    write_config(tmp_path / "out", options.as_dict(), "simclr_r50")
    again = [
        launch.parsed(script, words, command),
        launch.parsed(script, ["--config", str(tmp_path / "out")], command),
        launch.parsed(script, [*words[:2], "--preset", expected, "--batch-size", "4"], command),
    ]
    assert [each.science() for each in again] == [options.science()] * 3
    assert launch.parsed(script, words[:2], "simclr_r50").preset == "small"
    monkeypatch.setattr(presets, "_has_gpu", lambda options: True)
    assert launch.parsed(script, words[:2], command).preset == "small"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(presets, "_has_gpu", lambda options: False)
    assert launch.parsed(script, words[:2], command).preset == "small" and not timed


def test_no_preset_of_a_machine_enlarges_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tree(tmp_path / "photos", {f"{i}.jpg": jpeg(photo(i, 40, 50)) for i in range(60)})
    monkeypatch.setattr(forecast, "_measured", lambda *_, **more: (0.001, 0.0, ""))
    monkeypatch.setattr(presets, "_has_gpu", lambda options: False)
    words, command = ["--data", str(photos), "--device", "cpu"], "fastpsl train simclr"
    options = launch.parsed(find_recipe("simclr_r50"), words, command)
    assert (options.preset, options.size_px) == ("cpu-small", 32)
    own = launch.parsed(find_recipe("simclr_r50"), [*words, "--size-px", "24"], command)
    assert (own.preset, own.size_px) == ("cpu-large", 24)
