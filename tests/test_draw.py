"""Drawing in place, drawing with gradients and the parallel pass all say the same of a frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import tiny_world
from torch import Tensor

from worldflow.draw import draw_frame, solve
from worldflow.flow import DrawnFrame, Guidance, VideoFlow
from worldflow.jacobi import Method
from worldflow.state import WorldState

F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(a: DrawnFrame, b: DrawnFrame) -> None:
    for name in ("u", "log_prob", "hidden"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-11)
    for name, value in a.state.tensors().items():
        torch.testing.assert_close(value, b.state.tensors()[name], rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", ["sequential", "jacobi"])
@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("options", [{}, {"shown": True}, {"draft": False}, {"text_dim": 5}], ids=str)
def test_in_place_with_gradients_and_for_a_compiler_the_same_frames_are_drawn(
    options: dict[str, Any], guidance: float, method: Method
) -> None:
    world = tiny_world(dtype=F64, **options)
    flow, generator = world.flow, seeded()
    states: list[WorldState] = [world.begin(3)] * 3
    guides: list[Guidance | None] = [None] * 3
    if guidance:
        guides = [Guidance(weight=guidance, state=world.begin(3), hide_actions=True)] * 3
    for _ in range(5):  # the window is full after two frames
        action = torch.randn(3, flow.config.action_dim, generator=generator, dtype=F64)
        z = torch.randn(3, flow.config.num_tokens, flow.config.latent_dim, generator=generator, dtype=F64)
        drawn = []
        for state, guide, with_gradients in zip(states[:2], guides[:2], (False, True), strict=True):
            with torch.set_grad_enabled(with_gradients):
                drawn.append(flow.draw(state, action, z, method=method, tolerance=1e-13, guidance=guide))
        with torch.no_grad():
            drawn.append(draw_frame(flow, states[2], action, z, guidance=guides[2], is_traced=True))
        same(drawn[0], drawn[1])
        same(drawn[0], drawn[2])
        assert drawn[1].u.requires_grad and not drawn[0].u.requires_grad
        states = [one.state for one in drawn]
        guides = [one.guidance for one in drawn]
        assert all((guide is not None) == bool(guidance) for guide in guides)


@torch.no_grad()
@pytest.mark.parametrize("method", ["sequential", "jacobi"])
def test_rows_that_have_seen_more_and_less_do_not_mix(method: Method) -> None:
    world = tiny_world(dtype=F64, shown=True)
    flow, generator = world.flow, seeded(1)
    shape = (flow.config.num_tokens, flow.config.latent_dim)
    rows = []
    for age in (0, 1, 4):
        state = world.begin(1)
        for _ in range(age):
            state = flow.draw(
                state, torch.zeros(1, 2, dtype=F64), torch.randn(1, *shape, generator=generator, dtype=F64)
            ).state
        rows.append(state)
    z, action = (
        torch.randn(3, *shape, generator=generator, dtype=F64),
        torch.randn(3, 2, generator=generator, dtype=F64),
    )
    together = flow.draw(WorldState.cat(rows), action, z, method=method, tolerance=1e-13)
    for i, state in enumerate(rows):
        alone = flow.draw(state, action[i : i + 1], z[i : i + 1], method=method, tolerance=1e-13)
        torch.testing.assert_close(together.u[i : i + 1], alone.u, rtol=0, atol=1e-12)
        torch.testing.assert_close(together.state[i].deep_keys, alone.state.deep_keys, rtol=0, atol=1e-12)


@torch.no_grad()
def test_states_before_a_draw_are_left_as_they_are() -> None:
    world = tiny_world(shown=True)
    state = world.start(*pasts(world), generator=seeded())
    before = {name: value.clone() for name, value in state.tensors().items()}
    z = torch.randn(2, world.config.flow.num_tokens, world.config.flow.latent_dim, generator=seeded())
    first = world.flow.draw(state, torch.zeros(2, 2), z)
    world.flow.draw(first.state, torch.ones(2, 2), z)  # writes into a buffer of its own
    again = world.flow.draw(state, torch.zeros(2, 2), z)
    assert all(torch.equal(value, before[name]) for name, value in state.tensors().items())
    assert all(torch.equal(value, again.state.tensors()[name]) for name, value in first.state.tensors().items())


@torch.no_grad()
def test_a_loose_tolerance_still_tells_the_exact_likelihood_of_what_it_drew() -> None:
    world = tiny_world(dtype=F64)
    flow: VideoFlow = world.flow
    x = torch.randn(2, 4, flow.config.num_tokens, flow.config.latent_dim, generator=seeded(), dtype=F64)
    actions = torch.randn(2, 5, flow.config.action_dim, generator=seeded(1), dtype=F64)
    state = flow(x, actions[:, :4], keep_state=True).state
    assert state is not None
    z = torch.randn(2, flow.config.num_tokens, flow.config.latent_dim, generator=seeded(2), dtype=F64)
    loose = flow.draw(state, actions[:, 4], z, tolerance=0.3)
    exact = flow.draw(state, actions[:, 4], z, tolerance=1e-13)
    assert loose.sweeps < exact.sweeps and not torch.allclose(loose.u, exact.u, atol=1e-6)
    shown = flow.from_deep(loose.u, tolerance=1e-13)[:, None]
    scored = flow(shown, actions[:, 4:], state=state)
    _, shallow = flow.to_deep(shown)
    torch.testing.assert_close(loose.log_prob + shallow[:, 0].sum(-1), scored.log_prob[:, 0], rtol=0, atol=1e-9)
    assert scored.state is not None
    torch.testing.assert_close(loose.state.deep_keys, scored.state.deep_keys, rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_row_is_drawn_alone_as_among_others_that_settle_later() -> None:
    world = tiny_world(dtype=F64, shown=True)
    flow = world.flow
    z = torch.randn(6, flow.config.num_tokens, flow.config.latent_dim, generator=seeded(4), dtype=F64)
    state, action = world.begin(6), torch.randn(6, 2, generator=seeded(5), dtype=F64)
    state = flow.draw(state, action, z).state
    together = flow.draw(state, action, z.flip(0), tolerance=0.05)
    sweeps = set()
    for i in range(6):
        alone = flow.draw(state[i], action[i : i + 1], z.flip(0)[i : i + 1], tolerance=0.05)
        torch.testing.assert_close(together.u[i : i + 1], alone.u, rtol=0, atol=1e-12)
        torch.testing.assert_close(together.log_prob[i : i + 1], alone.log_prob, rtol=0, atol=1e-12)
        torch.testing.assert_close(together.state[i].deep_values, alone.state.deep_values, rtol=0, atol=1e-12)
        sweeps.add(alone.sweeps)
    assert len(sweeps) > 1


class Triangular:
    """`mu_j = sum of a_jk x_k` over earlier tokens, with `extra` slots behind the last token; counts slots."""

    def __init__(self, num_tokens: int, *, extra: int) -> None:
        self.weights = torch.randn(num_tokens, num_tokens, generator=seeded(), dtype=F64).tril(-1)
        self.left = torch.zeros(num_tokens + extra, dtype=F64)
        self.calls: list[tuple[int, int]] = []

    def __call__(self, x: Tensor, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        N = len(self.weights)
        self.calls.append((first, last))
        for slot in range(first, last):  # what a slot leaves: the token it has read
            self.left[slot] = x[0, slot - 1, 0] if slot else -1.0
        mu = torch.einsum("jk,bkd->bjd", self.weights, x)[:, first : min(last, N)]
        hidden = torch.full((len(x), last - first, 1), float(last), dtype=F64)
        return mu, torch.full_like(mu, 0.5), hidden


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("method", ["sequential", "jacobi"])
def test_what_is_left_behind_belongs_to_the_tokens_returned(method: Method, extra: int) -> None:
    N = 6
    block = Triangular(N, extra=extra)
    z = torch.randn(2, N, 3, generator=seeded(1), dtype=F64)
    found = solve(block, z, start=torch.zeros_like(z), slots=N + extra, method=method, tolerance=1e-15)
    expected = torch.linalg.solve_triangular(torch.eye(N, dtype=F64) - block.weights, 0.5 * z, upper=False)
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close((found.x - found.mu) / found.sigma, z, rtol=0, atol=1e-12)
    read = [-1.0, *found.x[0, : N - 1 + extra, 0].tolist()]
    torch.testing.assert_close(block.left, torch.tensor(read, dtype=F64), rtol=0, atol=1e-12)
    if method == "jacobi":
        assert [first for first, _ in block.calls] == list(range(len(block.calls)))  # exact ones are not redone


def test_a_good_guess_takes_one_call() -> None:
    block = Triangular(5, extra=1)
    z = torch.randn(2, 5, 3, generator=seeded(1), dtype=F64)
    exact = solve(block, z, start=torch.zeros_like(z), slots=6, tolerance=1e-12).x
    again = solve(block, z, start=exact, slots=6, tolerance=1e-9)
    assert again.sweeps == 1 and torch.equal(again.x, exact)
    with pytest.raises(ValueError, match="method must be 'jacobi' or 'sequential', got 'newton'"):
        solve(block, z, start=exact, slots=6, method="newton")  # type: ignore[arg-type]


def pasts(world: Any) -> tuple[Tensor, Tensor]:
    frames = torch.randint(0, 256, (2, 3, *world.config.data.frame_shape), generator=seeded(), dtype=torch.uint8)
    return frames, torch.rand(2, 2, 2, generator=seeded())
