"""Failures of the data during training: if one rank has no batch, all ranks save their last step and stop."""

from collections.abc import Callable, Iterator

from fastpsl.engine.distributed import World, gather_objects, on_any_rank
from fastpsl.pipelines.loader.batch import Batch


def next_on_all_ranks(batches: Iterator[Batch], world: World, save: Callable[[], str | None]) -> Batch:
    """Return the next batch, or stop on all ranks if the data failed on one.

    Every rank calls it before a step, for the first of the step's batches.

    Args:
        batches: The batches of this rank.
        world: The ranks.
        save: Called by every rank after a failure. It saves the state after the last step and returns where a
            resumed run begins, or None if nothing was saved.

    Raises:
        ValueError: The data failed on this rank or another.
        OSError: The data failed on this rank, and nothing was saved.
    """
    failure: ValueError | OSError | None = None
    try:
        batch = next(batches)
    except (ValueError, OSError) as error:
        failure = error
    if not on_any_rank(world, failure is not None):
        return batch
    texts = gather_objects(world, None if failure is None else str(failure))
    others = (f"{text} (rank {rank})" for rank, text in enumerate(texts) if text is not None)
    message = next(others) if failure is None else str(failure)
    where = save()
    if where is not None:
        message += f"; a checkpoint was written, and the same command goes on from {where}"
    elif failure is not None:
        raise failure
    raise ValueError(message) from failure
