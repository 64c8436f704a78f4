"""Test what IIC keeps of an epoch: figures, collapse, the best sub-head."""

import numpy as np
import pytest
import torch

from fastpsl.tasks.pseudo_labels.iic import ClusterEpochs
from fastpsl.tasks.pseudo_labels.scores import nmi


def test_a_collapse_is_told() -> None:
    epochs = ClusterEpochs(1, 1, 100, torch.device("cpu"))
    logits = torch.zeros(100, 1, 70)
    logits[:, :, 3] = 1
    epochs.see(0, torch.arange(100), torch.zeros(1), logits)
    with pytest.warns(UserWarning, match=r"collapse: the biggest of 70 classes holds 100.0 %"):
        figures = epochs.end(0, 70, None, 0)
    assert (figures["non_empty"], figures["biggest"], figures["entropy_share"]) == (1, 1, 0)
    assert figures["mutual_information"] == 0


def test_even_clusters_are_no_collapse(recwarn: pytest.WarningsRecorder) -> None:
    epochs = ClusterEpochs(1, 2, 100, torch.device("cpu"))
    logits = torch.eye(10)[torch.arange(100) % 10][:, None].expand(-1, 2, -1)
    epochs.see(0, torch.arange(100), torch.tensor([-1.0, -2.0]), logits)
    figures = epochs.end(0, 10, None, 0)
    assert figures["entropy_share"] == pytest.approx(1) and figures["best_sub_head"] == 1 and not recwarn.list


def test_what_is_not_finite_and_padding_count_for_nothing() -> None:
    epochs = ClusterEpochs(1, 2, 6, torch.device("cpu"))
    logits = torch.zeros(4, 2, 3)
    logits[1, 0, 2], logits[2, 0, 0] = 5.0, torch.nan
    epochs.see(0, torch.tensor([5, 1, 2, -1]), torch.tensor([-3.0, torch.nan]), logits)
    epochs.see(0, torch.tensor([-1, -1, -1, -1]), torch.tensor([-1.0, -1.5]), logits)
    figures = epochs.end(0, 3, None, 0)
    assert epochs.best.tolist() == [0] and figures["mutual_information"] == 2  # (-3 - 1) / 2 is below -1.5
    assert figures["non_empty"] == 2 and figures["biggest"] == 0.5  # images 5 and 1
    epochs.see(0, torch.tensor([5, 1, 2, -1]), torch.tensor([-3.0, torch.nan]), logits)
    assert epochs.end(0, 3, None, 0)["best_sub_head"] == 0  # the other one had no loss at all
    for loss in (torch.nan, -4.0):  # the one step that had a loss counts alone
        epochs.see(0, torch.tensor([5, 1, 2, -1]), torch.tensor([-3.5, loss]), logits)
    assert epochs.end(0, 3, None, 0)["mutual_information"] == 4
    nothing = ClusterEpochs(1, 2, 6, torch.device("cpu"))
    assert nothing.end(0, 3, None, 0) == {}


def test_each_head_is_compared_with_its_own_last_epoch() -> None:
    """Two heads learn in turn: the first keeps its clusters, the second gives each image another one."""
    epochs = ClusterEpochs(2, 1, 40, torch.device("cpu"))
    images = torch.arange(40)
    first, second = images % 4, images // 10
    true = (images % 5).numpy()
    found: list[float | None] = []
    for number, clusters in ((0, first), (1, second), (0, first), (1, first)):
        logits = torch.nn.functional.one_hot(clusters, 4).float()[:, None]
        num = 40 if found else 39  # the first epoch leaves an image out
        epochs.see(number, images[:num], torch.zeros(1), logits[:num])
        figures = epochs.end(number, 4, true, 7)
        found.append(figures["nmi_previous"])
        drawn = clusters[:num].numpy()
        assert figures["nmi_true"] == pytest.approx(nmi(drawn, true[:num]))
        shuffled = np.random.default_rng(7).permutation(drawn)
        assert figures["nmi_true_shuffled"] == pytest.approx(nmi(shuffled, true[:num]))
    changed = nmi(second.numpy(), first.numpy())
    assert found == [None, None, pytest.approx(1), pytest.approx(changed)] and changed < 0.1


def test_clusters_are_compared_with_an_epoch_of_one_cluster() -> None:
    """Cluster 0 alone, too, is a cluster that an image had before."""
    epochs, images = ClusterEpochs(1, 1, 40, torch.device("cpu")), torch.arange(40)
    epochs.see(0, images, torch.zeros(1), torch.eye(4)[torch.zeros_like(images)][:, None])
    with pytest.warns(UserWarning, match="collapse"):
        assert epochs.end(0, 4, None, 0)["nmi_previous"] is None
    epochs.see(0, images, torch.zeros(1), torch.eye(4)[images % 4][:, None])
    assert epochs.end(0, 4, None, 0)["nmi_previous"] == 0.0


def test_an_epoch_that_is_stopped_goes_on_as_that_heads() -> None:
    """It is stopped before its last step, or after it; the losses of both parts count."""
    logits = torch.eye(4)[torch.arange(8) % 4][:, None].expand(-1, 3, -1)
    first, second = torch.tensor([-1.0, -2.0, -1.5]), torch.tensor([-1.0, -0.25, -1.5])
    for num_before in (1, 2):
        before, after = (ClusterEpochs(2, 3, 8, torch.device("cpu")) for _ in range(2))
        before.best.copy_(torch.tensor([1, 2]))
        steps = [(torch.arange(4), first, logits[:4]), (torch.arange(4, 8), second, logits[4:])]
        for step in steps[:num_before]:
            before.see(1, *step)
        after.load_state_dict(before.state_dict())
        assert after.best.tolist() == [1, 2]
        for step in steps[num_before:]:
            after.see(1, *step)
        figures = after.end(1, 4, None, 0)
        # Means of -1, -1.125 and -1.5; the second head's best becomes the third sub-head, as it was.
        assert (figures["best_sub_head"], figures["mutual_information"]) == (2, 1.5)
        assert after.best.tolist() == [1, 2] and figures["non_empty"] == 4
