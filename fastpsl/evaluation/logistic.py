"""Score frozen blocks by logistic regression on few labels: scikit-learn's, on features of unit length.

The strength is chosen by cross-validation within the labels of a draw. The block that a network is judged by
is chosen there, too, so no validation image has a say in either.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import nn
from typing_extensions import override

from fastpsl.console.words import number_of
from fastpsl.engine.distributed import World
from fastpsl.evaluation.feature_file import FeatureFile
from fastpsl.evaluation.features import Extraction, extract
from fastpsl.evaluation.few_labels import Draws
from fastpsl.evaluation.options import EvaluationOptions, FloorOptions
from fastpsl.evaluation.outcomes import in_own_span, run_resumable
from fastpsl.evaluation.protocols import block_number
from fastpsl.evaluation.untrained import Floor, Work, no_floor_lines, score_floor
from fastpsl.files.digest import sha256_of_bytes, sha256_of_json
from fastpsl.models.backbone import Backbone
from fastpsl.models.convolutional import on_vectors
from fastpsl.models.initial_weights import recorded_backbone
from fastpsl.models.names import MAX_DOWNLOAD_GB
from fastpsl.models.weights import Pretrained, record_of
from fastpsl.pipelines.interface.dataset import Dataset, require_same_classes
from fastpsl.pipelines.views import Input

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# scikit-learn is imported where it is used, because the import takes a second.

COSTS = tuple(10.0**power for power in range(6))  # scikit-learn's C, to choose from
FIXED_COST = 1.0  # where a class has too few images for a cross-validation
MIN_FOLDS, MAX_FOLDS = 3, 5
MAX_ITERATIONS = 1000
PIXELS, PIXELS_PX = "pixels", 32
_ROWS = 4096  # validation features at a time


@dataclass(frozen=True)
class Fit:
    """A task: the logistic regression on one block that learns from one draw."""

    train: FeatureFile
    val: FeatureFile
    rows: np.ndarray  # of `train`, int64 [n]
    labels: np.ndarray  # of `rows`, integers [n]
    truth: np.ndarray  # of all rows of `val`, integers; negative ones are not scored
    standardised: bool  # whether features are standardised, and not brought to unit length

    def digest(self) -> str:
        """Return the digest of what the outcome depends on."""
        return sha256_of_json({
            "features": [file.record["digest"] for file in (self.train, self.val)],
            "arrays": [sha256_of_bytes(each.tobytes()) for each in (self.rows, self.labels, self.truth)],
            "standardised": self.standardised, "solver": _solver(),
        })  # fmt: skip

    def outcome(self) -> dict[str, Any]:
        """Return accuracies in [0, 1], the chosen cost, and the numbers of fits and of unconverged ones.

        The cost has the highest mean accuracy over the folds, and is the smallest of equal ones.
        """
        from sklearn.preprocessing import Normalizer, StandardScaler

        scaler = StandardScaler() if self.standardised else Normalizer()
        scaled = scaler.fit_transform(self.train.features()[self.rows].astype(np.float64))
        features, basis = in_own_span(scaled)
        num_folds = min(MAX_FOLDS, int(np.unique(self.labels, return_counts=True)[1].min()))
        accuracies, cost = np.empty(0), FIXED_COST
        if num_folds >= MIN_FOLDS:
            accuracies = _cross_validated(features, self.labels, num_folds)
            cost = COSTS[int(accuracies.argmax())]
        machine = _machine().set_params(C=cost).fit(features, self.labels)
        scored = np.flatnonzero(self.truth >= 0)
        right = [
            machine.predict(scaler.transform(self.val.features()[rows].astype(np.float64)) @ basis)
            == self.truth[rows]
            for rows in np.split(scored, range(_ROWS, len(scored), _ROWS))
        ]
        return {
            "accuracy": float(np.concatenate(right).mean()), "cost": cost,
            "cross_validated_accuracy": float(accuracies.max()) if len(accuracies) else None,
            "fits": 1 + num_folds * len(accuracies),
            "not_converged": int(machine.n_iter_.max() >= MAX_ITERATIONS),
        }  # fmt: skip


def _machine() -> "LogisticRegression":
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)


def _cross_validated(features: np.ndarray, labels: np.ndarray, num_folds: int) -> np.ndarray:
    """Return the mean accuracy over folds, in [0, 1], for each of `COSTS`.

    Folds are stratified and not shuffled. Each fit begins with that of the cost before, which takes half of
    the time.
    """
    from sklearn.model_selection import StratifiedKFold

    accuracies = np.empty((num_folds, len(COSTS)))
    for fold, (rows, val) in enumerate(StratifiedKFold(num_folds).split(features, labels)):
        machine = _machine()
        for number, cost in enumerate(COSTS):
            machine.set_params(C=cost).fit(features[rows], labels[rows])
            accuracies[fold, number] = machine.score(features[val], labels[val])
    means: np.ndarray = accuracies.mean(0)
    return means


class Scores(NamedTuple):
    """The scores of a network by few labels.

    Attributes:
        block: The block that it is judged by; "" where the whole network learned.
        numbers: In percent, for n images of each class: "top1_<n>_<block>", the mean over draws, and
            "sd_<n>_<block>", their standard deviation; "top1_<n>" and "sd_<n>" are those of `block`.
        costs: The chosen costs, by block and n, of each draw.
        counts: The numbers of fits and of those that did not converge.
    """

    block: str
    numbers: dict[str, float]
    costs: dict[str, dict[str, list[float]]]
    counts: dict[str, int]

    def settings(self) -> dict[str, Any]:
        """Return what was chosen, for result.json."""
        return {"block": self.block or None, "chosen_costs": self.costs, **self.counts}

    def curve(self, block: str = "") -> dict[int, tuple[float, float]]:
        """Return the mean and the deviation by the images of each class, of a block or of `block`."""
        end = f"_{block}" if block else ""
        nums = [int(name[5:]) for name in self.numbers if name.startswith("top1_") and name[5:].isdecimal()]
        return {n: (self.numbers[f"top1_{n}{end}"], self.numbers[f"sd_{n}{end}"]) for n in nums}


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation (ddof 1; 0 of a single value), in percent, of shares."""
    percents = 100 * np.array(values)
    return float(percents.mean()), float(percents.std(ddof=1)) if len(values) > 1 else 0.0


class Pixels(Backbone):
    """The images themselves as a backbone of one block, [B, 3 * 32 * 32, 1, 1]."""

    name, block_names, channels, min_px = PIXELS, (PIXELS,), (3 * PIXELS_PX**2,), PIXELS_PX

    @override
    def blocks(self) -> list[nn.Module]:
        return [on_vectors(*self.channels)]


def pixels() -> Pretrained:
    """Return the pixels of the images as if they were the features of a network."""
    input = Input("RGB", (0.0,) * 3, (1.0,) * 3, PIXELS_PX)
    return Pretrained(Pixels(), input, record_of(None, PIXELS, PIXELS, PIXELS, input))


@dataclass(frozen=True)
class FewLabelScorer:
    """A scorer of networks, with what their scores have in common.

    Attributes:
        draws: The images to learn from.
        val: The images to score.
        block: The block to judge by, such as B4; None for the best one in cross-validation.
        num_processes: Processes of this rank.
        world: The ranks that share the work.
    """

    draws: Draws
    val: Dataset
    block: str | None
    num_processes: int
    world: World

    def __post_init__(self) -> None:
        require_same_classes(self.draws.pool, self.val)
        if not (self.val.labels() >= 0).any():
            raise ValueError("no validation image has a label: give others as --val")

    def score(self, options: EvaluationOptions, weights: Pretrained, folder: Path) -> Scores | None:
        """Write the features of all blocks into a folder, and score them; rank 0 alone returns the scores."""
        return self._score(self._works(options, weights), folder)

    def score_untrained(
        self, options: FloorOptions, weights: Pretrained, folder: Path
    ) -> tuple[Scores | None, str]:
        """Score an untrained network of the same kind, as `score_floor` does.

        Pixels have none, and there is none with --no-floor.

        Returns:
            The scores, on rank 0 at least, and why there are none, or "".
        """
        if weights.record["kind"] == PIXELS or not options.floor:
            return None, ""

        def prepare(network: Pretrained) -> Work:
            works = self._works(options, network)
            images = {num: [each.tolist() for each in draws] for num, draws in self.draws.images.items()}
            wanted = {
                "features": [work.digest() for each in works for work in each], "block": self.block,
                "images": images, "solver": _solver(),
            }  # fmt: skip

            def score(place: Path) -> Floor | None:
                scores = self._score(works, place)
                return None if scores is None else Floor(scores.block, scores.numbers)

            return Work(wanted, names, score)

        names = [f"{what}_{num}" for num in self.draws.images for what in ("top1", "sd")]
        floor, why_not = score_floor(weights, options.seed, prepare, folder, self.world)
        if floor is None:
            return None, why_not
        return Scores(floor.block, {name: floor.numbers[name] for name in names}, {}, {}), ""

    def _works(self, options: EvaluationOptions, weights: Pretrained) -> tuple[list[Extraction], ...]:
        self._judged(weights)  # an error comes before the work
        blocks = [f"B{number}" for number in range(1, weights.backbone.num_blocks + 1)]
        return tuple(
            Extraction.for_blocks(options, weights, data, blocks, self.world, "float32")
            for data in (self.draws.pool, self.val)
        )

    def _judged(self, weights: Pretrained) -> str | None:
        """Return the name of the block to judge by, if it is chosen."""
        if self.block is None or weights.record["kind"] == PIXELS:
            return None
        backbone = weights.backbone
        return f"B{block_number(self.block, backbone.num_blocks, backbone.block_names)}"

    def _score(self, works: tuple[list[Extraction], ...], folder: Path) -> Scores | None:
        folder.mkdir(parents=True, exist_ok=True)
        files = [
            extract(each, [folder / f"{name}_B{work.block}.npy" for work in each], self.world, overwrite=True)
            for name, each in zip(("train", "val"), works, strict=True)
        ]
        tasks, keys = dict[Path, Fit](), list[tuple[str, int]]()
        weights = works[0][0].pretrained
        is_pixels = weights.record["kind"] == PIXELS
        for train, val in zip(*files, strict=True):
            for num, fit in self._fits(train, val, standardised=is_pixels):
                tasks[folder / "few-labels" / f"{train.record['block']}-{num}-{fit.digest()[:32]}.json"] = fit
                keys.append((train.record["block"], num))
        outcomes = run_resumable(tasks, self.num_processes, self.world, "classifiers")
        return None if outcomes is None else _scores(keys, outcomes, self._judged(weights))

    def _fits(self, train: FeatureFile, val: FeatureFile, *, standardised: bool) -> Iterator[tuple[int, Fit]]:
        """Yield each number of images of a class, once for each draw, and its task."""
        labels, truth = self.draws.pool.labels(), self.val.labels().copy()
        truth[val.record["bad"]] = -1
        for num, draws in self.draws.images.items():
            for draw in range(len(draws)):
                rows = np.setdiff1d(self.draws.rows(num, draw), train.record["bad"])
                if missing := set(range(self.val.num_classes)) - set(labels[rows].tolist()):
                    raise ValueError(
                        f"--labels-per-class {num}: in draw {draw + 1} no image of class {min(missing)} "
                        "could be decoded; give a larger number, or mend the images"
                    )
                yield num, Fit(train, val, rows, labels[rows], truth, standardised)


def _scores(
    keys: Sequence[tuple[str, int]], outcomes: Sequence[Mapping[str, Any]], block: str | None
) -> Scores:
    """Return the scores of outcomes by block and images of each class."""
    by_block = dict[str, dict[int, list[Mapping[str, Any]]]]()
    for (name, num), outcome in zip(keys, outcomes, strict=True):
        by_block.setdefault(name, {}).setdefault(num, []).append(outcome)
    judged = block or _best_in_cross_validation(by_block)
    numbers = dict[str, float]()
    for name, end in ((judged, ""), *((name, f"_{name}") for name in by_block)):
        for num, each in by_block[name].items():
            accuracies = [outcome["accuracy"] for outcome in each]
            numbers[f"top1_{num}{end}"], numbers[f"sd_{num}{end}"] = mean_and_deviation(accuracies)
    costs = {
        name: {str(num): [outcome["cost"] for outcome in each] for num, each in of_block.items()}
        for name, of_block in by_block.items()
    }
    counts = {name: sum(outcome[name] for outcome in outcomes) for name in ("fits", "not_converged")}
    return Scores(judged, numbers, costs, counts)


def _best_in_cross_validation(by_block: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> str:
    """Return the block with the highest mean at the largest number, the first of equal ones.

    Where that has too few images of a class for a cross-validation, it is the last block.
    """
    means = dict[str, float]()
    for block, of_block in by_block.items():
        found = [outcome["cross_validated_accuracy"] for outcome in of_block[max(of_block)]]
        if None in found:
            return list(by_block)[-1]
        means[block] = float(np.mean(found))
    return max(means, key=means.__getitem__)


def _solver() -> list[Any]:
    """Return what scores depend on besides features, images and labels."""
    import sklearn

    return [COSTS, FIXED_COST, MIN_FOLDS, MAX_FOLDS, MAX_ITERATIONS, sklearn.__version__]


def check_draws(nums: Sequence[int], num_draws: int) -> None:
    """Raise ValueError unless numbers of images are 1 or more, each once, and there is a draw."""
    if not nums or min(nums) < 1 or len(set(nums)) < len(nums):
        given = " ".join(map(str, nums))
        raise ValueError(f"--labels-per-class {given}: give numbers of 1 or more, each once")
    if num_draws < 1:
        raise ValueError(f"--draws {num_draws}: it must be 1 or more")


def contenders(
    options: FloorOptions, more_runs: Sequence[str], *, with_pixels: bool
) -> Iterator[tuple[str, str, FloorOptions, Pretrained]]:
    """Yield each network: its name, the path of its result below --out, its options and its weights.

    --backbone and --input-… are of weights that record no backbone.
    """
    runs = [run for run in (options.checkpoint, *more_runs) if run is not None]
    alone = len(runs) + options.random_weights + with_pixels == 1
    for place, run in enumerate(runs):
        own = replace(options, checkpoint=run)
        if len(runs) > 1 and recorded_backbone(run, MAX_DOWNLOAD_GB):
            own = replace(own, backbone=None, input_channels=None, input_mean=None, input_std=None)
        own = replace(
            own, size_px=own.size_px or own.recorded_size().get("size_px", EvaluationOptions.size_px)
        )
        yield run, "." if alone else f"{place + 1}", own, own.pretrained()
    size_px = options.size_px or EvaluationOptions.size_px
    if options.random_weights or not (runs or with_pixels):
        own = replace(options, size_px=size_px)
        yield f"{own.backbone}, random weights", "." if alone else "random", own, own.pretrained()
    if with_pixels:
        own = replace(options, size_px=PIXELS_PX, whole=True, precision="fp32")
        yield PIXELS, "." if alone else PIXELS, own, pixels()


def draw_lines(draws: Draws, train: Dataset, val: Dataset) -> list[str]:
    """Return what to tell of the images that are drawn from, and of those that are not."""
    labels, truth = train.labels(), val.labels()
    sizes = np.bincount(labels[labels >= 0], minlength=train.num_classes)
    scored = f"{val.num_samples:,} validation images of {val.num_classes} classes"
    drawn = f"{draws.pool.num_samples:,} of {train.num_samples:,} training images are drawn"
    lines = [f"{scored} (chance {100 / val.num_classes:.1f} %); {drawn}"]
    if sizes.min() < sizes.max():
        lines.append(
            f"classes have {sizes.min():,} to {sizes.max():,} training images: each gives equally many to a "
            "draw, and every validation image counts the same"
        )
    for what, each, left_out in (("training", labels, "drawn"), ("validation", truth, "scored")):
        if num := int((each < 0).sum()):
            of_all = f"{num:,} of {number_of(len(each), f'{what} image')}"
            lines.append(f"{of_all} without a label {'is' if num == 1 else 'are'} not {left_out}")
    return lines


def few_label_lines(
    name: str, scores: Scores, untrained: Scores | None, why_not: str, size_px: int
) -> list[str]:
    """Return a table of scores, a line per block; below it those of the blocks that they are judged by."""
    nums = "".join(f"{num:>14}" for num in scores.curve())
    lines = [f"{name}, images of {size_px} px: top-1 % by images of each class, mean and deviation of draws"]
    lines.append(f"{'':<20}{nums}")
    if len(scores.costs) > 1:
        lines += [_line(block, scores.curve(block)) for block in scores.costs]
    lines.append(_line(f"judged by {scores.block}" if scores.block else "fine-tuned", scores.curve()))
    if untrained is not None:
        lines.append(_line(f"untrained, {untrained.block}", untrained.curve()))
    return lines + no_floor_lines(why_not)


def _line(name: str, curve: Mapping[int, tuple[float, float]]) -> str:
    cells = [f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in curve.values()]
    return f"{name:<20}" + "".join(f"{cell:>14}" for cell in cells)
