"""What the flow is trained on.

Per dimension of a frame's latent, averaged over the valid frames of a clip:

    loss = -log p(x~_t | x~_<t, a) / dim + draft_weight |draft_t - u_t|^2 + head_weight (reward NLL + termination NLL)
           + |s(x~) - noise_std * grad_x~ NLL(clip)|^2    where there is a denoiser s
           + the frames' reconstruction                   where the codec learns, too (`worldflow.joint`)

with `x~ = x + noise_std * eps` drawn anew for every clip. The first term is taken above the noise's own cost, so it can
be compared between noise levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worldflow.latents import LatentBatch
from worldflow.recipes import TrainConfig
from worldflow.symmetry import ActionMaps
from worldflow.world import WorldModel

__all__ = ["FlowLoss", "draw_clips", "flow_loss", "loss_of_drawn"]


@dataclass(frozen=True, kw_only=True)
class FlowLoss:
    """The loss of a batch and its parts, each a mean over valid transitions (scalars)."""

    total: Tensor
    above_floor: Tensor
    draft_error: Tensor
    reward_nll: Tensor
    termination_nll: Tensor
    denoiser_error: Tensor


def flow_loss(
    world: WorldModel,
    batch: LatentBatch,
    *,
    generator: torch.Generator | None,
    config: TrainConfig,
    maps: ActionMaps | None = None,
    swap: bool = False,
) -> FlowLoss:
    """The flow's loss on clips of codes.

    Args:
        world: The world.
        batch: Clips.
        generator: Draws the codes' noise and which clips hide their actions and their texts.
        config: Weights of the parts.
        maps: What symmetries do to actions, where clips are shown by some.
        swap: Give each clip its neighbor's actions, to see whether they matter.
    """
    drawn = draw_clips(world, batch, generator=generator, config=config, swap=swap)
    return loss_of_drawn(world, drawn, config=config, maps=maps)


def draw_clips(
    world: WorldModel,
    batch: LatentBatch,
    *,
    generator: torch.Generator | None,
    config: TrainConfig,
    noise: torch.Generator | None = None,
    swap: bool = False,
) -> dict[str, Tensor]:
    """Clips with everything random decided, on the world's device: what `loss_of_drawn` is a function of.

    Args:
        world: The world.
        batch: Clips.
        generator: Draws which clips hide their actions and their texts, and from where on frames are a world's own.
        config: How often.
        noise: Draws the codes' noise, where it is made; `generator` by default.
        swap: Give each clip its neighbor's actions.
    """
    device, B = world.device, len(batch.valid)
    codes = batch.x.to(device)
    drawn = {
        "codes": codes,
        "noisy": world.with_noise(codes, generator=generator if noise is None else noise),
        "features": world.encode_actions(batch.actions),
        "rewards": batch.rewards.to(device),
        "terminated": batch.terminated.to(device),
        "valid": batch.valid.to(device),
    }
    if world.config.flow.has_shown:
        drawn["shown"] = _shown(batch, generator, device=device).detach()
    if world.training:
        drawn["hide"] = torch.rand(B, generator=generator).to(device) < config.action_dropout
    if batch.symmetry is not None:
        drawn["symmetry"] = batch.symmetry.to(device)
    if batch.text is not None:
        drawn["text"] = text = batch.text.to(device)
        if world.training:
            assert world.nothing is not None
            unread = torch.rand(B, generator=generator).to(device) < config.text_dropout
            drawn["text"] = torch.where(unread[:, None, None], world.nothing, text)
    if batch.codec_loss is not None:
        drawn["codec_loss"] = batch.codec_loss
    if swap:
        drawn |= {name: drawn[name].roll(1, 0) for name in ("features", "symmetry") if name in drawn}
    return drawn


def loss_of_drawn(
    world: WorldModel, drawn: Mapping[str, Tensor], *, config: TrainConfig, maps: ActionMaps | None = None
) -> FlowLoss:
    """The flow's loss on what `draw_clips` drew; nothing in it is random, nor depends on a number of the batch."""
    x, codes, valid = drawn["noisy"], drawn["codes"], drawn["valid"]
    if world.denoiser is not None and torch.is_grad_enabled():
        x = x if x.requires_grad else x.detach().requires_grad_()
    features, text = drawn["features"], drawn.get("text")
    if maps is not None and "symmetry" in drawn:
        features = maps(features, drawn["symmetry"])
    features = torch.cat((features.new_zeros(len(features), 1, features.shape[-1]), features), dim=1)
    # A draft is a forecast, and learns to be one from its squared error alone: with the likelihood's gradient too it
    # becomes a feature of the deep block, and a worse forecast: on Reacher it was off by 0.199 after 3400 steps, where
    # a drafter trained by itself was off by 0.180 after 2050.
    out = world.flow(
        x, features, text=text, shown=drawn.get("shown"), hide_actions=drawn.get("hide"), detach_draft=True
    )
    is_frame = torch.cat((torch.ones_like(valid[:, :1]), valid), dim=1)

    def mean(values: Tensor, mask: Tensor) -> Tensor:
        return (values * mask).sum() / mask.sum()

    above = mean(world.above_floor(out.log_prob), is_frame)
    draft = out.log_prob.new_zeros(())
    if out.draft is not None:
        # Without shallow blocks `u` is the noisy code, whose mean is the code: as a target it has less variance.
        target = (out.u if world.config.flow.shallow_layers else codes).detach()
        filled = target.shape[-2] * target.shape[-1] / world.config.flow.frame_dim  # what is zero in both has no share
        draft = mean(filled * (out.draft - target).square().mean((-2, -1))[:, 1:], valid)
    hidden = out.hidden[:, 1:]
    reward = mean(-world.reward.log_prob(hidden, drawn["rewards"]), valid)
    termination = mean(-world.termination.log_prob(hidden, drawn["terminated"]), valid)
    total = above + config.draft_weight * draft + config.head_weight * (reward + termination)
    denoiser = out.log_prob.new_zeros(())
    if world.denoiser is not None and x.requires_grad:
        # The gradient of the likelihood alone: in that of the whole loss are the drafts' and the heads', too.
        (gradient,) = torch.autograd.grad(-(out.log_prob * is_frame).sum(), x, retain_graph=True)
        score = world.denoiser(x.detach(), text=text)
        error = (score - world.config.codec.noise_std * gradient.detach()).square().mean((-2, -1))
        denoiser = mean(error, is_frame)
        total = total + denoiser
    if "codec_loss" in drawn:
        total = total + drawn["codec_loss"]
    return FlowLoss(
        total=total,
        above_floor=above,
        draft_error=draft,
        reward_nll=reward,
        termination_nll=termination,
        denoiser_error=denoiser,
    )


def _shown(batch: LatentBatch, generator: torch.Generator | None, *, device: torch.device) -> Tensor:
    """Codes of what is shown: recorded frames up to a random one, from there on frames such as the world makes."""
    B, T = batch.x.shape[:2]
    given = torch.rand(B, 1, generator=generator) * (T + 1)
    is_recorded = (torch.arange(T) < given).to(device)
    return torch.where(is_recorded[..., None, None], batch.x.to(device), batch.shown.to(device))
