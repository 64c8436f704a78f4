"""Plans: which blocks run and learn in each stage, at which level and for how long.

PSL (section 3.2 and Algorithm 1) is one of them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from typing_extensions import override

from fastpsl.console.words import number_of, percent

PLANS = ("psl", "sl", "psl_f", "end_to_end", "blockwise", "continue")


@dataclass(frozen=True)
class Stage:
    """A stage of training. Blocks are counted from 1 (B1).

    Blocks 1 to `last_block` run, those before `first_learning` without gradients. If `first_learning` is
    `last_block` + 1, only the head learns.

    Attributes:
        name: The stage's name, such as "S1".
        level: The task's level, from 1.
        first_learning: The first block that learns.
        last_block: The last block that runs.
        epochs: The length in epochs; 0 if `num_steps` is given.
        num_steps: The length in steps, or None.
        parts: For "blockwise": what learns at the same time, as a stage each. Otherwise empty.
        size_px: The side of the task's first view, which the other views follow; None for the task's own.
        crop_scale: The least share of an image's area in a random resized crop, or None for the task's own.
        batch_size: The images of a step over all ranks, or None where all stages have the options' number.
    """

    name: str
    level: int
    first_learning: int
    last_block: int
    epochs: int
    num_steps: int | None = None
    parts: "tuple[Stage, ...]" = ()
    size_px: int | None = None
    crop_scale: float | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        assert (self.epochs == 0) == (self.num_steps is not None), self

    @property
    def max_epochs(self) -> int:
        """The largest number of epochs of the stage, however few steps each epoch has."""
        return self.num_steps or self.epochs

    @override
    def __str__(self) -> str:
        length = number_of(self.max_epochs, "epoch" if self.num_steps is None else "step")
        if self.first_learning > self.last_block:
            return f"{self.name}: the head learns on B1-B{self.last_block}, frozen, {length}"
        own = f", {self.size_px} px" if self.size_px else ""
        own += f", crops of {self.crop_scale:g} to 1" if self.crop_scale else ""
        own += f", batches of {self.batch_size}" if self.batch_size else ""
        if self.parts:
            parts = (
                f"{part.name} B{part.first_learning}-B{part.last_block} (level G{part.level})"
                for part in self.parts
            )
            return f"{self.name}: {', '.join(parts)}, all at once{own}, {length}"
        learning = f"B{self.first_learning}-B{self.last_block}"
        before = f", {self.first_learning - 1} before it frozen" if self.first_learning > 1 else ""
        return f"{self.name}: level G{self.level}{own}, learns {learning}{before}, {length}"


def make_plan(
    name: str,
    stage_epochs: Sequence[int],
    *,
    num_levels: int = 3,
    num_blocks: int = 5,
    partition: Sequence[str] = (),
    levels: Sequence[int] = (),
    first_learning: str | None = None,
) -> tuple[Stage, ...]:
    """Return the stages of a plan.

    - psl: Stage i learns the blocks of its part of the `partition`, at level i.
    - sl: The same stages, all at the hardest level (PSL, section 4.5, "SL").
    - psl_f: As psl, but all blocks that run learn ("full gradient", PSL, section 4.5).
    - end_to_end: One stage over all blocks at the hardest level. The paper does not state the length of its
      end-to-end baselines; here it is the sum of all stages.
    - blockwise: One stage in which all blocks learn, each in a part of its own: no gradient passes between
      parts. Part i has the blocks that stage i of psl adds, its level and its place for the head. The length
      is the sum of all stages (`fastpsl.engine.blockwise`).
    - continue: As psl, over the blocks from `first_learning` alone. Those below have weights already.

    Args:
        name: One of `PLANS`.
        stage_epochs: The number of epochs of each stage.
        num_levels: The number of the task's levels.
        num_blocks: The number of the backbone's blocks.
        partition: The blocks that learn in each stage, such as "1-3". By default, each of n stages learns
            num_blocks - n + 1 blocks and starts one block later than the last. For three stages, these are
            the paper's S1 = B1-B3, S2 = B2-B4 and S3 = B3-B5. Blockwise parts do not overlap: B1-B3, B4, B5.
            "continue" counts the blocks that learn.
        levels: The level of each stage, or one for all. By default, they rise in even steps from the easiest
            to the hardest. The paper has one partition and one choice of levels.
        first_learning: For "continue": the first block that learns, such as "B3"; None for the first of all.

    Returns:
        The stages, in order.

    Raises:
        ValueError: The name is unknown, or lengths, parts or levels do not fit.
    """
    if name not in PLANS:
        raise ValueError(f"unknown plan {name!r}: allowed are {', '.join(PLANS)}")
    num_stages = len(stage_epochs)
    if not stage_epochs or min(stage_epochs) < 1:
        raise ValueError(f"stage lengths {tuple(stage_epochs)}: give one or more, each of at least 1 epoch")
    first = _first_block(first_learning, num_blocks)
    num_learning = num_blocks - first + 1
    if name != "end_to_end" and not partition and num_stages > num_learning:
        raise ValueError(
            f"{num_stages} stage lengths {tuple(stage_epochs)} for {number_of(num_learning, 'block')}: give "
            f"at most {num_learning} --epochs, or the --partition"
        )
    overlapping = [f"{i + first}-{i + 1 + num_blocks - num_stages}" for i in range(num_stages)]
    whole = name == "end_to_end" and not partition
    parts = [] if whole else _parts(partition or overlapping, num_stages, first, num_blocks)
    if name == "blockwise":
        before = (0, *(last for _, last in parts))
        if partition and any(first <= last for (first, _), last in zip(parts, before, strict=False)):
            raise ValueError(
                f"--partition {_words(partition)}: with --plan blockwise, parts do not overlap, as in 1-3 4 5"
            )
        parts = [(max(first, end + 1), last) for (first, last), end in zip(parts, before, strict=False)]
    if not levels:
        # The last level is set apart, so that a single stage has the hardest.
        rising = (1 + round(i * (num_levels - 1) / (num_stages - 1)) for i in range(num_stages - 1))
        levels = (*rising, num_levels)
    if len(levels) == 1:
        levels = (*levels,) * num_stages
    if len(levels) != num_stages:
        raise ValueError(
            f"--levels {_words(levels)} for {num_stages} stages: give one level, or one for each of --epochs"
        )
    unknown = [level for level in levels if not 1 <= level <= num_levels]
    if unknown:
        raise ValueError(
            f"--levels {_words(levels)}: level {unknown[0]} is not within the task's 1 to {num_levels}"
        )
    if name == "end_to_end":
        return (Stage("E", max(levels), 1, num_blocks, sum(stage_epochs)),)
    rows = enumerate(zip(stage_epochs, levels, parts, strict=True), start=1)
    hardest, from_first = max(levels), name == "psl_f"
    if name == "blockwise":
        all_at_once = tuple(
            Stage(f"S{i}", level, first, last, sum(stage_epochs)) for i, (_, level, (first, last)) in rows
        )
        return (Stage("B", max(levels), 1, num_blocks, sum(stage_epochs), parts=all_at_once),)
    return tuple(
        Stage(f"S{i}", hardest if name == "sl" else level, 1 if from_first else first, last, epochs)
        for i, (epochs, level, (first, last)) in rows
    )


def with_values(plan: str, stages: Sequence[Stage], values: Mapping[str, Sequence[Any]]) -> tuple[Stage, ...]:
    """Return a plan's stages with values of their own: of a field, one for all stages, or one for each.

    Raises:
        ValueError: The values are as many as neither.
    """
    for name, given in values.items():
        if len(given) not in (1, len(stages)):
            raise ValueError(
                f"--{name.replace('_', '-')} {_words(given)}: {number_of(len(given), 'value')}, and --plan "
                f"{plan} has {number_of(len(stages), 'stage')} here; give one value, or one for each stage"
            )
        own = given if len(given) > 1 else [*given] * len(stages)
        stages = [replace(stage, **{name: value}) for stage, value in zip(stages, own, strict=True)]
    return tuple(stages)


def _first_block(name: str | None, num_blocks: int) -> int:
    """Return the number of a block by its name, such as "B3"; 1 for None."""
    match = re.fullmatch(r"B?(\d+)", "B1" if name is None else name)
    if match is None or not 1 <= int(match[1]) <= num_blocks:
        raise ValueError(f"--first-learning {name}: give one of B1 to B{num_blocks}")
    return int(match[1])


def _parts(
    partition: Sequence[str], num_stages: int, first_block: int, num_blocks: int
) -> list[tuple[int, int]]:
    """Return the first and last block of each stage, or raise ValueError unless they rise without holes."""
    option = f"--partition {_words(partition)}"
    matches = [re.fullmatch(r"B?(\d+)(?:-B?(\d+))?", part) for part in partition]
    if None in matches:
        raise ValueError(f"{option}: give a range of blocks for each stage, such as 1-3 2-4 3-5")
    parts = [(int(match[1]), int(match[2] or match[1])) for match in matches if match]
    if len(parts) != num_stages:
        raise ValueError(f"{option} has {len(parts)} parts for {num_stages} stage lengths: give one for each")
    for (first, last), part in zip(parts, partition, strict=True):
        if not first_block <= first <= last <= num_blocks:
            raise ValueError(f"{option}: {part} is no range of blocks within {first_block} to {num_blocks}")
    for part_before, part_after in pairwise(parts):
        if not (part_before[0] < part_after[0] and part_before[1] < part_after[1]):
            raise ValueError(f"{option}: each stage must begin and end above the one before it")
    learned = (range(first, last + 1) for first, last in parts)
    holes = set(range(first_block, num_blocks + 1)).difference(*learned)
    if holes:
        raise ValueError(
            f"{option} has a hole: B{min(holes)} would never learn; let each of B{first_block} to "
            f"B{num_blocks} be in a stage"
        )
    return parts


def _words(values: Sequence[object]) -> str:
    return " ".join(map(str, values))


class FreezeRule(NamedTuple):
    """A rule that ends a stage after `looks` looks at its features in which these have not moved.

    It is the idea of LayerLock (arXiv 2509.10156), that layers settle from below, for the stages of a plan.

    - knn: The best accuracy of the last looks is at most `within` above the best of those before.
    - similarity: At each of the last looks, the features' similarity to those of the look before is at least
      1 - `within`.
    """

    by: Literal["never", "knn", "similarity"] = "never"
    looks: int = 1
    within: float = 0.0
    min_epochs: int = 1

    def is_settled(self, values: Sequence[float | None]) -> bool:
        """Return whether a stage ends after looks with these values; None stands for a look without a value.

        A value is an accuracy, or a similarity to the look before.
        """
        last = [value for value in values[-self.looks :] if value is not None]
        before = [value for value in values[: -self.looks] if value is not None]
        if self.by == "never" or len(last) < self.looks:
            return False
        if self.by == "similarity":
            return min(last) >= 1 - self.within
        return bool(before) and max(last) - max(before) <= self.within

    def words(self, values: Sequence[float | None]) -> str:
        """Return the last looks' values with the rule that they meet, for people."""
        shown = [value for value in values if value is not None][-self.looks - 1 :]
        if self.by == "similarity":
            similarities = ", ".join(f"{value:.4f}" for value in shown[-self.looks :])
            return f"similarities {similarities} are at least {1 - self.within:g}"
        accuracies = ", ".join(map(percent, shown))
        return (
            f"kNN {accuracies} has gained at most {percent(self.within)} in {number_of(self.looks, 'look')}"
        )
