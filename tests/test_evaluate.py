"""Rollout measures: only held-out clips, aligned with what was imagined, and the baselines as written down."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import moving_pictures, tiny_spec, tiny_world

from worldflow.data import Dataset
from worldflow.envs.recorder import Recorder
from worldflow.evaluate import (
    choose_horizon,
    held_out_clips,
    imagine_clips,
    other_actions,
    rollout_report,
    whole_clips,
)
from worldflow.metrics import decibels
from worldflow.types import Episode

LENGTHS = (9, 12, 4, 11, 8, 10)
PAST, HORIZON = 2, 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Noise with the episode's number in the first pixel and the time in the second; episode 1 is held out."""
    spec = tiny_spec()
    folder = tmp_path_factory.mktemp("data") / "noise"
    space = {"type": "Box", "dtype": "uint8", "shape": [16, 16, 3]}
    low, high = np.zeros((16, 16, 3), int).tolist(), np.full((16, 16, 3), 255).tolist()
    recorder = Recorder(
        folder, observation_space=json.dumps({**space, "low": low, "high": high}), action_space=spec.action_space
    )
    generator = np.random.default_rng(0)
    for number, length in enumerate(LENGTHS):
        frames = generator.integers(0, 256, (length + 1, 16, 16, 3)).astype(np.uint8)
        frames[:, 0, 0, 0], frames[:, 0, 0, 1] = number, np.arange(length + 1)
        episode = Episode(
            frames=frames,
            actions=generator.uniform(-1, 1, (length, 2)).astype(np.float32),
            rewards=generator.normal(size=length).astype(np.float32),
            terminated=np.arange(length) == length - 1,
            truncated=np.zeros(length, bool),
        )
        recorder.add(episode, seed=number)
    recorder.finish()
    return Dataset(folder)


def test_clips_are_held_out_and_start_anywhere(dataset: Dataset) -> None:
    clips = held_out_clips(dataset, past=PAST, horizon=HORIZON, num_clips=99)
    starts = {(int(e), s) for e in dataset.episodes("held_out") for s in range(LENGTHS[int(e)] - PAST)}
    assert set(zip(clips.episode.tolist(), clips.start.tolist(), strict=True)) == starts
    assert bool(clips.valid[:, : PAST + 1].all())  # the past is real, and at least one transition to imagine is
    ends = (clips.terminated & clips.valid).long().argmax(1)[clips.terminated.any(1)] - PAST
    assert set(ends.tolist()) == set(range(HORIZON))  # an end at every horizon
    assert torch.equal(clips.frames[:, 0, 0, 0, 1].long(), clips.start)


def test_clips_depend_on_the_seed_alone(dataset: Dataset) -> None:
    first, again, other = (
        held_out_clips(dataset, past=PAST, horizon=HORIZON, num_clips=3, seed=seed).start.tolist() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_no_episode_long_enough_is_an_error(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"no held-out episode has more than the 20 transitions"):
        held_out_clips(dataset, past=20, horizon=20, num_clips=1)
    with pytest.raises(ValueError, match=r"no held-out clip lasts 40 steps"):
        rollout_report(tiny_world(window=PAST + 1), dataset, horizon=40, num_clips=2)


def test_report_measures_what_was_imagined(dataset: Dataset) -> None:
    world = tiny_world(window=PAST + 1)
    report = rollout_report(world, dataset, horizon=HORIZON, num_clips=99, num_samples=2, seed=3)
    clips = report.clips
    dream = imagine_clips(world, clips, past=PAST, num_samples=2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(dream.frames, report.dream.frames)
    whole = clips.start + PAST + HORIZON <= torch.tensor(LENGTHS)[clips.episode]
    assert torch.equal(report.is_whole, whole)
    assert 0 < int(whole.sum()) < len(whole)

    real = clips.frames[whole][:, PAST + 1 :].double()
    error = (dream.frames[:, whole].double() - real).square().mean((0, 1, 3, 4, 5)).numpy()
    np.testing.assert_allclose(report.model.mean, decibels(error), rtol=1e-12)
    copied = (clips.frames[whole][:, PAST : PAST + 1].double() - real).square().mean((0, 2, 3, 4)).numpy()
    np.testing.assert_allclose(report.copy_last.mean, decibels(copied), rtol=1e-12)

    train = np.concatenate([dataset.episode(int(i)).rewards for i in dataset.episodes("train")])
    model, constant = [], []
    for row in range(len(whole)):
        for t in range(HORIZON):
            if not bool(clips.valid[row, PAST + t]):
                continue
            alive = [s for s in range(2) if not bool(dream.terminated[s, row, :t].any())] or [0, 1]
            expected = np.mean([float(dream.reward_means[s, row, t]) for s in alive])
            reward = float(clips.rewards[row, PAST + t])
            model.append((expected - reward) ** 2)
            constant.append((float(train.mean()) - reward) ** 2)
    # Float32 sums of about a hundred terms.
    assert report.reward.model == pytest.approx(np.mean(model) ** 0.5, rel=1e-5)
    assert report.reward.constant == pytest.approx(np.mean(constant) ** 0.5, rel=1e-5)


def test_imagining_uses_the_recorded_actions(dataset: Dataset) -> None:
    world = tiny_world(window=PAST + 1)
    clips = held_out_clips(dataset, past=PAST, horizon=HORIZON, num_clips=2)
    dream = imagine_clips(world, clips, past=PAST, generator=torch.Generator().manual_seed(0))
    direct = world.imagine(
        clips.frames[:, : PAST + 1],
        clips.actions[:, :PAST],
        clips.actions[:, PAST:],
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.equal(dream.frames, direct.frames)


def test_demo_writes_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from worldflow.demo import DemoConfig, demo

    out = demo(
        DemoConfig(
            out=str(tmp_path / "demo"),
            episodes=8,
            minutes=0.04,
            horizon=3,
            rollouts=4,
            samples=2,
            scored=1,
            speed_seconds=0.2,
        )
    )
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["psnr"]["model"]) == len(summary["psnr"]["copy_last"]) == 3
    assert set(summary["reward_error"]) == {"model", "constant"}
    assert set(summary["auroc"]) == {"gravity", "actuator_gain", "teleport", "sensor_noise", "frozen_frame"}
    assert all(0 <= value <= 1 for row in summary["auroc"].values() for value in row.values())
    assert set(summary["env_steps_per_second"]) == {"1", "16"}
    assert {"collect", "train", "step", "imagine", "score", "report", "total"} == set(summary["seconds"])
    page = (out / "report.html").read_text()
    assert moving_pictures(page) == 1
    assert "http://" not in re.sub(r'data:[^"]*', "", page)
    assert "PSNR (dB)" in capsys.readouterr().out


def test_demo_replaces_its_own_folders_and_nobody_elses(tmp_path: Path) -> None:
    demo_module = import_module("worldflow.demo")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").touch()
    with pytest.raises(FileExistsError, match=r"data was not made by a demo and would be replaced; choose another"):
        demo_module.demo(demo_module.DemoConfig(out=str(tmp_path)))
    assert (tmp_path / "data" / "precious").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]

    own = tmp_path / "own"
    demo_module._clear_earlier_demo(own)
    (own / "data").mkdir()
    (own / "report.html").touch()
    demo_module._clear_earlier_demo(own)
    assert not (own / "data").exists()
    assert (own / "report.html").exists()


# -- clips for `worldflow evaluate` ------------------------------------------------------------------------------------


def test_whole_clips_last_to_the_horizon_and_are_dealt_over_the_episodes(tmp_path: Path) -> None:
    from builders import write_dataset

    data = Dataset(write_dataset(tmp_path / "data", lengths=[20] * 11 + [9] * 10 + [30] * 10))
    held_out = data.episodes("held_out")
    room = {int(e): int(data.lengths[e]) - 12 + 1 for e in held_out if data.lengths[e] >= 12}
    assert 0 < len(room) < len(held_out)
    clips = whole_clips(data, past=4, horizon=8, num_clips=2 * len(room))
    assert bool(clips.valid.all())
    assert np.bincount(clips.episode.numpy()).max() == 2  # as many of each
    every = whole_clips(data, past=4, horizon=8, num_clips=999)
    assert len(every.frames) == sum(room.values())
    assert len(set(zip(every.episode.tolist(), every.start.tolist(), strict=True))) == len(every.frames)
    with pytest.raises(ValueError, match="no held-out episode lasts 44 steps; shorten the horizon"):
        whole_clips(data, past=4, horizon=40, num_clips=1)


def test_the_horizon_is_cut_to_what_a_quarter_of_the_held_out_episodes_allows(dataset: Dataset, tmp_path: Path) -> None:
    from builders import write_dataset

    assert choose_horizon(dataset, past=PAST, wanted=4) == 4
    assert choose_horizon(dataset, past=PAST, wanted=64) == 12 - PAST  # one held-out episode, of 12
    with pytest.raises(ValueError, match="more than the 12 transitions that the world wants to see"):
        choose_horizon(dataset, past=12, wanted=4)
    lone = Dataset(write_dataset(tmp_path / "lone", lengths=[9]))
    with pytest.raises(ValueError, match="has no held-out episode; record at least two"):
        choose_horizon(lone, past=1, wanted=4)
    many = Dataset(write_dataset(tmp_path / "many", lengths=list(range(5, 85))))
    room = sorted((int(many.lengths[e]) - 2 for e in many.episodes("held_out")), reverse=True)
    assert len(room) == 8 and choose_horizon(many, past=2, wanted=999) == room[1]


def test_other_actions_come_from_other_episodes_after_the_past(tmp_path: Path) -> None:
    from builders import write_dataset

    data = Dataset(write_dataset(tmp_path / "data", lengths=[12] * 20))
    clips = whole_clips(data, past=3, horizon=4, num_clips=6)
    assert clips.episode.tolist()[:2] == clips.episode.tolist()[2:4] and len(set(clips.episode.tolist())) == 2
    shuffled = other_actions(clips, past=3)
    assert shuffled is not None
    assert torch.equal(shuffled[:, :3], clips.actions[:, :3])
    for row in range(6):
        source = [k for k in range(6) if torch.equal(shuffled[row, 3:], clips.actions[k, 3:])]
        assert source and all(clips.episode[k] != clips.episode[row] for k in source)
    assert other_actions(clips[:1], past=3) is None
