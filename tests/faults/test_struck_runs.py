"""A few of the faults that strike runs, and the functions that judge them; `make faults` runs thousands."""

from pathlib import Path

import numpy as np
import pytest

from bench.performance import written
from tests.faults import kills, openings, page, ranks, signals, surroundings
from tests.faults.__main__ import COUNTS
from tests.faults.forks import ProcessEnd
from tests.faults.small_runs import verdict
from tests.faults.trend import Held, judge_growth, slope


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    findings = list(kills.run(tmp_path, seed=1, count=1))
    assert [(finding.case, finding.outcome) for finding in findings] == [("jigsaw", "goes on")], findings


@pytest.mark.nightly
def test_a_stopped_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    (finding,) = signals.run(tmp_path, seed=0, count=1)
    assert (finding.case, finding.outcome) == ("SIGTERM", "goes on"), finding


@pytest.mark.slow
def test_a_rank_without_the_other_says_so(tmp_path: Path) -> None:
    (finding,) = ranks.run(tmp_path, seed=0, count=1)
    assert (finding.case, finding.outcome) == ("rank 1 killed", "refused"), finding


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_trainers", "out_is_a_file", "truncated_in_its_pictures"])
def test_odd_surroundings_are_one_line(name: str, tmp_path: Path) -> None:
    names = [trial.__name__ for trial in surroundings.TRIALS]
    assert len(names) == len(set(names)) == COUNTS["surroundings"]
    (finding,) = surroundings.run(tmp_path, seed=names.index(name), count=1)
    assert finding.outcome == "refused", finding


@pytest.mark.slow
def test_loaders_are_opened_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openings, "DECODERS", ["pillow"])
    (finding,) = openings.run(tmp_path, seed=0, count=10)
    # Ten openings are too few to judge memory.
    assert finding.case == "pillow" and finding.detail.startswith("10 openings: threads "), finding


def test_how_a_process_ended_is_told_apart() -> None:
    def ended(code: int | None, text: str) -> str:
        return verdict(ProcessEnd(code, f"step 1\n{text}\n", 1.0), "jigsaw_r50", words=("--out",))[0]

    assert ended(0, "") == "goes on" and ended(None, "") == "hang" and ended(-9, "") == "crash"
    assert ended(2, "jigsaw_r50: no space; give --out") == "refused"
    assert (
        ended(2, "jigsaw_r50: no space")
        == ended(2, "give --out")
        == ended(1, "jigsaw_r50: --out")
        == "unclear"
    )
    assert ended(1, "Traceback (most recent call last):\n KeyError: --out") == "traceback"
    assert verdict(ProcessEnd(2, "jigsaw_r50: no\n", 1.0), "jigsaw_r50")[0] == "unclear"


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
