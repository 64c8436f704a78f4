"""The training loop over stages, steps and batches, independent of the task."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from fastpsl.console.progress import operation
from fastpsl.console.words import number_of
from fastpsl.engine.data_waits import LONG_SHARE, DataWaits, line_of
from fastpsl.engine.dataset_pass import EpochContext, PassStopped
from fastpsl.engine.distributed import World, gather_objects, on_any_rank
from fastpsl.engine.experiment import Experiment, block_costs, make_train_step, place_backbone
from fastpsl.engine.gpu import peak_memory, reset_peak_memory, torch_seed
from fastpsl.engine.last_step import LastStep, Safepoint
from fastpsl.engine.online_probe import OnlineProbe, is_probed
from fastpsl.engine.optim.schedules import Moment
from fastpsl.engine.options import INITIAL_WEIGHTS, TrainingOptions
from fastpsl.engine.plan import Stage
from fastpsl.engine.resume import AUTOMATIC, apply_kept_choices, choices_of, loading, reasons_of
from fastpsl.engine.run import BatchSource, Run, choose_run_decoder, decoder_choice, val_part
from fastpsl.engine.step_modes import what_is_built
from fastpsl.engine.task import Task
from fastpsl.engine.time_left import layer_costs, pixels, work_ahead
from fastpsl.pipelines.datasets.shared_images import shared_images
from fastpsl.pipelines.decoders.choose import SLOWER
from fastpsl.pipelines.loader.augment import choose_augment
from fastpsl.pipelines.loader.batch import BadSampleError, Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.plots.contact_sheet import NUM_IMAGES, captions, save_contact_sheet

One = TypeVar("One", bound=Batch | None)


def warm_up_loader(run: Run, task: Task, stage: Stage, loader: BatchSource) -> None:
    """Load a batch on one rank per machine.

    Rank 0 draws the batch as contact-sheet-G<level>.png, unless the task draws none or the stage is resumed.
    """
    # One compiles the loader by numba. The machine's others then read the code from numba's cache.
    is_reader = run.world.local_rank == 0
    doing = "reading the first batch, for which numba may compile"
    with operation("") as progress:
        progress.rename(f"{stage.name}: {doing if is_reader else 'waiting for the first batch'}", early=True)
        # The others have no batch, and hear whether one failed.
        batches = loader.epoch(run.position.first_epoch) if is_reader else (None for _ in range(1))
        with contextlib.closing(batches):  # nobody wants the batches that are in flight behind the first
            batch = next_on_all_ranks(batches, run.world, lambda: None)
    if batch is None or run.world.rank != 0 or run.position.step > 0:
        return
    # Before the ops, so that they augment only what is shown, on the host.
    batch = batch.first(NUM_IMAGES)
    # With the task's own mean and std, by which it makes images of its inputs.
    own = task.views(stage.level)
    views = [view.seen_by(its.input()) for view, its in zip(loader.views, own, strict=True)]
    images = task.contact_sheet(batch.inputs(views, torch.float32), batch)
    if images is not None:
        texts = captions(batch, run.data.train.class_names, task.captions(batch))
        save_contact_sheet(images, run.folder / f"contact-sheet-G{stage.level}.png", texts)


def next_on_all_ranks(batches: Iterator[One], world: World, save: Callable[[], str | None]) -> One:
    """Return the next batch, or stop on all ranks if the data failed on one.

    Every rank calls it before a step, for the first of the step's batches. `save` returns the checkpoint's
    name, if it writes one.
    """
    failure: ValueError | OSError | None = None
    try:
        batch = next(batches)
    except (ValueError, OSError) as error:  # any other is a fault of ours, which ends this rank at once
        failure = error
    # A rank that began the step alone would wait in its exchange of gradients for the one without a batch.
    if not on_any_rank(world, failure is not None):
        return batch
    text = f"{failure}; {failure.remedy}" if isinstance(failure, BadSampleError) else str(failure)
    texts = gather_objects(world, None if failure is None else text)
    others = (f"{text} (rank {rank})" for rank, text in enumerate(texts) if text is not None)
    message = next(others) if failure is None else text
    where = save()  # no rank has begun this step, so the state is that of the last whole one
    if where is not None:
        message += f"; a checkpoint was written, and the same command goes on from {where}"
    elif failure is not None:
        raise failure
    raise ValueError(message) from failure


# The epoch numbers of a stage beyond all training: one half for its warm-up, the other for its passes. So
# many are more than either takes, and 4,000 stages have room below the draws' 2**32 (kernels/draws.py).
MAX_WARM_UP_EPOCHS = 1_000_000
_TOLD_GAP_S = 0.1  # between two epochs; a shorter gap is worth no line, whatever its share (not measured)


def pretrain(experiment: Experiment, run: Run, trainer: "Callable[..., StageTrainer] | None" = None) -> bool:
    """Train through the plan, from the run's checkpoint if there is one. Return False after a signal.

    `trainer` makes what trains a stage; None for `StageTrainer`.
    """
    experiment.check(run.data)  # the run may have been opened without `open_data`
    # The run lets go of the checkpoint's tensors, which are needed for the first stage alone.
    (state, run.resume_state), position = (run.resume_state, None), run.position
    run.meter.start()
    place_backbone(experiment, run.options, run.world)
    if state:
        with loading(run.resumed_from):
            experiment.backbone.load_state_dict(state["backbone"])
    elif INITIAL_WEIGHTS in run.science and run.world.rank == 0 and not run.is_replay:
        _save_start(experiment, run)
    if views := experiment.views(experiment.stages[0]):  # else whole images are read
        # The decoder is the run's, so it is not among the choices that the stage takes below.
        kept = state["choices"].pop("decoder", None) if state else None
        with operation("choosing the decoder"):
            choose_run_decoder(run, len(views), kept)
    tell_shared_images(experiment, run)
    if len(position.summaries) < len(experiment.stages):
        try:
            experiment.task.before_training(run)
        except PassStopped:
            return False
    with LastStep(run) as last_step:
        while len(position.summaries) < len(experiment.stages):
            # A stage that has ended has its summary, and a checkpoint of its end still has its number.
            if len(position.summaries) > position.stage:
                position.next_stage(experiment.stages[position.stage].max_epochs)
                state = None  # head, optimiser and task begin anew with a stage
            name = experiment.stages[position.stage].name
            with operation(f"{name}: building the network"):
                stage_trainer = (trainer or StageTrainer)(experiment, run, state, last_step)
            with operation(f"{name}: between two steps") as progress:
                if not stage_trainer.run_to_end(progress):
                    return False
    return True


def _save_start(experiment: Experiment, run: Run) -> None:
    """Keep the weights that the run begins with as a checkpoint, which evaluations and export read."""
    position: dict[str, Any] = {"run_step": 0, "summaries": []}
    # With no stages, nothing of the training of these weights is missing.
    state = {"science": run.science, "position": position, "num_stages": 0}
    input = experiment.input_record(experiment.stages[0]) | run.data.train.reading.as_dict()
    state |= {"backbone": experiment.backbone.state_dict(), "input": input}
    run.checkpoints.write(run.checkpoints.start, state)


def tell_shared_images(experiment: Experiment, run: Run) -> None:
    """Tell how many validation images are learned from, and note the number for the summaries; on rank 0."""
    if run.data.val is None or run.world.rank:  # the others wait for rank 0 in what all call next
        return
    shared = shared_images(run.data.val, experiment.task.learned(run.data.train))
    run.num_shared = shared.num
    if line := shared.line():
        run.reporter.log(line)


class StageTrainer:
    """The training of the run's present stage, from its position and its checkpoint `state`, to the end."""

    def __init__(self, experiment: Experiment, run: Run, state: dict[str, Any] | None, last_step: LastStep):
        self.experiment, self.run, self.position = experiment, run, run.position
        self.safepoint = Safepoint(run, last_step, self._state)
        self.stage = stage = experiment.stages[run.position.stage]
        self.all_epochs = sum(each.max_epochs for each in experiment.stages)
        self.fresh = state is None
        self.loader: BatchSource | None = None
        self.ended_s: float | None = None  # when the last epoch's last step was made
        self.val_views = experiment.val_views(stage)
        run.data.begin_stage(stage)  # before what opens a loader, which takes the batch size from there
        options = run.options
        if state:  # within a stage, the choices of its start apply
            options = apply_kept_choices(options, state["choices"], self._check, run.reporter.log)
        # The options for which the checkpoint replaces "auto".
        self.kept = {name for name in AUTOMATIC if getattr(options, name) != getattr(run.options, name)}
        reset_peak_memory(run.world.device)  # the summary tells the peak of this stage, with its building
        self.train_step = make_train_step(experiment, run.position.stage, options, run.world)
        self.views, blocks = self.train_step.views, self.train_step.module.blocks
        self.online_probe = OnlineProbe(run, experiment, stage, blocks, is_probed(run, experiment.task))
        if state:
            with loading(run.resumed_from):
                self.train_step.load_state_dict(state["train_step"])
                experiment.task.load_state_dict(state["task"])
                self.online_probe.load_state_dict(state.get("probe", {}))
        # After the loading, because it checks the checkpoint's weights, too.
        run.begin_stage(experiment.backbone, self.train_step.module.head)

    def _check(self, options: TrainingOptions) -> None:
        """Raise ValueError if this machine cannot compute the stage as `options` require."""
        views = (*self.experiment.views(self.stage), *self.val_views)
        choose_augment(options.augment_backend, views, self.run.world.device)
        self.experiment.choose_step(self.stage, options, self.run.world)

    def run_to_end(self, progress: operation) -> bool:
        """Train, evaluate and save. Return False if a signal stopped it; a stopped warm-up is not saved."""
        run, position, task, name = self.run, self.position, self.experiment.task, self.stage.name
        with contextlib.ExitStack() as stack:
            with progress.span(f"{name}: opening its loaders"):
                opened = task.train_loader(run.data) or run.data.loader(
                    run.data.train, self.views, train=True
                )
                self.loader = loader = stack.enter_context(opened)
                # Batches that fill no whole step are left out, as images that fill no batch are.
                self.steps_per_epoch = loader.num_steps // run.options.accumulate
                self.num_steps = self.stage.num_steps or self.stage.epochs * self.steps_per_epoch
                self.end_step = min(self.num_steps, run.options.max_steps_per_stage or self.num_steps)
                val_loader, part = None, val_part(run.data, self.end_step, self.num_steps)
                # It is opened now, so that data that cannot be evaluated are rejected before the training.
                if part is not None and self.val_views:
                    val_loader = run.data.loader(part, self.val_views, train=False)
                    stack.enter_context(val_loader)
            stages, blocks = self.experiment.stages, self.experiment.backbone.blocks()
            is_last = position.stage + 1 == len(stages)  # then no later stage's steps are to be guessed
            costs = layer_costs(blocks) if is_last else block_costs(self.experiment, self.stage, run.data)
            ahead = work_ahead(
                stages, position.stage, costs,
                task.inputs_per_image, loader.num_samples, run.options.max_steps_per_stage,
                lambda stage: self._end_images(stage, val_loader), run.options.batch_of,
            )  # fmt: skip
            run.reporter.accuracy_name = task.accuracy_name
            run.reporter.stage_begins(self.stage, position.step, self.end_step, self.steps_per_epoch, ahead)
            self._tell_choices(loader)
            warm_up_loader(run, task, self.stage, loader)
            # Before the task's warm-up, whose passes in train mode change BatchNorm's statistics.
            if position.run_step == 0 and not run.resumed and not self.online_probe.look_untrained():
                return False
            # An interrupted warm-up is not saved. A resumed run repeats it.
            if self.fresh and not self._warm_up(loader):
                return False
            finished = self._train(loader, progress)
            self.train_step.release()  # the pass over the validation data has the memory
            self.safepoint.save()  # before the validation, so that a stop in it loses no step
            if finished:  # after the checkpoint, from which the same command comes to this line again
                run.reporter.require_finite_loss()
            val = self._validate(val_loader) if finished and val_loader else {}
            if not finished or val is None:
                return False
            with progress.span(f"{name}: ending the stage"):
                if position.step % self.steps_per_epoch:
                    self._end_epoch()  # the last epoch was cut short
                try:
                    task.end_stage(self._context(self.stage.max_epochs))
                except PassStopped:
                    return False
                steps, chance = (position.step, self.num_steps), task.chance(self.stage.level)
                figures: dict[str, Any] = {**self.online_probe.result(), **peak_memory(run.world.device)}
                figures["so_far"] = run.so_far()  # sums the ranks' joules, so every rank calls it
                seconds = position.seconds
                summary = run.reporter.stage_summary(self.stage, steps, seconds, val, chance, figures)
                if val_loader is not None and part is not run.data.val:
                    summary["num_val_images"] = val_loader.num_samples
                if run.num_shared is not None:
                    summary["shared_images"] = run.num_shared
                position.summaries.append(summary)
                # First, because a resume from the checkpoint below writes only a file that exists.
                if run.world.rank == 0:
                    run.write_results()
                self.safepoint.save()
        return True

    def _tell_choices(self, loader: BatchSource) -> None:
        """Note how the stage is computed, and why; print what is slower than it could be or was asked for."""
        run = self.run
        is_slower = isinstance(loader, Loader) and (
            loader.decoder_name in SLOWER or bool(loader.decoder.remark)
        )
        text = f"{loader.decoder_name}: {loader.decoder_reason}"
        choices = [*reasons_of(self.train_step, self.stage, self.views, run.options, self.kept)]
        choices.append(("decoder", text, is_slower or run.options.decoder != "auto"))
        run.note_choices(self.stage, {name: text for name, text, _ in choices})
        for name, text, is_told in choices:
            if is_told:
                run.reporter.log_choice(name, text)

    def _validate(self, loader: Loader) -> dict[str, float] | None:
        """Return the metrics of the validation data; None if a signal stopped the pass."""
        run = self.run
        stopped = lambda: run.stop_signal.after_step().stop
        # After fast steps, ranks would hear a signal only after as many slow validation batches.
        run.stop_signal.other_pace()
        if run.data.val is not None and loader.num_samples < run.data.val.num_samples:
            run.reporter.log(
                f"{self.stage.name} was cut by --max-steps-per-stage, and so is its validation: "
                f"{loader.num_samples:,} of {run.data.val.num_samples:,} images"
            )
        what, batch_size = f"{self.stage.name}: validation pass", loader.batch_size_per_rank * run.world.size
        with operation(what, "images", loader.num_samples) as progress:
            batches = run.reporter.at_the_end(loader.epoch(0), batch_size, loader.num_samples)
            return self.train_step.evaluate(progress.track(batches, batch_size), self.val_views, stopped)

    def _end_images(self, stage: Stage, val_loader: Loader | None) -> int:
        """Return how many images pass forward at the end of a stage: for the validation, and for a probe.

        An image of a probe is one network input, of the last stage's size.
        """
        task, last = self.experiment.task, self.experiment.stages[-1]
        validated = val_loader.num_samples if val_loader and task.val_views(stage.level) else 0
        larger = pixels(last) / pixels(stage)
        return validated + int(self.online_probe.num_images * larger) // task.inputs_per_image(stage.level)

    def _warm_up(self, loader: BatchSource) -> bool:
        """Run the task's warm-up before a new stage's first step. Return False if a signal stopped it."""
        run = self.run
        num_batches = self.experiment.task.num_warm_up_batches(self.stage)
        if num_batches:
            words = number_of(num_batches, "batch", "batches")
            run.reporter.log(f"{self.stage.name}: {words} without a step first")
        epoch, done = self._first_unused_epoch, 0
        with operation(f"{self.stage.name}: before its first step", "batches", num_batches) as progress:
            run.stop_signal.other_pace()  # a batch without a step has another duration
            while done < num_batches:
                with contextlib.closing(loader.epoch(epoch)) as batches:
                    for batch in itertools.islice(run.reporter.watched(batches), num_batches - done):
                        self.train_step.warm_up(self.experiment.task.warm_up, batch)
                        done += 1
                        progress.update(done)
                        if run.stop_signal.after_step().stop:
                            return False
                epoch += 1
        return True

    def _train(self, loader: BatchSource, progress: operation) -> bool:
        """Train up to `end_step`, epoch by epoch and step by step. Return False if a signal stopped it."""
        run, position, steps_per_epoch, name = self.run, self.position, self.steps_per_epoch, self.stage.name
        task = self.experiment.task
        tell = lambda waits: run.reporter.log_once(f"{name} waits", line_of(name, waits, loader))
        data_waits = DataWaits(run.world.device, run.options.prefetch_batches, tell)
        is_first = True
        if not self._probe():  # after a resume, the look may be missing
            return False
        while position.step < self.end_step:
            epoch, step_in_epoch = divmod(position.step, steps_per_epoch)
            with progress.span(f"{name}: before epoch {epoch + 1}"):
                if not self._begin_epoch(epoch, step_in_epoch):
                    return False
            first_batch = step_in_epoch * run.options.accumulate
            num_steps = min(steps_per_epoch - step_in_epoch, self.end_step - position.step)
            batches = loader.epoch(position.first_epoch + epoch, first_batch, self.order)
            watched = data_waits.track(run.reporter.watched(batches), loader.num_steps - first_batch)
            # An order of the task's own is known only once the epoch's labels are there (`_step`).
            goes_on = not task.has_own_order and position.step + num_steps < self.end_step
            with contextlib.closing(batches):  # an early end waits for the batches in flight
                for number in range(num_steps):
                    self._step(watched, progress, is_first)
                    # Not earlier: `batches` begins in the first step, and drops another epoch that waits.
                    if number == 0 and goes_on:
                        self._begin(position.first_epoch + epoch + 1)
                    # After the last step a stop counts later: the stage's end is saved and summed up first.
                    if self.safepoint.after_step(is_first=is_first, is_last=position.step == self.end_step):
                        return False
                    is_first = False
            if not self._probe():
                return False
        return True

    def _tell_gap(self, seconds: float) -> None:
        """Tell the time between two epochs, once: if labels decide their order, or if it is long."""
        epoch_s = self.position.seconds * self.steps_per_epoch / self.position.step
        share = seconds / (seconds + epoch_s)
        if seconds >= _TOLD_GAP_S and (self.experiment.task.has_own_order or share > LONG_SHARE):
            epoch = self.position.step // self.steps_per_epoch + 1
            text = f"{self.stage.name}: {seconds:.2g} s without a step before epoch {epoch}, {share:.1%} of "
            text += "its time: labels, log, checkpoint and probe"
            self.run.reporter.log_once("between epochs", text)

    def _begin(self, epoch: int, order: np.ndarray | None = None) -> None:
        """Let the loader start the next epoch's first batches, if it can."""
        if isinstance(self.loader, Loader):
            self.loader.begin(epoch, order)

    def _step(self, batches: Iterator[Batch], progress: operation, is_first: bool) -> None:
        """Make the next step: its seed, its rate, its batches, the update and the report."""
        run, position, options = self.run, self.position, self.run.options
        step_words = f"{self.stage.name}: step {position.step + 1:,} of {self.end_step:,}"
        waiting = "waiting for its batch" + (" on every rank" if run.world.size > 1 else "")
        building = f", the first: {what_is_built(self.train_step.step_choice.mode)}" if is_first else ""
        # By the position, so that a resume needs no generator's state; by the rank, for other dropout.
        torch.manual_seed(torch_seed(options.seed, position.stage, position.step, run.world.rank))
        place = (position.first_epoch, self.stage.max_epochs, self.all_epochs, position.stage)
        started = time.perf_counter()  # before the batch, because the wait for it is a part of the step
        lr = self.experiment.schedule(Moment(position.step, self.num_steps, *place))
        with progress.span(f"{step_words}: {waiting}", early=is_first):
            first = next_on_all_ranks(batches, run.world, self._save_last_step)
        if self.ended_s is not None:
            self._tell_gap(time.perf_counter() - self.ended_s)
            self.ended_s = None
        with progress.span(f"{step_words}{building}", early=is_first):
            # A step that has begun is not saved if its data fail: BatchNorm has seen the first batch. Its
            # rank ends in the error, and the others as they do when a rank has gone.
            rest = itertools.islice(batches, options.accumulate - 1)
            metrics = self.train_step.step(itertools.chain([first], rest), lr, options.accumulate)
        position.step += 1
        position.run_step += 1
        if position.step % self.steps_per_epoch == 0:
            whole, self.ended_s = position.step // self.steps_per_epoch, time.perf_counter()
            with progress.span(f"{self.stage.name}: after epoch {whole}"):
                number = position.first_epoch + whole
                if position.step < self.end_step:
                    # First, so that the next batches come while figures and checkpoint are written.
                    order = self.experiment.task.next_order(number)
                    if order is not None:
                        self._begin(number, order)
                self._end_epoch()
        # Last, because it may wait for the device, and an epoch that comes next has begun to load by now.
        run.reporter.step(position.step, position.run_step, lr, metrics)
        position.seconds += time.perf_counter() - started  # the reporter has waited for the device

    def _begin_epoch(self, epoch: int, step_in_epoch: int) -> bool:
        """Call the task, if an epoch begins, and set its order. Return False if a signal stopped it."""
        position, task = self.position, self.experiment.task
        number, figures = position.first_epoch + epoch, None
        # A launcher kills 30 s after a signal, and the task's passes may take longer.
        if position.step and task.pass_views(self.stage.level):
            self.safepoint.keep()
        if step_in_epoch == 0:
            try:
                figures = task.start_epoch(self._context(epoch))
            except PassStopped:
                return False
        self.order = task.epoch_order(number)  # also in mid-epoch, where a resume has to ask for it
        if step_in_epoch == 0:
            if task.has_own_order:  # its first batches come while figures are logged
                self._begin(number, self.order)
            # Logged with the next step's number, because a resume at the present step starts the epoch again.
            self.run.reporter.epoch(figures, number, position.run_step + 1)
        self.run.stop_signal.other_pace()  # passes had another duration per step
        return True

    def _probe(self) -> bool:
        """Probe the features, if it is time to, and end the stage if they have settled (`FreezeRule`).

        Return False if a signal stopped it.
        """
        # As before a task's passes: a look may last longer than a launcher waits.
        if self.position.step and self.online_probe.is_on:
            self.safepoint.keep()
        if not self.online_probe.probe(self.steps_per_epoch, self.end_step, self.train_step.release):
            return False
        if self.online_probe.settled:
            # Both, because the summary would call a stage cut that has fewer steps than planned.
            self.end_step = self.num_steps = self.position.step
        return True

    def _end_epoch(self) -> None:
        """Call the task after an epoch's last step, or where the epoch is cut short."""
        position, task = self.position, self.experiment.task
        whole, rest = divmod(position.step, self.steps_per_epoch)
        if rest:  # after a resume at this very step, `_train` has not called it for this epoch
            task.epoch_order(position.first_epoch + whole)
        epochs = position.first_epoch + position.step / self.steps_per_epoch
        self.run.reporter.epoch(task.end_epoch(), epochs, position.run_step)

    def _context(self, epoch: int) -> EpochContext:
        """Return the argument of the task's hooks around the stage's epoch `epoch`."""
        # In the second half, because warm-ups count from the first half's beginning.
        unused = self._first_unused_epoch + MAX_WARM_UP_EPOCHS // 2 + epoch
        in_stage = partial(self.experiment.in_stage, self.stage)
        number = self.position.first_epoch + epoch
        return EpochContext(self.run, self.train_step, number, epoch == 0, unused, in_stage)

    def _save_last_step(self) -> str | None:
        """Save the last complete step and return its place; None if there is none or it cannot be saved."""
        # Before a stage's first step, the stage before has been saved.
        if not self.position.step or not self.safepoint.write():
            return None
        return f"stage {self.position.stage + 1}, step {self.position.step}"

    @property
    def _first_unused_epoch(self) -> int:
        """The first epoch number that no training has, so that its orders and draws are free for passes."""
        return self.all_epochs + self.position.stage * MAX_WARM_UP_EPOCHS

    def _state(self) -> dict[str, Any]:
        return {
            "position": asdict(self.position),
            "so_far": self.run.so_far(),
            "num_stages": len(self.experiment.stages),
            "backbone": self.experiment.backbone.state_dict(),
            "train_step": self.train_step.state_dict(),
            "choices": choices_of(self.train_step) | decoder_choice(self.run),
            "task": dict(self.experiment.task.state_dict()),  # on every rank, because it may communicate
            "probe": self.online_probe.state_dict(),
            "input": self.experiment.input_record(self.stage) | self.run.data.train.reading.as_dict(),
        }
