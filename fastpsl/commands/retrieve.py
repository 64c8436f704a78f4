"""`fastpsl retrieve`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from fastpsl.commands.extraction_options import ExtractionOptions

# What it does is imported when it does it: `fastpsl --help` shall not wait for torch or matplotlib.


@dataclass(frozen=True, kw_only=True)
class Retrieve:
    """Find the images of a gallery that are nearest to queries, by the cosine of the average-pooled features of one block.

    OUT gets retrieval.png (a query a line, its neighbours in falling similarity), result.json (for `fastpsl table`) and the
    features, which serve again. See docs/knn.md.
    """

    checkpoint: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="CKPT")]] = None
    """A run's folder (its newest checkpoint), a checkpoint, a file of `fastpsl export`, or others' weights."""
    gallery: Annotated[str, tyro.conf.arg(metavar="DATA")]
    """Where neighbours are looked for: a beton, a quoted glob of shards, a folder of images or a list of them (docs/sources.md)."""
    queries: Annotated[str, tyro.conf.arg(metavar="DATA")]
    """Likewise. An image of the same data does not find itself."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The folder to write to."""
    block: Annotated[str, tyro.conf.arg(metavar="final|B1|B2..")] = "final"
    """Whose output is averaged over all positions; final is the last. Names such as fc7 serve as well."""
    k: Annotated[int, tyro.conf.arg(metavar="NUM")] = 8
    """Neighbours of each query."""
    num: Annotated[int, tyro.conf.arg(metavar="NUM")] = 16
    """Queries in the picture, drawn by --seed; all where there are fewer. The precision is of all queries in any case."""
    query_indices: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INDEX...")] = ()
    """Queries in the picture, from 0, instead of drawn ones."""
    seed: int = 0
    """Of the queries that are shown, and of random weights."""
    random_weights: bool = False
    """Random weights of --backbone instead of CKPT."""
    extraction: ExtractionOptions = field(default_factory=ExtractionOptions)
    """How features are computed."""


def run(command: Retrieve) -> None:
    """Do it; ValueError with one line where the user is wrong. Under torchrun every rank does its share."""
    from fastpsl.engine.distributed import join_world, leave_world
    from fastpsl.evaluation.retrieval import retrieve

    options = command.extraction.asked(
        command.checkpoint, data=command.gallery, val=command.queries, out=command.out, seed=command.seed,
        random_weights=command.random_weights,
    )  # fmt: skip
    world = join_world(options.device, timeout_s=10 * options.timeout_s)
    try:
        for line in retrieve(
            options,
            world,
            block=command.block,
            k=command.k,
            num=command.num,
            indices=command.query_indices,
        ):
            print(line)
    finally:
        leave_world()
