"""Imagined episodes of one world, side by side: what the learned environments are made of.

Every row has its own generator, so that it draws the same transitions in a batch of any size, and rows can be started
and stepped without the others: an episode that ended starts anew while its neighbors go on. Frames keep their channel
axis here; spaces, seeds and Gymnasium's conventions are the environments' part.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.error import ResetNeeded

from worldflow.checkpoint import load
from worldflow.compiled import compile_or_warn
from worldflow.envs.footprint import bytes_per_episode, check_room
from worldflow.envs.options import EpisodeOptions, whole
from worldflow.envs.pasts import Past, Pasts
from worldflow.envs.snapshots import Snapshot
from worldflow.flow import Guidance
from worldflow.frames import blank_frames, part_shapes
from worldflow.state import WorldState
from worldflow.threads import use_one_thread_after_fork
from worldflow.world import Contexts, WorldModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Float64, Shaped, UInt8

    from worldflow.types import Transition

__all__ = ["ImaginedEpisodes", "NonFiniteError", "Outcome", "opened"]

_HORIZON = 200


class NonFiniteError(FloatingPointError):
    """A world drew something that is no number.

    Args:
        environments: Which environments it happened in.
        when: What they were doing.

    Attributes:
        environments: The same.
    """

    def __init__(self, environments: Sequence[int], when: str) -> None:
        super().__init__(
            f"the world's frame, reward or latent is not finite in the environments {list(environments)} {when}; "
            "no environment has moved, and those named must be reset (of many, alone with "
            "options={'reset_mask': mask}). If it happens again, the actions or the past are unlike any recorded, or "
            "the weights are damaged: try a temperature below 1, a shorter horizon, or another checkpoint"
        )
        self.environments = tuple(environments)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step returned, one number a stepped row; `info` tells what was drawn from what, and how likely it was."""

    reward: Float64[np.ndarray, " row"]
    terminated: Bool[np.ndarray, " row"]
    truncated: Bool[np.ndarray, " row"]
    info: dict[str, Float64[np.ndarray, " row"]]


class ImaginedEpisodes:
    """Episodes of one world, a row each, started and stepped in any subset by one model call.

    Args:
        world: A run's folder, or a world in evaluation mode.
        num_rows: Episodes side by side.
        options: Where they start and end, and what is drawn.
        device: Where to put a world that is read from a folder; by default the CPU.

    Attributes:
        ended: Whether a row's episode was terminated, truncated, or went wrong.
        horizon: Steps after which an episode is truncated, unless a recorded one that it starts from ends before.

    Raises:
        FileNotFoundError, ValueError, TypeError: If the world cannot be read, or the options do not fit it.
        MemoryError: If so many episodes will not fit.
    """

    def __init__(
        self,
        world: str | os.PathLike[str] | WorldModel,
        num_rows: int,
        options: EpisodeOptions,
        *,
        device: str | torch.device | None = None,
    ) -> None:
        use_one_thread_after_fork()
        self.world = opened(world, device)
        self.options = options
        self._data = self.world.config.data
        self.bytes_per_row = bytes_per_episode(self.world, is_guided=options.guidance > 0)
        check_room(num_rows, self.bytes_per_row, device=self.world.device)
        self.horizon = options.horizon or _recorded_limit(self._data.env_spec)
        self._pasts = Pasts(self.world, num_rows, options)
        if options.compile:
            compile_or_warn(self.world, num_rows, option="compile=True")
        self._state: WorldState | None = None
        self._unconditional: WorldState | None = None
        self._generators = [torch.Generator() for _ in range(num_rows)]
        self._is_seeded = np.zeros(num_rows, bool)
        self._elapsed = np.zeros(num_rows, np.int64)
        self._limits = np.zeros(num_rows, np.int64)
        self._frames = blank_frames(self._data, (num_rows,))
        self._is_drawn = np.zeros(num_rows, bool)
        self.ended = np.zeros(num_rows, bool)

    def __len__(self) -> int:
        return len(self._generators)

    @property
    def state(self) -> WorldState:
        """What the world remembers of each row.

        Raises:
            ResetNeeded: Before the first reset.
        """
        if self._state is None:
            raise ResetNeeded("no episode has started yet; call reset() first")
        return self._state

    @property
    def contexts(self) -> Contexts | None:
        """The bank of pasts, or None where there is none."""
        return self._pasts.contexts

    @property
    def latents(self) -> Float32[np.ndarray, "episode token latent"]:
        """The last frame of each row as the flow remembers it: its tokens `u`, or the codes of what was shown of it."""
        return self.state.latents[:, 1].float().cpu().numpy()

    @property
    def frames(self) -> UInt8[np.ndarray, "episode row column channel"]:
        """The last frame of each row, decoded where that was not needed before; later steps write into it.

        Raises:
            ResetNeeded: Before the first reset.
            NonFiniteError: If a decoded frame is not finite.
        """
        state, missing = self.state, np.flatnonzero(~self._is_drawn)
        if len(missing):
            with torch.no_grad():
                x = self.world.flow.from_deep(state.latents[missing.tolist(), 1])
                frames, is_finite = self.world.codec.decode_checked(x)
            if not is_finite.all():
                raise NonFiniteError(missing[~is_finite.cpu().numpy()].tolist(), "as their frames are decoded")
            self._frames[missing], self._is_drawn[missing] = frames.cpu().numpy(), True
        return self._frames

    def reset(
        self,
        rows: Sequence[int],
        *,
        random: Sequence[np.random.Generator],
        is_seeded: Sequence[bool],
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, np.ndarray]:
        """Start an episode in each of `rows`.

        Args:
            rows: Which ones; all of them the first time.
            random: A generator for each of `rows`: seeds the row's own where it is new, and picks its past.
            is_seeded: Whether that generator is new, so that the row's own starts anew, too.
            options: Which past, see `worldflow.envs.pasts.Pasts.chosen`.

        Returns:
            The pasts' indices as `context`, for pasts of the bank.

        Raises:
            ValueError, TypeError: If there is no such past, or it does not fit the world.
            ResetNeeded: If the first call leaves rows out.
            NonFiniteError: If the world makes no numbers of the past.
        """
        use_one_thread_after_fork()
        if self._state is None and len(rows) < len(self):
            raise ResetNeeded(f"the first reset must start all {len(self)} episodes, got {len(rows)} of them")
        choose = self._pasts.chosen(dict(options or {}), rows)
        for i, numbers, is_new in zip(rows, random, is_seeded, strict=True):
            if is_new or not self._is_seeded[i]:
                self._generators[i].manual_seed(int(numbers.integers(2**63)))
                self._is_seeded[i] = True
        past = choose(random)
        state, unconditional, frames, is_finite = self._begun(past, [self._generators[i] for i in rows])
        if not is_finite.all():
            self.ended[rows] = True
            raise NonFiniteError(np.asarray(rows)[~is_finite.cpu().numpy()].tolist(), "as they start")
        self._put(rows, state, unconditional)
        self._show(rows, frames)
        self._elapsed[rows], self.ended[rows] = 0, False
        self._limits[rows] = np.minimum(self.horizon, past.steps_left or self.horizon)
        return past.info

    def step(self, rows: Sequence[int], actions: Shaped[np.ndarray, "row *action"]) -> Outcome:
        """Draw the next transition of `rows`; the other rows, and their generators, stay as they are.

        Raises:
            ValueError: If an action has the wrong shape or type, or is out of bounds; nothing has moved then.
            ResetNeeded: Before the first reset, and after an episode's end.
            NonFiniteError: If the world draws what is no number; nothing has moved then, and those rows must be reset.
        """
        use_one_thread_after_fork()
        before, without = self.state, self._unconditional
        if self.ended[rows].any():
            raise ResetNeeded("the episode has ended; call reset() before the next step()")
        actions = self._checked(actions)
        if len(rows) < len(self):
            before, without = before[list(rows)], None if without is None else without[list(rows)]
        generators = [self._generators[i] for i in rows]
        streams = [generator.get_state() for generator in generators]
        transition, after, without = self._drawn(before, without, actions, generators)
        assert transition.is_finite is not None and transition.entropy is not None
        log_prob, options = transition.log_prob, self.options
        nothing = torch.zeros_like(log_prob.reward)  # what is not drawn has no likelihood
        reward_nats = log_prob.reward if options.reward == "sampled" else nothing
        end_nats = log_prob.terminated if options.termination == "sampled" else nothing
        info = {
            "log_prob": log_prob.frame + reward_nats + end_nats,
            "log_prob_frame": log_prob.frame,
            "log_prob_reward": reward_nats,
            "log_prob_terminated": end_nats,
            "entropy_frame": transition.entropy,
            "reward_mean": transition.reward_mean,
            "termination_prob": transition.termination_prob,
        }
        drawn = (*info.values(), transition.reward, transition.terminated, transition.is_finite)
        *values, reward, ending, finite = torch.stack([v.double() for v in drawn]).cpu().numpy()  # one transfer for all
        if not finite.all():
            for generator, stream in zip(generators, streams, strict=True):
                generator.set_state(stream)
            faulty = np.asarray(rows)[finite == 0]
            self.ended[faulty] = True
            raise NonFiniteError(faulty.tolist(), f"at their steps {(self._elapsed[faulty] + 1).tolist()}")
        self._put(rows, after, without)
        self._show(rows, transition.frame)
        self._elapsed[rows] += 1
        outcomes = dict(zip(info, values, strict=True))
        terminated = (ending > 0) & (options.termination == "sampled")
        truncated = self._elapsed[rows] >= self._limits[rows]
        self.ended[rows] = terminated | truncated
        return Outcome(
            reward=reward if options.reward == "sampled" else outcomes["reward_mean"].copy(),
            terminated=terminated,
            truncated=truncated,
            info=outcomes,
        )

    def snapshot(self, random: Sequence[np.random.Generator]) -> Snapshot:
        """The moment, whole; `random` picks the rows' next pasts."""
        return Snapshot(
            state=self.state,
            unconditional=self._unconditional,
            generators=np.stack([generator.get_state().numpy() for generator in self._generators]),
            numbers=tuple(numbers.bit_generator.state for numbers in random),
            frames=self._frames.copy(),
            is_drawn=self._is_drawn.copy(),
            elapsed=self._elapsed.copy(),
            limits=self._limits.copy(),
            ended=self.ended.copy(),
        )

    def restore(self, snapshot: Snapshot) -> list[np.random.Generator]:
        """Put every row where `snapshot` saw it, and return what `random` was there.

        Raises:
            ValueError: If it has not one row for each, or is another world's or another guidance's.
        """
        if len(snapshot) != len(self):
            raise ValueError(
                f"expected a snapshot of {len(self)} environments, got one of {len(snapshot)}; pick rows of it by "
                "index, repeat(k) it, or join several with Snapshot.cat"
            )
        expected = {name: tensor.shape[1:] for name, tensor in self.world.begin(1).tensors().items()}
        found = {name: tensor.shape[1:] for name, tensor in snapshot.state.tensors().items()}
        if part_shapes(snapshot.frames) != self._data.part_shapes or found != expected:
            raise ValueError("the snapshot is another world's; restore it in an environment of the world it comes from")
        if (snapshot.unconditional is None) != (self.options.guidance == 0):
            raise ValueError(
                f"the snapshot was taken {'without' if snapshot.unconditional is None else 'with'} guidance; "
                "restore it in an environment that is made alike"
            )
        without, device = snapshot.unconditional, self.world.device
        self._state = snapshot.state.to(device)
        self._unconditional = None if without is None else without.to(device)
        for generator, stream in zip(self._generators, snapshot.generators, strict=True):
            generator.set_state(torch.from_numpy(stream.copy()))
        self._is_seeded[:] = True
        self._frames, self._is_drawn = snapshot.frames.copy(), snapshot.is_drawn.copy()
        self._elapsed, self._limits = snapshot.elapsed.copy(), snapshot.limits.copy()
        self.ended = snapshot.ended.copy()
        return snapshot.random()

    def close(self) -> None:
        """Close a real environment that was made for pasts."""
        self._pasts.close()

    def _begun(
        self, past: Past, generators: list[torch.Generator]
    ) -> tuple[WorldState, WorldState | None, torch.Tensor | None, torch.Tensor]:
        """The states after a past, with its actions and, for guidance, without; the last frame; which are finite."""
        world, without = self.world, None
        text = None if past.text is None else past.text.to(world.device, world.dtype)
        if past.frames is not None:
            if self.options.guidance:
                same = [generator.clone_state() for generator in generators]  # both read the same noisy codes
                without = world.start(past.frames, past.actions, text=text, generator=same, hide_actions=True)
            state = world.start(past.frames, past.actions, text=text, generator=generators)
            return state, without, past.frames[:, -1], state.latents.isfinite().flatten(1).all(1)
        state = world.begin(len(generators), text=text)
        without = state if self.options.guidance else None
        spec = self._data.action
        first = np.reshape(spec.first if spec.is_discrete else np.clip(0, spec.low, spec.high), spec.shape)
        actions = np.broadcast_to(first, (len(generators), *spec.shape)).astype(spec.dtype)  # never read
        transition, state, without = self._drawn(state, without, actions, generators)
        assert transition.is_finite is not None
        return state, without, transition.frame, transition.is_finite

    def _drawn(
        self,
        state: WorldState,
        without: WorldState | None,
        actions: np.ndarray,
        generators: Sequence[torch.Generator],
    ) -> tuple[Transition, WorldState, WorldState | None]:
        how: dict[str, Any] = {
            "generator": generators,
            "temperature": self.options.temperature,
            "decode": self.options.observation != "latent",
        }
        if without is None:
            return *self.world.step(state, actions, **how), None
        guidance = Guidance(weight=self.options.guidance, state=without, hide_actions=True)
        transition, state, after = self.world.guided_step(state, guidance, actions, **how)
        assert after is not None
        return transition, state, after.state

    def _put(self, rows: Sequence[int], state: WorldState, without: WorldState | None) -> None:
        if self._state is None or len(rows) == len(self):
            self._state, self._unconditional = state, without
            return
        self._state = self._state.replace(rows, state)
        if without is not None and self._unconditional is not None:
            self._unconditional = self._unconditional.replace(rows, without)

    def _show(self, rows: Sequence[int], frames: torch.Tensor | None) -> None:
        self._is_drawn[rows] = frames is not None
        if frames is not None:
            self._frames[rows] = frames.cpu().numpy()

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        """A copy of the actions in their recorded type."""
        spec = self._data.action
        if actions.shape[1:] != spec.shape or actions.dtype.kind not in ("biu" if spec.is_discrete else "biuf"):
            expected, kind = (len(actions), *spec.shape), "whole numbers" if spec.is_discrete else "numbers"
            raise ValueError(
                f"actions must be {kind} of shape {expected}, got {actions.dtype} of shape {actions.shape}"
            )
        if spec.is_discrete:
            actions = actions.astype(np.int64)
            low = np.reshape(spec.first, spec.shape)
            high = low + np.reshape(spec.choices, spec.shape) - 1
        else:
            with np.errstate(over="ignore"):  # a number beyond the type's range becomes infinite, and is refused below
                actions = actions.astype(spec.dtype)
            low, high = (np.reshape(bound, spec.shape).astype(spec.dtype) for bound in (spec.low, spec.high))
        if not ((actions >= low) & (actions <= high) & np.isfinite(actions)).all():
            raise ValueError(
                f"actions must be finite and lie in {low.tolist()}..{high.tolist()}, got {actions.tolist()}; "
                "clip them to the action space, or mend the policy"
            )
        return actions


def opened(world: str | os.PathLike[str] | WorldModel, device: str | torch.device | None = None) -> WorldModel:
    """A world that is ready to be stepped: read from its run's folder, or the given one.

    Raises:
        ValueError: If the given world is on another device, or in training mode.
    """
    if not isinstance(world, WorldModel):
        return load(world, device="cpu" if device is None else device)
    if device is not None and torch.device(device).type != world.device.type:
        raise ValueError(f"device is {str(device)!r}, but the given world is on {world.device}; move it there before")
    if world.training:
        raise ValueError("the given world is in training mode; call world.eval() before it is stepped")
    return world


def _recorded_limit(env_spec: str | None) -> int:
    if env_spec is None:
        return _HORIZON
    try:
        limit = json.loads(env_spec).get("max_episode_steps")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"the world's env_spec is no specification ({error}); pass horizon=") from error
    return _HORIZON if limit is None else whole("the recorded environment's max_episode_steps", limit)
