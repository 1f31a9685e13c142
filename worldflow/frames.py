"""Frames in parts: a picture and vectors under their names, indexed and joined as one array of frames.

Where a dictionary is observed, this stands wherever an array of frames does: `frames[2:5]` are some frames and
`frames["pixels"]` is a part of all of them. Only the axes in front of a single frame's own are shared, so `shape` is
theirs: `(time,)` for an episode, `(batch, time)` for clips. A picture is the one part of `uint8 (..., row, column,
channel)`; every other part is a vector, floating, `(..., number)`. Vectors side by side, in the order of their names,
are `vector`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, KeysView, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from worldflow.types import DataSpec

__all__ = [
    "Frames",
    "as_tensors",
    "blank_frames",
    "checked_frame",
    "mapped",
    "observed_frame",
    "part_shapes",
    "picture",
    "together",
]

Array = np.ndarray | Tensor


class Frames:
    """Parts of frames, all NumPy arrays or all tensors.

    Args:
        parts: From the name of each part to its values, with the same axes in front.

    Raises:
        ValueError: If there is not one picture and at least one vector, or the axes in front differ.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts: dict[str, Any] = dict(sorted(parts.items()))
        pictures = [name for name, part in self.parts.items() if _is_picture(part)]
        vectors = [name for name, part in self.parts.items() if _is_vector(part)]
        if len(pictures) != 1 or not vectors or len(vectors) + 1 != len(self.parts):
            found = ", ".join(f"{n}: {getattr(p, 'dtype', type(p).__name__)}" for n, p in self.parts.items())
            raise ValueError(
                "frames in parts must be one uint8 picture (..., row, column, channel) and floating vectors "
                f"(..., number), got {found or 'nothing'}"
            )
        self._picture, self._vectors = pictures[0], vectors
        shapes = {name: tuple(part.shape[: -3 if name in pictures else -1]) for name, part in self.parts.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"all parts of frames must be as many, got {shapes}")
        self.shape = shapes[self._picture]

    @property
    def ndim(self) -> int:
        """Axes in front of a single frame's own."""
        return len(self.shape)

    @property
    def picture(self) -> Any:
        """The part that is a picture: `uint8 (*batch, row, column, channel)`."""
        return self.parts[self._picture]

    @property
    def vector(self) -> Any:
        """The other parts, side by side in the order of their names: floating `(*batch, number)`."""
        parts = [self.parts[name] for name in self._vectors]
        return torch.cat(parts, -1) if isinstance(parts[0], Tensor) else np.concatenate(parts, -1)

    def keys(self) -> KeysView[str]:
        """The names of the parts, in order: `dict(frames)` is a plain dictionary."""
        return self.parts.keys()

    def __getitem__(self, index: Any) -> Any:
        """A part by its name, or some frames."""
        return self.parts[index] if isinstance(index, str) else self.map(lambda part: part[index])

    def __setitem__(self, index: Any, frames: Frames) -> None:
        for name, part in self.parts.items():
            part[index] = frames.parts[name]

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Frames]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Frames({ {name: (str(part.dtype), tuple(part.shape)) for name, part in self.parts.items()} })"

    def map(self, function: Callable[[Any], Any]) -> Frames:
        """What a function makes of each part."""
        return Frames({name: function(part) for name, part in self.parts.items()})

    def copy(self) -> Frames:
        """The same in memory of its own."""
        return self.map(lambda part: part.clone() if isinstance(part, Tensor) else part.copy())

    def to(self, device: torch.device | str) -> Frames:
        """The same on another device."""
        return self.map(lambda part: part.to(device))

    def cpu(self) -> Frames:
        """The same in the CPU's memory."""
        return self.to("cpu")

    def numpy(self) -> Frames:
        """The same as arrays."""
        return self.map(lambda part: part.numpy())


def mapped(function: Callable[[Any], Any], frames: Any) -> Any:
    """What a function makes of frames; of frames in parts, what it makes of each part."""
    return frames.map(function) if isinstance(frames, Frames) else function(frames)


def together(function: Callable[[list[Any]], Any], frames: Sequence[Any]) -> Any:
    """What a function makes of several arrays of frames; of frames in parts, what it makes of each part.

    Example:
        >>> together(np.stack, [np.zeros(3), np.ones(3)]).shape
        (2, 3)
    """
    if not isinstance(frames[0], Frames):
        return function(list(frames))
    return Frames({name: function([one.parts[name] for one in frames]) for name in frames[0].keys()})  # noqa: SIM118


def as_tensors(frames: Any) -> Any:
    """Frames as a tensor; a mapping, or frames in parts, as `Frames` of tensors."""
    if isinstance(frames, Frames | Mapping):
        return Frames({name: torch.as_tensor(frames[name]) for name in frames.keys()})  # noqa: SIM118
    return torch.as_tensor(frames)


def part_shapes(frames: Any) -> dict[str, tuple[int, ...]]:
    """Shape of a single frame of some with one axis in front, part by part, as `DataSpec.part_shapes` has them."""
    parts = frames.parts if isinstance(frames, Frames) else {"": frames}
    return {name: tuple(part.shape[1:]) for name, part in parts.items()}


def picture(frames: Any) -> Any:
    """What can be seen of frames: themselves, or the picture among their parts."""
    return frames.picture if isinstance(frames, Frames) else frames


def blank_frames(data: DataSpec, leading: tuple[int, ...]) -> Any:
    """Frames of zeros, to be written into.

    Args:
        data: What frames are.
        leading: Axes in front of a single frame's own.
    """
    if data.parts is None:
        return np.zeros((*leading, *data.frame_shape), data.frame_dtype)
    kinds = {name: np.uint8 if len(shape) == 3 else np.float32 for name, shape in data.part_shapes.items()}
    return Frames({name: np.zeros((*leading, *shape), kinds[name]) for name, shape in data.part_shapes.items()})


def checked_frame(data: DataSpec, frame: Any) -> Any:
    """A single observation as a frame.

    Args:
        data: What frames are.
        frame: What was observed; gray pictures in a dictionary may lack their channel.

    Returns:
        A `uint8` picture, a `float32` vector, or `Frames` of both.

    Raises:
        ValueError: If it has other parts, shapes or types.
    """
    if data.parts is None:
        return _checked_part("frame", frame, data.frame_shape)
    if not isinstance(frame, Frames | Mapping) or set(frame.keys()) != set(data.part_shapes):
        found = sorted(frame.keys()) if isinstance(frame, Frames | Mapping) else type(frame).__name__
        raise ValueError(f"frame must be a dictionary of {sorted(data.part_shapes)}, got {found}")
    parts = {}
    for name, shape in data.part_shapes.items():
        part = np.asarray(frame[name])
        parts[name] = _checked_part(f"frame[{name!r}]", part[..., None] if part.ndim == 2 else part, shape)
    return Frames(parts)


def observed_frame(data: DataSpec, observation: Any) -> Any:
    """A copy of what an environment observed as a frame: gray pictures with their channel, numbers as `float32`.

    Args:
        data: What frames are.
        observation: What was observed.

    Raises:
        ValueError: If it is of another kind or size.
    """
    if data.parts is None:
        return np.array(observation).reshape(data.frame_shape).astype(data.frame_dtype, copy=False)
    return checked_frame(data, observation).copy()


def _checked_part(name: str, frame: Any, shape: tuple[int, ...]) -> np.ndarray:
    frame, kind = np.asarray(frame), "float32" if len(shape) == 1 else "uint8"
    fits = frame.dtype.kind == "f" if len(shape) == 1 else frame.dtype == np.uint8
    if not fits or frame.shape != shape:
        raise ValueError(f"{name} must be {kind} of shape {shape}, got {frame.dtype} of shape {frame.shape}")
    return frame.astype(kind, copy=False)


def _is_picture(part: Any) -> bool:
    return part.dtype in (np.uint8, torch.uint8) and part.ndim >= 3 if isinstance(part, Array) else False


def _is_vector(part: Any) -> bool:
    if isinstance(part, Tensor):
        return part.is_floating_point() and part.ndim >= 1
    return isinstance(part, np.ndarray) and part.dtype.kind == "f" and part.ndim >= 1
