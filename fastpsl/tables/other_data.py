"""Data that evaluations read in the place of their table's: what it is called, how recipes take it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class OtherData:
    """flags: of the recipe, a path each. stands_for: what commands name where the user gives no path."""

    title: str
    flags: tuple[str, ...]
    stands_for: tuple[str, ...]


OTHER_DATA = {
    "voc": OtherData("Pascal VOC", ("data",), ("VOCdevkit",)),
    "places205": OtherData("Places205", ("data", "val"), ("PLACES-TRAIN", "PLACES-VAL")),
    "inat18": OtherData("iNaturalist 2018", ("data", "val"), ("INAT-TRAIN", "INAT-VAL")),
    "mini_imagenet": OtherData("miniImageNet", ("data",), ("MINI-IMAGENET-TEST",)),
}


def flag_of(name: str) -> str:
    """The flag of `fastpsl table` that names the data."""
    return f"--{name.replace('_', '-')}"


def inputs(names: tuple[str, ...], given: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Flag of the recipe → path, of all the data that an evaluation reads."""
    paths: dict[str, str] = {}
    for name in names:
        data = OTHER_DATA[name]
        paths |= zip(data.flags, given.get(name, data.stands_for), strict=True)
    return paths
