"""`fastpsl.loader` compared with the underlying Loader: values, epochs, ranks, the last batch and errors."""

import gc
import json
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torchvision.transforms import v2

import fastpsl
from fastpsl.cli import main
from fastpsl.dataloader import EpochLoader
from fastpsl.kernels.colour import ColourDistortion
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.geometry import Flip, WarpPair
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.decoders.decoder import Decoder
from fastpsl.pipelines.decoders.turbo import TurboDecoder
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.loader.augment import AugmentName
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.photos import jpeg, photo, photo_samples, write
from tests.pipelines.written import tree

NUM = 13


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 13 images with their indices as labels."""
    return write(tmp_path_factory.mktemp("loading") / "a.beton", photo_samples(NUM))


def test_training_gives_the_loaders_epochs_one_after_the_other(beton: Path) -> None:
    views = [ViewSpec(RandomResizedCrop(24), (Flip(), ColourDistortion(0.4, 0.4, 0.4, 0.1, 0.8)))] * 2
    with Beton(beton) as data, Loader(data, views, batch_size_per_rank=4, seed=3) as plain:
        expected = [
            (batch.inputs(views, torch.float32), batch.labels, batch.indices)
            for epoch in (0, 1, 5, 6)
            for batch in plain.epoch(epoch)
        ]
    options = {"seed": 3, "with_indices": True, "device": "cpu", "augment": "torch"}
    with fastpsl.loader(beton, views, batch_size=4, **options) as batches:  # type: ignore[arg-type]
        assert len(batches) == 3 and len(batches.dataset) == NUM  # type: ignore[arg-type]
        tuples = [*batches, *batches]
        batches.set_epoch(5)
        tuples += list(batches)
        batches.sampler.set_epoch(6)
        tuples += list(batches)
        assert batches.epoch == 7
    assert len(tuples) == len(expected) == 12
    for (inputs, labels, indices), (expected_inputs, expected_labels, expected_indices) in zip(
        tuples, expected, strict=True
    ):
        assert isinstance(inputs, list) and len(inputs) == 2
        for view, expected_view in zip(inputs, expected_inputs, strict=True):
            assert torch.equal(view, expected_view)
            assert view.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(labels, expected_labels) and torch.equal(indices, expected_indices)
        assert torch.equal(labels, indices)


def texts(batches: Iterable[Any]) -> list[list[Any]]:
    """Return comparable copies of batches of two views with indices."""
    tensors = [(*inputs, labels, indices) for inputs, labels, indices in batches]
    return [[each.tolist() for each in of_batch] for of_batch in tensors]


def two_views(beton: Path, **options: Any) -> EpochLoader:
    """Open 6 batches an epoch, of 2 samples over all ranks, in two threads."""
    views = [ViewSpec(RandomResizedCrop(8), (Flip(), ColourDistortion(0.4, 0.4, 0.4, 0.1, 0.8)))] * 2
    defaults: dict[str, Any] = {
        "batch_size": 2, "seed": 3, "with_indices": True, "device": "cpu", "num_threads": 2,
    }  # fmt: skip
    return fastpsl.loader(beton, views, **defaults | options)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("prefetch_batches", [1, 4])
def test_a_state_continues_anywhere_as_if_it_had_never_stopped(
    beton: Path, train: bool, prefetch_batches: int
) -> None:
    """Before the first batch, after each, after the last, after the loop; and in the next epoch."""
    options = {"train": train, "prefetch_batches": prefetch_batches}
    with two_views(beton, **options) as batches:
        states: list[dict[str, Any]] = [batches.state_dict()]
        epochs: list[list[Any]] = []
        for _ in range(3):
            epochs.append([])
            for batch in batches:
                epochs[-1] += texts([batch])
                states.append(batches.state_dict())
            states.append(batches.state_dict())
    num = len(epochs[0])
    assert num == (6 if train else 7) and (epochs[0] != epochs[1]) == train
    places = [(epoch * train, done) for epoch in range(3) for done in range(num + 1)]
    assert [(state["epoch"], state["batch"]) for state in states] == [*places, (3 * train, 0)]
    for state in states[: num + 3]:
        with two_views(beton, **options) as resumed:
            resumed.load_state_dict(json.loads(json.dumps(state)))
            assert len(resumed) == num and resumed.state_dict() == state
            resumed.sampler.set_epoch(state["epoch"])  # as loops for DistributedSampler do
            assert texts(resumed) == epochs[state["epoch"]][state["batch"] :]
            assert texts(resumed) == epochs[state["epoch"] + 1]


def test_a_state_continues_on_another_number_of_ranks(beton: Path) -> None:
    def joined(parts: Iterable[list[Any]]) -> list[Any]:
        return [list(chain(*columns)) for columns in zip(*parts, strict=True)]

    with two_views(beton, batch_size=4) as batches:
        steps = texts(batches)
        rest = texts(batches)
    states = []
    for rank in range(2):
        with two_views(beton, batch_size=4, rank=rank, world=2) as batches:
            next(iter(batches))
            states.append(batches.state_dict())
    assert states[0] == states[1]
    with two_views(beton, batch_size=4) as batches:
        batches.load_state_dict(states[1])
        assert texts(batches) == steps[1:]
        state = batches.state_dict()
    of_ranks = []
    for rank in range(4):
        with two_views(beton, batch_size=4, rank=rank, world=4) as batches:
            batches.load_state_dict(state)
            of_ranks.append(texts(batches))
    assert [joined(parts) for parts in zip(*of_ranks, strict=True)] == rest


def test_a_state_is_that_of_the_last_loop_and_is_taken_up_once(beton: Path) -> None:
    """As torchdata's StatefulDataLoader: a loop that was left stays the place, but the next loop is new."""
    with two_views(beton) as batches:
        for number, _ in enumerate(batches):
            if number == 1:
                break
        state = batches.state_dict()
        assert (state["epoch"], state["batch"], batches.epoch) == (0, 2, 1)
        left = iter(batches)
        epoch_1 = [next(left)]
        batches.load_state_dict(state)
        epoch_1 += left  # a loop under way goes on, and does not move the place
        assert batches.state_dict() == state
        assert [len(texts(batches)) for _ in range(2)] == [4, 6]
        assert batches.state_dict()["epoch"] == 2
        batches.load_state_dict(state)
        batches.set_epoch(1)  # as Lightning does where a run was stopped at an epoch's end
        assert texts(batches) == texts(epoch_1)
        older, newer = iter(batches), iter(batches)
        next(older), next(newer)
        assert len(list(older)) == 5
        state = batches.state_dict()
        assert (state["epoch"], state["batch"]) == (3, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_in_mid_epoch_and_at_an_epochs_end(beton: Path, tmp_path: Path) -> None:
    """Its checkpoints hold the loader's state, and it validates with one of our loaders, too."""
    lightning = pytest.importorskip("pytorch_lightning")

    class Recorder(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.seen: list[Any] = []

        def train_dataloader(self) -> EpochLoader:
            self.batches = two_views(beton, batch_size=4)
            return self.batches

        def val_dataloader(self) -> EpochLoader:
            self.val_batches = two_views(beton, batch_size=4, train=False)
            return self.val_batches

        def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
            self.seen.append((self.current_epoch, batch_index, texts([batch])))
            return self.weight * batch[0][0].mean()

        def validation_step(self, batch: Any, batch_index: int) -> None:
            self.val_shape = batch[0][1].shape

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def on_fit_end(self) -> None:
            self.batches.close()
            self.val_batches.close()

    def fitted(folder: Path, checkpoint: Path | None = None) -> list[Any]:
        kept = lightning.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", logger=False, callbacks=[kept])
        model = Recorder()
        trainer.fit(model, ckpt_path=checkpoint, weights_only=False)
        assert model.val_shape == (1, 3, 8, 8)
        return model.seen

    seen = fitted(tmp_path / "whole")
    assert [(epoch, step) for epoch, step, _ in seen] == [(i, j) for i in range(3) for j in range(3)]
    for step in (2, 3, 4, 6):
        assert fitted(tmp_path / "resumed", tmp_path / f"whole/step={step}.ckpt") == seen[step:]


def test_a_state_of_other_batches_is_refused(beton: Path) -> None:
    other = write(beton.parent / "other.beton", photo_samples(NUM - 1))
    with two_views(beton) as batches:
        state = batches.state_dict()
        digest = state["data"]
        for given, says in (
            (None, "a state has epoch, batch, data, order, seed, batch_size, not None"),
            ({}, "a state has epoch, .*; give what"),
            (state | {"views": 2}, "batch_size, not epoch, batch, .*views; give what"),
            ({name: state[name] for name in ("epoch", "batch")}, "not epoch, batch;"),
            (state | {"batch": 7}, "epoch 0, batch 7; an epoch has batches 0 to 6"),
            (state | {"batch": -1}, "batch -1"),
            (state | {"epoch": -1}, "epoch -1"),
            (state | {"epoch": "3"}, "epoch '3'"),
            (state | {"batch": 2.0}, "batch 2.0"),
        ):
            with pytest.raises(ValueError, match=says) as refusal:
                batches.load_state_dict(given)  # type: ignore[arg-type]
            assert "\n" not in str(refusal.value) and batches.state_dict() == state
    for path, options, says in (
        (other, {}, f"data '{digest}' there, '"),
        (beton, {"seed": 4}, r"\(seed 3 there, 4 here\)"),
        (beton, {"batch_size": 4, "seed": 4}, r"\(seed 3 there, 4 here; batch_size 2 there, 4 here\)"),
        (beton, {"train": False}, "order 'random' there, 'in order' here"),
        (beton, {"order": "quasi_random", "lanes": 1}, "order 'random' there, 'quasi_random, 1 lanes' here"),
    ):
        with two_views(path, **options) as batches, pytest.raises(ValueError, match=says):
            batches.load_state_dict(state)


def test_as_batch_makes_of_a_tuple_what_a_loop_takes(beton: Path) -> None:
    with two_views(beton) as batches:
        expected = texts(batches)
    with two_views(beton, as_batch=lambda views, labels, indices: (indices, views, labels)) as batches:
        assert texts((views, labels, indices) for indices, views, labels in batches) == expected
    of_dicts = {"with_indices": False, "as_batch": lambda views, labels: {"views": views, "label": labels}}
    with two_views(beton, **of_dicts) as batches:
        for batch, (view_0, view_1, labels, _) in zip(batches, expected, strict=True):
            assert isinstance(batch["views"], list)
            assert [view.tolist() for view in batch["views"]] == [view_0, view_1]
            assert batch["label"].tolist() == labels


def test_without_views_it_makes_the_usual_ones(beton: Path) -> None:
    with fastpsl.loader(beton, batch_size=2, device="cpu") as batches:
        assert batches.loader.views == (ViewSpec(RandomResizedCrop(224), (Flip(0.5),)),)
        inputs, labels = next(iter(batches))
        assert inputs.shape == (2, 3, 224, 224) and inputs.dtype == torch.float32 and labels.shape == (2,)
        assert batches.mean == (0.485, 0.456, 0.406) and batches.std == (0.229, 0.224, 0.225)
    with fastpsl.loader(beton, batch_size=2, train=False, size_px=32, num_views=2, device="cpu") as batches:
        assert batches.loader.views == (ViewSpec(ShorterSideCrop(37, 32, where="center")),) * 2
    with fastpsl.loader(beton, batch_size=2, size_px=16, dtype=torch.float16, device="cpu") as batches:
        assert next(iter(batches))[0].dtype == torch.float16


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("share", [2, 4, 13])
def test_evaluation_sees_each_sample_once_and_no_padding(world: int, share: int, beton: Path) -> None:
    view = ViewSpec(ShorterSideCrop(32, 24, where="center"))
    results = []
    for rank in range(world):
        with fastpsl.loader(
            beton, [view], batch_size=share * world, train=False, rank=rank, world=world, device="cpu"
        ) as batches:
            assert (batches.batch_size, batches.batch_size_per_rank) == (share * world, share)
            tuples = list(batches)
            assert len(tuples) == len(batches)
            assert batches.epoch == 0
        for inputs, labels in tuples:
            assert 0 < len(inputs) == len(labels) <= share and (labels >= 0).all()
            assert inputs.is_contiguous(memory_format=torch.channels_last)
            results += [(int(label), float(image.sum())) for image, label in zip(inputs, labels, strict=True)]
    with Beton(beton) as data, Loader(data, [view], batch_size_per_rank=NUM, train=False) as plain:
        (inputs,) = next(plain.epoch(0)).inputs([view], torch.float32)
    sums = [float(image.sum()) for image in inputs]
    assert sorted(results) == [
        (label, pytest.approx(sums[label], rel=1e-5, abs=1e-3)) for label in range(NUM)
    ]


def test_ops_of_several_images_a_sample_end_where_the_samples_do(beton: Path) -> None:
    view = ViewSpec(RandomResizedCrop(24), (JigsawTiles(2, 12, 8),))
    with fastpsl.loader(beton, [view], batch_size=8, train=False, device="cpu") as batches:
        assert [(len(inputs), len(labels)) for inputs, labels in batches] == [(32, 8), (20, 5)]


def test_rank_and_world_are_torchruns_or_torch_distributeds(
    beton: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place() -> tuple[int, int]:
        with fastpsl.loader(beton, batch_size=6, device="cpu") as batches:
            return batches.loader.rank, batches.loader.world

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert place() == (0, 1)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE"):
        monkeypatch.setenv(name, "")
    assert place() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert place() == (2, 3)
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="WORLD_SIZE is 3 and RANK is not set; start with torchrun, "):
        place()
    fastpsl.loader(beton, batch_size=6, device="cpu", rank=1, world=2).close()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")  # srun's, before torch.distributed is initialised
    with pytest.raises(ValueError, match="SLURM_STEP_NUM_TASKS is 4 and RANK is not set"):
        place()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert place() == (0, 1)
    finally:
        dist.destroy_process_group()


def test_bad_samples_are_told_and_do_not_count(tmp_path: Path) -> None:
    samples = photo_samples(5)
    samples[1] = (b"no JPEG", *samples[1][1:])
    path = write(tmp_path / "poisoned.beton", samples)
    with (
        fastpsl.loader(path, batch_size=4, size_px=24, train=False, device="cpu") as batches,
        pytest.raises(ValueError, match="poisoned.beton sample 1: not a JPEG"),
    ):
        list(batches)
    options = {"batch_size": 4, "size_px": 24, "on_bad_sample": "skip", "with_indices": True, "device": "cpu"}
    with fastpsl.loader(path, train=False, **options) as batches:  # type: ignore[arg-type]
        with pytest.warns(UserWarning, match="skipped .*poisoned.beton sample 1: not a JPEG"):
            tuples = list(batches)
        assert [indices.tolist() for _, _, indices in tuples] == [[0, 2, 3], [4]]
        assert [labels.tolist() for _, labels, _ in tuples] == [[0, 2, 3], [4]]
        assert [len(inputs) for inputs, _, _ in tuples] == [3, 1]
    with fastpsl.loader(path, **options | {"batch_size": 5}) as batches:  # type: ignore[arg-type]
        with pytest.warns(UserWarning, match="sample 1"):
            ((inputs, labels, indices),) = batches
        assert len(inputs) == 5 and sorted(indices.tolist()) == [-1, 0, 2, 3, 4] and 1 not in labels.tolist()


def test_what_is_left_out_is_told_by_rank_0_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder, of a list of its files, and of dataset files, by what is written beside them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    files = {f"{kind}/{i}.jpg": jpeg(photo(i, 30, 30)) for kind in ("cat", "dog") for i in range(4)}
    others = {"cat/._0.jpg": b"x", "@eaDir/0.jpg": b"x", "dog/notes.txt": b"x", "dog/8.jpg": b"no JPEG"}
    tree(tmp_path / "photos", files | others)
    Path("list.csv").write_text(
        "path,label\n" + "".join(f"photos/{name},0\n" for name in (*files, "cat/._0.jpg"))
    )
    main(["data", "write", "photos", "photos.beton", "--max-bad", "1"])
    main(["data", "write", "photos", "part-0.beton", "--max-bad", "1", "--shard", "0/2"])
    main(["data", "write", "photos", "part-1.beton", "--max-bad", "1", "--shard", "1/2"])
    known = "1 file of another kind{}, 2 leftovers of other programs{}"
    bad = "photos: 1 of 9 images cannot be read, the first is dog/8.jpg: "
    expected = {
        "photos": ["photos: left out: " + known.format(" (1 .txt)", " (the first is @eaDir)"), bad],
        "list.csv": ["list.csv: left out: 1 leftover of another program (photos/cat/._0.jpg)"],
        "photos.beton": ["photos.beton: left out when it was written: 1 bad image, " + known.format("", "")],
        "part-*.beton": ["part-*.beton: left out when it was written: 1 bad image, " + known.format("", "")],
    }
    for data, lines in expected.items():
        for rank in range(2):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                fastpsl.loader(data, batch_size=4, size_px=24, device="cpu", rank=rank, world=2).close()
            told = sorted(str(warning.message) for warning in caught)
            assert len(told) == (0 if rank else len(lines)), told
            assert all(any(line.startswith(start) for line in told) for start in (() if rank else lines)), (
                told
            )


def test_an_open_data_set_stays_open_and_a_path_is_closed(beton: Path) -> None:
    with Beton(beton) as data:
        with fastpsl.loader(data, batch_size=4, size_px=24, device="cpu") as batches:
            for _ in batches:
                break
        assert len(data.read(0)) > 0
    batches = fastpsl.loader(beton, batch_size=4, size_px=24, device="cpu")
    next(iter(batches))
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(iter(batches))


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_one_that_nobody_closes_leaves_no_thread(beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Reading takes more threads where it waits for the disk.
    monkeypatch.setattr(TurboDecoder, "wanted_threads", Decoder.wanted_threads)
    before = set(threading.enumerate())
    batches = fastpsl.loader(beton, batch_size=4, size_px=24, device="cpu", num_threads=2)
    for _ in batches:
        break
    # The process's thread for progress lines may start here, and stays.
    its_own = {thread for thread in set(threading.enumerate()) - before if thread.name != "fastpsl-heartbeat"}
    assert len(its_own) == 2
    del batches, _
    gc.collect()
    for thread in its_own:
        thread.join(60)
    assert not any(thread.is_alive() for thread in its_own), its_own


def test_the_sample_where_no_data_is_named() -> None:
    with fastpsl.loader(batch_size=32, size_px=32, device="cpu") as batches:
        assert len(batches) == 15 and batches.num_classes == len(batches.class_names or [])
        with Beton(sample_paths().train) as data:
            assert batches.dataset.digest() == data.digest()
    with fastpsl.loader(batch_size=32, size_px=32, train=False, device="cpu") as batches:
        assert len(batches) == 5


def test_what_cannot_be_is_refused(beton: Path, tmp_path: Path) -> None:
    view = ViewSpec(RandomResizedCrop(24))
    for arguments, says in (
        ({"views": [view], "num_views": 2}, "give either"),
        ({"views": [view], "size_px": 24}, "give either"),
        ({"num_views": 0}, "num_views is 0"),
        ({"views": v2.RandomResizedCrop(24)}, "^views is RandomResizedCrop: .*; transforms of other"),
        ({"views": [view, v2.RandomResizedCrop(24)]}, "^views is a list with RandomResizedCrop: "),
        ({"views": view}, "^views is one ViewSpec: it takes a list"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 7, "world": 3}, "batch_size is 7, of all 3 ranks .*; give 6 or 9$"),
        ({"data": tmp_path / "none.beton"}, "none.beton"),
        ({"data": ""}, "empty"),
        ({"data": ["a", "b"]}, "^data is list, not a path: give the path of a folder"),
        ({"data": torch.zeros(2, 3, 8, 8)}, "^data is Tensor, not a path"),
        ({"data": "~/no photos"}, f"^{Path.home()}/no photos: no such file or folder"),
        ({"dtype": torch.uint8}, "dtype is torch.uint8; it must be torch.float32, torch.float16, "),
        ({"as_batch": "lightly"}, r"as_batch is 'lightly'; it must be a function of \(inputs, labels\)$"),
        ({"as_batch": (), "with_indices": True}, r"it must be a function of \(inputs, labels, indices\)$"),
    ):
        with pytest.raises(ValueError, match=says):
            fastpsl.loader(**{"data": beton, "batch_size": 2, "device": "cpu"} | arguments)  # type: ignore[arg-type]
    for open_one in (partial(fastpsl.Loader, views=[view], batch_size_per_rank=2), fastpsl.Beton):
        with pytest.raises(ValueError, match="int"):
            open_one(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no argument of loader called .shuffle.; there are data, views"):
        fastpsl.loader(beton, batch_size=2, shuffle=True)  # type: ignore[call-arg]


VIEWS: dict[str, list[ViewSpec] | None] = {
    "default": None,
    "simclr": fastpsl.views.simclr(32),
    "mocov2": fastpsl.views.mocov2(32),
    "byol": fastpsl.views.byol(32),
    "warp": [ViewSpec(RandomResizedCrop(32), (WarpPair(32),))],
}


@pytest.mark.parametrize("augment", ["auto", "kornia"])
@pytest.mark.parametrize("views", VIEWS)
def test_torchs_defaults_change_no_batch(beton: Path, views: str, augment: AugmentName) -> None:
    """The device "meta", whose tensors have no values, stands for a GPU."""

    def first_batch() -> list[torch.Tensor]:
        size_px = None if VIEWS[views] else 32
        options: Any = {"batch_size": 4, "size_px": size_px, "device": "cpu", "augment": augment}
        with fastpsl.loader(beton, VIEWS[views], with_indices=True, **options) as loader:
            inputs, labels, indices = next(iter(loader))
        return [*(inputs if isinstance(inputs, list) else [inputs]), labels, indices]

    expected = first_batch()
    with torch.device("meta"):
        on_other_device = first_batch()
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        of_other_dtype = first_batch()
    finally:
        torch.set_default_dtype(before)
    for batch in (on_other_device, of_other_dtype):
        for tensor, wanted in zip(batch, expected, strict=True):
            assert tensor.dtype == wanted.dtype and torch.equal(tensor, wanted)


def test_operations_go_the_way_that_is_asked_for() -> None:
    with fastpsl.loader(batch_size=4, size_px=16, augment="kornia") as plain:
        assert plain.augment.path == "kornia"
    with pytest.raises(ValueError, match="augment 'fusd': there are auto, kornia, torch, fused"):
        fastpsl.loader(batch_size=4, size_px=16, augment="fusd")  # type: ignore[arg-type]


@pytest.mark.skipif(bool(libturbo.why_missing()), reason="the C library was not built")
def test_the_first_batch_of_a_beton_waits_for_no_compiler(beton: Path) -> None:
    """Importing numba and loading what it compiled takes a second, and compiling 10 s."""
    code = (
        "import fastpsl, sys\n"
        "with fastpsl.loader(sys.argv[1], batch_size=4, device='cpu') as batches: next(iter(batches))\n"
        "assert 'numba' not in sys.modules"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(beton)], capture_output=True, text=True, check=False, timeout=240
    )
    assert process.returncode == 0, process.stderr
