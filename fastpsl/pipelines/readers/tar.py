"""Tars of images, read as streams and never unpacked: WebDataset shards, and tars of class folders.

A tar is a WebDataset if .cls or .json files share the key of images. The key is everything before the first
dot of a base name, and neighbours with one key are one sample. Its image is the file with an image's ending
(a.jpg before a.mask.png). Its label is the number or name in .cls, else "label" or "cls" in .json, else -1.

Of a file that a tar holds twice, as `tar -r` and `tar -u` leave it, the later one counts, as if unpacked.
What a tar holds of a WebDataset's sample then belongs together wherever it lies.

Any other tar is read as if it were unpacked. The class is the top folder, below the folders that all images
share; the label is -1 without folders. A tar within a tar is a folder (ImageNet's n01440764.tar). What is
hidden or left by other programs is left out.

The order is that of the tars' names and, in each, of its members. Tars are read twice, to count and to yield.
The first time, uncompressed ones are only skimmed. Those that hold a file twice are read more often.
"""

import bz2
import contextlib
import gzip
import json
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, takewhile
from random import Random
from typing import IO, NamedTuple, cast

from fastpsl.console.words import number_of
from fastpsl.files.leftovers import is_leftover
from fastpsl.files.remote.failures import RemoteDataError
from fastpsl.files.system_errors import input_error, raise_of_the_system
from fastpsl.pipelines.beton.file import MAX_PAGE_BYTES
from fastpsl.pipelines.beton.shard import MAX_LABEL
from fastpsl.pipelines.interface.dataset import MAX_FILE_BYTES, BadImage, is_of_one_file
from fastpsl.pipelines.interface.source import (
    EXTENSIONS,
    LEFTOVERS,
    OTHERS,
    REPLACED,
    SAME_KEY,
    Counted,
    Picks,
    Sample,
    Tally,
    changed,
    is_image,
)
from fastpsl.pipelines.readers.folder import PARTS, SourceFile, open_file, size_of, tar_parts_error
from fastpsl.pipelines.readers.labels import Census, class_number

# The errors of reading a damaged tar. ValueError and OverflowError come from senseless numbers and names,
# RuntimeError from bz2 when it is read again after an error.
_DAMAGE = (
    tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RuntimeError, zlib.error, lzma.LZMAError
)  # fmt: skip
_COMPRESSED: dict[bytes, Callable[[IO[bytes]], object]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_BLOCK_BYTES = 1 << 16


class Member(NamedTuple):
    """A file in a tar.

    `read(max_bytes)` returns its bytes or raises BadImage; it works until the next member is requested.
    """

    name: str  # relative to the root, without "." and ".."
    read: Callable[[int], bytes]


class Damage(NamedTuple):
    """The last item of a damaged tar, or of a damaged tar within it."""

    name: str  # the tar
    reason: str
    is_no_tar: bool = False  # not even the first header could be read
    is_last_whole: bool = True  # the last member before it is sound


@dataclass
class Repeats:
    """The files that a tar holds more than once."""

    last: dict[str, int] = field(default_factory=dict)  # where the last one of each name begins
    _seen: set[int] = field(default_factory=set)  # hashes; names that share one by chance do no harm

    def note(self, name: str, place: int) -> bool:
        """Take notice of a file at its place in the tar, and return True."""
        number = hash(name)
        if number in self._seen:
            self.last[name] = place
        self._seen.add(number)
        return True

    def is_last(self, name: str, place: int) -> bool:
        """Return whether no file of this name follows."""
        return self.last.get(name, place) == place


def is_left_over(name: str) -> bool:
    """Return whether a member is hidden or left by another program, or lies in a folder that is."""
    return any(map(is_leftover, name.split("/")))


@contextlib.contextmanager
def open_tar(path: SourceFile) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """Open a tar, compressed or not."""
    try:
        raw = open_file(path)
        head = raw.read(6)
        raw.seek(0)
    except OSError as error:
        raise input_error(path, error) from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(raw)
        stream: IO[bytes] = raw
        for magic, opener in _COMPRESSED.items():
            if head.startswith(magic):
                stream = stack.enter_context(contextlib.closing(cast(IO[bytes], opener(raw))))
        yield stream, raw.tell


def tar_members(
    stream: IO[bytes],
    tar_name: str,
    is_taken: Callable[[str, int], bool] = lambda name, place: True,
    folder: str = "",
    start: int = 0,
) -> Iterator[Member | Damage]:
    """Yield the files and links of a tar in order, and at last a Damage where it is damaged.

    Members of a tar within it appear in a folder with its name. `is_taken` tells whether to look at a file or
    such a tar, by its name and place. `start` is where the stream begins in the outer tar.
    """
    try:
        tar = tarfile.TarFile(fileobj=stream, encoding="utf-8")
        # Not next(), because Python 3.10 raises an error for a tar without members.
        info: tarfile.TarInfo | None = tar.firstmember  # type: ignore[attr-defined]
    except _DAMAGE as error:
        yield Damage(tar_name, _reason(error, tar_name), is_no_tar=True)
        return
    while info:
        name = _name_in(folder, info.name)
        # A second mention of a file in one command of tar is a hard link to itself.
        is_file = info.isreg() or info.issym() or (info.islnk() and _name_in(folder, info.linkname) != name)
        is_file = is_file and is_taken(name, start + info.offset)
        is_inner = is_file and info.isreg() and name.lower().endswith(".tar")
        is_inner = is_inner and not folder and not is_left_over(name)
        if is_inner:
            try:
                inner = tar.extractfile(info)
                assert inner is not None
                yield from tar_members(
                    inner, f"{tar_name}/{name}", is_taken, name[: -len(".tar")], info.offset_data
                )
            except _DAMAGE as error:
                yield Damage(tar_name, _reason(error, tar_name))
                return
        is_member = is_file and not is_inner
        if is_member:
            yield Member(name, _reader(tar, info))
        end = tar.offset
        try:
            if stream.tell() != end:
                stream.seek(end - 1)
                if not stream.read(1):
                    raise EOFError
        except _DAMAGE as error:
            reason = f"{_reason(error, tar_name)} at {name}, it and what follows is lost"
            yield Damage(tar_name, reason, is_last_whole=not is_member)
            return
        try:
            # Not next(), because it keeps every member, and takes a damaged header for the end.
            info = tarfile.TarInfo.fromtarfile(tar)
            if tar.offset <= end or info.size < 0:
                raise tarfile.ReadError  # a size of nonsense
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            info = None
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            yield Damage(tar_name, f"is cut short after {name}: no end mark follows")
            return
        except _DAMAGE as error:
            yield Damage(tar_name, f"{_reason(error, tar_name)} after {name}, what follows is lost")
            return
    try:  # read to the very end, because compressed files have checksums there
        while block := stream.read(_BLOCK_BYTES):
            if block.count(0) < len(block):
                yield Damage(
                    tar_name, "goes on after its end mark (joined by cat?); give the tars one by one"
                )
                return
    except _DAMAGE as error:
        yield Damage(tar_name, f"{_reason(error, tar_name)} at its end, an image may be damaged")


def _name_in(folder: str, name: str) -> str:
    return posixpath.join(folder, posixpath.normpath("/" + name).lstrip("/"))


def _reader(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[int], bytes]:
    def read(max_bytes: int = MAX_PAGE_BYTES) -> bytes:
        if not info.isreg():
            raise BadImage(
                "a link within a tar is not followed; tar --dereference --hard-dereference makes one without"
            )
        if info.size > max_bytes:
            raise BadImage(f"{info.size:,} bytes; at most {max_bytes:,} are taken")
        try:
            file = tar.extractfile(info)
            assert file is not None
            return file.read()
        except _DAMAGE as error:  # if nothing follows, a Damage comes next
            if isinstance(error, OSError) and is_of_one_file(error):
                raise BadImage(f"cannot be read ({error.strerror})") from None
            raise BadImage(_reason(error, info.name)) from None

    return read


def _reason(error: BaseException, tar_name: str) -> str:
    """Return what is damaged; raise what tells of the network or the system, as the tar may be sound."""
    if isinstance(error, RemoteDataError):
        raise error
    raise_of_the_system(tar_name, error)
    ends_early = ("unexpected end of data", "truncated header", "empty header")
    if isinstance(error, EOFError) or str(error) in ends_early:
        return "is cut short"
    if isinstance(error, (OSError, RuntimeError, zlib.error, lzma.LZMAError)):
        return "its compression is damaged"
    return "a header is damaged"


_MAX_LABEL_BYTES = 1 << 24


@dataclass
class Group:
    """The members of one sample: names, and data where they are wanted.

    Labels are always wanted of a WebDataset, because all of them tell its classes.
    """

    key: str
    image_name: str = ""
    image: bytes | BadImage = b""
    label_name: str = ""
    label: bytes | BadImage = b""
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


def _key(name: str) -> str:
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _ending(name: str) -> str:
    return posixpath.basename(name).partition(".")[2].lower()


def _read(member: Member, max_bytes: int) -> bytes | BadImage:
    try:
        return member.read(max_bytes)
    except BadImage as error:
        return error


class Grouper:
    """A grouping of members into samples, by key (WebDataset) or each member alone.

    `scattered` has samples by key whose members are no neighbours, without their images.
    """

    def __init__(self, is_web: bool, scattered: Mapping[str, Group], wanted: range = range(0)):
        self.position = 0  # samples returned so far, Damages included
        self._is_web, self._scattered, self._wanted = is_web, scattered, wanted
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
        key = _key(item.name) if self._is_web else item.name
        out = self.end() if self._group and self._group.key != key else []
        is_wanted = self.position in self._wanted
        if self._is_web and (group := self._scattered.get(key)):
            if item.name == group.image_name:
                self._group = replace(group, image=_read(item, MAX_FILE_BYTES) if is_wanted else b"")
            return out
        self._group = self._group or Group(key)
        self._group.add(item, is_wanted, self._is_web)
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
    """Return the label of a WebDataset's sample as it is written, -1 for none."""
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
    """Return the class number of a sample of a WebDataset, -1 without one."""
    number = class_number(label_in(group), numbers)
    if number is None or not -1 <= number <= MAX_LABEL:
        raise BadImage(f"its label in {group.label_name} is no integer from -1 (none) to {MAX_LABEL}")
    return number


@dataclass
class TarSource(Counted):
    """A list of tars of images; damages are counted, too. See the module's docstring."""

    paths: list[SourceFile]
    folders: Folders
    repeats: list[Repeats]  # of each tar
    is_web: bool

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Yield this shard's samples in order; damaged ones carry the reason."""
        return self._samples_of(self.parts(skip))

    def picks(self, num: int, random: Random) -> Picks:
        """Choose the first images, of some tars at random where there are several."""
        parts, each = self.shuffled(num, random)
        num_tars = min(len(parts), -(-num // each))
        of_tars = f" of {num_tars} tars picked at random" if len(parts) > 1 else ""
        samples = self._samples_of((i, positions[:each]) for i, positions in parts)
        return Picks(f"the first{of_tars}", False, samples)

    def _samples_of(self, parts: Iterable[tuple[int, range]]) -> Iterator[Sample]:
        for i, positions in parts:
            yield from self._samples_of_tar(i, positions, self.numbers)

    def _samples_of_tar(self, i: int, positions: range, labels: dict[str, int]) -> Iterator[Sample]:
        path, count, position = self.paths[i], self.counts[i], 0
        scattered = _scattered(path, self.repeats[i]) if self.is_web else {}
        for item in _groups(path, Grouper(self.is_web, scattered, positions), self.repeats[i]):
            if isinstance(item, Damage):
                sample = Sample(item.name, BadImage(item.reason), -1)
            elif item.image_name:
                sample = self._sample(path, item, labels)
            else:
                continue
            if position in positions:
                yield sample
            position += 1
            if position == positions.stop < count:
                return  # the rest belongs to other shards
        if position != count:
            raise changed(path, count, position)

    def _sample(self, path: SourceFile, group: Group, labels: dict[str, int]) -> Sample:
        name = f"{path.name}/{group.image_name}"
        if isinstance(group.image, BadImage):
            return Sample(name, group.image, -1)
        if self.is_web:
            try:
                return Sample(name, group.image, label_of(group, labels))
            except BadImage as error:
                return Sample(name, error, -1)
        label = labels.get(self.folders.class_of(group.image_name)) if labels else -1
        if label is None:
            raise ValueError(f"{path}: has changed since it was counted; write again when nothing changes it")
        return Sample(name, group.image, label)


def _groups(path: SourceFile, grouper: Grouper, repeats: Repeats) -> Iterator[Group | Damage]:
    """Yield the samples that `grouper` makes of a tar's members."""
    with open_tar(path) as (stream, _):
        for item in tar_members(stream, path.name, repeats.is_last):
            if isinstance(item, Damage) or not is_left_over(item.name):
                yield from grouper.add(item)
        yield from grouper.end()


def _scattered(path: SourceFile, repeats: Repeats) -> dict[str, Group]:
    """Return the samples of a WebDataset that have a file twice in their tar, by key, without images."""
    groups = {key: Group(key) for key in map(_key, repeats.last)}
    if groups:
        with open_tar(path) as (stream, _):
            for item in tar_members(stream, path.name, repeats.is_last):
                if isinstance(item, Member) and (group := groups.get(_key(item.name))):
                    group.add(item, is_wanted=False, has_labels=True)
    return groups


@dataclass
class _Count:
    """The result of the first pass: of all tars, or of one before it is added."""

    folders: Folders = field(default_factory=Folders)
    num_by_key: list[int] = field(default_factory=list)  # samples of each tar as WebDataset
    num_one_by_one: list[int] = field(default_factory=list)  # samples of each tar with every image alone
    repeats: list[Repeats] = field(default_factory=list)  # of each tar
    num_labelled: int = 0
    num_unlabelled: int = 0
    census: Census = field(default_factory=Census)
    left_out: Tally = field(default_factory=Tally)
    first_damage: str = ""

    def add(self, path: SourceFile, on_bytes: Callable[[int], None]) -> None:
        repeats = Repeats()
        one = _Count(self.folders)
        one._read(path, on_bytes, repeats.note, {})
        if repeats.last:
            one = _Count(self.folders)

            def is_taken(name: str, place: int) -> bool:
                is_last = repeats.is_last(name, place)
                if not is_last and not is_left_over(name):
                    one.left_out.add(REPLACED, name)
                return is_last

            one._read(path, on_bytes, is_taken, _scattered(path, repeats))
        self.num_by_key += one.num_by_key
        self.num_one_by_one += one.num_one_by_one
        self.repeats.append(Repeats(repeats.last))
        self.num_labelled += one.num_labelled
        self.num_unlabelled += one.num_unlabelled
        self.census.update(one.census)
        self.left_out.update(one.left_out)
        self.first_damage = self.first_damage or one.first_damage

    def _read(
        self,
        path: SourceFile,
        on_bytes: Callable[[int], None],
        is_taken: Callable[[str, int], bool],
        scattered: Mapping[str, Group],
    ) -> None:
        by_key, one_by_one = Grouper(True, scattered), Grouper(False, {})
        with open_tar(path) as (stream, tell):
            for item in tar_members(stream, path.name, is_taken):
                if isinstance(item, Damage) and item.is_no_tar and item.name == path.name:
                    raise ValueError(
                        f"{path}: is no tar, or damaged at its beginning ({item.reason}); "
                        f"copy it again, or give a tar of images"
                    )
                if isinstance(item, Damage):
                    self.first_damage = self.first_damage or f"{item.name} {item.reason}"
                elif is_left_over(item.name):
                    self.left_out.add(LEFTOVERS, item.name)
                    continue
                self._add(by_key.add(item), one_by_one.add(item))
                on_bytes(tell())
            self._add(by_key.end(), one_by_one.end())
        self.num_by_key.append(by_key.position)
        self.num_one_by_one.append(one_by_one.position)

    def _add(self, samples: list[Group | Damage], images: list[Group | Damage]) -> None:
        for sample in samples:
            if isinstance(sample, Group) and sample.image_name:
                self.num_labelled += bool(sample.label_name)
                self.num_unlabelled += not sample.label_name
                self.left_out.counts[SAME_KEY] += sample.num_further
                with contextlib.suppress(BadImage):  # listed when it is read
                    self.census.add(label_in(sample))
        for image in images:
            if isinstance(image, Group) and image.image_name:
                self.folders.add(image.image_name)
            elif isinstance(image, Group):
                self.left_out.add(OTHERS, image.key)


def tar_source(
    paths: Sequence[SourceFile],
    shard: tuple[int, int] = (0, 1),
    on_progress: Callable[[int, int], None] | None = None,
    are_classes: bool = False,
) -> TarSource:
    """Count the images in tars.

    `shard` (i, n) keeps the i-th of n runs of neighbours. `on_progress` is called with (MB done, MB in all).
    With `are_classes`, folders are classes even where they are called train or test.
    """
    paths = sorted(paths, key=str)
    try:
        sizes = [size_of(path) for path in paths]
    except OSError as error:
        raise input_error(error.filename, error) from None
    count = _Count()
    for path, start in zip(paths, accumulate(sizes, initial=0), strict=False):

        def on_bytes(position: int, start: int = start) -> None:
            if on_progress:
                on_progress((start + position) // 1_000_000, sum(sizes) // 1_000_000)

        count.add(path, on_bytes)
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    folders = count.folders
    if folders.shared is None and count.first_damage:
        raise ValueError(
            f"{name}: damaged before its first image ({' '.join(count.first_damage.split())}); copy it again"
        )
    if folders.shared is None:
        raise ValueError(f"{name}: no images inside ({', '.join(EXTENSIONS)}); give tars of images")
    source = partial(TarSource, paths, folders, count.repeats, left_out=count.left_out, shard=shard)
    if count.num_labelled:
        names = count.census.class_names
        classes = f": {number_of(len(names), 'class', 'classes')}" if names else ""
        notes = [f"taken as WebDataset samples, with labels from .cls and .json{classes}"]
        without = f"{count.num_unlabelled:,} samples have no .cls and no .json beside them: label -1"
        warnings = [without] if count.num_unlabelled else []
        del count.left_out.counts[OTHERS]  # further files of samples
        return source(True, counts=count.num_by_key, class_names=names, notes=notes, warnings=warnings)
    del count.left_out.counts[SAME_KEY]
    if folders.below and folders.beside:
        raise ValueError(
            f"{name}: {folders.beside} lies beside the class folders {min(folders.below)}, ...; "
            "make a tar either of images alone or of one folder per class"
        )
    if not are_classes and folders.below and all(folder.lower() in PARTS for folder in folders.below):
        raise tar_parts_error(name, sorted(folders.below))
    where = f" below {'/'.join(folders.shared)}" if folders.shared else ""
    class_names = sorted(folders.below) or None
    notes = [f"{len(class_names):,} class folders{where}" if class_names else f"images without labels{where}"]
    return source(False, counts=count.num_one_by_one, class_names=class_names, notes=notes)
