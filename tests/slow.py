"""A mark for tests that `make test-all` runs and `make test` does not."""

from functools import partial

import pytest

# It marks a set of parameters, as in `[1, 15, *map(slow, (22, 36))]`.
slow = partial(pytest.param, marks=pytest.mark.slow)
