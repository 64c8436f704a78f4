"""The `fastpsl` command."""

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastpsl.commands import beton as beton_command
from fastpsl.commands import clusters as clusters_command
from fastpsl.commands import doctor as doctor_command
from fastpsl.commands import features as features_command
from fastpsl.commands import labels as labels_command
from fastpsl.commands import retrieve as retrieve_command
from fastpsl.commands import table as table_command
from fastpsl.commands import tsne as tsne_command
from fastpsl.doctor.options import Doctor
from fastpsl.engine.address_space import require_address_space
from fastpsl.engine.command_line import parse
from fastpsl.engine.terminal import people_read
from fastpsl.pipelines.doing import doing

# Each command imports what it needs: `fastpsl --help` shall not wait for torch or numba.

EXIT_USER_ERROR = 2


@dataclass(frozen=True)
class Permutations:
    """Make a set of jigsaw permutations far from each other: integers [max(counts), pieces] from 0, in nested
    prefixes."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.npy")]
    """The .npy file to write."""
    num_pieces: Annotated[int, tyro.conf.arg(metavar="NUM")] = 9
    """Tiles of a puzzle."""
    counts: Annotated[tuple[int, ...], tyro.conf.arg(metavar="NUM...")] = (500, 1000, 2000)
    """Sizes of the nested sets, rising: the first 500 rows are the first set, and so on."""
    overwrite: bool = False
    """Replace FILE.npy, which is refused otherwise."""


@dataclass(frozen=True)
class Show:
    """Draw a contact sheet of what the network sees: a task's views at the paper's sizes, or the decoder's crops.

    Each picture's caption tells the sample's number, its class, and what the task drew.
    """

    data: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="DATA")]] = None
    """A beton, a quoted glob of shards, a folder of images or a list of them (docs/sources.md). [the embedded sample]"""
    task: Annotated[
        str,
        tyro.conf.arg(metavar="crops|jigsaw|rotation|simclr|moco|uic|iic|colorization|context|rotnet|aet"),
    ] = "crops"
    """crops: two random resized crops of each sample, no task. From iic on: SSL++'s, whose pictures are of --shorter-px 32 in the paper."""
    level: Annotated[int, tyro.conf.arg(metavar="LEVEL")] = 1
    """The task's level, from 1."""
    num: Annotated[int, tyro.conf.arg(metavar="NUM")] = 16
    """Samples to draw."""
    seed: int = 0
    """Another seed shows other samples, other crops and other draws."""
    shorter_px: Annotated[int, tyro.conf.arg(metavar="PX")] = 256
    """Shorter side of the picture that is cut from; the task's other sizes keep the paper's proportion to it."""
    decoder: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """As in a recipe."""
    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda")] = "auto"
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png")] = None
    """The PNG to write. [TASK-GLEVEL.png in this folder]"""


@dataclass(frozen=True)
class Export:
    """Write a checkpoint's backbone alone, under the names and in the file of another library.

    What the weights expect to see goes along in OUT.json (safetensors: in the file's metadata).
    """

    checkpoint: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="CHECKPOINT")]]
    """A checkpoint, a run's folder (its newest), or others' weights, of which the flags below must tell; see docs/weights.md."""
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """The file to write: resnet50.pth, .pkl for Detectron2, .safetensors."""
    to: Literal["torchvision", "timm", "detectron2", "safetensors"]
    """Who shall read it."""
    overwrite: bool = False
    """Replace OUT, which is refused otherwise."""
    backbone: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Of others' weights: alexnet, alexnet_rotnet, nin3, nin4, nin5, resnet18, resnet18_cifar, resnet34, resnet34_iic, resnet50, resnet50_mlp, revnet50 or vgg16."""
    input_channels: Annotated[
        Literal["RGB", "L", "Sobel", "SobelXY"] | None, tyro.conf.arg(metavar="RGB|L|Sobel|SobelXY")
    ] = None
    """Of others' weights: what they were trained on."""
    input_mean: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="MEAN...")] = None
    """Of others' weights: what was taken off pixels in [0, 1], a value a channel."""
    input_std: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="STD...")] = None
    """Of others' weights: what they were divided by, likewise."""
    input_size_px: Annotated[int, tyro.conf.arg(metavar="PX")] = 224
    """Of others' weights: side of their crops."""


Command = (
    Annotated[beton_command.Beton, tyro.conf.subcommand("beton")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[features_command.Features, tyro.conf.subcommand("features")]
    | Annotated[retrieve_command.Retrieve, tyro.conf.subcommand("retrieve")]
    | Annotated[tsne_command.TSNE, tyro.conf.subcommand("tsne")]
    | Annotated[Permutations, tyro.conf.subcommand("permutations")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[labels_command.MakeLabels, tyro.conf.subcommand("labels")]
    | Annotated[clusters_command.Clusters, tyro.conf.subcommand("clusters")]
    | Annotated[table_command.Table, tyro.conf.subcommand("table")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 done, 2 user error (one line on stderr), 130 interrupted; doctor's 1: a step waits."""
    with people_read(_lose):
        _main(sys.argv[1:] if arguments is None else arguments)


def _lose(name: str, error: OSError) -> None:
    """What nobody reads is not worth its work; what is said on the way is."""
    if name == "stdout":
        raise (
            error
            if isinstance(error, BrokenPipeError)
            else ValueError(f"stdout cannot be written ({error.strerror})")
        )


def _main(arguments: Sequence[str]) -> None:
    exit_code = 0
    arguments, recipe_options = doctor_command.split(arguments)
    try:
        require_address_space()
        command = parse(
            Command,
            arguments,
            prog="fastpsl",
            description="Self-supervised pre-training of vision backbones: data sets, pictures, features, neighbours, exports, pseudo-labels, tables, and what holds up a recipe; recipes/ train and evaluate.",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
        with _one_line_warnings(), doing(" ".join(["fastpsl", *takewhile(str.isalpha, arguments)])):
            if isinstance(command, Permutations):
                _permutations(command)
            elif isinstance(command, Show):
                _show(command)
            elif isinstance(command, features_command.Features):
                features_command.run(command)
            elif isinstance(command, retrieve_command.Retrieve):
                retrieve_command.run(command)
            elif isinstance(command, tsne_command.TSNE):
                tsne_command.run(command)
            elif isinstance(command, Export):
                _export(command)
            elif isinstance(command, labels_command.MakeLabels):
                labels_command.run(command)
            elif isinstance(command, clusters_command.Clusters):
                clusters_command.run(command)
            elif isinstance(command, table_command.Table):
                table_command.run(command)
            elif isinstance(command, Doctor):
                exit_code = doctor_command.run(command, recipe_options)
            else:
                beton_command.run(command.command)
        sys.stdout.flush()
        if exit_code:
            sys.exit(exit_code)
    except ValueError as error:
        print(f"fastpsl: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("fastpsl: interrupted; nothing was left under the final name", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `fastpsl beton info x | head`
        sys.exit(0)
    except MemoryError as error:
        what = " ".join(str(error).split())
        print(
            f"fastpsl: out of memory{f' ({what})' if what else ''}: free some, or give fewer --workers or a smaller batch",
            file=sys.stderr,
        )
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:
        print(f"fastpsl: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"fastpsl: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # on single images; they are judged by what comes out
        warnings.showwarning = show
        yield


def _show(command: Show) -> None:
    from fastpsl.commands.show import show

    print(show(**vars(command)))


def _export(command: Export) -> None:
    from fastpsl.evaluation.options import told_input
    from fastpsl.models.export import export

    told = told_input(command.input_channels, command.input_mean, command.input_std, command.input_size_px)
    print(
        export(
            command.checkpoint,
            command.to,
            command.out,
            overwrite=command.overwrite,
            backbone=command.backbone,
            input=told,
        )
    )


def _permutations(command: Permutations) -> None:
    import numpy as np

    from fastpsl.kernels.permutations import hamming_bound, mean_hamming, minimum_hamming, permutation_set
    from fastpsl.pipelines.files.atomic import output_errors, write_atomically

    if any(one >= other for one, other in zip(command.counts, command.counts[1:], strict=False)):
        raise ValueError(
            f"--counts {' '.join(map(str, command.counts))}: the sets are nested; give rising numbers"
        )
    if command.out.exists() and not command.overwrite:
        raise ValueError(
            f"{command.out}: exists already; remove it, give --overwrite, or choose another name"
        )
    found = permutation_set(command.num_pieces, command.counts)
    data = io.BytesIO()
    np.save(data, found.permutations.astype(np.int64))
    with output_errors(command.out):
        write_atomically(command.out, data.getvalue())
    print(f"{command.out}: {len(found.permutations):,} permutations of {command.num_pieces} pieces")
    print("  permutations   minimum distance   mean distance   bound of the mean")
    for count in found.counts:
        some = found.permutations[:count]
        bound = hamming_bound(count, command.num_pieces)
        print(f"  {count:>12,}   {minimum_hamming(some):>16}   {mean_hamming(some):>13.4f}   {bound:>17.4f}")
