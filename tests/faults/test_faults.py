"""Damaged files and attacks at each gate, a few faults of runs, and the functions that judge.

`make faults` runs thousands.
"""

import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.performance import written
from tests import seeds
from tests.faults import growth, page
from tests.faults.attacks import ATTACKS, ESCAPES, MARKUP, PRIVATE_IMAGE, runs_code
from tests.faults.child import Case, Limits, judged, refusal
from tests.faults.damage import Damage, attacks, damaged
from tests.faults.gates import ARRAYS, BETONS, FOLDERS, GATES, IMAGES, RECORDS, SOURCES, VOC_FILES, Gate
from tests.faults.growth import Held, judge_growth, slope
from tests.faults.report import CATEGORIES, Outcome
from tests.faults.runs import ProcessEnd, verdict
from tests.faults.strikes import kills, ranks
from tests.faults.surroundings import TRIALS, surroundings
from tests.slow import nightly


@pytest.mark.parametrize(
    "gates",
    [ARRAYS, VOC_FILES, SOURCES, IMAGES, BETONS, RECORDS, nightly(FOLDERS)],
    ids=lambda gates: next(iter(gates)),
)
@pytest.mark.parametrize("count", [100, nightly(2000)])
def test_a_damaged_file_is_read_or_refused_in_a_line(
    gates: dict[str, object], count: int, tmp_path: Path
) -> None:
    first = seeds.added * count
    findings = list(damaged(gates, tmp_path, first, count))
    assert len(findings) == count * len(gates)
    failures = [finding for finding in findings if finding.failed]
    assert not failures, (len(failures), *failures[:9])


@pytest.mark.slow
def test_no_attack_does_harm(tmp_path: Path) -> None:
    findings = list(attacks(tmp_path, 0, len(ATTACKS)))
    assert len(findings) == len(ATTACKS)
    failures = [finding for finding in findings if finding.failed]
    assert not failures, (len(failures), *failures[:9])


CUT = "truncated in its pictures"


@pytest.mark.parametrize(
    ("strike", "seed", "case", "outcome"),
    [
        pytest.param(kills, 1, "jigsaw", "goes on", marks=pytest.mark.slow),
        pytest.param(ranks, 0, "rank 1 killed", "refused", marks=pytest.mark.slow),
        pytest.param(surroundings, list(TRIALS).index(CUT), CUT, "refused", marks=pytest.mark.slow),
    ],
)
def test_a_struck_run_goes_on_or_names_the_remedy(strike, seed, case, outcome, tmp_path) -> None:
    (finding,) = strike(tmp_path, seed, 1)
    assert (finding.case, finding.outcome) == (case, outcome), finding


def test_a_run_of_all_surroundings_has_each_trial_once() -> None:
    assert len(TRIALS) == CATEGORIES["surroundings"][1]


@pytest.mark.slow
def test_loaders_are_opened_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "DECODERS", ["pillow"])
    (finding,) = growth.openings(tmp_path, seed=0, count=10)
    # Ten openings are too few to judge memory.
    assert finding.case == "pillow" and finding.detail.startswith("10 openings: threads "), finding


def test_how_a_process_ended_is_told_apart() -> None:
    def ended(code: int | None, text: str) -> str:
        return verdict(ProcessEnd(code, f"step 1\n{text}\n", 1.0), words=("--out",))[0]

    assert ended(0, "") == "goes on" and ended(None, "") == "hang" and ended(-9, "") == "crash"
    assert ended(2, "jigsaw_r50: no space; give --out") == "refused"
    for code, text in ((2, "jigsaw_r50: no space"), (2, "give --out"), (1, "jigsaw_r50: --out")):
        assert ended(code, text) == "unclear"
    assert ended(1, "Traceback (most recent call last):\n KeyError: --out") == "traceback"
    assert verdict(ProcessEnd(2, "jigsaw_r50: no\n", 1.0))[0] == "unclear"


def test_growth_is_told_from_noise() -> None:
    random, x = np.random.default_rng(0), np.arange(200.0)
    line = slope([0, 1, 2, 3], [1, 3, 5, 7])
    assert (line.value, line.error) == (2.0, 0.0) and line.above(1.9) and not line.above(2.0)
    noise = random.normal(0, 10, 200)
    fit = slope(x, 0.1 * x + noise)  # the textbook's error: sigma / (std(x) sqrt(n))
    assert abs(fit.error / (10 / (x.std() * 200**0.5)) - 1) < 0.3 and abs(fit.value - 0.1) < 3 * fit.error
    # A walk without drift looks like a slope, because its neighbours are correlated.
    walk = slope(x, noise.cumsum())
    assert walk.error > 5 * fit.error
    held = [Held(4, 10, int(1e9 + 1e6 * step)) for step in x]
    grows, text = judge_growth(list(x), held, {"threads": 0.01, "resident_bytes": 1e5}, "step")
    assert grows and text.startswith("threads 0 ± 0 per step (bound 0.01; 4 → 4); resident_bytes 1e+06 ± ")
    assert not judge_growth(list(x), held, {"threads": 0.01, "resident_bytes": 1e6}, "step")[0]


def test_the_page_is_what_the_results_say() -> None:
    for path, text in written(page.ROOT, page.pages(page.RESULTS)).items():
        assert path.read_text() == text, "run python -m tests.faults.page"


# The ends of children.


class _Ends:
    """A judge that ends as its cases are named."""

    def prepare(self, case: Case) -> None:
        pass

    def judge(self, case: Case) -> Outcome:
        match case.name:
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "sleep":
                time.sleep(600)
            case "fill":
                # Far above the limit, because the kernel may evict other pages of the process meanwhile.
                return "as before", f"{len(bytearray(b'x') * (200 << 20))} bytes"
            case "too much":
                bytearray(64 << 30)
            case "key":
                raise KeyError("science")
        return "as before", ""


@pytest.mark.slow
def test_each_end_of_a_child_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    limits = Limits(wall_s=2.0, cpu_s=60, resident_bytes=30 << 20, address_bytes=4 << 30)
    names = ["good", "segfault", "good", "fill", "key", "too much", "sleep", "good"]
    cases = [Case(seed, name) for seed, name in enumerate(names)]
    findings = list(judged(_Ends(), cases, tmp_path / "log", limits))
    assert [finding.seed for finding in findings] == list(range(8))
    outcomes = ["as before", "crash", "as before", "memory", "traceback", "traceback", "hang", "as before"]
    assert [finding.outcome for finding in findings] == outcomes
    assert "SIGSEGV" in findings[1].detail and "KeyError: 'science'" in findings[4].detail


def test_a_refusal_is_a_value_error_of_a_line_that_names_the_file() -> None:
    assert refusal(ValueError("a.beton: is empty; write it again"), "a.beton")[0] == "refused"
    assert refusal(ValueError("invalid literal for int()"), "a.beton")[0] == "unclear"
    assert refusal(ValueError("a.beton: is\nempty"), "a.beton")[0] == "unclear"
    assert refusal(OverflowError("a.beton"), "a.beton")[0] == "traceback"
    assert refusal(MemoryError(), "a.beton")[0] == "memory"


# Readers that do harm.


def _run_code(path: Path) -> object:
    runs_code(path)
    return pickle.loads(path.read_bytes())


def _take_an_image(path: Path) -> object:
    path.with_name("out").mkdir(exist_ok=True)
    return path.with_name("out").joinpath("x.beton").write_bytes(bytes(100) + PRIVATE_IMAGE)


def _write_a_page(path: Path) -> object:
    path.with_name("out").mkdir(exist_ok=True)
    return path.with_name("out").joinpath("t.html").write_text(f"<p>{MARKUP}</p>")


@pytest.mark.parametrize(
    ("open", "outcome"),
    [
        (_run_code, "executed"),
        (lambda path: path.with_name("evil").touch(), "wrote"),
        (_take_an_image, "disclosed"),
        (_write_a_page, "escaped"),
        (lambda path: ESCAPES, "escaped"),
        (lambda path: {}[path.suffix], "traceback"),
        (lambda path: int(path.read_bytes()[:0]), "unclear"),
        (lambda path: len(path.read_bytes()), "silent"),
        (lambda path: "read", "as before"),
    ],
)
def test_harm_is_seen(
    open: Callable[[Path], object], outcome: str, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # it is changed below
    opens = iter([lambda path: "read" if outcome == "as before" else path.stat().st_size])  # the sound file
    gate = Gate(lambda path: path.write_bytes(bytes(99)), lambda path: next(opens, open)(path), exact=True)
    monkeypatch.setitem(GATES, "p.pkl", gate)
    judge, case = Damage(cwd), Case(1, "p.pkl")
    judge.prepare(case)
    assert judge.judge(case)[0] == outcome
