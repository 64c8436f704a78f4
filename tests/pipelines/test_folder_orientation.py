"""The orientation of JPEGs in folders: EXIF in all its forms, the same for every decoder."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastpsl.pipelines.data.image_files import Folder
from tests.pipelines.folders import tree
from tests.pipelines.photos import area_mean, jpeg, photo, pil_decode
from tests.pipelines.test_folder import every_reader, whole


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + (len(data) + 2).to_bytes(2, "big") + data


def upside_downs() -> dict[str, bytes]:
    """Return JPEGs with metadata for a rotation by 180 degrees; names start with the expected orientation."""
    plain = jpeg(photo(7, 90, 130))
    exif = Image.Exif()
    exif[0x112] = 3
    upside_down = segment(0xE1, b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0"))
    del exif[0x112]
    exif[0x10F] = "maker"
    silent = segment(0xE1, b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0"))
    xmp = segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation="3"></x:xmpmeta>')
    large = segment(0xFE, bytes(60_000))
    # So that the frame header is within the first 64 KiB and the scan beyond them.
    rest = (1 << 16) - len(upside_down) - len(large) - plain.index(b"\xff\xc0") - 24
    long = b"II*\0\x08\0\0\0\x01\0" + b"\x12\x01\x04\0\x01\0\0\0\x03\0\0\0" + bytes(4)
    heads = {
        "3 exif": upside_down,
        "3 xmp, exif": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>") + upside_down,
        "3 long head": upside_down + large + segment(0xFE, bytes(rest - 4)),
        "3 of another type": segment(0xE1, b"Exif\0\0" + long),
        "1 xmp alone": xmp,
        "1 silent exif, xmp": silent + xmp,
        "1 cut exif": upside_down[:2] + (14).to_bytes(2, "big") + upside_down[4:16],
    }
    return {name: plain[:2] + head + plain[2:] for name, head in heads.items()}


@every_reader
def test_what_exif_says_is_read_alike_wherever_it_stands(
    tmp_path: Path, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tree(tmp_path / "flat", {f"{name}.jpg": data for name, data in upside_downs().items()})
    with Folder(tmp_path / "flat") as data:
        rows = data.rows(np.arange(data.num_samples))
        names = [os.path.basename(path) for path in rows.path]
        assert rows.orientation.tolist() == [int(name[0]) for name in names]
        images, num_fallbacks = whole(data, decoder, 45)
        assert not num_fallbacks
        upright = pil_decode(jpeg(photo(7, 90, 130)))
        for name, image in zip(names, images, strict=True):
            expected = upright[::-1, ::-1] if name.startswith("3") else upright
            assert np.abs(image - area_mean(expected, (0, 0, 90, 130), 45)).mean() < 1.5, name
