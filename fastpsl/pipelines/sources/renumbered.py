"""A source with its labels in the order of other class names, or without labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from fastpsl.pipelines.sources.source import Picks, Sample, Source
from fastpsl.pipelines.sources.tally import Tally


@dataclass(frozen=True)
class Renumbered:
    """A source whose labels count `class_names`; None for no labels."""

    source: Source
    class_names: list[str] | None

    @property
    def num_total(self) -> int:
        return self.source.num_total

    @property
    def num_samples(self) -> int:
        return self.source.num_samples

    @property
    def mode(self) -> str:
        return self.source.mode

    @property
    def notes(self) -> list[str]:
        words = f"labels of {len(self.class_names):,} given classes" if self.class_names else "no labels: -1"
        return [*self.source.notes, words]

    @property
    def warnings(self) -> list[str]:
        return self.source.warnings

    @property
    def left_out(self) -> Tally:
        return self.source.left_out

    def picks(self, num: int, random: Random) -> Picks:
        """Choose images of the source, with its own labels, which an estimate does not need."""
        return self.source.picks(num, random)

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Yield the source's samples with other labels."""
        numbers = {name: number for number, name in enumerate(self.class_names or ())}
        labels = [numbers.get(name, -1) for name in self.source.class_names or ()]
        for sample in self.source.samples(skip):
            yield replace(sample, label=labels[sample.label] if numbers and sample.label >= 0 else -1)


def renumbered(what: str, source: Source, class_names: Sequence[str], origin: str) -> Renumbered:
    """Return the source with the labels that `class_names` define.

    Args:
        what: The source's name, for messages.
        source: The source.
        class_names: The class names in the order of the labels.
        origin: What has them, for messages.

    Raises:
        ValueError: The source's classes have no names, or one is not among them.
    """
    if not source.class_names:
        raise ValueError(
            f"--classes {origin}: the classes of {what} have no names; leave --classes out, or name those of "
            "a folder's images by --labels LIST"
        )
    names = list(class_names)
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"--classes {origin}: {repeated!r} is there twice; name each class once")
    unknown = [name for name in source.class_names if name not in set(names)]
    if unknown:
        raise ValueError(
            f"{what}: {len(unknown):,} of {len(source.class_names):,} classes are not among the "
            f"{len(names):,} of --classes {origin}, the first is {unknown[0]!r} (there: {names[0]!r}, ...); "
            "give the classes of the training set for these images"
        )
    return Renumbered(source, names)
