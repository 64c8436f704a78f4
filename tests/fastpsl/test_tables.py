"""The papers' tables beside our results: which results count, what is computed of them, and the commands of the missing."""

import base64
import io
import json
import os
import re
import runpy
import shlex
import statistics
import subprocess
import sys
from contextlib import closing
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastpsl.cli import main
from fastpsl.evaluation.result import write_result
from fastpsl.kernels.permutations import permutation_set
from fastpsl.permutations import permutations_digest
from fastpsl.pipelines.data import open_data
from fastpsl.sample import sample_paths
from fastpsl.sample_pictures import CLASS_NAMES, draw_picture
from fastpsl.tables.commands import Missing, Place
from fastpsl.tables.found import find
from fastpsl.tables.markdown import markdown
from fastpsl.tables.matching import DataSet, needs_of
from fastpsl.tables.needs import FEW_LABELS, MOCO, MORE_LABELS, VISSL, Evaluation, Weights
from fastpsl.tables.psl import TABLES
from fastpsl.tables.report import Report, make_report
from fastpsl.tables.scales import FREE, SCALES, Scale, plain
from tests.commands import ENVIRONMENT, ROOT

PAPER, TINY = SCALES["paper"], SCALES["tiny"]
PSL = Weights("resnet50", "jigsaw_r50", "psl")
END_TO_END = Weights("resnet50", "jigsaw_r50", "end_to_end")
DIGESTS = {"train": "a" * 32, "val": "b" * 32}
BLOCKS = {"top1_B1": 10.0, "top1_B2": 20.0, "top1_B3": 30.0, "top1_B4": 40.0, "top1_B5": 35.0}


def put(
    runs: Path,
    weights: Weights = PSL,
    evaluation: Evaluation = VISSL,
    numbers: dict[str, float] = BLOCKS,
    *,
    scale: Scale = TINY,
    seed: int = 0,
    name: str = "",
    data: dict[str, str] = DIGESTS,
    science: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A result.json as an evaluation writes it, in a folder whose name tells nothing; `science` and `settings` replace values."""
    folder = runs / (name or f"run-{sum(1 for _ in runs.rglob('result.json'))}")
    folder.mkdir(parents=True)
    trained = None
    if weights.recipe:
        trained = scale.training_science(weights) | {"seed": seed, "data_digest": data["train"]}
        trained |= {"precision": "fp32"} | (science or {})
    checkpoint = {
        "path": str(runs / "gone" / "checkpoints" / "step-00000001.pt"),
        "sha256": "c" * 64,
        "science": trained,
    }
    checkpoint |= {"kind": "fastpsl" if weights.recipe else "random", "backbone": weights.backbone}
    record = {
        "recipe": evaluation.recipe,
        "protocol": evaluation.protocol,
        "numbers": numbers,
        "settings": scale.evaluation_settings(evaluation) | {"seed": seed} | (settings or {}),
        "checkpoint": checkpoint | changes.pop("checkpoint", {}),
        "data": {"num_train": 480, "num_val": 160, **data},
        "seconds": 1.0,
        "cut": False,
    }
    return write_result(folder, **{**record, **changes})


def report(runs: Path, table: str = "psl/5", scale: Scale = TINY, asked: DataSet = DataSet()) -> Report:  # noqa: B008
    return make_report(TABLES[table], scale, find(runs), asked, Place(runs, "T.beton", "V.beton", 1))


def ours(made: Report, method: str) -> list[str]:
    return [str(cell.ours) for cell in made.cells[method]]


def test_numbers_as_printed() -> None:
    four, five, six, seven = (TABLES[f"psl/{number}"] for number in (4, 5, 6, 7))
    assert {row.method: row.numbers[0] for row in four.rows} == {
        "Colorization [49]": 39.6, "BigBiGAN [15]": 56.6, "LA [51]": 58.8, "NPID++ [37]": 59.0, "MoCo [26]": 60.6,
        "PIRL [37]": 63.6, "CPC v2 [28]": 63.8, "PCL [34]": 65.9, "SwAV [9]": 75.3, "Jigsaw [38]": 45.7,
        "Jigsaw+PSL": 50.9, "Rotation [21]": 47.3, "Rotation*": 48.6, "Rotation+PSL": 53.3, "SimCLR [10]": 61.9,
        "SimCLR+PSL": 64.3, "MoCov2 [11]": 67.5, "MoCov2+PSL": 68.1,
    }  # fmt: skip
    assert {row.method for row in four.rows if row.million_parameters == 86} == {"Rotation [21]"}
    assert five.row("PSL").numbers == (10.9, 27.0, 43.2, 50.9, 38.5)
    assert five.row("Supervised").numbers == (11.6, 33.3, 48.7, 67.9, 75.5)
    assert six.row("PSL_f").numbers == (10.5, 31.1, 42.1, 52.9, 49.7) and six.row("PSL_f").arch == "R50"
    assert six.row("Rotation").numbers == (10.9, 30.1, 40.2, 48.6, 46.5) and six.row("SL").arch == "Rv50"
    assert seven.row("Rotation+PSL").numbers == (54.8, 83.7) and seven.row("Supervised").numbers == (
        48.4,
        80.4,
    )
    for table in TABLES.values():
        assert all(len(row.numbers) == len(table.columns) for row in table.rows)
        assert all(len(row.measures) in (0, len(table.columns)) for row in table.rows)


def test_what_the_rows_are_measured_on() -> None:
    by_row = {
        (name, row.method): {
            (m.weights.recipe, m.weights.plan, m.weights.backbone, m.evaluation.protocol)
            for m in row.measures
        }
        for name, table in TABLES.items()
        for row in table.rows
    }
    assert by_row["psl/4", "Rotation+PSL"] == {("rotation_rv50", "psl", "revnet50", "linear/vissl")}
    assert by_row["psl/4", "SimCLR [10]"] == {("simclr_r50", "end_to_end", "resnet50", "linear/moco")}
    assert by_row["psl/6", "SL"] == {("rotation_rv50", "sl", "revnet50", "linear/vissl")}
    assert by_row["psl/6", "Supervised"] == {("supervised", "end_to_end", "revnet50", "linear/vissl")}
    assert by_row["psl/7", "Rotation [21]"] == {
        ("rotation_rv50", "end_to_end", "resnet50", "semi_supervised")
    }
    assert by_row["psl/7", "Supervised"] == {(None, None, "resnet50", "semi_supervised")}
    assert not by_row["psl/4", "SwAV [9]"] and not by_row["psl/4", "Rotation [21]"]


def test_mean_and_standard_deviation_over_the_seeds(tmp_path: Path) -> None:
    for seed, b4 in enumerate((40.0, 41.0, 45.0)):
        put(tmp_path, seed=seed, numbers=BLOCKS | {"top1_B4": b4})
    put(tmp_path, END_TO_END, seed=1)
    made = report(tmp_path)
    # mean 42, squares 4 + 1 + 9 over two degrees of freedom
    assert ours(made, "PSL")[3] == "42.0 ± 2.6 (3)" and ours(made, "PSL")[0] == "10.0 ± 0.0 (3)"
    assert ours(made, "Jigsaw") == ["10.0", "20.0", "30.0", "40.0", "35.0"]
    assert ours(made, "SL") == ["None"] * 5
    gains = {gain.row.method: gain for gain in made.gains}
    assert gains["PSL"].ours[3] == 2.0 and gains["PSL"].paper[3] == pytest.approx(5.2)
    assert gains["SL"].ours == (None,) * 5


def test_the_best_block_is_one_for_all_seeds(tmp_path: Path) -> None:
    put(tmp_path, seed=0, numbers=BLOCKS | {"top1_B4": 50.0, "top1_B3": 10.0})
    put(tmp_path, seed=1, numbers=BLOCKS | {"top1_B4": 20.0, "top1_B3": 48.0})
    made = report(tmp_path, "psl/4").cells["Jigsaw+PSL"][0].ours
    assert made and (made.number, made.mean, made.seeds) == (
        "top1_B4",
        35.0,
        (0, 1),
    )  # B5 has 35, too, and comes later


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"scale": PAPER}, "stage_epochs 60 60 60, here 6 6 6"),
        ({"cut": True}, "cut short"),
        ({"checkpoint": {"backbone": "resnet18"}}, "backbone resnet18, here resnet50"),
        ({"science": {"plan": "other"}}, "plan other"),
        ({"science": {"levels": [2, 1, 3]}}, "levels 2 1 3, here default"),
        ({"science": {"partition": ["1-2", "3-5"]}}, "partition 1-2 3-5"),
        ({"science": {"frozen_batchnorm": "train"}}, "frozen_batchnorm train"),
        ({"science": {"data_digest": "f" * 32}}, "pre-trained on other pictures"),
        ({"science": {"permutations": "of a file"}}, "pre-trained with permutations of a file"),
        ({"settings": {"size_px": 64}}, "evaluated with size_px 64, here 56"),
        ({"checkpoint": {"input": {"channels": "L"}}}, "sees L, here RGB"),
        ({"data": {"train": "a" * 32, "val": "a" * 32}}, "scored on the pictures that it learned from"),
        ({"numbers": {"top1_B1": 1.0}}, "it has no top1_B2, top1_B3"),
    ],
)
def test_what_does_not_fit_is_listed_and_not_used(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = put(tmp_path, **change)
    right = put(tmp_path, seed=1)
    made = report(tmp_path)
    assert [result.path for _, _, result in made.used] == [right]
    assert why in made.matches.unused[path]


def test_others_results_are_counted_and_broken_ones_named(tmp_path: Path) -> None:
    put(tmp_path, Weights("resnet50", "simclr_r50", "psl"), MOCO, {"top1_final": 1.0})
    put(tmp_path, PSL, checkpoint={"kind": "torchvision", "science": None})
    broken = put(tmp_path)
    broken.write_text(broken.read_text()[:100])
    made = report(tmp_path)
    assert made.matches.num_other == 2 and list(made.matches.unused) == [broken]
    assert not made.used


def test_fine_tuning_on_parts_is_of_one_data_set(tmp_path: Path) -> None:
    """Each seed has labels of its own, so the record of what was learned from differs; the pictures are the same."""
    for seed, weights in ((0, PSL), (1, PSL), (0, Weights("resnet50"))):
        part = {"train": f"{seed}" * 32, "val": DIGESTS["val"]}
        science = {"data_digest": DIGESTS["train"]}
        put(tmp_path, weights, FEW_LABELS, {"top5": 50.0 + seed}, seed=seed, data=part, science=science)
    made = report(tmp_path, "psl/7")
    assert ours(made, "Jigsaw+PSL")[0] == "50.5 ± 0.7 (2)" and ours(made, "Supervised")[0] == "50.0"
    put(tmp_path, PSL, MORE_LABELS, {"top5": 1.0}, data=DIGESTS | {"val": "9" * 32})
    with pytest.raises(ValueError, match="2 data sets"):
        report(tmp_path, "psl/7")


def test_variants_are_rows_of_their_own(tmp_path: Path) -> None:
    reversed_ = Weights("resnet50", "jigsaw_r50", "psl", "reversed")
    put(tmp_path, reversed_), put(tmp_path, PSL, numbers=BLOCKS | {"top1_B4": 38.0})
    made = report(tmp_path, "psl/ablations")
    assert ours(made, "G3, G2, G1")[3] == "40.0" and made.cells["G3, G2, G1"][3].paper is None
    gain = next(gain for gain in made.gains if gain.row.method == "G3, G2, G1")
    assert gain.ours[3] == 2.0 and gain.paper == (None,) * 5
    assert ours(report(tmp_path), "PSL")[3] == "38.0"
    written = markdown(made)
    assert (
        "| **G3, G2, G1** (from the hardest level to the easiest; ours alone: not in the paper) | R50 | ours |"
        in written
    )
    assert "| G3, G2, G1 − PSL | ours | +0.0 |" in written


def test_the_newest_of_one_seed_counts(tmp_path: Path) -> None:
    older, newer = put(tmp_path, numbers=BLOCKS), put(tmp_path, numbers=BLOCKS | {"top1_B4": 70.0})
    record = json.loads(older.read_text())
    older.write_text(json.dumps(record | {"date": "2020-01-01T00:00:00+00:00"}))
    made = report(tmp_path)
    assert ours(made, "PSL")[3] == "70.0" and "the same seed again" in made.matches.unused[older]
    assert str(newer) in made.matches.unused[older]


def test_data_sets_are_never_mixed(tmp_path: Path) -> None:
    other = {"train": "e" * 32, "val": "b" * 32}
    one, two = put(tmp_path), put(tmp_path, seed=1, data=other)
    with pytest.raises(ValueError, match="results of 2 data sets must not be mixed"):
        report(tmp_path)
    made = report(tmp_path, asked=DataSet("e" * 32))
    assert [result.path for _, _, result in made.used] == [two]
    assert "of other pictures (aaaaaaaa/bbbbbbbb" in made.matches.unused[one]
    assert not report(tmp_path, asked=DataSet("0" * 32)).used
    assert not report(tmp_path, asked=DataSet("e" * 32, "0" * 32)).used


def test_the_data_that_is_named_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sample_paths()
    with closing(open_data(paths.train_32)) as train, closing(open_data(paths.test_32)) as val:
        mine = {"train": train.digest(), "val": val.digest()}
    runs = tmp_path / "runs"
    put(runs), put(runs, seed=1, data=mine, name="mine")
    words = ("table", "psl/5", "--runs", runs, "--out", tmp_path / "out", "--scale", "tiny")
    with pytest.raises(SystemExit) as caught:
        main([*map(str, words)])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1 and "--data" in said
    main([*map(str, words), "--data", str(paths.train_32), "--val", str(paths.test_32)])
    assert "1 of 15 results" in capsys.readouterr().out
    main([*map(str, words), "--val", str(paths.test_32)])  # one of the two is enough
    assert "1 of 15 results" in capsys.readouterr().out
    main([*map(str, words), "--val", str(paths.train_32)])
    assert "0 of 15 results" in capsys.readouterr().out


# --- the commands of what is missing


@cache
def recipe(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "recipes" / f"{name}.py"))


def parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """(recipe, options) of a printed command, by the recipe's own parser."""
    launcher, ranks, script, *flags = shlex.split(command)
    assert launcher == "torchrun" and ranks.startswith("--nproc-per-node=")
    assert Path(script) == Path("recipes") / Path(script).name
    monkeypatch.setattr(sys, "argv", [script, *flags])
    name = Path(script).stem
    return name, recipe(name)["parse"]()


def effective(options: Any) -> dict[str, Any]:
    """Options with the values of the protocol that they name, as they come to stand in result.json."""
    values = options.as_dict() | (options.constants() if hasattr(options, "constants") else {})
    return {name: plain(value) for name, value in values.items()}


@cache
def of_made_permutations(num_pieces: int, counts: tuple[int, ...]) -> str:
    return permutations_digest(permutation_set(num_pieces, counts).permutations)


def test_a_jigsaws_science_holds_its_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["jigsaw_r50", "--backbone", "resnet18", "--counts", "16", "32", "64"])
    parts = recipe("jigsaw_r50")
    job = parts["build"](parts["parse"]())
    assert job.science["permutations"] == TINY.training_science(PSL)["permutations"]
    assert job.science["permutations"] != PAPER.training_science(PSL)["permutations"]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
def test_every_command_parses_and_makes_what_is_missing(
    table: str, scale: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    runs = tmp_path / "my runs"
    runs.mkdir()
    made = report(runs, table, scale)
    assert made.num_needed == len(needs_of(TABLES[table])) * len(scale.seeds)
    outs = []
    for missing in made.missing:
        *training, evaluations = [
            missing.commands[: -len(missing.evaluations)],
            missing.commands[-len(missing.evaluations) :],
        ]
        folder = None
        for command in training[0]:
            name, options = parsed(command, monkeypatch)
            wanted = scale.training_science(missing.weights)
            science = options.science() | {"recipe": name}
            if name == "jigsaw_r50":
                science["permutations"] = of_made_permutations(options.grid**2, options.counts)
            assert {key: science[key] for key in wanted} == wanted
            assert options.seed == missing.seed
            folder = options.out
            outs.append(folder)
        for command, evaluation in zip(evaluations, missing.evaluations, strict=True):
            name, options = parsed(command, monkeypatch)
            assert name == evaluation.recipe and options.seed == missing.seed
            values, wanted = effective(options), scale.evaluation_settings(evaluation)
            assert {key: values[key] for key in wanted} == wanted
            assert (options.checkpoint, options.random_weights) == (folder, folder is None)
            if folder is None:
                assert options.backbone == missing.weights.backbone
            outs.append(options.out)
    assert len(set(outs)) == len(outs) and all(runs in out.parents for out in outs)


@pytest.mark.parametrize("name", ["jigsaw_r50", "rotation_rv50", "simclr_r50", "mocov2_r50", "supervised"])
def test_every_value_that_a_recipe_knows_is_compared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new option of a recipe must be given a value here, or results that differ in it would be averaged."""
    monkeypatch.setattr(sys, "argv", [name, "--data", "x"])
    science = recipe(name)["parse"]().science()
    weights = Weights("resnet50", name, "psl")
    for scale in SCALES.values():
        assert set(science) - FREE == set(scale.training_science(weights)) - {"recipe", "permutations"}
    for option, value in recipe(name)["PAPER"].items():
        if option not in ("backbone", "plan"):
            assert plain(PAPER.values[name][option]) == plain(value), option


@pytest.mark.parametrize("evaluation", [VISSL, MOCO, FEW_LABELS, MORE_LABELS], ids=lambda one: one.name)
def test_every_value_that_an_evaluation_knows_is_compared(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = str(PAPER.values[evaluation.name]["protocol"])
    monkeypatch.setattr(sys, "argv", [evaluation.recipe, "--data", "x", "--protocol", protocol])
    options = recipe(evaluation.recipe)["parse"]()
    for scale in SCALES.values():
        assert set(options.science()) - FREE == set(scale.evaluation_settings(evaluation))
    assert PAPER.evaluation_settings(evaluation).items() - {("percent", 10.0)} <= effective(options).items()


def missing_of(runs: Path, weights: Weights, table: str = "psl/5", scale: Scale = TINY) -> list[Missing]:
    return [one for one in report(runs, table, scale).missing if one.weights == weights]


def put_run(
    runs: Path,
    name: str,
    *,
    state: str = "finished",
    checkpoint: bool = True,
    cut: bool = False,
    **science: Any,
) -> Path:
    """A training run's folder as it is left behind."""
    folder = runs / name
    (folder / "checkpoints").mkdir(parents=True)
    known = TINY.training_science(PSL) | {"seed": 0, "data_digest": DIGESTS["train"]} | science
    (folder / "config.json").write_text(json.dumps({"options": {}, "science": known}))
    (folder / "status.json").write_text(json.dumps({"state": state}))
    steps = {"num_steps": 1 if cut else 5, "num_steps_planned": 5}
    if state == "finished":
        (folder / "results.json").write_text(json.dumps([steps]))
    if checkpoint:
        (folder / "checkpoints" / "step-00000005.pt").write_bytes(b"")
    return folder


def test_a_finished_pre_training_is_not_run_again(tmp_path: Path) -> None:
    folder = put_run(tmp_path, "deep/my jigsaw")
    first, second, third = missing_of(tmp_path, PSL)
    assert first.seed == 0 and len(first.commands) == 1 and "recipes/linear_probe.py" in first.commands[0]
    assert f"--checkpoint {shlex.quote(str(folder))}" in first.commands[0]
    assert [len(one.commands) for one in (second, third)] == [2, 2]


def test_a_run_of_another_seed_serves_where_one_is_wanted(tmp_path: Path) -> None:
    put_run(tmp_path, "x", seed=7, **PAPER.training_science(PSL))
    (only,) = missing_of(tmp_path, PSL, scale=PAPER)
    assert (only.seed, len(only.commands)) == (7, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"plan": "sl"},
        {"backbone": "resnet18"},
        {"cut": True},
        {"checkpoint": False},
        {"lr": 0.5},
        {"seed": 5},
    ],
)
def test_an_unfit_run_is_not_used_and_not_overwritten(tmp_path: Path, change: dict[str, Any]) -> None:
    put_run(tmp_path, "psl-tiny/jigsaw-psl-resnet50-s0", **change)
    first = next(one for one in missing_of(tmp_path, PSL) if one.seed == 0)
    assert len(first.commands) == 2
    assert f"--out {tmp_path}/psl-tiny/jigsaw-psl-resnet50-s0-2" in first.commands[0]
    assert f"--checkpoint {tmp_path}/psl-tiny/jigsaw-psl-resnet50-s0-2" in first.commands[1]


def test_a_run_that_was_begun_goes_on(tmp_path: Path) -> None:
    folder = put_run(tmp_path, "begun", state="preempted")
    first = missing_of(tmp_path, PSL)[0]
    assert len(first.commands) == 2 and first.commands[0].endswith(f"--out {folder}")


def test_what_a_begun_run_has_chosen_is_repeated(tmp_path: Path) -> None:
    """Free between results, but not within a run: it would be refused otherwise."""
    put_run(tmp_path, "begun", state="preempted", precision="bf16", order="quasi_random", lanes=8)
    (command, _) = missing_of(tmp_path, PSL)[0].commands
    assert "--precision bf16 --order quasi_random --lanes 8 --out" in command and "--apex" not in command


def test_a_deleted_result_is_missing_again(tmp_path: Path) -> None:
    paths = [put(tmp_path, weights, seed=seed) for weights in (PSL, END_TO_END) for seed in TINY.seeds]
    assert not missing_of(tmp_path, PSL) and not missing_of(tmp_path, END_TO_END)
    paths[1].unlink()
    (only,) = missing_of(tmp_path, PSL)
    assert only.seed == 1 and not missing_of(tmp_path, END_TO_END)


# --- rendering


class Page(HTMLParser):
    """Tags that are open, and what could reach out."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(
    runs: Path, out: Path, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[str, str, Page]:
    """What the command says, its Markdown and its page."""
    main(["table", "psl/5", "--runs", str(runs), "--out", str(out), "--scale", "tiny", *arguments])
    captured = capsys.readouterr()
    said = captured.out
    assert ("no such.beton" in captured.err) == (
        "no such.beton" in arguments
    )  # a warning where it is not there
    page = Page()
    page.feed((out / "psl-5.html").read_text())
    page.close()
    with Image.open(out / "psl-5.png") as image:
        assert image.format == "PNG" and image.width > 600
    return said, (out / "psl-5.md").read_text(), page


def test_the_pages_hold_the_table_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    runs = tmp_path / "runs <1>"
    folder = put_run(runs, "trained")
    Image.new("RGB", (30, 20), "red").save(folder / "curve.png")
    Image.new("RGB", (30, 20), "blue").save(folder / "contact-sheet-G3.png")
    (folder / "contact-sheet-G1.png").write_bytes(b"broken")
    for seed, b4 in enumerate((40.0, 41.0, 45.0)):
        at = {"path": str(folder / "checkpoints" / "step-00000005.pt")} if seed == 0 else {}
        put(runs, seed=seed, numbers=BLOCKS | {"top1_B4": b4}, checkpoint=at)
    unused = put(runs, END_TO_END, cut=True)
    said, markdown, page = rendered(
        runs, tmp_path / "out", capsys, "--data", "no such.beton", "--val", "v.beton"
    )
    lines = markdown.splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("| **PSL** |"))
    assert lines[row] == "| **PSL** | R50 | paper | 10.9 | 27.0 | 43.2 | 50.9 | 38.5 |"
    assert lines[row + 1].endswith(
        "| ours | 10.0 ± 0.0 (3) | 20.0 ± 0.0 (3) | 30.0 ± 0.0 (3) | 42.0 ± 2.6 (3) | 35.0 ± 0.0 (3) |"
    )
    assert "| ours | – | – | – | – | – |" in markdown  # the others: nothing is made up
    assert "ours − paper" not in markdown  # tiny numbers and ImageNet's have no difference
    assert "3 of 15 results" in said and f"not used {unused}: cut short" in said
    commands = [line for line in said.splitlines() if line.startswith("torchrun")]
    assert len(commands) == 4 * 3 * 2 and all("--data 'no such.beton'" in command for command in commands)
    for command in commands:
        assert command in markdown and command in page.text
    for words in (
        "42.0 ± 2.6 (3)",
        "contact-sheet-G1.png cannot be read",
        "50.9",
        "cut short",
        "aaaaaaaa/bbbbbbbb",
        "c" * 12,
        str(runs),
    ):
        assert words in page.text, words
    assert not page.open and "script" not in page.tags and "link" not in page.tags
    assert len(page.links) == 3  # the chart, the curve, the contact sheet
    for link in page.links:
        kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", link).groups()  # type: ignore[union-attr]
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert (image.format or "").lower() == kind
    style = (tmp_path / "out" / "psl-5.html").read_text()
    assert (
        "prefers-color-scheme: dark" in style
        and "http" not in style.replace("http-equiv", "")
        and "url(" not in style
    )


def test_at_the_papers_scale_the_difference_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    put(runs, scale=PAPER, data={**DIGESTS, "num_train": 1_281_167, "num_val": 50_000})  # type: ignore[dict-item]
    main(["table", "psl/5", "--runs", str(runs), "--out", str(tmp_path / "out")])
    assert "1 of 5 results" in capsys.readouterr().out
    markdown = (tmp_path / "out" / "psl-5.md").read_text()
    assert "| ours | 10.0 | 20.0 | 30.0 | 40.0 | 35.0 |" in markdown
    assert "1,281,167 training and 50,000 held-out pictures" in markdown and "ImageNet's numbers" in markdown
    assert "| ours − paper | −0.9 | −7.0 | −13.2 | −10.9 | −3.5 |" in markdown


def test_a_row_that_is_the_papers_alone_says_so(tmp_path: Path) -> None:
    made = report(tmp_path, "psl/4")
    assert "the paper's alone" in made.mark(TABLES["psl/4"].row("SwAV [9]"))
    assert made.cells["SwAV [9]"][0].ours is None and made.cells["SwAV [9]"][0].paper == 75.3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            "psl/8 --runs {tmp} --out {tmp}/o",
            "unknown table 'psl/8': allowed are psl/4, psl/5, psl/6, psl/7, psl/ablations",
        ),
        ("psl/5 --runs {tmp}/none --out {tmp}/o", "none: no such folder"),
        ("psl/5 --runs {tmp} --out {tmp}/o --scale big", "unknown scale 'big': allowed are paper, tiny"),
        ("psl/5 --runs {tmp} --out {tmp}/o --nproc-per-node 0", "--nproc-per-node 0"),
        ("psl/5 --runs {tmp}", "--out"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(
    arguments: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["table", *arguments.format(tmp=tmp_path).split()])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1 and words in said
    assert not (tmp_path / "o").exists()


def test_help_names_the_tables_and_scales(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["table", "--help"])
    said = capsys.readouterr().out
    assert caught.value.code == 0 and all(
        word in said for word in (*TABLES, *SCALES, "--runs DIR", "--out DIR")
    )


@pytest.mark.soak
def test_two_rows_of_the_tiny_scale_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The printed commands, pasted: two rows of Table 5 on 64-px pictures, three seeds each; then one result is lost."""
    for part, first, num in (("train", 0, 128), ("val", 128, 32)):
        for index in range(first, first + num):
            path = tmp_path / "my photos" / part / CLASS_NAMES[index % 8] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_picture(1, index, 64, 64 + index % 3)).save(path)
    runs, out = tmp_path / "runs", tmp_path / "out"
    runs.mkdir()
    words = ("--data", str(tmp_path / "my photos/train"), "--val", str(tmp_path / "my photos/val"))

    def commands_of(*methods: str) -> list[str]:
        said = rendered(runs, out, capsys, *words)[0]
        blocks = re.split(r"^# ", said, flags=re.MULTILINE)
        return [
            line
            for block in blocks
            if block.startswith(methods)
            for line in block.splitlines()
            if line.startswith("torchrun")
        ]

    def paste(command: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = ENVIRONMENT | {
            "PATH": path,
            "OMP_NUM_THREADS": str(os.cpu_count()),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        done = subprocess.run(
            command,
            shell=True,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    rows = ("PSL, ", "Jigsaw, ")
    commands = commands_of(*rows)
    assert len(commands) == 12
    for command in commands:
        paste(command)
    assert not commands_of(*rows)
    results = {path: json.loads(path.read_text()) for path in runs.rglob("result.json")}
    psl = {
        path: record for path, record in results.items() if record["checkpoint"]["science"]["plan"] == "psl"
    }
    assert len(results) == 6 and sorted(r["settings"]["seed"] for r in psl.values()) == [0, 1, 2]
    values = [record["numbers"]["top1_B4"] for record in psl.values()]
    told = f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} (3)"
    _, page, html = rendered(runs, out, capsys, *words)
    line = next(after for before, after in pairwise(page.splitlines()) if before.startswith("| **PSL** |"))
    assert line.split("|")[7].strip() == told and told in html.text
    assert len(html.links) == 1 + 6 + 3 + 1  # chart, curves, sheets of G1 to G3 and, end to end, of G3

    lost = next(path for path, record in psl.items() if record["settings"]["seed"] == 1)
    lost.unlink()
    (command,) = commands_of(*rows)  # its pre-training is there, so the evaluation alone
    assert "recipes/linear_probe.py" in command and "--seed 1" in command
    left = [record["numbers"]["top1_B4"] for path, record in psl.items() if path != lost]
    page = rendered(runs, out, capsys, *words)[1]
    assert f"{statistics.mean(left):.1f} ± {statistics.stdev(left):.1f} (2)" in page
    paste(command)
    again = rendered(runs, out, capsys, *words)[1]
    assert told in again and not commands_of(*rows)
