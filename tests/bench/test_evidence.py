"""Test the experiments' plans, their running in pieces and their statistics, with made-up trainings."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typing_extensions import override

from bench.evidence.best_blocks import BEST
from bench.evidence.data import SEARCH, SETS, TRAIN, _cifar10, _cifar10_arrays
from bench.evidence.plan import RANDOM, UNTRAINED, Run, read_plan
from bench.evidence.power import power, smallest_difference
from bench.evidence.results import Results, difference, holm
from bench.evidence.run import PRELOADED, Runner, main
from bench.time_to_accuracy import clock_of_looks
from fastpsl.console.terminal import EXIT_PREEMPTED
from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.schedules import cosine
from fastpsl.engine.plan import make_plan
from fastpsl.engine.trainer import pretrain
from fastpsl.plots import charts
from fastpsl.scripts.recipe import require_paths
from fastpsl.scripts.recipe_files import load_recipe
from fastpsl.tasks.rotation import Rotation
from tests.engine.tiny import TinyNet, tiny_run
from tests.pipelines.published_files import cifar10, publish, random_images
from tests.programs import ENVIRONMENT, ROOT
from tests.warm import Running

LOOK_S, PASS_S = 0.4, 0.3
PLANS = sorted((ROOT / "bench" / "evidence").glob("*.json"))
FAKE = "tests/bench/fake_recipe.py"


class RotationWithPasses(Rotation):
    """A task that also passes over the data before each epoch, as methods of pseudo-labels do."""

    @override
    def start_epoch(self, context: EpochContext) -> None:
        with context.run.reporter.off_the_clock():
            time.sleep(PASS_S)


def plan_of(folder: Path, **changes: Any) -> Path:
    """Write a plan of two arms and two rates whose commands run `FAKE`, and its data folder."""
    (folder / "work" / "data").mkdir(parents=True, exist_ok=True)
    evaluate = f"{FAKE} %s {{weights}} --seed {{seed}} --out {{out}}"
    plan = {
        "title": "A title", "claim": "A claim", "paper": "psl/5", "first": {},
        "training": f"{FAKE} train --lr {{rate}} --seed {{seed}} --out {{out}}",
        "arms": {"good": "--gain 2", "plain one": "--gain 1"},
        "untrained": "--gain 0.5",
        "search": {"rates": [0.1, 0.2, 0.3], "seed": 9, "evaluation": "search", "numbers": ["top1_B1"]},
        "seeds": [0, 1],
        "evaluations": {"search": evaluate % "search", "linear": evaluate % "linear"},
        "random": "--random yes",
        "beside": {
            "some labels": {"command": evaluate.format(weights="", seed="{seed}", out="{out}") % "labels",
                            "number": "top1_B2"},
            "pixels": {"command": f"{FAKE} pixels --out {{out}}", "number": "top1_B1"},
        },
        "endpoint": {"evaluation": "linear", "numbers": ["top1_B1"],
                     "pairs": [["good", "plain one"], ["good", RANDOM]]},
        "curve": {"file": "probe.jsonl", "name": "knn_accuracy", "first_epoch": 1, "last_epoch": 2},
    } | changes  # fmt: skip
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    return path


def arguments(plan: Path, *options: str) -> list[str]:
    return [str(plan), "--work", str(plan.with_name("work")), "--out", str(plan.with_name("out")), *options]


def runs_of(plan: Path) -> Path:
    return plan.parent / "work" / "runs"


def results_of(plan: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(plan.with_name("out").joinpath("results.json").read_text())
    return record


def call(monkeypatch: pytest.MonkeyPatch, plan: Path, *options: str) -> int:
    """Run a plan in this process, and return the exit code."""
    monkeypatch.setattr(sys, "argv", ["run", *arguments(plan, *options)])
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):  # which it sets
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    return main()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a whole experiment, and return the path of its plan."""
    path = plan_of(tmp_path_factory.mktemp("experiment"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert call(monkeypatch, path, "--jobs", "2") == 0
    return path


@pytest.fixture
def copied(experiment: Path, tmp_path: Path) -> Path:
    """Return the path of the plan in a copy of the whole experiment."""
    return shutil.copytree(experiment.parent, tmp_path / "copy") / experiment.name


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_commands_of_the_plans_are_of_options_that_exist(path: Path) -> None:
    """Each recipe takes them up to the data, which is missing."""
    plan = read_plan(path)
    if plan.epochs:
        plan = plan.with_epochs(8)
    values = {"data": "missing", "runs": "runs", "out": "out", "seed": "0", "rate": "0.1"}
    trained = [arm for arm in plan.rows if arm != RANDOM]
    texts = [plan.training_of(Run(arm, 0.1, 0, counts=True)).template for arm in trained]
    texts += [one.command for one in plan.beside.values() if one.command.startswith("recipes/")]
    texts += [text for text in plan.first.values() if text.startswith("recipes/")]
    texts += list(plan.evaluations.values())
    all_weights = [weights for weights in (plan.random, f"missing{plan.own_backbone}") if weights]
    for command in {text.format(**values, weights=weights) for text in texts for weights in all_weights}:
        script, *words = command.split()
        with pytest.raises(ValueError, match="missing"):
            require_paths(load_recipe(ROOT / script).parse(words, log=lambda line: None))
    assert not plan.random or plan.own_backbone in plan.random
    blocks = {number.rpartition("_")[2] for number in plan.endpoint.numbers} - {BEST}
    evaluation = plan.endpoint.evaluation
    assert evaluation in ("linear", "few_labels") or all(
        block in plan.evaluations[evaluation] for block in blocks
    )


def test_all_plans_have_data_and_a_training_waits_for_its_own_labels_alone() -> None:
    assert SETS.keys() == {path.stem for path in PLANS}
    plan = read_plan(ROOT / "bench" / "evidence" / "uic-gpu.json").with_epochs(8)
    assert plan.curve and plan.curve.last_epoch == 8
    for arm, names in {"uic": [], "first labels": ["first-labels-s3"], UNTRAINED: []}.items():
        assert [step.name for step in plan.first_for(Run(arm, 0.1, 3, counts=True))] == names


@pytest.mark.slow
def test_nothing_asks_for_cuda_before_a_command_has_its_process() -> None:
    """A process that has asked for it leaves children that cannot use it."""
    code = f"""
        import importlib, torch
        def refuse(*args, **kwargs): raise AssertionError("CUDA was asked for")
        for name in ("is_available", "device_count", "init", "_lazy_init", "current_device"):
            setattr(torch.cuda, name, refuse)
        for name in {PRELOADED}: importlib.import_module(name)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, env=ENVIRONMENT, check=True)


def test_an_experiment_runs_and_says_what_its_numbers_are_of(experiment: Path) -> None:
    results = results_of(experiment)
    assert results["rates"] == {"good": 0.2, "plain one": 0.2} and results["plan_commit"] is None
    assert len(results["search"]) == 6 and {score["seed"] for score in results["search"]} == {9}
    arms = [(score["arm"], score["seed"]) for score in results["scores"]]
    assert arms == [(arm, seed) for seed in (0, 1) for arm in ("good", "plain one", UNTRAINED, RANDOM)]
    first = results["scores"][0]
    assert first["numbers"] == {"top1_B1": 20.0, "top1_B2": 21.0} and first["data"]["val"] == "linear"
    assert first["command"].endswith("linear RUNS/good-lr0.2-s0 --seed 0 --out RUNS/good-lr0.2-s0-linear")
    assert str(experiment.parent / "work") not in json.dumps(results) and len(results["training"]) == 6
    untrained = next(record for record in results["training"] if record["arm"] == UNTRAINED)
    assert f"--lr {1e-12:g}" in untrained["command"] and untrained["command"].endswith("--gain 0.5")
    dates = [datetime.fromisoformat(record["date"]) for record in (*results["scores"], untrained)]
    assert all(date.utcoffset() == timedelta(0) for date in dates)
    beside = [(one["name"], one["seed"], one["numbers"][one["number"]]) for one in results["beside"]]
    assert beside == [("some labels", 0, 2.5), ("some labels", 1, 2.5), ("pixels", None, 1.5)]
    values = {(row["arm"], row["number"]): (row["mean"], row["deviation"]) for row in results["means"]}
    assert values["good", "top1_B2"] == (21.5, 0.707) and values[RANDOM, "top1_B1"] == (1.5, 0.0)
    gain, over_random = results["differences"]
    assert gain["pair"] == ["good", "plain one"]
    assert gain["values"] == gain["interval"] == [10.0, 10.0]
    assert over_random["values"] == [18.5, 19.5] and over_random["interval"] == [12.647, 25.353]
    change = results["curves"]["good"]["change"]
    assert (change["epochs"], change["values"]) == ([1, 2], [10.0, 10.0])
    assert all({"seconds", "cpu_seconds", "cpu"} <= one.keys() for one in (first, untrained))
    assert [(one["arm"], one["seed"]) for one in results["training"]] == [
        (arm, seed) for seed in (0, 1) for arm in ("good", "plain one", UNTRAINED)
    ]


def test_an_entry_that_is_missing_is_made_again_alone(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, runs = results_of(copied), runs_of(copied)
    shutil.rmtree(runs)  # nothing depends on it
    assert call(monkeypatch, copied) == 0 and not [*runs.iterdir()] and results_of(copied) == results
    path = copied.with_name("out") / "results.json"
    scores = [one for one in results["scores"] if (one["arm"], one["seed"]) != ("good", 1)]
    path.write_text(json.dumps(results | {"scores": scores}))
    assert call(monkeypatch, copied) == 0
    again = results_of(copied)
    timed = ("date", "seconds", "cpu_seconds")
    same = [
        [{k: v for k, v in one.items() if k not in timed} for one in of["scores"]] for of in (results, again)
    ]
    assert same[0] == same[1] and again["means"] == results["means"]
    made = {file.name for file in runs.glob("*.done.json")}
    assert made == {"good-lr0.2-s1.done.json", "good-lr0.2-s1-linear.done.json"}


def test_the_clock_chooses_the_epochs_before_any_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch takes 0.1 s by what the fake trainings say, so that 1,000 of them do not fit, and 20 do."""
    path = plan_of(
        tmp_path, training=f"{FAKE} train --lr {{rate}} --seed {{seed}} --epochs {{epochs}} --out {{out}}",
        epochs=[1000, 20, 1], search={"rates": [0.2], "seed": 9, "evaluation": "search", "numbers": ["a"]},
        beside={}, keep=["probe.jsonl"],
        arms={"good": "--gain 2 --labels {runs}/of-s{seed}", "plain one": "--gain 1"},
        first={"of": f"{FAKE} train --gain 1 --lr 1 --seed {{seed}} --out {{out}}"},
    )  # fmt: skip
    found, write = list[tuple[int, int]](), Results.write

    def noted(results: Results) -> None:
        write(results)
        found.append((results.record["epochs"], len(results.record["scores"])))

    monkeypatch.setattr(Results, "write", noted)
    assert call(monkeypatch, path, "--seconds", "100", "--jobs", "2") == 0
    assert found[0] == (20, 0) and found[-1] == (20, 8)
    results = results_of(path)
    assert [one["epoch_s"] for one in results["calibration"].values()] == [0.1, 0.1]
    assert all("--epochs 20" in one["command"] for one in results["training"])
    assert {one["seed"] for one in results["training"]} == {0, 1}
    of_good = [
        json.loads((runs_of(path) / "timed-2" / f"{name}.done.json").read_text())["seconds"]
        for name in ("of-s9", "good-lr0.2-s9")
    ]
    assert results["calibration"]["good"]["start_s"] == pytest.approx(sum(of_good) - 0.2)
    kept = results["training"][1]["kept"]
    assert kept == ["plain_one-s0-probe.jsonl"] and path.with_name("out").joinpath(*kept).exists()
    assert call(monkeypatch, path, "--seconds", "0.5") == 0  # all is done
    results["scores"] = []
    path.with_name("out").joinpath("results.json").write_text(json.dumps(results))
    shutil.rmtree(tmp_path / "work" / "runs")
    results["calibration"]["good"]["start_s"] = 1e4
    path.with_name("out").joinpath("results.json").write_text(json.dumps(results))
    assert call(monkeypatch, path, "--seconds", "100") == EXIT_PREEMPTED
    assert {one["arm"] for one in results_of(path)["scores"]} == {"plain one", UNTRAINED, RANDOM}


@pytest.mark.parametrize("how", ["seconds", "SIGTERM", "SIGKILL"])
def test_what_is_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The time is over while the first training waits, or a signal comes; the training hears SIGTERM."""
    search = {"rates": [0.2], "seed": 9, "evaluation": "search", "numbers": ["a"]}
    arms = {"good": "--gain 2 --wait yes", "plain one": "--gain 1"}
    path = plan_of(tmp_path, arms=arms, search=search, seeds=[0], beside={})
    training = runs_of(path) / "good-lr0.2-s0"
    half = training / "half"
    if how == "seconds":
        with monkeypatch.context() as patch:
            patch.setattr(Runner, "left_s", lambda runner: -1.0 if half.exists() else 60.0)
            assert call(monkeypatch, path) == EXIT_PREEMPTED
    else:
        script = ROOT / "bench" / "evidence" / "run.py"
        running = Running([str(script), *arguments(path)], ENVIRONMENT, ROOT)
        while running.code is None and not half.exists():
            time.sleep(0.05)
        os.kill(running.pid, getattr(signal, how))
        assert running.wait(60)[0] == {"SIGTERM": 143, "SIGKILL": -9}[how]
    parts, done = (training.with_name(f"good-lr0.2-s0.done.{name}") for name in ("parts.json", "json"))
    while not parts.exists():
        time.sleep(0.05)
    assert half.exists() and (training / "stopped").exists() and not done.exists()
    parts.write_text(json.dumps({"seconds": 3000.0, "cpu_seconds": 2000.0}))  # which the end adds to
    assert call(monkeypatch, path) == 0
    spent = json.loads(done.read_text())
    assert spent["seconds"] >= 3000 and spent["cpu_seconds"] >= 2000


def test_a_failure_is_named_and_another_plan_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: Path
) -> None:
    arms = {"plain one": "--gain 1 --fail yes", "good": "--gain 2"}
    with pytest.raises(ValueError, match=r"plain_one-lr0\.1-s9 failed with exit code 1: it broke \(all in "):
        call(monkeypatch, plan_of(tmp_path, arms=arms))
    changed = plan_of(copied.parent, arms={"good": "--gain 3", "plain one": "--gain 1"})
    with pytest.raises(ValueError, match="is of another plan than .*: give another --out"):
        call(monkeypatch, changed)
    shutil.rmtree(copied.with_name("out"))
    with pytest.raises(ValueError, match="is of another command .*: give another --work"):
        call(monkeypatch, changed)


def ends(*pairs: list[str]) -> dict[str, Any]:
    return {"evaluation": "linear", "numbers": ["top1_B1"], "pairs": [*pairs]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": [9]}, "seed 9 chooses rates"),
        ({"unknown": 1}, "unknown or missing: unknown"),
        ({"endpoint": ends(["good", "bad"])}, "bad: no such"),
        ({"untrained": None, "endpoint": ends(["good", UNTRAINED])}, "no training: no such"),
    ],
)
def test_plans_that_cannot_be(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_plan(plan_of(tmp_path, **changes))


def test_scores_that_were_cut_or_are_of_other_data_are_refused(copied: Path) -> None:
    path, runs = copied.with_name("out") / "results.json", runs_of(copied)
    sound = results_of(copied)
    missing = {
        key: [one for one in sound[key] if (one["arm"], one["seed"]) != ("good", 1)]
        for key in ("scores", "training")
    }
    result = runs / "good-lr0.2-s1-linear" / "result.json"
    whole = json.loads(result.read_text())
    other_input = {"input": {"channels": "L", "mean": [0.5], "std": [0.25]}}
    for file, change, words in (
        (result, whole | {"cut": True}, "it was cut short"),
        (result, whole | {"data": {"train": "e", "val": "linear"}}, "several train sets"),
        (result, whole | {"checkpoint": other_input}, "random weights saw the input"),
        (runs / "good-lr0.2-s1" / "results.json", [{"num_steps": 4, "num_steps_planned": 5}], "cut short"),
    ):
        before = file.read_text()
        file.write_text(json.dumps(change))
        path.write_text(json.dumps(sound | missing))
        with pytest.raises(ValueError, match=words):
            Results.opened(path, copied).add(Run("good", 0.2, 1, counts=True), runs)
        file.write_text(before)


def test_one_arm_can_be_searched_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = {"rates": [0.1, 0.2], "seed": 9, "evaluation": "search", "numbers": ["top1_B1"]}
    path = plan_of(
        tmp_path, search=search | {"arm": "plain one"}, seeds=[0], beside={}, random="",
        endpoint=ends(["good", UNTRAINED]),
    )  # fmt: skip
    assert call(monkeypatch, path, "--jobs", "2") == 0
    results = results_of(path)
    assert results["rates"] == {"good": 0.2, "plain one": 0.2} and len(results["search"]) == 2


def test_a_differences_power_is_that_of_many_trials() -> None:
    """Of 20,000 trials, by scipy's t test."""
    draws = np.random.default_rng(0)
    for effect, seeds, comparisons in ((1.5, 5, 1), (2.0, 6, 6), (0.5, 8, 3)):
        p = stats.ttest_1samp(draws.normal(effect, 1, (20_000, seeds)), 0, axis=1).pvalue
        assert power(effect, seeds, comparisons) == pytest.approx((p < 0.05 / comparisons).mean(), abs=0.015)
    assert power(smallest_difference(3, 10), 3, 10) == pytest.approx(0.8)


def test_the_interval_is_students() -> None:
    values = [1.2, 3.4, 2.9, 0.7]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = difference(values)
    assert found["mean"] == 2.05 and found["interval"] == pytest.approx(list(expected), abs=1e-3)
    assert difference([2.0])["interval"] is None


def test_p_values_are_corrected_by_holm() -> None:
    differences = [[1.2, 3.4, 2.9], [0.1, -0.2, 0.3], [5.0, 5.1, 5.3], [1.0, 1.3, 2.0], [-0.1, 0.2, -0.3]]
    plain = [stats.ttest_1samp(values, 0).pvalue for values in differences]
    expected, largest = dict[int, float](), 0.0
    for rank, place in enumerate(sorted(range(5), key=plain.__getitem__)):
        largest = max(largest, (5 - rank) * plain[place])
        expected[place] = min(1.0, largest)
    assert holm(differences, 5) == pytest.approx([expected[place] for place in range(5)])
    assert holm([[10.0, 10.0], [18.5, 19.5]], 2)[0] == 0
    p = stats.ttest_1samp([2.0, 2.1, 2.3], 0).pvalue
    assert holm([[2.0, 2.1, 2.3]], 1) == pytest.approx([p]) and holm([], 3) == []
    assert holm([[2.0, 2.1, 2.3]], 3) == pytest.approx([3 * p])  # two others are still to come


def test_cifar10_is_read_as_published_and_as_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = random_images(60), np.arange(60) % 10
    files = cifar10(images, labels, [f"class {number}" for number in range(10)], True)
    archive, _ = publish(tmp_path, "cifar-10-python.tar.gz", "cifar-10-batches-py", files, monkeypatch)
    np.savez(tmp_path / "train.npz", images=images[:50], labels=labels[:50])
    for source in (archive, tmp_path):
        found, found_labels = _cifar10_arrays(source, "train")
        assert np.array_equal(found, images[:50]) and found_labels.tolist() == labels[:50].tolist()
    _cifar10(archive, tmp_path, 3)
    for name, of_class in ((TRAIN, [0, 1, 2]), (SEARCH, [3, 4])):  # by their place in a class
        with np.load(tmp_path / f"{name}.npz") as file:
            indices = [10 * place + number for place in of_class for number in range(10)]
            assert np.array_equal(file["images"], images[indices])


def test_the_clock_stands_still_while_the_monitor_looks_and_for_no_other_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "draw_probes", lambda lines, path: time.sleep(LOOK_S))
    run = tiny_run(tmp_path / "run", batch_size=96, probe_every=1, epochs=(1, 1, 1))
    task = RotationWithPasses(shorter_px=32, size_px=32)
    experiment = Experiment(task, TinyNet(), make_plan("psl", (1, 1, 1), levels=(1, 2, 2)), cosine(0.1))
    started = time.perf_counter()
    try:
        with clock_of_looks(run.world.device) as at_looks:
            assert pretrain(experiment, run)
    finally:
        run.close()
    seconds = [at["seconds"] for at in at_looks]
    passes = [later - earlier for earlier, later in zip([0.0, *seconds], seconds, strict=False)]
    assert len(passes) == 3 and min(passes) >= PASS_S
    assert seconds[2] < time.perf_counter() - started - 3 * LOOK_S
