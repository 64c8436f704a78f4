"""The pages agree with the results' files, and targets are judged by the right figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.evidence.page import EXPERIMENTS
from bench.figures.__main__ import chart_parts
from bench.how_fast import how_fast_table
from bench.pages import filled, marks, written
from bench.performance import DOCS, PARTS, RESULTS, ROOT, WHAT, pages, read_results, section
from bench.ratios import against_others, losses_table, waiting
from bench.schema import LABELS, REHEARSAL, spread
from bench.targets import NO_GPU, NOT_MEASURED, TARGETS, targets_table
from tests.faults import page as faults_page


def test_the_committed_pages_are_what_the_committed_files_make() -> None:
    for path, text in pages(read_results(RESULTS)).items():
        assert path.read_text() == text, f"{path.name}: run python bench/performance.py"


def test_every_mark_has_a_writer() -> None:
    """A part with a mistyped mark would stay as it is for ever."""
    known = {*PARTS, *chart_parts(), *EXPERIMENTS, *faults_page.pages(faults_page.RESULTS)}
    found = [name for page in [ROOT / "README.md", *DOCS.rglob("*.md")] for name in marks(page.read_text())]
    assert {*found} <= known and known - {*found} <= EXPERIMENTS


def test_every_file_has_a_section() -> None:
    text = "".join((DOCS / "project" / page).read_text() for page in ("benchmark_tables.md", "gpu_tables.md"))
    names = [path.name for path in RESULTS.glob("*.json")]
    assert names and all(
        f"### {name}" in text and f"[{name}](../../bench/results/{name})" in text for name in names
    )
    assert text.count("<details>") == text.count("</details>") == len(names) + 3
    assert WHAT.keys() == LABELS.keys()


def test_a_part_stands_on_every_page_with_its_marks(tmp_path: Path) -> None:
    pages = {"README.md": "x", "docs/a.md": "x", "docs/project/b.md": "x", "docs/c.md": "y"}
    for name, part in pages.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"<!-- {part} begin: by a command -->\n<!-- {part} end -->\n")
    part = "[a](/docs/a.md#b), [c](/bench/c), [d](https://d/e), [f](#f)"
    texts = {str(path.relative_to(tmp_path)): text for path, text in written(tmp_path, {"x": part}).items()}
    assert texts.keys() == {"README.md", "docs/a.md", "docs/project/b.md"}
    for name, links in {
        "README.md": "[a](docs/a.md#b), [c](bench/c),",
        "docs/a.md": "[a](a.md#b), [c](../bench/c),",
        "docs/project/b.md": "[a](../a.md#b), [c](../../bench/c),",
    }.items():
        assert f"{links} [d](https://d/e), [f](#f)" in texts[name]
    with pytest.raises(ValueError, match="no page of docs/ has the marks <!-- z begin -->"):
        written(tmp_path, {"z": part})


def test_a_check_finds_a_stale_page(tmp_path: Path) -> None:
    page = "# A\n<!-- x begin: by a command -->\nold\n<!-- x end -->\nkept\n"
    assert (
        filled(page, {"x": "new"}) == "# A\n<!-- x begin: by a command -->\n\nnew\n\n<!-- x end -->\nkept\n"
    )
    with pytest.raises(ValueError, match="0 parts are marked <!-- y begin"):
        filled(page, {"y": "new"})
    (tmp_path / "bad.json").write_text('{"schema": 1}')
    with pytest.raises(ValueError, match="bad.json: result: lacks"):
        read_results(tmp_path)
    rehearsed = json.loads((RESULTS / "loader.json").read_text()) | {"notes": [REHEARSAL]}
    (tmp_path / "bad.json").write_text(json.dumps(rehearsed))
    with pytest.raises(ValueError, match="bad.json: is a rehearsal"):
        read_results(tmp_path)


def row(median: float, **labels: Any) -> dict[str, Any]:
    return labels | spread([median])


def gpu_results() -> dict[str, dict[str, Any]]:
    """Return results of every bench as from a GPU, which reach some targets and miss others."""
    both = {"decoder": "dali", "recipe": "simclr", "num_views": 2}
    throughput = {
        "bench": "throughput",
        "rows": [
            row(9000.0, measured="both", stage="S1", cores_beyond_step=3.5, **both),
            row(8000.0, measured="both", stage="S2", cores_beyond_step=4.5, **both),
            row(14_100.0, measured="both", stage="S1", graph="on", **(both | {"recipe": "jigsaw"})),
            row(9e4, measured="loader", stage=None, **(both | {"recipe": None})),
            row(1e4, measured="peer", stage=None, **(both | {"recipe": None, "decoder": "ffcv_loader"})),
        ],
        # In S2 the step is faster than the decoder, so that the decoder sets the pace.
        "ratios": [
            row(0.99, what="both / step", stage="S1", **both),
            row(0.97, what="both / step", stage="S1", **(both | {"recipe": "jigsaw"})),
            row(0.99, what="both / min(loader, step)", stage="S1", **both),
            row(0.80, what="both / step", stage="S2", **both),
            row(0.985, what="both / min(loader, step)", stage="S2", **both),
            row(0.97, what="both / min(loader, step)", stage="S1", **(both | {"recipe": "moco"})),
            row(0.10, what="both / min(loader, step)", stage="S1", **(both | {"decoder": "synthetic"})),
        ],
    }  # fmt: skip
    ours = {"decoder": "dali", "num_threads": 8}
    decode = {
        "bench": "decode",
        "rows": [
            row(28_600.0, num_views=1, **ours),
            *(row(rate, num_views=2, **ours) for rate in (27_000.0, 28_000.0)),
        ],
        "ratios": [
            row(1.01, what="samples/s / DALI's reader, whole images", num_views=1, **ours),
            row(0.93, what="samples/s / DALI's reader, whole images", num_views=2, **ours),
            row(4.5, what="samples/s / ffcv Loader", num_views=1, **ours),
            row(8.5, what="samples/s / ffcv Loader", num_views=2, **ours),
        ],
    }
    kernels = {
        "bench": "kernels",
        "rows": [
            row(0.16, measured="kernel", chain="SimCLR T3", path="fused"),
            row(17.0, measured="kernel", chain="SimCLR T3", path="kornia_modules"),
            row(0.2, measured="kernel", chain="jigsaw", path="fused"),
            row(0.4, measured="kernel", chain="rotation, all 8", path="fused"),
            row(6.0, measured="kernel", chain="area crop", path="kornia"),
            row(1.5, measured="kernel", chain="area crop", path="torchvision_batch"),
            row(0.1, measured="copy", chain="copy", path=None),
        ],
        "ratios": [row(106.0, what="kornia_modules / fused", chain="SimCLR T3")],
    }  # fmt: skip
    labels = {"recipe": "rotation", "backbone": "resnet50"}
    steps = {
        ("E", "eager"): 5800,
        ("E", "compiled"): 7450,
        ("S1", "eager"): 12_000,
        ("S2", "compiled"): 9100,
        ("S3", "eager"): 9000,
    }
    step: dict[str, Any] = {
        "bench": "step",
        "rows": [
            row(1.0, stage=stage, mode=mode, samples_per_s=rate, **labels)
            for (stage, mode), rate in steps.items()
        ],
        "ratios": [
            row(cost, what="PSL's cost per epoch / end to end's", stage=None, mode=mode, **labels)
            for cost, mode in ((0.9, "eager"), (0.74, "compiled"))
        ],
    }
    captured = {"graph": "on", "stage": "E", **labels}
    step["rows"].append(row(1.0, mode="fused", samples_per_s=8500, **captured))
    step["ratios"] += [
        row(cost, what="PSL's cost per epoch / end to end's", mode=mode, **(captured | {"stage": None}))
        for cost, mode in ((0.75, "fused"), (0.72, "fused+fold"))
    ]
    training = {
        "bench": "training",
        "rows": [],
        "ratios": [
            row(ratio, what="ours / the peer's", recipe=recipe, stage=stage, peer=peer)
            for ratio, recipe, stage, peer in (
                (2.9, "simclr", "E", "lightly"),
                (4.6, "simclr", "S1", "lightly"),
                (0.9, "supervised", "E", "dali_resnet50"),
            )
        ],
    }
    resident = {"decoder": "resident", "stage": "E", "num_views": 1}
    small = {
        "bench": "small",
        "rows": [
            row(
                17_500.0, measured="step", recipe="sslpp_rotation", step="eager", graph="on",
                inputs_per_image=4, **resident,
            ),
            row(30_000.0, measured="step", recipe="sslpp_aet", step="eager", inputs_per_image=1, **resident),
        ],
        "ratios": [
            row(0.98, what="both / step", recipe="sslpp_rotation", **resident),
            row(0.94, what="both / step", recipe="sslpp_iic", **resident),
            row(0.945, what="both / min(loader, step)", recipe="sslpp_iic", **resident),
            row(0.5, what="both / min(loader, step)", recipe="sslpp_aet", **(resident | {"decoder": "ffcv"})),
        ],
    }  # fmt: skip
    detection = {
        "bench": "detection",
        "rows": [],
        "ratios": [
            row(1.05, what="torchvision's ms / ours", backbone="resnet50"),
            row(0.9, what="detectron2's ms / ours", backbone="resnet50"),
            row(0.8, what="torchvision's ms / ours", backbone="resnet18"),
        ],
    }
    day = {
        "bench": "gpu_day", "settings": {"part": "a", "cut": "four minutes"},
        "ratios": [], "not_measured": [],
        "rows": [
            row(9.0, measured=name, exit=0, said="") for name in ("versions", "recipe", "tests-a", "step")
        ],
    }  # fmt: skip
    machine = {"cpu": "one", "num_cores": 16, "gpu": "NVIDIA H200"}
    results = (throughput, decode, kernels, step, small, training, detection, day)
    return {f"{result['bench']}-h200.json": result | {"environment": machine} for result in results}


def test_targets_are_told_by_their_figures() -> None:
    results = gpu_results()
    day = results["gpu_day-h200.json"]
    day["environment"] = day["environment"] | {"date": "2026-12-01"}
    cells_by_target = {
        target.what: line.split(" | ")[-1]
        for target, line in zip(TARGETS, targets_table(results).splitlines()[2:], strict=True)
    }
    cells = list(cells_by_target.values())
    for cell, expected in zip(
        cells,
        (
            ("reached: E 8,500 fused, captured (step-h200.json, 2026-11-26); "
             "**missed**: S1 12,000 eager, launched (step-h200.json, 2026-11-26); "
             "**missed**: S2 9,100 compiled, launched (step-h200.json, 2026-11-26); **missed**: S3 9,000"),
            # In the mode of the fastest step end to end, which is fused and captured.
            "reached: 0.72 (rotation, fused+fold, captured) (step-h200.json, 2026-11-26) |",
            ("reached: S1 14,100 dali, captured (throughput-h200.json, 2026-11-26); "
             "**missed**: 0.970 of the step (throughput-h200.json, 2026-11-26) |"),
            "reached: S1 9,000 dali, launched (throughput-h200.json, 2026-11-26) |",
            ("**missed**: E 2.9x (training-h200.json, 2026-11-26); "
             "reached: S1 4.6x (training-h200.json, 2026-11-26) |"),
            "reached: 0.980 (sslpp_rotation, captured) (small-h200.json, 2026-11-26) |",
            "reached: 0.160 ms (kernels-h200.json, 2026-11-26); reached: 106x Kornia's modules",
            "**missed**: 0.160 ms (kernels-h200.json, 2026-11-26) |",
            "**missed**: 0.200 ms", "reached: 0.400 ms",
            ("reached: 0.985 (simclr S2, dali) (throughput-h200.json, 2026-11-26); "
             "**missed**: 0.970 (moco S1, dali)"),
            "reached: 70,000 eager, captured (small-h200.json, 2026-11-26)",
            "**missed**: 28,600 samples/s (decode-h200.json, 2026-11-26); reached: 56,000 views/s",
            "reached: 1 view 4.5x (decode-h200.json, 2026-11-26); reached: 2 views 8.5x",
            "reached: 1 view 1.01x (decode-h200.json, 2026-11-26); **missed**: 2 views 0.93x",
            "**missed**: 4.5 (simclr S2)",
            # Only torchvision's ratio with ResNet-50 counts.
            "**missed**: 1.05x (detection-h200.json, 2026-11-26) |",
            "reached: part a: 2 of 2 checks (gpu_day-h200.json, 2026-12-01) |",
        ),
        strict=True,
    ):  # fmt: skip
        assert cell.startswith(expected), cell


def test_what_no_file_says_is_not_measured() -> None:
    assert targets_table({}).count(NO_GPU) == len(TARGETS)
    results = {"kernels-h200.json": gpu_results()["kernels-h200.json"]}
    table = targets_table(results)
    assert NO_GPU not in table and table.count(NOT_MEASURED) == len(TARGETS) - 4


def test_steps_that_fail_or_have_no_time_are_not_green() -> None:
    (target,) = (target for target in TARGETS if target.reach == "all green")
    day = gpu_results()["gpu_day-h200.json"]
    day["rows"][1]["exit"] = 124
    day["not_measured"] = [{"what": "tests-memory", "reason": "no time left"}]
    speed = day | {"settings": {"part": "b"}, "rows": [row(1.0, measured="decode", exit=2, said="")]}
    figures = list(target.find({"a": day, "b": speed | {"not_measured": []}, "c": speed}))
    assert [(each.text, each.is_reached, each.file) for each in figures] == [
        ("part a: 1 of 3 checks, not recipe, tests-memory", False, "a"),
        ("part b of the older parts: 0 of 1 checks, not tests-memory", False, "c"),
    ]  # fmt: skip


def test_readmes_table_has_lines_of_gpus_when_there_are_files() -> None:
    committed = {name: result for name, result in read_results(RESULTS).items() if "h200" not in name}
    table = how_fast_table(committed)
    assert "On a GPU: not measured yet." in table and "on a GPU |" not in table
    ours = {
        row["num_views"]: row["median"]
        for row in committed["sizes.json"]["ratios"]
        if (row["what"], row["size"], row["peer"]) == ("samples/s / the peer's", "500", "SPDL")
    }
    assert f"|  | {ours[1]:.1f}x / {ours[2]:.1f}x | SPDL | [sizes.json]" in table
    lines = how_fast_table(committed | gpu_results()).splitlines()
    assert lines[0].endswith("On a GPU: NVIDIA H200.") and len(lines) == len(table.splitlines()) + 9
    cells = {tuple(cell.strip() for cell in line.split("|")[1:4]) for line in lines if "-h200.json" in line}
    assert cells == {
        ("loading with the decoder `dali`: one / two crops of 224 px, on a GPU", "4.5x / 8.5x",
         "ffcv's Loader"),
        ("", "1.01x / 0.93x", "DALI's own reader and random_resized_crop"),
        ("SimCLR's augmentations at level 3 (T3), on a GPU", "106x", "Kornia's modules"),
        ("training from JPEGs, the stage that waits the most, on a GPU", "0.97x",
         "the slower of its loader and its step, alone"),
        ("cost of an epoch of PSL, rotation, eager (below 1: cheaper), on a GPU", "0.90x",
         "an epoch of end-to-end training"),
        ("cost of an epoch of PSL, rotation, captured, fused, folded (below 1: cheaper), on a GPU", "0.72x",
         "an epoch of end-to-end training"),
        ("training SimCLR from JPEGs: end to end / PSL's S1, on a GPU", "2.9x / 4.6x",
         "lightly's SimCLR, end to end"),
        ("supervised training from JPEGs, on a GPU", "0.90x", "DALI's example of ResNet-50"),
        ("a step of detection, ResNet-50 C4, on a GPU", "1.05x", "torchvision's FasterRCNN"),
    }  # fmt: skip


def test_ratios_of_all_files_are_found() -> None:
    results = read_results(RESULTS) | gpu_results()
    ratios = {
        (each.what, each.ours, each.beside, each.case): each.row["median"]
        for each in against_others(results)
        if each.file.endswith("-h200.json")
    }
    assert ratios["loader alone", "decoder `dali`", "ffcv Loader", "2 views"] == 9
    assert ratios["loader alone", "decoder `dali`, 8 threads", "ffcv Loader", "2 views"] == 8.5
    assert ratios["augmentation: SimCLR T3", "fused", "Kornia's modules", ""] == 106
    # A loss, without a fused path.
    assert ratios["augmentation: area crop", "unfused", "torchvision, one draw per batch", ""] == 0.25
    assert {each.row["median"] for each in waiting(gpu_results())} == {0.99, 0.985, 0.97}


def test_all_losses_are_told() -> None:
    lines = losses_table(gpu_results()).splitlines()[2:]
    step = "the slower of its loader and its step, alone"
    assert [line.rpartition(" | [")[0] for line in lines] == [
        "| loader alone | decoder `dali`, 8 threads | DALI's reader, whole images: 0.93x (2 views)",
        "| augmentation: area crop | unfused | torchvision, one draw per batch: 0.25x",
        "| training, supervised | fastpsl train | DALI's example of ResNet-50, supervised: 0.90x (E)",
        f"| training, simclr | decoder `dali` | {step}: 0.99x (S1 with 2 views), 0.98x (S2 with 2 views)",
        f"| training, moco | decoder `dali` | {step}: 0.97x (S1 with 2 views)",
    ]
    losses = losses_table(read_results(RESULTS))
    ratio = next(
        spread([a / b for a, b in zip(ours["values"], theirs["values"], strict=True)])["median"]
        for result in [read_results(RESULTS)["throughput-photos.json"]]
        for ours in result["rows"]
        for theirs in result["rows"]
        if (ours["measured"], ours["decoder"], ours["stage"], ours["num_views"])
        == ("loader", "dali", None, 2)
        and (theirs["measured"], theirs["decoder"], theirs["num_views"]) == ("peer", "dali_reader", 2)
    )
    assert ratio < 1 and f"{ratio:.2f}x (2 views); torchvision + DataLoader" in losses


def test_a_section_has_every_row_and_what_is_missing() -> None:
    name = "throughput.json"
    result = json.loads((RESULTS / name).read_text())
    result["not_measured"] = [{"what": "ffcv Loader", "reason": "not installed"}]
    text = section(name, result)
    assert text.count("\n| ") == len(result["rows"]) + len(result["ratios"]) + 2
    assert "- not measured: ffcv Loader: not installed" in text and "(/bench/results/throughput.png)" in text
    folded = text.partition("<details><summary>")[2]
    assert folded.startswith(f"{len(result['rows'])} rows and {len(result['ratios'])} ratios, measured on ")
    assert "| measured |" in folded and folded.endswith("\n\n</details>")
