"""A whole evaluation: measures as defined, only held-out clips, baselines beside them, reasons for what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import moving_pictures, tiny_spec, tiny_world, write_dataset

from worldflow import checkpoint
from worldflow.data import Dataset
from worldflow.envs.recorder import Recorder
from worldflow.evaluate import imagine_clips, whole_clips
from worldflow.fidelity import EvaluateConfig, evaluate
from worldflow.fidelity_text import as_text
from worldflow.fidelity_types import Fidelity
from worldflow.fingerprint import episode_hashes
from worldflow.metrics import decibels
from worldflow.types import Episode
from worldflow.world import WorldModel

PAST, HORIZON = 2, 9
SMALL: dict[str, Any] = {"horizon": HORIZON, "clips": 8, "samples": 3, "long": 20, "long_rollouts": 2, "probe_steps": 2}


def write_targets(path: Path, *, episodes: int = 22, length: int = 14) -> Path:
    """A bright square that actions move, a target that stands still; both are in the state. Some episodes terminate."""
    spec = tiny_spec()
    recorder = Recorder(path, observation_space=spec.observation_space, action_space=spec.action_space)
    generator = np.random.default_rng(0)
    for number in range(episodes):
        actions = generator.uniform(-1, 1, (length, 2)).astype(np.float32)
        place, target = generator.integers(0, 9, 2).astype(float), generator.integers(0, 14, 2)
        frames, states = np.full((length + 1, 16, 16, 3), 40, np.uint8), np.zeros((length + 1, 4))
        for t in range(length + 1):
            row, column = place.round().astype(int)
            frames[t, target[0] : target[0] + 2, target[1] : target[1] + 2] = (255, 40, 40)
            frames[t, row : row + 4, column : column + 4] = 200
            states[t] = *place, *target
            if t < length:
                place = np.clip(place + 3 * actions[t], 0, 12)
        episode = Episode(
            frames=frames,
            actions=actions,
            rewards=states[1:, 0].astype(np.float32) / 16,
            terminated=(np.arange(length) == length - 1) & (number % 2 == 1),
            truncated=(np.arange(length) == length - 1) & (number % 2 == 0),
            infos={"state": states},
        )
        recorder.add(episode, seed=number)
    recorder.finish()
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_targets(tmp_path_factory.mktemp("data") / "targets")


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return tiny_world(window=PAST + 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, world: WorldModel, data: Path) -> Path:
    hashes = episode_hashes(Dataset(data), "train")
    training = {"episode_hashes": hashes, "minutes_trained": 0.002}
    return checkpoint.save(world, tmp_path_factory.mktemp("runs") / "world", training=training)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def fidelity(run: Path, data: Path, out: Path) -> Fidelity:
    return evaluate(run, data, out=out, progress=False, **SMALL)


def test_every_measure_stands_beside_its_baselines(fidelity: Fidelity) -> None:
    both = {"world", "deterministic", "copy last"}
    names = {"psnr", "ssim", "physics", "physics_excess", "presence", "still_in_place", "drift", "crps", "long"}
    assert names | {"reward", "termination", "nll", "jumps", "frechet", "coverage"} <= set(fidelity.measures)
    for name in ("psnr", "ssim", "physics", "physics_excess", "crps", "frechet"):
        assert both <= set(fidelity.measures[name].curves), name
    for name, measure in fidelity.measures.items():
        for predictor, curve in measure.curves.items():
            assert len(curve.mean) == len(curve.low) == len(curve.high) == len(measure.horizons), name
            assert np.isfinite(curve.mean).all() and np.all(curve.low <= curve.high), (name, predictor)
    assert fidelity.measures["psnr"].horizons == tuple(range(1, HORIZON + 1))
    assert fidelity.protocol["baseline minutes"] == 0.002
    assert "is among the 20 that were trained on" in fidelity.protocol["overlap"]
    # random weights may terminate all long rollouts early
    assert {"lpips"} <= set(fidelity.left_out) <= {"lpips", "long rollouts to the end"}


def test_pictures_are_measured_as_they_are_defined(fidelity: Fidelity, world: WorldModel, data: Path) -> None:
    clips = whole_clips(Dataset(data), past=PAST, horizon=HORIZON, num_clips=8)
    real = clips.frames[:, PAST + 1 :].double()
    # the first batch holds all clips, and its futures are drawn first
    generator = torch.Generator().manual_seed(0)
    futures = imagine_clips(world, clips, past=PAST, num_samples=3, generator=generator).frames.double()
    error = (futures - real).square().mean((0, 1, 3, 4, 5)).numpy()
    psnr = fidelity.measures["psnr"].curves
    np.testing.assert_allclose(psnr["world"].mean, decibels(error), rtol=1e-9)
    error = (futures.mean(0) - real).square().mean((0, 2, 3, 4)).numpy()  # not rounded
    np.testing.assert_allclose(psnr["mean of 3"].mean, decibels(error), rtol=1e-9)
    copied = (clips.frames[:, PAST : PAST + 1].double() - real).square().mean((0, 2, 3, 4)).numpy()
    np.testing.assert_allclose(psnr["copy last"].mean, decibels(copied), rtol=1e-9)
    spread = (futures.var(0) * 4 / 3).mean((0, 2, 3, 4)) / (futures.mean(0) - real).square().mean((0, 2, 3, 4))
    shown = fidelity.measures["pixel_diversity"].curves["world"].mean
    np.testing.assert_allclose(shown, spread.sqrt().numpy(), rtol=1e-9)


def test_physics_is_the_probed_state_against_the_recorded_one(fidelity: Fidelity, run: Path, data: Path) -> None:
    from worldflow.episodes import recorded_state
    from worldflow.probe import StateProbe

    dataset = Dataset(data)
    clips = whole_clips(dataset, past=PAST, horizon=HORIZON, num_clips=8)
    probe = StateProbe.load(run / "probe.safetensors")
    std = probe.std[probe.kept].numpy()
    true = np.stack(
        [
            recorded_state(dataset.episode(int(e)))[s + PAST + 1 : s + PAST + 1 + HORIZON]
            for e, s in zip(clips.episode, clips.start, strict=True)
        ]
    )[..., probe.kept.numpy()]
    for name, frames in (
        ("real frames", clips.frames),
        ("copy last", torch.cat((clips.frames[:, : PAST + 1], clips.frames[:, [PAST] * HORIZON]), dim=1)),
    ):
        read = probe.read(frames)[:, PAST + 1 :].double().numpy()  # the past in view, PAST + 1 = 3 frames
        squared = np.square((read - true) / std)
        shown = fidelity.measures["physics"].curves[name].mean
        np.testing.assert_allclose(shown, np.sqrt(squared.mean(axis=(0, 2))), rtol=1e-4)
        table = fidelity.tables[f"physics of {name}, by coordinate"]
        np.testing.assert_allclose(table["state[1]"], np.sqrt(squared[..., 1].mean(axis=0)), rtol=1e-4)
    physics, excess = fidelity.measures["physics"].curves, fidelity.measures["physics_excess"].curves
    np.testing.assert_allclose(excess["world"].mean, physics["world"].mean - physics["real frames"].mean, rtol=1e-6)
    # permanent are the target's coordinates, found from the recording
    drift = fidelity.measures["drift"].curves["real frames"].mean
    tables = fidelity.tables["physics of real frames, by coordinate"]
    expected = np.sqrt((tables["state[2]"] ** 2 + tables["state[3]"] ** 2) / 2)
    np.testing.assert_allclose(drift, expected, rtol=1e-4)


def test_first_steps_are_measured_on_short_clips_from_anywhere(
    fidelity: Fidelity, run: Path, world: WorldModel, data: Path
) -> None:
    # two held-out episodes of 14 transitions hold 2 x 9 windows of 2 + 4, and all of them are taken
    clips = whole_clips(Dataset(data), past=PAST, horizon=4, num_clips=256, seed=2)
    assert len(clips.frames) == 18 and set(clips.start.tolist()) == set(range(9))
    assert fidelity.protocol["clips of the first steps"] == 18
    near, horizons = fidelity.measures["near_psnr"], (1, 2, 3, 4)
    assert near.horizons == fidelity.measures["near_physics_excess"].horizons == horizons
    real = clips.frames[:, PAST + 1 :].double()
    copied = (clips.frames[:, PAST : PAST + 1].double() - real).square().mean((0, 2, 3, 4)).numpy()
    np.testing.assert_allclose(near.curves["copy last"].mean, decibels(copied), rtol=1e-9)
    generator = torch.Generator().manual_seed(2)
    futures = imagine_clips(world, clips, past=PAST, num_samples=3, generator=generator).frames.double()
    error = (futures - real).square().mean((0, 1, 3, 4, 5)).numpy()
    np.testing.assert_allclose(near.curves["world"].mean, decibels(error), rtol=1e-9)
    assert {"world", "mean of 3", "deterministic", "copy last"} == set(near.curves)
    options = SMALL | {"long": 0}
    without = evaluate(run, data, progress=False, **{**options, "near_clips": 0})
    assert "near_psnr" not in without.measures and "--near-clips 0" in without.left_out["first steps"]
    short = evaluate(run, data, progress=False, **{**options, "horizon": 4})
    assert "near_psnr" not in short.measures and "come from anywhere already" in short.left_out["first steps"]


def test_the_still_object_stays_in_real_frames_and_not_in_noise(fidelity: Fidelity) -> None:
    kept = fidelity.measures["still_in_place"].curves
    assert kept["real frames"].mean.mean() > 0.8  # the moving square hides it now and then
    assert kept["world"].mean.mean() < 0.6  # random weights imagine noise
    assert fidelity.measures["presence"].curves["real frames"].mean.mean() == pytest.approx(1, abs=0.25)


def test_what_is_written_is_what_was_measured(fidelity: Fidelity, out: Path, run: Path) -> None:
    record = json.loads((out / "fidelity.json").read_text())
    assert (
        record["measures"]["psnr"]["curves"]["world"]["mean"] == fidelity.measures["psnr"].curves["world"].mean.tolist()
    )
    assert record["protocol"]["seed"] == 0 and record["left_out"] == dict(fidelity.left_out)
    page = (out / "report.html").read_text()
    for word in (
        "Physics error above the probe",
        "deterministic",
        fidelity.protocol["held-out hash"],
    ):
        assert word in page
    assert moving_pictures(page) == 1
    assert "http://" not in re.sub(r'data:[^"]*', "", page)
    assert {p.name for p in run.iterdir()} >= {"probe.safetensors", "predictor.safetensors", "instruments.json"}
    text = as_text(fidelity)
    assert "Peak signal-to-noise ratio (dB)" in text and "mean of 3" in text and "lpips: " in text


def test_the_same_seed_gives_the_same_numbers_with_cached_instruments(
    fidelity: Fidelity, run: Path, data: Path
) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in run.iterdir()}
    state = torch.get_rng_state()
    again = evaluate(run, data, progress=False, **SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert {p.name: p.stat().st_mtime_ns for p in run.iterdir()} == before
    assert json.dumps(again.to_plain()) == json.dumps(fidelity.to_plain())


def test_a_world_on_pictures_alone_leaves_out_what_needs_a_state(tmp_path: Path, world: WorldModel) -> None:
    data = write_dataset(tmp_path / "squares", lengths=[6, 7, 6, 6, 7, 5])
    found = evaluate(world, data, progress=False, horizon=30, clips=2, samples=1, long=0, baseline_minutes=0)
    assert 'has no info["state"]' in found.left_out["physics"]
    for name in ("jumps", "frechet", "long rollouts", "deterministic baseline", "coverage, ranks and diversity"):
        assert found.left_out[name]
    assert "steps instead of 30" in found.left_out["longer horizons"]
    assert found.protocol["overlap"].startswith("not checked")
    assert set(found.measures) >= {"psnr", "crps", "nll"}  # of one clip, the only one that lasts
    assert not {"physics", "reward", "frechet"} & set(found.measures)
    assert found.left_out["action sensitivity"] and found.left_out["reward"] and "action_gap" not in found.numbers


def test_trained_episodes_and_other_spaces_are_refused(run: Path, data: Path, tmp_path: Path) -> None:
    record = json.loads((run / "world.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for name in ("world.safetensors", "contexts.npz"):
        (other / name).write_bytes((run / name).read_bytes())
    record["training"]["episode_hashes"] += episode_hashes(Dataset(data), "held_out")[:1]
    (other / "world.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"1 of the 2 held-out episodes of .* were trained on"):
        evaluate(other, data, progress=False, **SMALL)
    small = write_dataset(tmp_path / "small", lengths=[6, 6], size=8)
    with pytest.raises(ValueError, match=r"frames: expected shape \(16, 16, 3\), got \(8, 8, 3\)"):
        evaluate(run, small, progress=False)
    short = write_dataset(tmp_path / "short", lengths=[9, 2])
    with pytest.raises(ValueError, match="no held-out episode has more than the 2 transitions"):
        evaluate(run, short, progress=False)
    lone = write_dataset(tmp_path / "lone", lengths=[9])
    with pytest.raises(ValueError, match="no held-out episode; record at least two"):
        evaluate(run, lone, progress=False)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        EvaluateConfig(samples=0)
    with pytest.raises(ValueError, match="long must not be negative, got -1"):
        EvaluateConfig(long=-1)
    with pytest.raises(ValueError, match="baseline_minutes must be a number of minutes or 0, got nan"):
        EvaluateConfig(baseline_minutes=float("nan"))


def test_a_report_names_no_folder_of_its_maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from worldflow.fidelity import _named

    monkeypatch.chdir(tmp_path)
    assert _named("runs/a/world") == _named(tmp_path / "runs" / "a" / "world") == "runs/a/world"
    assert _named(tmp_path.parent / "other" / "runs" / "a") == "runs/a"
