"""Recording: nothing is shifted, nothing finished is lost, and the same seed records the same data."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import minari
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.serialization import serialize_space

from worldflow.data import Dataset, windows
from worldflow.envs.collect import collect, make_pixel_env, record_episode
from worldflow.envs.recorder import Recorder
from worldflow.index import SplitRule
from worldflow.types import Episode

LEVELS = 40
"""Actions that pixels can tell apart."""


class CountingEnv(gym.Env[np.ndarray, Any]):
    """Pixels encode the step counter (red), the last action (green, 255 before any) and the seed (blue).

    The reward is `step + action / 100`, with the step that it leads to. Episodes end by themselves, by termination
    or by truncation.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, *, is_discrete: bool = True, delay: float = 0.0, length: int = 30) -> None:
        self.observation_space = spaces.Box(0, 255, (6, 5, 3), np.uint8)
        self.action_space = spaces.Discrete(LEVELS) if is_discrete else spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.delay, self.length = delay, length

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.step_count, self.level = 0, 255
        self.blue = int(self.np_random.integers(256))
        self.last_step = int(self.np_random.integers(3, self.length))
        self.terminates = bool(self.np_random.integers(2))
        return self._observe(), {"count": 0, "where": {"twice": np.zeros(2)}}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(self.delay)
        assert self.action_space.contains(action)
        self.step_count += 1
        self.level = level(action)
        ends = self.step_count == self.last_step
        info = {
            "count": self.step_count,
            "where": {"twice": np.full(2, 2.0 * self.step_count)},
            "only_steps": 0.5,
            "kind": "normal",
            "sometimes": self.step_count if self.step_count > 1 else None,
            "object": object(),
        }
        reward = self.step_count + self.level / 100
        return self._observe(), reward, ends and self.terminates, ends and not self.terminates, info

    def _observe(self) -> np.ndarray:
        return np.broadcast_to(np.array([self.step_count, self.level, self.blue], np.uint8), (6, 5, 3)).copy()


class VectorEnv(CountingEnv):
    """The same, seen as numbers, with a picture on demand."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, *, render_mode: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0.0, 255.0, (3,), np.float32)

    def _observe(self) -> np.ndarray:
        return np.array([self.step_count, self.level, self.blue], np.float32)

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return np.broadcast_to(self._observe().astype(np.uint8), (12, 10, 3)).copy()


def level(action: Any) -> int:
    """What the pixels show of an action."""
    return int(np.round((np.ravel(action)[0] + 1) * 100)) if np.ndim(action) else int(action)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    for env in (CountingEnv, VectorEnv):
        gym.register(f"{env.__name__}-v0", f"{__name__}:{env.__name__}")
    yield
    for env in (CountingEnv, VectorEnv):
        del gym.registry[f"{env.__name__}-v0"]


def record(out: Path, **options: Any) -> Path:
    return collect(
        options.pop("env", None) or CountingEnv(),
        **{"out": out, "episodes": 6, "policy": "smooth", "progress": False, **options},
    )


def files(out: Path) -> list[str]:
    return sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())


COMPLETE = ["data/main_data.hdf5", "data/metadata.json"]


class TestAlignment:
    @pytest.mark.parametrize("is_discrete", [True, False])
    @pytest.mark.parametrize("length", [1, 6, 50])
    def test_pixels_tell_the_step_and_the_last_action(self, tmp_path: Path, is_discrete: bool, length: int) -> None:
        dataset = Dataset(record(tmp_path / "proof", env=CountingEnv(is_discrete=is_discrete)))
        covered = {episode: np.zeros(n, int) for episode, n in enumerate(dataset.lengths)}
        ends = 0
        for clip in windows(dataset, length, batch_size=16, split="all"):
            for row in range(len(clip.episode)):
                episode, start = int(clip.episode[row]), int(clip.start[row])
                num = int(clip.valid[row].sum())
                assert num == min(length, dataset.lengths[episode] - start)
                frames = clip.frames[row].numpy()
                assert frames[: num + 1, 0, 0, 0].tolist() == list(range(start, start + num + 1))
                acted = [level(action) for action in clip.actions[row, :num].numpy()]
                assert frames[1 : num + 1, 0, 0, 1].tolist() == acted
                if start == 0:
                    assert frames[0, 0, 0, 1] == 255  # the reset's frame, before any action
                expected = [start + t + 1 + acted[t] / 100 for t in range(num)]
                np.testing.assert_allclose(clip.rewards[row, :num], expected, rtol=1e-6)  # float32
                assert len(set(frames[:, 0, 0, 2].tolist())) == 1
                is_end = start + num == dataset.lengths[episode]
                over = (clip.terminated[row] | clip.truncated[row]).numpy()
                assert over.tolist() == [False] * (num - 1) + [is_end] + [False] * (length - num)
                covered[episode][start : start + num] += 1
                ends += is_end
        assert ends == len(dataset)
        assert all((count > 0).all() for count in covered.values())

    def test_both_kinds_of_end_are_told_apart(self, tmp_path: Path) -> None:
        dataset = Dataset(record(tmp_path / "ends", episodes=12))
        ends = [(bool(e.terminated[-1]), bool(e.truncated[-1])) for e in dataset]
        assert set(ends) == {(True, False), (False, True)}

    def test_own_limit_truncates(self, tmp_path: Path) -> None:
        dataset = Dataset(record(tmp_path / "limit", max_steps=2))
        assert dataset.lengths.tolist() == [2] * 6
        assert all(e.truncated.tolist() == [False, True] and not e.terminated.any() for e in dataset)

    def test_actions_are_recorded_as_the_environment_got_them(self, tmp_path: Path) -> None:
        out = record(
            tmp_path / "clipped",
            env=CountingEnv(is_discrete=False),
            policy=lambda *_: np.array([5.0, -5.0]),
            episodes=1,
        )
        assert (Dataset(out)[0].actions == np.array([1.0, -1.0], np.float32)).all()

    def test_infos_have_a_row_per_frame(self, tmp_path: Path) -> None:
        episode = Dataset(record(tmp_path / "infos", episodes=1))[0]
        steps = np.arange(len(episode) + 1)
        assert set(episode.infos) == {"count", "where", "only_steps", "kind"}
        np.testing.assert_array_equal(episode.infos["count"], steps)
        np.testing.assert_array_equal(episode.infos["where"]["twice"], np.stack([2.0 * steps] * 2, axis=1))
        assert np.isnan(episode.infos["only_steps"][0]) and (episode.infos["only_steps"][1:] == 0.5).all()
        assert episode.infos["kind"].tolist() == [""] + ["normal"] * len(episode)


class TalkingEnv(CountingEnv):
    """Says what `say(step)` says, where that is not None."""

    say: Callable[[int], Any] = staticmethod(lambda _: "a counter counts")

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        frame, info = super().reset(**options)
        return frame, self._with_caption(info)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        *rest, info = super().step(action)
        return *rest, self._with_caption(info)  # pyright: ignore[reportReturnType]

    def _with_caption(self, info: dict[str, Any]) -> dict[str, Any]:
        said = self.say(self.step_count)
        return info if said is None else {**info, "caption": said}


class TestCaptions:
    def test_captions_of_shapes_survive_recording(self, tmp_path: Path) -> None:
        out = record(tmp_path / "shapes", env="worldflow/MovingShapes-v0", policy="random", episodes=8)
        dataset = Dataset(out)
        assert dataset.lengths.tolist() == [16] * 8 and dataset.spec.frame_shape == (32, 32, 3)
        found = [dataset.caption(number) for number in range(8)]
        env = gym.make("worldflow/MovingShapes-v0")
        metadata = list(minari.MinariDataset(out / "data").storage.get_episode_metadata(range(8)))
        for caption, episode, theirs in zip(found, dataset, metadata, strict=True):
            frame, info = env.reset(seed=theirs["seed"])
            assert caption == episode.caption == theirs["caption"] == info["caption"]
            np.testing.assert_array_equal(frame, episode.frames[0])
            np.testing.assert_array_equal(info["state"], episode.infos["state"][0])
            assert set(episode.infos) == {"state"}
        assert len(set(found)) > 4
        record(tmp_path / "shapes", env="worldflow/MovingShapes-v0", policy="random", episodes=1, on_existing="append")
        assert [Dataset(out).caption(number) for number in range(8)] == found
        assert Dataset(out).caption(8) is not None

    @pytest.mark.parametrize(
        ("say", "caption", "infos"),
        [
            (lambda _: "a counter counts", "a counter counts", None),
            (lambda step: "at the start" if step == 0 else None, "at the start", None),
            (lambda step: "on the way" if step > 0 else None, "on the way", None),
            (lambda step: f"step {step}", None, "step 2"),
            (lambda _: "", None, ""),
            (lambda step: step, None, 2),
            (lambda _: None, None, None),
        ],
    )
    def test_one_text_for_all_steps_is_the_caption(
        self, tmp_path: Path, say: Callable[[int], Any], caption: str | None, infos: object
    ) -> None:
        env = TalkingEnv()
        env.say = say
        episode = Dataset(record(tmp_path / "some", env=env, episodes=1))[0]
        assert episode.caption == caption
        assert episode.infos.get("caption", [None] * 3)[2] == infos  # other things stay where they were


class TestMinari:
    def test_minari_opens_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
        out = record(tmp_path / "any name", env="worldflow/Reacher-v0", env_kwargs={"size": 32}, max_steps=4)
        for found in (minari.load_dataset("any name"), minari.MinariDataset(out / "data")):
            assert found.spec.dataset_id == "any-name-v0"
            assert (found.total_episodes, found.total_steps) == (6, 24)
            ours = Dataset(out)[5]
            np.testing.assert_array_equal(found[5].observations, ours.frames)
            np.testing.assert_array_equal(found[5].infos["state"], ours.infos["state"])
            assert found.env_spec is not None and found.env_spec.kwargs["size"] == 32
            # The recorded seed and actions play the recorded episode again.
            (metadata,) = found.storage.get_episode_metadata([5])
            env = found.recover_environment()
            assert env.reset(seed=metadata["seed"])[0].tolist() == ours.frames[0].tolist()
            for t, action in enumerate(ours.actions):
                frame, reward, *_ = env.step(action)
                assert frame.tolist() == ours.frames[t + 1].tolist() and reward == pytest.approx(ours.rewards[t])
            env.close()
        assert files(out) == COMPLETE

    def test_how_it_was_recorded_is_recorded(self, tmp_path: Path) -> None:
        split = SplitRule(fraction=0.4, seed=3)
        out = record(tmp_path / "pendulum-v3", seed=5, random_fraction=0.25, split=split)
        dataset = Dataset(out)
        assert dataset.held_out == split
        assert dataset.spec.dataset_id == "pendulum-v3"
        (recording,) = dataset.metadata["worldflow"]["recordings"]
        assert recording["policy"] == "smooth" and recording["seed"] == 5 and recording["random_fraction"] == 0.25
        found = list(minari.MinariDataset(out / "data").storage.get_episode_metadata(range(6)))
        assert len({episode["seed"] for episode in found}) == 6
        assert all(episode["policy"] == "smooth" for episode in found)

    def test_environment_that_shows_numbers_is_rendered(self, tmp_path: Path) -> None:
        for env in ("VectorEnv-v0", VectorEnv(render_mode="rgb_array")):
            out = record(tmp_path / str(type(env)), env=env, size=8, episodes=2)
            dataset = Dataset(out)
            assert dataset.spec.frame_shape == (8, 8, 3)
            for episode in dataset:
                np.testing.assert_array_equal(episode.infos["state"][:, 0], np.arange(len(episode) + 1))
                np.testing.assert_array_equal(episode.frames[:, 4, 4], episode.infos["state"].astype(np.uint8))

    def test_specification_that_is_no_json_is_left_out_aloud(self, tmp_path: Path) -> None:
        env = CountingEnv()
        env.spec = EnvSpec("Odd-v0", entry_point=lambda **options: CountingEnv(**options))
        with pytest.warns(UserWarning, match="specification is not recorded"):
            assert Dataset(record(tmp_path / "odd", env=env)).spec.env_spec is None


def contents(out: Path) -> list[Any]:
    return [[e.frames.tolist(), e.actions.tolist(), e.rewards.tolist(), e.terminated.tolist()] for e in Dataset(out)]


class TestSeeds:
    @pytest.mark.parametrize("policy", ["random", "smooth"])
    def test_same_seed_same_data(self, tmp_path: Path, policy: str) -> None:
        first, second, other = (
            contents(record(tmp_path / f"{number}", policy=policy, seed=seed, random_fraction=0.3))
            for number, seed in enumerate((7, 7, 8))
        )
        assert first == second
        assert all(ours != theirs for ours, theirs in zip(first, other, strict=True))

    def test_episodes_differ(self, tmp_path: Path) -> None:
        found = contents(record(tmp_path / "some"))
        assert all(found[i] != found[j] for i in range(6) for j in range(i))

    def test_continued_is_the_same_as_uninterrupted(self, tmp_path: Path) -> None:
        whole = contents(record(tmp_path / "whole", episodes=6))
        record(tmp_path / "parts", episodes=2)
        record(tmp_path / "parts", episodes=1, on_existing="append")
        out = record(tmp_path / "parts", episodes=3, on_existing="append")
        assert contents(out) == whole
        assert files(out) == COMPLETE
        assert [r["first_episode"] for r in Dataset(out).metadata["worldflow"]["recordings"]] == [0, 2, 3]

    def test_global_randomness_is_untouched(self, tmp_path: Path) -> None:
        before = np.random.get_state()[1].copy()  # pyright: ignore[reportArgumentType, reportCallIssue, reportIndexIssue]
        record(tmp_path / "some")
        assert (np.random.get_state()[1] == before).all()  # pyright: ignore[reportArgumentType, reportCallIssue, reportIndexIssue]


class TestExisting:
    def test_refused_by_default(self, tmp_path: Path) -> None:
        before = contents(record(tmp_path / "some"))
        with pytest.raises(FileExistsError, match=r"6 episodes; .*--append.*--overwrite"):
            record(tmp_path / "some", seed=1)
        assert contents(tmp_path / "some") == before

    def test_overwrite_replaces(self, tmp_path: Path) -> None:
        record(tmp_path / "some", seed=1, episodes=3)
        fresh = contents(record(tmp_path / "fresh", episodes=2))
        assert contents(record(tmp_path / "some", episodes=2, on_existing="overwrite")) == fresh

    def test_overwrite_that_records_nothing_destroys_nothing(self, tmp_path: Path) -> None:
        before = contents(record(tmp_path / "some"))
        with pytest.raises(ZeroDivisionError):
            record(tmp_path / "some", policy=lambda *_: 1 // 0, on_existing="overwrite")
        assert contents(tmp_path / "some") == before

    def test_append_needs_the_same_environment(self, tmp_path: Path) -> None:
        record(tmp_path / "some")
        with pytest.raises(ValueError, match="another action space"):
            record(tmp_path / "some", env=CountingEnv(is_discrete=False), on_existing="append")

    def test_folder_that_is_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "thesis.tex").write_text("years of work")
        for on_existing in ("error", "append", "overwrite"):
            with pytest.raises(FileExistsError, match="holds no data set"):
                record(tmp_path, on_existing=on_existing)
        assert files(tmp_path) == ["data/thesis.tex"]


SLOW = """
import sys
sys.path.insert(0, {folder!r})
from test_collect import CountingEnv
from worldflow.envs.collect import collect
collect(CountingEnv(delay=0.01, length=8), out={out!r}, episodes=10_000, progress=False)
"""


class TestStopped:
    @pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
    def test_finished_episodes_stay(self, tmp_path: Path, name: str) -> None:
        out = tmp_path / "stopped"
        code = SLOW.format(folder=str(Path(__file__).parent), out=str(out))
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        metadata = out / "data" / "metadata.json"
        limit = time.monotonic() + 60
        while not metadata.exists() or json.loads(metadata.read_text())["total_episodes"] < 3:
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.02)
        process.send_signal(getattr(signal, name))
        error = process.communicate(timeout=60)[1]
        num = json.loads(metadata.read_text())["total_episodes"]
        assert num >= 3
        assert len(list(minari.MinariDataset(out / "data"))) == num
        before = contents(out)
        assert len(before) == num
        if name == "SIGINT":
            assert process.returncode == -signal.SIGINT
            assert f"the {num} finished episodes in {out} are kept" in error
            assert files(out) == COMPLETE
        record(out, env=CountingEnv(length=8), policy="random", episodes=2, on_existing="append")
        assert contents(out)[:-2] == before and len(Dataset(out)) == num + 2
        assert files(out) == COMPLETE

    def test_interrupt_says_what_is_kept(self, tmp_path: Path) -> None:
        calls = iter(range(40))

        def interrupted(*_: object) -> int:
            if next(calls) == 39:
                raise KeyboardInterrupt
            return 1

        with pytest.raises(KeyboardInterrupt, match=r"interrupted; the \d+ finished episodes in .* are kept"):
            record(tmp_path / "some", policy=interrupted)
        assert 0 < len(Dataset(tmp_path / "some")) < 6
        assert files(tmp_path / "some") == COMPLETE

    def test_error_in_the_environment_keeps_what_was_finished(self, tmp_path: Path) -> None:
        env = CountingEnv()
        reset, resets = env.reset, iter(range(9))

        def broken(**options: Any) -> Any:
            if next(resets) == 3:
                raise RuntimeError("simulator crashed")
            return reset(**options)

        env.reset = broken
        with pytest.raises(RuntimeError, match="simulator crashed") as error:
            record(tmp_path / "some", env=env)
        assert "the 3 finished episodes in" in error.value.__notes__[0]
        assert len(Dataset(tmp_path / "some")) == 3

    def test_nothing_is_written_before_an_episode_is_finished(self, tmp_path: Path) -> None:
        for options in ({"policy": "smoth"}, {"policy": lambda *_: LEVELS}, {"policy": lambda *_: 0.5}):
            with pytest.raises(ValueError):
                record(tmp_path / "never", **options)
        assert list(tmp_path.iterdir()) == []


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond `size` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFullDisk:
    @staticmethod
    def recorder(out: Path, **options: Any) -> Recorder:
        return Recorder(
            out,
            observation_space=str(serialize_space(spaces.Box(0, 255, (32, 32, 3), np.uint8))),
            action_space=str(serialize_space(spaces.Discrete(2))),
            **options,
        )

    @staticmethod
    def episode(length: int) -> Episode:
        noise = np.random.default_rng(0).integers(256, size=(length + 1, 32, 32, 3), dtype=np.uint8)
        flags = np.zeros(length, bool)
        return Episode(
            frames=noise, actions=np.zeros(length, int), rewards=np.ones(length), terminated=flags, truncated=flags
        )

    def test_finished_episodes_stay_and_go_on_later(self, tmp_path: Path) -> None:
        recorder = self.recorder(tmp_path / "full")
        with file_size_limit(40_000):
            recorder.add(self.episode(3), seed=0)
            with pytest.raises(OSError, match=r"episode 1 .*1 episodes written before stay readable.*--append"):
                recorder.add(self.episode(30), seed=1)
        assert Dataset(tmp_path / "full").lengths.tolist() == [3]
        assert not [file for file in files(tmp_path) if "tmp" in file]
        again = self.recorder(tmp_path / "full", on_existing="append")
        again.add(self.episode(30), seed=1)
        again.finish()
        assert Dataset(tmp_path / "full").lengths.tolist() == [3, 30]
        assert files(tmp_path / "full") == COMPLETE

    def test_no_room_to_join(self, tmp_path: Path) -> None:
        recorder = self.recorder(tmp_path / "full")
        for seed in range(4):
            recorder.add(self.episode(6), seed=seed)
        with file_size_limit(60_000), pytest.raises(OSError, match="4 episodes written before stay readable"):
            recorder.finish()
        assert Dataset(tmp_path / "full").lengths.tolist() == [6] * 4
        assert not [file for file in files(tmp_path) if "tmp" in file]
        recorder.finish()
        assert Dataset(tmp_path / "full").lengths.tolist() == [6] * 4
        assert files(tmp_path / "full") == COMPLETE

    def test_disk_without_hard_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*_: object) -> None:
            raise OSError("not supported")

        before = contents(record(tmp_path / "some", episodes=2))
        monkeypatch.setattr(os, "link", refused)
        assert contents(record(tmp_path / "some", episodes=1, on_existing="append"))[:2] == before


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"env": "worldflow/Recher-v0"}, r"unknown environment.*did you mean 'worldflow/Reacher-v0'"),
            ({"env": "Qzx-v0"}, "module:id"),
            ({"env": "no_such_module:Thing-v0"}, "no module 'no_such_module'"),
            ({"env": "worldflow/Reacher-v0", "env_kwargs": {"sice": 3}}, "does not take the arguments"),
            ({"env_kwargs": {"size": 3}}, "env_kwargs are arguments for an id"),
            ({"policy": "smoth"}, "did you mean 'smooth'"),
            ({"episodes": 0}, "episodes must be at least 1"),
            ({"max_steps": 0}, "max_steps"),
            ({"seed": -1}, "seed"),
            ({"random_fraction": 1.5}, "random_fraction"),
            ({"on_existing": "merge"}, "on_existing"),
        ],
    )
    def test_refuses(self, tmp_path: Path, options: Mapping[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            record(tmp_path / "never", **options)
        assert list(tmp_path.iterdir()) == []

    def test_environment_without_a_picture(self, tmp_path: Path) -> None:
        class Blind(VectorEnv):
            metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

        gym.registry["Blind-v0"] = replace(gym.spec("VectorEnv-v0"), id="Blind-v0", entry_point=Blind)
        try:
            with pytest.raises(ValueError, match="neither observes uint8 images nor renders"):
                make_pixel_env("Blind-v0")
        finally:
            del gym.registry["Blind-v0"]
        with pytest.raises(TypeError, match="an id or a Gymnasium environment"):
            make_pixel_env(3)  # pyright: ignore[reportArgumentType]

    def test_environment_that_breaks_its_word(self) -> None:
        env = CountingEnv()
        env._observe = lambda: np.zeros((6, 5, 3))
        with pytest.raises(ValueError, match="returned float64"):
            record_episode(env, lambda *_: 1, seed=0)
        env = CountingEnv()
        step = env.step
        env.step = lambda action: (step(action)[0], float("nan"), False, False, {})
        with pytest.raises(ValueError, match="reward nan at step 0"):
            record_episode(env, lambda *_: 1, seed=0)
