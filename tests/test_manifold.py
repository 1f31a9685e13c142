"""Distances to real frames: zero on them, known off them, the same in any chunk; long actions are recorded ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny_world, write_dataset

from worldflow.data import Dataset
from worldflow.evaluate import held_out_clips
from worldflow.manifold import FrameBank, long_actions, roll_long


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(write_dataset(Path(tmp_path_factory.mktemp("data")) / "squares", lengths=[9, 8, 7, 12, 10, 6]))


def test_distance_is_the_mean_over_the_nearest() -> None:
    frames = np.stack([np.full((32, 48, 3), level, np.uint8) for level in (0, 10, 40, 200)])
    bank = FrameBank(frames, num_nearest=3)
    levels = torch.tensor([0, 15, 220], dtype=torch.uint8)
    distance = bank.distance(levels[:, None, None, None].expand(3, 32, 48, 3), chunk=2)
    # |x - y| of flat frames, whatever the size they are shrunk to; float32 distances
    np.testing.assert_allclose(distance, [50 / 3, (5 + 15 + 25) / 3, (20 + 180 + 210) / 3], rtol=1e-4, atol=0.02)
    with pytest.raises(ValueError, match="at least 3 frames, got 2"):
        FrameBank(frames[:2], num_nearest=3)


def test_real_frames_are_nearer_than_noise(dataset: Dataset) -> None:
    bank = FrameBank.of(dataset, num_frames=40, seed=1)
    assert len(bank) <= 40
    real = torch.from_numpy(dataset.frames(1, 0, 5))
    noise = torch.randint(0, 256, real.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert bank.distance(real).max() < 0.5 * bank.distance(noise).min()
    assert bank.distance(real[None]).shape == (1, 5)


def test_long_actions_are_recorded_ones_of_held_out_episodes(dataset: Dataset) -> None:
    actions = long_actions(dataset, num_rollouts=2, num_steps=30, seed=3)
    assert actions.shape == (2, 30, 2)
    recorded = {tuple(a) for e in dataset.episodes("held_out") for a in dataset.outcomes(int(e))[0].tolist()}
    assert {tuple(a) for a in actions.flatten(0, 1).tolist()} <= recorded


def test_rollouts_are_measured_as_they_are_stepped(dataset: Dataset) -> None:
    world, past = tiny_world(window=3), 2
    clips = held_out_clips(dataset, past=past, horizon=2, num_clips=2)
    actions = long_actions(dataset, num_rollouts=2, num_steps=6)
    bank = FrameBank.of(dataset, num_frames=40)

    def roll() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        generator = torch.Generator().manual_seed(0)
        return roll_long(world, clips, actions, bank, past=past, generator=generator, keep_every=2, progress=False)

    distance, alive, frames = roll()
    assert distance.shape == alive.shape == (2, 6) and frames.shape == (2, 3, 16, 16, 3)
    np.testing.assert_allclose(bank.distance(torch.from_numpy(frames)), distance[:, 1::2], rtol=1e-6)
    assert alive[:, 0].all() and np.all(np.diff(alive.astype(int), axis=1) <= 0)
    for first, again in zip((distance, alive, frames), roll(), strict=True):
        np.testing.assert_array_equal(first, again)
