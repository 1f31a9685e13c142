"""Benchmarks measure what they say, on worlds small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from builders import tiny_world, write_dataset

from worldflow.bench_predict import Counted, imaginary, predicted_seconds, step_counts, train_counts
from worldflow.bench_report import as_table, report
from worldflow.bench_speed import sample_speed, step_speed
from worldflow.bench_train import data_speed, train_speed
from worldflow.checkpoint import save
from worldflow.cli import main
from worldflow.data import Dataset
from worldflow.timing import count_flops


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


def test_what_is_counted_without_numbers_is_what_is_counted_with_them() -> None:
    world = tiny_world(shown=True, shallow=False)
    like = imaginary(world, None)
    state, flow = world.begin(3), world.config.flow
    given = (torch.zeros(3, flow.action_dim), torch.zeros(3, flow.num_tokens, flow.latent_dim), torch.zeros(3, 4))
    with torch.no_grad():
        flops = count_flops(lambda: world.drawn_step(state, None, *given, is_traced=True))
    counted = step_counts(like, 3)
    assert counted.flops == flops
    assert counted.weights == 4 * sum(p.numel() for p in world.parameters())
    once, twice = (train_counts(like, batch=batch, length=4).flops for batch in (2, 4))
    assert twice == pytest.approx(2 * once, rel=1e-3)  # the start token is embedded once
    # Twice the work takes twice as long, but never less than reading the weights.
    double = Counted(flops=2 * flops, weights=counted.weights)
    assert predicted_seconds(double, like=counted, took=0.5, bandwidth=1e30) == 1.0
    assert predicted_seconds(double, like=counted, took=0.5, bandwidth=counted.weights / 7) == pytest.approx(7.0)


def test_other_sizes_are_predicted_and_marked() -> None:
    world = tiny_world(size=64, codec="latent", shallow=False)
    rows = step_speed(world, batches=(1,), predict=("tiny", "large"), seconds=0.0)
    assert [row["size"] for row in rows] == ["measured", "measured", "tiny, predicted", "large, predicted"]
    assert rows[3]["gflop_per_step"] > 10 * rows[2]["gflop_per_step"]
    assert rows[3]["milliseconds"] > rows[2]["milliseconds"]
    trained = train_speed(world, batch=2, length=3, predict=("tiny",), seconds=0.05)
    assert [row["size"] for row in trained] == ["measured"] * 3 + ["tiny, predicted"]


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
