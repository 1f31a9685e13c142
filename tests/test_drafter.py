"""The drafter: made from the last two frames and the action, with full attention inside a frame."""

from __future__ import annotations

import torch
from builders import randomize
from torch import Tensor

from worldflow.drafter import Drafter


def drafter(action_dim: int = 2) -> Drafter:
    made = Drafter(3, grid=(2, 2), width=32, layers=1, head_dim=16, window=2, action_dim=action_dim).double()
    randomize(made)
    return made


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draft(
    made: Drafter, first: Tensor, second: Tensor, actions: Tensor | None, *, index: int, hide: bool = False
) -> Tensor:
    shape = first.shape[:2]
    at = torch.full(shape, index)
    hidden = torch.full(shape, hide)
    return made(first, second, torch.zeros_like(first), actions, index=at, is_hidden=hidden)[0]


def test_every_token_sees_every_token_of_the_frame_before() -> None:
    made, x = drafter(), noise(1, 1, 4, 3)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: draft(made, v, noise(1, 1, 4, 3, seed=1), noise(1, 1, 2), index=5), x
    )
    assert isinstance(jacobian, Tensor)
    by_token = jacobian[0, 0, :, :, 0, 0].abs().sum((1, 3))
    assert (by_token > 1e-6).all()


@torch.no_grad()
def test_what_does_not_exist_is_not_read() -> None:
    made, actions = drafter(), noise(2, 1, 2)
    one, other = noise(2, 1, 4, 3), noise(2, 1, 4, 3, seed=1)
    # Before the first frame nothing exists, before the second one frame, from then on two and the action.
    first = draft(made, one, one, actions, index=0)
    assert torch.equal(first, draft(made, other, other, actions + 1, index=0))
    second = draft(made, one, one, actions, index=1)
    assert torch.equal(second, draft(made, one, other, actions, index=1))
    assert not torch.allclose(second, draft(made, other, one, actions, index=1))
    assert not torch.allclose(second, draft(made, one, one, actions + 1, index=1))
    third = draft(made, one, one, actions, index=2)
    assert not torch.allclose(third, draft(made, one, other, actions, index=2))
    assert not torch.allclose(third, second)


@torch.no_grad()
def test_a_hidden_action_is_not_read() -> None:
    made, actions, x = drafter(), noise(2, 1, 2), noise(2, 1, 4, 3)
    hidden = draft(made, x, x, actions, index=3, hide=True)
    assert torch.equal(hidden, draft(made, x, x, actions + 1, index=3, hide=True))
    assert not torch.allclose(hidden, draft(made, x, x, actions, index=3))
    assert draft(drafter(0), x, x, None, index=3).shape == x.shape


@torch.no_grad()
def test_a_new_drafter_drafts_a_still_world() -> None:
    made = Drafter(3, grid=(2, 2), width=32, layers=1, head_dim=16, window=2, action_dim=2).double()
    one, other, actions = noise(2, 1, 4, 3), noise(2, 1, 4, 3, seed=1), noise(2, 1, 2)
    assert torch.equal(draft(made, one, other, actions, index=2), one)
    assert not draft(made, one, other, actions, index=0).any()  # before the first frame there is nothing to keep
