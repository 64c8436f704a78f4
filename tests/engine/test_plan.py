from typing import Any

import pytest

from fastpsl.engine.plan import FreezeRule, make_plan


def rows(
    name: str, epochs: tuple[int, ...] = (60, 70, 80), **settings: Any
) -> list[tuple[str, int, int, int, int]]:
    stages = make_plan(name, epochs, **settings)
    return [(s.name, s.level, s.first_learning, s.last_block, s.epochs) for s in stages]


def test_plans_are_the_papers() -> None:
    assert rows("psl") == [("S1", 1, 1, 3, 60), ("S2", 2, 2, 4, 70), ("S3", 3, 3, 5, 80)]
    assert rows("sl") == [("S1", 3, 1, 3, 60), ("S2", 3, 2, 4, 70), ("S3", 3, 3, 5, 80)]
    assert rows("psl_f") == [("S1", 1, 1, 3, 60), ("S2", 2, 1, 4, 70), ("S3", 3, 1, 5, 80)]
    assert rows("end_to_end") == [("E", 3, 1, 5, 210)]


def test_any_number_of_stages() -> None:
    assert rows("psl", (5, 6)) == [("S1", 1, 1, 4, 5), ("S2", 3, 2, 5, 6)]
    assert rows("psl", (9,)) == [("S1", 3, 1, 5, 9)]
    five = [(f"S{i}", level, i, i, 1) for i, level in enumerate((1, 1, 2, 3, 3), 1)]
    assert rows("psl", (1, 1, 1, 1, 1)) == five
    assert rows("psl", (1, 2, 3), num_blocks=3) == [(f"S{i}", i, i, i, i) for i in (1, 2, 3)]
    assert rows("psl", (1, 2, 3), num_levels=1) == [(f"S{i}", 1, i, i + 2, i) for i in (1, 2, 3)]


def test_partitions_and_levels_are_free() -> None:
    assert rows("psl", (5, 6), partition=("1-2", "B3-B5")) == [("S1", 1, 1, 2, 5), ("S2", 3, 3, 5, 6)]
    both = rows("psl", (5, 6), partition=("1-4", "5"), levels=(2, 2))
    assert both == [("S1", 2, 1, 4, 5), ("S2", 2, 5, 5, 6)]
    assert rows("sl", (5, 6, 7), levels=(1, 2, 2)) == [(f"S{i}", 2, i, i + 2, i + 4) for i in (1, 2, 3)]
    assert [level for _, level, *_ in rows("psl", (1, 1, 1), levels=(2,))] == [2, 2, 2]  # one for all
    assert rows("psl", (1, 1, 1), levels=(3, 2, 1))[0] == ("S1", 3, 1, 3, 1)
    assert [level for _, level, *_ in rows("sl", (1, 1, 1), levels=(1, 3, 2))] == [3, 3, 3]  # the hardest
    assert rows("end_to_end", (5, 6), levels=(1, 1)) == [("E", 1, 1, 5, 11)]
    assert rows("end_to_end", (5, 6, 7), levels=(1, 3, 2)) == [("E", 3, 1, 5, 18)]  # the hardest


def test_a_plan_goes_on_from_a_block() -> None:
    third: dict[str, Any] = {"first_learning": "B3"}
    assert rows("continue", **third) == [("S1", 1, 3, 3, 60), ("S2", 2, 4, 4, 70), ("S3", 3, 5, 5, 80)]
    assert rows("continue", (5, 6), **third) == [("S1", 1, 3, 4, 5), ("S2", 3, 4, 5, 6)]
    assert rows("continue", (5,), first_learning="5") == [("S1", 3, 5, 5, 5)]
    assert rows("continue", (5,), num_blocks=4, **third) == [("S1", 3, 3, 4, 5)]
    given = rows("continue", (5, 6), partition=("3-5", "4-6"), levels=(2,), num_blocks=6, **third)
    assert given == [("S1", 2, 3, 5, 5), ("S2", 2, 4, 6, 6)]
    assert rows("continue") == rows("psl")


@pytest.mark.parametrize(
    ("name", "epochs", "settings", "message"),
    [
        ("continue", (1,), {"first_learning": "B6"}, "give one of B1 to B5"),
        ("continue", (1,), {"first_learning": "B0"}, "give one of B1 to B5"),
        ("continue", (1,), {"first_learning": "layer3"}, "give one of B1 to B5"),
        ("continue", (1, 1), {"first_learning": "B5"}, "for 1 block: give at most 1"),
        ("continue", (1,), {"first_learning": "B3", "partition": ("2-5",)}, "within 3 to 5"),
        ("continue", (1,), {"first_learning": "B3", "partition": ("4-5",)}, "B3 would never learn"),
        ("psi", (1, 1, 1), {}, "allowed are psl"),
        ("psl", (), {}, "one or more"),
        ("psl", (1, 0, 1), {}, "at least 1 epoch"),
        ("psl", (1,) * 6, {}, "at most 5"),
        ("psl", (1, 1), {"partition": ("1-2", "4-5")}, "has a hole: B3 would never learn"),
        ("psl", (1, 1), {"partition": ("1-2", "3-4")}, "has a hole: B5"),
        ("psl", (1, 1), {"partition": ("2-3", "3-5")}, "has a hole: B1"),
        ("psl", (1, 1), {"partition": ("1-5", "2-5")}, "begin and end above"),
        ("psl", (1, 1), {"partition": ("1-3", "1-5")}, "begin and end above"),
        ("psl", (1, 1), {"partition": ("1-3", "2-6")}, "2-6 is no range of blocks within 1 to 5"),
        ("psl", (1, 1), {"partition": ("3-1", "2-5")}, "3-1 is no range"),
        ("psl", (1, 1), {"partition": ("a", "2-5")}, "range of blocks for each stage"),
        ("psl", (1, 1), {"partition": ("1-5",)}, "has 1 parts for 2"),
        ("psl", (1, 1, 1), {"levels": (1, 2)}, "one for each of --epochs"),
        ("psl", (1, 1, 1), {"levels": (1, 2, 4)}, "level 4 is not within the task's 1 to 3"),
        ("end_to_end", (1, 1, 1), {"levels": (0, 2, 3)}, "level 0"),
    ],
)
def test_impossible_plans_are_refused(
    name: str, epochs: tuple[int, ...], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(name, epochs, **settings)


@pytest.mark.parametrize(
    ("by", "values", "settled"),
    [
        ("knn", [0.3, 0.5, 0.5], False),  # two looks, and none before the last three
        ("knn", [0.5, 0.505, 0.4, 0.509], True),
        ("knn", [0.5, 0.505, 0.4, 0.52], False),
        ("knn", [0.5, 0.4, 0.52, 0.5], False),  # the best of the last three, not the last one
        ("knn", [0.6, 0.1, 0.1, 0.1, 0.55, 0.55, 0.55], True),  # the best of all before
        ("knn", [0.1, 0.5, 0.5, 0.5], False),  # the gain is within the last three
        ("knn", [0.1, 0.5, 0.5, 0.5, 0.5], True),
        ("knn", [0.5, 0.5, None, 0.5], False),  # features that were not finite
        ("similarity", [None, 0.99, 0.995, 0.999], True),
        ("similarity", [None, 0.98, 0.995, 0.999], False),
        ("similarity", [None, 0.5, 0.99, 0.99, 0.99], True),
        ("similarity", [None, 0.99, 0.99], False),
        ("never", [0.5, 0.5, 0.5, 0.5, 0.5], False),
    ],
)
def test_a_stage_has_settled_after_looks_without_a_move(by: Any, values: list[Any], settled: bool) -> None:
    assert FreezeRule(by, 3, 0.01).is_settled(values) == settled
