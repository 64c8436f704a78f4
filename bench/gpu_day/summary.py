"""The summary of a part's steps: exit 1 if a step failed, was cut off or had no time.

    python bench/gpu_day/summary.py PART FOLDER GPU

It reads FOLDER/steps.tsv, and writes FOLDER/summary.txt for people and FOLDER/results/gpu_day-GPU-PART.json,
a result like any other.
"""

import re
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.schema import SCHEMA, environment, rehearsal_notes, spread, write_result

CUT = (124, 137)  # exit statuses of `timeout`
NO_TIME = "no time left"
CUT_INTO = "four minutes"  # results of older parts, of nine minutes, have no "cut"


def read_steps(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return rows of the steps that ran, and those that had no time; output loses the machine's folders."""
    rows, missing = [], []
    for line in path.read_text(errors="replace").splitlines():
        name, status, seconds, output = line.split("\t")
        if not status:
            missing.append({"what": name, "reason": NO_TIME})
            continue
        rows.append({
            "measured": name, "unit": "s", "exit": int(status),
            "said": re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+", "", output.replace("|", "/")),
            **spread([max(float(seconds), 0.01)]),
        })  # fmt: skip
    return rows, missing


def told(row: dict[str, Any]) -> str:
    """Format a row for people."""
    status = "ok" if row["exit"] == 0 else "cut" if row["exit"] in CUT else f"exit {row['exit']}"
    return f"{row['measured']:<22} {status:<8} {row['median']:6.1f} s  {row['said']}"


def main() -> int:
    part, folder, gpu = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    rows, missing = read_steps(folder / "steps.tsv")
    machine = environment("cuda" if torch.cuda.is_available() else "cpu")
    result = {
        "schema": SCHEMA, "bench": "gpu_day", "command": f"bash bench/gpu_day/{part}.sh",
        "environment": machine, "data": {"name": "the part's steps", "num_samples": len(rows) + len(missing)},
        "settings": {"repeats": 1, "part": part, "cut": CUT_INTO},
        "rows": rows, "ratios": [], "not_measured": missing, "notes": rehearsal_notes(),
    }  # fmt: skip
    num_failed = len(missing) + sum(row["exit"] != 0 for row in rows)
    failures = f"{num_failed} of {len(rows) + len(missing)} steps failed"
    lines = [
        f"== part {part}, {gpu}, commit {machine['commit']}: {failures}",
        *map(told, rows),
        *(f"{line['what']:<22} {line['reason']}" for line in missing),
        *rehearsal_notes(),
    ]
    (folder / "summary.txt").write_text("\n".join(lines) + "\n")
    write_result(folder / "results" / f"gpu_day-{gpu}-{part}.json", result)
    return int(num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
