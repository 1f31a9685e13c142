"""Long videos are measured part by part, against what was recorded."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_world, write_dataset

from worldflow.checkpoint import save
from worldflow.cli import main
from worldflow.data import Dataset
from worldflow.long_video import REENCODING, ROLLING, drift

LENGTH = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set", lengths=[12] * 60, size=16)


def test_a_world_that_repeats_recordings_is_as_far_as_they_are(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(data)
    calls: list[dict[str, Any]] = []

    def replay(world: Any, video: torch.Tensor, features: torch.Tensor, *_: Any, **options: Any) -> torch.Tensor:
        """Held-out frames for as long as asked; under re-encoding noise from the second part on."""
        calls.append(options | {"past": video.shape[1]})
        frames = np.concatenate([dataset.episode(int(e)).frames for e in dataset.episodes("held_out")])
        rows = [frames[(7 * k + np.arange(features.shape[1])) % len(frames)] for k in range(len(video))]
        made = torch.from_numpy(np.stack(rows))
        if "window" in options:
            made[:, LENGTH:] = torch.randint(
                0, 256, made[:, LENGTH:].shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8
            )
        return made

    monkeypatch.setattr(import_module("worldflow.long_video"), "extended", replay)
    found = drift(tiny_world(), dataset, length=LENGTH, times=3, videos=8, progress=False)
    assert [call.get("window") for call in calls] == [None, LENGTH] and calls[0]["past"] == 3
    near, far = found.distance[ROLLING].mean(0), found.distance[REENCODING].mean(0)
    assert near.shape == far.shape == (3,)
    np.testing.assert_allclose(near, found.real_distance, rtol=0.5)
    assert (far[1:] > 2 * found.real_distance).all() and far[0] == near[0]
    assert (found.frechet[REENCODING][1:] > 10 * found.frechet[ROLLING][1:]).all()
    table = found.as_table().splitlines()
    assert len(table) == 6 and "| 4 | 8 | 12 |" in table[0]


def test_both_ways_are_drawn_and_written(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    save(tiny_world(), run, training={"config": {"length": LENGTH - 1}})
    assert main(["bench", "drift", str(run), str(data), "--times", "2", "--videos", "8", "--out", str(tmp_path)]) == 0
    assert "rolling: distance" in capsys.readouterr().out
    record = json.loads((tmp_path / "drift.json").read_text())
    assert np.array(record["distance"][ROLLING]).shape == (8, 2)
    assert (tmp_path / "drift.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [({"videos": 4}, "at least 8 videos"), ({"videos": 100}, "held-out clips of 4 frames"), ({"keep": 4}, "keep must")],
)
def test_what_cannot_be_compared_is_refused(data: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drift(tiny_world(), Dataset(data), **{"length": LENGTH, "videos": 8, "times": 2, "progress": False} | options)  # type: ignore[arg-type]
