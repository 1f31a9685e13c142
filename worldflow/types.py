"""The data that travels: clips and episodes in, transitions and dreams out.

Axis names, used in every shape of this package:

========== ==================================================================
`batch`    independent clips, environments or candidates
`sample`   draws of the same future
`time`     frames (`time + 1` of them) or transitions (`time` of them)
`row`, `column`, `channel`   pixels of a frame
`token`    cells of the latent grid, row by row; `latent` their channels
========== ==================================================================

Time is aligned as in a Minari episode: `frames[t]` and `actions[t]` lead to `frames[t + 1]`,
`rewards[t]`, `terminated[t]` and `truncated[t]`. So there are `time + 1` frames and `time` of the rest.
Frames are `uint8 (..., time, row, column, channel)` at the boundary and
float `(..., time, channel, row, column)` in [-1, 1] inside. Where a vector is observed instead of a picture, it is the
frame: `float32 (..., time, number)` at the boundary, in its own units. Where a dictionary of a picture and vectors is
observed, frames are `worldflow.frames.Frames`, indexed as arrays of frames are. Shapes below are those of pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Int64, Shaped, UInt8
    from torch import Tensor

__all__ = [
    "ActionSpec",
    "Clip",
    "DataSpec",
    "Dream",
    "Episode",
    "Generators",
    "LogProb",
    "PartsSpec",
    "Transition",
]

Generators = torch.Generator | Sequence[torch.Generator] | None
"""Where randomness comes from: one generator for a whole batch, one per row of it, or torch's own."""


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """What an action is, in plain numbers, so that a model needs no simulator to know it.

    Args:
        shape: Shape of one action, `()` for a scalar.
        dtype: NumPy name of the recorded type.
        low, high: Bounds of each component of a continuous action, flattened; empty for discrete ones.
        choices: Number of values of each component of a discrete action, flattened; empty for continuous ones.
        first: Smallest value of each discrete component.
    """

    shape: tuple[int, ...]
    dtype: str
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    choices: tuple[int, ...] = ()
    first: tuple[int, ...] = ()

    @property
    def is_discrete(self) -> bool:
        """Whether components are picked from a finite set."""
        return bool(self.choices)

    @property
    def size(self) -> int:
        """Number of components of one action."""
        return int(np.prod(self.shape, dtype=int))

    @property
    def feature_dim(self) -> int:
        """Length of the vector that represents one action: its components, or one-hot choices side by side."""
        return sum(self.choices) if self.is_discrete else self.size


@dataclass(frozen=True, kw_only=True)
class PartsSpec:
    """Names of what is observed at once: a picture, and vectors beside it.

    Args:
        picture: Name of the picture.
        vectors: Names of the vectors, in alphabetical order, as their numbers stand side by side.
        numbers: How many each of them has.
    """

    picture: str
    vectors: tuple[str, ...]
    numbers: tuple[int, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """How many numbers each vector has, by its name."""
        return dict(zip(self.vectors, self.numbers, strict=True))

    @property
    def vector_dim(self) -> int:
        """Numbers of all vectors together."""
        return sum(self.numbers)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a data set holds, read from its metadata.

    Args:
        frame_shape: `(row, column, channel)` of a picture, `(number,)` of a vector.
        parts: Where a dictionary is observed, what is in it; `frame_shape` is its picture's then.
        action: The action's description.
        observation_space, action_space: The recorded spaces, as Minari serializes them (JSON).
        env_spec: The recorded environment's specification as JSON, or None.
        dataset_id: Its name.

    Its `repr` leaves the JSON out: the bounds of an image are a number a pixel.
    """

    frame_shape: tuple[int, ...]
    action: ActionSpec
    observation_space: str = field(repr=False)
    action_space: str = field(repr=False)
    env_spec: str | None = field(default=None, repr=False)
    dataset_id: str = ""
    parts: PartsSpec | None = None

    @property
    def is_vector(self) -> bool:
        """Whether a frame is a vector of numbers, and no picture."""
        return len(self.frame_shape) == 1

    @property
    def observed(self) -> Literal["pixels", "vector", "dict"]:
        """What is observed: pictures, vectors, or both, as `worldflow.envs.making.make_env` takes it."""
        return "dict" if self.parts is not None else "vector" if self.is_vector else "pixels"

    @property
    def part_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each part of a frame by its name; the name is empty where a frame is one array."""
        if self.parts is None:
            return {"": self.frame_shape}
        return {self.parts.picture: self.frame_shape} | {name: (size,) for name, size in self.parts.sizes.items()}

    @property
    def frame_dtype(self) -> str:
        """NumPy name of the type of frames: `uint8` of pictures, `float32` of vectors, which may stand beside one."""
        return "float32" if self.is_vector else "uint8"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(row, column, channel)`, for all that makes sense for pictures only.

        Raises:
            ValueError: If frames are vectors, or there are vectors beside the picture.
        """
        if self.parts is not None:
            raise ValueError(
                f"this needs pictures alone, but the observations are dictionaries of the picture "
                f"{self.parts.picture!r} and {self.parts.vector_dim} numbers in {', '.join(self.parts.vectors)}; "
                "record the picture alone to use it (`worldflow collect --observation pixels`)"
            )
        if self.is_vector:
            raise ValueError(
                f"this needs pictures, but the observations are vectors of {self.frame_shape[0]} numbers; "
                "record pixels to use it"
            )
        rows, columns, channels = self.frame_shape
        return rows, columns, channels


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One recorded episode of `time` transitions, whole; `caption` says what it shows, where somebody said it."""

    frames: UInt8[np.ndarray, "time+1 row column channel"]
    actions: Shaped[np.ndarray, "time *action"]
    rewards: Float32[np.ndarray, " time"]
    terminated: Bool[np.ndarray, " time"]
    truncated: Bool[np.ndarray, " time"]
    infos: Mapping[str, Any] = field(default_factory=dict)
    caption: str | None = None

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A batch of aligned windows cut from episodes; `valid` is False where a short episode was padded."""

    frames: UInt8[Tensor, "batch time+1 row column channel"]
    actions: Shaped[Tensor, "batch time *action"]
    rewards: Float32[Tensor, "batch time"]
    terminated: Bool[Tensor, "batch time"]
    truncated: Bool[Tensor, "batch time"]
    valid: Bool[Tensor, "batch time"]
    episode: Int64[Tensor, " batch"]
    start: Int64[Tensor, " batch"]

    def to(self, device: torch.device | str) -> Clip:
        """The same clip on another device."""
        return Clip(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def __getitem__(self, rows: Tensor | slice) -> Clip:
        """Some rows of the batch."""
        return Clip(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class LogProb:
    """Log-likelihood of transitions in nats, each part on its own; `total` adds them."""

    frame: Float[Tensor, "..."]
    reward: Float[Tensor, "..."]
    terminated: Float[Tensor, "..."]

    @property
    def total(self) -> Float[Tensor, "..."]:
        """Frame, reward and termination together."""
        return self.frame + self.reward + self.terminated


@dataclass(frozen=True, kw_only=True)
class Transition:
    """What one step of a world returned, for every row of the batch.

    `frame` is None where the caller asked not to decode. `latent` is the frame as the deep block knows it
    (`u` of the flow). `log_prob` is the model's own log-likelihood of exactly what it drew. `reward` and `terminated`
    are drawn; `reward_mean` and `termination_prob` are what they were drawn from.

    `entropy` is that of the frame's distribution, in nats: of `latent`, as `DrawnFrame.entropy` says it. `is_finite`
    tells whether all of this is, and the frame's pixels before they were rounded to gray levels. Both are None where a
    simulator does not know them.
    """

    frame: UInt8[Tensor, "batch row column channel"] | None
    reward: Float32[Tensor, " batch"]
    reward_mean: Float32[Tensor, " batch"]
    terminated: Bool[Tensor, " batch"]
    termination_prob: Float32[Tensor, " batch"]
    log_prob: LogProb
    latent: Float32[Tensor, "batch token latent"]
    entropy: Float32[Tensor, " batch"] | None = None
    is_finite: Bool[Tensor, " batch"] | None = None


@dataclass(frozen=True, kw_only=True)
class Dream:
    """Imagined futures under given actions; `frames[:, :, t]` is the frame that `actions[:, t]` led to.

    After a drawn termination the world goes on imagining; `alive` is False from the transition after it.
    """

    frames: UInt8[Tensor, "sample batch time row column channel"]
    rewards: Float32[Tensor, "sample batch time"]
    reward_means: Float32[Tensor, "sample batch time"]
    terminated: Bool[Tensor, "sample batch time"]
    log_prob: LogProb

    @property
    def alive(self) -> Bool[Tensor, "sample batch time"]:
        """Whether no earlier transition of the same dream terminated."""
        ended = torch.cumsum(self.terminated.long(), dim=-1) - self.terminated.long()
        return ended == 0
