"""What BatchNorm, ReLU, max pool and shortcuts move through memory in a training step, counted, not measured:
eager, compiled at its best, fused.

    python bench/norm_bytes.py                        ResNet-50, 256 images of 224 px, values of 2 bytes
    python bench/norm_bytes.py --side-px 64 --batch-size 2304

A pass over a map counts once for each map that it reads or writes whole; a kernel may read more. eager:
torch's kernels, cuDNN's BatchNorm of two reads forward. compiled: each pass joined with all its neighbours,
and what a ReLU has cut read from its result: what torch.compile does at best. All three have in common, and
so is not counted: what convolutions read and write, and pools that follow no BatchNorm that learns.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: see throughput.py

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.program import check_positive, run_program
from fastpsl.engine.fused_norms import FusedNorm, fused
from fastpsl.engine.plan import make_plan
from fastpsl.models.factory import make_backbone
from fastpsl.scripts.command_line import parse

COPY_TB_PER_S = 4.25  # measured on one H200
BIT = 1 / 16  # the share of a two-byte value that one bit takes
BYTE = 1 / 2


class Moved(NamedTuple):
    """The traffic of one BatchNorm, forward and backward: maps of its size moved, and kernel launches."""

    maps: float
    launches: int


@dataclass(frozen=True)
class Group:
    """A set of BatchNorms that are computed together, with the ReLU and the sum that follow them.

    Attributes:
        num_values: Values of a map.
        adds: What is added to the result: "nothing", "map" or "normalised".
        relu: Whether a ReLU follows.
        fork: Whether two consumers use the result.
        pooled: The share of the map that a max pool leaves, or 0 without a pool.
    """

    num_values: int
    adds: str
    relu: bool
    fork: bool
    pooled: float = 0.0

    @property
    def _of_result(self) -> float:
        """The share of the map that the result has."""
        return self.pooled or 1.0

    def eager(self) -> Moved:
        """Count for torch's own kernels.

        Forward, they read x twice and write y; ReLU and sum work in place. Backward, the ReLU's pass comes
        first; then dy and x are read twice and dx is written. A pool writes and reads places of eight bytes.
        """
        norms = 2 if self.adds == "normalised" else 1
        adds = self.adds != "nothing"
        maps = norms * (3 + 5) + 3 * adds + (2 + 3) * self.relu + 3 * self.fork * self._of_result
        if self.pooled:
            maps += 2 * (1 + self.pooled * (1 + 8 * BYTE))
        # BatchNorm counts its batches by one more launch.
        return Moved(maps, norms * 3 + adds + 2 * self.relu + self.fork + 2 * bool(self.pooled))

    def compiled(self) -> Moved:
        """Count for torch.compile at its best.

        A launch that computes sums needs a second one, which adds up its partial sums. A pool keeps a byte
        per place, and without a ReLU nothing of what it reads.
        """
        if self.pooled:
            of_pooled = 3 * self.pooled * (1 + BYTE) + self.fork * self.pooled
            return Moved(2 + 3 + 3 * self.relu + of_pooled, 3 + 3)
        if self.adds == "nothing":
            return Moved(3 + 5 + 2 * self.relu + self.fork, 3 + 3)
        of_one = Moved(4 + 3 + self.relu + 3 + self.fork, 3 + 3)
        return of_one if self.adds == "map" else Moved(5 + 4 + self.relu + 5 + self.fork, 5 + 3)

    def fused(self) -> Moved:
        """Count for kernels/fused_cuda/batch_norm.py; zeroing and the copy of a sum count as launches."""
        if self.pooled:
            return Moved(2 + 3 + self.pooled * (3 * (1 + 4 * BIT) + 2 * self.fork), 3 + 2)
        if self.adds == "nothing":
            return Moved(3 + 5 + 2 * self.fork, 3 + 2)
        bits = 2 * BIT * self.relu
        of_one = Moved(4 + 6 + self.fork + bits, 3 + 2)
        return of_one if self.adds == "map" else Moved(5 + 9 + self.fork + bits, 4 + 3)


@dataclass(frozen=True, kw_only=True)
class Options:
    backbone: str = "resnet50"
    batch_size: int = 256
    side_px: int = 224

    def check(self) -> None:
        """Raise ValueError if an option is not positive."""
        check_positive(self, "batch_size", "side_px")


def groups(options: Options, first: int, last: int) -> list[Group]:
    """Return the groups of the blocks `first` to `last`, which learn, as `--compile fused` forms them."""
    with torch.device("meta"):
        net = make_backbone(options.backbone)
        images = torch.empty(options.batch_size, 3, options.side_px, options.side_px)
    values: dict[nn.Module, int] = {}
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d | nn.MaxPool2d):
            part.register_forward_hook(lambda part, _, y: values.update({part: y.numel()}))
    for block in net.blocks():
        images = block(images)
    view = fused(*net.blocks()[first - 1 : last])
    arity = {str(node.target): len(node.args) for node in getattr(getattr(view, "graph", None), "nodes", ())}
    return [
        Group(
            values[part.norm],
            "nothing" if arity[name] == 1 else "normalised" if part.z_norm is not None else "map",
            part.relu, part.fork,
            0.0 if part.pool is None else values[part.pool.pool] / values[part.norm],
        )
        for name, part in view.named_modules() if isinstance(part, FusedNorm)
    ]  # fmt: skip


def totals(of_stage: list[Group]) -> dict[str, Moved]:
    """Return for each way the bytes moved, at two bytes per value, and the launches."""
    sums = {}
    for way in ("eager", "compiled", "fused"):
        entries = [(group, getattr(group, way)()) for group in of_stage]
        num_bytes = sum(2 * group.num_values * moved.maps for group, moved in entries)
        sums[way] = Moved(num_bytes, sum(moved.launches for _, moved in entries))
    return sums


def main() -> None:
    options: Options = parse(Options, default=Options(), description=__doc__ or "")
    options.check()
    with torch.device("meta"):
        num_blocks = len(make_backbone(options.backbone).blocks())
    stages = {"E": (1, num_blocks)} | {
        stage.name: (stage.first_learning, stage.last_block) for stage in make_plan("psl", (1, 1, 1))
    }
    table = Table(
        "stage", "learns", "way", "GB", f"ms at {COPY_TB_PER_S} TB/s", "less than eager", "launches"
    )
    for name, (first, last) in stages.items():
        sums = totals(groups(options, first, last))
        for way, moved in sums.items():
            ms, eager_ms = (each.maps / COPY_TB_PER_S / 1e9 for each in (moved, sums["eager"]))
            table.add_row(
                name, f"B{first}-B{last}", way, f"{moved.maps / 1e9:.1f}", f"{ms:.1f}",
                f"{eager_ms - ms:.1f}", str(moved.launches)
            )  # fmt: skip
    Console(highlight=False, soft_wrap=True).print(table)


if __name__ == "__main__":
    run_program(main)
