"""VOCdevkits of a few images, written by hand."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from tests.pipelines.photos import jpeg, photo

# Boxes are xmin ymin xmax ymax, counted from 1 and inclusive. The annotations have a part with a box of its
# own, a float and an object without <difficult>.
DOG = """<annotation><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult>
  <bndbox><xmax>20</xmax><xmin>1</xmin><ymax>48</ymax><ymin>11</ymin></bndbox>
  <part><name>head</name><bndbox><xmin>3</xmin><ymin>12</ymin><xmax>9</xmax><ymax>20</ymax></bndbox></part>
</object>
<object><name>person</name><difficult>1</difficult>
  <bndbox><xmin>45.7</xmin><ymin>2.0</ymin><xmax>64</xmax><ymax>30.5</ymax></bndbox></object>
</annotation>"""
CAT = """<annotation>
<object><name>aeroplane</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object>
<object><name>tvmonitor</name><difficult>1</difficult>
  <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>60</ymax></bndbox></object>
<object><name>tvmonitor</name><difficult>0</difficult>
  <bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object>
</annotation>"""


def voc_2007(root: Path) -> Path:
    """Write VOC2007: trainval 000007 (48 x 64 px, DOG) and 000005 (60 x 40, CAT), test 000009 (DOG)."""
    year = root / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (year / folder).mkdir(parents=True)
    for name, text, size in (("000005", CAT, (60, 40)), ("000007", DOG, (48, 64)), ("000009", DOG, (48, 64))):
        (year / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg(photo(int(name), *size)))
        (year / "Annotations" / f"{name}.xml").write_text(text)
    (year / "ImageSets" / "Main" / "trainval.txt").write_text("000007\n000005\n")
    (year / "ImageSets" / "Main" / "test.txt").write_text("000009\r\n")
    (year / "ImageSets" / "Main" / "dog_test.txt").write_text("000009  1\n")
    return root


def mask_of(seed: int, height: int, width: int) -> np.ndarray:
    """Draw a mask, uint8 [height, width]: background, classes 1 and 20, and a border of 255."""
    mask = np.zeros((height, width), np.uint8)
    mask[5:20, 4:18], mask[25:40, 10 + seed : 30] = 1, 20
    mask[4, 3:19] = mask[20, 3:19] = 255
    return mask


def voc_2012(root: Path) -> Path:
    """Write VOC2012 with masks: train 2007_000032 and 2007_000039, val 2007_000033."""
    year = root / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (year / folder).mkdir(parents=True)
    for i, name in enumerate(("2007_000032", "2007_000033", "2007_000039")):
        (year / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg(photo(i, 50, 70 + i)))
        save_mask(year / "SegmentationClass" / f"{name}.png", mask_of(i, 50, 70 + i))
    (year / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000032\n2007_000039\n")
    (year / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000033\n")
    return root


def save_mask(path: Path, mask: np.ndarray) -> None:
    """Write a palette PNG by Pillow alone."""
    image = Image.new("P", mask.shape[::-1])
    image.putpalette([value for i in range(256) for value in (i, 255 - i, 7 * i % 256)])
    image.putdata(mask.ravel().tolist())
    image.save(path)


def sbd(root: Path, images: Path) -> Path:
    """Write SBD with two images of VOC2012.

    Its train has 2007_000033 (VOC2012's val) and 2008_000001, its val 2007_000032 (VOC2012's train) and
    2008_000002.

    Args:
        root: The folder for benchmark_RELEASE.
        images: VOC2012/JPEGImages.
    """
    from scipy.io import savemat

    place = root / "benchmark_RELEASE" / "dataset"
    (place / "img").mkdir(parents=True)
    (place / "cls").mkdir()
    for name in ("2007_000032", "2007_000033"):
        shutil.copy(images / f"{name}.jpg", place / "img")
    for i, name in enumerate(("2008_000001", "2008_000002")):
        (place / "img" / f"{name}.jpg").write_bytes(jpeg(photo(20 + i, 44, 60)))
    for i, name in enumerate(("2007_000032", "2007_000033", "2008_000001", "2008_000002")):
        mask = mask_of(i, *((50, 70 + i) if i < 2 else (44, 60)))
        write_sbd_mask(place / "cls" / f"{name}.mat", np.where(mask == 255, 0, mask), savemat)
    (place / "train.txt").write_text("2007_000033\n2008_000001\n")
    (place / "val.txt").write_text("2007_000032\n2008_000002\n")
    return root / "benchmark_RELEASE"


def write_sbd_mask(path: Path, mask: np.ndarray, savemat: object) -> None:
    boundaries = np.empty((20, 1), object)
    for i in range(20):
        boundaries[i, 0] = np.zeros((2, 2))
    parts = {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": np.array([[1], [20]])}
    savemat(path, {"GTcls": parts}, do_compression=True)  # type: ignore[operator]
