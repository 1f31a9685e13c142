"""Steps have the right gradients, and following them finds what a search only comes near, unless it does not help."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from builders import random_actions, tiny_world
from torch import Tensor
from toys import BOX, MOVES, PLANE, STARTS, UNDISCOUNTED, Chain, Follow, PointMass, Toy, cem, outcome, riccati, seeded

from worldflow.agents import CEM, Differentiable, GoalLikelihood, Refined, Return, candidate_values
from worldflow.agents.rollout import rollout_values
from worldflow.randomness import normal
from worldflow.state import WorldState
from worldflow.types import Generators, Transition
from worldflow.world import WorldModel


def started(world: WorldModel) -> WorldState:
    assert world.contexts is not None
    return world.start(world.contexts.frames, world.contexts.actions, generator=seeded(0))


# -- differentiable steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("size", [16, 12])
def test_a_differentiable_step_draws_what_the_world_draws(shown: bool, decode: bool, size: int) -> None:
    world = tiny_world(shown=shown, size=size, dtype=torch.float64)
    state = started(world)
    actions = random_actions(world.config.data.action, (4, 2), generator=seeded(1))
    generators, one, other = (seeded(2), seeded(2)), state, state
    for t in range(2):
        plain, one = world.step(one, actions[:, t], generator=generators[0], decode=decode, tolerance=1e-12)
        smooth, other = Differentiable(world).step(other, actions[:, t], generator=generators[1], decode=decode)
        assert (plain.frame is None) == (smooth.frame is None)
        if plain.frame is not None and smooth.frame is not None:
            assert torch.equal(plain.frame, smooth.frame)
        for name in ("reward", "reward_mean", "termination_prob", "latent", "entropy"):
            assert torch.allclose(getattr(plain, name), getattr(smooth, name), rtol=0, atol=1e-6)
        assert torch.allclose(plain.log_prob.total, smooth.log_prob.total, rtol=0, atol=1e-6)
    for name, tensor in one.tensors().items():
        assert torch.allclose(tensor, other.tensors()[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("goal", [False, True])
def test_gradients_are_those_of_finite_differences(goal: bool) -> None:
    world = tiny_world(dtype=torch.float64, contexts=2)
    state, origin = started(world), torch.arange(2)
    assert world.contexts is not None
    objective = GoalLikelihood(world, world.contexts.frames[:, 0]) if goal else Return()
    actions = random_actions(world.config.data.action, (2, 1, 3), generator=seeded(1)).double()

    def value(actions: Tensor) -> Tensor:
        return rollout_values(Differentiable(world), state, actions, objective, 2, seeded(3), origin=origin).sum()

    actions.requires_grad_()
    (gradient,) = torch.autograd.grad(value(actions), actions)
    step = 1e-5
    for index in ((0, 0, 0, 0), (1, 0, 0, 1), (0, 0, 2, 1), (1, 0, 1, 0)):
        moved = torch.zeros_like(actions)
        moved[index] = step
        with torch.no_grad():
            slope = (value(actions + moved) - value(actions - moved)) / (2 * step)
        # The error of a central difference is of the order of step^2, that of rounding 1e-16 / step.
        assert float(gradient[index]) == pytest.approx(float(slope), rel=1e-4, abs=1e-8)
        assert abs(float(slope)) > 1e-6


def test_gradients_pass_the_frames_that_are_shown() -> None:
    world = tiny_world(dtype=torch.float64, contexts=2, shown=True)
    state, origin = started(world), torch.arange(2)
    actions = random_actions(world.config.data.action, (2, 1, 2), generator=seeded(1)).double().requires_grad_()
    last = lambda rollout: rollout.transitions[-1].reward_mean  # noqa: E731
    value = rollout_values(Differentiable(world), state, actions, last, 1, seeded(3), origin=origin)
    (gradient,) = torch.autograd.grad(value.sum(), actions)
    assert bool(gradient.isfinite().all())
    assert bool((gradient[:, :, 0] != 0).any(dim=-1).all())


# -- refinement ---------------------------------------------------------------------------------------------------


def test_refined_plans_are_exact_where_the_search_is_coarse() -> None:
    actions, value = riccati(STARTS, 6)
    search = cem(PointMass(), BOX, num_candidates=40, num_elites=6, num_iterations=3)
    coarse = search.plan(Toy(STARTS), UNDISCOUNTED, 6, generator=seeded(0))
    planner = Refined(search, PointMass(), BOX, num_steps=60)
    fine = planner.plan(Toy(STARTS), UNDISCOUNTED, 6, generator=seeded(0))
    assert bool((value - coarse.value > 0.05).all())
    assert bool((value - fine.value < 2e-3).all())
    assert torch.allclose(fine.actions, actions, rtol=0, atol=0.1)


def test_refined_plans_stay_within_their_bounds() -> None:
    targets = torch.tensor([[0.3, -1.2], [5.0, 0.0], [-9.0, 2.5]], dtype=torch.float64)
    planner = Refined(cem(Follow(), PLANE, num_iterations=1), Follow(), PLANE, num_steps=60)
    plan = planner.plan(Toy(targets), UNDISCOUNTED, 2, generator=seeded(0))
    best = targets.clamp(torch.tensor(PLANE.low), torch.tensor(PLANE.high))[:, None].expand(-1, 2, -1)
    assert torch.allclose(plan.actions, best, rtol=0, atol=0.02)
    assert bool((plan.actions <= torch.tensor(PLANE.high)).all())


def test_refined_plans_need_no_gradients_around_them_and_leave_a_fixed_component_alone() -> None:
    action = dataclasses.replace(PLANE, low=(-0.1, 0.3), high=(0.1, 0.3))
    search = cem(Follow(), action, num_candidates=8, num_elites=2, num_iterations=1)
    with torch.no_grad():
        plan = Refined(search, Follow(), action, num_steps=60).plan(
            Toy(torch.tensor([[9.0, 9.0]], dtype=torch.float64)), UNDISCOUNTED, 2, generator=seeded(0)
        )
    assert torch.equal(plan.actions, torch.tensor([[[0.1, 0.3]] * 2], dtype=torch.float64))


class _Misled(torch.autograd.Function):
    """The identity, whose gradient points the wrong way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return -gradient


class MisleadingFollow:
    """`Follow`, but gradients lead away from the target."""

    def step(self, state: Toy, action: Tensor, *, generator: Generators, decode: bool) -> tuple[Transition, Toy]:
        return Follow().step(state, _Misled.apply(action), generator=generator, decode=decode)  # pyright: ignore


def test_what_is_refined_is_kept_only_if_it_is_better() -> None:
    targets = Toy(torch.tensor([[0.3], [-1.0]], dtype=torch.float64))
    search = cem(Follow(), BOX, num_candidates=64, num_elites=8)
    found = search.plan(targets, UNDISCOUNTED, 2, generator=seeded(0))
    plan = Refined(search, MisleadingFollow(), BOX).plan(targets, UNDISCOUNTED, 2, generator=seeded(0))
    assert torch.allclose(plan.value, found.value, rtol=0, atol=1e-12)
    assert torch.equal(plan.actions, found.actions)


@dataclass(frozen=True)
class Gust:
    """Pays `wind a - a^2 / 8` with a standard normal wind: in given futures it pays to lean into their wind."""

    def step(self, state: Toy, action: Tensor, *, generator: Generators, decode: bool) -> tuple[Transition, Toy]:
        wind = normal((len(state),), generator, dtype=torch.float64)
        return outcome(wind * action[:, 0] - action[:, 0] ** 2 / 8), state


def test_the_luck_of_the_futures_it_climbed_is_not_counted() -> None:
    # Whatever is chosen by other futures is worth -a^2 / 8 <= 0 on average; what was climbed in promises 0.8 |a|. The
    # value of a plan spreads by |a| / sqrt(8) <= 0.71, so the mean of 300 stays below 5 * 0.71 / sqrt(300).
    state = Toy(torch.zeros(300, 1, dtype=torch.float64))
    search = CEM(Gust(), BOX, num_candidates=16, num_elites=4, num_iterations=1, num_samples=8, max_rows=10_000)
    planner = Refined(search, Gust(), BOX, num_steps=20, num_samples=8, max_rows=10_000)
    plan = planner.plan(state, UNDISCOUNTED, 1, generator=seeded(0))
    assert float(plan.value.mean()) < 0.21


@pytest.mark.parametrize("shown", [False, True])
def test_plans_are_refined_in_a_learned_world(shown: bool) -> None:
    world = tiny_world(scale=2.0, shown=shown, contexts=2)
    state, action = started(world), world.config.data.action
    kept = state.to_bytes()
    search = CEM(world, action, num_candidates=4, num_elites=2, num_iterations=1)
    planner = Refined(search, Differentiable(world), action, num_refined=3, num_steps=2, max_rows=2)
    before = torch.get_rng_state()
    plan, again = (planner.plan(state, Return(), 2, generator=seeded(1)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(plan.actions, again.actions)
    assert torch.equal(plan.value, again.value)
    assert state.to_bytes() == kept
    assert plan.actions.shape == (2, 2, 2)
    assert plan.actions.dtype == torch.float32
    assert bool((plan.actions.abs() <= 1).all())
    assert all(p.grad is None for p in world.parameters())


def test_all_steps_are_counted_and_a_row_is_refined_as_if_alone() -> None:
    search = cem(PointMass(noise_std=0.5), BOX, num_candidates=20, num_elites=4, num_iterations=2)
    planner = Refined(search, PointMass(noise_std=0.5), BOX, num_refined=3, num_steps=5, num_samples=2, max_rows=4)
    generators = [seeded(i) for i in range(3)]
    together = planner.plan(Toy(STARTS), UNDISCOUNTED, 3, generator=generators)
    alone = planner.plan(Toy(STARTS[1:2]), UNDISCOUNTED, 3, generator=[seeded(1)])
    assert torch.allclose(alone.actions[0], together.actions[1], rtol=0, atol=1e-9)
    searched = 3 * (2 * 20 + 2) * 3
    assert together.diagnostics.num_steps == searched + 3 * (5 * 3 + 6 + 1) * 3 * 2
    assert together.diagnostics.finalists.shape == (3, 6, 3, 1)
    assert torch.equal(together.diagnostics.finalists[:, 0], together.actions)


# -- bad input ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_refined_is_refused() -> None:
    chain: Any = cem(Chain(), MOVES)
    with pytest.raises(ValueError, match="discrete actions have no gradient"):
        Refined(chain, Chain(), MOVES)
    world = tiny_world()
    search = CEM(world, world.config.data.action, num_candidates=4, num_elites=2, num_iterations=1)
    with pytest.raises(ValueError, match=r"no gradient in the actions; give Refined a Differentiable\(world\)"):
        Refined(search, world, world.config.data.action).plan(started(world), Return(), 1, generator=seeded(0))
    with pytest.raises(ValueError, match=r"the world knows continuous actions of shape \(2,\)"):
        Refined(search, Differentiable(world), dataclasses.replace(BOX, dtype="float32"))
    point: Any = cem(PointMass(), BOX)
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"num_refined": 0}, "num_refined must be at least 1"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"num_samples": 100}, "raise max_rows"),
    )
    for options, match in wrong:
        with pytest.raises(ValueError, match=match):
            Refined(point, PointMass(), BOX, **options)


def test_candidate_values_still_have_no_gradient() -> None:
    actions = torch.zeros(3, 1, 2, 1, dtype=torch.float64, requires_grad=True)
    assert not candidate_values(PointMass(), Toy(STARTS), actions, UNDISCOUNTED).requires_grad
