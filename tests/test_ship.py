"""Shipping a world records, trains, rounds and evaluates once each, goes on where it stopped, and tells all of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from builders import tiny_world, write_dataset
from safetensors.torch import load_file
from test_shipped import check_world

import worldflow.envs
from worldflow import ship as module
from worldflow import shipped
from worldflow.checkpoint import load, save
from worldflow.data import Dataset
from worldflow.envs.collect import make_pixel_env
from worldflow.envs.policies import make_policy
from worldflow.recipes import TrainConfig
from worldflow.ship import MAX_TRANSITIONS, RECIPES, WorldRecipe, ship

TRAIN = TrainConfig(preset="tiny", minutes=0.002, codec_steps=2, steps=2, batch=2, length=6, codec_batch=4)
RECIPE = WorldRecipe(
    summary="a pendulum, hardly learned",
    env_id="worldflow/InvertedPendulum-v0",
    policy="smooth",
    episodes=4,
    max_steps=8,
    train=TRAIN,
)


@pytest.fixture(autouse=True)
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A package without worlds, one quick recipe, an evaluation that is only noted down."""
    done: list[str] = []

    def evaluate(world: Path, data: Dataset, *, baseline_minutes: float | None, progress: bool) -> None:
        done.append("evaluate")
        weights = load_file(world / "world.safetensors")
        assert torch.float16 in {tensor.dtype for tensor in weights.values()}  # what ships is what is measured
        (world / "fidelity.json").write_text(json.dumps({"episodes": len(data)}))
        (world / "report.html").write_text("<html></html>")
        (world / "probe.safetensors").write_bytes(b"an instrument, which does not ship")

    train = module.train

    def counted(*arguments: Any, **options: Any) -> Any:
        done.append("resume" if options["resume"] else "train")
        return train(*arguments, **options)

    monkeypatch.setattr(module, "_evaluate", evaluate)
    monkeypatch.setattr(module, "train", counted)
    monkeypatch.setattr(module, "RECIPES", {"Quick": RECIPE})
    for one in (module, shipped):
        monkeypatch.setattr(one, "package_folder", lambda: tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    yield done


def test_a_world_is_made_from_nothing_and_only_once(calls: list[str], tmp_path: Path) -> None:
    folder = ship("Quick", progress=False)
    assert folder == tmp_path / "package" / "Quick"
    assert calls == ["train", "evaluate"]
    check_world("worldflow/Quick")
    record = json.loads((folder / "recipe.json").read_text())
    assert record["is_recorded_by_recipe"] and record["is_trained_by_recipe"]
    assert record["data"]["transitions"] == int(Dataset("runs/ship/Quick/data").lengths.sum())
    assert str(tmp_path) not in "".join((folder / name).read_text() for name in ("recipe.json", "world.json"))

    run = load("runs/ship/Quick/run")
    for name, parameter in load(folder).named_parameters():
        assert torch.allclose(parameter, run.state_dict()[name], rtol=2**-10, atol=1e-6), name  # float16's digits
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert ship("worldflow/Quick", out="elsewhere", progress=False) == Path("elsewhere")
    assert calls == ["train", "evaluate"]
    assert {p.name: p.read_bytes() for p in Path("elsewhere").iterdir()} == before


def test_each_step_goes_on_where_it_stopped(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Dataset(module._recorded(RECIPE, Path("whole"), progress=False))
    module._begin(Path("work/Quick"), RECIPE, dataset=None, run=None)
    module._recorded(replace(RECIPE, episodes=3), Path("work/Quick/data"), progress=False)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_rounded", interrupted)
        patch.setattr(module, "write_bytes", lambda *_: None)  # as if stopped before it could say that it was done
        with pytest.raises(KeyboardInterrupt):
            ship("Quick", work="work", progress=False)
    ship("Quick", work="work", progress=False)
    assert calls == ["train", "resume", "evaluate"]
    data = Dataset("work/Quick/data")
    assert module.fingerprint(data) == module.fingerprint(whole)


def test_existing_recordings_and_runs_are_used(calls: list[str], tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "given", lengths=(6, 6, 6))
    run = save(tiny_world(), tmp_path / "run", training={"config": {"minutes": 3}})
    ship("Quick", dataset=data, run=run, progress=False)
    assert calls == ["evaluate"]
    assert not Path("runs/ship/Quick/data").exists() and not Path("runs/ship/Quick/run").exists()
    record = json.loads(Path("package/Quick/recipe.json").read_text())
    assert not record["is_recorded_by_recipe"] and not record["is_trained_by_recipe"]
    assert record["training"] == {"minutes": 3}
    assert record["data"]["episodes"] == 3


def test_a_working_folder_keeps_to_its_recipe(calls: list[str], tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "given", lengths=(6, 6, 6))
    run = save(tiny_world(), tmp_path / "run")
    ship("Quick", dataset=data, run=run, progress=False)
    others: tuple[dict[str, Any], ...] = ({"minutes": 5.0}, {"dataset": data}, {})
    for options in others:
        with pytest.raises(ValueError, match="was begun with another recipe or other options; name another --work"):
            ship("Quick", **options, progress=False)
    assert calls == ["evaluate"]


def test_too_large_a_world_does_not_ship(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data, run = write_dataset(tmp_path / "given", lengths=(6, 6, 6)), save(tiny_world(), tmp_path / "run")
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"takes \d+ bytes beside 0 of the others .* may take 1000; choose"):
        ship("Quick", dataset=data, run=run, progress=False)
    assert not Path("package").exists()
    other = Path("package/Other/world.json")
    other.parent.mkdir(parents=True)
    other.write_bytes(bytes(900_000))
    monkeypatch.setattr(module, "RECIPES", {"Quick": RECIPE, "Other": RECIPE})
    monkeypatch.setattr(module, "MAX_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="beside 900000 of the others"):
        ship("Quick", dataset=data, run=run, progress=False)
    other.unlink()
    ship("Quick", dataset=data, run=run, progress=False)


def test_a_long_report_stays_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data, run = write_dataset(tmp_path / "given", lengths=(6, 6, 6)), save(tiny_world(), tmp_path / "run")
    ship("Quick", dataset=data, run=run, progress=False)
    assert Path("package/Quick/report.html").is_file()
    monkeypatch.setattr(module, "MAX_REPORT", 5)
    ship("Quick", dataset=data, run=run, progress=False)
    assert not Path("package/Quick/report.html").exists()
    assert Path("runs/ship/Quick/world/report.html").is_file()


def test_more_transitions_than_promised_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data, run = write_dataset(tmp_path / "given", lengths=(6, 6, 6)), save(tiny_world(), tmp_path / "run")
    monkeypatch.setattr(module, "MAX_TRANSITIONS", 17)
    with pytest.raises(ValueError, match="at most 17 transitions, got 18"):
        ship("Quick", dataset=data, run=run, progress=False)


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("Quik", {}, "no recipe for a world 'Quik'; did you mean 'Quick'?"),
        ("Quick", {"run": "r", "dataset": "d", "minutes": 1.0}, "minutes are of a training"),
        ("Quick", {"run": "r"}, "give the data set that the run was trained on"),
        ("Quick", {"minutes": 0.0}, "minutes must be above 0"),
    ],
)
def test_misuse_is_told_before_any_work(name: str, options: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        ship(name, **options)
    assert not Path("runs").exists()


def test_missing_data_or_runs_are_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ship("Quick", dataset="nowhere")
    data = write_dataset(tmp_path / "given", lengths=(6, 6, 6))
    with pytest.raises(FileNotFoundError, match=r"no run at nowhere: it holds no world\.json"):
        ship("Quick", dataset=data, run="nowhere")
    assert not Path("runs").exists()


def test_a_recipe_needs_minutes() -> None:
    with pytest.raises(ValueError, match="must say its minutes, got none"):
        replace(RECIPE, train=TrainConfig())


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_can_be_cooked(name: str) -> None:
    recipe = RECIPES[name]
    env = make_pixel_env(recipe.env_id)
    make_policy(recipe.policy, observation_space=env.observation_space, action_space=env.action_space)
    limits = [limit for limit in (recipe.max_steps, env.spec and env.spec.max_episode_steps) if limit]
    if name != "InvertedPendulum":  # whose poles fall after 61 steps in the mean, long before its limit
        assert recipe.episodes * min(limits) <= MAX_TRANSITIONS
    assert recipe.summary and asdict(recipe)["train"]["minutes"] > 0
    assert gym.spec(recipe.env_id) is not None
    assert set(RECIPES) == {"InvertedPendulum", "Reacher", "HalfCheetah"}
    assert worldflow.envs.TASKS[name]
