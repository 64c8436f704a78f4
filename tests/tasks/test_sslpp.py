"""SSL++: proxy and pseudo-labels, their weights and losses, and the experiment of its recipes."""

import math
import runpy
import warnings
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.experiment import Experiment, make_train_step, place_backbone
from fastpsl.engine.optim.optimisers import adam, sgd
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.plan import Stage, make_plan
from fastpsl.engine.run import Run
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.trainer import pretrain
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, center_view, train_view
from fastpsl.tasks.pseudo_labels.deepcluster import TOP_STD, clustered_features
from fastpsl.tasks.pseudo_labels.file import Labels
from fastpsl.tasks.sslpp import sslpp
from fastpsl.tasks.sslpp.rotnet import RotNet
from fastpsl.tasks.sslpp.sslpp import K_MEANS_ITERATIONS, PCA_WIDTH, LabelLoss, SSLPlusPlus
from tests.engine.exact_signals import signal_at_question
from tests.engine.tiny import TinyNet, noise_batch, tiny_run
from tests.programs import ROOT, digests, newest_checkpoint
from tests.warm import results_of_ranks

SIZE, NUM, CLUSTERS = 32, 480, 7
INPUT = Input.usual("RGB", SIZE)
PLAIN, CENTER = train_view(INPUT, SIZE, "padded"), center_view(INPUT, SIZE, whole=True)
LABELS = np.random.default_rng(0).integers(CLUSTERS, size=NUM)
STAGE = make_plan("end_to_end", (2,), num_levels=1)


def task_of(**values: Any) -> SSLPlusPlus:
    defaults = {"weight": 0.3, "num_classes": CLUSTERS, "labels": LABELS}
    return SSLPlusPlus(RotNet(SIZE), PLAIN, **{**defaults, **values})


def modules_and_batch(task: SSLPlusPlus) -> tuple[StageBlocks, nn.Module, list[Tensor], Batch]:
    """Return blocks, head, inputs and a batch of five with one padding sample."""
    torch.manual_seed(0)
    blocks = StageBlocks(TinyNet(), STAGE[0]).eval()
    head = task.head(1, 16)
    task.start_stage(STAGE[0], blocks, head)
    batch = noise_batch(task.views(1), 5)
    batch.indices = torch.tensor([0, 300, -1, 2, 479])
    return blocks, head, batch.inputs(task.views(1), torch.float32), batch


def cross_entropy(logits: Tensor, label: int) -> Tensor:
    return -(logits[label] - logits.exp().sum().log())


def test_the_loss_is_equation_5() -> None:
    task = task_of()
    blocks, head, inputs, batch = modules_and_batch(task)
    loss, metrics = task.loss(blocks, head, inputs, batch)
    turns, labels = torch.zeros(()), torch.zeros(())
    view = task.views(1)[0]
    images = view.before_last_op(batch.images[0], batch.draws[0])
    right = 0
    for sample, index in enumerate(batch.indices.tolist()):
        for turn in range(4) if index >= 0 else ():
            image = torch.rot90(images[sample], turn, (-2, -1))[None].float() / 255
            image = (image - torch.tensor(view.mean)[:, None, None]) / torch.tensor(view.std)[:, None, None]
            features = blocks(image).mean((2, 3))
            of_turn = head["proxy"].classify(features)[0]  # type: ignore[index]
            of_label = head["labels"][2](features)[0]  # type: ignore[index]
            turns += cross_entropy(of_turn, turn) / 16
            labels += cross_entropy(of_label, int(LABELS[index])) / 16
            right += int(of_label.argmax() == LABELS[index])
    assert loss.item() == pytest.approx((turns + 0.3 * labels).item(), rel=1e-5)
    means = {name: float(value / num) for name, (value, num) in metrics.items()}
    assert means["loss_proxy"] == pytest.approx(turns.item(), rel=1e-5)
    assert means["loss_labels"] == pytest.approx(labels.item(), rel=1e-5)
    assert means["loss"] == pytest.approx(loss.item()) and means["accuracy_labels"] == right / 16


def gradients(task: SSLPlusPlus) -> dict[str, Tensor]:
    blocks, head, inputs, batch = modules_and_batch(task)
    loss, _ = task.loss(blocks, head, inputs, batch)
    loss.backward()
    return {name: p.grad for name, p in blocks.named_parameters() if p.grad is not None}


def test_gradients_add_up_by_the_weight() -> None:
    alone, both = gradients(task_of(num_classes=0, labels=None)), gradients(task_of(weight=0.3))
    zero, heavier = gradients(task_of(weight=0.0)), gradients(task_of(weight=0.6))
    for name, value in alone.items():
        assert torch.equal(zero[name], value), name
        torch.testing.assert_close(heavier[name] - value, 2 * (both[name] - value), rtol=1e-3, atol=1e-6)
    assert not torch.equal(both["learning.0.0.weight"], alone["learning.0.0.weight"])


def test_validation_images_have_no_pseudo_labels() -> None:
    """Their indices are those of other images, so labels must not matter: the score is the proxy's."""
    scores = []
    for labels in (LABELS, (LABELS + 1) % CLUSTERS):
        task = task_of(labels=labels)
        blocks, head, inputs, batch = modules_and_batch(task)
        loss, metrics = task.loss(blocks, head.eval(), inputs, batch)
        assert set(metrics) == {"loss_proxy", "accuracy", "loss_proxy_constant"}
        scores.append(loss)
    assert torch.equal(*scores)
    value, num = metrics["loss_proxy_constant"]
    assert float(value / num) == pytest.approx(np.log(4))


def test_pseudo_labels_alone() -> None:
    task = task_of(learn_proxy=False, weight=2.0)
    assert task.views(1) == (PLAIN,) and task.inputs_per_image(1) == 1
    blocks, head, inputs, batch = modules_and_batch(task)
    assert list(head) == ["labels"]  # type: ignore[call-overload]
    loss, metrics = task.loss(blocks, head, inputs, batch)
    features = blocks(inputs[0]).mean((2, 3))
    logits = head["labels"][2](features)  # type: ignore[index]
    valid = [0, 1, 3, 4]
    wanted = torch.stack([cross_entropy(logits[i], int(LABELS[batch.indices[i]])) for i in valid]).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)  # the weight does not matter
    assert set(metrics) == {"loss", "loss_labels", "loss_labels_constant", "accuracy_labels"}
    loss, metrics = task.loss(blocks, head.eval(), inputs, batch)
    assert float(loss) == 0 and not metrics
    assert task.chance(1) is None and task_of().chance(1) == 0.25
    assert torch.equal(task.contact_sheet(inputs, batch), PLAIN.denormalise(inputs[0]))


@pytest.mark.parametrize("size", [0, 1])
def test_small_batches(size: int) -> None:
    task = task_of()
    blocks, head, _, _ = modules_and_batch(task)
    batch = noise_batch(task.views(1), size)
    loss, _ = task.loss(blocks, head, batch.inputs(task.views(1), torch.float32), batch)
    assert bool(loss.isfinite()) and (size > 0 or float(loss) == 0)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_cannot_be(weight: float) -> None:
    with pytest.raises(ValueError, match="--semantic-weight .*: it must be 0 or more"):
        task_of(weight=weight)


def test_as_many_clusters_as_images_are_possible() -> None:
    task_of(labels=None, center=CENTER, num_classes=8).check_data(Synthetic(8, SIZE, 2), 4)


class Noted(RotNet):
    """A proxy that records all its hooks."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.calls: list[str] = []
        self.number = 0

    @override
    def check_data(self, data: object, batch_size: int) -> None:
        self.calls.append("check_data")

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: nn.Module) -> None:
        self.calls.append("start_stage")

    @override
    def num_warm_up_batches(self, stage: Stage) -> int:
        return 2

    @override
    def warm_up(self, blocks: StageBlocks, head: nn.Module, inputs: object, batch: Batch) -> None:
        assert isinstance(head, nn.ModuleDict)
        self.calls.append("warm_up")

    @override
    def features_loss(self, features: Tensor, head: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        self.number += head.training
        return super().features_loss(features, head, batch)

    @override
    def end_epoch(self) -> Mapping[str, float]:
        return {"seen": float(self.number)}

    @override
    def state_dict(self) -> dict[str, int]:
        return {"number": self.number}

    @override
    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.number = state["number"]


def experiment_of(task: SSLPlusPlus, optimiser: Any = sgd) -> Experiment:
    torch.manual_seed(0)
    return Experiment(task, TinyNet(), STAGE, step_drops(0.05, (1,)), optimiser)


def test_the_proxys_hooks_are_called(tmp_path: Path) -> None:
    proxy = Noted()
    task = SSLPlusPlus(proxy, PLAIN, weight=0.1, num_classes=CLUSTERS, labels=LABELS)
    run = tiny_run(tmp_path, batch_size=64, max_steps_per_stage=3, epochs=(2,))
    assert pretrain(experiment_of(task), run)
    run.close()
    assert proxy.calls == ["check_data", "start_stage", "warm_up", "warm_up"]
    assert newest_checkpoint(tmp_path)["task"]["proxy"] == {"number": 3}
    assert '"seen": 3.0' in (tmp_path / "epochs.jsonl").read_text()


def coupled(seed: int = 3) -> SSLPlusPlus:
    return task_of(labels=None, center=CENTER, seed=seed)


def test_coupled_labels_are_clusters_of_the_features(tmp_path: Path) -> None:
    task, run = coupled(), tiny_run(tmp_path, batch_size=128)
    experiment = experiment_of(task, adam)
    experiment.check(run.data)
    place_backbone(experiment, run.options, run.world)
    train_step = make_train_step(experiment, 0, run.options, run.world)
    context = EpochContext(run, train_step, 0, True, 1000)
    first = task.start_epoch(context)
    wanted, distance = clustered_features(context, CENTER, CLUSTERS, PCA_WIDTH, K_MEANS_ITERATIONS, 3)
    assert torch.equal(task.labels, wanted.long()) and len(wanted) == NUM
    assert first is not None and first["distance"] == distance and first["nmi_previous"] is None
    assert len(task.labels.unique()) == CLUSTERS == first["non_empty"]
    assert float(task.label_loss.entropy) == pytest.approx(first["entropy"])
    classifier = train_step.module.head["labels"][2]  # type: ignore[index]
    assert float(classifier.weight.std()) == pytest.approx(TOP_STD, rel=0.3)
    before, proxy = classifier.weight.detach().clone(), train_step.module.head["proxy"].classify  # type: ignore[index]
    batch = noise_batch(task.views(1), 8)
    train_step.step([batch], 0.01)
    optimiser, weights = train_step.optimiser, proxy.weight.detach().clone()
    assert all(s["exp_avg"].abs().sum() > 0 for s in (optimiser.state[p] for p in classifier.parameters()))
    second = task.start_epoch(replace(context, epoch=1, first=False, draws_epoch=1001))
    assert second is not None and second["nmi_previous"] is not None
    assert not torch.equal(classifier.weight, before) and not classifier.bias.any()
    for parameter in classifier.parameters():  # the optimiser's state is reset
        assert not any(value.any() for value in optimiser.state[parameter].values())
    assert torch.equal(proxy.weight, weights) and optimiser.state[proxy.weight]["exp_avg"].any()
    run.close()


def test_coupled_labels_that_collapse_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, run = coupled(), tiny_run(tmp_path, batch_size=128)
    experiment = experiment_of(task, adam)
    experiment.check(run.data)
    place_backbone(experiment, run.options, run.world)
    context = EpochContext(run, make_train_step(experiment, 0, run.options, run.world), 0, True, 1000)
    one_class = torch.zeros(NUM, dtype=torch.int32), 0.5
    monkeypatch.setattr("fastpsl.tasks.sslpp.sslpp.clustered_features", lambda *_: one_class)
    with pytest.warns(UserWarning, match="collapse: the biggest"):
        task.start_epoch(context)
    run.close()


def test_coupled_labels_and_classifiers_are_deepclusters() -> None:
    """Given labels have a classifier with torch's first weights, uniform up to 1 / √channels."""
    assert (PCA_WIDTH, K_MEANS_ITERATIONS, TOP_STD) == (256, 20, 0.01)
    torch.manual_seed(0)
    for task, std, has_bias in ((coupled(), 0.01, False), (task_of(), (3 * 900) ** -0.5, True)):
        classifier = task.head(1, 900)["labels"][2]  # type: ignore[index]
        assert float(classifier.weight.detach().std()) == pytest.approx(std, rel=0.05)
        assert bool(classifier.bias.any()) == has_bias


def test_a_resumed_run_compares_with_the_entropy_of_its_coupled_labels() -> None:
    tasks = [coupled(), coupled()]
    for task in tasks:
        task.check_data(Synthetic(NUM, CLUSTERS), 8)
        blocks, head, inputs, batch = modules_and_batch(task)
    first, resumed = tasks
    first.labels, first.label_loss.epoch = torch.from_numpy(LABELS), 3
    resumed.load_state_dict(first.state_dict())
    assert resumed.labels.tolist() == LABELS.tolist() and resumed.label_loss.epoch == 3
    shares = (np.bincount(LABELS, minlength=CLUSTERS) / NUM).tolist()
    value, num = resumed.loss(blocks, head, inputs, batch)[1]["loss_labels_constant"]
    assert float(value / num) == pytest.approx(-sum(share * math.log(share) for share in shares), rel=1e-5)


def test_a_step_can_be_timed_before_labels_are_made() -> None:
    """`fastpsl doctor` and the benches do so, without epochs."""
    task = coupled()
    with closing(Beton(sample_paths().train_32)) as data:
        task.check_data(data, 128)
    blocks, head, inputs, batch = modules_and_batch(task)
    loss, _ = task.loss(blocks, head, inputs, batch)
    assert bool(loss.isfinite()) and task.captions(batch) == [""] * 5
    task.labels = torch.from_numpy(LABELS)
    captions = task.captions(batch)
    assert [captions[i] for i in (0, 1, 3, 4)] == [f"cluster {LABELS[i]}" for i in (0, 300, 2, 479)]


@pytest.mark.slow
def test_coupled_is_resumed_anywhere(tmp_path: Path) -> None:
    """The stops are in the first pass, in an epoch, in the second pass and after it."""

    def fit(out: Path, stop_at: int | None = None) -> bool:
        run: Run = tiny_run(out, batch_size=32, epochs=(2,))
        signal_at_question(run, stop_at)
        finished = pretrain(experiment_of(coupled()), run)
        run.close()
        return finished

    whole = tmp_path / "whole"
    assert fit(whole)
    for stop_at in (2, 9, 20, 30):
        out = tmp_path / str(stop_at)
        assert not fit(out, stop_at), stop_at
        assert fit(out)
        assert digests(newest_checkpoint(out)) == digests(newest_checkpoint(whole)), stop_at


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("collapsed", [False, True])
def test_labels_that_were_cut_or_have_collapsed_are_warned_of_on_rank_0(
    rank: int, cut: bool, collapsed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "labels.npz"
    path.touch()
    numbers = np.arange(100, dtype=np.int32)
    labels = np.maximum(numbers - 95, 0) if collapsed else numbers % 60
    file = Labels(labels, 70, "sslpp_iic", 0, np.zeros(100, np.float32), configuration={"cut": cut})
    monkeypatch.setattr(sslpp, "labels_of", lambda *_: file)
    monkeypatch.setattr(sslpp, "own_rank", lambda: rank)
    options: Any = type("Options", (), {"seed": 0})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert sslpp._labels(path, options) is file
    expected = [f"{path} was made by a run that --max-steps-per-stage cut short"] * cut
    expected += [f"{path}: collapse: the biggest of 70 classes holds 96.0 %"] * collapsed
    said = [str(warning.message) for warning in caught]
    assert len(said) == (len(expected) if rank == 0 else 0)
    assert all(text.startswith(start) for text, start in zip(said, expected, strict=False))
    shares = ("5", "96.0%") if collapsed else ("60", "2.0%")
    told = "pseudo-labels: {}, by sslpp_iic: {} of 70 classes have images, the biggest {} of them\n"
    assert capsys.readouterr().out == (told.format(path, *shares) if rank == 0 else "")


def test_all_classes_of_a_file_are_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--num-clusters is the number of coupled clusters and not of a file's classes."""
    path = tmp_path / "labels.npz"
    path.touch()
    numbers = np.arange(100, dtype=np.int32) % 70
    file = Labels(numbers, 70, "sslpp_iic", 0, np.zeros(100, np.float32), configuration={})
    monkeypatch.setattr(sslpp, "labels_of", lambda *_: file)
    parts = runpy.run_path(str(ROOT / "recipes" / "sslpp_rotation.py"))
    options = parts["RECIPE"].with_paper(data="T.beton", pseudo_labels=str(path), num_clusters=5)
    task = parts["build"](options).task
    assert task.num_classes == 70 and np.array_equal(task.given, numbers)


LOSS_LABELS, CPU = np.array([0] * 8 + [1] * 4 + [2] * 4), torch.device("cpu")
ENTROPY = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)


def epochs(watch: LabelLoss, losses: list[float]) -> list[int]:
    """Run an epoch of two steps for each mean loss, and return the epochs after which there was a warning."""
    warned = []
    for epoch, loss in enumerate(losses, start=1):
        watch.see(torch.tensor(loss + 0.3), torch.tensor(10.0))
        watch.see(torch.tensor(loss - 0.1), torch.tensor(30.0))
        watch.see(torch.tensor(math.nan), torch.tensor(30.0))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            figures = watch.end_epoch()
        expected = {"loss_labels": loss, "entropy_labels": ENTROPY}
        assert figures == pytest.approx(expected, abs=1e-6)
        warned += [epoch] * len(caught)
        assert all("the second head has not learned the pseudo-labels" in str(w.message) for w in caught)
    return warned


def test_a_loss_that_is_not_below_the_entropy_is_warned_of_after_a_tenth_and_at_the_end() -> None:
    assert epochs(LabelLoss(LOSS_LABELS, 5, 15, CPU), [ENTROPY] * 15) == [2, 15]
    assert epochs(LabelLoss(LOSS_LABELS, 5, 20, CPU), [2.0] + [0.98 * ENTROPY] * 19) == []
    assert epochs(LabelLoss(LOSS_LABELS, 5, 1, CPU), [0.995 * ENTROPY]) == [1]


def test_new_labels_have_their_own_entropy_and_an_epoch_without_steps_no_figures() -> None:
    watch = LabelLoss(np.full(16, -1), 3, 1, CPU)
    assert watch.entropy.isnan() and watch.end_epoch() == {}
    entropy = watch.entropy
    watch.labels_are(LOSS_LABELS)
    assert float(entropy) == pytest.approx(ENTROPY)


def test_a_watch_that_is_stopped_and_goes_on_has_the_same_figures() -> None:
    """The losses are such that floating-point sums would depend on the order."""
    losses = torch.rand(30, generator=torch.Generator().manual_seed(0)) * 5
    whole, parts = LabelLoss(LOSS_LABELS, 5, 3, CPU), LabelLoss(LOSS_LABELS, 5, 3, CPU)
    for number, loss in enumerate(losses):
        whole.see(loss, torch.tensor(7.0))
        parts.see(loss, torch.tensor(7.0))
        if number == 11:
            state = parts.state_dict()
            parts = LabelLoss(LOSS_LABELS, 5, 3, CPU)
            parts.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert whole.end_epoch() == parts.end_epoch()
    assert whole.state_dict()["epoch"] == 1 and not whole.state_dict()["sums"].any()


def watched(rank: int, num_ranks: int) -> tuple[dict[str, Any], dict[str, float], int]:
    """See this rank's part of 8 losses.

    Return the state after 4, and the figures of what went on from it, with their number of warnings.
    """
    watch = LabelLoss(LOSS_LABELS, 5, 10, CPU)
    for step in range(8):
        if step == 4:
            state = watch.state_dict()
            watch = LabelLoss(LOSS_LABELS, 5, 10, CPU)
            watch.load_state_dict(state)
        if step % num_ranks == rank:
            watch.see(torch.tensor(0.1 + 0.2 * step), torch.tensor(step + 1.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return state, watch.end_epoch(), len(caught)


@pytest.mark.slow
def test_two_ranks_count_each_loss_once(tmp_path: Path) -> None:
    """A state has all ranks' sums, so only one rank may go on from them. One rank warns."""
    state, figures, num_warnings = watched(0, 1)
    assert num_warnings == 1
    mean = sum((0.1 + 0.2 * step) * (step + 1) for step in range(8)) / 36
    assert figures["loss_labels"] == pytest.approx(mean, abs=1e-6)
    for rank, (state_of_rank, *others) in enumerate(results_of_ranks(watched, 2, tmp_path)):
        assert torch.equal(state_of_rank["sums"], state["sums"]) and others == [figures, int(rank == 0)]


def test_a_watch_that_goes_on_warns_after_the_same_epochs() -> None:
    """A resume after the first of 20 epochs leaves the second and the last to warn after."""
    before, after = (LabelLoss(LOSS_LABELS, 5, 20, CPU) for _ in range(2))
    assert epochs(before, [ENTROPY]) == []
    after.load_state_dict(before.state_dict())
    assert epochs(after, [ENTROPY] * 19) == [1, 19]
