"""Views: which crops of an image a task wants, the operations on them, and the normalised input."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop, Squashed, Where
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import SOBEL_XY_STD, Sobel, SobelXY
from fastpsl.kernels.geometry import Flip, Shift
from fastpsl.kernels.lab import Lightness
from fastpsl.kernels.normalise import normalise, out_shape
from fastpsl.pipelines.interface.reading import PLAIN, Reading

# The channels that the network sees, and their number. RGB: the image. L: CIE lightness alone. Sobel: the
# magnitude of each colour channel's gradient. SobelXY: the grey image's gradients along x and y, in [-0.5,
# 0.5].
CHANNELS = {"RGB": 3, "L": 1, "Sobel": 3, "SobelXY": 2}
MOST_CHANNELS = 1_000  # satellites' images have some hundreds
LEAST_STD = 1e-4  # half precision has no number for a pixel that is divided by less

_GRADIENTS = "gx = [1 2 1]^T [-1 0 1] / 8, gy = [-1 0 1]^T [1 2 1] / 8, the border repeated"
_IN_WORDS = {
    "RGB": "RGB in [0, 1]",
    "L": "CIE lightness L* / 100 in [0, 1], one channel",
    "Sobel": f"sqrt(gx^2 + gy^2) of each channel of RGB in [0, 1] ({_GRADIENTS})",
    "SobelXY": f"gx and gy of (R + G + B) / 3 in [0, 1], two channels ({_GRADIENTS})",
}


@dataclass(frozen=True)
class Input:
    """The input that a network expects.

    Attributes:
        channels: RGB, L, Sobel or SobelXY. An op from elsewhere may make others: their name has a dot, such
            as "my_ops.Edges".
        mean: One value per channel, for values in [0, 1]; (0, 0) for SobelXY.
        std: One value per channel, for values in [0, 1]; SOBEL_XY_STD of kernels/filters.py for both of
            SobelXY.
        size_px: The side of the crop before an op cuts it: of a jigsaw, the side of the window and not of its
            tiles.
        reading: The range and the bands of images of more than 8 bits or more than three bands.
    """

    channels: str = "RGB"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    size_px: int = 224
    reading: Reading = PLAIN

    def __post_init__(self) -> None:
        if self.channels not in CHANNELS and "." not in self.channels:
            raise ValueError(f"input channels {self.channels!r}: allowed are {', '.join(CHANNELS)}")
        self.check_num(self.num_channels)

    def check_num(self, num: int) -> None:
        """Check that there is a mean and a std for each of `num` channels, in the range of pixels."""
        most = max(num, len(self.mean), len(self.std))
        if most > MOST_CHANNELS:
            raise ValueError(f"input of {most:,} channels: give at most {MOST_CHANNELS:,}")
        are_finite = all(map(math.isfinite, (*self.mean, *self.std)))
        are_as_many = len(self.mean) == len(self.std) == num
        if not are_as_many or not are_finite or min(self.std) <= LEAST_STD or min(self.mean) < -1:
            raise ValueError(
                f"input mean {self.mean} and std {self.std} for {self.channels}: "
                f"give {num} {'value' if num == 1 else 'values'} each, std above {LEAST_STD:g}, for pixels "
                "in [0, 1]"
            )
        if max(self.mean) > 1 or max(self.std) > 1:
            raise ValueError(
                f"input mean {self.mean} and std {self.std} are for pixels up to 255: "
                f"divide both by 255, pixels are in [0, 1]"
            )
        if self.size_px < 1:
            raise ValueError(f"input size {self.size_px} px: give 1 px or more")

    @property
    def num_channels(self) -> int:
        return CHANNELS.get(self.channels, max(len(self.mean), 1))

    @classmethod
    def usual(cls, channels: str, size_px: int) -> "Input":
        """Return RGB with ImageNet's statistics, L about its middle, or SobelXY at DeepCluster's scale."""
        if channels == "SobelXY":
            return cls(channels, (0.0, 0.0), (SOBEL_XY_STD,) * 2, size_px)
        if channels == "L":
            return cls(channels, (0.5,), (0.25,), size_px)
        return cls(channels, size_px=size_px)

    def in_words(self) -> str:
        """Return in one line how to make the network's input of an image, for files that others read."""
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        channels = _IN_WORDS.get(self.channels, self.channels)
        if self.reading.bands:
            channels += f" of the image's bands {' '.join(map(str, self.reading.bands))}"
        if self.reading.range:
            low, high = self.reading.range
            channels += (
                f", for values of more than 8 bits clipped to {low:g} to {high:g} and scaled to 0 to 1"
            )
        return f"{channels}, minus mean {mean}, divided by std {std}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as checkpoints hold them under "input"."""
        record = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        del record["reading"]
        return record | self.reading.as_dict()

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Input":
        """Build the input from the record that `as_dict` returned.

        Raises:
            ValueError: A value of the record is missing or not allowed.
        """
        try:
            channels, size_px = str(record["channels"]), int(record["size_px"])
            mean, std = (tuple(float(value) for value in record[name]) for name in ("mean", "std"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"input record {record}: it needs channels, mean, std and size_px ({error!r})"
            ) from None
        return cls(channels, mean, std, size_px, Reading.from_dict(record))


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

    Its random numbers are a pure function of the keys. Its arithmetic runs on the device. It may also have
    `channels`, the name of the channels that it makes, as in `Input`; None if only some samples get them.
    `out_shape(shape)` returns the shape of its result, (N, C, H, W), if it differs from that of its images.
    It raises ValueError for a shape that the operation refuses. `check_view(crop, ops)` raises ValueError if
    the operation cannot stand in a view of these.
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

    The channels are R, G, B, or those that an operation makes: Lightness leaves one channel, SobelXY two.

    Attributes:
        crop: The part of the source image that the view shows.
        ops: The operations, at most one of each type.
        mean: One value per channel, for pixels in [0, 1]. The default is ImageNet's.
        std: One value per channel, for pixels in [0, 1]. The default is ImageNet's.
        follows: The number of the view, among those of a sample, whose random numbers this one has, too. Its
            crop then shows the same place, if it differs in size alone. It is for another network than the
            backbone, so a stage leaves its size and its statistics. None for random numbers of its own.

    Raises:
        ValueError: Two operations are of one type, an operation cannot stand where it is, or `mean` and `std`
            do not fit the channels.
    """

    crop: Crop
    ops: tuple[Op, ...] = ()
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    follows: int | None = None

    def __post_init__(self) -> None:
        if len({type(op) for op in self.ops}) != len(self.ops):
            raise ValueError(
                f"ViewSpec.ops holds {', '.join(type(op).__name__ for op in self.ops)}: "
                f"two of one kind would share their random numbers; keep one of each"
            )
        for op in self.ops:
            if hasattr(op, "check_view"):
                op.check_view(self.crop, self.ops)
        self.input().check_num(self._shape[1])

    @property
    def _shape(self) -> tuple[int, ...]:
        """The shape that the operations make of one image."""
        return out_shape(self.ops, (1, 3, self.crop.size_px, self.crop.size_px))

    @property
    def side_px(self) -> int:
        """The side of the image that the network reads: of the crop, or of what an operation makes of it."""
        return self._shape[-1]

    def resized(self, share: float) -> "ViewSpec":
        """Return this view at another size: all lengths of its crop and its operations times `share`.

        Lengths are whole pixels: the fields of dataclasses whose names end in `_px`. What a crop shows of an
        image stays, as its draws do. A blur keeps its sigma, and its number of taps stays odd.

        Args:
            share: The new side divided by this view's, above 0.

        Returns:
            The view; an equal one if `share` is 1, or if it follows another.

        Raises:
            ValueError: The crop is no such dataclass, or does not allow the new lengths.
        """
        if self.follows is not None:
            return self
        crop = _resized(self.crop, share)
        if crop.size_px != round(share * self.crop.size_px):
            raise ValueError(
                f"{type(crop).__name__} has one size: crops of several are dataclasses with size_px"
            )
        return replace(self, crop=crop, ops=tuple(_resized(op, share) for op in self.ops))

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
            one: JigsawTiles makes its tiles, AllTurns its turns, WarpPair two. T is `side_px`. C is 3, or 1
            with Lightness, or 2 with SobelXY.

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
            Images, float32 [n, 3, h, w] in [0, 1] on the CPU. A single channel becomes grey. Two
            channels are the gradients along x and y, and become dark lines on white.
        """
        mean, std = torch.from_numpy(np.array([self.mean, self.std], np.float32)[..., None, None])
        values = inputs.float().cpu() * std + mean
        if len(self.mean) not in (1, 3):
            values = 1 - _DARKER * values.square().sum(1, keepdim=True).sqrt()
        return values.clamp(0, 1).expand(-1, 3, -1, -1)

    def input(self) -> Input:
        """Return the input that this view gives the network. Sobel counts only if every sample has it."""
        names = [getattr(op, "channels", None) for op in self.ops]
        channels = next(filter(None, reversed(names)), "RGB")
        return Input(channels, self.mean, self.std, self.crop.size_px)

    def seen_by(self, input: Input) -> "ViewSpec":
        """Return the view with the mean and std of the backbone's input, if it shows the same channels."""
        is_its = self.follows is None and self.input().channels == input.channels
        return replace(self, mean=input.mean, std=input.std) if is_its else self

    def input_record(self) -> dict[str, Any]:
        """Return `input()` as plain values, as checkpoints store them."""
        return self.input().as_dict()


def require_views(views: object) -> tuple[ViewSpec, ...]:
    """Return the views that a program gives.

    Raises:
        ValueError: They are none, or something else is among them, such as another library's transform.
    """
    is_list = isinstance(views, Sequence | Iterator) and not isinstance(views, str)
    given: tuple[Any, ...] = tuple(views) if is_list else (views,)  # type: ignore[arg-type]
    others = [each for each in given if not isinstance(each, ViewSpec)]
    if is_list and given and not others:
        return given
    what = "one ViewSpec" if given else "empty"
    if others:
        kind, name = type(others[0]).__name__, getattr(others[0], "__name__", "")
        what = f"{'a list with ' * is_list}{kind} {name}".rstrip()
    raise ValueError(
        f"views is {what}: it takes a list of fastpsl.ViewSpec, such as fastpsl.views.simclr(); transforms "
        "of other libraries go on the batch: https://fastpsl.github.io/fastpsl/how_to/drop_in_loaders.html"
    )


_Part = TypeVar("_Part")


def drawn_as(views: Sequence[ViewSpec]) -> list[int]:
    """Return for each view of a sample the number that its random numbers are keyed by (`Keys.view`).

    Raises:
        ValueError: A view follows one that is not there, or that follows another.
    """
    for view in views:
        if view.follows is not None and view.follows not in range(len(views)):
            raise ValueError(f"ViewSpec.follows {view.follows}: there are views 0 to {len(views) - 1}")
        if view.follows is not None and views[view.follows].follows is not None:
            raise ValueError(f"ViewSpec.follows {view.follows}: it follows another view itself")
    return [number if view.follows is None else view.follows for number, view in enumerate(views)]


def _resized(part: _Part, share: float) -> _Part:
    """Return a crop or an operation with all its lengths in pixels times `share`."""
    if not is_dataclass(part) or isinstance(part, type) or share == 1:
        return part
    names = (each.name for each in fields(part) if each.init and each.name.endswith("_px"))
    lengths = {name: share * getattr(part, name) for name in names}
    if "kernel_px" in lengths:  # the nearest odd number
        return replace(part, kernel_px=2 * round((lengths["kernel_px"] - 1) / 2) + 1)
    return replace(part, **{name: round(length) for name, length in lengths.items()})


TrainCrop = Where | Literal["random_resized", "padded"]
# ImageNet's usual test view has the shorter side at 256 and shows the middle 224; other sizes keep the
# proportion.
SHORTER_OF_SIZE = 256 / 224


def train_view(input: Input, size_px: int, crop: TrainCrop = "random_resized") -> ViewSpec:
    """Return the view to train on: a crop, a random flip, then the channels of the weights' input record.

    Args:
        input: The input that the weights expect.
        size_px: The side of the view.
        crop: "random_resized", a place in the image after its shorter side is resized, or "padded". "padded"
            is for small images: the whole middle square, shifted by up to an eighth of its side (`Shift`: 4
            of 32 px).

    Returns:
        The view.
    """
    box: Crop = RandomResizedCrop(size_px)
    shift: tuple[Op, ...] = ()
    if crop == "padded":
        box, shift = ShorterSideCrop(size_px, size_px, "center"), (Shift(size_px // 8),)
    elif crop != "random_resized":
        box = _shorter_side(size_px, crop)
    return ViewSpec(box, (*shift, Flip(), *_channels(input)), input.mean, input.std)


def center_view(input: Input, size_px: int, whole: bool = False) -> ViewSpec:
    """Return the view that shows the middle of the image, with the channels of the weights' input record.

    Args:
        input: The input that the weights expect.
        size_px: The side of the view.
        whole: Whether the shorter side becomes `size_px`, as is usual for images of 32 px. If not, it becomes
            `size_px` * 256 / 224.

    Returns:
        The view.
    """
    crop = ShorterSideCrop(size_px, size_px, "center") if whole else _shorter_side(size_px, "center")
    return ViewSpec(crop, _channels(input), input.mean, input.std)


def squashed_view(input: Input, size_px: int) -> ViewSpec:
    """Return the view that squeezes the whole image into a square of `size_px`."""
    return ViewSpec(Squashed(size_px), _channels(input), input.mean, input.std)


def ten_crop_views(input: Input, size_px: int) -> tuple[ViewSpec, ...]:
    """Return torchvision's TenCrop: the middle, the four corners, and the same five mirrored.

    The shorter side is at `size_px` * 256 / 224. The flip comes before `_channels`, because mirroring an
    image changes the sign of its horizontal gradient.
    """
    return tuple(
        ViewSpec(_shorter_side(size_px, where), (*flip, *_channels(input)), input.mean, input.std)
        for flip in ((), (Flip(p=1.0),))
        for where in ("center", "top_left", "top_right", "bottom_left", "bottom_right")
    )


def _shorter_side(size_px: int, where: Where) -> ShorterSideCrop:
    return ShorterSideCrop(round(size_px * SHORTER_OF_SIZE), size_px, where)


def _channels(input: Input) -> tuple[Op, ...]:
    """Return the op that computes the input's channels from an image's."""
    ops: dict[str, tuple[Op, ...]] = {
        "RGB": (), "L": (Lightness(),), "Sobel": (Sobel(p=1.0),), "SobelXY": (SobelXY(),)
    }  # fmt: skip
    if input.channels not in ops:
        raise ValueError(
            f"input channels {input.channels!r}: no op of fastpsl makes them; "
            f"give views with the op that does"
        )
    return ops[input.channels]


def short_side_px(views: Sequence[ViewSpec]) -> int | None:
    """Return the shorter side, in px, that suffices for all views, or None if a crop does not tell."""
    needed = []
    for view in views:
        if isinstance(view.crop, ShorterSideCrop):
            needed.append(view.crop.shorter_px)
        elif isinstance(view.crop, RandomResizedCrop):
            needed.append(round(view.crop.size_px * SHORTER_OF_SIZE))
        else:
            return None
    return max(needed, default=None)
