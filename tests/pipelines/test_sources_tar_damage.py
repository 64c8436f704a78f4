"""Damaged tars as sources: the samples before the damage, a line for the rest, and files that are no tars."""

import bz2
import csv
import gzip
import io
import lzma
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fastpsl.pipelines.beton.output import bad_path
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.open import open_source
from tests.pipelines.photos import jpeg
from tests.pipelines.tars import make_tar, tar_bytes
from tests.pipelines.test_sources_tar import PHOTOS, broken, samples


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
    for cut in sorted(
        {*range(513, len(whole), 200), *ends, *(end + 512 for end in ends), *(end - 1 for end in ends)}
    ):
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


def test_a_first_header_that_is_damaged_or_lies_is_no_tar_without_images(tmp_path: Path) -> None:
    whole, src = bytearray(tar_bytes({"0.jpg": PHOTOS[0]})), tmp_path / "a.tar"
    for size in (1 << 40, 1 << 62):
        whole[124:136] = b"\x80" + size.to_bytes(11, "big")  # base 256
        header = bytearray(whole[:512])
        header[148:156] = b" " * 8
        whole[148:156] = b"%06o\0 " % sum(header)
        src.write_bytes(whole)
        with pytest.raises(
            ValueError, match=r"a.tar: damaged before its first image \(a.tar .*; copy it again"
        ):
            samples(src)
    whole[5] ^= 1
    src.write_bytes(whole)
    with pytest.raises(
        ValueError, match=r"a.tar: is no tar, or damaged at its beginning \(a header is damaged\)"
    ):
        samples(src)


def test_a_size_that_leads_back_ends_the_tar(tmp_path: Path) -> None:
    """A negative size would cause an endless loop."""
    whole = bytearray(tar_bytes({f"{i}.jpg": PHOTOS[i] for i in range(3)}))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        at = tar.getmembers()[1].offset
    for size in (-512, -2048):
        whole[at + 124 : at + 136] = (256**12 + size).to_bytes(12, "big")  # base 256
        header = bytearray(whole[at : at + 512])
        header[148:156] = b" " * 8
        whole[at + 148 : at + 156] = b"%06o\0 " % sum(header)
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


def test_any_damage_is_a_line_never_a_crash(tmp_path: Path) -> None:
    """Random changes of bytes give an error with a message, or as many samples as counted."""
    random = np.random.default_rng(0)
    members: dict[str, bytes] = {"x/" + "é" * 120 + ".jpg": PHOTOS[0], "x/1.jpg": PHOTOS[1], "x/1.cls": b"1"}
    members["n.tar"] = tar_bytes({"2.jpg": PHOTOS[2]}, format=tarfile.PAX_FORMAT)
    tars = [tar_bytes(members, format=format) for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    packed = [pack(data) for data in tars for pack in (gzip.compress, bz2.compress, lzma.compress)]
    src = tmp_path / "a.tar"
    for trial in range(500):
        data = bytearray((tars * 3 + packed)[trial % 12])
        blocks = np.flatnonzero([any(data[at : at + 512]) for at in range(0, len(data), 512)])
        for _ in range(random.integers(1, 4)):
            at = int(random.choice(blocks)) * 512 + int(random.integers(0, 160))  # within most header fields
            data[min(at, len(data) - 1)] = int(random.integers(0, 256))
        src.write_bytes(data)
        try:
            assert len(samples(src)) >= 1
        except ValueError as error:
            assert str(src) in str(error) and "\n" not in str(error)


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


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is no tar"),
        (b"x" * 2000, "is no tar"),
        (gzip.compress(b"x" * 2000), "is no tar"),
        (b"\x1f\x8b nonsense", "is no tar"),
        (bytes(10_240), "no images inside"),
        (tar_bytes({"a.txt": b"x"}), "no images inside"),
        (
            tar_bytes({"a.jpg": b"x", "cat/b.jpg": b"x", "ant/b.jpg": b"x"}),
            "a.jpg lies beside the class folders ant",
        ),
    ],
    ids=[
        "empty",
        "bytes",
        "gzip of bytes",
        "nonsense after gzip's mark",
        "no member",
        "no image",
        "beside classes",
    ],
)
def test_what_is_no_source(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ValueError, match=words) as caught:
        open_source(str(tmp_path / "a.tar"))
    assert str(tmp_path / "a.tar") in str(caught.value) and "\n" not in str(caught.value)
