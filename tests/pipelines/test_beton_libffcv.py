"""libffcv, called by numba and Python without importing ffcv, and JPEG headers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastpsl.pipelines.decoders import libffcv
from fastpsl.pipelines.decoders.libffcv import Handle, decode_into
from fastpsl.pipelines.decoders.read_samples import _jpeg_header
from fastpsl.pipelines.image.jpeg import (
    HEADER_BROKEN,
    HEADER_GOOD,
    HEADER_NOT_JPEG,
    HEADER_UNSUPPORTED,
    jpeg_header,
)
from tests.pipelines.photos import jpeg, needs_ffcv, photo, pil_decode

CACHED = """
import sys, os
import numpy as np
sys.path.insert(0, sys.argv[1])
from fastpsl.pipelines.decoders import libffcv
libffcv.library()
import user_loop
from pathlib import Path
data = Path(sys.argv[2]).read_bytes()
fd = os.open(sys.argv[2], os.O_RDONLY)
out = user_loop.load(fd, len(data), np.empty(len(data), np.uint8), np.empty(90 * 121 * 3, np.uint8))
stats = user_loop.load.stats
hits, misses = sum(stats.cache_hits.values()), sum(stats.cache_misses.values())
print(out, hits, misses, "ffcv" in sys.modules, "torch" in sys.modules)
"""
USER_LOOP = """
from numba import njit
from fastpsl.pipelines.image import jpeg as headers
from fastpsl.pipelines.decoders.libffcv import decode_into, pread_into

jpeg_header = njit(headers.jpeg_header)

@njit(cache=True, nogil=True)
def load(fd, num_bytes, data, pixels):
    if pread_into(fd, 0, num_bytes, data) != num_bytes:
        return -2
    status, height, width, components, is_progressive, precision = jpeg_header(data, num_bytes)
    if status or decode_into(data, num_bytes, height, width, pixels, 1, 1, 0):
        return -1
    return int(pixels.astype("int64").sum())
"""


@needs_ffcv("compiled code calls its library")
def test_compiled_callers_are_cached_across_processes_and_ffcv_is_not_imported(tmp_path: Path) -> None:
    data = jpeg(photo(1, 90, 121))
    (tmp_path / "a.jpg").write_bytes(data)
    (tmp_path / "user_loop.py").write_text(USER_LOOP)
    lines = []
    for _ in range(2):
        process = subprocess.run(
            [sys.executable, "-c", CACHED, str(tmp_path), str(tmp_path / "a.jpg")],
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
        lines.append(process.stdout.split())
    assert lines[0][1:] == ["0", "1", "False", "False"]  # compiled
    assert lines[1][1:] == [
        "1",
        "0",
        "False",
        "False",
    ]  # loaded: a dynamic global would make this a miss again
    assert lines[0][0] == lines[1][0]
    assert int(lines[0][0]) == pytest.approx(pil_decode(data).astype(float).sum(), rel=0.01)


@needs_ffcv("it is compared with its imdecode")
@pytest.mark.parametrize("denominator", [1, 2, 4, 8])
def test_a_handle_decodes_as_imdecode_does(denominator: int) -> None:
    """Bit for bit, for truncated files too, and with one handle for many images."""
    handle = Handle()
    assert handle.address
    for i, (height, width) in enumerate(((90, 121), (1, 1), (17, 300))):
        whole = jpeg(photo(i, height, width), progressive=i == 2)
        for data in (whole, whole[: len(whole) * 2 // 3]):
            results = []
            for address in (0, handle.address):
                out = np.zeros((-(-height // denominator), -(-width // denominator), 3), np.uint8)
                packed = np.frombuffer(data, np.uint8)
                status = decode_into(packed, len(data), height, width, out, 1, denominator, address)
                results.append((status, out.tobytes()))
            assert results[0] == results[1]
        assert any(results[0][1]) or height == 1


def header(data: "bytes | bytearray") -> tuple[int, ...]:
    plain = jpeg_header(bytes(data), len(data))
    assert tuple(_jpeg_header(np.frombuffer(data, np.uint8), len(data))) == plain
    return plain


def test_jpeg_header() -> None:
    image = photo(1, 90, 121)
    assert header(jpeg(image)) == (HEADER_GOOD, 90, 121, 3, 0, 8)
    assert header(jpeg(image, progressive=True)) == (HEADER_GOOD, 90, 121, 3, 1, 8)
    assert header(jpeg(image[:, :, 0])) == (HEADER_GOOD, 90, 121, 1, 0, 8)
    assert header(jpeg(np.dstack([image, image[:, :, :1]]).view()[:, :, :3])) == (
        HEADER_GOOD,
        90,
        121,
        3,
        0,
        8,
    )
    data = bytearray(jpeg(image))
    frame = data.find(b"\xff\xc0")
    assert header(data[:frame] + b"\xff\xff" + data[frame:]) == (HEADER_GOOD, 90, 121, 3, 0, 8)  # fill bytes
    assert header(data[:frame] + b"\x00" + data[frame:])[0] == HEADER_BROKEN
    for marker, status in (
        (0xC1, HEADER_GOOD),
        (0xC3, HEADER_UNSUPPORTED),
        (0xC9, HEADER_UNSUPPORTED),
        (0xDA, HEADER_BROKEN),
    ):
        data[frame + 1] = marker
        assert header(bytes(data))[0] == status
    data[frame + 1] = 0xC0
    data[frame + 5 : frame + 7] = b"\x00\x00"
    assert header(bytes(data))[0] == HEADER_BROKEN  # height 0
    for foreign in (b"", b"\xff", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(50)):
        assert header(foreign)[0] == HEADER_NOT_JPEG
    assert header(b"\xff\xd8\xff\xd9")[0] == HEADER_BROKEN


def test_jpeg_header_never_reads_past_the_end() -> None:
    data = np.frombuffer(jpeg(photo(1, 90, 121)), np.uint8)
    frame_end = bytes(data).find(b"\xff\xc0") + 19
    padded = np.concatenate([data, np.full(70000, 0xFF, np.uint8)])
    for num in range(frame_end):
        for buffer in (bytes(padded), padded):
            parse = _jpeg_header if buffer is padded else jpeg_header
            assert parse(buffer, num)[0] != HEADER_GOOD  # nothing beyond `num` is read
    assert jpeg_header(bytes(padded), frame_end)[0] == HEADER_GOOD


def test_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    before = libffcv.why_missing()
    monkeypatch.setattr(libffcv.PathFinder, "find_spec", lambda *_: None)
    libffcv._load.cache_clear()
    try:
        with pytest.raises(ValueError, match="ffcv is not installed: pip install"):
            libffcv.library()
    finally:
        monkeypatch.undo()
        libffcv._load.cache_clear()
    assert libffcv.why_missing() == before
