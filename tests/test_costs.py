"""A world's costs are what its objective says, negative; the real solvers of stable-worldmodel minimize them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from builders import random_actions, tiny_world
from gymnasium import spaces
from toys import BOX, MOVES, STARTS, UNDISCOUNTED, Chain, PointMass, Toy, riccati, seeded

from worldflow.agents import Differentiable, GoalLikelihood, Return, candidate_values
from worldflow.agents.costs import Costs


@dataclass(frozen=True)
class PlanConfig:
    """What a solver reads of `stable_worldmodel.PlanConfig`, whose module needs torchvision."""

    horizon: int
    action_block: int = 1


@pytest.fixture
def solvers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The real `stable_worldmodel.solver`, without what the package imports for data, videos and environments."""
    pytest.importorskip("loguru")
    found = importlib.util.find_spec("stable_worldmodel")
    if found is None or found.origin is None:
        pytest.skip("stable-worldmodel is not installed")
    package = ModuleType("stable_worldmodel")
    package.__path__ = [str(Path(found.origin).parent)]
    before = set(sys.modules)
    monkeypatch.setitem(sys.modules, "stable_worldmodel", package)
    yield importlib.import_module("stable_worldmodel.solver")
    for name in set(sys.modules) - before:
        if name.startswith("stable_worldmodel."):
            del sys.modules[name]


def toy_costs() -> Costs[Toy]:
    return Costs(PointMass(), BOX, UNDISCOUNTED, start=lambda info: Toy(torch.as_tensor(info["place"])[:, 0].double()))


def test_the_cem_of_stable_worldmodel_finds_the_optimum(solvers: Any) -> None:
    solver = solvers.CEMSolver(toy_costs(), batch_size=2, num_samples=200, n_steps=15, topk=20)
    solver.configure(action_space=spaces.Box(-2, 2, (3, 1)), n_envs=3, config=PlanConfig(horizon=4))
    found = solver.solve({"place": STARTS})["actions"]
    actions, value = riccati(STARTS, 4)
    reached = candidate_values(PointMass(), Toy(STARTS), found.double()[:, None], UNDISCOUNTED)[:, 0]
    idle = candidate_values(PointMass(), Toy(STARTS), torch.zeros(3, 1, 4, 1, dtype=torch.float64), UNDISCOUNTED)[:, 0]
    assert bool((value - reached < 0.01 * (value - idle)).all())
    assert torch.allclose(found.double(), actions, rtol=0, atol=0.3)


def test_gradient_descent_of_stable_worldmodel_nears_the_optimum(solvers: Any) -> None:
    solver = solvers.GradientSolver(toy_costs(), n_steps=60, optimizer_kwargs={"lr": 0.2}, num_samples=1)
    solver.configure(action_space=spaces.Box(-2, 2, (3, 1)), n_envs=3, config=PlanConfig(horizon=3))
    found = solver.solve({"place": STARTS})["actions"].double().reshape(3, 1, 3, 1)
    value, idle = riccati(STARTS, 3)[1], torch.zeros_like(found)
    reached, before = (candidate_values(PointMass(), Toy(STARTS), a, UNDISCOUNTED)[:, 0] for a in (found, idle))
    assert bool((value - reached < 0.02 * (value - before)).all())


def test_the_categorical_cem_of_stable_worldmodel_takes_the_long_way(solvers: Any) -> None:
    costs = Costs(Chain(), MOVES, UNDISCOUNTED, start=lambda info: Toy(torch.as_tensor(info["place"])[:, 0]))
    solver = solvers.CategoricalCEMSolver(costs, batch_size=2, num_samples=300, n_steps=6, topk=30)
    solver.configure(action_space=spaces.Discrete(3), n_envs=2, config=PlanConfig(horizon=5))
    solver.solve({"place": torch.tensor([2, 3])})  # it runs; what it returns is its own business
    best = costs.get_cost({"place": torch.tensor([[2], [3]])}, one_hot([[3, 3, 2, 2, 2], [3, 2, 2, 2, 2]]))
    assert best.tolist() == [[-4.0], [-5.0]]


def one_hot(choices: list[list[int]]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(choices) - 1, 3).float()[:, None]


def test_the_cem_of_stable_worldmodel_runs_in_a_learned_world(solvers: Any) -> None:
    world = tiny_world(contexts=2)
    assert world.contexts is not None
    solver = solvers.CEMSolver(Costs(world, world.config.data.action), num_samples=8, n_steps=2, topk=3)
    solver.configure(action_space=spaces.Box(-1, 1, (2, 2)), n_envs=2, config=PlanConfig(horizon=2, action_block=2))
    info = {
        "pixels": world.contexts.frames,
        "action": world.contexts.actions,
        "goal": world.contexts.frames[:, :1].numpy(),
    }
    out = solver.solve(info)
    assert out["actions"].shape == (2, 2, 4)
    assert np.isfinite(out["costs"]).all()


def test_costs_are_values_negative() -> None:
    world = tiny_world(contexts=2)
    assert world.contexts is not None
    action = world.config.data.action
    candidates = 1.5 * random_actions(action, (2, 3, 4), generator=seeded(1))
    repeated = {"pixels": world.contexts.frames[:, None].expand(-1, 3, *[-1] * 4)}
    repeated["action"] = world.contexts.actions[:, None].expand(-1, 3, -1, -1)
    costs = Costs(world, action, Return(), num_samples=2, seed=5)
    found = costs.get_cost(repeated, candidates)
    state = world.start(world.contexts.frames, world.contexts.actions, generator=seeded(5))
    expected = candidate_values(world, state, candidates.clamp(-1, 1), Return(), num_samples=2, generator=seeded(5))
    assert torch.equal(found, -expected.float())
    assert torch.equal(costs.criterion(repeated, candidates), found)  # the state is remembered, and the seed is kept
    # Two actions side by side are two steps.
    assert torch.equal(costs.get_cost(repeated, candidates.reshape(2, 3, 2, 4)), found)
    goal = world.contexts.frames[:, None]
    towards = Costs(world, action, seed=5).get_cost({**repeated, "goal": goal}, candidates)
    likelihood = GoalLikelihood(world, world.contexts.frames[:, -1], seed=5)
    values = candidate_values(world, state, candidates.clamp(-1, 1), likelihood, generator=seeded(5))
    assert torch.equal(towards, -values.float())


def test_costs_have_gradients_where_they_are_wanted() -> None:
    world = tiny_world(contexts=2)
    assert world.contexts is not None
    action = world.config.data.action
    info = {"pixels": world.contexts.frames[:, None, :1]}
    candidates = random_actions(action, (2, 1, 2), generator=seeded(1)).requires_grad_()
    smooth = Costs(Differentiable(world), action, Return()).get_cost(dict(info), candidates)
    (gradient,) = torch.autograd.grad(smooth.sum(), candidates)
    assert bool((gradient != 0).any())
    plain = Costs(world, action, Return()).get_cost(dict(info), candidates)
    assert torch.allclose(plain, smooth, rtol=0, atol=1e-2)  # the sampler's tolerance


def test_what_is_missing_or_does_not_fit_is_named() -> None:
    world = tiny_world()
    action = world.config.data.action
    assert world.contexts is not None
    toy: Any = PointMass()
    with pytest.raises(ValueError, match="needs start: it has no frames to read"):
        Costs(toy, BOX, Return())
    with pytest.raises(ValueError, match="needs objective"):
        Costs(toy, BOX, start=lambda info: Toy(STARTS))
    with pytest.raises(ValueError, match="the world knows continuous actions"):
        Costs(world, MOVES)
    costs = Costs(world, action)
    candidates = torch.zeros(4, 2, 3, 2)
    with pytest.raises(ValueError, match=r"info_dict must hold 'pixels', got \['place'\]"):
        costs.get_cost({"place": STARTS}, candidates)
    with pytest.raises(ValueError, match=r"must hold 'action'"):
        costs.get_cost({"pixels": world.contexts.frames[:, None]}, candidates)
    info: dict[str, Any] = {"pixels": world.contexts.frames[:, None, :1]}
    with pytest.raises(ValueError, match=r"must hold 'goal'"):
        costs.get_cost(info, candidates)
    with pytest.raises(ValueError, match=r"shape \(batch, sample, horizon, 2\)"):
        costs.get_cost(info, torch.zeros(4, 2, 3, 3))
    with pytest.raises(ValueError, match="'goal' must have shape"):
        costs.get_cost({**info, "goal": torch.zeros(4, 2)}, candidates)
