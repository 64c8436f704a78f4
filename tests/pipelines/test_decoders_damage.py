"""Samples that cannot be decoded get a code and a reason each, and leave the others unharmed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastpsl.pipelines.decoders import codes
from fastpsl.pipelines.decoders.choose import reason_of
from tests.pipelines.decoding import Samples, decode, make, samples_are_closed, whole  # noqa: F401
from tests.pipelines.photos import DECODERS, JPG, RAW, area_mean, jpeg, photo


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_wrong_is_said_and_spares_the_rest(name: str, tmp_path: Path) -> None:
    image = photo(0, 60, 80)
    good = jpeg(image)
    short = good[: len(good) // 2]
    cmyk = tmp_path / "cmyk.jpg"
    Image.fromarray(image).convert("CMYK").save(cmyk)
    samples = Samples(
        tmp_path / "data",
        [
            (good, 60, 80, JPG),
            (b"\x89PNG" + good, 60, 80, JPG),
            (b"", 60, 80, JPG),
            (good, 80, 60, JPG),
            (short, 60, 80, JPG),
            (cmyk.read_bytes(), 60, 80, JPG),
            (image.tobytes()[:-1], 60, 80, RAW),
            (good, 60, 80, 7),
            (good, 60, 80, JPG),
            (good[:-2] + bytes(100), 60, 80, JPG),  # zeros in place of the end marker, which Pillow accepts
            (good, 60, 80, JPG),
        ],
    )
    samples.rows.num_bytes[-1] += 1  # beyond the end of the file
    boxes = np.array([[0, 0, 60, 60]] * 11)
    boxes[3] = (0, 0, 60, 60)
    boxes[8] = (1, 0, 60, 60)
    decoder = make(name)
    status, (out,) = decode(decoder, samples.rows, [boxes], [24])
    expected = [
        codes.GOOD,
        codes.NOT_JPEG,
        codes.NOT_JPEG,
        codes.WRONG_SIZE,
        codes.CORRUPT,
        codes.WRONG_COMPONENTS,
        codes.RAW_SIZE,
        codes.BAD_MODE,
        codes.BAD_BOX,
        codes.CORRUPT,
        codes.SHORT_READ,
    ]
    assert status.dtype == np.int8 and status.tolist() == expected
    assert np.abs(out[0] - area_mean(image, (0, 0, 60, 60), 24)).mean() < 6
    assert reason_of(codes.WRONG_SIZE, samples.rows, 3) == "the header says 60x80 px, the table 80x60"
    assert reason_of(codes.WRONG_COMPONENTS, samples.rows, 5).endswith("the header says 4")
    for height, width in ((59, 80), (61, 80), (60, 79), (60, 81)):  # only one side is wrong
        alone = Samples(tmp_path / "alone", [(good, height, width, JPG)])
        assert decode(decoder, alone.rows, [np.array([[0, 0, 9, 9]])], [8])[0].tolist() == [codes.WRONG_SIZE]
    file_codes = {codes.CHANGED, codes.BAD_FILE}
    assert set(codes.REASONS) == (set(expected) | file_codes) - {codes.GOOD}
    assert "\n" not in "".join(codes.REASONS.values())


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """Change, remove or insert bytes, or cut off the end; half of the time in the headers."""
    out = bytearray(data)
    limit = len(out) if random.random() < 0.5 else 700
    for _ in range(int(random.integers(1, 6))):
        at, kind = int(random.integers(2, min(limit, len(out)))), int(random.integers(4))
        if kind == 0:
            out[at] = int(random.integers(256))
        elif kind == 1:
            del out[at : at + int(random.integers(1, 20))]
        elif kind == 2:
            out[at:at] = random.bytes(int(random.integers(1, 20)))
        elif len(out) > 200 and random.random() < 0.3:
            del out[int(random.integers(100, len(out))) :]
    return bytes(out)


@pytest.mark.parametrize("name", DECODERS)
def test_300_mutated_jpegs_do_no_harm(name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = [
        jpeg(photo(0, 75, 101)),
        jpeg(photo(1, 75, 101), progressive=True, subsampling=0),
        jpeg(photo(2, 75, 101)[..., 0], optimize=True),
    ]
    good = (base[0], 75, 101, JPG)
    bad = [(mutated(base[i % 3], random), 75, 101, JPG) for i in range(300)]
    samples = Samples(tmp_path / "data", [sample for item in bad for sample in (item, good)])
    decoder = make(name)
    status, (large, small) = decode(
        decoder, samples.rows, [whole(samples.rows), whole(samples.rows)], [50, 8]
    )
    assert not status[1::2].any() and (large[1::2] == large[1]).all() and (small[1::2] == small[1]).all()
    assert (status[::2] != codes.GOOD).sum() > 100
    assert set(status.tolist()) <= {codes.GOOD, *codes.REASONS}
    assert all(reason_of(int(status[i]), samples.rows, i) for i in np.flatnonzero(status).tolist())


@pytest.mark.parametrize("name", DECODERS)
def test_boxes_outside_never_reach_the_decoder(name: str, tmp_path: Path) -> None:
    samples = Samples(tmp_path / "data", [(jpeg(photo(0, 60, 80)), 60, 80, JPG)])
    decoder = make(name)
    top = 2**31 - 1
    for box in [
        (-1, 0, 9, 9),
        (0, -1, 9, 9),
        (0, 0, 0, 9),
        (0, 0, 9, 0),
        (52, 0, 9, 9),
        (0, 72, 9, 9),
        (top, 0, top, 9),
    ]:
        status, _ = decode(decoder, samples.rows, [np.array([[0, 0, 9, 9]]), np.array([box])], [8, 8])
        assert status.tolist() == [codes.BAD_BOX], box
