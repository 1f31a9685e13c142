"""Evidence on episodes whose scores are known: what differs is found, what does not is not; nothing is done twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import some_scores, tiny_world, write_dataset

from worldflow import anomaly_evidence
from worldflow.anomaly_cases import CALIBRATION, CONTROL, NORMAL, ONSET, Case, Stage, cases, simple_episodes
from worldflow.anomaly_delays import ALARMS, DelayCurve, delay_curve
from worldflow.anomaly_evidence import AnomalyConfig, gather
from worldflow.anomaly_judge import NOTHING, Evidence, judge
from worldflow.anomaly_report import as_text
from worldflow.anomaly_store import Judged
from worldflow.data import Dataset
from worldflow.envs.collect import collect
from worldflow.metrics import auroc
from worldflow.score_types import EpisodeScores
from worldflow.types import Episode

LENGTH = 40


def some_judged(num: int, *, seed: int, shift: float = 0.0, is_labeled: bool = True) -> Judged:
    """Noise in two statistics and one baseline; the first statistic moves by `shift` from the onset on."""
    random = np.random.default_rng(seed)
    scores, baseline = [], []
    for _ in range(num):
        labels = np.arange(LENGTH) >= ONSET[0]
        reward, action, other = random.standard_normal((3, LENGTH))
        given = {"anomaly": labels} if is_labeled else {}
        scores.append(some_scores(reward=reward - shift * labels, action_ratio=action, **given))
        baseline.append(other)
    frames = random.integers(0, 255, (LENGTH + 1, 8, 8, 3), np.uint8)
    return Judged(scores=scores, baselines={"frame difference": baseline, "prediction error": baseline}, frames=frames)


def known_cases() -> dict[str, tuple[Case, Judged]]:
    def case(name: str, kind: Any = "anomaly", level: str | None = "middle") -> Case:
        return Case(name=name, kind=kind, anomaly=name if kind == "anomaly" else None, level=level, seeds=range(8))

    return {
        CALIBRATION: (case(CALIBRATION, "normal", None), some_judged(40, seed=0, is_labeled=False)),
        NORMAL: (case(NORMAL, "normal", None), some_judged(40, seed=1, is_labeled=False)),
        CONTROL: (case(CONTROL, "control", None), some_judged(20, seed=2, is_labeled=False)),
        "large, middle": (case("large, middle"), some_judged(8, seed=3, shift=6.0)),
        "small, middle": (case("small, middle"), some_judged(8, seed=4, shift=0.7)),
        "simple: black": (case("simple: black", "simple", None), some_judged(8, seed=5, shift=6.0)),
    }


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return judge(known_cases(), protocol={"environment": "toy"}, combinations=("highest", "fisher"))[0]


def test_what_differs_is_found_and_the_rest_is_not(evidence: Evidence) -> None:
    for name in ("reward", "highest", "fisher"):
        assert evidence.auroc("large, middle", name, window=1) > 0.99
        assert evidence.rows["large, middle"].delay[name].median <= 1
    for name in ("action", "frame difference", "prediction error"):
        assert evidence.auroc("large, middle", name, window=1) == pytest.approx(0.5, abs=0.1)
    for name in evidence.combinations:
        assert evidence.auroc(CONTROL, name, window=1) == pytest.approx(0.5, abs=0.08)
    assert evidence.rows[NOTHING].kind == "control" and evidence.rows[NOTHING].separation[1]["reward"].episodes == 8
    rewards = [-s.reward[ONSET[0] :] for s in known_cases()[NORMAL][1].scores]
    expected = auroc(np.concatenate(rewards[8:]), np.concatenate(rewards[:8]))  # the eight seeds of anomalies
    assert evidence.auroc(NOTHING, "reward", window=1) == pytest.approx(expected)
    # Averages see what single transitions hide: a shift of 0.7 is one of two standard deviations of an average of 8.
    single, averaged = (evidence.auroc("small, middle", "reward", window=w) for w in (1, 8))
    assert single == pytest.approx(0.69, abs=0.06)
    assert averaged > 0.9 and evidence.auroc("small, middle", "fisher", window=8) > 0.75
    summary = evidence.summary("fisher", window=8)
    assert summary["behind_baseline"] < 0 and summary["lowest"] <= summary["auroc"]
    assert evidence.false_alarms["fisher"] < 0.04
    for kept in evidence.kept.values():
        np.testing.assert_allclose(kept, evidence.promised, atol=0.12)


def test_delays_fall_as_more_false_alarms_are_allowed(evidence: Evidence) -> None:
    alarms = evidence.delays["middle"]
    assert set(alarms) == set(ALARMS)
    for curve in alarms.values():
        assert all(a >= b for a, b in pairwise(curve.median)) and all(a <= b for a, b in pairwise(curve.found))
        assert all(a <= b for a, b in pairwise(curve.kept)) and curve.kept[0] < 0.15
        assert curve.found[-1] > 0.9
    for name in ("transitions", "drift"):
        np.testing.assert_allclose(alarms[name].kept, evidence.promised, atol=0.25)  # of 40 episodes


def test_delays_are_counted_from_the_first_label() -> None:
    path, label = np.array([0.01, 1.0, 1.0, 0.2, 0.04]), np.arange(5) >= 2
    curve = delay_curve(
        [np.array([1.0, 0.3]), np.array([0.04])], [path, path], [label, label], promised=(0.01, 0.1, 0.3)
    )
    assert curve == DelayCurve(kept=(0.0, 0.5, 1.0), median=(np.inf, 2.0, 1.0), found=(0.0, 1.0, 1.0))
    assert delay_curve([path], [path], [np.zeros(5, bool)], promised=(0.1,)) is None


def test_evidence_is_plain_and_can_be_read(evidence: Evidence) -> None:
    plain = json.loads(json.dumps(evidence.to_plain(), allow_nan=False))
    assert plain["rows"]["large, middle"]["separation"]["8"]["reward"]["auroc"] > 0.99
    lines = as_text(evidence).splitlines()
    assert len(lines) == 1 + len(evidence.rows)
    assert "reward" in next(line for line in lines if line.startswith("large, middle"))


def test_what_was_scored_is_kept_and_belongs_to_its_case(tmp_path: Path) -> None:
    judged, path = some_judged(3, seed=0), tmp_path / "a" / "b.npz"
    judged.save(path, about="this")
    found = Judged.load(path, about="this")
    assert found is not None and len(found.scores) == 3
    np.testing.assert_array_equal(found.scores[2].reward, judged.scores[2].reward)
    np.testing.assert_array_equal(found.baselines["prediction error"][1], judged.baselines["prediction error"][1])
    assert Judged.load(path, about="that") is None
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="made anew"):
        assert Judged.load(path, about="this") is None


def test_cases_share_their_seeds_and_calibrate_with_others() -> None:
    planned = {case.name: case for case in cases(("gravity", "blur"), episodes=2, normal=20)}
    assert len(planned) == 3 + 1 + 6
    assert not set(planned[CALIBRATION].seeds) & set(planned[NORMAL].seeds)
    assert list(planned["blur, weak"].seeds) == list(planned[NORMAL].seeds[:2])
    assert planned["gravity, subtle"].strength == 1.25 and planned["gravity, strong"].strength == "strong"
    assert len({case.about for case in planned.values()}) == len({case.slug for case in planned.values()}) == 10


def test_simple_pictures_begin_at_the_onset() -> None:
    random = np.random.default_rng(0)
    rest = {"rewards": np.zeros(20, np.float32), "terminated": np.zeros(20, bool), "truncated": np.zeros(20, bool)}
    episode = Episode(frames=random.integers(0, 255, (21, 8, 8, 3), np.uint8), actions=np.zeros((20, 1)), **rest)
    mean = np.full((8, 8, 3), 7, np.uint8)
    at = ONSET[0]
    for name, expected in (("black", 0), ("mean frame", 7), ("one color", 7), ("frozen", episode.frames[at])):
        (found,) = simple_episodes([episode], name, mean_frame=mean)
        np.testing.assert_array_equal(found.frames[: at + 1], episode.frames[: at + 1])
        assert (found.frames[at + 1 :] == expected).all()
        assert found.infos["anomaly"].argmax() == at + 1  # the label of the transition that leads to the frame
    (blurred,) = simple_episodes([episode], "blurred", mean_frame=mean)
    assert blurred.frames[at + 1 :].std() < 0.5 * episode.frames.std()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("anomalies") / "data"
    policy = "worldflow.envs.policies:PendulumSwayer"
    env = {"size": 16}
    collect("worldflow/InvertedPendulum-v0", out=out, episodes=3, policy=policy, env_kwargs=env, progress=False)
    return Dataset(out)


def test_anomalies_are_played_in_the_recorded_environment(dataset: Dataset) -> None:
    stage = Stage(dataset, steps=24)
    planned = {case.name: case for case in cases(stage.possible(), episodes=1, normal=20)}

    def first(name: str) -> Episode:
        return next(iter(stage.play(planned[name])))

    normal, odd, other = first(NORMAL), first("sensor_noise, middle"), first(CONTROL)
    labels = odd.infos["anomaly"][1:]
    assert labels.any() and ONSET[0] <= labels.argmax() <= ONSET[1]
    until = int(labels.argmax()) + 1
    np.testing.assert_array_equal(odd.frames[:until], normal.frames[:until])
    np.testing.assert_array_equal(other.actions[: ONSET[0]], normal.actions[: ONSET[0]])
    assert not np.array_equal(other.actions[: len(normal)], normal.actions[: len(other)])
    assert len(normal) <= 24


def test_a_recording_that_says_nothing_of_itself_is_refused(tmp_path: Path) -> None:
    silent = Dataset(write_dataset(tmp_path / "set", lengths=[4, 4]))
    with pytest.raises(ValueError, match="give --env"):
        Stage(silent, steps=24)
    with pytest.raises(ValueError, match="give --policy"):
        Stage(silent, steps=24, env_id="worldflow/InvertedPendulum-v0")
    with pytest.raises(ValueError, match="at least 20"):
        AnomalyConfig(normal=10)
    with pytest.raises(ValueError, match="more than the 20"):
        AnomalyConfig(steps=20)


def test_gathering_goes_on_where_it_stopped(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, calls = tiny_world(action="scalar"), []

    def fake_score(world: Any, episodes: Sequence[Episode], **options: Any) -> list[EpisodeScores]:
        calls.append(len(episodes))
        random = np.random.default_rng(len(calls))
        labels = [e.infos["anomaly"][1:].astype(bool) if "anomaly" in e.infos else None for e in episodes]
        token = [random.standard_normal((len(e), 4)) for e in episodes]
        return [
            some_scores(reward=random.standard_normal(len(e)), token=t, **({} if label is None else {"anomaly": label}))
            for e, t, label in zip(episodes, token, labels, strict=True)
        ]

    real: Callable[..., Any] = judge
    monkeypatch.setattr(anomaly_evidence, "score", fake_score)
    monkeypatch.setattr(anomaly_evidence, "SIMPLE", ("black",))
    monkeypatch.setattr(anomaly_evidence, "judge", lambda *a, **o: real(*a, **o, combinations=("highest", "parts")))
    monkeypatch.setattr(Stage, "possible", lambda self: ("occlusion",))
    config = AnomalyConfig(episodes=1, normal=20, steps=22, baseline_minutes=0)
    evidence = gather(world, dataset, out=tmp_path, config=config, progress=False)
    assert calls == [20, 20, 20, 1, 1, 1, 8]
    assert {"anomalies.html", "anomalies.json", "surprise.gif", "cases"} <= {p.name for p in tmp_path.iterdir()}
    (tmp_path / "cases" / "occlusion_weak.npz").unlink()
    again = gather(world, dataset, out=tmp_path, config=config, progress=False)
    assert len(calls) == 8  # only what was gone
    areas = [found.auroc("occlusion, middle", "parts", window=1) for found in (evidence, again)]
    assert areas[0] == areas[1]
