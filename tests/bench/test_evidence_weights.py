"""Test which arms have weights, what their files and certificates hold, and how they load."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import fastpsl
from bench.evidence.plan import RANDOM, UNTRAINED
from bench.evidence.weights import beating, gains, halved, main, spread
from fastpsl.files.digest import sha256_of_file
from fastpsl.models.initial_weights import load_pretrained
from fastpsl.models.weights import sha256_of_tensors
from tests.bench.test_evidence import FAKE, arguments, call, plan_of, results_of, runs_of

BACKBONE = "bench/evidence/networks.py:SmallResNet"


def of_weights(monkeypatch: pytest.MonkeyPatch, plan: Path, *options: str) -> int:
    """Write or compare the weights in this process, and return the exit code."""
    monkeypatch.setattr(sys, "argv", ["weights", *arguments(plan, *options)])
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):  # which it sets
        monkeypatch.setenv(name, "1")
    return main()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run an experiment of three arms: above no training, above it by chance, and below it."""
    path = plan_of(
        tmp_path_factory.mktemp("weights"), seeds=[0, 1, 2, 3], beside={},
        training=f"{FAKE} train --backbone {BACKBONE} --lr {{rate}} --seed {{seed}} --out {{out}}",
        arms={"well trained": "--gain 2 --swing 0.1", "swinging": "--gain 0.6 --swing 5",
              "spoilt": "--gain 0.1 --swing 0.1"},
        search={"rates": [0.2], "seed": 9, "evaluation": "search", "numbers": ["top1_B1"]},
        endpoint={"evaluation": "linear", "numbers": ["top1_B1"], "pairs": [["swinging", "spoilt"]]},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert call(monkeypatch, path, "--jobs", "2") == 0
        assert of_weights(monkeypatch, path) == 0
    return path


@pytest.fixture
def copied(experiment: Path, tmp_path: Path) -> Path:
    """Return the path of the plan in a copy of the experiment with its weights."""
    return shutil.copytree(experiment.parent, tmp_path / "copy") / experiment.name


def weights_of(plan: Path) -> Path:
    return plan.with_name("out") / "well_trained-s0.safetensors"


def certificate_of(plan: Path) -> dict[str, Any]:
    certificate: dict[str, Any] = json.loads(weights_of(plan).with_suffix(".safetensors.json").read_text())
    return certificate


def test_gains_are_corrected_for_all_arms() -> None:
    """At the block that is best by far, by scipy's test of each arm and a plain loop over the ranks."""
    draws = np.random.default_rng(5)
    scores: list[dict[str, Any]] = [
        {"arm": arm, "seed": seed, "evaluation": evaluation,
         "numbers": {"top1_B1": float(draws.normal(mean)), "top1_B2": float(draws.normal(100 + mean))}}
        for arm, mean in (("one", 4), ("two", 0.3), ("three", -6), (UNTRAINED, 0), (RANDOM, 9))
        for seed in range(5) for evaluation in ("linear", "other")
    ]  # fmt: skip
    results = {"endpoint": {"evaluation": "linear", "numbers": ["top1_B1"]}, "scores": scores}
    of = {(s["arm"], s["seed"]): s["numbers"]["top1_B2"] for s in scores if s["evaluation"] == "linear"}
    tests = {
        arm: stats.ttest_1samp([of[arm, seed] - of[UNTRAINED, seed] for seed in range(5)], 0)
        for arm in ("one", "two", "three")
    }
    found, largest = {gain.arm: gain for gain in gains(results)}, 0.0
    assert found.keys() == tests.keys()
    for rank, (arm, test) in enumerate(sorted(tests.items(), key=lambda one: one[1].pvalue)):
        level, largest = 1 - 0.05 / (3 - rank), max(largest, (3 - rank) * test.pvalue)
        gain = found[arm]
        assert gain.level == pytest.approx(level, abs=1e-5)
        assert gain.interval == pytest.approx(list(test.confidence_interval(level)), abs=1e-3)
        assert gain.p == pytest.approx(min(1, largest))
        assert gain.is_above == (largest < 0.05 and gain.mean > 0)
    assert beating([*found.values()]) == ["one"] and found["three"].p < 0.05
    with pytest.raises(ValueError, match="two seeds or more of an arm and of no training"):
        gains(results | {"scores": [score for score in scores if score["seed"] == 0]})


def test_the_arms_that_beat_no_training_alone_are_written(experiment: Path) -> None:
    out, certificate = experiment.with_name("out"), certificate_of(experiment)
    assert {path.name for path in out.glob("*.safetensors*")} == {
        "well_trained-s0.safetensors", "well_trained-s0.safetensors.json",
    }  # fmt: skip
    run = runs_of(experiment) / "well_trained-lr0.2-s0"
    (checkpoint,) = run.glob("checkpoints/*.pt")
    assert certificate["sha256"] == sha256_of_file(weights_of(experiment))
    assert certificate["bytes"] == weights_of(experiment).stat().st_size
    assert certificate["checkpoint_sha256"] == sha256_of_file(checkpoint) and certificate["is_of_the_record"]
    state = torch.load(checkpoint, weights_only=True)["backbone"]
    assert certificate["tensors_sha256"] == sha256_of_tensors(state)
    assert (certificate["arm"], certificate["seed"], certificate["rate"]) == ("well trained", 0, 0.2)
    assert certificate["scores"]["linear"]["numbers"] == {"top1_B1": 20.1, "top1_B2": 21.1}
    assert certificate["scores"]["linear"]["data"]["train"] == certificate["training"]["data_digest"]
    assert certificate["training"]["command"] == results_of(experiment)["training"][0]["command"]
    assert certificate["scores_of_file"] == {"linear": {"top1_B1": 19.5, "top1_B2": 20.5}}
    assert str(experiment.parent) not in json.dumps(certificate)


def test_filters_are_halved_and_batchnorm_is_kept(experiment: Path) -> None:
    run = runs_of(experiment) / "well_trained-lr0.2-s0"
    before = load_pretrained(run, BACKBONE).backbone.state_dict()
    pretrained = load_pretrained(weights_of(experiment), BACKBONE)
    assert pretrained.record["science"]["seed"] == 0 and not pretrained.record["cut"]
    loaded = pretrained.backbone.state_dict()
    filters = [name for name, tensor in before.items() if tensor.ndim > 1]
    assert len(filters) == 13 and before.keys() == loaded.keys()
    for name, tensor in before.items():
        assert loaded[name].dtype == tensor.dtype  # float32
        assert torch.equal(loaded[name], tensor.half().float() if name in filters else tensor)
    assert not torch.equal(loaded[filters[0]], before[filters[0]])
    assert any("running_var" in name and not torch.equal(t, torch.ones_like(t)) for name, t in loaded.items())
    pretrained.backbone.state_dict()[filters[0]][0] = 1e5
    with pytest.raises(ValueError, match="no numbers of float16"):
        halved(pretrained)


def test_a_file_loads_by_path_if_its_python_is_named(experiment: Path) -> None:
    path = weights_of(experiment)
    with pytest.raises(ValueError, match=f"names {BACKBONE}, which would run; give "):
        fastpsl.load(path)
    images = torch.rand(4, 3, 24, 24)
    trained = fastpsl.load(runs_of(experiment) / "well_trained-lr0.2-s0", BACKBONE)
    expected, found = trained.features(images), fastpsl.load(path, BACKBONE).features(images)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01)


def test_what_is_there_is_compared(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained again because the runs are gone, the tensors are equal, though the checkpoint is another."""
    path, before = weights_of(copied), certificate_of(copied)
    written = path.read_bytes()
    shutil.rmtree(runs_of(copied))
    assert of_weights(monkeypatch, copied) == 0
    assert "well_trained-s0: bit-equal to the certificate's" in capsys.readouterr().out
    (checkpoint,) = runs_of(copied).glob("well_trained-lr0.2-s0/checkpoints/*.pt")
    assert sha256_of_file(checkpoint) != before["checkpoint_sha256"]
    assert not [*runs_of(copied).glob("swinging*")] and certificate_of(copied) == before

    other = before | {"tensors_sha256": "0" * 64, "environment": before["environment"] | {"threads": 7}}
    path.with_suffix(".safetensors.json").write_text(json.dumps(other))
    assert of_weights(monkeypatch, copied) == 0
    said = capsys.readouterr().out
    low, high = spread([20.1, 20.9, 22.1, 22.9])
    assert f"other threads; top1_B1 20.1 is within {low:.2f} to {high:.2f}" in said
    assert path.read_bytes() == written and certificate_of(copied) == other

    path.unlink()
    path.with_suffix(".safetensors.json").unlink()
    results = results_of(copied)
    for score in results["scores"]:
        if score["arm"] == "well trained":
            score["numbers"]["top1_B1"] += 50
    copied.with_name("out").joinpath("results.json").write_text(json.dumps(results))
    assert of_weights(monkeypatch, copied) == 1
    assert (
        "bits than the record's; top1_B1 20.1 is not within" in capsys.readouterr().out and not path.exists()
    )


def test_one_more_seed_lies_within_the_spread() -> None:
    """Of 20,000 times five seeds and one more, 95 %."""
    draws = np.random.default_rng(0).normal(3, 2, (20_000, 6))
    inside = [low <= values[5] <= high for values in draws for low, high in [spread(list(values[:5]))]]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.01)
