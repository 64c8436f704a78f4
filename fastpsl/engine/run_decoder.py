"""The decoder of a run: `auto` chooses it once, for all ranks, stages and loaders."""

from fastpsl.engine.distributed import share
from fastpsl.engine.kept_choices import apply_kept_choices
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.run import Run
from fastpsl.pipelines.decoders.choose import NAMES, choose_decoder, is_kept_on_device

_KEPT = tuple(name for name in NAMES if name not in ("resident", "synthetic"))  # these are for a data set


def choose_run_decoder(run: Run, num_views: int, kept: str | None) -> None:
    """Choose the decoder of a run's data for `auto`. Every rank calls this.

    Rank 0 chooses for all, by its own cores and GPU. A run that goes on keeps the decoder of its start, where
    it works. Nothing is chosen for small raw images, which loaders keep on the GPU, nor for synthetic data.

    Args:
        run: The run.
        num_views: The views of each training image.
        kept: The decoder in the run's checkpoint; None if there is none.
    """
    choice = share(run.world, _choice(run, num_views, kept) if run.world.rank == 0 else None)
    if choice is not None:
        run.data.decoder, run.data.decoder_reason = choice


def decoder_choice(run: Run) -> dict[str, str]:
    """Return the run's decoder under its option's name, for checkpoints; empty if each loader chooses."""
    return {"decoder": run.data.decoder} if run.data.decoder in _KEPT else {}


def _choice(run: Run, num_views: int, kept: str | None) -> tuple[str, str] | None:
    """Return the decoder and the reason for it, or None if nothing is chosen."""
    data, device = run.data.train, run.world.device

    def check(options: TrainingOptions) -> None:
        choose_decoder(options.decoder, data, device)
        if options.decoder == "dali":
            from fastpsl.pipelines.decoders import dali

            if why := "dali is for GPUs" if device.type == "cpu" else dali.why_missing(device):
                raise ValueError(why)

    if is_kept_on_device(data, device):
        return None
    choices = {} if kept is None else {"decoder": kept}
    options = apply_kept_choices(run.options, choices, check, run.reporter.log)
    if run.options.decoder != "auto":
        return None
    if options.decoder != "auto":
        return options.decoder, "as the run began"
    name, reason = choose_decoder("auto", data, device, num_threads=options.workers, num_views=num_views)
    return (name, reason) if name in _KEPT else None
