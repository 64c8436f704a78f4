"""Steps whose gradients are not finite, which changed nothing: what is said of them, and the run's end."""

# So many such steps in a row end a run. The search of fp16 for its scale takes about twenty.
MAX_IN_A_ROW = 100


class SkippedSteps:
    """The skipped steps of a stage, from the counts that are fetched now and then; the same on every rank."""

    def __init__(self) -> None:
        self._num, self._num_in_a_row = 0, 0

    def line(self, num: int, first: int, last: int) -> str:
        """Return what to say of the steps `first` to `last`, or nothing.

        Args:
            num: The stage's skipped steps up to `last`.
            first: The first step since the last call.
            last: The last step.
        """
        new, self._num = num - self._num, num
        self._num_in_a_row = self._num_in_a_row + new if new == last - first + 1 else 0
        if not new:
            return ""
        return (
            f"{new} of steps {first} to {last} had gradients that are not finite and changed nothing (usual "
            "in the first steps of a stage in fp16; if it goes on, start anew with a lower --lr, or with "
            "--precision bf16)"
        )

    def require_effect(self) -> None:
        """Raise ValueError if no step changes anything any more."""
        if self._num_in_a_row >= MAX_IN_A_ROW:
            raise ValueError(
                f"the training has diverged: the last {self._num_in_a_row} steps had gradients that are "
                "not finite and changed nothing; start anew with a lower --lr, or with --precision bf16, and "
                "with another --out"
            )
