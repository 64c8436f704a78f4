"""Read what is done of a plan: from the folder of its runs, or as an earlier results.json has it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.evidence.plan import RANDOM, Curve, Plan, Run, Step

Record = dict[str, Any]


@dataclass(frozen=True)
class Done:
    """A record of what is done of a plan; the earlier results count where the folder has nothing.

    Attributes:
        runs: The folder of the runs.
        earlier: The earlier results.json, or nothing.
    """

    runs: Path
    earlier: Record = field(default_factory=dict)

    @property
    def earlier_commands(self) -> set[str]:
        """The commands of the earlier results."""
        return {record["command"] for record in self._earlier_records()}

    def of(self, name: str) -> Record:
        """Return command and date (UTC) of what is done in the folder; else nothing."""
        path = self.runs / f"{name}.done.json"
        return _read(path) if path.exists() else {}

    def score(self, step: Step) -> Record | None:
        """Return what an evaluation found, with all that it came from; None if it is not done.

        Raises:
            ValueError: It was cut short.
        """
        if not (how := self.of(step.name)):
            return self._before(step)
        folder = self.runs / step.name
        result = _read(folder / "result.json")
        if result["cut"]:
            raise ValueError(f"{folder}: it was cut short, so it shows nothing: remove it")
        weights = result["checkpoint"]
        seen = weights.get("input")
        return {
            "protocol": result["protocol"], "numbers": result["numbers"], "data": result["data"],
            "weights_sha256": weights.get("sha256"),
            "input": seen and {key: seen[key] for key in ("channels", "mean", "std")},
            "seconds": result.get("seconds"), "commit": result["commit"], **how,
        }  # fmt: skip

    def training(self, plan: Plan, run: Run) -> Record | None:
        """Return the losses of a training by stages; None for random weights, or if it is not done.

        Raises:
            ValueError: It was cut short.
        """
        if run.arm == RANDOM:
            return None
        if not (how := self.of(run.name)):
            return self._before(plan.training_of(run))
        folder = self.runs / run.name
        stages = _read(folder / "results.json")
        if any(stage["num_steps"] != stage["num_steps_planned"] for stage in stages):
            raise ValueError(f"{folder}: it was cut short, so it shows nothing: remove it")
        science, machine = _read(folder / "config.json")["science"], _read(folder / "environment.json")
        return {
            "arm": run.arm, "rate": run.rate, "seed": run.seed, "stages": stages,
            "data_digest": science["data_digest"], "commit": machine["commit"], **how,
        }  # fmt: skip

    def curve(self, curve: Curve, run: Run) -> dict[int, float]:
        """Return epoch → value in percent of a training; nothing if it is not done."""
        if self.of(run.name):
            lines = (self.runs / run.name / curve.file).read_text().splitlines()
            values = {line["epoch"]: line.get(curve.name) for line in map(json.loads, lines)}
            return {epoch: round(100 * value, 2) for epoch, value in values.items() if value is not None}
        earlier = self.earlier.get("curves", {}).get(run.arm, {"seeds": []})
        if run.seed not in earlier["seeds"]:
            return {}
        return dict(zip(earlier["epochs"], earlier["values"][earlier["seeds"].index(run.seed)], strict=True))

    def _before(self, step: Step) -> Record | None:
        return next((one for one in self._earlier_records() if one["command"] == step.command), None)

    def _earlier_records(self) -> Iterator[Record]:
        for part in ("search", "training", "scores", "beside"):
            yield from self.earlier.get(part, ())


def read_earlier(path: Path | None, plan: Plan) -> Record:
    """Return the results.json of an earlier state of a plan; nothing without a path.

    Raises:
        ValueError: It cannot be read, or what it trained is not what the plan trains.
    """
    if path is None:
        return {}
    try:
        record: Record = _read(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"--earlier {path}: {error}; give a results.json of this experiment") from error
    planned = {step.command for seed in (plan.search.seed, *plan.seeds) for step in plan.first_of(seed)}
    trained = [one for one in record["training"] if one["arm"] in plan.rows]
    planned |= {plan.training_of(Run(t["arm"], t["rate"], t["seed"], True)).command for t in trained}
    if other := {*record["first"], *(one["command"] for one in trained)} - planned:
        raise ValueError(f"--earlier {path}: the plan has another command than {min(other)}: leave it out")
    return record


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
