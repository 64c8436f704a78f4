"""An epoch from a server: fastpsl, WebDataset and MosaicML Streaming, beside a local file.

    python bench/photos.py photos.beton --num 4000
    python bench/remote.py --data photos.beton --streaming-python OTHER/bin/python

All decode each image once and crop it to 224 px, with as many threads or processes, each in a process of its
own. Their caches are empty, so that all comes over the line once. It has 1 Gbit/s, and a latency of 0, 20 or
100 ms (object_server.py, on the same machine and its cores). `epoch` counts from the opening of the data to
the last batch. `fetch` is fastpsl without decoding, in MB/s.

WebDataset reads tars by curl. MosaicML Streaming reads its own format by boto3. It wants other versions of
packages than fastpsl has, so it may have a Python of its own. Interleaved. Writes a JSON.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.peers.files import copy_out
from bench.program import check_out, check_positive, progress, run_program
from bench.schema import RUNS, environment, save_result, spread
from fastpsl.pipelines.beton.reader import Beton

BENCH = Path(__file__).resolve().parent
KINDS = ("local", "fastpsl", "fetch", "webdataset", "streaming")
NUM_TARS, BUCKET, LIMIT_S = 4, "images", 600
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def serve(folder: Path, latency_ms: float, gbit: float) -> Iterator[str]:
    """Start the server, and yield its address."""
    words = [sys.executable, str(BENCH / "object_server.py"), str(folder)]
    words += ["--latency-ms", str(latency_ms), "--gbit", str(gbit)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


class Epochs:
    """The runs of `remote_epoch.py`, with the data of each kind."""

    def __init__(self, folder: Path, data: Path, options: argparse.Namespace) -> None:
        self._folder, self._data, self._options = folder, data, options
        self._num = 0
        store = folder / "store" / BUCKET
        store.mkdir(parents=True)
        shutil.copyfile(data, store / "train.beton")
        copy_out(str(data), folder / "files", NUM_TARS)
        (folder / "files" / "shards").rename(store / "tars")
        self.tars = sorted(path.name for path in (store / "tars").iterdir())
        if options.streaming_python:
            tars = " ".join(str(store / "tars" / name) for name in self.tars)
            self._run("write_mds", tars, store / "mds", {})

    def _run(self, kind: str, source: str, cache: Path, environment: dict[str, str]) -> tuple[int, float]:
        is_others = kind in ("streaming", "write_mds")
        python = self._options.streaming_python if is_others else sys.executable
        words = [str(python), str(BENCH / "remote_epoch.py"), kind, source, str(cache)]
        words += ["--threads", str(self._options.threads)]
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
        self._num += 1
        with tempfile.TemporaryDirectory(dir=self._folder) as cache:
            source = {
                "local": str(self._data),
                "webdataset": " ".join(f"{url}/{BUCKET}/tars/{name}" for name in self.tars),
                "streaming": f"s3://{BUCKET}/mds",
            }.get(kind, f"s3://{BUCKET}/train.beton")
            where = {"AWS_ENDPOINT_URL": url, "S3_ENDPOINT_URL": url}
            return self._run(kind, source, Path(cache) / "cache", where)


def main() -> None:
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
        epochs = Epochs(Path(folder), options.data, options)
        for repeat in range(options.repeats):
            for latency_ms in options.latencies_ms:
                with serve(Path(folder) / "store", latency_ms, options.gbit) as url:
                    for kind in kinds if repeat % 2 == 0 else reversed(kinds):
                        log(f"repeat {repeat + 1} of {options.repeats}, {latency_ms:g} ms: {kind}")
                        num, seconds = epochs.once(kind, url)
                        rate = num_bytes / 1e6 / seconds if kind == "fetch" else num / seconds
                        values.setdefault((latency_ms, kind), []).append(rate)
    rows = []
    for (latency_ms, kind), rates in values.items():
        is_fetch = kind == "fetch"
        row = {"measured": "fetch" if is_fetch else "epoch", "unit": "MB/s" if is_fetch else "images/s"}
        loader = "fastpsl" if is_fetch else kind
        rows.append({**row, "loader": loader, "latency_ms": latency_ms, **spread(rates)})
        print(f"{latency_ms:5g} ms  {loader:11} {row['measured']:6} {rows[-1]['median']:8.0f} {row['unit']}")
    ratios = []
    for latency_ms in options.latencies_ms:
        pairs = zip(values[latency_ms, "fastpsl"], values[latency_ms, "local"], strict=True)
        shares = [here / there for here, there in pairs]
        ratios.append({"what": "fastpsl / local", "latency_ms": latency_ms, **spread(shares)})
    missing = [] if options.streaming_python else [{"what": "MosaicML Streaming", "reason": "not installed"}]
    save_result(
        options.out, "remote", machine,
        data={"name": options.data.name, "num_samples": num_samples, "num_bytes": num_bytes},
        settings={"repeats": options.repeats, "gbit": options.gbit, "num_threads": options.threads},
        rows=rows, ratios=ratios, not_measured=missing,
        notes=["the server is on the same machine, and takes a part of its cores"],
    )  # fmt: skip
    print(options.out)


if __name__ == "__main__":
    run_program(main)
