"""Scores are the world's own likelihoods, whatever else is scored."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import minari
import numpy as np
import pytest
import torch
from builders import random_episode, tiny_world, write_dataset

import worldflow as wf
from worldflow import EpisodeScores, data
from worldflow.calibration import calibrate_scores
from worldflow.codec import PatchCodec
from worldflow.envs.recorder import Recorder
from worldflow.flow import VideoFlow
from worldflow.score import score, write_csv, write_json
from worldflow.statistics import frames_at_once
from worldflow.types import Episode
from worldflow.world import WorldModel

OTHERS = ("token", "foresight", "standard_error", "anomaly", "num_draws", "world")
PARTS = [f.name for f in fields(EpisodeScores) if f.name not in (*OTHERS, "score_norm", "vector")]


def assert_same(left: EpisodeScores, right: EpisodeScores) -> None:
    for name in PARTS:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


@pytest.mark.parametrize("action", ["box", "discrete", "multi_discrete"])
def test_scores_are_the_worlds_own_likelihoods(action: Any) -> None:
    # With next to no noise its draw does not matter: 1e-7 times a gradient of a few hundred is below the tolerance.
    world = tiny_world(action=action, noise_std=1e-7, dtype=torch.float64)
    episode = random_episode(world, 70)
    (scores,) = score(world, [episode])
    frames, actions, rewards, terminated = (
        torch.from_numpy(values)[None]
        for values in (episode.frames, episode.actions, episode.rewards, episode.terminated)
    )
    known = world.log_prob(frames, actions, rewards, terminated)
    hidden = world.log_prob(frames, actions, hide_actions=True)
    for found, expected in (
        (scores.frame, known.frame),
        (scores.reward, known.reward),
        (scores.terminated, known.terminated),
        (scores.log_prob, known.total),
        (scores.above_floor, world.above_floor(known.frame)),
        (scores.action_ratio, known.frame - hidden.frame),
    ):
        np.testing.assert_allclose(found, expected[0].numpy(), rtol=1e-3, atol=1e-2)
    assert scores.action_ratio.std() > 1  # these actions matter, so the ratio was tested
    assert len(scores) == 70
    assert scores.anomaly is None


def test_scores_depend_on_nothing_but_the_episode_its_number_and_the_seed() -> None:
    world = tiny_world()
    first, second = random_episode(world, 9), random_episode(world, 5, seed=1)
    before = torch.get_rng_state()
    together = score(world, [first, second])
    assert torch.equal(before, torch.get_rng_state())
    assert_same(score(world, [first])[0], together[0])
    assert_same(score(world, [second, second])[1], together[1])
    assert not np.array_equal(score(world, [second])[0].frame, together[1].frame)
    assert not np.array_equal(score(world, [first], seed=1)[0].frame, together[0].frame)


def test_a_score_does_not_see_the_future() -> None:
    world = tiny_world()
    whole = random_episode(world, 71)  # 72 and 40 frames of 12 numbers: noise is drawn in blocks of 16
    start = Episode(
        **{name: getattr(whole, name)[:39] for name in ("actions", "rewards", "terminated", "truncated")},
        frames=whole.frames[:40],
    )
    found, all_of_it = score(world, [start])[0], score(world, [whole])[0]
    for name in PARTS:
        expected = getattr(all_of_it, name)[:39]
        # Sums over another number of rows may be ordered differently: float32 rounding of numbers near 100.
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-4, atol=1e-3)


def test_more_draws_are_less_noisy() -> None:
    world = tiny_world()
    episode = random_episode(world, 6)
    spread = {
        draws: np.std(
            [score(world, [episode], num_draws=draws, seed=seed, pixels=False)[0].frame for seed in range(12)], axis=0
        )
        for draws in (1, 16)
    }
    # A quarter is expected; the ratio of two spreads of 12 is within a factor of two of it but for one time in 30,
    # and the mean over six transitions much more often.
    assert 0.1 < spread[16].mean() / spread[1].mean() < 0.5


def test_reconstruction_is_the_codecs_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    lossless = tiny_world(codec="patch", patch_size=8)
    np.testing.assert_array_equal(score(lossless, [random_episode(lossless, 3)])[0].reconstruction, 0.0)

    # A codec that forgets what is brighter than gray: the error of each white frame is 1 in [-1, 1] units.
    decode = PatchCodec.decode_pixels
    monkeypatch.setattr(PatchCodec, "decode_pixels", lambda self, x: decode(self, x).clamp(max=0.0))
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    frames[[0, 3]] = 255
    scores = score(lossless, [replace(random_episode(lossless, 4), frames=frames)])[0]
    np.testing.assert_allclose(scores.reconstruction, [0, 0, 1, 0], atol=0.01)  # gray lies between two levels


def test_no_pass_grows_with_the_length_of_an_episode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = tiny_world(codec="patch", patch_size=8)
    most, length = {"codec": 0, "flow": 0, "read": 0}, 2 * frames_at_once(2) + 5
    encode, flow, pixels = PatchCodec.encode_pixels, VideoFlow.forward, data.read_frames

    def counted(name: str, frames: int) -> None:
        most[name] = max(most[name], frames)

    monkeypatch.setattr(PatchCodec, "encode_pixels", lambda self, x: counted("codec", len(x)) or encode(self, x))
    monkeypatch.setattr(
        VideoFlow,
        "forward",
        lambda self, x, *a, **o: counted("flow", x.shape[0] * x.shape[1]) or flow(self, x, *a, **o),
    )
    monkeypatch.setattr(
        data,
        "read_frames",
        lambda s, first, last, spec: counted("read", last - first) or pixels(s, first, last, spec=spec),
    )
    path = write_dataset(tmp_path / "data", lengths=[length])
    found = score(world, path, num_draws=2)
    assert len(found[0]) == length
    # Four frames in the flow for each draw: with and without actions, with larger and smaller ones.
    assert most == {"codec": frames_at_once(2), "flow": 8 * frames_at_once(2), "read": frames_at_once(2) + 1}
    assert [frames_at_once(k) for k in (1, 8, 100)] == [32, 4, 4]


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[WorldModel, Path, list[Episode]]:
    """A world, a data set that fits it, and its episodes, the second of which has labels."""
    world = tiny_world()
    spec = world.config.data
    episodes = [random_episode(world, 4), random_episode(world, 3, seed=1)]
    episodes[1] = replace(episodes[1], infos={"anomaly": np.array([False, False, True, False])})
    recorder = Recorder(
        tmp_path / "data", observation_space=spec.observation_space, action_space=spec.action_space, env_spec=None
    )
    for seed, episode in enumerate(episodes):
        recorder.add(episode, seed=seed)
    recorder.finish()
    return world, tmp_path / "data", episodes


def test_episodes_may_come_from_anywhere(recorded: tuple[WorldModel, Path, list[Episode]], tmp_path: Path) -> None:
    world, path, episodes = recorded
    wf.save(world, tmp_path / "run")
    expected = score(world, episodes)
    for source in (path, str(path), wf.Dataset(path), minari.MinariDataset(path / "data"), iter(episodes)):
        found = score(tmp_path / "run", source)
        for left, right in zip(found, expected, strict=True):
            assert_same(left, right)
            np.testing.assert_array_equal(left.anomaly, right.anomaly)
    assert expected[0].anomaly is None
    np.testing.assert_array_equal(expected[1].anomaly, [False, True, False])


def test_a_table_holds_every_number(recorded: tuple[WorldModel, Path, list[Episode]], tmp_path: Path) -> None:
    world, _, episodes = recorded
    scores = score(world, episodes)
    with write_csv(scores, tmp_path / "new" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["episode", "step", "log_prob", *PARTS, "anomaly"]
    assert [(int(r["episode"]), int(r["step"])) for r in rows] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 0),
        (1, 1),
        (1, 2),
    ]
    for name in ("log_prob", *PARTS):
        expected = np.concatenate([getattr(s, name) for s in scores])
        np.testing.assert_array_equal([float(r[name]) for r in rows], expected)
    assert [r["anomaly"] for r in rows] == ["", "", "", "", "0", "1", "0"]
    with write_csv(scores[:1], tmp_path / "plain.csv").open() as file:
        assert next(csv.reader(file)) == ["episode", "step", "log_prob", *PARTS]


def test_files_say_which_transitions_ring(tmp_path: Path) -> None:
    world = tiny_world()
    scores = score(world, [random_episode(world, 5, seed=seed) for seed in range(6)])
    detector = calibrate_scores(scores, false_alarm_rate=0.3, episode_false_alarm_rate=0.5)
    alarms = detector(scores)
    with write_csv(scores, tmp_path / "scores.csv", alarms=alarms).open() as file:
        rows = list(csv.DictReader(file))
    assert [bool(int(r["rings"])) for r in rows] == np.concatenate([a.transition for a in alarms]).tolist()
    for name, expected in (
        ("p_value", [a.p_value for a in alarms]),
        ("p_value_50", [a.window_p_value[2] for a in alarms]),
        ("recent_p_value_8", [a.recent_p_value[1] for a in alarms]),
        ("action_p_value", [a.part_p_value[a.parts.index("action")] for a in alarms]),
        ("drift_p_value", [a.drift_p_value for a in alarms]),
    ):
        assert [float(r[name]) for r in rows] == np.concatenate(expected).tolist(), name
    assert rows[7]["statistic"] == alarms[1].names[alarms[1].statistic[2]]
    stored = json.loads(write_json(scores, tmp_path / "scores.json", alarms=alarms).read_text())["episodes"]
    assert stored[1]["alarms"]["p_value"] == alarms[1].p_value.tolist()
    assert [e["alarms"]["episode"] for e in stored] == [a.episode for a in alarms]
    assert [e["alarms"]["episode_p_value"] for e in stored] == [a.episode_p_value for a in alarms]


def test_a_table_appears_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = tiny_world()
    scores = score(world, [random_episode(world, 3)])
    (tmp_path / "scores.csv").write_text("old")
    broken = replace(scores[0], reward=np.zeros(2))  # fails while rows are written
    with pytest.raises(ValueError, match=r"broadcast|shorter"):
        write_csv([scores[0], broken], tmp_path / "scores.csv")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("scores.csv", "old")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: replace(e, frames=e.frames[:, :8]), r"episode 1: .*frames of shape \(16, 16, 3\), got \(8, 16, 3\)"),
        (lambda e: replace(e, actions=e.actions[:, :1]), r"episode 1: .*actions of shape \(2,\), got \(1,\)"),
        (lambda e: replace(e, actions=e.actions * np.nan), "actions must be finite"),
        (lambda e: replace(e, rewards=e.rewards + np.inf), "rewards must be finite"),
        (lambda e: replace(e, frames=e.frames / 255.0), "must be uint8"),
        (lambda e: replace(e, frames=e.frames[:-1]), "need 5 frames"),
        (lambda e: replace(e, infos={"anomaly": np.zeros(3, bool)}), "one label for each of 5 frames"),
    ],
)
def test_episodes_that_do_not_fit_are_refused(change: Callable[[Episode], Episode], message: str) -> None:
    world = tiny_world()
    with pytest.raises(ValueError, match=message):
        score(world, [random_episode(world, 4), change(random_episode(world, 4))])


def test_choices_that_are_no_whole_numbers_are_refused() -> None:
    world = tiny_world(action="discrete")
    episode = random_episode(world, 4)
    with pytest.raises(ValueError, match="episode 0: actions must be integers"):
        score(world, [replace(episode, actions=episode.actions + 0.5)])


def test_other_bad_input_is_refused(recorded: tuple[WorldModel, Path, list[Episode]], tmp_path: Path) -> None:
    world, path, episodes = recorded
    for wrong, error, message in (
        (lambda: score(world, []), ValueError, "no episodes"),
        (lambda: score(world, episodes, num_draws=0), ValueError, "num_draws must be at least 1"),
        (lambda: score(world, episodes, seed=-1), ValueError, "seed must not be negative"),
        (lambda: score(tmp_path / "none", episodes), FileNotFoundError, "no world at"),
        (lambda: score(world, tmp_path / "none"), FileNotFoundError, "does not exist"),
        (lambda: score(world, cast(Any, episodes[0])), TypeError, "sequence of episodes"),
        (lambda: score(tiny_world(action="scalar"), path), ValueError, r"expected shape \(1,\), got \(2,\)"),
        (lambda: score(world.train(), episodes), ValueError, "call world.eval"),
    ):
        with pytest.raises(error, match=message):
            wrong()


# -- the package ----------------------------------------------------------------------------------------------------


def test_the_public_names_are_functions_whoever_imports_their_modules() -> None:
    code = """
import sys
import worldflow as wf
loaded = {"gymnasium", "mujoco", "minari", "jaxtyping", "tensorboard", "matplotlib", "tyro"} & set(sys.modules)
assert not loaded, loaded
import worldflow.train, worldflow.score
import importlib
importlib.import_module("worldflow.score"), importlib.import_module("worldflow.train")
for name in wf.__all__:
    assert hasattr(wf, name), name
for name in ("train", "score", "calibrate", "load", "save", "windows"):
    assert type(getattr(wf, name)).__name__ == "function", name
"""
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
