"""The parts of docs/project/model_zoo.md that are made of docs/runs: experiments and weights."""

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.evidence.best_blocks import stem_of
from bench.evidence.claims import block, evaluation_in_words, points
from bench.evidence.weights import RULE, gains
from bench.program import counted
from docs.reference.generate.recipe_pages import DOCS, pages_of_recipes
from fastpsl.files.digest import sha256_of_file
from fastpsl.models.export import table_row
from fastpsl.scripts.recipe_files import EVAL, TRAIN
from fastpsl.tables.templates import templates

Record = Mapping[str, Any]
PARTS = ("experiments", "weights")
_HEADER = ("recipe", "experiment", "number", "mean in %", "weights")


def zoo(runs: Path, experiments: Mapping[str, Record]) -> dict[str, str]:
    """Return the parts by name.

    Args:
        runs: docs/runs.
        experiments: Name → results.json.
    """
    names = {file: name for name, file in TRAIN.items()} | {"distilling": "distill"}
    pages = {name: f"/docs/{path.relative_to(DOCS).as_posix()}" for name, path in pages_of_recipes().items()}
    rows, files = [table_row(_HEADER), table_row(["---"] * len(_HEADER))], list[Record]()
    refused = list[str]()
    for experiment, results in experiments.items():
        if not (results["means"] or results["beside"]):
            continue
        commands = [word for one in results["training"] for word in one["command"].split()]
        scripts = [Path(word).stem for word in dict.fromkeys(commands) if word.endswith(".py")]
        recipes = list(dict.fromkeys(names[script] for script in scripts if script in names))
        by = evaluation_in_words(results["endpoint"]["evaluation"])
        here = [one | _cells(one, results, by) for one in certificates(runs / experiment, results)]
        links = (
            ", ".join(f"[`{recipe}`]({pages[recipe]})" for recipe in recipes) or _evaluated(results),
            f"[{results['title']}](/docs/runs/{experiment}/results.json)",
            f"top-1 by {by}, {_blocks(results)}; {_seeds(results)}",
            _means(results),
            ", ".join(f"[{one['arm']}]({one['path']})" for one in here) or "not published",
        )
        rows.append(table_row(links))
        files += here
        refused += [
            f"`{gain.arm}` of {experiment} {points(gain.mean, gain.interval)}"
            for gain in (gains(results) if here else ())
            if not gain.is_above
        ]
    template = templates(Path(__file__).parent).get_template("weights.md.jinja")
    return {
        "experiments": "\n".join(rows),
        "weights": template.render(files=files, refused=refused, rule=RULE).strip(),
    }


def _evaluated(results: Record) -> str:
    """Return the evaluations of an experiment that has no training."""
    names = {file: name for name, file in EVAL.items()}
    scripts = [Path(one["command"].split()[0]).stem for one in (*results["scores"], *results["beside"])]
    return ", ".join(f"`eval {names[script]}`" for script in dict.fromkeys(scripts) if script in names)


def certificates(folder: Path, results: Record) -> Iterator[dict[str, Any]]:
    """Yield the certificates of an experiment's folder with their gains; ValueError for a refuted one."""
    paths = sorted(folder.glob("*.safetensors.json"))
    found = {gain.arm: gain for gain in gains(results)} if paths else {}
    for path in paths:
        certificate, weights = json.loads(path.read_text()), path.with_suffix("")
        if sha256_of_file(weights) != certificate["sha256"]:
            raise ValueError(f"{weights}: its SHA-256 is not that of its certificate; make both again")
        is_of_plan, gain = certificate["plan_sha256"] == results["plan_sha256"], found.get(certificate["arm"])
        if not (is_of_plan and gain and gain.is_above):
            raise ValueError(f"{weights}: by results.json, its arm has no weights; remove it")
        yield certificate | {"over": points(gain.mean, gain.interval)}


def _cells(certificate: Record, results: Record, by: str) -> dict[str, str]:
    """Return what the table of weights says of a file."""
    end, name = results["endpoint"], certificate["experiment"]
    scores = certificate["scores_of_file"][end["evaluation"]]
    return {
        "path": f"/docs/runs/{name}/{certificate['file']}",
        "of": f"[{results['title']}](/docs/runs/{name}/results.json): {certificate['arm']}"
        + ("" if certificate["is_of_the_record"] else ", trained again"),
        "score": f"{by}, {_blocks(results)}: " + " / ".join(f"{scores[n]:.1f} %" for n in end["numbers"]),
        "size": f"{certificate['bytes'] / 1e6:.1f} MB",
    }


def _means(results: Record) -> str:
    """Return the means of all rows at the endpoint's numbers, and of what is compared, such as pixels."""
    end, numbers = results["endpoint"], results["endpoint"]["numbers"]
    means: dict[str, dict[str, float]] = {}
    for row in results["means"]:
        if row["evaluation"] == end["evaluation"] and row["number"] in numbers:
            means.setdefault(row["arm"], {})[row["number"]] = row["mean"]
    rows = {arm: [of[number] for number in numbers if number in of] for arm, of in means.items()}
    beside: dict[str, list[float]] = {}
    for one in results["beside"]:
        if one["number"] == stem_of(numbers):
            beside.setdefault(one["name"], []).append(one["numbers"][one["number"]])
    rows |= {name: [statistics.fmean(values)] for name, values in beside.items()}
    return "; ".join(f"{arm} {' / '.join(f'{mean:.1f}' for mean in of)}" for arm, of in rows.items())


def _seeds(results: Record) -> str:
    """Return the number of seeds, which differs between rows until all is run."""
    beside = {one["seed"] for one in results["beside"]} - {None}  # complete before any training
    nums = sorted({len(row["values"]) for row in results["means"]}) or [len(beside)]
    return f"{nums[0]} to {nums[-1]} seeds" if len(nums) > 1 else counted(nums[0], "seed")


def _blocks(results: Record) -> str:
    """Return the blocks of the endpoint's numbers, such as B4 of top1_B4."""
    return " / ".join(map(block, results["endpoint"]["numbers"]))
