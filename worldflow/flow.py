"""The causal video flow: frame-local shallow blocks, then one deep block across frames.

    f = f_deep o f_shallow :  x -> u -> z ~ N(0, I)
    log p(x_t | x_<t, a) = log N(z_t; 0, I) - sum ln sigma_deep,t - sum_blocks sum ln sigma_shallow,t

Shallow blocks see one frame at a time and only the deep block crosses frames, so the log-likelihood of each frame
given the past is exact, and rolling forward needs only `u`: the shallow inverse is off the path from frame to frame.

Drafts (`worldflow.drafter`) may be made from other sights of the past than the noisy `u` that the density is about:
from the codes of the frames as they were shown (`has_shown`), and from their running mean (`memory`). Both are known
before the frame is, so its conditional density is as exact as before, and a still thing no longer walks with the noise.

What the numbers are. `log_prob` is exact: the density of each latent frame given the ones before, base density and
log-determinants together, in nats. It is a density of *noisy* codes, so it has a ceiling that the noise alone sets
(`WorldModel.noise_floor`; `above_floor` takes it off), and it is one of *codes*: another codec, or the same one scaled,
has other numbers. About pixels only a bound follows (`worldflow.elbo`), unless the codes are the pixels and the noise
is uniform within a gray level (`worldflow.bits`; Theis et al., 2016, arXiv 1511.01844). High likelihood is not
normality: it favors simple frames (Nalisnick et al., 2019, arXiv 1810.09136) and depends on the coordinates (Le Lan and
Dinh, 2021, arXiv 2012.03808), so alarms are calibrated on normal episodes (`worldflow.calibrate`), not read off it.

Reference: Gu et al., 2025, STARFlow-V, arXiv 2511.20462.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from worldflow.attention import KeyValue
from worldflow.autoregressive import AffineBlock, standard_normal_log_prob
from worldflow.deep import DeepBlock, roll_in
from worldflow.drafter import Drafter
from worldflow.draw import draw_frame
from worldflow.flow_config import FlowConfig
from worldflow.flow_types import DrawnFrame, FlowOutput, Guidance
from worldflow.jacobi import Method
from worldflow.memory import exchange_last, running_means
from worldflow.open_frame import ComingFrame
from worldflow.state import WorldState
from worldflow.vector_tokens import real_numbers
from worldflow.weights import sharing

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["DrawnFrame", "FlowConfig", "FlowOutput", "Guidance", "VideoFlow"]


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
                position_base=config.position_base,
                has_time_axis=config.has_time_axis,
                vector_dim=config.vector_dim,
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
            text_dim=config.text_dim,
            position_base=config.position_base,
            has_time_axis=config.has_time_axis,
            vector_dim=config.vector_dim,
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
                text_dim=config.text_dim,
                position_base=config.position_base,
                vector_dim=config.vector_dim,
            )
        is_real = real_numbers(config.grid, config.latent_dim, config.vector_dim)
        self.register_buffer("is_real", is_real, persistent=False)
        self.is_real: Tensor | None

    def on_grid(self, grid: tuple[int, int]) -> VideoFlow:
        """The same flow, with the same parameters, for frames of another number of tokens.

        Raises:
            ValueError: If it mixes the tokens of a frame, which fixes their number.
        """
        if grid == self.config.grid:
            return self
        if self.config.draft_mixing:
            raise ValueError(f"drafts mix all {self.config.num_tokens} tokens of a frame: the grid cannot be another")
        base = self.config.position_base or self.config.grid[0]
        return sharing(lambda: VideoFlow(replace(self.config, grid=grid, position_base=base)), self)

    def only_real(self, x: Float[Tensor, "*batch token latent"]) -> Float[Tensor, "*batch token latent"]:
        """The same with zeros for what only fills up the last token."""
        return x if self.is_real is None else torch.where(self.is_real, x, 0.0)

    def to_deep(
        self, x: Float[Tensor, "batch time token latent"]
    ) -> tuple[Float[Tensor, "batch time token latent"], Float[Tensor, "batch time token"]]:
        """Through the shallow blocks: `u`, and their log-determinant of every token in nats."""
        B, T = x.shape[:2]
        u = self.only_real(x).flatten(0, 1)
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

    def initial_state(self, batch_size: int, text: Float[Tensor, "batch word text"] | None = None) -> WorldState:
        """The state before any frame; it holds the text, where the flow reads one.

        Raises:
            ValueError: If there is a text and the flow reads none, or the other way round.
        """
        weight = self.deep.proj_in.weight
        options = {"device": weight.device, "dtype": weight.dtype}
        deep = self.deep.frames.empty_cache(batch_size, **options)
        if self.drafter is None:  # nothing, and not a view of the deep block's, which would keep all of it in memory
            draft = KeyValue(keys=deep.keys[:, :, :, :0].clone(), values=deep.values[:, :, :, :0].clone())
        else:
            draft = self.drafter.frames.empty_cache(batch_size, **options)
        deep_text, draft_text = self._read_text(batch_size, text)
        deep = deep if deep_text is None else deep_text.append(deep)
        draft = draft if draft_text is None else draft_text.append(draft)
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
        text: Float[Tensor, "batch word text"] | None = None,
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
            text: Embedded text that all frames follow from; with `state` it is in there, and not given again.
            shown: Codes of the frames as they are shown, where the flow was made for them (`FlowConfig.has_shown`);
                those of frame `t` are read for later frames only.
            hide_actions: Rows whose actions are not shown: they give `log p(x_t | past)`.
            state: Where the frames continue from; None starts a sequence.
            keep_state: Also return the state after the last frame. With `state` or `keep_state`, memory holds
                `window - 1` more frames than `x`.
            detach_draft: Keep the likelihood's gradient from the drafter, and from the actions that both read: what is
                learned about actions (`worldflow.symmetry`) is learned from the drafts' error.

        Raises:
            ValueError: If shapes do not fit the configuration.
        """
        self._check(x, actions, shown)
        u, log_det = self.to_deep(x)
        B, T = u.shape[:2]
        if state is not None and text is not None:
            raise ValueError("the text is part of the state: give it to the first frames only")
        deep_text, draft_text = None, None
        if state is None and keep_state:
            state = self.initial_state(B, text)
        elif state is None:
            deep_text, draft_text = self._read_text(B, text)
        count = None if state is None else state.count
        before = u.new_zeros(B, 2, *u.shape[2:]) if state is None else state.latents.to(u.dtype)
        seen = u if shown is None else shown
        history = torch.cat((before, seen), dim=1)
        means = self.running_means(seen, state)
        draft, draft_new, lead = self.look_ahead(
            history[:, :-1],
            means[:, :-1],
            actions,
            hide_actions=hide_actions,
            state=state,
            text=draft_text,
            detach_lead=detach_draft and self.drafter is not None,
        )
        past = deep_text if state is None else _cache(state.deep_keys, state.deep_values)
        given = draft.detach() if detach_draft and draft is not None else draft
        out = self.deep(u, lead=lead, draft=given, past=past, count=count)
        z = (u - out.mu) / out.sigma
        log_det = log_det - out.sigma.log().sum(-1)
        return FlowOutput(
            log_prob=standard_normal_log_prob(z, num_filled=self.config.num_filled) + log_det.sum(-1),
            z=z,
            log_det=log_det,
            u=u,
            draft=draft,
            hidden=out.hidden,
            state=None if state is None else self.advance(state, history[:, -2:], means[:, -1], T, out.new, draft_new),
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
        guidance: Guidance | None = None,
    ) -> DrawnFrame:
        """The next frame in `u` that the deep block maps to `z`.

        Solved to `tolerance`; memory and log-likelihood are exactly those of the returned tokens (`worldflow.draw`).

        The state after it takes `u` for what is shown of the frame; where the flow is made for codes of shown frames,
        the caller puts them into its place (`show`) before it goes on.

        Args:
            state: What came before.
            action: Feature vector of the action taken.
            z: Standard normal noise; scaled noise samples at another temperature.
            method: How to invert.
            tolerance: How closely.
            hide_actions: Rows that do not see their action.
            guidance: Sample what the condition makes more likely, at twice the cost.
        """
        return draw_frame(
            self,
            state,
            action,
            z,
            method=method,
            tolerance=tolerance,
            hide_actions=hide_actions,
            guidance=guidance,
        )

    @torch.no_grad()
    def inverse(
        self,
        z: Float[Tensor, "batch time token latent"],
        actions: Float[Tensor, "batch time action"] | None = None,
        *,
        text: Float[Tensor, "batch word text"] | None = None,
        text_without: Float[Tensor, "batch word text"] | None = None,
        guidance: float = 0.0,
        context: Float[Tensor, "batch past token latent"] | None = None,
        hide_actions: bool = False,
        method: Method = "jacobi",
        tolerance: float = 1e-5,
    ) -> Float[Tensor, "batch time token latent"]:
        """The latent frames that `forward` maps to `z`, frame after frame.

        Args:
            z: Standard normal noise.
            actions: As in `forward`.
            text: As in `forward`.
            text_without: Embedding of no text, to guide away from; without text, guidance goes away from hidden
                actions.
            guidance: Weight `w` of `worldflow.guidance.sharpen`; 0 samples as the flow is.
            context: The first frames, given: noise in their place is not read.
            hide_actions: Show no row its actions.
            method: How to invert.
            tolerance: How closely.

        Raises:
            ValueError: If shapes do not fit, or guidance has nothing to go away from.
        """
        if self.config.has_shown:
            raise ValueError("this flow goes on from frames as they are shown: roll it forward with WorldModel.step")
        B, T = z.shape[:2]
        given = 0 if context is None else context.shape[1]
        if given > T:
            raise ValueError(f"{given} frames are given, but z holds noise for {T} in all; give fewer, or more noise")
        branches = [(text, hide_actions)]
        if guidance:
            if self.config.text_dim and text_without is None:
                raise ValueError("guidance needs text_without, the embedding of no text (of an empty prompt)")
            if not self.config.text_dim and not self.config.action_dim:
                raise ValueError("guidance needs a condition to go away from: this flow has neither text nor actions")
            branches.append((text_without, hide_actions or not self.config.text_dim))
        states: list[WorldState] = []
        u: list[Tensor] = []
        for words, is_hidden in branches:
            state = self.initial_state(B, words)
            if context is not None:
                first = None if actions is None else actions[:, :given]
                hide = torch.full((B,), is_hidden, device=z.device)
                out = self(context, first, hide_actions=hide, state=state)
                assert out.state is not None
                state, u = out.state, list(out.u.unbind(1))
            states.append(state)
        state, guide = states[0], None
        if guidance:
            guide = Guidance(weight=guidance, state=states[1], hide_actions=branches[1][1])
        for t in range(given, T):
            action = None if actions is None else actions[:, t]
            drawn = self.draw(
                state,
                action,
                z[:, t],
                method=method,
                tolerance=tolerance,
                hide_actions=torch.full((B,), hide_actions, device=z.device),
                guidance=guide,
            )
            state, guide = drawn.state, drawn.guidance
            u.append(drawn.u)
        x = self.from_deep(torch.stack(u, dim=1), method=method, tolerance=tolerance)
        return x if context is None else torch.cat((context, x[:, given:]), dim=1)

    def show(self, state: WorldState, codes: Float[Tensor, "batch token latent"]) -> WorldState:
        """The state with the codes of what was shown in place of the last frame's `u`."""
        codes = codes.to(state.latents.dtype)
        mean = state.mean
        if self.config.memory:
            mean = exchange_last(mean, state.latents[:, 1], codes, count=state.count, memory=self.config.memory)
        return replace(state, latents=torch.stack((state.latents[:, 0], codes), dim=1), mean=mean)

    def running_means(
        self, seen: Float[Tensor, "batch time token latent"], state: WorldState | None
    ) -> Float[Tensor, "batch time+1 token latent"]:
        """The running mean before the first frame and after each of them; zeros where nothing is remembered."""
        B, T = seen.shape[:2]
        start = seen.new_zeros(B, *seen.shape[2:]) if state is None else state.mean.to(seen.dtype)
        if not self.config.memory:
            return start[:, None].expand(B, T + 1, *start.shape[1:])
        count = torch.zeros(B, dtype=torch.int64, device=seen.device) if state is None else state.count
        return running_means(seen, start, count=count, memory=self.config.memory)

    def look_ahead(
        self,
        before: Float[Tensor, "batch time+1 token latent"],
        means: Float[Tensor, "batch time token latent"],
        actions: Float[Tensor, "batch time action"] | None,
        *,
        hide_actions: Bool[Tensor, " batch"] | None,
        state: WorldState | None,
        text: KeyValue | None = None,
        detach_lead: bool = False,
        frame: ComingFrame | None = None,
    ) -> tuple[Tensor | None, KeyValue | None, Tensor]:
        """What is known of each frame before it is there: its draft, what drafting leaves, and its lead slot.

        `before` holds `u`, or what is shown, of the two frames before the first one, then of all frames but the last;
        `means` the running mean before each frame. A single frame may be drafted in `frame`, where what drafting leaves
        then is.
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
                past=text if state is None else _cache(state.draft_keys, state.draft_values),
                count=count,
                frame=frame,
            )
        led = actions.detach() if detach_lead and actions is not None else actions
        lead = self.deep.lead(led, is_first=index == 0, is_hidden=is_hidden, before=before[:, 1:, -1])
        return draft, draft_new, lead

    def _read_text(self, batch_size: int, text: Tensor | None) -> tuple[KeyValue | None, KeyValue | None]:
        """What the deep block and the drafter keep of a text."""
        dim = self.config.text_dim
        if not dim and text is None:
            return None, None
        if not dim or text is None or text.dim() != 3 or text.shape[0] != batch_size or text.shape[2] != dim:
            expected = f"of shape ({batch_size}, words, {dim})" if dim else "None: this flow reads none"
            given = "None" if text is None else str(tuple(text.shape))
            raise ValueError(f"text must be {expected}, got {given}")
        text = text.to(self.deep.start)
        return self.deep.frames.read_text(text), None if self.drafter is None else self.drafter.frames.read_text(text)

    def advance(
        self,
        state: WorldState,
        latents: Tensor,
        mean: Tensor,
        num_frames: int,
        deep: KeyValue,
        draft: KeyValue | None,
    ) -> WorldState:
        """The state after some frames, from what they leave."""
        cache = _cache(state.deep_keys, state.deep_values)
        words = cache.num_slots - self.deep.frames.cached
        deep = roll_in(cache, deep, kept=words)
        drafted = _cache(state.draft_keys, state.draft_values)
        drafted = drafted if draft is None else roll_in(drafted, draft, kept=words)
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
