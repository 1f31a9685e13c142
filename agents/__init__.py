"""Agents that plan and learn inside imagined rollouts."""

from __future__ import annotations

from worldflow.agents.acting import Decision, EnvironmentFailed, Pilot, Played, act, observe, summary
from worldflow.agents.differentiable import Differentiable
from worldflow.agents.icem import ICEM
from worldflow.agents.likelihood import GoalLikelihood, InDistribution
from worldflow.agents.mppi import MPPI
from worldflow.agents.objectives import Entropy, Objective, Return, Rollout, Scaled, Sum, Term
from worldflow.agents.plan import CEM, Planner, RandomShooting
from worldflow.agents.refine import Refined
from worldflow.agents.result import Diagnostics, Plan
from worldflow.agents.rollout import Simulator, SimulatorState, candidate_values

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "Decision",
    "Diagnostics",
    "Differentiable",
    "Entropy",
    "EnvironmentFailed",
    "GoalLikelihood",
    "InDistribution",
    "Objective",
    "Pilot",
    "Plan",
    "Planner",
    "Played",
    "RandomShooting",
    "Refined",
    "Return",
    "Rollout",
    "Scaled",
    "Simulator",
    "SimulatorState",
    "Sum",
    "Term",
    "act",
    "candidate_values",
    "observe",
    "summary",
]
