"""A run's data: which are refused before the first step, and the options of their loader."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastpsl.engine import run as module
from fastpsl.engine.distributed import World
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.run import RunData
from fastpsl.engine.trainer import pretrain
from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.pipelines.views import ViewSpec
from tests.engine.test_trainer import fit, tiny_experiment
from tests.engine.tiny import tiny_run
from tests.pipelines.labelled import write_labelled


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than one batch of 960"):
        fit(tmp_path, batch_size=960, accumulate=2)


def test_a_task_that_needs_labels_refuses_data_without(tmp_path: Path) -> None:
    def fit_with_labels(data: Path) -> bool:
        experiment = tiny_experiment()
        experiment.task.needs_labels = True  # type: ignore[attr-defined]
        run = tiny_run(tmp_path / "out", data=str(data), val=None, batch_size=4, max_steps_per_stage=1)
        try:
            return pretrain(experiment, run)
        finally:
            run.close()

    labelled = write_labelled(tmp_path / "labelled.beton", range(8))
    without = write_labelled(tmp_path / "without.beton", (0, 1, -1, 3, -1, 5, 6, 7))
    with pytest.raises(
        ValueError, match=r"this recipe needs labels, and 2 of 8 samples have none .*sample 2 \(p2\)"
    ):
        fit_with_labels(without)
    assert fit_with_labels(labelled)


def test_a_batch_of_all_images_is_allowed(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, batch_size=480)
    run.data.check_batch()
    run.close()


def test_a_run_closes_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, closed = tiny_run(tmp_path), list[RunData]()
    with monkeypatch.context() as patch:
        patch.setattr(RunData, "close", lambda data: closed.append(data))
        run.close()
    assert closed == [run.data]
    run.data.close()


def test_validation_images_are_checked_for_their_own_views(tmp_path: Path) -> None:
    """An image of 32 px has less than one pixel of a crop of 24 of 2,400 px."""
    small, large = ViewSpec(ShorterSideCrop(32, 24)), ViewSpec(ShorterSideCrop(2400, 24))
    run = tiny_run(tmp_path)
    run.data.check_views([small], [small])
    for views, val_views in (([small], [large]), ([large], [small])):
        with pytest.raises(ValueError, match="is too small for a crop of"):
            run.data.check_views(views, val_views)
    run.close()


def test_options_reach_the_loader_of_whole_images() -> None:
    options = PretrainOptions(
        data=str(sample_paths().train_32), batch_size=64, accumulate=2, seed=5, workers=3, prefetch_batches=7,
        timeout_s=33.0,
    )  # fmt: skip
    run_data = RunData(options, World(1, 2, 1, 2, torch.device("cpu")))
    read: Any = None
    with closing(run_data), run_data.annotated_loader(read) as loader:
        assert (loader.num_samples, loader.batch_size_per_rank) == (480, 16)
        assert (loader.rank, loader.world, loader.device) == (1, 2, torch.device("cpu"))
        assert (loader.seed, loader.prefetch_batches, loader.timeout_s) == (5, 7, 33.0)
        assert loader._workers.num_threads == 3


@pytest.mark.parametrize("share", [None, 0.0, 0.65])
def test_the_share_of_the_jpeg_engines_reaches_the_loader(
    share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def build(*_: Any, hw_decoder_load: float | None, **__: Any) -> SimpleNamespace:
        given.append(hw_decoder_load)
        return SimpleNamespace(decoder_name="dali")

    monkeypatch.setattr(module, "Loader", build)
    options = PretrainOptions(data=str(sample_paths().train_32), hw_decoder_load=share)
    with closing(RunData(options, World(0, 1, 0, 1, torch.device("cpu")))) as run_data:
        run_data.loader(run_data.train, [ViewSpec(ShorterSideCrop(32, 32))], train=False)
    assert given == [share]
