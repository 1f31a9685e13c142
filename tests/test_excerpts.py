"""Excerpts: runs of the training episodes as they were recorded, and windows that never leave their run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import write_dataset

from worldflow.data import Dataset
from worldflow.excerpts import SHORTEST, Excerpts
from worldflow.types import Episode

LENGTHS = (5, 4, 9, 3, 100, 1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(write_dataset(tmp_path_factory.mktemp("data") / "a", lengths=LENGTHS, size=8))


def numbered(episode: Episode, number: int) -> np.ndarray:
    return np.stack([np.full(len(episode.frames), number), np.arange(len(episode.frames))], axis=1)


def test_runs_are_whole_training_episodes(dataset: Dataset) -> None:
    excerpts = Excerpts.read(dataset, generator=torch.Generator().manual_seed(0), state_of=numbered)
    numbers = [int(excerpts.states[first, 0]) for first in excerpts.first]
    assert sorted(numbers) == dataset.episodes("train").tolist()
    assert bool(excerpts.is_start.all())
    for run, number in enumerate(numbers):
        first, length = int(excerpts.first[run]), int(excerpts.length[run])
        episode = dataset.episode(number)
        np.testing.assert_array_equal(excerpts.frames[first : first + length].numpy(), episode.frames)
        np.testing.assert_array_equal(excerpts.actions[first : first + length - 1].numpy(), episode.actions)
        np.testing.assert_array_equal(excerpts.states[first : first + length, 1], np.arange(length))


def test_little_memory_holds_a_part_of_a_long_episode(dataset: Dataset) -> None:
    frame = int(np.prod(dataset.spec.frame_shape))
    starts = set()
    for seed in range(20):
        excerpts = Excerpts.read(
            dataset, generator=torch.Generator().manual_seed(seed), state_of=numbered, most_bytes=60 * frame
        )
        runs = [run for run, first in enumerate(excerpts.first) if excerpts.states[first, 0] == 4]
        if not runs:  # memory was full before its turn
            continue
        (long,) = runs
        first, length = int(excerpts.first[long]), int(excerpts.length[long])
        assert length == SHORTEST
        start = int(excerpts.states[first, 1])
        starts.add(start)
        np.testing.assert_array_equal(
            excerpts.frames[first : first + length].numpy(), dataset.frames(4, start, start + length)
        )
        assert bool(excerpts.is_start[long]) == (start == 0)
        index, is_real = excerpts.sample(500, past=3, future=2, generator=torch.Generator().manual_seed(seed))
        inside = (index >= first) & (index < first + length)
        rows = inside.all(1)
        assert torch.equal(inside.any(1), rows)  # no window crosses runs
        if start > 0:  # real frames only: what came before the run exists, and is not the run's first frame
            assert bool((index[rows].diff(dim=1) == 1).all())
            assert bool(is_real[rows].all())
    assert len(starts) > 3


def test_windows_repeat_the_first_frame_before_and_the_last_behind(dataset: Dataset) -> None:
    excerpts = Excerpts.read(dataset, generator=torch.Generator().manual_seed(0), state_of=numbered)
    past, future = 2, 6
    index, is_real = excerpts.sample(2000, past=past, future=future, generator=torch.Generator().manual_seed(1))
    assert index.shape == (2000, past + future)
    assert is_real.shape == (2000, future)
    seen = set()
    for places, real in zip(index.numpy(), is_real.numpy(), strict=True):
        number, time = excerpts.states[places].T.astype(int)
        assert len(set(number)) == 1
        last = LENGTHS[number[0]]
        start = next(s for s in range(last + 1) if (np.clip(np.arange(s - past, s + future), 0, last) == time).all())
        np.testing.assert_array_equal(real, start + np.arange(future) <= last)
        seen |= {(number[0], t) for t, exists in zip(time[past:], real, strict=True) if exists}
    # Every frame is a target: 2000 windows miss a given one of these hundred odd with a chance below 1e-12.
    assert seen == {(n, t) for n in dataset.episodes("train").tolist() for t in range(LENGTHS[n] + 1)}


def test_ends_of_episodes_are_not_the_rarest(tmp_path: Path) -> None:
    dataset = Dataset(write_dataset(tmp_path / "a", lengths=(30, 2), size=8))
    excerpts = Excerpts.read(dataset, generator=torch.Generator().manual_seed(0), state_of=numbered)
    index, is_real = excerpts.sample(20_000, past=2, future=6, generator=torch.Generator().manual_seed(1))
    count = np.bincount(index[:, 2:][is_real].numpy(), minlength=31)
    assert count.min() > 0.4 * count.max()


def test_states_must_agree_in_width(dataset: Dataset) -> None:
    def state_of(episode: Episode, number: int) -> np.ndarray:
        return np.zeros((len(episode.frames), 2 + (number == 3)))

    with pytest.raises(ValueError, match=r"as many coordinates in every episode, got \d and, in episode \d of .*, \d"):
        Excerpts.read(dataset, generator=torch.Generator().manual_seed(0), state_of=state_of)
