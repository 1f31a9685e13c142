"""Agents trained for real: they say how many steps they saw, go on, and act as dreamed ones do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_world
from lamp import Lamp

pytest.importorskip("stable_baselines3")

from worldflow.agents.contenders import read_contender
from worldflow.agents.real_training import RealTraining, StackedPixels, train_real
from worldflow.checkpoint import save
from worldflow.envs.collect import record_episode
from worldflow.envs.dreamed_policy import DreamedPolicy, DreamRecord
from worldflow.envs.latent import LatentObservation
from worldflow.world import WorldModel

QUICK: dict[str, Any] = {"num_envs": 2, "settings": {"n_steps": 8, "batch_size": 8, "n_epochs": 1}}


@pytest.fixture
def world() -> WorldModel:
    Lamp.steps_in_all = 0
    return tiny_world(shown=True)


def trained(world: WorldModel, folder: Path, make_env: Any = Lamp, **options: Any) -> Path:
    config = RealTraining(**{**QUICK, "steps": 16, **options})
    return train_real(make_env, folder / "agent.zip", config=config, world=world, progress=False)


def test_it_sees_as_many_steps_as_it_says_and_goes_on(world: WorldModel, tmp_path: Path) -> None:
    path = trained(world, tmp_path)
    assert (DreamRecord.read(path).steps, Lamp.steps_in_all) == (16, 16)
    trained(world, tmp_path)
    assert Lamp.steps_in_all == 16  # nothing is left to do
    trained(world, tmp_path, steps=40)
    assert (DreamRecord.read(path).steps, Lamp.steps_in_all) == (48, 48)  # two whole rollouts more
    with pytest.raises(ValueError, match="was trained with another discount"):
        trained(world, tmp_path, discount=0.5)
    with pytest.raises(ValueError, match="was trained with another world"):
        trained(tiny_world(shown=True, seed=1), tmp_path)


def test_it_can_be_trained_like_a_dreamed_one(world: WorldModel, tmp_path: Path) -> None:
    given = RealTraining(**QUICK, steps=16, learning_rate=0.5, discount=0.9)
    path = train_real(Lamp, tmp_path / "dreamed.zip", config=given, world=world, progress=False)
    found = RealTraining(like=str(path), steps=7, seed=3).resolved()
    assert (found.settings, found.learning_rate, found.discount) == (QUICK["settings"], 0.5, 0.9)
    assert (found.num_envs, found.steps, found.seed) == (2, 7, 3)
    assert found.file_name == "real_like_dreamed_ppo_latent_7_3.zip"
    with pytest.raises(FileNotFoundError, match=r"there is no .*nobody\.json"):
        RealTraining(like="nobody.zip").resolved()


@pytest.mark.parametrize("observation", ["latent", "pixels"])
def test_it_acts_on_what_it_was_trained_on(observation: str, tmp_path: Path) -> None:
    world, large = tiny_world(size=40, shown=True), partial(Lamp, size=40)  # smaller ones no convolutions fit
    policy = DreamedPolicy.load(trained(world, tmp_path, large, observation=observation), world)
    episode = record_episode(large(), policy, seed=1)
    wrapped = LatentObservation(large(), world) if observation == "latent" else StackedPixels(large())
    seen, _ = wrapped.reset(seed=1)
    for t in range(len(episode)):
        expected, _ = policy.agent.predict(seen, deterministic=True)
        np.testing.assert_allclose(episode.actions[t], expected, atol=1e-5)
        seen, *_ = wrapped.step(expected)


def test_a_better_action_is_learned(world: WorldModel, tmp_path: Path) -> None:
    settings = {"n_steps": 64, "batch_size": 64, "n_epochs": 10}
    path = trained(world, tmp_path, steps=1024, learning_rate=3e-3, settings=settings)
    episode = record_episode(Lamp(), DreamedPolicy.load(path, world), seed=1)
    assert episode.rewards.mean() > 0.5  # the first component is what is paid; untrained it is near 0


def test_an_environment_that_breaks_costs_nothing_that_was_learned(world: WorldModel, tmp_path: Path) -> None:
    def breaks() -> Lamp:
        return Lamp(fails_at=40)

    with pytest.raises(RuntimeError, match="OSError: the bulb is broken; the agent after 40 real steps is kept in"):
        trained(world, tmp_path, breaks, steps=100)
    assert DreamRecord.read(tmp_path / "agent.zip").steps == 40
    trained(world, tmp_path, steps=48)
    assert DreamRecord.read(tmp_path / "agent.zip").steps == 56
    with pytest.raises(ValueError, match="does not fit the world"):
        trained(tiny_world(action="discrete"), tmp_path / "other")


def test_a_contender_is_trained_on_first_call_and_says_what_it_learned_from(world: WorldModel, tmp_path: Path) -> None:
    run = str(save(world, tmp_path / "run"))
    place: dict[str, Any] = {"world": world, "run": run, "env": Lamp(), "folder": tmp_path, "progress": False}
    words = "ppo=train --steps 10 --num-envs 1 --algorithm sac"
    found = read_contender(words, make_env=Lamp, **place)
    assert (found.name, found.real_steps, Lamp.steps_in_all) == ("ppo", 10, 10)
    assert "trained in the real environment: sac on the tokens of 3 frames, by a codec" in found.about
    again = read_contender(words, make_env=Lamp, **place)
    assert Lamp.steps_in_all == 10 and again.identity == found.identity
    one, other = found.make(), found.make()
    frame, _ = Lamp().reset(seed=0)
    generator = np.random.default_rng(0)
    first = one(frame, {}, generator)
    for _ in range(3):
        other(np.zeros_like(frame), {}, generator)  # has no part in what the first one remembers
    assert np.array_equal(one(frame, {}, generator), first)
