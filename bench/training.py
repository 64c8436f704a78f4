"""Training from JPEGs beside others' examples: ours, lightly's SimCLR, a plain loop and DALI's ResNet-50.

    python bench/training.py --data photos.beton               SimCLR end to end and by stages, beside others
    python bench/training.py --data photos.beton --folder      ours reads a folder of JPEGs, as lightly
    python bench/training.py --data photos.beton --folder --precisions fp32 bf16
    python bench/training.py --data photos.beton --peers dali_resnet50 --stages supervised:E

Each trains in a process of its own, from the same photos, in turn. Peers are as their users write them
(bench/peers/), and in several forms, of which the fastest counts. The headline is ours / the peer's of the
same method, in images per second. Others have no stages. Beside their end-to-end training stands PSL as a
whole: its stages' rates by the recipe's epochs. Writes a JSON; see bench/README.md.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ and recipes/ are folders of programs
from bench import peers
from bench.charts import publish
from bench.figures.results import WHOLE_PLAN
from bench.interleaved import Rates, measure
from bench.peers.simclr import Form
from bench.program import check_positive, options_of, progress, run_program
from bench.recipe_stages import Recipe, recipe_of, recipe_options
from bench.schema import RUNS, data_record, environment, over, spread
from fastpsl.engine.distributed import choose_device
from fastpsl.files.workers import default_num_threads
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.embedded.draw_sample import sample_paths

PeerName = Literal["lightly", "torch_loop", "dali_resnet50"]
SAME_METHOD = {"lightly": "simclr", "torch_loop": "simclr", "dali_resnet50": "supervised"}
"""Peer → the recipe of ours that has its method."""
HAVE_FORMS = ("lightly", "torch_loop")  # DALI's example has its own precision and form


@dataclass(frozen=True, kw_only=True)
class Options:
    data: str | None = None  # A dataset file, or a quoted glob of shards. Without it: the embedded sample.
    stages: tuple[str, ...] = ("simclr:E", "simclr:S1", "simclr:S2", "simclr:S3")
    """Ours, as RECIPE:STAGE; E is end to end, S1 a stage of PSL."""
    peers: tuple[PeerName, ...] = field(default=("lightly", "torch_loop"), metadata={"may_be_empty": True})
    """None, written as --peers, for ours alone."""
    forms: tuple[Form, ...] = get_args(Form)  # Of peers of SimCLR, each measured.
    folder: bool = False  # Ours reads the JPEGs of the data from a folder, as lightly does.
    decoder: str = "auto"  # Ours.
    precisions: tuple[Literal["auto", "fp32", "bf16", "fp16"], ...] = ("auto",)
    """Everybody's but DALI's, each measured; auto is that of `fastpsl train`."""
    backbone: str | None = None  # Everybody's. Default: resnet50, and resnet18 for the sample.
    size_px: int | None = None
    """Side of the crops; jigsaw's tiles have the recipe's. Default: 224, and 96 for the sample."""
    batch_size: int | None = None  # Default: 256 on CUDA, else 8.
    workers: int | None = None  # Decoding threads or processes. Default: the cores.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    repeats: int | None = None  # Default: 3, and 2 for the sample.
    seconds: float | None = None
    """Length of a timed region, at least as many steps as batches may be ready. Default: 3, and 0.1."""
    limit_s: float = 400.0  # No further repeat begins after it.
    out: Path = RUNS / "training.json"  # The result.

    def check(self) -> None:
        """Raise ValueError if an option is out of range or names no stage of a recipe."""
        check_positive(self, "size_px", "batch_size", "workers", "repeats", "seconds", "limit_s")
        if not self.stages:
            raise ValueError("--stages: give one of ours at least")
        for stage in self.stages:
            if stage.partition(":")[0] not in get_args(Recipe) or not stage.partition(":")[2]:
                raise ValueError(f"--stages {stage}: it must be RECIPE:STAGE, such as simclr:E")


def works_of(options: Options, work: peers.Work) -> tuple[dict[str, peers.Work], list[dict[str, str]]]:
    """Return what can be measured here by name, ours first, and what cannot, with the reason."""
    works, missing = {}, []
    named: dict[str, str] = {
        f", {each}" if len(options.precisions) > 1 else "": each for each in options.precisions
    }
    for text in options.stages:
        recipe, _, stage = text.partition(":")
        for name, precision in named.items():
            works[f"fastpsl, {recipe} {stage}{name}"] = replace(
                work, kind="training", recipe=recipe, stage=stage, from_folder=options.folder,
                precision=_resolved(precision, work),
            )  # fmt: skip
    for kind in options.peers:
        title = peers.TRAINING[kind].title
        if reason := peers.why_missing(kind, work.data):
            missing.append({"what": title, "reason": reason})
            continue
        for name, precision in (named if kind in HAVE_FORMS else {"": "auto"}).items():
            of_kind = replace(work, kind=kind, precision=_resolved(precision, work))
            if kind not in HAVE_FORMS:
                works[title + name] = of_kind
                continue
            for form in options.forms:
                works[f"{title}{name}, {form}"] = replace(of_kind, form=form)
    return works, missing


def _resolved(precision: str, work: peers.Work) -> str:
    """Return the precision in which ours computes by default, or the one that is given."""
    options = recipe_options(
        "simclr", is_sample=False, batch_size=work.batch_size, backbone=work.backbone, precision=precision
    )
    return options.resolved_precision(torch.device(work.device))


def tabulate(rates: list[Rates]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows, and the ratios of ours to the peer of the same method, repeat by repeat.

    A peer counts in its fastest precision and form.
    """
    rows, ratios = [], []
    for each in (*rates, *whole_plans(rates)):
        work, cores = each.work, spread(each.cores)["median"]
        labels = {
            "recipe": work.recipe or None, "stage": work.stage or None, "trained_by": work.kind,
            "precision": work.precision,
        }  # fmt: skip
        if work.form:
            labels["form"] = work.form
        rows.append({
            "measured": "trained", **labels, "unit": "samples/s", "cores_used": round(cores, 3),
            "first_batch_s": round(each.first_batch_s, 2), **spread(each.values),
        })  # fmt: skip
        for other in fastest_peers(rates) if work.kind == "training" else ():
            if SAME_METHOD.get(other.work.kind) == work.recipe:
                ratio = over(each.values, other.values)
                ratios.append({"what": "ours / the peer's", **labels, "peer": other.work.kind, **ratio})
    return rows, ratios


def whole_plans(rates: list[Rates]) -> Iterator[Rates]:
    """Yield PSL as a whole where all stages were measured: images over seconds, by the recipe's epochs."""
    stages: dict[tuple[str, str], dict[str, Rates]] = {}
    for each in rates:
        if each.work.kind == "training":
            stages.setdefault((each.work.recipe, each.work.precision), {})[each.work.stage] = each
    for (recipe, _), of in stages.items():
        epochs: Sequence[int] = recipe_of(recipe).paper["epochs"]
        names = [f"S{number + 1}" for number in range(len(epochs))]
        if len(names) > 1 and of.keys() >= {*names}:
            parts = [of[name] for name in names]
            whole = Rates(WHOLE_PLAN, replace(parts[0].work, stage=WHOLE_PLAN), 1, parts[0].first_batch_s)
            for repeat in range(min(len(part.values) for part in parts)):
                seconds = [num / part.values[repeat] for num, part in zip(epochs, parts, strict=True)]
                used = [s * part.cores[repeat] for s, part in zip(seconds, parts, strict=True)]
                whole.values.append(sum(epochs) / sum(seconds))
                whole.cores.append(sum(used) / sum(seconds))
            yield whole


def fastest_peers(rates: list[Rates]) -> list[Rates]:
    """Return each peer in the precision and form of its highest median."""
    ascending = sorted(rates, key=lambda each: spread(each.values)["median"])
    return list({each.work.kind: each for each in ascending if each.work.kind != "training"}.values())


def main() -> None:
    options = options_of(Options, __doc__)
    start, is_sample = time.perf_counter(), options.data is None
    device = choose_device(options.device, 0)
    is_cuda, machine = device.type == "cuda", environment(device)
    path = options.data or str(sample_paths().train)
    batch_size = options.batch_size or (256 if is_cuda else 8)
    num_threads = options.workers or default_num_threads()
    size_px = options.size_px or (96 if is_sample else 224)
    backbone = options.backbone or ("resnet18" if is_sample else "resnet50")
    repeats = options.repeats or (2 if is_sample else 3)
    seconds = options.seconds or (0.1 if is_sample else 3.0)
    with Beton(path) as data:
        record = data_record(data, options.data)
    with progress() as log, tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as files:
        work = peers.Work(
            "", path, str(Path(files) / "files"), batch_size, num_threads, size_px,
            str(device) if is_cuda else "cpu",
            decoder=options.decoder, backbone=backbone,
        )  # fmt: skip
        works, missing = works_of(options, work)
        rates, failed, notes = measure(
            works, (1,), repeats=repeats, seconds=seconds, deadline=start + options.limit_s, log=log,
            warms_up=False,
        )  # fmt: skip
    missing += failed
    if not rates:
        raise ValueError(f"nothing could be measured; {missing[0]['what']}: {missing[0]['reason']}")
    rows, ratios = tabulate(rates)
    publish(
        options.out, "training", machine,
        "trained_by recipe stage precision form peer cores_used first_batch_s", data=record,
        settings={
            "repeats": repeats, "seconds": seconds, "batch_size": batch_size, "num_threads": num_threads,
            "size_px": size_px, "backbone": backbone, "precisions": list(options.precisions),
            "decoder": options.decoder, "device": device.type, "folder": options.folder,
        },
        rows=rows, ratios=ratios, not_measured=missing, notes=notes,
    )  # fmt: skip


if __name__ == "__main__":
    run_program(main)
