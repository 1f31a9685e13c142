"""The causal video flow: frame-local shallow blocks, then one deep block across frames.

    f = f_deep o f_shallow :  x -> u -> z ~ N(0, I)
    log p(x_t | x_<t, a) = log N(z_t; 0, I) - sum ln sigma_deep,t - sum_blocks sum ln sigma_shallow,t

Shallow blocks see one frame at a time and only the deep block crosses frames, so the log-likelihood of each frame
given the past is exact, and rolling forward needs only `u`: the shallow inverse is off the path from frame to frame.

Drafts (`worldflow.drafter`) may be made from other sights of the past than the noisy `u` that the density is about:
from the codes of the frames as they were shown (`has_shown`), and from their running mean (`memory`). Both are known
before the frame is, so its conditional density is as exact as before, and a still thing no longer walks with the noise.

Reference: Gu et al., 2025, STARFlow-V, arXiv 2511.20462.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from worldflow.attention import KeyValue
from worldflow.autoregressive import AffineBlock, standard_normal_log_prob
from worldflow.deep import DeepBlock, roll_in
from worldflow.drafter import Drafter
from worldflow.jacobi import Method, invert
from worldflow.memory import exchange_last, running_means
from worldflow.state import WorldState

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["DrawnFrame", "FlowConfig", "FlowOutput", "VideoFlow"]


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Sizes of a `VideoFlow`, saved with its weights."""

    latent_dim: int
    """Channels of a token."""
    grid: tuple[int, int]
    """Rows and columns of tokens in a frame."""
    action_dim: int = 0
    """Length of an action's feature vector; 0 for a video without actions."""
    shallow_layers: tuple[int, ...] = (2,)
    """Transformer layers of each shallow block: none, or an odd number of blocks, so that with the deep one they are
    even. Without them the deep block sees codes as they are: worlds whose frames follow from the past learn faster."""
    shallow_width: int = 128
    """Channels of the shallow transformers."""
    deep_layers: int = 4
    """Transformer layers of the deep block."""
    deep_width: int = 192
    """Channels of the deep transformer."""
    draft_layers: int = 3
    """Transformer layers of the drafter; 0 for none."""
    draft_width: int = 192
    """Channels of the drafter."""
    draft_mixing: bool = False
    """Whether the drafter's layers end with an MLP over the whole frame; for frames of few tokens."""
    has_shown: bool = False
    """Whether drafts are made from the codes of frames as they are shown, without the noise that the density needs.
    They are part of the past like actions, so the density of a frame given the past stays exact."""
    memory: int = 0
    """Frames over which drafts remember the mean of what they saw, so that what stands still stays where it is beyond
    the window; 0 for no such memory."""
    head_dim: int = 64
    """Channels of one attention head."""
    window: int = 8
    """Frames in view of the deep block and the drafter, the current one included."""
    soft_clip: float | None = 4.0
    """Bound of the affine parameters, or None."""

    def __post_init__(self) -> None:
        if self.shallow_layers and len(self.shallow_layers) % 2 == 0:
            raise ValueError(
                "the flow needs an even number of blocks, an odd number of shallow ones and the deep one, or the deep "
                f"one alone; got shallow_layers={self.shallow_layers}"
            )
        if self.memory < 0:
            raise ValueError(f"memory must not be negative, got {self.memory}")
        for name in ("latent_dim", "shallow_width", "deep_layers", "deep_width", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def num_tokens(self) -> int:
        """Tokens of a frame."""
        return self.grid[0] * self.grid[1]

    @property
    def frame_dim(self) -> int:
        """Numbers in a frame's latent."""
        return self.num_tokens * self.latent_dim


@dataclass(frozen=True, kw_only=True)
class FlowOutput:
    """A parallel pass over frames: the density of each given the past, and what the pass computed on the way."""

    log_prob: Float[Tensor, "batch time"]
    """`log p(x_t | x_<t, a)` in nats, base density and log-determinants together."""
    z: Float[Tensor, "batch time token latent"]
    log_det: Float[Tensor, "batch time token"]
    """Log-determinant of every token, all blocks together."""
    u: Float[Tensor, "batch time token latent"]
    draft: Float[Tensor, "batch time token latent"] | None
    hidden: Float[Tensor, "batch time width"]
    """The deep block's state after each whole transition."""
    state: WorldState | None
    """What to go on from, where asked for."""


@dataclass(frozen=True, kw_only=True)
class DrawnFrame:
    """One sampled frame in `u`, its exact deep log-likelihood in nats, and what comes after it."""

    u: Float[Tensor, "batch token latent"]
    log_prob: Float[Tensor, " batch"]
    hidden: Float[Tensor, "batch width"]
    state: WorldState
    sweeps: int


class VideoFlow(nn.Module):
    """Exact density of a video of latent frames, given actions.

    Args:
        config: Its sizes.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        shallow = [
            AffineBlock(
                config.latent_dim,
                grid=config.grid,
                width=config.shallow_width,
                layers=layers,
                is_reversed=i % 2 == 0,
                soft_clip=config.soft_clip,
                head_dim=config.head_dim,
            )
            for i, layers in enumerate(config.shallow_layers)
        ]
        self.shallow = nn.ModuleList(shallow)
        self.deep = DeepBlock(
            config.latent_dim,
            grid=config.grid,
            width=config.deep_width,
            layers=config.deep_layers,
            head_dim=config.head_dim,
            window=config.window,
            action_dim=config.action_dim,
            has_draft=config.draft_layers > 0,
            soft_clip=config.soft_clip,
        )
        self.drafter = None
        if config.draft_layers:
            self.drafter = Drafter(
                config.latent_dim,
                grid=config.grid,
                width=config.draft_width,
                layers=config.draft_layers,
                head_dim=config.head_dim,
                window=config.window,
                action_dim=config.action_dim,
                is_mixed=config.draft_mixing,
                has_memory=config.memory > 0,
            )

    def to_deep(
        self, x: Float[Tensor, "batch time token latent"]
    ) -> tuple[Float[Tensor, "batch time token latent"], Float[Tensor, "batch time token"]]:
        """Through the shallow blocks: `u`, and their log-determinant of every token in nats."""
        B, T = x.shape[:2]
        u = x.flatten(0, 1)
        log_det = u.new_zeros(u.shape[:2])
        for block in self.shallow:
            u, block_log_det = block(u)
            log_det = log_det + block_log_det
        return u.unflatten(0, (B, T)), log_det.unflatten(0, (B, T))

    def from_deep(
        self, u: Float[Tensor, "*batch token latent"], *, method: Method = "jacobi", tolerance: float = 1e-5
    ) -> Float[Tensor, "*batch token latent"]:
        """Back through the shallow blocks, all frames at once."""
        x = u.reshape(-1, *u.shape[-2:])
        for i in reversed(range(len(self.shallow))):
            block = self.shallow[i]
            assert isinstance(block, AffineBlock)
            x = block.inverse(x, method=method, tolerance=tolerance).x
        return x.reshape(u.shape)

    def initial_state(self, batch_size: int) -> WorldState:
        """The state before any frame."""
        weight = self.deep.proj_in.weight
        options = {"device": weight.device, "dtype": weight.dtype}
        deep = self.deep.frames.empty_cache(batch_size, **options)
        draft = deep.slots(0, 0) if self.drafter is None else self.drafter.frames.empty_cache(batch_size, **options)
        grid = (self.config.num_tokens, self.config.latent_dim)
        return WorldState(
            deep_keys=deep.keys.transpose(0, 1),
            deep_values=deep.values.transpose(0, 1),
            draft_keys=draft.keys.transpose(0, 1),
            draft_values=draft.values.transpose(0, 1),
            latents=torch.zeros(batch_size, 2, *grid, **options),
            mean=torch.zeros(batch_size, *grid, **options),
            count=torch.zeros(batch_size, dtype=torch.int64, device=weight.device),
        )

    def forward(
        self,
        x: Float[Tensor, "batch time token latent"],
        actions: Float[Tensor, "batch time action"] | None = None,
        *,
        shown: Float[Tensor, "batch time token latent"] | None = None,
        hide_actions: Bool[Tensor, " batch"] | None = None,
        state: WorldState | None = None,
        keep_state: bool = False,
        detach_draft: bool = False,
    ) -> FlowOutput:
        """The density of every frame given the ones before it, in one parallel pass.

        Args:
            x: Latent frames.
            actions: `actions[:, t]` is the feature vector of the action that led to frame `t`; the one at a sequence's
                first frame is never read.
            shown: Codes of the frames as they are shown, where the flow was made for them (`FlowConfig.has_shown`);
                those of frame `t` are read for later frames only.
            hide_actions: Rows whose actions are not shown: they give `log p(x_t | past)`.
            state: Where the frames continue from; None starts a sequence.
            keep_state: Also return the state after the last frame. With `state` or `keep_state`, memory holds
                `window - 1` more frames than `x`.
            detach_draft: Keep the likelihood's gradient from the drafter.

        Raises:
            ValueError: If shapes do not fit the configuration.
        """
        self._check(x, actions, shown)
        u, log_det = self.to_deep(x)
        B, T = u.shape[:2]
        if state is None and keep_state:
            state = self.initial_state(B)
        count = None if state is None else state.count
        before = u.new_zeros(B, 2, *u.shape[2:]) if state is None else state.latents.to(u.dtype)
        seen = u if shown is None else shown
        history = torch.cat((before, seen), dim=1)
        means = self._running_means(seen, state)
        draft, draft_new, lead = self._look_ahead(
            history[:, :-1], means[:, :-1], actions, hide_actions=hide_actions, state=state
        )
        past = None if state is None else _cache(state.deep_keys, state.deep_values)
        given = draft.detach() if detach_draft and draft is not None else draft
        out = self.deep(u, lead=lead, draft=given, past=past, count=count)
        z = (u - out.mu) / out.sigma
        log_det = log_det - out.sigma.log().sum(-1)
        return FlowOutput(
            log_prob=standard_normal_log_prob(z) + log_det.sum(-1),
            z=z,
            log_det=log_det,
            u=u,
            draft=draft,
            hidden=out.hidden,
            state=None if state is None else self._advance(state, history[:, -2:], means[:, -1], T, out.new, draft_new),
        )

    def draw(
        self,
        state: WorldState,
        action: Float[Tensor, "batch action"] | None,
        z: Float[Tensor, "batch token latent"],
        *,
        method: Method = "jacobi",
        tolerance: float = 1e-4,
        hide_actions: Bool[Tensor, " batch"] | None = None,
    ) -> DrawnFrame:
        """The next frame in `u` that the deep block maps to `z`.

        Solved to `tolerance`, then passed through the block once more: that pass gives the keys and values of exactly
        the returned tokens, and their exact log-likelihood.

        The state after it takes `u` for what is shown of the frame; where the flow is made for codes of shown frames,
        the caller puts them into its place (`show`) before it goes on.

        Args:
            state: What came before.
            action: Feature vector of the action taken.
            z: Standard normal noise; scaled noise samples at another temperature.
            method: How to invert.
            tolerance: How closely.
            hide_actions: Rows that do not see their action.
        """
        actions = None if action is None else action[:, None]
        draft, draft_new, lead = self._look_ahead(
            state.latents, state.mean[:, None], actions, hide_actions=hide_actions, state=state
        )
        past = _cache(state.deep_keys, state.deep_values)
        flat_draft = None if draft is None else draft[:, 0]
        if flat_draft is not None:
            start = flat_draft
        else:
            start = torch.where(state.count[:, None, None] > 0, state.latents[:, 1], z)
        conditional = self.deep.conditional(lead=lead[:, 0], draft=flat_draft, count=state.count, dtype=z.dtype)
        solution = invert(conditional, z, start=start, method=method, past=past, tolerance=tolerance)
        u = solution.x[:, None]
        out = self.deep(u, lead=lead, draft=draft, past=past, count=state.count)
        log_prob = standard_normal_log_prob((u - out.mu) / out.sigma) - out.sigma.log().sum((-2, -1))
        mean = self._running_means(u, state)[:, -1]
        after = self._advance(state, torch.cat((state.latents[:, 1:], u), dim=1), mean, 1, out.new, draft_new)
        return DrawnFrame(
            u=solution.x, log_prob=log_prob[:, 0], hidden=out.hidden[:, 0], state=after, sweeps=solution.sweeps
        )

    def show(self, state: WorldState, codes: Float[Tensor, "batch token latent"]) -> WorldState:
        """The state with the codes of what was shown in place of the last frame's `u`."""
        codes = codes.to(state.latents.dtype)
        mean = state.mean
        if self.config.memory:
            mean = exchange_last(mean, state.latents[:, 1], codes, count=state.count, memory=self.config.memory)
        return replace(state, latents=torch.stack((state.latents[:, 0], codes), dim=1), mean=mean)

    def _running_means(
        self, seen: Float[Tensor, "batch time token latent"], state: WorldState | None
    ) -> Float[Tensor, "batch time+1 token latent"]:
        """The running mean before the first frame and after each of them; zeros where nothing is remembered."""
        B, T = seen.shape[:2]
        start = seen.new_zeros(B, *seen.shape[2:]) if state is None else state.mean.to(seen.dtype)
        if not self.config.memory:
            return start[:, None].expand(B, T + 1, *start.shape[1:])
        count = torch.zeros(B, dtype=torch.int64, device=seen.device) if state is None else state.count
        return running_means(seen, start, count=count, memory=self.config.memory)

    def _look_ahead(
        self,
        before: Float[Tensor, "batch time+1 token latent"],
        means: Float[Tensor, "batch time token latent"],
        actions: Float[Tensor, "batch time action"] | None,
        *,
        hide_actions: Bool[Tensor, " batch"] | None,
        state: WorldState | None,
    ) -> tuple[Tensor | None, KeyValue | None, Tensor]:
        """What is known of each frame before it is there: its draft, what drafting leaves, and its lead slot.

        `before` holds `u`, or what is shown, of the two frames before the first one, then of all frames but the last;
        `means` the running mean before each frame.
        """
        B, T = len(before), before.shape[1] - 1
        count = None if state is None else state.count
        index = torch.arange(T, device=before.device).expand(B, T) + (0 if count is None else count[:, None])
        hidden = torch.zeros(B, dtype=torch.bool, device=before.device) if hide_actions is None else hide_actions
        is_hidden = hidden[:, None].expand(B, T)
        draft, draft_new = None, None
        if self.drafter is not None:
            draft, draft_new = self.drafter(
                before[:, 1:],
                before[:, :-1],
                means,
                actions,
                index=index,
                is_hidden=is_hidden,
                past=None if state is None else _cache(state.draft_keys, state.draft_values),
                count=count,
            )
        lead = self.deep.lead(actions, is_first=index == 0, is_hidden=is_hidden, before=before[:, 1:, -1])
        return draft, draft_new, lead

    def _advance(
        self,
        state: WorldState,
        latents: Tensor,
        mean: Tensor,
        num_frames: int,
        deep: KeyValue,
        draft: KeyValue | None,
    ) -> WorldState:
        deep = roll_in(_cache(state.deep_keys, state.deep_values), deep)
        drafted = _cache(state.draft_keys, state.draft_values)
        drafted = drafted if draft is None else roll_in(drafted, draft)
        return WorldState(
            deep_keys=deep.keys.transpose(0, 1),
            deep_values=deep.values.transpose(0, 1),
            draft_keys=drafted.keys.transpose(0, 1),
            draft_values=drafted.values.transpose(0, 1),
            latents=latents,
            mean=mean,
            count=state.count + num_frames,
        )

    def _check(self, x: Tensor, actions: Tensor | None, shown: Tensor | None) -> None:
        expected = (self.config.num_tokens, self.config.latent_dim)
        if x.dim() != 4 or tuple(x.shape[2:]) != expected:
            raise ValueError(f"x must have shape (batch, time, {expected[0]}, {expected[1]}), got {tuple(x.shape)}")
        if self.config.action_dim and (actions is None or actions.shape != (*x.shape[:2], self.config.action_dim)):
            given = "none" if actions is None else str(tuple(actions.shape))
            raise ValueError(f"actions must have shape {(*x.shape[:2], self.config.action_dim)}, got {given}")
        if self.config.has_shown and (shown is None or shown.shape != x.shape):
            given = "none" if shown is None else str(tuple(shown.shape))
            raise ValueError(f"codes of shown frames must have the shape {tuple(x.shape)} of x, got {given}")
        if shown is not None and not self.config.has_shown:
            raise ValueError("this flow does not read codes of shown frames (FlowConfig.has_shown is False)")


def _cache(keys: Tensor, values: Tensor) -> KeyValue:
    return KeyValue(keys=keys.transpose(0, 1), values=values.transpose(0, 1))
