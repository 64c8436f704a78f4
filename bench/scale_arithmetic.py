"""docs/scale.md's arithmetic: what 8 and 64 GPUs ask of storage, decoders and the network, from what one GPU was measured to do.

The bandwidths of networks are assumptions, and so are called. Bytes of gradients are counted in the recipe's own stages.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from bench.recipe_stages import recipe_options, stage_experiment
from fastpsl.engine.distributed import World

BATCH, BYTES_A_PICTURE = 256, 55_000  # a GPU's; of an ImageNet photo at 500 px, quality 90
# Bus bandwidth as nccl-tests defines it (doc/PERFORMANCE.md there), of a GPU, in one direction. H200: NVLink 900 GB/s in both directions
# (NVIDIA's data sheet), of which two thirds are assumed; one 400 Gbit/s port a GPU (ConnectX-7's data sheet), of which four fifths are.
NVLINK_GB_PER_S, NETWORK_GB_PER_S = 300.0, 40.0
# One H200, ResNet-50, fp16, batch 256, eager, before there was a result: jigsaw's 9 tiles of 64 px; DALI `mixed`, 16 threads and 4.
FIRST_TRIES = {"S1": 10_900.0, "S2": 9_000.0, "S3": 9_700.0, "E": 7_500.0}
FIRST_DECODED, FIRST_DECODED_4 = 31_200.0, 27_100.0
STAGES = ("S1", "S2", "S3", "E")


class StageInput(NamedTuple):
    """Of one GPU. rate: images/s of the step alone; num_bytes: of gradients."""

    stage: str
    rate: float
    num_bytes: int


@functools.cache
def gradients(recipe: str = "jigsaw") -> dict[str, int]:
    """Bytes of what DDP sums in each stage with the paper's values: 4 for each number that learns."""
    world = World(0, 1, 0, 1, torch.device("cpu"))
    options = recipe_options(recipe, is_sample=False, batch_size=BATCH, device="cpu")
    found = {}
    for name in STAGES:
        experiment, number = stage_experiment(recipe, name, options, world)
        stage = experiment.stages[number]
        backbone: Any = experiment.backbone
        learning = backbone.blocks()[stage.first_learning - 1 : stage.last_block]
        learning.append(experiment.task.head(stage.level, backbone.channels[stage.last_block - 1]))
        found[name] = 4 * sum(weights.numel() for module in learning for weights in module.parameters())
    return found


def all_reduce_ms(num_bytes: int, num_gpus: int, gb_per_s: float) -> float:
    """A ring's: 2 (n - 1) / n of the bytes pass every GPU."""
    return 2 * (num_gpus - 1) / num_gpus * num_bytes / gb_per_s / 1e6


def scale_tables(results: Mapping[str, dict[str, Any]]) -> str:
    """Markdown. results: file name → result of GPUs; what they lack is of the first tries, and called so."""
    rates: dict[str, float] = {}
    decoded: list[dict[str, Any]] = []
    files = []
    for name, result in results.items():
        of_one = result["rows"] if result["bench"] == "scaling" else ()
        rows = [row for row in of_one if row["recipe"] == "jigsaw" and row["num_ranks"] == 1]
        rates |= {row["stage"]: row["median"] for row in rows if row["measured"] == "step"}
        decoded += [row for row in rows if row["measured"] == "loader"]
        files += [name] if rows else []
    if files:
        said = f"Steps and decoding: {', '.join(files)}."
    else:
        said = (
            "Steps are first tries on one H200 (ResNet-50, eager, batch 256, jigsaw's tiles), as no results file of a GPU is "
            "here yet."
        )
    inputs = [
        StageInput(stage, rates.get(stage, FIRST_TRIES[stage]), num) for stage, num in gradients().items()
    ]
    assumed = (
        f"{said} Bytes are counted. All else is arithmetic, with these assumptions: a ring's all-reduce, none of it hidden "
        f"behind the backward pass (DDP hides most of it); {NVLINK_GB_PER_S:g} GB/s of bus bandwidth within a node of 8 (of "
        f"NVLink's 450 in one direction), {NETWORK_GB_PER_S:g} GB/s a GPU between nodes (of a 400 Gbit/s port's 50); pictures of "
        f"{BYTES_A_PICTURE // 1000} KB; nothing for stragglers."
    )
    titles = (
        "jigsaw", "images/s of a GPU", "step of 256", "gradients", "all-reduce, 8 GPUs", "64 GPUs",
        "at least of linear, 8 / 64", "storage, 8 / 64",
    )  # fmt: skip
    lines = [assumed, "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for stage, rate, num_bytes in inputs:
        step_ms = 1e3 * BATCH / rate
        near = all_reduce_ms(num_bytes, 8, NVLINK_GB_PER_S)
        far = all_reduce_ms(num_bytes, 64, NETWORK_GB_PER_S)
        kept = [f"{step_ms / (step_ms + ms):.3f}" for ms in (near, far)]
        read = [f"{num * rate * BYTES_A_PICTURE / 1e9:.1f}" for num in (8, 64)]
        cells = (
            stage, f"{rate:,.0f}", f"{step_ms:.1f} ms", f"{num_bytes / 1e6:.1f} MB", f"{near:.2f} ms", f"{far:.2f} ms",
            " / ".join(kept), f"{' / '.join(read)} GB/s",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    fastest = max(each.rate for each in inputs)
    if decoded:
        row = min(decoded, key=lambda row: row["median"])
        told = (
            f"{row['median']:,.0f} a second by {row['cores_used']:.1f} cores ({row['stage']}), "
            f"{row['median'] / fastest:.1f} times"
        )
    else:
        told = (
            f"{FIRST_DECODED:,.0f} a second were decoded and cropped with 16 threads, {FIRST_DECODED_4:,.0f} with 4 (first "
            f"tries), the latter {FIRST_DECODED_4 / fastest:.1f} times"
        )
    end = (
        f"Each GPU decodes its own pictures: {told} what the fastest stage asks. Storage is read once an epoch at most, and not "
        f"at all where the nodes' page caches hold their shares: ImageNet's 1.28 M such pictures are "
        f"{1.28e6 * BYTES_A_PICTURE / 1e9:.0f} GB."
    )
    return "\n".join([*lines, "", end])
