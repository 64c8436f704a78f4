from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
import tyro
from tyro.conf import arg

from fastpsl.scripts.command_line import parse
from fastpsl.scripts.recipe_files import find_recipe


@dataclass(frozen=True)
class More:
    workers: int | None = None
    fast: bool = True


@dataclass(frozen=True, kw_only=True)
class Show:
    source: tyro.conf.Positional[
        Annotated[Literal["k-means", "random"], tyro.conf.arg(metavar="k-means|random")]
    ]
    file: tyro.conf.Positional[Annotated[str, arg(metavar="FILE")]]
    out: str
    lr: float = 0.1
    num_heads: Literal[1, 2] = 1
    channels: Literal["RGB", "L"] | None = None
    mean: tuple[float, ...] | None = None
    epochs: tuple[int, ...] = (1,)
    parts: tuple[Literal["head", "blocks"], ...] = ()
    more: More = field(default_factory=More)

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ValueError(f"--lr {self.lr:g}: it must be 0 or more")


SEE = "see fastpsl show --help"
GIVEN = ("random", "a", "--out", "b")
CASES = (
    ((), f"SOURCE, FILE and --out are missing; {SEE}"),
    (GIVEN[:2], f"--out is missing; {SEE}"),
    ((*GIVEN[:2], "--oout", "b"), f"--oout: there is no such option; perhaps you meant --out; {SEE}"),
    ((*GIVEN, "--wrkers=1"), f"--wrkers: there is no such option; perhaps you meant --workers; {SEE}"),
    ((*GIVEN, "--no-fas"), f"--no-fas: there is no such option; perhaps you meant --no-fast; {SEE}"),
    ((*GIVEN, "--zzz", "1"), f"--zzz: there is no such option; {SEE}"),
    ((*GIVEN, "c"), f"c: there is no such argument; {SEE}"),
    ((*GIVEN, "--lr"), f"--lr has no value: give a number; {SEE}"),
    ((*GIVEN, "--lr", "abc"), "--lr abc: give a number"),
    ((*GIVEN, "--lr", "a'c"), "--lr a'c: give a number"),
    ((*GIVEN, "--lr=-1"), "--lr -1: it must be 0 or more"),
    ((*GIVEN, "--workers", "1.5"), "--workers 1.5: give a whole number"),
    ((*GIVEN, "--epochs", "1", "x"), "--epochs 1 x: give whole numbers"),
    ((*GIVEN, "--mean", "x", "1"), "--mean x 1: give numbers"),
    ((*GIVEN, "--channels", "rgb"), "--channels rgb: allowed are RGB, L"),
    ((*GIVEN, "--num-heads", "3"), "--num-heads 3: allowed are 1, 2"),
    ((*GIVEN, "--parts", "heads"), "--parts heads: allowed are head, blocks; perhaps you meant head"),
    (("kmeans", *GIVEN[1:]), "SOURCE kmeans: allowed are k-means, random; perhaps you meant k-means"),
)  # fmt: skip


def said(arguments: tuple[str, ...]) -> str:
    config: Any = (tyro.conf.OmitArgPrefixes,)
    with pytest.raises(ValueError) as caught:
        parse(Show, arguments, prog="fastpsl show", config=config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "line"), CASES, ids=lambda case: case if isinstance(case, str) else " ".join(case)
)
def test_an_error_says_what_was_given_and_what_is_allowed(arguments: tuple[str, ...], line: str) -> None:
    assert said(arguments) == line


def test_the_errors_of_a_recipe() -> None:
    for arguments, line in (
        (("--plan", "psll"), "--plan psll: allowed are psl, sl, psl_f, end_to_end; perhaps you meant psl"),
        (("--no-such-flag", "1"), "--no-such-flag: there is no such option; see --help"),
        (("--batch-size", "many"), "--batch-size many: give a whole number"),
        (("--batch-size", "0"), "--batch-size 0: it must be above 0"),
    ):
        with pytest.raises(ValueError) as caught:
            find_recipe("jigsaw_r50").parse(arguments)
        assert str(caught.value) == line


def test_without_events_tyros_own_words_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tyro, "_errors")
    line = said((*GIVEN, "--lr", "abc"))
    assert line.startswith("Error parsing --lr: could not convert string to float: 'abc'")
    assert "\n" not in line and line.endswith("; see fastpsl show --help")
