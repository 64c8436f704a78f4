"""The description of a view of a sample: a crop, then operations on the device, then normalisation."""

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
# Scales the length of a gradient to darkness. In photos of 224 px one gradient in a hundred is longer than
# 0.25.
_DARKER = 4


class Crop(Protocol):
    """A choice of the part of the source image that a view shows. The decoder resizes it to a square.

    A crop may also have a method `resampling(keys)`, which returns int32 [B]: AREA, ISOTROPIC or DIAGONAL of
    fastpsl/kernels/isotropic.py for each sample. Without it, all are AREA.
    """

    @property
    def size_px(self) -> int:
        """The side of the square, in pixels."""
        ...

    def boxes(self, keys: Keys, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Choose the boxes of a batch.

        Args:
            keys: The keys of the random numbers, for B samples.
            heights: Heights of the source images in pixels, int32 [B].
            widths: Widths of the source images in pixels, int32 [B].

        Returns:
            An int32 array [B, 4] of (top, left, height, width) in source pixels, inside the images.
        """
        ...

    def check(self, min_height: int, min_width: int) -> None:
        """Check that this crop can be taken from every image of a data set.

        Args:
            min_height: The smallest height of the images, in pixels.
            min_width: The smallest width of the images, in pixels.

        Raises:
            ValueError: It can never be taken from an image of this size.
        """
        ...


class Op(Protocol):
    """An operation of a view.

    Its random numbers are a pure function of the keys. Its arithmetic runs on the device.
    """

    def draw(self, keys: Keys) -> Draw:
        """Draw the random numbers of a batch.

        Args:
            keys: The keys, for B samples.

        Returns:
            Arrays [B, ...] by name; no array for an operation without randomness.
        """
        ...

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Apply the operation to a batch, or to some images of it: each is treated by itself.

        Args:
            images: [B, C, H, W] on the device: uint8, or floating in [0, 1].
            draw: The result of `draw` as tensors on the same device.

        Returns:
            The images, in channels-last memory. Several results of one image are neighbours.
        """
        ...


@dataclass(frozen=True)
class ViewSpec:
    """One view of a sample: `crop`, then `ops` in order, then the normalisation (x - mean) / std.

    The channels are R, G, B. Lightness leaves one channel, SobelXY two.

    Attributes:
        crop: The part of the source image that the view shows.
        ops: The operations, at most one of each type.
        mean: One value per channel, for pixels in [0, 1]. The default is ImageNet's.
        std: One value per channel, for pixels in [0, 1]. The default is ImageNet's.

    Raises:
        ValueError: Two operations are of one type, an operation cannot stand where it is, or `mean` and `std`
            do not fit the channels.
    """

    crop: Crop
    ops: tuple[Op, ...] = ()
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        kinds = [type(op).__name__ for op in self.ops]
        if len(set(kinds)) != len(kinds):
            raise ValueError(
                f"ViewSpec.ops holds {', '.join(kinds)}: two of one kind would share their random numbers; "
                f"keep one of each"
            )
        if "Rotate45" in kinds:
            self._check_rotation(kinds)
        if "SobelXY" in kinds:
            self._check_gradients(kinds)
        self.input()

    def _check_rotation(self, kinds: list[str]) -> None:
        """Check that the label of a rotation in steps of 45 degrees holds for this view."""
        if getattr(self.crop, "base", None) != "drawn":
            raise ValueError(
                "ViewSpec.ops holds Rotate45, whose label the crop shares; "
                "give RotationCrop, base drawn, as the crop"
            )
        if "Flip" in kinds:
            raise ValueError(
                "ViewSpec.ops holds Rotate45 and Flip: turned by 45 degrees and mirrored is turned by -45; "
                "leave out Flip"
            )

    def _check_gradients(self, kinds: list[str]) -> None:
        """Check that SobelXY, which turns three colours into two gradients, is the last op."""
        if kinds[-1] != "SobelXY" or {"Sobel", "Lightness"} & set(kinds):
            raise ValueError(
                f"ViewSpec.ops holds {', '.join(kinds)}: SobelXY makes two channels of three colours; "
                f"put it last, without Sobel and Lightness"
            )

    @property
    def side_px(self) -> int:
        """The side of the image that the network reads: of the crop, or of one tile of it."""
        tiles = [op.tile_px for op in self.ops if isinstance(op, JigsawTiles)]
        return tiles[0] if tiles else self.crop.size_px

    def draw(self, keys: Keys) -> tuple[Draw, ...]:
        """Draw every random number of this view's operations.

        Args:
            keys: The keys, for B samples.

        Returns:
            One dict of numpy arrays [B, ...] per operation, in the order of `ops`.
        """
        return tuple(op.draw(keys) for op in self.ops)

    def apply(self, images: Tensor, draws: Sequence[Mapping[str, Tensor]], dtype: torch.dtype) -> Tensor:
        """Apply the operations and the normalisation.

        Args:
            images: uint8 [B, 3, S, S], in channels-last memory.
            draws: The draws of this view, one dict per operation.
            dtype: The floating dtype of the result.

        Returns:
            The normalised images, `dtype` [N, C, T, T]. N is B times the images that the operations make of
            one: JigsawTiles makes its tiles, AllTurns its turns, WarpPair two. T is the side of these images.
            C is 3, or 1 with Lightness, or 2 with SobelXY.

        Raises:
            ValueError: The number of draws is not the number of operations.
        """
        if len(draws) != len(self.ops):
            raise ValueError(
                f"{len(draws)} draws were given for {len(self.ops)} ops; pass the draws of this view"
            )
        for op, draw in zip(self.ops, draws, strict=True):
            images = op(images, draw)
        return normalise(images, self.mean, self.std, dtype)

    def before_last_op(self, images: Tensor, draws: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return the images as the last operation receives them, which a task may use as its target.

        Args:
            images: uint8 [B, 3, S, S].
            draws: The draws of this view, one dict per operation.

        Returns:
            The images, in the dtype that the operations give.
        """
        for op, draw in zip(self.ops[:-1], draws[:-1], strict=True):
            images = op(images, draw)
        return images

    def denormalise(self, inputs: Tensor) -> Tensor:
        """Convert what `apply` returned to images for people.

        Args:
            inputs: [n, c, h, w], normalised.

        Returns:
            Images, float32 [n, 3, h, w] in [0, 1] on the CPU. A single channel becomes grey. Gradients along
            x and y become dark lines on white.
        """
        mean, std = torch.from_numpy(np.array([self.mean, self.std], np.float32)[..., None, None])
        values = inputs.float().cpu() * std + mean
        if self.input().channels == "SobelXY":
            values = 1 - _DARKER * values.square().sum(1, keepdim=True).sqrt()
        return values.clamp(0, 1).expand(-1, 3, -1, -1)

    def input(self) -> Input:
        """Return the input that this view gives the network. Sobel counts only if every sample has it."""
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
        """Return `input()` as plain values, as checkpoints store them."""
        return self.input().as_dict()
