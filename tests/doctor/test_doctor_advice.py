"""Bottleneck, changes and gains from constructed measurements; every figure is worked out by hand."""

from dataclasses import replace
from typing import Any

import pytest

from fastpsl.doctor.advice import bottleneck, changes, is_good
from fastpsl.doctor.measurements import Alternative, Measurements, ReadRate, StageRates
from fastpsl.doctor.report import Check, Report

GB = 10**9
IN_MEMORY = ReadRate(90_000, 50_000, 10 * GB, 100 * GB, 1.0)


def stage(name: str = "S1", epochs: int = 60, **values: Any) -> StageRates:
    """A step of 1,000 images/s that waits for nothing."""
    usual: dict[str, Any] = {
        "batch_size": 100, "decode": 4000.0, "loader": 4000.0, "step": "eager", "step_rates": {"eager": 1000.0},
        "augment": "kornia", "augment_ms": {"kornia": 10.0}, "both": 1000.0, "spread": 0.01, "cores_used": 3.0,
    }  # fmt: skip
    return StageRates(name, epochs, **(usual | values))


def measured(*stages: StageRates, **values: Any) -> Measurements:
    usual: dict[str, Any] = {
        "is_cuda": True, "num_cores": 16, "num_threads": 16, "torch_threads": 16, "decoder": "ffcv",
        "read": IN_MEMORY, "decode": 4000.0, "copy": 50_000.0,
    }  # fmt: skip
    return Measurements(**(usual | values), stages=stages)


def waiting(**values: Any) -> StageRates:
    """Half the step's speed, as the decoder is half as fast as the step."""
    return stage(**({"decode": 500.0, "loader": 500.0, "both": 500.0} | values))


def options(of: Measurements) -> list[tuple[str, float | None]]:
    return [(change.option, change.gain and round(change.gain, 4)) for change in changes(of)]


def test_nothing_waits() -> None:
    fast = measured(stage(), stage("S2", step_rates={"eager": 500.0}, both=480.0))
    assert is_good(fast) and not changes(fast)
    found = bottleneck(fast)
    assert (
        found is not None and (found.part, found.stage) == ("step", "S2") and "no stage waits" in found.text
    )
    assert not is_good(measured(stage(both=949.9))) and is_good(measured(stage(both=950.0)))


def test_a_faster_decoder() -> None:
    slow = measured(waiting(), alternatives=(Alternative("--decoder dali", 750.0, 500.0),))
    found = bottleneck(slow)
    assert found is not None and (found.part, found.stage) == ("decode", "S1")
    assert found.text == "S1 waits 50% of the time for decoding (500 images/s by ffcv)"
    assert options(slow) == [("--decoder dali", 0.5)]
    assert changes(slow)[0].text == "decodes 1.5x as fast here"
    # No more than the step can do: 2.0 times 500, however fast the decoder.
    fastest = replace(slow, alternatives=(Alternative("--decoder dali", 9000.0, 500.0),))
    assert options(fastest) == [("--decoder dali", 1.0)]
    # What all together lost beside stays lost: 400 of the 500 that the decoder could, 800 of 1,000 then.
    rough = replace(fastest, stages=(waiting(both=400.0),))
    assert options(rough) == [("--decoder dali", 1.0)]
    # One that is slower, or hardly faster, is no advice.
    for rate in (200.0, 505.0):
        assert not options(replace(slow, alternatives=(Alternative("--decoder dali", rate, 500.0),)))


def test_a_gain_counts_by_the_time_that_stages_take() -> None:
    """Seconds an image and epoch: S1 60/500 -> 60/1000, S2 30/1000 as before; (.12 + .03) / (.06 + .03) = 1.667."""
    two = measured(
        waiting(), stage("S2", epochs=30), alternatives=(Alternative("--num-threads 16", 1500.0, 500.0),)
    )
    assert options(two) == [("--num-threads 16", 0.6667)]


def test_threads_make_no_cores() -> None:
    """An image takes 8/100 + 2/200 core-seconds of 8 cores: 88.9/s; with 8 threads 8/100 + 8/800, the same."""
    full = measured(
        stage(decode=200.0, loader=200.0, step_rates={"eager": 100.0}, both=89.0),
        is_cuda=False, num_cores=8, num_threads=2, torch_threads=8, copy=None,
        alternatives=(Alternative("--num-threads 8", 800.0, 200.0, num_threads=8),),
    )  # fmt: skip
    assert not [option for option, gain in options(full) if gain]


def test_on_the_cpu_loader_and_step_share_the_cores() -> None:
    """An image takes 1/100 + 1/400 s of all cores: 80/s. With a decoder of 1,600/s 1/100 + 1/1600: 94.1/s, 17.6 % more."""
    step = {"eager": 100.0}
    cpu = measured(
        stage(decode=400.0, loader=400.0, step_rates=step, both=80.0), is_cuda=False, copy=None,
        num_cores=2, num_threads=2, torch_threads=2, alternatives=(Alternative("--decoder ffcv", 1600.0, 400.0),),
    )  # fmt: skip
    found = bottleneck(cpu)
    assert found is not None and found.part == "decode" and "2 cores on which the step runs" in found.text
    assert options(cpu) == [("--decoder ffcv", 0.1765)]
    # A step with one thread leaves the other core to the decoder: (1/100 + 1/400) / 2 s are less than the step's 1/100.
    beside = replace(cpu, torch_threads=1, num_threads=1)
    assert not options(beside)
    found = bottleneck(beside)
    assert found is not None and found.part == "overlap"


def test_no_gain_beyond_what_was_lost() -> None:
    """The model expects 80/s of 100 here too; 97 were measured, and 100 is all that a step can do: 3.1 %."""
    alternatives = (Alternative("--decoder ffcv", 40_000.0, 400.0),)
    cpu = measured(
        stage(decode=400.0, loader=400.0, step_rates={"eager": 100.0}, both=97.0), is_cuda=False, copy=None,
        num_cores=2, num_threads=2, torch_threads=2, alternatives=alternatives,
    )  # fmt: skip
    assert options(cpu) == [("--decoder ffcv", 0.0309)]
    # Others' load made the step alone look slower than all together.
    assert not options(replace(cpu, stages=(replace(cpu.stages[0], both=104.0),)))


def test_smaller_pictures() -> None:
    trial = Alternative(
        "fastpsl beton write --short-side 256", 1200.0, 800.0, "41% of the pixels; tried with 512"
    )
    small = measured(waiting(), alternatives=(trial,))
    assert options(small) == [("fastpsl beton write --short-side 256", 0.5)]
    assert changes(small)[0].text == "decodes 1.5x as fast here (41% of the pixels; tried with 512)"


def test_storage_and_a_page_cache_that_is_too_small() -> None:
    """From memory 4,000/s, from storage 250/s."""
    read = ReadRate(260, 50_000, 800 * GB, 100 * GB, 0.1)
    untried = {"--order quasi_random": "7 pages of data", "--decoder dali": "it is not there"}
    stored = measured(stage(loader=250.0, both=250.0), read=read, untried=untried)
    found = bottleneck(stored)
    assert found is not None and found.part == "read" and "250 images/s" in found.text
    assert options(stored) == [
        ("--order quasi_random", None),
        ("fastpsl beton write SRC OUT --short-side PX", None),
    ]
    assert [change.text for change in changes(stored)] == [
        "7 pages of data",
        "100 GB of the data's 800 GB fit into memory; smaller pictures are fewer bytes, and less detail",
    ]
    tried = replace(
        stored, alternatives=(Alternative("--order quasi_random", 500.0, 250.0, read.fitting, "read"),)
    )
    assert options(tried)[0] == ("--order quasi_random", 1.0)
    # Twice as fast a decoder saves 1/8000 of the 1/250 s that an image takes: 3.2 %.
    decoder = replace(stored, alternatives=(Alternative("--decoder dali", 8000.0, 4000.0),))
    assert ("--decoder dali", 0.0323) in options(decoder)


def test_storage_and_a_page_cache_that_is_large_enough() -> None:
    read = ReadRate(260, 50_000, 80 * GB, 100 * GB, 0.1)
    stored = measured(stage(loader=250.0, both=250.0), read=read)
    assert options(stored) == [("read the data once before", 3.0)]


def test_copies() -> None:
    slow = measured(waiting(), copy=520.0)
    found = bottleneck(slow)
    assert found is not None and found.part == "copy" and "520" in found.text


def test_what_neither_part_explains() -> None:
    found = bottleneck(measured(stage(both=600.0)))
    assert found is not None and found.part == "overlap" and "waits 40% of the time" in found.text
    assert options(measured(stage(both=600.0))) == [("--num-threads 8", None)]
    assert not options(measured(stage(both=600.0), num_threads=1))
    noisy = measured(stage(both=600.0, spread=0.4))
    found = bottleneck(noisy)
    assert (
        found is not None and found.part == "noise" and "differ by 40%" in found.text and not options(noisy)
    )


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
        # The decoder alone is as slow; but repeats from 0 to twice as much tell nothing of 50 %.
        ({"decode": 500.0, "loader": 500.0, "both": 500.0, "spread": 0.9}, False),
        ({"decode": 500.0, "loader": 500.0, "both": 500.0, "spread": 1.1}, True),
    ],
)
def test_what_noise_hides_is_called_so(values: dict[str, Any], is_noise: bool) -> None:
    """Half the spread against the margin of 5 %, on either side of 1."""
    one = measured(stage(**values), alternatives=(Alternative("--decoder dali", 8000.0, 500.0),))
    found = bottleneck(one)
    assert found is not None and (found.part == "noise") == is_noise
    if is_noise:
        assert "cannot be told: " in found.text
        assert ("repeats of one measurement differ by" in found.text) == (one.stages[0].spread > 0.1)
        assert ("as fast with its data as without" in found.text) == (one.stages[0].both > 1050)
        assert not is_good(one) and not changes(one) and Report({}, (), one).exit_code == 1
    # Beside a stage that certainly waits, that one is named.
    found = bottleneck(replace(one, stages=(*one.stages, waiting(name="S2", epochs=100_000))))
    assert found is not None and (found.part, found.stage) == ("decode", "S2")


def test_why_another_than_the_lowest_ratio_is_named() -> None:
    """S1 loses 1 * (1/500 - 1/1000), S2 70 * (1/925 - 1/1000): 70 times .0000811 are more than .001."""
    two = measured(waiting(epochs=1), stage("S2", epochs=70, decode=925.0, loader=925.0, both=925.0))
    found = bottleneck(two)
    assert found is not None and found.stage == "S2"
    assert found.text == "S2 loses most: it waits 8% of 70 epochs for decoding (925 images/s by ffcv)"


def test_what_waits_and_the_ratio_agree() -> None:
    one = stage(decode=919.0, loader=919.0, both=919.0)
    found = bottleneck(measured(one))
    assert one.shown_ratio == 0.91 and found is not None and found.text.startswith("S1 waits 9% of the time")
    assert stage(both=949.9).shown_ratio == 0.94 and stage(both=290.0).shown_ratio == 0.29


def test_a_decoder_that_is_missing_was_not_tried() -> None:
    untried = {
        "--decoder dali": "DALI is not installed; pip install x installs it",
        "--order quasi_random": "too few pages",
        "--step compiled": "no compiler",
    }
    assert options(measured(waiting(), untried=untried)) == [("--decoder dali", None)]
    assert changes(measured(waiting(), untried=untried))[0].text == untried["--decoder dali"]
    assert not options(measured(stage(), untried=untried))


def test_the_step_compiled() -> None:
    """S1 1,000 -> 1,250 and S2 500 -> 250, each 60 epochs: 60/1000 + 60/500 = .18 before, .288 after, so no advice; S1 alone 25 %."""
    rates = {"eager": 1000.0, "compiled": 1250.0}
    both = measured(
        stage(step_rates=rates), stage("S2", step_rates={"eager": 500.0, "compiled": 250.0}, both=500.0)
    )
    assert not options(both)
    one = measured(stage(step_rates=rates))
    assert options(one) == [("--step compiled", 0.25)]
    assert changes(one)[0].text == "the step alone: S1 1.25x"
    # Where the decoder gives 1,100 the step cannot use more.
    assert options(measured(stage(step_rates=rates, decode=1100.0, loader=1100.0))) == [
        ("--step compiled", 0.1)
    ]


def test_the_other_augmentation() -> None:
    """A step takes 100 ms, 40 of it Kornia's; with 4 ms instead 64: 1,562/s, 56.25 % more."""
    slow = measured(stage(augment_ms={"kornia": 40.0, "fused": 4.0}))
    found = bottleneck(slow)
    assert found is not None and found.part == "augment" and "40% of its step" in found.text
    assert options(slow) == [("--augment fused", 0.5625)]
    assert changes(slow)[0].text == "a batch's augmentation: S1 40.0 to 4.0 ms"


def test_the_largest_gain_comes_first() -> None:
    several = measured(
        waiting(step_rates={"eager": 1000.0, "compiled": 2000.0}),
        alternatives=(
            Alternative("--num-threads 16", 600.0, 500.0),
            Alternative("--decoder dali", 900.0, 500.0),
        ),
        untried={"--decoder torchvision": "it is not there"},
    )
    assert options(several) == [
        ("--decoder dali", 0.8),
        ("--num-threads 16", 0.2),
        ("--decoder torchvision", None),
    ]


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
