"""Small images that stay on the device: training SSL++'s tasks, IIC and UIC on 32 px, and a checkpoint's
evaluation.

    python bench/small.py  noise of CIFAR-10's size and number; on a CPU little of it, small batches
    python bench/small.py --data cifar-train.beton --val cifar-test.beton

Of each recipe three rows as bench/throughput.py has them, at the paper's batch: its loader alone, its step
alone on synthetic data (captured on a GPU), and trained, both together. The headline is trained / step. The
evaluation has the same rows, of block_probe with six classifiers (`epochs` of the data are its whole length).
It also has recipes/knn.py on B2, B3 and B4, a program from its start to its end. Random weights, no
pseudo-labels.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: see throughput.py

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # bench/ and recipes/ are folders of programs, not installed
from bench.program import check_out, check_positive, progress, run_program
from bench.recipe_stages import recipe_of
from bench.schema import RUNS, data_record, environment, save_result, spread
from bench.tables import show
from bench.throughput import Options as StageOptions
from bench.throughput import Setting, try_stage
from fastpsl.engine.distributed import World, join_world
from fastpsl.engine.options import GraphName
from fastpsl.files.workers import default_num_threads
from fastpsl.pipelines.beton.encode import Stored
from fastpsl.pipelines.beton.file import BetonFile
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import DEFAULT_PAGE_BYTES
from fastpsl.pipelines.data.dataset import MODE_RAW
from fastpsl.scripts.command_line import parse

SIDE_PX, NUM_CLASSES = 32, 10
HEADS = ("conv_B2", "conv_B3", "conv_B4", "fc1_B4", "fc2_B4", "fc3_B4")
BLOCKS = ("B2", "B3", "B4")
SmallRecipe = Literal[
    "sslpp_rotation", "sslpp_aet", "sslpp_context", "sslpp_colorization", "sslpp_iic", "uic_cifar10"
]


@dataclass(frozen=True, kw_only=True)
class Options:
    data: str | None = None
    """A dataset file of raw images of one size. Default: noise of 32 px, 50,000 on CUDA, else 2,000."""
    val: str | None = None
    """Another one, which kNN looks up. Default: 10,000 images of noise, 400 on a CPU."""
    recipes: tuple[SmallRecipe, ...] = (
        "sslpp_rotation", "sslpp_aet", "sslpp_context", "sslpp_colorization", "sslpp_iic", "uic_cifar10",
    )  # fmt: skip
    evaluation: bool = True
    """block_probe and kNN, of nin4."""
    decoders: tuple[Literal["resident", "ffcv", "pillow"], ...] = ("resident",)
    batch_size: int | None = None
    """As a recipe counts it. Default: the paper's on CUDA, else 24."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Literal["auto", "off", "fused", "on"] = "auto"
    graph: GraphName = "auto"
    workers: int | None = None
    """Default: the cores."""
    repeats: int | None = None
    """Default: 7 on CUDA, else 3."""
    seconds: float | None = None
    """Length of a timed region; whole steps, one at least. Default: 2 on CUDA, else 0.2."""
    limit_s: float | None = None
    """Each part's repeats end with its share of this. Default: 400 on CUDA, else 80."""
    out: Path = RUNS / "small.json"
    """The result."""

    def check(self) -> None:
        """Raise ValueError if options are out of range or contradict each other."""
        check_positive(self, "batch_size", "workers", "repeats", "seconds", "limit_s")
        if (self.data is None) != (self.val is None):
            raise ValueError("--data and --val: give both, or neither for noise")
        if not self.decoders or not (self.recipes or self.evaluation):
            raise ValueError("--decoders, --recipes: give at least one decoder, and a recipe or --evaluation")


def write_noise(path: Path, num: int, seed: int) -> None:
    """Write a dataset file of `num` raw noise images with labels."""
    random, beton = np.random.default_rng(seed), BetonFile(path, num, DEFAULT_PAGE_BYTES)
    for number in range(num):
        image = random.bytes(3 * SIDE_PX**2)
        beton.add(Stored(image, SIDE_PX, SIDE_PX, MODE_RAW, "passed"), number % NUM_CLASSES)
    beton.finish()
    beton.file.publish()


class Bench:
    """The measurements of one run of the program, on the dataset files `data` and `val`."""

    def __init__(self, options: Options, world: World, data: Path, val: Path):
        self.options, self.world, self.paths = options, world, (data, val)
        self.data = Beton(str(data))
        self.is_cuda = world.device.type == "cuda"
        self.repeats = options.repeats or (7 if self.is_cuda else 3)
        self.seconds = options.seconds or (2.0 if self.is_cuda else 0.2)
        self.limit_s = options.limit_s or (400.0 if self.is_cuda else 80.0)
        self.num_threads = options.workers or default_num_threads()

    def batch_size(self, recipe: str) -> int:
        """Return a recipe's batch size."""
        paper: int = recipe_of(recipe).paper["batch_size"]
        return self.options.batch_size or (paper if self.is_cuda else 24)

    def setting(self, recipe: str) -> Setting:
        """Return the setting of bench/throughput.py for a recipe."""
        given_options = self.options
        options = StageOptions(
            data=str(self.paths[0]), device=given_options.device, precision=given_options.precision,
            compile=given_options.compile, graph=given_options.graph,
            backbone="nin4" if recipe == "block_probe" else None,
        )  # fmt: skip
        return Setting(
            options, self.world, self.data, str(self.paths[0]), list(given_options.decoders),
            self.batch_size(recipe),
            self.num_threads, self.repeats, self.seconds,
        )  # fmt: skip

    def measure(self, folder: Path, log: Callable[[str], None]) -> dict[str, Any]:
        """Measure all recipes and the evaluation; kNN writes into `folder`."""
        started = time.perf_counter()
        parts: list[tuple[str, str, dict[str, Any]]] = [(recipe, "E", {}) for recipe in self.options.recipes]
        if self.options.evaluation:
            parts.append(("block_probe", "blocks", {"random_weights": True, "heads": HEADS}))
        result: dict[str, Any] = {"rows": [], "ratios": [], "not_measured": []}
        num_parts = len(parts) + self.options.evaluation
        for index, (recipe, stage, more) in enumerate(parts):
            left_s = self.limit_s - (time.perf_counter() - started)
            deadline = time.perf_counter() + left_s / (num_parts - index)
            entries_by_part = try_stage(recipe, stage, self.setting(recipe), deadline, log, **more)
            for part, entries in entries_by_part.items():
                result[part] += entries
        if self.options.evaluation:
            try:
                result["rows"].append(self._knn(folder, started + self.limit_s, log))
            except subprocess.CalledProcessError as error:
                reason = f"exit status {error.returncode}: {' '.join(error.stderr.split()[-40:])}"
                result["not_measured"].append({"what": "recipes/knn.py", "reason": reason})
        return result

    def _knn(self, folder: Path, deadline: float, log: Callable[[str], None]) -> dict[str, Any]:
        """Measure the seconds of the whole kNN program, imports included, at least once."""
        times: list[float] = []
        while len(times) < self.repeats and (not times or time.perf_counter() < deadline):
            log(f"knn: repeat {len(times) + 1} of {self.repeats}")
            times.append(self._knn_once(folder / f"knn-{len(times)}"))
        labels = {"recipe": "knn", "stage": None, "decoder": self.options.decoders[0], "num_views": 1}
        return {"measured": "whole", **labels, "blocks": list(BLOCKS), "unit": "s", **spread(times)}

    def _knn_once(self, out: Path) -> float:
        """Run kNN into a new folder, because it would reuse existing features; return its seconds."""
        data, val = map(str, self.paths)
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "recipes/knn.py", "--random-weights", "--backbone", "nin4",
             "--data", data, "--val", val,
             "--block", *BLOCKS, "--k", "10", "--size-px", str(SIDE_PX), "--whole",
             "--decoder", self.options.decoders[0], "--device", self.world.device.type,
             "--workers", str(self.num_threads), "--out", str(out)],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return time.perf_counter() - started


def main() -> None:
    options: Options = parse(Options, description=__doc__)
    options.check()
    check_out(options.out)
    world = join_world(options.device, timeout_s=600)
    machine = environment(world.device)
    with progress() as log, tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as scratch:
        folder = Path(scratch)
        data, val = folder / "train.beton", folder / "val.beton"
        if options.data is not None and options.val is not None:
            data, val = Path(options.data), Path(options.val)
        else:
            for seed, path, num in ((0, data, 50_000), (1, val, 10_000)):
                write_noise(path, num if world.device.type == "cuda" else num // 25, seed)
        bench = Bench(options, world, data, val)
        about = data_record(bench.data, options.data or "noise")
        with Beton(str(val)) as held_out:
            about["num_held_out"] = held_out.num_samples
        parts = bench.measure(folder, log)
        bench.data.close()
    result = save_result(
        options.out, "small", machine, data=about,
        settings={
            "repeats": bench.repeats, "seconds": bench.seconds, "device": world.device.type,
            "step": options.compile, "graph": options.graph, "precision": options.precision,
            "batch_size": options.batch_size,
            "num_threads": bench.num_threads,
            "limit_s": bench.limit_s, "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"],
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
        **parts,
    )  # fmt: skip
    show(result, "recipe", "stage", "decoder", "inputs_per_image", "epochs", "cores_used")
    print(options.out)


if __name__ == "__main__":
    run_program(main)
