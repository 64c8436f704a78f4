"""Test what docs/evidence.md says of experiments, with made-up records, and that plans came before scores."""

import hashlib
import json
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from bench.evidence import page
from bench.evidence.best_blocks import bests
from bench.evidence.claims import (
    PAPERS,
    chart_words,
    experiment_group,
    num_comparisons,
    p_values,
    paper_groups,
)
from bench.evidence.plan import RANDOM, UNTRAINED, read_plan
from bench.evidence.power import smallest_difference
from bench.evidence.results import Results, compared_numbers, t_interval
from bench.figures.svg import THEMES, render
from fastpsl.tables.paper_file import TABLES
from tests.bench.test_figures import SVG, check_layout, number
from tests.programs import ROOT

COSTS = [name for name in sorted(page.EXPERIMENTS) if page.chart_path(name, "light").exists()]
ROTATION = page.PLANS / "psl_rotation-cpu.json"
FULL = {
    "psl": [50.1, 51.3, 49.9, 50.6, 51.0, 50.2],
    "psl longer S1": [50.8, 51.5, 50.4, 50.5, 51.3, 50.7],
    "sl": [48.0, 49.1, 47.8, 48.8, 49.3, 48.1],
    "end to end": [50.0, 51.6, 49.6, 50.9, 50.8, 50.3],
    "end to end equal time": [47.0, 48.9, 47.6, 48.1, 48.4, 47.9],
    UNTRAINED: [29.4, 32.1, 28.7, 31.9, 28.6, 31.3],
}


def made(
    folder: Path,
    plan_path: Path,
    numbers: Mapping[str, Sequence[float]],
    epochs: str = "8 8 8",
    gpu: str | None = None,
) -> dict[str, Any]:
    """Return a record as it is written: an arm's n numbers are of the plan's first n seeds."""
    results = Results.opened(folder / "results.json", plan_path)
    end = results.plan.endpoint
    for place, (arm, values) in enumerate(numbers.items()):
        for seed, value in zip(results.plan.seeds, values, strict=False):
            run = {"arm": arm, "rate": 0.05, "seed": seed, "command": f"{arm} {seed} --epochs {epochs}"}
            results.record["scores"].append(run | {
                "evaluation": end.evaluation, "data": {"train": "t", "val": "v"}, "input": None,
                "numbers": {name: value + place for place, name in enumerate(end.numbers)},
            })  # fmt: skip
            if arm != RANDOM:
                results.record["training"].append(run | {
                    "seconds": 10.0 * place + seed, "cpu_seconds": 100.0 * place + 2 * seed, "curve": None,
                    "machine": {"gpu": gpu}, "stages": [{"seconds": 10.0 * place}],
                })  # fmt: skip
    results.write()
    record: dict[str, Any] = json.loads(results.path.read_text())
    return record | {"plan_commit": "c" * 40}


def test_a_whole_experiment_is_judged_by_rule(tmp_path: Path) -> None:
    plan = read_plan(ROTATION)
    record = made(tmp_path, ROTATION, FULL)
    group = experiment_group("psl_rotation-cpu", record, plan)
    lines = {line.pair: line for line in group.lines}
    assert [*lines] == [" − ".join(pair) for pair in plan.endpoint.pairs]
    line = lines["psl − end to end"]
    assert line.means == pytest.approx([statistics.fmean(FULL[arm]) for arm in ("psl", "end to end")])
    assert line.difference == pytest.approx(line.means[0] - line.means[1], abs=1e-3)
    interval = stats.ttest_rel(FULL["psl"], FULL["end to end"]).confidence_interval(0.95)
    assert line.interval == pytest.approx([*interval], abs=1e-3)
    assert (len(line.seeds), line.seconds, line.verdict) == (6, "5/305", "not found")
    assert lines["psl − end to end equal time"].verdict == lines["psl − sl"].verdict == "higher"
    longer = lines["psl longer S1 − psl"]
    assert 0.05 < (longer.p or 0) < 0.5 and longer.verdict == "not found"
    assert longer.interval is not None and longer.interval[0] > 0  # which is not corrected
    untrained = lines["psl − no training"]
    low, high = stats.ttest_rel(FULL["psl"], FULL[UNTRAINED]).confidence_interval(0.95)
    assert untrained.points == f"+20.2 (+{low:.1f} to +{high:.1f})" and untrained.p_in_words == "< .001"
    assert untrained.seconds == "5/–" and lines["end to end − no training"].verdict == "higher"
    variances = [
        statistics.variance([a - b for a, b in zip(FULL[first], FULL[second], strict=True)])
        for first, second in plan.endpoint.pairs
        if second != UNTRAINED
    ]
    points = statistics.fmean(variances) ** 0.5 * smallest_difference(6, 6)
    assert group.notes[0] == (
        f"With a probability of 80 %, 6 seeds find a difference of {points:.1f} points."
    )
    assert group.about == ("10,000 images of CIFAR-10, a small ResNet, 24 epochs; linear classifiers on B4")
    wide, narrow = (replace(plan, endpoint=replace(plan.endpoint, margin=margin)) for margin in (0.25, 0.2))
    low, high = stats.ttest_rel(FULL["psl"], FULL["end to end"]).confidence_interval(0.9)
    assert 0.2 < max(abs(low), abs(high)) < 0.25
    assert experiment_group("x", record, wide).lines[0].verdict == "alike within 0.25"
    assert experiment_group("x", record, wide).lines[1].verdict == "higher"
    assert experiment_group("x", record, narrow).lines[0].verdict == "not found"
    record["training"][0]["stages"][0]["seconds"] = 9.0  # in 0.0 s: it was resumed
    assert {experiment_group("x", record, plan).lines[0].seconds} == {"6/305"}
    turned = FULL | {"psl": FULL["sl"], "sl": FULL["psl"]}
    group = experiment_group("psl_rotation-cpu", made(tmp_path / "turned", ROTATION, turned), plan)
    assert {line.pair: line.verdict for line in group.lines}["psl − sl"] == "lower"


def test_an_experiment_that_goes_on_has_no_verdict(tmp_path: Path) -> None:
    """The third seed's first arm is there, and not the others; Holm counts all that the plan compares."""
    plan = read_plan(ROTATION)
    part = {arm: FULL[arm][: 3 if arm == "psl" else 2] for arm in FULL if arm != "sl"}
    record = made(tmp_path, ROTATION, part)
    group = experiment_group("psl_rotation-cpu", record, plan)
    assert "psl − sl" not in {line.pair for line in group.lines} and len(group.lines) == 5
    assert {line.verdict for line in group.lines} == {"open: seeds to come"}
    assert group.lines[0].means[0] == pytest.approx(statistics.fmean(FULL["psl"][:2]))  # as its partner
    assert group.notes[0] == "11 of 36 entries are there." and "seeds find" not in " ".join(group.notes)
    plain = [stats.ttest_1samp(one["values"], 0).pvalue for one in record["differences"]]
    assert min(p for p in p_values(record) if p is not None) == pytest.approx(6 * min(plain))
    one = made(tmp_path / "one", ROTATION, {arm: FULL[arm][:1] for arm in FULL})
    group = experiment_group("psl_rotation-cpu", one, plan)
    assert all(line.interval is line.p is None and len(line.seeds) == 1 for line in group.lines)
    assert group.lines[3].points == "+2.1" and group.lines[3].p_in_words == ""


def test_on_a_gpu_the_clock_counts_and_pairs_with_random_weights_are_left_out(tmp_path: Path) -> None:
    path = page.PLANS / "psl_jigsaw-small.json"
    plan = read_plan(path)
    values = {arm: [20.0 + place, 21.5 + place, 19.0] for place, arm in enumerate(plan.rows)}
    group = experiment_group("x", made(tmp_path, path, values, "2 2", gpu="H200"), plan)
    assert [line.seconds for line in group.lines[:2]] == ["1/11", "1/11"]
    assert {line.pair.rpartition(", ")[2] for line in group.lines} == {"B3", "B4"}
    assert not any(RANDOM in line.pair for line in group.lines) and "4 epochs" in group.about
    assert (group.columns, group.arms["psl"]) == (["B3", "B4"], ["20.2 ± 1.3 (3)", "21.2 ± 1.3 (3)"])
    times = {"rows": [{"arm": "psl", "cpu_seconds": [400.0, 600.0]}]}
    group = experiment_group("x", made(tmp_path / "old", path, values), plan, times)
    assert group.lines[0].seconds == "500/102"


def test_a_chart_has_each_number_at_its_place(tmp_path: Path) -> None:
    plan = read_plan(ROTATION)
    group = experiment_group("psl_rotation-cpu", made(tmp_path, ROTATION, FULL), plan)
    words = chart_words("psl", [*paper_groups("psl"), group])
    assert words["ticks"][0] <= -1.3 and words["ticks"][-1] >= 20 and 0 in words["ticks"]
    for theme in THEMES:
        check_layout(ElementTree.fromstring(render("forest", theme, words)))
    root = ElementTree.fromstring(render("forest", "light", words))
    circles = [one for one in root.iter(f"{SVG}circle") if one.get("class") == "mean"]
    places = [number(one, "cx") for one in circles]
    fit = stats.linregress([line.difference for line in group.lines], places)
    assert fit.slope > 10 and fit.rvalue == pytest.approx(1, abs=1e-5)
    seeds = [number(one, "cx") for one in root.iter(f"{SVG}circle") if one.get("class") == "seed"]
    values = [value for line in group.lines for value in line.seeds]
    assert seeds == pytest.approx([fit.intercept + fit.slope * value for value in values], abs=0.2)
    filled = {one.attrib["fill"] != THEMES["light"]["page"] for one in circles}
    assert filled == {True, False}
    assert len([one for one in root.iter(f"{SVG}path") if one.get("class") == "paper"]) == 3
    flat = chart_words("psl", [*paper_groups("psl")])
    assert len(flat["ticks"]) > 2


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", sorted(PAPERS) + COSTS)
def test_a_committed_chart_can_be_read(name: str, theme: str) -> None:
    check_layout(ElementTree.fromstring(page.chart_path(name, theme).read_text()))


def test_a_new_record_reaches_the_page_the_charts_and_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "deepcluster-cpu"
    for folder in page.RUNS.iterdir():
        if folder.name != name:
            (tmp_path / folder.name).symlink_to(folder)
    monkeypatch.setattr(page, "RUNS", tmp_path)
    path = page.PLANS / f"{name}.json"
    values = {"uic": [44.0, 45.0, 43.5], "deepcluster": [43.0, 44.5, 43.9], UNTRAINED: [30.0, 31.5, 29.5]}
    (tmp_path / name).mkdir()
    before = page.texts()
    record = made(tmp_path / name, path, values)
    (tmp_path / name / "results.json").write_text(json.dumps(record))
    after = page.texts()
    row = next(line for line in after[page.EVIDENCE].splitlines() if line.startswith("| uic − deepcluster |"))
    assert "| 44.2/43.8 |" in row and "9 of 18 entries" in after[page.EVIDENCE]
    changed = {path.name for path, text in after.items() if before[path] != text}
    charts = {f"evidence-uic-{theme}.svg" for theme in THEMES}
    assert changed == {"evidence.md", "model_zoo.md", "small_scale.json", *charts}
    (tmp_path / name / "results.json").write_text(json.dumps(record | {"plan_commit": None}))
    with pytest.raises(ValueError, match="its plan was not committed"):
        page.texts()


def git(*words: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *words], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", [name for name, _ in page.read_results(page.RUNS)])
def test_a_plan_was_committed_before_its_first_score(name: str) -> None:
    if not (ROOT / ".git").exists() or git("rev-parse", "--is-shallow-repository").strip() != "false":
        pytest.skip("no git history")
    record = json.loads((page.RUNS / name / "results.json").read_text())
    plan = git("show", f"{record['plan_commit']}:bench/evidence/{record['plan']}")
    assert hashlib.sha256(plan.encode()).hexdigest() == record["plan_sha256"]
    committed = datetime.fromisoformat(git("show", "-s", "--format=%cI", record["plan_commit"]).strip())
    scores = (*record["search"], *record["scores"], *record.get("beside", ()))
    dates = [datetime.fromisoformat(one["date"]) for one in scores if "date" in one]
    assert committed < min(dates)


GENERATED = re.compile(r"<!-- (?!loaders)[\w -]+ begin.*? end -->", re.DOTALL)
FIGURE = re.compile(r"([+−]\d+\.\d)[^()+−]{0,60}\(([+−]\d+\.\d to [+−]\d+\.\d)\)")
WRITTEN = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_intervals_that_people_wrote_stand_in_a_table() -> None:
    """A figure with an interval is of the experiments' page, or of a table of its own page."""
    evidence, known = (ROOT / "docs/evidence.md").read_text(), 0
    for path in WRITTEN:
        text = path.read_text()
        tables = "\n".join(GENERATED.findall(text) + GENERATED.findall(evidence))
        for figures in FIGURE.findall(GENERATED.sub("", text).replace("\n", " ")):
            rows = ("{} ({})".format(*figures), "{} | {}".format(*figures).replace("−", "-"))
            assert any(row in tables for row in rows), f"{path.relative_to(ROOT)}: {figures}"
            known += 1
    assert known > 30


def section(path: Path, anchor: str) -> str:
    """Return what stands below a heading, down to the next one that is as high."""
    for heading in re.finditer(r"^(#+) (.*)$", path.read_text(), re.MULTILINE):
        if heading[2].lower().replace(" ", "-") == anchor:
            rest = path.read_text()[heading.end() :]
            return re.split(rf"^#{{1,{len(heading[1])}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    raise AssertionError(f"{path}: no {anchor}")


def test_accuracies_of_the_front_pages_are_linked_to_their_spread() -> None:
    """A paragraph, with the code below it, links to a section that has its figures and how far they vary."""
    found = []
    for page_of in (ROOT / "README.md", ROOT / "docs/index.md"):
        text = page_of.read_text().replace("\n\n```text", "\n```text")
        for part in re.split(r"\n\n|\n- ", text):
            figures = {f"{a} ({b})" for a, b in FIGURE.findall(part)} | {*re.findall(r"\d+\.\d %", part)}
            if figures:
                sections = [
                    section((page_of.parent / path), anchor)
                    for path, anchor in re.findall(r"\]\(([\w/]+\.md)#([\w-]+)\)", part)
                ]
                for figure in figures:
                    assert any(figure in one and re.search(r"±|\d to [+−]\d", one) for one in sections), (
                        f"{page_of.relative_to(ROOT)}: {figure}"
                    )
                found.append(figures)
    assert len(found) == 3
    rows = {row.method: row for row in TABLES["psl/4"].rows}
    gains = [
        (row.numbers[0] or 0) - (rows[row.baseline or ""].numbers[0] or 0)
        for name, row in rows.items()
        if name.endswith("+PSL")
    ]
    assert (
        f"The paper reports {min(gains):.1f} to {max(gains):.1f} points" in (ROOT / "README.md").read_text()
    )


def test_a_margin_that_is_named_holds_by_its_interval() -> None:
    """UIC beside DeepCluster on B4: two one-sided tests at 5 % are the interval of 90 %."""
    results = json.loads((page.RUNS / "deepcluster-cpu/results.json").read_text())
    of = compared_numbers(results)
    interval = t_interval(
        [of["uic", seed]["top1_B4"] - of["deepcluster", seed]["top1_B4"] for seed in range(6)], 0.9
    )
    low, high = (f"{end:+.1f}".replace("-", "−") for end in interval)
    text = " ".join((ROOT / "docs/evidence.md").read_text().split())
    assert f"margin of 2 points, named afterwards, holds there: the 90 % interval is {low} to {high}" in text
    assert -2 < interval[0] < -1.5


def test_best_blocks_are_chosen_by_the_other_seeds() -> None:
    """By a plain loop over a record of made-up scores; B2 is best in all seeds but the last."""
    draws, blocks = np.random.default_rng(3), ("B1", "B2", "B3")
    scores: list[dict[str, Any]] = [
        {"arm": arm, "seed": seed, "evaluation": "linear",
         "numbers": {f"top1_{b}": float(draws.normal(10 * place, 4)) for place, b in enumerate(blocks)}}
        for arm in ("one", "two", UNTRAINED, RANDOM)
        for seed in range(4)
    ]  # fmt: skip
    scores[3]["numbers"] |= {"top1_B1": 90.0}  # of seed 3 of "one": it does not choose for itself
    results = {"endpoint": {"evaluation": "linear", "numbers": ["top1_B2"]}, "scores": scores}
    of = {(one["arm"], one["seed"]): one["numbers"] for one in scores}

    def at_best(arm: str, seed: int) -> float:
        means = {b: sum(of[arm, other][f"top1_{b}"] for other in range(4) if other != seed) for b in blocks}
        best = max(blocks, key=lambda b: means[b])
        return float(of[arm, seed][f"top1_{best}"])

    found = {one.arm: one for one in bests(results)}
    assert found.keys() == {"one", "two", UNTRAINED}
    for arm, one in found.items():
        assert one.values == {seed: at_best(arm, seed) for seed in range(4)}
        gains = {} if arm == UNTRAINED else {s: at_best(arm, s) - at_best(UNTRAINED, s) for s in range(4)}
        assert one.gains == pytest.approx(gains)
        assert {*one.blocks} <= {*blocks}
    assert found["one"].values[3] != 90.0 and "B1" in found["one"].blocks
    numbers = compared_numbers(results | {"beside": []})
    assert all(numbers[arm, seed]["top1_best"] == at_best(arm, seed) for arm, seed in of)
    chosen = [
        one | {"evaluation": "others", "numbers": {f"top1_{b}": float(b == "B1") for b in blocks}}
        for one in scores
    ]
    end = {"evaluation": "linear", "numbers": ["top1_B2", "top1_B3"], "chosen_by": "others"}
    for one in bests({"endpoint": end, "scores": scores + chosen}):
        assert one.blocks == ["B1"] and one.evaluation == "linear"
        assert one.values == {seed: of[one.arm, seed]["top1_B1"] for seed in range(4)}
    single = [one for one in scores if one["seed"] == 0]
    assert not [*bests(results | {"scores": single})]


def test_best_blocks_can_decide(tmp_path: Path) -> None:
    """A single seed has no row of them. Holm counts them beside the block."""
    plan = tmp_path / "plan.json"
    fields = json.loads(ROTATION.read_text())
    end = fields["endpoint"] | {"numbers": ["top1_B4", "top1_best"], "pairs": [["psl", "sl"]]}
    plan.write_text(json.dumps(fields | {"endpoint": end}))
    numbers = {  # B4 and B5 of two seeds: the other seed's best is B5, then B4
        "psl": [(50.0, 40.0), (44.0, 47.0)], "sl": [(39.0, 41.0), (38.0, 43.0)],
    }  # fmt: skip
    for num_seeds, names in ((1, ["top1_B4"]), (2, ["top1_B4", "top1_best"])):
        results = Results.opened(tmp_path / f"{num_seeds}.json", plan)
        results.record["scores"] = [
            {"arm": arm, "rate": 0.05, "seed": seed, "evaluation": "linear", "input": None,
             "command": f"{arm} {seed}", "data": {"train": "t", "val": "v"},
             "numbers": {"top1_B4": of[seed][0], "top1_B5": of[seed][1]}}
            for arm, of in numbers.items() for seed in range(num_seeds)
        ]  # fmt: skip
        results.write()
        assert [one["number"] for one in results.record["differences"]] == names
    assert [one["values"] for one in results.record["differences"]] == [[11.0, 6.0], [-1.0, 1.0]]
    best = [row["values"] for row in results.record["means"] if row["number"] == "top1_best"]
    assert best == [[40.0, 44.0], [41.0, 43.0]]
    assert num_comparisons(results.record["endpoint"]) == 2
    (_, line) = experiment_group("x", results.record, results.plan).lines
    assert line.pair == "psl − sl, best block" and line.means == (42.0, 42.0)
