"""`fastpsl doctor` as a user types it: its measurements and output, and one-line errors with exit code 2."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fastpsl.commands.doctor import split
from fastpsl.doctor import examination, loader_rates, setup
from fastpsl.doctor.examination import Examination
from fastpsl.doctor.loader_rates import Feed, measure_read
from fastpsl.doctor.measurements import JpegEngines
from fastpsl.doctor.report import Limit
from fastpsl.doctor.setup import default_recipe, load_recipe, open_setup
from fastpsl.engine import stage_bench
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.stage_bench import StageBench
from fastpsl.files import workers
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.rotation_crops import RotationCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.views import ViewSpec, short_side_px
from fastpsl.scripts import forecast
from tests.cli import Cli, Outcome, refused
from tests.doctor.measured import no_limit
from tests.pipelines.memory import drop_from_cache
from tests.pipelines.paged import write_paged
from tests.pipelines.photos import DECODERS
from tests.programs import ROOT

JIGSAW = str(ROOT / "recipes" / "jigsaw_r50.py")
SMALL = (
    *("--backbone", "resnet18", "--batch-size", "8", "--workers", "1", "--permutations-per-image", "1"),
    *("--size-px", "54", "--counts", "4", "8", "16"),
)


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> Cli:
    """Return a function that runs doctor in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")

    def start(*arguments: object) -> Outcome:
        outcome = cli("doctor", *arguments)
        assert not list(folder.iterdir()), "it writes nothing"
        return outcome

    return start


def one_line(screen: str) -> str:
    return " ".join(screen.split())


def besides_progress(err: str) -> list[str]:
    """Return the lines of stderr that do not report progress, which long measurements do."""
    return [line for line in err.splitlines() if not line.startswith("measuring: ")]


def test_the_screen(doctor: Cli) -> None:
    options = ("--seconds", 0.01, "--stages", "S1", "S3", "--gpus", 2)
    code, out, err = doctor(*options, JIGSAW, *SMALL, "--fold-frozen")
    assert code in (0, 1) and not besides_progress(err)
    lines = out.splitlines()
    assert lines[0].startswith(f"{JIGSAW} --backbone"[:78])
    assert "one of 2 ranks" in out and ": 4 images" in out
    # The recipe's path may take several lines; the rest fits one screen.
    assert len(lines) <= 32 and max(map(len, lines)) <= 80
    for row in ("images/s", "read", "decode", "augment", "step", "both", "both/synthetic"):
        assert any(line.split()[0] == row for line in lines if line.strip()), row
    header = next(line for line in lines if line.startswith("images/s"))
    assert header.split()[-2:] == ["S1", "S3"]
    assert any(line.startswith("bottleneck: ") for line in lines)
    assert ", frozen blocks" in out and "beton write" not in out
    if not torch.cuda.is_available():
        assert "no GPU: the CPU does everything" in lines


def test_json(doctor: Cli) -> None:
    options = ("--json", "--seconds", 0.01, "--stages", "S2")
    code, out, err = doctor(*options, JIGSAW, *SMALL, "--decoder", "pillow")
    assert not besides_progress(err)
    report = json.loads(out)
    assert list(report) == [
        "format", "fastpsl", "setting", "checks", "measured", "bottleneck", "changes", "left_out", "error",
        "exit_code",
    ]  # fmt: skip
    assert report["left_out"] == {"stages": [], "options": []} and report["error"] is None
    measured = report["measured"]
    (stage,) = measured["stages"]
    noise = report["bottleneck"]["part"] == "noise"
    assert report["exit_code"] == code == (0 if stage["ratio"] >= 0.95 and not noise else 1)
    assert stage["name"] == "S2" and measured["decoder"] == "pillow" and measured["num_threads"] == 1
    assert stage["ratio"] == stage["both"] / stage["synthetic"]
    assert stage["synthetic"] == stage["step_rates"][stage["step"]]
    assert {"--decoder pillow"}.isdisjoint(each["option"] for each in measured["alternatives"])
    assert min(measured["decode"], measured["read"]["images_per_s"], stage["both"]) > 0
    assert "pillow" in measured["auto"]["costs"]
    assert min(cost["cpu_ms"] for cost in measured["auto"]["costs"].values()) > 0
    names = [check["name"] for check in report["checks"]]
    assert {"python", "torch", "gpu", "compiler", "cores", "disk", "data"} <= set(names)
    assert {"ffcv", "dali"} & set(DECODERS) == {"ffcv", "dali"} & set(names)
    assert "broken" not in {check["state"] for check in report["checks"]}
    assert report["setting"]["data"] == "the embedded sample" and report["setting"]["recipe"] == JIGSAW
    text = (ROOT / "docs" / "how_to" / "bottleneck.md").read_text()
    keys = [*report, *report["setting"], *measured, *measured["read"], *stage, *report["checks"][0], *names]
    assert not [key for key in keys if f"`{key}`" not in text]


def test_what_the_jpeg_engines_do_reaches_the_report(doctor: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = JpegEngines(7, "", 0.9, 3, {0.5: 1e9, 0.9: 100.0})
    monkeypatch.setattr(examination, "measure_engines", lambda *_: engines)
    monkeypatch.setattr(examination, "bottleneck", lambda _: None)  # so that decoders are tried
    options = ("--decoder", "pillow")
    report = json.loads(doctor("--json", "--seconds", 0.01, "--stages", "S1", JIGSAW, *SMALL, *options).out)
    measured = report["measured"]
    assert measured["jpeg_engines"] == {
        "num": 7, "why_idle": "", "share": 0.9, "busy_percent": 3, "rates": {"0.5": 1e9, "0.9": 100.0},
    }  # fmt: skip
    (added,) = (each for each in measured["alternatives"] if "hw-decoder-load" in each["option"])
    assert added["option"] == "--decoder dali --hw-decoder-load 0.5"
    assert (added["images_per_s"], added["beside"]) == (1e9, measured["decode"])
    (check,) = (check for check in report["checks"] if check["name"] == "jpeg engines")
    assert check["state"] == "ok" and "busy 3%" in check["text"]  # pillow trains
    assert {"pillow", *DECODERS} == measured["auto"]["costs"].keys()


def test_a_named_recipe_has_the_preset_that_train_would_choose(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A script has the paper's values, with which a step of SimCLR takes minutes on a CPU."""
    monkeypatch.setattr(
        forecast, "choose_preset", lambda recipe, options_of: (options_of("cpu-small"), "it is")
    )
    data = str(sample_paths().train)
    named, script = (
        load_recipe(ROOT / "recipes" / "simclr_r50.py", ("--data", data), by_machine=by_machine)
        for by_machine in (True, False)
    )
    assert named.arguments == ("--data", data, "--preset", "cpu-small")
    assert (named.options.preset, script.options.preset) == ("cpu-small", "small")  # type: ignore[attr-defined]
    assert script.arguments == ("--data", data)


def test_without_recipes_reading_and_decoding_are_timed(doctor: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "default_recipe", lambda: None)
    code, out, err = doctor("--seconds", 0.01)
    assert code == 0 and not besides_progress(err)
    assert "no recipe" in out and "fastpsl doctor PATH/NAME.py" in one_line(out)
    assert "decode" in out and "both" not in out
    refused(doctor("--stages", "S1"), "there is no recipe")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("none.py", "none.py: there is no such file"),
        ("jigsw --data x.beton", "there is no recipe jigsw; did you mean jigsaw?"),
        ("--stages S9 simclr", "S9: the plan has S1, S2, S3"),
        ("{root}/recipes", "recipes: is a folder, not a script"),
        (".", "path is empty, or this folder"),
        (
            "--stages",
            "--stages without a value; NAME...: Stages of the recipe's plan to measure, such as S1 S3",
        ),
        ("{root}/recipes/knn.py", "it is an evaluation, of which nothing is trained in stages"),
        ("{root}/fastpsl/engine/gpu.py", "has no RECIPE, so it is no recipe"),
        ("--bogus", "--bogus"),
        ("--seconds 0", "--seconds 0: it must be above 0"),
        ("--stages S9", "S9: the plan has S1, S2, S3"),
        ("--gpus 0", "--gpus 0: it must be 1 or more"),
        ("--gpus 3", "over 3 ranks"),
        ("--gpus 32 simclr", "one of 32 ranks, measured by itself with its 1 image of a step"),
        ("{jigsaw} --batch-size 0", "--batch-size 0"),
        ("{jigsaw} --batch-size 999", "fewer than one batch of 999"),
        ("{jigsaw} --data /nowhere.beton", "/nowhere.beton: no such file or folder"),
        ("{root}/recipes/linear_probe.py --data x.beton", "linear_probe.py: an evaluation"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(doctor: Cli, arguments: str, words: str) -> None:
    refused(doctor(*arguments.format(root=ROOT, jigsaw=JIGSAW).split()), words)


MADE = """
from fastpsl.engine.options import TrainingOptions
from fastpsl.scripts.recipe import Recipe
RECIPE = Recipe("mine", "Words.", TrainingOptions, {}, {}, build)
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def parse(:", "loading it fails (SyntaxError"),
        ("import nothing_of_that_name", "nothing_of_that_name"),
        ("raise SystemExit(0)", '__name__ == "__main__"'),
        ("{options}\ndef build(options): return 1 / 0", "build() fails (ZeroDivisionError"),
        ("{options}\ndef build(options): raise ValueError('no such task')", "no such task"),
        ("{options}\ndef build(options): return 3", "its build() gives int"),
    ],
)
def test_a_recipe_that_cannot_be_used(doctor: Cli, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text.replace("{options}", "print('words')") + MADE * ("{options}" in text))
    refused(doctor(path), f"fastpsl doctor: {path}: ", words)


def test_what_nobody_expected_is_one_line(doctor: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "place_backbone", lambda *_: dict[str, int]()["nothing"])
    words = ("doctor itself fails (KeyError in test_doctor.py, line ", "'nothing'")
    refused(doctor("--stages", "S1", JIGSAW, *SMALL), *words)


@pytest.mark.parametrize(
    ("recipe", "extra"),
    [("simclr_r50.py", ()), ("mocov2_r50.py", ("--queue-size", "32", "--key-group", "4"))],
)
def test_a_task_that_knows_its_batch_has_one_ranks_share(recipe: str, extra: tuple[str, ...]) -> None:
    usual = ("--backbone", "resnet18", "--batch-size", "16", "--workers", "1", "--size-px", "32")
    setup = open_setup(load_recipe(ROOT / "recipes" / recipe, (*usual, *extra)), 2, ("S3",))
    try:
        assert setup.experiment is not None and setup.opened.batch_size == 8
        assert setup.experiment.task.batch_size == 8  # type: ignore[attr-defined]
        data = setup.opened.train
        bench = StageBench(setup.experiment, 2, setup.options, data, setup.world, seconds=0.01)
        assert bench.batch_size == 8 and bench.step_alone() > 0
        if recipe == "mocov2_r50.py":
            assert setup.experiment.task.num_filled == 32  # type: ignore[attr-defined]
    finally:
        setup.opened.close()


@pytest.mark.parametrize(
    ("end", "code", "error"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("no such luck"), 2, "no such luck"),
        (signal.SIGTERM, 143, "ended"),
    ],
)
def test_the_json_is_whole_whatever_ends_it(
    doctor: Cli, monkeypatch: pytest.MonkeyPatch, end: Any, code: int, error: str
) -> None:
    """It ends in stage S2, so that there are the rates of S1."""
    stage_bench_of = examination.StageBench

    def begin(experiment: Any, number: int, *arguments: Any, **values: Any) -> StageBench:
        if number == 1 and isinstance(end, BaseException):
            raise end
        if number == 1:
            signal.raise_signal(end)
        return stage_bench_of(experiment, number, *arguments, **values)

    monkeypatch.setattr(examination, "StageBench", begin)
    outcome = doctor("--json", "--seconds", 0.01, JIGSAW, *SMALL)
    report = json.loads(outcome.out)
    assert outcome.code == report["exit_code"] == code and report["error"].endswith(error)
    assert [stage["name"] for stage in report["measured"]["stages"]] == ["S1"]
    assert report["setting"]["recipe"] == JIGSAW and report["checks"]


def test_an_error_before_any_measurement_is_json_as_well(doctor: Cli) -> None:
    outcome = doctor("--json", "none.py")
    report = json.loads(outcome.out)
    assert outcome.code == report["exit_code"] == 2 and "there is no such file" in report["error"]
    assert report["measured"] is None and report["checks"] == []


def test_no_part_begins_after_the_limit(doctor: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps by a minute behind S1."""
    later = [0.0]
    real, measure = time.monotonic, Examination._stage

    def stage(self: Examination, number: int, until: float) -> Any:
        rates = measure(self, number, until)
        later[0] = 60.0
        return rates

    monkeypatch.setattr(Examination, "_stage", stage)
    monkeypatch.setattr(time, "monotonic", lambda: real() + later[0])
    outcome = doctor("--json", "--seconds", 0.01, "--limit-s", 50, JIGSAW, *SMALL)
    report = json.loads(outcome.out)
    assert outcome.code == 1 and report["left_out"]["stages"] == ["S2", "S3"]
    assert [stage["name"] for stage in report["measured"]["stages"]] == ["S1"]


def test_what_stands_behind_the_path_is_the_recipes() -> None:
    for arguments, own, rest in (
        ("doctor --stages S1 a.py --json b.py", "doctor a.py --stages S1", "--json b.py"),
        ("doctor --stages S1 simclr_r50 --json", "doctor simclr_r50 --stages S1", "--json"),
        ("doctor --json", "doctor --json", ""),
        ("data write a.py b", "data write a.py b", ""),
    ):
        assert split(arguments.split()) == (own.split(), rest.split())
    assert default_recipe() is not None


def test_torchrun_is_refused(doctor: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(doctor(), "start it without torchrun")


def test_data_that_is_broken_is_said_and_not_measured(doctor: Cli, tmp_path: Path) -> None:
    path = tmp_path / "bad.beton"
    shutil.copy(sample_paths().train, path)
    with Beton(path) as beton:
        rows = beton.rows(np.array([0]))
    with open(path, "r+b") as file:
        file.seek(int(rows.offset[0]))
        file.write(b"no JPEG")
    code, out, err = doctor(JIGSAW, *SMALL, "--data", path)
    assert code == 2 and not besides_progress(err) and "both/synthetic" not in out
    line = f"broken: data: {path} sample 0: not a JPEG (1 bad of 16 tried): fastpsl data verify"
    assert "".join(line.split()) in "".join(out.split())  # a long path is broken over lines
    skipping = (JIGSAW, *SMALL, "--data", path, "--on-bad-sample", "skip")
    code, out, _ = doctor("--seconds", 0.01, "--stages", "S1", *skipping)
    assert code in (0, 1) and "warning: data: " in one_line(out) and "both/synthetic" in out


def test_reading_from_storage_and_from_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    shutil.copy(sample_paths().train, path)
    options = TrainingOptions(batch_size=32, workers=2)
    with Beton(path) as data:
        # Without it, probing the cache would read ahead, which covers nearly all of so small a file.
        os.posix_fadvise(data.shards[0].fd, 0, 0, os.POSIX_FADV_RANDOM)
        # A busy kernel may keep the pages at first.
        if all(drop_from_cache(path) > 0.1 for _ in range(10)):
            pytest.skip("this kernel keeps what it has read")
        first, samples = measure_read(data, options, 32, 0.0)
        if first.cached is None:
            pytest.skip("this file system does not say what is in the page cache")
        assert first.cached < 0.5 and first.from_storage and first.images_per_s > 0
        assert len(samples) >= 64 and len(np.unique(samples)) == len(samples)
        num_bytes = data.rows(np.arange(data.num_samples)).num_bytes.sum()
        assert first.data_bytes == pytest.approx(num_bytes, rel=1e-6) and first.fits
        measure_read(data, options, 32, 1.0)
        again, _ = measure_read(data, options, 32, 0.0)
        assert again.cached == 1.0 and not again.from_storage


def test_reading_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TrainingOptions(batch_size=16, workers=2, order="quasi_random", lanes=2)
    with Beton(write_paged(monkeypatch, tmp_path / "a.beton", 500)) as data:
        read, samples = measure_read(data, options, 16, 0.2)
        assert read.images_per_s > 0 and len(samples) > 0.8 * data.num_samples


def test_other_ways_to_load() -> None:
    """Smaller images, packed ones and more threads are measured, not calculated."""
    recipe = load_recipe(Path(JIGSAW), SMALL)
    setup = open_setup(recipe, 1, ("S1",))
    try:
        assert setup.experiment is not None
        views, data = setup.experiment.task.views(1), setup.opened.train
        feed = Feed(setup, views, 8, data, 0.01)
        packed, small = feed.written(no_limit(), lambda _: None)
        assert packed.option == "fastpsl data write SRC OUT --mode coefficients" and packed.images_per_s > 0
        assert packed.note == "tried with 480 of the images"
        assert small.option == "fastpsl data write SRC OUT --short-side 60" and small.part == "decode"
        rows = data.rows(np.arange(data.num_samples))
        pixels = rows.height.astype(float) * rows.width
        share = (pixels * (60 / np.minimum(rows.height, rows.width)) ** 2).sum() / pixels.sum()
        assert small.note == f"costs detail: {share:.0%} of the pixels stay; tried with 480 of the images"
        assert small.factor > 0 and small.images_per_s != small.beside
        feed.decode = 1000.0
        (threads,) = feed.all_cores(2, no_limit())
        assert threads.option == "--workers 2" and threads.beside == 1000.0
        assert not feed.all_cores(1, no_limit())
        over = Limit(1.0, 0.0)
        assert not feed.all_cores(2, over) and not feed.written(over, lambda _: None)
        assert not feed.other_decoders({}, over, lambda _: None)
        assert over.options[:2] == ["--workers 2", "fastpsl data write SRC OUT"]
    finally:
        setup.opened.close()


def test_all_stages_load_by_the_decoder_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` chooses once, by the views of the run's first stage, whichever stages are measured."""
    num_views: list[int] = []
    loaded: list[tuple[str, str]] = []

    def choose(*_: Any, **values: int) -> tuple[str, str]:
        num_views.append(values["num_views"])
        return "pillow", "for the test"

    def watched(module: ModuleType) -> Callable[..., Any]:
        open_loader = module.open_loader

        def opened(data: Any, views: Any, options: Any, *arguments: Any, **more: Any) -> Any:
            loaded.append((module.__name__.rpartition(".")[2], options.decoder))
            return open_loader(data, views, options, *arguments, **more)

        return opened

    monkeypatch.setattr(examination, "choose_decoder", choose)
    for repeats in ("REPEATS", "_AUGMENT_REPEATS"):
        monkeypatch.setattr(examination, repeats, 1)
    for module in (loader_rates, stage_bench):
        monkeypatch.setattr(module, "open_loader", watched(module))
    arguments = ("--backbone", "resnet18", "--batch-size", "8", "--size-px", "32", "--workers", "1")
    recipe = load_recipe(ROOT / "recipes" / "rotation_rv50.py", (*arguments, "--rotations-per-image", "all"))
    setup = open_setup(recipe, 1, ("S3",))
    with closing(setup.opened):
        assert setup.experiment is not None and setup.options.decoder == "auto"
        assert len(setup.experiment.task.views(setup.experiment.stages[2].level)) == 2
        examined = Examination(setup, 2, 0.01, no_limit(), lambda _: None)
        examined.measure()
        measured = examined.measured
        by_pillow = replace(setup, options=replace(setup.options, decoder="pillow"))
        views = setup.experiment.task.views(1)
        Feed(by_pillow, views, 8, setup.opened.train, 0.01).written(no_limit(), lambda _: None)
    assert num_views == [1] and measured is not None and measured.decoder == "pillow"
    assert loaded[0] == ("loader_rates", "pillow")
    assert {name for place, name in loaded if place == "stage_bench"} == {"pillow", "synthetic"}
    # A run on a new file would choose: on one of packed coefficients, and on a smaller one.
    assert loaded[-3:] == [("loader_rates", name) for name in ("pillow", "auto", "auto")]


def test_the_shorter_side_that_crops_need() -> None:
    jigsaw, crop = ViewSpec(ShorterSideCrop(300, 225)), ViewSpec(RandomResizedCrop(224))
    assert short_side_px([crop]) == 256 and short_side_px([crop, jigsaw]) == 300
    assert short_side_px([crop, ViewSpec(RotationCrop(224))]) is None and short_side_px([]) is None


def test_the_page_cache_is_bounded_by_a_group_within_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in (("a/b", "max"), ("a", "1000"), (".", "2000")):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "memory.max").write_text(f"{limit}\n")
        (tmp_path / name / "memory.stat").write_text("anon 400\nfile 500\n")
    (tmp_path / "own").write_text("0::/a/b\n")
    monkeypatch.setattr(workers, "_GROUPS", tmp_path)
    monkeypatch.setattr(workers, "_OWN_GROUPS", tmp_path / "own")
    assert loader_rates.page_cache_bytes() == 600
