"""Reading: windows are aligned, splits are stable, and a broken data set says what is wrong with it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.serialization import serialize_space

from worldflow.data import Dataset, as_episode, gather, read_episodes, windows
from worldflow.envs.recorder import Recorder
from worldflow.index import SplitRule, sample_index, window_index
from worldflow.spaces import action_spec, check_compatible, frame_shape
from worldflow.types import Clip, DataSpec, Episode

LENGTHS = (5, 1, 12, 3, 7, 9, 4, 6)
PIXELS = spaces.Box(0, 255, (4, 6, 3), np.uint8)
FORCE = spaces.Box(-2.0, 2.0, (2,), np.float32)


def make_episode(number: int, length: int) -> Episode:
    """Frame `t` shows `t`, the action before it and the episode's number; rewards tell the transition."""
    actions = np.stack([np.arange(length), np.full(length, number)], axis=1) / 64.0
    frames = np.zeros((length + 1, 4, 6, 3), dtype=np.uint8)
    frames[:, ..., 0] = np.arange(length + 1)[:, None, None]
    frames[1:, ..., 1] = np.arange(1, length + 1)[:, None, None] + 100
    frames[:, ..., 2] = number
    return Episode(
        frames=frames,
        actions=actions.astype(np.float32),
        rewards=(np.arange(length) + 1000.0 * number).astype(np.float32),
        terminated=np.arange(length) == length - 1,
        truncated=np.zeros(length, dtype=bool),
        infos={"state": np.arange(length + 1.0)[:, None], "label": np.array(["normal"] * length + ["odd"])},
    )


def write(path: Path, episodes: list[Episode], **options: Any) -> Path:
    recorder = Recorder(
        path,
        **{"observation_space": str(serialize_space(PIXELS)), "action_space": str(serialize_space(FORCE)), **options},
    )
    for number, episode in enumerate(episodes):
        recorder.add(episode, seed=number)
    recorder.finish()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    episodes = [make_episode(number, length) for number, length in enumerate(LENGTHS)]
    return write(tmp_path_factory.mktemp("data") / "counting", episodes)


@pytest.fixture
def dataset(path: Path) -> Dataset:
    return Dataset(path)


def assert_aligned(clip: Clip, lengths: np.ndarray) -> None:
    """Everything a window says about its place is what `make_episode` wrote there."""
    step = clip.start[:, None] + torch.arange(clip.rewards.shape[1])
    length = torch.from_numpy(lengths)[clip.episode][:, None]
    assert torch.equal(clip.valid, step < length)
    shown = torch.minimum(torch.cat([clip.start[:, None], step + 1], dim=1), length)
    assert torch.equal(clip.frames[:, :, 0, 0, 0].long(), shown)
    assert torch.equal(clip.frames[:, :, 3, 5, 2].long(), clip.episode[:, None].expand_as(shown))
    acted = torch.where(shown > 0, shown + 100, 0)
    assert torch.equal(clip.frames[:, :, 2, 2, 1].long(), acted)
    assert torch.equal(clip.actions[..., 0] * 64, torch.minimum(step, length - 1).float())
    assert torch.equal(clip.rewards, torch.where(clip.valid, step + 1000.0 * clip.episode[:, None], 0.0))
    assert torch.equal(clip.terminated, step == length - 1)
    assert not clip.truncated.any()


@pytest.mark.parametrize("length", [1, 4, 20])
def test_windows_are_aligned_and_complete(dataset: Dataset, length: int) -> None:
    seen = []
    for clip in windows(dataset, length, batch_size=7, split="all", generator=torch.Generator().manual_seed(0)):
        assert_aligned(clip, dataset.lengths)
        seen += list(zip(clip.episode.tolist(), clip.start.tolist(), strict=True))
    expected = [(e, s) for e, n in enumerate(LENGTHS) for s in range(max(1, n - length + 1))]
    assert sorted(seen) == expected
    assert seen != expected  # shuffled


def test_clip_has_the_types_of_the_house(dataset: Dataset) -> None:
    clip = next(windows(dataset, 3, batch_size=2))
    assert clip.frames.dtype == torch.uint8 and clip.frames.shape == (2, 4, 4, 6, 3)
    assert clip.actions.dtype == torch.float32 and clip.actions.shape == (2, 3, 2)
    assert clip.rewards.dtype == torch.float32
    assert {clip.terminated.dtype, clip.truncated.dtype, clip.valid.dtype} == {torch.bool}
    assert clip.episode.dtype == clip.start.dtype == torch.int64


def test_sides_of_the_split_are_disjoint(dataset: Dataset) -> None:
    sides = {
        split: {int(e) for clip in windows(dataset, 2, split=split, shuffle=False) for e in clip.episode}
        for split in ("train", "held_out")
    }
    assert sides["held_out"] == set(np.flatnonzero(dataset.held_out.held_out(len(LENGTHS))))
    assert sides["train"] == set(range(len(LENGTHS))) - sides["held_out"]


def test_order_follows_the_generator_and_no_other(dataset: Dataset) -> None:
    def order(seed: int) -> list[int]:
        return [int(c.start) for c in windows(dataset, 2, generator=torch.Generator().manual_seed(seed))]

    before = torch.get_rng_state()
    assert order(0) == order(0) != order(1)
    assert torch.equal(before, torch.get_rng_state())


def test_episodes_come_back_whole(dataset: Dataset) -> None:
    assert len(dataset) == len(LENGTHS) and dataset.lengths.tolist() == list(LENGTHS)
    for number, episode in enumerate(dataset):
        expected = make_episode(number, LENGTHS[number])
        for name in ("frames", "actions", "rewards", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(episode, name), getattr(expected, name))
        np.testing.assert_array_equal(episode.infos["state"], expected.infos["state"])
        assert episode.infos["label"].tolist() == expected.infos["label"].tolist()
    assert dataset[-1].frames[0, 0, 0, 2] == len(LENGTHS) - 1
    np.testing.assert_array_equal(dataset.frames(2, 4, 9), make_episode(2, 12).frames[4:9])
    with pytest.raises(IndexError):
        dataset.episode(len(LENGTHS))
    with pytest.raises(ValueError, match="frames 0 to 5"):
        dataset.frames(0, 2, 7)


def test_data_folder_itself_opens_and_travels_to_workers(path: Path) -> None:
    dataset = Dataset(path / "data")
    dataset.frames(0, 0, 1)
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy.frames(2, 0, 3), dataset.frames(2, 0, 3))


def test_frames_stay_on_disk(tmp_path: Path) -> None:
    pixels = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    episode = replace(make_episode(0, 1500), frames=np.zeros((1501, 64, 64, 3), dtype=np.uint8), infos={})
    path = write(tmp_path / "big", [episode, episode], observation_space=str(serialize_space(pixels)))
    tracemalloc.start()
    dataset = Dataset(path)
    gather(dataset, np.array([[0, 0], [1, 1400]]), 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All frames are 37 MB; two windows of 17 are 0.4 MB, held twice while they are read.
    assert peak < 3e6


def test_reading_needs_no_simulator(path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('gymnasium', 'minari', 'mujoco', 'jaxtyping'): sys.modules[name] = None\n"
        "from worldflow.data import Dataset, windows\n"
        f"print(next(windows(Dataset({str(path)!r}), 2, shuffle=False)).rewards.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[[0.0, 1.0]]"


def test_minari_data_sets_open_raw_or_jpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    pixels = spaces.Box(0, 255, (32, 32, 3), np.uint8)
    frames = [np.full((32, 32, 3), 20 * t, dtype=np.uint8) for t in range(6)]
    for name, is_jpeg in {"raw-v0": False, "jpeg-v0": True}.items():
        with pytest.warns(UserWarning):  # Minari would like an author
            minari.create_dataset_from_buffers(
                name,
                [
                    EpisodeBuffer(
                        observations=frames,
                        actions=[2, 0, 1, 2, 1],
                        rewards=[0.0, 1.0, 2.0, 3.0, 4.0],
                        terminations=[False] * 4 + [True],
                        truncations=[False] * 5,
                    )
                    for _ in range(2)
                ],
                observation_space=pixels,
                action_space=spaces.Discrete(3),
                jpeg_encoding=is_jpeg,
            )
        dataset = Dataset(tmp_path / name)
        clip = gather(dataset, np.array([[0, 1], [1, 3]]), 3)
        # JPEG of a plain picture is off by at most one level.
        shown = clip.frames[:, :, 0, 0, 0].long()
        assert (shown - torch.tensor([[20, 40, 60, 80], [60, 80, 100, 100]])).abs().max() <= is_jpeg
        assert clip.actions.tolist() == [[0, 1, 2], [2, 1, 1]] and clip.actions.dtype == torch.int64
        assert clip.rewards.tolist() == [[1, 2, 3], [3, 4, 0]]
        (ours, *_), (theirs, *_) = read_episodes(tmp_path / name), read_episodes(minari.load_dataset(name))
        np.testing.assert_array_equal(ours.frames, theirs.frames)


class TestSplit:
    @pytest.mark.parametrize("rule", [SplitRule(), SplitRule(fraction=0.3, seed=5), SplitRule(fraction=0.5, seed=1)])
    def test_growth_moves_nothing(self, rule: SplitRule) -> None:
        whole = rule.held_out(400)
        for num in (0, 1, 2, 3, 11, 200):
            np.testing.assert_array_equal(rule.held_out(num), whole[:num])
        assert not rule.held_out(1).any()
        assert rule.held_out(2).tolist() == [False, True]
        # One of each run of 1 / fraction, but two neighboring runs may pick the episode that they share.
        assert 0.85 * rule.fraction * 400 <= whole.sum() <= rule.fraction * 400 + 1

    def test_every_run_of_ten_has_one(self) -> None:
        assert (SplitRule(seed=3).held_out(1000).reshape(-1, 10).sum(axis=1) == 1).all()

    def test_seed_decides(self) -> None:
        assert (SplitRule(seed=0).held_out(500) != SplitRule(seed=1).held_out(500)).any()

    def test_is_json(self) -> None:
        rule = SplitRule(fraction=0.2, seed=7)
        assert SplitRule(**json.loads(json.dumps(asdict(rule)))) == rule

    @pytest.mark.parametrize("fraction", [0.0, 0.6, -1.0])
    def test_refuses(self, fraction: float) -> None:
        with pytest.raises(ValueError, match="fraction"):
            SplitRule(fraction=fraction)


class TestIndex:
    def test_stride_keeps_every_transition(self) -> None:
        index = window_index(np.array([10, 3, 8]), 4, stride=4)
        assert index.tolist() == [[0, 0], [0, 4], [0, 6], [1, 0], [2, 0], [2, 4]]
        assert index.dtype == np.int64

    def test_allowed_episodes_only(self) -> None:
        lengths, allowed = np.array([10, 3, 8]), np.array([0, 2])
        assert set(window_index(lengths, 4, episodes=allowed)[:, 0]) == {0, 2}
        drawn = sample_index(lengths, 4, 200, generator=torch.Generator().manual_seed(0), episodes=allowed)
        assert set(drawn[:, 0]) == {0, 2}

    def test_draws_have_the_stated_distribution(self) -> None:
        num = 33_000
        index = sample_index(np.array([10, 20, 3]), 4, num, generator=torch.Generator().manual_seed(0))
        starts = np.bincount(index[index[:, 0] == 0][:, 1], minlength=7)
        # Eleven equally likely places, -2 to 8, clipped to 0 to 6: three of them fall on either end.
        expected = starts.sum() * np.array([3, 1, 1, 1, 1, 1, 3]) / 11
        # Five standard deviations of a count: a false alarm in 200,000 runs, were the seed not fixed.
        assert (np.abs(starts - expected) < 5 * np.sqrt(expected)).all()
        share = np.bincount(index[:, 0]) / num
        assert (np.abs(share - np.array([10, 20, 3]) / 33) < 5 * 0.5 / np.sqrt(num)).all()
        assert (index[index[:, 0] == 2][:, 1] == 0).all()

    def test_ends_are_seen_at_least_half_as_often_as_the_middle(self) -> None:
        index = sample_index(np.array([50]), 16, 20_000, generator=torch.Generator().manual_seed(0))
        seen = np.zeros(50)
        for start, count in zip(*np.unique(index[:, 1], return_counts=True), strict=True):
            seen[start : start + 16] += count
        assert min(seen[0], seen[-1]) > 0.5 * seen[20:30].max()

    @pytest.mark.parametrize(
        ("call", "match"),
        [
            (lambda: window_index(np.array([3]), 0), "length"),
            (lambda: window_index(np.array([3]), 1, stride=0), "stride"),
            (lambda: window_index(np.array([], dtype=int), 1), "no episode"),
            (lambda: window_index(np.array([3, 0]), 1), "lengths"),
            (lambda: sample_index(np.array([3]), 1, 0), "batch_size"),
            (lambda: sample_index(np.array([3]), 1, 1, episodes=np.array([1])), "episodes"),
        ],
    )
    def test_refuses(self, call: Callable[[], object], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            call()


class TestSpaces:
    @pytest.mark.parametrize(
        "space",
        [
            FORCE,
            spaces.Box(-np.inf, np.inf, (), np.float64),
            spaces.Discrete(4, start=-1),
            spaces.MultiDiscrete([2, 3], start=[1, 0]),
            spaces.MultiBinary(3),
            spaces.MultiBinary([2, 2]),
        ],
    )
    def test_action_spec_reads_what_minari_writes(self, space: spaces.Space[Any]) -> None:
        spec = action_spec(str(serialize_space(space)))
        sample = np.asarray(space.sample())
        assert spec.shape == sample.shape and spec.dtype == str(sample.dtype)
        if isinstance(space, spaces.Box):
            assert not spec.is_discrete and spec.feature_dim == spec.size
            np.testing.assert_array_equal(np.reshape(spec.low, spec.shape), space.low)
            np.testing.assert_array_equal(np.reshape(spec.high, spec.shape), space.high)
            return
        assert spec.is_discrete
        drawn = np.stack([np.ravel(space.sample()) for _ in range(200)])
        # 200 draws miss one of at most four values with probability below 1e-24.
        assert tuple(drawn.min(axis=0)) == spec.first
        assert tuple(drawn.max(axis=0) - drawn.min(axis=0) + 1) == spec.choices

    def test_gray_frames_get_a_channel(self) -> None:
        assert frame_shape(str(serialize_space(spaces.Box(0, 255, (5, 7), np.uint8)))) == (5, 7, 1)

    def test_vectors_have_one_axis(self) -> None:
        assert frame_shape(str(serialize_space(spaces.Box(-1, 1, (4,), np.float64)))) == (4,)

    @pytest.mark.parametrize(
        "space",
        [
            spaces.Box(-1, 1, (4,), np.int32),
            spaces.Box(-1, 1, (2, 4)),
            spaces.Box(0, 1, (8, 8, 3), np.float32),
            spaces.Box(0, 255, (8, 8, 4), np.uint8),
            spaces.Dict({"image": PIXELS}),
            spaces.Discrete(3),
        ],
    )
    def test_other_observations_are_refused(self, space: spaces.Space[Any]) -> None:
        with pytest.raises(ValueError, match=r"must be uint8 images.*got.*worldflow collect"):
            frame_shape(str(serialize_space(space)))

    def test_other_actions_are_refused(self) -> None:
        with pytest.raises(ValueError, match="got Dict"):
            action_spec(str(serialize_space(spaces.Dict({"a": FORCE}))))

    @pytest.mark.parametrize(
        ("other", "match"),
        [
            (spaces.Box(-2.0, 2.0, (3,)), r"expected shape \(2,\), got \(3,\)"),
            (spaces.Box(-2.0, 3.0, (2,)), "upper bounds"),
            (spaces.Discrete(2), "expected continuous ones, got discrete"),
        ],
    )
    def test_compatibility_names_the_difference(self, dataset: Dataset, other: spaces.Space[Any], match: str) -> None:
        check_compatible(dataset.spec, replace(dataset.spec, dataset_id="another"))
        given = replace(dataset.spec, action=action_spec(str(serialize_space(other))))
        with pytest.raises(ValueError, match=match):
            check_compatible(dataset.spec, given)
        with pytest.raises(ValueError, match=r"frames: expected shape \(4, 6, 3\), got \(8, 8, 3\)"):
            check_compatible(dataset.spec, replace(dataset.spec, frame_shape=(8, 8, 3)))


def edit(path: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        change(file)


def drop(*names: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        for name in names:
            del file[name]

    return change


def put(name: str, values: np.ndarray) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = values

    return change


class TestBrokenData:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write(tmp_path / "broken", [make_episode(0, 4), make_episode(1, 6)])

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (drop("episode_1"), "episode 1 .* cannot be opened"),
            (drop("episode_0/rewards"), "episode 0 .* cannot be read"),
            (put("episode_1/observations", np.zeros((6, 4, 6, 3), np.uint8)), "6 transitions need 7 frames, got 6"),
            (put("episode_1/actions", np.zeros((5, 2), np.float32)), r"actions must have shape \(6, 2\)"),
            (put("episode_0/observations", np.zeros((5, 8, 8, 3), np.uint8)), "frames must be uint8 of shape"),
            (put("episode_0/observations", np.zeros((5, 4, 6, 3), np.float32)), "got float32"),
        ],
    )
    def test_structure_is_checked_at_the_door(
        self, path: Path, change: Callable[[h5py.File], None], match: str
    ) -> None:
        edit(path, change)
        with pytest.raises(ValueError, match=match):
            Dataset(path)

    @pytest.mark.parametrize("name", ["actions", "rewards"])
    def test_numbers_that_are_none(self, path: Path, name: str) -> None:
        def change(file: h5py.File) -> None:
            file[f"episode_1/{name}"][3] = np.nan  # pyright: ignore[reportIndexIssue]

        edit(path, change)
        dataset = Dataset(path)
        gather(dataset, np.array([[1, 0]]), 3)
        for read in (lambda: gather(dataset, np.array([[1, 1]]), 3), lambda: dataset[1]):
            with pytest.raises(ValueError, match=f"episode 1 .*{name} must be finite"):
                read()

    def test_file_that_was_cut_off(self, path: Path) -> None:
        file = path / "data" / "main_data.hdf5"
        file.write_bytes(file.read_bytes()[:3000])
        with pytest.raises(ValueError, match=r"cannot be.*damaged or was only copied in part"):
            Dataset(path)

    def test_metadata(self, path: Path) -> None:
        file = path / "data" / "metadata.json"
        metadata = json.loads(file.read_text())
        for entries, match in (
            ({"total_episodes": 0}, "is empty; record at least one"),
            ({"total_episodes": 3}, "episode 2 .* cannot be opened"),
            ({"data_format": "arrow"}, "stored as arrow"),
            ({"observation_space": "nonsense"}, "Minari's JSON"),
        ):
            file.write_text(json.dumps({**metadata, **entries}))
            with pytest.raises(ValueError, match=match):
                Dataset(path)
        file.write_text("{")
        with pytest.raises(ValueError, match="not JSON"):
            Dataset(path)
        file.unlink()
        with pytest.raises(ValueError, match=r"metadata\.json is missing"):
            Dataset(path)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="does not exist; give the folder that `worldflow collect"):
            Dataset(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match="is no Minari data set"):
            Dataset(tmp_path)

    def test_windows_that_are_not_there(self, path: Path) -> None:
        dataset = Dataset(path)
        for index in ([[0, 4]], [[2, 0]], [[0, -1]]):
            with pytest.raises(ValueError, match="does not have"):
                gather(dataset, np.array(index), 2)
        with pytest.raises(ValueError, match=r"\(batch, 2\)"):
            gather(dataset, np.zeros((0, 2)), 2)
        with pytest.raises(ValueError, match="split must be"):
            dataset.episodes("test")  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="batch_size"):
            windows(dataset, 2, batch_size=0)

    def test_one_episode_has_no_held_out_side(self, tmp_path: Path) -> None:
        dataset = Dataset(write(tmp_path / "one", [make_episode(0, 4)]))
        with pytest.raises(ValueError, match="record at least two"):
            windows(dataset, 2, split="held_out")


class Lookalike:
    """What Minari calls an episode."""

    def __init__(self, episode: Episode, **changes: Any) -> None:
        self.observations, self.actions, self.rewards = episode.frames, episode.actions, episode.rewards
        self.terminations, self.truncations = episode.terminated, episode.truncated
        for name, value in changes.items():
            setattr(self, name, value)


class TestEpisodes:
    def test_any_source(self, dataset: Dataset, path: Path) -> None:
        for source in (path, str(path), dataset, list(dataset), [Lookalike(episode) for episode in dataset]):
            found = list(read_episodes(source))
            assert [len(episode) for episode in found] == list(LENGTHS)
            assert all(isinstance(episode, Episode) and episode.rewards.dtype == np.float32 for episode in found)

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"observations": np.zeros((5, 4, 6, 3), np.uint8)}, "need 6 frames"),
            ({"observations": np.zeros((6, 4, 6, 3), np.float32)}, "uint8 images"),
            ({"observations": np.zeros((6, 4), np.uint8)}, "uint8 images"),
            ({"rewards": np.full(5, np.inf)}, "rewards must be finite"),
            ({"actions": np.array(["a"] * 5)}, "actions must be numbers"),
            ({"truncations": np.zeros(4, bool)}, "4 truncated"),
            ({"rewards": np.zeros(0)}, "no transition"),
        ],
    )
    def test_refuses(self, changes: dict[str, np.ndarray], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            as_episode(Lookalike(make_episode(0, 5), **changes))

    def test_what_is_no_episode(self) -> None:
        with pytest.raises(TypeError, match="without observations"):
            as_episode({"frames": 1})
        with pytest.raises(TypeError, match="got Episode"):
            read_episodes(make_episode(0, 3))  # pyright: ignore[reportArgumentType]

    def test_spec_is_complete(self, dataset: Dataset) -> None:
        assert dataset.spec == DataSpec(
            frame_shape=(4, 6, 3),
            action=action_spec(str(serialize_space(FORCE))),
            observation_space=str(serialize_space(PIXELS)),
            action_space=str(serialize_space(FORCE)),
            dataset_id="counting-v0",
        )


def test_captions_travel_with_episodes(tmp_path: Path) -> None:
    said = replace(make_episode(0, 4), caption="a counter counts to four")
    path = write(tmp_path / "some", [said, make_episode(1, 3)])
    dataset = Dataset(path)
    assert [episode.caption for episode in dataset] == [said.caption, None]
    assert [dataset.caption(number) for number in (0, 1, -2)] == [said.caption, None, said.caption]
    assert [episode.caption for episode in read_episodes(path)] == [said.caption, None]
    assert as_episode(said).caption == said.caption
    assert dataset.clip(0, 0, 2).caption is None
    for rows, caption in ((["a door"] * 6, "a door"), ([b"a door"] * 6, "a door"), (["a door", "a cup"] * 3, None)):
        assert as_episode(Lookalike(make_episode(0, 5), infos={"caption": np.array(rows, object)})).caption == caption
    assert as_episode(Lookalike(make_episode(0, 5), infos={"caption": np.full(6, 3.0)})).caption is None


def test_outcomes_are_the_episodes_own(dataset: Dataset) -> None:
    for number in range(len(dataset)):
        actions, rewards, _ = dataset.outcomes(number)
        episode = dataset.episode(number)
        np.testing.assert_array_equal(actions, episode.actions)
        np.testing.assert_array_equal(rewards, episode.rewards)
