"""The ratios of bench/ by arithmetic, and what is chosen to be measured."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from bench import interleaved, loaders, training
from bench.interleaved import Rates
from bench.peers import PACKED, Work
from bench.scaling import Options as ScalingOptions
from bench.scaling import efficiencies, numbers_of_ranks
from bench.schema import spread
from bench.sizes import Options, begun, ratios_of, rows_of, save
from bench.step import CAPTURE, COST, FLOOR, GAIN, MEMORY, Key, Timed
from bench.step import ratios_of as step_ratios
from bench.tables import CPU, RATE, best_table, packed_table, size_tables
from bench.time_to_accuracy import Options as TimesOptions
from bench.time_to_accuracy import Trained, look_of, seconds_to, tabulate

DEVICE = torch.device("cpu")


def rates(kind: str, values: tuple[float, ...], cores: tuple[float, ...] = (1.0, 1.0), **how: Any) -> Rates:
    work = Work(kind, "", "", 8, 2, **{"size_px": 64, "device": "cpu", **how})
    return Rates(kind, work, 1, 1.0, [*values], [*cores], [37.0] * len(values))


def timed(samples: int, epochs: int, ms: list[float], macs: int, peak: int = 0) -> Timed:
    return Timed(None, samples, epochs, 1.0, ms, [], peak, macs)


def test_costs_of_steps_are_per_sample_and_weighted_by_epochs() -> None:
    eager = {
        "E": timed(2, 100, [10.0, 20.0], 400, 100), "S1": timed(8, 50, [16.0, 16.0], 800, 50),
        "S2": timed(4, 25, [12.0, 12.0], 600, 60), "S3": timed(2, 25, [8.0, 8.0], 300, 80),
    }  # fmt: skip
    measured = {Key("rotation", stage, "resnet50", "eager"): one for stage, one in eager.items()}
    folded, captured = timed(4, 25, [8.0, 6.0], 0), timed(4, 25, [6.0, 4.0], 0)
    folded.eager_ms = captured.eager_ms = [12.0, 12.0]
    captured.launched_ms = [8.0, 6.0]
    measured[Key("rotation", "S2", "resnet50", "eager+fold")] = folded
    measured[Key("rotation", "S2", "revnet50", "eager")] = timed(4, 25, [15.0, 15.0], 700, 30)
    measured[Key("rotation", "S2", "resnet50", "eager+fold", "on")] = captured
    ratios = {(r["what"], r["stage"], r["mode"], r["graph"]): r["values"] for r in step_ratios(measured)}
    # (50 * 2 + 25 * 3 + 25 * 4) / 100 = 2.75 ms per sample; folded, S2 has 25 * 2 and 25 * 1.5 instead.
    assert ratios == {
        (COST, None, "eager", "off"): pytest.approx([2.75 / 5, 2.75 / 10]),
        (COST, None, "eager+fold", "off"): pytest.approx([2.5 / 5, 2.375 / 10]),
        (FLOOR, None, "eager", "off"): pytest.approx([(50 * 100 + 25 * 150 + 25 * 150) / 100 / 200] * 2),
        (GAIN, "S2", "eager+fold", "off"): [1.5, 2.0],
        (GAIN, "S2", "eager+fold", "on"): [2.0, 3.0],
        (CAPTURE, "S2", "eager+fold", "on"): pytest.approx([8 / 6, 1.5], rel=1e-5),
        (MEMORY, "S2", "eager", "off"): [0.5, 0.5],
    }


def test_sizes_are_over_each_peers_better_form_and_tables_over_the_best_peer() -> None:
    measured = [
        rates("ffcv", (1000.0, 1200.0), (1.0, 1.2)), rates("pillow", (9000.0, 9000.0)),
        rates("spdl_cv2", (500.0, 600.0), (2.0, 2.4)), rates("spdl_ffmpeg", (400.0, 400.0), (0.8, 0.8)),
        rates("webdataset", (800.0, 800.0), (4.0, 4.0)),
    ]  # fmt: skip
    ratios = ratios_of(measured, "64", "ffcv")
    assert {(ratio["what"], ratio["peer"]): (ratio["form"], ratio["values"]) for ratio in ratios} == {
        (RATE, "SPDL"): ("spdl_cv2", [2.0, 2.0]),
        (CPU, "SPDL"): ("spdl_ffmpeg", [2.0, 2.0]),
        (RATE, "WebDataset"): ("webdataset", [1.25, 1.5]),
        (CPU, "WebDataset"): ("webdataset", [5.0, 5.0]),
    }
    settings = {"batch_size": 8, "num_threads": 2, "repeats": 2}
    machine = {"gpu": None, "cpu": "a CPU", "num_cores": 2}
    result = {"bench": "sizes", "environment": machine, "settings": settings, "ratios": ratios}
    results = {"a.json": result | {"rows": rows_of(measured, "64")}}
    assert "| 64 | 1.38x WebDataset | 2.00x SPDL |" in best_table(results)
    assert "| 1 | ours, `ffcv` | 1,100, 1 ms |" in size_tables(results)
    assert best_table(results, "float32") == best_table({}) == ""


def test_packed_coefficients_are_over_our_jpegs_and_over_the_best_peer() -> None:
    measured = [
        rates("turbo", (1000.0, 1000.0), (1.0, 1.0)), rates(PACKED, (3000.0, 2000.0), (1.0, 1.0)),
        rates("spdl_cv2", (500.0, 500.0), (2.0, 2.0)), rates("webdataset", (400.0, 400.0), (2.0, 2.0)),
    ]  # fmt: skip
    ratios = ratios_of(measured, "64", "turbo")
    assert {(one["what"], one["peer"]): one["values"] for one in ratios if one["decoder"] == PACKED} == {
        (RATE, "turbo"): [3.0, 2.0], (CPU, "turbo"): [3.0, 2.0], (RATE, "SPDL"): [6.0, 4.0],
        (CPU, "SPDL"): [12.0, 8.0], (RATE, "WebDataset"): [7.5, 5.0], (CPU, "WebDataset"): [15.0, 10.0],
    }  # fmt: skip
    machine = {"gpu": None, "cpu": "a CPU", "num_cores": 2}
    result: dict[str, Any] = {"bench": "sizes", "environment": machine}
    result["settings"] = {"batch_size": 8, "num_threads": 2}
    result |= {"ratios": ratios, "rows": rows_of(measured, "64"), "data": {"packed_64": 1.2}}
    # The best other loader of ours with JPEGs is not one of packed coefficients.
    assert "| 64 | 2.00x SPDL | 4.00x SPDL |" in best_table({"a.json": result})
    # A JPEG takes 1 ms of the CPU, its coefficients 0.42: the median of a third and a half.
    assert "| 64 | 1.20 | 2.50x | 5.00x SPDL | 583 | - |" in packed_table({"a.json": result})
    assert packed_table({}).startswith("Not measured yet")


def test_an_interrupted_run_of_sizes_goes_on_with_the_same_settings_only(tmp_path: Any) -> None:
    options = Options(resume=True, out=tmp_path / "a.json", sizes=("64",))
    result = begun(options, DEVICE)
    measured = [rates("turbo", (1.0,) * 5, (1.0,) * 5)]
    result["rows"] = rows_of(measured, "160") + rows_of(measured, "64")
    save(options, result)
    assert begun(options, DEVICE)["rows"] == result["rows"][2:] + result["rows"][:2]
    with pytest.raises(ValueError, match="--resume: .* has repeats 5, and this run 2"):
        begun(Options(resume=True, out=options.out, repeats=2), DEVICE)


def test_ratios_of_loaders_and_trainings_are_taken_repeat_by_repeat() -> None:
    rows, (ratio,) = loaders.tabulate([rates("dali", (10.0, 12.0)), rates("dali_whole", (5.0, 4.0))])
    assert [row["median"] for row in rows] == [11.0, 4.5] and ratio["values"] == [2.0, 3.0]
    _, (ratio,) = training.tabulate([
        rates("training", (30.0, 40.0), recipe="simclr", stage="E"),
        rates("training", (90.0, 90.0), recipe="supervised", stage="E"),
        rates("lightly", (10.0, 8.0)),
    ])  # fmt: skip
    assert (ratio["recipe"], ratio["peer"], ratio["values"]) == ("simclr", "lightly", [3.0, 5.0])
    _, ratios = training.tabulate([
        rates("training", (30.0, 40.0), recipe="simclr", stage="E", precision="fp32"),
        rates("training", (60.0, 80.0), recipe="simclr", stage="E", precision="bf16"),
        rates("lightly", (20.0, 16.0), precision="bf16"), rates("lightly", (10.0, 8.0), precision="fp32"),
    ])  # fmt: skip
    assert [(each["precision"], each["values"]) for each in ratios] == [
        ("fp32", [1.5, 2.5]),
        ("bf16", [3.0, 5.0]),
    ]
    # 60, 70 and 70 epochs; of a peer's forms the faster counts
    rows, ratios = training.tabulate([
        *(
            rates("training", values, recipe="simclr", stage=stage)
            for stage, values in (("S1", (60.0, 30.0)), ("S2", (35.0, 70.0)), ("S3", (70.0, 14.0)))
        ),
        rates("lightly", (10.0, 10.0), form="channels_last"),
        rates("lightly", (20.0, 10.0), form="contiguous"),
    ])  # fmt: skip
    (whole,) = (row for row in rows if row["stage"] == "PSL")
    assert whole["values"] == [200 / (1 + 2 + 1), 200 / (2 + 1 + 5)]
    assert [each["values"] for each in ratios if each["stage"] == "PSL"] == [[2.5, 2.5]]
    assert [row.get("form") for row in rows] == [None, None, None, "channels_last", "contiguous", None]


def test_a_ranks_rate_is_compared_with_that_of_the_fewest(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = ("step", 2, 200.0), ("both", 2, 190.0), ("step", 8, 720.0), ("both", 8, 798.0)
    labels = {"recipe": "jigsaw", "stage": "S1"}
    rows = [{"measured": what, **labels, "num_ranks": num, **spread([rate])} for what, num, rate in rates]
    assert [ratio["median"] for ratio in efficiencies(rows)] == pytest.approx([0.9, 1.05])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    assert numbers_of_ranks(ScalingOptions()) == [1, 2, 4, 6]


def test_loaders_take_turns_are_watched_and_those_that_fail_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float | None] = []

    class Process:
        first_batch_s = 2.0

        def __init__(self, work: Work, num_views: int) -> None:
            if work.kind != "dali":
                raise RuntimeError("no DALI")
            self.work = work

        def measure(self, num_views: int, seconds: float) -> tuple[float, float, float]:
            asked.append(self.work.hw_decoder_load)
            return 100.0, 2.0, 0.0

        def close(self) -> None:
            pass

    monkeypatch.setattr(interleaved, "Process", Process)
    works = {
        name: rates(kind, (), hw_decoder_load=share).work
        for name, kind, share in (("a", "dali", 0.65), ("b", "x", 0.9), ("c", "dali", 0.9))
    }
    found, missing, _ = interleaved.measure(
        works, (1,), repeats=2, seconds=1.0, deadline=float("inf"), log=print, warms_up=False,
        watch=lambda: nullcontext([10, 80]),
    )  # fmt: skip
    assert asked == [0.9, 0.65, 0.65, 0.9] and [each.highest for each in found] == [[80, 80]] * 2
    assert [each["reason"] for each in missing] == ["failed: no DALI"]
    assert [row["busy_percent"] for row in loaders.tabulate(found)[0]] == [80, 80]


def trained(*pairs: tuple[float, float]) -> Trained:
    """Return a run with these pairs of seconds and accuracy, one per look."""
    looks = [
        {"stage": "S1", "epoch": epoch, "seconds": seconds, "accuracy": accuracy}
        for epoch, (seconds, accuracy) in enumerate(pairs, start=1)
    ]
    return Trained(looks, whole_s=pairs[-1][0] + 5, num_steps=7)


def test_an_accuracy_is_reached_at_the_first_look_that_shows_it() -> None:
    runs = [trained((2.0, 0.2), (4.0, 0.52), (6.0, 0.49)), trained((3.0, 0.31), (5.0, 0.45), (7.0, 0.58))]
    assert [seconds_to(runs[0].looks, accuracy) for accuracy in (0.5, 0.55)] == [4.0, None]
    assert look_of({"stage": "S1", "epoch": 1.0, "knn_accuracy": None})["accuracy"] == 0
    rows = {
        (row["measured"], row["accuracy"]): row for row in tabulate(runs, TimesOptions(accuracy=0.5))["rows"]
    }
    target = rows["seconds to accuracy", 0.5]
    assert (target["median"], target["num_reached"]) == (5.5, 2)
    assert rows["seconds to accuracy", 0.55]["num_reached"] == 1 and ("seconds to accuracy", 0.6) not in rows
    (missing,) = tabulate(runs, TimesOptions(accuracy=0.57))["not_measured"]
    assert missing["what"] == "knn accuracy 0.57: 1 of 2 seeds"
