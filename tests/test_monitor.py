"""A monitor gives the numbers and the alarms of the offline pass, one transition at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from builders import random_episode, tiny_world

import worldflow as wf
from worldflow.score_types import EpisodeScores, columns

RATES: Any = {"false_alarm_rate": 0.3, "episode_false_alarm_rate": 0.5}


def test_a_monitor_gives_the_offline_numbers() -> None:
    world = tiny_world(denoiser_layers=1)  # in float32, as worlds are
    episodes = [random_episode(world, length, seed=seed) for seed, length in enumerate((10, 3))]
    detector = wf.calibrate(world, [random_episode(world, 6, seed=10 + s) for s in range(4)], num_draws=2, **RATES)
    expected = wf.score(world, episodes, num_draws=2)
    monitor = wf.Monitor(world, detector=detector)
    for episode, whole, judged in zip(episodes, expected, detector(expected), strict=True):
        monitor.reset(episode.frames[0])
        assert monitor.alarms is None
        steps, alarms = [], []
        for t in range(len(episode)):
            steps.append(
                monitor.step(
                    episode.frames[t + 1], episode.actions[t], episode.rewards[t], terminated=episode.terminated[t]
                )
            )
            assert len(steps[-1]) == 1 and monitor.alarms is not None
            alarms.append(monitor.alarms)
        found = EpisodeScores.cat(steps)
        for name, value in columns(whole).items():
            np.testing.assert_allclose(columns(found)[name], value, rtol=1e-4, atol=1e-4, err_msg=name)
        for name in ("p_value", "drift_p_value"):  # ranks: what is rounded onto another side of a value moves by one
            values = np.concatenate([getattr(a, name) for a in alarms])
            np.testing.assert_allclose(values, getattr(judged, name), atol=0.1, err_msg=name)
        assert alarms[-1].episode_p_value == judged.episode_p_value


def test_an_episode_can_be_named_by_its_number() -> None:
    world = tiny_world(dtype=torch.float64)
    episode = random_episode(world, 2)
    monitor = wf.Monitor(world, pixels=False)
    found = []
    for number in (None, None, 0):
        monitor.reset(episode.frames[0], number=number)
        found.append(float(monitor.step(episode.frames[1], episode.actions[0], 0.0).frame[0]))
    assert found[0] == found[2] != found[1]


def test_what_does_not_fit_is_refused() -> None:
    world, episode = tiny_world(), random_episode(tiny_world(), 2)
    monitor = wf.Monitor(world)
    with pytest.raises(RuntimeError, match="call reset"):
        monitor.step(episode.frames[1], episode.actions[0], 0.0)
    with pytest.raises(ValueError, match=r"uint8 of shape \(16, 16, 3\)"):
        monitor.reset(episode.frames[0][:8])
    monitor.reset(episode.frames[0])
    with pytest.raises(ValueError, match=r"uint8 of shape \(16, 16, 3\), got float64"):
        monitor.step(episode.frames[1] / 255, episode.actions[0], 0.0)
    with pytest.raises(ValueError, match=r"actions of shape \(2,\), got \(1,\)"):
        monitor.step(episode.frames[1], episode.actions[0][:1], 0.0)
    with pytest.raises(ValueError, match="rewards must be finite"):
        monitor.step(episode.frames[1], episode.actions[0], float("nan"))
    with pytest.raises(ValueError, match="num_draws"):
        wf.Monitor(world, num_draws=0)
    detector = wf.calibrate(world, [random_episode(world, 4, seed=s) for s in range(4)], **RATES)
    with pytest.raises(ValueError, match="belongs to the world"):
        wf.Monitor(tiny_world(seed=1), detector=detector)
    with pytest.raises(ValueError, match="eval"):
        wf.Monitor(tiny_world().train())
