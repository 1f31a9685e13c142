"""Baselines against toys whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import random_episode, tiny_world, write_dataset

from worldflow.anomaly_baselines import BASELINES, coreset, fit_baselines, two_sided
from worldflow.data import Dataset


def test_a_coreset_leaves_nothing_far_away() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (centers[:, None] + 0.1 * torch.randn(3, 50, 2, generator=generator)).flatten(0, 1)
    picked = coreset(points, num=3)
    assert torch.cdist(centers, picked).amin(1).max() < 0.5  # one of each clump, first of all
    assert torch.cdist(points, coreset(points, num=40)).amin(1).max() < torch.cdist(points, picked).amin(1).max()
    assert len(coreset(torch.zeros(9, 2), num=4)) == 1  # copies add nothing


def test_both_sides_count() -> None:
    usual = np.arange(100.0)
    assert two_sided(usual, np.array([-50.0]))[0] == pytest.approx(two_sided(usual, np.array([149.0]))[0])
    assert two_sided(usual, np.array([-50.0]))[0] > two_sided(usual, np.array([99.0]))[0] > 2
    assert two_sided(usual, np.array([49.0]))[0] < 1


class _Copies:
    """Predicts that the last frame comes again."""

    class config:  # noqa: N801 - as the predictor's
        past = 2

    def __call__(self, seen: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        assert seen.shape[1] == self.config.past and len(seen) == len(actions)
        return seen[:, -1]


def test_baselines_say_what_they_are_called(tmp_path: Path) -> None:
    world = tiny_world(latent_dim=3)
    dataset = Dataset(write_dataset(tmp_path / "set", lengths=[8] * 6))
    predictor: Any = _Copies()
    baselines = fit_baselines(world, dataset, predictor=predictor)
    episode = dataset.episode(int(dataset.episodes("train")[0]))
    found = baselines(episode)
    assert set(found) == set(BASELINES) and all(len(v) == 8 for v in found.values())
    frames = torch.from_numpy(episode.frames)
    change = (frames[1:].float() - frames[:-1].float()) / 127.5
    np.testing.assert_allclose(found["prediction error"], change.square().mean((1, 2, 3)), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found["frame difference"], 127.5 * change.abs().mean((1, 2, 3)), rtol=1e-4, atol=1e-6)
    codes = world.codec.encode(frames[1:]).detach()
    features = ((codes - baselines.mean) / baselines.std).square().sum((1, 2))
    np.testing.assert_allclose(found["feature Gaussian"], features, rtol=1e-4)
    # All training tokens are in the coreset of so small a set, so none is far from it.
    np.testing.assert_allclose(found["nearest neighbor"], 0, atol=2e-2)
    noise = replace(random_episode(world, 8), actions=episode.actions)
    assert baselines(noise)["nearest neighbor"].min() > 0.1
    assert set(fit_baselines(world, dataset)(episode)) == set(BASELINES) - {"prediction error"}
