"""Damaged files of JSON lines: they are read up to the damage, with a warning, and a run can go on."""

import json
import os
import warnings
from pathlib import Path

import pytest

from fastpsl.engine.reporter import MetricsFile
from fastpsl.files.paths import read_lines
from fastpsl.plots.charts import draw_curve
from fastpsl.tasks.pseudo_labels.scores import draw_label_curves

LINES = [
    f'{{"run_step": {n}, "stage": "S1", "level": 1, "step": {n}, "lr": 0.1, "loss": {n}.5}}\n'.encode()
    for n in range(1, 7)
]
DAMAGE = {
    "zeros within": bytes(20) + LINES[2][20:],
    "zeros": bytes(80) + b"\n",
    "another encoding": b"\xff\xfe" + LINES[2],
    "a number": b"7\n",
    "a list": b"[]\n",
    "nested": b"[" * 100_000 + b"\n",
    "digits": b'{"run_step": ' + b"9" * 5000 + b', "stage": "S1"}\n',
    "no step": b'{"stage": "S1"}\n',
    "a step that is no number": b'{"run_step": "3", "stage": "S1"}\n',
    "two in one": LINES[2][:-1] + LINES[3],
    "too long": b" " * (1 << 20) + LINES[2],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_comes_before_the_damage_is_kept_and_the_rest_is_told(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join([*LINES[:2], DAMAGE[damage], *LINES[3:]]))
    with pytest.warns(UserWarning, match="line 3 cannot be read") as warned:
        file = MetricsFile(path, 5)
    assert path.read_bytes() == b"".join(LINES[:2])
    copy = tmp_path / "metrics.jsonl.damaged"
    assert copy.read_bytes() == b"".join([*LINES[:2], DAMAGE[damage], *LINES[3:]])
    num_lost = 5 if damage == "too long" else 4
    assert str(warned[0].message).startswith(f"{path}: ") and f"{num_lost} lines" in str(warned[0].message)
    assert len(str(warned[0].message).splitlines()) == 1
    file.append([json.loads(LINES[2])])
    assert file.losses("S1") == [1.5, 2.5, 3.5]


def test_what_would_be_cut_off_anyway_and_half_a_line_are_no_news(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path.write_bytes(b"".join(LINES[:4]) + b"7\n")
        MetricsFile(path, 3)
        assert path.read_bytes() == b"".join(LINES[:3])
        path.write_bytes(b"".join(LINES[:4]) + LINES[4][:30])
        assert [line.row["run_step"] for line in read_lines(path)] == [1, 2, 3, 4]
        assert [line.end for line in read_lines(path)][-1] == os.path.getsize(path) - 30
        assert list(read_lines(tmp_path / "absent.jsonl")) == []
        MetricsFile(path, 4)
        assert path.read_bytes() == b"".join(LINES[:4]) and list(tmp_path.iterdir()) == [path]


def test_images_are_drawn_of_what_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(LINES[:3]) + b"\x00\n")
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 4"):
        assert draw_curve(tmp_path).read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "epochs.jsonl").write_bytes(b"{\n")
    with pytest.warns(UserWarning, match=r"epochs\.jsonl: line 1 "):
        assert draw_label_curves(tmp_path) is None
