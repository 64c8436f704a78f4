"""Bottleneck, changes and choice of a decoder from constructed measurements, calculated by hand."""

import time
from dataclasses import replace
from typing import Any

import pytest

from fastpsl.doctor.measurements import (
    Alternative,
    AutoDecoder,
    Bottleneck,
    DecoderCost,
    Measurements,
    ReadRate,
    bottleneck,
    by_measurement,
    changes,
    in_words,
    is_good,
)
from fastpsl.doctor.report import Check, Limit, Report
from tests.doctor.measured import GB, measured, no_limit, report_of, screen_of, stage, waiting


def limit_of(of: Measurements) -> Bottleneck:
    limit = bottleneck(of)
    assert limit is not None
    return limit


def options(of: Measurements) -> list[tuple[str, float | None]]:
    return [(change.option, change.factor and round(change.factor, 4)) for change in changes(of)]


def test_nothing_waits() -> None:
    fast = measured(stage(), stage("S2", step_rates={"off": 500.0}, both=480.0))
    assert is_good(fast) and not changes(fast)
    limit = limit_of(fast)
    assert (limit.part, limit.stage) == ("step", "S2") and "no stage waits" in limit.text
    assert not is_good(measured(stage(both=949.9))) and is_good(measured(stage(both=950.0)))


def test_a_faster_decoder() -> None:
    slow = measured(waiting(), alternatives=(Alternative("--decoder dali", 750.0, 500.0),))
    limit = limit_of(slow)
    assert (limit.part, limit.stage) == ("decode", "S1")
    assert limit.text == "S1 waits 50% of the time for decoding (500 images/s by ffcv)"
    assert options(slow) == [("--decoder dali", 1.5)]
    assert changes(slow)[0].text == "decodes 1.5x as fast here"
    # A decoder that is slower or hardly faster is not recommended.
    for rate in (200.0, 520.0):
        assert not options(replace(slow, alternatives=(Alternative("--decoder dali", rate, 500.0),)))


def test_on_the_cpu_loader_and_step_share_the_cores() -> None:
    """An image takes 1/100 + 1/400 s of all cores: 80/s."""
    cpu = measured(
        stage(decode=400.0, loader=400.0, step_rates={"off": 100.0}, both=80.0), is_cuda=False, copy=None,
        num_cores=2, num_threads=2, alternatives=(Alternative("--decoder ffcv", 1600.0, 400.0),),
    )  # fmt: skip
    limit = limit_of(cpu)
    assert limit.part == "decode" and "2 cores on which the step runs" in limit.text
    assert options(cpu) == [("--decoder ffcv", 4.0)]
    # Both together explain 20 of 50 lost images in 100.
    assert limit_of(replace(cpu, stages=(replace(cpu.stages[0], both=50.0),))).part == "overlap"


def test_storage_and_a_page_cache_that_is_too_small() -> None:
    """The loader has 4,000/s from memory and 250/s from storage."""
    read = ReadRate(260, 50_000, 800 * GB, 100 * GB, 0.1)
    untried = {"--order quasi_random": "7 pages of data", "--decoder dali": "it is not there"}
    stored = measured(stage(loader=250.0, both=250.0), read=read, untried=untried)
    limit = limit_of(stored)
    assert limit.part == "read" and "250 images/s" in limit.text
    smaller = "fastpsl data write SRC OUT --short-side PX"
    assert options(stored) == [("--order quasi_random", None), (smaller, None)]
    assert [change.text for change in changes(stored)] == [
        "7 pages of data",
        "100 GB of the data's 800 GB fit into memory; smaller images are fewer bytes, and less detail",
    ]
    quasi_random = Alternative("--order quasi_random", 500.0, 250.0, read.fitting, "read")
    tried = replace(stored, alternatives=(quasi_random,))
    assert options(tried)[0] == ("--order quasi_random", 2.0)
    # A faster decoder waits for the same storage.
    decoder = replace(stored, alternatives=(Alternative("--decoder dali", 8000.0, 4000.0),))
    assert options(decoder) == options(stored)


def test_storage_and_a_page_cache_that_is_large_enough() -> None:
    read = ReadRate(260, 50_000, 80 * GB, 100 * GB, 0.1)
    stored = measured(stage(loader=250.0, both=250.0), read=read)
    assert options(stored) == [("read the data once before", 16.0)]


def test_copies() -> None:
    """A decoder's rate is that of images on the device, so it has its copies."""
    slow = measured(waiting(), copy=520.0, alternatives=(Alternative("--decoder dali", 900.0, 500.0),))
    limit = limit_of(slow)
    assert limit.part == "copy" and "520" in limit.text and options(slow) == [("--decoder dali", 1.8)]


def test_what_neither_part_explains() -> None:
    limit = limit_of(measured(stage(both=600.0)))
    assert limit.part == "overlap" and "waits 40% of the time" in limit.text
    assert options(measured(stage(both=600.0))) == [("--workers 8", None)]
    assert not options(measured(stage(both=600.0), num_threads=1))
    noisy = measured(stage(both=600.0, spread=0.4))
    limit = limit_of(noisy)
    assert limit.part == "noise" and "differ by 40%" in limit.text and not options(noisy)


@pytest.mark.parametrize(
    ("values", "is_noise"),
    [
        ({"both": 1890.0, "spread": 1.95}, True),
        ({"both": 1000.0, "spread": 1.95}, True),
        ({"both": 1890.0, "spread": 0.01}, True),
        ({"both": 1000.0, "spread": 0.11}, True),
        ({"both": 1000.0, "spread": 0.09}, False),
        ({"both": 1049.0, "spread": 0.01}, False),
        ({"both": 1060.0, "spread": 0.01}, True),
        # The decoder alone explains 50 %, but repeats between 0 and twice the median say nothing about it.
        ({"decode": 500.0, "loader": 500.0, "both": 500.0, "spread": 0.9}, False),
        ({"decode": 500.0, "loader": 500.0, "both": 500.0, "spread": 1.1}, True),
    ],
)
def test_what_noise_hides_is_called_so(values: dict[str, Any], is_noise: bool) -> None:
    """Half the spread counts against the margin of 5 %, on either side of 1."""
    one = measured(stage(**values), alternatives=(Alternative("--decoder dali", 8000.0, 500.0),))
    limit = limit_of(one)
    assert (limit.part == "noise") == is_noise
    if is_noise:
        assert "cannot be told: " in limit.text
        assert ("repeats of one measurement differ by" in limit.text) == (one.stages[0].spread > 0.1)
        assert ("as fast with its data as without" in limit.text) == (one.stages[0].both > 1050)
        assert not is_good(one) and not changes(one)
        assert Report({}, (), one, no_limit()).exit_code == 1
    # A stage that certainly waits is named instead.
    limit = limit_of(replace(one, stages=(*one.stages, waiting(name="S2", epochs=100_000))))
    assert (limit.part, limit.stage) == ("decode", "S2")


def test_why_another_than_the_lowest_ratio_is_named() -> None:
    """S1 loses 1 * (1/500 - 1/1000) = .001 s, S2 70 * (1/925 - 1/1000) = .0057 s."""
    two = measured(waiting(epochs=1), stage("S2", epochs=70, decode=925.0, loader=925.0, both=925.0))
    limit = limit_of(two)
    assert limit.stage == "S2"
    assert limit.text == "S2 loses most: it waits 8% of 70 epochs for decoding (925 images/s by ffcv)"


def test_what_waits_and_the_ratio_agree() -> None:
    one = stage(decode=919.0, loader=919.0, both=919.0)
    limit = limit_of(measured(one))
    assert one.shown_ratio == 0.91 and limit.text.startswith("S1 waits 9% of the time")
    assert stage(both=949.9).shown_ratio == 0.94 and stage(both=290.0).shown_ratio == 0.29


def test_a_decoder_that_is_missing_was_not_tried() -> None:
    untried = {
        "--decoder dali": "DALI is not installed; pip install x installs it",
        "--order quasi_random": "too few pages",
        "--compile on": "no compiler",
    }
    assert options(measured(waiting(), untried=untried)) == [("--decoder dali", None)]
    assert changes(measured(waiting(), untried=untried))[0].text == untried["--decoder dali"]
    assert not options(measured(stage(), untried=untried))


def test_the_step_compiled() -> None:
    """The stage that takes the longest decides: 60 epochs at 500/s, not at 1,000/s."""
    rates = {"off": 1000.0, "on": 1250.0}
    both = measured(stage(step_rates=rates), stage("S2", step_rates={"off": 500.0, "on": 250.0}, both=500.0))
    assert not options(both)
    one = measured(stage(step_rates=rates))
    assert options(one) == [("--compile on", 1.25)]
    assert changes(one)[0].text == "S1's step alone is 1.25x as fast"


def test_the_other_augmentation() -> None:
    """A step takes 100 ms, 40 of them Kornia's."""
    slow = measured(stage(augment_ms={"torch": 40.0, "fused": 4.0}))
    limit = limit_of(slow)
    assert limit.part == "augment" and "40% of its step" in limit.text
    assert options(slow) == [("--augment-backend fused", 10.0)]
    assert changes(slow)[0].text == "a batch's augmentation: S1 40.0 to 4.0 ms"


def test_the_largest_factor_comes_first() -> None:
    several = measured(
        waiting(step_rates={"off": 1000.0, "on": 2000.0}),
        alternatives=(Alternative("--workers 16", 600.0, 500.0), Alternative("--decoder dali", 900.0, 500.0)),
        untried={"--decoder pillow": "it is not there"},
    )
    assert options(several) == [("--decoder dali", 1.8), ("--workers 16", 1.2), ("--decoder pillow", None)]


def test_without_stages_there_is_no_bottleneck() -> None:
    assert bottleneck(measured()) is None and not changes(measured()) and is_good(measured())


@pytest.mark.parametrize(
    ("measurements", "state", "code"),
    [
        (measured(stage()), "ok", 0),
        (measured(stage()), "warning", 0),
        (measured(stage(), waiting(name="S2")), "ok", 1),
        (measured(stage()), "broken", 2),
        (measured(waiting()), "broken", 2),
        (None, "broken", 2),
        (None, "ok", 1),  # the limit was before anything
        (measured(), "warning", 0),
    ],
)
def test_exit_codes(measurements: Measurements | None, state: Any, code: int) -> None:
    assert Report({}, (Check("disk", state, "x"),), measurements, no_limit()).exit_code == code


def test_what_is_left_out_is_a_line_and_keys() -> None:
    """Whether a stage that was left out waits is not known; an option that was left out changes nothing."""
    limit = Limit(40.0, time.monotonic() - 39)
    assert limit.allows("S1", is_stage=True) and not limit.allows("--compile on", needs_s=2)
    report = replace(report_of(measured(stage())), limit=limit)
    assert report.exit_code == 0
    limit.began -= 2
    assert not limit.allows("S3", is_stage=True) and report.exit_code == 1
    line = screen_of(report).splitlines()[-1]
    assert line == "left out within 40 s (--limit-s NUM gives more): S3, --compile on"
    assert report.as_dict()["left_out"] == {"stages": ["S3"], "options": ["--compile on"]}


# An H200's 16 threads, and 4 of them, with engines that are busy.
TURBO, FEW = DecoderCost(22_987, 0.68), DecoderCost(6_314, 0.63)
DALI, IDLE = DecoderCost(37_027, 0.11), DecoderCost(14_002, 0.97)


@pytest.mark.parametrize(
    ("auto", "costs", "needed", "expected"),
    [
        ("turbo", {"turbo": TURBO, "dali": DALI}, 14_758.0, "turbo"),  # it suffices, though dali is faster
        ("dali", {"turbo": TURBO, "dali": DALI}, 14_758.0, "turbo"),
        ("turbo", {"turbo": FEW, "dali": DALI}, 14_758.0, "dali"),
        ("dali", {"turbo": FEW, "dali": DALI}, 14_758.0, "dali"),
        ("dali", {"turbo": TURBO, "dali": IDLE}, 30_000.0, "turbo"),
        ("turbo", {"turbo": FEW, "dali": DecoderCost(6_500, 0.9)}, 14_758.0, "turbo"),  # 3 % are noise
        ("turbo", {"turbo": TURBO, "dali": IDLE}, None, "turbo"),
        ("turbo", {"turbo": DecoderCost(900, 2.0), "dali": DecoderCost(800, 1.5)}, None, "dali"),
        ("turbo", {"turbo": FEW}, 14_758.0, "turbo"),
        ("resident", {"turbo": FEW, "dali": DALI}, 14_758.0, "resident"),
    ],
)
def test_what_the_measurement_chooses(
    auto: str, costs: dict[str, DecoderCost], needed: float | None, expected: str
) -> None:
    assert by_measurement(auto, costs, needed) == expected


def test_the_line_has_both_costs_and_whether_they_speak_for_the_choice() -> None:
    auto = AutoDecoder("turbo", "it is near", {"turbo": FEW, "dali": DALI}, "dali")
    line = in_words(auto, is_cuda=True)
    assert line.startswith("--decoder auto takes turbo: it is near. ")
    assert "turbo 6,314 images/s at 0.63 ms of CPU, dali 37,027 images/s at 0.11 ms" in line
    assert line.endswith("otherwise: --decoder dali")
    same = in_words(replace(auto, by_measurement="turbo"), is_cuda=False)
    assert same.endswith("choose the same") and "H200" in line and "H200" not in same
    alone = in_words(replace(auto, costs={"turbo": FEW}, by_measurement="turbo"), is_cuda=True)
    assert alone.endswith("at 0.63 ms of CPU")  # there is nothing to choose from
    assert in_words(replace(auto, costs={}), is_cuda=True).endswith("it is near")
