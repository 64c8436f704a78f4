"""Bottleneck, changes, gains and choice of a decoder from constructed measurements, calculated by hand."""

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
from fastpsl.doctor.report import Check, Report
from tests.doctor.measured import GB, measured, report_of, screen_of, stage, waiting


def limit_of(of: Measurements) -> Bottleneck:
    limit = bottleneck(of)
    assert limit is not None
    return limit


def options(of: Measurements) -> list[tuple[str, float | None]]:
    return [(change.option, change.gain and round(change.gain, 4)) for change in changes(of)]


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
    assert options(slow) == [("--decoder dali", 0.5)]
    assert changes(slow)[0].text == "decodes 1.5x as fast here"
    # At most the step's rate, 2.0 times 500, however fast the decoder.
    fastest = replace(slow, alternatives=(Alternative("--decoder dali", 9000.0, 500.0),))
    assert options(fastest) == [("--decoder dali", 1.0)]
    # The additional loss of all together remains: now 400 of the decoder's 500, then 800 of 1,000.
    rough = replace(fastest, stages=(waiting(both=400.0),))
    assert options(rough) == [("--decoder dali", 1.0)]
    # A decoder that is slower or hardly faster is not recommended.
    for rate in (200.0, 505.0):
        assert not options(replace(slow, alternatives=(Alternative("--decoder dali", rate, 500.0),)))


def test_a_gain_counts_by_the_time_that_stages_take() -> None:
    """Epochs times seconds per image: S1 60/500 → 60/1000, S2 stays 30/1000; .15 / .09 = 1.667."""
    two = measured(
        waiting(), stage("S2", epochs=30), alternatives=(Alternative("--workers 16", 1500.0, 500.0),)
    )
    assert options(two) == [("--workers 16", 0.6667)]


def test_threads_make_no_cores() -> None:
    """An image takes 8/100 + 2/200 core-seconds of 8 cores: 88.9/s; with 8 threads 8/100 + 8/800."""
    full = measured(
        stage(decode=200.0, loader=200.0, step_rates={"off": 100.0}, both=89.0),
        is_cuda=False, num_cores=8, num_threads=2, torch_threads=8, copy=None,
        alternatives=(Alternative("--workers 8", 800.0, 200.0, num_threads=8),),
    )  # fmt: skip
    assert not [option for option, gain in options(full) if gain]


def test_on_the_cpu_loader_and_step_share_the_cores() -> None:
    """An image takes 1/100 + 1/400 s of all cores: 80/s.

    With a decoder of 1,600/s it takes 1/100 + 1/1600 s: 94.1/s, 17.6 % more.
    """
    step = {"off": 100.0}
    cpu = measured(
        stage(decode=400.0, loader=400.0, step_rates=step, both=80.0), is_cuda=False, copy=None,
        num_cores=2, num_threads=2, torch_threads=2,
        alternatives=(Alternative("--decoder ffcv", 1600.0, 400.0),),
    )  # fmt: skip
    limit = limit_of(cpu)
    assert limit.part == "decode" and "2 cores on which the step runs" in limit.text
    assert options(cpu) == [("--decoder ffcv", 0.1765)]
    # A step with one thread leaves the other core to the decoder: (1/100 + 1/400) / 2 s is less than the
    # step's 1/100 s.
    beside = replace(cpu, torch_threads=1, num_threads=1)
    assert not options(beside)
    limit = limit_of(beside)
    assert limit.part == "overlap"


def test_no_gain_beyond_what_was_lost() -> None:
    """The model expects 80/s of 100 here too; 97 were measured, and the step allows 100: 3.1 %."""
    alternatives = (Alternative("--decoder ffcv", 40_000.0, 400.0),)
    cpu = measured(
        stage(decode=400.0, loader=400.0, step_rates={"off": 100.0}, both=97.0), is_cuda=False, copy=None,
        num_cores=2, num_threads=2, torch_threads=2, alternatives=alternatives,
    )  # fmt: skip
    assert options(cpu) == [("--decoder ffcv", 0.0309)]
    # Other load made the step alone seem slower than all together.
    assert not options(replace(cpu, stages=(replace(cpu.stages[0], both=104.0),)))


def test_smaller_images() -> None:
    trial = Alternative(
        "fastpsl data write --short-side 256", 1200.0, 800.0, "41% of the pixels; tried with 512"
    )
    small = measured(waiting(), alternatives=(trial,))
    assert options(small) == [("fastpsl data write --short-side 256", 0.5)]
    assert changes(small)[0].text == "decodes 1.5x as fast here (41% of the pixels; tried with 512)"


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
    assert options(tried)[0] == ("--order quasi_random", 1.0)
    # A decoder of twice the speed saves 1/8000 of an image's 1/250 s: 3.2 %.
    decoder = replace(stored, alternatives=(Alternative("--decoder dali", 8000.0, 4000.0),))
    assert ("--decoder dali", 0.0323) in options(decoder)


def test_storage_and_a_page_cache_that_is_large_enough() -> None:
    read = ReadRate(260, 50_000, 80 * GB, 100 * GB, 0.1)
    stored = measured(stage(loader=250.0, both=250.0), read=read)
    assert options(stored) == [("read the data once before", 3.0)]


def test_copies() -> None:
    slow = measured(waiting(), copy=520.0)
    limit = limit_of(slow)
    assert limit.part == "copy" and "520" in limit.text


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
        assert not is_good(one) and not changes(one) and Report({}, (), one).exit_code == 1
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
    """Over 60 epochs S1 1,000 → 1,250 and S2 500 → 250 take .288, not .18: no advice; S1 alone gains 25 %."""
    rates = {"off": 1000.0, "on": 1250.0}
    both = measured(stage(step_rates=rates), stage("S2", step_rates={"off": 500.0, "on": 250.0}, both=500.0))
    assert not options(both)
    one = measured(stage(step_rates=rates))
    assert options(one) == [("--compile on", 0.25)]
    assert changes(one)[0].text == "the step alone: S1 1.25x"
    # If the decoder gives 1,100, the step cannot use more.
    assert options(measured(stage(step_rates=rates, decode=1100.0, loader=1100.0))) == [("--compile on", 0.1)]


def test_the_other_augmentation() -> None:
    """A step takes 100 ms, 40 of them Kornia's; with 4 ms instead it takes 64: 1,562/s, 56.25 % more."""
    slow = measured(stage(augment_ms={"torch": 40.0, "fused": 4.0}))
    limit = limit_of(slow)
    assert limit.part == "augment" and "40% of its step" in limit.text
    assert options(slow) == [("--augment-backend fused", 0.5625)]
    assert changes(slow)[0].text == "a batch's augmentation: S1 40.0 to 4.0 ms"


def test_the_largest_gain_comes_first() -> None:
    several = measured(
        waiting(step_rates={"off": 1000.0, "on": 2000.0}),
        alternatives=(Alternative("--workers 16", 600.0, 500.0), Alternative("--decoder dali", 900.0, 500.0)),
        untried={"--decoder pillow": "it is not there"},
    )
    assert options(several) == [("--decoder dali", 0.8), ("--workers 16", 0.2), ("--decoder pillow", None)]


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
        (measured(), "warning", 0),
    ],
)
def test_exit_codes(measurements: Measurements | None, state: Any, code: int) -> None:
    assert Report({}, (Check("disk", state, "x"),), measurements).exit_code == code


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


def test_the_screen_and_the_json_have_it() -> None:
    auto = AutoDecoder("turbo", "it is near", {"turbo": FEW, "dali": DALI}, "dali")
    report = report_of(measured(auto=auto, is_cuda=True))
    assert "--decoder auto takes turbo: it is near" in screen_of(report, 80)
    costs = {
        "turbo": {"images_per_s": 6_314, "cpu_ms": 0.63}, "dali": {"images_per_s": 37_027, "cpu_ms": 0.11},
    }  # fmt: skip
    assert report.as_dict()["measured"]["auto"] == {
        "name": "turbo", "reason": "it is near", "costs": costs, "by_measurement": "dali",
    }  # fmt: skip
