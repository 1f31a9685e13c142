"""Recordings of others become data sets: the same pixels, actions and ends, or an error that says what to do."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from builders import tiny_world
from PIL import Image

from worldflow.checkpoint import save
from worldflow.cli import main
from worldflow.data import Dataset
from worldflow.envs.importing import import_recordings
from worldflow.envs.observations import recorded_action_space
from worldflow.frames import Frames
from worldflow.video import write_video

Write = Callable[..., Path]


def pictures(count: int, *, seed: int = 0, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    """Few colors, so that a GIF keeps them exactly."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 4, (count, *size, 3)).astype(np.uint8) * 60 + seed


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def imported(source: Path, **options: Any) -> Dataset:
    return Dataset(import_recordings(source, out=source.parent / "out", progress=False, **options).path)


# -- videos ---------------------------------------------------------------------------------------------------------


def test_videos_with_tables(tmp_path: Path) -> None:
    source = tmp_path / "videos"
    for number, table in enumerate(("csv", "npy", "npz")):
        write_video(pictures(5, seed=number), source / f"run_{number}.gif")
        actions = floats(4, 2, seed=number)
        path = source / f"run_{number}.{table}"
        if table == "csv":
            rows = [f"{a[0]:.17g},{a[1]:.17g},{t},{int(t == 3)},{t + 5.0}" for t, a in enumerate(actions)]
            path.write_text("\n".join(["action x,action y,reward,done,state speed", *rows, "0,0,0,0,9.0"]) + "\n")
        elif table == "npy":
            np.save(path, actions)
        else:
            np.savez(path, actions=actions, rewards=np.arange(4.0), terminated=np.zeros(4))
    found = import_recordings(source, out=tmp_path / "out", progress=False)
    assert (found.kind, found.episodes, found.transitions, found.has_rewards) == ("videos", 3, 12, True)
    assert (found.left_out, found.last_actions) == (0, 1)
    dataset = Dataset(found.path)
    for number in range(3):
        episode = dataset.episode(number)
        assert np.array_equal(episode.frames, pictures(5, seed=number))
        np.testing.assert_allclose(episode.actions, floats(4, 2, seed=number).astype(np.float32))
    first, second, third = (dataset.episode(number) for number in range(3))
    assert first.rewards.tolist() == third.rewards.tolist() == [0, 1, 2, 3] and not second.rewards.any()
    assert first.terminated.tolist() == [False, False, False, True] and not first.truncated.any()
    assert not second.terminated.any() and second.truncated.tolist() == [False, False, False, True]
    assert first.infos["state"][:, 0].tolist() == [5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match=r"run_1.npy has no state to see beside the pictures.* the 1 episodes in"):
        imported(source, observation="dict", on_existing="overwrite")
    both = imported(source, observation="dict", episodes=1, on_existing="overwrite").episode(0).frames
    assert isinstance(both, Frames) and both["state"][:, 0].tolist() == [5, 6, 7, 8, 9]
    assert np.array_equal(both["pixels"], pictures(5))
    low = np.min([floats(4, 2, seed=n).min(0) for n in range(3)], axis=0)  # the last row of the csv lies inside
    np.testing.assert_allclose(dataset.spec.action.low, low, rtol=1e-6)


def test_choices_and_limits(tmp_path: Path) -> None:
    source = tmp_path / "videos"
    write_video(pictures(4), source / "a.gif")
    (source / "a.csv").write_text("button\n2\n0\n1\n")
    assert imported(source).spec.action.choices == (3,)
    (source / "a.csv").write_text("speed\n0.5\n0\n0.25\n")
    dataset = imported(source, low=(-1,), high=(1,), on_existing="overwrite")
    assert dataset.spec.action.low == (-1.0,) and dataset.spec.action.high == (1.0,)
    assert dataset.episode(0).actions.tolist() == [[0.5], [0.0], [0.25]]
    with pytest.raises(ValueError, match=r"beyond the limits: number 0 goes from 0 to 0\.5"):
        imported(source, high=(0.4,), on_existing="overwrite")


def test_pictures_are_cut_and_averaged_only_when_asked(tmp_path: Path) -> None:
    source = tmp_path / "videos"
    wide = pictures(3, size=(8, 12))
    write_video(wide, source / "a.gif")
    np.save(source / "a.npy", floats(2, 1))
    assert imported(source).spec.frame_shape == (8, 12, 3)
    small = imported(source, size=4, on_existing="overwrite").episode(0).frames
    middle = wide[:, :, 2:10].astype(float).reshape(3, 4, 2, 4, 2, 3).mean((2, 4))
    assert small.shape == (3, 4, 4, 3) and np.abs(small - middle).max() <= 1  # rounded


@pytest.mark.parametrize(
    ("table", "text", "part"),
    [
        ("csv", "x\n1\n2\nthree\n", "every row must hold 1 numbers"),
        ("csv", "1,2\n1,2\n", "its first line must name the columns"),
        ("csv", "x\n", "it has no rows below the line of names"),
        ("csv", "x\n1.5\n2.5\n3.5\n4.5\n5.5\n", "5 actions need as many frames or one more, got 3"),
        ("csv", "x\nnan\n2.5\n", "actions of episode 0 must be finite numbers"),
        ("txt", "x\n1\n", "has no actions: put a.csv, .npy or .npz beside it"),
    ],
)
def test_tables_that_are_of_no_use(table: str, text: str, part: str, tmp_path: Path) -> None:
    source = tmp_path / "videos"
    write_video(pictures(3), source / "a.gif")
    (source / f"a.{table}").write_text(text)
    with pytest.raises(ValueError, match=part):
        imported(source)
    assert not (tmp_path / "out").exists()


def test_what_was_imported_before_an_error_is_kept(tmp_path: Path) -> None:
    source = tmp_path / "videos"
    for name, count in (("a", 3), ("b", 9)):
        write_video(pictures(count), source / f"{name}.gif")
        np.save(source / f"{name}.npy", floats(2, 1))
    with pytest.raises(ValueError, match=r"b.gif: 2 actions need .* the 1 episodes in .*out are kept"):
        imported(source)
    assert len(Dataset(tmp_path / "out")) == 1


# -- HDF5 -----------------------------------------------------------------------------------------------------------


def test_robomimic_uses_the_frame_after_the_last_action(tmp_path: Path) -> None:
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w") as file:
        for number in (0, 10, 2):  # in the order of their numbers, not of their names
            group = file.create_group(f"data/demo_{number}")
            seen = pictures(5, seed=number)
            for camera in ("agentview_image", "wrist_image"):
                shown = seen if camera == "agentview_image" else 255 - seen
                group[f"obs/{camera}"], group[f"next_obs/{camera}"] = shown[:-1], shown[1:]
            group["obs/eef_pos"] = floats(4, 3, seed=number)
            group["actions"], group["rewards"], group["dones"] = floats(4, 7), np.arange(4.0), [0, 0, 0, 1]
            group["states"] = floats(4, 9)
    with pytest.raises(ValueError, match="several pictures, obs/agentview_image, obs/wrist_image; choose one with"):
        imported(path)
    with pytest.raises(ValueError, match="no pictures 'agent_image'; did you mean 'obs/agentview_image'"):
        imported(path, frames="agent_image")
    dataset = imported(path, frames="agentview_image")
    for number, seed in enumerate((0, 2, 10)):
        assert np.array_equal(dataset.episode(number).frames, pictures(5, seed=seed))
    assert dataset.lengths.tolist() == [4, 4, 4] and dataset.spec.action.shape == (7,)
    assert dataset.episode(0).terminated.tolist() == [False, False, False, True]
    both = imported(path, observation="dict", frames="wrist_image", on_existing="overwrite").spec
    assert both.frame_shape == (16, 16, 3) and both.parts is not None and both.parts.sizes == {"state": 3}
    vectors = imported(path, observation="vector", on_existing="overwrite")  # of which there is no next one
    assert vectors.lengths.tolist() == [3, 3, 3] and vectors.spec.frame_shape == (3,)
    np.testing.assert_allclose(vectors.episode(1).frames, floats(4, 3, seed=2).astype(np.float32))


def test_a_file_an_episode(tmp_path: Path) -> None:
    source = tmp_path / "aloha"
    source.mkdir()
    for number in range(2):
        with h5py.File(source / f"episode_{number}.hdf5", "w") as file:
            file["action"] = floats(6, 14, seed=number)
            file["observations/images/top"] = pictures(6, seed=number)
            file["observations/qpos"] = floats(6, 14)
    found = import_recordings(source, out=tmp_path / "out", progress=False)
    assert (found.episodes, found.transitions, found.last_actions, found.has_rewards) == (2, 10, 2, False)
    assert np.array_equal(Dataset(found.path).episode(1).frames, pictures(6, seed=1))


def test_episodes_behind_each_other(tmp_path: Path) -> None:
    path = tmp_path / "d4rl.h5"
    seen, terminals, timeouts = floats(10, 3), np.zeros(10, bool), np.zeros(10, bool)
    terminals[3], timeouts[7] = True, True
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"], file["rewards"] = seen, floats(10, 2), np.arange(10.0)
        file["next_observations"] = seen + 0.5
        file["terminals"], file["timeouts"] = terminals, timeouts
    dataset = imported(path, observation="vector")
    assert dataset.lengths.tolist() == [4, 4, 2]
    first, second, third = (dataset.episode(number) for number in range(3))
    np.testing.assert_allclose(second.frames, np.concatenate((seen[4:8], seen[7:8] + 0.5)).astype(np.float32))
    assert first.terminated[-1] and not first.truncated[-1] and second.truncated[-1] and not second.terminated.any()
    assert third.rewards.tolist() == [8, 9]


def test_hdf5_without_what_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["commands"], file["speed"] = floats(4, 2), floats(4, 2)
    with pytest.raises(ValueError, match="no data set called 'actions' or 'action'; name it with --actions"):
        imported(path)
    with pytest.raises(ValueError, match="holds no pictures; it holds commands, speed"):
        imported(path, actions="commands")
    path.write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        imported(path)


# -- LeRobot --------------------------------------------------------------------------------------------------------

CAMERA = "observation.images.top"


def write_lerobot(folder: Path, *, version: int, as_video: bool, lengths: tuple[int, ...] = (4, 6)) -> Path:
    """A small data set as LeRobot lays it out; frames of episode `n` are `shown(n, length)`."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(path: Path, rows: list[dict[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)

    def png(frame: np.ndarray) -> bytes:
        data = io.BytesIO()
        Image.fromarray(frame).save(data, format="PNG")
        return data.getvalue()

    tables, clips, index = [], [], 0
    for number, length in enumerate(lengths):
        rows, frames = [], shown(number, length)
        for t in range(length):
            row = {
                "action": floats(length, 2, seed=number)[t].tolist(),
                "observation.state": [float(number), float(t)],
                "next.reward": float(t),
                "next.done": t == length - 1,
                "frame_index": t,
                "episode_index": number,
                "index": index,
            }
            rows.append(row if as_video else {**row, CAMERA: {"bytes": png(frames[t]), "path": None}})
            index += 1
        tables.append(rows)
        clips.append(frames)
    kind = {"dtype": "video" if as_video else "image", "shape": [16, 16, 3]}
    info: dict[str, Any] = {
        "codebase_version": f"v{version}.0",
        "fps": 10,
        "total_episodes": len(lengths),
        "chunks_size": 1000,
        "features": {CAMERA: kind, "action": {"dtype": "float32", "shape": [2]}, "observation.state": {"shape": [2]}},
    }
    tasks = [["push it"], ["pull it", "turn it"]]
    if version == 2:
        info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        for number, rows in enumerate(tables):
            write(folder / f"data/chunk-000/episode_{number:06d}.parquet", rows)
            if as_video:
                write_video(clips[number], folder / f"videos/chunk-000/{CAMERA}/episode_{number:06d}.mp4", fps=10)
        (folder / "meta").mkdir(parents=True)
        lines = [json.dumps({"episode_index": n, "tasks": tasks[n]}) for n in range(len(lengths))]
        (folder / "meta/episodes.jsonl").write_text("\n".join(lines))
    else:
        info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        write(folder / "data/chunk-000/file-000.parquet", [row for rows in tables for row in rows])
        if as_video:
            write_video(np.concatenate(clips), folder / f"videos/{CAMERA}/chunk-000/file-000.mp4", fps=10)
        episodes = []
        for number in range(len(lengths)):
            row = {"episode_index": number, "data/chunk_index": 0, "data/file_index": 0, "tasks": tasks[number]}
            if as_video:
                camera = f"videos/{CAMERA}"
                row |= {f"{camera}/chunk_index": 0, f"{camera}/file_index": 0}
                row |= {f"{camera}/from_timestamp": sum(lengths[:number]) / 10}
            episodes.append(row)
        write(folder / "meta/episodes/chunk-000/file-000.parquet", episodes)
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def shown(number: int, length: int) -> np.ndarray:
    """A gray level for each frame, which a lossy video keeps to within a few."""
    levels = 20 + 100 * number + 12 * np.arange(length)
    return np.broadcast_to(levels[:, None, None, None], (length, 16, 16, 3)).astype(np.uint8)


@pytest.mark.parametrize("as_video", [True, False])
@pytest.mark.parametrize("version", [2, 3])
def test_lerobot(version: int, as_video: bool, tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "robot", version=version, as_video=as_video)
    found = import_recordings(source, out=tmp_path / "out", frames="top", progress=False)
    assert (found.kind, found.episodes, found.transitions, found.last_actions) == ("LeRobot", 2, 8, 2)
    dataset = Dataset(found.path)
    for number, length in enumerate((4, 6)):
        episode = dataset.episode(number)
        error = np.abs(episode.frames.astype(int) - shown(number, length).astype(int)).max()
        assert error <= (4 if as_video else 0)  # frames are 12 apart
        np.testing.assert_allclose(episode.actions, floats(length, 2, seed=number)[:-1].astype(np.float32))
        assert episode.infos["state"].tolist() == [[number, t] for t in range(length)]
        assert episode.rewards.tolist() == list(range(length - 1)) and not episode.terminated.any()
    assert [dataset.caption(number) for number in range(2)] == ["push it", None]
    both = imported(source, observation="dict", on_existing="overwrite").episode(1).frames
    assert isinstance(both, Frames) and both["state"].tolist() == [[1, t] for t in range(6)]
    assert np.array_equal(both["pixels"], dataset.episode(1).frames)


def test_lerobot_vectors_and_refusals(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "robot", version=2, as_video=True)
    vectors = imported(source, observation="vector")
    assert vectors.spec.frame_shape == (2,) and vectors.episode(1).frames[3].tolist() == [1, 3]
    with pytest.raises(ValueError, match=r"no camera 'topp'; there are: observation.images.top"):
        imported(source, frames="topp", on_existing="overwrite")
    (source / f"videos/chunk-000/{CAMERA}/episode_000001.mp4").unlink()
    with pytest.raises(ValueError, match=r"no video at .*episode_000001.mp4; .* the 1 episodes in .* are kept"):
        imported(source, on_existing="overwrite")
    (source / "meta/info.json").write_text("{}")
    with pytest.raises(ValueError, match=r"info.json is damaged: 'features'"):
        imported(source, on_existing="overwrite")


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "videos", tmp_path / "out"
    write_video(pictures(3), source / "a.gif")
    np.save(source / "a.npy", floats(3, 1))
    write_video(pictures(1), source / "b.gif")
    np.save(source / "b.npy", floats(1, 1))
    assert main(["import", str(source), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "path": str(out),
        "kind": "videos",
        "episodes": 1,
        "transitions": 2,
        "has_rewards": False,
        "left_out": 1,
        "last_actions": 1,
    }
    assert main(["import", str(source), "--out", str(out)]) == 1
    assert "already holds a data set of 1 episodes" in capsys.readouterr().err
    assert main(["import", str(source), "--out", str(out), "--append", "--low", "-1", "--high", "1"]) == 1
    assert "was recorded with another action space" in capsys.readouterr().err
    for wrong, part in ((tmp_path / "nowhere", "nothing to import at"), (out, "is a Minari data set already")):
        assert main(["import", str(wrong), "--out", str(tmp_path / "other")]) == 1
        assert part in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["import", str(tmp_path / "empty"), "--out", str(tmp_path / "other")]) == 1
    assert "holds nothing known: a LeRobot data set (meta/info.json), HDF5 files" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.filterwarnings("default:.*has no rewards")
def test_recordings_are_scored_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = tiny_world(size=16, codec="latent")
    save(world, tmp_path / "run")
    source = tmp_path / "videos"
    shape = world.config.data.action.shape
    write_video(pictures(5), source / "a.gif")
    np.save(source / "a.npy", 0.9 * floats(4, *shape))
    assert main(["score", str(tmp_path / "run"), str(source), "--out", str(tmp_path / "raw.csv"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["transitions"] == 4 and "has no rewards: they are scored as zeros" in err
    space = recorded_action_space(world)
    import_recordings(source, out=tmp_path / "set", action_space=space, progress=False)
    assert main(["score", str(tmp_path / "run"), str(tmp_path / "set"), "--out", str(tmp_path / "set.csv")]) == 0
    assert (tmp_path / "raw.csv").read_text() == (tmp_path / "set.csv").read_text()
    capsys.readouterr()
    assert main(["score", str(tmp_path / "run"), str(tmp_path / "set"), "--size", "16"]) == 1
    assert "leave --size out" in capsys.readouterr().err
    (source / "a.gif").unlink()
    write_video(np.repeat(np.repeat(pictures(5), 2, axis=1), 2, axis=2), source / "a.gif")
    assert main(["score", str(tmp_path / "run"), str(source)]) == 1
    assert "(16, 16, 3)" in capsys.readouterr().err  # resized only when asked
    resized = tmp_path / "resized.csv"
    assert main(["score", str(tmp_path / "run"), str(source), "--size", "16", "--out", str(resized)]) == 0
    assert len(resized.read_text().splitlines()) == 5
    np.save(source / "a.npy", 100 * floats(4, *shape))
    capsys.readouterr()
    assert main(["score", str(tmp_path / "run"), str(source)]) == 1
    assert "recorded actions lie beyond the limits" in capsys.readouterr().err
    (tmp_path / "nothing").mkdir()
    assert main(["score", str(tmp_path / "run"), str(tmp_path / "nothing")]) == 1
    assert "holds nothing known" in capsys.readouterr().err
