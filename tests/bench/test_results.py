"""Committed results follow the schema; pages, tables and charts are what they make."""

import copy
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bench.archives import read_archive, read_archives
from bench.evidence import page as evidence
from bench.figures.__main__ import chart_parts
from bench.performance import (
    PARTS,
    RESULTS,
    ROOT,
    marks,
    pages,
    pages_of,
    read_results,
    written,
)
from bench.schema import (
    LABELS,
    REHEARSAL,
    command_line,
    environment,
    finish,
    spread,
    write_result,
)
from bench.speed_ups import (
    NO_GPU,
    TARGETS,
    against_others,
    how_fast_table,
    losses_table,
    targets_table,
    waiting,
)
from bench.tables import WHAT
from tests.faults import page as faults_page

COMMITTED = read_results(RESULTS)


def test_pages_are_what_the_files_make() -> None:
    made = pages(COMMITTED) | written(ROOT, chart_parts()) | evidence.texts()
    for path, text in made.items():
        assert path.read_text() == text, f"{path.name}: write it anew (bench/README.md)"


def test_every_mark_has_a_writer_and_every_bench_its_words() -> None:
    known = {*PARTS, "cards", *chart_parts(), *evidence.PARTS, *faults_page.pages(faults_page.RESULTS)}
    found = [name for page in pages_of(ROOT) for name in marks(page.read_text())]
    assert known <= {*found} <= known | evidence.EXPERIMENTS
    assert WHAT.keys() == LABELS.keys()


def test_a_part_stands_on_every_page_with_its_links(tmp_path: Path) -> None:
    page = "<!-- x begin: by a command -->\nold\n<!-- x end -->\nkept\n"
    expected = {
        "README.md": "[a](docs/a.md#b)",
        "docs/a.md": "[a](a.md#b)",
        "docs/project/b.md": "[a](../a.md#b)",
    }
    for name in expected:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(page)
    found = written(tmp_path, {"x": "[a](/docs/a.md#b), [d](https://d/e), [f](#f)"})
    for name, link in expected.items():
        text = found[tmp_path / name]
        assert f"{link}, [d](https://d/e), [f](#f)" in text and text.endswith("kept\n") and "old" not in text
    with pytest.raises(ValueError, match="no page"):
        written(tmp_path, {"z": ""})


HERE = Path(__file__).parent
GPU: dict[str, Any] = json.loads((HERE / "gpu.json").read_text())


def test_tables_of_a_gpu_are_those_of_their_golden_file() -> None:
    tables = (make(GPU) for make in (targets_table, how_fast_table, losses_table))
    assert "\n\n".join(tables) + "\n" == (HERE / "gpu.txt").read_text()
    assert targets_table({}).count(NO_GPU) == len(TARGETS)


def test_speed_ups_are_those_of_the_files() -> None:
    table = how_fast_table(COMMITTED)
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
    "environment.num_cores: is bool": lambda r: r["environment"].update(num_cores=True),
    "rows[0].median: is 9.5": lambda r: r["rows"][0].update(median=9.5),
    "rows[0].values: 4 of them for 3": lambda r: r["rows"][0]["values"].append(9.0),
    "rows[1]: lacks decoder": lambda r: r["rows"][1].pop("decoder"),
    "rows[2].values: must be finite": lambda r: r["rows"][2]["values"].__setitem__(0, float("nan")),
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


def test_rehearsals_are_left_out_and_folders_are_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = environment() | {"load_average_before": 0.0}
    assert finish(machine) == []
    monkeypatch.setenv("FASTPSL_REHEARSAL", "1")
    assert finish(machine | {"load_average_before": 9.0})[1:] == [REHEARSAL] == finish(machine)
    (tmp_path / "bad.json").write_text(json.dumps(COMMITTED["loader.json"] | {"notes": [REHEARSAL]}))
    with pytest.raises(ValueError, match="bad.json: is a rehearsal"):
        read_results(tmp_path)
    arguments = ["bench/x.py", "--data", str(tmp_path / "a.beton"), "--views", "1"]
    assert command_line(arguments) == "python bench/x.py --data a.beton --views 1"
    expected = {"median": 3.0, "quartile_1": 2.0, "quartile_3": 4.0, "values": [5.0, 1.0, 3.0, 2.0, 4.0]}
    assert spread([5, 1, 3, 2, 4]) == expected


# A GPU's results are taken over only if their archive is what a part makes; else nothing is written.

GPU_FILE = "kernels-h200.json"


def gpu_result() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((ROOT / "bench" / "results" / "kernels-cpu.json").read_text())
    record["environment"] |= {"gpu": "NVIDIA H200", "commit": "0123456789ab"}
    record["ratios"] = [{"what": "kornia_modules / fused", "chain": "SimCLR T3", **spread([123.0] * 7)}]
    return record


def archive_of(path: Path, *more: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    """Write an archive as a part leaves it, and more members; the last is of `kind`."""
    text = json.dumps(gpu_result()).encode()
    files = [("./summary.txt", b"ok\n"), ("./logs/kernels.log", b""), (f"./results/{GPU_FILE}", text), *more]
    with tarfile.open(path, "w:gz") as archive:
        for member, data, member_kind in (
            *((folder, b"", tarfile.DIRTYPE) for folder in (".", "./logs", "./results")),
            *((each, data, tarfile.REGTYPE) for each, data in files[:-1]),
            (*files[-1], kind),
        ):
            info = tarfile.TarInfo(member)
            info.type, info.size, info.linkname = member_kind, len(data), "summary.txt"
            archive.addfile(info, io.BytesIO(data))
    return path


def test_a_parts_archive_is_read(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "b.tgz", ("./results/kernels-h200.png", b""), ("./runs/metrics.jsonl", b""))
    assert read_archive(path).results == {GPU_FILE: gpu_result()} and not read_archive(path).experiments
    other = archive_of(tmp_path / "c.tgz", ("./experiments/x-gpu/results.json", b"{}"))
    assert read_archive(other).experiments == {"x-gpu": {"results.json": b"{}"}}
    with pytest.raises(ValueError, match="kernels-h200.json is in another archive too"):
        read_archives([path, path])


FOREIGN = (
    "../results/a.json", "/tmp/a.json", "results/../../a.json", "./results/.json", "results/a.py",
    "logs/../a.log", "experiments/a/b/c.json",
)  # fmt: skip
NO_FILES = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)


@pytest.mark.parametrize(
    ("name", "data", "kind", "says"),
    [
        *((name, b"{}", tarfile.REGTYPE, "which no part of bench/gpu_day/ makes$") for name in FOREIGN),
        *(("results/a.json", b"", kind, "holds 'results/a.json'") for kind in NO_FILES),
        ("results/b.json", b"[]", tarfile.REGTYPE, "results/b.json: .*lacks"),
    ],
)
def test_what_no_part_makes_is_refused(
    name: str, data: bytes, kind: bytes, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        read_archive(archive_of(tmp_path / "a.tgz", (name, data), kind=kind))


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    whole = archive_of(tmp_path / "broken.tgz").read_bytes()
    (tmp_path / "broken.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="broken.tgz"):
        read_archive(tmp_path / "broken.tgz")
