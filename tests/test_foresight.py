"""What was foreseen is what naive rollouts by drafts foresee; worlds that draft nothing foresee nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import random_episode, tiny_world

from worldflow.foresight import DIRECTIONS, HORIZON, Foresight, directions
from worldflow.score import score
from worldflow.world import WorldModel

KINDS: dict[str, dict[str, Any]] = {
    "shown": {"shown": True, "memory": 2},
    "noisy": {"noise_std": 1e-7},
    "text": {"shown": True, "text_dim": 5},
}


def naive(world: WorldModel, seen: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Each frame drafted anew from all before it, in full passes that know of no cache."""
    flow, apart = world.flow, torch.zeros_like(seen)
    words = None if world.nothing is None else world.nothing.expand(1, -1, -1)
    for start in range(len(seen) - HORIZON):
        frames = seen[: start + 1]
        for _ in range(HORIZON):
            coming = torch.cat((frames, torch.zeros_like(frames[:1])))[None]
            x = flow.from_deep(coming, tolerance=1e-14)
            shown = coming if flow.config.has_shown else None
            draft = flow(x, features[None, : len(frames) + 1], text=words, shown=shown).draft
            assert draft is not None
            frames = torch.cat((frames, draft[0, -1:]))
        apart[start + HORIZON] = seen[start + HORIZON] - frames[-1]
    return apart


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_naive_rollouts_foresee(kind: str) -> None:
    world = tiny_world(dtype=torch.float64, **KINDS[kind])
    episode = random_episode(world, HORIZON + 3)
    codes = world.codes(torch.from_numpy(episode.frames))
    features = world.encode_actions(episode.actions[None])[0]
    features = torch.cat((torch.zeros_like(features[:1]), features))
    seen = codes if world.config.flow.has_shown else world.flow.to_deep(codes[None])[0][0]
    basis = directions(world)
    assert basis is not None
    expected = naive(world, seen, features).flatten(1) @ basis.T
    foresight = Foresight(world, basis)
    found = torch.cat([foresight(*part) for part in ((seen[:2], features[:2]), (seen[2:], features[2:]))])
    assert found[:HORIZON].abs().max() == 0 and found[HORIZON:].abs().min() > 0
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)  # a tolerance of the naive one's inverse

    (scores,) = score(world, [episode])
    assert scores.foresight is not None and scores.foresight.shape == (len(episode), len(basis))
    np.testing.assert_allclose(scores.foresight, expected[1:], rtol=1e-3, atol=1e-4)  # codes with noise of 1e-7


def test_directions_are_those_in_which_stored_frames_change() -> None:
    world = tiny_world(dtype=torch.float64, shown=True)
    assert world.contexts is not None
    basis = directions(world)
    assert basis is not None and len(basis) <= DIRECTIONS
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64))
    changes = world.codes(world.contexts.frames).diff(dim=1).flatten(0, 1).flatten(1)
    along = (changes @ basis.T).square().sum(0)
    assert (along.diff() <= 0).all()
    moment = changes.T @ changes
    torch.testing.assert_close(basis @ moment, along[:, None] * basis)
    assert (basis.gather(1, basis.abs().argmax(1, keepdim=True)) > 0).all()


def test_worlds_that_cannot_foresee_have_none() -> None:
    assert directions(tiny_world(contexts=0)) is None
    assert directions(tiny_world(draft=False)) is None
    still = tiny_world()
    assert still.contexts is not None
    frames = still.contexts.frames[:, :1].expand_as(still.contexts.frames)
    still.contexts = replace(still.contexts, frames=frames)
    found = directions(still)
    assert found is not None and len(found) == 0
