"""Worlds that ship are found by name wherever a run is expected, and every one of them is whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import fields
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import tiny_world, write_dataset

import worldflow
import worldflow.envs
from worldflow import cli, shipped
from worldflow.checkpoint import load, save
from worldflow.shipped import MAX_BYTES, package_folder, run_folder, worlds

ROOT = Path(__file__).parent.parent


def ship_tiny(folder: Path, name: str = "Tiny", *, seed: int = 0) -> Path:
    """A world with random weights, laid out as those that ship."""
    target = save(tiny_world(seed=seed), folder / name, dtype=torch.float16)
    (target / "recipe.json").write_text(json.dumps({"summary": "a world of noise"}))
    return target


@pytest.fixture
def worlds_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that ships worldflow/Tiny and worldflow/Other; the working folder is another, empty one."""
    folder, work = tmp_path / "package" / "worlds", tmp_path / "work"
    ship_tiny(folder)
    ship_tiny(folder, "Other", seed=1)
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(shipped, "package_folder", lambda: folder)
    return folder


def test_worlds_are_listed_with_a_line_each(worlds_folder: Path) -> None:
    (worlds_folder / "Empty").mkdir()  # what is no world does not count
    (worlds_folder / "Other" / "recipe.json").unlink()
    assert worlds() == {"worldflow/Other": "", "worldflow/Tiny": "a world of noise"}
    assert worldflow.worlds is worlds


def test_a_name_loads_its_world(worlds_folder: Path) -> None:
    world = worldflow.load("worldflow/Tiny")
    other = load(worlds_folder / "Tiny")
    assert world.config == other.config
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in world.state_dict().items())
    assert {p.dtype for p in world.parameters()} == {torch.float32}
    assert not torch.equal(next(load("worldflow/Other").parameters()), next(world.parameters()))


def test_environments_take_a_name(worlds_folder: Path) -> None:
    env = gym.make("worldflow/Learned-v0", world="worldflow/Tiny")
    envs = gym.make_vec("worldflow/Learned-v0", num_envs=2, world="worldflow/Tiny")
    env.reset(seed=0)
    envs.reset(seed=0)
    action = np.zeros((2, 2), np.float32)
    alone, together = env.step(action[0]), envs.step(action)
    assert np.abs(alone[0].astype(int) - together[0][0].astype(int)).max() <= 1  # batched sums round differently
    assert np.isfinite(alone[4]["log_prob"])


def test_commands_take_a_name(worlds_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_dataset(tmp_path / "data", lengths=(6, 6))
    assert cli.main(["score", "worldflow/Tiny", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["transitions"] == 12
    assert cli.main(["score", "worldflow/Tny", str(data)]) == 1
    assert "did you mean 'worldflow/Tiny'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("worldflow/Tny", "did you mean 'worldflow/Tiny'?"),
        ("worldflow/tiny", "did you mean 'worldflow/Tiny'?"),
        ("worldflow/TINY", "did you mean 'worldflow/Tiny'?"),
        ("worldflow/zzzzzzzzzzzzzzz", "there are: worldflow/Other, worldflow/Tiny"),
    ],
)
def test_an_unknown_name_brings_the_known_ones(name: str, part: str, worlds_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="ships with worldflow, and there is no folder of that name") as error:
        load(name)
    assert part in str(error.value)


def test_without_worlds_it_says_so(worlds_folder: Path) -> None:
    shutil.rmtree(worlds_folder)
    assert worlds() == {}
    with pytest.raises(FileNotFoundError, match=r"no world 'worldflow/Tiny' ships.*; none ship with this version"):
        load("worldflow/Tiny")


def test_a_run_of_a_name_that_ships_is_not_taken_for_it(worlds_folder: Path) -> None:
    run = save(tiny_world(seed=2), Path("worldflow", "Tiny"))
    with pytest.raises(ValueError, match=r"both a world that ships.*write '\./worldflow/Tiny' for the run"):
        load("worldflow/Tiny")
    for named in ("./worldflow/Tiny", str(run.resolve()), run):
        assert torch.equal(next(load(named).parameters()), next(tiny_world(seed=2).parameters()))


def test_a_run_of_another_name_is_a_run(worlds_folder: Path) -> None:
    save(tiny_world(seed=2), Path("worldflow", "Mine"))
    assert torch.equal(next(load("worldflow/Mine").parameters()), next(tiny_world(seed=2).parameters()))
    Path("worldflow", "Tiny").mkdir()  # a folder that is no run stands in nobody's way
    assert run_folder("worldflow/Tiny") == worlds_folder / "Tiny"


@pytest.mark.parametrize("run", ["runs/Tiny", "worldflow", "worldflow/a/b", "my/worldflow/Tiny", "./worldflow/Tiny"])
def test_everything_else_is_a_folder(run: str, worlds_folder: Path) -> None:
    assert run_folder(run) == Path(run)
    assert run_folder(Path(run)) == Path(run)


@pytest.mark.parametrize("name", ["worldflow/..", "worldflow/.", "worldflow/Tiny/../Tiny"])
def test_names_do_not_climb(name: str, worlds_folder: Path) -> None:
    save(tiny_world(), worlds_folder.parent)
    with pytest.raises(FileNotFoundError):
        load(name)


def test_the_wheel_holds_worlds_and_loads_them(tmp_path: Path) -> None:
    copy, site = tmp_path / "copy", tmp_path / "site"
    for name in ("worldflow", "envs", "agents"):
        ignored = shutil.ignore_patterns("__pycache__", "envs", "agents", "worlds")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy)
    files = {p.name for p in ship_tiny(copy / "worldflow" / "worlds").iterdir()}
    code = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
    built = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "is absent from the `packages` configuration" not in built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n for n in names if "/worlds/" in n} == {f"worldflow/worlds/Tiny/{name}" for name in files}

    zipfile.ZipFile(wheel).extractall(site)
    code = """
import sys
sys.path[:0] = sys.argv[1:]
import worldflow
assert worldflow.__file__.startswith(sys.argv[1])
print(worldflow.worlds(), len(worldflow.load("worldflow/Tiny").contexts))
"""
    # -S keeps the editable install of the tests' own environment out of sight; its dependencies are appended.
    words = [sys.executable, "-I", "-S", "-c", code, str(site), sysconfig.get_path("purelib")]
    result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "{'worldflow/Tiny': 'a world of noise'} 4"


def test_the_package_is_where_the_source_is() -> None:
    assert package_folder() == ROOT / "worldflow" / "worlds"


def test_the_worlds_fit_the_promised_size() -> None:
    assert sum(p.stat().st_size for p in package_folder().rglob("*") if p.is_file()) <= MAX_BYTES


def test_every_world_is_whole() -> None:
    assert {f"worldflow/{path.name}" for path in package_folder().glob("[!.]*")} == set(worlds())
    for name in worlds():
        check_world(name)


def check_world(name: str) -> None:
    """A world that ships loads, steps, and tells how it was made."""
    folder = run_folder(name)
    names = {p.name for p in folder.iterdir()}
    assert {"world.json", "world.safetensors", "contexts.npz", "recipe.json", "fidelity.json"} <= names
    assert names <= {"world.json", "world.safetensors", "contexts.npz", "recipe.json", "fidelity.json", "report.html"}
    env = gym.make("worldflow/Learned-v0", world=name)
    first, _ = env.reset(seed=0)
    second, _, _, _, info = env.step(env.action_space.sample())
    assert first.shape == second.shape
    assert np.isfinite(info["log_prob"])
    record = json.loads((folder / "recipe.json").read_text())
    assert record["name"] == name
    assert record["summary"] and worlds()[name] == record["summary"]
    assert record["data"]["transitions"] <= 50_000
    assert len(record["data"]["fingerprint"]) == 16
    assert set(record["versions"]) >= {"worldflow", "python", "torch", "gymnasium", "mujoco"}
    # Options that came after a world was made are not in its recipe.
    assert {"preset", "minutes"} < set(record["recipe"]["train"]) <= {f.name for f in fields(worldflow.TrainConfig)}
