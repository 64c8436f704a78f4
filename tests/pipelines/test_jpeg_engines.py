"""Whether a GPU has JPEG engines that DALI can use, and what is said where it has none."""

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch

from fastpsl.pipelines.decoders import dali
from fastpsl.pipelines.decoders.dali import num_engines, why_idle, why_slower


class Library:
    """A fake of nvJPEG's library; `opened` is the status of opening the hardware decoder."""

    def __init__(self, status: int, engines: int, created: int = 0, opened: int = 0) -> None:
        self.status, self.engines, self.created, self.opened = status, engines, created, opened
        self.num_open = self.num_tries = 0

    def nvjpegCreateEx(self, backend: int, device: None, pinned: None, flags: int, handle: Any) -> int:
        assert (backend, device, pinned, flags) == (3, None, None, 0)  # NVJPEG_BACKEND_HARDWARE
        assert isinstance(handle._obj, ctypes.c_void_p)
        self.num_tries += 1
        self.num_open += self.opened == 0
        return self.opened

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


WHOLE, SLICE, VIRTUAL = "NVIDIA H200", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100-80C"


@pytest.mark.parametrize(
    ("name", "opened", "cause", "remedy"),
    [
        (WHOLE, 0, "", ""),
        (SLICE, 0, "", ""),
        ("NVIDIA T4", 7, "NVIDIA T4 has no JPEG engines", "the host's cores take a part"),
        (SLICE, 7, f"{SLICE} has no JPEG engine in this slice of a GPU", "a MIG profile with media engines"),
        (VIRTUAL, 6, f"{VIRTUAL} has no JPEG engine in this slice of a GPU", "or the whole GPU"),
        (WHOLE, 6, f"nvJPEG cannot open the JPEG engines of {WHOLE} (status 6)", "update the driver"),
    ],
)
def test_engines_that_cannot_be_opened_are_told_with_the_remedy(
    name: str, opened: int, cause: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dali, "loads", lambda library: library == "libnvcuvid.so.1")
    library = Library(0, 7, opened=opened)
    why = why_idle(library, name)
    assert why.startswith(cause) and remedy in why and bool(why) == bool(cause) and "\n" not in why
    assert (library.num_tries, library.num_open) == (1, 0)  # the handle is given back


@pytest.mark.parametrize("library", [None, object()])
def test_without_an_nvjpeg_that_can_tell_it_is_unknown(
    library: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dali, "loads", lambda _: True)
    assert "is unknown" in why_idle(library, WHOLE)


@pytest.mark.parametrize("is_container", [False, True])
@pytest.mark.parametrize(
    ("library", "is_sure"), [(Library(0, 7), True), (Library(0, 0), False), (None, True)]
)
def test_without_the_drivers_video_library_the_place_decides_the_remedy(
    library: Library | None, is_sure: bool, is_container: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dali, "loads", lambda _: False)
    monkeypatch.setattr(dali, "is_in_container", lambda: is_container)
    why = why_idle(library, "NVIDIA T4")
    assert ("NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in why) == is_container
    assert ("libnvidia-decode" in why) == (not is_container)
    assert why.startswith("NVIDIA T4 has no JPEG engines") == (not is_sure) and "\n" not in why
    assert library is None or library.num_tries == 0


def test_a_container_is_known_by_its_file_or_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dali, "_CONTAINER_FILES", (str(tmp_path / ".dockerenv"),))
    for name in dali._CONTAINER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert not dali.is_in_container()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert dali.is_in_container()
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    (tmp_path / ".dockerenv").touch()
    assert dali.is_in_container()


def test_a_gpu_is_asked_and_a_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_slower(torch.device("cpu")) == ""
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA T4")
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    monkeypatch.setattr(dali, "loads", lambda _: True)
    for opened in (7, 0):
        why_slower.cache_clear()
        library = Library(0, 0, opened=opened)
        monkeypatch.setattr(dali, "nvjpeg_library", lambda library=library: library)
        assert bool(why_slower(torch.device("cuda", 0))) == (opened != 0)
    why_slower.cache_clear()


def test_only_libraries_that_exist_load() -> None:
    assert dali.loads("libc.so.6") and not dali.loads("libnone_such.so.1")
