"""Pictures with vectors beside them, all the way: recorded, read, learned, stepped, scored and planned with."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch
from builders import DotEnv, random_episode, tiny_spec, tiny_world
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from minari.serialization import serialize_space

from worldflow.agents import ICEM, Differentiable, GoalLikelihood, Return
from worldflow.agents.acting import Pilot, act
from worldflow.agents.evaluate import compare
from worldflow.agents.likelihood_reward import LikelihoodReward
from worldflow.checkpoint import load, save
from worldflow.cli import main
from worldflow.compiled import _Step, _unpacked
from worldflow.data import Dataset, gather, windows
from worldflow.elbo import elbo
from worldflow.envs.collect import collect
from worldflow.envs.learned import LearnedEnv, LearnedVectorEnv
from worldflow.envs.making import make_env
from worldflow.envs.snapshots import Snapshot
from worldflow.episodes import as_episode
from worldflow.evaluate import rollout_report
from worldflow.fidelity import evaluate
from worldflow.fingerprint import episode_hash, episode_hashes, world_fingerprint
from worldflow.frames import Frames
from worldflow.generate import generate
from worldflow.monitor import Monitor
from worldflow.score import score
from worldflow.spaces import check_compatible, data_spec
from worldflow.statistics import normality
from worldflow.train import train
from worldflow.world import WorldModel

BESIDE = {"speed": 3, "place": 2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A few pushed dots."""
    out = tmp_path_factory.mktemp("data") / "dots"
    return Dataset(
        collect(DotEnv(), out=out, episodes=5, max_steps=9, policy="smooth", observation="dict", progress=False)
    )


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return tiny_world(beside=BESIDE, shallow=False, shown=True)


def plain(frame: Any) -> Any:
    """As an environment observes it."""
    return dict(frame)


def parts(frames: Any) -> Any:
    assert isinstance(frames, Frames)
    return frames


def test_reads_what_was_recorded(dataset: Dataset) -> None:
    spec = dataset.spec
    assert spec.parts is not None and spec.parts.vectors == ("clock", "motion")
    assert spec.part_shapes == {"pixels": (16, 16, 3), "clock": (1,), "motion": (4,)}
    episode = dataset.episode(1)
    assert isinstance(episode.frames, Frames) and len(episode.frames) == 10
    env = DotEnv()
    seed = int(next(iter(minari.MinariDataset(dataset.path / "data").storage.get_episode_metadata([1])))["seed"])
    seen = [env.reset(seed=seed)[0], *(env.step(action)[0] for action in episode.actions)]
    np.testing.assert_array_equal(episode.frames["pixels"], np.stack([one["pixels"] for one in seen]))
    np.testing.assert_allclose(episode.frames["motion"], np.stack([one["motion"] for one in seen]), rtol=1e-6)
    assert episode.frames["motion"].dtype == np.float32
    np.testing.assert_array_equal(dataset.frames(1, 2, 5)["clock"], episode.frames["clock"][2:5])
    clip = gather(dataset, np.array([[1, 7], [0, 0]]), 4)  # the first one goes past the episode's end
    np.testing.assert_array_equal(parts(clip.frames)["motion"][0], episode.frames["motion"][[7, 8, 9, 9, 9]])
    assert next(windows(dataset, 4, batch_size=2)).to("cpu")[:1].frames.shape == (1, 5)
    assert episode_hash(episode) == episode_hashes(dataset)[1]
    assert dataset.outcomes(1)[0].shape == (9, 2)


def test_takes_episodes_of_others_and_refuses_what_is_not_finite(dataset: Dataset) -> None:
    theirs = next(iter(minari.MinariDataset(dataset.path / "data").iterate_episodes()))
    for name, part in parts(dataset.episode(0).frames).parts.items():
        np.testing.assert_array_equal(as_episode(theirs).frames[name], part)
    theirs.observations["motion"][3, 1] = math.nan
    with pytest.raises(ValueError, match="observations must be finite"):
        as_episode(theirs)
    theirs.observations["motion"] = np.zeros((10, 4), np.int64)
    with pytest.raises(ValueError, match=r"observations of an episode \('motion'\) must be"):
        as_episode(theirs)


def test_says_which_dictionaries_cannot_be_learned() -> None:
    pixels, vector = spaces.Box(0, 255, (4, 4, 3), np.uint8), spaces.Box(-1, 1, (2,), np.float32)
    wrong: list[tuple[dict[str, spaces.Space[Any]], str]] = [
        ({"a": pixels}, "observe the picture alone"),
        ({"a": vector}, "FlattenObservation"),
        ({"a": pixels, "b": pixels, "c": vector}, "FilterObservation"),
        ({"a": pixels, "b": spaces.Discrete(3)}, "a Dict whose 'b' cannot be learned"),
        ({"a": pixels, "b": spaces.Dict({"c": vector})}, "a Dict whose 'b' cannot be learned"),
    ]
    action = tiny_spec().action_space
    for parts, match in wrong:
        with pytest.raises(ValueError, match=match):
            data_spec(str(serialize_space(spaces.Dict(parts))), action)
    with pytest.raises(ValueError, match=r"frames: expected shape \{'pixels'.*\}, got \(16, 16, 3\)"):
        check_compatible(tiny_spec(beside=BESIDE), tiny_spec())
    with pytest.raises(ValueError, match="no vector to observe beside the picture"):
        make_env("worldflow/MovingShapes-v0", observed="dict")
    with pytest.raises(ValueError, match="one of pixels, vector, dict"):
        make_env("worldflow/MovingShapes-v0", observed="both")  # type: ignore[arg-type]


def test_says_what_is_damaged(tmp_path: Path) -> None:
    def recorded(name: str) -> Path:
        return collect(DotEnv(4), out=tmp_path / name, episodes=2, max_steps=3, observation="dict", progress=False)

    def broken(name: str, part: str, values: np.ndarray | None) -> Path:
        path = recorded(name)
        with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
            del file[f"episode_1/observations/{part}"]
            if values is not None:
                file[f"episode_1/observations/{part}"] = values
        return path

    with pytest.raises(ValueError, match=r"episode 1 .*cannot be read .*damaged"):
        Dataset(broken("gone", "clock", None))
    with pytest.raises(ValueError, match=r"observations 'motion' must be floats of shape \(4,\)"):
        Dataset(broken("narrow", "motion", np.zeros((4, 3))))
    with pytest.raises(ValueError, match=r"3 transitions need 4 frames 'pixels', got 3"):
        Dataset(broken("short", "pixels", np.zeros((3, 4, 4, 3), np.uint8)))
    path = recorded("other")
    metadata = json.loads((path / "data" / "metadata.json").read_text())
    metadata["observation_space"] = tiny_spec(size=4).observation_space
    (path / "data" / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="not one array as its metadata says"):
        Dataset(path)


def test_records_a_pixel_task_with_its_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, task = str(tmp_path / "data"), "worldflow/InvertedPendulum-v0"
    record = ["collect", task, "--out", data, "--episodes", "3", "--max-steps", "8", "--size", "16"]
    assert main([*record, "--observation", "dict", "--json"]) == 0
    assert '"vectors": {"state": 4}' in " ".join(capsys.readouterr().out.split())
    dataset = Dataset(data)
    episode = dataset.episode(0)
    assert set(parts(episode.frames).keys()) == {"pixels", "state"}
    np.testing.assert_allclose(episode.frames["state"], np.asarray(episode.infos["state"]), rtol=1e-6)
    options = ["--preset", "tiny", "--steps", "1", "--codec-steps", "1", "--length", "3", "--batch", "2"]
    assert main(["train", data, "--out", str(tmp_path / "run"), *options]) == 0
    assert (tmp_path / "run" / "imagined.png").exists()
    real = make_env(task, observed="dict", env_kwargs={"size": 16})
    env = LearnedEnv(str(tmp_path / "run"), real_env=real, real_steps=1, render_mode="rgb_array")
    assert env.observation_space == real.observation_space
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    shown = ["--out", str(tmp_path / "scores.csv"), "--heat", str(tmp_path / "heat.png"), "--video", str(tmp_path)]
    assert main(["score", str(tmp_path / "run"), data, *shown]) == 0
    assert "vector" in (tmp_path / "scores.csv").read_text().splitlines()[0].split(",")
    assert (tmp_path / "heat.png").exists() and (tmp_path / "episode_0000.mp4").exists()
    small = ["--planner", "shooting", "--candidates", "4", "--horizon", "2"]
    assert main(["plan", str(tmp_path / "run"), "--episodes", "1", "--max-steps", "2", *small]) == 0
    assert main(["dream", str(tmp_path / "run"), "--out", str(tmp_path / "agent.zip")]) == 1
    assert "this needs pictures alone" in capsys.readouterr().err


def test_learns_a_dot_that_is_pushed(tmp_path: Path) -> None:
    recording = {"policy": "smooth", "observation": "dict", "progress": False, "max_steps": 30}
    dataset = Dataset(collect(DotEnv(), out=tmp_path / "data", episodes=8, **recording))
    options: dict[str, Any] = {"codec_steps": 4, "steps": 60, "batch": 8, "length": 4}
    world = train(dataset, out=tmp_path / "run", preset="tiny", progress=False, **options)
    clip = next(iter(windows(dataset, 4, batch_size=16, split="held_out")))
    codes = world.codes(clip.frames)
    with torch.no_grad():
        out = world.flow(world.with_noise(codes), world.leading(clip.actions, len(codes), 5), shown=codes)
    assert out.draft is not None
    off, moved = (frame[:, -1, 1] - codes[:, -1, 1] for frame in (out.draft, codes.roll(1, 1)))
    assert float(off.square().mean()) < 0.75 * float(moved.square().mean())
    dream = world.imagine(clip.frames[:, :3], clip.actions[:, :2], clip.actions[:, 2:], num_samples=2)
    assert isinstance(dream.frames, Frames) and dream.frames.shape == (2, 16, 2)
    assert parts(dream.frames)["pixels"].dtype == torch.uint8 and parts(dream.frames)["motion"].dtype == torch.float32
    torch.testing.assert_close(load(tmp_path / "run").codes(clip.frames), codes)
    report = rollout_report(world, dataset, horizon=2, num_clips=4)
    assert report.model.mean.shape == (2,)


@pytest.mark.parametrize("shown", [False, True])
def test_environment_observes_the_recorded_space(shown: bool) -> None:
    world = tiny_world(beside=BESIDE, shallow=not shown, shown=shown)
    env = LearnedEnv(world, horizon=4, render_mode="rgb_array")
    check_env(env, skip_render_check=True)
    assert env.observation_space == spaces.Dict(
        {
            "pixels": spaces.Box(0, 255, (16, 16, 3), np.uint8),
            "place": spaces.Box(-50.0, 50.0, (2,), np.float64),
            "speed": spaces.Box(-50.0, 50.0, (3,), np.float64),
        }
    )
    both = LearnedVectorEnv(world, num_envs=2, horizon=4, observation="dict")
    seen, _ = both.reset(seed=3)
    alone, _ = env.reset(seed=3)
    assert set(seen) == {"pixels", "place", "speed", "latent"}
    action = env.action_space.sample()
    moved, _, _, _, info = env.step(action)
    moved_both, *_ = both.step(np.stack((action, action)))
    for name in ("place", "speed"):
        np.testing.assert_allclose(seen[name][0], alone[name])
        np.testing.assert_allclose(moved_both[name][0], moved[name], rtol=1e-4, atol=1e-4)
    assert np.abs(moved_both["pixels"][0].astype(int) - moved["pixels"]).max() <= 1
    assert np.isfinite(info["log_prob"]) and env.observation_space.contains(moved)
    picture = env.render()
    assert picture is not None and picture.shape == (256, 256, 3)
    latent = LearnedEnv(world, observation="latent")
    assert latent.observation_space.contains(latent.reset(seed=0)[0])


def test_goes_back_to_a_moment_also_from_bytes(world: WorldModel) -> None:
    env = LearnedEnv(world)
    env.reset(seed=0)
    before, *_ = env.step(env.action_space.sample())
    snapshot, action = Snapshot.from_bytes(env.snapshot().to_bytes()), env.action_space.sample()
    after, *_ = env.step(action)
    back = env.restore(snapshot)
    once_more, *_ = env.step(action)
    for name, part in after.items():
        np.testing.assert_array_equal(back[name], before[name])
        np.testing.assert_array_equal(once_more[name], part)
    two = LearnedVectorEnv(world, num_envs=2)
    two.restore(Snapshot.cat([snapshot, snapshot]))
    assert env.branch(3).reset(seed=1)[0]["place"].shape == (3, 2)
    plain = LearnedEnv(tiny_world(shallow=False, shown=True))
    plain.reset(seed=0)
    with pytest.raises(ValueError, match="another world's"):
        plain.restore(snapshot)


def test_starts_from_given_frames_episodes_and_a_real_environment(world: WorldModel) -> None:
    env, episode = LearnedEnv(world), random_episode(world, 6)
    given = {"frames": dict(episode.frames[:3]), "past_actions": episode.actions[:2]}
    observation, _ = env.reset(seed=0, options=given)
    np.testing.assert_array_equal(observation["pixels"], episode.frames["pixels"][2])
    observation, _ = env.reset(options={"episode": episode, "past": 2})
    np.testing.assert_allclose(observation["speed"], episode.frames["speed"][2])
    with pytest.raises(ValueError, match=r"options\['frames'\] must be a dictionary of .*, got \['pixels'\]"):
        env.reset(options={"frames": {"pixels": episode.frames["pixels"][:1]}})
    with pytest.raises(ValueError, match=r"options\['frames'\]\['place'\] must have shape"):
        env.reset(options={"frames": {**given["frames"], "place": np.zeros((3, 5))}})
    with pytest.raises(ValueError, match="must be as many"):
        env.reset(options={"frames": {**given["frames"], "place": np.zeros((2, 2))}})

    class Real(gym.Env[Any, Any]):
        observation_space = env.observation_space
        action_space = env.action_space

        def _seen(self, value: int) -> dict[str, np.ndarray]:
            pixels = np.full((16, 16, 3), value, np.uint8)
            return {"pixels": pixels, "place": np.full(2, 1.0 * value), "speed": np.zeros(3)}

        def reset(self, **_: object) -> tuple[Any, dict[str, object]]:
            return self._seen(1), {}

        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, object]]:
            return self._seen(2), 0.0, False, False, {}

    observation, _ = LearnedEnv(world, real_env=Real(), real_steps=2).reset(seed=0)
    assert (observation["place"] == 2).all() and (observation["pixels"] == 2).all()
    rewarded = LikelihoodReward(Real(), world, mean=0.0, std=1.0)
    rewarded.reset(seed=0)
    assert math.isfinite(rewarded.step(rewarded.action_space.sample())[1])


def test_scores_are_sums_of_parts_offline_and_as_they_come(world: WorldModel) -> None:
    episode = random_episode(world, 5)
    (scores,) = score(world, [episode], progress=False)
    assert scores.pixel_bits is None and scores.token is not None and scores.vector is not None
    assert scores.token.shape == (5, 6)  # 4 tokens of the picture, and 5 numbers in 2 tokens of 3
    np.testing.assert_allclose(-scores.token.sum(1), scores.frame, rtol=1e-6)
    np.testing.assert_allclose(-scores.token[:, 4:].sum(1), scores.vector, rtol=1e-6)
    # The picture of the first transition is likely or not whatever the vector beside it is, but not the other way.
    first = random_episode(world, 1)
    beside = parts(first.frames).copy()
    beside["place"][1] += 1
    (one,), (two,) = (score(world, [e], progress=False) for e in (first, replace(first, frames=beside)))
    assert one.vector is not None and two.vector is not None
    np.testing.assert_allclose(one.frame - one.vector, two.frame - two.vector, rtol=1e-5)
    assert abs(float(one.vector[0] - two.vector[0])) > 1e-2

    monitor = Monitor(world)
    monitor.reset(plain(episode.frames[0]), number=0)
    for t in range(5):
        step = monitor.step(
            plain(episode.frames[t + 1]),
            episode.actions[t],
            float(episode.rewards[t]),
            terminated=bool(episode.terminated[t]),
        )
        assert step.log_prob[0] == pytest.approx(scores.log_prob[t], rel=1e-4)
        assert step.vector is not None and step.vector[0] == pytest.approx(scores.vector[t], rel=1e-3, abs=1e-3)
    with pytest.raises(ValueError, match="frame must be a dictionary"):
        monitor.reset(episode.frames["pixels"][0])
    with pytest.raises(ValueError, match="the world knows frames of shape"):
        score(world, [random_episode(tiny_world(), 3)], progress=False)


def test_statistics_of_noise_leave_out_what_fills_a_token_up() -> None:
    z = torch.randn(400, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    is_real = torch.ones(3, 4, dtype=torch.bool)
    is_real[2, 1:] = False
    z[:, ~is_real] = 0
    found = normality(z, torch.zeros(1, 3, 4).double(), grid=(1, 2), is_real=is_real)
    numbers = z.flatten(1)[:, :9]
    torch.testing.assert_close(found["z_mean"], numbers.sum(1) / 3)
    torch.testing.assert_close(found["z_variance"], (numbers**2 - 1).sum(1) / 18**0.5)
    torch.testing.assert_close(found["z_kurtosis"], (numbers**4 - 6 * numbers**2 + 3).sum(1) / (24 * 9) ** 0.5)
    torch.testing.assert_close(found["z_spatial"], (z[:, 0] * z[:, 1]).sum(-1) / 2)
    # Standard normal: means and variances of 400 are within four standard errors.
    for values in found.values():
        assert abs(float(values.mean())) < 4 / 400**0.5
        assert abs(float(values.var()) - 1) < 4 * (found["z_mean"].new_tensor(14.0) / 400) ** 0.5


def test_compiled_steps_return_parts(world: WorldModel) -> None:
    state = world.begin(2)
    z, chances = torch.randn(2, 6, 3), torch.rand(2, 4)
    features = torch.zeros(2, 2)
    plain, after, _ = world.drawn_step(state, None, features, z, chances, is_traced=True)
    with torch.no_grad():
        out = list(_Step(world)(*state.tensors().values(), features, z, chances))
    made, then = _unpacked(out, ("pixels", "place", "speed"))
    assert made.frame is not None and plain.frame is not None
    for name in ("pixels", "place", "speed"):
        assert torch.equal(parts(made.frame)[name], parts(plain.frame)[name])
    assert torch.equal(made.entropy, plain.entropy)  # type: ignore[arg-type]
    assert torch.equal(then.mean, after.mean)


def test_plans_for_reward_and_for_a_goal_and_through_gradients(world: WorldModel) -> None:
    assert world.contexts is not None
    generator = torch.Generator().manual_seed(0)
    state = world.start(world.contexts.frames[:1], world.contexts.actions[:1], generator=generator)
    planner = ICEM(world, world.config.data.action, num_candidates=6, num_elites=2, num_iterations=2)
    goal = GoalLikelihood(world, world.contexts.frames[:1, 0])
    for objective in (Return(), goal):
        assert planner.plan(state, objective, 3, generator=generator).actions.shape == (1, 3, 2)
    action = torch.zeros(1, 2, requires_grad=True)
    once, after = Differentiable(world).step(state, action, generator=torch.Generator().manual_seed(1), decode=True)
    plain, _ = world.step(state, action.detach(), generator=torch.Generator().manual_seed(1))
    assert once.frame is not None and plain.frame is not None
    torch.testing.assert_close(parts(once.frame)["place"], parts(plain.frame)["place"], rtol=1e-3, atol=1e-3)
    (gradient,) = torch.autograd.grad(after.latents[:, 1].sum(), action)
    assert bool((gradient != 0).all())
    with pytest.raises(ValueError, match="goal frames must have shape"):
        GoalLikelihood(world, world.contexts.frames[0, 0])
    with pytest.raises(TypeError, match=r"goal frames must be a dictionary of \['pixels', 'place', 'speed'\]"):
        GoalLikelihood(world, torch.zeros(1, 16, 16, 3, dtype=torch.uint8))


def test_acts_in_the_real_environment_and_remembers_what_it_saw() -> None:
    world = tiny_world(beside={"motion": 4, "clock": 1}, shallow=False, shown=True)
    planner = ICEM(world, world.config.data.action, num_candidates=4, num_elites=2, num_iterations=1)
    pilot = Pilot(world, planner, Return(), horizon=2, sees=True)
    (played,) = act(pilot, DotEnv(), max_steps=3)
    assert played.episode.frames.shape == (4,)
    np.testing.assert_array_equal(played.episode.frames["clock"][:, 0], [0, 1, 2, 3])
    assert played.expected is not None and played.expected.shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(played.expected[0], played.episode.frames["pixels"][0])


def test_what_needs_pictures_alone_says_so(dataset: Dataset, tmp_path: Path) -> None:
    world = tiny_world(beside={"motion": 4, "clock": 1})
    with pytest.raises(ValueError, match="an evaluation measures pictures alone"):
        evaluate(world, dataset, progress=False)
    with pytest.raises(ValueError, match="needs pictures alone, but the observations are dictionaries"):
        generate(world, frames=2)
    with pytest.raises(ValueError, match="needs pictures alone"):
        elbo(world, torch.zeros(1, 3, 16, 16, 3, dtype=torch.uint8), dataset.episode(0).actions[None, :2], std=1.0)
    with pytest.raises(ValueError, match="contenders are compared on pictures or vectors"):
        compare(save(world, tmp_path / "world"), out=tmp_path / "compared")
    refused: list[dict[str, Any]] = [{"denoiser_layers": 1}, {"symmetry": "mirror"}, {"joint": True}]
    for options in refused:
        with pytest.raises(ValueError, match=f"{next(iter(options))} is about pictures alone"):
            train(dataset, out=tmp_path / "run", progress=False, **options)
    assert not (tmp_path / "run").exists()


def test_worlds_of_one_array_keep_their_fingerprint() -> None:
    assert world_fingerprint(tiny_world(numbers=3)) == "e8309a6c2f4a54b2"
