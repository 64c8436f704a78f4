"""Test feature files: values, any number of ranks, interruption and continuation, and the record."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastpsl.cli import main
from fastpsl.evaluation import feature_file
from fastpsl.evaluation.blocks import block_number
from fastpsl.evaluation.feature_file import FORMAT, PartialFeatures, read_features
from fastpsl.evaluation.features import Extraction, extract
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.files.atomic import partial_path
from fastpsl.models.factory import make_backbone
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.data.dataset import MODE_RAW, Dataset
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.pipelines.views import Input, center_view
from tests.engine.tiny import TinyNet, one_process
from tests.pipelines.labelled import write_labelled
from tests.slow import slow

BATCH = 48
INPUT = Input("RGB", (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 32)


def extraction(data: Dataset, block: int = 4, weights: int = 0, **options: Any) -> Extraction:
    torch.manual_seed(weights)
    net = TinyNet()
    for block_of_net in net.blocks():
        block_of_net[1].weight.data.fill_(4.0)  # type: ignore[index,union-attr]  # because an untrained net's outputs are tiny
    pretrained = Pretrained(net, INPUT, {"sha256": f"tiny {weights}", "backbone": "tiny"})
    values: dict[str, Any] = {"batch_size": BATCH, "dtype": "float32", "loader": {"num_threads": 1}}
    return Extraction(pretrained, data, block, 32, **(values | options))


@pytest.fixture
def data() -> Iterator[Beton]:
    """Write a beton of 160 images of 32 px with eight classes in turn."""
    with Beton(sample_paths().test_32) as opened:
        yield opened


def by_hand(data: Dataset, block: int) -> np.ndarray:
    """Compute features image by image: the loader's crop, normalised, through the blocks, averaged."""
    net = extraction(data).pretrained.backbone.eval()
    rows = []
    with Loader(data, [center_view(INPUT, 32)], batch_size_per_rank=1, train=False, num_threads=1) as loader:
        for batch in loader.epoch(0):
            image = batch.images[0].double() / 255
            for channel in range(3):
                image[:, channel] = (image[:, channel] - INPUT.mean[channel]) / INPUT.std[channel]
            image = image.float()
            with torch.no_grad():
                for number in range(block):
                    image = net.blocks()[number](image)  # type: ignore[operator]
            rows.append(image[0].flatten(1).sum(1) / image[0, 0].numel())
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("block", [1, 4, 5])
def test_rows_are_the_averaged_outputs_of_the_samples_in_order(
    data: Beton, tmp_path: Path, block: int
) -> None:
    written = extraction(data, block).to_file(tmp_path / "F.npy", one_process())
    rows = np.load(tmp_path / "F.npy")
    assert rows.dtype == np.float32 and rows.shape == (160, TinyNet.channels[block - 1])
    assert np.allclose(rows, by_hand(data, block), rtol=1e-4, atol=1e-5)
    assert rows.std(0).min() > 0.01  # because equal features would hide a wrong order
    assert np.array_equal(np.load(tmp_path / "F-labels.npy"), data.labels())
    record = json.loads((tmp_path / "F.json").read_text())
    assert record == written.record
    assert (record["block"], record["size_px"], record["input"]) == (f"B{block}", 32, INPUT.as_dict())
    assert (record["data"], record["class_names"], record["bad"]) == (data.digest(), data.class_names, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["F-labels.npy", "F.json", "F.npy"]


def test_the_backbone_stays_as_it_was_and_in_eval_mode(data: Beton, tmp_path: Path) -> None:
    work = extraction(data)
    work.pretrained.backbone.train()
    before = {name: value.clone() for name, value in work.pretrained.backbone.state_dict().items()}
    work.to_file(tmp_path / "F.npy", one_process())
    after = work.pretrained.backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_half_precision_and_what_it_cannot_hold(data: Beton, tmp_path: Path) -> None:
    whole = extraction(data).to_file(tmp_path / "whole.npy", one_process()).features()
    half = extraction(data, dtype="float16").to_file(tmp_path / "half.npy", one_process()).features()
    assert half.dtype == np.float16 and np.array_equal(half, whole.astype(np.float16))
    work = extraction(data, dtype="float16")
    work.pretrained.backbone.blocks()[3][1].weight.data.fill_(1e6)  # type: ignore[index]
    with pytest.raises(ValueError, match="float16 cannot hold: fastpsl features --dtype float32 can"):
        work.to_file(tmp_path / "large.npy", one_process())
    assert not (tmp_path / "large.npy").exists()


class Killed(Exception):
    """An error that stands for SIGKILL, so that the test survives."""


def leave_at(
    rows: int,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: Dataset,
    kill: bool = False,
    **options: Any,
) -> None:
    """Run an extraction that ends right after it has saved `rows` rows."""
    save = PartialFeatures.save

    def save_and_die(file: PartialFeatures, num_rows: int) -> None:
        save(file, num_rows)
        if num_rows >= rows:
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(PartialFeatures, "save", save_and_die)
        extraction(data, **options).to_file(out, one_process(), save_every_s=0)


def count_batches(work: Extraction) -> list[int]:
    """Return a list that receives the size of each batch of the first block."""
    sizes: list[int] = []
    work.pretrained.backbone.blocks()[0].register_forward_hook(  # type: ignore[operator]
        lambda _, inputs, __: sizes.append(len(inputs[0]))
    )
    return sizes


@pytest.mark.parametrize(("batch", "expected"), [(20, 3), (32, 2), (160, 1)])
def test_what_was_left_is_gone_on_with(
    data: Beton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    batch: int, expected: int,
) -> None:  # fmt: skip
    """100 rows exist: of batches of 20, three remain; batches of 32 and of 160 continue at rows 96 and 0."""
    whole = extraction(data).to_file(tmp_path / "whole.npy", one_process()).features()
    leave_at(100, tmp_path / "F.npy", monkeypatch, data, batch_size=20)
    assert not (tmp_path / "F.npy").exists()
    work = extraction(data, batch_size=batch)
    batches = count_batches(work)
    file = work.to_file(tmp_path / "F.npy", one_process())
    assert len(batches) == expected and np.allclose(file.features(), whole, rtol=1e-4, atol=1e-6)
    assert ("goes on from row" in capsys.readouterr().err) == (batch < 160)
    assert not list(tmp_path.glob(".*"))


def test_what_was_left_of_other_features_is_not(
    data: Beton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: tuple[dict[str, Any], ...] = ({"weights": 1}, {"block": 3}, {"dtype": "float16"})
    for number, other in enumerate(others):
        out = tmp_path / f"{number}.npy"
        leave_at(96, out, monkeypatch, data, **other)
        work = extraction(data)
        batches = count_batches(work)
        work.to_file(out, one_process())
        assert len(batches) == 4
    assert np.array_equal(np.load(tmp_path / "0.npy"), np.load(tmp_path / "1.npy"))


def killed_child(out: Path) -> None:
    torch.set_num_threads(1)
    with Beton(sample_paths().test_32) as data:
        leave_at(96, out, pytest.MonkeyPatch(), data, kill=True)


@pytest.mark.slow
def test_a_killed_extraction_is_gone_on_with(data: Beton, tmp_path: Path) -> None:
    whole = extraction(data).to_file(tmp_path / "whole.npy", one_process()).features()
    child = multiprocessing.get_context("spawn").Process(target=killed_child, args=(tmp_path / "F.npy",))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL and not (tmp_path / "F.npy").exists()
    work = extraction(data)
    batches = count_batches(work)
    file = work.to_file(tmp_path / "F.npy", one_process())
    assert len(batches) == 2 and np.array_equal(file.features(), whole)


def test_the_same_features_are_there_already_and_others_are_refused(data: Beton, tmp_path: Path) -> None:
    out = tmp_path / "F.npy"
    extraction(data).to_file(out, one_process())
    work = extraction(data, batch_size=10)  # the batch size changes no value, so the file is kept
    batches = count_batches(work)
    assert work.to_file(out, one_process()).record["weights"] == "tiny 0" and not batches
    with pytest.raises(ValueError, match="holds other features; give --overwrite"):
        extraction(data, weights=1).to_file(out, one_process())
    changed = extraction(data, weights=1).to_file(out, one_process(), overwrite=True)
    assert changed.record["weights"] == "tiny 1" and not np.allclose(changed.features(), by_hand(data, 4))
    (tmp_path / "F.json").unlink()  # features without a record are not used
    assert read_features(out) is None


def test_an_extraction_under_way_is_not_disturbed(data: Beton, tmp_path: Path) -> None:
    out = tmp_path / "F.npy"
    held = PartialFeatures(out, "digest", extraction(data).wanted(), one_process())
    with pytest.raises(ValueError, match="another process is writing it"):
        extraction(data).to_file(out, one_process())
    held.close()
    extraction(data).to_file(out, one_process())


def test_broken_samples_are_rows_of_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.beton"
    shutil.copy(sample_paths().test, path)
    with Beton(path) as data:
        rows = data.rows(np.array([2, 17]))  # in a set, 17 comes first
    with open(path, "r+b") as file:
        for offset, num_bytes in zip(rows.offset.tolist(), rows.num_bytes.tolist(), strict=True):
            file.seek(offset)
            file.write(b"\0" * num_bytes)
    with Beton(path) as data:
        options: dict[str, Any] = {"batch_size": 20, "loader": {"num_threads": 1, "on_bad_sample": "skip"}}
        leave_at(100, tmp_path / "F.npy", monkeypatch, data, **options)
        features_file = extraction(data, **options).to_file(tmp_path / "F.npy", one_process())
    assert features_file.record["bad"] == [2, 17] and "2 bad" in str(features_file)
    assert np.flatnonzero(np.isnan(features_file.features()).any(1)).tolist() == [2, 17]
    assert "sample 17" in capsys.readouterr().err


def extract_all(data: Dataset, folder: Path, blocks: tuple[int, ...], **options: Any) -> list[np.ndarray]:
    works = [extraction(data, block) for block in blocks]
    works = [replace(work, pretrained=works[0].pretrained, **options) for work in works]
    outs = [folder / f"B{block}.npy" for block in blocks]
    return [file.features() for file in extract(works, outs, one_process(), save_every_s=0)]


def test_several_blocks_of_one_pass_are_each_as_alone(data: Beton, tmp_path: Path) -> None:
    """Features are equal to the bit in any order of the blocks, and records but for date and duration."""
    files = extract_all(data, tmp_path, (5, 2, 4))
    for block, values in zip((5, 2, 4), files, strict=True):
        alone = extraction(data, block).to_file(tmp_path / "alone.npy", one_process(), overwrite=True)
        assert np.array_equal(values, alone.features())
        record = json.loads((tmp_path / f"B{block}.json").read_text())
        differ = ("date", "seconds", "labels")
        assert {k: v for k, v in record.items() if k not in differ} == {
            k: v for k, v in alone.record.items() if k not in differ
        }


def test_what_is_missing_of_several_blocks_is_made_and_gone_on_with(
    data: Beton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """B2 is complete, B3 has 96 rows, B4 has 48: batches from row 48 on run once, and B2's file is kept."""
    whole = [by_hand(data, block) for block in (2, 3, 4)]
    extraction(data, 2).to_file(tmp_path / "B2.npy", one_process())
    leave_at(96, tmp_path / "B3.npy", monkeypatch, data, block=3)
    leave_at(48, tmp_path / "B4.npy", monkeypatch, data, block=4)
    before = (tmp_path / "B2.npy").stat().st_mtime_ns
    starts: list[int] = []
    opened = Loader.epoch

    def noted(loader: Loader, epoch: int, first_step: int) -> Any:
        starts.append(first_step)
        return opened(loader, epoch, first_step)

    monkeypatch.setattr(Loader, "epoch", noted)
    files = extract_all(data, tmp_path, (2, 3, 4))
    assert starts == [1] and (tmp_path / "B2.npy").stat().st_mtime_ns == before
    assert f"{tmp_path / 'B3.npy'}, {tmp_path / 'B4.npy'}: goes on from row 48" in capsys.readouterr().err
    for values, expected in zip(files, whole, strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    assert not list(tmp_path.glob(".*"))
    extract_all(data, tmp_path, (4, 2))
    assert starts == [1]


def test_none_of_several_is_written_where_one_is_refused(data: Beton, tmp_path: Path) -> None:
    extraction(data, 4, weights=1).to_file(tmp_path / "B4.npy", one_process())
    with pytest.raises(ValueError, match="B4.npy exists and holds other features"):
        extract_all(data, tmp_path, (3, 4))
    assert not (tmp_path / "B3.npy").exists()


def test_an_image_seen_whole(data: Beton, tmp_path: Path) -> None:
    """Without `whole`, the central 28 px of 32 are used, with another digest."""
    digests = []
    for whole in (False, True):
        work = extraction(data, 1, whole=whole)
        assert ("whole" in work.wanted()) == whole
        digests.append((work.digest(), work.to_file(tmp_path / f"{whole}.npy", one_process()).features()))
    assert digests[0][0] != digests[1][0]
    pixels = data.rows(np.arange(1))
    assert int(pixels.mode[0]) == MODE_RAW
    raw = np.frombuffer(os.pread(int(pixels.fd[0]), 32 * 32 * 3, int(pixels.offset[0])), np.uint8)
    image = torch.from_numpy(raw.reshape(1, 32, 32, 3).copy()).permute(0, 3, 1, 2).float() / 255
    image = (image - torch.tensor(INPUT.mean)[:, None, None]) / torch.tensor(INPUT.std)[:, None, None]
    with torch.no_grad():
        first = extraction(data).pretrained.backbone.eval().blocks()[0](image).mean((2, 3))  # type: ignore[operator]
    np.testing.assert_allclose(digests[1][1][0], first[0].numpy(), rtol=1e-4, atol=1e-5)
    assert not np.allclose(digests[0][1][0], first[0].numpy(), rtol=1e-2)


def test_blocks_by_name() -> None:
    assert [block_number(name, 5) for name in ("B1", "b4", "B5", "final")] == [1, 4, 5, 5]
    for name in ("B0", "B6", "4", "B", "B²", "last", ""):
        with pytest.raises(ValueError, match="B1 to B5"):
            block_number(name, 5)
    assert [block_number(name, 7) for name in ("B6", "B7", "final")] == [6, 7, 7]
    with pytest.raises(ValueError, match="--block B8: this backbone has B1 to B7; final is the last"):
        block_number("B8", 7)
    names = make_backbone("alexnet").block_names
    assert [block_number(name, 7, names) for name in ("conv1", "fc7", "B6", "final")] == [1, 7, 6, 7]
    with pytest.raises(
        ValueError, match="--block fc8: this backbone has B1 to B7, which are conv1, .* fc7; final"
    ):
        block_number("fc8", 7, names)


@pytest.mark.usefixtures("published_widths")
@pytest.mark.parametrize(("block", "width"), [(5, 256), slow(6, 4096), (7, 4096)])
def test_convolutions_and_fully_connected_blocks_of_alexnet(
    data: Beton, tmp_path: Path, block: int, width: int
) -> None:
    """A map is averaged over its positions. fc6 and fc7 have one position, and no dropout."""
    torch.manual_seed(0)
    net = make_backbone("alexnet")
    pretrained = Pretrained(net, INPUT, {"sha256": "random", "backbone": "alexnet"})
    options: dict[str, Any] = {"batch_size": 80, "dtype": "float32", "loader": {"num_threads": 1}}
    written = Extraction(pretrained, data, block, 64, **options).to_file(tmp_path / "F.npy", one_process())
    rows = np.load(tmp_path / "F.npy")
    assert rows.shape == (160, width) and written.record["block"] == f"B{block}"
    with Loader(data, [center_view(INPUT, 64)], batch_size_per_rank=3, train=False, num_threads=1) as loader:
        batch = next(batches := loader.epoch(0))
        (images,) = batch.inputs(loader.views, torch.float32)
        batches.close()
    with torch.no_grad():
        expected = nn.Sequential(*net.eval().blocks()[:block])(images)
    if block > 5:
        assert expected.shape == (3, 4096, 1, 1)
    np.testing.assert_allclose(rows[:3], expected.mean((2, 3)).numpy(), rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint file as a run does."""
    path = tmp_path_factory.mktemp("weights") / "step-00000001.pt"
    state = {
        "format": 1, "science": {"recipe": "none", "backbone": "resnet18", "plan": "end_to_end"},
        "num_stages": 1, "position": {"run_step": 1, "summaries": []},
        "backbone": make_backbone("resnet18").state_dict(), "input": Input(size_px=32).as_dict(),
    }  # fmt: skip
    torch.save(state, path)
    return path


def command(*arguments: object) -> int:
    try:
        main(["features", *map(str, arguments)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = sample_paths().test_32, tmp_path / "F.npy"
    small = ("--size-px", "32", "--workers", "1")
    assert command(checkpoint, data, "--block", "B3", "--out", out, *small) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"weights: {checkpoint}: resnet18 (fastpsl, 1 step")
    assert lines[1:] == [f"{out}: float16 [160, 64], B3 of resnet18 at 32 px, labels in F-labels.npy"]
    file = read_features(out)
    assert file is not None and file.record["checkpoint"]["science"]["recipe"] == "none"
    assert "whole" not in file.record
    options = ("--block", "conv3_x", "--whole", "--out", tmp_path / "W.npy", *small)
    assert command(checkpoint, data, *options) == 0
    whole = read_features(tmp_path / "W.npy")
    assert whole is not None and whole.record["whole"] and whole.record["block"] == "B3"
    assert not np.array_equal(whole.features(), file.features())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--block", "B6"), ("B6", "B1 to B5")), (("--out", "F.npz"), ("F.npz", ".npy")),
        (("--dtype", "int8"), ("int8", "float16", "float32")), (("--precision", "tf32"), ("tf32", "bf16")),
        (("--backbone", "resnet50"), ("resnet18", "resnet50")),
        (("--out", "absent/F.npy"), ("absent", "cannot be written")), (("--size-px", "0"), ("size-px",)),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], words: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    out = () if "--out" in arguments else ("--out", "F.npy")
    assert command(checkpoint, sample_paths().test_32, *arguments, *out, "--workers", "1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastpsl: ") and all(word in line for word in words), line
    assert not list(tmp_path.iterdir())


def test_the_options_reach_the_extraction_and_its_loader(data: Beton) -> None:
    """Twelve images of a step are four on each of three ranks."""
    options = EvaluationOptions(
        random_weights=True, backbone="nin3", size_px=24, whole=True, batch_size=12, precision="bf16",
        decoder="pillow", prefetch_batches=7, timeout_s=33.0, on_bad_sample="skip", workers=3,
        device="cpu", hw_decoder_load=0.25,
    )  # fmt: skip
    pretrained = options.pretrained()
    pretrained.backbone.min_px = 24  # just allowed
    work = Extraction.of(options, pretrained, data, "B2", replace(one_process(), size=3), "float16")
    assert (work.pretrained, work.data, work.block, work.size_px) == (pretrained, data, 2, 24)
    assert (work.batch_size, work.precision, work.dtype, work.whole) == (4, "bf16", "float16", True)
    assert work.loader == {
        "decoder": "pillow", "prefetch_batches": 7, "timeout_s": 33.0, "on_bad_sample": "skip",
        "num_threads": 3, "hw_decoder_load": 0.25,
    }  # fmt: skip


@pytest.mark.parametrize("labels", [[1, -1, 0, -1], [0, 0]])
def test_labels_are_kept_where_only_some_images_have_one(labels: list[int], tmp_path: Path) -> None:
    with Beton(write_labelled(tmp_path / "some.beton", labels)) as data:
        file = extraction(data).to_file(tmp_path / "F.npy", one_process())
    assert file.record["labels"] == "F-labels.npy"
    stored = file.labels()
    assert stored is not None and stored.dtype == np.int32 and stored.tolist() == labels


WANTED = {"shape": [5, 2], "dtype": "float32"}
ROWS = np.arange(10, dtype=np.float32).reshape(5, 2)


def publish(path: Path, rows: np.ndarray, **record: Any) -> None:
    """Write a file of five rows as three batches of three, the last of which is padding alone."""
    file = PartialFeatures(path, "digest", WANTED, one_process())
    for first in (0, 3, 6):
        part = np.full((3, 2), np.nan, np.float32)
        part[: max(0, 5 - first)] = rows[first : first + 3]
        file.write(first, part)
    file.save(5)
    file.publish(WANTED | {"format": FORMAT, "labels": None} | record, None)
    file.close()


def test_a_file_has_its_rows_and_nothing_else(tmp_path: Path) -> None:
    """Padding after the last row is dropped, and so is a larger file that another extraction left."""
    path = tmp_path / "F.npy"
    partial_path(path).write_bytes(b"x" * 10_000)
    publish(path, ROWS)
    np.save(tmp_path / "plain.npy", ROWS)
    assert path.read_bytes() == (tmp_path / "plain.npy").read_bytes()


def test_features_never_stand_beside_the_record_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "F.npy", feature_file.write_atomically
    publish(path, ROWS, weights="old")

    def killed(target: Path, *arguments: Any) -> None:
        if target == feature_file.record_path(path):
            raise KeyboardInterrupt
        write(target, *arguments)

    monkeypatch.setattr(feature_file, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        publish(path, ROWS + 1, weights="new")
    assert np.array_equal(np.load(path), ROWS + 1) and read_features(path) is None


def test_rows_are_on_the_disk_before_they_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, write, sync = list[str](), feature_file.write_atomically, os.fsync
    path = tmp_path / "F.npy"

    def note(target: Path, *arguments: Any) -> None:
        done.append(f"wrote {target.name}")
        write(target, *arguments)

    def synced(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), os.stat(partial_path(path))):
            done.append("rows")
        sync(descriptor)

    monkeypatch.setattr(feature_file, "write_atomically", note)
    monkeypatch.setattr(feature_file.os, "fsync", synced)
    file = PartialFeatures(path, "digest", WANTED, one_process())
    for num_rows in (2, 5):
        file.write(0, ROWS[:num_rows])
        file.save(num_rows)
    file.close()
    assert done == ["rows", "wrote .F.npy.progress"] * 2


def partial(out: Path) -> PartialFeatures:
    return PartialFeatures(out, "digest", {"shape": [10, 3], "dtype": "float32"}, one_process())


def test_broken_samples_of_all_ranks_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks have told of samples 3 and 8; rank 0's note and rank 0 itself know both."""
    others: list[set[int]] = [{8}]
    monkeypatch.setattr(feature_file, "gather_objects", lambda world, own: [own, *others])
    with closing(partial(tmp_path / "F.npy")) as file:
        file.bad.add(3)
        file.save(6)
        assert file.bad == {3, 8}
    assert json.loads((tmp_path / ".F.npy.progress").read_text()) == {
        "digest": "digest", "num_rows": 6, "bad": [3, 8],
    }  # fmt: skip


def test_rows_past_the_last_one_are_dropped(tmp_path: Path) -> None:
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    with closing(partial(tmp_path / "F.npy")) as file:
        size = file.partial.stat().st_size
        file.write(8, rows)
        file.write(10, rows)
        assert file.partial.stat().st_size == size
        assert file.partial.read_bytes()[-2 * 12 :] == rows[:2].tobytes()


@pytest.mark.parametrize("change", [{"shape": [10, 4]}, {"shape": [9, 3]}, {"format": 2}, {"format": None}])
def test_a_record_of_other_rows_or_of_another_format_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    np.save(tmp_path / "F.npy", np.zeros((10, 3), np.float32))
    record = {"format": 1, "shape": [10, 3]}
    (tmp_path / "F.json").write_text(json.dumps(record))
    assert read_features(tmp_path / "F.npy") is not None
    (tmp_path / "F.json").write_text(json.dumps(record | change))
    assert read_features(tmp_path / "F.npy") is None


def test_a_partial_file_that_was_cut_is_begun_anew(tmp_path: Path) -> None:
    rows = np.ones((6, 3), np.float32)
    with closing(partial(tmp_path / "F.npy")) as file:
        file.write(0, rows)
        file.save(6)
        path, size = file.partial, file.partial.stat().st_size
    with closing(partial(tmp_path / "F.npy")) as file:
        assert file.num_rows == 6
    os.truncate(path, size - 12)
    with closing(partial(tmp_path / "F.npy")) as file:
        assert file.num_rows == 0 and path.stat().st_size == size
