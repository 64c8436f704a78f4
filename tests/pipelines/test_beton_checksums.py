"""Checksums within betons: changes are detected without a JSON, and other readers ignore the checksums."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from fastpsl.cli import main
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import ALLOCATION, FIELD, HEADER, row_dtype
from fastpsl.pipelines.beton.sidecar import MARK, has_checksums, read_checksums
from fastpsl.pipelines.beton.verify import info, unchecked, verify
from tests.pipelines.photos import JPG, RAW, jpeg, photo, write

ROW = row_dtype((2, 1))
TABLE = HEADER.itemsize + 2 * FIELD.itemsize
NUM = 6
PAGE = 1 << 21  # where the data begin


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Write raw images, for which all bytes are valid."""
    return write(tmp_path / "a.beton", [(photo(i, 5 + i, 9).tobytes(), 5 + i, 9, RAW) for i in range(NUM)])


def contents(path: Path) -> "list[tuple[bytes, int, int, int]] | None":
    """Return the bytes, height, width and label of each sample, or None if the beton is refused."""
    try:
        with Beton(path) as beton:
            rows = beton.rows(np.arange(beton.num_samples))
            sides = zip(rows.height.tolist(), rows.width.tolist(), rows.label.tolist(), strict=True)
            return [(beton.read(i), *of) for i, of in enumerate(sides)]
    except ValueError:
        return None


def test_the_list_is_that_of_rows_and_data(raw: Path) -> None:
    data = raw.read_bytes()
    with Beton(raw) as beton:
        rows = np.frombuffer(data, ROW, NUM, TABLE)
        expected = [zlib.crc32(rows[i].tobytes() + beton.read(i)) for i in range(NUM)]
        assert has_checksums(beton.shards[0]) and read_checksums(beton.shards[0]).tolist() == expected
        assert unchecked(beton) == "" and "checksum of each sample    CRC-32" in info(beton)


def test_no_change_of_what_is_read_goes_unseen(raw: Path) -> None:
    """Bits of header, table, data, checksums and allocation table change, without a JSON."""
    original, random = raw.read_bytes(), np.random.default_rng(0)
    expected = contents(raw)
    with Beton(raw) as beton:
        end = beton.shards[0].alloc + NUM * ALLOCATION.itemsize
    assert end == len(original)
    places = np.concatenate(
        [
            np.arange(HEADER.itemsize),
            random.integers(HEADER.itemsize, TABLE, 40),
            random.integers(TABLE, TABLE + NUM * ROW.itemsize, 150),
            random.integers(PAGE, end, 150),
        ]
    )
    num_changed = 0
    for at in places.tolist():
        with open(raw, "r+b") as file:
            file.seek(at)
            file.write(bytes([original[at] ^ 1 << int(random.integers(8))]))
        samples = contents(raw)
        if samples is not None and samples != expected:
            num_changed += 1
            assert list(verify(raw)), at
        with open(raw, "r+b") as file:
            file.seek(at)
            file.write(original[at : at + 1])
    assert raw.read_bytes() == original and list(verify(raw)) == []
    assert num_changed > 50


def test_the_sample_is_named(raw: Path) -> None:
    original = raw.read_bytes()
    rows = np.frombuffer(original, ROW, NUM, TABLE).copy()
    rows["f1"][[2, 4]] = rows["f1"][[4, 2]]
    raw.write_bytes(original[:TABLE] + rows.tobytes() + original[TABLE + rows.nbytes :])
    wrong = "its bytes, size or label are not those that were written"
    assert list(verify(raw)) == [f"{raw} sample 2: {wrong}", f"{raw} sample 4: {wrong}"]


def test_damaged_checksums_are_said_and_keep_nobody_from_reading(raw: Path) -> None:
    original, expected = raw.read_bytes(), contents(raw)
    with Beton(raw) as beton:
        alloc = beton.shards[0].alloc
    for at, what in (
        (alloc - 5, "checksums are damaged"),
        (HEADER.itemsize + 900, "header is not as it was"),
    ):
        data = bytearray(original)
        data[at] ^= 1
        raw.write_bytes(data)
        assert contents(raw) == expected
        (problem,) = verify(raw)
        assert what in problem
    # A header with fewer samples than there are.
    header = np.frombuffer(original, HEADER, 1).copy()
    header["num_samples"] = NUM - 1
    raw.write_bytes(header.tobytes() + original[HEADER.itemsize :])
    (problem,) = verify(raw)
    assert "checksums are damaged" in problem


def test_betons_without_are_read_and_said_to_be_checked_less(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = write(tmp_path / "a.beton", [(jpeg(photo(0, 40, 50)), 40, 50, JPG)])
    data = out.read_bytes()
    out.write_bytes(data.replace(MARK, bytes(len(MARK)), 1))
    with Beton(out) as beton:
        assert not has_checksums(beton.shards[0]) and "checksum of each sample    none" in info(beton)
        assert unchecked(beton).startswith("no checksums in it and no JSON beside it")
    main(["data", "verify", str(out)])
    assert capsys.readouterr().out.startswith(f"{out}: 1 samples, all sound (no checksums in it")
