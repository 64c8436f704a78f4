"""The online monitor: what it looks at and when, no effect on training, stops and resumes."""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
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
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.online_probe import Features, OnlineProbe, figures, is_probed, look_view, probe_line
from fastpsl.engine.plan import Stage
from fastpsl.engine.reporter import summary_line
from fastpsl.engine.run import Run
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.trainer import pretrain
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.filters import Sobel
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import Input, ViewSpec, center_view
from fastpsl.plots import charts
from fastpsl.plots.charts import draw_probes
from fastpsl.tasks.classify import Classify
from tests.engine.exact_signals import signal_when, train_until
from tests.engine.test_reporter import Board
from tests.engine.test_trainer import tiny_experiment
from tests.engine.tiny import TinyNet, tiny_run
from tests.pipelines.written import write_raw
from tests.programs import digests, newest_checkpoint, records
from tests.slow import slow

STEPS_PER_EPOCH = 5  # 480 images in batches of 96
STAGE = Stage("S3", 3, 3, 5, 2)


def monitor_of(run: Run, net: Any = None, stages: Sequence[Stage] = (STAGE,), **more: Any) -> OnlineProbe:
    """Return the monitor of the last of some stages of Jigsaw."""
    experiment = replace(tiny_experiment(), backbone=net or TinyNet(), stages=tuple(stages), **more)
    return OnlineProbe(run, experiment, stages[-1], StageBlocks(TinyNet(), STAGE), is_on=True)


def VIEW() -> Any:
    return tiny_experiment().task.views(3)[0]


def test_the_looked_at_images_are_drawn_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "MAX_TRAIN", 30)
    monkeypatch.setattr(online, "MAX_VAL", 30)
    parts, data = [], str(sample_paths().train_32)
    for number, seed in enumerate((0, 1, 0)):
        with closing(probed_run(tmp_path / str(number), seed=seed, data=data, val=data)) as run:
            monitor = monitor_of(run)
        parts += [tuple(part.indices.tolist()) for part in monitor._parts()]
    assert [len(set(part)) for part in parts] == [30] * 6 and parts == [tuple(sorted(p)) for p in parts]
    assert len(set(parts)) == 4 and parts[:2] == parts[-2:]


def test_validation_images_that_are_training_images_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on tells it again."""
    data = str(sample_paths().train_32)
    for val, numbers in ((data, [480]), (data, [480]), (str(sample_paths().test_32), [])):
        with closing(probed_run(tmp_path / Path(val).stem, val=val, max_steps_per_stage=1)) as run:
            lines: list[str] = []
            monkeypatch.setattr(run.reporter, "log", lines.append)
            assert pretrain(tiny_experiment(), run) and run.num_shared == sum(numbers)
        told = [int(line.split()[0]) for line in lines if "validation images are training images" in line]
        assert told == numbers


@pytest.fixture(autouse=True, scope="module")
def _three_batches_for_statistics() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(online, "NUM_STATISTICS", 2 * 96 * 9 + 1)
        yield


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
    return records(out / "probe.jsonl")


def probes(out: Path) -> list[dict[str, Any]]:
    """Return the lines of probes during the training."""
    return [line for line in all_lines(out) if line["run_step"]]


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line | {"seconds": None} for line in lines]


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
        assert 0 < line["knn_accuracy"] <= 1 and 0 < line["linear_accuracy"] <= 1
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
        view, rows = look_view(monitor_of(run).experiment, STAGE), []
        loader = Loader(data, [view], batch_size_per_rank=1, train=False, num_threads=1)
        with loader, torch.no_grad():
            for batch in loader.epoch(0):
                (image,) = batch.inputs(loader.views, torch.float32)
                rows.append(nn.Sequential(*net.blocks())(image).mean((2, 3))[0])
        parts.append(Features(torch.stack(rows), torch.from_numpy(data.labels().astype(np.int64))))
    run.close()
    expected, line = figures(*parts), probes(whole)[-1]
    assert expected == {name: pytest.approx(line[name], rel=1e-3) for name in expected}


def test_looks_by_count_of_all_epochs_and_at_each_stages_end(tmp_path: Path) -> None:
    experiment = tiny_experiment()
    stages = tuple(map(lambda stage, epochs: replace(stage, epochs=epochs), experiment.stages, (1, 3, 1)))
    fit(tmp_path / "second", replace(experiment, stages=stages), probe_every=2)
    assert [line["epoch"] for line in probes(tmp_path / "second")] == [1, 2, 4, 5]
    fit(tmp_path / "cut", probe_every=2, max_steps_per_stage=3)
    assert [line["run_step"] for line in probes(tmp_path / "cut")] == [3, 6, 9]


@pytest.mark.parametrize("step", [slow(STEPS_PER_EPOCH), 2 * STEPS_PER_EPOCH])
def test_a_signal_during_a_look_is_heard_and_the_look_made_up_for(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    run, looking = probed_run(tmp_path), []
    features = online.features_of

    def note(*arguments: Any) -> Any:
        looking.append(run.position.run_step)
        return features(*arguments)

    monkeypatch.setattr(online, "features_of", note)
    signal_when(run, lambda: step in looking)
    assert not pretrain(tiny_experiment(), run)
    run.close()
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path)["position"]["run_step"] == step
    steps = list(range(STEPS_PER_EPOCH, step, STEPS_PER_EPOCH))
    assert [line["run_step"] for line in probes(tmp_path)] == steps
    fit(tmp_path)
    assert timeless(probes(tmp_path)) == timeless(probes(whole))
    assert digests(newest_checkpoint(tmp_path)) == digests(newest_checkpoint(whole))


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
    assert not train_until(7, tiny_experiment(), run)
    max((tmp_path / "checkpoints").iterdir()).unlink()
    assert newest_checkpoint(tmp_path)["position"]["run_step"] == 5
    assert [line["run_step"] for line in probes(tmp_path)] == [5]
    with open(tmp_path / "probe.jsonl", "a") as file:
        file.write(json.dumps(probes(whole)[1] | {"effective_rank": 99.0}) + "\n" + '{"run_st')
    fit(tmp_path)
    assert timeless(probes(tmp_path)) == timeless(probes(whole))


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


def test_at_most_5_000_training_and_10_000_validation_images_are_looked_at(tmp_path: Path) -> None:
    with closing(probed_run(tmp_path)) as run:
        run.data.train, run.data.val = Synthetic(12_000, 8), Synthetic(12_001, 8)
        assert [part.num_samples for part in monitor_of(run)._parts()] == [5_000, 10_000]


@pytest.mark.parametrize(
    ("operations", "epochs", "numbers"),
    [
        (2 * 130, 2, [130, 130]),  # as many images as take so long
        (1, 20, [288, 160]),  # half of 3 % of the images that are learned
        (1, 2, [96, 96]),  # at least a batch
    ],
)
def test_a_short_training_looks_at_fewer_images_the_same_in_each_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operations: int, epochs: int, numbers: list[int]
) -> None:
    """A multiplication and an addition per weight and place. Images of 30 px become 15, 8, 4, 2 and 2."""
    widths, places = (3, *TinyNet.channels), (15, 8, 4, 2, 2)
    of_image = sum(2 * 9 * widths[i] * widths[i + 1] * places[i] ** 2 for i in range(5))
    monkeypatch.setattr(online, "LOOK_OPERATIONS", operations * of_image)
    stages = [Stage("S1", 1, 1, 3, epochs), Stage("S2", 2, 2, 4, 0, num_steps=5 * epochs)]
    with closing(probed_run(tmp_path)) as run:
        looked_at = [monitor_of(run, stages=order)._parts() for order in (stages, stages[::-1])]
    assert [[part.num_samples for part in parts] for parts in looked_at] == [numbers, numbers]
    assert looked_at[0][0].indices.tolist() == looked_at[1][0].indices.tolist()


def test_a_look_is_recorded_with_its_place_and_drawn_at_the_runs_step(tmp_path: Path) -> None:
    """The stages of two epochs of five steps are cut after three."""
    run, board = probed_run(tmp_path, max_steps_per_stage=3), Board()
    run.reporter.board = board  # type: ignore[assignment]
    assert train_until(None, tiny_experiment(), run)
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


def by_hand(run: Run, batch_size: int, num_batches: int) -> list[dict[str, Any]]:
    """Return the figures of B3, B4 and B5 of a network whose BatchNorms are measured by a plain loop."""
    train, val = run.data.train, run.data.val
    assert val is not None
    monitor, norms = monitor_of(run), []
    shuffled, net = monitor.in_random_order(), tiny_experiment().backbone
    assert sorted(shuffled.indices) == list(range(480)) != shuffled.indices.tolist()
    loader = partial(Loader, views=[look_view(monitor.experiment, STAGE)], train=False, num_threads=1)
    with torch.no_grad(), loader(shuffled, views=[VIEW()], batch_size_per_rank=batch_size) as batches:
        for batch in islice(batches.epoch(0), num_batches):
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
        monitor = monitor_of(run)
        assert sorted(monitor.in_random_order().names()) == sorted(run.data.train.names())


def test_untrained_is_the_first_network_with_measured_statistics(whole: Path) -> None:
    """The statistics are means over whole batches; a stage stands beside its own last block."""
    with closing(probed_run(whole)) as run:
        expected = by_hand(run, 96, 3)
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
            assert not train_until(step, tiny_experiment(), probed_run(out))
        run = fit(out)
        ends = [line for line in probes(out) if line["step"] == 2 * STEPS_PER_EPOCH]
        for name in ("knn_accuracy", "knn_untrained"):
            values = [summary[name] for summary in run.position.summaries]
            assert values == [line[name] for line in ends]
    assert timeless(all_lines(tmp_path)) == timeless(all_lines(whole))
    beside = "kNN {knn_accuracy:.1%} (untrained {knn_untrained:.1%})".format(**ends[-1]).replace("%", " %")
    assert summary_line(run.position.summaries[-1]).endswith(f", {beside}")


def coloured(path: Path, num: int) -> str:
    """Write images of noise around one of eight colours, the class, and return their path."""
    random, labels = np.random.default_rng(num), np.arange(num) % 8
    colours = 80 * (labels[:, None] >> np.arange(3) & 1)
    noise = random.integers(0, 176, (num, 32, 32, 3)) + colours[:, None, None]
    names = [f"colour {i}" for i in range(8)]
    return str(write_raw(path, noise.astype(np.uint8), labels.tolist(), names))


def test_untrained_is_within_two_points_of_a_rate_of_zero(tmp_path: Path) -> None:
    """The steps of rate 0 change BatchNorm's running statistics alone. They see what the monitor sees."""
    torch.manual_seed(0)
    view = center_view(Input(size_px=32), 32)
    stages = (Stage("E", 1, 1, 5, 4),)
    still = Experiment(Classify(view, view), TinyNet(), stages, lambda moment: 0.0)
    before = {name: value.clone() for name, value in still.backbone.named_parameters()}
    data, val = coloured(tmp_path / "train.beton", 480), coloured(tmp_path / "val.beton", 160)
    fit(tmp_path, still, data=data, val=val, batch_size=32, probe_every=4)
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
        monitor, before = monitor_of(run, net), torch.get_rng_state()
        assert monitor.look_untrained() and torch.equal(torch.get_rng_state(), before)
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert {part.momentum for part in net.modules() if isinstance(part, nn.BatchNorm2d)} == {0.3}


def test_each_stage_is_looked_at_through_its_own_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three stages have one input, for which one pass is enough."""
    net, seen = TinyNet(), list[str]()
    stages = tuple(Stage(f"S{i}", i, 1, i + 2, 1) for i in (1, 2, 3))
    views = [VIEW(), ViewSpec(RandomResizedCrop(32), (Sobel(1.0),)), VIEW()]
    task: Any = SimpleNamespace(views=lambda level: [views[level - 1]], num_levels=3)
    inputs = online._inputs

    def note(what: str, data: Any, part: Any, views: Any, *more: Any) -> Any:
        seen.append(f"{what.split(':')[0]} {views[0].input().channels}")
        return inputs(what, data, part, views, *more)

    monkeypatch.setattr(online, "_inputs", note)
    with closing(probed_run(tmp_path)) as run:

        def looked(net: Any, *stages: Stage) -> list[dict[str, Any]]:
            seen.clear()
            assert monitor_of(run, net, stages, task=task).look_untrained()
            return untrained(tmp_path)

        together, seen_together = looked(net, *stages), seen.copy()
        alone = [line for stage in stages for line in looked(net, stage)]
        assert timeless(together) == timeless(alone) and len(together) == 3
        looked(Blocks([nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())]), replace(STAGE, last_block=1))
    assert seen_together == [
        f"{what} {channels}" for channels in ("RGB", "Sobel") for what in ("untrained", "probe", "probe")
    ]
    assert seen == ["probe RGB", "probe RGB"]


class Blocks(nn.ModuleList):
    """A network without BatchNorm."""

    num_blocks = 1

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


def test_features_are_looked_at_with_and_without_classes(
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
    for every in (None, 1):
        found, line = probed(probe_every=every, val=None)
        assert found and line == (
            "no kNN: there are no validation images; std and rank show signs of collapse"
        )
    names = ["tree house"] * 8
    found, line = probed(probe_every=None)
    assert found and "other classes" in line
