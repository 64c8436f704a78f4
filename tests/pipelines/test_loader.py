"""The loader's batches, and its errors: raised in the consumer, in time and with names."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typing_extensions import override

from fastpsl.files.workers import default_num_threads
from fastpsl.kernels.colour import Grey
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.geometry import Flip
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.decoders.codes import READING, REASONS
from fastpsl.pipelines.decoders.decoder import Request
from fastpsl.pipelines.decoders.turbo import TurboDecoder
from fastpsl.pipelines.interface.dataset import Dataset, SampleTable
from fastpsl.pipelines.loader.batch import BadSampleError, Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.loader.order import epoch_order
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.decoding import loader_of
from tests.pipelines.photos import COMPILED, DECODERS, JPG, RAW, photo, photo_samples, write
from tests.pipelines.readers import refused
from tests.pipelines.threads import loader_threads, wait_for_the_end_of_loader_threads
from tests.pipelines.written import tree

NUM, GLOBAL_BATCH = 38, 6
VIEW = ViewSpec(RandomResizedCrop(33), (Flip(), Grey(0.5)))
CENTRE = ViewSpec(ShorterSideCrop(40, 35, where="center"))
VIEWS = (VIEW, CENTRE)
# Sources and decoders, which all keep the same contract.
CASES = [(source, decoder) for source in ("jpeg", "raw") for decoder in DECODERS]
CASES += [("folder", decoder) for decoder in DECODERS if decoder not in COMPILED]
CASES += [("raw", "resident"), ("synthetic", "synthetic")]
every_case = pytest.mark.parametrize(("source", "decoder"), CASES)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Write data with labels 0, 1, 2, ...: JPEGs of many sizes as a beton and a folder, and raw images."""
    folder = tmp_path_factory.mktemp("sources")
    jpegs = photo_samples(NUM)
    raw = [(photo(i, 81, 67).tobytes(), 81, 67, RAW) for i in range(NUM)]
    files = {f"class {i:02}/{i}.jpg": data for i, (data, *_) in enumerate(jpegs)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield {
            "jpeg": write(folder / "photos.beton", jpegs),
            "raw": write(folder / "raw.beton", raw),
            "folder": tree(folder / "folder", files),
        }


@pytest.fixture(scope="module")
def beton(sources: dict[str, Path]) -> Path:
    return sources["jpeg"]


def open_named(sources: dict[str, Path], source: str) -> Any:
    """Open a source; the caller closes it."""
    return Synthetic(NUM, num_classes=NUM) if source == "synthetic" else open_data(sources[source])


def batches(data: Dataset, epoch: int = 0, first_step: int = 0, **options: object) -> list[Batch]:
    with Loader(data, VIEWS, **{"batch_size_per_rank": GLOBAL_BATCH, "num_threads": 2, **options}) as loader:  # type: ignore[arg-type]
        return list(loader.epoch(epoch, first_step))


def by_index(all_batches: list[Batch]) -> dict[int, tuple[np.ndarray, ...]]:
    """Map each dataset index, which must occur once, to the images and draws of all views and the label."""
    results = {}
    for batch in all_batches:
        for i, index in enumerate(batch.indices.tolist()):
            if index < 0:
                continue
            assert index not in results
            draws = [value[i].numpy() for view in batch.draws for draw in view for value in draw.values()]
            results[index] = (*(view[i].numpy() for view in batch.images), *draws, batch.labels[i].numpy())
    return results


def assert_equal(a: dict[int, tuple[np.ndarray, ...]], b: dict[int, tuple[np.ndarray, ...]]) -> None:
    assert a.keys() == b.keys()
    for index, values in a.items():
        assert all(np.array_equal(x, y) for x, y in zip(values, b[index], strict=True)), index


@every_case
@pytest.mark.parametrize("train", [True, False])
def test_each_sample_once_the_same_on_any_number_of_ranks_and_threads(
    sources: dict[str, Path], source: str, decoder: str, train: bool
) -> None:
    with open_named(sources, source) as data:
        alone = batches(data, 3, decoder=decoder, train=train)
        expected = by_index(alone)
        num_expected = NUM - NUM % GLOBAL_BATCH if train else NUM
        order = epoch_order(0, 3, NUM) if train else np.arange(NUM)
        assert sorted(expected) == sorted(order[:num_expected].tolist())
        assert all(int(values[-1]) == index for index, values in expected.items())  # labels are 0, 1, 2, ...
        assert_equal(expected, by_index(batches(data, 3, decoder=decoder, train=train, num_threads=5)))
        for world in (2, 3):
            share: dict[str, Any] = {"world": world, "batch_size_per_rank": GLOBAL_BATCH // world}
            ranks = [
                batches(data, 3, decoder=decoder, train=train, rank=rank, **share) for rank in range(world)
            ]
            assert_equal(expected, by_index([batch for rank in ranks for batch in rank]))
            for step, whole in enumerate(alone):
                parts = torch.cat([rank[step].indices for rank in ranks])
                assert parts.tolist() == whole.indices.tolist()


@every_case
def test_orders_and_views_differ_by_epoch_and_repeat_by_seed(
    sources: dict[str, Path], source: str, decoder: str
) -> None:
    with open_named(sources, source) as data:
        first, again = batches(data, 1, decoder=decoder), batches(data, 1, decoder=decoder)
        assert [batch.indices.tolist() for batch in first] == [batch.indices.tolist() for batch in again]
        assert_equal(by_index(first), by_index(again))
        for other in (batches(data, 2, decoder=decoder), batches(data, 1, decoder=decoder, seed=1)):
            assert [batch.indices.tolist() for batch in first] != [batch.indices.tolist() for batch in other]
            if decoder != "synthetic":
                a, b = by_index(first), by_index(other)
                shared = a.keys() & b.keys()
                assert sum(np.array_equal(a[index][0], b[index][0]) for index in shared) < 0.1 * len(shared)
                # Equal up to the scale at which a JPEG is decoded, which depends on the other view's crop.
                away = [np.abs(a[index][1].astype(int) - b[index][1]) for index in shared]
                assert max(part.mean() for part in away) < (
                    4 if source == "jpeg" and decoder in COMPILED else 1e-9
                )


def test_batches_are_what_they_say(beton: Path) -> None:
    with Beton(beton) as data:
        for step, batch in enumerate(batches(data, 2, seed=9)):
            assert (batch.epoch, batch.step, batch.bad) == (2, step, [])
            assert [images.shape for images in batch.images] == [(6, 3, 33, 33), (6, 3, 35, 35)]
            assert all(images.dtype == torch.uint8 for images in batch.images)
            assert all(images.is_contiguous(memory_format=torch.channels_last) for images in batch.images)
            assert batch.indices.dtype == batch.labels.dtype == torch.int64
            expected = VIEW.draw(Keys(9, 2, batch.indices.numpy(), 0))
            for draw, tensors in zip(expected, batch.draws[0], strict=True):
                assert draw.keys() == tensors.keys()
                assert all(np.array_equal(draw[key], tensors[key].numpy()) for key in draw)
            inputs = batch.inputs(VIEWS, torch.float32)
            torch.testing.assert_close(inputs[0], VIEW.apply(batch.images[0], batch.draws[0], torch.float32))
            torch.testing.assert_close(inputs[1], CENTRE.apply(batch.images[1], (), torch.float32))
            with pytest.raises(ValueError, match="1 views for a batch of 2"):
                batch.inputs([VIEW], torch.float32)


@pytest.mark.parametrize(("source", "decoder"), CASES[:-1])
def test_two_views_of_one_kind_are_two_views(sources: dict[str, Path], source: str, decoder: str) -> None:
    with (
        open_named(sources, source) as data,
        Loader(data, [VIEW, VIEW], batch_size_per_rank=NUM, decoder=decoder) as loader,
    ):
        (batch,) = loader.epoch(0)
    same = (batch.images[0] == batch.images[1]).flatten(1).all(1)
    assert same.sum() == 0
    assert not torch.equal(batch.draws[0][0]["flip"], batch.draws[1][0]["flip"])


@every_case
@pytest.mark.parametrize("train", [True, False])
def test_an_epoch_can_be_entered_anywhere_without_decoding_what_came_before(
    sources: dict[str, Path], source: str, decoder: str, train: bool
) -> None:
    with open_named(sources, source) as data:
        whole = batches(data, 5, train=train, decoder=decoder)
        with Loader(data, VIEWS, batch_size_per_rank=GLOBAL_BATCH, train=train, decoder=decoder) as loader:
            decoded = count_decoded(loader)
            tail = list(loader.epoch(5, first_step=4))
            assert sum(decoded) == sum(int((batch.indices >= 0).sum()) for batch in tail)
            assert list(loader.epoch(5, first_step=loader.num_steps)) == []
        assert [batch.step for batch in tail] == list(range(4, len(whole)))
        assert_equal(by_index(whole[4:]), by_index(tail))


def count_decoded(loader: Loader) -> list[int]:
    """Record the numbers of samples in the calls of the loader's decoder, which works as before."""
    decoder: Any = loader.decoder
    decode_part: Any = getattr(decoder, "decode_part", None)
    encode: Any = getattr(decoder, "encode", None)
    decoded: list[int] = []

    def counted_decode_part(request: Request, part: slice) -> None:
        decoded.append(part.stop - part.start)
        decode_part(request, part)

    def counted_encode(rows: SampleTable, encoded: Any, part: slice) -> None:
        decoded.append(part.stop - part.start)
        encode(rows, encoded, part)

    decoder.decode_part, decoder.encode = counted_decode_part, counted_encode
    return decoded


@every_case
def test_a_sample_is_decoded_once_for_all_views(sources: dict[str, Path], source: str, decoder: str) -> None:
    with (
        open_named(sources, source) as data,
        Loader(data, VIEWS, batch_size_per_rank=GLOBAL_BATCH, decoder=decoder) as loader,
    ):
        decoded = count_decoded(loader)
        assert sum(len(batch.indices) for batch in loader.epoch(0)) == sum(decoded)


@every_case
def test_padding_is_black_and_marked(sources: dict[str, Path], source: str, decoder: str) -> None:
    with open_named(sources, source) as data:
        for rank in (1, 2):  # the last batch of the first has a sample, that of the second only padding
            last = batches(data, train=False, batch_size_per_rank=2, world=3, rank=rank, decoder=decoder)[-1]
            assert last.indices.tolist() == [-1, -1] and last.labels.tolist() == [-1, -1]
            assert last.images[0].shape == (2, 3, 33, 33) and not last.images[0].any()
        last = batches(data, train=False, decoder=decoder)[-1]
        assert last.indices.tolist() == last.labels.tolist() == [36, 37, -1, -1, -1, -1]
        assert not last.images[0][2:].any() and last.images[0][:2].any()
        assert last.images[0].is_contiguous(memory_format=torch.channels_last)
        assert all(len(value) == 6 for draw in last.draws[0] for value in draw.values())
        (whole,) = batches(data, train=False, batch_size_per_rank=100, decoder=decoder)
        assert whole.indices.tolist() == [*range(NUM), *[-1] * 62]


@pytest.mark.parametrize("num", [0, 1, 4, 100])
def test_the_first_samples_are_those_of_the_batch(beton: Path, num: int) -> None:
    with Beton(beton) as data:
        whole = batches(data)[0]
    part = whole.first(num)
    for part_tensor, whole_tensor in zip(part.tensors(), whole.tensors(), strict=True):
        assert (
            torch.equal(part_tensor, whole_tensor[:num])
            and part_tensor.stride() == whole_tensor[:num].stride()
        )
    assert (part.epoch, part.step, len(part.indices)) == (whole.epoch, whole.step, min(num, GLOBAL_BATCH))


@pytest.mark.parametrize("decoder", [name for name in DECODERS if name != "dali"])
def test_images_stay_as_they_are_while_anything_refers_to_them_and_then_their_memory_serves_again(
    beton: Path, decoder: str
) -> None:
    with loader_of(beton, VIEWS, 2, decoder=decoder, prefetch_batches=2) as loader:
        expected = [batch.images[-1][1].clone() for batch in loader.epoch(0)]
        kept = [batch.images[-1][1].numpy() for batch in loader.epoch(0)]  # one of its four images
        for _ in loader.epoch(1):
            pass
        for image, as_it_was in zip(kept, expected, strict=True):
            np.testing.assert_array_equal(image, as_it_was.numpy())
        places = [batch.images[0].data_ptr() for batch in loader.epoch(2)]
        assert len(set(places)) < len(places) // 2
    np.testing.assert_array_equal(kept[-1], expected[-1].numpy())  # also behind the loader's end


def test_prefetch_is_bounded(beton: Path) -> None:
    with loader_of(beton, VIEWS, 2, num_threads=3, prefetch_batches=2) as loader:
        decoded = count_decoded(loader)
        for num_taken, _ in enumerate(loader.epoch(0), 1):
            time.sleep(0.02)
            assert sum(decoded) <= 2 * (num_taken + 2)
            if num_taken == 5:
                break


def as_values(all_batches: list[Batch]) -> list[tuple[int, list[int], bytes]]:
    return [(b.epoch, b.indices.tolist(), b.images[0].numpy().tobytes()) for b in all_batches]


@pytest.mark.parametrize("order", ["random", "quasi_random", "own"])
def test_the_next_epoch_begins_before_the_present_one_ends(
    beton: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = np.random.default_rng(0).integers(0, NUM, (3, NUM)) if order == "own" else [None] * 3
    options: dict[str, Any] = {"batch_size_per_rank": GLOBAL_BATCH, "num_threads": 2, "prefetch_batches": 3}
    if order == "quasi_random":
        options |= {"order": order, "lanes": 1}
    started, taken = list[tuple[int, int]](), 0
    with Beton(beton) as data, Loader(data, [VIEW], **options) as loader:
        expected = [as_values(list(loader.epoch(number, 0, own[number]))) for number in range(3)]
        start = loader._engine.start

        def noting(pending: Any) -> None:
            started.append((pending.epoch, pending.step))
            assert len(started) - taken <= 4  # three under way, and one that is handed over
            start(pending)

        monkeypatch.setattr(loader._engine, "start", noting)
        for number in range(3):
            got = []
            for step, batch in enumerate(loader.epoch(number, 0, own[number])):
                taken += 1
                got.append(batch)
                if step == 0 and number < 2:
                    loader.begin(number + 1, own[number + 1])
                    loader.begin(number + 1, own[number + 1])  # is begun already
                if step == loader.num_steps - 1 and number < 2:
                    assert started[-1] == (number + 1, 2)
            assert as_values(got) == expected[number]
        assert len(started) == 3 * loader.num_steps
        # One that nobody takes is left, and one that is begun between two epochs starts at once.
        loader.begin(7)
        assert started[-1] == (7, 2)
        taken = 100
        assert as_values(list(loader.epoch(1, 0, own[1]))) == expected[1]
        loader.begin(2)
    wait_for_the_end_of_loader_threads()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size_per_rank": 0}, "batch_size_per_rank is 0"),
        ({"rank": 2, "world": 2}, "rank is 2; it must be 0 to 1"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"on_bad_sample": "ignore"}, "'ignore'; it must be 'raise' or 'skip'"),
        ({"order": "sequential"}, "order is 'sequential'; it must be random or quasi_random"),
        ({"order": "quasi_random", "lanes": 4, "world": 3}, "--lanes 4 cannot be shared by 3 ranks"),
        ({"views": []}, "views is empty: it takes a list of fastpsl.ViewSpec"),
        ({"batch_size_per_rank": 20, "world": 2}, "38 samples are fewer than one global batch of 40"),
        ({"decoder": "jpegturbo"}, "decoder 'jpegturbo': there are auto, turbo"),
        ({"device": "cuda"}, "device cuda was asked for, but torch finds no CUDA device"),
        ({"device": "abacus"}, "device abacus"),
    ],
)
def test_wrong_options_are_one_line(
    beton: Path, options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with Beton(beton) as data, refused(message):
        Loader(data, **{"views": VIEWS, "batch_size_per_rank": 6, **options})  # type: ignore[arg-type]
    assert loader_threads() == []


def test_a_crop_that_can_never_be_made_is_refused_at_once(beton: Path) -> None:
    class TooLarge(ShorterSideCrop):
        @override
        def check(self, min_height: int, min_width: int) -> None:
            assert (min_height, min_width) == data.image_sizes()[:2]
            raise ValueError(f"a crop of 300 px from pictures of {min_height} px")

    with Beton(beton) as data, pytest.raises(ValueError, match="a crop of 300 px"):
        Loader(data, [ViewSpec(TooLarge(40, 35))], batch_size_per_rank=6)


def test_a_wrong_step_or_epoch_is_refused(beton: Path) -> None:
    with loader_of(beton, VIEWS, 6) as loader:
        for epoch, step in ((-1, 0), (0, -1), (0, 7)):
            with pytest.raises(ValueError, match="an epoch has steps 0 to 6"):
                loader.epoch(epoch, step)


def test_threads_are_this_ranks_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    for ranks, expected in (("1", 16), ("4", 4), ("5", 3), ("64", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert default_num_threads() == expected


@pytest.mark.parametrize(
    ("source", "decoder"),
    [*[("jpeg", name) for name in ("turbo", "dali") if name in DECODERS], ("raw", "resident")],
)
def test_an_order_of_ones_own_may_hold_an_index_again_and_shows_it_otherwise(
    sources: dict[str, Path], source: str, decoder: str
) -> None:
    """On any number of ranks and from any step on; its first view is that of the loader's own order."""
    order = np.random.default_rng(0).integers(0, NUM // 3, NUM)
    options: dict[str, Any] = {"num_threads": 2, "decoder": decoder}
    with open_named(sources, source) as data:
        own_order = by_index(batches(data, epoch=3, **options))
        views_of: dict[int, list[tuple[np.ndarray, ...]]] = {}
        with Loader(data, VIEWS, batch_size_per_rank=GLOBAL_BATCH, **options) as loader:
            whole = list(loader.epoch(3, 0, order))
            later = list(loader.epoch(3, 4, order))
        shown = torch.cat([batch.indices for batch in whole]).tolist()
        assert shown == order[: loader.num_steps * GLOBAL_BATCH].tolist()
        for batch in whole:
            assert batch.labels.tolist() == batch.indices.tolist()  # each sample is a class
            for i, index in enumerate(batch.indices.tolist()):
                draws = [value[i].numpy() for view in batch.draws for draw in view for value in draw.values()]
                views_of.setdefault(index, []).append((batch.images[0][i].numpy(), *draws))
        differ = 0
        for index, results in views_of.items():
            if index in own_order:  # because the loader's own order drops the remainder
                assert np.array_equal(results[0][0], own_order[index][0])
            differ += sum(not np.array_equal(repeat[0], results[0][0]) for repeat in results[1:])
        assert differ > len(shown) - len(views_of) - 3  # a few crops of nearly the whole image may be equal
        assert [batch.indices.tolist() for batch in later] == [batch.indices.tolist() for batch in whole[4:]]
        assert torch.equal(later[0].images[0], whole[4].images[0])
        for world in (2, 3):
            share = GLOBAL_BATCH // world
            for rank in range(world):
                with Loader(
                    data, VIEWS, batch_size_per_rank=share, rank=rank, world=world, **options
                ) as loader:
                    for batch, all_ranks in zip(loader.epoch(3, 0, order), whole, strict=True):
                        part = slice(rank * share, (rank + 1) * share)
                        assert torch.equal(batch.indices, all_ranks.indices[part])
                        assert torch.equal(batch.images[0], all_ranks.images[0][part])


def test_orders_that_cannot_be_are_found(beton: Path) -> None:
    with loader_of(beton, VIEWS, GLOBAL_BATCH, num_threads=1) as loader:
        right = np.arange(NUM)
        for wrong in (right[:-1], right.astype(np.int32), right + 1, right - 1):
            with pytest.raises(AssertionError):
                loader.epoch(0, 0, wrong)


NUM_PHOTOS = 40
TWO_CROPS = [ViewSpec(RandomResizedCrop(24)), ViewSpec(RandomResizedCrop(32))]
POISONED = {7: b"\xff\xd8 no more", 11: b"not a picture at all", 12: b""}


def open_files() -> set[str]:
    return {
        os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}")
    }


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "good.beton", photo_samples(NUM_PHOTOS))


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    samples = photo_samples(NUM_PHOTOS)
    for i, data in POISONED.items():
        samples[i] = (data or samples[i][0][:900], *samples[i][1:3], JPG)
    return write(tmp_path / "poisoned.beton", samples)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_poisoned_sample_is_raised_by_name(poisoned: Path, decoder: str) -> None:
    with loader_of(poisoned, TWO_CROPS, 4, train=False, decoder=decoder) as loader:
        epoch = loader.epoch(0)
        assert next(epoch).indices.tolist() == [0, 1, 2, 3]
        with pytest.raises(BadSampleError, match=r"poisoned\.beton sample 7: not a JPEG$"):
            next(epoch)
        assert list(epoch) == []
        rest = [batch.indices.tolist() for batch in loader.epoch(0, first_step=4)]  # the loader goes on
        assert rest == [list(range(i, i + 4)) for i in range(16, NUM_PHOTOS, 4)]


@pytest.mark.parametrize("decoder", DECODERS)
def test_skipped_samples_are_filled_counted_and_named(poisoned: Path, decoder: str) -> None:
    with Beton(poisoned) as data:
        options = {"batch_size_per_rank": 10, "train": False, "decoder": decoder}
        with Loader(data, TWO_CROPS, on_bad_sample="skip", **options) as loader:  # type: ignore[arg-type]
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
    with loader_of(poisoned, TWO_CROPS, 1, train=False, on_bad_sample="skip") as loader:
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
    with loader_of(good, TWO_CROPS, 4, train=False, decoder=decoder, prefetch_batches=1) as loader:
        rows = loader.data.rows

        def of_the_cut_file(indices: np.ndarray) -> SampleTable:
            assert indices[0] < 4 or is_cut.wait(240)  # the second batch begins before the first is returned
            return rows(indices)

        monkeypatch.setattr(loader.data, "rows", of_the_cut_file)
        epoch = loader.epoch(0)
        next(epoch)
        os.truncate(good, 1000)
        is_cut.set()
        with pytest.raises(ValueError, match=r"good\.beton.*truncated.*good\.beton sample 4") as error:
            next(epoch)
        assert "\n" not in str(error.value)


@pytest.mark.skipif("turbo" not in DECODERS, reason="the C library was not built")
def test_slow_storage_is_read_in_more_threads(good: Path) -> None:
    with loader_of(good, TWO_CROPS, 8, num_threads=2, decoder="turbo") as loader:
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

    with loader_of(good, TWO_CROPS, 4, train=False, on_bad_sample="skip") as loader:
        loader.decoder.decode_part = decode_part  # type: ignore[union-attr, method-assign]
        with pytest.raises(kind, match="sample 1") as error:
            next(loader.epoch(0))
        assert kind is MemoryError or error.value.errno == number  # type: ignore[attr-defined]


@pytest.mark.parametrize("decoder", DECODERS)
def test_leaving_an_epoch_early_leaves_nothing(good: Path, decoder: str) -> None:
    files = open_files()
    with Beton(good) as data:
        with Loader(data, TWO_CROPS, batch_size_per_rank=4, num_threads=3, decoder=decoder) as loader:
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


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_loader_closed_amid_an_epoch_ends_what_it_has_begun(
    good: Path, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Beton(good) as data:
        loader = Loader(
            data, TWO_CROPS, batch_size_per_rank=8, num_threads=2, decoder=decoder, timeout_s=3600
        )
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
