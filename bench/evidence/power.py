"""Compute which differences an experiment can show, by the spread of the experiments on record.

    python -m bench.evidence.power

Writes docs/runs/power.json, for each record and 3 to 8 seeds: the smallest mean of paired differences that
Student's t test finds with a probability of 80 %. Its level is 5 % divided by the number of comparisons:
Holm's first and strictest step. The spread is the root of the mean variance of the record's differences
between arms.
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, stats

from bench.evidence.plan import RANDOM, UNTRAINED
from bench.program import run_program
from fastpsl.files.atomic import write_atomically

RUNS = Path(__file__).resolve().parents[2] / "docs" / "runs"
RECORDS = ("psl_jigsaw-small", "sslpp_digits-small", "uic_cifar10-small")
NUM_SEEDS = range(3, 9)
LEVEL, POWER = 0.05, 0.8


def power(effect: float, num_seeds: int, num_comparisons: int) -> float:
    """Return the probability that the t test finds a mean difference of `effect` standard deviations.

    It is integrated over the sample's variance, because scipy's noncentral t is NaN for few seeds and a
    strict level.
    """
    free = num_seeds - 1
    critical = stats.t.ppf(1 - LEVEL / num_comparisons / 2, free)
    shares = (np.arange(2000) + 0.5) / 2000
    bounds = critical * np.sqrt(stats.chi2.ppf(shares, free) / free)
    shift = effect * num_seeds**0.5
    return float((stats.norm.sf(bounds - shift) + stats.norm.cdf(-bounds - shift)).mean())


def smallest_difference(num_seeds: int, num_comparisons: int) -> float:
    """Return the mean difference, in standard deviations, that is found with POWER."""
    return float(optimize.brentq(lambda effect: power(effect, num_seeds, num_comparisons) - POWER, 0, 100))


def spread(record: Mapping[str, Any]) -> tuple[float, int]:
    """Return the root of the mean variance of a record's differences between arms, and their number.

    Where no two arms are compared, it is of all differences.
    """
    known = [one for one in record["differences"] if len(one["values"]) > 1]
    of_arms = [one for one in known if not {RANDOM, UNTRAINED} & {*one["pair"]}] or known
    return statistics.fmean(statistics.variance(one["values"]) for one in of_arms) ** 0.5, len(of_arms)


def power_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spread of a record's differences, and what it lets 3 to 8 seeds show."""
    deviation, num_differences = spread(record)
    num = len(record["differences"])
    return {
        "deviation": round(deviation, 2), "num_differences": num_differences,
        "smallest": {
            comparisons: {
                seeds: round(deviation * smallest_difference(seeds, comparisons), 2) for seeds in NUM_SEEDS
            }
            for comparisons in sorted({1, 6, num})
        },
    }  # fmt: skip


def main() -> None:
    """Write docs/runs/power.json."""
    found = {name: power_of(json.loads((RUNS / name / "results.json").read_text())) for name in RECORDS}
    text = json.dumps({"level": LEVEL, "power": POWER, "records": found}, indent=1)
    write_atomically(RUNS / "power.json", f"{text}\n".encode())
    print(RUNS / "power.json")


if __name__ == "__main__":
    run_program(main)
