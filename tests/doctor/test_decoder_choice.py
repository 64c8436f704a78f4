"""The choice of `auto` beside the costs that doctor measured."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from fastpsl.doctor.advice import by_measurement, in_words
from fastpsl.doctor.measurements import AutoDecoder, DecoderCost
from fastpsl.doctor.report import Report, show
from tests.doctor.test_doctor_advice import measured

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
    report = Report(
        dict.fromkeys(("recipe", "data", "batch_size", "device", "device_name", "precision"))
        | {"arguments": [], "num_ranks": 1},
        (),
        measured(auto=auto, is_cuda=True),
    )
    text = io.StringIO()
    show(report, Console(file=text, width=80))
    assert "--decoder auto takes turbo: it is near" in text.getvalue()
    values: Any = report.as_dict()
    assert values["measured"]["auto"] == {
        "name": "turbo",
        "reason": "it is near",
        "costs": {
            "turbo": {"images_per_s": 6_314, "cpu_ms": 0.63},
            "dali": {"images_per_s": 37_027, "cpu_ms": 0.11},
        },
        "by_measurement": "dali",
    }
