"""Marks of tests for `make test-all` and for `make test-nightly`, which `make test` does not run."""

from functools import partial

import pytest

# They mark a set of parameters, as in `[1, 15, *map(slow, (22, 36))]`.
slow = partial(pytest.param, marks=pytest.mark.slow)
nightly = partial(pytest.param, marks=pytest.mark.nightly)
