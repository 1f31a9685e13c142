"""Objectives say what they say they do, add up, and keep plans from what a world is unsure of."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from builders import random_actions, tiny_world
from torch import Tensor
from toys import BOX, STARTS, UNDISCOUNTED, Likeliest, PointMass, Toy, cem, every_planner, outcome, seeded, shooting

from worldflow.agents import (
    Entropy,
    GoalLikelihood,
    InDistribution,
    Planner,
    Return,
    Rollout,
    Term,
    candidate_values,
)
from worldflow.randomness import normal
from worldflow.state import WorldState
from worldflow.types import ActionSpec, Generators, Transition
from worldflow.world import WorldModel

ARMS = ActionSpec(shape=(), dtype="int64", choices=(3,), first=(0,))


@dataclass(frozen=True)
class Bandit:
    """Three arms pay 1, 0.8 and 0 on average, with noise; what comes of the first is a dim of 4 nats, else of 1."""

    noise_std: float = 0.0

    def step(self, state: Toy, action: Tensor, *, generator: Generators, decode: bool) -> tuple[Transition, Toy]:
        reward = torch.tensor([1.0, 0.8, 0.0], dtype=torch.float64)[action]
        if self.noise_std:
            reward = reward + self.noise_std * normal((len(state),), generator, dtype=torch.float64)
        entropy = torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64)[action]
        return dataclasses.replace(outcome(reward), entropy=entropy), state


def past(world: WorldModel) -> tuple[Tensor, Tensor]:
    assert world.contexts is not None
    return world.contexts.frames, world.contexts.actions


def rolled(world: WorldModel, state: WorldState, actions: Tensor, *, seed: int) -> Rollout:
    """The futures of given actions, a row each, with all states."""
    states, transitions, generator = {}, [], seeded(seed)
    for t in range(actions.shape[1]):
        states[t] = state
        transition, state = world.step(state, actions[:, t], generator=generator, decode=False)
        transitions.append(transition)
    return Rollout(actions=actions, transitions=transitions, states=states, origin=torch.arange(len(actions)))


# -- toys ---------------------------------------------------------------------------------------------------------


@every_planner
def test_a_bandit_is_solved_through_its_noise(make: Callable[..., Planner[Any]]) -> None:
    # Means of 64 samples spread by 0.05; the arms are 0.2 apart, and the best is valued again: 4 sigma for each row.
    planner = make(Bandit(noise_std=0.4), ARMS, num_candidates=64, num_samples=64, **elites(make))
    plan = planner.plan(Toy(torch.zeros(3, 1)), UNDISCOUNTED, 1, generator=seeded(0))
    assert plan.actions.tolist() == [[0], [0], [0]]


def elites(make: Callable[..., Planner[Any]]) -> dict[str, Any]:
    return {"num_elites": 8} if make.__name__ in ("cem", "icem") else {}


@every_planner
@pytest.mark.parametrize(("weight", "arm"), [(0.06, 0), (0.07, 1), (-1.0, 0)])
def test_entropy_buys_safety_at_its_price(make: Callable[..., Planner[Any]], weight: float, arm: int) -> None:
    # The first arm pays 0.2 more and is 3 nats a dimension less sure: it is given up from a weight of 1 / 15 on.
    state, objective = Toy(torch.zeros(2, 1)), UNDISCOUNTED + Entropy(weight)
    plan = make(Bandit(), ARMS, num_candidates=100).plan(state, objective, 1, generator=seeded(0))
    assert plan.actions.tolist() == [[arm]] * 2


def test_objectives_add_up_and_scale() -> None:
    class Pushes(Term):
        def __call__(self, rollout: Rollout, /) -> Tensor:
            return rollout.actions[:, :, 0].sum(dim=1)

    actions = torch.tensor([[[[1.0], [-2.0]]], [[[0.5], [0.5]]], [[[0.0], [1.0]]]], dtype=torch.float64)
    parts = (Return(discount=0.9), Pushes(), lambda rollout: rollout.actions[:, 0, 0] ** 2)
    single = [candidate_values(PointMass(), Toy(STARTS), actions, part) for part in parts]
    total = 2 * Return(discount=0.9) + Pushes() * -0.5 + parts[2]
    found = candidate_values(PointMass(), Toy(STARTS), actions, total)
    assert torch.allclose(found, 2 * single[0] - 0.5 * single[1] + single[2], rtol=0, atol=1e-12)


def test_a_rollout_keeps_the_states_that_are_read_and_knows_its_rows() -> None:
    seen: list[Rollout] = []

    class Reads(Term):
        def steps_read(self, horizon: int) -> tuple[int, ...]:
            return (horizon - 1,)

        def __call__(self, rollout: Rollout, /) -> Tensor:
            seen.append(rollout)
            return torch.zeros(len(rollout.actions))

    actions = torch.ones(3, 2, 4, 1, dtype=torch.float64)
    candidate_values(PointMass(), Toy(STARTS), actions, 3.0 * Reads() + Return(), num_samples=2, max_rows=8)
    assert [r.origin.tolist() for r in seen] == [[0] * 4 + [1] * 4, [2] * 4]
    assert [set(r.states) for r in seen] == [{3}, {3}]
    state = Toy(STARTS)
    for _ in range(3):
        _, state = PointMass().step(state, actions[:, 0, 0], generator=None, decode=False)
    assert torch.equal(seen[1].states[3].x, state.x[2:].expand(4, 2))


# -- densities of a learned world ---------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", [False, True])
def test_entropy_is_the_log_density_without_the_luck_of_the_noise(decode: bool) -> None:
    world = tiny_world(dtype=torch.float64)
    frames, actions = past(world)
    state = world.start(frames, actions, generator=seeded(0))
    transition, _ = world.step(state, actions[:, 0], generator=seeded(1), decode=decode, tolerance=1e-12)
    z = normal((4, world.config.flow.num_tokens, 3), seeded(1), dtype=torch.float64)
    log_prob = transition.log_prob.frame
    if decode:  # then it is the frame's code that has the density
        x = world.flow.from_deep(transition.latent)
        log_prob = log_prob - world.flow.to_deep(x[:, None])[1].sum((1, 2))
    # log p = -H + (D - |z|^2) / 2: what differs from the entropy is the noise's own, which is 0 on average.
    assert transition.entropy is not None
    luck = 0.5 * (world.config.flow.frame_dim - z.square().sum((1, 2)))
    assert torch.allclose(transition.entropy + log_prob, luck, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("when", ["last", "mean", "best"])
def test_goal_likelihood_is_the_density_of_the_goal_in_place_of_the_next_frame(when: Any, shown: bool) -> None:
    world = tiny_world(dtype=torch.float64, shown=shown)
    frames, actions = past(world)
    before = world.encode(frames, generator=seeded(0))
    state = world.start(frames, actions, generator=seeded(0))
    future = random_actions(world.config.data.action, (4, 3), generator=seeded(2))
    rollout = rolled(world, state, future, seed=3)
    goals = torch.randint(0, 256, (4, *world.config.data.frame_shape), generator=seeded(4), dtype=torch.uint8)
    goal = world.encode(goals[None], generator=seeded(5))[0]

    scores = []
    for k in range(3):
        drawn = [world.flow.from_deep(t.latent)[:, None] for t in rollout.transitions[:k]]
        shown_frames = [t.frame[:, None] for t in rollout.transitions[:k] if t.frame is not None]
        x = torch.cat((before, *drawn, goal[:, None]), dim=1)
        codes = world.codes(torch.cat((frames, *shown_frames, goals[:, None]), dim=1)) if shown else None
        done = torch.cat((actions, future[:, : k + 1]), dim=1)
        scores.append(world.log_prob_latents(x, done, codes=codes).frame[:, -1])
    score = -world.above_floor(torch.stack(scores))
    expected = {"last": score[-1], "mean": score.mean(dim=0), "best": score.amax(dim=0)}[when]
    found = GoalLikelihood(world, goals, when=when, seed=5)(rollout)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)


def test_goal_likelihood_averages_draws_and_takes_one_goal_for_all_rows() -> None:
    world = tiny_world(dtype=torch.float64)
    frames, actions = past(world)
    state = world.start(frames, actions, generator=seeded(0))
    rollout = rolled(world, state, random_actions(world.config.data.action, (4, 1), generator=seeded(2)), seed=3)
    goal = frames[:1, -1]
    one, each = (GoalLikelihood(world, g, num_draws=3)(rollout) for g in (goal, goal.expand(4, -1, -1, -1)))
    assert torch.allclose(one.mean(), each.mean(), atol=1.0)  # other noise
    assert not torch.allclose(one, GoalLikelihood(world, goal, num_draws=1)(rollout))
    with pytest.raises(ValueError, match="one goal or one each, got 2"):
        GoalLikelihood(world, frames[:2, -1])(rollout)


def test_plans_reach_the_goal_that_the_density_knows() -> None:
    # A world without noise and four choices: of all 16 pairs, the plan is the one after which the goal is likeliest.
    learned = tiny_world(action="discrete", contexts=2, dtype=torch.float64)
    frames, actions = past(learned)
    state = learned.start(frames, actions, generator=seeded(0))
    world, objective = Likeliest(learned), GoalLikelihood(learned, frames[:, 0])
    pairs = torch.tensor(list(itertools.product(range(4), repeat=2)))
    every = candidate_values(world, state, pairs.expand(2, -1, -1), objective)
    plan = cem(world, learned.config.data.action, num_candidates=128, num_elites=12, num_iterations=2).plan(
        state, objective, 2, generator=seeded(0)
    )
    assert torch.allclose(plan.value, every.amax(dim=1), rtol=0, atol=1e-3)  # the sampler's tolerance
    assert bool((every.amax(dim=1) > every.median(dim=1).values + 0.01).all())


@pytest.mark.parametrize("shown", [False, True])
def test_in_distribution_is_the_density_with_the_action_hidden(shown: bool) -> None:
    world = tiny_world(dtype=torch.float64, shown=shown)
    frames, actions = past(world)
    state = world.start(frames, actions, generator=seeded(0))
    rollout = rolled(world, state, random_actions(world.config.data.action, (4, 2), generator=seeded(2)), seed=3)
    expected = []
    for t, transition in enumerate(rollout.transitions):
        x = world.flow.from_deep(transition.latent, tolerance=1e-12)[:, None]
        codes = world.codes(frames[:, :1]) if shown else None  # of the frame itself: not read for it
        given = torch.full((4, 1, 2), math.nan, dtype=torch.float64)
        hide = torch.ones(4, dtype=torch.bool)
        out = world.flow(x, given, shown=codes, hide_actions=hide, state=rollout.states[t])
        expected.append(-world.above_floor(out.log_prob[:, 0]))
    found = InDistribution(world, weight=3.0)(rollout)
    assert torch.allclose(found, 3 * torch.stack(expected).mean(dim=0), rtol=0, atol=1e-4)


def test_what_hides_actions_values_actions_by_what_they_lead_to() -> None:
    world = tiny_world(action="discrete", contexts=2)
    frames, actions = past(world)
    state = world.start(frames, actions, generator=seeded(0))
    choices = torch.arange(4)[None, :, None].expand(2, -1, -1)
    values = candidate_values(Likeliest(world), state, choices, InDistribution(world))
    assert bool((values.std(dim=1) > 1e-3).all())


# -- bad input ----------------------------------------------------------------------------------------------------


def test_objectives_that_ask_for_what_a_world_lacks_say_so() -> None:
    toy: Any = PointMass()
    frame = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    with pytest.raises(TypeError, match="GoalLikelihood needs a WorldModel, whose frames have a density, got Point"):
        GoalLikelihood(toy, frame)
    with pytest.raises(TypeError, match="InDistribution needs a WorldModel"):
        InDistribution(toy)
    with pytest.raises(ValueError, match="transitions that tell their entropy"):
        shooting(toy, BOX, num_candidates=2).plan(Toy(STARTS), Entropy(), 1)


def test_numbers_and_frames_must_fit() -> None:
    world = tiny_world()
    frames, _ = past(world)
    with pytest.raises(ValueError, match=r"goal frames must have shape \('goal', 16, 16, 3\)"):
        GoalLikelihood(world, frames[0, 0])
    with pytest.raises(ValueError, match=r"frames must have shape"):
        GoalLikelihood(world, frames[:, 0, :8])
    with pytest.raises(ValueError, match="when must be 'last', 'mean' or 'best', got 'soon'"):
        GoalLikelihood(world, frames[:, 0], when="soon")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="num_draws must be at least 1"):
        GoalLikelihood(world, frames[:, 0], num_draws=0)
    with pytest.raises(ValueError, match="weight must be at least 0"):
        InDistribution(world, weight=-1.0)
    for weight in (math.nan, math.inf):
        with pytest.raises(ValueError, match="weight must be a finite number"):
            Entropy(weight)
        with pytest.raises(ValueError, match="weight must be a finite number"):
            _ = weight * Return()
    assert Return(0.9) == Return(discount=0.9)
