"""Symmetries form a group, and what they do to actions can be found."""

from __future__ import annotations

import pytest
import torch

from worldflow.symmetry import ActionMaps, elements, transformed


def marked(size: int = 3) -> torch.Tensor:
    """A frame without any symmetry of its own."""
    return torch.arange(size * size * 2, dtype=torch.uint8).view(size, size, 2)


def test_eight_symmetries_of_a_square() -> None:
    shown = [transformed(marked(), element) for element in elements("square")]
    assert torch.equal(shown[0], marked())
    assert len({frame.numpy().tobytes() for frame in shown}) == 8
    # Whatever is done after each other is one of them again.
    known = {frame.numpy().tobytes() for frame in shown}
    twice = [transformed(frame, element) for frame in shown for element in elements("square")]
    assert {frame.numpy().tobytes() for frame in twice} == known


def test_a_mirror_exchanges_left_and_right() -> None:
    assert elements("mirror") == (0, 4)
    assert torch.equal(transformed(marked(), 4), marked().flip(1))
    wide = torch.arange(2 * 3, dtype=torch.uint8).view(1, 2, 3, 1)
    assert torch.equal(transformed(wide, 4), wide.flip(2))
    # A quarter turn moves the upper right corner to the upper left.
    assert torch.equal(transformed(marked(), 1)[0, 0], marked()[0, 2])
    assert elements("none") == (0,)
    with pytest.raises(ValueError, match="symmetry must be one of none, mirror, square, got 'round'"):
        elements("round")  # pyright: ignore[reportArgumentType]


def test_clips_are_shown_alike() -> None:
    clip = torch.stack([marked(), marked() + 1])
    assert torch.equal(transformed(clip, 6)[1], transformed(clip[1], 6))


def test_actions_of_the_identity_stay_and_others_are_found() -> None:
    # A flow that has learned `y = W a` sees clips in which a second symmetry has turned the first number's sign.
    generator = torch.Generator().manual_seed(0)
    maps, known = ActionMaps(2, 2), torch.randn(3, 2, generator=generator)
    truth = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    optimizer = torch.optim.Adam(maps.parameters(), lr=1e-3)
    for _ in range(300):
        actions = torch.randn(16, 4, 2, generator=generator)
        which = torch.arange(16) % 2
        done = torch.where((which == 1)[:, None, None], actions @ truth.T, actions)
        loss = ((maps(actions, which) - done) @ known.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = maps.maps().detach()
    assert torch.equal(found[0], torch.eye(2))
    # Steps of 0.03 leave about that much.
    torch.testing.assert_close(found[1], truth, rtol=0, atol=0.05)
