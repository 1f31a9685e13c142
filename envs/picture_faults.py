"""Faults of what is seen, and of the reward that is told: the world itself goes on as it should."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["PictureFault", "RewardFault", "blurred"]


class PictureFault:
    """Shows another picture than the camera's.

    Args:
        space: Of the observations.
        anomaly: Name of an anomaly of sensing.
        strength: See its description.

    Raises:
        ValueError: If observations are no pictures that it can act on.
    """

    def __init__(self, space: spaces.Space[Any], anomaly: str, strength: float) -> None:
        if not (isinstance(space, spaces.Box) and space.dtype == np.uint8):
            raise ValueError(
                f"{anomaly} acts on uint8 pictures, this environment observes {space}; "
                "wrap it in worldflow.envs.PixelObservation first"
            )
        if anomaly == "color" and space.shape[-1] != 3:
            raise ValueError(f"color needs pictures of three channels, got shape {space.shape}; choose another anomaly")
        self.anomaly, self.strength = anomaly, strength
        self._place = np.zeros(2)
        self._last: NDArray[np.uint8] | None = None

    def begin(self, observation: Any, generator: np.random.Generator) -> None:
        """Draw what holds for an episode, and keep its first picture."""
        if self.anomaly in ("occlusion", "camera_shift"):
            self._place = generator.random(2)
        self._last = np.array(observation)

    def step(
        self, inner: Callable[[Any], Any], action: Any, *, is_affected: bool, generator: np.random.Generator
    ) -> tuple[Any, bool]:
        """Step, and say whether the fault acted."""
        picture, *rest = inner(action)
        if self.anomaly == "dropped_frame" and is_affected:
            is_affected = bool(generator.random() < self.strength)
        if is_affected:
            picture = self._spoiled(np.asarray(picture), generator)
        elif self.anomaly == "frozen_frame":
            self._last = np.array(picture)
        return (picture, *rest), is_affected

    def _spoiled(self, picture: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
        match self.anomaly:
            case "frozen_frame":
                return np.array(self._last)
            case "dropped_frame":
                return np.zeros_like(picture)
            case "sensor_noise":
                return _levels(picture.astype(np.float64) + generator.normal(0.0, self.strength, picture.shape))
            case "blur":
                return _levels(blurred(picture.astype(np.float64), self.strength))
            case "color":
                return _levels(picture.astype(np.float64) * np.array((1 + self.strength, 1.0, 1 - self.strength)))
            case "occlusion":
                rows, columns = picture.shape[:2]
                side = math.ceil(self.strength * min(rows, columns))
                top, left = (int(p * (n - side + 1)) for p, n in zip(self._place, (rows, columns), strict=True))
                hidden = picture.copy()
                hidden[top : top + side, left : left + side] = 0
                return hidden
            case "camera_shift":
                indices = []
                for place, length in zip(self._place, picture.shape[:2], strict=True):
                    shift = max(1, round(self.strength * length)) * (1 if place < 0.5 else -1)
                    indices.append(np.clip(np.arange(length) + shift, 0, length - 1))
                return picture[np.ix_(*indices)]
        raise AssertionError(self.anomaly)


class RewardFault:
    """Tells another reward than the environment's.

    Args:
        strength: What is added to it.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def begin(self, observation: Any, generator: np.random.Generator) -> None:
        """Nothing is drawn."""

    def step(
        self, inner: Callable[[Any], Any], action: Any, *, is_affected: bool, generator: np.random.Generator
    ) -> tuple[Any, bool]:
        """Step, and say whether the fault acted."""
        observation, reward, *rest = inner(action)
        return (observation, reward + self.strength if is_affected else reward, *rest), is_affected


def _levels(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def blurred(picture: NDArray[np.float64], std: float) -> NDArray[np.float64]:
    """Convolved with a Gaussian cut at three standard deviations; edges are drawn out."""
    reach = math.ceil(3 * std)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / std) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        length = picture.shape[axis]
        index = np.arange(length)
        shifted = (np.take(picture, np.clip(index + d, 0, length - 1), axis) for d in range(-reach, reach + 1))
        picture = sum(w * p for w, p in zip(weights, shifted, strict=True))  # pyright: ignore[reportAssignmentType]
    return picture
