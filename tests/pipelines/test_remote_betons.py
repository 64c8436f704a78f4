"""Dataset files on an S3 server: batches equal those of local files, whatever the network does."""

import copy
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from fastpsl.commands.data import Info, Verify
from fastpsl.console.installed import install
from fastpsl.doctor.loader_rates import measure_read
from fastpsl.engine.options import RunOptions, TrainingOptions
from fastpsl.files.locks import PartLocks
from fastpsl.files.remote import address, failures
from fastpsl.files.remote.cache import Cache
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton import remote as prefetching
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import HEADER
from fastpsl.pipelines.beton.upload import StagedUpload
from fastpsl.pipelines.datasets.open import open_data, open_source
from fastpsl.pipelines.datasets.shared_images import shared_images
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.faults.runs import beton as write_beton_of_photos
from tests.pipelines.paged import write_paged
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.s3_server import BUCKET, S3Server
from tests.pipelines.threads import in_a_forked_process
from tests.pipelines.written import tar_bytes
from tests.slow import nightly, slow

pytest.importorskip("s3fs")
pytest.importorskip("moto.server", reason="the extra dev has moto")


NUM_SHARDS, NUM_EACH = 2, 200
NUM = 401  # each shard has one more than the one before
GLOB = f"s3://{BUCKET}/train-*.beton"
VIEWS = [ViewSpec(RandomResizedCrop(8))]
LANES, BATCH = 4, 16
HEAD = "bytes=0-16383"
STREAMING_GB = 2.2e-4  # the shards have 356 KB, their tables 60 KB, and 4 lanes use 131 KB


@pytest.fixture
def local(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write shards, upload them, and return their folder."""
    folder = tmp_path / "local"
    folder.mkdir()
    for number in range(NUM_SHARDS):
        path = write_paged(monkeypatch, folder / f"train-{number}.beton", NUM_EACH + number)
        server.put(path.name, path.read_bytes())
    return folder


@pytest.fixture
def data(local: Path) -> Iterator[Beton]:
    with Beton(str(local / "train-*.beton")) as data:
        yield data


@pytest.fixture
def streamed(local: Path, tmp_path: Path) -> Iterator[Beton]:
    """Open the shards by a cache that holds a part of them."""
    with Beton(GLOB, small_cache(tmp_path, STREAMING_GB)) as streamed:
        yield streamed


def loader_of(data: Beton, timeout_s: float = 120) -> Loader:
    return Loader(
        data, VIEWS, batch_size_per_rank=BATCH, seed=3, order="quasi_random", lanes=LANES, timeout_s=timeout_s
    )


def small_cache(tmp_path: Path, gb: float = 1e-3, name: str = "cache") -> Cache:
    return Cache(tmp_path / name, gb)


def batches_of(
    data: Beton | Subset, order: str = "quasi_random", epochs: range = range(2), first_step: int = 0,
    **options: object,
) -> list[tuple[list[int], bytes]]:  # fmt: skip
    """Return the indices and the bytes of each batch."""
    options = {"seed": 3, "order": order, "lanes": LANES, "batch_size_per_rank": BATCH} | options
    with Loader(data, VIEWS, num_threads=2, **options) as loader:  # type: ignore[arg-type]
        return [
            (batch.indices.tolist(), batch.images[0].numpy().tobytes())
            for epoch in epochs
            for batch in loader.epoch(epoch, first_step if epoch == epochs.start else 0)
        ]


def read_epoch(loader: Loader, in_the_middle: Callable[[], object]) -> list[tuple[list[int], bytes]]:
    """Return an epoch's batches as `batches_of` does; something happens after the fourth."""
    got = []
    for step, batch in enumerate(loader.epoch(0)):
        got.append((batch.indices.tolist(), batch.images[0].numpy().tobytes()))
        if step == 3:
            in_the_middle()
    return got


@pytest.mark.parametrize("order", ["random", "quasi_random"])
def test_batches_are_those_of_local_files(order: str, data: Beton, tmp_path: Path) -> None:
    with Beton(GLOB, small_cache(tmp_path, 0.1)) as remote:
        assert remote.num_samples == data.num_samples and remote.digest() == data.digest()
        assert (remote.labels() == data.labels()).all() and remote.read(250) == data.read(250)
        assert remote.name(250).startswith(f"s3://{BUCKET}/train-1.beton sample 50")
        assert batches_of(remote, order) == batches_of(data, order)
        assert batches_of(remote, order, range(1, 2), 7) == batches_of(data, order, range(1, 2))[7:]
        assert batches_of(remote, order, train=False) == batches_of(data, order, train=False)


def test_a_copy_fetches_by_itself_and_a_fork_not_at_all(
    server: S3Server, local: Path, tmp_path: Path
) -> None:
    """A forked process has the locks of this one's pages, and no threads that fetch."""
    with Beton(str(local / "train-*.beton")) as data, Beton(GLOB, small_cache(tmp_path)) as remote:
        epochs = [batches_of(data, epochs=range(1))]
        with copy.deepcopy(remote) as copied:
            epochs.append(batches_of(copied, epochs=range(1)))
        pages = remote.remote
        assert pages is not None
        pages.plan([3, 4])
        remote.wait(pages.pages.samples_of(3))
        said = in_a_forked_process(lambda: remote.read(0))
        assert f"{remote.name(0).split()[0]}: is closed, or was opened before this process was forked" in said
        in_a_forked_process(partial(pages.give_back, [3, 4]))
        in_a_forked_process(remote.close)
        other = PartLocks(os.open(f"{pages.paths[0]}.parts", os.O_RDWR))
        held = [not other.try_exclusive(part) for part in pages._part_of_page[[3, 4]].tolist()]
        assert held == [True, True]
        os.close(other._fd)
        epochs.append(batches_of(remote, epochs=range(1)))
    assert epochs[0] == epochs[1] == epochs[2]


def reads_of_pages(server: S3Server) -> Counter[tuple[str, str]]:
    """Count the reads of the shards' parts, without their first bytes, which every opening reads."""
    parts = [(key, part) for key, part in server.ranges if key.endswith(".beton") and part != HEAD]
    server.ranges.clear()
    return Counter(parts)


def test_a_table_of_parts_that_a_killed_process_left_as_zeros_is_written_anew(
    server: S3Server, local: Path, tmp_path: Path
) -> None:
    with Beton(GLOB, small_cache(tmp_path)) as remote:
        table = Path(f"{remote.remote.paths[0]}.parts")  # type: ignore[union-attr]
        whole = np.frombuffer(table.read_bytes(), "<i8").reshape(-1, 3)
    table.write_bytes(bytes(whole.nbytes))
    with Beton(GLOB, small_cache(tmp_path)):
        anew = np.frombuffer(table.read_bytes(), "<i8").reshape(-1, 3)
    assert whole[:, 1].all() and np.array_equal(anew[:, :2], whole[:, :2])  # starts and stops


def test_nothing_is_read_twice_where_all_fits(server: S3Server, local: Path, tmp_path: Path) -> None:
    with Beton(GLOB, small_cache(tmp_path, 0.1)) as remote:
        batches_of(remote, "random", range(3))
        num_pages = len(remote.remote.pages.starts) - 1  # type: ignore[union-attr]
    reads = reads_of_pages(server)
    assert set(reads.values()) == {1} and len(reads) == num_pages + 2 * NUM_SHARDS  # two tables each
    with Beton(GLOB, small_cache(tmp_path, 0.1)) as remote:  # as another process, or a resumed run
        batches_of(remote)
    assert not reads_of_pages(server)


def test_a_set_larger_than_the_cache_streams(server: S3Server, local: Path, tmp_path: Path) -> None:
    cache = small_cache(tmp_path, STREAMING_GB)
    most_bytes = 0
    with Beton(str(local / "train-*.beton")) as data, Beton(GLOB, cache) as remote:
        assert remote.remote is not None and remote.remote.total_bytes > 1.5 * cache.max_bytes
        reads_of_pages(server)
        for epoch in (range(1), range(1, 2)):
            assert batches_of(remote, epochs=epoch) == batches_of(data, epochs=epoch)
            reads = reads_of_pages(server)
            assert set(reads.values()) == {1} and len(reads) <= len(remote.remote.pages.starts) - 1
            most_bytes = max(most_bytes, cache.num_bytes())
        assert most_bytes <= cache.max_bytes
        assert batches_of(remote, train=False) == batches_of(data, train=False)
        with pytest.raises(
            ValueError, match="--order random: of s3://images/train.* give --order quasi_random"
        ):
            batches_of(remote, "random")
        with pytest.raises(
            ValueError, match="--order quasi_random: .* give fewer --lanes, or --cache-gb 0.1"
        ):
            Loader(remote, VIEWS, batch_size_per_rank=BATCH, order="quasi_random", lanes=16)


def test_a_subset_is_read_without_a_plan(data: Beton, tmp_path: Path) -> None:
    chosen = np.random.default_rng(0).permutation(NUM)[:320]
    with Beton(GLOB, small_cache(tmp_path, 0.1)) as remote:
        subsets = (Subset(data, chosen), Subset(remote, chosen))
        # More pages in a batch than connections, and than are held of single images.
        expected, got = (batches_of(subset, "random", batch_size_per_rank=160) for subset in subsets)
        assert got == expected
    with (
        Beton(GLOB, small_cache(tmp_path, STREAMING_GB)) as remote,
        pytest.raises(ValueError, match="--order random"),
    ):
        batches_of(Subset(remote, chosen), "random")


def test_what_no_plan_holds_is_given_back_in_turn(data: Beton, streamed: Beton) -> None:
    assert streamed.remote is not None
    streamed.remote.fetcher._max_loose = 40
    for index in 2 * list(range(0, NUM, 5)):
        assert streamed.read(index) == data.read(index)
    assert len(streamed.remote.fetcher._loose) == 40


def test_two_ranks_share_what_comes(server: S3Server, data: Beton, tmp_path: Path) -> None:
    def rank(number: int) -> list[tuple[list[int], bytes]]:
        with Beton(GLOB, small_cache(tmp_path, 0.1)) as remote:
            return batches_of(remote, "random", rank=number, world=2)

    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(rank, range(2)))
    assert set(reads_of_pages(server).values()) == {1}
    assert got == [batches_of(data, "random", rank=number, world=2) for number in range(2)]


FAULTS = ["wrong", slow("503"), slow("reset")]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_costs_no_batch(
    fault: str, server: S3Server, data: Beton, local: Path, tmp_path: Path
) -> None:
    num = Counter[str]()

    def strike(key: str) -> str | None:
        num[key] += 1
        # A page of which four answers are wrong counts as damaged.
        return fault if num[key] % 4 == 2 and (fault != "wrong" or num[key] < 12) else None

    server.fault = strike
    with Beton(GLOB, small_cache(tmp_path, STREAMING_GB)) as remote:
        assert batches_of(remote, epochs=range(1)) == batches_of(data, epochs=range(1))
    assert sum(num.values()) > 50


@pytest.mark.parametrize("seconds", [1.5, nightly(30.0)])
def test_a_server_that_is_gone_for_a_while(
    seconds: float, server: S3Server, data: Beton, streamed: Beton, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(failures, "TELL_AFTER_S", 0.0)
    monkeypatch.setattr(failures, "_told", failures._Told())

    def go_away() -> None:
        server.stop()
        threading.Timer(seconds, server.start).start()

    with loader_of(streamed) as loader:
        assert read_epoch(loader, go_away) == batches_of(data, epochs=range(1))
    assert "s3://images/train-" in (told := capsys.readouterr().err)
    assert told.count("trying for") == 1  # though many parts are waited for


def test_a_server_that_stays_away_is_a_line(server: S3Server, streamed: Beton) -> None:
    began = time.monotonic()
    message = r"s3://images/train-\d.beton: cannot be reached .*; look at the network"
    with pytest.raises(ValueError, match=message):
        read_epoch(loader_of(streamed, timeout_s=3), server.stop)
    assert time.monotonic() - began < 30
    server.start()


def test_a_network_that_is_slower_than_training_is_said_once(
    server: S3Server, streamed: Beton, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prefetching, "_JUDGED_AFTER_S", 0.0)
    server.latency_s = 0.05
    batches_of(streamed, epochs=range(2))
    told = capsys.readouterr().err
    assert told.count(f"{GLOB}: the network is slower than training: steps wait ") == 1
    server.latency_s = 0.0
    monkeypatch.setattr(prefetching, "_JUDGED_AFTER_S", 30.0)
    batches_of(streamed, epochs=range(1))
    assert "slower" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "fault, message",
    [
        ("expired", "cannot be reached .*expired.*; log in anew"),
        ("wrong", "do not match their checksums; upload the file again"),
    ],
)
def test_what_does_not_pass_is_a_line(fault: str, message: str, server: S3Server, streamed: Beton) -> None:
    with loader_of(streamed) as loader, pytest.raises(ValueError, match=f"s3://images/train-.*{message}"):
        read_epoch(loader, lambda: setattr(server, "fault", lambda key: fault))


def test_a_shard_replaced_in_mid_epoch_is_a_line(
    server: S3Server, streamed: Beton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_paged(monkeypatch, tmp_path / "other.beton", NUM_EACH + 7).read_bytes()

    def replace() -> None:
        for number in range(NUM_SHARDS):
            server.put(f"train-{number}.beton", other)

    message = r"s3://images/train-\d.beton: was replaced while it was in use"
    with loader_of(streamed) as loader, pytest.raises(ValueError, match=message):
        read_epoch(loader, replace)


def test_leaving_an_epoch_while_the_server_is_gone_takes_no_time(server: S3Server, streamed: Beton) -> None:
    with loader_of(streamed) as loader:
        epoch = loader.epoch(0)
        next(epoch)
        server.stop()
        began = time.monotonic()
        epoch.close()
    assert time.monotonic() - began < 20  # not the 120 s of a batch
    server.start()


def test_info_and_verify_read_an_address(
    server: S3Server,
    local: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FASTPSL_CACHE_DIR", str(tmp_path / "cache"))
    Info([GLOB]).run()
    assert f"s3://{BUCKET}/train-0.beton and 1 more: {NUM} samples" in capsys.readouterr().out
    path = write_beton_of_photos(tmp_path / "photos.beton")
    data = bytearray(path.read_bytes())
    server.put("sound.beton", bytes(data))
    Verify([f"s3://{BUCKET}/sound.beton"], workers=1).run()
    assert f"s3://{BUCKET}/sound.beton: 80 samples, all sound" in capsys.readouterr().out
    with Beton(path) as photos:
        data[int(photos.rows(np.array([40])).offset[0]) + 500] ^= 1
    server.put("damaged.beton", bytes(data))
    with pytest.raises(ValueError, match="damaged.beton: its bytes .* do not match their checksums"):
        Verify([f"s3://{BUCKET}/damaged.beton"], workers=1).run()


@pytest.mark.parametrize(
    ("is_in_head", "message"),
    [(True, "its header is not as it was written"), (False, "checksums are damaged")],
)
def test_damaged_tables_are_refused(
    is_in_head: bool, message: str, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTPSL_CACHE_DIR", str(tmp_path / "cache"))
    data = bytearray(write_beton_of_photos(tmp_path / "photos.beton").read_bytes())
    alloc = int(np.frombuffer(data, HEADER, 1)[0]["alloc_table_ptr"])
    data[HEADER.itemsize + 600 if is_in_head else alloc - 5] ^= 1
    server.put("damaged.beton", bytes(data))
    with pytest.raises(ValueError, match=message):
        Beton(f"s3://{BUCKET}/damaged.beton")


def test_doctor_knows_what_is_here(server: S3Server, local: Path, tmp_path: Path) -> None:
    with Beton(GLOB, small_cache(tmp_path, 0.1)) as data:
        assert data.remote is not None
        everything = np.arange(data.num_samples)
        assert data.remote.share_here(everything) == 0
        data.wait(everything[:5])
        assert data.remote.share_here(everything[:5]) == 1 > data.remote.share_here(everything) > 0
        options = TrainingOptions(data=GLOB, workers=2)
        read, _ = measure_read(data, options, BATCH, 0.1)
    assert read.is_remote and read.cached is not None and read.cached < 0.5
    assert read.fitting == "the data's 0.308 MB fit into --cache-dir" and read.memory_bytes == 10**8


def test_images_that_are_not_here_are_not_compared(server: S3Server, local: Path, tmp_path: Path) -> None:
    cache = small_cache(tmp_path, 0.1)
    with (
        Beton(GLOB, cache) as data,
        Beton(GLOB, cache) as again,
        Beton(str(local / "train-*.beton")) as other,
    ):
        assert shared_images(again, data).are_all  # in place
        assert shared_images(other, data).are_all  # by checksums
        part = Subset(data, np.arange(9))
        assert shared_images(part, other).num is None
        data.wait(np.arange(data.num_samples))
        assert shared_images(part, other).num == 9


@pytest.mark.parametrize(
    "source, message",
    [
        ("ftp://host/a.beton", "ftp://…: data of this kind are not read; give s3://, gs://, hf:// or https://"),
        ("s3://key:secret@bucket/a.beton", "s3://…: the address holds a password or a signature, which"),
        ("https://h/a.beton?X-Amz-Signature=secret", "https://…: the address holds a password or a signatur"),
        ("s3://images/none.beton", "s3://images/none.beton: cannot be reached (no such file or bucket); g"),
        ("s3://other/a.beton", "s3://other/a.beton: cannot be reached (no such file or bucket); give the"),
        ("s3://images/none-*.beton", "s3://images/none-*.beton: no file matches; give the address of a"),
        ("s3://images/text.beton", "s3://images/text.beton: is no dataset file of FFCV's format 2, as its"),
        ("s3://images/cut.beton", "s3://images/cut.beton: is not whole, or damaged (20,000 bytes do not"),
        ("s3://images/part-*.beton", "s3://images/part-*.beton: is incomplete; s3://images: shard 1/2 of"),
    ],
)  # fmt: skip
def test_addresses(source: str, message: str, server: S3Server, tmp_path: Path) -> None:
    server.put("text.beton", b"no beton")
    server.put("cut.beton", sample_paths().test_32.read_bytes()[:20000])
    put_a_shard_of_two(server)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        open_data(source, tmp_path, 0.1)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    ["r[1]/a[1]#.beton", "r[1]/*.beton", "r[1]/a[[]?]#.beton", "r*/a[[]1]#.beton"],
)
def test_a_name_is_taken_as_it_is_written_before_its_pattern(
    source: str, server: S3Server, tmp_path: Path
) -> None:
    data = sample_paths().test_32.read_bytes()
    for key in ("r[1]/a[1]#.beton", "r1/a1#.beton", "r1/other.beton"):
        server.put(key, data if "[" in key else b"another")
    with closing(open_data(f"s3://{BUCKET}/{source}", tmp_path, 0.1)) as opened:
        assert isinstance(opened, Beton) and opened.num_samples == 160
        assert [shard.name for shard in opened.shards] == [f"s3://{BUCKET}/r[1]/a[1]#.beton"]
    server.put("t[1]/0.tar", tar_bytes({"[2].jpg": jpeg(photo(0, 9, 9))}))
    for name in ("t[1]/0.tar", "t[1]/[0-9].tar"):
        assert open_source(f"s3://{BUCKET}/{name}").num_samples == 1


def test_an_upload_finds_its_own_names_alone(server: S3Server, tmp_path: Path) -> None:
    """Brackets in a name are no pattern, by which shards of another set would be removed."""
    shards = [f"sets/{name}-0000{i}-of-00002.beton" for name in ("t[1]", "t1") for i in range(2)]
    for key in (*shards, "sets/t[1].beton"):
        server.put(key, b"x")
    upload = StagedUpload(f"s3://{BUCKET}/sets/t[1].beton", tmp_path)
    assert upload._there(False) == upload.address
    assert upload._there(True) == f"s3://{BUCKET}/{shards[0]}"
    upload._remove_others({"00003"})
    assert server.all_keys() == sorted([*shards[2:], "sets/t[1].beton"])


def put_a_shard_of_two(server: S3Server) -> None:
    sidecar: dict[str, Any] = json.loads(Path(f"{sample_paths().test_32}.json").read_bytes())
    sidecar["written"] |= {"shard": "0/2", "source": "/photos"}
    server.put("part-0.beton", sample_paths().test_32.read_bytes())
    server.put("part-0.beton.json", json.dumps(sidecar).encode())


def test_one_shard_may_be_named_alone(server: S3Server, tmp_path: Path) -> None:
    put_a_shard_of_two(server)
    for ending in ("", ".json"):
        server.put(f"part[0].beton{ending}", server.get(f"part-0.beton{ending}"))
    for name in ("part-0.beton", "part[0].beton"):
        with Beton(f"s3://{BUCKET}/{name}", Cache(tmp_path, 0.1)) as data:
            assert data.num_samples == 160


def test_a_web_server_without_ranges_is_a_line(tmp_path: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=sample_paths().test_32.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{sample_paths().test_32.name}"
        with pytest.raises(ValueError, match=f"{address}: its server sends whole files, not the part"):
            open_data(address, tmp_path, 0.1)
        server.shutdown()


def test_credentials_are_asked_for(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_ENDPOINT_URL"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    message = "s3://images/a-.*: cannot be reached .*redentials.*; log in anew, or give credentials"
    with pytest.raises(ValueError, match=message):
        open_data(f"s3://{BUCKET}/a-*.beton", tmp_path / "cache", 0.1)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(address, "find_spec", lambda name: None)
    message = "s3://images/a.beton: needs the package s3fs; " + re.escape(install("remote"))
    with pytest.raises(ValueError, match=message):
        open_data(f"s3://{BUCKET}/a.beton", tmp_path)


def test_caches(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--cache-dir .*file: cannot be used \(.*\); give a folder on"):
        Cache(tmp_path / "file")
    with pytest.raises(ValueError, match=r"--cache-dir /proc/none: cannot be used"):
        Cache(Path("/proc/none"))
    with pytest.raises(ValueError, match=r"--cache-gb 1e\+09: .* has .* GB; give at most --cache-gb \d+, or"):
        Cache(tmp_path, 1e9)
    with pytest.raises(ValueError, match="--cache-gb -1: it must be above 0"):
        Cache(tmp_path, -1)
    assert 0 < Cache(tmp_path).max_bytes < 1e15


def test_a_cache_for_local_data_is_refused() -> None:
    with pytest.raises(
        ValueError, match="--cache-gb 5: it is for data that live elsewhere, such as s3://bucket"
    ):
        RunOptions(data="train.beton", cache_gb=5)
