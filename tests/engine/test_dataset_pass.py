"""EpochContext passes over every training sample once, as requested, and leaves the network unchanged."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastpsl.engine.dataset_pass import EpochContext, PassStopped, _without_padding, undisturbed
from fastpsl.engine.experiment import Experiment, make_train_step
from fastpsl.engine.optim.schedules import cosine
from fastpsl.engine.plan import make_plan
from fastpsl.engine.run import Run
from fastpsl.engine.train_step import DTYPES
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.views import Input, ViewSpec, center_view
from fastpsl.tasks.rotation import Rotation
from tests.engine.tiny import TinyNet, noise_batch, one_process, tiny_run
from tests.programs import digests

NUM = 75  # two batches of 32, and one of 11 with padding
CENTER = center_view(Input(size_px=32), 32)
RANDOM = ViewSpec(RandomResizedCrop(32))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = tiny_run(tmp_path)
    run.data.train = Subset(run.data.train, np.arange(NUM))
    yield run
    run.close()


def context_of(run: Run, draws: int = 1000) -> EpochContext:
    torch.manual_seed(0)
    experiment = Experiment(
        Rotation(shorter_px=36, size_px=32), TinyNet(), make_plan("psl", (1, 1, 1)), cosine(0.1)
    )
    train_step = make_train_step(experiment, 0, run.options, run.world)
    for batch in range(3):  # fill the running statistics
        train_step.module.blocks(torch.randn(8, 3, 32, 32) + batch)
    return EpochContext(run, train_step, epoch=0, first=True, draws_epoch=draws)


@pytest.mark.parametrize("training", [False, True])
def test_every_sample_once_and_nothing_is_changed(run: Run, training: bool) -> None:
    context = context_of(run)
    module = context.train_step.module
    module.blocks.learning[1].eval()  # a mode that the pass must restore
    before = digests(module.state_dict()), [part.training for part in module.modules()]
    all_indices: list[int] = []
    for indices, features in context.forward_dataset(RANDOM, lambda maps: maps, training=training):
        assert not features.requires_grad and features.shape == (32, 12, 4, 4)
        all_indices += indices.tolist()
    assert all_indices[:NUM] == list(range(NUM)) and all_indices[NUM:] == [-1] * 21
    assert (digests(module.state_dict()), [part.training for part in module.modules()]) == before


def test_in_eval_mode_an_image_does_not_depend_on_its_batch(run: Run) -> None:
    context = context_of(run)
    network = context.train_step.module.blocks
    (image,) = (view for view in [CENTER])
    result = torch.cat([features for _, features in context.forward_dataset(CENTER, lambda maps: maps)])[:NUM]
    with run.data.loader(run.data.train, [image], train=False) as loader:
        inputs = torch.cat([batch.inputs([image], torch.float32)[0] for batch in loader.epoch(1000)])[:NUM]
    network.eval()
    with torch.no_grad():
        assert torch.allclose(result, torch.cat([network(one[None]) for one in inputs]), atol=1e-5)


def test_each_batch_of_each_pass_has_its_own_dropout(run: Run) -> None:
    def seeds(draws: int) -> list[int]:
        passed = context_of(run, draws).forward_dataset(
            RANDOM, lambda maps: torch.tensor(torch.initial_seed()), training=True
        )
        return [int(seed) for _, seed in passed]

    first, other = seeds(1000), seeds(1001)
    assert len(first) == 3 and len({*first, *other}) == 6 and seeds(1000) == first


def test_in_train_mode_statistics_are_the_batchs_without_its_padding(run: Run) -> None:
    context = context_of(run)
    network = context.train_step.module.blocks
    batches = [features for _, features in context.forward_dataset(RANDOM, lambda maps: maps, training=True)]
    with run.data.loader(run.data.train, [RANDOM], train=False) as loader:
        inputs = [batch.inputs([RANDOM], torch.float32)[0] for batch in loader.epoch(1000)]
    network.train()
    with torch.no_grad():
        assert torch.allclose(batches[0], network(inputs[0]), atol=1e-5)
        last = inputs[2][:11]
        repeated = torch.cat([last, last[torch.arange(11, 32) % 11]])
        assert torch.allclose(batches[2][:11], network(repeated)[:11], atol=1e-5)
        assert not torch.allclose(batches[2][:11], network(inputs[2])[:11], atol=1e-2)


def test_padding_is_filled_with_the_batchs_own_images() -> None:
    batch = noise_batch([CENTER], 6)
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 2, 2)
    for indices, expected in (
        ([5, 6, 7, -1, -1, -1], [0, 1, 2, 0, 1, 2]),
        ([5, -1, 7, 8, -1, -1], [0, 2, 2, 3, 2, 3]),
        ([1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5]),
        ([-1] * 6, [0, 1, 2, 3, 4, 5]),
        ([-1, 0, -1, -1, -1, -1], [1] * 6),
    ):
        batch.indices = torch.tensor(indices)
        filled = _without_padding(images, batch)[:, 0, 0, 0].tolist()
        valid = [place for place, index in enumerate(indices) if index >= 0]
        assert all(filled[place] == place for place in valid)
        assert set(filled) == (set(map(float, valid)) or set(filled)) and filled == expected


def test_draws_are_those_that_were_asked_for(run: Run) -> None:
    def features_of(draws: int) -> torch.Tensor:
        return torch.cat(
            [features for _, features in context_of(run, draws).forward_dataset(RANDOM, lambda maps: maps)]
        )

    assert torch.equal(features_of(7), features_of(7)) and not torch.equal(features_of(7), features_of(8))


def test_a_signal_ends_a_pass_and_what_fails_in_it_leaves_no_trace(run: Run) -> None:
    context = context_of(run)
    module = context.train_step.module
    before = digests(module.state_dict())
    with pytest.raises(ZeroDivisionError):
        for _ in context.forward_dataset(RANDOM, lambda maps: maps, training=True):
            _ = 1 / 0
    run.stop_signal.stop_requested = True
    with pytest.raises(PassStopped):
        list(context.forward_dataset(RANDOM, lambda maps: maps, training=True))
    assert digests(module.state_dict()) == before and module.training


def test_undisturbed_puts_modes_and_statistics_back() -> None:
    network = TinyNet()
    network.parts[2].eval()
    before = digests(network.state_dict())
    with undisturbed(network, one_process(), training=True), torch.no_grad():
        assert all(part.training for part in network.modules())
        network(torch.randn(4, 3, 32, 32))
        assert digests(network.state_dict()) != before
    assert digests(network.state_dict()) == before
    assert [part.training for part in network.parts] == [True, True, False, True, True]
    with undisturbed(network, one_process()):
        assert not any(part.training for part in network.modules())
    assert [part.training for part in network.parts] == [True, True, False, True, True]


def test_dropout_in_a_pass_is_its_own(run: Run) -> None:
    """Dropout does not depend on earlier random numbers, and differs between batches."""
    context = context_of(run)
    context.train_step.module.blocks.learning[2] = torch.nn.Sequential(
        context.train_step.module.blocks.learning[2], torch.nn.Dropout(0.5)
    )
    results = []
    for state in (1, 2):
        torch.manual_seed(state)
        results.append(
            [features for _, features in context.forward_dataset(CENTER, lambda maps: maps, training=True)]
        )
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert not torch.equal(results[0][0] == 0, results[0][1] == 0)


def test_a_pass_runs_nothing_that_was_compiled(run: Run) -> None:
    context = context_of(run)
    blocks = context.train_step.module.blocks

    def refuse(*arguments: object) -> list[torch.Tensor]:
        raise AssertionError("a step's runner")

    blocks.runner = refuse  # type: ignore[assignment]
    list(context.forward_dataset(CENTER, lambda maps: maps, training=True))
    assert blocks.runner is refuse


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_pass_shows_the_blocks_images_in_the_steps_precision(tmp_path: Path, precision: str) -> None:
    with closing(tiny_run(tmp_path, precision=precision)) as run:
        context, seen = context_of(run), set[torch.dtype]()
        blocks = context.train_step.module.blocks
        blocks.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
        for _, features in context.forward_dataset(CENTER, lambda maps: maps):
            assert (features.dtype == torch.bfloat16) == (precision == "bf16")
    assert seen == {DTYPES[precision]}


def test_a_pass_is_no_part_of_the_steps_pace(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is no step's, and a signal is heard after its first batch, however fast the steps were."""
    context, is_off, seen = context_of(run), [False], list[bool]()

    @contextmanager
    def off_the_clock() -> Iterator[None]:
        is_off.append(True)
        yield
        is_off.append(False)

    def note(batch: Any) -> Tensor:
        seen.append(is_off[-1])
        return torch.zeros(1)

    monkeypatch.setattr(run.reporter, "off_the_clock", off_the_clock)
    passes: tuple[Callable[[], object], ...] = (
        lambda: list(context.forward_dataset(CENTER, note)),
        lambda: context.predict(lambda images: ({"row": note(image).numpy()} for image in images), {}),
    )
    for make_pass in passes:
        run.stop_signal.stop_requested, run.stop_signal._ask_after = True, 64
        with pytest.raises(PassStopped):
            make_pass()
        is_off.append(False)
    assert seen == [True, True]


def test_predictions_are_of_blocks_and_head(tmp_path: Path) -> None:
    """What is kept of a pass over validation images serves no other weights, of the head alone either."""
    run = tiny_run(tmp_path)
    context = context_of(run)
    before = context.val_science(crop=1)
    assert run.data.val is not None
    assert before == context.val_science(crop=1) and before["data"] == run.data.val.digest()
    assert before != context.val_science(crop=2)
    found = [before["weights"]]
    for part in (context.train_step.module.head, context.train_step.module.blocks):
        with torch.no_grad():
            next(part.parameters()).flatten()[0] += 1
        found.append(context.val_science()["weights"])
    assert len(set(found)) == 3
    run.close()
