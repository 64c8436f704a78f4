"""How images are read that are not what 8-bit RGB has: their range and their bands."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

AUTO = "auto"
_NUMBERS_OF_BANDS = (0, 1, 3)


@final
@dataclass(frozen=True)
class Reading:
    """The values and the bands that are taken from images of more than 8 bits or of more than three bands.

    Attributes:
        range: The values (low, high) that become 0 and 255; None for all values that the samples' bits hold.
        bands: The bands to take, one or three numbers from 1 on; none for those of the colour space.
        measures: Whether the range is still to be measured, in the images.

    Raises:
        ValueError: The range is empty or not finite, or the bands are not one or three numbers from 1 on.
    """

    range: tuple[float, float] | None = None
    bands: tuple[int, ...] = ()
    measures: bool = False

    def __post_init__(self) -> None:
        low, high = self.range or (0, 1)
        if not (low < high and math.isfinite(high - low)):
            raise ValueError(f"--range {range_text((low, high))}: LOW must be below HIGH, both finite")
        if len(self.bands) not in _NUMBERS_OF_BANDS or min(self.bands, default=1) < 1:
            given = ",".join(map(str, self.bands))
            raise _no_bands(given)

    def as_dict(self) -> dict[str, Any]:
        """Return what differs from the usual reading as plain values, as records have it."""
        values = {"range": self.range and list(self.range), "bands": list(self.bands)}
        return {name: value for name, value in values.items() if value}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Reading":
        """Build the reading from a record that holds what `as_dict` returned.

        Raises:
            ValueError: A value of the record is not allowed.
        """
        limits, bands = record.get("range"), record.get("bands") or ()
        try:
            low, high = (0.0, 1.0) if limits is None else map(float, limits)
            numbers = tuple(map(int, bands))
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"range {limits!r:.40}, bands {bands!r:.40}: give numbers") from None
        return cls(None if limits is None else (low, high), numbers)

    @classmethod
    def of(
        cls, range: "str | Sequence[float] | None" = None, bands: "str | Sequence[int] | None" = None
    ) -> "Reading":
        """Return the reading that options name.

        Args:
            range: "auto", "LOW:HIGH" or the two numbers; None for all values that the bits hold.
            bands: Numbers from 1 on, or a text of them such as "1,2,3"; None for those of the colour space.

        Raises:
            ValueError: An option is not of this form, or a value is not allowed.
        """
        limits = None
        if range is not None and range != AUTO:
            try:
                low, high = map(float, range.split(":") if isinstance(range, str) else range)
            except (TypeError, ValueError):
                raise ValueError(f"--range {range}: give auto, or LOW:HIGH, such as 0:4095") from None
            limits = low, high
        try:
            numbers = tuple(map(int, bands.split(",") if isinstance(bands, str) else bands or ()))
        except (TypeError, ValueError):
            raise _no_bands(bands) from None
        return cls(limits, numbers, range == AUTO)

    def as_options(self) -> dict[str, str]:
        """Return the values of --range and --bands by name, without those of the usual reading."""
        values = {
            "range": range_text(self.range) if self.range else "",
            "bands": ",".join(map(str, self.bands)),
        }
        return {name: value for name, value in values.items() if value}

    def in_words(self) -> str:
        """Return the options that name it, such as "--range 0:4095"; "" for the usual reading."""
        return " ".join(f"--{name} {value}" for name, value in self.as_options().items())


PLAIN = Reading()


def _no_bands(given: object) -> ValueError:
    return ValueError(f"--bands {given}: give one or three numbers, counted from 1, such as 1,2,3")


def range_text(range: tuple[float, float]) -> str:
    """Return a range as --range takes it, without a loss."""
    return ":".join(str(int(value)) if value == value // 1 else repr(value) for value in range)
