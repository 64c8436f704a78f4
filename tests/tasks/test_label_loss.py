"""Test the watch over the loss of SSL++'s pseudo-labels against plain means."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastpsl.tasks.sslpp.sslpp import LabelLoss
from tests.warm import results_of_ranks

LABELS, CPU = np.array([0] * 8 + [1] * 4 + [2] * 4), torch.device("cpu")
ENTROPY = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)


def epochs(watch: LabelLoss, losses: list[float]) -> list[int]:
    """Run an epoch of two steps for each mean loss, and return the epochs after which there was a warning."""
    warned = []
    for epoch, loss in enumerate(losses, start=1):
        watch.see(torch.tensor(loss + 0.3), torch.tensor(10.0))
        watch.see(torch.tensor(loss - 0.1), torch.tensor(30.0))
        watch.see(torch.tensor(math.nan), torch.tensor(30.0))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            figures = watch.end_epoch()
        assert figures == {
            "loss_labels": pytest.approx(loss, abs=1e-6),
            "entropy_labels": pytest.approx(ENTROPY),
        }
        warned += [epoch] * len(caught)
        assert all("the second head has not learned the pseudo-labels" in str(w.message) for w in caught)
    return warned


def test_a_loss_that_is_not_below_the_entropy_is_warned_of_after_a_tenth_and_at_the_end() -> None:
    assert epochs(LabelLoss(LABELS, 5, 15, CPU), [ENTROPY] * 15) == [2, 15]
    assert epochs(LabelLoss(LABELS, 5, 20, CPU), [2.0] + [0.98 * ENTROPY] * 19) == []
    assert epochs(LabelLoss(LABELS, 5, 1, CPU), [0.995 * ENTROPY]) == [1]


def test_new_labels_have_their_own_entropy_and_an_epoch_without_steps_no_figures() -> None:
    watch = LabelLoss(np.full(16, -1), 3, 1, CPU)
    assert watch.entropy.isnan() and watch.end_epoch() == {}
    entropy = watch.entropy
    watch.labels_are(LABELS)
    assert float(entropy) == pytest.approx(ENTROPY)


def test_a_watch_that_is_stopped_and_goes_on_has_the_same_figures() -> None:
    """The losses are such that floating-point sums would depend on the order."""
    losses = torch.rand(30, generator=torch.Generator().manual_seed(0)) * 5
    whole, parts = LabelLoss(LABELS, 5, 3, CPU), LabelLoss(LABELS, 5, 3, CPU)
    for number, loss in enumerate(losses):
        whole.see(loss, torch.tensor(7.0))
        parts.see(loss, torch.tensor(7.0))
        if number == 11:
            state = parts.state_dict()
            parts = LabelLoss(LABELS, 5, 3, CPU)
            parts.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert whole.end_epoch() == parts.end_epoch()
    assert whole.state_dict()["epoch"] == 1 and not whole.state_dict()["sums"].any()


def watched(rank: int, num_ranks: int) -> tuple[dict[str, Any], dict[str, float], int]:
    """See this rank's part of 8 losses.

    Return the state after 4, and the figures of what went on from it, with their number of warnings.
    """
    watch = LabelLoss(LABELS, 5, 10, CPU)
    for step in range(8):
        if step == 4:
            state = watch.state_dict()
            watch = LabelLoss(LABELS, 5, 10, CPU)
            watch.load_state_dict(state)
        if step % num_ranks == rank:
            watch.see(torch.tensor(0.1 + 0.2 * step), torch.tensor(step + 1.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return state, watch.end_epoch(), len(caught)


@pytest.mark.slow
def test_two_ranks_count_each_loss_once(tmp_path: Path) -> None:
    """A state has all ranks' sums, so only one rank may go on from them. One rank warns."""
    state, figures, num_warnings = watched(0, 1)
    assert num_warnings == 1
    mean = sum((0.1 + 0.2 * step) * (step + 1) for step in range(8)) / 36
    assert figures["loss_labels"] == pytest.approx(mean, abs=1e-6)
    for rank, (state_of_rank, *others) in enumerate(results_of_ranks(watched, 2, tmp_path)):
        assert torch.equal(state_of_rank["sums"], state["sums"]) and others == [figures, int(rank == 0)]


def test_a_watch_that_goes_on_warns_after_the_same_epochs() -> None:
    """A resume after the first of 20 epochs leaves the second and the last to warn after."""
    before, after = (LabelLoss(LABELS, 5, 20, CPU) for _ in range(2))
    assert epochs(before, [ENTROPY]) == []
    after.load_state_dict(before.state_dict())
    assert epochs(after, [ENTROPY] * 19) == [1, 19]
