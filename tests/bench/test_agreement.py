"""What bench/agreement.py counts, against numpy's own statistics of the crops."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import agreement
from tests.pipelines.folders import tree
from tests.pipelines.photos import DECODERS, jpeg, photo


def test_a_row_is_the_statistics_of_the_differences() -> None:
    differences = np.random.default_rng(0).geometric(0.3, 10_000) - 1
    row = agreement.row_of("dali", 64, np.bincount(differences, minlength=256))
    assert row["median"] == pytest.approx(differences.mean(), rel=1e-5)
    assert row["percentile_99"] == np.quantile(differences, 0.99, method="inverted_cdf")
    assert (row["largest"], row["share_equal"]) == (differences.max(), (differences == 0).mean())


@pytest.mark.skipif("turbo" not in DECODERS, reason="the C library was not built")
def test_its_table_has_every_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tree(tmp_path / "photos", {f"{i}.jpg": jpeg(photo(i, 50, 60)) for i in range(3)})
    out = tmp_path / "result.json"
    words = ["agreement", "--photos", str(photos), "--out", str(out), "--sizes-px", "40", "70"]
    monkeypatch.setattr(sys, "argv", words)
    agreement.main()
    result = json.loads(out.read_text())
    assert result["data"]["name"] == "photos"
    names = [name for name in agreement.missing_decoders() if name in DECODERS]
    assert [(row["size_px"], row["measured"]) for row in result["rows"]] == [
        (size, name) for size in (40, 70) for name in names
    ]
    by_turbo = [row for row in result["rows"] if row["measured"] == "turbo"]
    # Fixed point rounds a few values that lie near a half to the other side.
    assert all(row["largest"] <= 1 and row["share_equal"] > 0.98 for row in by_turbo)
    lines = agreement.agreement_table({"a": result}).splitlines()
    assert lines[0] == f"| crops to | {' | '.join(f'`{name}`' for name in names)} |" and len(lines) == 4
    assert lines[2] in capsys.readouterr().out
