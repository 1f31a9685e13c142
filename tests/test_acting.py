"""Acting: the state follows the real frames, episodes are what happened, and what was played is never lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import tiny_world
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from toys import seeded

from worldflow import cli
from worldflow.agents import CEM, EnvironmentFailed, Pilot, Return, act, observe, summary
from worldflow.checkpoint import save
from worldflow.envs.collect import record_episode
from worldflow.video import read_video
from worldflow.world import WorldModel


class Glow(gym.Env[np.ndarray, np.ndarray]):
    """A gray frame of 16x16 as bright as the sum of all actions so far; pays the brightness. 4 steps.

    Args:
        fails_at: Step of the second episode at which it raises; -1 at its reset.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, *, fails_at: int | None = None, size: int = 16) -> None:
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.fails_at, self.episode = fails_at, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.count, self.light = 0, float(self.np_random.uniform(-0.2, 0.2))
        self.episode += 1
        if self.episode == 2 and self.fails_at == -1:
            raise OSError("the cable is loose")
        return self._frame(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.episode == 2 and self.count == self.fails_at:
            raise OSError("the cable is loose")
        self.count += 1
        self.light += float(action.sum()) / 10
        return self._frame(), self.light, self.count == 4, False, {}

    def _frame(self) -> np.ndarray:
        shape = self.observation_space.shape
        assert shape is not None
        return np.full(shape, int(np.clip(128 + 100 * self.light, 0, 255)), np.uint8)


def pilot(world: WorldModel, **options: Any) -> Pilot:
    planner = CEM(world, world.config.data.action, num_candidates=4, num_elites=2, num_iterations=1)
    return Pilot(world, planner, Return(), **{"horizon": 2, **options})


@pytest.mark.parametrize("shown", [False, True])
def test_observing_frame_by_frame_is_starting_from_all_of_them(shown: bool) -> None:
    world = tiny_world(noise_std=1e-6, shown=shown, dtype=torch.float64, window=3)
    frames = torch.randint(0, 256, (2, 6, 16, 16, 3), generator=seeded(0), dtype=torch.uint8)
    actions = torch.rand(2, 5, 2, generator=seeded(1))
    whole = world.start(frames, actions, generator=seeded(2))
    state = world.start(frames[:, :1], generator=seeded(3))
    for t in range(5):
        state = observe(world, state, actions[:, t], frames[:, t + 1], generator=seeded(4 + t))
    for name, tensor in whole.tensors().items():
        assert torch.allclose(tensor, state.tensors()[name], rtol=0, atol=1e-3)  # the noise differs, by 1e-6 a number
    assert state.count.tolist() == [6, 6]


def test_episodes_are_what_happened_and_depend_on_their_seed_alone() -> None:
    world = tiny_world()
    first, second = act(pilot(world), Glow(), episodes=2, seed=3)
    (again,) = act(pilot(world, sees=True), Glow(), seed=4)  # that it also draws what it expects changes nothing
    assert np.array_equal(second.episode.actions, again.episode.actions)
    assert np.array_equal(second.episode.frames, again.episode.frames)
    assert not np.array_equal(first.episode.actions, second.episode.actions)
    assert (first.seed, second.seed, first.error, first.expected) == (3, 4, None, None)

    episode = first.episode
    assert episode.frames.shape == (5, 16, 16, 3)
    assert episode.actions.shape == (4, 2)
    assert episode.terminated.tolist() == [False] * 3 + [True]
    env = Glow()
    frame, _ = env.reset(seed=3)
    for t in range(4):
        assert np.array_equal(frame, episode.frames[t])
        frame, reward, *_ = env.step(episode.actions[t])
        assert episode.rewards[t] == pytest.approx(reward)
    assert [d.step for d in first.decisions] == [0, 1, 2, 3]
    assert all(d.seconds > 0 and d.num_steps == (4 + 2) * 2 for d in first.decisions)


def test_a_plan_is_followed_for_as_long_as_asked_and_what_it_expects_is_beside_the_real() -> None:
    world = tiny_world()
    (played,) = act(pilot(world, horizon=3, replan_every=2, sees=True), Glow(), seed=1, max_steps=4)
    assert [d.step for d in played.decisions] == [0, 2]
    assert played.episode.terminated.tolist() == [False, False, False, True]
    assert played.expected is not None and played.ahead is not None
    assert played.expected.shape == played.ahead.shape == played.episode.frames.shape
    assert np.array_equal(played.expected[0], played.episode.frames[0])
    assert np.array_equal(played.ahead[0], played.ahead[1])  # of one plan
    assert not np.array_equal(played.ahead[1], played.ahead[2])
    # A plan of two steps that are both followed ends in the frame that is expected after the second.
    (short,) = act(pilot(world, replan_every=2, sees=True), Glow(), seed=1, max_steps=2)
    assert short.expected is not None and short.ahead is not None
    assert np.array_equal(short.expected[2], short.ahead[0])


def test_a_pilot_records_data_like_any_policy() -> None:
    world = tiny_world()
    (played,) = act(pilot(world), Glow(), seed=7)
    episode = record_episode(Glow(), pilot(world), seed=7)
    assert np.array_equal(episode.actions, played.episode.actions)


@pytest.mark.parametrize("fails_at", [0, 2])
def test_what_was_played_before_the_environment_raised_is_kept(fails_at: int) -> None:
    kept = []
    with pytest.raises(RuntimeError, match=f"OSError: the cable is loose at step {fails_at} of"):
        for played in act(pilot(tiny_world(), sees=True), Glow(fails_at=fails_at), episodes=3):
            kept.append(played)
    assert [len(p.episode) for p in kept] == [4, fails_at]
    assert kept[1].episode.frames.shape == (fails_at + 1, 16, 16, 3)
    assert kept[1].episode.actions.shape == (fails_at, 2)
    assert kept[1].episode.truncated.tolist() == [t == fails_at - 1 for t in range(fails_at)]
    assert kept[1].error == "OSError: the cable is loose"
    found = summary(kept)
    assert found["returns"] == [pytest.approx(float(kept[0].episode.rewards.sum()))]
    assert found["interval"] is None
    assert found["mean_return"] == pytest.approx(found["returns"][0])


def test_what_was_played_before_a_reset_raised_is_kept() -> None:
    kept = []
    with pytest.raises(EnvironmentFailed, match="loose at the reset of the episode with seed 6; 1 episodes before"):
        for played in act(pilot(tiny_world()), Glow(fails_at=-1), episodes=3, seed=5):
            kept.append(played)
    assert [(p.seed, len(p.episode), p.error) for p in kept] == [(5, 4, None)]


def test_an_environment_that_does_not_fit_is_refused_before_anything_is_played() -> None:
    with pytest.raises(ValueError, match=r"frames: expected shape \(16, 16, 3\), got \(8, 8, 3\)"):
        act(pilot(tiny_world()), Glow(size=8))
    with pytest.raises(ValueError, match="actions: expected discrete ones, got continuous ones"):
        act(pilot(tiny_world(action="discrete")), Glow())
    wrong: tuple[dict[str, Any], ...] = ({"episodes": 0}, {"max_steps": 0}, {"seed": -1})
    for options in wrong:
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be at least"):
            act(pilot(tiny_world()), Glow(), **options)
    with pytest.raises(ValueError, match="replan_every must be at most the horizon 2, got 3"):
        pilot(tiny_world(), replan_every=3)


# -- the command --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Worlds of random weights, of the pendulum's spaces and of `Glow`'s."""
    folder = tmp_path_factory.mktemp("runs")
    save(tiny_world(action="scalar"), folder / "pendulum")
    save(tiny_world(), folder / "glow")
    return folder


COMMON = ("--horizon", "2", "--candidates", "4", "--iterations", "1", "--json")


@pytest.mark.parametrize("planner", ["cem", "icem", "mppi", "shooting"])
def test_the_command_acts_in_the_pendulum(
    planner: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = () if planner != "cem" else ("--video", str(tmp_path / "video"))
    words = ("plan", str(runs / "pendulum"), "--env", "worldflow/InvertedPendulum-v0", "--planner", planner, *video)
    assert cli.main([*words, "--episodes", "2", "--max-steps", "2", *COMMON]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["returns"] == [2, 2]  # it pays 1 a step, and does not fall over in two
    assert (result["mean_return"], result["interval"], result["lengths"]) == (2, [2, 2], [2, 2])
    assert result["seconds_per_decision"] > 0
    assert result["model_steps_per_second"] > 0
    if video:
        clip = read_video(tmp_path / "video" / "seed_1.mp4")
        assert len(clip) == 3
        assert json.loads((tmp_path / "video" / "plan.json").read_text())["returns"] == [2, 2]


def test_the_command_plans_for_a_goal_with_care_and_refines(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("RGB", (20, 16), (200, 100, 0)).save(tmp_path / "goal.png")
    words = ["plan", str(runs / "pendulum"), "--env", "worldflow/InvertedPendulum-v0", "--episodes", "1"]
    care = ["--goal", str(tmp_path / "goal.png"), "--entropy", "0.1", "--in-distribution", "0.1", "--refine", "1"]
    assert cli.main([*words, *care, "--max-steps", "1", *COMMON]) == 0
    assert json.loads(capsys.readouterr().out)["lengths"] == [1]


def test_the_command_keeps_what_it_played_and_says_what_is_wrong(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failure(*words: str) -> str:
        assert cli.main(["plan", *COMMON, *words]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    monkeypatch.setitem(gym.registry, "Glow-v0", EnvSpec("Glow-v0", entry_point=f"{__name__}:Glow"))
    glow = (str(runs / "glow"), "--env", "Glow-v0")
    fails = ("--env-args", '{"fails_at": 1}', "--video", str(tmp_path / "video"))
    assert "the cable is loose at step 1" in failure(*glow, *fails)
    assert sorted(p.name for p in (tmp_path / "video").iterdir()) == ["plan.json", "seed_0.mp4", "seed_1.mp4"]
    assert len(json.loads((tmp_path / "video" / "plan.json").read_text())["returns"]) == 1
    assert "--video DIR keeps more" in failure(*glow, *fails[:2])
    assert "at the reset of the episode with seed 1" in failure(*glow, "--env-args", '{"fails_at": -1}')
    with monkeypatch.context() as patch:  # whose compiling takes a minute
        patch.setattr("worldflow.agents.command.compile_or_warn", lambda *_, **__: pytest.fail("too early"))
        assert "num_candidates must be at least" in failure(*glow, "--candidates", "0", "--compile")
    unpaid = str(save(tiny_world(paid=False), tmp_path / "unpaid"))
    assert "give --goal" in failure(unpaid, *glow[1:])
    assert "name one with --env" in failure(str(runs / "glow"))
    assert "does not fit the world" in failure(str(runs / "glow"), "--env", "worldflow/InvertedPendulum-v0")
    assert "--env-args must be a JSON object" in failure(*glow, "--env-args", "[]")
