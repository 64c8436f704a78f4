"""Dataset files of ffcv's with other fields than an integer label: every reader gives label -1."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import FIELD, HEADER, IMAGE_TYPE, INT_TYPE, row_dtype
from fastpsl.pipelines.beton.sidecar import MARK, MARK_START
from fastpsl.pipelines.beton.verify import info, unchecked, verify
from fastpsl.pipelines.data.dataset import require_labels
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.photos import DECODERS, needs_ffcv, photo_samples, write

NUM = 5
FLOAT, ARRAY = 0, 4


def with_fields(path: Path, fields: list[tuple[int, str]]) -> Path:
    """Write NUM photos with these fields, types and names, in place of image and label."""
    data = bytearray(write(path, photo_samples(NUM)).read_bytes())
    start = HEADER.itemsize + 2 * FIELD.itemsize
    old = np.frombuffer(data, row_dtype((IMAGE_TYPE, INT_TYPE)), NUM, start)
    header, descriptors = np.frombuffer(data, HEADER, 1).copy(), np.zeros(len(fields), FIELD)
    header["num_fields"] = len(fields)
    rows = np.zeros(NUM, row_dtype([type_id for type_id, _ in fields]))
    for i, (type_id, name) in enumerate(fields):
        descriptors[i]["type_id"] = type_id
        descriptors[i]["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
        if type_id in (IMAGE_TYPE, INT_TYPE):
            rows[f"f{i}"] = old["f0" if type_id == IMAGE_TYPE else "f1"]
    head = header.tobytes() + descriptors.tobytes() + rows.tobytes()
    data[: len(head)] = head
    assert MARK not in data[MARK_START : MARK_START + len(MARK)]
    path.write_bytes(data)
    return path


FIELDS = {
    "images": ([(IMAGE_TYPE, "image")], None),
    "fractions": ([(IMAGE_TYPE, "image"), (FLOAT, "label")], "label"),
    "several labels": ([(ARRAY, "labels"), (IMAGE_TYPE, "image"), (FLOAT, "weight")], "labels, weight"),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_images_without_a_class_number_have_the_label_none(kind: str, tmp_path: Path) -> None:
    fields, unread = FIELDS[kind]
    path = with_fields(tmp_path / "a.beton", fields)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = open_data(path)
    assert isinstance(data, Beton)
    told = (
        f"{path}: has no IntField, and {unread} is not read: no labels; for class labels, write it again "
        "with an IntField"
    )
    assert [str(warning.message) for warning in caught] == ([told] if unread else [])
    with data:
        assert data.labels().tolist() == data.rows(np.arange(NUM)).label.tolist() == [-1] * NUM
        assert (data.num_samples, data.num_classes, data.class_names) == (NUM, 0, None)
        assert [data.read(i) for i in range(NUM)] == [sample[0] for sample in photo_samples(NUM)]
        assert f"without a label            {NUM}" in info(data) and "no checksums" in unchecked(data)
        with pytest.raises(ValueError, match=f"this needs labels, and {NUM} of {NUM} samples have none"):
            require_labels(data, "this")
    assert list(verify(path)) == []


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_reads_them(decoder: str, tmp_path: Path) -> None:
    views = [ViewSpec(ShorterSideCrop(24, 24, where="center"))]
    batches = list[Batch]()
    for path in (
        write(tmp_path / "labelled.beton", photo_samples(NUM)),
        with_fields(tmp_path / "a.beton", FIELDS["images"][0]),
    ):
        with (
            Beton(path) as data,
            Loader(
                data, views, batch_size_per_rank=NUM, train=False, decoder=decoder, num_threads=1
            ) as loader,
        ):
            batches += loader.epoch(0)
    labelled, images = batches
    assert images.labels.tolist() == [-1] * NUM != labelled.labels.tolist()
    assert torch.equal(images.images[0], labelled.images[0])


_WRITER = """
import sys
import numpy as np
from ffcv.fields import FloatField, NDArrayField, RGBImageField
from ffcv.writer import DatasetWriter
from tests.pipelines.beton_stock import image_of

class Data:
    def __init__(self, label):
        self.label = label
    def __len__(self):
        return 5
    def __getitem__(self, i):
        return (image_of(i)[0], *self.label(int(i)))

for name, fields, label in (
    ("images", {}, lambda i: ()),
    ("fractions", {"label": FloatField()}, lambda i: (i / 2,)),
    ("several labels", {"label": NDArrayField(np.dtype("float32"), (3,))}, lambda i: (np.ones(3, "f4"),)),
):
    fields = {"image": RGBImageField(write_mode="raw"), **fields}
    DatasetWriter(f"{sys.argv[1]}/{name}.beton", fields, num_workers=1).from_indexed_dataset(Data(label))
"""


@pytest.mark.slow
@needs_ffcv("its own DatasetWriter writes the files")
def test_what_ffcv_writes_without_an_integer(tmp_path: Path) -> None:
    from tests.pipelines.beton_stock import image_of

    code = [sys.executable, "-c", _WRITER, str(tmp_path)]
    subprocess.run(code, check=True, capture_output=True, timeout=240)
    for kind in FIELDS:
        path = tmp_path / f"{kind}.beton"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with Beton(path) as data:
                assert data.labels().tolist() == [-1] * NUM
                assert [data.read(i) for i in range(NUM)] == [image_of(i)[0].tobytes() for i in range(NUM)]
        assert ["and label is not read" in str(warning.message) for warning in caught] == [True] * (
            kind != "images"
        )
        assert list(verify(path)) == []
