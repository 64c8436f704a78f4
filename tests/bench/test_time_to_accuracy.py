"""Seconds to an accuracy: measuring it stops the clock, and a target counts from the first look that reaches
it.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from bench.schema import SCHEMA, command_line, environment, finish, validate
from bench.time_to_accuracy import (
    Options,
    Trained,
    clock_of_looks,
    draw_times,
    read_line,
    seconds_to,
    tabulate,
)  # fmt: skip
from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.schedules import cosine
from fastpsl.engine.plan import make_plan
from fastpsl.engine.trainer import pretrain
from fastpsl.plots import charts
from fastpsl.tasks.rotation import Rotation
from tests.engine.tiny import TinyNet, tiny_run

LOOK_S = 0.4
PASS_S = 0.3


class RotationWithPasses(Rotation):
    """A task that also passes over the data before each epoch, as methods of pseudo-labels do."""

    @override
    def start_epoch(self, context: EpochContext) -> None:
        with context.run.reporter.off_the_clock():
            time.sleep(PASS_S)


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
    whole_s = time.perf_counter() - started
    lines = (tmp_path / "run" / "probe.jsonl").read_text().splitlines()
    assert len(at_looks) == len(lines) == 3
    seconds = [at["seconds"] for at in at_looks]
    passes = [later - earlier for earlier, later in zip([0.0, *seconds], seconds, strict=False)]
    assert min(passes) >= PASS_S and seconds[2] < whole_s - 3 * LOOK_S
    looks = [read_line(line, "linear") for line in lines]
    assert [(look["stage"], look["epoch"]) for look in looks] == [("S1", 1), ("S2", 2), ("S3", 3)]
    assert all(
        look["accuracy"] == json.loads(line)["linear_accuracy"]
        for look, line in zip(looks, lines, strict=True)
    )


def trained(*pairs: tuple[float, float]) -> Trained:
    """Return a run with these pairs of seconds and accuracy, one per look."""
    looks: list[dict[str, Any]] = [
        {"stage": "S1", "epoch": epoch, "seconds": seconds, "accuracy": accuracy}
        for epoch, (seconds, accuracy) in enumerate(pairs, start=1)
    ]
    return Trained(looks, whole_s=pairs[-1][0] + 5, num_steps=7)


RUNS = [trained((2.0, 0.2), (4.0, 0.52), (6.0, 0.49)), trained((3.0, 0.31), (5.0, 0.45), (7.0, 0.58))]


def test_a_target_is_reached_at_the_first_look_that_shows_it() -> None:
    assert seconds_to(RUNS[0].looks, 0.5) == 4.0  # although the next one is below it
    assert seconds_to(RUNS[1].looks, 0.5) == 7.0
    assert seconds_to(RUNS[0].looks, 0.55) is None
    assert read_line('{"stage": "S1", "epoch": 1.0, "knn_accuracy": null}', "knn")["accuracy"] == 0


def result(options: Options) -> dict[str, Any]:
    machine = environment()
    settings = {"repeats": 2, "seeds": [0, 1], "plan": "psl", "target": options.accuracy}
    return {
        "schema": SCHEMA, "bench": "time_to_accuracy", "command": command_line(), "environment": machine,
        "data": {"num_samples": 7, "name": "small"}, "settings": settings, "notes": finish(machine),
        **tabulate(RUNS, options),
    }  # fmt: skip


def test_rows_and_their_figure(tmp_path: Path) -> None:
    record = result(Options(accuracy=0.5))
    validate(record)
    rows = {(row["measured"], row["accuracy"]): row for row in record["rows"]}
    target = rows["seconds to accuracy", 0.5]
    assert (target["median"], target["num_reached"], target["unit"]) == (5.5, 2, "s")
    assert rows["seconds to accuracy", 0.55]["num_reached"] == 1 and ("seconds to accuracy", 0.6) not in rows
    curve = [row for row in record["rows"] if row["measured"] == "accuracy"]
    assert [row["epoch"] for row in curve] == [1, 2, 3] and curve[1]["seconds"] == [4.0, 5.0]
    assert not record["not_measured"]
    assert draw_times(record, tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_not_reached_is_named() -> None:
    missing = result(Options(accuracy=0.57))["not_measured"]
    assert missing == [
        {"what": "knn accuracy 0.57: 1 of 2 seeds", "reason": "not reached; the best of all looks is 0.580"}
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(accuracy=1.0), "--accuracy 1"),
        (Options(seeds=()), "--seeds"),
        (Options(data="a.beton"), "--val"),
    ],
)
def test_values_that_cannot_be_are_refused(options: Options, says: str) -> None:
    Options().check()
    with pytest.raises(ValueError, match=says):
        options.check()
