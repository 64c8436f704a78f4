"""UIC: labels from training and from centre crops, fine-tuning, and its experiment."""

import copy
import json
import math
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.gpu import torch_seed
from fastpsl.engine.optim.schedules import linear_decay
from fastpsl.engine.plan import make_plan
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.train_step import TrainStep
from fastpsl.engine.trainer import MAX_WARM_UP_EPOCHS, StageTrainer, pretrain
from fastpsl.kernels.empty_classes import split_empty
from fastpsl.models.backbone import Backbone
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.loader.order import balanced_order
from fastpsl.pipelines.views import Input
from fastpsl.tasks.pseudo_labels import uic
from fastpsl.tasks.pseudo_labels.file import read_labels
from fastpsl.tasks.pseudo_labels.pseudo_classify import PseudoClassify
from fastpsl.tasks.pseudo_labels.scores import Settling
from fastpsl.tasks.pseudo_labels.uic import UIC
from tests.engine.exact_signals import train_until
from tests.engine.steps import rank_of
from tests.engine.tiny import TinyNet, noise_batch, tiny_run
from tests.programs import digests, epoch_records, newest_checkpoint
from tests.slow import slow
from tests.warm import results_of_ranks

SIZE, CLASSES, NUM, BATCH, STEPS = 32, 40, 480, 32, 15
COLOUR, EDGES = Input.usual("RGB", SIZE), Input.usual("SobelXY", SIZE)


class Watched(UIC):
    """A UIC that records (indices, arg max) of each training step's batch."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.outputs: list[tuple[list[int], list[int]]] = []
        self.epochs: list[np.ndarray] = []  # labels when each epoch begins or resumes

    @override
    def epoch_order(self, epoch: int) -> np.ndarray:
        self.epochs.append(self.store.current.numpy().copy())
        return super().epoch_order(epoch)

    @override
    def see(self, indices: Tensor, logits: Tensor) -> None:
        self.outputs.append((indices.tolist(), logits.argmax(1).tolist()))
        super().see(indices, logits)


class Dropping(TinyNet):
    """A network with dropout before its last block, as in AlexNet."""

    @override
    def blocks(self) -> list[nn.Module]:
        *parts, last = super().blocks()
        return [*parts, nn.Sequential(nn.Dropout(0.3), last)]


def make_task(**options: Any) -> Watched:
    values: dict[str, Any] = {
        "num_classes": CLASSES, "input": COLOUR, "size_px": SIZE, "seed": 0, "augmentation": "standard",
        "label_view": "train",
    }  # fmt: skip
    return Watched(**{**values, **options})


def make_experiment(
    task: UIC, network: Backbone | None = None, epochs: int = 3, lr: float = 0.05
) -> Experiment:
    torch.manual_seed(0)
    stages = make_plan("end_to_end", (epochs,), num_levels=1)
    return Experiment(task, network or Dropping(), stages, linear_decay(lr))


def fit(out: Path, task: UIC, stop_at: int | None = None, **options: Any) -> bool:
    """Run the training, or a part of it up to step `stop_at`, as after a signal."""
    run = tiny_run(out, epochs=(3,), keep_checkpoints=100, **options)
    return train_until(stop_at, make_experiment(task), run)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watched]:
    out, task = tmp_path_factory.mktemp("uic"), make_task()
    assert fit(out, task)
    return out, task


def test_labels_are_what_the_steps_before_said(whole: tuple[Path, Watched]) -> None:
    """In plain loops: an image's latest answer is its label, or else its old label stays.

    No class is empty.
    """
    _, task = whole
    assert len(task.outputs) == 3 * STEPS and len(task.epochs) == 3
    for epoch in range(2):
        expected = task.epochs[epoch].copy()
        for indices, answers in task.outputs[epoch * STEPS : (epoch + 1) * STEPS]:
            for index, label in zip(indices, answers, strict=True):
                expected[index] = label
        expected, _ = split_empty(expected, CLASSES, 0, epoch + 1)
        assert task.epochs[epoch + 1].tolist() == expected.tolist()
        assert (task.epochs[epoch + 1] != task.epochs[epoch]).any()


def test_empty_classes_were_filled_and_validation_views_differ(whole: tuple[Path, Watched]) -> None:
    """The tests above need both."""
    out, _ = whole
    assert all(line["num_split"] > 0 for line in epoch_records(out)[1:3])
    (summary,) = newest_checkpoint(out)["position"]["summaries"]
    assert 0 < summary["val"]["agreement"] < 1


def test_the_first_labels_are_of_batch_statistics_and_draws_of_their_own(tmp_path: Path) -> None:
    task = make_task()
    experiment = make_experiment(task, TinyNet())
    run = tiny_run(tmp_path, epochs=(3,), max_steps_per_stage=1)
    network, expected = copy.deepcopy(experiment.backbone), torch.full((NUM,), -1)
    torch.manual_seed(torch_seed(0, 0))
    head = task.head(1, 16)
    assert pretrain(experiment, run)
    network.train()
    with torch.no_grad(), run.data.loader(run.data.train, [task.view], train=False) as loader:
        for batch in loader.epoch(3 + MAX_WARM_UP_EPOCHS // 2):
            expected[batch.indices] = head(network(batch.inputs(loader.views, torch.float32)[0])).argmax(1)
    run.close()
    labels, _ = split_empty(expected.numpy(), CLASSES, 0, 0)
    assert task.epochs[0].tolist() == labels.tolist()


def test_steps_follow_the_order_that_balances_the_classes(whole: tuple[Path, Watched]) -> None:
    _, task = whole
    for epoch in range(3):
        outputs = task.outputs[epoch * STEPS : (epoch + 1) * STEPS]
        indices_shown = [index for indices, _ in outputs for index in indices]
        assert indices_shown == balanced_order(task.epochs[epoch], 0, epoch)[: STEPS * BATCH].tolist()
        counts = np.bincount(task.epochs[epoch][indices_shown], minlength=CLASSES)
        assert counts.min() == counts.max() == NUM // CLASSES
        assert max(Counter(indices_shown).values()) > 1  # so the labels are not balanced already


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 1),
        ({"label_view": "center"}, 3),
        ({"fixed": True}, 1),
        ({"fixed": True, "label_view": "center"}, 1),
        ({"given": np.arange(NUM) % CLASSES}, 0),
    ],
)
def test_no_image_is_looked_at_once_more_for_its_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], passes: int
) -> None:
    """Images of forward passes are counted: the steps', and a first pass (centre: one before each epoch)."""
    counts: Counter[str] = Counter()
    forward = StageBlocks.forward

    def counted(self: StageBlocks, images: Tensor) -> Tensor:
        counts["with gradient" if torch.is_grad_enabled() else "without"] += len(images)
        return forward(self, images)

    monkeypatch.setattr(StageBlocks, "forward", counted)
    run = tiny_run(tmp_path, epochs=(3,))
    run.data.val.close()  # type: ignore[union-attr]
    run.data.val = None
    assert pretrain(make_experiment(make_task(**options)), run)
    run.close()
    assert counts["with gradient"] == 3 * STEPS * BATCH and counts["without"] == passes * NUM


@pytest.mark.parametrize("step", [1, slow(15), 16, slow(37)])
def test_resumed_from_any_step_equals_never_stopped(
    whole: tuple[Path, Watched], tmp_path: Path, step: int
) -> None:
    assert not fit(tmp_path, make_task(), stop_at=step)
    assert newest_checkpoint(tmp_path)["position"]["run_step"] == step
    task = make_task()
    assert fit(tmp_path, task)
    assert digests(newest_checkpoint(tmp_path)) == digests(newest_checkpoint(whole[0]))
    assert epoch_records(tmp_path) == epoch_records(whole[0])


def test_a_signal_in_the_first_pass_is_heard_and_it_begins_anew(
    whole: tuple[Path, Watched], tmp_path: Path
) -> None:
    assert not fit(tmp_path, make_task(), stop_at=0)
    assert fit(tmp_path, make_task())
    assert digests(newest_checkpoint(tmp_path)) == digests(newest_checkpoint(whole[0]))


@pytest.mark.parametrize("step", [slow(3), 15])
def test_labels_by_passes_are_resumed_too(tmp_path: Path, step: int) -> None:
    for out, stop_at in ((tmp_path / "whole", None), (tmp_path / "stopped", step)):
        assert fit(out, make_task(label_view="center"), stop_at) == (stop_at is None)
    assert fit(tmp_path / "stopped", make_task(label_view="center"))
    stopped, whole = (newest_checkpoint(tmp_path / name) for name in ("stopped", "whole"))
    assert digests(stopped) == digests(whole)
    lines = epoch_records(tmp_path / "stopped")
    assert lines == epoch_records(tmp_path / "whole")
    assert [(line["run_step"], line["epoch"]) for line in lines] == [(1, 0), (16, 1), (31, 2)]


def test_an_epoch_that_was_cut_makes_labels_too(tmp_path: Path) -> None:
    task = make_task()
    assert fit(tmp_path, task, max_steps_per_stage=20)
    lines = epoch_records(tmp_path)
    assert [line["epoch"] for line in lines] == [0, 1, pytest.approx(4 / 3, abs=1e-3)]
    indices_drawn = {index for indices, _ in task.outputs[STEPS:] for index in indices}
    assert lines[-1]["num_not_drawn"] == NUM - len(indices_drawn)
    assert lines[-1]["num_repeated"] == 5 * BATCH - len(indices_drawn)
    assert not np.array_equal(task.store.current.numpy(), task.epochs[1])


@pytest.mark.parametrize(
    ("place", "options"),
    [
        ((TrainStep, "evaluate"), {}),
        ((StageTrainer, "_end_epoch"), {"label_view": "center"}),
        slow((TrainStep, "evaluate"), {"label_view": "center"}),
        slow((StageTrainer, "_end_epoch"), {}),
    ],
)
def test_killed_where_a_stage_is_cut_it_comes_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[type, str], options: dict[str, Any]
) -> None:
    """No step is left. The labels of the cut epoch are missing, or reported but not saved.

    They are reported once.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert fit(whole, make_task(**options), max_steps_per_stage=20)
    method, run = getattr(*place), tiny_run(killed, epochs=(3,), max_steps_per_stage=20)

    def kill(*arguments: Any) -> None:
        method(*arguments)
        if run.position.step == 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*place, kill)
        pretrain(make_experiment(make_task(**options)), run)
    run.close()
    position = newest_checkpoint(killed)["position"]
    assert position["step"] == 20 and not position["summaries"]
    assert fit(killed, make_task(**options), max_steps_per_stage=20)
    assert digests(newest_checkpoint(killed)) == digests(newest_checkpoint(whole))
    assert epoch_records(killed) == epoch_records(whole)


def test_killed_after_an_epoch_that_no_checkpoint_has_it_tells_it_once(
    whole: tuple[Path, Watched], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert not fit(out, make_task(), stop_at=20)
    before = (out / "epochs.jsonl").read_text()
    for path in (out / "checkpoints").iterdir():
        path.unlink()
    assert not fit(out, make_task(), stop_at=12)  # its checkpoint has no line of epoch 1
    (out / "epochs.jsonl").write_text(before)  # and the file has one
    assert fit(out, make_task())
    assert epoch_records(out) == epoch_records(whole[0])


def test_figures_say_what_the_labels_are_like(whole: tuple[Path, Watched]) -> None:
    out, _ = whole
    lines = epoch_records(out)
    assert [(line["run_step"], line["epoch"]) for line in lines] == [(1, 0), (15, 1), (30, 2), (45, 3)]
    assert lines[0]["nmi_previous"] is None and all(0 < line["nmi_previous"] < 1 for line in lines[1:])
    assert all(line["nmi_true"] is not None and line["nmi_true_shuffled"] is not None for line in lines)


def test_fixed_labels_are_those_of_centre_crops_in_eval_mode(tmp_path: Path) -> None:
    """The given classifier makes them."""
    torch.manual_seed(1)
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)).state_dict()
    task = make_task(fixed=True, classifier=classifier)
    experiment, run = make_experiment(task), tiny_run(tmp_path, epochs=(3,), max_steps_per_stage=1)
    network = experiment.backbone.eval()
    expected = torch.full((NUM,), -1)
    with torch.no_grad(), run.data.loader(run.data.train, [task.center], train=False) as loader:
        for batch in loader.epoch(0):
            features = network(batch.inputs(loader.views, torch.float32)[0]).mean((2, 3))
            logits = features @ classifier["2.weight"].T + classifier["2.bias"]
            expected[batch.indices] = logits.argmax(1)
    labels, _ = split_empty(expected.numpy(), CLASSES, 0, 0)
    network.train()
    assert pretrain(experiment, run)
    run.close()
    assert task.epochs[0].tolist() == labels.tolist() == task.store.current.tolist()


def test_given_labels_stay(tmp_path: Path) -> None:
    task = make_task(given=np.arange(NUM) % CLASSES, label_view="center")
    assert fit(tmp_path, task, max_steps_per_stage=18)
    assert task.store.current.tolist() == (np.arange(NUM) % CLASSES).tolist()
    assert [line["epoch"] for line in epoch_records(tmp_path)] == [0]


def test_all_images_in_one_class_go_on_by_splitting(tmp_path: Path) -> None:
    task = make_task(given=np.zeros(NUM, np.int64))
    with pytest.warns(UserWarning, match="collapse"):
        assert fit(tmp_path, task, max_steps_per_stage=1)
    counts = np.bincount(task.store.current.numpy())
    assert len(counts) == CLASSES and counts.min() >= NUM // 64


class Broken(TinyNet):
    """A network with infinite or NaN outputs from call `healthy` on."""

    healthy = 0

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    @override
    def blocks(self) -> list[nn.Module]:
        network = self

        class Break(nn.Module):
            @override
            def forward(self, x: Tensor) -> Tensor:
                network.num_calls += 1
                return x if network.num_calls <= network.healthy else x * float("nan")

        *parts, last = super().blocks()
        return [*parts, nn.Sequential(last, Break())]


def test_outputs_that_are_not_finite_have_no_label(tmp_path: Path) -> None:
    with (
        pytest.raises(
            ValueError, match="epoch 0: the network's outputs for 480 of 480 images are not finite"
        ),
        closing(tiny_run(tmp_path / "first", epochs=(3,))) as run,
    ):
        pretrain(make_experiment(make_task(), Broken()), run)
    network, task = Broken(), make_task()
    network.healthy = STEPS + 10  # the first pass and ten steps
    with (
        pytest.raises(ValueError, match="first such loss of E is that of step 11"),
        closing(tiny_run(tmp_path / "later", epochs=(3,), max_steps_per_stage=STEPS, val=None)) as run,
    ):
        pretrain(make_experiment(task, network), run)
    kept = task.store.current.clone()
    assert not kept.min() < 0
    # The images of the skipped steps count as not drawn, and keep their labels.
    epoch = json.loads((tmp_path / "later" / "epochs.jsonl").read_text().splitlines()[-1])
    assert epoch["num_not_drawn"] >= 480 - 10 * BATCH
    # Outputs that are not finite may have finite gradients: those of a class that is infinitely unlikely.
    task.see(torch.arange(32), torch.full((32, 40), -torch.inf))
    with pytest.warns(UserWarning, match=r"epoch 0: outputs for 32 images were not finite"):
        task.end_epoch()
    assert torch.equal(task.store.current, kept)


class Plain(TinyNet):
    """A network without BatchNorm, so that an image's output does not depend on its batch."""

    def __init__(self) -> None:
        super().__init__()
        for part in self.parts:
            part[1] = nn.Identity()  # type: ignore[index, operator]


def labels_of_a_run(out: Path, rank: int, size: int) -> list[torch.Tensor]:
    run = tiny_run(out, rank_of(rank, size), batch_size=BATCH, epochs=(3,), val=None)
    task = make_task()
    torch.manual_seed(0)  # the same network in every process
    assert train_until(None, make_experiment(task, Plain(), lr=1e-9), run)
    return [torch.from_numpy(labels) for labels in task.epochs]


def nearly_all_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Check equality but for near ties, which other batches may round differently.

    Other labels agree far less.
    """
    return one.shape == other.shape and float((one == other).float().mean()) > 0.97


@pytest.mark.usefixtures("one_thread")
def test_two_ranks_make_the_labels_of_one(tmp_path: Path) -> None:
    """The network hardly changes, so outputs, every epoch's labels and the checkpoint must be equal."""
    expected = labels_of_a_run(tmp_path / "one", 0, 1)
    for labels in results_of_ranks(partial(labels_of_a_run, tmp_path / "two"), 2, tmp_path):
        assert all(nearly_all_equal(first, second) for first, second in zip(labels, expected, strict=True))
    one, two = (newest_checkpoint(tmp_path / name)["task"]["store"]["current"] for name in ("one", "two"))
    assert nearly_all_equal(one, two) and (expected[0] != expected[2]).any()


def test_what_cannot_be_fine_tuned_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    science = {"recipe": "uic", "backbone": "alexnet", "num_clusters": 16, "input_channels": "SobelXY"}
    monkeypatch.setattr(uic, "read_checkpoint", lambda _: {"science": science, "train_step": {}})

    def trained(**changed: Any) -> dict[str, Any]:
        options: Any = SimpleNamespace(**{**science, "plan": "end_to_end", **changed})
        return uic._trained(tmp_path / "step.pt", options)[1]["science"]

    assert trained() == science
    for name, value in (("backbone", "vgg16"), ("num_clusters", 8), ("input_channels", "RGB")):
        flag, needed = name.replace("_", "-"), science[name]
        with pytest.raises(ValueError, match=f"has {flag} {needed}, not {value}: give --{flag} {needed}"):
            trained(**{name: value})
    with pytest.raises(ValueError, match="give --plan end_to_end, not psl"):
        trained(plan="psl")
    del science["num_clusters"]
    with pytest.raises(ValueError, match="a checkpoint of uic, which has no pseudo-labels"):
        trained(num_clusters=16)


def test_the_file_of_labels_has_the_last_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the number of classes that were split, which makes the labels comparable, and the science."""
    current = torch.tensor([2, 0, 1, 1, 0, 2, 2, 0, 1, 1, 0, 2], dtype=torch.int32)
    state = {"task": {"store": {"current": current, "num_split": 2}}}
    monkeypatch.setattr(uic, "read_checkpoint", lambda _: state)
    data = Synthetic(12, 3)
    run: Any = SimpleNamespace(
        folder=tmp_path, last_checkpoint=lambda: None, data=SimpleNamespace(train=data),
        science={"recipe": "uic_r50", "seed": 4},
    )  # fmt: skip
    task: Any = SimpleNamespace(num_classes=3)
    assert uic.leave_labels(task, run) == [f"labels {tmp_path / 'labels.npz'}"]
    labels = read_labels(tmp_path / "labels.npz", data)
    assert labels.labels.tolist() == current.tolist()
    assert (labels.num_classes, labels.num_split, labels.made_by) == (3, 2, "uic_r50")
    assert labels.configuration == {"recipe": "uic_r50", "seed": 4, "source": "uic_r50"}


(STAGE,) = make_plan("end_to_end", (3,), num_levels=1)


def start_stage(task: PseudoClassify) -> None:
    task.start_stage(STAGE, StageBlocks(TinyNet(), STAGE), nn.Linear(1, 1))


def test_empty_classes_of_given_labels_are_split_alike_in_every_stage() -> None:
    given = np.arange(NUM) % (CLASSES - 1)
    task = make_task(given=given)
    task.check_data(Synthetic(NUM, CLASSES), BATCH)
    expected, _ = split_empty(given, CLASSES, 0, 0)
    assert expected.tolist() != split_empty(given, CLASSES, 0, 7)[0].tolist()
    for first_epoch in (0, 7):
        start_stage(task)
        for epoch in range(first_epoch, first_epoch + 3):
            context: Any = SimpleNamespace(epoch=epoch, first=epoch == first_epoch)
            assert (task.start_epoch(context) is not None) == context.first
            assert task.store.current.tolist() == expected.tolist()


def test_the_loss_is_that_of_plain_loops_over_the_images_that_were_decoded() -> None:
    task, head = make_task(), nn.Linear(6, CLASSES)
    task.check_data(Synthetic(NUM, CLASSES), BATCH)
    start_stage(task)
    random = np.random.default_rng(0)
    task.store.current.copy_(torch.from_numpy(random.integers(0, CLASSES, NUM)))
    batch = noise_batch(task.views(1), 5)
    batch.indices = torch.tensor([7, 0, -1, 479, 3])
    features = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    blocks: Any = nn.Identity()
    logits = head(features).tolist()
    total, right = 0.0, 0
    for row, sample in enumerate(batch.indices.tolist()):
        if sample >= 0:
            label = int(task.store.current[sample])
            total += math.log(sum(math.exp(value) for value in logits[row])) - logits[row][label]
            right += max(logits[row]) == logits[row][label]
    loss, metrics = task.loss(blocks, head, (features,), batch)
    assert float(loss.detach()) == pytest.approx(total / 4, rel=1e-5)
    assert [float(value) for value in metrics["loss"]] == pytest.approx([total, 4], rel=1e-5)
    assert [float(value) for value in metrics["agreement"]] == [right, 4]
    assert metrics.keys() == {"loss", "agreement"}


def test_figures_are_compared_with_labels_that_the_runs_seed_shuffles() -> None:
    random = np.random.default_rng(0)
    made, previous, true = (random.integers(0, num, 200) for num in (CLASSES, CLASSES, 5))
    found = {}
    for seed in (0, 7):
        task = make_task(seed=seed)
        task.true_labels, task.settling = true, Settling()
        figures = task.figures(made, previous)
        shuffled = np.random.default_rng(seed).permutation(made)
        assert figures["nmi_true"] == pytest.approx(normalized_mutual_info_score(true, made))
        for name, others in (("nmi_true_shuffled", true), ("nmi_previous_shuffled", previous)):
            assert figures[name] == pytest.approx(normalized_mutual_info_score(others, shuffled))
        found[seed] = figures["nmi_true_shuffled"]
    assert found[0] != found[7]


def test_labels_of_a_stage_have_the_tasks_seed_and_a_watch_that_is_resumed() -> None:
    """The watch over settling begins anew in the next stage, as the labels do."""
    task, resumed = make_task(seed=5), make_task(seed=5)
    for each in (task, resumed):
        each.check_data(Synthetic(NUM, CLASSES), BATCH)
        start_stage(each)
    zeros = np.zeros(NUM, np.int64)
    with pytest.warns(UserWarning, match="collapse"):
        figures = task.relabel(zeros, 2)
    assert figures["nmi_previous"] is None and figures["num_split"] == CLASSES - 1
    assert task.store.current.tolist() == split_empty(zeros, CLASSES, 5, 2)[0].tolist()
    task.settling.shares = [0.25, 0.5]
    resumed.load_state_dict(task.state_dict())
    assert resumed.settling.shares == [0.25, 0.5] and resumed.store.num_split == CLASSES - 1
    start_stage(resumed)
    assert resumed.settling.shares == [] and (resumed.store.current == -1).all()
    assert task.chance(1) == 1 / CLASSES
