"""Test the drawn shuffle of BatchNorm groups against plain loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.tasks.contrastive.moco import encode_shuffled, redistributed, shuffled_order, substitutes
from tests.warm import results_of_ranks


def by_group_mean(images: Tensor, group_size: int) -> Tensor:
    """Encode to width 1 by the group: brightness minus the group's mean."""
    brightness = images.mean((1, 2, 3)).view(-1, group_size)
    return (brightness - brightness.mean(1, keepdim=True)).view(-1, 1)


def test_an_order_is_a_permutation_of_its_own_seed_epoch_and_step() -> None:
    orders = [
        shuffled_order(seed, epoch, step, 64) for seed in (0, 1) for epoch in (0, 1) for step in (0, 1, 2)
    ]
    for order in orders:
        assert order.dtype == np.int64 and sorted(order) == list(range(64))
    assert len({tuple(order) for order in orders}) == len(orders)
    words_of_step_2 = words(Keys(1, 1, np.arange(128, 192)), Slot.TASK, 2).tolist()
    assert orders[-1].tolist() == sorted(range(64), key=words_of_step_2.__getitem__)


def test_groups_mix_all_ranks_and_change_each_step() -> None:
    """512 images are in groups of 32; 1 in 16 images lands in the group of its own part of the batch."""
    places = np.empty((40, 512), np.int64)
    for step in range(40):
        places[step, shuffled_order(3, 5, step, 512)] = np.arange(512)
    groups = places // 32
    own_part = np.arange(512) // 32  # the rank of the image among 16, and its query's group
    assert 0.05 < np.mean(groups == own_part) < 0.075  # 1/16
    for image in (0, 1, 511):
        assert len(set(groups[:, image].tolist())) > 10
    together = np.mean(groups[:, :31] == groups[:, 1:32])  # neighbours of one rank
    assert 0.04 < together < 0.085


def test_keys_are_those_of_a_plain_loop_over_groups() -> None:
    images = torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    order = shuffled_order(0, 2, 7, 12)
    keys = encode_shuffled(
        by_group_mean, images, torch.ones(12, dtype=torch.bool), torch.from_numpy(order), 4
    )
    for start in (0, 4, 8):
        group = order[start : start + 4].tolist()
        mean = sum(images[i].mean() for i in group) / 4
        for i in group:
            assert keys[i, 0] == pytest.approx(float(images[i].mean() - mean), abs=1e-6)


def test_what_is_not_valid_is_replaced_before_it_meets_others() -> None:
    """Images of NaN would make every key of their groups NaN."""
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([True, False, True, True, False, False, True, True])
    images[~valid] = float("nan")
    order = shuffled_order(0, 0, 0, 8)
    keys = encode_shuffled(by_group_mean, images, valid, torch.from_numpy(order), 4)
    filled = images.clone()
    for group in order.reshape(2, 4).tolist():
        members = [i for i in group if valid[i]]
        for number, i in enumerate(group):  # member p takes number p, modulo their number, of the valid ones
            filled[i] = images[i] if valid[i] else images[members[number % len(members)]]
    assert torch.equal(keys, encode_shuffled(by_group_mean, filled, valid | True, torch.from_numpy(order), 4))
    assert keys.isfinite().all()


@pytest.mark.parametrize("size", [1, 2, 9])
def test_substitutes_are_valid_places_of_the_group(size: int) -> None:
    valid = torch.tensor([[bool(number >> i & 1) for i in range(size)] for number in range(2**size)])
    for group, found in zip(valid.tolist(), substitutes(valid).tolist(), strict=True):
        places = [i for i in range(size) if group[i]] or [0]
        assert found == [i if group[i] else places[i % len(places)] for i in range(size)]


def test_ranks_send_each_other_what_each_encodes(tmp_path: Path) -> None:
    order = shuffled_order(5, 0, 0, 24)
    rows = torch.arange(24 * 6.0).view(24, 3, 2)
    assert torch.equal(redistributed(rows, order), rows[order])
    assert torch.equal(torch.cat(results_of_ranks(part_in_order, 2, tmp_path)), rows[order])


def part_in_order(rank: int, world: int) -> Tensor:
    """Return a rank's part of the rows of the test above."""
    size = 24 // world
    rows = torch.arange(24 * 6.0).view(24, 3, 2)[rank * size : (rank + 1) * size]
    return redistributed(rows.transpose(1, 2), shuffled_order(5, 0, 0, 24)).transpose(1, 2)


def keys_of(rank: int, world: int) -> Tensor:
    """Return the keys of 24 images that a rank computes from its part of them."""
    size = 24 // world
    images = torch.randn(24, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    share = images[rank * size : (rank + 1) * size].contiguous(memory_format=torch.channels_last)
    valid = torch.arange(24) % 5 != 0
    order = shuffled_order(5, 0, 0, 24)
    return encode_shuffled(by_group_mean, share, valid, torch.from_numpy(order), 4, order)


def test_ranks_encode_together_what_one_does(tmp_path: Path) -> None:
    keys = keys_of(0, 1)
    assert all(torch.equal(each, keys) for each in results_of_ranks(keys_of, 2, tmp_path))


def test_a_group_that_does_not_divide_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="--key-group 5 does not divide the 12 images"):
        encode_shuffled(by_group_mean, torch.zeros(12, 3, 4, 4), torch.ones(12) > 0, torch.arange(12), 5)
