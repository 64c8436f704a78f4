"""An epoch from a server: fastpsl, WebDataset and MosaicML Streaming, beside a local file.

    python bench/photos.py photos.beton --num 4000
    python bench/remote.py --data photos.beton --streaming-python OTHER/bin/python

All decode each image once and crop it to 224 px, with as many threads or processes, each in a process of its
own. Their caches are empty, so that all comes over the line once. It has 1 Gbit/s, and a latency of 0, 20 or
100 ms (`Line`, on the same machine and its cores). `epoch` counts from the opening of the data to the last
batch, without imports. `fetch` is fastpsl without decoding, in MB/s.

WebDataset reads tars by curl. MosaicML Streaming reads its own format by boto3. It wants other versions of
packages than fastpsl has, so it may have a Python of its own. Interleaved. Writes a JSON.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
# All else is imported by functions: another Python, without fastpsl's packages, runs `epoch`, too.

KINDS = ("local", "fastpsl", "fetch", "webdataset", "streaming")
NUM_TARS, BUCKET, LIMIT_S, PIECE_BYTES = 4, "images", 600, 1 << 18
SIZE_PX, BATCH_SIZE, CACHE_GB = 224, 128, 1.0
LANES = 2  # 8 pages are mixed, some 1,200 images
SHUFFLE = 1000  # as in bench/peers
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
Counted = tuple[int, float, float]
"""Images, the time of the start, and that of the end."""


class Line:
    """A network line: answers begin after its latency, and their pieces pass it one after the other."""

    def __init__(self, latency_s: float, bytes_per_s: float) -> None:
        self.latency_s, self._bytes_per_s, self._free_at = latency_s, bytes_per_s, 0.0

    async def send(self, num_bytes: int) -> None:
        """Wait until a piece has passed."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now - 0.01) + num_bytes / self._bytes_per_s
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)


async def serve(folder: Path, latency_ms: float, gbit: float) -> None:
    """Print an address, and serve /BUCKET/KEY of a folder's files as S3 and https do, until it is stopped."""
    from aiohttp import web

    line = Line(latency_ms / 1000, gbit * 1e9 / 8)

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(line.latency_s)
        path = folder / request.path.lstrip("/")
        if not path.is_file():
            error = "<Error><Code>NoSuchKey</Code><Message>There is none.</Message></Error>"
            return web.Response(status=404, text=error, content_type="application/xml")
        size, asked = path.stat().st_size, request.http_range
        start, stop = asked.start or 0, min(asked.stop or size, size)
        headers = {
            "Content-Length": str(stop - start), "ETag": f'"{size:x}"', "Accept-Ranges": "bytes",
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
        }  # fmt: skip
        is_part = "Range" in request.headers
        headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{size}"} if is_part else {}
        response = web.StreamResponse(status=206 if is_part else 200, headers=headers)
        response.force_close()  # MosaicML's worker processes inherit connections, and would hang with them
        await response.prepare(request)
        if request.method == "GET":
            fd = os.open(path, os.O_RDONLY)
            try:
                while start < stop:
                    piece = os.pread(fd, min(PIECE_BYTES, stop - start), start)
                    await line.send(len(piece))
                    await response.write(piece)
                    start += len(piece)
            finally:
                os.close(fd)
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_route("GET", "/{path:.*}", answer, name="get")
    app.router.add_route("HEAD", "/{path:.*}", answer, name="head")
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.Event().wait()


def fastpsl(kind: str, source: str, cache: Path, threads: int) -> Counted:
    """Run our loader, on a local file or from the server."""
    import torch

    from fastpsl.files.remote.cache import Cache
    from fastpsl.kernels.crops import RandomResizedCrop
    from fastpsl.pipelines.beton.reader import Beton
    from fastpsl.pipelines.loader.loader import Loader
    from fastpsl.pipelines.views import ViewSpec

    if kind != "local":
        import s3fs  # noqa: F401
    torch.set_num_threads(1)
    began, num = time.perf_counter(), 0
    with (
        Beton(source, None if kind == "local" else Cache(cache, CACHE_GB)) as data,
        Loader(
            data, [ViewSpec(RandomResizedCrop(SIZE_PX))], batch_size_per_rank=BATCH_SIZE,
            order="quasi_random", lanes=LANES, num_threads=threads,
        ) as loader,
    ):  # fmt: skip
        for batch in loader.epoch(0):
            num += len(batch.indices)
        return num, began, time.perf_counter()


def fetch(kind: str, source: str, cache: Path, threads: int) -> Counted:
    """Fetch all pages, without decoding."""
    import numpy as np
    import s3fs  # noqa: F401

    from fastpsl.files.remote.cache import Cache
    from fastpsl.pipelines.beton.reader import Beton

    began = time.perf_counter()
    with Beton(source, Cache(cache, CACHE_GB)) as data:
        assert data.remote is not None
        data.remote.plan(range(len(data.remote.pages.starts) - 1))
        data.wait(np.arange(data.num_samples))
        return data.num_samples, began, time.perf_counter()


def pil_crop() -> Callable[[Any], Any]:
    """Return torchvision's transform of a PIL image to a uint8 crop."""
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(SIZE_PX, antialias=True), v2.PILToTensor()])


def webdataset(kind: str, source: str, cache: Path, threads: int) -> Counted:
    """Run WebDataset, which reads tars by curl, with a shuffle buffer."""
    import webdataset as wds

    crop = pil_crop()
    began, num = time.perf_counter(), 0
    samples = wds.WebDataset(source.split(), shardshuffle=100).shuffle(SHUFFLE).decode("pilrgb")
    pairs = samples.to_tuple("jpg", "cls").map(lambda pair: (crop(pair[0]), pair[1]))
    batches = pairs.batched(BATCH_SIZE, partial=True)
    for batch in wds.WebLoader(batches, batch_size=None, num_workers=threads):
        num += len(batch[-1])
    return num, began, time.perf_counter()


def streaming(kind: str, source: str, cache: Path, threads: int) -> Counted:
    """Run MosaicML Streaming with its own defaults of shuffling and prefetching."""
    import io

    from PIL import Image
    from streaming import StreamingDataLoader, StreamingDataset

    crop = pil_crop()

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> object:
            sample = super().__getitem__(index)
            return crop(Image.open(io.BytesIO(sample["image"])).convert("RGB")), sample["label"]

    began, num = time.perf_counter(), 0
    data = Images(remote=source, local=str(cache), shuffle=True, batch_size=BATCH_SIZE)
    for batch in StreamingDataLoader(data, batch_size=BATCH_SIZE, num_workers=threads):
        num += len(batch[-1])
    return num, began, time.perf_counter()


def write_mds(kind: str, source: str, cache: Path, threads: int) -> Counted:
    """Copy the images of WebDataset's tars into MosaicML Streaming's format."""
    import tarfile

    from streaming import MDSWriter

    num = 0
    with MDSWriter(out=str(cache), columns={"image": "bytes", "label": "int"}) as writer:
        for path in source.split():
            with tarfile.open(path) as tar:
                files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
            for name in (name for name in files if name.endswith(".jpg")):
                label = int(files[name.replace(".jpg", ".cls")])
                writer.write({"image": files[name], "label": label})
                num += 1
    return num, 0.0, 1.0


EPOCHS: dict[str, Callable[[str, str, Path, int], Counted]] = {
    "local": fastpsl, "fastpsl": fastpsl, "fetch": fetch, "webdataset": webdataset, "streaming": streaming,
    "write_mds": write_mds,
}  # fmt: skip


@contextmanager
def served(folder: Path, latency_ms: float, gbit: float) -> Iterator[str]:
    """Start the server in a process of its own, and yield its address."""
    words = [sys.executable, __file__, "serve", str(folder), str(latency_ms), str(gbit)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


class Runs:
    """The epochs, each in a process of its own, with the data of each kind."""

    def __init__(self, folder: Path, data: Path, threads: int, streaming_python: Path | None) -> None:
        from bench.peers.peer import copy_out

        self._folder, self._data, self._threads, self._other = folder, data, threads, streaming_python
        store = folder / "store" / BUCKET
        store.mkdir(parents=True)
        shutil.copyfile(data, store / "train.beton")
        copy_out(str(data), folder / "files", NUM_TARS)
        (folder / "files" / "shards").rename(store / "tars")
        self.tars = sorted(path.name for path in (store / "tars").iterdir())
        if streaming_python:
            self._run(
                "write_mds", " ".join(str(store / "tars" / name) for name in self.tars), store / "mds", {}
            )

    def _run(self, kind: str, source: str, cache: Path, environment: dict[str, str]) -> tuple[int, float]:
        python = self._other if kind in ("streaming", "write_mds") else sys.executable
        words = [str(python), __file__, "epoch", kind, source, str(cache), str(self._threads)]
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, timeout=LIMIT_S,
            env=os.environ | CREDENTIALS | environment,
        )  # fmt: skip
        if done.returncode:
            raise ValueError(f"{kind} failed: {' '.join(done.stderr.split()[-60:])}")
        num, seconds = done.stdout.split()[-2:]
        return int(num), float(seconds)

    def once(self, kind: str, url: str) -> tuple[int, float]:
        """Run an epoch with an empty cache; return images and seconds."""
        source = {
            "local": str(self._data),
            "webdataset": " ".join(f"{url}/{BUCKET}/tars/{name}" for name in self.tars),
            "streaming": f"s3://{BUCKET}/mds",
        }.get(kind, f"s3://{BUCKET}/train.beton")
        with tempfile.TemporaryDirectory(dir=self._folder) as cache:
            where = {"AWS_ENDPOINT_URL": url, "S3_ENDPOINT_URL": url}
            return self._run(kind, source, Path(cache) / "cache", where)


def main() -> None:
    from bench.program import check_out, check_positive, progress
    from bench.schema import RUNS, environment, save_result, spread
    from bench.tables import show
    from fastpsl.pipelines.beton.reader import Beton

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a dataset file of JPEGs, such as photos.py makes")
    parser.add_argument("--latencies-ms", type=float, nargs="+", default=[0, 20, 100])
    parser.add_argument("--gbit", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--streaming-python", type=Path, help="a Python with mosaicml-streaming")
    parser.add_argument("--out", type=Path, default=RUNS / "remote.json")
    options = parser.parse_args()
    check_out(options.out)
    check_positive(options, "gbit", "threads", "repeats")
    if options.data is None:
        raise ValueError("no --data: give a dataset file of JPEGs, such as bench/photos.py makes")
    machine = environment()
    with Beton(options.data) as data:
        num_samples, num_bytes = data.num_samples, options.data.stat().st_size
    kinds = [kind for kind in KINDS if kind != "streaming" or options.streaming_python]
    values: dict[tuple[float, str], list[float]] = {}
    # On the disk of the results: a folder for temporary files may be memory.
    with progress() as log, tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
        log("copying the images out for the others")
        runs = Runs(Path(folder), options.data, options.threads, options.streaming_python)
        for repeat in range(options.repeats):
            for latency_ms in options.latencies_ms:
                with served(Path(folder) / "store", latency_ms, options.gbit) as url:
                    for kind in kinds if repeat % 2 == 0 else reversed(kinds):
                        log(f"repeat {repeat + 1} of {options.repeats}, {latency_ms:g} ms: {kind}")
                        num, seconds = runs.once(kind, url)
                        rate = num_bytes / 1e6 / seconds if kind == "fetch" else num / seconds
                        values.setdefault((latency_ms, kind), []).append(rate)
    rows = []
    for (latency_ms, kind), rates in values.items():
        measured, unit = ("fetch", "MB/s") if kind == "fetch" else ("epoch", "images/s")
        loader = "fastpsl" if kind == "fetch" else kind
        labels = {"loader": loader, "latency_ms": latency_ms}
        rows.append({"measured": measured, "unit": unit, **labels, **spread(rates)})
    ratios = []
    for latency_ms in options.latencies_ms:
        pairs = zip(values[latency_ms, "fastpsl"], values[latency_ms, "local"], strict=True)
        shares = [here / there for here, there in pairs]
        ratios.append({"what": "fastpsl / local", "latency_ms": latency_ms, **spread(shares)})
    missing = [] if options.streaming_python else [{"what": "MosaicML Streaming", "reason": "not installed"}]
    result = save_result(
        options.out, "remote", machine,
        data={"name": options.data.name, "num_samples": num_samples, "num_bytes": num_bytes},
        settings={"repeats": options.repeats, "gbit": options.gbit, "num_threads": options.threads},
        rows=rows, ratios=ratios, not_measured=missing,
        notes=["the server is on the same machine, and takes a part of its cores"],
    )  # fmt: skip
    show(result, "loader", "latency_ms")
    print(options.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
    elif sys.argv[1:2] == ["epoch"]:
        _kind, _source, _cache, _threads = sys.argv[2:]
        _num, _began, _ended = EPOCHS[_kind](_kind, _source, Path(_cache), int(_threads))
        print(_num, _ended - _began, flush=True)
    else:
        from bench.program import run_program

        run_program(main)
