"""A run's folder: what is saved comes back, damage is told, and a failed write changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import random_actions, tiny_world
from safetensors.torch import load_file

from worldflow import checkpoint
from worldflow.checkpoint import from_plain, load, save, to_plain
from worldflow.world import WorldConfig, WorldModel


def step(world: WorldModel) -> torch.Tensor:
    contexts = world.contexts
    assert contexts is not None
    generator = torch.Generator().manual_seed(0)
    state = world.start(contexts.frames, contexts.actions, generator=generator)
    action = random_actions(world.config.data.action, (len(contexts),), generator=generator)
    return world.step(state, action, generator=generator)[0].log_prob.total


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save(tiny_world(), tmp_path / "some" / "run", training={"minutes": 3})


@pytest.mark.parametrize("codec", ["latent", "patch"])
@pytest.mark.parametrize("action", ["box", "discrete"])
def test_what_is_saved_comes_back(tmp_path: Path, codec: Any, action: Any) -> None:
    world = tiny_world(codec=codec, action=action)
    if codec == "latent":
        world.codec.train().encode(torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8))  # moves statistics
        world.codec.eval()
    save(world, tmp_path)
    back = load(tmp_path)
    assert back.config == world.config
    assert not back.training
    for name, tensor in world.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert back.contexts is not None and world.contexts is not None
    assert torch.equal(back.contexts.frames, world.contexts.frames)
    assert torch.equal(back.contexts.actions, world.contexts.actions)
    assert torch.equal(step(back), step(world))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["contexts.npz", "world.json", "world.safetensors"]


def test_a_world_without_contexts(tmp_path: Path) -> None:
    save(tiny_world(contexts=0), tmp_path)
    assert load(tmp_path).contexts is None


def test_training_is_told_in_plain_json(run: Path) -> None:
    record = json.loads((run / "world.json").read_text())
    assert record["training"] == {"minutes": 3}
    assert record["config"]["flow"]["window"] == 3


def test_configurations_survive_json() -> None:
    config = tiny_world(action="multi_discrete", soft_clip=None).config
    assert from_plain(WorldConfig, json.loads(json.dumps(to_plain(config)))) == config


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 3, len(data) // 3 + 200):
        data[at] ^= 0xFF
    path.write_bytes(bytes(data))


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "cut description": ("world.json", cut, r"cannot read .*world\.json.*restore the file"),
    "binary description": ("world.json", lambda p: p.write_bytes(b"\xff\xfe\x00"), r"cannot read .*world\.json"),
    "a list": ("world.json", lambda p: p.write_text("[]"), r"cannot read .*world\.json"),
    "other format": ("world.json", edit(lambda r: r.update(format=99)), "has format 99, this version reads format 1"),
    "no configuration": ("world.json", edit(lambda r: r.pop("config")), r"cannot read .*world\.json"),
    "unknown field": (
        "world.json",
        edit(lambda r: r["config"]["flow"].update(depth=3)),
        r"FlowConfig has no \['depth'\]",
    ),
    "missing field": (
        "world.json",
        edit(lambda r: r["config"]["flow"].pop("grid")),
        r"FlowConfig cannot be built.*grid",
    ),
    "wrong value": ("world.json", edit(lambda r: r["config"]["flow"].update(window=0)), "window must be at least 1"),
    "wrong type": ("world.json", edit(lambda r: r["config"]["flow"].update(window="x")), r"cannot read .*world\.json"),
    "cut weights": ("world.safetensors", cut, r"cannot read .*world\.safetensors.*damaged"),
    "empty weights": ("world.safetensors", lambda p: p.write_bytes(b""), r"cannot read .*world\.safetensors.*damaged"),
    "cut contexts": ("contexts.npz", cut, r"cannot read .*contexts\.npz"),
    "flipped contexts": ("contexts.npz", flip, r"cannot read .*contexts\.npz"),
    "empty contexts": ("contexts.npz", lambda p: p.write_bytes(b""), r"cannot read .*contexts\.npz"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_gives_one_clear_error(run: Path, damage: str) -> None:
    name, change, message = DAMAGE[damage]
    change(run / name)
    with pytest.raises(ValueError, match=message):
        load(run)


def test_missing_files(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the folder does not exist; name a folder that `worldflow train"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no world\.json"):
        load(tmp_path)
    (run / "world.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load(run)


def test_weights_of_another_model(run: Path, tmp_path: Path) -> None:
    other = save(tiny_world(latent_dim=5), tmp_path / "wide")
    (run / "world.safetensors").write_bytes((other / "world.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"does not fit .*world\.json.*differ; restore both from one run"):
        load(run)
    bare = save(tiny_world(draft=False), tmp_path / "bare")
    (run / "world.safetensors").write_bytes((bare / "world.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"lacks .* it is another model's file"):
        load(run)


@pytest.mark.parametrize("writer", ["weights", "contexts", "description"])
def test_a_full_disk_leaves_the_old_run_whole(run: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        for argument in arguments:
            if isinstance(argument, Path):
                argument.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    module, name = {
        "weights": (checkpoint, "save_file"),
        "contexts": (np, "savez_compressed"),
        "description": (os, "fsync"),
    }[writer]
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    monkeypatch.setattr(module, name, full)
    with pytest.raises(OSError, match="No space left"):
        save(tiny_world(seed=1), run)
    monkeypatch.undo()
    failed = {"weights": "world.safetensors", "contexts": "contexts.npz", "description": "world.json"}[writer]
    after = {p.name: p.read_bytes() for p in run.iterdir()}
    assert set(after) == set(before)
    assert after[failed] == before[failed]
    assert torch.isfinite(step(load(run))).all()  # weights may be newer than their description, never half there


def test_saving_again_replaces(run: Path) -> None:
    world = tiny_world(seed=1)
    save(world, run)
    assert torch.equal(step(load(run)), step(world))
    assert load(run).config == world.config


def stored(run: Path) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in load_file(run / "world.safetensors").items()}


@pytest.mark.parametrize("codec", ["latent", "patch"])
def test_half_width_weights_are_the_rounded_ones(tmp_path: Path, codec: Any) -> None:
    world = tiny_world(codec=codec)
    save(world, tmp_path, dtype=torch.float16)
    back, parameters = load(tmp_path), dict(world.named_parameters())
    for name, tensor in world.state_dict().items():
        expected = tensor.half().float() if name in parameters else tensor  # what is measured is not rounded
        assert torch.equal(back.state_dict()[name], expected), name
    assert {dtype for name, dtype in stored(tmp_path).items() if name in parameters} == {torch.float16}
    whole = save(world, tmp_path / "whole") / "world.safetensors"
    saved = whole.stat().st_size - (tmp_path / "world.safetensors").stat().st_size
    assert saved == pytest.approx(2 * sum(p.numel() for p in parameters.values()), abs=1000)  # headers differ a little


def test_half_width_weights_step_almost_alike(tmp_path: Path) -> None:
    world = tiny_world()
    save(world, tmp_path, dtype=torch.float16)
    # Each weight moves by at most 2^-11 of itself. These random weights are far rougher than trained ones: of a step of
    # 12 latents and three outcomes, the log-likelihood moved by at most 0.005 nats with any of ten seeds.
    assert torch.allclose(step(load(tmp_path)), step(world), rtol=0, atol=0.02)
    assert not torch.equal(step(load(tmp_path)), step(world))


@pytest.mark.parametrize(("value", "is_kept"), [(1e5, True), (3e-6, True), (float("nan"), True), (0.0, False)])
def test_weights_out_of_the_range_of_half_width_keep_theirs(tmp_path: Path, value: float, is_kept: bool) -> None:
    world = tiny_world()
    name, parameter = next(iter(world.named_parameters()))
    with torch.no_grad():
        parameter.mul_(1e-3).flatten()[0] = value
        if value == 3e-6:
            parameter.mul_(1e-3)  # all of it where float16 has three digits or fewer
    save(world, tmp_path, dtype=torch.float16)
    assert (stored(tmp_path)[name] == torch.float32) == is_kept
    if is_kept:
        assert torch.equal(load(tmp_path).state_dict()[name], parameter) or value != value


def test_weights_are_stored_in_floating_types_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"floating type such as torch\.float16, got torch\.int8"):
        save(tiny_world(), tmp_path / "run", dtype=torch.int8)
    assert not (tmp_path / "run").exists()
