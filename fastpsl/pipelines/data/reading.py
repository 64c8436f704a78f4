"""How the images of a data set are read where they are not 8-bit RGB: their range and their bands."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Reading:
    """The values and the bands that are taken from images of more than 8 bits or of more than three bands.

    Attributes:
        range: The values (low, high) that become 0 and 255; None for all values that the samples' bits hold.
        bands: The bands to take, one or three numbers from 1 on; none for those of the colour space.
    """

    range: tuple[float, float] | None = None
    bands: tuple[int, ...] = ()


PLAIN = Reading()
