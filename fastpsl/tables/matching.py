"""Choose the results and the training runs that a table may use, and write the commands of what is missing.

Results are of its rows, of its scale and of one data set, and nothing has cut them short.
"""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

from fastpsl.console.words import pasted
from fastpsl.engine.options import INITIAL_WEIGHTS, PretrainOptions
from fastpsl.pipelines.interface.identity import same_data
from fastpsl.pipelines.views import Input
from fastpsl.scripts.command_line import option_words
from fastpsl.scripts.presets import SMALL_BELOW
from fastpsl.scripts.recipe_files import EVAL, TRAIN, find_recipe
from fastpsl.tables import data_sets
from fastpsl.tables.paper_file import TABLES
from fastpsl.tables.results import Result, RunIndex
from fastpsl.tables.rows import CLUSTERS, COUPLED, NO_LABELS, RETRIEVAL, Evaluation, Table, Weights
from fastpsl.tables.runs import Run
from fastpsl.tables.scales import COMMANDS, Scale, Values, usual_values
from fastpsl.tasks.pseudo_labels.file import NAME as LABELS_NAME


def training_differences(science: Mapping[str, Any], weights: Weights, scale: Scale) -> list[str]:
    """Return why a run with this science has not made the weights; empty if it has.

    The backbone is not compared, because a result records it itself.
    """
    wanted = {name: value for name, value in scale.training_science(weights).items() if name != "backbone"}
    reasons = differences("pre-trained", science, wanted)
    if "labels" in science:
        reasons.append("pre-trained on labels of a file")
    if INITIAL_WEIGHTS in science:
        reasons.append("pre-trained from weights that were given")
    reasons += _label_differences(science, weights, scale)
    if weights.base is None:
        return [*reasons, "fine-tuned"] if "fine_tune" in science else reasons
    base = science.get("fine_tuned")
    if base is None:
        return [*reasons, "pre-trained without saying what it fine-tunes"]
    if not same_data(str(base.get("data_digest")), str(science.get("data_digest"))):
        reasons.append("fine-tuned on other images")
    of_base = training_differences(base, weights.base, scale)
    return reasons + [f"before it was fine-tuned: {reason}" for reason in of_base]


def label_source(science: Mapping[str, Any]) -> str:
    """Return the source of the pseudo-labels of a run: iic, coupled, true, random, k-means or none."""
    return str((science.get("pseudo_labels") or {}).get("source", NO_LABELS))


def _label_differences(science: Mapping[str, Any], weights: Weights, scale: Scale) -> list[str]:
    """Return how the pseudo-labels of a run differ from those of the weights."""
    labels, record = weights.labels, science.get("pseudo_labels") or {}
    if label_source(science) != weights.label_source:
        return [f"pre-trained with pseudo-labels {label_source(science)}, here {weights.label_source}"]
    if labels is None or labels == COUPLED:  # an option of the run has the number of coupled classes
        return []
    reasons = differences("its pseudo-labels made", record, scale.label_science(labels))
    if record.get("cut"):
        reasons.append("its pseudo-labels made by a run that --max-steps-per-stage cut short")
    if record.get("seed", science.get("seed")) != science.get("seed"):
        reasons.append(f"its pseudo-labels of seed {record['seed']}, its own is {science.get('seed')}")
    learned = str(science.get("data_digest"))
    if not same_data(str(record.get("data_digest", learned)), learned):
        reasons.append("its pseudo-labels made from other images")
    return reasons


def differences(what: str, given: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return a reason for each wanted value that is missing or different."""
    reasons = list[str]()
    for name, value in wanted.items():
        if name not in given:
            reasons.append(f"{what} without saying {name}")
        elif given[name] != value:
            reasons.append(f"{what} with {name} {value_words(given[name])}, here {value_words(value)}")
    return reasons


def value_words(value: Any) -> str:
    """Return a value of an option, or several."""
    return " ".join(map(str, value)) or "default" if isinstance(value, list | tuple) else str(value)


Need = tuple[Weights, Evaluation]
# The commands of the recipes, such as "train jigsaw".
_COMMANDS = {
    stem: f"{verb} {name}"
    for verb, names in (("train", TRAIN), ("eval", EVAL))
    for name, stem in names.items()
}  # fmt: skip
# Settings of older evaluations that do not record them.
_UNSAID = {"whole": False}


@dataclass
class Matches:
    """The results of a folder, sorted by whether a table uses them."""

    used: dict[Need, dict[int, Result]] = field(default_factory=dict)  # by seed
    unused: dict[Path, str] = field(default_factory=dict)  # the reason for each that comes near a row
    num_other: int = 0  # of results that belong to no row of this table
    data: data_sets.Digests = field(default_factory=dict)  # of the results that count


def needs_of(table: Table) -> list[Need]:
    """Return each pair of weights and evaluation that the table is measured on, in the order of its rows."""
    return list(dict.fromkeys((measure.weights, measure.evaluation) for measure in table.measures))


def match(table: Table, scale: Scale, index: RunIndex, asked: data_sets.Digests) -> Matches:
    """Sort the results by whether a table uses them."""
    matches = Matches(unused=dict(index.unreadable))
    fitting: list[tuple[Need, Result]] = []
    for result in index.results:
        need, reasons = closest(result, table, scale)
        if need is not None and not reasons:
            if reason := _missing_numbers(result, need, table):
                matches.unused[result.path] = reason
            else:
                fitting.append((need, result))
        elif need is None or _of_another_table(result, scale):
            matches.num_other += 1
        else:
            matches.unused[result.path] = "; ".join(reasons)
    all_weights = {weights for need in needs_of(table) for weights in (need[0], need[0].before) if weights}
    of_results = [(data_sets.data_of(result, table, need[1]), result.path) for need, result in fitting]
    of_runs = [
        (data_sets.learned_from(run, weights, table), run.folder)
        for run in index.runs
        for weights in all_weights
        if trains(run, weights, scale)
    ]
    matches.data = data_sets.one_data_set(of_results, of_runs, asked)
    for need, result in sorted(fitting, key=lambda pair: str(pair[1].record.get("date"))):
        if not data_sets.agree(data := data_sets.data_of(result, table, need[1]), matches.data):
            parts = "train/val/pre-training" if "pretrain" in data else "train/val"
            matches.unused[result.path] = f"of other images ({data_sets.in_words(data)}, {parts})"
            continue
        seeds = matches.used.setdefault(need, {})
        if (older := seeds.get(result.seed)) is not None:
            matches.unused[older.path] = f"the same seed again, and {result.path} is newer"
        seeds[result.seed] = result
    return matches


def _missing_numbers(result: Result, need: Need, table: Table) -> str:
    """Return why a result cannot fill the table's cells; empty if it has all their numbers."""
    measures = [each for each in table.measures if (each.weights, each.evaluation) == need]
    missing = {name for each in measures for name in each.numbers} - result.record["numbers"].keys()
    is_top5 = any(name.startswith("top5") for name in missing)
    cause = ": top-5 needs more than five classes" if is_top5 else ""
    return f"it has no {', '.join(sorted(missing))}{cause}" if missing else ""


def _of_another_table(result: Result, scale: Scale) -> bool:
    nearest = (closest(result, other, scale) for other in TABLES.values())
    return any(need is not None and not reasons for need, reasons in nearest)


def closest(result: Result, table: Table, scale: Scale) -> tuple[Need | None, list[str]]:
    """Return the need of a table that a result comes nearest to, if any, and why it does not fit."""
    nearest: tuple[Need | None, list[str]] = (None, [])
    record, science = result.record, result.science
    found = (record["recipe"], record["protocol"], science.get("recipe"), label_source(science))
    for need in needs_of(table):
        weights, evaluation = need
        origin = (evaluation.recipe, evaluation.protocol, weights.recipe, weights.label_source)
        if origin != found:
            continue
        if weights.recipe is None and result.record["checkpoint"].get("kind") != "random":
            continue  # these are others' weights
        reasons = mismatches(result, need, table, scale)
        if nearest[0] is None or len(reasons) < len(nearest[1]):
            nearest = need, reasons
    return nearest


def mismatches(result: Result, need: Need, table: Table, scale: Scale) -> list[str]:
    """Return why a result does not fit a need; empty if it does."""
    weights, evaluation = need
    reasons = ["cut short by --max-steps-per-stage"] if result.record["cut"] else []
    checkpoint = result.record["checkpoint"]
    backbone = checkpoint.get("backbone")
    if backbone != weights.backbone:
        reasons.append(f"backbone {backbone}, here {weights.backbone}")
    if weights.recipe is not None:
        reasons += training_differences(result.science, weights, scale)
        reasons += _wrong_images(result, need, table)
    if same_data(*map(str, result.data)):
        reasons.append("scored on the images that it learned from")
    channels = (checkpoint.get("input") or {}).get("channels", "RGB")
    if channels != scale.channels(weights):
        reasons.append(f"its network sees {channels}, here {scale.channels(weights)}")
    settings = result.record["settings"]
    if settings.get("shared_images") and settings["shared_images"] == result.record["data"].get("num_val"):
        reasons.append("scored on images that it learned from, by their stored bytes")
    labels, made = (Path(str(each)) for each in (settings.get("labels"), checkpoint.get("path")))
    if evaluation == CLUSTERS and labels.parent != made.parent.parent:
        reasons.append("of other labels than its run left")
    return reasons + differences("evaluated", _UNSAID | settings, scale.evaluation_settings(evaluation))


def _wrong_images(result: Result, need: Need, table: Table) -> list[str]:
    """Return why the images of the pre-training are not the right ones beside those of the evaluation."""
    weights, evaluation = need
    learned, (train, val) = str(result.science.get("data_digest")), map(str, result.data)
    if evaluation.reads or (table.pretrains_elsewhere and not weights.with_labels):
        images = "other ones" if evaluation.reads else "more than those to train with"
        reason = f"pre-trained on the images that it was evaluated on: here, on {images}"
        return [reason] if same_data(learned, train) or same_data(learned, val) else []
    is_same = same_data(learned, train)
    return [] if is_same else ["pre-trained on other images than it was evaluated on"]


def trains(run: Run, weights: Weights, scale: Scale) -> bool:
    """Return whether a run has made the weights, or makes them when it is resumed."""
    if weights.recipe is None or run.is_cut or (run.written_state == "finished" and not run.can_be_evaluated):
        return False
    has_backbone = run.science.get("backbone") == weights.backbone
    return has_backbone and not training_differences(run.science, weights, scale)


def runs_for(
    weights: Weights, scale: Scale, runs: Iterable[Run], data: data_sets.Digests, table: Table
) -> dict[int, Run]:
    """Return the run that makes the weights, by seed.

    A finished run comes before one that has only begun; of several, the last by path counts.
    """
    able = [run for run in runs if trains(run, weights, scale)]
    fitting = [run for run in able if data_sets.agree(data_sets.learned_from(run, weights, table), data)]
    fitting.sort(key=lambda run: (run.written_state == "finished", str(run.folder)), reverse=True)
    return dict(sorted({run.seed: run for run in fitting}.items()))


@dataclass(frozen=True)
class Place:
    """The folder of runs, the number of GPUs, and the data that commands name.

    `given` has the user's data, and `num_images` the number of those that are here, by part: "train", "val"
    and "pretrain", from which trainings without labels learn in tables that have a set for that. `others` has
    the paths of the data that evaluations read instead of these, by the name in OTHER_DATA.
    """

    runs: Path
    num_processes: int
    given: Mapping[str, str] = field(default_factory=dict)
    num_images: Mapping[str, int] = field(default_factory=dict)
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def data(self, part: str) -> str:
        """Return the path of a part, or the word that stands for it."""
        return self.given.get(part, part.upper())


@dataclass(frozen=True)
class Missing:
    """A pre-training with the evaluations that are missing, and the commands in order.

    Without evaluations only another training needs it, to fine-tune it or to learn its pseudo-labels. `run`
    is None if it has not begun.
    """

    weights: Weights
    seed: int
    evaluations: tuple[Evaluation, ...]
    run: Run | None
    commands: tuple[str, ...]


def missing_runs(
    table: Table, scale: Scale, matches: Matches, index: RunIndex, place: Place
) -> list[Missing]:
    """Return what is missing, by weights and seed, in the order to run it.

    Each number needs as many seeds as the scale has. Seeds of runs that exist come first.
    """
    evaluations_of: dict[tuple[Weights, int], list[Evaluation]] = {}
    runs: dict[Weights, dict[int, Run]] = defaultdict(dict)
    for weights, evaluation in needs_of(table):
        before = weights.before
        for training in filter(None, (weights, before)):
            runs[training] = runs_for(training, scale, index.runs, matches.data, table)
        used = matches.used.get((weights, evaluation), {})
        seeds_of_runs = sorted(runs[weights], key=lambda seed: not runs[weights][seed].can_be_evaluated)
        seeds_of_runs += list(runs[before]) if before else []
        seeds = [seed for seed in dict.fromkeys([*seeds_of_runs, *scale.seeds]) if seed not in used]
        for seed in sorted(seeds[: max(0, len(scale.seeds) - len(used))]):
            if before and not (_is_done(runs[weights], seed) or _is_done(runs[before], seed)):
                evaluations_of.setdefault((before, seed), [])
            evaluations_of.setdefault((weights, seed), []).append(evaluation)
    writer = _Writer(table, scale, runs, index, place)
    return [
        Missing(weights, seed, tuple(some), runs[weights].get(seed), writer.commands(weights, seed, some))
        for (weights, seed), some in evaluations_of.items()
    ]


def _is_done(runs: Mapping[int, Run], seed: int) -> bool:
    return seed in runs and runs[seed].can_be_evaluated


@dataclass(frozen=True)
class _Writer:
    """A writer of one table's commands, which knows the runs of each training by seed."""

    table: Table
    scale: Scale
    runs: Mapping[Weights, Mapping[int, Run]]
    index: RunIndex
    place: Place
    label_files: set[Path] = field(default_factory=set)  # that earlier commands write

    def commands(self, weights: Weights, seed: int, evaluations: Iterable[Evaluation]) -> tuple[str, ...]:
        """Return the commands of the labels, the training and the evaluations that are missing."""
        folder = self._folder(weights, seed) if weights.recipe else None
        commands = []
        if weights.recipe and folder and not _is_done(self.runs[weights], seed):
            commands += self._labels(weights, seed)
            data = {"data": self.place.data(self._learns_from(weights)), "val": self.place.data("val")}
            options = self._training(weights, seed)
            changed = _changed(options, usual_values(weights.recipe, options))
            gpus = self._gpus(self.place.num_processes)
            commands.append(_command(_COMMANDS[weights.recipe], [], gpus | data | changed | {"out": folder}))
        commands += [self._evaluation(weights, seed, evaluation, folder) for evaluation in evaluations]
        return tuple(commands)

    def _folder(self, weights: Weights, seed: int) -> Path:
        """Return the folder of the training's run, which may not exist yet."""
        run = self.runs[weights].get(seed)
        return run.folder if run else self._free(_name(weights, seed), None)

    def _training(self, weights: Weights, seed: int) -> dict[str, Any]:
        options: dict[str, Any] = {"backbone": weights.backbone, "plan": weights.plan, "seed": seed}
        images, part = self.table.images, self._learns_from(weights)
        of_paper = images.num_pretrain if part == "pretrain" else images.num_train
        if self.scale.of_sample:
            options["preset"] = "sample"
        elif self.place.num_images.get(part, of_paper or 0) < SMALL_BELOW:
            options["preset"] = "paper"  # which so few images would not choose
        if weights.base:
            options["fine_tune"] = self._folder(weights.base, seed)
        if isinstance(weights.labels, Weights):
            options["pseudo_labels"] = self._folder(weights.labels, seed) / LABELS_NAME
        elif source := weights.label_file:
            options["pseudo_labels"] = self._label_file(source, seed)
        elif weights.labels:
            options["pseudo_labels"] = COUPLED
        return options | self.scale.training_flags(weights) | _of_begun(self.runs[weights].get(seed))

    def _evaluation(self, weights: Weights, seed: int, evaluation: Evaluation, folder: Path | None) -> str:
        run, source = ([folder], {}) if folder else ([], _random(weights))
        out = self._free(_name(weights, seed, evaluation), str(folder) if folder else None)
        if evaluation == CLUSTERS:
            assert folder
            data = self._data(weights, seed, data=self._learns_from(weights))
            is_free = self._is_free(folder / evaluation.name, None)  # where it goes by itself
            return _command("clusters", run, {**data, "out": None if is_free else out})
        values = self.scale.evaluation_values(evaluation)
        options = source | {"seed": seed} | self.scale.evaluation_flags(evaluation)
        if "size_px" in values:  # the run may have another
            options["size_px"] = values["size_px"]
        rest = _changed(options, self.scale.usual_values_on(weights, evaluation)) | {"out": out}
        if evaluation == RETRIEVAL:
            data = self._data(weights, seed, gallery="train", queries="val")
        elif evaluation.command:
            data = self._data(weights, seed, data="val")
        elif evaluation.reads:
            data = data_sets.inputs(evaluation, self.place.others)
        else:
            data = self._data(weights, seed, data="train", val="val")
        if evaluation.command:
            return _command(evaluation.recipe, run, data | rest)
        gpus = self._gpus(values["batch_size"] // values.get("accumulate", 1))
        return _command(_COMMANDS[evaluation.recipe], run, gpus | data | rest)

    def _gpus(self, at_most: int) -> dict[str, Any]:
        num = min(self.place.num_processes, at_most)
        return {"gpus": num} if num > 1 else {}

    def _data(self, weights: Weights, seed: int, **parts: str) -> dict[str, str]:
        """Return the options of an evaluation's data; none where the run itself names what is wanted."""
        learned, given, of_run = self._learns_from(weights), self.place.given, dict[str, str]()
        if weights.recipe and _is_done(self.runs[weights], seed):
            of_run = self.runs[weights][seed].data(learned)
        elif weights.recipe:
            of_run = {part: self.place.data(part) for part in (learned, "val")}
        same = {part for part, path in of_run.items() if given.get(part, path) == path}
        if same.issuperset(parts.values()):
            return {}
        return {name: self.place.data(part) for name, part in parts.items()}

    def _labels(self, weights: Weights, seed: int) -> list[str]:
        """Return the command that writes the pseudo-labels, if one is needed."""
        if not (source := weights.label_file):
            return []
        path = self._label_file(source, seed)
        if path in self.label_files or path.exists():
            return []
        self.label_files.add(path)
        options = {"seed": seed, **self.scale.label_flags(source)}
        changed = _changed(options, {"seed": 0, **COMMANDS[f"labels/{source}"]})
        data = self.place.data(self._learns_from(weights))
        return [_command("labels", [source], {"data": data, "out": path, **changed})]

    def _label_file(self, source: str, seed: int) -> Path:
        name = f"{self._folder_name}-labels-{source}" + (f"-s{seed}" if seed else "")
        return self.place.runs / f"{name}.npz"

    def _learns_from(self, weights: Weights) -> str:
        return "pretrain" if self.table.pretrains_elsewhere and not weights.with_labels else "train"

    @property
    def _folder_name(self) -> str:
        return f"{self.table.folder}-{self.scale.name}" if self.scale.of_sample else self.table.folder

    def _free(self, name: str, checkpoint: str | None) -> Path:
        """Return a folder with this name, and with a number if something else is there.

        The folder of an evaluation of `checkpoint` that was begun is free for this evaluation.
        """
        preferred = self.place.runs / self._folder_name / name
        numbered = (preferred.with_name(f"{preferred.name}-{number}") for number in count(2))
        return next(folder for folder in chain([preferred], numbered) if self._is_free(folder, checkpoint))

    def _is_free(self, folder: Path, checkpoint: str | None) -> bool:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return True
        there = [run for run in self.index.runs if run.folder == folder and not run.is_cut]
        begun = [run.options.get("checkpoint") for run in there if run.written_state != "finished"]
        return checkpoint is not None and checkpoint in begun


def _name(weights: Weights, seed: int, evaluation: Evaluation | None = None) -> str:
    """Return the name of a folder: the words of its command that are not usual."""
    usual = usual_values(weights.recipe, {}) if weights.recipe else {"plan": None}
    labels = weights.labels
    if isinstance(labels, Weights):
        labels = "_".join(filter(None, (labels.kind, labels.variant)))
    words = [
        _COMMANDS[weights.recipe].split()[1].removeprefix("sslpp-") if weights.recipe else "random",
        "" if weights.plan == usual["plan"] else str(weights.plan).replace("end_to_end", "e2e"),
        weights.variant,
        labels,
        "" if weights.channels == "RGB" else weights.channels,
        "" if weights.backbone == usual.get("backbone") else weights.backbone,
        f"s{seed}" if seed else "",
    ]
    if evaluation is not None:
        kind, _, protocol = evaluation.name.partition("/")
        is_usual = not evaluation.command and protocol == find_recipe(evaluation.recipe).paper.get("protocol")
        words += [kind, "" if is_usual else protocol]
    return "-".join(dict.fromkeys(filter(None, words)))


def _changed(options: Values, usual: Values) -> dict[str, Any]:
    """Return the options that a command must give."""
    return {name: value for name, value in options.items() if name not in usual or value != usual[name]}


def _random(weights: Weights) -> dict[str, Any]:
    """Return the options of an evaluation of random weights."""
    options: dict[str, Any] = {"random_weights": True, "backbone": weights.backbone}
    if weights.channels != "RGB":
        record = Input.usual(weights.channels, size_px=224)
        options |= {"input_channels": record.channels, "input_mean": record.mean, "input_std": record.std}
    return options


def _of_begun(run: Run | None) -> dict[str, Any]:
    """Return the options of a begun run that a table leaves open; it resumes with no others."""
    if run is None:
        return {}
    usual = PretrainOptions().science()
    names = ("precision", "order", "lanes", "apex")
    return {n: run.science[n] for n in names if n in run.science and run.science[n] != usual[n]}


def _command(name: str, arguments: Iterable[Any], options: Mapping[str, Any]) -> str:
    """Return a command of `fastpsl`."""
    return " ".join(["fastpsl", name, *map(pasted, arguments), *map(shlex.quote, option_words(options))])
