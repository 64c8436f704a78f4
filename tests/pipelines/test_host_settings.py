"""What a host program sets for Pillow, Python, numpy and torch changes no batch, and the host keeps it."""

import decimal
import io
import locale
import os
import random
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin

import fastpsl
from fastpsl import views
from fastpsl.kernels.tf32 import no_tf32
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.image.host_settings import decoding
from fastpsl.pipelines.image.image_file import decode_any
from fastpsl.pipelines.image.jpeg import decode_plainly
from fastpsl.pipelines.interface.dataset import BadImage
from tests.pipelines.photos import DECODERS, file_of, jpeg, photo
from tests.pipelines.written import tree, write_folder

PNG = file_of(Image.fromarray(photo(1, 60, 70)), "PNG")
HALF = PNG[: len(PNG) // 2]


def with_text(num_bytes: int) -> bytes:
    """Return a PNG with a compressed text of so many bytes."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * num_bytes, zip=True)
    return file_of(Image.fromarray(photo(2, 60, 70)), "PNG", pnginfo=info)


def with_warning() -> bytes:
    """Return a TIFF at which Pillow warns: its copyright would be longer than the file."""
    data = bytearray(file_of(Image.fromarray(photo(3, 60, 70)), "TIFF", tiffinfo={33432: "c"}))
    struct.pack_into("<HHI", data, data.index(struct.pack("<HH", 33432, 2)), 33432, 2, 1 << 30)
    return bytes(data)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images of which one is cut, and others depend on settings of Pillow."""
    files = {f"a/{i}.jpg": jpeg(photo(i, 50 + i, 64)) for i in range(4)}
    files |= {"b/cut.png": HALF, "a/long.png": with_text(3 << 20), "b/text.png": with_text(100)}
    files |= {"b/whole.png": PNG, "b/warns.tif": with_warning()}
    return tree(tmp_path_factory.mktemp("host") / "images", files)


def batches(data: Path, decoder: str) -> list[Any]:
    """Return what the loader gives in evaluation and in training."""
    found = list[Any]()
    whole: dict[str, Any] = {"batch_size": 3, "device": "cpu", "decoder": decoder, "with_indices": True}
    whole |= {"num_threads": 2, "on_bad_sample": "skip", "seed": 3}
    for more in ({"views": None, "train": False, "size_px": 32}, {"views": views.simclr(96), "train": True}):
        with fastpsl.loader(data, **whole, **more) as loader:
            for inputs, labels, indices in loader:
                every = [*(inputs if isinstance(inputs, list) else [inputs]), labels, indices]
                found += [(tensor.dtype, tensor.device.type, tensor.tolist()) for tensor in every]
    return found


def written(data: Path, out: Path) -> bytes:
    """Return the bytes of a dataset file, of images that cannot be passed on as they are."""
    write_folder(data, out, max_bad="3", target=Target(max_side=40))
    return out.read_bytes()


@pytest.fixture(scope="module")
def expected(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("expected")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: dict[str, Any] = {"written": written(images, folder / "a.beton")}
        for decoder in sorted({"pillow", "turbo"} & {*DECODERS}):
            found[decoder] = batches(images, decoder)
            found[f"{decoder} beton"] = batches(folder / "a.beton", decoder)
    return found


def put(target: Any, name: str, value: Any) -> ExitStack:
    """Set an attribute for a while."""
    stack = ExitStack()
    stack.callback(setattr, target, name, getattr(target, name))
    setattr(target, name, value)
    return stack


def called(function: Callable[[Any], Any], value: Any, before: Any) -> ExitStack:
    """Call a setter for a while."""
    stack = ExitStack()
    stack.callback(function, before)
    function(value)
    return stack


def comma_locale() -> ExitStack:
    for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "pt_BR.UTF-8", "ru_RU.UTF-8"):
        with suppress(locale.Error):
            return called(lambda name: locale.setlocale(locale.LC_ALL, name), name, "C.UTF-8")
    pytest.skip("needs a locale with decimal commas")


@contextmanager
def errors_of_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*(bad sample|left out)")  # our own, which are meant
        yield


@contextmanager
def other_openers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patches:
        for name in Image.OPEN:
            patches.setitem(Image.OPEN, name, (lambda *_: pytest.fail("another plugin"), None))
        yield


def two_digits() -> AbstractContextManager[Any]:
    return decimal.localcontext(decimal.Context(prec=2, traps=[decimal.Inexact]))


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "truncated images": lambda: put(ImageFile, "LOAD_TRUNCATED_IMAGES", True),
    "long texts": lambda: put(PngImagePlugin, "MAX_TEXT_CHUNK", 100 << 20),
    "short texts": lambda: put(PngImagePlugin, "MAX_TEXT_CHUNK", 10),
    "few texts": lambda: put(PngImagePlugin, "MAX_TEXT_MEMORY", 10),
    "libtiff": lambda: put(TiffImagePlugin, "READ_LIBTIFF", True),
    "small blocks": lambda: put(ImageFile, "MAXBLOCK", 512),
    "few pixels": lambda: put(Image, "MAX_IMAGE_PIXELS", 100),
    "other openers": other_openers,
    "warnings": errors_of_warnings,
    "numpy's errors": lambda: np.errstate(all="raise"),
    "numpy's printing": lambda: np.printoptions(precision=1, threshold=2, legacy="1.13"),
    "dtype": lambda: called(torch.set_default_dtype, torch.float64, torch.float32),
    "device": lambda: torch.device("meta"),
    "no gradients": torch.inference_mode,
    "half precision": lambda: torch.autocast("cpu", torch.bfloat16),
    "few threads": lambda: called(torch.set_num_threads, 1, torch.get_num_threads()),
    "deterministic": lambda: called(torch.use_deterministic_algorithms, True, False),
    "locale": comma_locale,
    "umask": lambda: called(os.umask, 0o077, 0o022),
    "decimal": two_digits,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_of_the_host_changes_no_batch(
    setting: str, images: Path, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with SETTINGS[setting]():
            found: dict[str, Any] = {"written": written(images, tmp_path / "a.beton")}
            for decoder in sorted({"pillow", "turbo"} & {*DECODERS}):
                found[decoder] = batches(images, decoder)
                found[f"{decoder} beton"] = batches(tmp_path / "a.beton", decoder)
    for way, values in expected.items():
        assert found[way] == values, way
    kept = [index for batch in expected["pillow"][2:9:3] for index in batch[2]]
    assert kept == [0, 1, 2, 3, 6, 7, 8]  # two of nine are bad


def test_the_host_keeps_its_settings() -> None:
    """Its threads open what they opened before, also while images are decoded here."""
    with put(ImageFile, "LOAD_TRUNCATED_IMAGES", True), put(PngImagePlugin, "MAX_TEXT_CHUNK", 10):
        for decode in (lambda: decode_any(HALF), lambda: decode_any(with_text(3 << 20))):
            with pytest.raises(BadImage):
                decode()
        broken = bytearray(jpeg(photo(1, 60, 70)))
        at = broken.index(b"\xff\xc4")
        broken[at + 4 : at + 24] = b"\xff" * 20  # a Huffman table of nonsense
        assert decode_plainly(bytes(broken)) is None
        done = []

        def by_host() -> None:
            with Image.open(io.BytesIO(HALF)) as image:
                image.load()
                done.append(image.size)
            done.append((ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK))

        with decoding():
            thread = threading.Thread(target=by_host)
            thread.start()
            thread.join()
            assert (ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK) == (False, 1 << 20)
        by_host()
        assert done == [(70, 60), (True, 10)] * 2
    with patch.object(ImageFile, "LOAD_TRUNCATED_IMAGES", True):
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False and PngImagePlugin.MAX_TEXT_CHUNK == 1 << 20
    with pytest.raises(OSError, match="truncated"), Image.open(io.BytesIO(HALF)) as image:
        image.load()
    with (
        pytest.warns(UserWarning, match="larger than file") as caught,
        Image.open(io.BytesIO(with_warning())),
    ):
        pass
    assert {Path(warning.filename).name for warning in caught} == {"TiffImagePlugin.py"}


def test_full_precision_is_had_where_the_backends_were_set_one_by_one() -> None:
    backends: Any = torch.backends
    products = backends.cuda.matmul, backends.mkldnn.matmul
    for change in (
        lambda: put(products[0], "fp32_precision", "tf32"),
        lambda: put(products[1], "fp32_precision", "bf16"),
        lambda: called(torch.set_float32_matmul_precision, "medium", "highest"),
        nullcontext,
    ):
        with change():
            before = [each.fp32_precision for each in products]
            with no_tf32():
                assert [each.fp32_precision for each in products] == ["ieee", "ieee"]
            assert [each.fp32_precision for each in products] == before
