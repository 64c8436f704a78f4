"""The online monitor: what features are worth before the training, at the end of each stage, and in between.

It takes average-pooled features of the last block that runs, in eval mode and from center crops. The images
are a fixed part of the training images and of the validation images. The training is not affected.

The accuracy after a stage stands beside that of the same block of the untrained network, because blocks
differ before any training. "Untrained" has the initial weights, and BatchNorm's statistics from one pass over
training images, as the views of the last stage show them. A training at a learning rate of 0 ends there. With
weights of --init it is called "at the start", and BatchNorm's statistics are those of the file.
"""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from fastpsl.console.progress import operation
from fastpsl.console.words import percent
from fastpsl.engine.dataset_pass import PassStopped, undisturbed
from fastpsl.engine.distributed import World, gathered, share, sum_over_ranks
from fastpsl.engine.experiment import Experiment, why_no_knn
from fastpsl.engine.options import INITIAL_WEIGHTS
from fastpsl.engine.plan import FreezeRule, Stage
from fastpsl.engine.reporter import BEFORE, MetricsFile, knn_words
from fastpsl.engine.run import Run, RunData
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.task import Task
from fastpsl.engine.train_step import DTYPES
from fastpsl.files.run_folder import PROBES, read_lines
from fastpsl.kernels.autocast import autocast
from fastpsl.kernels.nearest import Neighbours, count_correct, nearest, num_million_pairs
from fastpsl.models.backbone import Backbone
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.augment import choose_augment
from fastpsl.pipelines.views import ViewSpec, center_view


def find_neighbours(
    queries: Tensor | np.ndarray, bank: Tensor | np.ndarray, k: int, device: torch.device
) -> Neighbours:
    """Return `nearest` of the arguments, and report its progress every ten seconds."""
    with operation("looking for neighbours", "million pairs", num_million_pairs(queries, bank)) as progress:
        return nearest(queries, bank, k, device, on_million_pairs=progress.update)


# More take longer and tell more (not measured). Of 10,000, twice the standard error is 1 point at most.
MAX_TRAIN, MAX_VAL = 5_000, 10_000
# A look takes at most a hundredth of the training's time. In short trainings it may take so many operations,
# which are 3 to 4 s of a CPU core. This gives fewer images to those sample presets that have a ResNet-50.
LOOK_OPERATIONS = 140_000_000_000
# Network inputs for BatchNorm's statistics. With a ResNet-18 and 64 to 960 inputs, the kNN accuracy varies no
# more than with the order of the images.
NUM_STATISTICS = 250
K, TEMPERATURE = 20, 0.07  # as solo-learn has them (docs/evaluate/knn.md)
# Images whose features are compared from look to look: 8 MB of a checkpoint for 2,048 features.
NUM_COMPARED = 2_000
# A share of a standardised feature's variance. With 512 features of an untrained ResNet-18 and 480 to 3,068
# images, accuracy is within 4 points of the best from 0.1 to 1, and falls beyond 3.
RIDGE = 0.1
_CAUTIONS = {
    "knn": "--freeze-when knn: the classes of the validation images decide where stages end, so the run's "
    "accuracy on them is optimistic",
    # 512 features of 2,000 images, variances falling as 1 / i²: where noise takes the place of 30 % of each
    # image's variance, the similarity is still .997.
    "similarity": "--freeze-when similarity: linear CKA follows the largest directions of the features; with "
    "500 of them or more, a stage can end while 30 % of each image's variance still changes",
}
FIGURES = ("knn_accuracy", "linear_accuracy", "feature_std", "effective_rank")
_LOOK = {"run_step", "stage", "epoch", "block", "num_train", "num_val", "num_classes", "channels", *FIGURES}
_TRAIN, _VAL, _ORDER = 1, 2, 3  # parts of the seed

Forward = Callable[[Tensor], list[Tensor]]
"""Images [B, C, H, W] → pooled features [B, C] of each wanted block."""


class Features(NamedTuple):
    """The features of all samples that could be decoded, in the data's order and on the device."""

    features: Tensor  # float32 [n, C]
    labels: Tensor  # int64 [n], on the CPU; -1 = none


def is_probed(run: Run, task: Task) -> bool:
    """Return whether the features of a run are probed, and log why there is no kNN if there can be none.

    Without --probe-every they are, unless the task learns classes itself.
    """
    every = getattr(run.options, "probe_every", 0)
    if every == 0 or (every is None and task.needs_labels):
        return False
    if reason := why_no_knn(run.data):
        run.reporter.log_once("no kNN", f"no kNN: {reason}; std and rank show signs of collapse")
    if caution := _CAUTIONS.get(getattr(run.options, "freeze_when", "never")):
        run.reporter.log_once("freeze", caution)
    return True


def look_images(experiment: Experiment, data: RunData) -> tuple[Subset, Subset | None]:
    """Return the training images of a look, and those for validation, if there is a kNN."""
    seed, most = data.options.seed, _most_images(experiment, data)
    train = _some(data.train, min(MAX_TRAIN, most), (seed, _TRAIN))
    if data.val is None or why_no_knn(data):
        return train, None
    return train, _some(data.val, min(MAX_VAL, most), (seed, _VAL))


def _most_images(experiment: Experiment, data: RunData) -> int:
    """Return how many training images a look has at most in any stage, and how many for validation."""
    options, num_train, batch_size = data.options, data.train.num_samples, data.options.batch_of()
    stages = experiment.stages
    learned = sum(stage.epochs * num_train + (stage.num_steps or 0) * batch_size for stage in stages)
    passed = 3 * learned // 100  # a learned image passes forward once, and backward for two
    if passed < min(MAX_TRAIN, num_train) + MAX_VAL:
        passed = max(passed, LOOK_OPERATIONS // _num_operations(experiment, data.world))
    # A run that is cut short for a trial does not wait for more images than it trains on.
    return min(max(passed // 2, batch_size), (options.max_steps_per_stage or MAX_VAL) * batch_size)


def _num_operations(experiment: Experiment, world: World) -> int:
    """Return the operations of an image, as the first stage has it, in the whole network."""
    spec, backbone = look_view(experiment, experiment.stages[0]).input(), experiment.backbone
    image = torch.zeros(1, spec.num_channels, spec.size_px, spec.size_px, device=world.device)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), undisturbed(backbone, world), counter:
        pooled_blocks(backbone, [backbone.num_blocks], image)
    return max(counter.get_total_flops(), 1)


def look_view(experiment: Experiment, stage: Stage) -> ViewSpec:
    """Return the view of the middle of an image, with the input that the network has in a stage.

    All stages are looked at in the last one's size, so that their figures can be compared.
    """
    input_spec = experiment.views(stage)[0].input()
    return center_view(input_spec, experiment.stages[-1].size_px or input_spec.size_px)


def features_of(
    data: RunData, part: Subset, view: ViewSpec, forward: Forward, stopped: Callable[[], bool]
) -> list[Features]:
    """Return the features of each tensor that `forward` returns, from all ranks, on every rank."""
    indices, parts = list[Tensor](), list[list[Tensor]]()
    for (images,), own_indices in _inputs("probe: features", data, part, [view], data.batch_size, stopped):
        parts.append(_computed(data, forward, images))
        indices.append(own_indices)
    places = gathered(torch.cat(indices))
    order = places.argsort()[int((places < 0).sum()) :]  # padding and bad samples come first
    labels = torch.from_numpy(part.labels().astype(np.int64))[places[order].cpu()]
    return [Features(gathered(torch.cat(each))[order], labels) for each in zip(*parts, strict=True)]


def _computed(data: RunData, forward: Forward, images: Tensor) -> list[Tensor]:
    device = data.world.device
    dtype = DTYPES[data.options.resolved_precision(device)]
    with autocast(device, dtype):
        return forward(images)


def _inputs(
    what: str,
    data: RunData,
    part: Subset,
    views: Sequence[ViewSpec],
    batch_size: int,
    stopped: Callable[[], bool],
) -> Generator[tuple[list[Tensor], Tensor], None, None]:
    """Yield this rank's inputs of each view, [N, C, H, W], and indices [B]; raise PassStopped if stopped."""
    device = data.world.device
    dtype = DTYPES[data.options.resolved_precision(device)]
    augment = choose_augment(data.options.augment_backend, views, device)
    with (
        operation(what, "images", part.num_samples) as progress,
        data.loader(part, views, train=False, batch_size=batch_size) as loader,
        contextlib.closing(loader.epoch(0)) as batches,
    ):
        for batch in progress.track(batches, batch_size * data.world.size):
            if stopped():
                raise PassStopped
            yield augment.inputs(batch, loader.views, dtype), batch.indices


class OnlineProbe:
    """The monitor of one stage, which writes a line per probe to probe.jsonl.

    Like metrics.jsonl, the file is cut back to the checkpoint on resume. The end of each stage is probed too.
    The lines of the untrained network, one for each stage, have `run_step` 0.
    """

    def __init__(self, run: Run, experiment: Experiment, stage: Stage, blocks: StageBlocks, is_on: bool):
        """Prepare the monitor of a stage, which runs `blocks`; without `is_on`, it never looks."""
        self.run, self.experiment, self.stage, self.blocks = run, experiment, stage, blocks
        self.is_on = is_on
        self.rule: FreezeRule = getattr(run.options, "freeze_rule", FreezeRule())
        self.settled = False  # by the rule, at the run's present step
        # The step and the features of the last look, float16 [n, C], for the next one to compare with.
        self.compared: tuple[int, Tensor] | None = None
        self.before = "knn_at_start" if run.science.get(INITIAL_WEIGHTS) else "knn_untrained"
        self.every: int | None = getattr(run.options, "probe_every", None)
        self.train: Subset | None = None
        self.val: Subset | None = None
        if not is_on:
            return
        self.train, self.val = look_images(experiment, run.data)
        for part in self._parts():
            look_view(experiment, stage).crop.check(*part.image_sizes()[:2])
        self._last_look = -1
        if run.world.rank == 0:
            # A run that starts anew may find the lines of one that had no checkpoint yet.
            known = run.resumed or run.position.run_step > 0
            self.file = MetricsFile(run.folder / PROBES, run.position.run_step if known else -1)
            self._last_look = max((line["run_step"] for line in self._lines()), default=-1)
        self._last_look = share(run.world, self._last_look)
        self._settle()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs besides probe.jsonl: the features that the next look compares with."""
        return {} if self.compared is None else {"run_step": self.compared[0], "features": self.compared[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the features to compare with. A look that was made after the checkpoint is made again."""
        if state:
            self.compared = state["run_step"], state["features"]
        looks, kept = self._looks(), self.compared[0] if self.compared else 0
        again = self.rule.by == "similarity" and bool(looks) and looks[-1]["run_step"] > kept
        if again:
            self.file = MetricsFile(self.file.path, looks[-1]["run_step"] - 1)
        if share(self.run.world, again):
            self._last_look, self.settled = -1, False

    def _lines(self) -> list[dict[str, Any]]:
        return read_probes(self.file.path)

    def _looks(self) -> list[dict[str, Any]]:
        """Return the lines of the stage's looks since its first step, on rank 0."""
        if not self.is_on or self.run.world.rank:
            return []
        return [each for each in self._lines() if each["stage"] == self.stage.name and each["run_step"]]

    def _settle(self) -> None:
        """Decide, by the looks on record, whether the stage ends at the present step; alike on all ranks."""
        last = self._looks()[-1:] if self.rule.by != "never" else []
        settled = any(line.get("settled") and line["run_step"] == self.run.position.run_step for line in last)
        self.settled = share(self.run.world, settled)

    def _decide(self, line: dict[str, Any], epochs: float) -> str:
        """Add the rule and its decision to a look's line. Return why the stage ends, or nothing."""
        name = "similarity" if self.rule.by == "similarity" else "knn_accuracy"
        values = [each.get(name) for each in (*self._looks(), line)]
        long_enough = epochs - self.run.position.first_epoch >= self.rule.min_epochs
        settled = long_enough and self.rule.is_settled(values)
        line |= {"rule": self.rule._asdict(), "settled": settled}
        return f"{self.stage.name} ends here: {self.rule.words(values)}" if settled else ""

    def _similarity(self, features: Tensor) -> float | None:
        """Return the similarity of features [n, C] to those of the stage's last look, and keep them."""
        step, kept = self.run.position.run_step, features[:NUM_COMPARED].to("cpu", torch.float16)
        before, self.compared = self.compared, (step, kept)
        if before is None or not (kept.isfinite().all() and before[1].isfinite().all()):
            return None
        return linear_cka(kept, before[1])

    def _parts(self) -> list[Subset]:
        return [part for part in (self.train, self.val) if part is not None]

    @property
    def num_images(self) -> int:
        """The number of images of a probe; 0 if there are no probes."""
        return sum(part.num_samples for part in self._parts())

    def probe(self, steps_per_epoch: int, last_step: int, release: Callable[[], None]) -> bool:
        """Probe the features if it is time to. Every rank calls this between the same two steps."""
        position = self.run.position
        if not self.is_on or position.step == 0 or position.run_step <= self._last_look:
            return True
        epochs = position.first_epoch + position.step / steps_per_epoch
        if position.step != last_step and (not self.every or epochs % self.every):
            return True
        release()
        return self.look(epochs)

    def look(self, epochs: float) -> bool:
        """Probe the features now. Return False if a signal stopped it."""
        whole: Forward = lambda images: [self.blocks(images).float().mean((2, 3))]
        with self._apart(self.blocks) as taken:
            (line,) = self._measured(whole, [self.stage], epochs)
            if self.run.world.rank == 0:
                line |= {self.before: self._untrained(line)}
                reason = "" if self.rule.by == "never" else self._decide(line, epochs)
                self._write([line])
                from fastpsl.plots.charts import draw_probes  # needs matplotlib, which takes 0.3 s

                draw_probes(self._lines(), self.run.folder / "probe.png")
                if self.every:
                    self.run.reporter.log(f"{probe_line(line)}; {taken()}")
                if reason:
                    self.run.reporter.log(reason)
        self._settle()
        return self._last_look == self.run.position.run_step

    def look_untrained(self) -> bool:
        """Probe the last block of each stage before the first step. Return False if a signal stopped it.

        One pass serves all stages whose input is the same.
        """
        if not self.is_on:
            return True
        backbone, stages = self.experiment.backbone, self.experiment.stages
        lines = dict[str, dict[str, Any]]()
        with self._apart(backbone) as taken:
            views = [look_view(self.experiment, stage) for stage in stages]
            for view in dict.fromkeys(views):
                alike = [stage for stage, its in zip(stages, views, strict=True) if its == view]
                pooled = partial(pooled_blocks, backbone, [stage.last_block for stage in alike])
                if not self._has_statistics():
                    self._estimate_statistics(pooled, alike[-1])
                lines |= {line["stage"]: line for line in self._measured(pooled, alike, 0.0)}
            if self.run.world.rank == 0:
                in_order = [lines[stage.name] for stage in stages]
                self._write(in_order)
                self.run.reporter.log(f"{untrained_line(in_order, BEFORE[self.before])}; {taken()}")
        return self._last_look == self.run.position.run_step

    def result(self) -> dict[str, float]:
        """Return the kNN accuracy at the run's present step and untrained, for the stage's summary."""
        if not self.is_on or self.run.world.rank:
            return {}
        lines = [line for line in self._lines() if line["run_step"] == self.run.position.run_step]
        names = ("knn_accuracy", self.before)
        return {name: line[name] for line in lines for name in names if line.get(name) is not None}

    @contextlib.contextmanager
    def _apart(self, module: nn.Module) -> Iterator[Callable[[], str]]:
        """Keep a look from changing the module and the run's clocks; yield a function that tells its seconds.

        If a signal stops the look (`PassStopped`), the present step counts as not looked at.
        """
        run, started = self.run, time.perf_counter()
        with run.reporter.off_the_clock(), run.meter.stopped(), contextlib.suppress(PassStopped):
            run.stop_signal.other_pace()
            with torch.no_grad(), undisturbed(module, run.world):
                yield lambda: f"{time.perf_counter() - started:.1f} s"
            self._last_look = run.position.run_step

    def _measured(self, forward: Forward, stages: Sequence[Stage], epochs: float) -> list[dict[str, Any]]:
        """Return a line of probe.jsonl for each stage, of whose last block `forward` makes the features."""
        parts, view = self._parts(), look_view(self.experiment, stages[0])
        features = [features_of(self.run.data, part, view, forward, self._stopped) for part in parts]
        lines, position = [], self.run.position
        for stage, (train, *val) in zip(stages, zip(*features, strict=True), strict=True):
            line: dict[str, Any] = {"run_step": position.run_step, "stage": stage.name, "level": stage.level}
            line |= {"step": position.step, "epoch": round(epochs, 3), "block": f"B{stage.last_block}"}
            line |= self.run.so_far()
            if self.run.world.rank == 0:
                with operation("probe: kNN, linear classifier and signs of collapse"):
                    line |= figures(train, *val)
                if self.rule.by == "similarity" and position.run_step:
                    line |= {"similarity": self._similarity(train.features)}
            lines.append(line)
        return lines

    def _has_statistics(self) -> bool:
        """Return whether the weights that the run began with brought their BatchNorms' statistics."""
        origin = self.run.science.get(INITIAL_WEIGHTS) or {}
        if "path" in origin:
            return not origin["not_taken"]
        if not origin or getattr(self.run.options, "plan", "") == "continue":
            return bool(origin)
        return any(norm.num_batches_tracked for norm in self._norms())  # a module may have been trained

    def _norms(self) -> list[_BatchNorm]:
        """Return the backbone's BatchNorms that have running statistics."""
        norms = [part for part in self.experiment.backbone.modules() if isinstance(part, _BatchNorm)]
        return [norm for norm in norms if norm.running_mean is not None]

    def _estimate_statistics(self, forward: Forward, stage: Stage) -> None:
        """Set BatchNorms' running statistics to the mean of those of batches, as the stage's steps see them.

        Batches of training images in random order pass until `NUM_STATISTICS` inputs have, equally many on
        each rank. The mean is over those of all ranks. All else is in eval mode, so that no dropout draws a
        mask.
        """
        norms = self._norms()
        if not norms:
            return
        world, momenta, data = self.run.world, [norm.momentum for norm in norms], self.in_random_order()
        of_rank = data.num_samples // world.size
        batch_size = min(max(2, self.run.data.batch_size), of_rank)
        views = self.experiment.views(stage)
        what = "untrained: BatchNorm's statistics"
        batches = _inputs(what, self.run.data, data, views, batch_size, self._stopped)
        number = num_inputs = 0
        try:
            with contextlib.closing(batches):
                for inputs, _ in islice(batches, of_rank // batch_size):
                    for images in inputs:
                        number, num_inputs = number + 1, num_inputs + len(images) * world.size
                        for norm in norms:
                            norm.train()
                            norm.momentum = 1 / number  # the first input replaces what was there
                        _computed(self.run.data, forward, images)
                    if num_inputs >= NUM_STATISTICS:
                        break
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()
        for norm in norms:
            for buffer in (norm.running_mean, norm.running_var):
                assert buffer is not None
                sum_over_ranks(world, buffer).div_(world.size)

    def in_random_order(self) -> Subset:
        """Return the training images for BatchNorm's statistics: a sorted folder has batches of one class."""
        assert self.train is not None
        order = np.random.default_rng((self.run.options.seed, _ORDER)).permutation(self.train.num_samples)
        return Subset(self.train, order)

    def _stopped(self) -> bool:
        return self.run.stop_signal.after_step().stop

    def _untrained(self, line: dict[str, Any]) -> float | None:
        """Return the untrained network's accuracy of the same block on the same images; None if unknown."""
        same = ("run_step", "stage", "block", "num_train", "num_val")
        wanted = [0, *(line[name] for name in same[1:])]
        found = [each for each in self._lines() if [each.get(name) for name in same] == wanted]
        return found[0]["knn_accuracy"] if found else None

    def _write(self, lines: list[dict[str, Any]]) -> None:
        """Append lines to probe.jsonl, and send the first one's figures to TensorBoard and W&B."""
        self.file.append(lines)
        self.file.sync()
        line = lines[0]
        names = [name for name in (*FIGURES, self.before) if line.get(name) is not None]
        self.run.reporter.scalars({f"probe/{name}": line[name] for name in names}, line["run_step"])


def pooled_blocks(backbone: Backbone, last_blocks: Sequence[int], images: Tensor) -> list[Tensor]:
    """Return the average-pooled features [B, C] of some blocks, which are counted from 1."""
    pooled = dict[int, Tensor]()
    for number, block in enumerate(backbone.blocks()[: max(last_blocks)], start=1):
        images = block(images)
        if number in last_blocks:  # pooled now, since the next block may work in place
            pooled[number] = images.float().mean((2, 3))
    return [pooled[number] for number in last_blocks]


def knn_accuracy(train: Features, val: Features) -> float:
    """Return the share of images in `val` whose class their nearest neighbours in `train` vote for."""
    k, num_classes = min(K, len(train.labels)), int(max(train.labels.max(), val.labels.max())) + 1
    neighbours = find_neighbours(val.features, train.features, k, train.features.device)
    counts = count_correct(neighbours, train.labels, val.labels, num_classes, (k,), TEMPERATURE)
    return float(counts[f"top1_k{k}"] / len(val.labels))


def two_standard_errors(accuracy: float, num: int) -> float:
    """Return twice the binomial standard error of an accuracy p in [0, 1] of n images, sqrt(p (1 - p) / n).

    Two networks that are scored on the same n images err alike. With a correlation of one half between their
    errors, it is also that of their difference.
    """
    return 2 * math.sqrt(accuracy * (1 - accuracy) / num)


def figures(train: Features, val: Features | None = None) -> dict[str, Any]:
    """Compute the figures of probe.jsonl from the features of training and of validation images, if any.

    Accuracies are in [0, 1], and None without labels. If a feature is not finite, all `FIGURES` are None.
    """
    record: dict[str, Any] = {"num_train": len(train.features), "channels": train.features.shape[1]}
    record |= {"num_val": 0, "num_classes": 0} | dict.fromkeys(FIGURES)
    if not all(part.features.isfinite().all() for part in (train, val) if part is not None):
        return record  # do not raise, because the loss shows it as well
    if val is not None:
        num_classes = int(max(train.labels.max(), val.labels.max())) + 1
        is_correct = ridge_classes(train.features, train.labels, val.features, num_classes) == val.labels
        record |= {"num_val": len(val.labels), "num_classes": num_classes}
        record["knn_accuracy"] = knn_accuracy(train, val)
        record["linear_accuracy"] = float(is_correct.float().mean())
    rows = train.features
    return record | {"feature_std": feature_std(rows), "effective_rank": effective_rank(rows)}


def feature_std(features: Tensor) -> float:
    """Return the standard deviation of L2-normalised rows, averaged over channels, times sqrt(C).

    This is SimSiam's measure (section 4.1): 1 for evenly spread directions, and 0 if all samples have equal
    features. After a ReLU, outputs share a direction and healthy values are below 1.
    """
    rows = torch.nn.functional.normalize(features.double(), dim=1)
    return float(rows.std(0, unbiased=False).mean() * features.shape[1] ** 0.5)


def effective_rank(features: Tensor) -> float:
    """Return the effective rank of [n, C] in 1 … min(n, C), as defined by RankMe (equation 2).

    It is exp of the entropy of the singular values as shares of their sum.
    """
    matrix = features.double()
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    shares = torch.linalg.eigvalsh(matrix.T @ matrix).clamp(min=0).sqrt()
    shares = shares / shares.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return float(torch.special.entr(shares).sum().exp())


def linear_cka(first: Tensor, second: Tensor) -> float | None:
    """Return the similarity of two matrices of features [n, C] of the same images, from 0 to 1.

    It is None if all rows of a matrix are equal. It is linear CKA (Kornblith et al., "Similarity of neural
    network representations revisited", 2019).
    """
    first, second = (each.double() - each.double().mean(0) for each in (first, second))
    norms = torch.linalg.matrix_norm(first.T @ first) * torch.linalg.matrix_norm(second.T @ second)
    return float(torch.linalg.matrix_norm(first.T @ second).square() / norms) if norms else None


def ridge_classes(features: Tensor, labels: Tensor, others: Tensor, num_classes: int) -> Tensor:
    """Classify `others`, [m, C], by least squares on `features`, [n, C]; return int64 [m] on the CPU.

    W = (X'X / n + RIDGE I)^-1 X'(Y - mean Y) / n, with X standardised by its own mean and deviation, and Y
    one-hot. `labels` are int64 [n].
    """
    mean, deviation = features.double().mean(0), features.double().std(0, unbiased=False)
    # Standardisation would amplify the noise of a channel that hardly varies (the bound is not measured).
    deviation = deviation.where(deviation > 1e-4 * deviation.max(), torch.inf)
    inputs, queries = (features.double() - mean) / deviation, (others.double() - mean) / deviation
    targets = torch.nn.functional.one_hot(labels, num_classes).to(inputs)
    shares = targets.mean(0)
    gram = inputs.T @ inputs / len(inputs)
    gram.diagonal().add_(RIDGE)
    weights = torch.linalg.solve(gram, inputs.T @ (targets - shares) / len(inputs))
    return (queries @ weights + shares).argmax(1).cpu()


def probe_line(line: dict[str, Any]) -> str:
    """Return a probe's figures as one line for people."""
    text = f"probe after epoch {line['epoch']:g} ({line['stage']}, {line['block']}): "
    if line["feature_std"] is None:
        return text + "features are not finite"
    if line["num_val"]:
        text += (
            f"{knn_words(line)}, linear {percent(line['linear_accuracy'])} of "
            f"{line['num_val']:,} validation images (chance {percent(1 / line['num_classes'])}), "
        )
    if line.get("similarity") is not None:
        text += f"similarity to the last look {line['similarity']:.3f}, "
    full_rank = min(line["num_train"], line["channels"])
    return text + f"std {line['feature_std']:.3f} of 1, rank {line['effective_rank']:.1f} of {full_rank}"


def untrained_line(lines: Sequence[dict[str, Any]], before: str = "untrained") -> str:
    """Return what the blocks are worth before the first step, as one line for people."""
    if any(line["feature_std"] is None for line in lines):
        return f"{before}: features are not finite"
    line = lines[0]
    if not line["num_val"]:
        return f"{before}: std {line['feature_std']:.3f} of 1, rank {line['effective_rank']:.1f}"
    blocks = {line["block"]: f"{line['block']} {percent(line['knn_accuracy'])}" for line in lines}
    return (
        f"{before}: kNN {', '.join(blocks.values())} of {line['num_val']:,} validation images "
        f"(chance {percent(1 / line['num_classes'])})"
    )


def read_probes(path: Path) -> list[dict[str, Any]]:
    """Return the lines of probe.jsonl that have all that a look has; another program may add others."""
    return [line.row for line in read_lines(path) if line.row.keys() >= _LOOK]


def _some(data: Dataset, limit: int, seed: tuple[int, int]) -> Subset:
    """Return at most `limit` samples, drawn by `seed`, in the data's order."""
    if data.num_samples <= limit:
        return Subset(data, np.arange(data.num_samples))
    return Subset(data, np.sort(np.random.default_rng(seed).choice(data.num_samples, limit, replace=False)))
