"""`fastpsl table`: a table of a paper beside our own results."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastpsl.console.words import hint
from fastpsl.tables.paper_file import NAMES


@dataclass(frozen=True)
class Table:
    """Print a table of PSL's, UIC's or SSL++'s paper beside our own results, or the list of tables.

    Below the table stand the commands of the results that are missing.
    Those result.json files under RUNS count that were measured whole, on one data set, with the values of
    the scale. The others are listed with the reason. With --out, OUT gets NAME.md and NAME.png.
    Something missing is no error. See
    https://fastpsl.github.io/fastpsl/evaluate/tables.html; for the forms of DATA,
    https://fastpsl.github.io/fastpsl/how_to/pack_a_dataset.html.
    """

    name: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="|".join(NAMES))]] = None
    """psl/4: linear classifiers, all methods; 5: each block, jigsaw; 6: each block, rotation; 7: few labels;
    8: detection; 9: SVMs and linear classifiers on other data; ablations: jigsaw with other orders, lengths
    and partitions, which are not in the paper. uic/1: number of classes; 2: fine-tuning; 3: the view that
    labels are made of; 4: linear classifiers, all methods; 5: fine-tuned on Pascal VOC; 6: few-shot; 7:
    strong augmentation; 8: other networks. sslpp/3: a NIN block on each block; 4: other classifiers; 5, 6:
    nearest neighbours; 7, 10, fig1: AlexNet's layers, from Tiny-YFCC100M to STL-10; 8: few labels; 9: where
    pseudo-labels come from; 11: without the task; 12: coupled; 13, 14: clusters and transformations; fig3:
    fine-tuned on Pascal VOC; fig4, fig5: retrieval, t-SNE; fig6: lambda; -stl: STL-10; -yfcc: from
    Tiny-YFCC100M."""
    runs: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder that holds the runs, at any depth; the commands write there too. [runs]"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder to write to. [nothing is written]"""
    scale: Literal["paper", "tiny"] = "paper"
    """tiny: small sizes for any folder of images of 64 px or more (sslpp: 32), three seeds; two cores do a
    row in less than an hour."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """Training images, for the commands: a dataset file, a quoted glob of shards, a folder of images or a
    list of them. If it is given, results of other images do not count. [TRAIN]"""
    val: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """Validation images, in the same forms. [VAL]"""
    pretrain_data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """What trainings without labels learn from, in the tables of STL-10 and Tiny-YFCC100M, in the same forms.
    [PRETRAIN]"""
    voc: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder VOCdevkit, for what is evaluated on Pascal VOC. [VOCdevkit]"""
    proposals: Annotated[tuple[str, str] | None, tyro.conf.arg(metavar="TRAIN TEST")] = None
    """Published proposals for Fast R-CNN (uic/5). [voc_2007_trainval.mat voc_2007_test.mat]"""
    sbd: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """SBD's masks (uic/5). [SBD]"""
    places205: Annotated[tuple[str, str] | None, tyro.conf.arg(metavar="TRAIN VAL")] = None
    """Places205 (psl/9): dataset files, lists or folders. [PLACES-TRAIN PLACES-VAL]"""
    inat18: Annotated[tuple[str, str] | None, tyro.conf.arg(metavar="TRAIN VAL")] = None
    """iNaturalist 2018 (psl/9), in the same forms. [INAT-TRAIN INAT-VAL]"""
    mini_imagenet: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """miniImageNet's test classes (uic/6), in the same forms. [MINI-IMAGENET-TEST]"""
    gpus: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """GPUs, for the commands. [8; tiny: 1]"""

    def run(self) -> None:
        """Print the table, or the list of tables; write its pages."""
        if self.name not in (None, *NAMES):
            near = hint(str(self.name), NAMES)
            raise ValueError(f"unknown table {self.name!r}: {near}allowed are {', '.join(NAMES)}")
        from fastpsl.tables.terminal import print_table, print_tables

        if self.name is None:
            print_tables()
            return
        from fastpsl.tables.data_sets import OTHER_DATA
        from fastpsl.tables.page import make_table

        paths = {name: getattr(self, name) for name in OTHER_DATA}
        report, lines = make_table(
            self.name,
            self.runs,
            self.out,
            scale=self.scale,
            data=self.data,
            val=self.val,
            pretrain_data=self.pretrain_data,
            others={name: (path,) if isinstance(path, str) else path for name, path in paths.items() if path},
            num_processes=self.gpus,
        )
        print_table(report)
        print("\n".join(lines))
