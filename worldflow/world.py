"""The world model: codec, flow, actions, reward and termination, as one thing to start, step, imagine and score.

    transition, state = world.step(state, action, generator=g)

`start` reads the past, `step` draws the next transition, `imagine` draws whole futures, `log_prob` scores recorded
ones. The likelihood of a transition is exact in the noise-augmented code `x~ = x + noise_std * eps` of its frame, times
that of its reward and its termination.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from worldflow.actions import ActionEncoder
from worldflow.codec import build_codec
from worldflow.compiled import CompiledStep, CompiledSteps, compiled_step
from worldflow.denoiser import Denoiser
from worldflow.draw import draw_frame
from worldflow.flow import DrawnFrame, Guidance, VideoFlow
from worldflow.frames import as_tensors, together
from worldflow.heads import RewardHead, TerminationHead
from worldflow.jacobi import Method
from worldflow.randomness import normal, uniform
from worldflow.state import WorldState
from worldflow.types import Dream, Generators, LogProb, Transition
from worldflow.vector_codec import VectorCodec
from worldflow.world_config import Contexts, TextSpec, WorldConfig

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped, UInt8

__all__ = ["Contexts", "TextSpec", "WorldConfig", "WorldModel"]


class WorldModel(nn.Module):
    """A learned simulator with exact likelihoods.

    Args:
        config: How to build it.

    Attributes:
        contexts: Recorded pasts to start from, or None before training has stored some.
    """

    def __init__(self, config: WorldConfig) -> None:
        super().__init__()
        self.config = config
        self.codec = build_codec(config.codec)
        self.actions = ActionEncoder(config.data.action)
        self.flow = VideoFlow(config.flow)
        self.reward = RewardHead(config.flow.deep_width, config.reward)
        self.termination = TerminationHead(config.flow.deep_width)
        self.denoiser = None if config.denoiser is None else Denoiser(config.denoiser)
        self.contexts: Contexts | None = None
        nothing = None if config.text is None else torch.zeros(config.text.words, config.text.dim)
        self.register_buffer("nothing", nothing)  # the embedding of the empty text, once training has set it
        self.nothing: Tensor | None
        self._compiled = CompiledSteps()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.termination.out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.termination.out.weight.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WorldModel:
        """Move or cast everything; compiled steps are of the weights as they were."""
        before = (self.device, self.dtype)
        super()._apply(fn, recurse)
        if (self.device, self.dtype) != before:
            self._compiled.clear()
        return self

    # -- from frames to latents -----------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self, frames: UInt8[Tensor, "batch time row column channel"], *, generator: Generators = None
    ) -> Float[Tensor, "batch time token latent"]:
        """Noisy codes `x~` of frames: what the flow's density is about.

        Raises:
            ValueError, TypeError: If the frames have the wrong size or type.
        """
        return self.with_noise(self.codes(frames), generator=generator)

    @torch.no_grad()
    def codes(self, frames: UInt8[Tensor, "*batch row column channel"]) -> Float[Tensor, "*batch token latent"]:
        """Codes `x` of frames, without noise: of what is shown.

        Raises:
            ValueError, TypeError: If the frames have the wrong size or type.
        """
        return self.codec.encode(as_tensors(frames).to(self.device)).to(self.dtype)

    def with_noise(
        self, codes: Float[Tensor, "batch time token latent"], *, generator: Generators = None
    ) -> Float[Tensor, "batch time token latent"]:
        """Noisy codes `x~ = x + noise_std * eps`."""
        noise = normal(tuple(codes.shape), generator, device=self.device, dtype=self.dtype)
        return codes + self.config.codec.noise_std * self.flow.only_real(noise)

    def encode_actions(
        self, actions: Shaped[Tensor | np.ndarray, "batch time *action"]
    ) -> Float[Tensor, "batch time feature"]:
        """Feature vectors of raw actions."""
        return self.actions(torch.as_tensor(actions).to(self.device))

    def leading(
        self, actions: Shaped[Tensor | np.ndarray, "batch time *action"], batch_size: int, num_frames: int
    ) -> Float[Tensor, "batch time+1 feature"]:
        """Feature vectors of the action that led to each frame; the first frame's is never read.

        Raises:
            ValueError: If there is not one action between every two frames.
        """
        features = self.encode_actions(actions)
        if features.shape[:2] != (batch_size, num_frames - 1):
            raise ValueError(
                f"{num_frames} frames of {batch_size} clips need actions ({batch_size}, {num_frames - 1}, ...), "
                f"got {tuple(torch.as_tensor(actions).shape)}"
            )
        return torch.cat((self._no_action(batch_size)[:, None], features.to(self.dtype)), dim=1)

    # -- rolling forward ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def start(
        self,
        frames: UInt8[Tensor, "batch past+1 row column channel"],
        past_actions: Shaped[Tensor, "batch past *action"] | None = None,
        *,
        text: Float[Tensor, "batch word text"] | None = None,
        hide_actions: bool = False,
        generator: Generators = None,
    ) -> WorldState:
        """Read a past.

        Args:
            frames: Its frames, at least one.
            past_actions: The actions between them; None for a single frame.
            text: Embedded texts, for a world that reads some; None for the empty text.
            hide_actions: Read it without its actions: what guidance goes away from.
            generator: Draws the codes' noise.

        Returns:
            The state after the last frame.

        Raises:
            ValueError, TypeError: If shapes or types are wrong.
        """
        frames, data = as_tensors(frames), self.config.data
        if frames.ndim != (2 if data.parts else 2 + len(data.frame_shape)):
            frame = "" if data.parts else ", number" if data.is_vector else ", row, column, channel"
            expected = f"(batch, past + 1{frame})"
            raise ValueError(f"frames must have shape {expected}, got {tuple(frames.shape)}")
        B, T = frames.shape[:2]
        if past_actions is None:
            if T > 1:
                raise ValueError(f"{T} frames need {T - 1} past actions, got none")
            features = self._no_action(B)[:, None]
        else:
            features = self.leading(past_actions, B, T)
        codes = self.codes(frames)
        x = self.with_noise(codes, generator=generator)
        state = self.begin(B, text=text)
        hidden = torch.full((B,), hide_actions, device=self.device)
        shown = codes if self.config.flow.has_shown else None
        state = self.flow(x, features, shown=shown, hide_actions=hidden, state=state).state
        assert state is not None
        return state

    @torch.no_grad()
    def begin(self, batch_size: int, *, text: Float[Tensor, "batch word text"] | None = None) -> WorldState:
        """The state before any frame: the first step from it draws a first frame, whatever the action.

        Args:
            batch_size: Rows.
            text: Embedded texts, for a world that reads some; None for the empty text.

        Raises:
            ValueError: If there is a text and the world reads none, or its shape is wrong.
        """
        return self.flow.initial_state(batch_size, self._text(text, batch_size))

    @torch.no_grad()
    def step(
        self,
        state: WorldState,
        action: Shaped[Tensor | np.ndarray, "batch *action"],
        *,
        generator: Generators = None,
        temperature: float = 1.0,
        decode: bool = True,
        method: Method = "jacobi",
        tolerance: float = 1e-4,
    ) -> tuple[Transition, WorldState]:
        """Draw the next transition.

        Args:
            state: Where to go on from; it is not changed.
            action: Raw actions.
            generator: One for the batch, or one per row.
            temperature: Scale of the frame's noise; below 1 draws nearer to the mode.
            decode: False leaves the frame in the flow's latent, unless the flow itself needs to see it (`has_shown`):
                `frame` is None and `log_prob.frame` is the density of `latent`, without the shallow blocks' part.
            method: How to invert the flow.
            tolerance: How closely.

        Returns:
            The transition and the state after it.

        Raises:
            ValueError: If the action's shape or values are wrong.
        """
        transition, state, _ = self.guided_step(
            state,
            None,
            action,
            generator=generator,
            temperature=temperature,
            decode=decode,
            method=method,
            tolerance=tolerance,
        )
        return transition, state

    @torch.no_grad()
    def guided_step(
        self,
        state: WorldState,
        guidance: Guidance | None,
        action: Shaped[Tensor | np.ndarray, "batch *action"],
        *,
        generator: Generators = None,
        temperature: float = 1.0,
        decode: bool = True,
        method: Method = "jacobi",
        tolerance: float = 1e-4,
    ) -> tuple[Transition, WorldState, Guidance | None]:
        """As `step`, with frames that the condition makes more likely, at twice the cost.

        Likelihood and entropy stay those of the world as it is, without guidance.

        Args:
            state: As in `step`.
            guidance: How far to go beyond the condition, and the same past without it, as `start(hide_actions=True)`
                reads it; None draws as the world is.
            action: As in `step`.
            generator: As in `step`.
            temperature: As in `step`.
            decode: As in `step`.
            method: As in `step`.
            tolerance: As in `step`.

        Returns:
            The transition, the state after it, and what to guide the next one with.
        """
        action = torch.as_tensor(action)
        if len(action) != len(state) or action.dim() != 1 + len(self.config.data.action.shape):
            shape = (len(state), *self.config.data.action.shape)
            raise ValueError(f"action must have shape {shape}, got {tuple(action.shape)}")
        B = len(state)
        shape = (B, self.config.flow.num_tokens, self.config.flow.latent_dim)
        z = normal(shape, generator, device=self.device, dtype=self.dtype)
        chances = uniform((B, 4), generator, device=self.device, dtype=self.dtype)
        features, z = self.encode_actions(action), temperature * z
        fast = self.compiled(B) if guidance is None and method == "jacobi" else None
        if fast is not None:
            transition, state = fast(state, features.to(z.dtype), z, chances)
            if not (decode or self.config.flow.has_shown):
                transition = replace(transition, frame=None)
            return transition, state, None
        return self.drawn_step(state, guidance, features, z, chances, decode=decode, method=method, tolerance=tolerance)

    def drawn_step(
        self,
        state: WorldState,
        guidance: Guidance | None,
        features: Float[Tensor, "batch feature"],
        z: Float[Tensor, "batch token latent"],
        chances: Float[Tensor, "batch 4"],
        *,
        decode: bool = True,
        method: Method = "jacobi",
        tolerance: float = 1e-4,
        is_traced: bool = False,
    ) -> tuple[Transition, WorldState, Guidance | None]:
        """As `guided_step`, with everything random given: the frame's noise, and what decides reward and termination.

        `is_traced` does it as compilers want it, without anything that depends on numbers (`worldflow.compiled`).
        """
        drawn = draw_frame(
            self.flow,
            state,
            features,
            z,
            method=method,
            tolerance=tolerance,
            guidance=guidance,
            is_traced=is_traced,
        )
        frame, frame_log_prob, state, guidance = None, drawn.log_prob, drawn.state, drawn.guidance
        is_finite = drawn.u.isfinite().all(-1).all(-1)
        if decode or self.config.flow.has_shown:
            x, log_det = self._to_frame_latent(drawn.u, method=method)
            frame, is_shown = self.codec.decode_checked(x)
            frame_log_prob, is_finite = frame_log_prob + log_det, is_finite & is_shown
            if self.config.flow.has_shown:
                codes = self.codes(frame)
                state = self.flow.show(state, codes)
                if guidance is not None:
                    guidance = replace(guidance, state=self.flow.show(guidance.state, codes))
        return self._transition(drawn, frame, frame_log_prob, chances, is_finite), state, guidance

    def compile_step(self, batch_size: int, *, progress: bool = True) -> None:
        """Compile steps of batches of `batch_size` rows, which then are several times as fast (`worldflow.compiled`).

        It takes about a minute the first time, and a tenth of a second once the code is on disk; on a GPU the step is
        recorded as a CUDA graph, in a second, every time. `step` then takes the compiled way for batches of that many
        rows, and of fewer while they are more than half as many; it is exact, so that `tolerance` does not matter, and
        leaves guided and sequential steps as they were. Moving or casting the world forgets compiled steps.

        Args:
            batch_size: Rows.
            progress: Show a progress bar.

        Raises:
            ValueError: If there is not at least one row.
            Uncompilable: If this world, or this machine, has no compiled steps.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size not in self._compiled:
            self._compiled[batch_size] = compiled_step(self, batch_size, progress=progress)

    def compiled(self, batch_size: int) -> CompiledStep | None:
        """The compiled step that batches of `batch_size` rows take, if one does (`compile_step`)."""
        return self._compiled.fitting(batch_size)

    @torch.no_grad()
    def imagine(
        self,
        frames: UInt8[Tensor, "batch past+1 row column channel"],
        past_actions: Shaped[Tensor, "batch past *action"] | None,
        actions: Shaped[Tensor, "batch future *action"],
        *,
        num_samples: int = 1,
        text: Float[Tensor, "batch word text"] | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        method: Method = "jacobi",
    ) -> Dream:
        """Draw futures under given actions.

        Args:
            frames: The past's frames, at least one.
            past_actions: The actions between them.
            actions: What is done from the last frame on.
            num_samples: Futures of each row; they share the past.
            text: Embedded texts, for a world that reads some; None for the empty text.
            generator: Draws everything.
            temperature: Scale of the frames' noise.
            method: How to invert the flow.

        Returns:
            The futures, `(sample, batch, time, ...)`.

        Raises:
            ValueError, TypeError: If shapes or types are wrong.
        """
        actions = torch.as_tensor(actions)
        B, steps = actions.shape[0], actions.shape[1]
        state = self.start(frames, past_actions, text=text, generator=generator)
        if len(state) != B:
            raise ValueError(f"frames hold {len(state)} pasts, actions {B} futures; they must be as many")
        state = state.repeat(num_samples)
        repeated = actions.repeat_interleave(num_samples, dim=0)
        transitions = []
        for t in range(steps):
            transition, state = self.step(
                state, repeated[:, t], generator=generator, temperature=temperature, decode=False, method=method
            )
            transitions.append(transition)

        def stack(values: Sequence[Tensor]) -> Tensor:  # [(batch * sample, ...)] -> (sample, batch, time, ...)
            return torch.stack(list(values), dim=1).unflatten(0, (B, num_samples)).transpose(0, 1)

        frame_log_prob = stack([t.log_prob.frame for t in transitions])
        seen = [t.frame for t in transitions if t.frame is not None]
        if seen:
            decoded = together(stack, seen)
        else:
            u = stack([t.latent for t in transitions])
            x, log_det = self._to_frame_latent(u.flatten(0, 2), method=method)
            decoded = self.codec.decode(x.unflatten(0, u.shape[:3]))
            frame_log_prob = frame_log_prob + log_det.unflatten(0, u.shape[:3])
        return Dream(
            frames=decoded,
            rewards=stack([t.reward for t in transitions]),
            reward_means=stack([t.reward_mean for t in transitions]),
            terminated=stack([t.terminated for t in transitions]),
            log_prob=LogProb(
                frame=frame_log_prob,
                reward=stack([t.log_prob.reward for t in transitions]),
                terminated=stack([t.log_prob.terminated for t in transitions]),
            ),
        )

    # -- scoring --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_prob(
        self,
        frames: UInt8[Tensor, "batch time+1 row column channel"],
        actions: Shaped[Tensor, "batch time *action"],
        rewards: Float[Tensor, "batch time"] | None = None,
        terminated: Bool[Tensor, "batch time"] | None = None,
        *,
        text: Float[Tensor, "batch word text"] | None = None,
        generator: Generators = None,
        hide_actions: bool = False,
    ) -> LogProb:
        """Log-likelihood of recorded transitions given their past, in nats.

        Args:
            frames: Recorded frames.
            actions: Recorded actions.
            rewards: Recorded rewards; None counts zero nats.
            terminated: Recorded terminations; None counts zero nats.
            text: Embedded texts, for a world that reads some; None for the empty text.
            generator: Draws the codes' noise.
            hide_actions: Score `p(. | past)` instead of `p(. | past, action)`.

        Returns:
            `(batch, time)`, one number per transition and part.

        Raises:
            ValueError, TypeError: If shapes or types are wrong.
        """
        codes = self.codes(frames)
        x = self.with_noise(codes, generator=generator)
        return self.log_prob_latents(x, actions, rewards, terminated, codes=codes, text=text, hide_actions=hide_actions)

    @torch.no_grad()
    def log_prob_latents(
        self,
        x: Float[Tensor, "batch time+1 token latent"],
        actions: Shaped[Tensor, "batch time *action"],
        rewards: Float[Tensor, "batch time"] | None = None,
        terminated: Bool[Tensor, "batch time"] | None = None,
        *,
        codes: Float[Tensor, "batch time+1 token latent"] | None = None,
        text: Float[Tensor, "batch word text"] | None = None,
        hide_actions: bool = False,
        chunk: int = 32,
    ) -> LogProb:
        """As `log_prob`, of given noisy codes, `chunk` frames at a time: memory does not grow with the length.

        Args:
            x: Noisy codes.
            actions: As in `log_prob`.
            rewards: As in `log_prob`.
            terminated: As in `log_prob`.
            hide_actions: As in `log_prob`.
            codes: Those of the frames as they are shown; needed, and read, where the flow has use for them
                (`FlowConfig.has_shown`).
            text: As in `log_prob`.
            chunk: Frames in one pass.
        """
        B, T = x.shape[:2]
        features = self.leading(actions, B, T)
        hidden_rows = torch.full((B,), hide_actions, device=self.device)
        state, scores, states = None, [], []
        shown = codes if self.config.flow.has_shown else None
        for first in range(0, T, chunk):
            part = slice(first, first + chunk)
            out = self.flow(
                x[:, part],
                features[:, part],
                text=self._text(text, B) if state is None else None,
                shown=None if shown is None else shown[:, part],
                hide_actions=hidden_rows,
                state=state,
                keep_state=T > chunk,
            )
            state = out.state
            scores.append(out.log_prob)
            states.append(out.hidden)
        frame = torch.cat(scores, dim=1)[:, 1:]
        hidden = torch.cat(states, dim=1)[:, 1:]
        nothing = torch.zeros_like(frame)
        return LogProb(
            frame=frame,
            reward=nothing
            if rewards is None
            else self.reward.log_prob(hidden, torch.as_tensor(rewards).to(self.device)),
            terminated=nothing
            if terminated is None
            else self.termination.log_prob(hidden, torch.as_tensor(terminated).to(self.device)),
        )

    @property
    def noise_floor(self) -> float:
        """NLL in nats per dimension that the codes' noise alone costs: `ln(noise_std) + 0.5 + 0.5 ln(2 pi)`."""
        return float(np.log(self.config.codec.noise_std) + 0.5 + 0.5 * np.log(2 * np.pi))

    def above_floor(self, frame_log_prob: Tensor) -> Tensor:
        """A frame's NLL above the noise floor, in nats per dimension."""
        return -frame_log_prob / self.config.flow.frame_dim - self.noise_floor

    def in_units(self, frame_log_prob: Tensor) -> Tensor:
        """A frame's log-likelihood as a density of the noisy vector in its own units, `o + noise_std std eps`.

        Args:
            frame_log_prob: That of its noisy code, in nats.

        Raises:
            ValueError: If frames are pictures: their code is no change of coordinates.
        """
        if not isinstance(self.codec, VectorCodec):
            raise ValueError("only codes of vectors are their numbers in other units; for pixels see worldflow.elbo")
        return frame_log_prob + self.codec.log_det

    # -- inside ---------------------------------------------------------------------------------------------------

    def _text(self, text: Tensor | None, batch_size: int) -> Tensor | None:
        """The text to read: the given one, or the empty one, or None where the world reads none."""
        if text is not None or self.nothing is None:
            return text
        return self.nothing.expand(batch_size, -1, -1)

    def _no_action(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size, self.config.flow.action_dim, device=self.device, dtype=self.dtype)

    def _to_frame_latent(self, u: Tensor, *, method: Method) -> tuple[Tensor, Tensor]:
        """Codes of frames given in `u`, and the shallow blocks' log-determinant there."""
        x = self.flow.from_deep(u, method=method)
        _, log_det = self.flow.to_deep(x[:, None])
        return x, log_det[:, 0].sum(-1)

    def _transition(
        self, drawn: DrawnFrame, frame: Tensor | None, frame_log_prob: Tensor, chances: Tensor, is_finite: Tensor
    ) -> Transition:
        termination_prob = self.termination.logit(drawn.hidden).sigmoid()
        terminated = chances[:, 0] < termination_prob
        reward, reward_mean = self.reward.sample(drawn.hidden, chances[:, 1:]), self.reward.mean(drawn.hidden)
        log_prob = LogProb(
            frame=frame_log_prob,
            reward=self.reward.log_prob(drawn.hidden, reward),
            terminated=self.termination.log_prob(drawn.hidden, terminated),
        )
        for value in (reward, reward_mean, termination_prob, log_prob.total, drawn.entropy):
            is_finite = is_finite & value.isfinite()
        return Transition(
            frame=frame,
            reward=reward,
            reward_mean=reward_mean,
            terminated=terminated,
            termination_prob=termination_prob,
            log_prob=log_prob,
            latent=drawn.u,
            entropy=drawn.entropy,
            is_finite=is_finite,
        )
