"""A learned world whose steps have gradients: at fixed noise, what it draws is a smooth function of the actions.

A flow's sample is `u_j = mu_j(u_<j, past, a) + sigma_j(u_<j, past, a) z_j`. With `z` held fixed it is differentiable in
the past and the action, token after token and frame after frame: the reparametrized sample. It is drawn *sequentially*
here: each token once, from what is in the cache, so that the graph is about as large as that of one pass over the frame
and its gradient is that of the exact sample; one through Jacobi sweeps would hold every sweep, and be as far from
converged as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from worldflow.randomness import normal, uniform
from worldflow.state import WorldState
from worldflow.types import Generators, LogProb, Transition
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Shaped

__all__ = ["Differentiable"]


@dataclass(frozen=True)
class Differentiable:
    """The same world, with gradients from what a step expects back to the action and to the state.

    It draws the numbers that `WorldModel.step` draws from the same generator, so both give the same transition, up to
    the tolerance of the world's own sampler. Where the flow looks at the frames that it shows (`FlowConfig.has_shown`),
    gradients pass the rounding of pixels as if there were none (straight-through).

    Args:
        world: The world. Its parameters gather no gradients, as long as those of the actions are asked for
            (`torch.autograd.grad`).
        temperature: Scale of the frames' noise.
    """

    world: WorldModel
    temperature: float = 1.0

    def step(
        self,
        state: WorldState,
        action: Shaped[Tensor, "batch *action"],
        *,
        generator: Generators = None,
        decode: bool = False,
    ) -> tuple[Transition, WorldState]:
        """Draw the next transition, as `WorldModel.step`."""
        world, config = self.world, self.world.config.flow
        B = len(state)
        shape = (B, config.num_tokens, config.latent_dim)
        z = normal(shape, generator, device=world.device, dtype=world.dtype)
        chances = uniform((B, 4), generator, device=world.device, dtype=world.dtype)
        features = world.encode_actions(action)
        drawn = world.flow.draw(state, features, self.temperature * z, method="sequential")
        frame, frame_log_prob, after = None, drawn.log_prob, drawn.state
        if decode or config.has_shown:
            x = world.flow.from_deep(drawn.u, method="sequential")
            frame_log_prob = frame_log_prob + world.flow.to_deep(x[:, None])[1][:, 0].sum(-1)
            frame, codes = world.codec.shown(x)
            if config.has_shown:
                after = world.flow.show(after, codes.to(world.dtype))
        termination_prob = world.termination.logit(drawn.hidden).sigmoid()
        terminated = chances[:, 0] < termination_prob
        reward = world.reward.sample(drawn.hidden.detach(), chances[:, 1:])
        transition = Transition(
            frame=frame,
            reward=reward,
            reward_mean=world.reward.mean(drawn.hidden),
            terminated=terminated,
            termination_prob=termination_prob,
            log_prob=LogProb(
                frame=frame_log_prob,
                reward=world.reward.log_prob(drawn.hidden, reward),
                terminated=world.termination.log_prob(drawn.hidden, terminated),
            ),
            latent=drawn.u,
            entropy=drawn.entropy,
        )
        return transition, after
