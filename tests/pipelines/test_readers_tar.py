"""Tars as sources: WebDataset shards and class folders, with their names, labels and links."""

import csv
import gzip
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.pipelines.beton.output import bad_path
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.verify import verify
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.open import open_source
from fastpsl.pipelines.interface.dataset import BadImage
from fastpsl.pipelines.readers import tar
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.readers import refused, samples
from tests.pipelines.written import make_tar, tar_bytes, tree

PHOTOS = [jpeg(photo(i, 40 + i, 60 - i)) for i in range(8)]


def names_and_labels(src: object, **options: Any) -> list[tuple[str, int]]:
    """Return (name, label) of the images, which must be PHOTOS in order."""
    images = samples(src, **options)
    assert [sample.image for sample in images] == PHOTOS[: len(images)]
    return [(sample.name, sample.label) for sample in images]


def broken(src: object, **options: Any) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the names of the sound samples, and (name, reason) of the others."""
    results = samples(src, **options)
    return (
        [sample.name for sample in results if not isinstance(sample.image, BadImage)],
        [(sample.name, str(sample.image)) for sample in results if isinstance(sample.image, BadImage)],
    )


def test_webdataset_shards_become_a_beton(tmp_path: Path) -> None:
    """Labels before and after the image, in .cls and .json, other files of a sample, and unusual names."""
    make_tar(
        tmp_path / "train-1.tar",
        {"käfer 1.jpg": PHOTOS[3], "käfer 1.cls": b" 7\n", "new\nline.PNG": PHOTOS[4], "new\nline.cls": b"0"},
    )
    make_tar(
        tmp_path / "train-0.tar",
        [
            ("a/0.cls", b"3"), ("a/0.mask.png", PHOTOS[7]), ("a/0.jpg", PHOTOS[0]), ("a/0.txt", b"a bird"),
            ("b/0.jpeg", PHOTOS[1]), ("b/0.json", b'{"label": 5, "cls": 9}'),
            ("b/0.1.jpg", PHOTOS[7]), ("c.webp", PHOTOS[2]), ("c.json", b'{"caption": "x"}'), ("d.cls", b"1"),
        ],
    )  # fmt: skip
    source = open_source(str(tmp_path / "train-*.tar"))
    assert source.class_names is None and "WebDataset" in source.notes[0]
    assert source.warnings == [] and source.left_out.line() == "2 images that share the key of another"
    assert names_and_labels(tmp_path / "train-*.tar") == [
        ("train-0.tar/a/0.jpg", 3), ("train-0.tar/b/0.jpeg", 5), ("train-0.tar/c.webp", -1),
        ("train-1.tar/käfer 1.jpg", 7), ("train-1.tar/new\nline.PNG", 0),
    ]  # fmt: skip
    out = tmp_path / "a.beton"
    write_beton(source.samples(), out, num_samples=source.num_samples)
    with Beton(out) as beton:
        assert [beton.read(i) for i in range(5)] == PHOTOS[:5]
        assert list(beton.labels()) == [3, 5, -1, 7, 0]
        assert beton.name(3) == f"{out} sample 3 (train-1.tar/käfer 1.jpg)"
    assert list(verify(out)) == []


def test_it_reads_what_webdataset_reads(tmp_path: Path) -> None:
    """Shards by webdataset's own writer give the same samples as webdataset's own reader."""
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "x-%03d.tar"), maxcount=3, verbose=0) as writer:
        for i, data in enumerate(PHOTOS):
            label = {"cls": i} if i % 2 else {"json": {"label": i, "caption": "é"}}
            key = f"some folder/{i:03}.x" if i == 5 else f"é {i:03}"
            writer.write({"__key__": key, "jpg": data, **label})
    paths = sorted(map(str, tmp_path.glob("*.tar")))
    expected = list(webdataset.WebDataset(paths, shardshuffle=False).decode())
    results = samples(tmp_path / "x-*.tar")
    assert len(paths) == 3 and [sample.image for sample in results] == PHOTOS
    labels = [s.get("cls", s.get("x.cls", s.get("json", {}).get("label"))) for s in expected]
    assert [sample.label for sample in results] == [int(label) for label in labels] == list(range(8))
    for sample, other in zip(results, expected, strict=True):
        assert sample.name.partition("/")[2].startswith(other["__key__"])


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_class_folders(ending: str, format: int, tmp_path: Path) -> None:
    long = "x" * 150
    src = make_tar(
        tmp_path / f"train.{ending}",
        {
            "./train/dog/1.jpg": PHOTOS[0], "./train/dog/more/é.jpg": PHOTOS[1],
            "./train/dog/._1.jpg": b"mac", "./train/an ant/1.v2.jpg": PHOTOS[2],
            "./train/an ant/1.v3.jpg": PHOTOS[3], "./README": b"x",
            f"./train/cat/{long}.jpg": PHOTOS[4], "./train/cat/notes.json": b"{}",
        },
        format=format,
    )  # fmt: skip
    source = open_source(str(src))
    assert source.class_names == ["an ant", "cat", "dog"] and source.notes == ["3 class folders below train"]
    assert source.left_out.line() == (
        "2 files of other kinds (1 other, 1 .json), 1 leftover of another program (train/dog/._1.jpg)"
    )
    names = ["dog/1", "dog/more/é", "an ant/1.v2", "an ant/1.v3", f"cat/{long}"]
    labels = [2, 2, 0, 0, 1]
    assert names_and_labels(src) == [
        (f"{src.name}/train/{name}.jpg", label) for name, label in zip(names, labels, strict=True)
    ]


def test_imagenets_tar_of_class_tars(tmp_path: Path) -> None:
    inner = {
        "n02": tar_bytes({"n02_1.JPEG": PHOTOS[0], "n02_2.JPEG": PHOTOS[1]}),
        "n01": tar_bytes({"n01_1.JPEG": PHOTOS[2]}),
        "n03": b"",  # an empty download
        "n04": tar_bytes({"n04_1.JPEG": PHOTOS[3]})[:600],
        "n05": tar_bytes({"n05_1.JPEG": PHOTOS[3]}),
    }
    src = make_tar(tmp_path / "all.tar", {f"{name}.tar": data for name, data in inner.items()})
    assert open_source(str(src)).class_names == ["n01", "n02", "n05"]
    results = samples(src)
    assert [(sample.name, sample.label) for sample in results] == [
        ("all.tar/n02/n02_1.JPEG", 1), ("all.tar/n02/n02_2.JPEG", 1), ("all.tar/n01/n01_1.JPEG", 0),
        ("all.tar/n03.tar", -1), ("all.tar/n04.tar", -1), ("all.tar/n05/n05_1.JPEG", 2),
    ]  # fmt: skip
    assert str(results[4].image) == "is cut short at n04/n04_1.JPEG, it and what follows is lost"
    assert [results[i].image for i in (0, 1, 2, 5)] == PHOTOS[:4]


def test_names_that_point_elsewhere_and_links(tmp_path: Path) -> None:
    """Nothing is unpacked, so names have no effect, and links are not followed."""
    data = io.BytesIO()
    links = (
        ("l", tarfile.SYMTYPE, "/etc/passwd"),
        ("h", tarfile.LNKTYPE, "b.jpg"),
        ("pipe", tarfile.FIFOTYPE, ""),
    )
    with tarfile.open(fileobj=data, mode="w") as tar:
        for i, name in enumerate(("../../up.jpg", "/root.jpg", "a/../b.jpg")):
            info = tarfile.TarInfo(name)
            info.size = len(PHOTOS[i])
            tar.addfile(info, io.BytesIO(PHOTOS[i]))
        for name, kind, target in links:
            info = tarfile.TarInfo(f"{name}.jpg")
            info.type, info.linkname = kind, target
            tar.addfile(info)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(data.getvalue())
    sound, bad = broken(tmp_path / "in" / "a.tar")
    assert sound == ["a.tar/up.jpg", "a.tar/root.jpg", "a.tar/b.jpg"]
    reason = "a link within a tar is not followed; tar --dereference --hard-dereference makes one without"
    assert bad == [(f"a.tar/{name}.jpg", reason) for name in "lh"]
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "a.tar"]


def test_of_a_file_that_a_tar_holds_twice_the_later_one_counts(tmp_path: Path) -> None:
    """Whatever `tar -r` has added: of folders, of a WebDataset's images and labels, of a tar within it."""
    new = PHOTOS[5]
    folders = [("cat/1.jpg", PHOTOS[0]), ("dog/2.jpg", PHOTOS[1])]
    folders += [("._x", b""), ("./cat/1.jpg", new), ("._x", b"")]
    src = str(make_tar(tmp_path / "a.tar", folders))
    source = open_source(src)
    assert source.left_out.line() == (
        "1 leftover of another program (._x), "
        "1 file that a later one of its name in the tar replaces (cat/1.jpg)"
    )
    assert [(sample.name, sample.image, sample.label) for sample in source.samples()] == [
        ("a.tar/dog/2.jpg", PHOTOS[1], 1), ("a.tar/cat/1.jpg", new, 0),
    ]  # fmt: skip
    shards = [samples(src, shard=(i, 2)) for i in range(2)]
    assert [[sample.image for sample in shard] for shard in shards] == [[PHOTOS[1]], [new]]
    web = [
        ("0.jpg", PHOTOS[0]), ("0.cls", b"catt"), ("1.jpg", PHOTOS[1]), ("1.cls", b"dog"),
        ("2.json", b'{"cls": "emu"}'), ("2.jpg", PHOTOS[2]), ("3.mask.png", PHOTOS[7]), ("3.jpg", PHOTOS[3]),
        ("3.cls", b"dog"), ("0.cls", b"cat"), ("1.jpg", PHOTOS[4]), ("2.jpg", PHOTOS[6]), ("2.jpg", new),
        ("3.mask.png", PHOTOS[6]),
    ]  # fmt: skip
    source = open_source(str(make_tar(tmp_path / "w.tar.gz", web)))
    assert source.class_names == ["cat", "dog", "emu"] and source.warnings == []
    assert source.left_out.counts == {"replaced": 5, "same key": 1}
    assert [(sample.name, sample.image, sample.label) for sample in source.samples()] == [
        ("w.tar.gz/0.jpg", PHOTOS[0], 0), ("w.tar.gz/3.jpg", PHOTOS[3], 1), ("w.tar.gz/1.jpg", PHOTOS[4], 1),
        ("w.tar.gz/2.jpg", new, 2),
    ]  # fmt: skip
    old, other = tar_bytes({"a.jpg": PHOTOS[0], "b.jpg": PHOTOS[1]}), tar_bytes({"d.jpg": PHOTOS[2]})
    again = tar_bytes([("a.jpg", PHOTOS[3]), ("c.jpg", PHOTOS[4]), ("a.jpg", new)])
    inner = make_tar(tmp_path / "i.tar", [("n1.tar", old), ("n2.tar", other), ("n1.tar", again)])
    assert [(sample.name, sample.image) for sample in samples(inner)] == [
        ("i.tar/n2/d.jpg", PHOTOS[2]), ("i.tar/n1/c.jpg", PHOTOS[4]), ("i.tar/n1/a.jpg", new),
    ]  # fmt: skip
    for i in range(2):  # shards may number their samples alike
        make_tar(tmp_path / f"s{i}.tar", {"0.jpg": PHOTOS[i], "0.cls": b"1"})
    assert names_and_labels(tmp_path / "s?.tar") == [("s0.tar/0.jpg", 1), ("s1.tar/0.jpg", 1)]


def test_a_file_that_is_named_twice_in_tars_command(tmp_path: Path) -> None:
    """GNU tar then adds a hard link to itself, which replaces nothing."""
    tree(tmp_path, {"0.jpg": PHOTOS[0], "1.jpg": PHOTOS[1]})
    subprocess.run(["tar", "cf", "a.tar", "0.jpg", "1.jpg", "0.jpg"], cwd=tmp_path, check=True)
    assert names_and_labels(tmp_path / "a.tar") == [("a.tar/0.jpg", -1), ("a.tar/1.jpg", -1)]


def test_only_this_shards_images_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    reader = tar._reader

    def counting(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Any:
        function = reader(tar, info)
        return lambda max_bytes: read.append(info.name) or function(max_bytes)  # type: ignore[func-returns-value]

    monkeypatch.setattr(tar, "_reader", counting)
    src = make_tar(tmp_path / "a.tar", {f"{i}.jpg": PHOTOS[i] for i in range(8)})
    assert len(samples(src, shard=(1, 4))) == 2 and read == ["2.jpg", "3.jpg"]


def test_labels_that_are_none(tmp_path: Path) -> None:
    labels = {
        "0.cls": b"cat", "1.cls": b"-2", "2.cls": b"2147483648", "3.json": b'{"label": "cat"}',
        "4.json": b'{"label": 0.5}', "5.json": b"{", "6.json": b"[1]", "7.cls": b"-1",
    }  # fmt: skip
    members = [(f"{name[0]}.jpg", PHOTOS[int(name[0])]) for name in labels] + list(labels.items())
    src = make_tar(tmp_path / "a.tar", sorted(members, key=lambda member: member[0][0]))
    sound, bad = broken(src)
    assert sound == ["a.tar/6.jpg", "a.tar/7.jpg"] and len(bad) == 6
    assert all(
        f"its label in {name} is no integer" in reason for name, (_, reason) in zip(labels, bad, strict=False)
    )


def test_labels_that_are_names(tmp_path: Path) -> None:
    """Sorted, as the names of folders; a sample may have none, and names of several tars are one set."""
    make_tar(
        tmp_path / "0.tar", [("0.jpg", PHOTOS[0]), ("0.cls", b"dog\n"), ("1.cls", b""), ("1.jpg", PHOTOS[1])]
    )
    make_tar(
        tmp_path / "1.tar",
        {"2.jpg": PHOTOS[2], "2.json": '{"label": "été"}'.encode(), "3.jpg": PHOTOS[3], "3.cls": b"ant"},
    )
    source = open_source(str(tmp_path / "?.tar"))
    assert source.class_names == ["ant", "dog", "été"] and source.notes[0].endswith(".json: 3 classes")
    assert [label for _, label in names_and_labels(tmp_path / "?.tar")] == [1, -1, 2, 0]
    parts = [sample for i in range(3) for sample in samples(tmp_path / "?.tar", shard=(i, 3))]
    assert [part.label for part in parts] == [1, -1, 2, 0]
    for label, number in ((b"3.0", 3), (b"true", 1)):
        src = make_tar(tmp_path / "f.tar", [("0.jpg", PHOTOS[0]), ("0.json", b'{"label": %b}' % label)])
        assert names_and_labels(src) == [("f.tar/0.jpg", number)]
    many = [(f"{i}.{ending}", data) for i in range(8) for ending, data in (("cls", b"a"), ("jpg", PHOTOS[i]))]
    assert [label for _, label in names_and_labels(make_tar(tmp_path / "z.tar.gz", many))] == [0] * 8


@pytest.mark.parametrize("web", [False, True])
def test_leftovers_in_a_tar(web: bool, tmp_path: Path) -> None:
    """As macOS's tar and zip write them; a tar within a leftover is not opened."""
    photos = {"cat/0.jpg": PHOTOS[0], "dog/1.jpg": PHOTOS[1]} | ({"dog/1.cls": b"7"} if web else {})
    others = ["._cat", "cat/._0.jpg", "cat/.DS_Store", "__MACOSX/cat/._0.jpg", "@eaDir/cat/x.jpg", "._x.tar"]
    members = dict.fromkeys(others[:3], b"x") | photos | dict.fromkeys(others[3:], b"x")
    src = make_tar(tmp_path / "a.tar", members)
    source = open_source(str(src))
    assert source.class_names == (None if web else ["cat", "dog"]) and source.num_samples == 2
    assert source.left_out.line() == "6 leftovers of other programs (the first is ._cat)"
    labels = (-1, 7) if web else (0, 1)
    assert names_and_labels(src) == [("a.tar/cat/0.jpg", labels[0]), ("a.tar/dog/1.jpg", labels[1])]


def test_shards_together_are_the_whole(tmp_path: Path) -> None:
    """Shards are runs of neighbouring samples over several tars, and one tar is truncated."""
    for i, num in enumerate((3, 0, 5, 4)):
        members = {f"{'cat' if j % 2 else 'ant'}/{j}.jpg": PHOTOS[j] for j in range(num)}
        make_tar(tmp_path / f"{i}.tar", members)
    cut = tmp_path / "2.tar"
    cut.write_bytes(cut.read_bytes()[:-10_240])
    whole = samples(tmp_path / "*.tar")
    assert [sample.name for sample in whole].count("2.tar") == 1 and len(whole) > 9
    for num_shards in (1, 2, 5, 20):
        shards = ((i, num_shards) for i in range(num_shards))
        parts = [sample for shard in shards for sample in samples(tmp_path / "*.tar", shard=shard)]
        assert [(part.name, part.label, str(part.image)) for part in parts] == [
            (sample.name, sample.label, str(sample.image)) for sample in whole
        ]


def test_counting_is_told(tmp_path: Path) -> None:
    members = {f"{j}.bin": bytes(1_000_000) for j in range(3)} | {"x.jpg": PHOTOS[0]}
    for i in range(2):
        make_tar(tmp_path / f"{i}.tar", members)
    calls: list[tuple[int, int]] = []
    open_source(str(tmp_path / "*.tar"), on_progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls) and {total for _, total in calls} == {6}
    assert calls[0][0] < 1 and calls[-1][0] >= 6 - 1


def test_a_member_beyond_4_gib(tmp_path: Path) -> None:
    """5 GiB before the images, a hole in the file, are skipped without being read."""
    src = tmp_path / "a.tar"
    info = tarfile.TarInfo("video.mp4")
    info.size = 5 << 30
    head, rest = info.tobuf(), tar_bytes({"0.jpg": PHOTOS[0], "1.jpg": PHOTOS[1]})
    with open(src, "wb") as file:
        file.write(head)
        file.seek(info.size, io.SEEK_CUR)
        file.write(rest)
    assert src.stat().st_size > 5 << 30
    assert names_and_labels(src) == [("a.tar/0.jpg", -1), ("a.tar/1.jpg", -1)]
    huge = tarfile.TarInfo("huge.jpg")
    huge.size = 3 << 30
    with open(src, "wb") as file:
        file.write(huge.tobuf())
        file.seek(huge.size, io.SEEK_CUR)
        file.write(rest)
    sound, bad = broken(src)
    assert len(sound) == 2 and bad == [
        ("a.tar/huge.jpg", "3,221,225,472 bytes; at most 268,435,456 are taken")
    ]


@pytest.mark.parametrize("is_web", [False, True])
def test_cut_anywhere_what_came_before_is_kept(is_web: bool, tmp_path: Path) -> None:
    """The samples are those with members that end before the cut, and one line names the tar."""
    members = []
    for i in range(3):
        members += [(f"{i}.jpg", PHOTOS[i])] + ([(f"{i}.cls", str(i).encode())] if is_web else [])
    whole = tar_bytes(members)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        ends = [-(-(info.offset_data + info.size) // 512) * 512 for info in tar.getmembers()]
    ends = ends[1::2] if is_web else ends
    src = tmp_path / "a.tar"
    cuts = {*range(513, len(whole), 200), *(end + more for end in ends for more in (-1, 0, 512))}
    for cut in sorted(cuts):
        if is_web and cut < ends[0]:
            continue  # without its only label the tar is not recognised as WebDataset
        src.write_bytes(whole[:cut])
        num = sum(end <= cut for end in ends)
        if cut >= ends[-1] + 512:  # the first block of the end marker is complete
            assert broken(src) == ([f"a.tar/{i}.jpg" for i in range(3)], [])
        elif num:
            sound, bad = broken(src)
            assert sound == [f"a.tar/{i}.jpg" for i in range(num)], cut
            assert len(bad) == 1 and bad[0][0] == "a.tar" and bad[0][1].startswith("is cut short"), cut
        else:
            with pytest.raises(ValueError, match=r"damaged before its first image \(a.tar is cut short"):
                samples(src)


def test_a_damaged_header_and_a_joined_tar(tmp_path: Path) -> None:
    whole = bytearray(tar_bytes({f"{i}.jpg": PHOTOS[i] for i in range(3)}))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        whole[tar.getmembers()[1].offset + 5] ^= 1
    src = tmp_path / "a.tar"
    src.write_bytes(whole)
    reason = "a header is damaged after 0.jpg, what follows is lost"
    assert broken(src) == (["a.tar/0.jpg"], [("a.tar", reason)])
    src.write_bytes(tar_bytes({"0.jpg": PHOTOS[0]}) + tar_bytes({"1.jpg": PHOTOS[1]}))
    sound, bad = broken(src)
    assert sound == ["a.tar/0.jpg"] and "goes on after its end mark" in bad[0][1]


def write_size(whole: bytearray, at: int, size: bytes) -> None:
    """Write a size in base 256 and the checksum of a member's header."""
    whole[at + 124 : at + 136] = size
    header = bytearray(whole[at : at + 512])
    header[148:156] = b" " * 8
    whole[at + 148 : at + 156] = b"%06o\0 " % sum(header)


def test_a_size_that_leads_back_ends_the_tar(tmp_path: Path) -> None:
    """A negative size would cause an endless loop."""
    whole = bytearray(tar_bytes({f"{i}.jpg": PHOTOS[i] for i in range(3)}))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        at = tar.getmembers()[1].offset
    for size in (-512, -2048):
        write_size(whole, at, (256**12 + size).to_bytes(12, "big"))
        (tmp_path / "a.tar").write_bytes(whole)
        sound, bad = broken(tmp_path / "a.tar")
        assert sound == ["a.tar/0.jpg"] and [name for name, _ in bad] == ["a.tar"]


def test_damaged_compression(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    members = {f"{i}.jpg": jpeg(noise.integers(0, 256, (90, 90, 3), dtype=np.uint8)) for i in range(9)}
    whole = gzip.compress(tar_bytes(members), mtime=0)
    src, half = tmp_path / "a.tgz", len(whole) // 2
    for damaged in (whole[:half], whole[:half] + b"\xff" * 99 + whole[half + 99 :]):
        src.write_bytes(damaged)
        sound, bad = broken(src)
        assert sound == [f"a.tgz/{i}.jpg" for i in range(len(sound))] and 3 <= len(sound) < 9
        assert [name for name, _ in bad] == ["a.tgz"] and "what follows is lost" in bad[0][1]
    src.write_bytes(whole[:-8] + bytes(4) + whole[-4:])  # damages the checksum
    sound, bad = broken(src)
    assert len(sound) == 9
    assert bad == [("a.tgz", "its compression is damaged at its end, an image may be damaged")]


def test_what_is_cut_is_listed_as_bad(tmp_path: Path) -> None:
    make_tar(tmp_path / "0.tar", {f"{i}.jpg": PHOTOS[i] for i in range(4)})
    cut = make_tar(tmp_path / "1.tar", {"a.jpg": PHOTOS[4], "b.jpg": b"no image", "c.jpg": PHOTOS[5]})
    cut.write_bytes(cut.read_bytes()[: 512 * 3 + len(PHOTOS[4]) // 512 * 512 + 1024 + 600])
    source = open_source(str(tmp_path / "*.tar"))
    out = tmp_path / "a.beton"
    report = write_beton(source.samples(), out, num_samples=source.num_samples, max_bad="2")
    assert (report.num_samples, report.num_bad) == (5, 2)
    with open(bad_path(out), newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[0] for row in rows] == ["1.tar/b.jpg", "1.tar"] and "is cut short at c.jpg" in rows[1][1]


def test_a_tar_that_changes_is_told(tmp_path: Path) -> None:
    src = make_tar(tmp_path / "a.tar", {f"{i}.jpg": PHOTOS[i] for i in range(3)})
    for num in (2, 4):
        source = open_source(str(src))
        make_tar(src, {f"{i}.jpg": PHOTOS[i] for i in range(num)})
        with pytest.raises(ValueError, match=f"3 images were counted at the start, {num} at the end"):
            list(source.samples())
        make_tar(src, {f"{i}.jpg": PHOTOS[i] for i in range(3)})


BESIDE = dict.fromkeys(("a.jpg", "cat/b.jpg", "ant/b.jpg"), b"x")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is no tar"),
        (b"x" * 2000, "is no tar"),
        (gzip.compress(b"x" * 2000), "is no tar"),
        (b"\x1f\x8b nonsense", "is no tar"),
        (bytes(10_240), "no images inside"),
        (tar_bytes({"a.txt": b"x"}), "no images inside"),
        (tar_bytes(BESIDE), "a.jpg lies beside the class folders ant"),
    ],
    ids=["empty", "bytes", "gzip of bytes", "nonsense after a mark", "no member", "no image", "beside"],
)
def test_what_is_no_source(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with refused(words, tmp_path / "a.tar"):
        open_source(str(tmp_path / "a.tar"))
