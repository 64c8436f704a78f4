"""The arithmetic of docs/explanation/scale.md: the demands of 8 and 64 GPUs on storage, decoders and network.

They are derived from measurements on one GPU. The networks' bandwidths are assumptions, and are called so.
Gradient bytes are counted in the recipe's own stages.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from bench.recipe_stages import recipe_options, stage_experiment
from fastpsl.engine.distributed import World

BATCH = 256  # per GPU
# ImageNet with --max-side 500: the mean of 1,000 originals, and that mean, before rounding, of 1,281,167.
BYTES_PER_IMAGE, IMAGENET_GB = 109_000, 139
# Bus bandwidth per GPU in one direction, as nccl-tests defines it (doc/PERFORMANCE.md there). For an H200,
# two thirds of NVLink's 900 GB/s in both directions (NVIDIA's data sheet) are assumed, and four fifths of one
# 400 Gbit/s port per GPU (ConnectX-7's data sheet).
NVLINK_GB_PER_S, NETWORK_GB_PER_S = 300.0, 40.0
# First tries on one H200 with ResNet-50, fp16, batch 256, eager: jigsaw's 9 tiles of 64 px; DALI `mixed` with
# 16 threads and with 4.
FIRST_TRIES = {"S1": 10_900.0, "S2": 9_000.0, "S3": 9_700.0, "E": 7_500.0}
FIRST_DECODED, FIRST_DECODED_4 = 31_200.0, 27_100.0
STAGES = ("S1", "S2", "S3", "E")


class StageInput(NamedTuple):
    """The inputs of one stage on one GPU.

    Attributes:
        rate: Images/s of the step alone.
        num_bytes: Bytes of the gradients.
    """

    stage: str
    rate: float
    num_bytes: int


@functools.cache
def gradients(recipe: str = "jigsaw") -> dict[str, int]:
    """Return the bytes that DDP sums in each stage with the paper's values: 4 per trainable parameter."""
    world = World(0, 1, 0, 1, torch.device("cpu"))
    options = recipe_options(recipe, is_sample=False, batch_size=BATCH, device="cpu")
    bytes_by_stage = {}
    for name in STAGES:
        experiment, number = stage_experiment(recipe, name, options, world)
        stage = experiment.stages[number]
        backbone: Any = experiment.backbone
        learning = backbone.blocks()[stage.first_learning - 1 : stage.last_block]
        learning.append(experiment.task.head(stage.level, backbone.channels[stage.last_block - 1]))
        bytes_by_stage[name] = 4 * sum(
            weights.numel() for module in learning for weights in module.parameters()
        )
    return bytes_by_stage


def all_reduce_ms(num_bytes: int, num_gpus: int, gb_per_s: float) -> float:
    """Return the milliseconds of a ring all-reduce, in which 2 (n - 1) / n of the bytes pass every GPU."""
    return 2 * (num_gpus - 1) / num_gpus * num_bytes / gb_per_s / 1e6


def scale_tables(results: Mapping[str, dict[str, Any]]) -> str:
    """Return the Markdown of the arithmetic of docs/explanation/scale.md.

    Args:
        results: File name → result of a GPU. First tries stand in for missing figures, and are called so.
    """
    rates: dict[str, float] = {}
    decoded: list[dict[str, Any]] = []
    files = []
    for name, result in results.items():
        result_rows = result["rows"] if result["bench"] in ("scaling", "throughput") else ()
        rows = [row for row in result_rows if row.get("recipe") == "jigsaw" and row.get("num_ranks", 1) == 1]
        rates |= {row["stage"]: row["median"] for row in rows if row["measured"] == "step"}
        decoded += [row for row in rows if row["measured"] == "loader"]
        files += [name] if rows else []
    source = "Steps are of one H200 (ResNet-50, eager, batch 256, jigsaw's tiles)."
    if files:
        source += f" Measured, with decoding: {', '.join(sorted(rates))} ({', '.join(files)})."
    if tried := [stage for stage in STAGES if stage not in rates]:
        source += f" First tries: {', '.join(tried)}."
    inputs = [
        StageInput(stage, rates.get(stage, FIRST_TRIES[stage]), num) for stage, num in gradients().items()
    ]
    assumptions = (
        f"{source}\nBytes are counted. All else is arithmetic, with these assumptions:\n\n"
        "- The all-reduce is a ring, and none of it is hidden behind the backward pass. (DDP hides most of "
        "it.)\n"
        f"- A node of 8 GPUs has {NVLINK_GB_PER_S:g} GB/s of bus bandwidth, of NVLink's 450 in one "
        "direction.\n"
        f"- Between nodes, each GPU has {NETWORK_GB_PER_S:g} GB/s, of a 400 Gbit/s port's 50.\n"
        f"- An image has {BYTES_PER_IMAGE // 1000} KB.\n"
        "- No rank is slower than the others."
    )
    titles = (
        "jigsaw", "images/s per GPU", "step of 256", "gradients", "all-reduce, 8 GPUs", "64 GPUs",
        "share of linear scaling, at least, 8 / 64", "storage, 8 / 64",
    )  # fmt: skip
    lines = [assumptions, "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for stage, rate, num_bytes in inputs:
        step_ms = 1e3 * BATCH / rate
        near = all_reduce_ms(num_bytes, 8, NVLINK_GB_PER_S)
        far = all_reduce_ms(num_bytes, 64, NETWORK_GB_PER_S)
        efficiencies = [f"{step_ms / (step_ms + ms):.3f}" for ms in (near, far)]
        storage = [f"{num * rate * BYTES_PER_IMAGE / 1e9:.1f}" for num in (8, 64)]
        cells = (
            stage, f"{rate:,.0f}", f"{step_ms:.1f} ms", f"{num_bytes / 1e6:.1f} MB", f"{near:.2f} ms",
            f"{far:.2f} ms", " / ".join(efficiencies), f"{' / '.join(storage)} GB/s",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    fastest = max(each.rate for each in inputs)
    if decoded:
        row = min(decoded, key=lambda row: row["median"])
        decoding = (
            f"{row['median']:,.0f} images per second were decoded by {row['cores_used']:.1f} cores "
            f"({row['stage']}). That is {row['median'] / fastest:.1f} times"
        )
    else:
        decoding = (
            f"In first tries, {FIRST_DECODED:,.0f} images per second (of 55 KB each) were decoded and "
            f"cropped with 16 threads,\nand {FIRST_DECODED_4:,.0f} with 4. The latter is "
            f"{FIRST_DECODED_4 / fastest:.1f} times"
        )
    end = (
        f"Each GPU decodes its own images. {decoding} what the fastest stage asks for.\n\nStorage is read at "
        "most once per epoch. It is not read at all if the nodes' page caches hold their shares.\nImageNet's "
        f"1.28 M images are {IMAGENET_GB} GB."
    )
    return "\n".join([*lines, "", end])
