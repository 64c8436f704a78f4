"""Test IIC's runs: the loss, alternating heads, the best sub-head, labels, resumes, two ranks."""

import math
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.distributed import World, leave_world
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.optimisers import adam
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.plan import Stage, make_plan
from fastpsl.engine.run import Run, RunData
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.train_step import StageModule, TrainStep
from fastpsl.engine.trainer import pretrain
from fastpsl.models.backbone import Backbone
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.tasks.pseudo_labels.iic import IIC, ClusterHeads, mutual_information_loss
from tests.engine.exact_signals import signal_at_step
from tests.engine.tiny import TinyNet, noise_batch, one_process, tiny_run
from tests.programs import digests, epoch_records, newest_checkpoint
from tests.slow import slow
from tests.warm import on_ranks

CLUSTERS, SECOND, SUB_HEADS, COPIES, NUM, BATCH, STEPS = 12, 5, 3, 2, 480, 16, 30

# Tiny networks learn too briefly to avoid a collapse.
pytestmark = pytest.mark.filterwarnings("ignore:collapse")

STAGE = Stage("S", 1, first_learning=1, last_block=5, epochs=3)


class Watched(IIC):
    """An IIC that records each training step: head, sub-heads' losses, indices, clusters by sub-head."""

    def __init__(self, **options: Any) -> None:
        values: dict[str, Any] = {
            "num_clusters": CLUSTERS,
            "size_px": 32,
            "crop_share": 0.625,
            "transforms": "colour",
            "num_copies": COPIES,
            "num_sub_heads": SUB_HEADS,
        }
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
    with closing(tiny_run(out, batch_size=BATCH, epochs=(3,), keep_checkpoints=100, **options)) as run:
        signal_at_step(run, stop_at)
        return pretrain(make_experiment(task), run)


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
    blocks, head = StageBlocks(TinyNet(), STAGE), task.head(1, 16)
    task.start_stage(STAGE, blocks, head)
    module = StageModule(blocks, head, task)
    optimiser = adam(module.learning_parameters())
    return TrainStep(module, optimiser, task.views(1), "fp32", one_process())


def test_loss_is_of_every_pair_and_the_mean_over_sub_heads() -> None:
    task = Watched()
    train_step = train_step_of(task)
    batch = noise_batch(task.views(1), 8)
    batch.indices[5:] = -1
    inputs = batch.inputs(task.views(1), torch.float32)
    loss, metrics = train_step.module(inputs, batch)
    head = train_step.module.head
    assert isinstance(head, ClusterHeads) and task.inputs_per_image(1) == 1 + COPIES
    shares = (
        head(train_step.module.blocks(torch.cat(inputs))).softmax(2).view(1 + COPIES, 8, SUB_HEADS, CLUSTERS)
    )
    pairs = [torch.cat([shares[0, :5]] * COPIES), shares[1:, :5].flatten(0, 1)]
    valid = torch.ones(5 * COPIES, dtype=torch.bool)
    expected = mutual_information_loss(pairs[0], pairs[1][None], valid).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4) and loss.item() < -0.005
    value, num = metrics["loss"]
    assert (value / num).item() == pytest.approx(loss.item()) and num == 5


def test_heads_take_turns_and_the_other_one_has_zero_gradients(whole: tuple[Path, Watched]) -> None:
    _, task = whole
    assert [number for number, *_ in task.steps] == [0] * STEPS + [1] * 2 * STEPS
    task.first_epoch = 4  # a later stage begins with A, too
    assert [task.head_of(epoch) for epoch in range(4, 11)] == [0, 1, 1, 0, 1, 1, 0]
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
    losses = []
    for batch.epoch in (0, 1):
        losses.append(
            train_step.module(batch.inputs(task.views(1), torch.float32), train_step.prepared(batch))[
                0
            ].item()
        )
    assert losses[0] == losses[1]
    task = Watched()
    train_step_of(task)
    assert [task.head_of(epoch) for epoch in range(4)] == [0] * 4


def test_a_stage_begins_with_head_a(tmp_path: Path) -> None:
    """It does so after any number of epochs."""
    run, task = tiny_run(tmp_path, batch_size=BATCH, epochs=(2, 1)), Watched(second_clusters=SECOND)
    torch.manual_seed(0)
    stages = make_plan("sl", (2, 1), num_levels=1, num_blocks=5)
    assert pretrain(Experiment(task, TinyNet(), stages, step_drops(1e-3, (1,)), adam), run)
    run.close()
    assert [number for number, *_ in task.steps[::STEPS]] == [0, 1, 0]


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


def test_labels_are_what_the_best_sub_head_says_of_centre_crops(tmp_path: Path) -> None:
    """In plain loops and eval mode, with the entropy in nats."""
    task = Watched()
    experiment, run = make_experiment(task), tiny_run(tmp_path, batch_size=BATCH, epochs=(3,))
    assert pretrain(experiment, run)
    state, best = newest_checkpoint(tmp_path), task.epochs.best[0]
    network = TinyNet()
    network.load_state_dict(state["backbone"])
    weight, bias = (
        state["train_step"]["head"][f"classify.0.{name}"].unflatten(0, (SUB_HEADS, CLUSTERS))[best]
        for name in ("weight", "bias")
    )
    task_state = state["task"]
    labels, short, entropy = torch.full((NUM,), -1), torch.full((NUM,), math.inf), torch.zeros(NUM)
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
    assert torch.allclose(task_state["entropy"], entropy, atol=1e-5) and 0 < entropy.min() < math.log(
        CLUSTERS
    )


def test_validation_images_have_no_labels_and_teach_nothing(tmp_path: Path) -> None:
    """Training is the same without them. Head A scores them as it is after the last step."""
    experiments = []
    for _ in range(2):
        torch.manual_seed(0)
        experiments.append(make_experiment(Watched(second_clusters=SECOND), Plain(), epochs=(2,)))
    runs = [
        tiny_run(tmp_path / "with", batch_size=BATCH, epochs=(2,)),
        tiny_run(tmp_path / "without", batch_size=BATCH, epochs=(2,), val=None),
    ]
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
    assert len(states[0]["task"]["labels"]) == NUM
    assert digests(states[0]["task"]) == digests(states[1]["task"])
    assert digests(states[0]["train_step"]) == digests(states[1]["train_step"])


@pytest.mark.parametrize("step", [47, *map(slow, (1, 30, 89))])
def test_resumed_from_any_step_equals_never_stopped(
    whole: tuple[Path, Watched], tmp_path: Path, step: int
) -> None:
    """Losses, the clusters so far and the best sub-heads are compared, among others."""
    assert not fit(tmp_path, Watched(second_clusters=SECOND), stop_at=step)
    assert newest_checkpoint(tmp_path)["position"]["run_step"] == step
    assert fit(tmp_path, Watched(second_clusters=SECOND))
    assert digests(newest_checkpoint(tmp_path)) == digests(newest_checkpoint(whole[0]))
    assert epoch_records(tmp_path) == epoch_records(whole[0])


def test_a_signal_in_the_last_pass_is_heard_and_it_begins_anew(
    whole: tuple[Path, Watched], tmp_path: Path
) -> None:
    """A signal stops the pass after the stage's last step, and the resumed run repeats that pass."""
    assert not fit(tmp_path, Watched(second_clusters=SECOND), stop_at=3 * STEPS)
    state = newest_checkpoint(tmp_path)
    assert state["position"]["step"] == 3 * STEPS and "labels" not in state["task"]
    assert fit(tmp_path, Watched(second_clusters=SECOND))
    assert digests(newest_checkpoint(tmp_path)) == digests(newest_checkpoint(whole[0]))


def test_clusters_must_find_images_and_pairs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--num-clusters 481 for 480 training images"):
        fit(tmp_path / "a", Watched(num_clusters=481))
    with pytest.raises(ValueError, match="--second-clusters 481 for 480 training images"):
        fit(tmp_path / "b", Watched(second_clusters=481))
    with Beton(sample_paths().train_32) as data, pytest.warns(UserWarning, match="5 makes 10 pairs per step"):
        Watched().check_data(data, (CLUSTERS - 1) // COPIES)


class Plain(TinyNet):
    """A network that normalises each image by itself, so that an output does not depend on its batch."""

    def __init__(self) -> None:
        super().__init__()
        for part, width in zip(self.parts, self.channels, strict=True):
            part[1] = nn.GroupNorm(4, width)  # type: ignore[index, operator]


def on_two_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    a_run(Path(folder) / "two", World(rank, 2, rank, 2, torch.device("cpu")))
    leave_world()


def a_run(out: Path, world: World) -> None:
    options = PretrainOptions(
        data=str(sample_paths().train_32), out=out, batch_size=BATCH, epochs=(2,), tensorboard=False,
        workers=1, checkpoint_minutes=0.0, checkpoint_steps=7, keep_checkpoints=100,
    )  # fmt: skip
    run, task = Run("tiny", RunData(options, world)), Watched(second_clusters=SECOND)
    torch.manual_seed(0)
    assert pretrain(make_experiment(task, Plain(), epochs=(2,), lr=1e-4), run)
    run.close()
    held = {
        "labels": task.labels,
        "best": task.epochs.best.tolist(),
        "losses": [step[1] for step in task.steps],
    }
    torch.save(held, out / f"held-{world.rank}.pt")


@pytest.mark.slow
def test_two_ranks_learn_and_label_as_one(tmp_path: Path) -> None:
    """Losses of every step, the best sub-heads, clusters in mid-epoch and final labels are equal."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a_run(tmp_path / "one", one_process())
    torch.set_num_threads(threads)
    on_ranks(on_two_ranks, (str(tmp_path),), 2)
    alone = torch.load(tmp_path / "one" / "held-0.pt")
    for rank in range(2):
        held = torch.load(tmp_path / "two" / f"held-{rank}.pt")
        assert held["best"] == alone["best"]
        assert np.allclose(held["losses"], alone["losses"], rtol=0.01, atol=1e-5)
        assert (held["labels"] == alone["labels"]).float().mean() > 0.98
    assert (
        np.min(alone["losses"]) < -0.001 and len(alone["labels"].unique()) > 1
    )  # so that equality is not trivial
    for step in (7, 56):  # head A has seen 7 steps, head B 26
        one, two = (
            torch.load(tmp_path / name / "checkpoints" / f"step-{step:08d}.pt", weights_only=True)["task"][
                "epochs"
            ]
            for name in ("one", "two")
        )
        assert torch.equal(one["clusters"] >= 0, two["clusters"] >= 0)
        assert int((one["clusters"] >= 0).sum()) == step % STEPS * BATCH
        assert (one["clusters"] == two["clusters"]).float().mean() > 0.98
        for before, on_ranks_before in zip(one["previous"], two["previous"], strict=True):
            assert torch.equal(before >= 0, on_ranks_before >= 0)


def test_each_head_is_read_by_its_own_best_sub_head_and_a_resume_keeps_it() -> None:
    torch.manual_seed(3)
    task, resumed = Watched(second_clusters=SECOND), Watched(second_clusters=SECOND)
    for each in (task, resumed):
        train_step_of(each)
    task.epochs.best.copy_(torch.tensor([2, 1]))
    task.first_epoch = 4
    heads, features, indices = task.head(1, 16), torch.randn(NUM, 16, 1, 1), torch.arange(NUM)
    indices[5] = -1  # an image that cannot be decoded: it has label 0 and no entropy
    context: Any = SimpleNamespace(
        world=one_process(), data=SimpleNamespace(num_samples=NUM), epoch=5, head=heads,
        forward_dataset=lambda view, head: iter([(indices, head(features).detach())]),
    )  # fmt: skip
    task.end_stage(context)
    resumed.load_state_dict(task.state_dict())
    for number, best, found in ((0, 2, resumed.labels), (1, 1, resumed.second_labels)):
        logits = heads(features, number).detach()
        assert (
            found is not None and found.tolist() == logits[:, best].argmax(1).where(indices >= 0, 0).tolist()
        )
        assert found.tolist() != logits[:, 3 - best].argmax(1).tolist()
    shares = heads(features, 0).detach()[:, 2].double().softmax(1)
    assert resumed.entropy is not None
    expected = (-(shares * shares.log()).sum(1)).where(indices >= 0, torch.nan)
    assert torch.allclose(resumed.entropy.double(), expected, atol=1e-5, equal_nan=True)
    assert task.state_dict()["best_sub_head"] == resumed.state_dict()["best_sub_head"] == 2
    assert [resumed.head_of(epoch) for epoch in range(4, 9)] == [0, 1, 1, 0, 1]
