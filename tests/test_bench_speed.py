"""Benchmarks measure what they say, on worlds small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from builders import tiny_world, write_dataset

from worldflow.bench_report import as_table, report
from worldflow.bench_speed import sample_speed, step_speed
from worldflow.bench_train import data_speed, train_speed
from worldflow.checkpoint import save
from worldflow.cli import main
from worldflow.data import Dataset


@pytest.mark.parametrize("shown", [False, True])
def test_drawing_costs_some_scorings_and_errs_by_less_than_the_tolerance(shown: bool) -> None:
    rows = sample_speed(tiny_world(shown=shown), batches=(1, 3), tolerances=(1e-1, 1e-6), seconds=0.0)
    assert [row["batch"] for row in rows] == [1] * 5 + [3] * 5
    for B in (1, 3):
        score, followed, sequential, loose, tight = (row for row in rows if row["batch"] == B)
        assert followed["error"] < 1e-5 and followed["cost"] == followed["milliseconds"] / score["milliseconds"]
        assert score["cost"] == 1 and sequential["error"] == 0 and sequential["calls"] == 5
        assert loose["calls"] < tight["calls"] <= 5
        assert tight["error"] < 1e-4 and tight["error"] <= loose["error"]
        assert sequential["cost"] == pytest.approx(sequential["milliseconds"] / score["milliseconds"])
    world = tiny_world()
    world.contexts = None
    with pytest.raises(ValueError, match="stores no pasts"):
        sample_speed(world)


def test_environments_are_stepped() -> None:
    rows = step_speed(tiny_world(), batches=(1, 2), seconds=0.0)
    assert [(row["batch"], row["observation"]) for row in rows] == [
        (1, "pixels"),
        (1, "latent"),
        (2, "pixels"),
        (2, "latent"),
    ]
    for row in rows:
        assert row["steps_per_second"] == pytest.approx(row["batch"] / row["milliseconds"] * 1e3)
    assert rows[0]["gflop_per_step"] > rows[1]["gflop_per_step"]  # nothing is decoded


def test_training_steps_are_timed_and_change_nothing() -> None:
    world = tiny_world()
    before = {name: value.clone() for name, value in world.state_dict().items()}
    rows = train_speed(world, batch=2, length=3, seconds=0.05)
    plain = ["plain autocast, AdamW", "plain autocast, torch.optim.Muon"]
    assert [row["loop"] for row in rows] == ["worldflow", *plain]
    assert all(row["transitions_per_second"] == pytest.approx(6e3 / row["milliseconds"]) for row in rows)
    assert all(torch.equal(value, before[name]) for name, value in world.state_dict().items())


def test_rows_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_dataset(tmp_path / "set", lengths=[6, 7, 8], size=16)
    rows = data_speed(Dataset(dataset), batch=4, length=3, seconds=0.0)
    assert rows[0]["frames_per_second"] == pytest.approx(4 * rows[0]["windows_per_second"])
    assert as_table(rows).startswith("| windows per second | frames per second |")
    report(rows, out=str(tmp_path / "rows.json"), device="cpu", title="data")
    record = json.loads((tmp_path / "rows.json").read_text())
    assert record["rows"] == rows and record["matmul_gflops"]["float32"] > 0.1
    assert "GFLOP/s" in capsys.readouterr().out


def test_another_size_has_the_spaces_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tiny_world(size=32), tmp_path / "run", training={})
    words = ["bench", "sample", str(tmp_path / "run"), "--preset", "tiny", "--batches", "1", "--seconds", "0"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "random weights of preset tiny" in shown and "| 1 | sequential |" in shown
