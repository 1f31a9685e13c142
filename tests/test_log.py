"""The log: defined metrics only, one JSON record a line, finite numbers or nothing."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from worldflow.log import METRICS, TrainLog, read_log


def test_writes_and_reads(tmp_path: Path) -> None:
    with TrainLog(tmp_path) as log:
        log.write(0, 1.23456, {"flow/above_floor": 2.0})
        log.write(20, 2.0, {"flow/above_floor": float("nan"), "flow/draft_error": 0.5})
        assert len(read_log(tmp_path)) == 2  # readable while training goes on
    assert read_log(tmp_path) == [
        {"step": 0, "seconds": 1.235, "flow/above_floor": 2.0},
        {"step": 20, "seconds": 2.0, "flow/above_floor": None, "flow/draft_error": 0.5},
    ]
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert any((tmp_path / "tensorboard").iterdir())


def test_resuming_appends_and_starting_anew_does_not(tmp_path: Path) -> None:
    for is_resumed, expected in ((False, 1), (True, 2), (False, 1)):
        with TrainLog(tmp_path, is_resumed=is_resumed) as log:
            log.write(0, 0.0, {"flow/above_floor": 1.0})
        assert len(read_log(tmp_path)) == expected


def test_unknown_metrics_are_refused_whole(tmp_path: Path) -> None:
    refused = pytest.raises(KeyError, match=r"'flow/loss' is not defined in worldflow\.log\.METRICS")
    with TrainLog(tmp_path) as log, refused:
        log.write(0, 0.0, {"flow/above_floor": 1.0, "flow/loss": 1.0})
    assert read_log(tmp_path) == []


def test_every_metric_says_what_it_is() -> None:
    assert all(name.count("/") == 1 and len(meaning) > 10 for name, meaning in METRICS.items())


def test_logs_without_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = builtins.__import__

    def missing(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with TrainLog(tmp_path) as log:
        log.write(0, 0.0, {"flow/above_floor": 1.0})
    monkeypatch.undo()
    assert "tensorboard is not installed" in capsys.readouterr().out
    assert len(read_log(tmp_path)) == 1
    assert not (tmp_path / "tensorboard").exists()
