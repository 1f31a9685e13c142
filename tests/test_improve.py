"""The loop does each stage once, goes on where it stopped, and writes down what each round is worth for real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from builders import tiny_world
from gymnasium.envs.registration import EnvSpec
from lamp import Lamp

pytest.importorskip("stable_baselines3")

from worldflow import cli
from worldflow.agents import improve as module
from worldflow.agents.dream_config import DreamConfig
from worldflow.agents.improve import improve
from worldflow.agents.improve_config import ImproveConfig
from worldflow.checkpoint import save
from worldflow.data import Dataset
from worldflow.recipes import TrainConfig

QUICK = DreamConfig(
    steps=16, num_envs=2, horizon=4, eval_every=16, settings={"n_steps": 8, "batch_size": 8, "n_epochs": 1}
)
CONFIG = ImproveConfig(
    rounds=2, episodes=5, more_episodes=2, explore=0.5, eval_episodes=2, train=TrainConfig(), dream=QUICK
)


@pytest.fixture(autouse=True)
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The lamp, worlds of random weights in place of trained ones, and what was done in which order."""
    done: list[str] = []

    def train(data: Dataset, *, out: Path, config: TrainConfig, resume: bool, progress: bool) -> None:
        done.append(f"{'resume' if resume else 'train'} on {len(data)}, codec from {config.codec_from}")
        save(tiny_world(shown=True, seed=len(data)), out)

    dream = module.dream

    def dreamed(*arguments: Any, **options: Any) -> Any:
        done.append("resume the dream" if options["resume"] else "dream")
        return dream(*arguments, **options)

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "dream", dreamed)
    monkeypatch.setitem(gym.registry, "Lamp-v0", EnvSpec("Lamp-v0", entry_point="lamp:Lamp", max_episode_steps=8))
    monkeypatch.chdir(tmp_path)
    yield done


def test_rounds_add_recordings_of_the_last_agent_and_learn_from_all(calls: list[str]) -> None:
    first, second = improve("Lamp-v0", out="loop", config=CONFIG, progress=False)
    assert calls == ["train on 5, codec from None", "dream", "train on 7, codec from None", "dream"]
    assert (first.number, first.episodes, first.real_steps) == (0, 5, 40)
    assert (second.number, second.episodes, second.real_steps) == (1, 7, 56)
    data = Dataset("loop/data")
    totals = [float(data.outcomes(k)[1].sum()) for k in range(7)]
    assert first.recorded_return.value == pytest.approx(np.mean(totals[:5]), rel=1e-5)
    assert second.recorded_return.value == pytest.approx(np.mean(totals[5:]), rel=1e-5)
    recordings = data.metadata["worldflow"]["recordings"]
    agent = str(Path("loop/rounds/0/agent.zip"))
    assert [(one["policy"], one["random_fraction"], one["first_episode"]) for one in recordings] == [
        ("smooth", 0.0, 0),
        ("random", 0.0, 3),
        (agent, 0.5, 5),
    ]
    log = json.loads(Path("loop/log.json").read_text())
    assert [one["real_steps"] for one in log] == [40, 56]
    assert [one["seed"] for one in log[1]["played"]] == [1000, 1001]


def test_a_finished_round_is_not_repeated_and_more_can_follow(calls: list[str]) -> None:
    one = ImproveConfig(**{**vars(CONFIG), "rounds": 1, "keep_codec": True})
    (first,) = improve("Lamp-v0", out="loop", config=one, progress=False)
    calls.clear()
    more = ImproveConfig(**{**vars(one), "rounds": 2})
    found = improve("Lamp-v0", out="loop", config=more, progress=False)
    assert calls == [f"train on 7, codec from {Path('loop/rounds/0/world')}", "dream"]
    assert found[0] == first
    with pytest.raises(ValueError, match="begun with another explore"):
        improve("Lamp-v0", out="loop", config=ImproveConfig(**{**vars(more), "explore": 0.1}), progress=False)
    with pytest.raises(ValueError, match="begun with another environment"):
        improve("worldflow/Reacher-v0", out="loop", config=more, progress=False)


def test_a_loop_that_is_stopped_goes_on_inside_a_stage(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Lamp.steps_in_all = 0
    with pytest.raises(OSError, match="the bulb is broken"):
        improve("Lamp-v0", out="broken", config=CONFIG, env_args={"fails_at": 20}, progress=False)
    assert len(Dataset("broken/data")) == 2  # of eight steps each

    def stopped(*arguments: Any, **options: Any) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(module, "play_episode", stopped)
        improve("Lamp-v0", out="loop", config=CONFIG, progress=False)
    assert calls == ["train on 5, codec from None", "dream"]
    Lamp.steps_in_all = 0
    improve("Lamp-v0", out="loop", config=ImproveConfig(**{**vars(CONFIG), "rounds": 1}), progress=False)
    assert calls == ["train on 5, codec from None", "dream"]
    assert Lamp.steps_in_all == 2 * 8  # it only looked at the agent

    Path("loop/rounds/0/round.json").unlink()
    Path("loop/rounds/0/world/finished").unlink()
    Path("loop/rounds/0/world/training.pt").touch()
    improve("Lamp-v0", out="loop", config=ImproveConfig(**{**vars(CONFIG), "rounds": 1}), progress=False)
    assert calls[2:] == ["resume on 5, codec from None"]


def test_the_command_goes_round(calls: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["improve", "Lamp-v0", "--out", "loop", "--rounds", "1", "--episodes", "4", "--eval-episodes", "2"]
    assert cli.main([*words, "--dream.steps", "10", "--dream.algorithm", "sac", "--dream.num-envs", "2"]) == 0
    assert "round 0, 32 real steps: return " in capsys.readouterr().out
    assert cli.main(["improve", "Lamp-v0", "--out", "loop", "--episodes", "1"]) == 2
    assert cli.main(["improve", "Lump-v0", "--out", "other"]) == 1
    said = capsys.readouterr().err
    assert "unknown environment 'Lump-v0'; did you mean 'Lamp-v0'" in said and "is kept" not in said
    Lamp.steps_in_all = 0
    broken = ["improve", "Lamp-v0", "--out", "broken", "--env-args", '{"fails_at": 20}']
    assert cli.main(broken) == 1
    assert "the bulb is broken; what was recorded and trained before is kept in broken" in capsys.readouterr().err
