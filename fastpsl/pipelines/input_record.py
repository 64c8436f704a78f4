"""What a user of trained weights must know of their input. It travels in checkpoints and beside exported files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastpsl.kernels.sobel_xy import SOBEL_XY_STD

# What the network sees, and how many channels that is. RGB: the picture. L: CIE lightness alone. Sobel: the size of
# each colour channel's gradient. SobelXY: the grey picture's gradients along x and y, in [-0.5, 0.5].
CHANNELS = {"RGB": 3, "L": 1, "Sobel": 3, "SobelXY": 2}


@dataclass(frozen=True)
class Input:
    """channels: RGB, L, Sobel or SobelXY. mean, std: one value a channel, for values in [0, 1]. size_px: side of the crop.

    Of SobelXY, mean is (0, 0) and std twice kernels/sobel_xy.py's SOBEL_XY_STD.

    size_px is that of the view before an op cuts it: of a jigsaw's window, not of its tiles.
    """

    channels: str = "RGB"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    size_px: int = 224

    def __post_init__(self) -> None:
        if self.channels not in CHANNELS:
            raise ValueError(f"input channels {self.channels!r}: allowed are {', '.join(CHANNELS)}")
        num = CHANNELS[self.channels]
        if len(self.mean) != num or len(self.std) != num or min(self.std) <= 0:
            raise ValueError(
                f"input mean {self.mean} and std {self.std} for {self.channels}: "
                f"give {num} {'value' if num == 1 else 'values'} each, std above 0, for pixels in [0, 1]"
            )
        if max(self.mean) > 1 or max(self.std) > 1:
            raise ValueError(
                f"input mean {self.mean} and std {self.std} are for pixels up to 255: divide both by 255, pixels are in [0, 1]"
            )
        if self.size_px < 1:
            raise ValueError(f"input size {self.size_px} px: give 1 px or more")

    @property
    def num_channels(self) -> int:
        return CHANNELS[self.channels]

    @classmethod
    def usual(cls, channels: str, size_px: int) -> "Input":
        """RGB with ImageNet's mean and deviation, L about its middle, or SobelXY at DeepCluster's scale."""
        if channels == "SobelXY":
            return cls(channels, (0.0, 0.0), (SOBEL_XY_STD,) * 2, size_px)
        if channels == "L":
            return cls(channels, (0.5,), (0.25,), size_px)
        return cls(channels, size_px=size_px)

    def as_dict(self) -> dict[str, Any]:
        """Plain values: what checkpoints hold under "input"."""
        return {
            "channels": self.channels,
            "mean": list(self.mean),
            "std": list(self.std),
            "size_px": self.size_px,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Input":
        """The reverse of `as_dict`; ValueError where a value is missing or none of ours."""
        try:
            channels, size_px = str(record["channels"]), int(record["size_px"])
            mean, std = (tuple(float(value) for value in record[name]) for name in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"input record {record}: it needs channels, mean, std and size_px (no {error})"
            ) from None
        return cls(channels, mean, std, size_px)
