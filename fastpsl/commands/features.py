"""`fastpsl features`: one block's features of every sample of a data set, as a file."""

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastpsl.commands.extraction_options import CHECKPOINT, ExtractionOptions


@dataclass(frozen=True)
class Features:
    """Write the average-pooled features of one block, of every sample, to a .npy file: float [N, C], row i is
    sample i.

    Beside F.npy: F.json tells what they are, F-labels.npy holds the labels. An interrupted one goes on where
    it was. On several GPUs: torchrun --no-python --nproc-per-node 8 fastpsl features ...
    """

    checkpoint: tyro.conf.Positional[Annotated[Path, CHECKPOINT]]
    data: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DATA")]]
    """A dataset file, a quoted glob of shards, a folder or list of images
    (https://fastpsl.github.io/fastpsl/how_to/pack_a_dataset.html)."""
    out: Annotated[Path, tyro.conf.arg(metavar="F.npy")]
    """The file to write."""
    block: Annotated[str, tyro.conf.arg(metavar="final|B1|B2..")] = "final"
    """Whose output is averaged over all positions; final is the last. Names such as fc7 serve as well."""
    dtype: Annotated[Literal["float16", "float32"], tyro.conf.arg(metavar="float16|float32")] = "float16"
    """Of the file."""
    overwrite: bool = False
    """Replace F.npy, which is refused otherwise."""
    extraction: ExtractionOptions = field(default_factory=ExtractionOptions)
    """How they are computed."""

    def run(self) -> None:
        """Write the file and print what it holds; under torchrun every rank does its share.

        Raises:
            ValueError: Weights or data cannot be read, the block is unknown, or the file exists.
        """
        from fastpsl.evaluation.features import Extraction
        from fastpsl.pipelines.datasets.open import open_data

        if self.out.suffix != ".npy":
            raise ValueError(f"--out {self.out}: give a name that ends in .npy")
        with self.extraction.joined(self.checkpoint, data=self.data) as (options, world):
            pretrained = options.pretrained()
            with closing(open_data(self.data)) as data:
                extraction = Extraction.of(options, pretrained, data, self.block, world, self.dtype)
                written = extraction.to_file(self.out, world, overwrite=self.overwrite)
                if world.rank == 0:
                    print(written)
