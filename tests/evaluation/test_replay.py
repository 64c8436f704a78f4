"""`fastpsl replay`: a past step has the images, draws and losses that the training had."""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import fastpsl
from fastpsl.engine.replay import batches_of, find_step, prepare_stage
from fastpsl.engine.train_step import TrainStep
from fastpsl.evaluation.replay import PastRun, replay_step
from fastpsl.pipelines.loader.batch import Batch
from tests import cheaper
from tests.cli import Cli, refused
from tests.engine.tiny import one_process
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import tree
from tests.programs import run
from tests.recipes.in_process import start, words
from tests.slow import slow

SMALL = "--backbone nin3 --size-px 32 --epochs 2 2 2 --batch-size 8 --val none --checkpoint-steps 3 " \
        "--max-steps-per-stage 7 --keep-checkpoints 99 --workers 1"  # fmt: skip
RECIPES = {
    "rotation_rv50": f"{SMALL} --short-side 36 --accumulate 2",
    "simclr_r50": f"{SMALL}",
    "uic_alexnet": f"{SMALL} --num-clusters 4 --plan end_to_end",
    "sslpp_iic": f"{SMALL} --num-clusters 4",
}
NAMES = [name if name != "sslpp_iic" else slow(name) for name in RECIPES]


DROPPING = """
from torch import nn

class Net(nn.Module):
    channels = (8, 16)

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.Dropout(0.5))
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Dropout(0.5))

    def blocks(self):
        return [self.first, self.second]
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {f"class{i % 3}/{i:02d}.jpg": jpeg(photo(i, 60 + i, 70)) for i in range(48)}
    return tree(tmp_path_factory.mktemp("data") / "photos", files)


Seen = list[tuple[torch.Tensor, list[torch.Tensor]]]


def record(patch: pytest.MonkeyPatch, see: Callable[[Batch], object]) -> None:
    """Pass each batch of training to `see`, after what the step does with it."""
    forward = TrainStep._forward

    def seen(self: TrainStep, batch: Batch, views: Any) -> Any:
        if self.module.training:
            see(batch)
        return forward(self, batch, views)

    patch.setattr(TrainStep, "_forward", seen)


def copied(batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return copies of a batch's indices and pixels."""
    return batch.indices.clone(), [images.clone() for images in batch.images]


class Trained(NamedTuple):
    """A run's folder, and what each batch of its training had."""

    folder: Path
    seen: Seen


Train = Callable[[str], Trained]


@pytest.fixture(scope="module")
def train(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Return a function that trains a recipe once."""

    @cache
    def trained(recipe: str) -> Trained:
        out, seen = tmp_path_factory.mktemp("run") / recipe, Seen()
        with pytest.MonkeyPatch.context() as patch:
            record(patch, lambda batch: seen.append(copied(batch)))
            start(recipe, RECIPES[recipe], "--data", photos, "--out", out).ok()
        return Trained(out, seen)

    return trained


def opened(folder: Path, **more: Any) -> PastRun:
    values: dict[str, Any] = {"data": None, "backbone": None, "recipe": None, "device": "cpu", "workers": 1}
    return PastRun.of(folder, **{**values, **more})


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("which", ["first", "within", "last"])
@pytest.mark.parametrize("recipe", NAMES)
def test_a_step_is_what_the_training_saw_to_the_last_bit(
    recipe: str, which: str, train: Train, tmp_path: Path, cli: Cli
) -> None:
    """From the seed, from a checkpoint in the stage, and at the end of an epoch."""
    folder, seen = train(recipe)
    rows = rows_of(folder)
    step = {"first": 2, "within": len(rows) - 1, "last": 6}[which]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, out, _ = cli("replay", folder, "--step", step, "--out", tmp_path / "out", "--num", 5)
    assert code == 0 and "to the last bit" in out, out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with Image.open(tmp_path / "out" / f"step-{step:08d}.png") as sheet:
        assert min(sheet.size) > 100
    table = list(csv.DictReader((tmp_path / "out" / f"step-{step:08d}.csv").open()))
    parts = 2 if recipe == "rotation_rv50" else 1
    batches = seen[(step - 1) * parts : step * parts]
    assert sorted(int(row["sample"]) for row in table) == sorted(torch.cat([b[0] for b in batches]).tolist())
    losses = [float(row["loss"]) for row in table if row["loss"]]
    if recipe == "sslpp_iic":
        assert not losses and "of the whole batch" in out
    else:
        assert np.mean(losses) == pytest.approx(rows[step - 1]["loss"], rel=1e-5)
        assert losses == sorted(losses, reverse=True)
        assert f"sample {table[0]['sample']}, " in out.splitlines()[-1]
        assert out.splitlines()[-1].endswith(table[0]["file"])
    assert ("cluster " in out) == (recipe == "uic_alexnet")

    past_run = opened(folder)
    experiment = past_run.build()
    data = experiment.open_data(past_run.options, one_process())
    past = find_step(folder, str(step), experiment.stages)
    assert (past.run_step, past.row) == (step, rows[step - 1])
    prepare_stage(folder, experiment, past, data, past_run.options)
    made, _ = batches_of(experiment, data, past, 0, 1)
    for (indices, images), again in zip(batches, made, strict=True):
        assert again.batch.indices.equal(indices)
        assert all(map(torch.equal, images, again.batch.images))
        for box, i in zip(again.boxes[0], indices.tolist(), strict=True):
            with Image.open(data.train.name(i)) as image:
                assert 0 <= box[0] and box[0] + box[2] <= image.height and box[1] + box[3] <= image.width
    data.close()


@pytest.mark.parametrize("recipe", NAMES)
def test_without_a_checkpoint_the_images_stay(recipe: str, train: Train, tmp_path: Path, cli: Cli) -> None:
    """Of the second stage, whose weights are lost. A task whose order comes from labels needs these."""
    whole, seen = train(recipe)
    folder, out = tmp_path / "run", ("--out", tmp_path / "out")
    shutil.copytree(whole, folder)
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    if recipe == "uic_alexnet":
        refused(cli("replay", folder, "--step", 3, "--most-steps", 0, *out), "labels", "checkpoint")
        return
    step = 3 if recipe == "sslpp_iic" else 8
    options = ("--most-steps", 0) if recipe == "sslpp_iic" else ()
    code, text, _ = cli("replay", folder, "--step", step, *options, *out)
    assert code == 0 and ("no kept checkpoint lies before" in text) == (step == 8)
    table = list(csv.DictReader((tmp_path / "out" / f"step-{step:08d}.csv").open()))
    parts = 2 if recipe == "rotation_rv50" else 1
    shown = torch.cat([indices for indices, _ in seen[(step - 1) * parts : step * parts]]).tolist()
    assert [int(row["sample"]) for row in table] == shown and not any(row["loss"] for row in table)
    assert cli("replay", folder, "--step", 5, "--most-steps", 4, *out).out.count("--most-steps 5") == 1


def test_data_that_have_moved(photos: Path, train: Train, tmp_path: Path, cli: Cli) -> None:
    folder = train("simclr_r50").folder
    moved, arguments = tmp_path / "moved", ("replay", folder, "--step", 2, "--out", tmp_path / "out")
    shutil.copytree(photos, moved)
    assert "to the last bit" in cli(*arguments, "--data", moved).out
    first = next(moved.rglob("*.jpg"))
    first.write_bytes(first.read_bytes() + b"\0")
    digest = json.loads((folder / "config.json").read_text())["science"]["data_digest"]
    refused(cli(*arguments, "--data", moved), str(moved), digest[:8], "--other-data")
    code, text, _ = cli(*arguments, "--data", moved, "--other-data")
    assert code == 0 and digest[:8] in text and "largest loss" not in text
    first.unlink()
    line = refused(cli(*arguments, "--data", moved, "--other-data"), "47", "48")
    assert "--other-data" not in line


def test_bad_input_is_one_line(train: Train, tmp_path: Path, cli: Cli) -> None:
    folder = train("simclr_r50").folder
    for options, said in (
        (("--step", 99), ("--step 99", "1 to 21")),
        (("--step", "S4:1"), ("--step S4:1",)),
        (("--step", "x"), ("--step x", "S2:120")),
        (("--step", 2, "--rank", 1), ("--rank 1", "0 to 0")),
        (("--step", 2, "--around", -1), ("--around -1",)),
        (("--step", 2, "--num", 0), ("--num 0",)),
        (("--step", 2, "--out", folder / "out"), ("--out",)),
        (("--step", 2, "--recipe", "rotation"), ("--recipe rotation", "simclr_r50")),
        (("--step", 2, "--backbone", "resnet50"), ("--backbone resnet50",)),
        (("--step", 2, "--data", tmp_path / "nothing"), ("nothing",)),
    ):
        refused(cli("replay", folder, *options), *said)
    refused(cli("replay", tmp_path, "--step", 1), str(tmp_path))
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    config = json.loads((own / "config.json").read_text())
    for name, value, said in (
        ("backbone", "theirs.py:Net", ("theirs.py:Net", "--backbone")),
        ("batch_size", -4, (f"{own}/config.json: --batch-size -4: it must be above 0",)),
        ("size_px", -4, (f"{own}/config.json: --size-px -4: a side has 1 to 65,535 px",)),
        ("seed", 4, (f"{own}/config.json: its options and its science tell of several runs (seed 4 and 0)",)),
        ("size_px", 10**15, (f"--size-px {10**15}: a side",)),
    ):
        changed = config | {"options": config["options"] | {name: value}}
        (own / "config.json").write_text(json.dumps(changed))
        refused(cli("replay", own, "--step", 1), *said)


def test_a_checkpoint_past_the_end_of_its_stage_gives_no_losses(
    train: Train, tmp_path: Path, cli: Cli
) -> None:
    run = shutil.copytree(train("simclr_r50").folder, tmp_path / "run")
    for path in run.glob("checkpoints/*.pt"):
        state = torch.load(path, weights_only=True)
        state["position"]["step"] = 10**15
        torch.save(state, path)
    step = len(rows_of(run)) - 1
    code, out, _ = cli("replay", run, "--step", step, "--out", tmp_path / "out")
    assert code == 0 and f"never comes to step {step}: the run's records do not belong" in out, out


@pytest.mark.parametrize("place", ["theirs.py", "/{}/theirs.py", "../recipes/theirs", "linear_probe"])
def test_a_recipe_that_a_record_names_never_runs(
    place: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one whose RECIPE has the recorded name; it runs once a person has typed it."""
    monkeypatch.chdir(tmp_path)
    name = place.format(str(tmp_path)[1:])
    code = (
        "open('ran', 'w')\nfrom dataclasses import replace\n"
        "from fastpsl.scripts.recipe_files import find_recipe\n"
        f"RECIPE = replace(find_recipe('simclr_r50'), name={name!r})\n"
    )
    (tmp_path / "theirs.py").write_text(code)
    run, science = tmp_path / "run", {"recipe": name, "data_digest": "0", "precision": "fp32"}
    run.mkdir()
    config = {"options": {"data": None}, "science": science, "images": {"train": 8}}
    (run / "config.json").write_text(json.dumps(config))
    (run / "environment.json").write_text('{"world_size": 1}')
    refused(cli("replay", run, "--step", 1), name, "--recipe FILE.py")
    with pytest.raises(ValueError, match="none of ours and would run"):
        fastpsl.replay(run, 1)
    assert not (tmp_path / "ran").exists()
    refused(cli("replay", run, "--step", 1, "--recipe", "theirs.py"), "metrics.jsonl")
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stage": "S9\n"}, ("stage 'S9\\n'", "S1, S2, S3")),
        ({"step": 0}, ("step 0",)),
        ({"step": 10**12}, ("step 1000000000000",)),
        ({"step": "x"}, ("holds steps 1 to 8 of the run",)),
        ({"step": -4}, ("holds steps 1 to 8 of the run",)),
        ({"loss": [1]}, ("holds steps 1 to 8 of the run",)),
        ({"lr": "\x1b[2J"}, ("holds steps 1 to 8 of the run",)),
        ({"step": None}, ("holds steps 1 to 8 of the run",)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_an_edited_line_is_told(
    change: dict[str, Any], words: tuple[str, ...], train: Train, tmp_path: Path, cli: Cli
) -> None:
    folder = edited(train("simclr_r50").folder, tmp_path, change)
    refused_last(cli("replay", folder, "--step", 9, "--most-steps", 0, "--out", tmp_path / "out"), *words)


def refused_last(outcome: Any, *words: str) -> None:
    """Check that a command has ended with one line, after warnings."""
    assert outcome.code == 2 and not outcome.out and "Traceback" not in outcome.err, outcome
    assert all(word in outcome.err.splitlines()[-1] for word in words), outcome.err


def edited(whole: Path, place: Path, change: dict[str, Any]) -> Path:
    """Return a copy of a run whose ninth line has other values; ... stands for one that is left out."""
    shutil.copytree(whole, place / "run")
    rows = rows_of(whole)
    rows[8] = {name: value for name, value in (rows[8] | change).items() if value is not ...}
    (place / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place / "run"


def test_what_a_line_lacks_is_left_out(train: Train, tmp_path: Path, cli: Cli) -> None:
    """A learning rate or a loss that is not there, and a note of another program."""
    change = {"lr": ..., "loss": None, "note": {"by": "hand"}, "words": "so"}
    folder = edited(train("simclr_r50").folder, tmp_path, change)
    arguments = ("replay", folder, "--most-steps", 0, "--around", 1, "--out", tmp_path / "out")
    code, out, _ = cli(*arguments, "--step", 9)
    line = next(line for line in out.splitlines() if "this step" in line)
    assert code == 0 and line.split()[:3] == ["9", "S2", "2"] and line.split()[3] == "<-", out
    assert not {"lr", "note", "words"} & {*re.findall(r"^(\w+) |, (\w+) [\d.]", out)}
    refused(cli(*arguments, "--step", "9" * 5000), f"--step {'9' * 40}: give")


def test_steps_around_it(train: Train, tmp_path: Path, cli: Cli) -> None:
    folder = train("simclr_r50").folder
    out = cli(
        "replay", folder, "--step", "S2:2", "--around", 3, "--most-steps", 0, "--out", tmp_path / "out"
    ).out
    lines = [line for line in out.splitlines() if "█" in line]
    assert [int(line.split()[0]) for line in lines] == [*range(6, 13)]
    rows = rows_of(folder)[5:12]
    assert [float(line.split()[4]) for line in lines] == pytest.approx(
        [row["loss"] for row in rows], rel=1e-3
    )
    marked = [line.split()[0] for line in lines if "largest" in line]
    assert marked == [str(max(rows, key=lambda row: row["loss"])["run_step"])]
    assert [line.split()[0] for line in lines if "this step" in line] == ["9"]


def test_from_python(train: Train, tmp_path: Path) -> None:
    folder, seen = train("simclr_r50")
    before = torch.get_rng_state()
    found = fastpsl.replay(folder, 9, num=3, device="cpu")
    assert torch.get_rng_state().equal(before)
    with pytest.raises(ValueError, match="num -5"):
        fastpsl.replay(folder, 9, num=-5, device="cpu")
    assert found.images == fastpsl.replay(folder, "S2:2", device="cpu").images
    losses = [image.loss for image in found.images if image.loss is not None]
    assert np.mean(losses) == pytest.approx(found.past.row["loss"], rel=1e-5)
    assert sorted(image.sample for image in found.images) == sorted(seen[8][0].tolist())
    assert [image.pixels is not None for image in found.images] == [True] * 3 + [False] * 5
    assert all(path.is_file() for path in found.save(tmp_path))
    with pytest.raises(ValueError, match="1 to 21"):
        fastpsl.replay(folder, 99)


def test_a_step_has_its_dropout(photos: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "net.py").write_text(DROPPING)
    network, folder = f"{tmp_path}/net.py:Net", tmp_path / "run"
    options = SMALL.replace("nin3", network).replace("2 2 2", "2 2")
    start("simclr_r50", options, "--partition 1-1 2-2", "--data", photos, "--out", folder).ok()
    for step in (2, 6):
        code, out, _ = cli("replay", folder, "--step", step, "--out", tmp_path / "out", "--backbone", network)
        assert code == 0 and "to the last bit" in out, out
        rows = csv.DictReader((tmp_path / "out" / f"step-{step:08d}.csv").open())
        losses = [float(row["loss"]) for row in rows]
        assert np.mean(losses) == pytest.approx(rows_of(folder)[step - 1]["loss"], rel=1e-5)


def test_boxes_are_those_of_the_draw(train: Train) -> None:
    """UIC's order repeats images of small classes, each time with another box; the pixels tell which."""
    folder, seen = train("uic_alexnet")
    past_run = opened(folder)
    experiment = past_run.build()
    data = experiment.open_data(past_run.options, one_process())
    shown, num_again = set[int](), 0
    for step, (indices, images) in enumerate(seen[:6], start=1):  # the first epoch
        past = find_step(folder, str(step), experiment.stages)
        prepare_stage(folder, experiment, past, data, past_run.options)
        (made,), _ = batches_of(experiment, data, past, 0, 1)
        for i, pixels, box in zip(indices.tolist(), images[0].float(), made.boxes[0].tolist(), strict=True):
            top, left, height, width = box
            with Image.open(data.train.name(i)) as image:
                crop = image.resize(
                    (32, 32), Image.Resampling.BILINEAR, (left, top, left + width, top + height)
                )
            plain = torch.from_numpy(np.array(crop)).permute(2, 0, 1).float()
            # The same but for the decoder's scaling; boxes of other draws are 20 grey values away and more.
            assert min(float((pixels - one).abs().mean()) for one in (plain, plain.flip(2))) < 4
            num_again += i in shown
            shown.add(i)
    data.close()
    assert num_again


def record_of_rank(folder: Path) -> None:
    """Write what each step of this rank sees."""
    cheaper.for_good()
    seen = Seen()

    def see(batch: Batch) -> None:
        seen.append(copied(batch))
        torch.save(seen, folder / f"rank{os.environ['RANK']}.pt")

    record(pytest.MonkeyPatch(), see)


@pytest.mark.slow
def test_two_ranks(photos: Path, tmp_path: Path, cli: Cli) -> None:
    """One process has the images of both; two have the losses, too."""
    folder, out = tmp_path / "run", tmp_path / "out"
    options = words(SMALL, "--data", photos, "--out", folder)
    script = Path(__file__).parents[2] / "recipes" / "simclr_r50.py"
    assert run(script, *options, ranks=2, prepare=partial(record_of_rank, tmp_path)).returncode == 0
    seen = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    past_run, step = opened(folder), 9
    code, text, _ = cli("replay", folder, "--step", step, "--out", out)
    assert code == 0 and "2 ranks" in text and "--nproc-per-node 2" in text
    table = list(csv.DictReader((out / f"step-{step:08d}.csv").open()))
    both = [int(i) for rank in (0, 1) for i in seen[rank][step - 1][0]]
    assert [int(row["sample"]) for row in table] == both and [row["rank"] for row in table] == [*"00001111"]
    cli("replay", folder, "--step", step, "--out", out, "--rank", 1)
    assert [int(row["sample"]) for row in csv.DictReader((out / f"step-{step:08d}.csv").open())] == both[4:]
    found = replay_step(past_run, str(step), one_process(), rank=1)
    assert [image.sample for image in found.images] == both[4:]

    done = run(
        Path("fastpsl"), "replay", folder, "--step", step, "--out", out, ranks=2, prepare=cheaper.for_good
    )
    assert done.returncode == 0 and "to the last bit" in done.stdout, done
    losses = [float(row["loss"]) for row in csv.DictReader((out / f"step-{step:08d}.csv").open())]
    assert len(losses) == 8 and np.mean(losses) == pytest.approx(rows_of(folder)[step - 1]["loss"], rel=1e-5)
