"""`fastpsl replay`: the images of a past step of a run, and which of them made its loss."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fastpsl.console.words import metric_words, number_of
from fastpsl.files.json_records import is_number
from fastpsl.models.names import ANY_BACKBONE

if TYPE_CHECKING:
    from fastpsl.evaluation.replay import Replayed

_BAR = 24  # letters
_COUNTERS = {"run_step", "stage", "level", "step", "lr"}


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Show a past step of a training: the very images and draws that the network saw, and each image's loss.

    The images follow from the seed, for any step. The losses need a kept checkpoint before it in its stage;
    the trainer goes on from there, and nothing in RUN is written. OUT gets a sheet of the images with the
    largest losses, and a table of all. See https://fastpsl.github.io/fastpsl/how_to/replay.html.
    """

    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """The folder of a training, which may be running."""
    step: Annotated[str, tyro.conf.arg(metavar="STEP")]
    """A step of the run over all its stages, as run_step in metrics.jsonl; or of a stage, as the screen shows
    it: S2:120."""
    rank: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """The images of this rank alone. [all]"""
    around: Annotated[int, tyro.conf.arg(metavar="NUM")] = 0
    """Steps before and after it whose losses are listed, to find a spike."""
    num: Annotated[int, tyro.conf.arg(metavar="NUM")] = 16
    """Images on the sheet and in the terminal."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder to write to. [replay-RUN in this folder]"""
    most_steps: Annotated[int, tyro.conf.arg(metavar="NUM")] = 1000
    """Steps that are made again for the losses, at most; 0 for the images alone."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """Where the training images are now. [where they were]"""
    other_data: bool = False
    """Show images whose digest is not that of the run's, without losses. There must be as many."""
    backbone: Annotated[str | None, tyro.conf.arg(metavar="NAME", help=f"The run's: {ANY_BACKBONE}.")] = None
    teacher: Annotated[str | None, tyro.conf.arg(metavar="TEACHER")] = None
    """A distillation's teacher, if it has moved or is a FILE.py:CLASS. [the run's]"""
    teacher_backbone: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The teacher's backbone, if it is a FILE.py:CLASS. [the run's]"""
    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The run's recipe, if it is a file of yours, such as my_recipe.py."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto is CUDA if there is a GPU."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """Decoding threads per GPU."""

    def run(self) -> None:
        """Write the sheet and the table, and print what they hold; under torchrun, rank 0 does."""
        from fastpsl.engine.distributed import join_world, leave_world
        from fastpsl.evaluation.replay import PastRun, replay_step

        out = self.out or Path(f"replay-{self.folder.resolve().name}")
        if out.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"--out {out}: it is in the run's folder, which is only read; give another")
        past_run = PastRun.of(
            self.folder, data=self.data, backbone=self.backbone, recipe=self.recipe, teacher=self.teacher,
            teacher_backbone=self.teacher_backbone, device=self.device,
            workers=self.workers,
        )  # fmt: skip
        world = join_world(self.device, timeout_s=10 * past_run.options.timeout_s)
        try:
            found = replay_step(
                past_run, self.step, world, rank=self.rank, num=self.num, num_around=self.around,
                most_steps=self.most_steps, other_data=self.other_data,
            )  # fmt: skip
        finally:
            leave_world()
        if world.rank == 0:
            for line in self._lines(found, out):
                print(line)

    def _lines(self, found: "Replayed", out: Path) -> Iterator[str]:
        """Yield what to print, after the files are written."""
        past, row = found.past, found.past.row
        sheet, table = found.save(out)
        epoch, step = past.place(found.steps_per_epoch)
        yield (
            f"step {past.run_step:,} of the run: step {past.step:,} of {found.stage.name} (level "
            f"G{found.stage.level}), step {step + 1:,} of {found.steps_per_epoch:,} in its epoch "
            f"{epoch - past.first_epoch + 1:,}"
        )
        if self.around:
            yield from _around(past.around, past.run_step)
        yield from found.notes
        metrics = {name: value for name, value in row.items() if name not in _COUNTERS and is_number(value)}
        words = [f"{name} {metric_words(name, value)}" for name, value in metrics.items()]
        yield ", ".join([*words, *([f"lr {row['lr']:.3g}"] if row.get("lr") is not None else [])])
        if found.made is not None:
            yield _comparison(metrics, found.made.row)
        yield from _table(found, self.num)
        shown = min(self.num, len(found.images))
        which = "" if found.images[0].loss is None else ", those of the largest losses"
        if sheet.exists():
            yield f"{sheet}: {number_of(shown, 'image')}{which}"
        yield f"{table}: {number_of(len(found.images), 'image')} with all that was drawn"
        if found.images[0].loss is not None:
            worst = found.images[0]
            yield f"the largest loss: {worst.loss:.4g}, sample {worst.sample}, {found.first}"


def _comparison(recorded: Mapping[str, float], made: Mapping[str, Any]) -> str:
    """Return a line that compares the numbers of the repeated step with the recorded ones."""
    off = {name: made.get(name) for name, value in recorded.items() if repr(made.get(name)) != repr(value)}
    if not off:
        return "made again: each of these numbers is the recorded one, to the last bit"
    words = [f"{name} {value!r}, recorded {recorded[name]!r}" for name, value in off.items()]
    return f"made again: not to the bit the recorded numbers: {'; '.join(words)}"


def _around(rows: Sequence[Mapping[str, Any]], run_step: int) -> Iterator[str]:
    """Yield the losses of steps with bars, the step and the largest loss marked."""
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    finite = [loss for loss in losses if isfinite(loss)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    yield f"{'step':>10}  {'stage':<6}{'step':>8}  {'lr':>9}  {'loss':>9}"
    for row in rows:
        loss, step, lr = (row.get(name) for name in ("loss", "step", "lr"))
        share = (loss - low) / ((high - low) or 1.0) if loss is not None and isfinite(loss) else 1.0
        bar = "" if loss is None else "█" * max(1, round(_BAR * share))
        marks = [*(["<- this step"] if row["run_step"] == run_step else [])]
        marks += ["largest"] if loss is not None and loss == high else []
        pairs = ((step, ","), (lr, ".3g"), (loss, ".4g"))
        cells = ["" if value is None else format(value, form) for value, form in pairs]
        line = f"{row['run_step']:>10,}  {row['stage']:<6}{cells[0]:>8}  {cells[1]:>9}  {cells[2]:>9}"
        yield f"{line}  {bar:<{_BAR}}  {', '.join(marks)}".rstrip()


def _table(found: "Replayed", num: int) -> Iterator[str]:
    """Yield a line for each of the first images."""
    from fastpsl.plots.png import class_name

    titles = ["loss", "rank", "sample", "class", "file", "drawn"]
    rows = [
        [
            "" if image.loss is None else f"{image.loss:.4g}", f"{image.rank}", f"{image.sample:,}",
            class_name(found.class_names, image.label), image.file,
            image.caption.replace("\n", " | ") or image.drawn,
        ]
        for image in found.images[:num]
    ]  # fmt: skip
    used = [n for n in range(len(titles)) if any(row[n] for row in rows)]
    if len({image.rank for image in found.images}) == 1:
        used.remove(1)
    widths = {n: max(len(row[n]) for row in [titles, *rows]) for n in used}
    for row in [titles, *rows]:
        yield "  ".join(row[n].rjust(widths[n]) if n < 3 else row[n].ljust(widths[n]) for n in used).rstrip()
