"""The commands of what a table misses: each can be parsed, and makes what is missing."""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastpsl.commands.labels import NUM_CLASSES, PCA_WIDTH, SIZE_PX
from fastpsl.evaluation.trained_run import TrainedRun
from fastpsl.pipelines.views import Input
from fastpsl.scripts.command_line import option_words
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.tables import matching
from fastpsl.tables.data_sets import inputs
from fastpsl.tables.matching import Missing, Place, _name, needs_of
from fastpsl.tables.paper_file import TABLES
from fastpsl.tables.report import make_report
from fastpsl.tables.results import index_runs
from fastpsl.tables.rows import CLUSTERS, RETRIEVAL, TSNE, Evaluation, Weights
from fastpsl.tables.scales import FREE, SCALES, Scale, plain
from tests.programs import ROOT
from tests.slow import nightly
from tests.tables.table_results import (
    END_TO_END,
    GIVEN,
    PAPER,
    PSL,
    TINY,
    commands_of,
    effective,
    missing_of,
    of_made_permutations,
    parsed,
    parsed_command,
    put,
    put_run,
    put_trained,
    report,
)


def test_a_jigsaws_science_holds_its_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["jigsaw_r50", "--backbone", "resnet18", "--counts", "16", "32", "64"])
    made: Any = find_recipe("jigsaw_r50")
    experiment = made.build(made.parse())
    assert experiment.science["permutations"] == TINY.training_science(PSL)["permutations"]
    assert experiment.science["permutations"] != PAPER.training_science(PSL)["permutations"]


EACH_SCALE = [
    pytest.param(scale, id=name, marks=() if scale == PAPER else pytest.mark.slow)
    for name, scale in SCALES.items()
]


# In `make test` and `make test-all` a table of each paper, and one of each kind of evaluation.
QUICK = ("psl/5", "psl/8", "uic/2", "uic/6", "sslpp/3", "sslpp/fig4", "sslpp/13")


@pytest.mark.parametrize("table", [table if table in QUICK else nightly(table) for table in TABLES])
@pytest.mark.parametrize("scale", EACH_SCALE)
def test_every_command_parses_and_makes_what_is_missing(
    table: str, scale: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("fastpsl.evaluation.trained_run.require_existing", lambda *_: None)
    monkeypatch.setattr("fastpsl.evaluation.options.require_paths", lambda _: None)  # no data is here
    scale = replace(scale, seeds=scale.seeds[:2][-1:])  # the commands of other seeds are the same
    runs = tmp_path / "my runs"
    runs.mkdir()
    made = report(runs, table, scale)
    assert made.num_needed == len(needs_of(TABLES[table])) * len(scale.seeds)
    outs: list[Path] = []
    folders: dict[tuple[Weights, int], Path] = {}
    labels: dict[Path, tuple[str, int]] = {}
    for missing in made.missing:
        weights, folder = missing.weights, None
        learned = "P.beton" if TABLES[table].pretrains_elsewhere and not weights.with_labels else "T.beton"
        commands = [*missing.commands]
        if commands[0].startswith("fastpsl labels"):
            made_labels = parsed_command(commands.pop(0))
            labels[made_labels.out] = made_labels.source, made_labels.seed
            assert made_labels.data == learned and runs == made_labels.out.parent  # a folder that is there
            wanted = scale.label_science(made_labels.source)
            usual = {"num_clusters": NUM_CLASSES, "pca_width": PCA_WIDTH, "size_px": SIZE_PX}
            given = vars(made_labels) | vars(made_labels.extraction)
            values = usual | {name: value for name, value in given.items() if value}
            assert {key: values[key] for key in wanted} == wanted
        if weights.recipe:
            name, options = parsed(commands.pop(0))
            wanted = scale.training_science(weights)
            science = options.science() | {"recipe": name}
            if name == "jigsaw_r50":
                science["permutations"] = of_made_permutations(options.grid**2, options.counts)
            if name == "supervised":
                science["crop"] = options.crop
            assert {key: science[key] for key in wanted} == wanted
            assert options.seed == missing.seed and (options.data, options.val) == (learned, "V.beton")
            base, given = getattr(options, "fine_tune", None), getattr(options, "pseudo_labels", None)
            # The command of the training that this one needs came before.
            assert base == (folders[weights.base, missing.seed] if weights.base else None)
            if isinstance(weights.labels, Weights):
                assert Path(str(given)) == folders[weights.labels, missing.seed] / "labels.npz"
            elif weights.label_file:
                assert labels[Path(str(given))] == (weights.label_file, missing.seed)
            else:
                assert given in (weights.labels, "none")
            folder = folders[weights, missing.seed] = options.out
            put_trained(folder, options.data, options.val, scale.input_of(weights))
            outs.append(options.out)
        for command, evaluation in zip(commands, missing.evaluations, strict=True):
            outs.append(check_evaluation(command, evaluation, missing, folder, scale))
    assert len(set(outs)) == len(outs) and all(runs in out.parents for out in outs)


def check_evaluation(
    command: str, evaluation: Evaluation, missing: Missing, folder: Path | None, scale: Scale
) -> Path:
    """Check that a command makes this evaluation, and return the folder that it writes to."""
    wanted, weights = scale.evaluation_settings(evaluation), missing.weights
    run = None if folder is None else TrainedRun.of(folder)
    options: Any
    if not evaluation.command:
        name, options = parsed(command)
        given = {"data": "T.beton", "val": "V.beton"} if not evaluation.reads else inputs(evaluation, {})
        assert name == evaluation.recipe and (options.data, options.val) == (given["data"], given.get("val"))
        for flag in ("proposals", "sbd"):
            assert paths(getattr(options, flag, None)) == paths(given.get(flag))
        values = effective(options)
        assert {key: values[key] for key in wanted} == wanted
        input_record = options.given_input()
        assert input_record in (None, Input.usual(weights.channels, options.size_px))
    else:
        options = parsed_command(command)
        assert command.startswith(f"fastpsl {evaluation.recipe} ")
        if evaluation == CLUSTERS:
            assert run and (options.run_or_file, options.labels) == (folder, None)
            assert options.data is options.out is None and run.train_images() == "T.beton"
            return run.folder / "clusters"
        usual = {"size_px": scale.input_of(weights)["size_px"] if folder else 224, "perplexity": 30.0}
        given = {name: value for name, value in vars(options.extraction).items() if value is not None}
        values = {**vars(options), **usual, **given}
        assert {key: values[key] for key in wanted} == wanted
        if evaluation == RETRIEVAL:
            gallery = options.gallery or (run and run.train_images())
            assert (gallery, options.queries or (run and run.val_images())) == ("T.beton", "V.beton")
        else:
            data = options.data or (run and run.scored()[0])
            assert evaluation == TSNE and data == "V.beton"
        input_record = None
        options = SimpleNamespace(**values)
    assert options.seed == missing.seed
    assert (options.checkpoint, options.random_weights) == (folder and str(folder), folder is None)
    if folder is None:
        assert options.backbone == weights.backbone
        assert (input_record.channels if input_record else "RGB") == weights.channels
    return Path(options.out)


def paths(given: Any) -> list[str]:
    return [str(path) for path in (given if isinstance(given, tuple) else [given]) if path]


NEEDED = [need[0] for table in TABLES.values() for need in needs_of(table)]
RECIPES = {one.recipe for weights in NEEDED for one in (weights, weights.before) if one and one.recipe}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_value_that_a_recipe_knows_is_compared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new option of a recipe is compared, too; otherwise results that differ in it would be averaged."""
    monkeypatch.setattr(sys, "argv", [name, "--data", "x"])
    science = find_recipe(name).parse().science()
    weights = Weights("resnet50", name, "psl")
    for scale in SCALES.values():
        known = set(science) | ({"crop"} if name == "supervised" else set())  # its job's science has it
        assert known - FREE == set(scale.training_science(weights)) - {"recipe", "permutations"}
    for option, value in find_recipe(name).paper.items():
        if option not in ("backbone", "plan"):
            assert plain(PAPER.recipe_values(name)[option]) == plain(value), option


EVALUATIONS = {need[1] for table in TABLES.values() for need in needs_of(table) if not need[1].command}


@pytest.mark.parametrize("evaluation", sorted(EVALUATIONS, key=str), ids=lambda one: one.name)
def test_every_value_that_an_evaluation_knows_is_compared(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = option_words(PAPER.evaluation_flags(evaluation))
    monkeypatch.setattr(sys, "argv", [evaluation.recipe, "--data", "x", *chosen])
    options = find_recipe(evaluation.recipe).parse()
    for scale in SCALES.values():
        assert set(options.science()) - FREE == set(scale.evaluation_settings(evaluation))
    values = effective(options)
    for name, value in PAPER.evaluation_settings(evaluation).items():
        assert values[name] == value, name


def test_folders_of_different_weights_have_different_names() -> None:
    of_folders: dict[str, set[Weights]] = {}
    for table in TABLES.values():
        needed = [one for need in needs_of(table) for one in (need[0], need[0].before) if one]
        of_folders.setdefault(table.folder, set()).update(needed)
    for weights in of_folders.values():
        assert len({_name(one, 0) for one in weights}) == len(weights)


def test_the_commands_of_table_5_fit_into_100_columns(tmp_path: Path) -> None:
    place = Place(Path("runs"), 8)
    made = make_report(TABLES["psl/5"], PAPER, index_runs(tmp_path), {}, place)
    commands = [command for one in made.missing for command in one.commands]
    assert len(commands) == 10 and max(map(len, commands)) <= 100
    assert commands[:2] == [
        "fastpsl train supervised --gpus 8 --data TRAIN --val VAL --out runs/psl/supervised",
        "fastpsl eval linear runs/psl/supervised --gpus 8 --out runs/psl/supervised-linear",
    ]


def test_a_preset_is_given_where_the_number_of_images_would_choose_another(tmp_path: Path) -> None:
    def presets(table: str, scale: Scale = PAPER, **num_images: int) -> set[str]:
        made = report(tmp_path, table, scale, num_images=num_images)
        commands = [one.commands[0] for one in made.missing]
        return {"".join(re.findall("--preset [a-z]+", line)) for line in commands if " train " in line}

    assert presets("psl/5") == presets("psl/5", train=100_000) == {""}
    assert presets("psl/5", train=99_999) == presets("sslpp/3") == {"--preset paper"}
    assert presets("psl/5", TINY) == {"--preset sample"}
    # The supervised network learns from STL-10's few, the others from many.
    assert presets("sslpp/3-stl") == {"", "--preset paper"}


@pytest.mark.parametrize(
    ("val", "given", "is_spelled"),
    [
        ("V.beton", GIVEN, False),
        ("V.beton", {}, False),
        ("V.beton", {"train": "other.beton"}, True),
        ("V.beton", {"val": "other.beton"}, True),
        ("10%", {}, True),
        (None, {}, True),
    ],
)
def test_data_are_given_where_the_run_has_others(
    val: str | None, given: dict[str, str], is_spelled: bool, tmp_path: Path
) -> None:
    put_run(tmp_path, "x", options={"data": "T.beton", "val": val})
    (command,) = commands_of(report(tmp_path, given=given), "PSL")
    words = f"--data {given.get('train', 'TRAIN')} --val {given.get('val', 'VAL')} "
    assert (words in command) == is_spelled == ("--data" in command)


def test_a_finished_pre_training_is_not_run_again(tmp_path: Path) -> None:
    folder = put_run(tmp_path, "deep/my jigsaw")
    first, second, third = missing_of(tmp_path, PSL)
    assert (
        first.seed == 0 and len(first.commands) == 1 and first.commands[0].startswith("fastpsl eval linear ")
    )
    assert f"eval linear {shlex.quote(str(folder))} --" in first.commands[0]
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
    put_run(tmp_path, "psl-tiny/jigsaw", **change)
    first = next(one for one in missing_of(tmp_path, PSL) if one.seed == 0)
    assert len(first.commands) == 2
    assert f"--out {tmp_path}/psl-tiny/jigsaw-2" in first.commands[0]
    assert f"eval linear {tmp_path}/psl-tiny/jigsaw-2" in first.commands[1]


def test_a_run_that_was_begun_goes_on_with_what_it_has_chosen(tmp_path: Path) -> None:
    """Between results these options are free, but a run with others would not be resumed."""
    chosen: dict[str, Any] = {"precision": "bf16", "order": "quasi_random", "lanes": 8}
    folder = put_run(tmp_path, "begun", state="preempted", **chosen)
    (command, _) = missing_of(tmp_path, PSL)[0].commands
    assert command.endswith(f"--precision bf16 --order quasi_random --lanes 8 --out {folder}")
    assert "--apex" not in command


def test_a_recorded_word_is_no_option_of_a_command(tmp_path: Path) -> None:
    """Neither a value of a run's science nor a folder whose name begins with a dash."""
    put_run(tmp_path, "begun", state="preempted", order="--init=x; y", precision="bf16")
    (command, _) = missing_of(tmp_path, PSL)[0].commands
    assert "'--order=--init=x; y'" in command and "--precision bf16" in command
    made = matching._command("eval knn", [Path("-runs/a b")], {"out": Path("-o"), "data": None})
    assert made == "fastpsl eval knn './-runs/a b' --out=-o"


def test_a_deleted_result_is_missing_again(tmp_path: Path) -> None:
    paths = [put(tmp_path, weights, seed=seed) for weights in (PSL, END_TO_END) for seed in TINY.seeds]
    assert not missing_of(tmp_path, PSL) and not missing_of(tmp_path, END_TO_END)
    paths[1].unlink()
    (only,) = missing_of(tmp_path, PSL)
    assert only.seed == 1 and not missing_of(tmp_path, END_TO_END)
