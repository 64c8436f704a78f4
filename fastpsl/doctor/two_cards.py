"""What two ranks of a machine do together, each on a GPU of its own: a sum, losses, weights and rates.

They are processes of their own, because that of a card is one rank.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from fastpsl.doctor.proof import WAYS, exact, small_step
from fastpsl.doctor.setup import opened_stage
from fastpsl.engine.distributed import (
    World,
    join_world,
    leave_world,
    on_any_rank,
    sum_over_ranks,
    take_tensors_of_rank_0,
)
from fastpsl.files.atomic import write_atomically

NUM_LOSSES = 20
_LIMIT_S = 120.0
_WAIT_S = 60.0  # for another rank
_NUM_SUMMED = 1 << 22
_LR = 0.005
# Launched steps and captured ones; on a CPU, where nothing is captured, steps without their frozen blocks.
_COMPARED = {"cuda": ("fused", "captured"), "cpu": ("eager", "folded")}
# A rank's images of a timed step, and how many are timed. All ranks make equally many.
_TIMED = {"cuda": (64, 20), "cpu": (4, 2)}
NETWORK = {"cuda": ("--backbone", "resnet50"), "cpu": ("--backbone", "resnet18", "--size-px", "96")}


def measured_on_two(device_type: str) -> dict[str, Any]:
    """Start two ranks, and return what rank 0 has found; raise RuntimeError if a rank ends badly or late."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    of_all = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with tempfile.TemporaryDirectory(prefix="fastpsl-card-") as folder, ExitStack() as ends:
        found, texts = Path(folder) / "found.json", [Path(folder) / f"rank-{rank}.txt" for rank in range(2)]
        words = [sys.executable, "-m", "fastpsl.doctor.two_cards", str(found), device_type]
        ranks = list[subprocess.Popen[bytes]]()
        for rank, text in enumerate(texts):
            variables = os.environ | of_all | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with text.open("wb") as output:
                ranks.append(subprocess.Popen(words, env=variables, stdout=output, stderr=output))
            ends.callback(ranks[-1].wait)
            ends.callback(ranks[-1].kill)
        deadline = time.monotonic() + _LIMIT_S
        while (codes := [rank.poll() for rank in ranks]) != [0, 0]:
            for code, text in zip(codes, texts, strict=True):
                if code:
                    *_, last = ["", *text.read_text(errors="replace").splitlines()]
                    raise RuntimeError(f"a rank ended with {code}: {last}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"two ranks did not end within {_LIMIT_S:g} s")
            time.sleep(0.05)
        return dict(json.loads(found.read_bytes()))


def main(path: Path, device_type: str) -> None:
    """Be one of the two ranks; rank 0 writes what it finds."""
    world = join_world(device_type, _WAIT_S)
    try:
        found: dict[str, Any] = {"sum_differs": _sum_differs(world), "losses": {}, "weights_differ": []}
        of_device = {"eager": ()} | WAYS[device_type]
        for way in _COMPARED[device_type]:
            found["losses"][way], differ = _losses(of_device[way], world)
            found["weights_differ"] += [way] * differ
        alone = replace(world, rank=0, size=1, local_rank=0, local_size=1)
        found["images_per_s"] = {"1": _rate(alone), "2": 2 * _rate(world)}
        if world.rank == 0:
            write_atomically(path, json.dumps(found).encode())
    finally:
        leave_world()


def _sum_differs(world: World) -> bool:
    """Return whether a sum over the ranks is wrong; its whole numbers are exact in float32."""
    values = torch.arange(_NUM_SUMMED, device=world.device).remainder(1000).float()
    total = sum_over_ranks(world, values * (world.rank + 1))
    return on_any_rank(world, not torch.equal(total, 3 * values))


def _losses(way: Sequence[str], world: World) -> tuple[list[float], bool]:
    """Return the losses of steps of SimCLR, and whether the ranks then have other weights."""
    words, losses = [*small_step(way, "fp32"), "--batch-size", "16"], list[float]()
    with exact(), opened_stage("simclr", words, "S2", world) as bench:
        with bench.loader("synthetic") as loader:
            batches = list(loader.epoch(0))
        step = bench.train_step
        for batch in islice(cycle(batches), NUM_LOSSES):
            values = step.step([batch], _LR).values[0]
            losses.append(float(values[0] / values[1]))
        weights = [each.detach() for each in step.module.parameters()]
        of_rank_0 = [each.clone() for each in weights]
        take_tensors_of_rank_0(of_rank_0, world)
        differ = not all(map(torch.equal, weights, of_rank_0))
    return losses, on_any_rank(world, differ)


def _rate(world: World) -> float:
    """Return a rank's images/s of jigsaw, end to end."""
    batch_size, num_steps = _TIMED[world.device.type]
    network = NETWORK[world.device.type]
    words = [*network, "--plan", "end_to_end", "--batch-size", str(batch_size * world.size)]
    with opened_stage("jigsaw", words, "E", world) as bench:
        bench.seconds, bench.min_steps = 0.0, num_steps
        bench.step_ms(1)
        return round(bench.step_alone(), 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
