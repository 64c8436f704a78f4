"""The query for hardware JPEG decoders, with a fake nvJPEG and, if installed, the real one."""

import ctypes
from typing import Any

import pytest
import torch

from fastpsl.pipelines.decoders import hardware_jpeg
from fastpsl.pipelines.decoders.hardware_jpeg import num_engines, why_slower


class Library:
    """A fake of nvJPEG's library."""

    def __init__(self, status: int, engines: int, created: int = 0) -> None:
        self.status, self.engines, self.created = status, engines, created
        self.num_open = 0

    def nvjpegCreateSimple(self, handle: Any) -> int:
        self.num_open += self.created == 0
        return self.created

    def nvjpegGetHardwareDecoderInfo(self, handle: Any, num: Any, cores: Any) -> int:
        num._obj.value, cores._obj.value = self.engines, 1
        return self.status

    def nvjpegDestroy(self, handle: Any) -> int:
        self.num_open -= 1
        return 0


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        (Library(0, 7), 7),
        (Library(0, 0), 0),
        (Library(7, 0), 0),  # NVJPEG_STATUS_ARCH_MISMATCH
        (Library(6, 3), None),
        (Library(0, 7, created=6), None),  # no device
        (None, None),
    ],
)
def test_engines_are_counted_and_the_handle_is_given_back(
    library: Library | None, expected: int | None
) -> None:
    assert num_engines(library) == expected
    assert library is None or library.num_open == 0


def test_a_gpu_without_is_said_and_a_cpu_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_slower(torch.device("cpu")) == ""
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA T4")
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    for engines, says in ((0, "NVIDIA T4 has no hardware JPEG decoder"), (7, "")):
        why_slower.cache_clear()
        monkeypatch.setattr(hardware_jpeg, "nvjpeg_library", lambda engines=engines: Library(0, engines))
        why = why_slower(torch.device("cuda", 0))
        assert why.startswith(says) and bool(why) == bool(says)
    why_slower.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it answers")
def test_the_real_library_without_a_device_says_nothing() -> None:
    library = hardware_jpeg.nvjpeg_library()
    assert library is None or isinstance(library, ctypes.CDLL)
    assert num_engines(library) is None
