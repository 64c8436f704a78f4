"""IIC: mutual information, heads by epoch, clusters and losses, compared with plain loops and its paper."""

import math
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.optimisers import adam
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.plan import Stage, make_plan
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.train_step import TrainStep
from fastpsl.engine.trainer import pretrain
from fastpsl.kernels.draws import Keys
from fastpsl.models.backbone import Backbone
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.tasks.pseudo_labels.iic import IIC, ClusterEpochs, ClusterHeads, mutual_information_loss
from fastpsl.tasks.pseudo_labels.scores import nmi
from tests.engine.exact_signals import train_until
from tests.engine.steps import make_step, rank_of
from tests.engine.tiny import TinyNet, noise_batch, one_process, tiny_run
from tests.programs import digests, epoch_records, newest_checkpoint
from tests.recipes.in_process import same_run
from tests.slow import slow
from tests.warm import results_of_ranks


def iic(**options: Any) -> IIC:
    """Return IIC with the values of SSL++."""
    values: dict[str, Any] = {
        "num_clusters": 70, "size_px": 32, "crop_share": 0.625, "transforms": "sobel", "num_copies": 3,
        "num_sub_heads": 5,
    }  # fmt: skip
    return IIC(**(values | options))


@pytest.mark.parametrize(
    ("size_px", "height", "width", "side"), [(32, 32, 32, 20), (32, 96, 96, 60), (224, 300, 400, 188)]
)
def test_crops_are_of_the_share_of_the_shorter_side(size_px: int, height: int, width: int, side: int) -> None:
    task = iic(size_px=size_px)
    sizes = [np.full(50, value, np.int32) for value in (height, width)]
    boxes = [view.crop.boxes(Keys(0, 0, np.arange(50), n), *sizes) for n, view in enumerate(task.views(1))]
    assert all((box[:, 2:] == side).all() and len(np.unique(box[:, 0])) > 5 for box in boxes)
    assert not np.array_equal(boxes[1], boxes[2])  # each copy has its own draws
    center = task.center.crop.boxes(Keys(0, 0, np.arange(50), 0), *sizes)
    assert center.tolist() == [[(height - side) // 2, (width - side) // 2, side, side]] * 50
    assert {view.crop.size_px for view in (*task.views(1), task.center)} == {size_px}


def test_first_weights_are_iics() -> None:
    torch.manual_seed(0)
    head = iic(second_clusters=10).head(1, 512)
    assert isinstance(head, ClusterHeads)
    assert [tuple(part.weight.shape) for part in head.classify] == [(350, 512), (50, 512)]  # type: ignore[operator, arg-type]
    for part in head.classify:
        assert isinstance(part, nn.Linear) and not part.bias.any()
        assert part.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert head(torch.zeros(3, 512, 2, 2), 1).shape == (3, 5, 10)


def test_the_limits_themselves_are_possible() -> None:
    """As many clusters as images, and as many pairs of a step as clusters, of either head."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iic(crop_share=1.0, num_copies=1, num_sub_heads=1, num_clusters=2).check_data(Synthetic(2), 2)
        iic(num_copies=2).check_data(Synthetic(70), 35)
    with pytest.warns(UserWarning, match="--batch-size 35 makes 70 pairs per step, .* how 72 clusters"):
        iic(num_copies=2, second_clusters=72).check_data(Synthetic(72), 35)


def test_contact_sheet_shows_all_views_of_each_image() -> None:
    task = iic(num_copies=2)
    batch = noise_batch(task.views(1), 3)
    inputs = batch.inputs(task.views(1), torch.float32)
    sheet = task.contact_sheet(inputs, batch)
    for number, (view, images) in enumerate(zip(task.views(1), inputs, strict=True)):
        assert torch.equal(sheet[..., 36 * number : 36 * number + 32], view.denormalise(images))
    assert sheet.shape == (3, 3, 32, 3 * 32 + 2 * 4) and 0 <= sheet.min() and sheet.max() == 1


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


RUNS_CLUSTERS, SECOND, RUNS_SUB_HEADS, RUNS_COPIES, RUNS_NUM, BATCH, STEPS = 12, 5, 3, 2, 480, 32, 15
STAGE = Stage("S", 1, first_learning=1, last_block=5, epochs=3)


class Watched(IIC):
    """An IIC that records each training step: head, sub-heads' losses, indices, clusters by sub-head."""

    def __init__(self, **options: Any) -> None:
        values: dict[str, Any] = {
            "num_clusters": RUNS_CLUSTERS, "size_px": 32, "crop_share": 0.625, "transforms": "colour",
            "num_copies": RUNS_COPIES, "num_sub_heads": RUNS_SUB_HEADS,
        }  # fmt: skip
        super().__init__(**{**values, **options})
        self.steps: list[tuple[int, list[float], list[int], Tensor]] = []
        self.best_after: list[list[int]] = []

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        """Enlarge the initial weights, so that a tiny network's few channels separate images."""
        head = super().head(level, channels)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.mul_(100)
        return head

    @override
    def start_stage(self, *arguments: Any) -> None:
        super().start_stage(*arguments)
        see = self.epochs.see

        def watched(number: int, indices: Tensor, losses: Tensor, logits: Tensor) -> None:
            self.steps.append((number, losses.tolist(), indices.tolist(), logits.argmax(2)))
            see(number, indices, losses, logits)

        self.epochs.see = watched  # type: ignore[method-assign]

    @override
    def end_epoch(self) -> Any:
        figures = super().end_epoch()
        self.best_after.append(self.epochs.best.tolist())
        return figures


def make_experiment(
    task: IIC, network: Backbone | None = None, epochs: tuple[int, ...] = (3,), lr: float = 1e-3
) -> Experiment:
    torch.manual_seed(0)
    stages = make_plan("end_to_end", epochs, num_levels=1)
    return Experiment(task, network or TinyNet(), stages, step_drops(lr, (1,)), adam)


def fit(out: Path, task: IIC, stop_at: int | None = None, **options: Any) -> bool:
    """Run the training, or a part of it up to step `stop_at`, as after a signal."""
    run = tiny_run(out, batch_size=BATCH, epochs=(3,), keep_checkpoints=100, **options)
    return train_until(stop_at, make_experiment(task), run)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watched]:
    """Train two heads for three epochs: A, B, B."""
    out, task = tmp_path_factory.mktemp("iic"), Watched(second_clusters=SECOND)
    assert fit(out, task)
    return out, task


def train_step_of(task: IIC) -> TrainStep:
    torch.manual_seed(0)
    with Beton(sample_paths().train_32) as data:
        task.check_data(data, BATCH)
    return make_step(STAGE, task, optimiser=adam)


@pytest.mark.filterwarnings("ignore:collapse")
def test_loss_is_of_every_pair_and_the_mean_over_sub_heads() -> None:
    task = Watched()
    train_step = train_step_of(task)
    batch = noise_batch(task.views(1), 8)
    batch.indices[5:] = -1
    inputs = batch.inputs(task.views(1), torch.float32)
    loss, metrics = train_step.module(inputs, batch)
    head = train_step.module.head
    assert isinstance(head, ClusterHeads) and task.inputs_per_image(1) == 1 + RUNS_COPIES
    shares = head(train_step.module.blocks(torch.cat(inputs))).softmax(2)
    shares = shares.view(1 + RUNS_COPIES, 8, RUNS_SUB_HEADS, RUNS_CLUSTERS)
    pairs = [torch.cat([shares[0, :5]] * RUNS_COPIES), shares[1:, :5].flatten(0, 1)]
    valid = torch.ones(5 * RUNS_COPIES, dtype=torch.bool)
    expected = mutual_information_loss(pairs[0], pairs[1][None], valid).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4) and loss.item() < -0.005
    value, num = metrics["loss"]
    assert (value / num).item() == pytest.approx(loss.item()) and num == 5


@pytest.mark.filterwarnings("ignore:collapse")
def test_heads_take_turns_and_the_other_one_has_zero_gradients(whole: tuple[Path, Watched]) -> None:
    _, task = whole
    assert [number for number, *_ in task.steps] == [0] * STEPS + [1] * 2 * STEPS
    task.first_epoch = 4  # a later stage begins with A, too
    assert [task.variant(epoch) for epoch in range(4, 11)] == [0, 1, 1, 0, 1, 1, 0]
    task.first_epoch = 0
    task = Watched(second_clusters=SECOND)
    train_step = train_step_of(task)
    batch = noise_batch(task.views(1), 8)
    for epoch, other in ((0, 1), (1, 0)):
        batch.epoch = epoch
        train_step.module.zero_grad(set_to_none=True)
        loss, _ = train_step.module(batch.inputs(task.views(1), torch.float32), train_step.prepared(batch))
        loss.backward()
        parts = train_step.module.head.classify  # type: ignore[union-attr]
        gradients = [[p.grad for p in part.parameters()] for part in parts]  # type: ignore[union-attr]
        assert all(g is not None and not g.any() for g in gradients[other])
        assert all(g is not None and g.any() for g in gradients[1 - other])
    train_step.module.eval()  # validation images are scored by head A in every epoch
    losses, inputs = [], batch.inputs(task.views(1), torch.float32)
    for batch.epoch in (0, 1):
        losses.append(train_step.module(inputs, train_step.prepared(batch))[0].item())
    assert losses[0] == losses[1]
    task = Watched()
    train_step_of(task)
    assert [task.variant(epoch) for epoch in range(4)] == [0] * 4


@pytest.mark.filterwarnings("ignore:collapse")
def test_a_stage_begins_with_head_a(tmp_path: Path) -> None:
    """It does so after any number of epochs."""
    run, task = tiny_run(tmp_path, batch_size=BATCH, epochs=(2, 1)), Watched(second_clusters=SECOND)
    torch.manual_seed(0)
    stages = make_plan("sl", (2, 1), num_levels=1, num_blocks=5)
    assert train_until(None, Experiment(task, TinyNet(), stages, step_drops(1e-3, (1,)), adam), run)
    assert [number for number, *_ in task.steps[::STEPS]] == [0, 1, 0]


@pytest.mark.filterwarnings("ignore:collapse")
def test_the_best_sub_head_has_the_lowest_mean_loss_of_its_last_epoch(whole: tuple[Path, Watched]) -> None:
    out, task = whole
    losses = [np.mean([step[1] for step in task.steps[i * STEPS : (i + 1) * STEPS]], 0) for i in range(3)]
    bests = [int(value.argmin()) for value in losses]
    assert task.best_after == [[bests[0], 0], bests[:2], [bests[0], bests[2]]]
    lines = epoch_records(out)
    assert [line["run_step"] for line in lines] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert lines[0]["mutual_information"] == pytest.approx(-losses[0].min())
    assert lines[2]["mutual_information_b"] == pytest.approx(-losses[2].min())
    assert "mutual_information" not in lines[1] and lines[1]["best_sub_head_b"] == bests[1]


@pytest.mark.filterwarnings("ignore:collapse")
def test_figures_are_of_the_clusters_that_the_steps_saw(whole: tuple[Path, Watched]) -> None:
    """They are those of the sub-head that was best when the epoch began, with each image once."""
    out, task = whole
    lines, names = epoch_records(out), ("non_empty", "biggest", "entropy")
    for epoch, suffix in ((0, ""), (1, "_b"), (2, "_b")):
        watched = 0 if epoch < 2 else task.best_after[1][1]
        steps = task.steps[epoch * STEPS : (epoch + 1) * STEPS]
        counts = np.bincount([c for step in steps for c in step[3][:, watched].tolist()])
        shares = counts[counts > 0] / counts.sum()
        assert counts.sum() == len({index for step in steps for index in step[2]}) == STEPS * BATCH
        expected = [len(shares), shares.max(), -(shares * np.log(shares)).sum()]
        assert [lines[epoch][f"{name}{suffix}"] for name in names] == pytest.approx(expected)
    assert lines[1]["nmi_previous_b"] is None and 0 < lines[2]["nmi_previous_b"] < 1
    assert all(0 < lines[epoch][f"nmi_true{suffix}"] < 1 for epoch, suffix in ((0, ""), (1, "_b")))


@pytest.mark.filterwarnings("ignore:collapse")
def test_labels_are_what_the_best_sub_head_says_of_centre_crops(tmp_path: Path) -> None:
    """In plain loops and eval mode, with the entropy in nats."""
    task = Watched()
    experiment, run = make_experiment(task), tiny_run(tmp_path, batch_size=BATCH, epochs=(3,))
    assert pretrain(experiment, run)
    state, best = newest_checkpoint(tmp_path), task.epochs.best[0]
    network = TinyNet()
    network.load_state_dict(state["backbone"])
    weight, bias = (
        state["train_step"]["head"][f"classify.0.{name}"].unflatten(0, (RUNS_SUB_HEADS, RUNS_CLUSTERS))[best]
        for name in ("weight", "bias")
    )
    task_state = state["task"]
    labels, entropy = torch.full((RUNS_NUM,), -1), torch.zeros(RUNS_NUM)
    short = torch.full((RUNS_NUM,), math.inf)
    network.eval()
    with torch.no_grad(), run.data.loader(run.data.train, [task.center], train=False) as loader:
        for batch in loader.epoch(0):
            features = network(batch.inputs(loader.views, torch.float32)[0]).mean((2, 3))
            for index, logits in zip(batch.indices.tolist(), features @ weight.T + bias, strict=True):
                labels[index] = int(logits.argmax())
                short[index] = logits.max() - logits[int(task_state["labels"][index])]
                entropy[index] = -sum(p * math.log(p) for p in logits.softmax(0).tolist())
    run.close()
    assert task_state["best_sub_head"] == best and len(labels.unique()) > 1
    assert task_state["labels"].dtype == torch.int32
    # Single images round differently from batches, so nearly equal logits may swap places.
    assert short.max() < 1e-4 and (task_state["labels"] == labels).float().mean() > 0.98
    assert task_state["entropy"].dtype == torch.float32
    assert torch.allclose(task_state["entropy"], entropy, atol=1e-5)
    assert 0 < entropy.min() < math.log(RUNS_CLUSTERS)


@pytest.mark.filterwarnings("ignore:collapse")
def test_validation_images_have_no_labels_and_teach_nothing(tmp_path: Path) -> None:
    """Training is the same without them. Head A scores them as it is after the last step."""
    experiments = []
    for _ in range(2):
        torch.manual_seed(0)
        experiments.append(make_experiment(Watched(second_clusters=SECOND), Plain(), epochs=(2,)))
    options: dict[str, Any] = {"batch_size": BATCH, "epochs": (2,)}
    runs = [tiny_run(tmp_path / "with", **options), tiny_run(tmp_path / "without", val=None, **options)]
    for experiment, run in zip(experiments, runs, strict=True):
        assert pretrain(experiment, run)
    states = [newest_checkpoint(tmp_path / name) for name in ("with", "without")]
    task = experiments[0].task
    network, head = Plain(), task.head(1, 16)
    network.load_state_dict(states[0]["backbone"])
    head.load_state_dict(states[0]["train_step"]["head"])
    head.eval()
    total, num, data = 0.0, 0, runs[0].data.val
    assert data is not None
    views = task.views(1)
    with torch.no_grad(), runs[0].data.loader(data, views, train=False) as loader:
        for batch in loader.epoch(0):
            loss, _ = task.loss(StageBlocks(network, STAGE), head, batch.inputs(views, torch.float32), batch)
            valid = int((batch.indices >= 0).sum())
            total, num = total + float(loss) * valid, num + valid
    for run in reversed(runs):  # because each run restores the signal handlers before it
        run.close()
    (summary,) = states[0]["position"]["summaries"]
    assert num == 160 and summary["val"]["loss"] == pytest.approx(total / num, rel=1e-3)
    assert len(states[0]["task"]["labels"]) == RUNS_NUM
    assert digests(states[0]["task"]) == digests(states[1]["task"])
    assert digests(states[0]["train_step"]) == digests(states[1]["train_step"])


@pytest.mark.filterwarnings("ignore:collapse")
@pytest.mark.parametrize("step", [23, *map(slow, (1, 15, 44))])
def test_resumed_from_any_step_equals_never_stopped(
    whole: tuple[Path, Watched], tmp_path: Path, step: int
) -> None:
    """Losses, the clusters so far and the best sub-heads are compared, among others."""
    assert not fit(tmp_path, Watched(second_clusters=SECOND), stop_at=step)
    assert newest_checkpoint(tmp_path)["position"]["run_step"] == step
    assert fit(tmp_path, Watched(second_clusters=SECOND))
    same_run(whole[0], tmp_path, "epochs.jsonl", "metrics.jsonl")


@pytest.mark.filterwarnings("ignore:collapse")
def test_clusters_must_find_images_and_pairs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--num-clusters 481 for 480 training images"):
        fit(tmp_path / "a", Watched(num_clusters=481))
    with pytest.raises(ValueError, match="--second-clusters 481 for 480 training images"):
        fit(tmp_path / "b", Watched(second_clusters=481))
    with Beton(sample_paths().train_32) as data, pytest.warns(UserWarning, match="5 makes 10 pairs per step"):
        Watched().check_data(data, (RUNS_CLUSTERS - 1) // RUNS_COPIES)


class Plain(TinyNet):
    """A network that normalises each image by itself, so that an output does not depend on its batch."""

    def __init__(self) -> None:
        super().__init__()
        for part, width in zip(self.parts, self.channels, strict=True):
            part[1] = nn.GroupNorm(4, width)  # type: ignore[index, operator]


def a_run(out: Path, rank: int, size: int) -> dict[str, Any]:
    options = {"batch_size": BATCH, "epochs": (2,), "checkpoint_steps": 7, "keep_checkpoints": 100}
    run, task = tiny_run(out, rank_of(rank, size), val=None, **options), Watched(second_clusters=SECOND)
    torch.manual_seed(0)
    assert train_until(None, make_experiment(task, Plain(), epochs=(2,), lr=1e-4), run)
    losses = [step[1] for step in task.steps]
    return {"labels": task.labels, "best": task.epochs.best.tolist(), "losses": losses}


@pytest.mark.filterwarnings("ignore:collapse")
@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_ranks_learn_and_label_as_one(tmp_path: Path) -> None:
    """Losses of every step, the best sub-heads, clusters in mid-epoch and final labels are equal."""
    alone = a_run(tmp_path / "one", 0, 1)
    for held in results_of_ranks(partial(a_run, tmp_path / "two"), 2, tmp_path):
        assert held["best"] == alone["best"]
        assert np.allclose(held["losses"], alone["losses"], rtol=0.01, atol=1e-5)
        assert (held["labels"] == alone["labels"]).float().mean() > 0.98
    # Equality is not trivial.
    assert np.min(alone["losses"]) < -0.001 and len(alone["labels"].unique()) > 1
    for step in (7, 28):  # head A has seen 7 steps, head B 13
        paths = (tmp_path / name / "checkpoints" / f"step-{step:08d}.pt" for name in ("one", "two"))
        one, two = (torch.load(path, weights_only=True)["task"]["epochs"] for path in paths)
        assert torch.equal(one["clusters"] >= 0, two["clusters"] >= 0)
        assert int((one["clusters"] >= 0).sum()) == step % STEPS * BATCH
        assert (one["clusters"] == two["clusters"]).float().mean() > 0.98
        for before, on_ranks_before in zip(one["previous"], two["previous"], strict=True):
            assert torch.equal(before >= 0, on_ranks_before >= 0)


@pytest.mark.filterwarnings("ignore:collapse")
def test_each_head_is_read_by_its_own_best_sub_head_and_a_resume_keeps_it() -> None:
    torch.manual_seed(3)
    task, resumed = Watched(second_clusters=SECOND), Watched(second_clusters=SECOND)
    for each in (task, resumed):
        train_step_of(each)
    task.epochs.best.copy_(torch.tensor([2, 1]))
    task.first_epoch = 4
    heads, features, indices = task.head(1, 16), torch.randn(RUNS_NUM, 16, 1, 1), torch.arange(RUNS_NUM)
    indices[5] = -1  # an image that cannot be decoded: it has label 0 and no entropy
    context: Any = SimpleNamespace(
        world=one_process(), data=SimpleNamespace(num_samples=RUNS_NUM), epoch=5, head=heads,
        forward_dataset=lambda view, head: iter([(indices, head(features).detach())]),
    )  # fmt: skip
    task.end_stage(context)
    resumed.load_state_dict(task.state_dict())
    for number, best, found in ((0, 2, resumed.labels), (1, 1, resumed.second_labels)):
        logits = heads(features, number).detach()
        assert found is not None
        assert found.tolist() == logits[:, best].argmax(1).where(indices >= 0, 0).tolist()
        assert found.tolist() != logits[:, 3 - best].argmax(1).tolist()
    shares = heads(features, 0).detach()[:, 2].double().softmax(1)
    assert resumed.entropy is not None
    expected = (-(shares * shares.log()).sum(1)).where(indices >= 0, torch.nan)
    assert torch.allclose(resumed.entropy.double(), expected, atol=1e-5, equal_nan=True)
    assert task.state_dict()["best_sub_head"] == resumed.state_dict()["best_sub_head"] == 2
    assert [resumed.variant(epoch) for epoch in range(4, 9)] == [0, 1, 1, 0, 1]
