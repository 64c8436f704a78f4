"""The harness detects harm: each of these ways of opening a file does some."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.faults.hostile import Subject
from tests.faults.hostile_archives import PRIVATE_IMAGE
from tests.faults.hostile_arrays import ATTACKS
from tests.faults.hostile_common import ESCAPES, MARKUP
from tests.faults.hostile_gates import Gate


def _runs_code(path: Path) -> str:
    next(make for gate, name, make in ATTACKS if (gate, name) == ("p.pkl", "code in a pickle"))(path)
    return str(pickle.loads(path.read_bytes()))


def _writes_outside(path: Path) -> str:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../evil", b"")
    for name in zipfile.ZipFile(packed).namelist():
        (path.parent / name).write_bytes(b"")
    return ""


def _takes_an_image(path: Path) -> str:
    path.with_name("out.beton").write_bytes(bytes(100) + PRIVATE_IMAGE)
    return ""


def _writes_a_page(path: Path) -> str:
    os.mkdir(path.parent / "out")
    (path.parent / "out" / "t.html").write_text(f"<p>{MARKUP}</p>")
    return ""


@pytest.mark.parametrize(
    ("open", "outcome"),
    [
        (_runs_code, "executed"),
        (_writes_outside, "wrote"),
        (_takes_an_image, "disclosed"),
        (_writes_a_page, "escaped"),
        (lambda path: ESCAPES, "escaped"),
        (lambda path: str(Image.open(path)), "traceback"),
        (lambda path: str(int(path.read_text())), "unclear"),
        (lambda path: "read", "read"),
    ],
)
def test_harm_is_seen(open: Callable[[Path], str], outcome: str, tmp_path: Path) -> None:
    def make(folder: Path) -> Path:
        (folder / "p.pkl").write_bytes(b"sound")
        return folder / "p.pkl"

    gate = Gate("p.pkl", make, open)
    subject = Subject(tmp_path, [gate])
    subject.case_folder.mkdir()
    assert subject.attack(gate, make(subject.case_folder))[0] == outcome
