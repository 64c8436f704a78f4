"""HEIC images, and what is said of them without the package that reads them."""

import base64
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from fastpsl.pipelines.data.dataset import BadImage
from fastpsl.pipelines.datasets import folder
from fastpsl.pipelines.datasets.folder import Folder
from fastpsl.pipelines.image import image_file
from fastpsl.pipelines.image.image_file import decode_any, num_pixels, upright_size
from tests.pipelines.folders import tree
from tests.pipelines.photos import jpeg, photo

needs_heic = pytest.mark.skipif(image_file.is_missing(), reason="needs pi-heif")
# Six squares of 16 px, by libheif: a coded image of 64 x 64 px, with boxes that crop it and turn it (irot 3),
# and EXIF of orientation 6.
COLOURS = [[(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(255, 255, 0), (0, 0, 0), (255, 255, 255)]]
SQUARES = np.kron(np.array(COLOURS, np.uint8), np.ones((16, 16, 1), np.uint8))
HEIC = zlib.decompress(
    base64.b64decode(
        "eNpjYGCQSSupLMhIzUxmAILczDRDEDs3MzGNgYHxRG5qSSIDBChmpOQUQdkMBZnJJQxowCQzJx9siIsDAxMDI4jF+AZCA4EnUAwI"
        "mEzhIipAbJGZmZcG5oFkRYGcVLAyoJqMsmRDBiRBRpAS14pMsHK+gsySXAaoSkb2zIKiAiD7WWZBcj6QLgPqdWZkBglNACuS+8Dw"
        "5++PHwwM/MwJQB0SDow8jP//gxQwg1Qwg5DcLiaHRKCklhMjI5rMAoVG1mmvnizbuYMjw0ABKMQMIhgUk4DK2VwYDxYf6ARaIpyc"
        "n1OUl5xTARTlZWBrAAqJZBYXpEK96wDFGsk5iSCXGUAcz6AAov////8BFAhA+gE0MAQKMisyQRqZOTg4gBRnZlF+CdA9DJKZBbmw"
        "SGFkYGRrZGJmbWkDcqQyi1LToBJ8ySnFyeBoANlRmpuSCIovVw3G9ZIN31tazf8/Mtr/TCH+9aK6yNdRz1/573+1V6fwfZr8D5ns"
        "96Wt3/9LH3HPcfpXnLfz/6r0+Dnz4x50cN5hfviD7260HDAYGdggEeHry6AF5HEwMDIKgcIKFB4Q+wFnTn9X"
    )
)
TURN, EXIF = b"\x09irot\x03", b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
WHY = 'HEIC needs a package; pip install "fastpsl-vision[heic]" installs it'


@needs_heic
@pytest.mark.parametrize("exif", range(1, 9))
@pytest.mark.parametrize(("type", "code"), [(1, "B3x"), (3, "H2x"), (4, "I")])
def test_heic_is_turned_by_its_boxes_alone(exif: int, type: int, code: str, tmp_path: Path) -> None:
    assert HEIC.count(TURN) == HEIC.count(EXIF) == 1
    told = HEIC.replace(EXIF, struct.pack(f">HHI{code}", 0x112, type, 1, exif))
    boxes = {b"\x09irot" + bytes([turns]): np.rot90(SQUARES, turns) for turns in range(4)}
    boxes |= {b"\x09imir\x00": SQUARES[::-1], b"\x09imir\x01": SQUARES[:, ::-1]}
    for box, expected in boxes.items():
        data = told.replace(TURN, box)
        (tmp_path / "x").write_bytes(data)
        assert upright_size(str(tmp_path / "x")) == expected.shape[:2] and num_pixels(data) == 48 * 32
        assert np.abs(decode_any(data).astype(int) - expected).max() <= 5, box


@needs_heic
def test_damaged_heic_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (64).to_bytes(4, "big") * 2
    assert HEIC.count(size) == 1
    for broken in (HEIC[:60], HEIC[:-200], HEIC.replace(size, (32).to_bytes(4, "big") * 2)):
        with pytest.raises(BadImage) as caught:
            decode_any(broken)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(image_file, "MAX_PIXELS", 48 * 32 - 1)
    with pytest.raises(BadImage, match="32 x 48 px are more than 1,535 pixels"):
        decode_any(HEIC)


def folder_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Open a folder of a JPEG and a HEIC image, as where pi-heif is not installed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tree(tmp_path / "photos", {"a.jpg": jpeg(photo(0, 40, 50)), "b.heic": HEIC})
    with monkeypatch.context() as patches:
        for module in (image_file, folder):
            patches.setattr(module, "is_missing", lambda: True)
        with pytest.warns(UserWarning, match=r"1 of 2 images cannot be read, the first is b\.heic: HEIC"):
            Folder(root).close()
        with pytest.raises(BadImage) as caught:
            decode_any(HEIC)
    assert str(caught.value) == WHY
    return root


def test_without_the_package_heic_is_broken_and_the_extra_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_without_the_package(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "pi_heif", None)  # as if it were not installed
    assert image_file.is_missing.__wrapped__()


@needs_heic
def test_an_index_is_made_again_when_the_package_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Folder(folder_without_the_package(tmp_path, monkeypatch)) as data:
        assert data.image_sizes() == (40, 32, 48, 50)
