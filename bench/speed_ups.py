"""Our speed-ups over others: README's lines of them, each that is a loss, and the targets on a GPU."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

from bench.figures.results import WHOLE_PLAN
from bench.peers import TITLES, TRAINING
from bench.program import counted
from bench.schema import Results, spread
from bench.tables import (
    BATCHES,
    JPEG_DECODERS,
    RATE,
    Result,
    Row,
    best,
    device_of,
    headline,
    is_of,
    kernel_ratios,
    launch,
    of_bench,
    rows_of,
    table,
    without_form,
)

Find = Callable[[Result], Sequence[float]]
"""Callable that returns a line's ratios in one result, such as those of one view and of two, or none."""


class Line(NamedTuple):
    """A line of the table of speed-ups."""

    what: str  # what is measured; "" for that of the line above
    beside: str
    files: str  # pattern of file names
    find: Find  # callable that returns the ratios
    is_gpu: bool = False  # whether the line takes results of a GPU only, instead of results without one


def times(ratio: float) -> str:
    """Format a ratio."""
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 1.2 else f"{ratio:.2f}x"


def ratios(what: str, *labels: Mapping[str, Any]) -> Find:
    """Return a search for the highest ratio with each of these labels, over all threads and shares."""

    def find(result: Result) -> list[float]:
        one = {"": dict(result)}
        rows = [list(best(rows_of(one, result["bench"], "ratios", what=what, **each))) for each in labels]
        return [row[0][1]["median"] for row in rows] if all(rows) else []

    return find


def slowest_stage(result: Result) -> list[float]:
    """Return the ratio of the recipe and stage that wait the most."""
    medians = [median for median, _ in headline(result).values()]
    return [min(medians)] if medians else []


def _views(**labels: Any) -> list[dict[str, Any]]:
    return [labels | {"num_views": num} for num in (1, 2)]


def _by_size(what: str, file: str, *titles: str, batches: str | None = None) -> list[Line]:
    """Return lines of samples/s over peers, by images of 500 px, with one and two crops."""
    of_batches = {"batches": batches} if batches else {}
    return [
        Line(
            "" if number else what, title.replace("ffcv Loader,", "ffcv's Loader,"), file,
            ratios(RATE, *_views(size="500", peer=_PEER.get(title, without_form(title)), **of_batches)),
        )
        for number, title in enumerate(titles)
    ]  # fmt: skip


_PEER = {
    "ffcv's Loader, which decodes twice for two crops": "ffcv Loader",
    "DALI's own reader, on the CPU": "DALI's reader",
    "torchvision with DataLoader": "torchvision + DataLoader",
}
_T3 = ratios("kornia_modules / fused", {"chain": "SimCLR T3"})
_WRITE, _TRAINED = "fastpsl data write / ffcv DatasetWriter", "ours / the peer's"
_WHOLE = {
    name: ratios(
        _TRAINED, *({"peer": name, "recipe": "simclr", "stage": stage} for stage in ("E", WHOLE_PLAN))
    )
    for name in ("lightly", "torch_loop")
}
_COST, _ROTATION = "PSL's cost per epoch / end to end's", {"recipe": "rotation", "backbone": "resnet50"}
LINES = (
    *_by_size(
        "loading images of 500 px: one / two crops of 224 px", "sizes.json",
        "ffcv's Loader, which decodes twice for two crops", "SPDL", "DALI's own reader, on the CPU",
        "WebDataset", "torchvision with DataLoader",
    ),
    *_by_size(
        "float32 batches of images of 500 px: one / two crops of 224 px", "sizes-float32.json",
        "TurboLoader (tar)", "SPDL", "ffcv Loader", "DALI's reader", "torchvision + DataLoader", "WebDataset",
        batches="float32",
    ),
    *_by_size(
        "the same from a folder of JPEGs", "sizes-float32.json", "SPDL", "DALI's reader",
        "torchvision + DataLoader", batches="folder",
    ),
    Line(
        "training SimCLR from a folder of JPEGs, each in its fastest form: end to end / all of PSL",
        "lightly's SimCLR, end to end", "training-cpu-folder.json", _WHOLE["lightly"],
    ),
    Line("", "torch and torchvision alone, end to end", "training-cpu-folder.json", _WHOLE["torch_loop"]),
    Line("SimCLR's augmentations at level 3 (T3)", "Kornia's modules", "kernels-cpu.json", _T3),
    Line(
        "writing a dataset file, JPEGs copied", "ffcv's DatasetWriter", "beton_write.json",
        ratios(_WRITE, {"photos": "taken over"}),
    ),
    Line(
        "writing a dataset file, images shrunk to 256 px", "ffcv's DatasetWriter", "beton_write.json",
        ratios(_WRITE, {"photos": "longer side 256"}),
    ),
    Line(
        "loading with the decoder `dali`: one / two crops of 224 px", "ffcv's Loader", "decode-*.json",
        ratios("samples/s / ffcv Loader", *_views(decoder="dali")), True,
    ),
    Line(
        "", "DALI's own reader and random_resized_crop", "decode-*.json",
        ratios("samples/s / DALI's reader, whole images", *_views(decoder="dali")), True,
    ),
    Line("SimCLR's augmentations at level 3 (T3)", "Kornia's modules", "kernels-*.json", _T3, True),
    Line(
        "training from JPEGs, the stage that waits the most", "the slower of its loader and its step, alone",
        "throughput-*.json", slowest_stage, True,
    ),
    # Results from before captured steps say nothing of them.
    Line(
        "cost of an epoch of PSL, rotation, eager (below 1: cheaper)", "an epoch of end-to-end training",
        "step-*.json", ratios(_COST, _ROTATION | {"mode": "eager", "graph": None}), True,
    ),
    Line(
        "cost of an epoch of PSL, rotation, captured, fused, folded (below 1: cheaper)",
        "an epoch of end-to-end training", "step-*.json",
        ratios(_COST, _ROTATION | {"mode": "fused+fold", "graph": "on"}), True,
    ),
    Line(
        "training SimCLR from JPEGs: end to end / all of PSL", "lightly's SimCLR, end to end",
        "training-*.json", _WHOLE["lightly"], True,
    ),
    Line(
        "supervised training from JPEGs", "DALI's example of ResNet-50", "training-*.json",
        ratios(_TRAINED, {"peer": "dali_resnet50", "recipe": "supervised", "stage": "E"}), True,
    ),
    Line(
        "a step of detection, ResNet-50 C4", "torchvision's FasterRCNN", "detection-*.json",
        ratios("torchvision's ms / ours", {"backbone": "resnet50"}), True,
    ),
)  # fmt: skip


def how_fast_table(results: Results) -> str:
    """Return a table of our ratios over other libraries, below a line with the machines.

    Lines of a GPU appear as soon as their files exist.
    """
    lines: list[list[str]] = []
    devices: dict[bool, set[str]] = {False: set(), True: set()}
    for line in LINES:
        for name, result in results.items():
            is_gpu = result["environment"]["gpu"] is not None
            if fnmatch(name, line.files) and is_gpu == line.is_gpu and (figures := line.find(result)):
                devices[is_gpu].add(device_of(result))
                what = f"{line.what}, on a GPU" if is_gpu and line.what else line.what
                file = f"[{name}](/bench/results/{name})"
                lines.append([what, " / ".join(map(times, figures)), line.beside, file])
    cpus, gpus = (" and ".join(sorted(devices[is_gpu])) for is_gpu in (False, True))
    machines = f"Without a GPU: {cpus}. On a GPU: {gpus or 'not measured yet'}."
    words = "A ratio above 1 means that fastpsl is faster. Each is of one run with both in turn."
    return f"{words} {machines}\n\n{table(('what', 'ratio', 'beside', 'file'), lines)}"


# All ratios of ours to others', for the table of losses.


class Ratio(NamedTuple):
    """One of our ratios, above 1 if ours is faster."""

    what: str  # what is measured
    ours: str  # which of ours
    beside: str  # what it is compared with
    case: str  # the views, stage or size; ratios that differ in it alone share a line of a table
    median: float


_LOADERS = {"uint8": "loader alone", "float32": "float32 batches", "folder": "float32 batches from a folder"}


def _decoder(row: Row) -> str:
    threads = f", {counted(row['num_threads'], 'thread')}" if "num_threads" in row else ""
    return f"decoder `{row['decoder']}`{threads}"


def against_others(result: Result) -> Iterator[Ratio]:
    """Yield every ratio of ours to another's, and of fused augmentations to ours one by one."""
    bench = result["bench"]
    for row in kernel_ratios(result) if bench == "kernels" else result["ratios"]:
        median = row["median"]
        if bench == "beton_write":
            what = f"writing a dataset file, {row['photos']}"
            yield Ratio(what, "fastpsl data write", "ffcv's DatasetWriter", "", median)
        elif bench == "kernels":
            beside, ours = row["what"].split(" / ")
            yield Ratio(f"augmentation: {row['chain']}", ours, beside, "", median)
        elif bench in ("loader", "decode") and row["decoder"] != "ffcv_loader":
            other = row["what"].split(" / ")[-1].removesuffix("'s")
            case = counted(row["num_views"], "view")
            yield Ratio("loader alone", _decoder(row), TITLES.get(other, other), case, median)
        elif bench == "training":
            peer = TRAINING[row["peer"]].title
            yield Ratio(f"training, {row['recipe']}", "fastpsl train", peer, row["stage"], median)
    if bench in ("throughput", "sizes"):
        yield from _loaders(result)


def _loaders(result: Result) -> Iterator[Ratio]:
    """Yield the ratio of each of our decoders to each peer, loaders alone, repeat by repeat."""
    alone = [row for row in result["rows"] if row.get("stage") is None and row["decoder"] != "synthetic"]
    for ours in (row for row in alone if row["measured"] == "loader"):
        batches = next(each for each in BATCHES if is_of(ours, each))
        size = ours.get("size", "")
        case = counted(ours["num_views"], "view") + (f" of {size}" if size else "")
        case += " px" if size.isdecimal() else ""
        for peer in (row for row in alone if row["measured"] == "peer" and is_of(row, batches)):
            if all(ours.get(label) == peer.get(label) for label in ("num_views", "size")):
                both = spread([a / b for a, b in zip(ours["values"], peer["values"], strict=False)])
                yield Ratio(_LOADERS[batches], _decoder(ours), TITLES[peer["decoder"]], case, both["median"])


def waiting(result: Result) -> Iterator[Ratio]:
    """Yield the rates of training over the slower of loader and step; 1 means no mutual slow-down."""
    for row in result["ratios"] if result["bench"] == "throughput" else ():
        if row["what"] == "both / min(loader, step)" and row["decoder"] != "synthetic":
            case = f"{row['stage']} with {counted(row['num_views'], 'view')}"
            beside = "the slower of its loader and its step, alone"
            yield Ratio(
                f"training, {row.get('recipe', 'jigsaw')}", _decoder(row), beside, case, row["median"]
            )


def losses_table(results: Results) -> str:
    """Return a table of the ratios below 1; a line has those of one of ours on one task.

    Of several cases beside one peer it has the lowest one, and their number.
    """
    lines: dict[tuple[str, str, str], dict[str, list[Ratio]]] = {}
    for find in (against_others, waiting):
        for file, result in results.items():
            for each in find(result):
                if round(each.median, 2) < 1:
                    peers = lines.setdefault((each.what, each.ours, file), {})
                    peers.setdefault(each.beside, []).append(each)

    def words(peer: str, found: list[Ratio]) -> str:
        lowest = min(found, key=lambda each: each.median)
        cases = [lowest.case] * bool(lowest.case) + [f"the lowest of {len(found)}"] * (len(found) > 1)
        return f"{peer}: {lowest.median:.2f}x" + (f" ({', '.join(cases)})" if cases else "")

    rows = (
        [what, ours, "; ".join(words(*pair) for pair in peers.items()), f"[{file}](/bench/results/{file})"]
        for (what, ours, file), peers in lines.items()
    )
    return table(("what", "fastpsl", "slower than, with the ratio of the speeds", "file"), rows)


# The targets on one NVIDIA H200 with 16 cores, and where committed results meet or miss them.

NO_GPU, NOT_MEASURED = "not measured: no GPU was at hand", "not measured"
FIRST_TRY, PROTOTYPE = "first tries, 2026-11-20", "prototype, 2026-11-26"
# Results from before `environment` had a date are of this day.
UNDATED = "2026-11-26"
# Steps of a part that check values, beside its tests.
SMALL = ("small", "throughput")  # the former name of what measures small images, and today's
CHECKS = ("recipe", "resume", "same-losses", "two-ranks")


class Found(NamedTuple):
    """A figure of a result, as text, and whether it meets its target."""

    text: str
    is_reached: bool
    file: str


Search = Callable[[Results], Iterator[Found]]


class Target(NamedTuple):
    """A target, and the searches for its figures in the results, which are of a GPU only."""

    what: str
    reach: str  # the target, as text
    known: str  # what first tries, prototypes and others' figures have shown, each with its day
    find: tuple[Search, ...]


def figure(
    bench: str,
    part: str,
    text: str,
    *,
    least: float = 0.0,
    most: float = float("inf"),
    value: Callable[[Mapping[str, Any]], float] = lambda row: float(row["median"]),
    is_best: bool = False,
    **labels: Any,
) -> Search:
    """Return a search for rows."""

    def find(results: Results) -> Iterator[Found]:
        rows = rows_of(results, bench, part, **labels)
        for name, row in best(rows) if is_best else rows:
            found = value(row)
            words = text.format(**{**row, "value": found, "launch": launch(row)})
            yield Found(words, least <= found <= most, name)

    return find


def _step(goals: Mapping[str, float]) -> Search:
    """Search by the fastest mode of rotation's step, in which views and head cost next to nothing."""

    def find(results: Results) -> Iterator[Found]:
        for name, result in results.items():
            for stage, goal in goals.items():
                labels = {"recipe": "rotation", "backbone": "resnet50", "stage": stage}
                rows = rows_of({name: result}, "step", "rows", **labels)
                for _, row in best(rows, "samples_per_s"):
                    text = f"{stage} {row['samples_per_s']:,.0f} {row['mode']}, {launch(row)}"
                    yield Found(text, row["samples_per_s"] >= goal, name)

    return find


def _epoch_cost(results: Results) -> Iterator[Found]:
    """Yield each recipe's cost, in the mode of its fastest end-to-end step, with folded blocks if cheaper."""
    ends = dict[tuple[str, str], tuple[float, tuple[str, str]]]()
    for name, row in rows_of(results, "step", "rows", stage="E", backbone="resnet50"):
        speed = row["samples_per_s"], (row["mode"], launch(row))
        ends[name, row["recipe"]] = max(ends.get((name, row["recipe"]), speed), speed)
    costs = dict[tuple[str, str], dict[str, Any]]()
    for name, row in rows_of(results, "step", "ratios", what=_COST, backbone="resnet50"):
        key, mode = (name, row["recipe"]), row["mode"].partition("+")[0]
        if key in ends and ends[key][1] == (mode, launch(row)):
            costs[key] = min(costs.get(key, row), row, key=lambda each: each["median"])
    for (name, recipe), row in costs.items():
        text = f"{row['median']:.2f} ({recipe}, {row['mode']}, {launch(row)})"
        yield Found(text, row["median"] <= 0.73, name)


def _trained(recipe: str, goals: Mapping[str, float], of_step: float | None = None) -> Search:
    """Search for training from JPEGs by the fastest decoder; `of_step`: the least share of the step alone."""

    def find(results: Results) -> Iterator[Found]:
        for name, result in results.items():
            for stage, goal in goals.items():
                one, labels = {name: result}, {"recipe": recipe, "stage": stage}
                rows = rows_of(one, "throughput", "rows", measured="both", **labels)
                for _, row in best(pair for pair in rows if pair[1]["decoder"] in JPEG_DECODERS):
                    text = f"{stage} {row['median']:,.0f} {row['decoder']}, {launch(row)}"
                    yield Found(text, row["median"] >= goal, name)
                    labels["decoder"] = row["decoder"]
                    ratios = rows_of(one, "throughput", "ratios", what="both / step", **labels)
                    for _, ratio in ratios if of_step is not None else ():
                        yield Found(f"{ratio['median']:.3f} of the step", ratio["median"] >= of_step, name)

    return find


def _waiting(results: Results) -> Iterator[Found]:
    for name, result in of_bench(results, "throughput"):
        for median, place in headline(result).values():
            yield Found(f"{median:.3f} ({place})", median >= 0.98, name)


def _small_trained(results: Results) -> Iterator[Found]:
    for recipe, bench in itertools.product(("uic_cifar10", "sslpp_rotation"), SMALL):
        labels = {"recipe": recipe, "decoder": "resident"}
        for name, row in rows_of(results, bench, "ratios", what="both / step", **labels):
            steps = rows_of({name: results[name]}, bench, "rows", measured="step", recipe=recipe)
            how = ", ".join(launch(step) for _, step in steps)
            yield Found(f"{row['median']:.3f} ({recipe}, {how})", row["median"] >= 0.97, name)


def _loader_cores(results: Results) -> Iterator[Found]:
    """Yield for each file the stage with the most expensive loader."""
    for name, result in results.items():
        rows = rows_of({name: result}, "throughput", "rows", measured="both", decoder="dali")
        for _, row in best((pair for pair in rows if "cores_beyond_step" in pair[1]), "cores_beyond_step"):
            text = f"{row['cores_beyond_step']:.1f} ({row.get('recipe')} {row['stage']})"
            yield Found(text, row["cores_beyond_step"] <= 4.0, name)


def _all_green(results: Results) -> Iterator[Found]:
    """Yield for each part of bench/gpu_day/ the steps that check values, not speed."""
    for name, result in of_bench(results, "gpu_day"):
        is_ok_by_step = {row["measured"]: row["exit"] == 0 for row in result["rows"]}
        is_ok_by_step |= {missing["what"]: False for missing in result["not_measured"]}
        checks = {
            step: ok for step, ok in is_ok_by_step.items() if step in CHECKS or step.startswith("tests")
        }
        if checks:
            failed = [step for step, is_ok in checks.items() if not is_ok]
            older = "" if "cut" in result["settings"] else " of the older parts"
            num_ok = f"{len(checks) - len(failed)} of {len(checks)} checks"
            text = f"part {result['settings']['part']}{older}: {num_ok}"
            yield Found(text + (f", not {', '.join(failed)}" if failed else ""), not failed, name)


_VIEWS: dict[str, Any] = {"decoder": "dali", "is_best": True}


def _by_views(part: str, text: str, *goals: float, **labels: Any) -> tuple[Search, ...]:
    """Return searches in results of decoding, for one view and two."""
    labels = {**_VIEWS, **labels}
    return tuple(
        figure(
            "decode", part, text.replace("VIEWS", counted(num, "view")), least=goal, num_views=num, **labels
        )
        for num, goal in enumerate(goals, 1)
    )


def _fused(chain: str, most: float) -> Search:
    return figure("kernels", "rows", "{value:.3f} ms", most=most, chain=chain, path="fused")


_LIGHTLY: dict[str, Any] = {"peer": "lightly", "recipe": "simclr"}
TARGETS = (
    Target(
        "ResNet-50's rotation step, E / S1 / S2 / S3, 224 px, fp16, batch 256",
        ">= 8,400 / 12,300 / 10,100 / 12,100 images/s",
        f"{PROTOTYPE}: 7,834 / 11,202 / 9,816 / 11,758, captured",
        (_step({"E": 8_400, "S1": 12_300, "S2": 10_100, "S3": 12_100}),),
    ),
    Target(
        "an epoch of PSL over one end to end, both in the mode that is the fastest end to end", "<= 0.73",
        f"{PROTOTYPE}: 0.72, captured", (_epoch_cost,),
    ),
    Target(
        "jigsaw S1, trained from 500-px JPEGs", ">= 14,000 images/s, >= 0.98 of the step alone",
        f"{PROTOTYPE}: 14,059, captured", (_trained("jigsaw", {"S1": 14_000}, 0.98),),
    ),
    Target(
        "SimCLR E / S1 / S3, trained from 500-px JPEGs", ">= 4,200 / 6,100 / 6,300 images/s",
        f"{PROTOTYPE}: 3,994 / 5,734 / 5,973, captured",
        (_trained("simclr", {"E": 4_200, "S1": 6_100, "S3": 6_300}),),
    ),
    Target(
        "SimCLR E / S1, trained from JPEGs, over lightly's", ">= 3x / 4.5x",
        f"{PROTOTYPE}: lightly 1,350 images/s",
        (
            figure("training", "ratios", "E {value:.1f}x", least=3.0, stage="E", **_LIGHTLY),
            figure("training", "ratios", "S1 {value:.1f}x", least=4.5, stage="S1", **_LIGHTLY),
        ),
    ),
    Target(
        "UIC on CIFAR-10 and SSL++'s rotation, trained on images that stay on the GPU, over the step alone",
        ">= 0.97", f"{PROTOTYPE}, captured steps: UIC 64,114 images/s, rotation 74,608 inputs/s",
        (_small_trained,),
    ),
    Target(
        "SimCLR's T3 after the crop, 256 views", "<= 0.17 ms, >= 100x Kornia",
        f"{PROTOTYPE}: 0.221 ms; {FIRST_TRY}: Kornia 17.3 ms, untuned pieces 0.25 ms",
        (
            _fused("SimCLR T3", 0.17),
            figure(
                "kernels", "ratios", "{value:.0f}x Kornia's modules", least=100.0, chain="SimCLR T3",
                what="kornia_modules / fused",
            ),
        ),
    ),
    Target("jigsaw: flip, tiles, normalise, 9 x 256 tiles of 64", "<= 0.1 ms", "-", (_fused("jigsaw", 0.1),)),
    Target(
        "rotation: all 8 of 256 images", "<= 0.5 ms", f"{FIRST_TRY}: writing alone 0.145 ms",
        (_fused("rotation, all 8", 0.5),),
    ),
    Target(
        "training from JPEGs over the slower of its loader and its step alone, "
        "each recipe's stage that waits the most",
        ">= 0.98", "-", (_waiting,),
    ),
    Target(
        "NIN of four blocks on 32 px, SSL++'s rotation, 128 images of 4 inputs, with augmentation and scaler",
        ">= 68,000 inputs/s",
        f"{PROTOTYPE}: 74,608, captured; {FIRST_TRY}: bare step eager 68,000, compiled 70,000",
        (
            *(
                figure(
                    bench, "rows", "{value:,.0f} {step}, {launch}", least=68_000, measured="step",
                    recipe="sslpp_rotation", value=lambda row: row["median"] * row["inputs_per_image"],
                )
                for bench in SMALL
            ),
        ),
    ),
    Target(
        "decode + crop 224 of 500-px JPEGs, one view / two", ">= 30,600 samples/s / >= 55,000 views/s",
        f"{FIRST_TRY}: 31,200 / 57,000",
        (
            figure("decode", "rows", "{value:,.0f} samples/s", least=30_600, num_views=1, **_VIEWS),
            figure(
                "decode", "rows", "{value:,.0f} views/s", least=55_000, num_views=2,
                value=lambda row: 2 * row["median"], **_VIEWS,
            ),
        ),
    ),
    Target(
        "the same, one view / two, over ffcv's Loader", ">= 4x / 8x", f"{FIRST_TRY}: 5x / 9x",
        _by_views("ratios", "VIEWS {value:.1f}x", 4.0, 8.0, what="samples/s / ffcv Loader"),
    ),
    Target(
        "the same, over DALI's `mixed` with its own random_resized_crop", ">= 0.95x", f"{FIRST_TRY}: 1.02x",
        _by_views("ratios", "VIEWS {value:.2f}x", 0.95, 0.95, what="samples/s / DALI's reader, whole images"),
    ),
    Target(
        "cores that `dali` takes at the rates of training", "<= 4 of 16",
        f"{FIRST_TRY}: DALI alone with 4 threads 30,200 images/s", (_loader_cores,),
    ),
    Target(
        "detection's step, ResNet-50 C4, over torchvision's FasterRCNN of the same parts", ">= 1.1x", "-",
        (
            figure(
                "detection", "ratios", "{value:.2f}x", least=1.1, what="torchvision's ms / ours",
                backbone="resnet50",
            ),
        ),
    ),
    Target("every CUDA test, recipe, resume, two ranks", "all green", "-", (_all_green,)),
)  # fmt: skip


def targets_table(results: Results) -> str:
    """Return a Markdown table of targets: what tries have shown, and measured figures with files and days."""
    lines = []
    for target in TARGETS:
        cells = [
            f"{'reached' if each.is_reached else '**missed**'}: {each.text} ({each.file}, "
            f"{results[each.file]['environment'].get('date', UNDATED)})"
            for find in target.find
            for each in find(results)
        ]
        measured = "; ".join(cells) or (NOT_MEASURED if results else NO_GPU)
        lines.append([target.what, target.reach, target.known, measured])
    return table(("what", "reach", "shown by tries", "measured"), lines)
