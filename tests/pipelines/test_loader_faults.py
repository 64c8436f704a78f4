"""Errors in the loader: raised in the consumer, in time and with names, and without anything left behind."""

import errno
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.data.dataset import SampleTable
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.decoders.codes import READING, REASONS
from fastpsl.pipelines.decoders.decoder import Request
from fastpsl.pipelines.decoders.turbo import TurboDecoder
from fastpsl.pipelines.loader.batch import BadSampleError
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.photos import DECODERS, JPG, photo_samples, write
from tests.pipelines.threads import loader_threads

NUM = 40
VIEWS = [ViewSpec(RandomResizedCrop(24)), ViewSpec(RandomResizedCrop(32))]
POISONED = {7: b"\xff\xd8 no more", 11: b"not a picture at all", 12: b""}


def open_files() -> set[str]:
    return {
        os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}")
    }


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "good.beton", photo_samples(NUM))


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    samples = photo_samples(NUM)
    for i, data in POISONED.items():
        samples[i] = (data or samples[i][0][:900], *samples[i][1:3], JPG)
    return write(tmp_path / "poisoned.beton", samples)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_poisoned_sample_is_raised_by_name(poisoned: Path, decoder: str) -> None:
    with (
        Beton(poisoned) as data,
        Loader(data, VIEWS, batch_size_per_rank=4, train=False, decoder=decoder) as loader,
    ):
        epoch = loader.epoch(0)
        assert next(epoch).indices.tolist() == [0, 1, 2, 3]
        with pytest.raises(BadSampleError, match=r"poisoned\.beton sample 7: not a JPEG$"):
            next(epoch)
        assert list(epoch) == []
        rest = [batch.indices.tolist() for batch in loader.epoch(0, first_step=4)]  # the loader goes on
        assert rest == [list(range(i, i + 4)) for i in range(16, NUM, 4)]


@pytest.mark.parametrize("decoder", DECODERS)
def test_skipped_samples_are_filled_counted_and_named(poisoned: Path, decoder: str) -> None:
    with Beton(poisoned) as data:
        options = {"batch_size_per_rank": 10, "train": False, "decoder": decoder}
        with Loader(data, VIEWS, on_bad_sample="skip", **options) as loader:  # type: ignore[arg-type]
            first, second, *rest = loader.epoch(0)
        assert first.indices.tolist() == [0, 1, 2, 3, 4, 5, 6, -1, 8, 9]
        assert first.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 8, 9]
        assert second.indices.tolist() == [10, -1, -1, *range(13, 20)]
        assert second.labels.tolist() == [10, 13, 13, *range(13, 20)]
        for view in range(2):
            assert (first.images[view][7] == first.images[view][8]).all()
            assert (second.images[view][1] == second.images[view][3]).all()
        assert [bad.index for bad in first.bad + second.bad] == [7, 11, 12]
        assert str(first.bad[0]).endswith("poisoned.beton sample 7: not a JPEG")
        assert second.bad[1].reason == REASONS[5]
        assert not any(batch.bad for batch in rest)


def test_a_batch_of_bad_samples_alone_is_an_error(poisoned: Path) -> None:
    with (
        Beton(poisoned) as data,
        Loader(data, VIEWS, batch_size_per_rank=1, train=False, on_bad_sample="skip") as loader,
    ):
        epoch = loader.epoch(0)
        assert [next(epoch).indices.item() for _ in range(7)] == list(range(7))
        with pytest.raises(
            BadSampleError, match=r"sample 7: not a JPEG \(all 1 samples of epoch 0, step 7 are bad\)"
        ):
            next(epoch)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_file_cut_short_while_it_is_read_is_an_error(
    good: Path, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_cut = threading.Event()
    with (
        Beton(good) as data,
        Loader(
            data, VIEWS, batch_size_per_rank=4, train=False, decoder=decoder, prefetch_batches=1
        ) as loader,
    ):
        rows = data.rows

        def of_the_cut_file(indices: np.ndarray) -> SampleTable:
            assert indices[0] < 4 or is_cut.wait(240)  # the second batch begins before the first is returned
            return rows(indices)

        monkeypatch.setattr(data, "rows", of_the_cut_file)
        epoch = loader.epoch(0)
        next(epoch)
        os.truncate(good, 1000)
        is_cut.set()
        with pytest.raises(ValueError, match=r"good\.beton.*truncated.*good\.beton sample 4") as error:
            next(epoch)
        assert "\n" not in str(error.value)


def break_decoder(loader: Loader, act: Callable[[SampleTable], None]) -> None:
    """Replace the loader's decoder by the test's function and leave everything else."""

    def decode_part(request: Request, part: slice) -> None:
        act(request.rows.part(part))

    loader.decoder.decode_part = decode_part  # type: ignore[union-attr, method-assign]


def test_a_stuck_thread_is_raised_within_the_timeout() -> None:
    release = threading.Event()
    let_go: list[bool] = []

    def act(rows: SampleTable) -> None:
        if 5 in rows.indices:
            let_go.append(release.wait(240))

    with Loader(Synthetic(64), VIEWS, batch_size_per_rank=4, train=False, num_threads=2) as loader:
        break_decoder(loader, act)
        epoch = loader.epoch(0)
        next(epoch)
        loader.timeout_s = 0.5
        with pytest.raises(
            TimeoutError,
            match="step 1: no batch within 0.5 s, waiting for synthetic sample 4, synthetic sample 5",
        ):
            next(epoch)
        assert not let_go  # the loader did not wait for the call
        with pytest.raises(ValueError, match="the loader is closed"):
            loader.epoch(0)
    release.set()
    for thread in threading.enumerate():
        if thread.name in loader_threads():
            thread.join(240)
    assert loader_threads() == []


def test_the_samples_that_are_read_are_named_where_a_wait_is_too_long() -> None:
    release = threading.Event()

    def decode_part(request: Request, part: slice) -> None:
        request.codes[part.start + 2] = READING
        release.wait(240)

    with Loader(Synthetic(64), VIEWS, batch_size_per_rank=8, train=False, num_threads=1) as loader:
        loader.decoder.decode_part = decode_part  # type: ignore[union-attr, method-assign]
        loader.timeout_s = 0.5
        with pytest.raises(TimeoutError, match="waiting for synthetic sample 2;"):
            next(loader.epoch(0))
    release.set()


@pytest.mark.skipif("turbo" not in DECODERS, reason="the C library was not built")
def test_slow_storage_is_read_in_more_threads(good: Path) -> None:
    with (
        Beton(good) as data,
        Loader(data, VIEWS, batch_size_per_rank=8, num_threads=2, decoder="turbo") as loader,
    ):
        assert list(loader.epoch(0))
        decoder = loader.decoder
        assert isinstance(decoder, TurboDecoder) and decoder._sums.all()
        for reading_ms, num in ((0.1, 2), (10, 22), (1000, 130)):
            decoder._sums = np.array([100, 1e6, reading_ms * 1e8, 1e8])  # decoding takes 1 ms
            assert decoder.wanted_threads(2) == num


@pytest.mark.skipif("turbo" not in DECODERS, reason="the C library was not built")
@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, OSError), (errno.ENOMEM, MemoryError)])
def test_codes_of_the_systems_errors_are_raised(good: Path, number: int, kind: type[Exception]) -> None:
    def decode_part(request: Request, part: slice) -> None:
        request.codes[1] = READING - number

    with Beton(good) as data, Loader(
        data, VIEWS, batch_size_per_rank=4, train=False, on_bad_sample="skip"
    ) as loader:  # fmt: skip
        loader.decoder.decode_part = decode_part  # type: ignore[union-attr, method-assign]
        with pytest.raises(kind, match="sample 1") as error:
            next(loader.epoch(0))
        assert kind is MemoryError or error.value.errno == number  # type: ignore[attr-defined]


def test_a_loader_has_the_threads_that_its_decoder_wants() -> None:
    meet = threading.Barrier(24)

    def act(rows: SampleTable) -> None:
        if rows.indices[0] >= 24:
            meet.wait(240)

    with Loader(Synthetic(48), VIEWS, batch_size_per_rank=1, train=False, num_threads=2) as loader:
        loader.prefetch_batches = 24
        break_decoder(loader, act)
        loader.decoder.wanted_threads = lambda num: 12 * num  # type: ignore[union-attr, method-assign]
        assert len(list(loader.epoch(0))) == 48 and len(loader_threads()) == 24
    assert loader_threads() == []


@pytest.mark.parametrize("error", [SystemExit(3), MemoryError("none left"), OSError(5, "Input/output error")])
def test_a_thread_that_dies_is_raised_and_the_others_live(error: BaseException) -> None:
    def act(rows: SampleTable) -> None:
        if 9 in rows.indices:
            raise error

    with Loader(Synthetic(64), VIEWS, batch_size_per_rank=4, train=False, num_threads=2) as loader:
        break_decoder(loader, act)
        epoch = loader.epoch(0)
        assert [next(epoch).step for _ in range(2)] == [0, 1]
        with pytest.raises(type(error)):
            next(epoch)
        assert len(loader_threads()) == 2
        assert len(list(loader.epoch(0, first_step=3))) == 13
    assert loader_threads() == []


@pytest.mark.parametrize("decoder", DECODERS)
def test_leaving_an_epoch_early_leaves_nothing(good: Path, decoder: str) -> None:
    files = open_files()
    with Beton(good) as data:
        with Loader(data, VIEWS, batch_size_per_rank=4, num_threads=3, decoder=decoder) as loader:
            whole = [batch.indices.tolist() for batch in loader.epoch(0)]
            for stop in range(3):
                for batch in loader.epoch(0):
                    assert batch.indices.tolist() == whole[batch.step]
                    if batch.step == stop:
                        break
            # dali has a driver, and turbo reads in more threads where storage is slow.
            assert len(loader_threads()) >= 3 + (decoder == "dali")
            assert [batch.indices.tolist() for batch in loader.epoch(0)] == whole
            epoch = loader.epoch(0)  # begun but not finished
            next(epoch)
        del epoch
    assert loader_threads() == []
    assert open_files() == files


def test_nothing_runs_on_after_an_epoch_is_left() -> None:
    running = []

    def act(rows: SampleTable) -> None:
        running.append(1)
        time.sleep(0.05)
        running.pop()

    with Loader(Synthetic(640), VIEWS, batch_size_per_rank=64, num_threads=2) as loader:
        break_decoder(loader, act)
        epoch = loader.epoch(0)
        next(epoch)
        epoch.close()  # type: ignore[attr-defined]
        for _ in range(5):
            assert not running  # so the caller may close the data
            time.sleep(0.02)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_loader_closed_amid_an_epoch_ends_what_it_has_begun(
    good: Path, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Beton(good) as data:
        loader = Loader(data, VIEWS, batch_size_per_rank=8, num_threads=2, decoder=decoder, timeout_s=3600)
        epoch = loader.epoch(0)
        rows = data.rows

        def slowly(indices: np.ndarray) -> SampleTable:
            time.sleep(0.2)  # so that its chunks are queued behind the threads' end markers
            return rows(indices)

        monkeypatch.setattr(data, "rows", slowly)
        next(epoch)
        loader.close()  # waits for the running calls, not for its limit
        assert loader_threads() == []
        epoch.close()  # type: ignore[attr-defined]


def test_an_epoch_of_a_closed_loader_says_so() -> None:
    loader = Loader(Synthetic(64), VIEWS, batch_size_per_rank=4, num_threads=2, timeout_s=3600)
    epoch = loader.epoch(0)
    next(epoch)
    loader.close()
    with pytest.raises(ValueError, match="the loader is closed"):
        list(epoch)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_loader_that_is_dropped_ends_its_threads() -> None:
    loader = Loader(Synthetic(64), VIEWS, batch_size_per_rank=4, num_threads=2)
    assert len(list(loader.epoch(0))) == 16
    assert len(loader_threads()) == 2
    del loader
    gc.collect()
    assert loader_threads() == []


STUCK = """
import sys, time
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.decoders.decoder import Request
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.data.dataset import SampleTable
from fastpsl.pipelines.views import ViewSpec
loader = Loader(Synthetic(64), [ViewSpec(RandomResizedCrop(8))], batch_size_per_rank=4, timeout_s=0.3)
loader.decoder.decode_part = lambda request, part: time.sleep(1000)
next(loader.epoch(0))
"""


def test_a_stuck_thread_does_not_hold_up_the_exit() -> None:
    process = subprocess.run(
        [sys.executable, "-c", STUCK], check=False, capture_output=True, text=True, timeout=240
    )
    assert process.returncode == 1
    assert "TimeoutError: epoch 0, step 0: no batch within 0.3 s" in process.stderr.splitlines()[-1]
