"""A GPU's results are taken over only if their archive is what a part makes; else nothing is written."""

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bench import performance
from bench.performance import ROOT, read_archive, read_archives
from bench.schema import REHEARSAL, spread

NAME = "kernels-h200.json"


def result() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((ROOT / "bench" / "results" / "kernels-cpu.json").read_text())
    record["environment"] |= {"gpu": "NVIDIA H200", "commit": "0123456789ab"}
    record["ratios"] = [{"what": "kornia_modules / fused", "chain": "SimCLR T3", **spread([123.0] * 7)}]
    return record


def write(path: Path, *more: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, name: str = NAME) -> Path:
    """Write an archive as a part leaves it, and more members; the last is of `kind`."""
    text = json.dumps(result()).encode()
    files = [("./summary.txt", b"ok\n"), ("./logs/kernels.log", b""), (f"./results/{name}", text), *more]
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
    path = write(tmp_path / "b.tgz", ("./results/kernels-h200.png", b""), ("./runs/metrics.jsonl", b""))
    assert read_archive(path) == {NAME: result()}
    with pytest.raises(ValueError, match="kernels-h200.json is in another archive too"):
        read_archives([path, path])


@pytest.mark.parametrize(
    "name",
    ["../results/a.json", "/tmp/a.json", "results/../../a.json", "./results/.json", "results/more/a.json",
     "a.json", "results/a.py", "logs/../a.log"],
)  # fmt: skip
def test_a_foreign_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which no part of bench/gpu_day/ makes$"):
        read_archive(write(tmp_path / "a.tgz", (name, b"{}")))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_what_is_no_file_is_refused(kind: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 'results/a.json'"):
        read_archive(write(tmp_path / "a.tgz", ("results/a.json", b""), kind=kind))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"schema": 1', "Expecting"), (b"\xff\xfe\xff", "decode"), (b"[]", "result: lacks"),
        (json.dumps(result() | {"bench": "guess"}).encode(), "result.bench: is 'guess'"),
        (json.dumps(result() | {"notes": [REHEARSAL]}).encode(), "is a rehearsal"),
    ],
    ids=range(5),
)  # fmt: skip
def test_what_is_no_result_is_refused(data: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"results/b.json: .*{says}"):
        read_archive(write(tmp_path / "a.tgz", ("results/b.json", data)))


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.tgz").read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 0xFF
    for data in (b"", b"no archive", whole[: len(whole) // 2], bytes(middle)):
        (tmp_path / "broken.tgz").write_bytes(data)
        with pytest.raises(ValueError, match="broken.tgz"):
            read_archive(tmp_path / "broken.tgz")


@pytest.mark.slow
def test_results_come_to_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    pages = performance.pages(performance.read_results(performance.RESULTS))
    for path in (*pages, performance.RESULTS / "kernels-cpu.json"):
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for name, value in (("ROOT", root), ("DOCS", root / "docs"), ("RESULTS", root / "bench" / "results")):
        monkeypatch.setattr(performance, name, value)
    monkeypatch.setattr(sys, "argv", ["performance", str(write(tmp_path / "results-b.tgz"))])
    assert performance.main() == 0
    assert json.loads((root / "bench" / "results" / NAME).read_text()) == result()
    page = root / "docs" / "project" / "benchmarks.md"
    assert f"on a GPU | 123x | Kornia's modules | [{NAME}]" in page.read_text()
    assert "0123456789ab" in (root / "docs" / "project" / "benchmark_tables.md").read_text()
    monkeypatch.setattr(sys, "argv", ["performance", "--check"])
    assert performance.main() == 0
    page.write_text(page.read_text().replace("123x", "124x"))
    assert performance.main() == 1
    monkeypatch.setattr(sys, "argv", ["performance", str(write(tmp_path / "a.tgz", ("../evil.json", b"{}")))])
    with pytest.raises(ValueError, match="evil"):
        performance.main()
    assert not list(tmp_path.rglob("evil.json"))
