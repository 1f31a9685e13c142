"""A state is a value: forked, repeated, picked, exchanged, joined, and sent as bytes."""

from __future__ import annotations

import pytest
import torch
from builders import tiny_flow
from safetensors.torch import save

from worldflow.state import WorldState


@pytest.fixture
def state() -> WorldState:
    flow = tiny_flow()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 4, 3, generator=generator, dtype=torch.float64)
    actions = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        made = flow(x, actions, keep_state=True).state
    assert made is not None
    return made


def same(one: WorldState, other: WorldState) -> bool:
    pairs = zip(one.tensors().items(), other.tensors().items(), strict=True)
    return all(a == b and torch.equal(x, y) and x.dtype == y.dtype for (a, x), (b, y) in pairs)


def test_rows(state: WorldState) -> None:
    assert len(state) == 3
    assert len(state[1]) == 1
    assert same(WorldState.cat([state[0], state[1:]]), state)
    assert same(state[torch.tensor([False, True, True])], state[[1, 2]])
    assert same(state[-1], state[2])
    assert not same(state[0], state[1])
    assert same(state.fork(), state)
    assert same(state.to("cpu"), state)


def test_repeat_keeps_copies_side_by_side(state: WorldState) -> None:
    repeated = state.repeat(2)
    assert len(repeated) == 6
    assert same(repeated, state[[0, 0, 1, 1, 2, 2]])


def test_replace_leaves_the_old_state_alone(state: WorldState) -> None:
    before = state[[0, 1, 2]]
    changed = state.replace([2, 0], state[[1, 2]])
    assert same(changed, state[[2, 1, 1]])
    assert same(state, before)


def test_bytes(state: WorldState) -> None:
    data = state.to_bytes()
    assert isinstance(data, bytes)
    assert same(WorldState.from_bytes(data), state)
    picked = state[1:]  # a view, with an offset into its storage
    assert same(WorldState.from_bytes(picked.to_bytes()), picked)


def test_says_what_is_wrong_with_bytes(state: WorldState) -> None:
    for broken in (b"", b"not a state", state.to_bytes()[:-100], state.to_bytes()[:40]):
        with pytest.raises(ValueError, match="these bytes hold no WorldState"):
            WorldState.from_bytes(broken)
    with pytest.raises(ValueError, match=r"a WorldState has the tensors \['count'.*these bytes hold \['weights'\]"):
        WorldState.from_bytes(save({"weights": torch.zeros(2)}))
