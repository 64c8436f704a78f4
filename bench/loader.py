"""Our Loader beside ffcv's own: the same beton, crops, batch and cores, interleaved in one run.

    python bench/loader.py --data photos.beton --repeats 9

One view, then two views of each sample (there ffcv decodes twice), random resized crops to 224 px, uint8 on the CPU, page
cache warm. Each loader lives in a process of its own, because ffcv sets thread counts where it is imported; one epoch of
each in turn. Without --data: the embedded sample, whose pictures are smaller than photos. Ratios are of epochs side by
side. Also the time from an empty process to the first batch. Writes bench/results/loader.json (median and quartiles).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

SIZE_PX = 224
VARIANTS = ("ffcv_loader", "ffcv", "torchvision")  # ffcv's own Loader; ours by decoder


def epochs_of_ours(
    data: str, decoder: str, batch_size: int, num_threads: int, num_views: int
) -> Iterator[int]:
    """Numbers of samples, batch by batch; a 0 ends an epoch."""
    from fastpsl.kernels.crops import RandomResizedCrop
    from fastpsl.pipelines.beton import Beton
    from fastpsl.pipelines.loader import Loader
    from fastpsl.pipelines.views import ViewSpec

    views = [ViewSpec(RandomResizedCrop(SIZE_PX))] * num_views
    loader = Loader(Beton(data), views, batch_size=batch_size, decoder=decoder, num_threads=num_threads)
    for epoch in range(10**6):
        for batch in loader.epoch(epoch):
            yield len(batch.indices)
        yield 0


def epochs_of_ffcv(data: str, batch_size: int, num_threads: int, num_views: int) -> Iterator[int]:
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.pipeline_spec import PipelineSpec
    from ffcv.transforms import Squeeze, ToTensor, ToTorchImage

    def crop() -> list[Any]:
        return [RandomResizedCropRGBImageDecoder((SIZE_PX, SIZE_PX)), ToTensor(), ToTorchImage()]

    pipelines: dict[str, Any] = {"image": crop(), "label": [IntDecoder(), ToTensor(), Squeeze()]}
    for view in range(1, num_views):
        pipelines[f"image_{view}"] = PipelineSpec("image", transforms=crop())
    loader = Loader(
        data, batch_size=batch_size, num_workers=num_threads, order=OrderOption.RANDOM, os_cache=True,
        drop_last=True, pipelines=pipelines,
    )  # fmt: skip
    while True:
        for images, *_ in loader:
            yield len(images)
        yield 0


def serve(arguments: argparse.Namespace) -> None:
    """In a process of its own: time to the first batch, then images/s of an epoch for every line on stdin."""
    common = (arguments.batch_size, arguments.num_threads, arguments.num_views)
    if arguments.serve == "ffcv_loader":
        numbers = epochs_of_ffcv(arguments.data, *common)
    else:
        numbers = epochs_of_ours(arguments.data, arguments.serve, *common)
    next(numbers)
    print("first batch", flush=True)
    while next(numbers):
        pass
    for _ in sys.stdin:
        start, start_cpu, num = time.perf_counter(), time.process_time(), 0
        while got := next(numbers):
            num += got
        cpu_ms = 1e3 * (time.process_time() - start_cpu) / num
        print(num / (time.perf_counter() - start), cpu_ms, flush=True)


class Server:
    def __init__(self, variant: str, num_views: int, arguments: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--serve", variant, "--num-views", str(num_views)]
        for name in ("data", "batch_size", "num_threads"):
            command += ["--" + name.replace("_", "-"), str(getattr(arguments, name))]
        start = time.perf_counter()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while "first batch" not in self._line():
            pass
        self.first_batch_s = time.perf_counter() - start

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended before its work")
        return line

    def epoch(self) -> tuple[float, float]:
        """Samples/s of one epoch, and ms of all cores together per sample, which a busy machine bends less."""
        assert self.process.stdin is not None
        self.process.stdin.write("epoch\n")
        self.process.stdin.flush()
        rate, cpu_ms = (float(word) for word in self._line().split())
        return rate, cpu_ms

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": round(middle, 3), "quartile_1": round(low, 3), "quartile_3": round(high, 3)}


def measure(num_views: int, arguments: argparse.Namespace) -> dict[str, Any]:
    servers: dict[str, Server] = {}
    try:
        for variant in arguments.variants:
            servers[variant] = Server(variant, num_views, arguments)
        rates: dict[str, list[float]] = {variant: [] for variant in servers}
        cpu: dict[str, list[float]] = {variant: [] for variant in servers}
        load = []
        for repeat in range(arguments.repeats):
            names = list(servers) if repeat % 2 else list(servers)[::-1]
            for variant in names:
                rate, cpu_ms = servers[variant].epoch()
                rates[variant].append(rate)
                cpu[variant].append(cpu_ms)
            load.append(os.getloadavg()[0])
    finally:
        for server in servers.values():
            server.close()
    rows: dict[str, dict[str, Any]] = {}
    for variant, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates.get("ffcv_loader", values), strict=True)]
        rows[variant] = {
            "samples_per_s": spread(values),
            "ratio_to_ffcv_loader": spread(ratios),
            "cpu_ms_per_sample": spread(cpu[variant]),
            "first_batch_s": round(servers[variant].first_batch_s, 2),
        }
        print(
            f"{num_views} view(s)  {variant:12}  {rows[variant]['samples_per_s']['median']:7.0f} samples/s  "
            f"{rows[variant]['ratio_to_ffcv_loader']['median']:.2f}x ffcv's Loader  "
            f"{rows[variant]['cpu_ms_per_sample']['median']:.2f} ms of CPU  first batch after {servers[variant].first_batch_s:.1f} s"
        )
    return {"num_views": num_views, "load_average": round(statistics.median(load), 2), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loader.json")
    parser.add_argument("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--num-views", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.data:
        from fastpsl.sample import sample_paths

        arguments.data = str(sample_paths().train)
    if arguments.serve:
        serve(arguments)
        return
    from fastpsl.pipelines.beton import Beton

    with Beton(arguments.data) as data:
        mean_bytes = sum(path.stat().st_size for path in data.paths) / data.num_samples
        about = {
            "num_samples": data.num_samples,
            "sides_px": data.image_sizes(),
            "mean_bytes": round(mean_bytes),
        }
    packages = ("torch", "torchvision", "numba", "ffcv")
    result = {
        "what": "samples/s of the loader alone, random resized crops to 224 px, uint8 on the CPU",
        "data": about,
        "batch_size": arguments.batch_size,
        "num_threads": arguments.num_threads,
        "num_cores": len(os.sched_getaffinity(0)),
        "repeats": arguments.repeats,
        "machine": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        "views": [measure(num_views, arguments) for num_views in (1, 2)],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(arguments.out)


if __name__ == "__main__":
    main()
