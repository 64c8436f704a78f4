"""bench/step.py at its smallest, as people call it, and its ratios by arithmetic. No figure is judged."""

import json
import subprocess
from pathlib import Path

import pytest

from bench.schema import validate
from bench.step import Options
from bench.step_rows import CAPTURE, COST, FLOOR, GAIN, MEMORY, Key, Timed, ratios_of
from tests.programs import ROOT, run


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(ROOT / "bench" / "step.py", "--device", "cpu", *arguments)


@pytest.mark.slow
def test_a_run_writes_its_rows(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    small = (
        "--recipes",
        "rotation",
        "--stages",
        "S1",
        "S2",
        "--modes",
        "eager",
        "eager+fold",
        "fused",
        "--graph",
        "off",
        "on",
    )
    process = call(*small, "--repeats", "1", "--limit-s", "1000", "--out", str(out))
    assert process.returncode == 0, process.stderr
    result = json.loads(out.read_text())
    validate(result)
    # S1 has no frozen blocks to fold.
    rows = {(row["stage"], row["mode"]): row for row in result["rows"]}
    assert all(row["graph"] == "off" for row in result["rows"])
    assert rows.keys() == {("S1", "eager"), ("S2", "eager"), ("S2", "eager+fold")}
    assert all(row["backbone"] == "resnet18" and row["peak_mib"] is None for row in rows.values())
    # Multiply-adds are counted in eager steps only.
    assert (
        rows["S2", "eager"]["gmac_per_sample"] > 0.01 and rows["S2", "eager+fold"]["gmac_per_sample"] is None
    )
    assert rows["S1", "eager"]["samples_per_step"] == 8
    assert [(r["what"], r["stage"], r["mode"]) for r in result["ratios"]] == [(GAIN, "S2", "eager+fold")]
    assert [missing["what"] for missing in result["not_measured"]] == [
        f"rotation {stage} resnet18 {mode}, {launch}"
        for stage in ("S1", "S2")
        for mode, launch in (
            ("eager", "captured"),
            ("eager+fold", "captured"),
            ("fused", "launched"),
            ("fused", "captured"),
        )
        if (stage, mode) != ("S1", "eager+fold")
    ]
    assert (
        "CUDA graphs need CUDA" in process.stdout
        and "its kernels need CUDA" in process.stdout
        and str(out) in process.stdout.replace("\n", "")
    )


def test_an_error_of_the_user_is_one_line_and_exit_2(tmp_path: Path) -> None:
    process = call("--repeats", "0", "--out", str(tmp_path / "step.json"))
    assert process.returncode == 2
    assert process.stderr == "step: --repeats 0: it must be above 0\n" and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="--modes"):
        Options(modes=()).check()


def timed(samples: int, epochs: int, ms: list[float], macs: int, peak: int = 0) -> Timed:
    return Timed(None, samples, epochs, 1.0, ms, [], peak, macs)


def test_ratios_by_arithmetic() -> None:
    """The more rotations rotation's stage takes, the fewer images it has: costs are per sample."""
    eager = {
        "E": timed(2, 100, [10.0, 20.0], 400, 100), "S1": timed(8, 50, [16.0, 16.0], 800, 50),
        "S2": timed(4, 25, [12.0, 12.0], 600, 60), "S3": timed(2, 25, [8.0, 8.0], 300, 80),
    }  # fmt: skip
    measured = {Key("rotation", stage, "resnet50", "eager"): one for stage, one in eager.items()}
    folded = timed(4, 25, [8.0, 6.0], 0)
    folded.eager_ms = [12.0, 12.0]
    measured[Key("rotation", "S2", "resnet50", "eager+fold")] = folded
    measured[Key("rotation", "S2", "revnet50", "eager")] = timed(4, 25, [15.0, 15.0], 700, 30)
    captured = timed(4, 25, [6.0, 4.0], 0)
    captured.eager_ms, captured.launched_ms = [12.0, 12.0], [8.0, 6.0]
    measured[Key("rotation", "S2", "resnet50", "eager+fold", "on")] = captured
    all_ratios = ratios_of(measured)
    of_captured = {r["what"]: r["values"] for r in all_ratios if r["graph"] == "on"}
    assert of_captured == {GAIN: [2.0, 3.0], CAPTURE: [pytest.approx(8 / 6, rel=1e-5), 1.5]}
    ratios = {
        (r["what"], r["stage"], r["backbone"], r["mode"]): r["values"]
        for r in all_ratios
        if r["graph"] == "off"
    }
    # (50 * 2 + 25 * 3 + 25 * 4) / 100 = 2.75 ms per sample; folded, S2 has 25 * 2 and 25 * 1.5 instead.
    assert ratios[COST, None, "resnet50", "eager"] == pytest.approx([2.75 / 5, 2.75 / 10])
    assert ratios[COST, None, "resnet50", "eager+fold"] == pytest.approx([2.5 / 5, 2.375 / 10])
    assert ratios[FLOOR, None, "resnet50", "eager"] == pytest.approx(
        [(50 * 100 + 25 * 150 + 25 * 150) / 100 / 200] * 2
    )
    assert ratios[GAIN, "S2", "resnet50", "eager+fold"] == [1.5, 2.0]
    assert ratios[MEMORY, "S2", "revnet50", "eager"] == [0.5, 0.5]
    assert len(ratios) == 5
