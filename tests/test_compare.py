"""A comparison plays the same seeds for all, goes on where it stopped, and writes a page and all numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from builders import tiny_world
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from lamp import Lamp, Press

from worldflow import cli
from worldflow.agents import evidence_report
from worldflow.agents.contenders import Recordings, read_contender
from worldflow.agents.evaluate import CompareConfig, compare
from worldflow.agents.standings import Estimate, PlayedEpisode, Standing, play_episode
from worldflow.checkpoint import load, save
from worldflow.envs.collect import record_episode
from worldflow.fingerprint import episode_hash

RECORDED = {"policy": "smooth", "random_fraction": 0.0}
CONFIG = CompareConfig(episodes=2, seed=7, starts=2, horizon=3, noise=(0.0, 0.5))


def half(observation: np.ndarray, info: Mapping[str, Any], generator: np.random.Generator) -> np.ndarray:
    return np.array([0.5, 0.0], np.float32)


HALF = f"half={__name__}:half"


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A world of random weights that says it was learned from 123 transitions of `smooth` in the lamp."""
    monkeypatch.setitem(gym.registry, "Lamp-v0", EnvSpec("Lamp-v0", entry_point="lamp:Lamp", max_episode_steps=8))
    monkeypatch.chdir(tmp_path)
    Lamp.steps_in_all = 0
    training = {"transitions": 123, "recordings": [RECORDED], "episode_hashes": []}
    yield str(save(tiny_world(shown=True), tmp_path / "run", training=training))


def contender(words: str, run: str, **options: Any) -> Any:
    place = {"folder": Path("out"), "make_env": Lamp, "progress": False, **options}
    return read_contender(words, world=load(run), run=run, env=Lamp(), **place)


def test_returns_lengths_and_differences_are_those_of_the_episodes() -> None:
    played, episode = play_episode(Press(0.1), Lamp(), seed=3, max_steps=4)
    assert played.total == pytest.approx(0.1 + 0.2 + 0.3 + 0.4)
    assert (played.seed, played.length, played.is_terminated) == (3, 4, False)
    assert played.seconds_per_decision > 0 and len(episode) == 4

    def standing(name: str, totals: dict[int, float]) -> Standing:
        episodes = [
            PlayedEpisode(seed=s, total=t, length=1, is_terminated=True, seconds_per_decision=0.0)
            for s, t in totals.items()
        ]
        return Standing(name=name, about="", real_steps=None, episodes=episodes)

    a, b = standing("a", {1: 5.0, 2: 105.0, 3: 1.0}), standing("b", {2: 100.0, 1: 0.0})
    assert a.ahead_of(b) == Estimate(value=5.0, low=5.0, high=5.0)  # paired by seed: no spread of starts is left
    assert b.mean.value == 50.0 and b.mean.low == 0.0 and b.mean.high == 100.0
    assert (b.ahead_of(a).text(), Estimate(value=2.0, low=None, high=None).text()) == ("-5 (-5 to -5)", "2")
    with pytest.raises(ValueError, match="a and c played no seed both"):
        a.ahead_of(standing("c", {9: 0.0}))


def test_contenders_are_who_their_words_say(run: str) -> None:
    assert contender(HALF, run).name == "half"
    recorded = contender("recorded", run)
    assert (recorded.real_steps, recorded.about) == (0, "made the recordings: smooth")
    planner = contender("p=plan --horizon 2 --candidates 4 --planner cem", run)
    assert (planner.name, planner.real_steps, planner.is_planner) == ("p", 123, True)
    assert "2 steps ahead, 4 candidates" in planner.about
    with pytest.raises(ValueError, match="did you mean 'random'"):
        contender("rundom", run)
    with pytest.raises(ValueError, match="'random' takes none"):
        contender("random --loud", run)
    with pytest.raises(FileNotFoundError, match="no such file"):
        contender("agent.zip", run)
    two = [RECORDED, {"policy": "random", "random_fraction": 0.0}]
    save(load(run), "both", training={"transitions": 5, "recordings": two})
    with pytest.raises(ValueError, match="do not say which one policy"):
        contender("recorded", "both")
    assert Recordings.of_run("worldflow/Reacher") == Recordings(steps=50_000, policy="smooth", random_fraction=0.1)


def without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second."""
    monkeypatch.setattr(evidence_report, "write_report", lambda evidence, path: path)


def test_all_play_the_same_seeds_once_and_later_calls_only_what_is_missing(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"out": "out", "env": "Lamp-v0", "progress": False}
    evidence = compare(run, contenders=["random", HALF], config=CONFIG, **options)
    half = evidence.standing("half")
    assert [one.total for one in half.episodes] == pytest.approx([4.0, 4.0])
    assert [one.seed for one in evidence.standing("random").episodes] == [7, 8]
    assert evidence.film[0] == "half" and evidence.film[1].shape == (9, 16, 16, 3)
    assert evidence.agreement is not None
    assert [one.name for one in evidence.agreement.policies] == ["random", "half", "half, 50% random"]
    assert evidence.agreement.policies[1].real[:, -1] == pytest.approx(1.5)

    plain = json.loads(Path("out/evidence.json").read_text())
    assert plain["protocol"]["transitions that the world was learned from"] == 123
    ahead = plain["differences"]["half"]["random"]["value"]
    assert ahead == pytest.approx(4.0 - evidence.standing("random").mean.value)
    assert "data:image" in Path("out/report.html").read_text()

    without_a_page(monkeypatch)
    before = Lamp.steps_in_all
    again = compare(run, contenders=["random", HALF], config=CONFIG, **options)
    assert Lamp.steps_in_all == before + 2 * 2 + 2 * (2 + 3)  # the starts, and doing nothing from each
    assert again.to_plain() == evidence.to_plain()
    more = CompareConfig(episodes=3, seed=7, starts=0)
    with pytest.raises(ValueError, match="begun with another starts and another horizon"):
        compare(run, contenders=["random"], config=more, **options)
    before = Lamp.steps_in_all
    longer = CompareConfig(episodes=3, seed=7, starts=2, horizon=3, noise=(0.0,))
    assert len(compare(run, contenders=[HALF], config=longer, **options).standings[0].episodes) == 3
    assert Lamp.steps_in_all == before + 8


def dial() -> gym.Env[np.ndarray, np.ndarray]:
    """The lamp, observed as three numbers."""
    space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    return gym.wrappers.TransformObservation(Lamp(), lambda frame: frame[0, 0] / 255, space)


def test_agents_of_vectors_are_compared_without_a_film(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(gym.registry, "Dial-v0", EnvSpec("Dial-v0", entry_point=f"{__name__}:dial"))
    world = save(tiny_world(numbers=3), tmp_path / "vectors")
    evidence = compare(world, out="out", env="Dial-v0", contenders=["random", HALF], config=CONFIG, progress=False)
    assert evidence.standing("half").mean.value == pytest.approx(4.0)
    page = Path("out/report.html").read_text()
    assert "Imagined against real return" in page and "The best contender" not in page


def test_what_was_played_before_something_broke_is_kept(run: str) -> None:
    config = CompareConfig(episodes=3, starts=0)
    options: dict[str, Any] = {"contenders": [HALF], "out": "out", "config": config, "progress": False}
    with pytest.raises(RuntimeError, match="OSError: the bulb is broken in the episode of seed 1001; 1 finished"):
        compare(run, env="Lamp-v0", env_args={"fails_at": 10}, **options)
    kept = json.loads(Path("out/records.json").read_text())
    assert len(kept["episodes"]["half"]["episodes"]) == 1


def test_episodes_that_the_world_was_trained_on_prove_nothing(run: str) -> None:
    seen = episode_hash(record_episode(Lamp(), half, seed=8))
    save(load(run), "trained", training={"episode_hashes": [seen]})
    with pytest.raises(ValueError, match="was trained on the episode of seed 8 as half plays it"):
        compare("trained", out="out", env="Lamp-v0", contenders=[HALF], config=CONFIG, progress=False)


def test_bad_options_are_named_before_anything_is_played(run: str) -> None:
    options: dict[str, Any] = {"out": "out", "env": "Lamp-v0", "progress": False}
    with pytest.raises(ValueError, match="different ones, at least one"):
        compare(run, contenders=["random", "random"], **options)
    with pytest.raises(ValueError, match="need different names"):
        compare(run, contenders=["a=random", "a=smooth"], **options)
    with pytest.raises(ValueError, match="reference must be one of the contenders"):
        compare(run, contenders=["random"], config=CompareConfig(reference="ppo"), **options)
    with pytest.raises(ValueError, match="does not fit the world"):
        compare(run, out="out", contenders=["random"], env="worldflow/InvertedPendulum-v0", progress=False)
    with pytest.raises(ValueError, match="noise must hold shares"):
        CompareConfig(noise=(1.5,))
    with pytest.raises(ValueError, match="2 steps before a start leave at most 6 for the horizon, got 7"):
        compare(run, contenders=["random", HALF], config=CompareConfig(episodes=1, starts=1, horizon=7), **options)
    assert Lamp.steps_in_all == 16  # of that last comparison


def test_the_command_says_what_came_out(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_a_page(monkeypatch)
    words = ["compare", run, "--out", "out", "--env", "Lamp-v0", "--episodes", "2", "--starts", "0"]
    assert cli.main([*words, "--contenders", HALF, "plan --horizon 1 --candidates 2 --iterations 1"]) == 0
    out = capsys.readouterr().out
    assert "half: 4 (4 to 4)" in out and "plan --horizon 1" in out and "report: out/report.html" in out
    assert cli.main([*words, "--contenders", "nobody"]) == 1
    assert "unknown policy 'nobody'" in capsys.readouterr().err
