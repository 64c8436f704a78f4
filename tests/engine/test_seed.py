"""Test what a run draws: orders, views, weights, dropout and passes follow from seed and place alone."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.experiment import make_train_step
from fastpsl.engine.gpu import torch_seed
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.run import RunData
from fastpsl.engine.trainer import MAX_WARM_UP_EPOCHS, pretrain
from fastpsl.kernels.draws import Keys
from fastpsl.pipelines.loader.order import epoch_order
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.pipelines.views import Input, train_view
from fastpsl.tasks.jigsaw import Jigsaw
from tests.engine.test_trainer import STEPS_PER_EPOCH, tiny_experiment
from tests.engine.tiny import one_process, tiny_run


def test_seeds_of_torch_are_one_of_each_place() -> None:
    """They are frozen, because a resumed run must draw what it would have drawn."""
    places = [(0,), (1,), (12,), (0, 0), (1, 2), (2, 1), (0, 3), (3, 0), (0, 1, 2), (0, 2, 1), (1, 1, 1)]
    seeds = [torch_seed(*place) for place in places]
    assert len(set(seeds)) == len(places) and 0 <= min(seeds) and 2**60 < max(seeds) < 2**63
    assert torch_seed(0, 1, 2, 3) == 5735612403627336365


@pytest.mark.parametrize("seed", [0, 1])
def test_orders_and_draws_of_images_follow_from_the_seed(seed: int) -> None:
    options = PretrainOptions(data=str(sample_paths().train_32), batch_size=32, workers=1, seed=seed)
    data, view = RunData(options, one_process()), train_view(Input(size_px=32), 32)
    with closing(data):
        num = data.train.num_samples
        with data.loader(data.train, [view], train=True) as loader:
            batch = next(loader.epoch(4))
            flips = view.draw(Keys(seed, 4, batch.indices.numpy()))[0]["flip"]
            assert batch.draws[0][0]["flip"].tolist() == flips.tolist()
        with data.annotated_loader(lambda index, epoch: (torch.zeros(3, 2, 2), {})) as whole_images:
            annotated = next(whole_images.epoch(4))
    expected = epoch_order(seed, 4, num)[:32].tolist()
    assert batch.indices.tolist() == annotated.indices.tolist() == expected
    assert expected != epoch_order(1 - seed, 4, num)[:32].tolist()


def test_first_weights_of_a_head_follow_from_seed_and_stage_alone() -> None:
    weights = []
    for seed, number in ((0, 1), (0, 2), (1, 1), (1, 2), (0, 1)):
        options = PretrainOptions(batch_size=32, epochs=(2, 2, 2), seed=seed)
        train_step = make_train_step(tiny_experiment(), number, options, one_process())
        weights.append(tuple(train_step.module.head.embed[0].weight.flatten().tolist()))  # type: ignore[index, union-attr]
    assert len(set(weights)) == 4 and weights[0] == weights[-1]


def test_each_step_of_each_rank_has_its_own_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    loss = Jigsaw.loss

    def listen(*arguments: Any) -> Any:
        seen.append(torch.initial_seed())
        return loss(*arguments)

    monkeypatch.setattr(Jigsaw, "loss", listen)
    for number, (seed, rank) in enumerate(((0, 0), (0, 1), (1, 0), (0, 0))):
        run = tiny_run(tmp_path / str(number), max_steps_per_stage=2, seed=seed, val=None)
        run.world = replace(run.world, rank=rank)
        assert pretrain(tiny_experiment(), run)
        run.close()
    assert len(seen) == 4 * 6 and len(set(seen)) == 3 * 6 and seen[:6] == seen[-6:]


def test_passes_of_each_epoch_have_draws_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their numbers come after those of all training epochs, with room for each stage's warm-up."""
    seen: list[int] = []

    def listen(_: Jigsaw, context: EpochContext) -> None:
        seen.append(context.draws_epoch)

    monkeypatch.setattr(Jigsaw, "start_epoch", listen)
    run = tiny_run(tmp_path, max_steps_per_stage=STEPS_PER_EPOCH + 1, val=None)
    assert pretrain(tiny_experiment(), run)
    run.close()
    firsts = [6 + stage * MAX_WARM_UP_EPOCHS + MAX_WARM_UP_EPOCHS // 2 for stage in range(3)]
    assert seen == [first + epoch for first in firsts for epoch in range(2)]
