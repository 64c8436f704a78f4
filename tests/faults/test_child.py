"""The harness distinguishes the ends of children, and goes on after each."""

import os
import signal
import time

import pytest

from tests.faults.child import Case, Limits, judge_cases, refusal

LIMITS = Limits(wall_s=2.0, cpu_s=60, resident_bytes=30 << 20, address_bytes=4 << 30)


def _judge(case: Case) -> tuple[str, str]:
    match case.name:
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "sleep":
            time.sleep(600)
        case "fill":
            # Far above the limit, because the kernel may evict other pages of the process meanwhile.
            return "as before", f"{len(bytearray(b'x') * (600 << 20))} bytes"
        case "too much":
            bytearray(64 << 30)
        case "key":
            raise KeyError("science")
    return "as before", ""


@pytest.mark.slow
def test_each_end_of_a_child_is_told_and_the_others_go_on(tmp_path):
    names = ["good", "segfault", "good", "fill", "key", "too much", "sleep", "good"]
    cases = [Case(seed, name) for seed, name in enumerate(names)]
    findings = list(judge_cases("here", cases, _judge, tmp_path / "log", LIMITS, batch=5))
    assert [finding.seed for finding in findings] == list(range(8))
    outcomes = ["as before", "crash", "as before", "memory", "traceback", "traceback", "hang", "as before"]
    assert [finding.outcome for finding in findings] == outcomes
    assert "SIGSEGV" in findings[1].detail and "KeyError: 'science'" in findings[4].detail


def test_a_refusal_is_a_value_error_that_names_the_file():
    assert refusal(ValueError("a.beton: is empty; write it again"), "a.beton")[0] == "refused"
    assert refusal(ValueError("invalid literal for int()"), "a.beton")[0] == "unclear"
    assert refusal(OverflowError("a.beton"), "a.beton")[0] == "traceback"
    assert refusal(MemoryError(), "a.beton")[0] == "memory"
