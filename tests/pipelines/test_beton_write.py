"""Writing betons: content and order, shards and pages, appending, estimates and memory."""

import hashlib
import json
import math
import os
import shutil
import tarfile
from collections.abc import Iterator
from importlib import metadata
from io import BytesIO
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import fastpsl
from fastpsl.files.atomic import partial_path
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton import file as beton_file
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.estimate import estimate, free_bytes
from fastpsl.pipelines.beton.output import bad_path, journal_path
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import RAW
from fastpsl.pipelines.beton.sidecar import read_sidecar
from fastpsl.pipelines.beton.verify import betons_to_verify, verify
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.open import open_source
from fastpsl.pipelines.interface.source import Sample, Source
from fastpsl.pipelines.readers.folder import image_folder
from fastpsl.pipelines.views import ViewSpec
from tests.cli import Cli, Outcome, refused
from tests.pipelines.decoding import batches_of
from tests.pipelines.interrupted import interrupt_at
from tests.pipelines.memory import printed_by
from tests.pipelines.photos import DECODERS, FAR_BYTES, jpeg, photo, photo_samples, write
from tests.pipelines.written import make_tar, parquet_bytes, photo_tree, tree, write_folder
from tests.programs import interpreted


def test_a_tree_in_imagefolders_order(photos: Path, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    out = tmp_path / "a.beton"
    write_folder(photos, out)
    expected = ImageFolder(str(photos))
    with Beton(out) as beton:
        assert beton.class_names == expected.classes == ["ant", "cat", "dog"] and beton.num_classes == 3
        assert list(beton.labels()) == expected.targets
        for i, (path, _) in enumerate(expected.samples):
            assert beton.read(i) == Path(path).read_bytes()
            assert beton.name(i) == f"{out} sample {i} ({os.path.relpath(path, photos)})"
    assert list(verify(out)) == [] and not bad_path(out).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.beton", "a.beton.json", "photos"]
    sidecar = json.loads((tmp_path / "a.beton.json").read_text())
    assert sidecar["written"]["num_passed"] == 18 and sidecar["num_samples"] == 18
    data, start = out.read_bytes(), sidecar["data_start"]
    assert sidecar["sha256"] == hashlib.sha256(data[start:] + data[:start]).hexdigest()


def test_fastpsl_need_not_be_installed(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may run from its folder without being installed."""

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    write_folder(photos, tmp_path / "a.beton")
    sidecar = read_sidecar(tmp_path / "a.beton")
    assert sidecar is not None and sidecar.written["fastpsl"] == fastpsl.__version__


def test_pages_and_large_samples(tmp_path: Path) -> None:
    """No sample crosses a page, and a sample larger than a page makes all pages larger."""
    random = np.random.default_rng(0)
    # Up to 6.3 MB, with pages of 2 MiB.
    sides = (600, 700), (500, 300), (900, 1000), (10, 10), (1500, 1400), (900, 900), (20, 30)
    images = [random.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sides]
    out = tmp_path / "a.beton"
    samples = [Sample(str(i), image, i) for i, image in enumerate(images)]
    write_beton(samples, out, num_samples=7, target=Target(mode="raw"), page_bytes=1 << 21)
    with Beton(out) as beton:
        page = beton.shards[0].page_size
        rows = beton.rows(np.arange(7))
        assert page == 1 << 23
        assert (rows.offset // page == (rows.offset + rows.num_bytes - 1) // page).all()
        assert (np.diff(rows.offset) > 0).all()
        assert [beton.read(i) for i in range(7)] == [image.tobytes() for image in images]
    assert list(verify(out)) == []


def test_samples_beyond_4_gib(tmp_path: Path) -> None:
    """Every decoder reads the same samples below and beyond 4 GiB."""
    samples = photo_samples(6)
    samples.append((photo(9, 70, 80).tobytes(), 70, 80, RAW))
    near = write(tmp_path / "near.beton", samples)
    far = write(tmp_path / "far.beton", samples, hole_bytes=FAR_BYTES)
    views = [ViewSpec(RandomResizedCrop(32))]
    assert far.stat().st_size > FAR_BYTES and list(verify(far)) == []
    with Beton(near) as near_beton, Beton(far) as distant:
        assert distant.rows(np.arange(7)).offset[6] > FAR_BYTES
        assert [distant.read(i) for i in range(7)] == [data for data, *_ in samples]
        for decoder in DECODERS:
            (ours,), (others,) = (
                batches_of(each, views, 7, decoder=decoder) for each in (near_beton, distant)
            )
            assert torch.equal(ours.images[0], others.images[0]) and torch.equal(ours.labels, others.labels)


def test_the_file_does_not_depend_on_workers(photos: Path, tmp_path: Path) -> None:
    for num in (1, 2, 7):
        write_folder(photos, tmp_path / f"{num}.beton", target=Target(short_side=40), num_workers=num)
    assert len({(tmp_path / f"{num}.beton").read_bytes() for num in (1, 2, 7)}) == 1


def test_many_samples_flush_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beton_file, "_ROWS_BUFFERED", 16)
    monkeypatch.setattr(beton_file, "_BUFFER_BYTES", 5000)
    for num in (15, 16, 17, 100):
        images = np.random.default_rng(num).integers(0, 256, (num, 5, 9, 3), dtype=np.uint8)
        samples = (Sample(f"é\n\\{i}", images[i], i % 4) for i in range(num))
        out = tmp_path / f"{num}.beton"
        write_beton(samples, out, num_samples=num, target=Target(mode="raw"))
        with Beton(out) as beton:
            assert [beton.read(i) for i in range(num)] == [image.tobytes() for image in images]
            assert list(beton.labels()) == [i % 4 for i in range(num)]
        assert list(verify(out)) == []
        sidecar = read_sidecar(out)
        assert sidecar and list(sidecar.source_paths()) == [f"é\n\\{i}" for i in range(num)]


def test_shards_together_are_the_whole(photos: Path, tmp_path: Path) -> None:
    write_folder(photos, tmp_path / "whole.beton")
    for i in range(4):
        write_folder(photos, tmp_path / f"part-{i}.beton", (i, 4))
    with Beton(tmp_path / "whole.beton") as whole, Beton(tmp_path / "part-*.beton") as parts:
        assert parts.class_names == whole.class_names and parts.num_samples == 18
        assert [parts.read(i) for i in range(18)] == [whole.read(i) for i in range(18)]
        assert list(parts.labels()) == list(whole.labels())


def test_writing_needs_no_torch() -> None:
    """torch would take half a GB and seconds at every start, and libffcv decodes without it."""
    code = (
        "import sys, fastpsl.cli, fastpsl.pipelines.beton.write, fastpsl.pipelines.readers;"
        "print([name for name in ('torch', 'kornia', 'datasets') if name in sys.modules])"
    )
    assert interpreted(code).stdout == "[]\n"


@pytest.fixture
def data(cli: Cli) -> Cli:
    """Return a function that runs `fastpsl data` with one worker."""
    return lambda *words: cli("data", *words, "--workers", 1)


def refused_late(outcome: Outcome, words: str) -> None:
    """Check a refusal that follows the line of the source's classes."""
    refused(outcome._replace(out=""), words)


@pytest.fixture
def beton(tmp_path: Path, data: Cli) -> Path:
    """Write 18 photos of ant, cat and dog, of at most 50 px, and make folders to be appended."""
    data("write", photo_tree(tmp_path / "photos"), tmp_path / "train.beton", "--max-side", 50, "--min-px", 20)
    for i, name in enumerate(("more", "again")):
        names = [f"{kind}/{name}{j}.jpg" for kind in ("dog", "cat") for j in range(2)]
        tree(tmp_path / name, {each: jpeg(photo(60 + 9 * i + j, 70, 80)) for j, each in enumerate(names)})
    return tmp_path / "train.beton"


def test_what_is_appended_follows_what_is_there(beton: Path, tmp_path: Path, data: Cli) -> None:
    before, pattern = beton.read_bytes(), tmp_path / "train.*beton"
    assert f"'{pattern}' names all of it" in data("append", tmp_path / "more", beton).out.splitlines()
    data("append", tmp_path / "again", pattern)
    assert beton.read_bytes() == before
    names = ["train.beton", "train.more-00001.beton", "train.more-00002.beton"]
    with Beton(pattern) as all_of_it, Beton(beton) as first:
        assert [path.name for path in all_of_it.paths] == names
        assert all_of_it.class_names == ["ant", "cat", "dog"] and len(all_of_it) == 26
        assert all_of_it.labels().tolist() == [*first.labels().tolist(), 1, 1, 2, 2, 1, 1, 2, 2]
        assert [all_of_it.read(i) for i in range(18)] == [first.read(i) for i in range(18)]
        assert max(all_of_it.image_sizes()) == 50  # stored as the others
        assert all_of_it.name(20).endswith("train.more-00001.beton sample 2 (dog/more0.jpg)")
    assert not betons_to_verify([str(pattern)])[1] and not betons_to_verify([str(tmp_path / "*.beton")])[1]
    for name in names:
        assert list(verify(tmp_path / name)) == []
    told = f"{tmp_path}/train.more-00003.beton: holds images of {tmp_path}/more, as {tmp_path}/train.more-"
    refused_late(data("append", tmp_path / "more", beton), f"{told}00001.beton does; they are there already")


@pytest.mark.parametrize("options", [["--shard-mb", 16], ["--shard"]])
def test_shards_are_appended_to(options: list[object], tmp_path: Path, beton: Path, data: Cli) -> None:
    if options == ["--shard"]:
        for i in range(2):
            data("write", tmp_path / "photos", tmp_path / f"set-{i}.beton", "--shard", f"{i}/2")
    else:
        data("write", tmp_path / "photos", tmp_path / "set.beton", *options)
    pattern = tmp_path / "set-*.beton"
    data("append", tmp_path / "more", pattern)
    with Beton(pattern) as shards:
        assert shards.paths[-1].name.endswith(".more-00001.beton") and len(shards) == 22
        assert shards.labels()[-4:].tolist() == [1, 1, 2, 2]
    assert betons_to_verify([str(pattern)])[1] == []


@pytest.mark.usefixtures("often")
def test_an_interrupted_appending_goes_on(
    beton: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Cli
) -> None:
    out, pattern = tmp_path / "train.more-00001.beton", tmp_path / "train.*beton"
    data("append", tmp_path / "more", beton)
    whole = out.read_bytes(), Path(f"{out}.json").read_bytes()
    for path in tmp_path.glob("train.more*"):
        path.unlink()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        ended = data("append", tmp_path / "more", pattern)
    told = f"go on with: fastpsl data append {tmp_path}/more '{pattern}' --workers 1 --resume"
    assert ended.code and told in ended.err
    with Beton(pattern) as untouched:
        assert len(untouched) == 18 and journal_path(out).exists()
    refused_late(data("append", tmp_path / "more", pattern), "with 3 images; --resume goes on")
    data("append", tmp_path / "more", pattern, "--resume")
    assert (out.read_bytes(), Path(f"{out}.json").read_bytes()) == whole and not journal_path(out).exists()


def test_what_does_not_fit_is_refused(beton: Path, tmp_path: Path, data: Cli) -> None:
    tree(tmp_path / "more", {"wasp/a.jpg": jpeg(photo(0, 60, 60)), "zebu/a.jpg": jpeg(photo(1, 60, 60))})
    names = sorted(path.name for path in tmp_path.iterdir() if "more" in path.name)
    refused_late(
        data("append", tmp_path / "more", beton), f"{beton}: has no class wasp (and 1 more), which the"
    )
    tree(tmp_path / "flat", {"a.jpg": jpeg(photo(0, 60, 60))})
    refused_late(data("append", tmp_path / "flat", beton), f"{beton}: has class names, the source has none")
    other = tmp_path / "trainer.beton"
    data("write", photo_tree(tmp_path / "others"), other, "--max-side", 40, "--min-px", 20)
    told = f"{other}: was written with --max-side 40, {beton} with --max-side 50; append to one"
    refused_late(data("append", tmp_path / "again", tmp_path / "train*.beton"), told)
    beside = Path(f"{beton}.json")
    record = json.loads(beside.read_text())
    for gone in ("mode", None):
        if gone:
            del record["written"][gone]
            beside.write_text(json.dumps(record))
        else:
            beside.unlink()
        refused_late(data("append", tmp_path / "again", beton), f"{beton}: does not tell how it was written")
    assert sorted(path.name for path in tmp_path.iterdir() if "more" in path.name) == names


def many(root: Path, num: int = 240) -> Path:
    """Write small JPEGs of various sizes in three classes, the middle one empty."""
    (root / "b").mkdir(parents=True)
    few = [jpeg(photo(i, 20 + 9 * i, 70 - 4 * i)) for i in range(8)]
    return tree(root, {f"{'ac'[i % 2]}/{i:03}.jpg": few[i % 8] for i in range(num)})


def written_bytes(source: Source, target: Target, out: Path) -> int:
    write_beton(source.samples(), out, num_samples=source.num_samples, target=target, max_bad="50%")
    return out.stat().st_size


TARGETS = [Target(), Target(short_side=30), Target(mode="raw"), Target(min_px=64)]
TARGETS.append(Target(reencode="all", quality=50))


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
        names = [f"{number}{i:02}" for i in range(40)]
        members = {f"{name}.jpg": data for name in names} | {f"{name}.cls": b"1" for name in names}
        make_tar(root / f"train-{number}.tar", dict(sorted(members.items())))
    return str(root / "train-*.tar")


def parquet(root: Path) -> str:
    for number in range(2):
        labels = list(range(100 * number, 100 * number + 100))
        data = parquet_bytes({"image": [jpeg(photo(1, 20, 20))] * 100, "label": labels}, row_group_size=20)
        (root / f"{number}.parquet").write_bytes(data)
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


@pytest.mark.parametrize("make", [folder, flat, image_list, tars, parquet, npz])
def test_sources_skip_what_is_done(make: Any, tmp_path: Path) -> None:
    source = open_source(make(tmp_path))
    names = [sample.name for sample in source.samples()]
    for skip in (0, 1, 5, len(names) - 1, len(names)):
        assert [sample.name for sample in source.samples(skip)] == names[skip:]


def test_rows_of_a_table_come_from_several_groups(tmp_path: Path) -> None:
    source = open_source(parquet(tmp_path))
    rows = [sample.label // 20 for sample in source.picks(64, Random(0)).samples]
    assert len(set(rows)) == 4 and len(rows) == 64  # 16 of each


def test_a_dry_run_leaves_nothing(tmp_path: Path, data: Cli) -> None:
    photos = many(tmp_path / "photos")
    for i in (0, 2, 4):
        (photos / f"a/00{i}.jpg").write_bytes(b"broken")
    out = tmp_path / "new" / "a.beton"
    code, output, _ = data("write", photos, out, "--dry-run", "--max-side", 60)
    assert code == 0 and sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    *_, first, counts, sides, broken, last = output.splitlines()
    assert first.startswith(f"{out}: about ") and " of 240 images, 0:00:0" in first
    assert "by all of them;" in first
    # Of the eight sizes two have no side above 60 px, and one of these files is broken.
    assert counts.startswith("of 240 images: 59 taken over byte for byte, 178 encoded")
    assert "3 bad, 0 too small" in counts
    assert "longer side" in sides and last == "nothing was written"
    assert broken.startswith("at this rate 3 images are bad, more than --max-bad 1% allows")


def test_a_full_disk_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Cli
) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((1000, 4, 4, 3), np.uint8))
    out, usage = tmp_path / "a.beton", shutil.disk_usage(tmp_path)._replace(free=4_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    code, _, errors = data("write", tmp_path / "a.npz", out)
    assert code == 2 and errors.count("\n") == 1 and not out.exists() and not partial_path(out).exists()
    assert (
        errors.startswith(f"fastpsl data write: {out}: takes about 8.46 MB")
        and "4 MB are free there" in errors
    )
    assert data("write", tmp_path / "a.npz", out, "--dry-run").code == 0
    partial_path(out).write_bytes(bytes(20_000_000))  # of a run that was killed, which this one takes over
    assert free_bytes(out) >= 24_000_000
    code, output, _ = data("write", tmp_path / "a.npz", out)
    assert code == 0 and f"\n{out}: about 8.4" in output and out.exists()


def test_raw_images_are_not_reencoded(tmp_path: Path, data: Cli) -> None:
    outcome = data("write", npz(tmp_path), tmp_path / "a.beton", "--reencode", "all")
    assert outcome.code == 2 and "--reencode all: it makes JPEGs" in outcome.err
    assert "--mode jpg" in outcome.err


SIDE_PX = 160  # 77 kB an image
SMALL, LARGE = 60, 1800  # 5 MB, 138 MB
WRITE = """
import sys
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.open import open_source
out, *sources = sys.argv[1:]
target = Target(mode="raw")
for path in sources:
    source = open_source(path)
    write_beton(source.samples(), out, num_samples=source.num_samples, target=target, overwrite=True)
    print(peak_mib())
"""


def ppm(image: np.ndarray) -> bytes:
    return b"P6 %d %d 255\n" % image.shape[1::-1] + image.tobytes()


def random_images(num: int) -> Iterator[np.ndarray]:
    image = np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    return (np.roll(image, i, 0) for i in range(num))


def make(path: Path, num: int) -> Path:
    if path.suffix == ".npz":
        np.savez(path, images=np.stack(list(random_images(num))), labels=np.zeros(num, int))
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for i, image in enumerate(random_images(num)):
            data, info = ppm(image), tarfile.TarInfo(f"class/{i}.ppm")
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["tar", "npz"])
def test_memory_does_not_grow_with_the_source(ending: str, tmp_path: Path) -> None:
    """130 MB more of data take at most a quarter of them more."""
    sources = [make(tmp_path / f"{num}.{ending}", num) for num in (SMALL, LARGE)]
    small, large = printed_by(WRITE, tmp_path / "out", *sources)
    assert large - small < 32


@pytest.mark.slow
def test_memory_by_the_number_of_samples(tmp_path: Path) -> None:
    """A sample takes 4 bytes for its size and about 10 for its packed name, always below 60 bytes."""
    script = """
import sys
import numpy as np
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.interface.source import Sample
image = np.zeros((2, 2, 3), np.uint8)
for num in (5_000, 105_000):
    samples = (Sample(f"class/{i}.jpg", image, 0) for i in range(num))
    write_beton(samples, sys.argv[1], num_samples=num, target=Target(mode="raw"), overwrite=True)
    print(peak_mib())
"""
    small, large = printed_by(script, tmp_path / "a")
    assert (large - small) * 2**20 < 60 * 100_000
