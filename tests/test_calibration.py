"""Alarms come at the promised rate, name what they rest on, and travel in a file that knows its world."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import random_episode, some_scores, tiny_world

import worldflow as wf
from worldflow import Detector, EpisodeScores
from worldflow.calibration import calibrate_scores
from worldflow.combination import COMBINATIONS
from worldflow.detector import Watch
from worldflow.score import score
from worldflow.surprise import Surprise
from worldflow.watched import STATISTICS, WINDOWS, statistic_matrix, watched_names

OTHERS = ("token", "foresight", "vector", "standard_error", "anomaly", "num_draws", "world", "score_norm")
PARTS = [f.name for f in fields(EpisodeScores) if f.name not in OTHERS]


def normal_scores(num: int, length: int, *, seed: int, dependence: float) -> list[EpisodeScores]:
    """Exchangeable transitions whose statistics share `dependence` of their variance; the last two are coarse."""
    random = np.random.default_rng(seed)
    result = []
    for _ in range(num):
        common = random.standard_normal(length)
        own = {name: random.standard_normal(length) for name in PARTS}
        mixed = {name: np.sqrt(dependence) * common + np.sqrt(1 - dependence) * v for name, v in own.items()}
        mixed["terminated"] = np.round(mixed["terminated"])  # ties
        mixed["change"] = np.exp(mixed["change"])
        mixed["reconstruction"] = np.zeros(length)  # a constant, as of the lossless codec
        result.append(some_scores(**mixed))
    return result


def statistic_of(scores: EpisodeScores, name: str) -> np.ndarray:
    return statistic_matrix(scores, [name])[0]


@pytest.mark.parametrize("dependence", [0.0, 0.9])
def test_normal_transitions_and_episodes_ring_at_the_promised_rate(dependence: float) -> None:
    detector = calibrate_scores(
        normal_scores(400, 5, seed=0, dependence=dependence), false_alarm_rate=0.05, episode_false_alarm_rate=0.1
    )
    alarms = detector(normal_scores(400, 5, seed=1, dependence=dependence))
    transitions = np.concatenate([a.transition for a in alarms])
    # Thresholds from n and shares among m: a variance of p (1 - p) (1 / n + 1 / m). Four of its roots, one time in
    # 16,000 by chance, and the seeds are fixed.
    for found, rate, n in ((transitions.mean(), 0.05, 1000), (np.mean([a.episode for a in alarms]), 0.1, 200)):
        spread = np.sqrt(rate * (1 - rate) * (1 / n + 1 / (2 * n)))
        assert abs(found - rate) < 4 * spread
    p_values = np.sort(np.concatenate([a.p_value for a in alarms]))
    uniform = (np.arange(len(p_values)) + 1) / len(p_values)
    # Ties make p-values higher than uniform ones, never lower: Smirnov's one-sided bound for 1000 against 2000
    # independent ones, one time in 3,000. (exp(-2 d^2 n m / (n + m)))
    assert (uniform - p_values).max() < 0.08


@pytest.mark.parametrize(
    ("part", "value", "expected"),
    [
        ("above_floor", 40.0, "frame_unlikely"),
        ("above_floor", -40.0, "frame_too_likely"),
        ("typicality", 40.0, "atypical_unlikely"),
        ("typicality", -40.0, "atypical_too_likely"),
        ("action_ratio", -20.0, "action"),
        ("action_gain", -20.0, "gain_low"),
        ("action_gain", 20.0, "gain_high"),
        ("context_ratio", -20.0, "context"),
        ("change", 0.0, "still"),
        ("entropy", 20.0, "unsure"),
        ("pixel_bits", 20.0, "pixels"),
        ("reward", -20.0, "reward"),
        ("terminated", -30.0, "terminated"),
        ("reconstruction", 1e-3, "reconstruction"),
    ],
)
def test_an_alarm_names_what_it_rests_on(part: str, value: float, expected: str) -> None:
    # So few normal transitions that ranks alone could not tell an outlier from the highest of all statistics.
    detector = calibrate_scores(normal_scores(20, 20, seed=0, dependence=0.0), false_alarm_rate=0.01)
    (usual,) = normal_scores(1, 20, seed=2, dependence=0.0)
    assert not detector([usual])[0].transition[7]
    values = getattr(usual, part).copy()
    values[7] = value
    (alarms,) = detector([replace(usual, **{part: values})])
    assert alarms.transition[7]
    assert alarms.names[alarms.statistic[7]] == expected
    assert alarms.episode
    assert alarms.names == watched_names(
        [n for n in STATISTICS if n not in ("score_norm", "foresight")]
    )  # none is there
    assert alarms.surprise.shape == (len(alarms.names), 20)
    rang = detector.thresholds.transition[expected] < statistic_of(replace(usual, **{part: values}), expected)
    alone = alarms.statistic_p_value[alarms.names.index(expected)] <= detector.false_alarm_rate
    np.testing.assert_array_equal(rang, alone)
    assert alone[7]
    if part != "above_floor":  # which is also averaged over the transitions that follow
        assert alarms.transition.sum() == 1


def test_a_lasting_shift_rings_through_its_average() -> None:
    detector = calibrate_scores(normal_scores(200, 40, seed=0, dependence=0.0))
    (usual,) = normal_scores(1, 40, seed=3, dependence=0.0)
    (alarms,) = detector([replace(usual, above_floor=usual.above_floor + 3.0)])  # three standard deviations
    named = [alarms.names[i] for i in alarms.statistic[alarms.transition]]
    assert sum(name.startswith("frame_unlikely_") for name in named) > 20


def test_too_little_to_keep_a_promise_is_refused() -> None:
    scores = normal_scores(18, 5, seed=0, dependence=0.0)
    with pytest.raises(ValueError, match=r"^false_alarm_rate 0\.01 needs at least 198 normal transitions"):
        calibrate_scores(scores)
    calibrate_scores(scores, false_alarm_rate=1 / 46)  # 45 transitions in the second half
    with pytest.raises(ValueError, match=r"episode_false_alarm_rate 0\.1 needs at least 18 normal episodes"):
        calibrate_scores(scores[:17], false_alarm_rate=0.1)
    with pytest.raises(ValueError, match="false_alarm_rate must be between 0 and 1, got 0"):
        calibrate_scores(scores, false_alarm_rate=0.0)


def test_a_detector_comes_from_a_world_and_normal_episodes() -> None:
    world = tiny_world()
    episodes = [random_episode(world, 4, seed=seed) for seed in range(4)]
    detector = wf.calibrate(world, episodes, false_alarm_rate=0.3, episode_false_alarm_rate=0.5)
    usual = score(world, episodes, seed=1)  # not the noise of scores with seed 0
    expected = calibrate_scores(usual, false_alarm_rate=0.3, episode_false_alarm_rate=0.5)
    np.testing.assert_array_equal(detector.normal, expected.normal)
    assert len(detector(wf.score(world, episodes))) == 4
    with pytest.raises(ValueError, match="between 0 and 1"):  # before anything is scored
        wf.calibrate(world, [], false_alarm_rate=2.0)


# -- promises, by repetition ----------------------------------------------------------------------------------------

REPEATS = 120


def share_within(count: int, rate: float, *, repeats: int = REPEATS) -> bool:
    """Whether so many alarms are no more than a rate of at most `rate` gives: one time in 30,000 by chance."""
    return count <= repeats * rate + 4 * np.sqrt(repeats * rate * (1 - rate))


def streams(num: int, length: int, *, random: np.random.Generator, memory: float) -> list[EpisodeScores]:
    """Episodes of one statistic with a normal marginal, `memory` of whose variance all transitions of one share."""
    shared = random.standard_normal((num, 1))
    values = np.sqrt(memory) * shared + np.sqrt(1 - memory) * random.standard_normal((num, length))
    return [some_scores(reward=v) for v in values]


def test_one_fresh_transition_rings_at_most_at_the_promised_rate_over_calibrations() -> None:
    random = np.random.default_rng(0)
    rang = {"transition": 0, "alone": 0, "episode": 0, "drift": 0}
    for _ in range(REPEATS):
        detector = calibrate_scores(
            streams(18, 6, random=random, memory=0.0), false_alarm_rate=0.05, episode_false_alarm_rate=0.1
        )
        (alarms,) = detector(streams(1, 6, random=random, memory=0.0))
        rang["transition"] += int(alarms.transition[0])
        rang["alone"] += int(alarms.statistic_p_value[alarms.names.index("reward"), 0] <= 0.05)
        rang["episode"] += int(alarms.episode)
        rang["drift"] += int(alarms.drift.any())  # at any time
    for name, rate in {"transition": 0.05, "alone": 0.05, "episode": 0.1, "drift": 0.1}.items():
        assert share_within(rang[name], rate), name
    assert rang["episode"] > REPEATS * 0.1 / 3  # nine episodes in a half: attained exactly


def test_the_strict_promise_needs_episodes() -> None:
    scores = streams(30, 50, random=np.random.default_rng(0), memory=0.5)
    with pytest.raises(ValueError, match=r"false_alarm_rate 0\.01 needs at least 198 normal episodes"):
        calibrate_scores(scores, is_strict=True)
    strict, pooled = (calibrate_scores(scores, is_strict=on, false_alarm_rate=1 / 16) for on in (True, False))
    row = strict.statistics.index("reward")
    share = np.mean([x.reward <= scores[0].reward.min() for x in scores[1::2]])  # episodes are equally long
    found, other = (d(scores[:1])[0].statistic_p_value[row].min() for d in (strict, pooled))
    assert found == pytest.approx((1 + 15 * share) / 16)
    assert other == pytest.approx((1 + 750 * share) / 751)


def test_the_error_of_the_rate_is_that_of_whole_episodes() -> None:
    random = np.random.default_rng(0)
    every = [streams(60, 25, random=random, memory=memory) for memory in (0.0, 1.0)]
    independent, alike = (calibrate_scores(scores, false_alarm_rate=0.1) for scores in every)
    # 75 of 750 ring: sqrt(75) / 750 if each were in an episode of its own; but averages remember.
    assert 0.0115 <= independent.rate_error < 0.04 < 1.4 * independent.rate_error < alike.rate_error
    counts = [(alike.oddness(s) > alike.thresholds.transition["combination"]).sum() for s in every[1][1::2]]
    assert alike.rate_error == pytest.approx(np.sqrt(np.square(counts).sum()) / 750)
    assert alike.episodes_needed == np.ceil(60 * (4 * alike.rate_error / 0.1) ** 2) > 60


def test_an_alarm_says_which_part_and_whether_it_lasts() -> None:
    detector = calibrate_scores(normal_scores(60, 60, seed=0, dependence=0.0))
    (usual,) = normal_scores(1, 60, seed=5, dependence=0.0)
    weak = replace(usual, action_gain=usual.action_gain - 0.8)  # pyright: ignore[reportOptionalOperand]
    (alarms,) = detector([weak])
    assert alarms.parts == ("frame", "action", "motion", "reward", "terminated")
    assert alarms.parts[int(alarms.part_p_value[:, -1].argmin())] == "action"
    np.testing.assert_array_equal(alarms.window_p_value[0], alarms.p_value)
    assert alarms.window_p_value[2, 50:].max() <= 0.01
    reward = usual.reward.copy()
    reward[55] = -40.0
    (alarms,) = detector([replace(usual, reward=reward)])
    assert alarms.parts[int(alarms.part_p_value[:, 55].argmin())] == "reward"
    assert alarms.window_p_value[0, 55] <= 0.01 < alarms.window_p_value[2, 55]


def test_what_came_and_went_is_recent_for_as_long_as_the_window() -> None:
    detector = calibrate_scores(normal_scores(60, 60, seed=0, dependence=0.0))
    (usual,) = normal_scores(1, 60, seed=5, dependence=0.0)
    before = detector([usual])[0].recent_p_value
    reward = usual.reward.copy()
    reward[30] = -40.0
    (alarms,) = detector([replace(usual, reward=reward)])
    np.testing.assert_array_equal(alarms.recent_p_value[0], alarms.p_value)
    np.testing.assert_array_equal(alarms.recent_p_value[:, :30], before[:, :30])
    for row, window in enumerate(WINDOWS):
        assert (alarms.recent_p_value[row, 30 : 30 + window] <= 0.01).all()
    assert alarms.window_p_value[1:, 31:].min() > 0.01  # nothing lasts
    weak = replace(usual, action_gain=usual.action_gain - 0.8)  # pyright: ignore[reportOptionalOperand]
    assert detector([weak])[0].recent_p_value[2, 55:].max() <= 0.01


def test_recent_numbers_add_what_lasts_to_the_oddest_transition() -> None:
    detector = calibrate_scores(normal_scores(20, 60, seed=0, dependence=0.3))
    usual, (episode,) = detector._usual, normal_scores(1, 60, seed=5, dependence=0.3)
    watched = detector.watched(episode)
    combined = usual.combined(watched, usual.nats(watched))
    own = usual.combined(usual.watched, usual.nats(usual.watched))

    def highest(values: np.ndarray, n: int) -> np.ndarray:
        return np.array([values[max(0, t + 1 - n) : t + 1].max() for t in range(len(values))])

    np.testing.assert_array_equal(detector.oddness(episode), combined[0])
    for row, n in ((1, 8), (2, 50)):
        tops = np.concatenate([highest(part, n) for part in np.split(own[0], len(usual.lengths))])
        independent = float(np.maximum(1, usual.lengths / n).sum())
        lasting, single = (Surprise(v, independent=independent, has_ranks=False) for v in (own[row], tops))
        expected = lasting(combined[row]) + single(highest(combined[0], n))
        np.testing.assert_allclose(detector.oddness(episode, window=n), expected, rtol=1e-12)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_every_combination_keeps_the_promise_and_sees_an_outlier(combination: Any) -> None:
    pytest.importorskip("sklearn")
    detector = calibrate_scores(
        normal_scores(400, 5, seed=0, dependence=0.5), false_alarm_rate=0.05, combination=combination
    )
    fresh = normal_scores(400, 5, seed=1, dependence=0.5)
    share = np.concatenate([a.transition for a in detector(fresh)]).mean()
    spread = np.sqrt(0.05 * 0.95 * (1 / 1000 + 1 / 2000))
    assert abs(share - 0.05) < 4 * spread
    odd = {name: getattr(fresh[0], name).copy() for name in PARTS if name != "reconstruction"}
    for name, values in odd.items():  # a forest does not see a few statistics of many
        values[2] = 0.0 if name == "change" else -8.0
    assert detector([replace(fresh[0], **odd)])[0].transition[2]


def test_a_slow_drift_rings_though_no_transition_does() -> None:
    detector = calibrate_scores(normal_scores(60, 60, seed=0, dependence=0.0))
    (usual,) = normal_scores(1, 60, seed=5, dependence=0.0)
    assert not detector([usual])[0].drift.any()
    shift = np.where(np.arange(60) < 20, 0.0, 1.2)
    (alarms,) = detector([replace(usual, action_ratio=usual.action_ratio - shift)])
    assert alarms.drift.any() and alarms.drift.argmax() >= 20
    alone = alarms.statistic_p_value[alarms.names.index("action")] <= detector.false_alarm_rate
    assert alone[20:].mean() < 0.2
    averaged = [alarms.names[i] for i in alarms.statistic[alarms.transition]]
    assert len(averaged) > 10 and sum(name in ("action_8", "action_50") for name in averaged) > len(averaged) / 2


# -- parts and files --------------------------------------------------------------------------------------------------


def test_parts_of_an_episode_are_judged_as_the_whole() -> None:
    detector = calibrate_scores(normal_scores(20, 20, seed=0, dependence=0.3))
    (episode,) = normal_scores(1, 23, seed=2, dependence=0.3)
    whole, watch = detector([episode])[0], Watch(detector)
    parts, at = [], 0
    for length in (1, 1, 5, 12, 4):
        cut = {name: getattr(episode, name)[at : at + length] for name in PARTS}
        parts.append(watch(some_scores(**cut)))
        at += length
    for name in ("transition", "p_value", "statistic", "drift", "drift_p_value"):
        np.testing.assert_allclose(np.concatenate([getattr(p, name) for p in parts]), getattr(whole, name), rtol=1e-9)
    for name in ("surprise", "statistic_p_value", "recent_p_value"):
        joined = np.concatenate([getattr(p, name) for p in parts], axis=1)
        np.testing.assert_allclose(joined, getattr(whole, name), rtol=1e-9)
    assert (parts[-1].episode, parts[-1].episode_p_value) == (whole.episode, whole.episode_p_value)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_detector_comes_back_from_its_file(combination: Any, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    scores = normal_scores(20, 20, seed=0, dependence=0.3)
    detector = calibrate_scores(scores, combination=combination)
    again = Detector.load(detector.save(tmp_path / "new" / "detector.npz"))
    for found, expected in zip(again(scores[:2]), detector(scores[:2]), strict=True):
        np.testing.assert_array_equal(found.p_value, expected.p_value)
        np.testing.assert_array_equal(found.drift_p_value, expected.drift_p_value)
    assert again.thresholds == detector.thresholds


def test_a_detector_refuses_other_worlds_other_draws_and_damaged_files(tmp_path: Path) -> None:
    world, other = tiny_world(), tiny_world(seed=1)
    episodes = [random_episode(world, 4, seed=seed) for seed in range(4)]
    rates: Any = {"false_alarm_rate": 0.3, "episode_false_alarm_rate": 0.5}
    detector = wf.calibrate(world, episodes, **rates)
    path = detector.save(tmp_path / "detector.npz")
    assert Detector.load(path, world=world).world == detector.world != ""
    with pytest.raises(ValueError, match="belongs to the world"):
        Detector.load(path, world=other)
    with pytest.raises(ValueError, match="belongs to the world"):
        detector(score(other, episodes))
    with pytest.raises(ValueError, match="score with num_draws=1"):
        detector(score(world, episodes, num_draws=2))
    with pytest.raises(ValueError, match="lack pixels"):
        detector(score(world, episodes, pixels=False))
    with pytest.raises(ValueError, match="by one world"):
        calibrate_scores(score(world, episodes) + score(other, episodes), **rates)
    with pytest.raises(ValueError, match="did you mean 'copula'"):
        wf.calibrate(world, episodes, combination="copul")  # pyright: ignore[reportArgumentType]
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"PK" + whole[2:90]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot read a detector"):
            Detector.load(path)
    with pytest.raises(FileNotFoundError):
        Detector.load(tmp_path / "none.npz")
