"""The online monitor (`--probe-every`), which measures the quality and collapse of features during training.

At the end of an epoch, it takes average-pooled features of the last block that runs, in eval mode and from
center crops. The images are a fixed part of the training images and of the validation images. The training is
not affected.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastpsl.console.progress import operation
from fastpsl.engine.dataset_pass import undisturbed
from fastpsl.engine.distributed import gathered, share
from fastpsl.engine.plan import Stage
from fastpsl.engine.reporter import MetricsFile
from fastpsl.engine.run import Run
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.train_step import DTYPES
from fastpsl.files.paths import read_lines
from fastpsl.kernels.nearest import Neighbours, count_correct, nearest, num_million_pairs
from fastpsl.pipelines.data.dataset import Dataset, all_labelled
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.loader.augment import choose_augment
from fastpsl.pipelines.views import ViewSpec, center_view


def find_neighbours(
    queries: Tensor | np.ndarray, bank: Tensor | np.ndarray, k: int, device: torch.device
) -> Neighbours:
    """Return `nearest` of the arguments, and report its progress every ten seconds."""
    with operation("looking for neighbours", "million pairs", num_million_pairs(queries, bank)) as progress:
        return nearest(queries, bank, k, device, on_million_pairs=progress.update)


MAX_TRAIN, MAX_VAL = 5_000, 10_000
K, TEMPERATURE = 20, 0.07
# A share of a standardised feature's variance. With 512 features of an untrained ResNet-18 and 480 to 3,068
# images, accuracy is within 4 points of the best from 0.1 to 1, and falls beyond 3.
RIDGE = 0.1
FIGURES = ("knn_accuracy", "linear_accuracy", "feature_std", "effective_rank")
_TRAIN, _VAL = 1, 2  # parts of the seed


class Features(NamedTuple):
    """The features of all samples that could be decoded, in the data's order and on the device."""

    features: Tensor  # float32 [n, C]
    labels: Tensor  # int64 [n], on the CPU; -1 = none


class OnlineProbe:
    """The monitor of one stage, which writes a line per probe to probe.jsonl.

    Like metrics.jsonl, the file is cut back to the checkpoint on resume. The end of each stage is probed too.
    """

    def __init__(self, run: Run, blocks: StageBlocks, stage: Stage, view: ViewSpec | None, every: int):
        self.run, self.blocks, self.stage, self.every = run, blocks, stage, every
        if not every:
            return
        assert view is not None
        input_spec = view.input()
        self.view = center_view(input_spec, input_spec.size_px)
        self.train = _some(run.data.train, MAX_TRAIN, (run.options.seed, _TRAIN))
        self.val: Subset | None = None
        if run.data.val is not None and all_labelled(run.data.train) and all_labelled(run.data.val):
            self.val = _some(run.data.val, MAX_VAL, (run.options.seed, _VAL))
        for part in (self.train, self.val):
            if part is not None:
                self.view.crop.check(*part.image_sizes()[:2])
        self._last_look = -1
        if run.world.rank == 0:
            self.file = MetricsFile(run.folder / "probe.jsonl", run.position.run_step)
            self._last_look = max((line["run_step"] for line in read_probes(self.file)), default=-1)
        self._last_look = share(run.world, self._last_look)
        if self.val is None:
            run.reporter.log(
                "probe: training and validation images with labels are not both given; it shows signs of "
                "collapse alone"
            )

    @property
    def num_images(self) -> int:
        """The number of images of a probe; 0 if there are no probes."""
        parts = (vars(self).get(name) for name in ("train", "val"))
        return sum(part.num_samples for part in parts if part is not None)

    def probe(self, steps_per_epoch: int, last_step: int, release: Callable[[], None]) -> bool:
        """Probe the features if it is time to. Every rank calls this between the same two steps."""
        position = self.run.position
        if not self.every or position.step == 0 or position.run_step <= self._last_look:
            return True
        epochs = position.first_epoch + position.step / steps_per_epoch
        if position.step != last_step and epochs % self.every:
            return True
        release()
        return self.look(epochs)

    def look(self, epochs: float) -> bool:
        """Probe the features now."""
        position = self.run.position
        with self.run.reporter.off_the_clock():
            started = time.perf_counter()
            self.run.stop_signal.other_pace()
            with torch.no_grad(), undisturbed(self.blocks, self.run.world):
                train = self._features(self.train)
                val = self._features(self.val) if self.val and train else None
            if train is None or (self.val and val is None):
                return False
            if self.run.world.rank == 0:
                where = {"run_step": position.run_step, "stage": self.stage.name, "level": self.stage.level}
                where |= {"step": position.step, "epoch": round(epochs, 3)}
                where |= {"block": f"B{self.stage.last_block}"}
                with operation("probe: kNN, linear classifier and signs of collapse"):
                    self._report(where | figures(train, val), time.perf_counter() - started)
            self._last_look = position.run_step
        return True

    def _features(self, data: Subset) -> Features | None:
        """Return the features from all ranks, on every rank; None if a signal stopped the pass."""
        run, dtype = self.run, DTYPES[self.run.precision]
        augment = choose_augment("torch", [self.view], run.world.device)
        features, indices, num_of_all_ranks = [], [], self.run.data.batch_size * run.world.size
        with (
            operation("probe: features", "images", data.num_samples) as progress,
            run.data.loader(data, [self.view], train=False) as loader,
            contextlib.closing(loader.epoch(0)) as batches,
        ):
            for batch in progress.track(batches, num_of_all_ranks):
                if run.stop_signal.after_step().stop:
                    return None
                (images,) = augment.inputs(batch, loader.views, dtype)
                with torch.autocast(run.world.device.type, dtype=dtype, enabled=dtype != torch.float32):
                    features.append(self.blocks(images).float().mean((2, 3)))
                indices.append(batch.indices)
        places, values = gathered(torch.cat(indices)), gathered(torch.cat(features))
        order = places.argsort()[int((places < 0).sum()) :]  # padding and bad samples come first
        labels = torch.from_numpy(data.labels().astype(np.int64))[places[order].cpu()]
        return Features(values[order], labels)

    def _report(self, line: dict[str, Any], seconds: float) -> None:
        reporter = self.run.reporter
        self.file.append([line])
        self.file.sync()
        from fastpsl.plots.charts import draw_probes  # needs matplotlib, which takes 0.3 s

        draw_probes(read_probes(self.file), self.run.folder / "probe.png")
        reporter.log(f"{probe_line(line)}; {seconds:.1f} s")
        scalars = {f"probe/{name}": line[name] for name in FIGURES if line[name] is not None}
        reporter.scalars(scalars, line["run_step"])


def figures(train: Features, val: Features | None) -> dict[str, Any]:
    """Compute the figures of probe.jsonl from the features of training and of validation images, if any.

    Accuracies are in [0, 1], and None without labels. If a feature is not finite, all `FIGURES` are None.
    """
    record: dict[str, Any] = {"num_train": len(train.features), "channels": train.features.shape[1]}
    record |= {"num_val": 0, "num_classes": 0} | dict.fromkeys(FIGURES)
    if not all(part.features.isfinite().all() for part in (train, val) if part is not None):
        return record  # do not raise, because the loss shows it as well
    if val is not None:
        num, k = len(val.labels), min(K, len(train.labels))
        num_classes = int(max(train.labels.max(), val.labels.max())) + 1
        neighbours = find_neighbours(val.features, train.features, k, train.features.device)
        counts = count_correct(neighbours, train.labels, val.labels, num_classes, (k,), TEMPERATURE)
        is_correct = ridge_classes(train.features, train.labels, val.features, num_classes) == val.labels
        record |= {"num_val": num, "num_classes": num_classes, "knn_accuracy": counts[f"top1_k{k}"] / num}
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


def ridge_classes(features: Tensor, labels: Tensor, others: Tensor, num_classes: int) -> Tensor:
    """Classify `others`, [m, C], by least squares on `features`, [n, C]; return int64 [m] on the CPU.

    W = (X'X / n + RIDGE I)^-1 X'(Y - mean Y) / n, with X standardised by its own mean and deviation, and Y
    one-hot. `labels` are int64 [n].
    """
    mean, deviation = features.double().mean(0), features.double().std(0, unbiased=False)
    # Standardisation would amplify the noise of a channel that hardly varies.
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
            f"kNN {100 * line['knn_accuracy']:.1f} %, linear {100 * line['linear_accuracy']:.1f} % of "
            f"{line['num_val']:,} validation images (chance {100 / line['num_classes']:.1f} %), "
        )
    full_rank = min(line["num_train"], line["channels"])
    return text + f"std {line['feature_std']:.3f} of 1, rank {line['effective_rank']:.1f} of {full_rank}"


def read_probes(file: MetricsFile) -> list[dict[str, Any]]:
    return [line.row for line in read_lines(file.path)]


def _some(data: Dataset, limit: int, seed: tuple[int, int]) -> Subset:
    """Return at most `limit` samples, drawn by `seed`, in the data's order."""
    if data.num_samples <= limit:
        return Subset(data, np.arange(data.num_samples))
    return Subset(data, np.sort(np.random.default_rng(seed).choice(data.num_samples, limit, replace=False)))
