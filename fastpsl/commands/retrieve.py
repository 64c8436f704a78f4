"""`fastpsl retrieve`: the nearest images of a gallery."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from fastpsl.commands.extraction_options import CHECKPOINT, ExtractionOptions


@dataclass(frozen=True, kw_only=True)
class Retrieve:
    """Find the images of a gallery that are nearest to queries, by the cosine of the average-pooled features
    of one block.

    OUT gets retrieval.png (a query a line, its neighbours in falling similarity), result.json (for `fastpsl
    table`) and the features, which serve again. See
    https://fastpsl.github.io/fastpsl/how_to/evaluate/retrieval.html; for the forms of DATA,
    https://fastpsl.github.io/fastpsl/how_to/pack_a_dataset.html.
    """

    checkpoint: tyro.conf.Positional[Annotated[Path | None, CHECKPOINT]] = None
    gallery: Annotated[
        str,
        tyro.conf.arg(
            metavar="DATA",
            help="Where neighbours are looked for: a dataset file, a quoted glob of shards, a folder of "
            "images or a list of them.",
        ),
    ]
    queries: Annotated[str, tyro.conf.arg(metavar="DATA")]
    """The query images, in the same forms. An image of the same data does not find itself."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The folder to write to."""
    block: Annotated[str, tyro.conf.arg(metavar="final|B1|B2..")] = "final"
    """Whose output is averaged over all positions; final is the last. Names such as fc7 serve as well."""
    k: Annotated[int, tyro.conf.arg(metavar="NUM")] = 8
    """Neighbours of each query."""
    num: Annotated[
        int,
        tyro.conf.arg(
            metavar="NUM",
            help="Queries in the figure, drawn by --seed; all where there are fewer. The precision is "
            "of all queries in any case.",
        ),
    ] = 16
    query_indices: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INDEX...")] = ()
    """Queries in the figure, from 0, instead of drawn ones."""
    seed: int = 0
    """Of the queries that are shown, and of random weights."""
    random_weights: bool = False
    """Random weights of --backbone instead of CKPT."""
    extraction: ExtractionOptions = field(default_factory=ExtractionOptions)
    """How features are computed."""

    def run(self) -> None:
        """Write the neighbours and print the figures; under torchrun every rank does its share.

        Raises:
            ValueError: Weights or data cannot be read, the block is unknown, or a number is out of range.
        """
        from fastpsl.evaluation.retrieval import retrieve

        with self.extraction.joined(
            self.checkpoint, data=self.gallery, val=self.queries, out=self.out, seed=self.seed,
            random_weights=self.random_weights,
        ) as (options, world):  # fmt: skip
            for line in retrieve(
                options, world, block=self.block, k=self.k, num=self.num, indices=self.query_indices
            ):
                print(line)
