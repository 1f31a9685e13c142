"""Agents that plan and learn inside imagined rollouts."""

from __future__ import annotations

from worldflow.agents.objectives import Objective, Return, Rollout
from worldflow.agents.plan import (
    CEM,
    Diagnostics,
    Plan,
    Planner,
    RandomShooting,
)
from worldflow.agents.rollout import Simulator, SimulatorState, candidate_values

__all__ = [
    "CEM",
    "Diagnostics",
    "Objective",
    "Plan",
    "Planner",
    "RandomShooting",
    "Return",
    "Rollout",
    "Simulator",
    "SimulatorState",
    "candidate_values",
]
