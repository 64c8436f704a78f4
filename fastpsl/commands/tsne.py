"""`fastpsl tsne`: features as points in the plane."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from fastpsl.commands.extraction_options import CHECKPOINT, ExtractionOptions


@dataclass(frozen=True, kw_only=True)
class TSNE:
    """Draw images as points of the plane by t-SNE of their average-pooled features of one block, coloured by
    class.

    OUT gets tsne.png, tsne.npy (float32 [NUM, 2]), tsne-indices.npy (int64 [NUM], which images they are),
    result.json and the features, which serve again. See
    https://fastpsl.github.io/fastpsl/how_to/evaluate/retrieval.html; for the forms of DATA,
    https://fastpsl.github.io/fastpsl/how_to/pack_a_dataset.html.
    """

    checkpoint: tyro.conf.Positional[Annotated[Path | None, CHECKPOINT]] = None
    data: Annotated[str, tyro.conf.arg(metavar="DATA")]
    """A dataset file, a quoted glob of shards, a folder or a list of images."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The folder to write to."""
    block: Annotated[str, tyro.conf.arg(metavar="final|B1|B2..")] = "final"
    """Whose output is averaged over all positions; final is the last. Names such as fc7 serve as well."""
    num: Annotated[int, tyro.conf.arg(metavar="NUM")] = 1000
    """Images, drawn by --seed; all where there are fewer."""
    perplexity: Annotated[float, tyro.conf.arg(metavar="NUM")] = 30.0
    """About how many neighbours each point has; less than NUM."""
    seed: int = 0
    """Of the images that are drawn, of t-SNE, and of random weights."""
    random_weights: bool = False
    """Random weights of --backbone instead of CKPT."""
    extraction: ExtractionOptions = field(default_factory=ExtractionOptions)
    """How features are computed."""

    def run(self) -> None:
        """Write the map and print the figures; under torchrun every rank computes its share of the features.

        Raises:
            ValueError: Weights or data cannot be read, the block is unknown, or a number is out of range.
        """
        from fastpsl.evaluation.tsne import make_map

        with self.extraction.joined(
            self.checkpoint, data=self.data, out=self.out, seed=self.seed, random_weights=self.random_weights
        ) as (options, world):
            for line in make_map(options, world, block=self.block, num=self.num, perplexity=self.perplexity):
                print(line)
