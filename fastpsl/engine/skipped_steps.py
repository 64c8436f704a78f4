"""Steps whose gradients are not finite, which changed nothing: what is said of them, and the run's end."""

from collections import deque

# In fp16, the first steps of a stage search for the scale, which takes about twenty.
FIRST_STEPS = 100
# The run ends if more than half of so many later steps are skipped, or half as many in a row.
WINDOW = 200


class SkippedSteps:
    """The skipped steps of a stage, from the counts that are fetched now and then; the same on every rank."""

    def __init__(self) -> None:
        self._num = 0
        self._num_in_a_row = 0
        self._latest: deque[bool] = deque(maxlen=WINDOW)  # of the steps after the first ones
        self._diverged = ""

    def line(self, nums: list[int], first: int) -> str:
        """Return what to say of steps that follow those of the last call, or nothing.

        Args:
            nums: For each step, the stage's skipped steps up to it.
            first: The number of the first step, counted in the stage from 1.
        """
        before = self._num
        for step, num in enumerate(nums, start=first):
            self._see(step, num > self._num)
            self._num = num
        if self._num == before:
            return ""
        return (
            f"{self._num - before} of steps {first} to {first + len(nums) - 1} had gradients that are not "
            "finite and changed nothing (usual in the first steps of a stage in fp16; if it goes on, start "
            "anew with a lower --lr, or with --precision bf16)"
        )

    def _see(self, step: int, is_skipped: bool) -> None:
        self._num_in_a_row = self._num_in_a_row + 1 if is_skipped else 0
        if step > FIRST_STEPS:
            self._latest.append(is_skipped)
        if self._num_in_a_row >= WINDOW // 2:
            self._diverged = f"the last {self._num_in_a_row} steps"
        elif sum(self._latest) > WINDOW // 2:
            self._diverged = f"{sum(self._latest)} of the last {len(self._latest)} steps"

    def require_effect(self) -> None:
        """Raise ValueError if the steps have little effect any more."""
        if self._diverged:
            raise ValueError(
                f"the training has diverged: {self._diverged} had gradients that are not finite and changed "
                "nothing; start anew with a lower --lr, or with --precision bf16, and with another --out"
            )
