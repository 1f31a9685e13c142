"""The benchmark of scoring measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import tiny_world

from worldflow.bench_score import score_speed
from worldflow.checkpoint import save
from worldflow.cli import main


def test_scoring_is_timed_as_it_comes_and_offline() -> None:
    rows = score_speed(tiny_world(), lengths=(3, 70), seconds=0.0)
    ways = [("streaming", 1), ("offline", 3), ("offline", 70)]
    assert [(r["way"], r["transitions"]) for r in rows] == 2 * ways
    assert [r["pixels"] for r in rows] == [True] * 3 + [False] * 3
    for row in rows:
        assert row["transitions_per_second"] == pytest.approx(1e3 / row["milliseconds"])
    short, long = rows[1], rows[2]
    # The same work for each transition, whatever the length: only the first frame is shared by more of them.
    assert long["gflop_per_transition"] < 1.02 * short["gflop_per_transition"]
    assert rows[5]["gflop_per_transition"] < long["gflop_per_transition"]  # nothing is decoded for its bits


def test_a_world_without_pasts_has_nothing_to_score() -> None:
    with pytest.raises(ValueError, match="stores no pasts"):
        score_speed(tiny_world(contexts=0))


def test_the_command_writes_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tiny_world(), tmp_path / "run")
    words = ["--lengths", "4", "--seconds", "0", "--out", str(tmp_path / "s.json")]
    assert main(["bench", "score", str(tmp_path / "run"), *words]) == 0
    assert "transitions per second" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "s.json").read_text())["rows"]) == 4
