"""The input that trained weights expect, as checkpoints and exported files store it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastpsl.kernels.sobel_xy import SOBEL_XY_STD

# The channels that the network sees, and their number. RGB: the image. L: CIE lightness alone. Sobel: the
# magnitude of each colour channel's gradient. SobelXY: the grey image's gradients along x and y, in [-0.5,
# 0.5].
CHANNELS = {"RGB": 3, "L": 1, "Sobel": 3, "SobelXY": 2}

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
        channels: RGB, L, Sobel or SobelXY.
        mean: One value per channel, for values in [0, 1]; (0, 0) for SobelXY.
        std: One value per channel, for values in [0, 1]; SOBEL_XY_STD of kernels/sobel_xy.py for both of
            SobelXY.
        size_px: The side of the crop before an op cuts it: of a jigsaw, the side of the window and not of its
            tiles.
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
                f"input mean {self.mean} and std {self.std} are for pixels up to 255: "
                f"divide both by 255, pixels are in [0, 1]"
            )
        if self.size_px < 1:
            raise ValueError(f"input size {self.size_px} px: give 1 px or more")

    @property
    def num_channels(self) -> int:
        return CHANNELS[self.channels]

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
        return f"{_IN_WORDS[self.channels]}, minus mean {mean}, divided by std {std}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as checkpoints hold them under "input"."""
        return {
            "channels": self.channels,
            "mean": list(self.mean),
            "std": list(self.std),
            "size_px": self.size_px,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Input":
        """Build the input from the record that `as_dict` returned.

        Raises:
            ValueError: A value of the record is missing or not allowed.
        """
        try:
            channels, size_px = str(record["channels"]), int(record["size_px"])
            mean, std = (tuple(float(value) for value in record[name]) for name in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"input record {record}: it needs channels, mean, std and size_px ({error!r})"
            ) from None
        return cls(channels, mean, std, size_px)
