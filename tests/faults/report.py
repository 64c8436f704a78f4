"""The findings of the harness, their counts, and the results file of a run."""

import json
import os
import platform
import re
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from bench.schema import environment

ROOT = Path(__file__).resolve().parents[2]
Outcome = tuple[str, str]  # a few words, and one line: the message, or a measurement

# Outcomes that are good:
#   as before   what is read has not changed
#   refused     one line names the file and the remedy
#   skipped     the sample is named and left out, the rest goes on
#   found       other data are read, and `fastpsl data verify` reports it
#   read        damaged data are read as an image or a value, as the format allows, and others as ever
#   goes on     the work continues, with the result of an undisturbed run
# and outcomes that are failures:
FAILURES = {
    "crash": "the process died of a signal",
    "hang": "the time limit was reached",
    "memory": "more memory was taken than the documentation allows",
    "traceback": "an exception of the internals reached the user",
    "unclear": "a message without the file's name",
    "silent": "other pixels or labels were read, and nothing finds it",
    "differs": "the result is not that of an undisturbed run",
    "executed": "an input ran code",
    "wrote": "an input wrote outside of its place",
    "disclosed": "an input brought a file in that it merely names",
    "escaped": "control characters or markup of an input reached the terminal, HTML or CSV",
}
# The categories in the order of a run: the module and the number of cases of each.
CATEGORIES = {
    "damage": ("damage", 2000),  # mutants of each gate's file
    "attacks": ("damage", 1000),  # at most, each once
    "kills": ("strikes", 200),
    "surroundings": ("surroundings", 42),  # each trial once
    "ranks": ("strikes", 40),
    "openings": ("growth", 10_000),  # openings of each decoder
    "training": ("growth", 60),  # minutes
}


class Finding(NamedTuple):
    """The outcome of one fault. A run of its category from `seed` with a count of 1 repeats it."""

    case: str  # the kind of fault, such as "header_bit"
    outcome: str  # a few words; those in FAILURES are failures
    detail: str = ""  # one line: the message, or a measurement
    seed: int | None = None  # None if only the whole run repeats it
    grown_bytes: int = 0  # the most that the resident memory grew; 0 where it is not measured

    @property
    def failed(self) -> bool:
        return self.outcome in FAILURES


class Category:
    """The findings of one category, counted as they come."""

    def __init__(self, name: str, seed: int, count: int):
        self.name, self.seed, self.count = name, seed, count
        self.seconds = 0.0
        self.finished = False
        self.outcomes: Counter[str] = Counter()
        self.cases: dict[str, dict[str, dict[str, Any]]] = {}
        self.failures: list[Finding] = []

    def add(self, finding: Finding) -> None:
        self.outcomes[finding.outcome] += 1
        outcomes = self.cases.setdefault(finding.case, {})
        entry = outcomes.setdefault(finding.outcome, {"count": 0, "first": finding.detail, "grown_bytes": 0})
        entry["count"] += 1
        entry["grown_bytes"] = max(entry["grown_bytes"], finding.grown_bytes)
        if finding.failed:
            self.failures.append(finding)

    @property
    def num_done(self) -> int:
        return self.outcomes.total()

    def repeat(self, finding: Finding) -> str:
        """Return the command that repeats a finding."""
        seed, count = (self.seed, self.count) if finding.seed is None else (finding.seed, 1)
        option = f"--{self.name.replace('_', '-')} {count}"
        return f"python -m tests.faults --only {self.name} --seed {seed} {option} --out /tmp/faults.json"

    def progress(self) -> str:
        """Return how far the category is, in one line."""
        outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in self.outcomes.most_common())
        done = f"{self.num_done:,} cases in {self.seconds:,.0f} s"
        return f"  {self.name}: {done}: {outcomes or 'no finding yet'}"

    def as_json(self) -> dict[str, Any]:
        """Return counts by outcome and by case, with first details and peak memory, and every failure."""
        return {
            "asked": self.count,
            "done": self.num_done,
            "finished": self.finished,
            "seconds": round(self.seconds, 1),
            "outcomes": dict(sorted(self.outcomes.items())),
            "cases": dict(sorted(self.cases.items())),
            "failures": [
                {"category": self.name, **failure._asdict(), "repeat": self.repeat(failure)}
                for failure in self.failures
            ],
        }


def write_results(path: Path, categories: Iterable[Category], command: str, seed: int) -> None:
    """Write the results as JSON, under another name and then renamed; unfinished categories are marked."""
    here = environment()
    machine = {
        "cpu": here["cpu"],
        "cores": here["num_cores"],
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "load": round(here["load_average_before"], 1),
    }
    results = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "seed": seed,
        "commit": here["commit"] or "",
        "machine": machine,
        "versions": {"python": here["python"], **here["versions"]},
        "categories": {category.name: category.as_json() for category in categories},
    }
    # The paths of this machine are of no use to readers.
    text = re.sub(r"/[\w./-]*/faults-\w+/", "", json.dumps(results, indent=1)).replace(str(ROOT), ".")
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)
