"""`fastpsl export`: a checkpoint's backbone as a file of another library."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastpsl.models.names import ANY_BACKBONE, ExportName


@dataclass(frozen=True)
class Export:
    """Write a checkpoint's backbone alone, under the names and in the file of another library.

    What the weights expect to see goes along in OUT.json (safetensors, onnx: in the file's metadata; hf: in
    config.json and the model card). See https://fastpsl.github.io/fastpsl/how_to/weights.html#export-a-backbone.
    """

    checkpoint: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
    """A run's folder (its newest checkpoint), a checkpoint, a file of `fastpsl export`, or others' weights
    (https://fastpsl.github.io/fastpsl/how_to/weights.html#use-weights-of-other-projects): a file,
    timm/NAME[.TAG], or an address such as hf://ORG/NAME."""
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """The file to write: resnet50.pth, .pkl for Detectron2, .safetensors, .onnx; of hf, a new folder."""
    to: ExportName
    """The library that shall read it; hf is a folder for the Hugging Face Hub."""
    overwrite: bool = False
    """Replace OUT, which is refused otherwise; of hf, its three files and no others."""
    results: Annotated[Path | None, tyro.conf.arg(metavar="RUNS")] = None
    """Of hf: the folder of your evaluations; those of this checkpoint go into the model card."""
    backbone: Annotated[
        str | None,
        tyro.conf.arg(metavar="NAME", help=f"Of others' weights and of your own module: {ANY_BACKBONE}."),
    ] = None
    input_channels: Literal["RGB", "L", "Sobel", "SobelXY"] | None = None
    """For weights of other projects: the channels that they were trained on."""
    input_mean: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="MEAN...")] = None
    """For weights of other projects: mean subtracted from pixels in [0, 1], one value per channel."""
    input_std: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="STD...")] = None
    """For weights of other projects: the standard deviation that inputs were divided by."""
    input_size_px: Annotated[int, tyro.conf.arg(metavar="PX")] = 224
    """For weights of other projects: side of their crops."""

    def run(self) -> None:
        """Write the file and print what it holds."""
        from fastpsl.evaluation.options import given_input
        from fastpsl.models.export import export

        input = given_input(self.input_channels, self.input_mean, self.input_std, self.input_size_px)
        print(
            export(
                self.checkpoint,
                self.to,
                self.out,
                overwrite=self.overwrite,
                backbone=self.backbone,
                input=input,
                results=self._results(),
            )
        )

    def _results(self) -> list[dict[str, Any]]:
        if self.results is None:
            return []
        if self.to != "hf":
            raise ValueError(f"--results goes into the model card of --to hf; leave it out of --to {self.to}")
        if not self.results.is_dir():
            raise ValueError(f"--results {self.results}: no such folder; give that of your evaluations")
        from fastpsl.tables.results import index_runs

        index = index_runs(self.results)
        for path, reason in index.unreadable.items():
            warnings.warn(f"passed over: {path} ({reason})", stacklevel=2)
        return [result.record for result in index.results]
