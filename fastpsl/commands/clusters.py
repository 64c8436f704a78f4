"""`fastpsl clusters`: what pseudo-labels are worth."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Clusters:
    """Say what pseudo-labels are worth: NMI with the true labels and others, sizes and contents of the
    classes, a run's first filters.

    OUT gets result.json (for `fastpsl table`), sizes.png, contents.png and filters.png.
    See
    https://fastpsl.github.io/fastpsl/how_to/evaluate/clusters.html; for the forms of DATA,
    https://fastpsl.github.io/fastpsl/how_to/pack_a_dataset.html.
    """

    run_or_file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(name="run", metavar="RUN|FILE.npz")]]
    """The folder of a run that made pseudo-labels (UIC, DeepCluster, IIC), or a file of labels."""
    data: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="DATA",
            help="What is labelled: a dataset file, a quoted glob of shards, a folder or a list of "
            "them. [the run's own --data; of FILE the embedded sample]",
        ),
    ] = None
    labels: Annotated[Path | None, tyro.conf.arg(metavar="FILE.npz")] = None
    """Of a run: other labels of the same images. [RUN/labels.npz]"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder to write to. [RUN/clusters; FILE-clusters]"""
    seed: int = 0
    """Seed of the shuffled labels that NMI is compared with, and of the images that are shown."""
    require_labels: bool = False
    """Stop where the data has no true labels. Without, what needs them is left out."""
    backbone: Annotated[str | None, tyro.conf.arg(metavar="FILE.py:CLASS")] = None
    """Of a run with your own module: the module, as in the training."""

    def run(self) -> None:
        """Write the report and print its lines.

        Raises:
            ValueError: Labels or data cannot be read, or do not fit each other.
        """
        from fastpsl.evaluation.cluster_report import report

        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: it must be 0 or more")
        lines = report(
            self.run_or_file,
            data=self.data,
            labels=self.labels,
            out=self.out,
            seed=self.seed,
            require_labels=self.require_labels,
            backbone=self.backbone,
        )
        print("\n".join(lines))
