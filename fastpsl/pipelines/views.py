"""What a view of a sample is: a crop, then operations on the device, then normalisation. Data only; no loading."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.normalise import normalise
from fastpsl.pipelines.input_record import Input

Draw = dict[str, np.ndarray]
# Of photos of 224 px, one gradient in a hundred is longer than 0.25.
_DARKER = 4


class Crop(Protocol):
    """Chooses the part of the source picture that a view shows; resized to size_px x size_px by the decoder."""

    @property
    def size_px(self) -> int: ...

    def boxes(self, keys: Keys, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """int32 [B, 4] = (top, left, height, width) in source pixels, inside the picture."""
        ...

    def check(self, min_height: int, min_width: int) -> None:
        """ValueError where a picture of this size can never be cropped so."""
        ...


class Op(Protocol):
    """An operation of a view: its draw is a pure function of the keys, its arithmetic runs on the device."""

    def draw(self, keys: Keys) -> Draw: ...

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class ViewSpec:
    """One view: `crop`, then `ops` in order, then (x - mean) / std. `mean`, `std`: a value a channel, for values in [0, 1].

    The channels are R, G, B; after Lightness there is one, after SobelXY there are two.
    """

    crop: Crop
    ops: tuple[Op, ...] = ()
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        kinds = [type(op).__name__ for op in self.ops]
        if len(set(kinds)) != len(kinds):
            raise ValueError(
                f"ViewSpec.ops holds {', '.join(kinds)}: two of one kind would share their draws; keep one of each"
            )
        if "Rotate45" in kinds:
            self._check_rotation(kinds)
        if "SobelXY" in kinds:
            self._check_gradients(kinds)
        self.input()

    def _check_rotation(self, kinds: list[str]) -> None:
        """The label of a rotation in steps of 45 degrees is true of this view only."""
        if getattr(self.crop, "base", None) != "drawn":
            raise ValueError(
                "ViewSpec.ops holds Rotate45, whose label the crop shares; give RotationCrop, base drawn, as the crop"
            )
        if "Flip" in kinds:
            raise ValueError(
                "ViewSpec.ops holds Rotate45 and Flip: turned by 45 degrees and mirrored is turned by -45; leave out Flip"
            )

    def _check_gradients(self, kinds: list[str]) -> None:
        """SobelXY needs three colours, and what it gives is neither colours nor turned and mirrored as a picture is."""
        if kinds[-1] != "SobelXY" or {"Sobel", "Lightness"} & set(kinds):
            raise ValueError(
                f"ViewSpec.ops holds {', '.join(kinds)}: SobelXY makes two channels of three colours; "
                f"put it last, without Sobel and Lightness"
            )

    @property
    def side_px(self) -> int:
        """Of what the network reads: the crop, or tiles of it."""
        tiles = [op.tile_px for op in self.ops if isinstance(op, JigsawTiles)]
        return tiles[0] if tiles else self.crop.size_px

    def draw(self, keys: Keys) -> tuple[Draw, ...]:
        """Every random number of this view's ops, aligned with `ops`; numpy, on the host."""
        return tuple(op.draw(keys) for op in self.ops)

    def apply(self, images: Tensor, draws: Sequence[Mapping[str, Tensor]], dtype: torch.dtype) -> Tensor:
        """uint8 [B, 3, S, S] (channels-last memory) and its draws → the normalised input, of `dtype`.

        The shape is the last op's: [B, 3, S, S], [B * tiles, 3, T, T] after JigsawTiles, one channel after
        Lightness, two after SobelXY.
        """
        if len(draws) != len(self.ops):
            raise ValueError(
                f"{len(draws)} draws were given for {len(self.ops)} ops; pass the draws of this view"
            )
        for op, draw in zip(self.ops, draws, strict=True):
            images = op(images, draw)
        return normalise(images, self.mean, self.std, dtype)

    def before_last_op(self, images: Tensor, draws: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """uint8 [B, 3, S, S] and its draws → the pictures as the last op gets them: what a task hides from the network by it."""
        for op, draw in zip(self.ops[:-1], draws[:-1], strict=True):
            images = op(images, draw)
        return images

    def pictures(self, inputs: Tensor) -> Tensor:
        """`apply`'s result for people: float32 [n, 3, h, w] in [0, 1] on the CPU; one channel is shown grey, gradients along x
        and y as dark lines on white."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        values = inputs.float().cpu() * std + mean
        if self.input().channels == "SobelXY":
            values = 1 - _DARKER * values.square().sum(1, keepdim=True).sqrt()
        return values.clamp(0, 1).expand(-1, 3, -1, -1)

    def input(self) -> Input:
        """What this view shows the network. Sobel counts where every sample is so: as an augmentation it is RGB."""
        channels = "RGB"
        for op in self.ops:
            kind = type(op).__name__
            if kind == "Lightness":
                channels = "L"
            elif kind == "SobelXY":
                channels = "SobelXY"
            elif kind == "Sobel" and getattr(op, "p", 0) >= 1:
                channels = "Sobel"
        return Input(channels, self.mean, self.std, self.crop.size_px)

    def input_record(self) -> dict[str, Any]:
        """`input()` as plain values; stored in checkpoints."""
        return self.input().as_dict()
