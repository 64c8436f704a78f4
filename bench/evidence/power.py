"""Compute which differences an experiment can show, by the spread of experiments on record.

docs/runs/power.json has three records. It gives the smallest mean of paired differences that Student's t test
finds with a probability of 80 %, by the number of seeds. Its level is 5 % divided by the number of
comparisons: Holm's first and strictest step. It was made at commit 4d6cffff, which has the records, before
the runs.
"""

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import optimize, stats

from bench.evidence.plan import RANDOM, UNTRAINED

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
