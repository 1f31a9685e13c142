"""Environments: pixel tasks over real physics, captioned shapes, labelled anomalies, and learned worlds one can step.

Importing registers the ids, with string entry points, so that nothing is loaded before it is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register

from worldflow.envs.anomalies import ANOMALIES, Anomaly, Level
from worldflow.envs.camera import Look, RayCamera, RayHits, View
from worldflow.envs.perturb import Perturb, possible_anomalies
from worldflow.envs.tasks import TASKS, PixelObservation, PixelTask, PixelTaskEnv

if TYPE_CHECKING:
    from worldflow.envs.learned import LearnedEnv, LearnedVectorEnv, NonFiniteError, Snapshot

__all__ = [
    "ANOMALIES",
    "TASKS",
    "Anomaly",
    "LearnedEnv",
    "LearnedVectorEnv",
    "Level",
    "Look",
    "NonFiniteError",
    "Perturb",
    "PixelObservation",
    "PixelTask",
    "PixelTaskEnv",
    "RayCamera",
    "RayHits",
    "Snapshot",
    "View",
    "possible_anomalies",
]

for _name, _task in TASKS.items():
    register(
        id=f"worldflow/{_name}-v0",
        entry_point="worldflow.envs.tasks:PixelTaskEnv",
        max_episode_steps=_task.max_episode_steps,
        kwargs={"task": _name},
    )

register(
    id="worldflow/MovingShapes-v0",
    entry_point="worldflow.envs.shapes:MovingShapesEnv",
    max_episode_steps=16,
)

register(
    id="worldflow/Learned-v0",
    entry_point="worldflow.envs.learned:LearnedEnv",
    vector_entry_point="worldflow.envs.learned:LearnedVectorEnv",
)


def __getattr__(name: str) -> Any:
    """The learned environments and what belongs to them, which bring torch, once they are asked for."""
    if name in ("LearnedEnv", "LearnedVectorEnv", "NonFiniteError", "Snapshot"):
        from worldflow.envs import learned

        return getattr(learned, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
