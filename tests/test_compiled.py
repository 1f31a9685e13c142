"""Compiled steps: the same transitions in one call, code that is kept, and every way in which there is none."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import randomize, tiny_world

from worldflow import compiled
from worldflow.compiled import CompiledStep, CompiledSteps, Uncompilable
from worldflow.envs.learned import LearnedVectorEnv
from worldflow.state import WorldState
from worldflow.types import Transition
from worldflow.world import WorldModel

HAS_COMPILER = any(shutil.which(name) for name in ("g++", "clang++"))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(a: tuple[Transition, WorldState], b: tuple[Transition, WorldState], *, atol: float) -> None:
    for one, other in ((a[0], b[0]), (a[0].log_prob, b[0].log_prob), (a[1], b[1])):
        for field in fields(one):
            left, right = getattr(one, field.name), getattr(other, field.name)
            if isinstance(left, torch.Tensor):
                assert left.shape == right.shape and left.dtype == right.dtype, field.name
                torch.testing.assert_close(left.double(), right.double(), rtol=0, atol=atol, msg=field.name)


def actions(world: WorldModel, rows: int) -> torch.Tensor:
    return torch.rand(rows, *world.config.data.action.shape, generator=seeded(7)) - 0.5


def with_code(world: WorldModel, batch_size: int) -> WorldModel:
    """The world with "compiled" steps that are the traced ones, uncompiled."""
    world._compiled[batch_size] = CompiledStep(batch_size, lambda *given: list(compiled._Step(world)(*given)))
    return world


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("WORLDFLOW_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


@pytest.mark.parametrize("shown", [True, False])
def test_traced_steps_are_the_steps_and_fewer_rows_are_filled_up(shown: bool) -> None:
    world = tiny_world(dtype=torch.float64, shown=shown)
    state = world.begin(3)
    for k in range(3):
        plain = world.step(state, actions(world, 3), generator=seeded(k), method="sequential")
        fast = with_code(world, 4).step(state, actions(world, 3), generator=seeded(k))
        world._compiled.clear()
        same(fast, plain, atol=1e-10)
        assert len(fast[1]) == 3
        state = plain[1]


def test_the_smallest_code_that_is_more_than_half_full_is_taken() -> None:
    steps = CompiledSteps({size: CompiledStep(size, lambda *given: list(given)) for size in (4, 16)})
    sizes = {rows: getattr(steps.fitting(rows), "batch_size", None) for rows in range(1, 18)}
    assert {rows for rows, size in sizes.items() if size == 4} == {3, 4}
    assert {rows for rows, size in sizes.items() if size == 16} == set(range(9, 17))
    assert {rows for rows, size in sizes.items() if size is None} == {1, 2, 5, 6, 7, 8, 17}


def test_guidance_and_sequential_steps_go_the_usual_way() -> None:
    world = tiny_world()

    def never(*_: torch.Tensor) -> list[torch.Tensor]:
        raise AssertionError("this step must not be the compiled one")

    world._compiled[2] = CompiledStep(2, never)
    world.step(world.begin(2), actions(world, 2), generator=seeded(), method="sequential")
    with pytest.raises(AssertionError, match="compiled"):
        world.step(world.begin(2), actions(world, 2), generator=seeded())


def test_copies_and_files_of_a_world_begin_without_code() -> None:
    world = with_code(tiny_world(), 2)
    assert len(world._compiled) == 1
    assert len(copy.deepcopy(world)._compiled) == 0
    assert len(pickle.loads(pickle.dumps(world))._compiled) == 0


@pytest.mark.parametrize(
    ("options", "reason"), [({}, "shallow blocks"), ({"shallow": False, "training": True}, "evaluation mode")]
)
def test_what_has_no_compiled_steps_says_why(options: dict[str, Any], reason: str, cache: Path) -> None:
    training = options.pop("training", False)
    world = tiny_world(**options).train(training)
    with pytest.raises(Uncompilable, match=reason):
        world.compile_step(2)
    assert not (cache / "steps").exists()
    with pytest.raises(ValueError, match="at least 1"):
        world.compile_step(0)


def test_an_environment_goes_on_without_a_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> str:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fails)
    world = tiny_world(shallow=False)
    with pytest.warns(UserWarning, match="compile=True has no effect: steps could not be compiled"):
        envs = LearnedVectorEnv(world, num_envs=2, compile=True, observation="latent")
    assert envs.num_envs == 2 and not world._compiled
    assert list((cache / "steps").iterdir()) == []


@pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler")
def test_compiled_steps_are_the_steps_and_their_code_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = tiny_world(shown=True, shallow=False, patch_size=16)  # a frame is one token: compiled in half a minute
    plain_world = copy.deepcopy(world)
    world.compile_step(2, progress=False)
    kept = list((cache / "steps").iterdir())
    assert len(kept) == 1

    state = world.begin(2)
    for k in range(4):
        fast = world.step(state, actions(world, 2), generator=seeded(k))
        plain = plain_world.step(state, actions(world, 2), generator=seeded(k), method="sequential")
        same(fast, plain, atol=2e-3)
        state = plain[1]

    envs = LearnedVectorEnv(world, num_envs=2, compile=True, observation="latent", horizon=10)
    assert envs.world._compiled is world._compiled

    # Another world of the same sizes takes the same code with its own weights, and compiles nothing.
    def fails(*_: Any, **__: Any) -> str:
        raise AssertionError("compiled again")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fails)
    other = copy.deepcopy(plain_world)
    randomize(other, seed=5)
    other_plain = copy.deepcopy(other)
    other.compile_step(2, progress=False)
    begun = other.begin(2)
    fast, others_steps = (w.step(begun, actions(w, 2), generator=seeded(3)) for w in (other, world))
    same(fast, other_plain.step(begun, actions(world, 2), generator=seeded(3), method="sequential"), atol=2e-3)
    assert np.abs((fast[0].latent - others_steps[0].latent).numpy()).max() > 1e-2
