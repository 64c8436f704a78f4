"""Test the experiments' plans, their running in pieces and their statistics, with made-up trainings."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typing_extensions import override

from bench.evidence import times
from bench.evidence.data import SEARCH, TRAIN, _cifar10, _cifar10_arrays
from bench.evidence.page import _COLOURS as COLOURS
from bench.evidence.page import part
from bench.evidence.plan import RANDOM, UNTRAINED, Run, Step, read_plan
from bench.evidence.results import Done, chosen_rates, collect, difference, holm
from bench.evidence.run import main
from bench.evidence.times import accuracy_at, compare
from bench.recipe_stages import recipe_of
from bench.time_to_accuracy import clock_of_looks
from fastpsl.console.terminal import EXIT_PREEMPTED
from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.schedules import cosine
from fastpsl.engine.plan import make_plan
from fastpsl.engine.trainer import pretrain
from fastpsl.models.foreign_weights import sha256_of_file
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.pipelines.views import Input
from fastpsl.plots import charts
from fastpsl.scripts.recipe import require_paths
from fastpsl.scripts.recipe_files import find_recipe
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
    (folder / "data").mkdir(exist_ok=True)
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
    return [str(plan), "--data", str(plan.with_name("data")), "--runs", str(plan.with_name("runs")), *options]


def call(monkeypatch: pytest.MonkeyPatch, plan: Path, *options: str) -> int:
    """Run a plan in this process, and return the exit code."""
    monkeypatch.setattr(sys, "argv", ["run", *arguments(plan, *options)])
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
    values = {"data": "missing", "runs": "runs", "out": "out", "seed": "0", "rate": "0.1"}
    texts = [f"{plan.training} {flags}" for flags in (*plan.arms.values(), plan.untrained)]
    texts += [one.command for one in plan.beside.values() if one.command.startswith("recipes/")]
    texts += [text for text in plan.first.values() if text.startswith("recipes/")]
    texts += list(plan.evaluations.values())
    all_weights = (plan.random, f"missing{plan.own_backbone}")
    for command in {text.format(**values, weights=weights) for text in texts for weights in all_weights}:
        script, *words = command.split()
        with pytest.raises(ValueError, match="missing"):
            require_paths(find_recipe(Path(script).stem).parse(words, log=lambda line: None))
    assert plan.own_backbone in plan.random and bool(plan.own_backbone) == (".py:" in plan.random)
    assert len(plan.arms) <= len(COLOURS)  # arms of one colour could not be told apart
    blocks = {number.rpartition("_")[2] for number in plan.endpoint.numbers}
    evaluation = plan.endpoint.evaluation
    assert "linear" in evaluation or all(block in plan.evaluations[evaluation] for block in blocks)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_random_weights_see_the_input_of_the_trainings(path: Path) -> None:
    plan = read_plan(path)
    template = next(text for text in plan.evaluations.values() if text.startswith("recipes/knn.py"))
    _, *words = Step("out", template.replace("{weights}", plan.random), {"seed": "0"}).words("data", "runs")
    expected = (find_recipe("knn").parse(words, log=print).given_input() or Input()).as_dict()
    script, *words = plan.training_of(Run(UNTRAINED, 0.1, 0, counts=True)).words("data", "runs")
    recipe = recipe_of(Path(script).stem)
    seen = recipe.build(recipe.parse(words, log=print)).task.input_record(1)
    assert all(seen[key] == expected[key] for key in ("channels", "mean", "std")), (seen, expected)


def test_an_experiment_runs_and_says_what_its_numbers_are_of(
    experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = experiment.with_name("runs")
    results = json.loads((runs / "results.json").read_text())
    assert results["rates"] == {"good": 0.2, "plain one": 0.2} and results["plan_commit"] is None
    assert len(results["search"]) == 6 and {score["seed"] for score in results["search"]} == {9}
    arms = [(score["arm"], score["seed"]) for score in results["scores"]]
    assert arms == [(arm, seed) for seed in (0, 1) for arm in ("good", "plain one", UNTRAINED, RANDOM)]
    first = results["scores"][0]
    assert first["numbers"] == {"top1_B1": 20.0, "top1_B2": 21.0} and first["data"]["val"] == "linear"
    assert first["command"].endswith("linear RUNS/good-lr0.2-s0 --seed 0 --out RUNS/good-lr0.2-s0-linear")
    assert str(experiment.with_name("data")) not in json.dumps(results) and len(results["training"]) == 6
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
    assert results["curves"]["good"]["change"]["values"] == [10.0, 10.0]
    assert (runs / "figure.png").stat().st_size > 10_000
    before = {done: done.stat().st_mtime_ns for done in runs.glob("*.done.json")}
    assert call(monkeypatch, experiment) == 0
    assert before == {done: done.stat().st_mtime_ns for done in runs.glob("*.done.json")}


@pytest.mark.parametrize("how", ["minutes", "SIGTERM"])
def test_what_is_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The time is over while the first training waits, or a signal comes; the training hears SIGTERM."""
    search = {"rates": [0.2], "seed": 9, "evaluation": "search", "numbers": ["a"]}
    arms = {"good": "--gain 2 --wait yes", "plain one": "--gain 1"}
    path = plan_of(tmp_path, arms=arms, search=search, seeds=[0], beside={})
    half = tmp_path / "runs" / "good-lr0.2-s0" / "half"
    if how == "minutes":
        assert call(monkeypatch, path, "--minutes", "0.02") == EXIT_PREEMPTED
    else:
        script = ROOT / "bench" / "evidence" / "run.py"
        running = Running([str(script), *arguments(path)], ENVIRONMENT, ROOT)
        while running.code is None and not half.exists():
            time.sleep(0.05)
        os.kill(running.pid, signal.SIGTERM)
        assert running.wait(60)[0] == 143
    assert half.exists() and not half.parent.with_name("good-lr0.2-s0.done.json").exists()
    assert call(monkeypatch, path) == 0
    assert half.parent.with_name("good-lr0.2-s0.done.json").exists()


def test_a_failure_is_named_and_changed_commands_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: Path
) -> None:
    arms = {"plain one": "--gain 1 --fail yes", "good": "--gain 2"}
    with pytest.raises(ValueError, match=r"plain_one-lr0\.1-s9 failed with exit code 1: it broke \(all in "):
        call(monkeypatch, plan_of(tmp_path, arms=arms))
    changed = plan_of(copied.parent, arms={"good": "--gain 3", "plain one": "--gain 1"})
    with pytest.raises(ValueError, match="is of another command .*: give another --runs"):
        call(monkeypatch, changed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": [9]}, "seed 9 chooses rates, so it cannot count"),
        ({"unknown": 1}, "keys that are unknown or missing: unknown"),
        (
            {"endpoint": {"evaluation": "linear", "numbers": ["a"], "pairs": [["good", "bad"]]}},
            "bad: no such",
        ),
        ({"search": {"rates": [1]}}, "keys that are unknown or missing: evaluation, numbers, seed"),
    ],
)
def test_plans_that_cannot_be(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_plan(plan_of(tmp_path, **changes))


def test_scores_that_were_cut_or_are_of_other_data_are_refused(tmp_path: Path, copied: Path) -> None:
    path, plan, runs = copied, read_plan(copied), copied.with_name("runs")
    done = Done(runs)
    assert chosen_rates(plan, done) == {"good": 0.2, "plain one": 0.2}
    one_rate = {"rates": [0.3], "seed": 9, "evaluation": "search", "numbers": ["a"]}
    assert set(chosen_rates(read_plan(plan_of(tmp_path, search=one_rate)), Done(tmp_path)).values()) == {0.3}
    result = runs / "good-lr0.2-s1-linear" / "result.json"
    sound = result.read_text()
    for change, words in (
        ({"cut": True}, "it was cut short"),
        ({"data": {"train": "e", "val": "linear"}}, "several train sets"),
        (
            {"checkpoint": {"input": {"channels": "L", "mean": [0.5], "std": [0.25]}}},
            "random weights saw the input .*'RGB'.*, good .*'L'.*: give the plan's random the --input-",
        ),
    ):
        result.write_text(json.dumps(json.loads(sound) | change))
        with pytest.raises(ValueError, match=words):
            collect(path, plan, done)
    result.write_text(sound)
    stages = runs / "good-lr0.2-s1" / "results.json"
    stages.write_text(json.dumps([{"num_steps": 4, "num_steps_planned": 5}]))
    with pytest.raises(ValueError, match="it was cut short"):
        collect(path, plan, done)


def test_an_experiment_in_words(experiment: Path) -> None:
    done = Done(experiment.with_name("runs"))
    result = collect(experiment, read_plan(experiment), done) | {"plan_commit": "e" * 40}
    lines = part("name", result).splitlines()
    assert "| arm | rate | B1 | B2 |" in lines and "| good | 0.2 | 20.5 ± 0.7 (2) | 21.5 ± 0.7 (2) |" in lines


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
    assert holm(differences) == pytest.approx([expected[place] for place in range(5)])
    assert holm([[10.0, 10.0], [18.5, 19.5]])[0] == 0
    assert holm([[2.0, 2.1, 2.3]]) == pytest.approx([stats.ttest_1samp([2.0, 2.1, 2.3], 0).pvalue])


def test_arms_are_compared_when_the_first_of_them_is_done() -> None:
    def record(arm: str, seed: int, *looks: tuple[float, float], first_stage: float = 0.0) -> dict[str, Any]:
        found = [
            {"seconds": s, "cpu_seconds": 2 * s, "accuracy": accuracy, "stage": 1 + (s > first_stage)}
            for s, accuracy in looks
        ]
        return {"arm": arm, "seed": seed, "looks": found}

    records = [
        record("fast", 0, (1.0, 0.9), (2.0, 0.2), (4.0, 0.5), first_stage=1.5),  # 90 % of another block
        record("slow", 0, (3.0, 0.3), (6.0, 0.7)),
        record("slow", 1, (5.0, 0.45), (7.0, 0.4)),
        record("fast", 1, (2.0, 0.3), (4.0, 0.35)),
    ]
    found = compare(records, ("fast", "slow"), 0.4)
    assert found["seeds"] == [0, 1] and found["equal_s"] == [4.0, 4.0]
    fast, slow = found["rows"]
    assert fast["seconds_to"] == [4.0, None] and slow["seconds_to"] == [6.0, 5.0]
    assert fast["at_equal_time"] == [50.0, 35.0] and slow["at_equal_time"] == [30.0, 0.0]
    assert slow["at_the_end"] == [70.0, 40.0] and slow["cpu_seconds"] == [12.0, 14.0]
    assert found["differences"] == [{"pair": ["fast", "slow"], **difference([20.0, 35.0])}]
    looks = records[0]["looks"]
    assert [accuracy_at(looks, seconds) for seconds in (0.9, 2.0, 3.9, 4.0, 9.0)] == [0, 0.2, 0.2, 0.5, 0.5]


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


def publish_results(folder: Path, plan: Path, rates: Mapping[str, float], data_digest: str) -> None:
    record = {
        "plan_sha256": sha256_of_file(plan), "rates": rates,
        "training": [{"data_digest": data_digest}] * 2,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(record))


def with_sample(folder: Path) -> str:
    """Make the sample the data of an experiment, and return its digest."""
    for name, sample in (("train", sample_paths().train_32), ("search", sample_paths().test_32)):
        (folder / f"{name}.beton").symlink_to(sample)
    return open_data(sample_paths().train_32).digest()


def run_times(monkeypatch: pytest.MonkeyPatch, plan: Path, *options: str) -> int:
    flags = (*arguments(plan), "--accuracy", "0.2", *options)
    monkeypatch.setattr(sys, "argv", ["times", *flags])
    return times.main()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--arms", "good", "plain one"), "no rate is chosen yet for plain one"),
        (("--arms", "good", "bad"), "--arms bad: the plan has good, plain one"),
        (("--arms", "good"), "--arms: give two or more"),
        (("--arms", "good", "plain one", "--accuracy", "20"), "--accuracy 20"),
        (("--arms", "good", "plain one", "--every", "0"), "--every 0"),
    ],
)
def test_times_that_cannot_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    plan = plan_of(tmp_path)
    publish_results(tmp_path / "runs", plan, {"good": 0.1}, with_sample(tmp_path / "data"))
    with pytest.raises(ValueError, match=says):
        run_times(monkeypatch, plan, *words)


def test_published_results_are_of_this_plan_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, arms = plan_of(tmp_path), ("--arms", "good", "plain one")
    with pytest.raises(ValueError, match="results.json: there is no such file"):
        run_times(monkeypatch, plan, *arms)
    with_sample(tmp_path / "data")
    publish_results(tmp_path / "runs", plan, {"good": 0.1, "plain one": 0.3}, "of another")
    with pytest.raises(ValueError, match="those of results.json of another"):
        run_times(monkeypatch, plan, *arms)
    plan.write_text(plan.read_text() + " ")
    with pytest.raises(ValueError, match="is of another plan than"):
        run_times(monkeypatch, plan, *arms)


@pytest.mark.slow
def test_arms_train_once_each_with_looks_off_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = (
        "recipes/sslpp_rotation.py --backbone bench/evidence/networks.py:SmallNIN --data {data}/train.beton "
        "--val {data}/search.beton --size-px 8 --batch-size 120 --epochs 2 --intervals 1 1 --lr {rate} "
        "--seed {seed} --out {out}"
    )
    search = {"rates": [0.03], "seed": 9, "evaluation": "search", "numbers": ["a"]}
    arms = {"plain one": "", "decayed": "--weight-decay 0.01"}
    endpoint = {"evaluation": "linear", "numbers": ["a"], "pairs": []}
    path = plan_of(tmp_path, training=training, search=search, arms=arms, endpoint=endpoint)
    digest = with_sample(tmp_path / "data")
    monkeypatch.chdir(ROOT)
    for folder in ("runs", "new"):
        publish_results(tmp_path / folder, path, dict.fromkeys(arms, 0.03), digest)
    flags = [*arguments(path), "--arms", *arms, "--accuracy", "0.05"]
    monkeypatch.setattr(sys, "argv", ["times", *flags])
    assert times.main() == 0
    result = json.loads((tmp_path / "runs" / "times.json").read_text())
    assert {row["arm"]: len(row["seconds_to"]) for row in result["rows"]} == dict.fromkeys(arms, 2)
    assert result["data"]["train"] == digest
    assert [(r["arm"], r["seed"]) for r in result["training"]] == [
        ("plain one", 0), ("decayed", 0), ("decayed", 1), ("plain one", 1),  # in turn
    ]  # fmt: skip
    for record in result["training"]:
        first, last = record["looks"]
        assert (first["epoch"], last["epoch"]) == (1, 2) and record["num_steps"] == 8
        assert 0 < first["seconds"] < last["seconds"] and 0 < first["cpu_seconds"] < last["cpu_seconds"]
        assert str(tmp_path / "data") not in record["command"] and "--lr 0.03" in record["command"]
    assert "plain one: 5 % after " in capsys.readouterr().out
    monkeypatch.setattr(times, "timed", None)  # all is done
    monkeypatch.setattr(sys, "argv", ["times", *flags, "--out", str(tmp_path / "new")])
    assert times.main() == 0
    again = json.loads((tmp_path / "new" / "times.json").read_text())
    assert again["rows"] == result["rows"]
    monkeypatch.setattr(sys, "argv", ["times", *flags, "--every", "2"])
    with pytest.raises(ValueError, match="is of another command"):
        times.main()


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
