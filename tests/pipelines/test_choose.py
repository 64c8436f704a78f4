"""The choice of `auto`, as a table: threads, cores, views, what is installed, the data and the device."""

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastpsl.pipelines.data.dataset import MODE_FILE, MODE_JPEG
from fastpsl.pipelines.decoders import choose, dali, libffcv
from fastpsl.pipelines.decoders.choose import choose_decoder
from fastpsl.pipelines.image import libturbo

JPEGS, RAW, PNGS = "JPEGs", "raw images", "PNGs"
WORKING, IDLE, NO_DALI = "", "a GPU without engines", "DALI is not installed"
T4 = "NVIDIA T4 has no JPEG engines"


def data_of(kind: str, images: str, num_pixels: int) -> Any:
    mode = {JPEGS: MODE_JPEG, PNGS: MODE_FILE}.get(images, 1)
    return SimpleNamespace(
        kind=kind,
        num_samples=1000,
        is_raw=images == RAW,
        image_sizes=lambda: (200, 200, 500, 500),
        rows=lambda indices: SimpleNamespace(
            mode=np.full(len(indices), mode),
            height=np.full(len(indices), num_pixels // 500, np.int32),
            width=np.full(len(indices), 500, np.int32),
        ),
    )


CASES: list[tuple[dict[str, Any], str, list[str]]] = [
    # 16 threads / 0.68 ms = 23,529/s, and with two views / 0.90 ms = 17,778/s.
    ({}, "turbo", ["16 threads decode about 23,500 images/s of 0.17 Mpx (an estimate)", "14,758"]),
    ({"views": 2}, "turbo", ["about 17,800 images/s", "6,031"]),
    # 11 / 0.68 ms = 16,176, 10 / 0.68 ms = 14,706: one thread too few.
    ({"threads": 11}, "turbo", ["11 threads", "about 16,200"]),
    ({"threads": 10}, "dali", ["the GPU's JPEG engines decode", "10 threads decode about 14,700", "14,758"]),
    ({"threads": 10, "dali": IDLE}, "turbo", ["--workers 11 would do", "0.97 ms", "turbo 0.68", T4]),
    ({"threads": 10, "dali": NO_DALI}, "turbo", ["--workers 11", "not taken: DALI is not installed"]),
    ({"threads": 10, "images": PNGS}, "turbo", ["many of these images are none"]),
    ({"threads": 1, "images": RAW}, "turbo", ["raw images need no decoding"]),
    ({"cores": 8}, "dali", ["8 threads decode about 11,800"]),
    ({"cores": 8, "dali": IDLE}, "turbo", ["11 cores per GPU instead of 8"]),
    # Two views: 6 / 0.90 ms = 6,667; 5 / 0.90 ms = 5,556. Eight views are estimated at 2.22 ms: 7,207.
    ({"threads": 6, "views": 2}, "turbo", ["6 threads"]),
    ({"threads": 5, "views": 2}, "dali", ["about 5,560"]),
    ({"views": 8}, "turbo", ["about 7,210"]),
    # Images of 5,000 px: 2 / 0.0204 ms = 98,200/s. Of 4 times as many as measured: 16 / 1.36 ms = 11,765.
    ({"threads": 2, "pixels": 5_000}, "turbo", ["2 threads decode about 98,200 images/s of 0.005 Mpx"]),
    ({"pixels": 4 * 167_000}, "dali", ["about 11,800 images/s of 0.67 Mpx"]),
    ({"threads": 1, "device": "cpu"}, "turbo", ["it decodes what the crops need"]),
    ({"threads": 1}, "dali", ["1 thread decodes about 1,470"]),
    ({"given_cores": 8}, "dali", ["8 threads decode about 11,800"]),
    ({"no_turbo": True}, "dali", ["it decodes on the GPU", "no compiler; a wheel"]),
    ({"no_turbo": True, "dali": IDLE}, "dali", ["it decodes on the GPU", "no compiler; a wheel"]),
    ({"no_turbo": True, "dali": NO_DALI}, "ffcv", ["no faster one"]),
    ({"no_turbo": True, "dali": NO_DALI, "no_ffcv": True}, "pillow", ["no faster one"]),
    ({"no_turbo": True, "device": "cpu"}, "ffcv", ["no faster one"]),
    ({"kind": "folder"}, "turbo", ["16 threads decode about 23,500"]),
    ({"kind": "folder", "threads": 4}, "dali", ["4 threads decode about 5,880"]),
    ({"kind": "folder", "device": "cpu"}, "turbo", ["it decodes what the crops need"]),
    ({"kind": "folder", "device": "cpu", "images": PNGS}, "turbo", ["about 100% of the files", "Pillow"]),
    ({"kind": "folder", "images": PNGS}, "turbo", ["16 threads", "about 100% of the files", "Pillow"]),
    ({"kind": "folder", "images": PNGS, "threads": 4}, "turbo", ["JPEGs only", "about 100% of the files"]),
    ({"kind": "folder", "no_turbo": True}, "dali", ["it decodes on the GPU"]),
    ({"kind": "folder", "device": "cpu", "no_turbo": True}, "pillow", ["no faster one"]),
]  # fmt: skip


@pytest.mark.parametrize(("case", "name", "mentions"), CASES)
def test_what_auto_takes(
    case: dict[str, Any], name: str, mentions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, tried = list[torch.device](), list[torch.device]()
    cores = case.get("cores", 16)
    monkeypatch.setattr(choose, "default_num_threads", lambda: cores)
    monkeypatch.setattr(libturbo, "why_missing", lambda: "no compiler" if "no_turbo" in case else "")
    monkeypatch.setattr(libffcv, "why_missing", lambda: "no ffcv" if "no_ffcv" in case else "")
    state = case.get("dali", WORKING)

    def why_missing(device: torch.device) -> str:
        tried.append(device)
        return NO_DALI if state == NO_DALI else ""

    monkeypatch.setattr(dali, "why_missing", why_missing)

    def why_slower(device: torch.device) -> str:
        asked.append(device)
        return T4 if state == IDLE else ""

    monkeypatch.setattr(dali, "why_slower", why_slower)
    data = data_of(
        case.get("kind", "beton"), case.get("images", JPEGS), case.get("pixels", choose.MEASURED_PIXELS)
    )
    device = case.get("device", "cuda:0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chosen, reason = choose_decoder(
            "auto",
            data,
            torch.device(device),
            num_threads=case.get("threads"),
            num_views=case.get("views", 1),
            num_cores=case.get("given_cores"),
        )
    assert chosen == name
    for text in mentions:
        assert text in reason, reason
    assert "\n" not in reason
    is_slow = name in ("ffcv", "pillow") or ("no_turbo" in case and state == IDLE)
    assert len(caught) == is_slow and (not is_slow or "slow" in str(caught[0].message))
    if device == "cpu" or name == "pillow":
        assert not asked  # the engines are proven only where they could be taken
    if state == IDLE and "no_turbo" not in case:
        assert not tried  # importing DALI takes seconds


def test_the_measured_figures_agree_with_each_other() -> None:
    """A rate is cores over CPU time: 15.6 cores made 22,987 and, with two views, 17,030 images/s."""
    for num_views, rate in ((1, 22_987), (2, 17_030)):
        assert 15.6 / rate * 1e3 == pytest.approx(choose.turbo_ms(num_views), rel=0.03)
    assert pytest.approx(choose.DALI_MS, rel=0.04) == 4.2 / 37_027 * 1e3
    assert pytest.approx(choose.DALI_MS_WITHOUT_ENGINES, rel=0.01) == 13.6 / 14_002 * 1e3
