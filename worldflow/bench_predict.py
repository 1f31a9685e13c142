"""Speeds of sizes that are not at hand, predicted from counts: operations, and bytes of weights that must be read.

    seconds = max(operations / rate, bytes / bandwidth)

with the rate at which a measured size worked, on as many rows and in the same way: what it loses to everything but
products, a larger size loses, too. Larger products usually run nearer to the machine's best, so that such a prediction
is rather slow than fast. Nothing is allocated: operations are counted on tensors without numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from worldflow.compiled import traced_step
from worldflow.recipes import Preset, TrainConfig, world_config
from worldflow.timing import count_flops
from worldflow.world import WorldModel

__all__ = ["Counted", "imaginary", "predicted_seconds", "step_counts", "train_counts"]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What a piece of work takes."""

    flops: int
    weights: int
    """Bytes of weights that are read."""


def imaginary(world: WorldModel, preset: Preset | None) -> WorldModel:
    """A world of another size, or of the same, for the same data: sizes alone, without numbers."""
    config = world.config
    if preset is not None:
        config = world_config(TrainConfig(preset=preset), config.data, config.reward)
    with torch.device("meta"):
        return WorldModel(config).eval().to("meta")  # positions are made with their numbers


def step_counts(world: WorldModel, batch: int) -> Counted:
    """Of a step of so many rows as it is compiled, with decoding; a world without numbers will do."""
    step, given = traced_step(world, batch)
    with torch.no_grad():
        flops = count_flops(lambda: step(*given))
    return Counted(flops=flops, weights=_bytes(world))


def train_counts(world: WorldModel, *, batch: int, length: int) -> Counted:
    """Of the gradient of the flow's loss on so many clips, of a world without numbers."""
    from worldflow.loss import loss_of_drawn

    flow = world.config.flow
    world = world.train().requires_grad_(True)
    world.codec.eval().requires_grad_(False)
    shape = (batch, length + 1, flow.num_tokens, flow.latent_dim)
    drawn = {name: torch.empty(shape, device="meta") for name in ("codes", "noisy", "shown")}
    if not flow.has_shown:
        del drawn["shown"]
    drawn["features"] = torch.empty(batch, length, flow.action_dim, device="meta")
    drawn["rewards"] = torch.empty(batch, length, device="meta")
    drawn |= {name: torch.empty(batch, length, dtype=torch.bool, device="meta") for name in ("terminated", "valid")}

    def gradient() -> None:
        loss_of_drawn(world, drawn, config=TrainConfig()).total.backward()

    return Counted(flops=count_flops(gradient), weights=3 * _bytes(world))  # read twice, and written as gradients


def predicted_seconds(counted: Counted, *, like: Counted, took: float, bandwidth: float) -> float:
    """How long some work takes, from other work of its kind.

    Args:
        counted: The work.
        like: What was measured.
        took: Seconds that it took.
        bandwidth: Bytes a second that memory moves.
    """
    return max(counted.flops / like.flops * took, counted.weights / bandwidth)


def _bytes(world: WorldModel) -> int:
    return sum(p.numel() * p.element_size() for p in world.parameters())
