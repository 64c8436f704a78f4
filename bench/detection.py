"""How long detection's training step takes: ours beside torchvision's FasterRCNN of the same parts, and
Detectron2's if it is installed.

    python bench/detection.py  ResNet-50 C4 at the protocol's values on a GPU; on a CPU ResNet-18, small
    python bench/detection.py --device cuda --size 800 --batch-size 8 --precision fp32

Forward, backward, optimiser on uint8 images that lie on the device, interleaved. See bench/README.md and
detection_peers.py.
"""

import gc
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: see throughput.py

import torch
from rich.console import Console
from rich.table import Table
from tyro.conf import arg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.detection_peers import (
    Peer,
    detectron2s,
    drawn_batches,
    our_train_step,
    ours,
    torchvisions,
    torchvisions_model,
)
from bench.program import check_out, check_positive, progress, run_program, wide_console
from bench.schema import RUNS, environment, save_result, spread
from fastpsl.engine.distributed import World, join_world
from fastpsl.engine.gpu import milliseconds, synchronise
from fastpsl.engine.options import TrainingOptions
from fastpsl.pipelines.loader.annotated import AnnotatedBatch
from fastpsl.scripts.command_line import parse
from fastpsl.transfer.detection.protocols import PROTOCOLS

OURS, TORCHVISION, DETECTRON2 = "ours", "torchvision", "detectron2"
GAIN = "{}'s ms / ours"
PROTOCOL = "pirl"
_NUM_BATCHES = 2  # batches that the steps take in turn


@dataclass(frozen=True, kw_only=True)
class Options:
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backbone: Literal["resnet18", "resnet34", "resnet50"] | None = None
    """Default: resnet50 on CUDA, else resnet18."""
    size: Annotated[
        int | None,
        arg(
            help="Shorter side of the images, px; the longer one is 4/3 of it. "
            "Default: 640 on CUDA, the middle of the protocol's 480 to 800; else 128."
        ),
    ] = None
    batch_size: int | None = None
    """Default: the protocol's 16 on CUDA, else 2."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    repeats: int | None = None
    """Default: 7 on CUDA, else 5."""
    limit_s: float | None = None
    """No further repeat begins after so many seconds, but for the first. Default: 240 on CUDA, else 60."""
    out: Path = RUNS / "detection.json"
    """The result."""

    def check(self) -> None:
        """Raise ValueError if an option is out of range."""
        check_positive(self, "size", "batch_size", "repeats", "limit_s")


@dataclass
class Timed:
    """One measured implementation.

    Attributes:
        boxes: Boxes that its head reads per step, or None if unknown.
        ms: Milliseconds per step, one value per repeat.
    """

    peer: Peer
    boxes: int | None
    first_step_s: float
    peak_bytes: int
    ms: list[float] = field(default_factory=list)


class Bench:
    """The measurements of one run of the program."""

    def __init__(self, options: Options, world: World):
        self.world, self.is_cuda = world, world.device.type == "cuda"
        self.backbone = options.backbone or ("resnet50" if self.is_cuda else "resnet18")
        self.size_px = options.size or (640 if self.is_cuda else 128)
        self.batch_size = options.batch_size or (16 if self.is_cuda else 2)
        self.repeats = options.repeats or (7 if self.is_cuda else 5)
        self.steps = 3 if self.is_cuda else 1  # steps per repeat, after one that is not counted
        self.limit_s = options.limit_s or (240.0 if self.is_cuda else 60.0)
        self.started = time.perf_counter()
        self.run_options = TrainingOptions(
            batch_size=self.batch_size, device="cuda" if self.is_cuda else "cpu", precision=options.precision
        )
        self.precision = self.run_options.resolved_precision(world.device)
        self.protocol = PROTOCOLS[PROTOCOL]
        if not self.is_cuda:  # because a head on 512 boxes per image takes minutes there
            self.protocol = replace(self.protocol, num_rois=32, rpn_train=(600, 100))
        self.timed: dict[str, Timed] = {}
        self.missing: list[dict[str, str]] = []

    def measure(self, log: Callable[[str], object]) -> None:
        """Measure all implementations, interleaved, and record those that cannot be measured."""
        for name, make in self._makers():
            log(f"{name}: first step")
            try:
                self.timed[name] = self._first_step(make)
            except ValueError as error:
                self._leave_out(name, str(error))
            except torch.OutOfMemoryError:
                self._leave_out(name, "out of GPU memory")
            # For example of another version of Detectron2.
            except (RuntimeError, AttributeError, TypeError, KeyError) as error:
                if name != DETECTRON2:
                    raise
                self._leave_out(name, f"failed: {str(error)[:200]}")
        for number in range(self.repeats):
            if number and time.perf_counter() - self.started > self.limit_s:
                break
            log(f"repeat {number + 1} of {self.repeats}")
            for timed in list(self.timed.values())[:: -1 if number % 2 else 1]:
                ms = milliseconds(timed.peer.step, self.world.device, self.steps)
                timed.ms.append(statistics.median(ms))

    def _makers(self) -> Iterator[tuple[str, Callable[[], Peer]]]:
        protocol, name, precision = self.protocol, self.backbone, self.precision
        batches = drawn_batches(_NUM_BATCHES, self.batch_size, self.size_px, self.world.device)

        def turns() -> Iterator[AnnotatedBatch]:
            return itertools.cycle(batches)

        train_step = our_train_step(protocol, name, self.run_options, self.world)
        yield OURS, lambda: ours(train_step, turns())
        yield (
            TORCHVISION,
            lambda: torchvisions(
                torchvisions_model(protocol, name, train_step), turns(), protocol, precision
            ),
        )
        yield DETECTRON2, lambda: detectron2s(turns(), protocol, name, precision, self.world.device)

    def _first_step(self, make: Callable[[], Peer]) -> Timed:
        before_bytes = torch.cuda.memory_allocated(self.world.device) if self.is_cuda else 0
        peer = make()
        started = time.perf_counter()
        peer.step()
        synchronise(self.world.device)
        first_step_s = time.perf_counter() - started
        boxes = peer.boxes_in_a_step()
        peak_bytes = 0
        if self.is_cuda:
            # The peak of a step, weights included, less the memory that the other implementations hold.
            gc.collect()
            torch.cuda.reset_peak_memory_stats(self.world.device)
            peer.step()
            peak_bytes = torch.cuda.max_memory_allocated(self.world.device) - before_bytes
        return Timed(peer, boxes, first_step_s, peak_bytes)

    def _leave_out(self, what: str, reason: str) -> None:
        self.missing.append({"what": what, "reason": " ".join(reason.split())})


def rows_of(timed: Mapping[str, Timed], backbone: str, batch_size: int) -> list[dict[str, Any]]:
    """Return one row per implementation; images/s follow from the median."""
    return [
        {
            "measured": "step", "variant": name, "backbone": backbone, "unit": "ms",
            "images_per_s": round(1e3 * batch_size / statistics.median(entry.ms), 2),
            "boxes_per_image": None if entry.boxes is None else entry.boxes / batch_size,
            "learning_parameters": entry.peer.num_learning, "first_step_s": round(entry.first_step_s, 2),
            "peak_mib": round(entry.peak_bytes / 2**20) or None, **spread(entry.ms),
        }
        for name, entry in timed.items()
    ]  # fmt: skip


def ratios_of(timed: Mapping[str, Timed], backbone: str) -> list[dict[str, Any]]:
    """Return each peer's milliseconds over ours, repeat by repeat."""
    if OURS not in timed:
        return []
    our_ms = timed[OURS].ms
    return [
        {
            "what": GAIN.format(name),
            "backbone": backbone,
            **spread([a / b for a, b in zip(other.ms, our_ms, strict=True)]),
        }
        for name, other in timed.items()
        if name != OURS
    ]


def show(result: Mapping[str, Any], console: Console) -> None:
    table = Table("variant", "backbone", "ms", "images/s", "boxes per image", "peak GPU memory")
    for row in result["rows"]:
        memory = "" if row["peak_mib"] is None else f"{row['peak_mib'] / 1024:.1f} GiB"
        boxes = "" if row["boxes_per_image"] is None else f"{row['boxes_per_image']:g}"
        table.add_row(
            row["variant"], row["backbone"], f"{row['median']:.1f}", f"{row['images_per_s']:,.1f}", boxes,
            memory
        )  # fmt: skip
    console.print(table)
    for ratio in result["ratios"]:
        console.print(f"{ratio['what']}: {ratio['median']:.2f}")
    for missing in result["not_measured"]:
        console.print(f"not measured: {missing['what']}: {missing['reason']}")
    for note in result["notes"]:
        console.print(note)


def main() -> None:
    options: Options = parse(Options, default=Options(), description=__doc__ or "")
    options.check()
    check_out(options.out)
    world = join_world(options.device, timeout_s=600.0)
    console = wide_console()
    machine = environment(world.device)
    bench = Bench(options, world)
    with progress() as log:
        bench.measure(log)
    result = save_result(
        options.out, "detection", machine,
        data={"name": "noise on the device", "num_samples": _NUM_BATCHES * bench.batch_size},
        settings={
            "repeats": bench.repeats, "steps_per_repeat": bench.steps, "batch_size": bench.batch_size,
            "precision": bench.precision,
            "device": world.device.type, "backbone": bench.backbone, "short_px": bench.size_px,
            "protocol": PROTOCOL,
            "num_rois": bench.protocol.num_rois, "rpn_train": list(bench.protocol.rpn_train),
            "limit_s": bench.limit_s,
            "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"],
        },
        rows=rows_of(bench.timed, bench.backbone, bench.batch_size),
        ratios=ratios_of(bench.timed, bench.backbone),
        not_measured=bench.missing,
    )  # fmt: skip
    show(result, console)
    console.print(str(options.out))


if __name__ == "__main__":
    run_program(main)
