"""Draw the next frame: invert the deep block for the noise of one frame, and remember what it leaves.

Given `z`, the tokens of a frame solve `u_j = mu_j(past, u_<j) + sigma_j(past, u_<j) z_j`. *Sequential* follows the
definition, token by token. *Jacobi* maps all of them at once, from the draft as a first guess, until nothing moves:

    u <- mu(u) + sigma(u) z

After `k` sweeps the first `k` tokens are exact, so a sweep begins behind them (prefix commit), and a row that has
settled keeps its values, so no row's answer depends on its neighbors. The sweep that finds everything settled has
thought over exactly the tokens that are returned: its keys and values are the frame's memory, its `mu` and `sigma` give
their exact log-likelihood, and its last slot the state that reward and termination are read from. No further pass is
needed.

Without gradients all of it happens in place (`worldflow.open_frame`); with them, by appending; and for a compiler by
arithmetic alone (`worldflow.traced_frame`).

Reference: Song et al., 2021, arXiv 2002.03629.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from worldflow.attention import KeyValue
from worldflow.autoregressive import LOG_2PI, standard_normal_log_prob
from worldflow.flow_types import DrawnFrame, Guidance
from worldflow.guidance import guided
from worldflow.jacobi import Method, invert
from worldflow.open_frame import OpenFrame
from worldflow.state import WorldState
from worldflow.traced_frame import TracedFrame

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from worldflow.flow import VideoFlow

__all__ = ["Solved", "draw_frame", "solve"]

Scales = tuple[Tensor, Tensor]
"""Means and scales of some tokens."""


class FrameMap(Protocol):
    """A block with everything fixed but the tokens of one frame."""

    def __call__(
        self, x: Float[Tensor, "batch token latent"], first: int, last: int
    ) -> tuple[
        Float[Tensor, "batch part latent"], Float[Tensor, "batch part latent"], Float[Tensor, "batch slot width"]
    ]:
        """Mean and scale of the tokens of slots `first .. last - 1`, and the slots' hidden states.

        Slot `j` has read the tokens before `j`; there may be one slot more than tokens.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A frame's tokens, the map at exactly these, the hidden state of its last slot, and the sweeps it took."""

    x: Float[Tensor, "batch token latent"]
    mu: Float[Tensor, "batch token latent"]
    sigma: Float[Tensor, "batch token latent"]
    hidden: Float[Tensor, "batch width"]
    sweeps: int


def solve(
    parameters: FrameMap,
    z: Float[Tensor, "batch token latent"],
    *,
    start: Float[Tensor, "batch token latent"],
    slots: int,
    method: Method = "jacobi",
    tolerance: float = 1e-4,
    rule: Callable[[Tensor, Tensor], Scales] | None = None,
) -> Solved:
    """Find the tokens that a frame's map takes to `z`.

    Args:
        parameters: The map; what it leaves behind is that of the last call for each slot.
        z: What the tokens are mapped to.
        start: First guess; a better one saves sweeps and never changes the answer.
        slots: Slots of the frame.
        method: `jacobi`, or `sequential`, the reference.
        tolerance: A row has settled when its largest change in a sweep, relative to the row's largest value, is below.
        rule: Means and scales to sample with, from those of the map; by default they are the same.

    Raises:
        ValueError: If the method is unknown.
    """
    if method not in ("jacobi", "sequential"):
        raise ValueError(f"method must be 'jacobi' or 'sequential', got {method!r}")
    B, N = z.shape[:2]
    if method == "sequential":
        x, parts = start.clone(), []
        hidden = None
        for j in range(slots):
            mu, sigma, hidden = parameters(x, j, j + 1)
            if j < N:
                center, spread = (mu, sigma) if rule is None else rule(mu, sigma)
                x[:, j : j + 1] = center + spread * z[:, j : j + 1]
                parts.append((mu[:B], sigma[:B]))
        assert hidden is not None
        mu, sigma = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
        return Solved(x=x, mu=mu, sigma=sigma, hidden=hidden[:B, -1], sweeps=slots)

    x, first, done = start, 0, torch.zeros(B, dtype=torch.bool, device=z.device)
    own: Scales | None = None
    sweep = 0
    while True:
        sweep += 1
        mu, sigma, hidden = parameters(x, first, slots)
        center, spread = (mu, sigma) if rule is None else rule(mu, sigma)
        part = (mu[:B], sigma[:B])
        if own is not None:
            part = tuple(torch.cat((old[:, :first], new), dim=1) for old, new in zip(own, part, strict=True))
        own = (part[0], part[1])
        if first == N:  # all tokens are exact, and the last slot has read them
            break
        last, proposal = x[:, first:], center + spread * z[:, first:]
        change = (proposal - last).abs().amax((1, 2)) / proposal.abs().amax((1, 2)).clamp(min=1e-12)
        done = done | (change < tolerance)
        if bool(done.all()):
            break
        moved = torch.where(done[:, None, None], last, proposal)  # a row keeps the tokens that its memory is of
        x = torch.cat((x[:, :first], moved), dim=1) if first else moved
        # Slot j reads token j - 1. Before this sweep the first `sweep - 1` tokens were exact, so what the slots up to
        # `sweep - 1` leave is final.
        first = sweep
        if sweep == slots:
            break
    return Solved(x=x, mu=own[0], sigma=own[1], hidden=hidden[:B, -1], sweeps=sweep)


def draw_frame(
    flow: VideoFlow,
    state: WorldState,
    action: Float[Tensor, "batch action"] | None,
    z: Float[Tensor, "batch token latent"],
    *,
    method: Method = "jacobi",
    tolerance: float = 1e-4,
    hide_actions: Bool[Tensor, " batch"] | None = None,
    guidance: Guidance | None = None,
    is_traced: bool = False,
) -> DrawnFrame:
    """As `VideoFlow.draw`; `is_traced` draws by what a compiler can follow, token by token and without gradients."""
    B, z = len(z), flow.only_real(z)
    actions = None if action is None else action[:, None]
    both = state
    if guidance is not None:
        both = WorldState.cat((state, guidance.state))
        actions = None if actions is None else torch.cat((actions, actions))
        shown = torch.zeros(B, dtype=torch.bool, device=z.device) if hide_actions is None else hide_actions
        hide_actions = torch.cat((shown, torch.full_like(shown, guidance.hide_actions) | shown))
    method = "sequential" if is_traced else method
    if torch.is_grad_enabled() and not is_traced:
        solved, after = _by_appending(flow, both, actions, z, method, tolerance, hide_actions, guidance)
    else:
        kind = TracedFrame if is_traced else OpenFrame
        solved, after = _in_place(flow, both, actions, z, method, tolerance, hide_actions, guidance, kind)
    log_scale = solved.sigma.log().sum((-2, -1))
    return DrawnFrame(
        u=solved.x,
        log_prob=standard_normal_log_prob((solved.x - solved.mu) / solved.sigma, num_filled=flow.config.num_filled)
        - log_scale,
        entropy=log_scale + 0.5 * (1 + LOG_2PI) * flow.config.frame_dim,
        hidden=solved.hidden,
        state=after if guidance is None else after[:B],
        guidance=None if guidance is None else replace(guidance, state=after[B:]),
        sweeps=solved.sweeps,
    )


def _in_place(
    flow: VideoFlow,
    state: WorldState,
    actions: Tensor | None,
    z: Tensor,
    method: Method,
    tolerance: float,
    hide_actions: Tensor | None,
    guidance: Guidance | None,
    kind: type[OpenFrame | TracedFrame],
) -> tuple[Solved, WorldState]:
    """Tokens of the first rows of `state`, as many as there is noise for, and the state of all of them."""
    deep = kind(flow.deep.frames, state.deep_keys, state.deep_values, state.count)
    drafting = None
    if flow.drafter is not None:
        drafting = kind(flow.drafter.frames, state.draft_keys, state.draft_values, state.count)
    draft, _, lead = flow.look_ahead(
        state.latents, state.mean[:, None], actions, hide_actions=hide_actions, state=state, frame=drafting
    )
    flat = None if draft is None else draft[:, 0]
    solved = solve(
        flow.deep.frame_map(deep, lead=lead[:, 0], draft=flat),
        z,
        start=_first_guess(state, flat, z),
        slots=flow.deep.frames.slots,
        method=method,
        tolerance=tolerance,
        rule=None if guidance is None else _rule(guidance),
    )
    u = solved.x if guidance is None else torch.cat((solved.x, solved.x))
    deep_keys, deep_values = deep.close()
    draft_keys, draft_values = (state.draft_keys, state.draft_values) if drafting is None else drafting.close()
    after = WorldState(
        deep_keys=deep_keys,
        deep_values=deep_values,
        draft_keys=draft_keys,
        draft_values=draft_values,
        latents=torch.stack((state.latents[:, 1], u), dim=1),
        mean=flow.running_means(u[:, None], state)[:, -1],
        count=state.count + 1,
    )
    return solved, after


def _by_appending(
    flow: VideoFlow,
    state: WorldState,
    actions: Tensor | None,
    z: Tensor,
    method: Method,
    tolerance: float,
    hide_actions: Tensor | None,
    guidance: Guidance | None,
) -> tuple[Solved, WorldState]:
    """The same with gradients: solved, then passed through the block once more."""
    draft, draft_new, lead = flow.look_ahead(
        state.latents, state.mean[:, None], actions, hide_actions=hide_actions, state=state
    )
    past = KeyValue(keys=state.deep_keys.transpose(0, 1), values=state.deep_values.transpose(0, 1))
    flat = None if draft is None else draft[:, 0]
    words = past.num_slots - flow.deep.frames.cached
    conditional = flow.deep.conditional(lead=lead[:, 0], draft=flat, count=state.count, words=words, dtype=z.dtype)
    if guidance is not None:
        conditional = guided(conditional, guidance.weight, rule=guidance.rule)
    start = _first_guess(state, flat, z)
    solution = invert(conditional, z, start=start, method=method, past=past, tolerance=tolerance)
    B = len(z)
    u = solution.x[:, None].repeat(len(state) // B, 1, 1, 1)
    out = flow.deep(u, lead=lead, draft=draft, past=past, count=state.count)
    mean = flow.running_means(u, state)[:, -1]
    after = flow.advance(state, torch.cat((state.latents[:, 1:], u), dim=1), mean, 1, out.new, draft_new)
    solved = Solved(
        x=solution.x, mu=out.mu[:B, 0], sigma=out.sigma[:B, 0], hidden=out.hidden[:B, 0], sweeps=solution.sweeps
    )
    return solved, after


def _rule(guidance: Guidance) -> Callable[[Tensor, Tensor], Scales]:
    """What to sample with, from the maps with and without the condition, one behind the other."""

    def combined(mu: Tensor, sigma: Tensor) -> Scales:
        (mu_c, mu_u), (sigma_c, sigma_u) = mu.chunk(2), sigma.chunk(2)
        return guidance.rule((mu_c, sigma_c), (mu_u, sigma_u), guidance.weight)

    return combined


def _first_guess(state: WorldState, draft: Tensor | None, z: Tensor) -> Tensor:
    """The draft; without one, the last frame, or the noise where there is none."""
    if draft is not None:
        return draft[: len(z)]
    return torch.where(state.count[: len(z), None, None] > 0, state.latents[: len(z), 1], z)
