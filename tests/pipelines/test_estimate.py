"""What a beton is expected to weigh, against what is written; and the images by which that is told."""

import math
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastpsl.cli import main
from fastpsl.files.atomic import partial_path
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.estimate import estimate, free_bytes
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.data.source import Sample, Source
from fastpsl.pipelines.datasets.open import open_source
from fastpsl.pipelines.sources.folder import image_folder
from tests.pipelines.folders import photo_tree, tree
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.tars import make_tar


def many(root: Path, num: int = 240) -> Path:
    """Write small JPEGs of various sizes in three classes, the middle one empty."""
    (root / "b").mkdir(parents=True)
    few = [jpeg(photo(i, 20 + 9 * i, 70 - 4 * i)) for i in range(8)]
    return tree(root, {f"{'ac'[i % 2]}/{i:03}.jpg": few[i % 8] for i in range(num)})


def written_bytes(source: Source, target: Target, out: Path) -> int:
    write_beton(source.samples(), out, num_samples=source.num_samples, target=target, max_bad="50%")
    return out.stat().st_size


TARGETS = [
    Target(),
    Target(short_side=30),
    Target(mode="raw"),
    Target(min_px=64),
    Target(reencode="all", quality=50),
]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_by_all_images_it_is_the_files_size(target: Target, tmp_path: Path) -> None:
    source = image_folder(photo_tree(tmp_path / "photos"))
    (tmp_path / "photos/ant/0/00.jpg").write_bytes(b"broken")
    expected = estimate(source, target, 2)
    size = written_bytes(source, target, tmp_path / "a.beton")
    # The header has its place in the table's page, and two further checksums stand at the end.
    assert expected.num_bytes == expected.low_bytes == expected.high_bytes == pytest.approx(size, abs=8)
    assert expected.counts["bad"] == 1 and expected.num_seen == 18 and expected.counts.total() == 18
    assert expected.first_bad.startswith("ant/0/00.jpg: ")


def test_by_some_images_the_range_holds_the_files_size(tmp_path: Path) -> None:
    source = image_folder(many(tmp_path / "photos"))
    expected = estimate(source, Target(), 2, num=60)
    assert (expected.num_seen, expected.num_total, len(expected.sides)) == (60, 240, 60)
    assert expected.counts == {"passed": 60, "bad": 0, "small": 0}
    size = written_bytes(source, Target(), tmp_path / "a.beton")
    assert expected.low_bytes < size < expected.high_bytes < 1.1 * expected.low_bytes
    assert expected.seconds > 0
    again = estimate(source, Target(), 1, num=60)
    assert again.num_bytes == expected.num_bytes  # one seed, any number of threads


def test_it_stops_in_time(tmp_path: Path) -> None:
    source = image_folder(many(tmp_path / "photos"))
    expected = estimate(source, Target(), 1, limit_s=-1.0)
    assert expected.num_seen == 1 and expected.num_total == 240


def test_what_pages_leave_empty_is_counted(tmp_path: Path) -> None:
    class Three:
        num_samples = 5

        def samples(self) -> Iterator[Sample]:
            return (Sample(str(i), np.zeros((1000, 1000, 3), np.uint8), 0) for i in range(5))

        def picks(self, num: int, random: Random) -> Any:
            return SimpleNamespace(how="the first", is_random=False, samples=self.samples())

    source: Any = Three()  # two images of 3 MB in a page of 8 MiB
    size = written_bytes(source, Target(mode="raw"), tmp_path / "a.beton")
    assert estimate(source, Target(mode="raw"), 1).num_bytes == pytest.approx(size, abs=8)
    some = estimate(source, Target(mode="raw"), 1, num=2)
    assert some.num_bytes == pytest.approx(size, rel=0.01)
    assert some.low_bytes == some.num_bytes / 2 and math.isinf(some.high_bytes)  # only the first were seen


def folder(root: Path) -> str:
    return str(many(root / "photos"))


def flat(root: Path) -> str:
    return str(tree(root / "flat", {f"{i}.jpg": jpeg(photo(i % 3, 20, 20)) for i in range(60)}))


def image_list(root: Path) -> str:
    flat(root)
    (root / "flat" / "list.txt").write_text("".join(f"{i}.jpg {i % 4}\n" for i in range(60)))
    return str(root / "flat" / "list.txt")


def tars(root: Path) -> str:
    data = jpeg(photo(1, 20, 20))
    for number in range(4):
        members = {f"{number}{i:02}.jpg": data for i in range(40)} | {
            f"{number}{i:02}.cls": b"1" for i in range(40)
        }
        make_tar(root / f"train-{number}.tar", dict(sorted(members.items())))
    return str(root / "train-*.tar")


def parquet(root: Path) -> str:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    data = jpeg(photo(1, 20, 20))
    for number in range(2):
        labels = list(range(100 * number, 100 * number + 100))
        table = pyarrow.table({"image": [data] * 100, "label": labels})
        files.write_table(table, root / f"{number}.parquet", row_group_size=20)
    return str(root / "*.parquet")


def npz(root: Path) -> str:
    np.savez(root / "a.npz", images=np.arange(60 * 12, dtype=np.uint16).astype(np.uint8).reshape(60, 2, 2, 3))
    return str(root / "a.npz")


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (folder, "picked at random"),
        (flat, "picked at random"),
        (image_list, "picked at random"),
        (tars, "the first of 2 tars picked at random"),
        (parquet, "the first of row groups picked at random"),
        (npz, "the first"),
    ],
)
@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_picks_are_images_of_the_source(make: Any, how: str, shard: tuple[int, int], tmp_path: Path) -> None:
    source = open_source(make(tmp_path), shard=shard)
    every = {sample.name: sample for sample in source.samples()}
    picks = source.picks(30, Random(1))
    picked = list(islice(picks.samples, 30))
    names = [sample.name for sample in picked]
    assert picks.how == how and len(set(names)) == len(names) == 30
    for sample in picked:
        np.testing.assert_equal(vars(sample), vars(every[sample.name]))
    assert picks.is_random == (how not in ("the first", "the first of 2 tars picked at random"))
    again, others = (list(islice(source.picks(30, Random(seed)).samples, 30)) for seed in (1, 2))
    assert [sample.name for sample in again] == names
    if picks.is_random and len(every) > 30:
        assert {sample.name for sample in others} != set(names)


def test_rows_of_a_table_come_from_several_groups(tmp_path: Path) -> None:
    source = open_source(parquet(tmp_path))
    rows = [sample.label // 20 for sample in source.picks(64, Random(0)).samples]
    assert len(set(rows)) == 4 and len(rows) == 64  # 16 of each


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = 0
    try:
        main(["data", "write", *map(str, arguments)])
    except SystemExit as end:
        code = int(end.code or 0)
    output = capsys.readouterr()
    return code, output.out, output.err


def test_a_dry_run_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = many(tmp_path / "photos")
    (photos / "a/000.jpg").write_bytes(b"broken")
    (photos / "a/002.jpg").write_bytes(b"broken")
    (photos / "a/004.jpg").write_bytes(b"broken")
    out = tmp_path / "new" / "a.beton"
    code, output, _ = run(capsys, photos, out, "--dry-run", "--workers", "1", "--max-side", "60")
    assert code == 0 and sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    *_, first, counts, sides, broken, last = output.splitlines()
    assert (
        first.startswith(f"{out}: about ")
        and " of 240 images, 0:00:0" in first
        and "by all of them;" in first
    )
    # Of the eight sizes two have no side above 60 px, and one of these files is broken.
    assert counts.startswith("of 240 images: 59 taken over byte for byte, 178 encoded")
    assert "3 bad, 0 too small" in counts
    assert "longer side" in sides and last == "nothing was written"
    assert broken.startswith("at this rate 3 images are bad, more than --max-bad 1% allows")


def test_a_full_disk_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((1000, 4, 4, 3), np.uint8))
    out, usage = tmp_path / "a.beton", shutil.disk_usage(tmp_path)._replace(free=4_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    code, _, errors = run(capsys, tmp_path / "a.npz", out, "--workers", "1")
    assert code == 2 and errors.count("\n") == 1 and not out.exists() and not partial_path(out).exists()
    assert errors.startswith(f"fastpsl: {out}: takes about 8.46 MB") and "4 MB are free there" in errors
    assert run(capsys, tmp_path / "a.npz", out, "--workers", "1", "--dry-run")[0] == 0
    partial_path(out).write_bytes(bytes(20_000_000))  # of a run that was killed, which this one takes over
    assert free_bytes(out) >= 24_000_000
    code, output, _ = run(capsys, tmp_path / "a.npz", out, "--workers", "1")
    assert code == 0 and f"\n{out}: about 8.4" in output and out.exists()


def test_raw_images_are_not_reencoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = run(capsys, npz(tmp_path), tmp_path / "a.beton", "--reencode", "all")
    assert code == 2 and "--reencode all: it makes JPEGs" in errors and "--mode jpg" in errors
