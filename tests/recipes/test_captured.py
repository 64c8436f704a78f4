"""Captured steps of every recipe on the CPU, where a replay is a plain call on the static batches.

Runs with captured steps, and those that resume a launched run in mid-stage, end as launched ones to the bit.
"""

from pathlib import Path

import pytest

from fastpsl.engine import experiment, step_modes
from fastpsl.engine.step_modes import GraphChoice
from tests.programs import digests, newest_checkpoint
from tests.recipes.in_process import starter
from tests.recipes.test_cuda import TRAINED
from tests.step_recorder import plain_capture

PX = ("--short-side", "60", "--cell-px", "18", "--tile-px", "16", "--counts", "4", "8", "16")
QUICK = ("moco",)
MORE: dict[str, tuple[str, ...]] = {
    "jigsaw": PX,
    "jigsaw by parts": PX,
    "moco": ("--backbone", "resnet18", "--queue-size", "64", "--key-group", "8"),
    "simclr": ("--backbone", "resnet18"),
    "sslpp_iic": ("--num-heads", "2", "--num-copies", "2"),
    "supervised": ("--probe-every", "0"),
}
STEPS, MIDDLE = 6, 4


def usual(name: str) -> tuple[str, ...]:
    """Return a row's options that hold on a CPU, too."""
    flags = TRAINED[name][1:]
    return () if {"--compile", "--decoder", "--precision"} & set(flags) else flags


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.nightly)
        for name in TRAINED
        if not {"--compile", "--graph"} & {*TRAINED[name]} and not name.startswith("voc")
    ],
)
def test_a_captured_run_is_a_launched_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = starter(TRAINED[name][0], monkeypatch, capsys)
    monkeypatch.setattr("fastpsl.plots.charts.draw_probes", lambda *_: None)

    def train(folder: str, *more: object) -> dict[str, str]:
        outcome = start(
            *usual(name), *MORE.get(name, ()), "--max-steps-per-stage", STEPS, "--checkpoint-steps", MIDDLE,
            "--keep-checkpoints", 99, "--no-tensorboard", "--workers", 1, "--batch-size", 16,
            "--out", tmp_path / folder, *more,
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        return digests(newest_checkpoint(tmp_path / folder))

    launched = train("launched")
    captures = list[int]()

    def capture(compute, *_):  # type: ignore[no-untyped-def]
        captures.append(1)
        return plain_capture(compute)

    monkeypatch.setattr(step_modes, "capture", capture)
    monkeypatch.setattr(step_modes, "NUM_LAUNCHED", 1)
    monkeypatch.setattr(experiment, "choose_graph", lambda *_: GraphChoice(True, "asked for"))
    assert train("captured") == launched
    middle = tmp_path / "launched" / "checkpoints" / f"step-{MIDDLE:08d}.pt"
    assert train("resumed", "--resume", middle) == launched
    assert captures
