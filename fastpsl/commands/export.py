"""`fastpsl export`: a checkpoint's backbone as a file of another library."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastpsl.models.names import ANY_BACKBONE


@dataclass(frozen=True)
class Export:
    """Write a checkpoint's backbone alone, under the names and in the file of another library.

    What the weights expect to see goes along in OUT.json (safetensors: in the file's metadata).
    """

    checkpoint: tyro.conf.Positional[
        Annotated[
            Path,
            tyro.conf.arg(
                metavar="CHECKPOINT",
                help="A checkpoint, a run's folder (its newest), or others' weights, of which the flags "
                "below must tell; see docs/weights.md.",
            ),
        ]
    ]
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """The file to write: resnet50.pth, .pkl for Detectron2, .safetensors."""
    to: Literal["torchvision", "timm", "detectron2", "safetensors"]
    """Who shall read it."""
    overwrite: bool = False
    """Replace OUT, which is refused otherwise."""
    backbone: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help=f"Of others' weights: {ANY_BACKBONE}.")
    ] = None
    input_channels: Annotated[
        Literal["RGB", "L", "Sobel", "SobelXY"] | None, tyro.conf.arg(metavar="RGB|L|Sobel|SobelXY")
    ] = None
    """Of others' weights: what they were trained on."""
    input_mean: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="MEAN...")] = None
    """Of others' weights: what was taken off pixels in [0, 1], a value a channel."""
    input_std: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="STD...")] = None
    """Of others' weights: what they were divided by, likewise."""
    input_size_px: Annotated[int, tyro.conf.arg(metavar="PX")] = 224
    """Of others' weights: side of their crops."""

    def run(self) -> None:
        """Write the file and print what it holds.

        Raises:
            ValueError: The weights cannot be read or exported.
        """
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
            )
        )
