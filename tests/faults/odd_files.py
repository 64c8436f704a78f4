"""Odd file names, and entries of a folder that are no files or no images: each function makes one entry."""

import os
import random
import socket
from pathlib import Path

from tests.faults.sound_images import sound_images

Random = random.Random

# Names without the ending, for sound and broken files. They are bytes, as in a file system.
NAMES = [
    b"mutant", "ünï 中文 😀".encode(), b"new\nline", b"latin\xe9", b"\x1b[31mred\x1b]0;title\x07",
    b'tab\tquote"comma,',
    b"=HYPERLINK(1)", b"@SUM(1)", b" lead", b"-rf", b"*?[x]", b"%s{0}", b"a" * 250, "\u202egpj".encode(),
    b"\rreturn",
    b"\x9b31m", "\u009b31m".encode(), b"back\\slash\\n", b"<script>alert(1)<", b"'; drop", b"\x7f", b"..",
    b"%00",
]  # fmt: skip


def _path(folder: Path, name: str = "odd.jpg") -> Path:
    return folder / name


def dangling_link(folder: Path, random: Random) -> None:
    _path(folder).symlink_to("/nonexistent/picture.jpg")


def circle_of_links(folder: Path, random: Random) -> None:
    _path(folder).symlink_to("other.jpg")
    _path(folder, "other.jpg").symlink_to("odd.jpg")


def link_to_itself(folder: Path, random: Random) -> None:
    _path(folder).symlink_to("odd.jpg")


def link_to_a_device(folder: Path, random: Random) -> None:
    _path(folder).symlink_to(random.choice(["/dev/zero", "/dev/null", "/dev/random", "/dev/tty"]))


def link_to_the_system(folder: Path, random: Random) -> None:
    """Link to a file that is regular by its mode, but has no size or no end, or is no image."""
    targets = ["/etc/passwd", "/proc/self/mem", "/proc/self/maps", "/proc/self/pagemap", "/proc/kallsyms"]
    _path(folder).symlink_to(random.choice(targets))


def link_to_a_folder(folder: Path, random: Random) -> None:
    _path(folder).symlink_to(random.choice(["..", "/etc/fonts", "."]))


def folder_named_as_image(folder: Path, random: Random) -> None:
    _path(folder).mkdir()
    (_path(folder) / "in.jpg").write_bytes(sound_images()["jpeg"][0])


def pipe(folder: Path, random: Random) -> None:
    os.mkfifo(_path(folder))


def unix_socket(folder: Path, random: Random) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        server.bind(f"/proc/self/fd/{descriptor}/odd.jpg")  # because a socket's path is limited to 107 bytes
        os.close(descriptor)


def sparse(folder: Path, random: Random) -> None:
    """Write a sparse file of 40 GB that begins like an image."""
    head, ending = sound_images()[random.choice(["jpeg", "png", "tiff", "bmp", "webp", "ppm"])]
    with open(_path(folder, f"odd{ending}"), "wb") as file:
        file.write(head[: random.choice([4, 200, len(head)])])
        file.truncate(40 << 30)


def no_rights(folder: Path, random: Random) -> None:
    _path(folder).write_bytes(sound_images()["jpeg"][0])
    _path(folder).chmod(0)


def deep_folders(folder: Path, random: Random) -> None:
    """Write an image below 1,200 folders, beyond Python's recursion limit and the longest path."""
    current = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(1200):
            os.mkdir("d", dir_fd=current)
            below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=current)
            os.close(current)
            current = below
        file = os.open("in.jpg", os.O_WRONLY | os.O_CREAT, dir_fd=current)
        os.write(file, sound_images()["jpeg"][0])
        os.close(file)
    finally:
        os.close(current)


KINDS = (
    dangling_link, circle_of_links, link_to_itself, link_to_a_device, link_to_the_system, link_to_a_folder,
    folder_named_as_image, pipe, unix_socket, sparse, no_rights, deep_folders,
)  # fmt: skip
