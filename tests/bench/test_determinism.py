"""bench/determinism.py: its commands, rows and digests; what its committed result and its page say."""

import json
import re
from typing import Any

import pytest
import torch

from bench.determinism import KINDS, LEAST, Kind, Trained, command, digest, equal_inputs, tensors
from bench.determinism import losses_and_differences as rows_of
from bench.figures.determinism import determinism_words
from bench.performance import DOCS, RESULTS, ROOT
from bench.small_networks import batch_norm, group_norm, smooth

KIND = KINDS[0]


def trained(*losses: float, num: int = 1, killed_at: int | None = None, weights: str = "a") -> Trained:
    return Trained(KIND, num, killed_at, [*losses], weights)


def committed() -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / "determinism.json").read_text())
    return result


def rows(measured: str, network: str) -> list[dict[str, Any]]:
    return [row for row in committed()["rows"] if row["measured"] == measured and row["network"] == network]


def test_rows_are_losses_and_differences_from_the_first_run() -> None:
    found = rows_of([trained(2.0, 1.0), trained(2.5, 1.0, num=2), trained(2.0, 1.0, killed_at=1)])
    assert [(row["measured"], row["num_processes"]) for row in found] == [
        ("loss", 1), ("loss", 2), ("difference", 2), ("loss", 1)
    ]  # fmt: skip
    assert [row["num_equal"] for row in found] == [2, 1, 1, 2]
    assert found[2]["values"] == [0.5, LEAST] and found[2]["largest_difference"] == 0.5
    assert found[3]["killed_at"] == 1


def test_steps_with_equal_inputs_are_counted() -> None:
    (row,) = equal_inputs(KIND, {1: ["a", "b", "c"], 4: ["a", "x", "c"]})
    assert row["median"] == 2 and row["num_processes"] == 4


def test_a_digest_is_of_all_tensors_in_their_order() -> None:
    state = {"a": torch.ones(3), "b": [torch.zeros(2, dtype=torch.int64), {"c": 1}]}
    assert len([*tensors(state)]) == 2
    known = digest(tensors(state))
    state["a"][2] += 1e-6  # type: ignore[index]
    assert digest(tensors(state)) != known
    assert digest(map(torch.cat, [(torch.ones(1), torch.ones(2))])) == digest([torch.ones(3)])


def test_a_command_is_a_recipe_and_several_processes_are_torchruns() -> None:
    alone, four = (command(Kind("rotation", "smooth", []), num, [1, 1, 1], ROOT) for num in (1, 4))
    assert alone[1] == "recipes/rotation_rv50.py" and (ROOT / alone[1]).exists()
    assert "bench/small_networks.py:smooth" in alone
    assert "--nproc-per-node=4" in four and four[-len(alone) + 1 :] == alone[1:]


@pytest.mark.parametrize("network", [batch_norm, group_norm, smooth])
def test_networks_have_blocks_of_the_channels_that_they_say(network: Any) -> None:
    maps = torch.zeros(2, 3, 32, 32)
    made = network()
    for block, channels in zip(made.blocks(), made.channels, strict=True):
        maps = block(maps)
        assert maps.shape[1] == channels
    has_batchnorm = any(isinstance(part, torch.nn.BatchNorm2d) for part in made.modules())
    assert has_batchnorm == (network is batch_norm)


def test_a_killed_run_ends_as_if_it_had_not_been() -> None:
    first, *_, killed = rows("loss", "batch_norm")
    assert killed["killed_at"] and killed["num_equal"] == len(killed["values"]) == 90
    assert killed["weights"] == first["weights"] and killed["values"] == first["values"]


def test_the_page_says_what_the_file_says() -> None:
    text = " ".join((DOCS / "explanation" / "randomness.md").read_text().split())
    (killed,) = [row for row in rows("loss", "batch_norm") if row["killed_at"]]
    assert f"after {killed['killed_at']} steps" in text
    num_steps = len(killed["values"])
    assert f"All {num_steps} losses are equal" in text and f"In all {num_steps} steps" in text
    inputs = [row for row in committed()["rows"] if row["measured"] == "steps with equal inputs"]
    assert len(inputs) == 4 and all(row["median"] == num_steps for row in inputs)
    for network, said in (("batch_norm", "at most 0.22"), ("group_norm", "most 0.04"), ("smooth", "4e-7")):
        largest = max(row["largest_difference"] for row in rows("difference", network))
        number = float(re.sub("[a-z ]*", "", said, count=1) if "most" in said else said)
        assert said in text and number == pytest.approx(largest, rel=0.15)
    relu = [row["values"][:10] for row in rows("difference", "group_norm")]
    assert "for the first ten steps" in text and max(map(max, relu)) < 4e-7


def test_the_chart_has_the_losses() -> None:
    words = determinism_words({"determinism.json": committed()})
    assert [line["num"] for line in words["lines"]] == [1, 2, 4, 1] and words["num_steps"] == 90
    top, bottom = words["losses"]
    for line, row in zip(words["lines"], rows("loss", "batch_norm"), strict=True):
        heights = [float(point.split()[1]) for point in line["path"][1:].split("L")]
        highest = float(words["ticks"][-1][0])
        scale = (bottom - words["ticks"][-1][1]) / highest
        for height, loss in zip(heights, row["values"], strict=True):
            assert bottom - height == pytest.approx(loss * scale, abs=0.06)
        assert min(heights) >= top
    with pytest.raises(ValueError, match=r"no determinism\.json in bench/results/"):
        determinism_words({})
