"""Faults between a command and what is carried out: late, lost, biased and mixed-up actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["ActionFault"]


class ActionFault:
    """Carries out another action than the one asked for; acts where the two differ.

    Args:
        space: Of the actions.
        anomaly: Name of an anomaly of actuation.
        strength: See its description.

    Raises:
        ValueError: If it cannot act on such actions.
    """

    def __init__(self, space: spaces.Space[Any], anomaly: str, strength: float) -> None:
        if not isinstance(space, spaces.Box) or space.dtype is None or space.dtype.kind != "f":
            raise ValueError(f"{anomaly} needs actions of real numbers (a float Box), this environment takes {space}")
        if anomaly == "swapped_axes" and space.low.size < 2:
            raise ValueError(
                f"swapped_axes needs at least two action components, this environment has {space.low.size}; "
                "choose another anomaly"
            )
        if anomaly == "action_bias" and not space.is_bounded():
            raise ValueError(f"action_bias is a share of the actions' range, and {space} has none")
        if anomaly == "action_delay" and strength != int(strength):
            raise ValueError(f"strength of action_delay is a whole number of steps, got {strength:g}")
        self.space, self.anomaly, self.strength = space, anomaly, strength
        self._none = np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
        self._late: list[NDArray[Any]] = []

    def begin(self, observation: Any, generator: np.random.Generator) -> None:
        """Forget the actions of the episode before."""
        self._late = [self._none] * int(self.strength) if self.anomaly == "action_delay" else []

    def step(
        self, inner: Callable[[Any], Any], action: Any, *, is_affected: bool, generator: np.random.Generator
    ) -> tuple[Any, bool]:
        """Step, and say whether the fault acted."""
        asked = np.array(action, self.space.dtype)
        if self.anomaly == "action_delay":
            self._late.append(asked)
            late = self._late.pop(0)
        else:
            late = asked
        if not is_affected:
            return inner(action), False
        done = late if self.anomaly == "action_delay" else self._done(asked, generator)
        if np.array_equal(done, asked):
            return inner(action), False
        return inner(done), True

    def _done(self, asked: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        if self.anomaly == "action_drop":
            return self._none if generator.random() < self.strength else asked
        if self.anomaly == "action_bias":
            half = (self.space.high - self.space.low) / 2
            return np.clip(asked + self.strength * half, self.space.low, self.space.high).astype(asked.dtype)
        assert self.anomaly == "swapped_axes"
        following = np.roll(asked.reshape(-1), -1).reshape(asked.shape)
        mixed = (1 - self.strength) * asked + self.strength * following
        return np.clip(mixed, self.space.low, self.space.high).astype(asked.dtype)
