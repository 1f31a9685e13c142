"""Frames as Minari's files hold them: an array, or a group of one array for each part.

Data sets from other people may hold JPEG frames (Minari's default, lossy); they are decoded with Pillow.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from worldflow.frames import Frames

if TYPE_CHECKING:
    from worldflow.types import DataSpec

__all__ = ["DAMAGED", "check_stored", "read_frames", "stored_parts"]

DAMAGED = "it is damaged or was only copied in part: copy it again, or record it again"


def read_frames(stored: Any, start: int, stop: int, *, spec: DataSpec) -> Any:
    """Read the frames `start .. stop - 1` of an episode.

    Args:
        stored: Its observations.
        start: The first frame.
        stop: One behind the last frame.
        spec: What frames are.

    Returns:
        `uint8` pictures or `float32` vectors with the time in front; `Frames` of both where they have parts.
    """
    parts = {
        name: _read(part, start, stop, spec.part_shapes[name]) for name, part in stored_parts(stored, spec).items()
    }
    return parts[""] if spec.parts is None else Frames(parts)


def stored_parts(stored: Any, spec: DataSpec) -> dict[str, Any]:
    """What is stored of an episode's observations, by the names of `spec.part_shapes`.

    Raises:
        KeyError: If a part is missing, or there are parts where there should be none.
    """
    if spec.parts is None:
        if isinstance(stored, h5py.Group):
            raise KeyError(f"observations are a group of {sorted(stored)}, not one array as its metadata says")
        return {"": stored}
    if isinstance(stored, h5py.Dataset):
        raise KeyError(f"observations are one array, not a group of {sorted(spec.part_shapes)} as its metadata says")
    return {name: stored[name] for name in spec.part_shapes}


def check_stored(parts: dict[str, h5py.Dataset], spec: DataSpec, *, num_frames: int, where: str) -> None:
    """Refuse an episode whose frames are not as many, or not of the kind, as they should be.

    Raises:
        ValueError: If so; the message names the episode as `where`.
    """
    for name, stored in parts.items():
        shape, what = spec.part_shapes[name], f" {name!r}" if name else ""
        if stored.shape[0] != num_frames:
            raise ValueError(
                f"{where}: {num_frames - 1} transitions need {num_frames} frames{what}, got {stored.shape[0]}; "
                f"{DAMAGED}"
            )
        if len(shape) == 1:
            if stored.shape[1:] != shape or stored.dtype.kind != "f":
                raise ValueError(
                    f"{where}: observations{what} must be floats of shape {shape} as its metadata says, "
                    f"got {stored.dtype} of shape {stored.shape[1:]}; {DAMAGED}"
                )
        elif _is_raw(stored):
            found = stored.shape[1:] if len(stored.shape) == 4 else (*stored.shape[1:], 1)
            if found != shape or stored.dtype != np.uint8:
                raise ValueError(
                    f"{where}: frames{what} must be uint8 of shape {shape} as its metadata says, "
                    f"got {stored.dtype} of shape {found}; {DAMAGED}"
                )


def _read(stored: h5py.Dataset, start: int, stop: int, shape: tuple[int, ...]) -> np.ndarray:
    raw = stored[start:stop]
    if len(shape) == 1:
        return raw.astype(np.float32)
    if not _is_raw(stored):
        raw = _decode(raw)
    return raw.reshape(stop - start, *shape)


def _is_raw(stored: h5py.Dataset) -> bool:
    # JPEG bytes are one row per frame, or a vector of any length per frame.
    return len(stored.shape) > 2


def _decode(encoded: np.ndarray) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("this data set holds JPEG frames; install Pillow to read them") from error
    return np.stack([np.asarray(Image.open(io.BytesIO(frame.tobytes()))) for frame in encoded])
