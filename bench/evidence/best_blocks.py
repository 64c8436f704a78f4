"""Choose the block that an arm is judged by, without the images that score it.

STEM_best is a seed's number at one block: the best by the mean of the arm's other seeds. A plan may have an
evaluation on other images that chooses blocks (`chosen_by`). Then the block is the best there by the mean of
all seeds. Of equal blocks the lower one counts.
"""

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.evidence.plan import RANDOM, UNTRAINED

OfSeeds = Mapping[int, Mapping[str, float]]  # seed → number → percent
BEST = "best"


@dataclass(frozen=True)
class Best:
    """An arm's numbers at its best blocks, in percent, and how much more they are than no training's."""

    arm: str
    evaluation: str
    blocks: Sequence[str]  # those that were chosen for some seed, such as B2 and B3
    values: Mapping[int, float]  # by seed
    gains: Mapping[int, float]  # by seed; nothing of "no training", nor where there is no such row


def bests(results: Mapping[str, Any]) -> Iterator[Best]:
    """Yield each arm in each evaluation that scores its blocks, if it has two seeds or more.

    Random weights are left out: they normalise otherwise than a training.
    """
    end = results["endpoint"]
    chooser = end.get("chosen_by")
    chosen = scores_of(results, chooser) if chooser else {}
    for evaluation in dict.fromkeys(score["evaluation"] for score in results["scores"]):
        of = scores_of(results, evaluation)
        stem = stem_of(end["numbers"] if evaluation == end["evaluation"] else _blocks(of, r"\w+"))
        if evaluation == chooser or not stem:
            continue
        numbers = {
            arm: best_numbers(of_arm, stem, chosen.get(arm)) for arm, of_arm in of.items() if len(of_arm) > 1
        }
        values = {
            arm: {seed: of[arm][seed][name] for seed, name in its.items()} for arm, its in numbers.items()
        }
        untrained = values.get(UNTRAINED, {})
        for arm, its in numbers.items():
            if arm != RANDOM:
                seeds = [] if arm == UNTRAINED else [seed for seed in its if seed in untrained]
                gains = {seed: values[arm][seed] - untrained[seed] for seed in seeds}
                blocks = sorted({name.rpartition("_")[2] for name in its.values()})
                yield Best(arm, evaluation, blocks, values[arm], gains)


def scores_of(results: Mapping[str, Any], evaluation: str) -> dict[str, dict[int, Mapping[str, float]]]:
    """Return arm → seed → numbers of an evaluation."""
    of: dict[str, dict[int, Mapping[str, float]]] = {}
    for score in results["scores"]:
        if score["evaluation"] == evaluation:
            of.setdefault(score["arm"], {})[score["seed"]] = score["numbers"]
    return of


def best_numbers(of: OfSeeds, stem: str, chosen: OfSeeds | None = None) -> dict[int, str]:
    """Return seed → the name of the number that counts.

    Args:
        of: The numbers of an arm; of two seeds or more, if `chosen` is not given.
        stem: The numbers' names without their block, such as top1.
        chosen: The numbers of the same arm on other images.
    """
    names = _blocks({"": of}, re.escape(stem))
    best = {}
    for seed in of:
        judges = [*chosen.values()] if chosen else [one for other, one in of.items() if other != seed]
        best[seed] = max(names, key=lambda name: statistics.fmean(one[name] for one in judges))
    return best


def with_best(of: OfSeeds, stem: str) -> dict[int, Mapping[str, float]]:
    """Return the numbers of an arm with STEM_best beside them, if it has two seeds and blocks."""
    if len(of) < 2 or not _blocks({"": of}, re.escape(stem)):
        return dict(of)
    best = best_numbers(of, stem)
    return {seed: {**one, f"{stem}_{BEST}": one[best[seed]]} for seed, one in of.items()}


def stem_of(numbers: Sequence[str]) -> str:
    """Return the name of the first number without its block; nothing if there is none."""
    return numbers[0].rpartition("_")[0] if numbers else ""


def _blocks(of: Mapping[str, OfSeeds], stem: str) -> list[str]:
    """Return the names of the numbers of blocks, the lowest first."""
    first = next((one for of_arm in of.values() for one in of_arm.values()), {})
    return [name for name in first if re.fullmatch(rf"{stem}_B\d+", name)]
