"""A tar's members as samples, by WebDataset's key or each image alone; and the folders that they lie in."""

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile

from fastpsl.pipelines.beton.shard import MAX_LABEL
from fastpsl.pipelines.data.dataset import MAX_FILE_BYTES, BadImage
from fastpsl.pipelines.sources.labels import class_number
from fastpsl.pipelines.sources.source import EXTENSIONS, is_image
from fastpsl.pipelines.sources.tar_stream import Damage, Member

_MAX_LABEL_BYTES = 1 << 24


@dataclass
class Group:
    """The members of one sample: names, and data where they are wanted.

    Labels are always wanted of a WebDataset, because all of them tell its classes.
    """

    key: str
    image_name: str = ""
    image: "bytes | BadImage" = b""
    label_name: str = ""
    label: "bytes | BadImage" = b""
    num_further: int = 0  # images left out, because they share the key

    def add(self, member: Member, is_wanted: bool, has_labels: bool) -> None:
        ending = _ending(member.name)
        if is_image(posixpath.basename(member.name)):
            self.num_further += bool(self.image_name)
            is_better = f".{ending}" in EXTENSIONS and f".{_ending(self.image_name)}" not in EXTENSIONS
            if not self.image_name or is_better:
                self.image_name = member.name
                self.image = _read(member, MAX_FILE_BYTES) if is_wanted else b""
        elif (last := ending.rpartition(".")[2]) == "cls" or (last == "json" and not self.label_name):
            self.label_name = member.name
            self.label = _read(member, _MAX_LABEL_BYTES) if has_labels else b""


def _ending(name: str) -> str:
    return posixpath.basename(name).partition(".")[2].lower()


def _read(member: Member, max_bytes: int) -> "bytes | BadImage":
    try:
        return member.read(max_bytes)
    except BadImage as error:
        return error


class Grouper:
    """A grouping of members into samples, by key (WebDataset) or each member alone.

    Args:
        is_web: Group by key.
        wanted: The positions of the samples that are read; others have no data.
    """

    def __init__(self, is_web: bool, wanted: range = range(0)):
        self.position = 0  # samples returned so far, Damages included
        self._is_web, self._wanted = is_web, wanted
        self._group: Group | None = None

    def add(self, item: Member | Damage) -> list[Group | Damage]:
        """Return the samples that this item completes."""
        if isinstance(item, Damage):
            # If a sample's label may have been lost, so is the sample.
            if not (item.is_last_whole and self._group and (self._group.label_name or not self._is_web)):
                self._group = None
            out = [*self.end(), item]
            self.position += 1
            return out
        folder, base = posixpath.split(item.name)
        key = posixpath.join(folder, base.partition(".")[0]) if self._is_web else item.name
        out = self.end() if self._group and self._group.key != key else []
        self._group = self._group or Group(key)
        self._group.add(item, self.position in self._wanted, self._is_web)
        return out

    def end(self) -> list[Group | Damage]:
        """Return the last sample."""
        group, self._group = self._group, None
        if group and group.image_name:
            self.position += 1
        return [group] if group else []


@dataclass
class Folders:
    """The deepest folder that all images share, and the folders directly below it.

    It does not hold a list of the images.
    """

    shared: list[str] | None = None
    below: set[str] = field(default_factory=set)
    beside: str = ""  # an image directly in the shared folder

    def add(self, name: str) -> None:
        parts = name.split("/")[:-1]
        self.shared = parts if self.shared is None else self.shared
        num_same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.shared, parts)))  # noqa: B905
        if num_same < len(self.shared):  # all earlier images lie below this one
            self.below, self.beside, self.shared = {self.shared[num_same]}, "", self.shared[:num_same]
        if len(parts) > num_same:
            self.below.add(parts[num_same])
        else:
            self.beside = self.beside or name

    def class_of(self, name: str) -> str:
        return name.split("/")[len(self.shared or ())]


def label_in(group: Group) -> object:
    """Return what a sample of a WebDataset has as its label, -1 for nothing.

    Raises:
        BadImage: The file with the label cannot be read.
    """
    if isinstance(group.label, BadImage):
        raise group.label
    if not group.label_name.endswith("json"):
        return group.label
    try:
        record = json.loads(group.label)
    except (ValueError, RecursionError):
        return ()  # which is no label
    return record.get("label", record.get("cls", -1)) if isinstance(record, dict) else -1


def label_of(group: Group, numbers: Mapping[str, int]) -> int:
    """Return the class number of a sample of a WebDataset, -1 without one.

    Args:
        group: The sample.
        numbers: The number of each class, if classes have names.

    Raises:
        BadImage: The label is no integer from -1 to 2**31 - 1, and no class of these names.
    """
    number = class_number(label_in(group), numbers)
    if number is None or not -1 <= number <= MAX_LABEL:
        raise BadImage(f"its label in {group.label_name} is no integer from -1 (none) to {MAX_LABEL}")
    return number
