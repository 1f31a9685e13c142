"""What the world foresaw some transitions ago, against what came: changes of dynamics too small for one step.

A rollout by drafts alone (`worldflow.drafter`) under the recorded actions begins at every frame, one drafted frame for
every transition, and after `HORIZON` of them it is held against the frame that came:

    r_t = B (s_t - d_t),    d_t drafted from frames up to t - HORIZON and the actions since

with `s` what drafts are made from and `B` the directions in which the stored pasts of the world change most from frame
to frame. A force that is off by a constant moves a frame by `k^2` after `k` steps, while the error of a velocity read
from frames grows by `k`, so the longer look tells more; and `r` has a sign, so that what is off in one direction adds
up as `n` over `n` transitions where noise adds up as `sqrt(n)`. `worldflow.watched` takes the mean over a window before
it takes the distance.

All rollouts are a transition apart, and one batch of the drafter moves them on together: row `k` of what is kept is the
one that has drafted `k` frames. What is kept has a fixed size, and work for a transition is `HORIZON` drafted frames,
whatever the parts that an episode comes in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from worldflow.attention import KeyValue
from worldflow.deep import roll_in
from worldflow.memory import running_means
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["DIRECTIONS", "HORIZON", "Foresight", "directions"]

HORIZON = 8
"""Transitions that are looked ahead. On InvertedPendulum, windows of 50 transitions with gravity up by a quarter have
areas under the ROC curve of 0.80, 0.83, 0.84 and 0.86 when 1, 4, 6 and 8 are, with distances learned from 24 episodes;
chosen there, on episodes that no reported number is from."""
DIRECTIONS = 16
"""Numbers that are kept of a frame. 8, 16, 24 and 48 have 0.74, 0.86, 0.77 and 0.71 in the same place: what frames
hardly change in is the codec's and not the world's, and makes distances harder to learn."""


@torch.no_grad()
def directions(world: WorldModel) -> Float[Tensor, "direction feature"] | None:
    """Directions in which frames change from one to the next, the largest first, of unit length.

    Args:
        world: The world. None comes back where it drafts nothing, or stores no pasts.
    """
    if world.flow.drafter is None or world.contexts is None or world.contexts.frames.shape[1] < 2:
        return None
    codes = world.codes(world.contexts.frames)
    seen = codes if world.config.flow.has_shown else world.flow.to_deep(codes)[0]
    changes = (seen[:, 1:] - seen[:, :-1]).flatten(0, 1).flatten(1)
    _, lengths, found = torch.linalg.svd(changes.double(), full_matrices=False)
    found = found[lengths > 1e-9 * lengths[0].clamp(min=1e-30)][:DIRECTIONS]
    largest = found.gather(1, found.abs().argmax(1, keepdim=True))
    return (found * largest.sign()).to(world.dtype)  # which sign a decomposition gives differs between machines


class Foresight:
    """Rollouts of one episode.

    Args:
        world: The world; it must draft.
        basis: What to keep of a frame, see `directions`.
    """

    def __init__(self, world: WorldModel, basis: Float[Tensor, "direction feature"]) -> None:
        assert world.flow.drafter is not None
        self.flow, self.drafter, self.basis = world.flow, world.flow.drafter, basis
        state = world.begin(HORIZON)  # row k has drafted the last k of its frames
        self._cache = KeyValue(keys=state.draft_keys.transpose(0, 1), values=state.draft_values.transpose(0, 1))
        self._words = self._cache.num_slots - self.drafter.frames.cached
        self._latents, self._mean, self._count = state.latents, state.mean, state.count
        self._seen = 0
        self._hidden = torch.zeros(HORIZON, 1, dtype=torch.bool, device=world.device)

    @torch.no_grad()
    def __call__(
        self, seen: Float[Tensor, "time token latent"], features: Float[Tensor, "time feature"]
    ) -> Float[Tensor, "time direction"]:
        """How far the next frames are from what was foreseen; 0 as long as nothing was.

        Args:
            seen: The frames, as drafts are made from them.
            features: Of the actions that led to them; the one to an episode's first frame is not read.
        """
        return torch.stack([self._step(frame, action) for frame, action in zip(seen, features, strict=True)])

    def _step(self, frame: Tensor, action: Tensor) -> Tensor:
        count, last = self._count, self._latents[:, 1:]
        drafts, new = self.drafter(
            last,
            self._latents[:, :1],
            self._mean[:, None],
            action.expand(HORIZON, 1, -1),
            index=count[:, None],
            is_hidden=self._hidden,
            past=self._cache,
            count=count,
        )
        assert new is not None
        apart = frame - drafts[-1, 0].to(frame)
        found = self.basis @ apart.flatten() if self._seen >= HORIZON else self.basis.new_zeros(len(self.basis))

        # Each row drafts one frame more than before, and the first one saw the frame.
        came = torch.cat((frame[None], drafts[:-1, 0].to(frame)))[:, None]
        rows = [0, *range(HORIZON - 1)]
        cache = roll_in(self._cache, new, kept=self._words)
        self._cache = KeyValue(keys=cache.keys[:, rows], values=cache.values[:, rows])
        self._latents = torch.cat((last[rows], came), dim=1)
        if self.flow.config.memory:
            means = running_means(came, self._mean[rows], count=count, memory=self.flow.config.memory)
            self._mean = means[:, -1]
        self._count, self._seen = count + 1, self._seen + 1
        return found
