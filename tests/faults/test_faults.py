"""Each category of the harness with a few of its faults, and the functions that judge; `make faults` runs
thousands.
"""

import io
import os
import pickle
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.performance import written
from tests.faults import growth, page
from tests.faults.attacks import ATTACKS, ESCAPES, MARKUP, PRIVATE_IMAGE
from tests.faults.child import Case, Jury, Limits, refusal, run
from tests.faults.gates import Gate
from tests.faults.growth import Held, judge_growth, slope
from tests.faults.hostile import Subject
from tests.faults.report import CATEGORIES, Category
from tests.faults.runs import ProcessEnd, verdict
from tests.faults.strikes import kills, ranks, signals
from tests.faults.surroundings import TRIALS, surroundings
from tests.slow import nightly


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seed", "count"),
    [
        ("betons", 0, 30),
        ("coefficients", 0, 20),
        ("side_files", 0, 20),
        ("images", 0, 20),
        ("hostile", 0, 10),  # code in pickles
        ("hostile", 18, 34),  # weights, checkpoints, arrays
        ("records", 418, 20),  # Python files that replay, runs, compare and --config meet
        nightly("records", 2481, 12),  # servers of weights
        nightly("betons", 30, 30),
        nightly("side_files", 20, 20),
        nightly("images", 20, 20),
    ],
)
def test_no_fault_of_a_few_does_harm(name: str, seed: int, count: int, tmp_path: Path) -> None:
    category = Category(name, seed, count)
    run(category, tmp_path / name)
    assert category.finished and category.num_done == count
    assert not category.failures, [tuple(finding) for finding in category.failures]


@pytest.mark.parametrize(
    ("strike", "seed", "case", "outcome"),
    [
        pytest.param(kills, 1, "jigsaw", "goes on", marks=pytest.mark.slow),
        pytest.param(signals, 0, "SIGTERM", "goes on", marks=pytest.mark.nightly),
        pytest.param(ranks, 0, "rank 1 killed", "refused", marks=pytest.mark.slow),
        *(
            pytest.param(surroundings, list(TRIALS).index(name), name, "refused", marks=pytest.mark.slow)
            for name in ("two trainers", "out is a file", "truncated in its pictures")
        ),
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


def _judge(case: Case) -> tuple[str, str]:
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
    findings = list(Jury(_judge, tmp_path / "log", limits).findings(cases, batch=5))
    assert [finding.seed for finding in findings] == list(range(8))
    outcomes = ["as before", "crash", "as before", "memory", "traceback", "traceback", "hang", "as before"]
    assert [finding.outcome for finding in findings] == outcomes
    assert "SIGSEGV" in findings[1].detail and "KeyError: 'science'" in findings[4].detail


def test_a_refusal_is_a_value_error_that_names_the_file() -> None:
    assert refusal(ValueError("a.beton: is empty; write it again"), "a.beton")[0] == "refused"
    assert refusal(ValueError("invalid literal for int()"), "a.beton")[0] == "unclear"
    assert refusal(OverflowError("a.beton"), "a.beton")[0] == "traceback"
    assert refusal(MemoryError(), "a.beton")[0] == "memory"


# Ways of opening a file that do harm.


def _runs_code(path: Path) -> str:
    next(make for gate, name, make in ATTACKS if (gate, name) == ("p.pkl", "code in a pickle"))(path)
    return str(pickle.loads(path.read_bytes()))


def _writes_outside(path: Path) -> str:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../evil", b"")
    for name in zipfile.ZipFile(packed).namelist():
        (path.parent / name).write_bytes(b"")
    return ""


def _takes_an_image(path: Path) -> str:
    path.with_name("out.beton").write_bytes(bytes(100) + PRIVATE_IMAGE)
    return ""


def _writes_a_page(path: Path) -> str:
    os.mkdir(path.parent / "out")
    (path.parent / "out" / "t.html").write_text(f"<p>{MARKUP}</p>")
    return ""


@pytest.mark.parametrize(
    ("open", "outcome"),
    [
        (_runs_code, "executed"),
        (_writes_outside, "wrote"),
        (_takes_an_image, "disclosed"),
        (_writes_a_page, "escaped"),
        (lambda path: ESCAPES, "escaped"),
        (lambda path: str(Image.open(path)), "traceback"),
        (lambda path: str(int(path.read_text())), "unclear"),
        (lambda path: "read", "read"),
    ],
)
def test_harm_is_seen(open: Callable[[Path], str], outcome: str, tmp_path: Path) -> None:
    gate = Gate("p.pkl", make=lambda path: path.write_bytes(b"sound"), open=open)
    subject = Subject(tmp_path, [gate], [])
    subject.case_folder.mkdir()
    path = subject.case_folder / gate.place
    gate.make(path)
    assert subject.attack(gate, path)[0] == outcome
