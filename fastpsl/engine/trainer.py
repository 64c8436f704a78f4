"""The training loop. It knows stages, steps and batches, never a task's name."""

import contextlib
import itertools
import time
from dataclasses import asdict
from typing import Any

import torch

from fastpsl.engine.data_failures import next_on_all_ranks
from fastpsl.engine.dataset_pass import EpochContext, PassStopped
from fastpsl.engine.experiment import Experiment, make_train_step, place_backbone
from fastpsl.engine.first_batch import look_at_first_batch
from fastpsl.engine.gpu_memory import peak_memory, reset_peak_memory
from fastpsl.engine.kept_choices import AUTOMATIC, choices_of, with_kept_choices
from fastpsl.engine.last_step import LONG_STEP_S, LastStep
from fastpsl.engine.online_probe import OnlineProbe
from fastpsl.engine.optim.schedules import Moment
from fastpsl.engine.options import RunOptions
from fastpsl.engine.resume import loading
from fastpsl.engine.run import Run
from fastpsl.engine.run_data import BatchSource
from fastpsl.engine.seed import torch_seed
from fastpsl.pipelines.augment import choose_augment
from fastpsl.pipelines.doing import doing

MAX_WARM_UP_EPOCHS = 1_000_000


def pretrain(experiment: Experiment, run: Run) -> bool:
    """Train through the plan, from the run's checkpoint if it has one. False when a signal stopped it (after saving)."""
    experiment.check(run.data)  # again, for runs that were opened without it
    (state, run.resume_state), position = (run.resume_state, None), run.position
    place_backbone(experiment, run.options, run.world)
    if state:
        with loading(run.resumed_from):
            experiment.backbone.load_state_dict(state["backbone"])
    with LastStep(run) as last_step:
        while len(position.summaries) < len(experiment.stages):
            if len(position.summaries) > position.stage:
                position.next_stage(experiment.stages[position.stage].max_epochs)
                state = None
            name = experiment.stages[position.stage].name
            with doing(f"{name}: building the network"):
                stage_trainer = StageTrainer(experiment, run, state, last_step)
            with doing(name) as told:
                if not stage_trainer.to_its_end(told):
                    return False
    return True


class StageTrainer:
    """The stage at which the run stands, from there (and the checkpoint `state` of there) to the stage's end."""

    def __init__(self, experiment: Experiment, run: Run, state: dict[str, Any] | None, last_step: LastStep):
        self.experiment, self.run, self.position, self.kept_step = experiment, run, run.position, last_step
        self.stage = stage = experiment.stages[run.position.stage]
        self.fresh = state is None
        self.held_out_views = experiment.task.held_out_views(stage.level)
        self.images_per_sample = experiment.task.images_per_sample(stage.level)
        options = run.options
        if state:  # in mid-stage: as the stage began
            options = with_kept_choices(options, state.get("choices", {}), self._possible, run.reporter.say)
        # By `auto` in one way, and by the checkpoint in another.
        self.kept = {name for name in AUTOMATIC if getattr(options, name) != getattr(run.options, name)}
        reset_peak_memory(run.world.device)
        self.train_step = make_train_step(experiment, run.position.stage, options, run.world)
        self.views, trunk = self.train_step.views, self.train_step.module.trunk
        every = getattr(run.options, "probe_every", 0)
        self.online_probe = OnlineProbe(run, trunk, stage, self.views[0] if every else None, every)
        if state:
            with loading(run.resumed_from):
                self.train_step.load_state_dict(state["learner"])
                experiment.task.load_state_dict(state["task"])

    def _say_choices(self) -> None:
        """How this stage is computed, and why so."""
        augment, step, frozen = (
            self.train_step.augment,
            self.train_step.step_choice,
            self.stage.first_learning - 1,
        )
        ways = [("augment", augment.path, augment.reason), ("step", step.mode, step.reason)]
        for name, way, reason in ways[not self.views :]:
            self.run.reporter.say(f"{name} {way}: {'as the stage began' if name in self.kept else reason}")
        if self.train_step.fold_frozen:
            self.run.reporter.say(
                f"folded: {'B1 to ' if frozen > 1 else ''}{f'B{frozen}' if frozen else 'no block is frozen'}"
            )

    def _possible(self, options: RunOptions) -> None:
        """ValueError where this stage cannot be computed here as `options` ask."""
        views = (*self.experiment.task.views(self.stage.level), *self.held_out_views)
        choose_augment(options.augment, views, self.run.world.device)
        self.experiment.choose_step(self.stage, options, self.run.world)

    def to_its_end(self, told: doing) -> bool:
        """Train, save, evaluate. False when a signal stopped it; what was learned is saved then too. told: what is being done."""
        run, position = self.run, self.position
        with contextlib.ExitStack() as stack:
            told.turn_to(f"{self.stage.name}: opening its loaders")
            each = self.images_per_sample
            own = self.experiment.task.train_loader(run.data)
            loader = stack.enter_context(
                own or run.data.loader(run.data.train, self.views, train=True, images_per_sample=each)
            )
            val_loader = None
            # Opened now: what cannot be evaluated is refused before the epochs.
            if run.data.val is not None and self.held_out_views:
                val_loader = stack.enter_context(
                    run.data.loader(run.data.val, self.held_out_views, train=False, images_per_sample=each)
                )
            self.steps_per_epoch = loader.num_steps // run.options.accumulate
            self.num_steps = self.stage.num_steps or self.stage.epochs * self.steps_per_epoch
            self.last_step = min(self.num_steps, run.options.max_steps_per_stage or self.num_steps)
            run.reporter.stage_begins(self.stage, position.step, self.last_step, self.steps_per_epoch)
            self._say_choices()
            look_at_first_batch(run, self.experiment.task, self.stage, loader)
            # What was filled in part is not saved: it is filled anew.
            if self.fresh and not self._warm_up(loader):
                return False
            finished = self._train(loader, told)
            self.save()
            held_out: dict[str, float] | None = {}
            if finished and val_loader:
                batches = run.reporter.watched(val_loader.epoch(0))
                stopped = lambda: run.stop_signal.after_step().stop
                run.stop_signal.other_pace()
                of_all, num = val_loader.batch_size * run.world.size, val_loader.num_samples
                with doing(f"{self.stage.name}: held-out pass", "images", num) as passed:
                    held_out = self.train_step.evaluate(
                        passed.over(batches, of_all), self.held_out_views, stopped
                    )
                finished = held_out is not None
            if finished:
                told.turn_to(f"{self.stage.name}: ending the stage")
                assert held_out is not None
                if position.step % self.steps_per_epoch:
                    self._end_epoch()  # of an epoch that was cut short
                if not self._end_stage():
                    return False
                chance = self.experiment.task.chance(self.stage.level)
                position.summaries.append(
                    run.reporter.stage_summary(
                        self.stage,
                        (position.step, self.num_steps),
                        position.seconds,
                        held_out,
                        chance,
                        peak_memory(run.world.device),
                    )
                )
                self.save()
        return finished

    def _warm_up(self, loader: BatchSource) -> bool:
        """The passes that a task asks for before a new stage's first step. False when a signal stopped them."""
        run = self.run
        num_batches = self.experiment.task.num_warm_up_batches(self.stage)
        if num_batches:
            run.reporter.say(f"{self.stage.name}: {num_batches} batches pass first, which are no steps")
        epoch, done = self._first_unused_epoch, 0
        with doing(f"{self.stage.name}: before its first step", "batches", num_batches) as told:
            run.stop_signal.other_pace()
            while done < num_batches:
                batches = loader.epoch(epoch)
                for batch in itertools.islice(run.reporter.watched(batches), num_batches - done):
                    self.train_step.warm_up(self.experiment.task.warm_up, batch)
                    done += 1
                    told.update(done)
                    if run.stop_signal.after_step().stop:
                        batches.close()
                        return False
                batches.close()
                epoch += 1
        return True

    def _train(self, loader: BatchSource, told: doing) -> bool:
        name, first = self.stage.name, ", for which much is compiled"
        experiment, run, position, options = self.experiment, self.run, self.position, self.run.options
        steps_per_epoch, last_step = self.steps_per_epoch, self.last_step
        while position.step < last_step:
            epoch, step_in_epoch = divmod(position.step, steps_per_epoch)
            told.turn_to(f"{name}: before epoch {epoch + 1}")
            may_take_long = experiment.task.pass_views(self.stage.level) or self.online_probe.every
            if position.step and may_take_long and not self.kept_step.is_safe():
                self.keep()
            if not self.online_probe.probe(steps_per_epoch, last_step):
                return False
            if step_in_epoch == 0 and not self._start_epoch(epoch):
                return False
            order = experiment.task.epoch_order(position.first_epoch + epoch)
            batches = loader.epoch(position.first_epoch + epoch, step_in_epoch * options.accumulate, order)
            watched = run.reporter.watched(batches)
            run.stop_signal.other_pace()  # than that of passes
            for _ in range(step_in_epoch, min(steps_per_epoch, last_step - position.step + step_in_epoch)):
                torch.manual_seed(torch_seed(options.seed, position.stage, position.step, run.world.rank))
                started = time.perf_counter()
                told.turn_to(f"{name}: step {position.step + 1:,} of {last_step:,}{first}")
                first = ""
                lr = experiment.schedule(self._moment())
                for number in range(1, options.accumulate + 1):
                    if number == 1:
                        batch = next_on_all_ranks(watched, run.world, self._save_last_step)
                    else:
                        batch = next(watched)
                    self.train_step.backward(batch, options.accumulate, is_last=number == options.accumulate)
                metrics = self.train_step.update(lr)
                experiment.task.after_step()
                position.step += 1
                position.run_step += 1
                if position.step % steps_per_epoch == 0:
                    told.turn_to(f"{name}: after epoch {epoch + 1}")
                    self._end_epoch()
                run.reporter.step(position.step, position.run_step, lr, metrics, self.train_step.num_skipped)
                position.seconds += time.perf_counter() - started  # the reporter has waited for the device
                decision = run.stop_signal.after_step()
                if decision.stop and position.step < last_step:
                    batches.close()
                    return False
                due = options.checkpoint_steps and position.run_step % options.checkpoint_steps == 0
                if decision.checkpoint or due:
                    self.save()
                elif decision.seconds > LONG_STEP_S:
                    self.keep()
                else:
                    self.kept_step.let_go()
            batches.close()
        if self.online_probe.every and not self.kept_step.is_safe():
            self.keep()
        return self.online_probe.probe(steps_per_epoch, last_step)

    def _start_epoch(self, epoch: int) -> bool:
        """Call the task before the first step of epoch `epoch` of the stage. False when a signal stopped it."""
        position = self.position
        try:
            figures = self.experiment.task.start_epoch(self._context(epoch))
        except PassStopped:
            return False
        # With the step that comes: a resume at this one finds its epoch not begun.
        self.run.reporter.epoch(figures, position.first_epoch + epoch, position.run_step + 1)
        return True

    def _end_epoch(self) -> None:
        """Call the task after an epoch's last step, or where it is cut."""
        position, task = self.position, self.experiment.task
        whole, rest = divmod(position.step, self.steps_per_epoch)
        if rest:  # it may have been resumed here, where no step is left that would ask for its order
            task.epoch_order(position.first_epoch + whole)
        epochs = position.first_epoch + position.step / self.steps_per_epoch
        self.run.reporter.epoch(task.end_epoch(), epochs, position.run_step)

    def _end_stage(self) -> bool:
        """Call the task after the stage's last step. False when a signal stopped it."""
        try:
            self.experiment.task.end_stage(self._context(self.stage.max_epochs))
        except PassStopped:
            return False
        return True

    def _context(self, epoch: int) -> EpochContext:
        """What the task's hooks are handed around epoch `epoch` of the stage."""
        unused = self._first_unused_epoch + MAX_WARM_UP_EPOCHS // 2 + epoch
        return EpochContext(self.run, self.train_step, self.position.first_epoch + epoch, epoch == 0, unused)

    def _save_last_step(self) -> str | None:
        """Save the last whole step and say where the run goes on; None where no step was made, or it cannot be saved either."""
        if not self.position.step:
            return None  # the stage before has saved what it left
        try:
            if self.kept_step.is_safe():
                self.kept_step.write()  # without what this epoch did before its first step, which is done again
            else:
                self.save()
        except (ValueError, OSError):
            return None
        return f"stage {self.position.stage + 1}, step {self.position.step}"

    @property
    def _first_unused_epoch(self) -> int:
        """Training never comes to epochs of this number and above: their orders and draws are nobody else's."""
        return (
            sum(stage.max_epochs for stage in self.experiment.stages)
            + self.position.stage * MAX_WARM_UP_EPOCHS
        )

    def _moment(self) -> Moment:
        position, all_epochs = self.position, sum(stage.max_epochs for stage in self.experiment.stages)
        return Moment(position.step, self.num_steps, position.first_epoch, self.stage.max_epochs, all_epochs)

    def save(self) -> None:
        """Checkpoint on rank 0; called by every rank at the same step, as a task's state may have to be gathered."""
        # Metrics first: lines past a checkpoint are cut off on resume, but lines that are missing stay missing.
        self.run.reporter.flush(durably=True)
        with doing("writing a checkpoint"):
            self.kept_step.save(self._state())
        self.run.stop_signal.checkpointed()

    def keep(self) -> None:
        """What a checkpoint would hold, for a stop in what comes now (`LastStep`); called as `save` is."""
        self.run.reporter.flush()
        self.kept_step.keep(self._state())
        self.run.stop_signal.other_pace()  # the time of the copy is no step's

    def _state(self) -> dict[str, Any]:
        task = dict(self.experiment.task.state_dict())
        return {
            "position": asdict(self.position),
            "num_stages": len(self.experiment.stages),
            "backbone": self.experiment.backbone.state_dict(),
            "learner": self.train_step.state_dict(),
            "choices": choices_of(self.train_step),
            "task": task,
            "input": self.experiment.task.input_record(self.stage.level),
        }
