"""A GPU's results are taken over only if their archive is exactly what a part makes; else nothing
is written.
"""

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bench import performance
from bench.performance import read_archive, read_archives
from bench.schema import REHEARSAL, spread

ROOT = Path(__file__).resolve().parents[2]
NAME = "kernels-h200.json"


def result() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((ROOT / "bench" / "results" / "kernels-cpu.json").read_text())
    record["environment"] |= {"gpu": "NVIDIA H200", "commit": "0123456789ab"}
    record["ratios"] = [{"what": "kornia_modules / fused", "chain": "SimCLR T3", **spread([123.0] * 7)}]
    return record


def files(*more: tuple[str, bytes]) -> list[tuple[str, bytes]]:
    """Return the members of an archive as a part leaves them."""
    text = json.dumps(result()).encode()
    return [("./summary.txt", b"ok\n"), ("./logs/kernels.log", b""), (f"./results/{NAME}", text), *more]


def write(path: Path, members: list[tuple[str, bytes]], *links: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in (".", "./logs", "./results"):
            folder = tarfile.TarInfo(name)
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for link in links:
            archive.addfile(link)
    return path


def test_a_parts_archive_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "results-b.tgz", files(("./results/kernels-h200.png", b""), ("./runs/metrics.jsonl", b"")),
    )  # fmt: skip
    assert read_archive(path) == {NAME: result()}
    with pytest.raises(ValueError, match="kernels-h200.json is in another archive too"):
        read_archives([path, path])


@pytest.mark.parametrize(
    "name",
    [
        "../results/a.json", "/tmp/a.json", "results/../../a.json", "./results/.json",
        "results/more/a.json", "a.json", "results/a.py", "logs/../a.log",
    ],
)  # fmt: skip
def test_a_foreign_name_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tgz", files((name, b"{}")))
    with pytest.raises(ValueError, match=r"holds '.*', which no part of bench/gpu_day/ makes$") as raised:
        read_archive(path)
    assert repr(name) in str(raised.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_what_is_no_file_is_refused(kind: bytes, tmp_path: Path) -> None:
    link = tarfile.TarInfo("results/a.json")
    link.type, link.linkname = kind, "summary.txt"
    with pytest.raises(ValueError, match="holds 'results/a.json'"):
        read_archive(write(tmp_path / "a.tgz", files(), link))


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    def refused(data: bytes, match: str) -> None:
        path = write(tmp_path / "a.tgz", files(("results/b.json", data)))
        with pytest.raises(ValueError, match=match) as raised:
            read_archive(path)
        assert str(raised.value).startswith(f"{path}, results/b.json: ") and "\n" not in str(raised.value)

    refused(b'{"schema": 1', "Expecting")
    refused(b"\xff\xfe\xff", "decode")
    refused(b"[]", "result: lacks")
    refused(json.dumps(result() | {"bench": "guess"}).encode(), "result.bench: is 'guess'")
    refused(json.dumps(result() | {"notes": [REHEARSAL]}).encode(), "is a rehearsal at tiny values")
    with pytest.raises(ValueError, match="holds no results"):
        read_archive(write(tmp_path / "none.tgz", files()[:2]))


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.tgz", files()).read_bytes()
    broken = tmp_path / "broken.tgz"
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 0xFF
    for data in (b"", b"no archive", whole[: len(whole) // 2], whole[:20], bytes(middle)):
        broken.write_bytes(data)
        with pytest.raises(ValueError, match="broken.tgz") as raised:
            read_archive(broken)
        assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_results_come_to_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    pages = performance.pages(performance.read_results(performance.RESULTS))
    for path in (*pages, ROOT / "bench" / "results" / "kernels-cpu.json"):
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    monkeypatch.setattr(performance, "ROOT", root)
    monkeypatch.setattr(performance, "DOCS", root / "docs")
    monkeypatch.setattr(performance, "RESULTS", root / "bench" / "results")
    monkeypatch.setattr(sys, "argv", ["performance", str(write(tmp_path / "results-b.tgz", files()))])
    assert performance.main() == 0
    assert json.loads((root / "bench" / "results" / NAME).read_text()) == result()
    line = f"| SimCLR's augmentations at level 3 (T3), on a GPU | 123x | Kornia's modules | [{NAME}]"
    page = (root / "docs" / "project" / "benchmarks.md").read_text()
    assert line in page
    assert "reached: 123x Kornia's modules" in (root / "docs" / "project" / "gpu_tables.md").read_text()
    tables = (root / "docs" / "project" / "benchmark_tables.md").read_text()
    assert "| NVIDIA H200 |" in tables and "0123456789ab" in tables
    monkeypatch.setattr(sys, "argv", ["performance", "--check"])
    assert performance.main() == 0
    (root / "docs" / "project" / "benchmarks.md").write_text(page.replace("123x", "124x"))
    assert performance.main() == 1
    monkeypatch.setattr(sys, "argv", ["performance", "--check", "results-b.tgz"])
    with pytest.raises(ValueError, match="give it no archives"):
        performance.main()
