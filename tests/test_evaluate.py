"""Rollout measures: only held-out clips, aligned with what was imagined, and the baselines as written down."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny_spec, tiny_world

from worldflow.data import Dataset
from worldflow.envs.recorder import Recorder
from worldflow.evaluate import held_out_clips, imagine_clips, rollout_report
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
    assert "data:image/gif" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
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
