"""Imagined episodes of one world, side by side: what the learned environments are made of.

Every row has its own generator, so that it draws the same transitions in a batch of any size, and rows can be started
and stepped without the others: an episode that ended starts anew while its neighbors go on. Frames keep their channel
axis here; spaces, seeds and Gymnasium's conventions are the environments' part.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding

from worldflow.checkpoint import load
from worldflow.state import WorldState
from worldflow.types import DataSpec
from worldflow.world import Contexts, WorldModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Shaped, UInt8
    from torch import Tensor

__all__ = ["ImaginedEpisodes", "Outcome", "whole"]

_HORIZON = 200
_OPTIONS = ("context", "frames", "past_actions")


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
        contexts: Pasts to start from; by default the bank that the world carries, if any.
        horizon: Steps after which an episode is truncated; by default the recorded environment's limit, or 200.
        temperature: Scale of the frames' noise.
        device: Where to put a world that is read from a folder; by default the CPU.

    Attributes:
        ended: Whether a row's episode was terminated or truncated.

    Raises:
        FileNotFoundError, ValueError, TypeError: If the world cannot be read, the contexts do not fit it, or a number
            is out of range.
    """

    def __init__(
        self,
        world: str | os.PathLike[str] | WorldModel,
        num_rows: int,
        *,
        contexts: Contexts | None = None,
        horizon: int | None = None,
        temperature: float = 1.0,
        device: str | torch.device | None = None,
    ) -> None:
        if not (np.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature must be a finite number of at least 0, got {temperature}")
        self.world = _opened(world, device)
        self._data = self.world.config.data
        self.contexts = self.world.contexts if contexts is None else contexts
        if self.contexts is not None:
            _check_contexts(self.contexts, self._data)
        self.horizon = _recorded_limit(self._data.env_spec) if horizon is None else whole("horizon", horizon)
        self.temperature = float(temperature)
        self._state: WorldState | None = None
        self._generators = [torch.Generator() for _ in range(num_rows)]
        self._is_seeded = np.zeros(num_rows, bool)
        self._elapsed = np.zeros(num_rows, np.int64)
        self._frames = np.zeros((num_rows, *self._data.frame_shape), np.uint8)
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
    def observed(self) -> UInt8[np.ndarray, "episode row column channel"]:
        """The last frame of each row; later steps write into it.

        Raises:
            ResetNeeded: Before the first reset.
        """
        assert self.state is not None
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
            options: `context`, an index or one for each row of the whole batch, or `frames` and `past_actions`, one
                past or one for each row of the whole batch.

        Returns:
            The pasts' indices as `context`, for pasts of the bank.

        Raises:
            ValueError, TypeError: If there is no such past, or it does not fit the world.
            ResetNeeded: If the first call leaves rows out.
        """
        if self._state is None and len(rows) < len(self):
            raise ResetNeeded(f"the first reset must start all {len(self)} episodes, got {len(rows)} of them")
        options = dict(options or {})
        _check_options(options)
        given = self._given(options["frames"], options.get("past_actions"), rows) if "frames" in options else None
        index = None if given else self._named(options.get("context"), rows)
        for i, numbers, is_new in zip(rows, random, is_seeded, strict=True):
            if is_new or not self._is_seeded[i]:
                self._generators[i].manual_seed(int(numbers.integers(2**63)))
                self._is_seeded[i] = True
        info: dict[str, np.ndarray] = {}
        if given:
            frames, actions = given
        else:
            assert self.contexts is not None
            if index is None:
                index = [int(numbers.integers(len(self.contexts))) for numbers in random]
            frames, actions = self.contexts.frames[index], self.contexts.actions[index]
            info["context"] = np.array(index, np.int64)
        state = self.world.start(frames, actions, generator=[self._generators[i] for i in rows])
        self._state = state if self._state is None or len(rows) == len(self) else self._state.replace(rows, state)
        self._frames[rows] = frames[:, -1].cpu().numpy()
        self._elapsed[rows] = 0
        self.ended[rows] = False
        return info

    def step(self, rows: Sequence[int], actions: Shaped[np.ndarray, "row *action"]) -> Outcome:
        """Draw the next transition of `rows`; the other rows, and their generators, stay as they are.

        Raises:
            ValueError: If an action has the wrong shape or type, or is out of bounds; nothing has moved then.
            ResetNeeded: Before the first reset, and after an episode's end.
        """
        before = self.state
        if self.ended[rows].any():
            raise ResetNeeded("the episode has ended; call reset() before the next step()")
        actions = self._checked(actions)
        is_all = len(rows) == len(self)
        transition, after = self.world.step(
            before if is_all else before[list(rows)],
            actions,
            generator=[self._generators[i] for i in rows],
            temperature=self.temperature,
        )
        self._state = after if is_all else before.replace(rows, after)
        assert transition.frame is not None
        self._frames[rows] = transition.frame.cpu().numpy()
        self._elapsed[rows] += 1
        info = {
            "log_prob": transition.log_prob.total,
            "log_prob_frame": transition.log_prob.frame,
            "log_prob_reward": transition.log_prob.reward,
            "log_prob_terminated": transition.log_prob.terminated,
            "reward_mean": transition.reward_mean,
            "termination_prob": transition.termination_prob,
        }
        columns = torch.stack([v.double() for v in (*info.values(), transition.reward, transition.terminated)])
        *values, reward, ending = columns.cpu().numpy()  # one transfer for all
        terminated, truncated = ending > 0, self._elapsed[rows] >= self.horizon
        self.ended[rows] = terminated | truncated
        return Outcome(
            reward=reward, terminated=terminated, truncated=truncated, info=dict(zip(info, values, strict=True))
        )

    def pack(self, random: Sequence[np.random.Generator]) -> list[bytes]:
        """Each row, with all that its future depends on, as bytes; `random` picks the rows' next pasts."""
        state = self.state
        packed = []
        for i, numbers in enumerate(random):
            record = {
                "np_random": numbers.bit_generator.state,
                "elapsed": int(self._elapsed[i]),
                "ended": bool(self.ended[i]),
            }
            file = io.BytesIO()
            np.savez(
                file,
                record=np.array(json.dumps(record)),
                frame=self._frames[i],
                generator=self._generators[i].get_state().numpy(),
                world=np.frombuffer(state[i].to_bytes(), np.uint8),
            )
            packed.append(file.getvalue())
        return packed

    def unpack(self, packed: Sequence[bytes]) -> list[np.random.Generator]:
        """Put every row where `pack` saw it, and return what `random` was there.

        Raises:
            ValueError: If there is not one for each row, or one is something else or another world's.
        """
        if len(packed) != len(self):
            raise ValueError(f"expected {len(self)} states, one an environment, got {len(packed)}")
        rows = [_Row.from_bytes(data) for data in packed]
        expected = {name: tensor.shape for name, tensor in self.world.flow.initial_state(1).tensors().items()}
        for row in rows:
            found = {name: tensor.shape for name, tensor in row.state.tensors().items()}
            if row.frame.shape != self._data.frame_shape or found != expected:
                raise ValueError("the state is another world's; set it in an environment of the world it comes from")
        self._state = WorldState.cat([row.state for row in rows]).to(self.world.device)
        self._generators = [row.generator for row in rows]
        self._is_seeded[:] = True
        self._elapsed = np.array([row.elapsed for row in rows], np.int64)
        self._frames = np.stack([row.frame for row in rows])
        self.ended = np.array([row.ended for row in rows], bool)
        return [row.np_random for row in rows]

    def _named(self, index: Any, rows: Sequence[int]) -> list[int] | None:
        """The pasts that `options` name, None for no choice."""
        if self.contexts is None:
            raise ValueError(
                "there is no past to start from, as this world carries no context clips; pass contexts= to the "
                "environment, or reset(options={'frames': ..., 'past_actions': ...})"
            )
        if index is None:
            return None
        indices, count = np.asarray(index), len(self.contexts)
        if indices.dtype.kind not in "iu" or indices.shape not in ((), (len(self),)):
            raise ValueError(f"options['context'] must be the index of a past, or {len(self)} of them, got {index!r}")
        if ((indices < 0) | (indices >= count)).any():
            raise ValueError(f"options['context'] must lie in 0..{count - 1}, the pasts of the bank, got {index!r}")
        return np.broadcast_to(indices, len(self))[list(rows)].tolist()

    def _given(self, frames: Any, actions: Any, rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The pasts that `options` hold, as a batch."""
        shape = self._data.frame_shape
        frames = np.asarray(frames)
        if frames.shape[-2:] == shape[:2] and shape[2] == 1:  # gray, as its environment may observe it
            frames = frames[..., None]
        is_each = frames.ndim == 5
        if frames.ndim not in (4, 5) or frames.shape[-3:] != shape or (is_each and len(frames) != len(self)):
            one = ", ".join(map(str, ("past + 1", *shape)))
            raise ValueError(f"options['frames'] must have shape ({one}) or ({len(self)}, {one}), got {frames.shape}")

        def batch(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values[list(rows)] if is_each else values[None].repeat(len(rows), axis=0))

        if actions is None:
            return batch(frames), None
        actions = np.asarray(actions)
        expected = (*frames.shape[: frames.ndim - 4], frames.shape[-4] - 1, *self._data.action.shape)
        if actions.shape != expected or actions.dtype.kind not in "biuf":
            raise ValueError(
                f"options['past_actions'] must be numbers of shape {expected}, the actions between the frames, "
                f"got {actions.dtype} of shape {actions.shape}"
            )
        return batch(frames), batch(actions)

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


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One packed episode."""

    state: WorldState
    frame: UInt8[np.ndarray, "row column channel"]
    generator: torch.Generator
    np_random: np.random.Generator
    elapsed: int
    ended: bool

    @staticmethod
    def from_bytes(data: bytes) -> _Row:
        try:
            with np.load(io.BytesIO(data)) as file:
                record = json.loads(str(file["record"]))
                numbers, _ = seeding.np_random(0)
                numbers.bit_generator.state = record["np_random"]
                generator = torch.Generator()
                generator.set_state(torch.from_numpy(file["generator"]))
                return _Row(
                    state=WorldState.from_bytes(file["world"].tobytes()),
                    frame=file["frame"],
                    generator=generator,
                    np_random=numbers,
                    elapsed=record["elapsed"],
                    ended=record["ended"],
                )
        except (BadZipFile, OSError, EOFError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"these bytes hold no episode ({error}); set what get_state returned") from error


def whole(name: str, value: Any) -> int:
    """`value`, if it is a whole number of at least 1.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def _opened(world: str | os.PathLike[str] | WorldModel, device: str | torch.device | None) -> WorldModel:
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


def _check_contexts(contexts: Contexts, data: DataSpec) -> None:
    frames, actions = contexts.frames, contexts.actions
    fits = frames.dim() == 5 and len(frames) > 0 and frames.shape[1] > 0 and tuple(frames.shape[2:]) == data.frame_shape
    if not fits or tuple(actions.shape) != (len(frames), frames.shape[1] - 1, *data.action.shape):
        frame = ", ".join(map(str, ("clip", "past + 1", *data.frame_shape)))
        action = ", ".join(map(str, ("clip", "past", *data.action.shape)))
        raise ValueError(
            f"contexts must hold at least one clip, frames ({frame}) and actions ({action}), "
            f"got {tuple(frames.shape)} and {tuple(actions.shape)}"
        )


def _check_options(options: Mapping[str, Any]) -> None:
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise ValueError(f"reset knows no options {unknown}; it takes {list(_OPTIONS)}")
    if "context" in options and "frames" in options:
        raise ValueError("options name a past twice: give either 'context' or 'frames'")
    if "past_actions" in options and "frames" not in options:
        raise ValueError("options give 'past_actions' without 'frames'; they belong together")
