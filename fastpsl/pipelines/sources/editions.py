"""The contents of the published archives of CIFAR-10, CIFAR-100 and STL-10, and their MD5 sums.

Sums of archives are from the data sets' pages and torchvision's datasets, those of their files from
torchvision's datasets. The sums of CIFAR-10's .bin files equal those computed from its images and labels in
that layout. For CIFAR-100's .bin files only third parties publish sums, so unpacked ones are checked for
their length alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PAGES = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "stl10": "https://cs.stanford.edu/~acoates/stl10/",
}
MD5 = {
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-batches-bin/data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "cifar-10-batches-bin/data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "cifar-10-batches-bin/data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "cifar-10-batches-bin/data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "cifar-10-batches-bin/data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "cifar-10-batches-bin/test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    "stl10_binary.tar.gz": "91f7769df0f17e558f3565bffb0c7dfb",
    "stl10_binary/train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "stl10_binary/train_y.bin": "5a34089d4802c674881badbb80307741",
    "stl10_binary/unlabeled_X.bin": "5242ba1fed5e4be9e1e742405eb56ca4",
    "stl10_binary/test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "stl10_binary/test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}


@dataclass(frozen=True)
class Edition:
    """One way in which a data set is published."""

    archive: str
    folder: str
    splits: dict[str, tuple[str, ...]]  # files of images per split
    names_file: str
    labels_in: str  # "pickle", "row" (the last byte before an image) or "file" (train_y.bin for train_X.bin)
    size_px: int = 32
    row_labels: int = 0  # bytes of labels before each image

    @property
    def row_bytes(self) -> int:
        return self.row_labels + 3 * self.size_px**2

    def label_files(self, files: Sequence[str]) -> list[str]:
        """Return the files that hold only labels of these files' images."""
        if self.labels_in != "file":
            return []
        return [file.replace("_X", "_y") for file in files if not file.startswith("unlabeled")]

    def images_of(self, label_file: str) -> str:
        return label_file.replace("_y", "_X")

    def needed(self, split: str) -> list[str]:
        """Return every file that a split needs."""
        files = self.splits[split]
        return [*files, *self.label_files(files), self.names_file]


_PY, _BIN = tuple(f"data_batch_{i}" for i in range(1, 6)), tuple(f"data_batch_{i}.bin" for i in range(1, 6))
EDITIONS = {
    "cifar10": (
        Edition(
            "cifar-10-python.tar.gz", "cifar-10-batches-py", {"train": _PY, "test": ("test_batch",)},
            "batches.meta", "pickle",
        ),
        Edition(
            "cifar-10-binary.tar.gz", "cifar-10-batches-bin", {"train": _BIN, "test": ("test_batch.bin",)},
            "batches.meta.txt", "row", row_labels=1,
        ),
    ),
    "cifar100": (
        Edition(
            "cifar-100-python.tar.gz", "cifar-100-python", {"train": ("train",), "test": ("test",)},
            "meta", "pickle",
        ),
        Edition(
            "cifar-100-binary.tar.gz", "cifar-100-binary", {"train": ("train.bin",), "test": ("test.bin",)},
            "fine_label_names.txt", "row", row_labels=2,
        ),
    ),
    "stl10": (
        Edition(
            "stl10_binary.tar.gz", "stl10_binary",
            {
                "train": ("train_X.bin",), "test": ("test_X.bin",), "unlabeled": ("unlabeled_X.bin",),
                "train+unlabeled": ("train_X.bin", "unlabeled_X.bin"),
            },
            "class_names.txt", "file", size_px=96,
        ),
    ),
}  # fmt: skip
