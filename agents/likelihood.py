"""Objectives that ask the world's exact density: does this future show the goal, and is it like what was recorded?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from worldflow.agents.objectives import Rollout, Term
from worldflow.agents.rollout import check_count
from worldflow.frames import Frames, as_tensors
from worldflow.state import WorldState
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, UInt8

__all__ = ["GoalLikelihood", "InDistribution", "log_density"]


@dataclass(frozen=True, eq=False)
class GoalLikelihood(Term):
    """How likely the imagined future is to show a goal next, exactly.

    At step `k` of an imagined future the world has a past, the frames that it drew before, and an action. The score is

        g_k = 1/D log p(x~_goal | imagined x_{<k}, a_k) + floor

    the log-density, in nats per dimension, of the goal frame's noisy code `x~ = encode(goal) + noise_std eps` in the
    place of the coming frame; base density and all log-determinants together, nothing estimated. `floor` is
    `WorldModel.noise_floor`, the mean NLL that the noise alone costs: a world that is certain of the goal scores 0 on
    average over `eps`, any other less. `eps` is drawn once (`num_draws` times, over which log-densities are averaged)
    and is the same for all candidates, so that they are compared by what they do and not by their luck with it.

    The score is the density before the frame is drawn: it is about the whole spread of what may come, so it varies
    less from future to future than the drawn frame would. It does not know whether the future ended before.

    Args:
        world: Whose density; plans must be made in it.
        frames: The goal, one frame for all rows of a state or one for each.
        when: `last`: be there at the end of the horizon; `mean`: as early and as long as possible, the mean over steps;
            `best`: pass by, the greatest of all steps.
        num_draws: Draws of the code's noise.
        seed: Of the noise.

    Raises:
        TypeError: If there is no `WorldModel`, whose frames have a density, or its frames have parts and these none.
        ValueError: If the frames are not of the world's size, or `when` is unknown.
    """

    world: WorldModel
    frames: UInt8[Tensor, "goal row column channel"]
    when: Literal["last", "mean", "best"] = "last"
    num_draws: int = 1
    seed: int = 0
    _codes: Tensor = field(init=False, repr=False)
    _noisy: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_world(self.world, "GoalLikelihood")
        check_count("num_draws", self.num_draws)
        if self.when not in ("last", "mean", "best"):
            raise ValueError(f"when must be 'last', 'mean' or 'best', got {self.when!r}")
        frames, data = as_tensors(self.frames), self.world.config.data
        if data.parts is not None and not isinstance(self.frames, Frames | Mapping):
            raise TypeError(f"goal frames must be a dictionary of {sorted(data.part_shapes)}, got one array")
        expected = ("goal", *(() if data.parts else data.frame_shape))
        if frames.ndim != len(expected) or len(frames) == 0:
            raise ValueError(f"goal frames must have shape {expected}, at least one, got {tuple(frames.shape)}")
        codes = self.world.codes(frames)
        generator = torch.Generator().manual_seed(self.seed)
        noisy = self.world.with_noise(codes.expand(self.num_draws, *codes.shape), generator=generator)
        object.__setattr__(self, "_codes", codes)
        object.__setattr__(self, "_noisy", noisy)

    def steps_read(self, horizon: int) -> Collection[int]:
        """The last step, or all."""
        return (horizon - 1,) if self.when == "last" else range(horizon)

    def __call__(self, rollout: Rollout, /) -> Float64[Tensor, " row"]:
        """Value of each row.

        Raises:
            ValueError: If there are neither one goal nor as many as rows in the state.
        """
        num_goals = len(self._codes)
        if num_goals > 1 and int(rollout.origin.max()) >= num_goals:
            raise ValueError(
                f"a state of {int(rollout.origin.max()) + 1} rows or more needs one goal or one each, got {num_goals}"
            )
        goal = torch.zeros_like(rollout.origin) if num_goals == 1 else rollout.origin
        goal = goal.to(self._codes.device)
        scores = []
        for k in self.steps_read(len(rollout.transitions)):
            features = self.world.encode_actions(rollout.actions[:, k])
            draws = [
                log_density(self.world, rollout.states[k], features, noisy[goal], self._codes[goal])
                for noisy in self._noisy
            ]
            scores.append(torch.stack(draws).mean(dim=0))
        score = torch.stack(scores) / self.world.config.flow.frame_dim + self.world.noise_floor
        return score.amax(dim=0) if self.when == "best" else score.mean(dim=0)


@dataclass(frozen=True)
class InDistribution(Term):
    """A penalty on futures unlike the recordings: where the world has seen little, a plan exploits its errors.

        value = weight / T sum_t [ 1/D log p(x_t | imagined x_{<t}) + floor ]

    the exact log-density of each frame that the world drew, in nats per dimension, with the action *hidden*: as the
    recorded behavior would have led there. It falls where an action leads somewhere that nobody who was recorded went,
    and where the imagined past is already strange. Like any density it also falls where much is random; against that
    alone there is `Entropy`. All steps count alike, whether or not the future may have ended.

    The world must have been trained with actions hidden now and then, as `worldflow.train` does. It costs one more pass
    of the flow a step, and keeps the states of all steps: lower `max_rows` if memory is short.

    Args:
        world: Whose density; plans must be made in it.
        weight: Value lost per nat per dimension.

    Raises:
        TypeError: If there is no `WorldModel`, whose frames have a density.
        ValueError: If the weight is negative or not finite.
    """

    world: WorldModel
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_world(self.world, "InDistribution")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be at least 0 and finite, got {self.weight}")

    def steps_read(self, horizon: int) -> Collection[int]:
        """All of them."""
        return range(horizon)

    def __call__(self, rollout: Rollout, /) -> Float64[Tensor, " row"]:
        """Value of each row."""
        scores = []
        for t, transition in enumerate(rollout.transitions):
            x = self.world.flow.from_deep(transition.latent)
            scores.append(log_density(self.world, rollout.states[t], None, x, x))
        score = torch.stack(scores).mean(dim=0) / self.world.config.flow.frame_dim + self.world.noise_floor
        return self.weight * score


def log_density(
    world: WorldModel,
    state: WorldState,
    features: Float[Tensor, "row feature"] | None,
    x: Float[Tensor, "row token latent"],
    codes: Float[Tensor, "row token latent"],
) -> Float64[Tensor, " row"]:
    """`log p(x | past, action)` in nats; without features the action is hidden.

    `codes` are of the frame as shown; a flow that reads those reads them for later frames only.
    """
    hidden = torch.full((len(x),), features is None, device=x.device)
    given = x.new_zeros(len(x), world.config.flow.action_dim) if features is None else features.to(x.dtype)
    shown = codes[:, None] if world.config.flow.has_shown else None
    out = world.flow(x[:, None], given[:, None], shown=shown, hide_actions=hidden, state=state)
    return out.log_prob[:, 0].double()


def _check_world(world: object, name: str) -> None:
    if not isinstance(world, WorldModel):
        raise TypeError(
            f"{name} needs a WorldModel, whose frames have a density, got {type(world).__name__}; "
            "give the world that the plan is made in"
        )
