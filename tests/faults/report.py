"""What a fault came to, and the results file of a run of the harness."""

import json
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

# Faults that ended well, by what came of them:
#   as before   nothing that is read has changed
#   refused     one line names the file and the remedy
#   skipped     the sample was named and left out, the rest goes on
#   found       something else is read, and `fastpsl beton verify` names it
#   read        what was damaged is read as a picture or a value, as its format allows; what lies beside it is read as ever
#   goes on     work continues from where it was, and its result is the undisturbed one
# and faults that did not:
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

_PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "numba",
    "pillow",
    "ffcv",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
)


class Finding(NamedTuple):
    """What one fault came to.

    category  the module, e.g. "betons"
    case      the kind of fault, e.g. "header_bit"
    outcome   few words; those in FAILURES are failures
    detail    one line: the message, or what was measured
    seed      a run of this category from this seed with a count of 1 repeats the case; None: only the whole run does
    grown_bytes  by how much the resident memory grew at most; 0 where it is not measured
    """

    category: str
    case: str
    outcome: str
    detail: str = ""
    seed: int | None = None
    grown_bytes: int = 0

    @property
    def failed(self) -> bool:
        return self.outcome in FAILURES


class Category:
    """The findings of one category, counted as they come."""

    def __init__(self, name: str, seed: int, count: int):
        self.name, self.seed, self.count = name, seed, count
        self.seconds = self.cpu_seconds = 0.0
        self.finished = False
        self.outcomes: Counter[str] = Counter()
        self.cases: dict[str, dict[str, dict[str, Any]]] = {}
        self.failures: list[Finding] = []

    def add(self, finding: Finding) -> None:
        self.outcomes[finding.outcome] += 1
        outcomes = self.cases.setdefault(finding.case, {})
        counted = outcomes.setdefault(
            finding.outcome, {"count": 0, "first": finding.detail, "grown_bytes": 0}
        )
        counted["count"] += 1
        counted["grown_bytes"] = max(counted["grown_bytes"], finding.grown_bytes)
        if finding.failed:
            self.failures.append(finding)

    @property
    def num_done(self) -> int:
        return self.outcomes.total()

    def repeat(self, finding: Finding) -> str:
        """The command that repeats a finding."""
        seed, count = (self.seed, self.count) if finding.seed is None else (finding.seed, 1)
        option = self.name.replace("_", "-")
        return f"python -m tests.faults --only {self.name} --seed {seed} --{option} {count} --out /tmp/faults.json"

    def as_json(self) -> dict[str, Any]:
        """Counts by outcome and by case, with the first detail and the most memory of each, and every failure."""
        return {
            "asked": self.count,
            "done": self.num_done,
            "finished": self.finished,
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "outcomes": dict(sorted(self.outcomes.items())),
            "cases": dict(sorted(self.cases.items())),
            "failures": [{**finding._asdict(), "repeat": self.repeat(finding)} for finding in self.failures],
        }


def write_results(path: Path, categories: Iterable[Category], command: str, seed: int) -> None:
    """Write the results as JSON: beside, then renamed. What was not finished says so."""
    results = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "seed": seed,
        "commit": _commit(),
        "machine": _machine(),
        "versions": _versions(),
        "categories": {category.name: category.as_json() for category in categories},
    }
    beside = path.with_name(f".{path.name}.partial")
    text = json.dumps(results, indent=1, ensure_ascii=True)
    # Where the tree and the cases lie tells nobody anything.
    text = re.sub(r"/[\w./-]*/faults-\w+/", "", text).replace(str(Path(__file__).parents[2]), ".")
    beside.write_text(text + "\n")
    os.replace(beside, path)


def _commit() -> str:
    """The commit of the tree, with "+" where files differ from it; "" outside of a repository."""
    root = Path(__file__).parents[2]
    try:
        head, changes = (
            subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30, check=True
            ).stdout
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.strip() + ("+" if changes else "")


def _machine() -> dict[str, Any]:
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "cpu": models[0].partition(": ")[2] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 1),
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
