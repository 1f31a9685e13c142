"""Hashes of episodes: equal for the same recording, different for any other, cheap, and the split's own."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import tiny_world, write_dataset

from worldflow.checkpoint import load, save
from worldflow.data import Dataset
from worldflow.fingerprint import episode_hash, episode_hashes, fingerprint, world_fingerprint
from worldflow.types import Episode

LENGTHS = (5, 4, 6, 3, 5, 4, 4, 3, 6, 5, 4, 5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(write_dataset(tmp_path_factory.mktemp("data") / "a", lengths=LENGTHS))


def test_hashes_are_the_documented_bytes(dataset: Dataset) -> None:
    episode = dataset.episode(2)
    digest = hashlib.blake2b(digest_size=8)
    for kind, array in (
        ("<f4(6, 2)", episode.actions),
        ("<f4(6,)", episode.rewards),
        ("|u1(16, 16, 3)", episode.frames[0]),
        ("|u1(16, 16, 3)", episode.frames[-1]),
    ):
        digest.update(kind.encode() + array.tobytes())
    assert episode_hash(episode) == digest.hexdigest() == episode_hashes(dataset)[2]
    assert len(episode_hash(episode)) == 16


def test_memory_and_disk_agree_and_sides_of_the_split_are_apart(dataset: Dataset) -> None:
    every = episode_hashes(dataset, "all")
    assert every == [episode_hash(episode) for episode in dataset]
    assert len(set(every)) == len(LENGTHS)
    train, held_out = episode_hashes(dataset, "train"), episode_hashes(dataset, "held_out")
    assert held_out[0] == every[1]  # the rule of the split: episode 1 is held out
    assert not set(train) & set(held_out)
    assert set(train) | set(held_out) == set(every)
    with pytest.raises(ValueError, match=r"split must be 'train', 'held_out' or 'all', got 'test'"):
        episode_hashes(dataset, "test")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("part", ["actions", "rewards", "first frame", "last frame", "length"])
def test_each_part_changes_the_hash(dataset: Dataset, part: str) -> None:
    episode = dataset.episode(0)
    actions, rewards, frames = episode.actions.copy(), episode.rewards.copy(), episode.frames.copy()
    if part == "actions":
        actions[3, 1] = np.nextafter(actions[3, 1], np.float32(2))
    elif part == "rewards":
        rewards[0] += 1
    elif part == "first frame":
        frames[0, 7, 3, 2] ^= 1
    elif part == "last frame":
        frames[-1, 0, 0, 0] ^= 1
    else:
        actions, rewards = actions[:-1], rewards[:-1]
    changed = Episode(
        actions=actions, rewards=rewards, frames=frames, terminated=episode.terminated, truncated=episode.truncated
    )
    assert episode_hash(changed) != episode_hash(episode)


def test_arrays_do_not_run_into_each_other(dataset: Dataset) -> None:
    episode = dataset.episode(0)
    # the same bytes in the same order, cut elsewhere
    whole = np.concatenate([episode.actions.reshape(-1), episode.rewards])
    other = replace(episode, actions=whole[:5].reshape(5, 1), rewards=whole[5:])
    assert episode_hash(other) != episode_hash(episode)
    big_endian = replace(episode, actions=episode.actions.astype(">f4"))
    assert episode_hash(big_endian) == episode_hash(episode)


def test_fingerprint_tells_copies_from_other_data(dataset: Dataset, tmp_path: Path) -> None:
    same = Dataset(write_dataset(tmp_path / "same", lengths=LENGTHS))
    longer = Dataset(write_dataset(tmp_path / "longer", lengths=(*LENGTHS, 4)))
    other = Dataset(write_dataset(tmp_path / "other", lengths=LENGTHS, seed=1))
    for split in ("train", "held_out", "all"):
        assert fingerprint(dataset, split) == fingerprint(same, split)
        assert fingerprint(dataset, split) != fingerprint(other, split)
    assert fingerprint(longer, "train") != fingerprint(dataset, "train")
    assert fingerprint(longer, "held_out") == fingerprint(dataset, "held_out")  # the added episode is for training
    assert len({fingerprint(dataset, split) for split in ("train", "held_out", "all")}) == 3
    assert len(fingerprint(dataset)) == 16


def test_a_world_is_known_by_its_weights_statistics_and_sizes(tmp_path: Path) -> None:
    world = tiny_world()
    found = world_fingerprint(world)
    assert world_fingerprint(load(save(world, tmp_path / "run"))) == found and len(found) == 16
    others = [tiny_world(seed=1), tiny_world(noise_std=0.31), tiny_world(), tiny_world()]
    others[2].actions.mean[0] += 1e-6
    others[3].reward.out.bias.data[0] += 1e-6
    assert len({found, *map(world_fingerprint, others)}) == 5
