"""Test feature files: values, pools, any number of ranks, interruption, and the record."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fastpsl.engine.train_step import DTYPES
from fastpsl.evaluation import feature_file
from fastpsl.evaluation import features as features_module
from fastpsl.evaluation.feature_file import FORMAT, PartialFeatures, read_features
from fastpsl.evaluation.features import Extraction, extract
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.protocols import PROTOCOLS, Pool, block_number, block_shapes, pooled, pooled_width
from fastpsl.files.atomic import partial_path
from fastpsl.kernels.geometry import Enlarge
from fastpsl.models.factory import make_backbone
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.open_folder import Folder
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.interface.dataset import MODE_RAW, Dataset
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import Input, center_view
from tests.cli import Cli
from tests.engine.tiny import TinyNet, one_process
from tests.pipelines.written import write_labelled

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
    with pytest.raises(ValueError, match="float16 cannot hold: give another --block"):
        work.to_file(tmp_path / "large.npy", one_process())
    assert not (tmp_path / "large.npy").exists()


class Killed(Exception):
    """An error that stands for SIGKILL, so that the test survives."""


def leave_at(rows: int, out: Path, monkeypatch: pytest.MonkeyPatch, data: Dataset, **options: Any) -> None:
    """Run an extraction that ends right after it has saved `rows` rows."""
    save = PartialFeatures.save

    def save_and_die(file: PartialFeatures, num_rows: int) -> None:
        save(file, num_rows)
        if num_rows >= rows:
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
    names = make_backbone("alexnet").block_names
    assert [block_number(name, 7, names) for name in ("conv1", "fc7", "B6", "final")] == [1, 7, 6, 7]
    with pytest.raises(ValueError, match="B1 to B7, which are conv1, .* fc7"):
        block_number("fc8", 7, names)


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


def test_the_command(checkpoint: Path, tmp_path: Path, cli: Cli) -> None:
    data, out = sample_paths().test_32, tmp_path / "F.npy"
    small = ("--size-px", "32", "--workers", "1")
    code, said, _ = cli("features", checkpoint, "--data", data, "--block", "B3", "--out", out, *small)
    lines = said.splitlines()
    assert code == 0
    assert lines[0].startswith(f"weights: {checkpoint}: resnet18 (fastpsl, 1 step")
    assert lines[1:] == [f"{out}: float16 [160, 64], B3 of resnet18 at 32 px, labels in F-labels.npy"]
    file = read_features(out)
    assert file is not None and file.record["checkpoint"]["science"]["recipe"] == "none"
    assert "whole" not in file.record
    options = ("--block", "conv3_x", "--whole", "--out", tmp_path / "W.npy", *small)
    assert cli("features", checkpoint, "--data", data, *options).code == 0
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
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli,
    arguments: tuple[str, ...], words: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    out = () if "--out" in arguments else ("--out", "F.npy")
    code, _, error = cli(
        "features", checkpoint, "--data", sample_paths().test_32, *arguments, *out, "--workers", 1
    )
    (line,) = error.splitlines()
    assert code == 2 and line.startswith("fastpsl ") and all(word in line for word in words), line
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


@pytest.mark.parametrize("damage", ["no row", "half a header", "no shape", "no digest"])
def test_damaged_features_are_made_again(data: Beton, tmp_path: Path, damage: str) -> None:
    out, record_file = tmp_path / "F.npy", tmp_path / "F.json"
    whole = extraction(data).to_file(out, one_process())
    content, record = out.read_bytes(), dict(whole.record)
    if damage in ("no row", "half a header"):
        out.write_bytes(content[: 0 if damage == "no row" else 40])
    else:
        del record[damage.removeprefix("no ")]
        record_file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="holds other features; give --overwrite"):
        extraction(data).to_file(out, one_process())
    extraction(data).to_file(out, one_process(), overwrite=True)
    assert out.read_bytes() == content and "digest" in json.loads(record_file.read_text())


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10, 4]}, {"shape": [9, 3]}, {"format": 2}, {"format": None}, {"bad": [10]}, {"bad": ["0"]},
        {"labels": "../F-labels.npy"}, {"labels": "other.npy"}, {"size_px": -1}, {"block": 3},
    ],
)  # fmt: skip
def test_a_record_of_other_rows_or_of_another_format_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    np.save(tmp_path / "F.npy", np.zeros((10, 3), np.float32))
    record = {"format": 1, "shape": [10, 3], "dtype": "float32", "block": "B1", "size_px": 32, "bad": [9]}
    record |= {"backbone": "nin3", "digest": "d", "labels": None}
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
    progress = tmp_path / ".F.npy.progress"
    sound = json.loads(progress.read_text())
    for damaged in (
        "[" * 200_000,
        json.dumps(sound | {"bad": [10**6]}),
        json.dumps(sound | {"num_rows": 99}),
    ):
        progress.write_text(damaged)
        with closing(partial(tmp_path / "F.npy")) as file:
            assert file.num_rows == 0
            file.write(0, rows)
            file.save(6)
    os.truncate(path, size - 12)
    with closing(partial(tmp_path / "F.npy")) as file:
        assert file.num_rows == 0 and path.stat().st_size == size


AS_IT_IS = Pool(None)
MAX_3_2 = Pool(None, "max", (None, 3, 2, 0))


def pooled_extraction(data: Dataset, name: str, block: int, pool: Pool | None, **options: Any) -> Extraction:
    torch.manual_seed(0)
    pretrained = Pretrained(make_backbone(name), INPUT, {"sha256": "random", "backbone": name})
    values: dict[str, Any] = {"size_px": 64, "batch_size": 40, "dtype": "float32"} | options
    return Extraction(pretrained, data, block, pool=pool, loader={"num_threads": 1}, **values)


def maps_by_hand(data: Beton, net: nn.Module, block: int, num: int) -> torch.Tensor:
    """Return the block's outputs [num, C, h, w] for the first `num` images."""
    options: dict[str, Any] = {"batch_size_per_rank": num, "train": False, "num_threads": 1}
    with Loader(data, [center_view(INPUT, 64)], **options) as loader:
        batch = next(batches := loader.epoch(0))
        (images,) = batch.inputs(loader.views, torch.float32)
        batches.close()
    with torch.no_grad():
        maps: torch.Tensor = nn.Sequential(*net.eval().blocks()[:block])(images)  # type: ignore[operator]
    return maps


def windows_by_loops(maps: np.ndarray, kernel: int, stride: int, take: Any) -> np.ndarray:
    """Reduce [C, h, w] to [C, n, n], each window by `take`."""
    side = (maps.shape[-1] - kernel) // stride + 1
    parts = [slice(i * stride, i * stride + kernel) for i in range(side)]
    return np.moveaxis(
        np.array([[take(maps[:, rows, columns]) for columns in parts] for rows in parts]), 2, 0
    )


def test_features_are_flattened_channel_by_channel(data: Beton, tmp_path: Path) -> None:
    """Compare conv3 as it is, conv5 max-pooled (3 x 3, stride 2) and averages over a grid with loops."""
    works = [
        pooled_extraction(data, "alexnet", 3, AS_IT_IS),
        pooled_extraction(data, "alexnet", 1, MAX_3_2),
        pooled_extraction(data, "alexnet", 1, Pool(5, window=(15, 3, 3, 0))),
        pooled_extraction(data, "alexnet", 1, None),
    ]
    works = [replace(work, pretrained=works[0].pretrained) for work in works]
    outs = [tmp_path / f"{number}.npy" for number in range(len(works))]
    files = extract(works, outs, one_process())
    net = works[0].pretrained.backbone
    conv3, conv1 = (maps_by_hand(data, net, block, 5).numpy() for block in (3, 1))
    assert conv3.shape == (5, 384, 3, 3) and conv1.shape == (5, 96, 15, 15)
    expected = [
        [[conv3[i, c, y, x] for c in range(384) for y in range(3) for x in range(3)] for i in range(5)],
        [windows_by_loops(maps, 3, 2, lambda window: window.max((1, 2))).ravel() for maps in conv1],
        [windows_by_loops(maps, 3, 3, lambda window: window.mean((1, 2))).ravel() for maps in conv1],
        conv1.mean((2, 3)),
    ]
    widths = [384 * 9, 96 * 49, 96 * 25, 96]
    for file, work, values, width in zip(files, works, expected, widths, strict=True):
        rows = file.features()
        assert rows.shape == (160, width) and work.width == width
        assert rows.std(0).mean() > 1e-3
        np.testing.assert_allclose(rows[:5], np.array(values), rtol=1e-3, atol=1e-5)
    records = [json.loads(out.with_suffix(".json").read_text()) for out in outs]
    assert records[1]["pool"] == {"grid": None, "kind": "max", "window": [None, 3, 2, 0]}
    assert {one["pooling"] for one in records[:3]} == {"by pool, then flattened"}
    assert records[3]["pooling"] == "average over all positions"
    assert "pool" not in records[3] and len({one["digest"] for one in records}) == 4


def test_each_is_as_alone(data: Beton, tmp_path: Path) -> None:
    """The block after ResNet-18's B1 begins with an operation in place on B1's map."""
    works = [pooled_extraction(data, "resnet18", 1, pool) for pool in (AS_IT_IS, Pool(4), None)]
    works = [replace(work, pretrained=works[0].pretrained) for work in works]
    works.append(replace(works[0], block=2, pool=Pool(2)))
    outs = [tmp_path / f"{number}.npy" for number in range(4)]
    together = extract(works, outs, one_process())
    for file, work in zip(together, works, strict=True):
        alone = work.to_file(tmp_path / "alone.npy", one_process(), overwrite=True)
        assert np.array_equal(file.features(), alone.features())
        assert file.record["digest"] == alone.record["digest"] == work.digest()
    again = extract(works, outs, one_process())
    assert [file.record for file in again] == [file.record for file in together]


def test_without_a_pool_the_digest_is_as_ever(data: Beton) -> None:
    """The digest covers exactly these values, as in files from before pools existed."""
    work = pooled_extraction(data, "alexnet", 3, None)
    contents = {
        "format": 1, "shape": [160, 384], "dtype": "float32", "block": "B3", "size_px": 64,
        "precision": "fp32", "input": INPUT.as_dict(),
        "backbone": "alexnet", "weights": "random", "data": data.digest(),
    }  # fmt: skip
    assert work.digest() == hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    assert replace(work, pool=AS_IT_IS).digest() != replace(work, pool=MAX_3_2).digest() != work.digest()


@pytest.mark.parametrize("side", [1, 2, 3, 4, 6, 13])
def test_windows_of_any_side_and_maps_smaller_than_them(side: int) -> None:
    maps = torch.rand(2, 3, side, side)
    result = pooled(maps, MAX_3_2)
    assert torch.equal(result, F.max_pool2d(maps, 3, 2) if side >= 3 else maps)
    assert pooled(maps, AS_IT_IS) is maps
    assert pooled_width((3, side, side), MAX_3_2) == result[0].numel()
    with_grid = Pool(6, "max", (13, 3, 2, 0))
    expected = F.max_pool2d(maps, 3, 2) if side == 13 else F.adaptive_max_pool2d(maps, min(6, side))
    assert torch.equal(pooled(maps, with_grid), expected)


@pytest.mark.usefixtures("published_widths")
def test_the_published_widths_at_224_px(data: Beton) -> None:
    """VISSL's widths for ResNet-50's blocks, and 384 x 13 x 13 for AlexNet's conv3."""
    torch.manual_seed(0)
    net = make_backbone("resnet50").train()
    shapes = block_shapes(net, center_view(INPUT, 224))
    widths = [pooled_width(shape, pool) for shape, pool in zip(shapes, PROTOCOLS["vissl"].pools, strict=True)]
    assert widths == [9216, 9216, 8192, 9216, 8192]
    assert net.training and block_shapes(net, center_view(INPUT, 224), 2) == shapes[:2]
    enlarged = replace(center_view(INPUT, 24), ops=(Enlarge(224, 224), *center_view(INPUT, 24).ops))
    net.min_px = 32  # of what the network is shown
    assert block_shapes(net, enlarged) == shapes
    conv3 = Extraction(Pretrained(make_backbone("alexnet"), INPUT, {}), data, 3, 224, pool=AS_IT_IS)
    assert conv3.width == 384 * 13 * 13


def test_of_each_takes_one_block_with_several_pools(data: Beton) -> None:
    options = EvaluationOptions(random_weights=True, backbone="alexnet", size_px=64, device="cpu")
    weights = options.pretrained()
    blocks, pools = ("conv5", "conv5", "B3"), (AS_IT_IS, MAX_3_2, None)
    works = Extraction.for_blocks(options, weights, data, blocks, one_process(), "float32", pools)
    assert [(work.block, work.pool) for work in works] == [(5, AS_IT_IS), (5, MAX_3_2), (3, None)]
    with pytest.raises(ValueError, match="--block B5 B5: give one block or several, each once"):
        Extraction.for_blocks(
            options, weights, data, ("B5", "B5"), one_process(), "float32", (MAX_3_2, MAX_3_2)
        )


def test_an_image_squashed(tmp_path: Path) -> None:
    """40 x 20 px become a square of 16; the black ends, outside the central square, are a quarter each."""
    images = tmp_path / "pictures"
    (images / "one").mkdir(parents=True)
    column = np.repeat(np.array([0, 255, 0], np.uint8), [10, 20, 10])
    Image.fromarray(np.repeat(np.tile(column[:, None], (1, 20))[..., None], 3, 2)).save(
        images / "one" / "0.png"
    )
    with Folder(images) as data:
        work = pooled_extraction(data, "resnet18", 1, None, size_px=16, squashed=True)
        assert work.wanted()["squashed"] is True and "squashed" not in replace(work, squashed=False).wanted()
        with Loader(data, [work.view], batch_size_per_rank=1, train=False, num_threads=1) as loader:
            batch = next(batches := loader.epoch(0))
            batches.close()
        assert batch.images[0].shape == (1, 3, 16, 16)
        rows = batch.images[0][0, 0].float().mean(1)
        assert rows[:3].max() < 9 and rows[5:11].min() > 246 and rows[13:].max() < 9
        assert work.to_file(tmp_path / "F.npy", one_process()).features().shape == (1, 64)


def test_features_are_those_of_the_block_if_the_next_one_writes_into_them(
    data: Beton, tmp_path: Path
) -> None:
    """Maps of one position are not copied by being flattened, as larger ones in channels-last memory are."""
    work = pooled_extraction(data, "resnet18", 4, AS_IT_IS, size_px=16)
    net = TinyNet()
    net.parts[4].insert(0, nn.Threshold(0.5, 9.0, inplace=True))  # type: ignore[operator]
    work = replace(work, pretrained=Pretrained(net, INPUT, work.pretrained.record))
    alone, first, second = (tmp_path / f"{name}.npy" for name in ("alone", "first", "second"))
    work.to_file(alone, one_process())
    extract([work, replace(work, block=5)], [first, second], one_process())
    assert np.array_equal(np.load(first), np.load(alone)) and np.load(alone).max() < 9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blocks_run_in_the_precision_that_is_asked_for(data: Beton, tmp_path: Path, precision: str) -> None:
    work, seen = pooled_extraction(data, "resnet18", 1, None, precision=precision), set[torch.dtype]()
    conv = next(part for part in work.pretrained.backbone.modules() if isinstance(part, nn.Conv2d))
    conv.register_forward_hook(lambda *called: seen.add(called[-1].dtype))
    work.to_file(tmp_path / "F.npy", one_process())
    assert seen == {DTYPES[precision]}


def test_rows_are_saved_every_so_many_seconds(
    data: Beton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of 16 images takes a second, and so does saving. The last step is saved in any case."""
    save, saved = PartialFeatures.save, list[int]()

    def note(file: PartialFeatures, num_rows: int) -> None:
        saved.append(num_rows)
        save(file, num_rows)

    monkeypatch.setattr(PartialFeatures, "save", note)
    monkeypatch.setattr(features_module, "time", SimpleNamespace(monotonic=count(0.0).__next__))
    work = pooled_extraction(data, "resnet18", 1, None, batch_size=16)
    work.to_file(tmp_path / "F.npy", one_process(), save_every_s=3.0)
    assert saved == [48, 96, 144, 160]


def test_random_weights_are_of_the_backbone_that_is_given() -> None:
    """They are taken where there is neither data nor a checkpoint."""
    assert EvaluationOptions().completed().backbone == "resnet18"
    given = EvaluationOptions(backbone="nin3").completed()
    assert (given.backbone, given.random_weights) == ("nin3", True)
    for options in (EvaluationOptions(data="photos"), EvaluationOptions(checkpoint="a.pth")):
        assert options.completed() == options and not options.random_weights
