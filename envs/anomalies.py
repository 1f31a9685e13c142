"""What can go wrong in an environment, as data: twenty kinds of anomaly, each in three strengths.

`worldflow.envs.Perturb` makes them. A number of the same kind means the same thing on every task; the three named
levels are what detectors are compared on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["ANOMALIES", "Anomaly", "Level", "LevelName"]

LevelName = Literal["weak", "middle", "strong"]
"""Names of strengths that every anomaly has."""
ActsOn = Literal["physics", "action", "picture", "reward"]
"""What of a step a fault takes hold of."""

REST = None
"""Duration of what lasts for the rest of the episode."""
SUDDEN = (4, 16)
"""First steps of what begins in the middle of an episode."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """How strong an anomaly is.

    Args:
        strength: In the unit that the anomaly's description names; None where only its duration counts.
        duration: Number of steps affected, None for the rest of the episode.
    """

    strength: float | None = None
    duration: int | None = REST


@dataclass(frozen=True, kw_only=True)
class Anomaly:
    """A kind of fault.

    Args:
        description: What happens, and what strength means.
        acts_on: What of a step it takes hold of; `"physics"` needs a MuJoCo model, `"picture"` `uint8` observations.
        levels: A weak, a middle and a strong one.
        neutral: Strength at which nothing happens, None where there is none.
        start: First step affected, or a range `(low, high)` to draw it from, both included.
        bounds: Lowest and highest strength that can be asked for.
    """

    description: str
    acts_on: ActsOn
    levels: Mapping[LevelName, Level]
    neutral: float | None
    start: int | tuple[int, int] = 0
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def strength(self) -> float | None:
        """Used when none is given: that of the middle level; None where there is no strength."""
        return self.levels["middle"].strength

    @property
    def duration(self) -> int | None:
        """Used when none is given: that of the middle level."""
        return self.levels["middle"].duration

    @property
    def needs_physics(self) -> bool:
        """Whether it acts on a MuJoCo model."""
        return self.acts_on == "physics"


def _strengths(weak: float, middle: float, strong: float, *, duration: int | None = REST) -> dict[LevelName, Level]:
    values: dict[LevelName, float] = {"weak": weak, "middle": middle, "strong": strong}
    return {name: Level(strength=value, duration=duration) for name, value in values.items()}


def _durations(weak: int, middle: int, strong: int | None) -> dict[LevelName, Level]:
    values: dict[LevelName, int | None] = {"weak": weak, "middle": middle, "strong": strong}
    return {name: Level(duration=value) for name, value in values.items()}


ANOMALIES: Mapping[str, Anomaly] = {
    # -- dynamics
    "gravity": Anomaly(
        description="Gravity is multiplied by strength.",
        acts_on="physics",
        levels=_strengths(1.5, 3.0, 6.0),
        neutral=1.0,
    ),
    "mass": Anomaly(
        description="Mass and inertia of every body are multiplied by strength.",
        acts_on="physics",
        levels=_strengths(1.5, 3.0, 8.0),
        neutral=1.0,
        bounds=(0.01, 100.0),
    ),
    "friction": Anomaly(
        description="Friction of contacts and dry friction of joints are multiplied by strength.",
        acts_on="physics",
        levels=_strengths(0.5, 0.2, 0.05),
        neutral=1.0,
        bounds=(0.0, math.inf),
    ),
    "damping": Anomaly(
        description="Damping of every joint is multiplied by strength.",
        acts_on="physics",
        levels=_strengths(2.0, 5.0, 20.0),
        neutral=1.0,
        bounds=(0.0, math.inf),
    ),
    "actuator_gain": Anomaly(
        description="The gain of every actuator is multiplied by strength; negative values reverse them.",
        acts_on="physics",
        levels=_strengths(0.6, 0.2, -1.0),
        neutral=1.0,
    ),
    "wind": Anomaly(
        description=(
            "A steady force along the world's x axis, to a side drawn in each episode, pushes all bodies that "
            "actuators move, each by its mass times strength (m/s^2)."
        ),
        acts_on="physics",
        levels=_strengths(1.0, 3.0, 9.0),
        neutral=0.0,
        bounds=(0.0, math.inf),
    ),
    # -- actuation
    "action_delay": Anomaly(
        description="The action of strength steps ago is carried out; none, zeros, where there was no such step.",
        acts_on="action",
        levels=_strengths(1, 2, 4),
        neutral=0.0,
        bounds=(0.0, 1000.0),
    ),
    "action_drop": Anomaly(
        description="Each action is lost with probability strength: zeros are carried out.",
        acts_on="action",
        levels=_strengths(0.1, 0.3, 1.0),
        neutral=0.0,
        bounds=(0.0, 1.0),
    ),
    "action_bias": Anomaly(
        description="Strength times half the range of each action component is added to it, within its bounds.",
        acts_on="action",
        levels=_strengths(0.1, 0.3, 0.8),
        neutral=0.0,
        bounds=(0.0, 2.0),
    ),
    "swapped_axes": Anomaly(
        description="Every action component moves by strength, 1 for all the way, towards what the next one should be.",
        acts_on="action",
        levels=_strengths(0.25, 0.5, 1.0),
        neutral=0.0,
        bounds=(0.0, 1.0),
    ),
    # -- sensing
    "sensor_noise": Anomaly(
        description="Gaussian noise of standard deviation strength, in levels of 255, is added to the frame.",
        acts_on="picture",
        levels=_strengths(5.0, 25.0, 60.0),
        neutral=0.0,
        bounds=(0.0, math.inf),
    ),
    "blur": Anomaly(
        description="The frame is blurred by a Gaussian of standard deviation strength, in pixels.",
        acts_on="picture",
        levels=_strengths(0.5, 1.0, 3.0),
        neutral=0.0,
        bounds=(0.0, 100.0),
    ),
    "occlusion": Anomaly(
        description="A black square, its side strength times the frame's, hides a place drawn in each episode.",
        acts_on="picture",
        levels=_strengths(0.1, 0.25, 0.6),
        neutral=0.0,
        bounds=(0.0, 1.0),
    ),
    "color": Anomaly(
        description="The light changes: red is multiplied by 1 + strength, blue by 1 - strength.",
        acts_on="picture",
        levels=_strengths(0.1, 0.3, 0.8),
        neutral=0.0,
        bounds=(0.0, 1.0),
    ),
    "frozen_frame": Anomaly(
        description="The frame before the first affected step is observed again and again.",
        acts_on="picture",
        levels=_durations(2, 8, 32),
        neutral=None,
        start=SUDDEN,
    ),
    "dropped_frame": Anomaly(
        description="Each frame is lost with probability strength: black is observed.",
        acts_on="picture",
        levels=_strengths(0.1, 0.3, 1.0),
        neutral=0.0,
        bounds=(0.0, 1.0),
    ),
    "camera_shift": Anomaly(
        description=(
            "The frame moves by strength times its rows and columns, at least a pixel, to a corner drawn in each "
            "episode; its edges are drawn out."
        ),
        acts_on="picture",
        levels=_strengths(0.02, 0.06, 0.2),
        neutral=0.0,
        bounds=(0.0, 1.0),
    ),
    # -- events
    "teleport": Anomaly(
        description="Before the step, joints jump by strength (m, rad) in a random direction, within their limits.",
        acts_on="physics",
        levels=_strengths(0.1, 0.3, 1.0, duration=1),
        neutral=0.0,
        start=SUDDEN,
        bounds=(0.0, math.inf),
    ),
    "object_gone": Anomaly(
        description="One moving body, drawn in each episode, is not seen; it is there all the same.",
        acts_on="physics",
        levels=_durations(2, 8, REST),
        neutral=None,
        start=SUDDEN,
    ),
    # -- reward
    "reward_tampering": Anomaly(
        description="Strength is added to the reward.",
        acts_on="reward",
        levels=_strengths(0.1, 0.5, 2.0),
        neutral=0.0,
        bounds=(0.0, math.inf),
    ),
}
"""Every anomaly `Perturb` makes, by name."""
