"""Ends and rewards count where they exist; base rates and intervals against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import tiny_world, write_dataset

from worldflow.data import Dataset
from worldflow.evaluate import held_out_clips, other_actions, whole_clips
from worldflow.fidelity_curves import decibel_curve, jackknife_curve, mean_curve, rms_excess_curve, weighted_rms_curve
from worldflow.fidelity_outcomes import Outcomes, ended_by, likelihood, rewards, survival, terminations

PAST = 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Even episodes terminate at their end, odd ones are cut off there."""
    return Dataset(write_dataset(tmp_path_factory.mktemp("data") / "d", lengths=[6, 7, 8, 9, 10, 5, 7, 9, 11, 8] * 6))


def test_base_rates_are_counted_place_by_place(dataset: Dataset) -> None:
    base = survival(dataset, past=PAST, horizon=7)
    for h in range(1, 8):
        ended, known = 0, 0
        for number in dataset.episodes("train"):
            length = int(dataset.lengths[number])
            for start in range(PAST, length):
                ends = number % 2 == 0 and start + h >= length
                ended, known = ended + ends, known + (ends or start + h <= length)
        assert base[h - 1] == pytest.approx(ended / known, abs=1e-12)


def test_ends_are_known_until_an_episode_is_cut_off(dataset: Dataset) -> None:
    clips = held_out_clips(dataset, past=PAST, horizon=6, num_clips=40)
    ended, known = ended_by(clips, past=PAST)
    for row in range(len(ended)):
        number, start = int(clips.episode[row]), int(clips.start[row]) + PAST
        for h in range(1, 7):
            ends = number % 2 == 0 and start + h >= dataset.lengths[number]
            assert ended[row, h - 1] == ends
            assert known[row, h - 1] == (ends or start + h <= dataset.lengths[number])


def test_perfect_outcomes_have_no_error_and_wrong_ones_have(dataset: Dataset) -> None:
    clips = held_out_clips(dataset, past=PAST, horizon=4, num_clips=40)
    ended, _ = ended_by(clips, past=PAST)
    true = clips.rewards[:, PAST:].double().numpy()
    perfect = Outcomes(expected=true, ended=np.repeat(ended[None], 3, axis=0))
    reward = rewards(perfect, clips, past=PAST, mean_reward=0.25).measures["reward"].curves
    np.testing.assert_allclose(reward["world"].mean, 0.0, atol=1e-12)
    valid = clips.valid[:, PAST:].numpy()
    expected = [np.sqrt(np.mean((0.25 - true[valid[:, h], h]) ** 2)) for h in range(len(reward["mean reward"].mean))]
    np.testing.assert_allclose(reward["mean reward"].mean, expected, rtol=1e-9)
    found = terminations(perfect, clips, np.full(4, 0.5), past=PAST)
    curves = found.measures["termination"].curves
    np.testing.assert_allclose(curves["world"].mean, 0.0, atol=1e-12)
    np.testing.assert_allclose(curves["base rate"].mean, 0.25, rtol=1e-9)
    assert found.numbers["termination_auroc"].value == 1.0
    wrong = Outcomes(expected=true, ended=~perfect.ended)
    found = terminations(wrong, clips, np.full(4, 0.5), past=PAST)
    np.testing.assert_allclose(found.measures["termination"].curves["world"].mean, 1.0, rtol=1e-9)
    assert found.numbers["termination_auroc"].value == 0.0


def test_likelihood_is_the_worlds_own_and_the_gap_needs_other_actions(dataset: Dataset) -> None:
    world = tiny_world(window=PAST + 1)
    clips = whole_clips(dataset, past=PAST, horizon=4, num_clips=6)
    shuffled = other_actions(clips, past=PAST)
    found = likelihood(world, clips, shuffled, past=PAST, seed=5)
    generator = torch.Generator().manual_seed(5)
    frame = world.log_prob(clips.frames, clips.actions, generator=generator).frame[:, PAST:]
    expected = world.above_floor(frame).double().mean(0).numpy()
    np.testing.assert_allclose(found.measures["nll"].curves["own actions"].mean, expected, rtol=1e-5)
    assert found.numbers["action_gap"].value != 0
    same = likelihood(world, clips, clips.actions, past=PAST, seed=5)
    assert same.numbers["action_gap"].value == 0  # the same noise for both
    assert "action_gap" not in likelihood(world, clips, None, past=PAST, seed=5).numbers


def test_curves_average_before_roots_and_logarithms() -> None:
    generator = np.random.default_rng(0)
    squared, floor = generator.uniform(1, 5, (30, 3)), generator.uniform(0, 1, (30, 3))
    excess = rms_excess_curve(squared, floor)
    np.testing.assert_allclose(excess.mean, np.sqrt(squared.mean(0)) - np.sqrt(floor.mean(0)), rtol=1e-12)
    np.testing.assert_allclose(decibel_curve(squared).mean, 10 * np.log10(255**2 / squared.mean(0)), rtol=1e-12)
    assert np.all(excess.low < excess.mean) and np.all(excess.mean < excess.high)
    weight = (generator.uniform(size=(30, 3)) < 0.5).astype(float)
    expected = [np.sqrt(squared[weight[:, h] == 1, h].mean()) for h in range(3)]
    np.testing.assert_allclose(weighted_rms_curve(squared, weight).mean, expected, rtol=1e-12)
    holes = squared.copy()
    holes[::3] = np.nan  # clips without the thing that is measured
    np.testing.assert_allclose(mean_curve(holes).mean, np.delete(squared, np.s_[::3], axis=0).mean(0), rtol=1e-12)


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=(64, 1))
    curve = jackknife_curve(lambda rows: values[rows].mean(axis=0), 64, num_groups=64)
    error = values.std(ddof=1) / 8
    np.testing.assert_allclose(curve.high - curve.mean, 1.96 * error, rtol=1e-9)
    np.testing.assert_allclose(curve.mean - curve.low, 1.96 * error, rtol=1e-9)
