"""`fastpsl features`: the features of one block, of every sample of a data set, as a file."""

from contextlib import closing
from pathlib import Path
from typing import Any

from fastpsl.distributed import join_world, leave_world
from fastpsl.evaluation.features import STORED, Extraction
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.pipelines.data import open_data

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def features(
    *, data: str, block: str, out: Path, dtype: str = "float16", overwrite: bool = False, **options: Any
) -> str:
    """Write the features and say what was written; under torchrun every rank does its share, and rank 0 speaks.

    options: of `EvaluationOptions`: checkpoint, backbone, input_channels, input_mean, input_std, size_px, batch_size (over all
    ranks), precision, device, decoder, num_threads, on_bad_sample. ValueError where the request cannot be met.
    """
    if out.suffix != ".npy":
        raise ValueError(f"--out {out}: give a name that ends in .npy")
    for name, value, allowed in (("dtype", dtype, STORED), ("precision", options["precision"], PRECISIONS)):
        if value not in allowed:
            raise ValueError(f"--{name} {value}: there are {', '.join(allowed)}")
    asked = EvaluationOptions(data=data, **options)
    world = join_world(asked.device, timeout_s=10 * asked.timeout_s)
    try:
        pretrained = asked.pretrained()
        with closing(open_data(data)) as opened:
            extraction = Extraction.of(asked, pretrained, opened, block, world, dtype)
            written = extraction.to_file(out, world, overwrite=overwrite)
            return str(written) if world.rank == 0 else ""
    finally:
        leave_world()
