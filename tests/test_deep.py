"""The deep block: its rolling cache, and the sampler's view of it beside the parallel pass."""

from __future__ import annotations

import pytest
import torch
from builders import tiny_flow

from worldflow.attention import KeyValue
from worldflow.deep import roll_in


def test_rolling_keeps_the_newest() -> None:
    def slots(*values: float) -> KeyValue:
        keys = torch.tensor(values).reshape(1, 1, 1, -1, 1)
        return KeyValue(keys=keys, values=10 * keys)

    rolled = roll_in(slots(1, 2, 3, 4), slots(5, 6))
    assert rolled.keys.flatten().tolist() == [3, 4, 5, 6]
    assert rolled.values.flatten().tolist() == [30, 40, 50, 60]
    assert roll_in(slots(1, 2), slots(3, 4, 5)).keys.flatten().tolist() == [4, 5]
    nothing = slots(1).slots(0, 0)
    assert roll_in(nothing, slots(1, 2)).num_slots == 0


@torch.no_grad()
@pytest.mark.parametrize("action_dim", [0, 2])
@pytest.mark.parametrize("draft", [False, True])
def test_conditional_of_any_part_is_that_of_the_parallel_pass(action_dim: int, draft: bool) -> None:
    flow = tiny_flow(action_dim=action_dim, draft=draft)
    deep, generator = flow.deep, torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    count = torch.tensor([0, 1, 5])
    cache = deep.frames.empty_cache(3, device=count.device, dtype=torch.float64)
    past = KeyValue(keys=torch.randn_like(cache.keys), values=torch.randn_like(cache.values))
    u, lead, hint = noise(3, 1, 4, 3), noise(3, 1, 32), noise(3, 1, 4, 3) if draft else None
    out = deep(u, lead=lead, draft=hint, past=past, count=count)
    conditional = deep.conditional(
        lead=lead[:, 0], draft=None if hint is None else hint[:, 0], count=count, dtype=torch.float64
    )
    running = past
    for first, last in ((0, 1), (1, 3), (3, 4)):
        mu, sigma, new = conditional(u[:, 0], first, last, running)
        running = running.append(new)
        torch.testing.assert_close(mu, out.mu[:, 0, first:last], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(sigma, out.sigma[:, 0, first:last], rtol=1e-10, atol=1e-10)
    # With actions the slot behind the last token parametrizes nothing and is left to the closing pass.
    kept = out.new.slots(0, 4)
    torch.testing.assert_close(running.slots(past.num_slots).keys, kept.keys, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_what_the_cache_holds_of_frames_that_never_were_is_not_seen() -> None:
    flow = tiny_flow()
    state = flow.initial_state(2)
    garbage = state.tensors() | {
        name: torch.full_like(tensor, 1e3) for name, tensor in state.tensors().items() if name != "count"
    }
    x = torch.randn(2, 3, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    actions = torch.zeros(2, 3, 2, dtype=torch.float64)
    clean, dirty = (flow(x, actions, state=s).log_prob for s in (state, type(state)(**garbage)))
    assert torch.equal(clean, dirty)
