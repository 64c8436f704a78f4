"""Nearest neighbours of features: kNN scores, on all ranks together, and retrieval (SSL++, V.D, figure 4).

Paper: does not state which 100,000 images the queries come from. Here: queries and gallery are any two data
sets; if they are the same images, a query does not find itself.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastpsl.engine.distributed import World, share, sum_over_ranks
from fastpsl.engine.online_probe import find_neighbours
from fastpsl.engine.resume import open_folder
from fastpsl.engine.run import open_both
from fastpsl.evaluation.feature_file import FeatureFile
from fastpsl.evaluation.features import Extraction, extract
from fastpsl.evaluation.options import EvaluationOptions, FloorOptions
from fastpsl.evaluation.result import data_record, result_line, with_floor, write_result
from fastpsl.evaluation.untrained import Floor, Work, no_floor_lines, score_floor
from fastpsl.files.digest import sha256_of_bytes
from fastpsl.kernels.nearest import Neighbours, count_correct
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.datasets.shared_images import SharedImages, shared_images
from fastpsl.pipelines.interface.dataset import Dataset, require_labels, require_same_classes
from fastpsl.plots.neighbours import NUM_NEIGHBOURS, draw_neighbours

NUM_SHOWN = 8


@dataclass(frozen=True)
class Scores:
    """The kNN scores of one block, of samples that could be decoded."""

    correct: dict[str, int]  # with the names of `count_correct`
    num: int
    num_bank: int  # without the image itself
    queries: np.ndarray  # this rank's, int64: every world-size-th one
    neighbours: Neighbours

    def numbers(self, vote: str) -> dict[str, float]:
        """Return the scores in percent of one vote, weighted or majority, or of both."""
        return {
            name: 100 * count / self.num
            for name, count in self.correct.items()
            if vote == "both" or name.endswith("_majority") == (vote == "majority")
        }

    def shown(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a few of this rank's queries, drawn by `seed`, their neighbours' rows and similarities."""
        chosen = np.random.default_rng((seed, len(self.queries))).permutation(len(self.queries))[:NUM_SHOWN]
        both = self.neighbours.rows, self.neighbours.similarities
        rows, similarities = (values[chosen, :NUM_NEIGHBOURS].numpy() for values in both)
        return self.queries[chosen], rows, similarities


@dataclass(frozen=True)
class BlockNeighbours:
    """The kNN of a network's blocks: validation images, whose neighbours are training images.

    Attributes:
        train: The training images.
        val: The validation images.
        blocks: The blocks, such as B4 and final.
        ks: Numbers of neighbours.
        temperature: That of the weighted vote.
        shared: Which images of `val` are of `train`.
        world: The ranks that share the work.
    """

    train: Dataset
    val: Dataset
    blocks: tuple[str, ...]
    ks: tuple[int, ...]
    temperature: float
    shared: SharedImages
    world: World

    def works(self, options: EvaluationOptions, weights: Pretrained) -> dict[str, list[Extraction]]:
        """Return an extraction for the features of each block; ValueError for a block that is not there."""
        return {
            name: Extraction.for_blocks(options, weights, data, self.blocks, self.world, "float16")
            for name, data in (("train", self.train), ("val", self.val))
        }

    def score(self, works: Mapping[str, Sequence[Extraction]], folder: Path) -> dict[str, Scores]:
        """Write the features into a folder, and score them; return the scores by the end of their names."""
        ends = name_ends([f"B{work.block}" for work in works["train"]])
        banks, queries = (
            extract(each, [folder / f"{name}{end}.npy" for end in ends], self.world, overwrite=True)
            for name, each in works.items()
        )
        return {
            end: score(bank, each, self.ks, self.temperature, self.world, self.shared.own)
            for end, bank, each in zip(ends, banks, queries, strict=True)
        }

    def score_untrained(
        self, options: FloorOptions, weights: Pretrained, folder: Path
    ) -> tuple[dict[str, float], str]:
        """Return the numbers of an untrained network, on rank 0, and why there are none (`score_floor`).

        With --no-floor there are none, without a reason.
        """
        if not options.floor:
            return {}, ""

        def prepare(network: Pretrained) -> Work:
            works = self.works(options, network)
            both = [*works["train"], *works["val"]]
            wanted = _wanted(both) | {"k": self.ks, "temperature": self.temperature}
            ends = name_ends([f"B{work.block}" for work in works["train"]])
            kinds = ("top1_k{}", "top5_k{}", "top1_k{}_majority")
            names = [kind.format(k) + end for end in ends for k in self.ks for kind in kinds]

            def scored(place: Path) -> Floor | None:
                place.mkdir(exist_ok=True)
                numbers = all_numbers(self.score(works, place), "both")
                return None if self.world.rank else Floor("", numbers)

            return Work(wanted, names, scored)

        floor, why_not = score_floor(weights, options.seed, prepare, folder, self.world)
        return (floor.numbers if floor else {}), why_not


def _wanted(works: Sequence[Extraction]) -> dict[str, Any]:
    """Return what the neighbours depend on, and the classes that are compared."""
    labels = [sha256_of_bytes(work.data.labels().tobytes()) for work in works]
    return {"features": [work.digest() for work in works], "labels": labels}


def name_ends(blocks: Sequence[str]) -> list[str]:
    """Return the ends of the names of each block's files and numbers: empty for one block alone."""
    return [f"_{block}" for block in blocks] if len(blocks) > 1 else [""]


def all_numbers(scores: Mapping[str, Scores], vote: str) -> dict[str, float]:
    """Return the numbers of one vote, or of both, of all blocks, by the names of result.json."""
    return {name + end: value for end, each in scores.items() for name, value in each.numbers(vote).items()}


def score_lines(
    scores: Sequence[Scores],
    blocks: Sequence[str],
    vote: str,
    backbone: str,
    shared: SharedImages | None = None,
    floor: Mapping[str, float] | None = None,
) -> list[str]:
    """Return tables of the scores of each block: a table per vote, a line per block, a column per k.

    Several lines or columns also get their mean, as in SSL++, Tables V and VI. Before them is a line of the
    `shared` images, if there are any. `floor` has the numbers of an untrained network, whose lines come last.
    """
    first, named, lines = scores[0], f"{', '.join(blocks)} of {backbone}", list[str]()
    if shared is not None and shared.are_all:
        all_are = "the validation images are the training images (the same stored bytes)"
        lines.append(f"{all_are}: each without itself")
    elif shared is not None and shared.num:
        lines.append(shared.line())
    lines.append(f"{first.num:,} validation images, neighbours of {first.num_bank:,}; {named}")
    for title, end in (("weighted", ""), ("majority", "_majority")):
        if vote not in (title, "both"):
            continue
        names = [name for name in first.numbers(title) if name.startswith("top1_")]
        heads = [f"k {name.removeprefix('top1_k').removesuffix(end)}" for name in names]
        rows, table = list(blocks), np.array([[each.numbers(title)[n] for n in names] for each in scores])
        if len(rows) > 1:
            rows, table = [*rows, "mean"], np.vstack([table, table.mean(0)])
        if floor:
            rows += [f"untrained {end[1:]}".rstrip() for end in name_ends(blocks)]
            table = np.vstack([table, *([floor[name + end] for name in names] for end in name_ends(blocks))])
        if len(heads) > 1:
            heads, table = [*heads, "mean"], np.column_stack([table, table.mean(1)])
        width = max(12, *map(len, rows))
        lines.append(f"{title + ' %':<{width}}" + "".join(f"{head:>7}" for head in heads))
        for row, values in zip(rows, table, strict=True):
            lines.append(f"{row:<{width}}" + "".join(f"{value:>7.1f}" for value in values))
    return lines


def find_shared(train: Dataset, val: Dataset, world: World) -> SharedImages:
    """Return which images of `val` are images of `train`; every rank calls it, and rank 0 looks."""
    found: SharedImages = share(world, shared_images(val, train) if world.rank == 0 else None)
    return found


def fitting_neighbours(
    train: Dataset,
    val: Dataset,
    ks: Sequence[int],
    usual: Sequence[int],
    shared: SharedImages | None = None,
) -> tuple[int, ...]:
    """Return `ks`, or of the usual ones those for which there are images.

    Args:
        train: The images that are neighbours.
        val: The images to score, with the same classes.
        ks: Numbers of neighbours, each 1 or more.
        usual: The values of `ks` that nobody chose. Those above the number of neighbours are left out.
        shared: The images of `val` that are of `train`. If all are, an image is no neighbour of itself.

    Raises:
        ValueError: The data have no labels or different classes, or fewer images than the largest k.
    """
    for data in (train, val):
        require_labels(data, "kNN")
    require_same_classes(train, val)
    most = train.num_samples - (shared is not None and shared.are_all)
    if tuple(ks) == tuple(usual) and min(ks) <= most:
        ks = [k for k in ks if k <= most]
    if max(ks) > most:
        raise ValueError(
            f"--k {max(ks)}: the training data has {most:,} images to be neighbours; give a smaller k"
        )
    return tuple(ks)


def score(
    train: FeatureFile,
    val: FeatureFile,
    ks: Sequence[int],
    temperature: float,
    world: World,
    own: np.ndarray | None = None,
) -> Scores:
    """Score the validation samples of `val` by their neighbours in `train`.

    The samples are divided among the ranks; each rank searches the whole of `train`. `own` has each sample's
    row in `train`, int64 [num_val], where it is left out; None leaves none out.

    Raises:
        ValueError: The largest k exceeds the number of training samples that could be decoded.
    """
    labels, truth = train.labels(), val.labels()
    assert labels is not None and truth is not None
    good, num_bank = val.good(), len(train.good()) - (own is not None)
    if max(ks) > num_bank:
        raise ValueError(
            f"--k {max(ks)}: only {num_bank:,} training images could be decoded; give a smaller k"
        )
    queries = good[world.rank :: world.size]
    # The chart may show more neighbours than the largest k.
    neighbours = Search(train, val, min(max(*ks, NUM_NEIGHBOURS), num_bank), own, world.device)(queries)
    num_classes = int(max(labels.max(), truth.max())) + 1
    query_labels, bank_labels = torch.from_numpy(truth[queries]).long(), torch.from_numpy(labels).long()
    counts = count_correct(neighbours, bank_labels, query_labels, num_classes, sorted(set(ks)), temperature)
    sums = torch.tensor(list(counts.values()), device=world.device)
    correct = sum_over_ranks(world, sums).tolist()
    return Scores(dict(zip(counts, correct, strict=True)), len(good), num_bank, queries, neighbours)


MAX_SHOWN, MAX_COLUMNS = 100, 16


@dataclass(frozen=True)
class Search:
    """A search of the k nearest of a gallery for each query; none finds itself if both are the same."""

    gallery: FeatureFile
    queries: FeatureFile
    k: int
    own: np.ndarray | None  # each query's row in the gallery, int64 [n], if both are the same images
    device: torch.device

    def __call__(self, indices: np.ndarray) -> Neighbours:
        """Return the k nearest rows of the gallery for the queries `indices` (int64 [n])."""
        rows, features = None if self.own is None else self.own[indices], self.queries.features()[indices]
        return nearest_others(features, self.gallery.features(), self.k, rows, self.device)

    def num_others(self) -> int:
        """Return the number of images that a query may find."""
        return len(self.gallery.good()) - (self.own is not None)

    def precision(self, world: World) -> tuple[float, float]:
        """Return the percentage of neighbours of the query's class, and that among all images (chance)."""
        good, labels, truth = self.queries.good(), self.gallery.labels(), self.queries.labels()
        assert labels is not None and truth is not None
        queries = good[world.rank :: world.size]
        right = labels[self(queries).rows.numpy()] == truth[queries][:, None]
        hits = int(sum_over_ranks(world, torch.tensor(int(right.sum()), device=world.device)))
        gallery_labels = np.delete(labels, self.gallery.record["bad"])
        counts = np.bincount(gallery_labels, minlength=int(truth.max()) + 1)[truth[good]]
        if self.own is not None:
            counts -= labels[self.own[good]] == truth[good]
        return 100 * hits / (self.k * len(good)), 100 * float(counts.mean()) / self.num_others()


def retrieve(
    options: EvaluationOptions, world: World, *, block: str, k: int, num: int, indices: tuple[int, ...],
    shows_floor: bool = True,
) -> list[str]:  # fmt: skip
    """Search --val's images, the queries, in --data's, the gallery; and return lines to print.

    The chart shows the queries in `indices`, or else `num` ones drawn by --seed, with `k` neighbours each.
    The precision is that of all queries; `shows_floor` puts an untrained network's beside it. Lines are
    returned on rank 0 alone.
    """
    started = time.monotonic()
    if k < 1:
        raise ValueError(f"--k {k}: it must be 1 or more")
    if len(indices) > MAX_SHOWN:
        raise ValueError(
            f"--query-indices names {len(indices)} queries: the figure has room for {MAX_SHOWN}; give fewer"
        )
    if not indices and not 1 <= num <= MAX_SHOWN:
        raise ValueError(f"--num {num}: the figure has room for 1 to {MAX_SHOWN} queries")
    weights = options.pretrained()
    with ExitStack() as stack:
        gallery, queries = open_both(options)
        assert queries is not None
        for data in (gallery, queries):
            stack.enter_context(closing(data))
        shared = find_shared(gallery, queries, world)
        own = shared.own
        _require_enough(k, gallery.num_samples - shared.are_all)
        for index in indices:
            if not 0 <= index < queries.num_samples:
                raise ValueError(f"--query-indices {index}: queries are 0 to {queries.num_samples - 1:,}")
        both = gallery, queries
        works = [Extraction.of(options, weights, data, block, world, "float16") for data in both]
        in_order = own is not None and np.array_equal(own, np.arange(len(own)))
        are_alike = in_order and works[0].digest() == works[1].digest()  # labels may differ
        folder = stack.enter_context(open_folder("retrieval", options, world))
        paths = folder / "gallery.npy", folder / f"{'gallery' if are_alike else 'queries'}.npy"
        bank, query_features = (
            work.to_file(path, world, overwrite=True) for work, path in zip(works, paths, strict=True)
        )
        search = Search(bank, query_features, k, own, world.device)
        _require_enough(k, search.num_others())
        good, reason = query_features.good(), why_no_precision(gallery, queries)
        wrong = np.setdiff1d(indices, good)
        if not len(good):
            raise ValueError("no query could be decoded; give readable images as --queries")
        if len(wrong):
            raise ValueError(f"query {wrong[0]} could not be decoded; leave it out of --query-indices")
        precision, chance = (None, None) if reason else search.precision(world)
        floor, why_not = None, ""
        if not reason and shows_floor:
            floor, why_not = _floor(options, weights, works, search, folder, world)
        if world.rank != 0:
            return []
        random_queries = np.random.default_rng(options.seed).permutation(good)[:num]
        chart_queries = np.array(indices, np.int64) if indices else random_queries
        neighbours = search(chart_queries)
        rows, similarities = neighbours.rows.numpy(), neighbours.similarities.numpy()
        rounded = similarities.astype(float).round(6).tolist()
        sheet = draw_neighbours(
            folder / "retrieval.png", queries, gallery, chart_queries, rows[:, :MAX_COLUMNS],
            similarities[:, :MAX_COLUMNS], works[0].loader, called="query", judged=not reason,
            whole=options.whole,
        )  # fmt: skip
        settings: dict[str, Any] = options.as_dict() | {
            "block": bank.record["block"], "similarity": "cosine", "k": k, "num": len(chart_queries),
            "queries_in_gallery": shared.are_all, "shared_images": shared.num,
            "features": [bank.record["digest"], query_features.record["digest"]],
            "shown": [
                {"query": query, "neighbours": row, "similarities": values}
                for query, row, values in zip(chart_queries.tolist(), rows.tolist(), rounded, strict=True)
            ],
        }  # fmt: skip
        name = f"precision_top{k}"
        path = write_result(
            folder, recipe="retrieve", protocol="retrieval", settings=settings, checkpoint=weights.record,
            numbers=with_floor({} if precision is None else {name: precision}, floor and floor.numbers),
            data=data_record(gallery, queries), seconds=time.monotonic() - started,
        )  # fmt: skip
    score = f"no precision, as {reason}"
    if precision is not None:
        beside = f"untrained {floor.numbers[name]:.1f} %, " if floor else ""
        score = f"{precision:.1f} % of the nearest {k} are of the query's class"
        score += f" ({beside}chance {chance:.1f} %)"
    title = f"{bank.record['block']} of {bank.record['backbone']}"
    others = f"{search.num_others():,} {'other ' if shared.are_all else ''}images"
    if shared.num and not shared.are_all:
        others += f" ({shared.num:,} of the queries are among them, and find themselves)"
    line = f"{len(good):,} queries, each among {others}; {title}: {score}"
    return [line, *no_floor_lines(why_not), f"retrieval {sheet}", result_line(path)]


def _floor(
    options: EvaluationOptions,
    weights: Pretrained,
    works: Sequence[Extraction],
    search: Search,
    folder: Path,
    world: World,
) -> tuple[Floor | None, str]:
    """Return the precision of an untrained network, on rank 0, and why there is none (`score_floor`)."""
    name = f"precision_top{search.k}"

    def prepare(network: Pretrained) -> Work:
        same = [replace(work, pretrained=network) for work in works]

        def scored(place: Path) -> Floor | None:
            place.mkdir(exist_ok=True)
            paths = place / search.gallery.path.name, place / search.queries.path.name
            gallery, queries = (
                work.to_file(path, world, overwrite=True) for work, path in zip(same, paths, strict=True)
            )
            precision, _ = replace(search, gallery=gallery, queries=queries).precision(world)
            return None if world.rank else Floor("", {name: precision})

        return Work(_wanted(same) | {"k": search.k}, [name], scored)

    return score_floor(weights, options.seed, prepare, folder / "untrained", world)


def _require_enough(k: int, num: int) -> None:
    if k > num:
        raise ValueError(f"--k {k}: the gallery has only {num:,} neighbours for a query; give a smaller --k")


def why_no_precision(gallery: Dataset, queries: Dataset) -> str:
    """Return why a neighbour's class cannot be compared with the query's, or "" if it can."""
    for name, data in (("gallery", gallery), ("queries", queries)):
        if (data.labels() < 0).any():
            return f"images of the {name} have no label"
    try:
        require_same_classes(gallery, queries)
    except ValueError:
        return "gallery and queries have different classes"
    return ""


def nearest_others(
    queries: np.ndarray, gallery: np.ndarray, k: int, own: np.ndarray | None, device: torch.device
) -> Neighbours:
    """Find the nearest rows of a gallery [N, C] for each of the queries [Q, C], leaving out the query itself.

    `own` has each query's row in the gallery, int64 [Q], or is None if they are not in it.
    """
    if own is None:
        return find_neighbours(queries, gallery, k, device)
    neighbours = find_neighbours(queries, gallery, k + 1, device)
    is_other = neighbours.rows != torch.from_numpy(own)[:, None]
    # Among more than k equal images, the query itself may not be found; then the last neighbour is dropped.
    is_other[is_other.all(1), k] = False
    return Neighbours(neighbours.similarities[is_other].view(-1, k), neighbours.rows[is_other].view(-1, k))
