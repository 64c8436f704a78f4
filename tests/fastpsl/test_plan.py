import pytest

from fastpsl.plan import make_plan


def rows(name: str) -> list[tuple[str, int, int, int, int]]:
    stages = make_plan(name, (60, 70, 80))
    return [(s.name, s.level, s.first_learning, s.last_block, s.epochs) for s in stages]


def test_plans_are_the_papers() -> None:
    assert rows("psl") == [("S1", 1, 1, 3, 60), ("S2", 2, 2, 4, 70), ("S3", 3, 3, 5, 80)]
    assert rows("sl") == [("S1", 3, 1, 3, 60), ("S2", 3, 2, 4, 70), ("S3", 3, 3, 5, 80)]
    assert rows("psl_f") == [("S1", 1, 1, 3, 60), ("S2", 2, 1, 4, 70), ("S3", 3, 1, 5, 80)]
    assert rows("end_to_end") == [("E", 3, 1, 5, 210)]


@pytest.mark.parametrize(("name", "epochs"), [("psi", (1, 1, 1)), ("psl", (1, 1)), ("psl", (1, 0, 1))])
def test_impossible_plans_are_refused(name: str, epochs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="allowed|make 3 stages|at least 1"):
        make_plan(name, epochs)
