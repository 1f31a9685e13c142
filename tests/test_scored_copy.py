"""A copy with scores is the data set, as Minari reads it, and the scores."""

from __future__ import annotations

from pathlib import Path

import minari
import numpy as np
import pytest
from builders import tiny_world, write_dataset

from worldflow.calibration import calibrate_scores
from worldflow.data import Dataset
from worldflow.score import score
from worldflow.scored_copy import write_scored_copy


def test_minari_reads_scores_from_infos(tmp_path: Path) -> None:
    dataset = Dataset(write_dataset(tmp_path / "set", lengths=[5, 1, 4, 6]))
    scores = score(tiny_world(), dataset)
    alarms = calibrate_scores(scores, false_alarm_rate=0.4, episode_false_alarm_rate=0.5)(scores)
    before = dataset.file.read_bytes()
    once = write_scored_copy(scores, dataset, tmp_path / "new" / "once")
    twice = write_scored_copy(scores, Dataset(once), tmp_path / "twice", alarms=alarms)
    assert dataset.file.read_bytes() == before and not list(tmp_path.glob(".*"))
    assert "p_value" not in minari.MinariDataset(once / "data")[0].infos["score"]
    copy = minari.MinariDataset(twice / "data")
    for number, (one, alarm) in enumerate(zip(scores, alarms, strict=True)):
        infos = copy[number].infos["score"]
        assert np.isnan(infos["frame"][0]) and np.isnan(infos["rings"][0])
        np.testing.assert_array_equal(infos["frame"][1:], one.frame)
        np.testing.assert_array_equal(infos["rings"][1:], alarm.transition)
        np.testing.assert_array_equal(infos["recent_p_value_8"][1:], alarm.recent_p_value[1])
        np.testing.assert_array_equal(copy[number].observations, dataset[number].frames)
    np.testing.assert_array_equal(score(tiny_world(), twice)[3].frame, scores[3].frame)


def test_copies_replace_nothing_and_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(write_dataset(tmp_path / "set", lengths=[3, 2]))
    scores = score(tiny_world(), dataset)
    with pytest.raises(FileExistsError, match="give another folder"):
        write_scored_copy(scores, dataset, tmp_path / "set")
    with pytest.raises(ValueError, match="2 episodes as long as the data set's, got 1"):
        write_scored_copy(scores[:1], dataset, tmp_path / "out")
    monkeypatch.setattr("worldflow.scored_copy.columns", lambda _: {"frame": np.array(1.0)})  # fails while writing
    with pytest.raises(ValueError, match="dimension"):
        write_scored_copy(scores, dataset, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
