"""Committed results follow the schema; pages, tables and charts are what they make."""

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.charts import draw
from bench.evidence.page import EXPERIMENTS
from bench.evidence.page import texts as evidence_texts
from bench.figures.__main__ import chart_parts
from bench.performance import DOCS, PARTS, RESULTS, ROOT, marks, pages, read_results, written
from bench.schema import (
    LABELS,
    REHEARSAL,
    command_line,
    environment,
    finish,
    short_name,
    spread,
    validate,
    write_result,
)
from bench.speed_ups import NO_GPU, TARGETS, against_others, how_fast_table, targets_table, waiting
from bench.tables import HAVE_CHARTS, WHAT
from tests.faults import page as faults_page

COMMITTED = read_results(RESULTS)


@pytest.mark.parametrize("name", COMMITTED)
def test_a_chart_is_committed_where_a_page_shows_one(name: str, tmp_path: Path) -> None:
    if COMMITTED[name]["bench"] in HAVE_CHARTS:
        path = draw(COMMITTED[name], tmp_path / "chart.png")
        assert path.read_bytes()[:4] == (RESULTS / name).with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_pages_are_what_the_files_make() -> None:
    made = pages(COMMITTED) | written(ROOT, chart_parts()) | evidence_texts()
    for path, text in made.items():
        assert path.read_text() == text, f"{path.name}: write it anew (bench/README.md)"


def test_every_mark_has_a_writer_and_every_bench_its_words() -> None:
    known = {*PARTS, *chart_parts(), *EXPERIMENTS, *faults_page.pages(faults_page.RESULTS)}
    found = [name for page in [ROOT / "README.md", *DOCS.rglob("*.md")] for name in marks(page.read_text())]
    assert {*found} <= known and known - {*found} <= EXPERIMENTS
    assert WHAT.keys() == LABELS.keys()


def test_a_part_stands_on_every_page_with_its_marks(tmp_path: Path) -> None:
    page = "<!-- x begin: by a command -->\nold\n<!-- x end -->\nkept\n"
    for name in ("README.md", "docs/a.md", "docs/project/b.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(page)
    part = "[a](/docs/a.md#b), [c](/bench/c), [d](https://d/e), [f](#f)"
    found = {str(path.relative_to(tmp_path)): text for path, text in written(tmp_path, {"x": part}).items()}
    for name, links in {
        "README.md": "[a](docs/a.md#b), [c](bench/c),",
        "docs/a.md": "[a](a.md#b), [c](../bench/c),",
        "docs/project/b.md": "[a](../a.md#b), [c](../../bench/c),",
    }.items():
        assert f"{links} [d](https://d/e), [f](#f)" in found[name] and found[name].endswith("kept\n")
        assert "old" not in found[name]
    with pytest.raises(ValueError, match="no page"):
        written(tmp_path, {"z": part})
    (tmp_path / "docs" / "a.md").write_text(2 * page)
    with pytest.raises(ValueError, match="2 parts"):
        written(tmp_path, {"x": part})


def row(median: float, **labels: Any) -> dict[str, Any]:
    return labels | spread([median])


def of_gpu(bench: str, rows: Sequence[Any] = (), ratios: Sequence[Any] = (), **more: Any) -> dict[str, Any]:
    machine = {"cpu": "one", "num_cores": 16, "gpu": "NVIDIA H200"}
    parts = {"rows": [*rows], "ratios": [*ratios], "not_measured": []}
    return {"bench": bench, "environment": machine} | parts | more


DALI = {"decoder": "dali", "num_threads": 8}
BOTH = {"recipe": "simclr", "stage": "S1", "decoder": "dali", "num_views": 2}
STEP = {"recipe": "rotation", "backbone": "resnet50"}
GPU: dict[str, Any] = {
    "decode-h200.json": of_gpu(
        "decode",
        [row(28_600.0, num_views=1, **DALI), row(28_000.0, num_views=2, **DALI)],
        [
            row(1.01, what="samples/s / DALI's reader, whole images", num_views=1, **DALI),
            row(0.93, what="samples/s / DALI's reader, whole images", num_views=2, **DALI),
            row(4.5, what="samples/s / ffcv Loader", num_views=1, **DALI),
            row(8.5, what="samples/s / ffcv Loader", num_views=2, **DALI),
        ],
    ),
    "step-h200.json": of_gpu(
        "step",
        [
            row(1.0, stage="E", mode="eager", samples_per_s=5800, **STEP),
            row(1.0, stage="E", mode="fused", samples_per_s=8500, graph="on", **STEP),
            row(1.0, stage="S1", mode="eager", samples_per_s=12_000, **STEP),
        ],
        [
            row(cost, what="PSL's cost per epoch / end to end's", mode=mode, graph=graph, **STEP)
            for cost, mode, graph in (
                (0.9, "eager", "off"), (0.75, "fused", "on"), (0.72, "fused+fold", "on"),
            )
        ],
    ),
    "throughput-h200.json": of_gpu(
        "throughput",
        [row(9000.0, measured="both", cores_beyond_step=4.5, **BOTH)],
        [
            row(0.985, what="both / min(loader, step)", **BOTH),
            row(0.1, what="both / min(loader, step)", **(BOTH | {"decoder": "synthetic"})),
        ],
    ),
    "training-h200.json": of_gpu(
        "training",
        ratios=[
            row(2.9, what="ours / the peer's", recipe="simclr", stage="E", peer="lightly"),
            row(4.6, what="ours / the peer's", recipe="simclr", stage="S1", peer="lightly"),
        ],
    ),
    "gpu_day-h200-a.json": of_gpu(
        "gpu_day", [row(9.0, measured="recipe", exit=0), row(9.0, measured="resume", exit=124)],
        settings={"part": "a", "cut": "four minutes"},
    ),
}  # fmt: skip


def test_targets_are_told_by_their_figures() -> None:
    lines = dict(zip((target.reach for target in TARGETS), targets_table(GPU).splitlines()[2:], strict=True))
    for reach, figures in {
        ">= 8,400 / 12,300 / 10,100 / 12,100 images/s": (
            "reached: E 8,500 fused, captured", "**missed**: S1 12,000 eager, launched"
        ),
        "<= 0.73": ("reached: 0.72 (rotation, fused+fold, captured)",),
        ">= 4,200 / 6,100 / 6,300 images/s": ("reached: S1 9,000 dali, launched",),
        ">= 3x / 4.5x": ("**missed**: E 2.9x", "reached: S1 4.6x"),
        ">= 0.98": ("reached: 0.985 (simclr S1, dali)",),
        ">= 30,600 samples/s / >= 55,000 views/s": ("**missed**: 28,600", "reached: 56,000"),
        ">= 4x / 8x": ("reached: 1 view 4.5x", "reached: 2 views 8.5x"),
        ">= 0.95x": ("reached: 1 view 1.01x", "**missed**: 2 views 0.93x"),
        "<= 4 of 16": ("**missed**: 4.5 (simclr S1)",),
        "all green": ("**missed**: part a: 1 of 2 checks, not resume",),
    }.items():  # fmt: skip
        assert all(figure in lines[reach] for figure in figures), lines[reach]
    assert targets_table({}).count(NO_GPU) == len(TARGETS)


def test_speed_ups_are_those_of_the_files() -> None:
    table = how_fast_table(COMMITTED | GPU)
    assert "4.5x / 8.5x | ffcv's Loader" in table and "0.72x | an epoch of end-to-end" in table
    assert "2.9x / 4.6x | lightly's" in table
    ours = {
        row["num_views"]: row["median"]
        for row in COMMITTED["sizes.json"]["ratios"]
        if (row["what"], row["size"], row["peer"]) == ("samples/s / the peer's", "500", "SPDL")
    }
    assert f"|  | {ours[1]:.1f}x / {ours[2]:.1f}x | SPDL | [sizes.json]" in table
    assert [each.median for each in against_others(GPU["decode-h200.json"])] == [1.01, 0.93, 4.5, 8.5]
    assert [each.median for each in waiting(GPU["throughput-h200.json"])] == [0.985]


def throughput_result() -> dict[str, Any]:
    def of(measured: str, decoder: str | None, stage: str | None, *values: float) -> dict[str, Any]:
        labels = {"measured": measured, "decoder": decoder, "num_views": 1, "stage": stage}
        return {**labels, "unit": "samples/s", **spread(values)}

    ratio = {"what": "both / min(loader, step)", "decoder": "ffcv", "num_views": 1, "stage": "S1"}
    machine = environment()
    return {
        "schema": 1, "bench": "throughput", "command": command_line(), "environment": machine,
        "data": {"num_samples": 7}, "settings": {"repeats": 3},
        "rows": [
            of("loader", "ffcv", None, 9, 8, 10), of("step", None, "S1", 4, 5, 6),
            of("both", "ffcv", "S1", 4, 4, 5),
        ],
        "ratios": [{**ratio, **spread([1.0, 0.8, 5 / 6])}],
        "not_measured": [{"what": "ffcv Loader", "reason": "not installed"}], "notes": finish(machine),
    }  # fmt: skip


BREAKAGES = {
    "result: lacks rows": lambda r: r.pop("rows"),
    "result: has host": lambda r: r.update(host="mine"),
    "result.schema: is 9": lambda r: r.update(schema=9),
    "environment.num_cores: is bool": lambda r: r["environment"].update(num_cores=True),
    "settings: lacks repeats": lambda r: r["settings"].clear(),
    "rows[0]: lacks": lambda r: r["rows"].insert(0, 17),
    "rows[0].median: is 9.5": lambda r: r["rows"][0].update(median=9.5),
    "rows[0].values: 4 of them for 3": lambda r: r["rows"][0]["values"].append(9.0),
    "result.bench: is 'thruput'": lambda r: r.update(bench="thruput"),
    "rows[1]: lacks decoder": lambda r: r["rows"][1].pop("decoder"),
    "rows[2].values: must be finite": lambda r: r["rows"][2]["values"].__setitem__(0, float("nan")),
    "not_measured[0]: lacks reason": lambda r: r["not_measured"][0].pop("reason"),
    "notes: must be strings": lambda r: r["notes"].append(1),
    "rows: the loader of": lambda r: r["rows"].pop(0),
    "has 2 values, both together 3": lambda r: r["rows"][1].update(spread([4.0, 5.0])),
    "is 0.9, its rows say 1.0000": lambda r: r["ratios"][0].update(spread([0.9, 0.8, 5 / 6])),
    "rows: some stand there twice": lambda r: r["rows"].append(r["rows"][0]),
}


@pytest.mark.parametrize("message", BREAKAGES)
def test_a_broken_result_is_refused(message: str, tmp_path: Path) -> None:
    result = copy.deepcopy(throughput_result())
    write_result(tmp_path / "sound.json", result)
    BREAKAGES[message](result)
    with pytest.raises(ValueError, match=re.escape(message)):
        write_result(tmp_path / "result.json", result)
    assert [path.name for path in tmp_path.iterdir()] == ["sound.json"]


def test_rehearsals_shared_machines_and_folders_are_marked_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTPSL_COMMIT", "0123456789ab and changes")
    machine = environment() | {"load_average_before": 0.0}
    assert machine["commit"] == "0123456789ab and changes" and finish(machine) == []
    monkeypatch.setenv("FASTPSL_REHEARSAL", "1")
    assert finish(machine | {"load_average_before": 9.0})[1:] == [REHEARSAL] == finish(machine)
    (tmp_path / "bad.json").write_text(json.dumps(COMMITTED["loader.json"] | {"notes": [REHEARSAL]}))
    with pytest.raises(ValueError, match="bad.json: is a rehearsal"):
        read_results(tmp_path)
    arguments = ["bench/x.py", "--data", str(tmp_path / "a.beton"), "--views", "1"]
    assert command_line(arguments) == "python bench/x.py --data a.beton --views 1"
    for name, short in (("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"), ("NVIDIA GeForce RTX 5090", "rtx-5090"),
                        (None, "cpu")):  # fmt: skip
        assert short_name({"gpu": name}) == short


def test_spreads_are_of_inclusive_quartiles_and_repeats_as_many_as_are_said() -> None:
    expected = {"median": 3.0, "quartile_1": 2.0, "quartile_3": 4.0, "values": [5.0, 1.0, 3.0, 2.0, 4.0]}
    assert spread([5, 1, 3, 2, 4]) == expected
    result = throughput_result() | {"bench": "loader"}  # no clock ends its repeats
    validate(result)
    result["rows"][0] |= spread([9.0, 8.0])
    with pytest.raises(ValueError, match="2 of them for 3"):
        validate(result)
