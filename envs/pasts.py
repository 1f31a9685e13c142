"""Where imagined episodes start: a bank of pasts, given frames, a recorded episode, a real environment, a text.

Every choice is checked before anything is drawn, so that a bad one leaves all generators where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldflow.envs.display import neutral_action
from worldflow.envs.options import EpisodeOptions, whole
from worldflow.frames import Frames, as_tensors, mapped, together
from worldflow.types import DataSpec, Episode
from worldflow.world import Contexts, WorldModel

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped, UInt8
    from torch import Tensor

__all__ = ["Past", "Pasts"]

_OPTIONS = ("context", "frames", "past_actions", "episode", "past", "text")
_TRIES = 100


@dataclass(frozen=True, kw_only=True)
class Past:
    """What episodes start after, one row each."""

    frames: UInt8[Tensor, "row past+1 row column channel"] | None
    """None where the first frame is to be drawn."""
    actions: Shaped[Tensor, "row past *action"] | None
    text: Float[Tensor, "row word text"] | None
    steps_left: list[int] | None = None
    """How long the recorded episodes go on, where that is known."""
    info: dict[str, np.ndarray] = field(default_factory=dict)


Choice = Callable[[Sequence[np.random.Generator]], Past]
"""Draws what is left to chance, by a generator for each row."""


class Pasts:
    """The pasts that episodes of one world can start after.

    Args:
        world: The world.
        num_rows: Episodes side by side.
        options: Which pasts, see there.

    Raises:
        ValueError, TypeError: If they do not fit the world.
    """

    def __init__(self, world: WorldModel, num_rows: int, options: EpisodeOptions) -> None:
        self._world, self._num_rows = world, num_rows
        self._data = world.config.data
        self._encoder, self._horizon = options.encoder, options.horizon
        self._embedded: dict[str, Tensor] = {}
        self.contexts = world.contexts if options.contexts is None else options.contexts
        if self.contexts is not None:
            _check_contexts(self.contexts, self._data)
        self._text = None if options.text is None else self._read(options.text)
        self._real = None if options.real_env is None else _RealPasts(world, options)

    def chosen(self, options: Mapping[str, Any], rows: Sequence[int]) -> Choice:
        """What `options` of a reset name, for some of the rows.

        Args:
            options: `context`, an index; or `frames` and `past_actions`; or `episode` and `past`; and `text`. Each one
                for all rows, or one for each row of the whole batch.
            rows: Which rows start.

        Raises:
            ValueError, TypeError: If there is no such past, or it does not fit the world.
        """
        _check_options(options)
        text = self._text if options.get("text") is None else self._texts(options["text"], rows)
        text = text if text is None or text.dim() == 3 else text.expand(len(rows), *text.shape)
        if "frames" in options:
            frames, actions = self._given(options["frames"], options.get("past_actions"), rows)
            return lambda random: Past(frames=frames, actions=actions, text=text)
        if "episode" in options:
            past = self._recorded(options["episode"], options.get("past"), rows, text)
            return lambda random: past
        if "context" not in options and self._real is not None:
            real = self._real
            return lambda random: real(random, text)
        if "context" not in options and text is not None:
            return lambda random: Past(frames=None, actions=None, text=text)
        return self._from_bank(options.get("context"), rows, text)

    def close(self) -> None:
        """Close a real environment that was made here."""
        if self._real is not None:
            self._real.close()

    def _from_bank(self, index: Any, rows: Sequence[int], text: Tensor | None) -> Choice:
        bank = self.contexts
        if bank is None:
            raise ValueError(
                "there is no past to start from, as this world carries no context clips; pass contexts= or real_env= "
                "to the environment, or reset(options={'frames': ..., 'past_actions': ...})"
            )
        named = None
        if index is not None:
            indices, count = np.asarray(index), len(bank)
            if indices.dtype.kind not in "iu" or indices.shape not in ((), (self._num_rows,)):
                raise ValueError(
                    f"options['context'] must be the index of a past, or {self._num_rows} of them, got {index!r}"
                )
            if ((indices < 0) | (indices >= count)).any():
                raise ValueError(f"options['context'] must lie in 0..{count - 1}, the pasts of the bank, got {index!r}")
            named = np.broadcast_to(indices, self._num_rows)[list(rows)].tolist()

        def choice(random: Sequence[np.random.Generator]) -> Past:
            picked = [int(numbers.integers(len(bank))) for numbers in random] if named is None else named
            info = {"context": np.array(picked, np.int64)}
            return Past(frames=bank.frames[picked], actions=bank.actions[picked], text=text, info=info)

        return choice

    def _given(self, frames: Any, actions: Any, rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """The pasts that `options` hold, as a batch."""
        frames, leading = self._given_frames(frames)
        is_each = len(leading) == 2

        def batch(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values[list(rows)] if is_each else values[None].repeat(len(rows), axis=0))

        length = leading[-1] - 1
        if actions is None:
            if length:
                raise ValueError(f"{length + 1} frames need {length} past actions, got none: give 'past_actions'")
            return mapped(batch, frames), None
        actions = np.asarray(actions)
        expected = (*leading[:-1], length, *self._data.action.shape)
        if actions.shape != expected or actions.dtype.kind not in "biuf":
            raise ValueError(
                f"options['past_actions'] must be numbers of shape {expected}, the actions between the frames, "
                f"got {actions.dtype} of shape {actions.shape}"
            )
        return mapped(batch, frames), batch(actions)

    def _given_frames(self, given: Any) -> tuple[Any, tuple[int, ...]]:
        """Frames of `options`, checked, and their axes in front: `(past + 1,)`, or rows before that."""
        shapes, parts = self._data.part_shapes, {"": given}
        if self._data.parts is not None:
            if not isinstance(given, Frames | Mapping) or set(given.keys()) != set(shapes):
                found = sorted(given.keys()) if isinstance(given, Frames | Mapping) else type(given).__name__
                raise ValueError(f"options['frames'] must be a dictionary of {sorted(shapes)}, got {found}")
            parts = {name: given[name] for name in shapes}
        checked = {
            name: self._given_part(part, shapes[name], f"options['frames']{f'[{name!r}]' if name else ''}")
            for name, part in parts.items()
        }
        leading = {frames.shape[: -len(shapes[name])] for name, frames in checked.items()}
        if len(leading) > 1:
            raise ValueError(f"the parts of options['frames'] must be as many, got {sorted(leading)} of them")
        return checked[""] if self._data.parts is None else Frames(checked), leading.pop()

    def _given_part(self, frames: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
        frames = np.asarray(frames)
        if shape[2:] == (1,) and frames.shape[-2:] == shape[:2]:  # gray, as its environment may observe it
            frames = frames[..., None]
        one_past = 1 + len(shape)
        is_each = frames.ndim == one_past + 1
        fits = frames.ndim in (one_past, one_past + 1) and frames.shape[-len(shape) :] == shape
        if not fits or (is_each and len(frames) != self._num_rows):
            one = ", ".join(map(str, ("past + 1", *shape)))
            raise ValueError(f"{name} must have shape ({one}) or ({self._num_rows}, {one}), got {frames.shape}")
        if len(shape) == 1:
            return _floats(frames, name)
        if frames.dtype != np.uint8:
            raise TypeError(f"{name} must be uint8, got {frames.dtype}; scale them to 0..255 and cast them")
        return frames

    def _recorded(self, episode: Any, past: Any, rows: Sequence[int], text: Tensor | None) -> Past:
        """The first transitions of recorded episodes, which also say how long there is something to compare with."""
        each = [episode] * self._num_rows if hasattr(episode, "frames") else list(episode)
        if len(each) != self._num_rows or not all(isinstance(one, Episode) for one in each):
            raise ValueError(
                f"options['episode'] must be a worldflow Episode, or {self._num_rows} of them, got {len(each)} of type "
                f"{sorted({type(one).__name__ for one in each})}"
            )
        given = max(1, self._world.config.flow.window - 1) if past is None else whole("options['past']", past)
        shortest = min(len(one) for one in each)
        if given >= shortest:
            raise ValueError(
                f"options['past'] must leave a transition of the shortest episode, {shortest}, got {given}"
            )
        if self._horizon is not None and self._horizon > shortest - given:
            raise ValueError(
                f"horizon is {self._horizon}, but the recorded episode goes on for {shortest - given} steps only; make "
                "the environment with a shorter horizon or with none, or give 'frames' and 'past_actions' instead"
            )
        frames, actions = self._given(
            together(np.stack, [one.frames[: given + 1] for one in each]),
            np.stack([one.actions[:given] for one in each]),
            rows,
        )
        return Past(frames=frames, actions=actions, text=text, steps_left=[len(each[i]) - given for i in rows])

    def _texts(self, text: Any, rows: Sequence[int]) -> Tensor:
        """Embedded prompts of `rows`, or of one for all."""
        if isinstance(text, str) or (hasattr(text, "ndim") and text.ndim == 2):
            return self._read(text)
        texts = list(text)
        if len(texts) != self._num_rows:
            raise ValueError(f"options['text'] must be one text or {self._num_rows}, got {len(texts)}")
        return torch.stack([self._read(texts[i]) for i in rows])

    def _read(self, text: Any) -> Float[Tensor, "word text"]:
        """A prompt as the world reads it."""
        spec = self._world.config.text
        if spec is None:
            raise ValueError("this world reads no text; train one on captioned episodes, or leave out the text")
        if isinstance(text, str):
            if text not in self._embedded:
                from worldflow.text_condition import encoder_of  # brings transformers

                self._embedded[text] = encoder_of(self._world, self._encoder)([text]).tokens[0].cpu()
            return self._embedded[text]
        tokens = torch.as_tensor(text)
        if tokens.shape != (spec.words, spec.dim) or not tokens.isfinite().all():
            raise ValueError(
                f"a text must be a string, or its embedding of finite numbers ({spec.words}, {spec.dim}), "
                f"got {tokens.dtype} of shape {tuple(tokens.shape)}"
            )
        return tokens.to(torch.get_default_dtype())


class _RealPasts:
    """Pasts from a real environment: its reset, and a few steps of a policy."""

    def __init__(self, world: WorldModel, options: EpisodeOptions) -> None:
        from worldflow.envs.making import make_env
        from worldflow.envs.policies import make_policy

        assert options.real_env is not None
        data = world.config.data
        self._is_own = isinstance(options.real_env, str)
        self._steps = options.real_steps or max(1, world.config.flow.window - 1)
        self._env = make_env(options.real_env, observed=data.observed, size=data.frame_shape[0])
        _check_real_spaces(self._env, data)
        spaces = {"observation_space": self._env.observation_space, "action_space": self._env.action_space}
        held = neutral_action(self._env.action_space)
        policy = options.real_policy
        self._policy = (lambda observation, info, generator: held) if policy is None else make_policy(policy, **spaces)

    def __call__(self, random: Sequence[np.random.Generator], text: Tensor | None) -> Past:
        episodes = [self._episode(numbers) for numbers in random]
        frames = together(np.stack, [one.frames for one in episodes])
        if frames.ndim == 4:  # gray pictures
            frames = frames[..., None]
        actions = torch.from_numpy(np.stack([one.actions for one in episodes]))
        return Past(frames=as_tensors(frames), actions=actions, text=text)

    def _episode(self, numbers: np.random.Generator) -> Episode:
        from worldflow.envs.collect import record_episode

        for _ in range(_TRIES):
            episode = record_episode(self._env, self._policy, seed=int(numbers.integers(2**31)), max_steps=self._steps)
            if len(episode) == self._steps and not episode.terminated[-1]:
                return episode
        raise ValueError(
            f"real_env ended within {self._steps} steps in each of {_TRIES} episodes, so that none is left to go on "
            "from; pass fewer real_steps or another real_policy"
        )

    def close(self) -> None:
        if self._is_own:
            self._env.close()
            self._is_own = False


def _check_real_spaces(env: Any, data: DataSpec) -> None:
    from minari.serialization import serialize_space

    from worldflow.spaces import check_compatible, data_spec

    observation, action = str(serialize_space(env.observation_space)), str(serialize_space(env.action_space))
    check_compatible(data, data_spec(observation, action, dataset_id="real_env"))


def _check_contexts(contexts: Contexts, data: DataSpec) -> None:
    frames, actions = contexts.frames, contexts.actions
    parts = frames.parts if isinstance(frames, Frames) else {"": frames}
    fits = {name: tuple(part.shape[2:]) for name, part in parts.items()} == data.part_shapes
    fits = fits and all(part.numel() > 0 for part in parts.values())
    if not fits or tuple(actions.shape) != (len(frames), frames.shape[1] - 1, *data.action.shape):
        each = [", ".join(map(str, ("clip", "past + 1", *shape))) for shape in data.part_shapes.values()]
        action = ", ".join(map(str, ("clip", "past", *data.action.shape)))
        raise ValueError(
            f"contexts must hold at least one clip, frames ({') and ('.join(each)}) and actions ({action}), "
            f"got {' and '.join(str(tuple(part.shape)) for part in parts.values())} and {tuple(actions.shape)}"
        )


def _floats(frames: np.ndarray, name: str) -> np.ndarray:
    if frames.dtype.kind not in "fiu" or not np.isfinite(frames).all():
        raise TypeError(f"{name} must be finite numbers, got {frames.dtype}")
    return frames.astype(np.float32)


def _check_options(options: Mapping[str, Any]) -> None:
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise ValueError(f"reset knows no options {unknown}; it takes {list(_OPTIONS)}")
    named = [name for name in ("context", "frames", "episode") if name in options]
    if len(named) > 1:
        raise ValueError(f"options name a past twice, as {' and as '.join(map(repr, named))}; give one of them")
    for part, whole_ in (("past_actions", "frames"), ("past", "episode")):
        if part in options and whole_ not in options:
            raise ValueError(f"options give {part!r} without {whole_!r}; they belong together")
