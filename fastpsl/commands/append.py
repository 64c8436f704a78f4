"""`fastpsl data append`."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from fastpsl.commands.writing import counted, record_of, write_and_tell


@dataclass(frozen=True)
class Append:
    """Append the images of another source to a dataset file or to shards, as one more file beside them.

    What is there is not touched: to train.beton comes train.more-00001.beton, and 'train.*beton' names both.
    Images are stored as those of DATA (sizes, quality, mode). Labels go by the names of the classes; a class
    that DATA has not is refused.
    """

    src: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SRC")]]
    """What to append: a folder, a list, tars, ..., as for fastpsl data write."""
    data: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DATA")]]
    """A dataset file, or a quoted glob of shards."""
    format: Literal["auto", "folder", "list", "tar", "npz", "parquet", "cifar10", "cifar100", "stl10"] = (
        "auto"
    )
    """What SRC is. [told from SRC]"""
    split: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Which part of a SRC that holds several, e.g. train."""
    image_column: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Of parquet and hf:, where several may hold images."""
    label_column: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Of parquet and hf:, where several may hold labels; none for no labels."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """Threads; the file does not depend on it. [one per core]"""
    max_bad: Annotated[str, tyro.conf.arg(metavar="N|N%")] = "1%"
    """How many bad images are left out and listed before writing stops with exit 2."""
    overwrite: bool = False
    """Without --resume, start an interrupted appending anew."""
    resume: bool = False
    """Go on where an interrupted appending was."""

    def run(self) -> None:
        """Write the further file, and print what became of the images.

        Raises:
            ValueError: A number is out of range, SRC does not suit DATA, or it cannot be written.
        """
        from fastpsl.pipelines.beton.write import appendix, max_bad_count

        if self.workers is not None and not 1 <= self.workers <= 4096:
            raise ValueError(f"--workers {self.workers}: give a number from 1 to 4096")
        max_bad_count(self.max_bad, 0)  # fails before the source is counted
        source = counted(
            self.src,
            self.format,
            split=self.split,
            image_column=self.image_column,
            label_column=self.label_column,
        )
        record = record_of(self.src, self.split, "0/1", source) | {"appended": True}
        new = appendix(self.data, source, record)
        write_and_tell(
            "append",
            self,
            new.out,
            source.num_samples,
            new.samples(source),
            class_names=new.class_names,
            target=new.target,
            num_workers=self.workers,
            max_bad=self.max_bad,
            overwrite=self.overwrite,
            resume=self.resume,
            record=record,
        )
        print(f"'{new.pattern}' names all of it")
