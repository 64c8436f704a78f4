"""The online monitor: its figures, no effect on training, stops and resumes."""

import copy
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastpsl.engine import online_probe as online
from fastpsl.engine import trainer
from fastpsl.engine.dataset_pass import PassStopped
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.online_probe import (
    Features,
    OnlineProbe,
    effective_rank,
    feature_std,
    figures,
    is_probed,
    probe_line,
    ridge_classes,
)
from fastpsl.engine.plan import Stage
from fastpsl.engine.reporter import summary_line
from fastpsl.engine.run import Run
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.trainer import pretrain
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.filters import Sobel
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.pipelines.views import Input, ViewSpec, center_view
from fastpsl.plots import charts
from fastpsl.plots.charts import draw_probes
from fastpsl.tasks.classify import Classify
from tests.engine.exact_signals import before_asking
from tests.engine.test_reporter import Board
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import TinyNet, tiny_run
from tests.programs import digests, newest_checkpoint
from tests.slow import slow

STEPS_PER_EPOCH = 5  # 480 images in batches of 96
STAGE = Stage("S3", 3, 3, 5, 2)


def noise(num: int, channels: int, seed: int = 0) -> Tensor:
    return torch.randn(num, channels, generator=torch.Generator().manual_seed(seed))


def test_std_is_1_for_even_directions_and_0_for_one() -> None:
    assert feature_std(noise(4000, 64)) == pytest.approx(1, abs=0.02)
    assert feature_std(noise(1, 64).expand(100, 64) * torch.rand(100, 1)) == pytest.approx(0, abs=1e-6)
    rows = noise(50, 8).double().numpy()
    rows /= np.sqrt((rows**2).sum(1, keepdims=True))
    assert feature_std(noise(50, 8)) == pytest.approx(rows.std(0).mean() * 8**0.5)


@pytest.mark.parametrize("shape", [(60, 16), (16, 60)])
def test_the_rank_is_exp_of_the_entropy_of_singular_values(shape: tuple[int, int]) -> None:
    features = noise(*shape) @ torch.diag(torch.linspace(0.1, 2, shape[1]))
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = values / values.sum()
    assert effective_rank(features) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)


def test_the_rank_counts_directions() -> None:
    basis = torch.linalg.qr(noise(40, 40))[0]
    assert effective_rank(basis[:, :7].repeat(1, 2)) == pytest.approx(7, rel=1e-4)
    assert effective_rank(noise(1, 9).expand(30, 9)) == pytest.approx(1, rel=1e-3)
    assert effective_rank(torch.zeros(30, 9)) == pytest.approx(1)


def test_ridge_is_the_solution_of_its_normal_equations() -> None:
    """Compares to numpy's least squares on the stacked problem, including a constant channel."""
    features, others = noise(80, 10) * 7 + 3, noise(40, 10, 1) * 7 + 3
    labels = torch.randint(0, 4, (80,), generator=torch.Generator().manual_seed(2))
    features[:, 4] = 5.0
    others[:, 4] = 1e6  # ignored, because the channel is constant in training
    x, queries = features.double().numpy(), others.double().numpy()
    mean, deviation = x.mean(0), x.std(0)
    deviation[4] = np.inf
    x, queries = (x - mean) / deviation, (queries - mean) / deviation
    y = np.eye(4)[labels.numpy()]
    stacked = np.vstack([x, np.sqrt(online.RIDGE * 80) * np.eye(10)])
    targets = np.vstack([y - y.mean(0), np.zeros((10, 4))])
    scores = queries @ np.linalg.lstsq(stacked, targets, rcond=None)[0] + y.mean(0)
    result = ridge_classes(features, labels, others, 4)
    assert result.tolist() == scores.argmax(1).tolist() and len(set(result.tolist())) > 2


def test_ridge_standardises_by_the_deviation_that_has_n_below() -> None:
    """Of few images n - 1 would show.

    Images at 0, 2 and 2 are standardised to x = -√2, 1/√2 and 1/√2 by 4/3 and 2√2/3. The classes' scores are
    2/3 + W x and 1/3 - W x with W = √2/3 / (1 + 1/10). They are equal where x is -1/(6 W), which is at
    4/3 - 1.1/3. With n - 1, it would be at 4/3 - 1.15/3.
    """
    features, labels = torch.tensor([[0.0], [2.0], [2.0]]), torch.tensor([0, 1, 1])
    others = 4 / 3 - 1.1 / 3 + torch.tensor([[-0.01], [0.01]])
    assert ridge_classes(features, labels, others, 2).tolist() == [0, 1]


def test_the_looked_at_images_are_drawn_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "MAX_TRAIN", 30)
    monkeypatch.setattr(online, "MAX_VAL", 30)
    parts, data = [], str(sample_paths().train_32)
    for number, seed in enumerate((0, 1, 0)):
        with closing(probed_run(tmp_path / str(number), seed=seed, data=data, val=data)) as run:
            monitor = OnlineProbe(run, StageBlocks(TinyNet(), STAGE), STAGE, VIEW(), 1)
        assert monitor.val is not None
        parts += [tuple(part.indices.tolist()) for part in (monitor.train, monitor.val)]
    assert [len(set(part)) for part in parts] == [30] * 6 and parts == [tuple(sorted(p)) for p in parts]
    assert len(set(parts)) == 4 and parts[:2] == parts[-2:]


def test_neighbours_vote_by_the_usual_weights() -> None:
    """Each of the 20 nearest weighs exp(cosine / 0.07), as in kNN evaluations; the ridge is a tenth."""
    assert online.RIDGE == 0.1
    labels, truth = torch.arange(90) % 3, torch.arange(60) % 3
    features, others = noise(90, 4, 2) + 0.7 * labels[:, None], noise(60, 4, 52) + 0.7 * truth[:, None]
    rows, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features.numpy(), others.numpy()))
    accuracies = []
    for k, temperature in ((20, 0.07), (20, 0.7), (10, 0.07)):
        right = 0
        for query, label in zip(queries, truth.tolist(), strict=True):
            cosines, votes = rows @ query, [0.0, 0.0, 0.0]
            for row in np.argsort(-cosines)[:k]:
                votes[int(labels[row])] += float(np.exp(cosines[row] / temperature))
            right += votes.index(max(votes)) == label
        accuracies.append(right / 60)
    found = figures(Features(features, labels), Features(others, truth))["knn_accuracy"]
    assert found == pytest.approx(accuracies[0]) and accuracies[0] not in accuracies[1:]


def test_fewer_images_than_neighbours_all_vote() -> None:
    """A query is next to one image of class 0, but the two of class 1 are hardly farther."""
    train = Features(torch.tensor([[1.0, 0], [0.99, 0.1], [0.99, 0.1]]), torch.tensor([0, 1, 1]))
    found = figures(train, Features(torch.tensor([[1.0, 0.0], [1.0, 0.1]]), torch.tensor([0, 1])))
    assert found["knn_accuracy"] == 0.5


def test_a_look_without_labels_or_with_features_that_are_not_finite() -> None:
    labels = torch.arange(40) % 4
    clear = nn.functional.one_hot(labels, 4).float() + 0.01 * noise(40, 4)
    whole = figures(Features(clear, labels), Features(clear[:12], labels[:12]))
    assert whole["knn_accuracy"] == whole["linear_accuracy"] == 1 and whole["num_val"] == 12
    bare = figures(Features(clear, torch.full((40,), -1)), None)
    assert bare["knn_accuracy"] is None and bare["effective_rank"] == whole["effective_rank"]
    clear[3, 1] = float("inf")
    not_finite = figures(Features(clear, labels), Features(clear[:12], labels[:12]))
    assert all(not_finite[name] is None for name in online.FIGURES)
    assert "not finite" in probe_line(not_finite | {"epoch": 1.0, "stage": "S1", "block": "B3"})


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no plots, which take longer than these runs. `whole` draws its own."""
    monkeypatch.setattr(charts, "draw_probes", lambda lines, path: path)


def probed_run(out: Path, **options: Any) -> Run:
    return tiny_run(out, **({"batch_size": 96, "probe_every": 1} | options))


def fit(out: Path, experiment: Experiment | None = None, **options: Any) -> Run:
    with closing(probed_run(out, **options)) as run:
        assert pretrain(experiment or tiny_experiment(), run)
    return run


def all_lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "probe.jsonl").read_text().splitlines()]


def probes(out: Path) -> list[dict[str, Any]]:
    """Return the lines of probes during the training."""
    return [line for line in all_lines(out) if line["run_step"]]


def untrained(out: Path) -> list[dict[str, Any]]:
    return [line for line in all_lines(out) if not line["run_step"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with probes after each epoch."""
    out = tmp_path_factory.mktemp("probed")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            charts, "draw_probes", lambda lines, path: len(lines) == 9 and draw_probes(lines, path)
        )
        fit(out)
    return out


def test_a_curve_of_all_looks(whole: Path, tmp_path: Path) -> None:
    assert (whole / "probe.png").stat().st_size > 0
    lines = all_lines(whole)
    lines[5] |= dict.fromkeys(online.FIGURES)  # not finite
    for name, some in (("all", lines), ("bare", [line | {"knn_accuracy": None} for line in lines[3:4]])):
        draw_probes(some, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size[0] == 960 and np.asarray(image).std() > 10


def test_training_is_what_it_would_have_been(whole: Path, tmp_path: Path) -> None:
    fit(tmp_path, probe_every=0)
    assert not (tmp_path / "probe.jsonl").exists()
    values = digests(newest_checkpoint(whole))
    own = {name for name in values if "/knn_" in name}  # in the summaries of the three stages
    assert len(own) == 6
    assert digests(newest_checkpoint(tmp_path)) == {n: values[n] for n in values.keys() - own}
    assert (tmp_path / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


def test_every_epoch_of_every_stage_has_a_line(whole: Path) -> None:
    lines = probes(whole)
    assert [line["run_step"] for line in lines] == [STEPS_PER_EPOCH * epoch for epoch in range(1, 7)]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["block"] for line in lines] == ["B3", "B3", "B4", "B4", "B5", "B5"]
    assert [line["channels"] for line in lines] == [12, 12, 16, 16, 16, 16]
    for line in lines:
        assert (line["num_train"], line["num_val"], line["num_classes"]) == (480, 160, 8)
        assert 1 / 8 < line["knn_accuracy"] <= 1 and 1 / 8 < line["linear_accuracy"] <= 1
        assert 0 < line["feature_std"] < 1 < line["effective_rank"] < 16


def test_the_numbers_are_those_of_the_blocks_as_it_is_saved(whole: Path) -> None:
    """The last probe's features, computed again from the checkpoint, one image at a time."""
    net = TinyNet()
    net.load_state_dict(newest_checkpoint(whole)["backbone"])
    net.eval()
    run = probed_run(whole)
    parts = []
    for data in (run.data.train, run.data.val):
        assert data is not None
        view, rows = OnlineProbe(run, StageBlocks(TinyNet(), STAGE), STAGE, VIEW(), 1).view, []
        loader = Loader(data, [view], batch_size_per_rank=1, train=False, num_threads=1)
        with loader, torch.no_grad():
            for batch in loader.epoch(0):
                (image,) = batch.inputs(loader.views, torch.float32)
                rows.append(nn.Sequential(*net.blocks())(image).mean((2, 3))[0])
        parts.append(Features(torch.stack(rows), torch.from_numpy(data.labels().astype(np.int64))))
    run.close()
    expected, line = figures(*parts), probes(whole)[-1]
    assert expected == {name: pytest.approx(line[name], rel=1e-3) for name in expected}


def VIEW() -> Any:
    return tiny_experiment().task.views(3)[0]


def test_looks_by_count_of_all_epochs_and_at_each_stages_end(tmp_path: Path) -> None:
    experiment = tiny_experiment()
    stages = tuple(map(lambda stage, epochs: replace(stage, epochs=epochs), experiment.stages, (1, 3, 1)))
    fit(tmp_path / "second", replace(experiment, stages=stages), probe_every=2)
    assert [line["epoch"] for line in probes(tmp_path / "second")] == [1, 2, 4, 5]
    fit(tmp_path / "cut", probe_every=2, max_steps_per_stage=3)
    assert [line["run_step"] for line in probes(tmp_path / "cut")] == [3, 6, 9]


def stop_at(run: Run, when: Callable[[], bool]) -> None:
    """Send the stop signal at an exact place."""

    def request() -> None:
        run.stop_signal.stop_requested |= when()

    before_asking(run, request)


@pytest.mark.parametrize("step", [STEPS_PER_EPOCH, slow(2 * STEPS_PER_EPOCH)])
def test_a_signal_during_a_look_is_heard_and_the_look_made_up_for(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    run, looking = probed_run(tmp_path), []
    features = OnlineProbe._features

    def note(monitor: OnlineProbe, *arguments: Any) -> Any:
        looking.append(run.position.run_step)
        return features(monitor, *arguments)

    monkeypatch.setattr(OnlineProbe, "_features", note)
    stop_at(run, lambda: step in looking)
    assert not pretrain(tiny_experiment(), run)
    run.close()
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path)["position"]["run_step"] == step
    steps = list(range(STEPS_PER_EPOCH, step, STEPS_PER_EPOCH))
    assert [line["run_step"] for line in probes(tmp_path)] == steps
    fit(tmp_path)
    assert probes(tmp_path) == probes(whole)
    assert digests(newest_checkpoint(tmp_path)) == digests(newest_checkpoint(whole))


def stopped(monitor: OnlineProbe, forward: Any, stages: Any, epochs: float) -> Any:
    """Stand for `_measured` where a signal comes after the first step."""
    if monitor.run.position.run_step:
        raise PassStopped
    return [{"stage": stage.name, "run_step": 0, "num_val": 0} | SIGNS for stage in stages]


SIGNS = {"knn_accuracy": None, "linear_accuracy": None, "feature_std": 1.0, "effective_rank": 1.0}


def test_without_validation_images_a_stopped_look_leaves_the_stage_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnlineProbe, "_measured", stopped)
    with closing(probed_run(tmp_path, val=None)) as run:
        assert not pretrain(tiny_experiment(), run)
    assert newest_checkpoint(tmp_path)["position"]["run_step"] == STEPS_PER_EPOCH


def test_a_look_is_on_disk_before_it_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(online.MetricsFile, "sync", lambda file: done.append(file.path.name))
    monkeypatch.setattr(charts, "draw_probes", lambda lines, path: done.append(path.name))
    fit(tmp_path, val=None, max_steps_per_stage=1)
    assert [name for name in done if name.startswith("probe")] == [
        "probe.jsonl", *["probe.jsonl", "probe.png"] * 3,
    ]  # fmt: skip


def test_lines_past_the_checkpoint_are_cut_and_made_again(whole: Path, tmp_path: Path) -> None:
    """The run resumes from step 5, which was probed. As after a kill, the file has a line and a half more."""
    run = probed_run(tmp_path, checkpoint_steps=STEPS_PER_EPOCH)
    stop_at(run, lambda: run.position.run_step >= 7)
    assert not pretrain(tiny_experiment(), run)
    run.close()
    max((tmp_path / "checkpoints").iterdir()).unlink()
    assert newest_checkpoint(tmp_path)["position"]["run_step"] == 5
    assert [line["run_step"] for line in probes(tmp_path)] == [5]
    with open(tmp_path / "probe.jsonl", "a") as file:
        file.write(json.dumps(probes(whole)[1] | {"effective_rank": 99.0}) + "\n" + '{"run_st')
    fit(tmp_path)
    assert probes(tmp_path) == probes(whole)


def test_data_without_labels_shows_the_signs_alone(tmp_path: Path) -> None:
    run = fit(tmp_path, val=None, probe_every=2, max_steps_per_stage=2)
    assert run.data.val is None
    for line in probes(tmp_path):
        assert line["knn_accuracy"] is None and 0 < line["feature_std"] < 1 < line["effective_rank"]
        assert "kNN" not in probe_line(line)


def test_validation_data_of_other_classes_is_refused_before_training(tmp_path: Path) -> None:
    run = probed_run(tmp_path)
    assert run.data.val is not None
    run.data.val.class_names = [*run.data.val.class_names[:-1], "tree house"]  # type: ignore[index]
    with pytest.raises(ValueError, match="tree house"):
        pretrain(tiny_experiment(), run)
    run.close()
    assert not (tmp_path / "metrics.jsonl").read_text()


def test_a_part_of_large_data_is_fixed_by_the_seed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = probed_run(tmp_path)

    def chosen(seed: int, part: int = 1, data: Dataset = run.data.train) -> list[int]:
        return online._some(data, 100, (seed, part)).indices.tolist()

    assert chosen(0) == chosen(0) == sorted(set(chosen(0))) and len(chosen(0)) == 100
    assert chosen(0) != chosen(1) != chosen(1, 2) and max(chosen(0)) > 400
    run.close()


def test_at_most_5_000_training_and_10_000_validation_images_are_looked_at(tmp_path: Path) -> None:
    with closing(probed_run(tmp_path)) as run:
        run.data.train, run.data.val = Synthetic(12_000, 8), Synthetic(12_001, 8)
        monitor = OnlineProbe(run, StageBlocks(TinyNet(), STAGE), STAGE, VIEW(), 1)
        assert monitor.val is not None
        assert (monitor.train.num_samples, monitor.val.num_samples) == (5_000, 10_000)


@pytest.mark.parametrize(("deviation", "is_used"), [(1e-3, True), (1e-5, False)])
def test_a_channel_that_hardly_varies_is_left_out_of_the_ridge(deviation: float, is_used: bool) -> None:
    """Only the last channel tells the classes apart."""
    labels = torch.arange(200) % 2
    features = torch.cat([noise(200, 3), deviation * (2.0 * labels[:, None] - 1)], 1)
    right = (ridge_classes(features, labels, features, 2) == labels).float().mean()
    assert (float(right) == 1) == is_used


def test_classes_are_those_of_both_parts() -> None:
    features = nn.functional.one_hot(torch.arange(30) % 3, 3).float()
    train, val = Features(features, torch.arange(30) % 3), Features(features, torch.arange(30) % 3 + 2)
    for parts, num_classes in (((train, val), 5), ((val, train), 5), ((train, train), 3)):
        assert figures(*parts)["num_classes"] == num_classes


def test_a_line_for_people_has_chance_and_full_rank() -> None:
    line = {
        "epoch": 2.6, "stage": "S2", "block": "B4", "knn_accuracy": 0.5, "linear_accuracy": 0.625,
        "feature_std": 0.75, "effective_rank": 12.34, "num_train": 480, "num_val": 1160,
        "num_classes": 8, "channels": 16,
    }  # fmt: skip
    signs = "std 0.750 of 1, rank 12.3 of 16"
    assert probe_line(line) == (
        "probe after epoch 2.6 (S2, B4): kNN 50.0 %, linear 62.5 % of 1,160 validation images "
        f"(chance 12.5 %), {signs}"
    )
    beside = "kNN 50.0 % (untrained 37.5 %), linear"
    assert beside in probe_line(line | {"knn_untrained": 0.375})
    assert probe_line(line | {"num_val": 0}) == f"probe after epoch 2.6 (S2, B4): {signs}"
    assert probe_line(line | {"num_train": 14}).endswith("rank 12.3 of 14")


def test_a_look_is_recorded_with_its_place_and_drawn_at_the_runs_step(tmp_path: Path) -> None:
    """The stages of two epochs of five steps are cut after three."""
    run, board = probed_run(tmp_path, max_steps_per_stage=3), Board()
    run.reporter.board = board  # type: ignore[assignment]
    assert pretrain(tiny_experiment(), run)
    run.close()
    lines = probes(tmp_path)
    names = ("run_step", "stage", "level", "step", "epoch", "block")
    assert [tuple(line[name] for name in names) for line in lines] == [
        (3, "S1", 1, 3, 0.6, "B3"), (6, "S2", 2, 3, 2.6, "B4"), (9, "S3", 3, 3, 4.6, "B5"),
    ]  # fmt: skip
    for line in lines:
        for name in (*online.FIGURES, "knn_untrained"):
            assert board.values[f"probe/{name}", line["run_step"]] == line[name]
    assert board.values["probe/knn_accuracy", 0] == untrained(tmp_path)[0]["knn_accuracy"]


# The untrained network.


def by_hand(run: Run, batch_size: int) -> list[dict[str, Any]]:
    """Return the figures of B3, B4 and B5 of a network whose BatchNorms are measured by a plain loop."""
    train, val = run.data.train, run.data.val
    assert val is not None
    monitor, norms = OnlineProbe(run, StageBlocks(TinyNet(), STAGE), STAGE, VIEW()), []
    shuffled, net = monitor.in_random_order(), tiny_experiment().backbone
    assert sorted(shuffled.indices) == list(range(480)) != shuffled.indices.tolist()
    loader = partial(Loader, views=[monitor.view], train=False, num_threads=1)
    with torch.no_grad(), loader(shuffled, views=[VIEW()], batch_size_per_rank=batch_size) as batches:
        for batch in batches.epoch(0):
            (images,), sums = batch.inputs(batches.views, torch.float32), list[Tensor]()
            for block in net.blocks():
                images = block[0](images)  # type: ignore[index]
                sums += [images.mean((0, 2, 3)), images.var((0, 2, 3))]
                images = block[1:](images)  # type: ignore[index]
            norms.append(sums)
    means = [torch.stack(each).mean(0) for each in zip(*norms, strict=True)]
    for i, block in enumerate(net.eval().blocks()):
        block[1].running_mean, block[1].running_var = means[2 * i : 2 * i + 2]  # type: ignore[index]
    parts: list[list[Features]] = [[], [], []]
    for data in (train, val):
        with torch.no_grad(), loader(data, batch_size_per_rank=data.num_samples) as batches:
            (batch,) = batches.epoch(0)
            (images,) = batch.inputs(batches.views, torch.float32)
            for number, block in enumerate(net.blocks(), start=1):
                images = block(images)
                if number >= 3:
                    labels = torch.from_numpy(data.labels().astype(np.int64))
                    parts[number - 3].append(Features(images.mean((2, 3)), labels))
    return [figures(*pair) for pair in parts]


def test_statistics_are_of_training_images_alone_where_others_are_held_back(tmp_path: Path) -> None:
    with closing(probed_run(tmp_path, val="10%")) as run:
        monitor = OnlineProbe(run, StageBlocks(TinyNet(), STAGE), STAGE, VIEW())
        assert sorted(monitor.in_random_order().names()) == sorted(run.data.train.names())


def test_untrained_is_the_first_network_with_measured_statistics(whole: Path) -> None:
    """The statistics are means over whole batches; a stage stands beside its own last block."""
    with closing(probed_run(whole)) as run:
        expected = by_hand(run, 96)
    lines = untrained(whole)
    places = [(line["run_step"], line["step"], line["epoch"]) for line in lines]
    assert places == [(0, 0, 0)] * 3 and [line["block"] for line in lines] == ["B3", "B4", "B5"]
    for line, values in zip(lines, expected, strict=True):
        assert values == {name: pytest.approx(line[name], rel=1e-3) for name in values}
    accuracies = {line["stage"]: line["knn_accuracy"] for line in lines}
    assert all(line["knn_untrained"] == accuracies[line["stage"]] for line in probes(whole))


def test_stages_have_both_accuracies_also_after_a_resume(whole: Path, tmp_path: Path) -> None:
    for out, steps in ((whole, ()), (tmp_path, (7, 17))):
        for step in steps:
            run = probed_run(out)
            stop_at(run, lambda run=run, step=step: run.position.run_step >= step)  # type: ignore[misc]
            assert not pretrain(tiny_experiment(), run)
            run.close()
        run = fit(out)
        ends = [line for line in probes(out) if line["step"] == 2 * STEPS_PER_EPOCH]
        for name in ("knn_accuracy", "knn_untrained"):
            values = [summary[name] for summary in run.position.summaries]
            assert values == [line[name] for line in ends]
    assert all_lines(tmp_path) == all_lines(whole)
    beside = "kNN {knn_accuracy:.1%} (untrained {knn_untrained:.1%})".format(**ends[-1]).replace("%", " %")
    assert summary_line(run.position.summaries[-1]).endswith(f", {beside}")


def test_untrained_is_within_two_points_of_a_rate_of_zero(tmp_path: Path) -> None:
    """The steps of rate 0 change BatchNorm's running statistics alone. They see what the monitor sees."""
    torch.manual_seed(0)
    view = center_view(Input(size_px=32), 32)
    stages = (Stage("E", 1, 1, 5, 4),)
    still = Experiment(Classify(view, view), TinyNet(), stages, lambda moment: 0.0)
    before = {name: value.clone() for name, value in still.backbone.named_parameters()}
    fit(tmp_path, still, batch_size=32, probe_every=4)
    assert all(torch.equal(value, before[name]) for name, value in still.backbone.named_parameters())
    (first,), (last,) = untrained(tmp_path), probes(tmp_path)
    assert abs(first["knn_accuracy"] - last["knn_accuracy"]) <= 0.02 and first["knn_accuracy"] > 0.2


def test_a_look_at_the_untrained_network_changes_nothing(tmp_path: Path) -> None:
    net = TinyNet()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum, part.num_batches_tracked = 0.3, torch.tensor(7)
            part.running_mean = torch.randn(part.num_features)
    net.parts[0].eval()
    modes, state = [part.training for part in net.modules()], copy.deepcopy(net.state_dict())
    with closing(probed_run(tmp_path)) as run:
        monitor = OnlineProbe(run, StageBlocks(net, STAGE), STAGE, VIEW())
        net.parts[0].eval()
        modes, before = [part.training for part in net.modules()], torch.get_rng_state()
        assert monitor.look_untrained(net, [STAGE], tiny_experiment().task)
        assert torch.equal(torch.get_rng_state(), before)
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert {part.momentum for part in net.modules() if isinstance(part, nn.BatchNorm2d)} == {0.3}


def test_each_stage_is_looked_at_through_its_own_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three stages have one input, for which one pass is enough."""
    net, seen = TinyNet(), list[str]()
    stages = [Stage(f"S{i}", i, 1, i + 2, 1) for i in (1, 2, 3)]
    views = [VIEW(), ViewSpec(RandomResizedCrop(32), (Sobel(1.0),)), VIEW()]
    task: Any = SimpleNamespace(views=lambda level: [views[level - 1]])
    inputs = OnlineProbe._inputs

    def note(monitor: OnlineProbe, what: str, *arguments: Any) -> Any:
        seen.append(f"{what.split(':')[0]} {monitor.view.input().channels}")
        return inputs(monitor, what, *arguments)

    monkeypatch.setattr(OnlineProbe, "_inputs", note)
    with closing(probed_run(tmp_path)) as run:
        monitor = OnlineProbe(run, StageBlocks(net, STAGE), STAGE, views[0])
        assert monitor.look_untrained(net, stages, task)
        seen_together, together = seen.copy(), untrained(tmp_path)
        for stage in stages:
            assert monitor.look_untrained(net, [stage], task)
        assert together == untrained(tmp_path)[-3:] and len(together) == 3
        seen.clear()
        bare: Any = Blocks([nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())])
        assert monitor.look_untrained(bare, [replace(STAGE, last_block=1)], task)
    assert seen_together == [
        f"{what} {channels}" for channels in ("RGB", "Sobel") for what in ("untrained", "probe", "probe")
    ]
    assert seen == ["probe RGB", "probe RGB"]


class Blocks(nn.ModuleList):
    """A network without BatchNorm."""

    def blocks(self) -> list[nn.Module]:
        return list(self)


def test_by_default_stages_ends_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer, "is_probed", is_probed)  # tests.cheaper has another
    fit(tmp_path, probe_every=None)
    assert [line["epoch"] for line in all_lines(tmp_path)] == [0, 0, 0, 2, 4, 6]
    said = capsys.readouterr().err
    assert said.count("untrained: kNN B3 ") == 1 and "probe after epoch" not in said


def test_a_cut_run_looks_at_no_more_images_than_a_stage_sees(tmp_path: Path) -> None:
    fit(tmp_path, batch_size=32, max_steps_per_stage=3, epochs=(1, 1, 1))
    assert {(line["num_train"], line["num_val"]) for line in all_lines(tmp_path)} == {(96, 96)}


def test_what_is_untrained_is_measured_again_by_a_run_that_starts_anew(tmp_path: Path) -> None:
    """A run that was killed before its first checkpoint has left its lines."""
    (tmp_path / "probe.jsonl").write_text(json.dumps({"run_step": 0, "stage": "old"}) + "\n")
    fit(tmp_path, max_steps_per_stage=1)
    assert [line["stage"] for line in untrained(tmp_path)] == ["S1", "S2", "S3"]


def test_features_are_looked_at_where_there_are_classes_to_tell_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def probed(task: Any = None, **options: Any) -> tuple[bool, str]:
        with closing(probed_run(tmp_path, **options)) as run:
            if run.data.val is not None and names:
                run.data.val.class_names = names
            capsys.readouterr()
            is_on = [is_probed(run, task or tiny_experiment().task) for _ in range(2)]
            assert is_on[0] == is_on[1]
            return is_on[0], capsys.readouterr().err.strip()

    names: list[str] | None = None
    classify = Classify(VIEW(), VIEW())
    assert probed(probe_every=None) == probed(probe_every=2) == (True, "")
    assert probed(probe_every=0) == probed(classify, probe_every=None) == (False, "")
    assert probed(classify, probe_every=1) == (True, "")
    for every, is_on in ((None, False), (1, True)):
        found, line = probed(probe_every=every, val=None)
        assert found == is_on and line.startswith("no kNN: there are no validation images; ")
        assert "\n" not in line
    names = ["tree house"] * 8
    found, line = probed(probe_every=None)
    assert not found and "other classes" in line
