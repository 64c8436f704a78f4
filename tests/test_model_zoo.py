"""The model zoo has every training recipe, and every run with the digests and commits of its record."""

import re

from fastpsl.commands.train import Train
from tests.test_snippets import ROOT

PAGE = (ROOT / "docs" / "project" / "model_zoo.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith(("| [`", "| `")) and line.count("|") == 6]
RUNS = [path for path in (ROOT / "docs" / "runs").iterdir() if path.is_dir() and path.name != "faults"]


def test_every_training_recipe_has_a_row() -> None:
    names = {re.match(r"\| \[?`([^`]+)`", row)[1] for row in ROWS}  # type: ignore[index]
    assert names == set(Train.names)
    assert all(("| not run |" in row) != ("](../runs/" in row) for row in ROWS)


def test_every_run_has_a_row_with_its_commit_and_digest() -> None:
    for run in RUNS:
        rows = [row for row in ROWS if f"](../runs/{run.name}/results.json)" in row]
        record = run.joinpath("results.json").read_text()
        if (environment := run / "environment.json").exists():
            record += environment.read_text()
        assert rows, run.name
        for row in rows:
            for commit in re.findall(r"commit ([0-9a-f]{10})", row):
                assert f'"commit": "{commit}' in record, run.name
            for digest in re.findall(r"`([0-9a-f]{12})`", row):
                assert f'"weights_sha256": "{digest}' in record, run.name
