"""Stages end where their features have settled, equally after a resume, and never without the option."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastpsl.engine.online_probe import linear_cka
from fastpsl.engine.plan import make_plan
from tests.engine.exact_signals import train_until
from tests.engine.test_online_probe import STEPS_PER_EPOCH, probed_run, probes, timeless
from tests.engine.test_trainer import tiny_experiment
from tests.programs import digests, newest_checkpoint

SETTLED: dict[str, dict[str, Any]] = {  # after two and three of three epochs
    "similarity": {"freeze_when": "similarity", "freeze_looks": 1, "freeze_within": 0.99},
    "knn": {"freeze_when": "knn", "freeze_looks": 2, "freeze_within": 0.99},
}
LENGTHS = {"similarity": 2, "knn": 3}


def fit(out: Path, stop_at: int | None = None, **options: Any) -> bool:
    experiment = replace(tiny_experiment(), stages=make_plan("psl", (4, 4, 4)))
    return train_until(stop_at, experiment, probed_run(out, epochs=(4, 4, 4), **options))


@pytest.mark.parametrize("rule", ["similarity", "knn"])
def test_a_stage_ends_where_its_features_have_settled(rule: str, tmp_path: Path) -> None:
    """Later stages have the epochs, and so the rates and draws, that they have in the whole plan."""
    assert fit(tmp_path / "whole", **SETTLED[rule])
    state, length = newest_checkpoint(tmp_path / "whole"), LENGTHS[rule]
    summaries = state["position"]["summaries"]
    assert [each["num_steps"] for each in summaries] == [length * STEPS_PER_EPOCH] * 3
    assert all(each["num_steps_planned"] == each["num_steps"] for each in summaries)
    lines = probes(tmp_path / "whole")
    epochs = [first + epoch for first in (0, 4, 8) for epoch in range(1, length + 1)]
    assert [line["epoch"] for line in lines] == epochs
    assert [line["settled"] for line in lines] == [*[False] * (length - 1), True] * 3
    assert lines[0]["rule"]["by"] == rule
    if rule == "similarity":  # of all images of the look, which are fewer than NUM_COMPARED
        kept = state["probe"]["features"]
        assert kept.shape == (lines[-1]["num_train"], lines[-1]["channels"]) and len(kept) > 20
    end = length * STEPS_PER_EPOCH
    for stop in (STEPS_PER_EPOCH, STEPS_PER_EPOCH + 2, end, end + 7):
        assert not fit(tmp_path / "stopped", stop, **SETTLED[rule])
    assert fit(tmp_path / "stopped", **SETTLED[rule])
    assert timeless(probes(tmp_path / "stopped")) == timeless(lines)
    assert digests(newest_checkpoint(tmp_path / "stopped")) == digests(state)


def test_a_stage_has_its_least_epochs(tmp_path: Path) -> None:
    options = SETTLED["similarity"] | {"freeze_min_epochs": 3, "max_steps_per_stage": 4 * STEPS_PER_EPOCH}
    assert fit(tmp_path, **options)
    summaries = newest_checkpoint(tmp_path)["position"]["summaries"]
    assert [each["num_steps"] for each in summaries] == [3 * STEPS_PER_EPOCH] * 3


def test_similarity_is_linear_cka_by_loops() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(7, 3), torch.randn(7, 4)

    def gram(rows: torch.Tensor) -> torch.Tensor:
        """Return the products of all pairs of centred rows, [n, n]."""
        rows = rows.double() - rows.double().mean(0)
        return torch.stack([torch.stack([(a * b).sum() for b in rows]) for a in rows])

    one, two = gram(first), gram(second)
    expected = (one * two).sum() / ((one * one).sum() * (two * two).sum()).sqrt()
    assert linear_cka(first, second) == pytest.approx(float(expected), rel=1e-9)
    turned = first @ torch.linalg.qr(torch.randn(3, 3))[0]
    assert linear_cka(first, 3 * turned + 1) == pytest.approx(1, rel=1e-6)
    for same in (torch.zeros(7, 4), torch.full((7, 4), 0.1).half()):  # collapsed; NaN would be no JSON
        assert linear_cka(first, same) is linear_cka(same, first) is linear_cka(same, same) is None


def test_a_rule_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--freeze-when knn: there are no validation images"):
        fit(tmp_path, **SETTLED["knn"], val=None)
    with pytest.raises(ValueError, match="--probe-every 0"):
        fit(tmp_path, **SETTLED["knn"], probe_every=0)
    with pytest.raises(ValueError, match="--freeze-within 1"):
        fit(tmp_path, freeze_when="knn", freeze_within=1.0)
