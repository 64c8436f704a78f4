"""The DALI decoder: its errors and first runs, and the samples that it refuses."""

import importlib
import re
import sys
import time
import types
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastpsl.console.installed import install
from fastpsl.files.workers import Workers
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.decoders import codes, dali, dali_pipeline
from fastpsl.pipelines.decoders.choose import open_decoder
from fastpsl.pipelines.decoders.dali import DaliDecoder
from fastpsl.pipelines.decoders.dali_pipeline import (
    DaliPipeline,
    Graph,
    build,
    feeds,
    named_sample,
    reason,
    user_error,
)
from fastpsl.pipelines.decoders.memory import Arenas
from fastpsl.pipelines.decoders.read_samples import Encoded
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.decoding import Samples, batches_of, loader_of, samples_are_closed  # noqa: F401
from tests.pipelines.decoding import decode as decode_batch
from tests.pipelines.photos import JPG, RAW, jpeg, needs_dali, photo, photo_samples, write
from tests.pipelines.readers import refused
from tests.programs import ROOT, interpreted

CPU = torch.device("cpu")
SIZES = (24, 17)


def as_arrays(samples: list[bytes]) -> list[np.ndarray]:
    return [np.frombuffer(data, np.uint8) for data in samples]


class Runs:
    """A pipeline for JPEGs of 50 x 60 px, with their crops one by one."""

    def __init__(self) -> None:
        self.pipeline = DaliPipeline(Graph(False, False, SIZES, (False, False)), 64, 2, CPU, 3)

    def submit(self, samples: list[bytes]) -> None:
        num = len(samples)
        boxes = [np.array([[3, 5, 40, 41, 0]] * num, np.int32), np.array([[0, 0, 50, 60, 0]] * num, np.int32)]
        self.pipeline.submit(as_arrays(samples), np.array([[50, 60]] * num), boxes)

    def collect(self) -> tuple[list[np.ndarray], dict[int, str]]:
        crops, failed = self.pipeline.collect()
        return [crop.numpy().copy() for crop in crops], failed

    def crops_of(self, samples: list[bytes]) -> list[np.ndarray]:
        self.submit(samples)
        crops, failed = self.collect()
        assert not failed
        return crops


GOOD = [jpeg(photo(seed, 50, 60)) for seed in range(20)]
CUT = GOOD[0][: len(GOOD[0]) // 2]  # DALI's error names this sample
HEADLESS = b"\xff\xd8\xff\xdb" + GOOD[0][6:]  # DALI's error does not name this one


@needs_dali("errors")
@pytest.mark.parametrize(
    "bad", [{3: CUT}, {0: CUT, 1: CUT, 9: CUT}, {4: HEADLESS}, {2: CUT, 7: HEADLESS, 9: CUT}]
)
def test_only_the_samples_at_fault_are_given_up(bad: dict[int, bytes]) -> None:
    runs = Runs()
    expected = runs.crops_of(GOOD[:10])
    runs.submit([bad.get(i, GOOD[i]) for i in range(10)])
    crops, failed = runs.collect()
    assert failed.keys() == bad.keys()
    assert all("\n" not in reason and reason for reason in failed.values())
    rest = [i for i in range(10) if i not in bad]
    for crop, other in zip(crops, expected, strict=True):
        assert (crop[rest] == other[rest]).all() and not crop[list(bad)].any()


@needs_dali("errors")
def test_what_waits_behind_an_error_comes_out_in_order() -> None:
    runs = Runs()
    parts = [GOOD[:4], GOOD[4:9], GOOD[9:12]]
    expected = [runs.crops_of(part) for part in parts]
    for wait_s in (0, 0.1):  # before and after the error has happened
        runs.submit([GOOD[0], CUT])
        time.sleep(wait_s)
        runs.submit(parts[0])
        runs.submit([CUT])
        assert list(runs.collect()[1]) == [1]
        runs.submit(parts[1])
        assert_crops(runs.collect(), expected[0])
        assert list(runs.collect()[1]) == [0]
        runs.submit(parts[2])
        for crops in expected[1:]:
            assert_crops(runs.collect(), crops)


def assert_crops(results: tuple[list[np.ndarray], dict[int, str]], expected: list[np.ndarray]) -> None:
    assert not results[1]
    assert all(np.array_equal(a, b) for a, b in zip(results[0], expected, strict=True))


@needs_dali("errors")
def test_a_pipeline_that_has_ended_is_started_again() -> None:
    runs = Runs()
    expected = runs.crops_of(GOOD[:3])
    runs.submit(GOOD[:3])
    runs.pipeline._pipe = None  # as after an error of another run
    runs.submit(GOOD[3:5])
    runs.submit(GOOD[:3])
    assert_crops(runs.collect(), expected)
    assert len(runs.collect()[0][0]) == 2
    assert_crops(runs.collect(), expected)


@needs_dali("errors")
def test_short_memory_is_no_fault_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, attempts = Runs(), []
    expected = runs.crops_of(GOOD[:3])
    runs.submit(GOOD[:3])
    runs.submit(GOOD[3:6])

    def share_outputs(*_: object) -> None:
        attempts.append(1)
        raise RuntimeError(FRAMED.format("Can't allocate 1 bytes on host."))

    monkeypatch.setattr(runs.pipeline._pipe, "share_outputs", share_outputs)
    with pytest.raises(ValueError, match="out of pinned host memory while decoding"):
        runs.collect()
    assert len(attempts) == 1  # not sample by sample
    assert len(runs.collect()[0][0]) == 3  # the next run, by a new pipeline
    assert_crops((runs.crops_of(GOOD[:3]), {}), expected)


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge errors as on a device with 16 MiB left."""
    little = lambda text, device, _, of_all: user_error(text, device, 16 << 20, of_all)
    monkeypatch.setattr(dali_pipeline, "user_error", little)


@needs_dali("errors")
@pytest.mark.usefixtures("short_memory")
@pytest.mark.parametrize("bad", [{3: CUT}, {0: CUT, 4: HEADLESS}])
def test_broken_samples_end_no_run_where_memory_is_short(bad: dict[int, bytes]) -> None:
    runs = Runs()
    runs.submit([bad.get(i, GOOD[i]) for i in range(6)])
    crops, failed = runs.collect()
    assert failed.keys() == bad.keys() and all(crop[5].any() for crop in crops)
    runs.submit([CUT, HEADLESS, CUT])  # nothing is decoded
    with pytest.raises(ValueError, match="out of GPU memory while decoding on cpu"):
        runs.collect()
    assert len(runs.crops_of(GOOD[:3])[0]) == 3


@needs_dali("errors")
@pytest.mark.usefixtures("short_memory")
def test_short_memory_is_the_reason_where_no_pipeline_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first images are black, so that no sample can be at fault."""

    def build(*_: object) -> None:
        raise RuntimeError(FRAMED.format(UNDECODED))

    monkeypatch.setattr(dali_pipeline, "build", build)
    with pytest.raises(ValueError, match="out of GPU memory while decoding on cpu"):
        Runs().crops_of(GOOD[:3])


@needs_dali("construction")
def test_a_share_that_is_none_is_refused() -> None:
    for share in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"hw_decoder_load {share}: a share of the batch, from 0 to 1"):
            DaliDecoder("beton", 1, 1, CPU, share)


@needs_dali("the loader")
def test_a_loader_keeps_a_few_batches_memory_and_no_more(tmp_path: Path) -> None:
    path = write(tmp_path / "a.beton", photo_samples(40))
    with loader_of(path, VIEWS, 4, decoder="dali", num_threads=2, prefetch_batches=2) as loader:
        arenas = loader.decoder._arenas  # type: ignore[union-attr]
        for epoch in range(3):
            for batch in loader.epoch(epoch):
                if batch.step == 4:
                    break
        assert len(list(loader.epoch(3))) == 10
        assert 1 <= len(arenas._free) <= 2 + 2  # two prefetched, and two being handed over
    assert loader.device_memory() == {}


VIEWS = [ViewSpec(RandomResizedCrop(24)), ViewSpec(RandomResizedCrop(40))]
# Where to put bytes between two segments, which libjpeg skips but DALI's parser does not.
AT = GOOD[5].index(b"\xff\xda")
ODD = GOOD[5][:AT] + b"\x12\x34" + GOOD[5][AT:]
JPEGS = [(data, 50, 60, JPG) for data in GOOD]


@needs_dali("fallbacks")
def test_an_odd_jpeg_is_decoded_on_the_cpu_counted_and_named_once(tmp_path: Path) -> None:
    odd = [*JPEGS[:5], (ODD, 50, 60, JPG), *JPEGS[6:9], (ODD, 50, 60, JPG)]
    path, options = write(tmp_path / "odd.beton", odd), {"train": False, "num_threads": 1}
    with loader_of(path, VIEWS, 5, decoder="dali", **options) as loader:
        with pytest.warns(UserWarning, match="sample 5 is decoded on the CPU, not by DALI") as caught:
            results = list(loader.epoch(0))
        assert sum("DALI" in str(warning.message) for warning in caught) == 1
        assert loader.decoder.num_fallbacks == 2  # type: ignore[union-attr]
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".* not by DALI")
            list(loader.epoch(1))
        assert loader.decoder.num_fallbacks == 4  # type: ignore[union-attr]
        expected = batches_of(loader.data, VIEWS, 5, decoder="pillow", **options)
    for batch, other in zip(results, expected, strict=True):
        for images, others in zip(batch.images, other.images, strict=True):
            assert ((images.int() - others.int()).abs().float().mean((1, 2, 3)) < 2).all()


def decode(
    decoder: DaliDecoder, path: Path, samples: list[tuple[bytes, int, int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    boxes = np.array([[3, 5, 40, 41]] * len(samples))
    status, (images,) = decode_batch(decoder, Samples(path, samples).rows, [boxes], [24])
    return status, images.copy()


@needs_dali("mixed batches")
def test_a_batch_may_hold_everything_at_once(tmp_path: Path) -> None:
    raw = (photo(3, 50, 60).tobytes(), 50, 60, RAW)
    samples = [JPEGS[0], raw, (ODD, 50, 60, JPG), (CUT, 50, 60, JPG), JPEGS[1], raw, (b"no", 50, 60, JPG)]
    decoder = DaliDecoder("beton", 8, 1, CPU)
    with pytest.warns(UserWarning, match="sample 2 is decoded on the CPU"):
        status, images = decode(decoder, tmp_path / "data", samples)
    assert status.tolist() == [0, 0, 0, codes.CORRUPT, 0, 0, codes.NOT_JPEG]
    for i in np.flatnonzero(status == codes.GOOD):
        alone = decode(decoder, tmp_path / "alone", samples[i : i + 1])[1]
        assert (images[i] == alone[0]).all() and alone.any()


@needs_dali("mixed batches")
def test_what_lies_in_pinned_memory_is_fed_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the flag: arenas claim to be pinned, and DALI does not get the flag, because it needs a GPU."""
    flags: list[tuple[bool, int, bool]] = []
    monkeypatch.setattr(Arenas, "_new", lambda _, num_bytes: np.empty(num_bytes, np.uint8))

    def unpinned(graph: Graph, samples: list[np.ndarray], boxes: list[np.ndarray], is_pinned: bool) -> object:
        flags.append((graph.is_raw, len(samples), is_pinned))
        return feeds(graph, samples, boxes)

    monkeypatch.setattr(dali_pipeline, "feeds", unpinned)
    raw = (photo(3, 50, 60).tobytes(), 50, 60, RAW)
    decoder = DaliDecoder("beton", 8, 1, CPU)
    decode(decoder, tmp_path / "a", [JPEGS[0], raw])
    assert flags == [(False, 1, False), (True, 1, False)]
    decoder._arenas = Arenas(pinned=True)
    flags.clear()
    decode(decoder, tmp_path / "b", [JPEGS[0], raw, raw])
    assert flags == [(False, 1, True), (True, 2, True)]
    flags.clear()
    with pytest.warns(UserWarning, match="sample 2 is decoded on the CPU"):
        decode(decoder, tmp_path / "c", [JPEGS[0], raw, (ODD, 50, 60, JPG)])
    assert flags == [(False, 1, True), (True, 2, False)]  # a decoded image lies outside of the arena
    flags.clear()
    monkeypatch.setattr(Encoded, "read", lambda self, part, read=Encoded.read: read(self, part) * 0)
    decode(decoder, tmp_path / "d", [JPEGS[0], (CUT, 50, 60, JPG), JPEGS[1]])
    assert flags == [(False, 3, True), (False, 2, True)]  # samples that are tried again have not moved


@needs_dali("feeding")
def test_dali_is_told_of_pinned_memory_sample_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    flags, library = [], importlib.import_module("nvidia.dali")
    wrap = library.tensors.TensorCPU

    def tensor(sample: np.ndarray, layout: str | None, is_pinned: bool) -> object:
        flags.append(is_pinned)
        return wrap(sample, layout, False)

    tensors = types.SimpleNamespace(TensorCPU=tensor, TensorListCPU=library.tensors.TensorListCPU)
    fake = types.SimpleNamespace(types=library.types, tensors=tensors)
    monkeypatch.setattr(dali_pipeline, "_dali", lambda: fake)
    boxes = [np.array([[3, 5, 40, 41, 0]] * 2, np.int32)]
    for is_pinned in (True, False):
        flags.clear()
        feeds(Graph(False, False, (24,), (False,)), as_arrays(GOOD[:2]), boxes, is_pinned)
        assert flags == [is_pinned] * 2


@needs_dali("fallbacks")
def test_what_dali_refuses_is_decoded_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Encoded.read
    monkeypatch.setattr(Encoded, "read", lambda self, part: read(self, part) * 0)
    samples = [*JPEGS[:5], (ODD, 50, 60, JPG), (CUT, 50, 60, JPG)]
    decoder = DaliDecoder("beton", 8, 2, CPU)
    with pytest.warns(UserWarning, match=r"sample 5 is decoded on the CPU, not by DALI \(.+\)"):
        status, images = decode(decoder, tmp_path / "data", samples)
    assert status.tolist() == [0] * 6 + [codes.CORRUPT] and decoder.num_fallbacks == 1
    expected = decode(decoder, tmp_path / "good", JPEGS[:6])[1]
    assert (images[:5] == expected[:5]).all()
    assert np.abs(images[5].astype(int) - expected[5]).mean() < 2


@needs_dali("the loader")
def test_two_loaders_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    path, options = write(tmp_path / "a.beton", photo_samples(24)), {"decoder": "dali", "num_threads": 2}
    with loader_of(path, VIEWS, 4, **options) as one, loader_of(path, VIEWS, 4, seed=1, **options) as other:
        expected = [list(one.epoch(0)), list(other.epoch(0))]
        both = list(zip(one.epoch(0), other.epoch(0), strict=True))
    for batches, others in zip(zip(*both, strict=True), expected, strict=True):
        for batch, same in zip(batches, others, strict=True):
            assert torch.equal(batch.indices, same.indices)
            assert all(torch.equal(a, b) for a, b in zip(batch.images, same.images, strict=True))


def use_cuda(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)


@pytest.mark.parametrize(
    ("cuda", "extra"), [("12.8", "dali-cu12"), ("13.0", "dali-cu13"), (None, "dali-cu13")]
)
def test_no_dali_is_said_with_the_install_line(
    cuda: str | None, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # type: ignore[arg-type]
    use_cuda(monkeypatch, cuda)
    with refused("decoder 'dali': DALI is not installed", install(extra), "or use auto"):
        open_decoder("dali", SimpleNamespace(kind="beton"))  # type: ignore[arg-type]


ANOTHER_CUDA = r"CUDA 12, torch for CUDA 13; pip uninstall nvidia-dali-cuda120, then pip inst"
TOO_OLD = rf"DALI 1.53.0 is older than 2.2; {re.escape(install('dali-cu13'))} --upgrade"


@pytest.mark.parametrize(
    ("version", "built_for", "device", "message"),
    [("2.4.0", 12076, "cuda", ANOTHER_CUDA), ("1.53.0", 13492, "cpu", TOO_OLD)]
    + [("2.4.0", 12076, "cpu", ""), ("2.10.1", 13492, "cuda", "")],
)
def test_a_dali_of_another_cuda_is_said(
    version: str, built_for: int, device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = types.ModuleType("nvidia.dali")
    other.__version__, other.__cuda_version__ = version, built_for  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nvidia.dali", other)
    use_cuda(monkeypatch, "13.2")
    why = dali.why_missing(torch.device(device))
    assert re.search(message, why) if message else why == ""


def test_a_dali_that_does_not_load_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "nvidia" / "dali"
    broken.mkdir(parents=True)
    error = "raise ImportError('libnvjpeg.so.13: cannot open\\nshared object file')"
    (broken / "__init__.py").write_text(error)
    (broken.parent / "__init__.py").write_text("")
    for name in ("nvidia.dali", "nvidia"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    use_cuda(monkeypatch, "13.2")
    importlib.invalidate_caches()
    assert dali.why_missing(CPU) == (
        "DALI does not load (libnvjpeg.so.13: cannot open shared object file); "
        f"{install('dali-cu13')} installs that for torch's CUDA"
    )


@pytest.mark.slow
@needs_dali("a process of its own")
def test_a_process_that_ends_amid_an_epoch_ends_quietly(tmp_path: Path) -> None:
    write(tmp_path / "a.beton", photo_samples(24))
    code = """
import signal, sys, os, time
import numba, torch
before = torch.get_num_threads(), numba.get_num_threads(), os.sched_getaffinity(0)
handlers = [signal.getsignal(number) for number in signal.valid_signals()]
sys.path.insert(0, sys.argv[1])
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader.loader import Loader
from tests.pipelines.test_dali import VIEWS
data = Beton(sys.argv[2])
def count_threads(allowed=None):
    with Loader(data, VIEWS, batch_size_per_rank=4, decoder="dali", num_threads=3) as loader:
        assert len(list(loader.epoch(0))) == 6
        most = len(os.listdir("/proc/self/task"))
    for _ in range(600):  # a thread is listed for a moment after it was joined
        left = len(os.listdir("/proc/self/task"))
        if left <= (most - 7 if allowed is None else allowed):
            break
        time.sleep(0.1)
    return most, left
count_threads()
most, left = count_threads()
assert left < most - 6 and count_threads(left + 1)[1] <= left + 1, (most, left)
loader = Loader(data, VIEWS, batch_size_per_rank=4, decoder="dali", num_threads=3)
epoch = loader.epoch(0)
next(epoch)
assert before == (torch.get_num_threads(), numba.get_num_threads(), os.sched_getaffinity(0))
assert handlers == [signal.getsignal(number) for number in signal.valid_signals()]
sys.exit(3)
"""
    process = interpreted(code, ROOT, tmp_path / "a.beton")
    assert (process.returncode, process.stdout, process.stderr) == (3, "", "")


def test_synthetic_data_are_not_decoded() -> None:
    with pytest.raises(ValueError, match="decoder 'dali' cannot read synthetic data"):
        open_decoder("dali", Synthetic(4))


# Messages of DALI 2.4: CUDABadAlloc and CUDAError (include/dali/core/cuda_error.h) in the frame of its
# executor, CUDA's texts of cudaErrorInsufficientDriver and cudaErrorUnsupportedPtxVersion, libdali's when it
# builds a pipeline for a GPU, and those of torch's allocator.
FRAMED = (
    "Critical error in pipeline:\nError in MIXED operator `x`,\nencountered:\n\n{}\n"
    "Current pipeline object is no longer valid."
)
ROOM = 8 << 30


UNDECODED = "Failed to decode sample #17 : "
INSUFFICIENT = "(35):\nCUDA driver version is insufficient for CUDA runtime version"
NO_DRIVER = "requires a CUDA-capable GPU but the CUDA driver is not installed or its version is insufficient."
UNSUPPORTED = "(222):\nthe provided PTX was compiled with an unsupported toolchain."
NO_MEMORY = "out of GPU memory while decoding on cuda:0"
OLD_DRIVER = "the NVIDIA driver is too old for this DALI"
OLDER_DALI = "update the driver, install the DALI of an older CUDA, or use --decoder turbo"


@pytest.mark.parametrize(
    ("text", "free_bytes", "says"),
    [
        ("Can't allocate 268435456 bytes on device 0.", ROOM, f"{NO_MEMORY} (Can't allocate"),
        ("CUDA allocation failed", ROOM, "lower --prefetch-batches or --batch-size, or use --decoder turbo"),
        ("CUDA out of memory. Tried to allocate 36.00 MiB. GPU 0 has", ROOM, NO_MEMORY),
        (UNDECODED, 16 << 20, ""),  # only this sample failed
        (UNDECODED, ROOM, ""),
        (UNDECODED, None, ""),  # on a CPU
        ("Can't allocate 8388608 bytes on host.", ROOM, "out of pinned host memory while decoding"),
        (f"CUDA runtime API error cudaErrorInsufficientDriver {INSUFFICIENT}", ROOM, OLD_DRIVER),
        (f"The pipeline {NO_DRIVER}", None, OLD_DRIVER),
        (f"CUDA runtime API error cudaErrorUnsupportedPtxVersion {UNSUPPORTED}", ROOM, OLDER_DALI),
        ("CUDA runtime API error cudaErrorIllegalAddress (700)", ROOM, ""),
    ],
)
def test_what_the_user_can_mend_is_said_in_one_line(text: str, free_bytes: int | None, says: str) -> None:
    error = user_error(FRAMED.format(text), "cuda:0", free_bytes)
    if not says:
        assert error is None
    else:
        assert says in str(error) and "\n" not in str(error) and "encountered" not in str(error)


def test_short_memory_is_the_reason_where_nothing_could_be_decoded() -> None:
    text = FRAMED.format(UNDECODED)
    assert NO_MEMORY in str(user_error(text, "cuda:0", 16 << 20, of_all=True))
    for free_bytes in (ROOM, None):
        assert user_error(text, "cuda:0", free_bytes, of_all=True) is None


def test_messages_are_read() -> None:
    text = (
        "Critical error in pipeline:\nError in CPU operator `x`,\n\n  File 'a', line 1\n\nencountered:\n\n"
        "Failed to decode sample #17 : \nCurrent pipeline object is no longer valid.\n"
    )
    assert named_sample(text) == 17 and reason(text) == "Failed to decode sample #17"
    assert named_sample("nvImageCodec failure: '#3'") is None


BATCH, DEPTH = 6, 3
*ARRAYS, CUT_ARRAY, HEADLESS_ARRAY = as_arrays([*GOOD[:4], CUT, HEADLESS])
GRAPHS = [
    Graph(is_raw, turns, (24, 17), isotropic)
    for is_raw, turns in ((False, False), (False, True), (True, False))
    for isotropic in ((False, False), (False, True), (True, True))
]


class Recorded:
    """A pipeline that keeps the sizes of the batches that each of its inputs is fed."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.sizes: dict[str, list[int]] = {}

    def feed_input(self, name: str, values: Any) -> None:
        self.sizes.setdefault(name, []).append(len(values))
        self._pipe.feed_input(name, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, list[int]]]:
    """Return the sizes of what each pipeline is fed, one entry for each that is built."""
    sizes: list[dict[str, list[int]]] = []

    def recorded(*args: Any) -> Recorded:
        pipe = Recorded(build(*args))
        sizes.append(pipe.sizes)
        return pipe

    monkeypatch.setattr(dali_pipeline, "build", recorded)
    return sizes


def assert_full(built: list[dict[str, list[int]]], *, num: int) -> None:
    assert len(built) == num > 0
    for sizes in built:
        assert sizes and {fed[0] for fed in sizes.values()} == {BATCH}, sizes
        assert all(len(fed) >= DEPTH for fed in sizes.values())


@needs_dali("first runs")
@pytest.mark.parametrize("graph", GRAPHS)
def test_each_kind_of_pipeline_starts_with_a_full_batch(
    graph: Graph, built: list[dict[str, list[int]]]
) -> None:
    workers = Workers(1, "fastpsl-test")
    pipeline = DaliPipeline(graph, BATCH, 1, CPU, DEPTH, workers)
    sides = [[3, 5, 40, 41, 0], [15, 20, 10, 10, 1]]
    samples = [photo(3, 50, 60)] if graph.is_raw else ARRAYS[:1]
    boxes = [np.array([sides[int(kernel)]], np.int32) for kernel in graph.isotropic]
    pipeline.submit(samples, np.array([[50, 60]]), boxes)
    crops, failed = pipeline.collect()
    pipeline.close()
    workers.close(5.0)
    assert [len(crop) for crop in crops] == [1, 1] and not failed
    assert_full(built, num=1)
    assert all(fed[DEPTH:] == [1] for fed in built[0].values())  # the batch itself is not filled up


@needs_dali("first runs")
@pytest.mark.parametrize(
    ("bad", "num_pipelines"), [([CUT_ARRAY], 2), ([HEADLESS_ARRAY], 3), ([CUT_ARRAY, HEADLESS_ARRAY], 4)]
)
def test_so_does_each_one_that_is_built_after_an_error(
    bad: list[np.ndarray], num_pipelines: int, built: list[dict[str, list[int]]]
) -> None:
    pipeline = DaliPipeline(Graph(False, False, (24,), (False,)), BATCH, 1, CPU, DEPTH)
    for samples in ([*ARRAYS[:2], *bad], ARRAYS[:1]):
        boxes = [np.array([[3, 5, 40, 41, 0]] * len(samples), np.int32)]
        pipeline.submit(samples, np.array([[50, 60]] * len(samples)), boxes)
    assert len(pipeline.collect()[1]) == len(bad)
    crops, failed = pipeline.collect()
    assert len(crops[0]) == 1 and not failed
    assert len(built) >= num_pipelines
    assert_full(built, num=len(built))


@needs_dali("first runs")
def test_a_loaders_short_last_batch_is_no_first_run(
    tmp_path: Path, built: list[dict[str, list[int]]]
) -> None:
    path = write(tmp_path / "a.beton", photo_samples(BATCH + 1))
    with loader_of(path, VIEWS[:1], BATCH, train=False, decoder="dali", num_threads=1) as loader:
        assert [(batch.indices >= 0).sum() for batch in loader.epoch(0, first_step=1)] == [1]
    assert_full(built, num=len(built))
