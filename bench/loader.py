"""Our Loader beside ffcv's own: the same beton, crops, batch and cores, interleaved in one run.

    python bench/loader.py --data photos.beton --repeats 9

One view, then two views of each sample (there ffcv decodes twice), random resized crops to 224 px, uint8 on the CPU, page
cache warm. Each loader lives in a process of its own, because ffcv sets thread counts where it is imported; one epoch of
each in turn. Without --data: the embedded sample, whose pictures are smaller than photos. Ratios are of epochs side by
side. Also the time from an empty process to the first batch. Writes a JSON (median and quartiles).
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.program import check_out, counted, progress, run_program
from bench.schema import RUNS, SCHEMA, command_line, environment, finish, spread, write_result

SIZE_PX = 224
VARIANTS = ("ffcv_loader", "ffcv", "torchvision")  # ffcv's own Loader; ours by decoder


def epochs_of_ours(
    data: str, decoder: str, batch_size: int, num_threads: int, num_views: int
) -> Iterator[int]:
    """Numbers of samples, batch by batch; a 0 ends an epoch."""
    from fastpsl.kernels.crops import RandomResizedCrop
    from fastpsl.pipelines.beton.reader import Beton
    from fastpsl.pipelines.loader.loader import Loader
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


def measure(
    num_views: int, arguments: argparse.Namespace, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and ratios."""
    servers: dict[str, Server] = {}
    try:
        for variant in arguments.variants:
            say(f"{counted(num_views, 'view')}, {variant}: starting")
            servers[variant] = Server(variant, num_views, arguments)
        rates: dict[str, list[float]] = {variant: [] for variant in servers}
        cpu: dict[str, list[float]] = {variant: [] for variant in servers}
        for repeat in range(arguments.repeats):
            say(f"{counted(num_views, 'view')}: repeat {repeat + 1} of {arguments.repeats}")
            names = list(servers) if repeat % 2 else list(servers)[::-1]
            for variant in names:
                rate, cpu_ms = servers[variant].epoch()
                rates[variant].append(rate)
                cpu[variant].append(cpu_ms)
    finally:
        for server in servers.values():
            server.close()
    rows, ratios = [], []
    for variant, values in rates.items():
        label = {"decoder": variant, "num_views": num_views}
        first_batch_s = round(servers[variant].first_batch_s, 2)
        rate_row = {
            "measured": "loader",
            **label,
            "unit": "samples/s",
            "first_batch_s": first_batch_s,
            **spread(values),
        }
        cpu_row = {"measured": "cpu", **label, "unit": "ms of all cores a sample", **spread(cpu[variant])}
        rows += [rate_row, cpu_row]
        told = f"{counted(num_views, 'view'):7}  {variant:12}  {rate_row['median']:7.0f} samples/s"
        if "ffcv_loader" in rates:
            pairs = zip(values, rates["ffcv_loader"], strict=True)
            ratios.append(
                {
                    "what": "samples/s / ffcv_loader's",
                    **label,
                    **spread([ours / theirs for ours, theirs in pairs]),
                }
            )
            told += f"  {ratios[-1]['median']:.2f}x ffcv's Loader"
        print(
            f"{told}  {cpu_row['median']:.2f} ms of CPU  first batch after {first_batch_s:.1f} s", flush=True
        )
    return rows, ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--out", type=Path, default=RUNS / "loader.json")
    parser.add_argument("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--num-views", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.data:
        from fastpsl.pipelines.sample.betons import sample_paths

        arguments.data = str(sample_paths().train)
    if arguments.serve:
        serve(arguments)
        return
    check_out(arguments.out)
    from fastpsl.pipelines.beton.reader import Beton

    machine = environment()
    missing = []
    if find_spec("ffcv") is None:
        missing = [{"what": name, "reason": "not installed"} for name in arguments.variants if "ffcv" in name]
        arguments.variants = [name for name in arguments.variants if "ffcv" not in name]
    with Beton(arguments.data) as data:
        num_bytes = sum(path.stat().st_size for path in data.paths)
        about = {
            "name": Path(arguments.data).name, "num_samples": data.num_samples,
            "sides_px": list(data.image_sizes()), "mean_bytes": round(num_bytes / data.num_samples),
        }  # fmt: skip
    rows, ratios = [], []
    with progress() as say:
        for num_views in (1, 2):
            more_rows, more_ratios = measure(num_views, arguments, say)
            rows += more_rows
            ratios += more_ratios
    result = {
        "schema": SCHEMA, "bench": "loader", "command": command_line(), "environment": machine, "data": about,
        "settings": {
            "repeats": arguments.repeats, "batch_size": arguments.batch_size, "num_threads": arguments.num_threads,
            "what": f"random resized crops to {SIZE_PX} px, uint8 on the CPU, an epoch a repeat",
        },
        "rows": rows, "ratios": ratios, "not_measured": missing, "notes": finish(machine),
    }  # fmt: skip
    write_result(arguments.out, result)
    print(arguments.out)


if __name__ == "__main__":
    run_program(main)
