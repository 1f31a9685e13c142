"""`worldflow plan`: act in the real environment by planning in a learned world."""

from __future__ import annotations

import contextlib
import json as json_format
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from tyro.conf import Positional, arg

from worldflow.agents.real_env import env_arguments, real_env
from worldflow.atomic import write_bytes
from worldflow.checkpoint import load
from worldflow.compiled import compile_or_warn
from worldflow.frames import picture
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from worldflow.agents.acting import Pilot, Played
    from worldflow.agents.objectives import Term
    from worldflow.agents.plan import Planner
    from worldflow.state import WorldState

__all__ = ["PlanCommand"]


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """Act in a real environment by planning in a learned world, and report the return."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """Folder of the run, as `worldflow train --out` wrote it, or the name of a world that ships."""
    env: str | None = None
    """A registered id such as worldflow/Reacher-v0, or MODULE:ID; by default the environment that was recorded."""
    env_args: str = "{}"
    """Further arguments of the environment, as a JSON object."""
    planner: Literal["cem", "icem", "mppi", "shooting"] = "icem"
    """How to search: see worldflow.agents."""
    episodes: int = 5
    """Episodes to play."""
    max_steps: int | None = None
    """Steps after which an episode is cut off; by default the environment's own limit, or 1000."""
    horizon: int = 12
    """Steps to look ahead."""
    candidates: int = 64
    """Action sequences tried in each iteration of a search."""
    iterations: int = 3
    """Iterations of a search; shooting has one."""
    samples: int = 1
    """Futures drawn of each candidate, whose values are averaged."""
    action_repeat: int = 1
    """Steps for which a planned action is held."""
    replan_every: int = 1
    """Steps for which a plan is followed before the next one is made."""
    refine: int = 0
    """Steps of Adam on the best candidates, through the flow; a Box of actions only."""
    discount: float = 0.99
    """Weight of a reward one step later."""
    goal: str | None = None
    """Image to be seen at the end of the horizon: what is planned for is its exact likelihood, not the return."""
    entropy: float = 0.0
    """Value lost per nat per dimension of the predicted entropy: keeps plans from what the world is unsure of."""
    in_distribution: float = 0.0
    """Value lost per nat per dimension by which imagined frames are unlike the recorded behavior's."""
    video: str | None = None
    """Folder for a video of each episode, real frames beside imagined ones, and for plan.json."""
    max_rows: int = 256
    """Most futures stepped in one call of the model; bounds the memory."""
    compile: bool = False
    """Imagine in compiled code (`WorldModel.compile_step`): faster, after a minute the first time."""
    seed: int = 0
    """Decides everything random: the same call plays the same episodes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    json: bool = False
    """Print the result as JSON."""

    def __call__(self) -> dict[str, Any]:
        """Act."""
        from gymnasium import error as gym_error

        from worldflow.agents.acting import EnvironmentFailed, act, summary

        if self.video is not None and Path(self.video).is_file():
            raise NotADirectoryError(f"--video must name a folder, got the file {self.video}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("there is no GPU that torch can use; leave --device out or give cpu")
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        world = load(self.run, device=device)
        if self.video is not None and world.config.data.is_vector:
            raise ValueError("--video shows frames, but this world's are vectors; leave it out")
        pilot = self.pilot(world)
        if self.compile:
            compile_or_warn(world, min(self.candidates * self.samples, self.max_rows), option="--compile")
        played: list[Played] = []
        rules: dict[str, Any] = {"episodes": self.episodes, "seed": self.seed, "max_steps": self.max_steps}
        try:
            with contextlib.closing(real_env(world, self.env, arguments=env_arguments(self.env_args))) as env:
                for episode in act(pilot, env, **rules, progress=True):
                    played.append(episode)
                    if self.video is not None:
                        _show(episode, Path(self.video), fps=float(env.metadata.get("render_fps", 15)))
                        self._write(summary(played), world)
        except gym_error.Error as error:  # such as a dependency that is not installed
            raise ValueError(f"{self.env}: {error}") from error
        except EnvironmentFailed as error:
            returns = summary(played)["returns"]
            kept = f"in {self.video}" if self.video else f"as returns only: {returns}; --video DIR keeps more"
            raise ValueError(f"{error} ({kept})") from error
        return summary(played) if self.video is None else summary(played) | {"video": self.video}

    def pilot(self, world: WorldModel) -> Pilot:
        """Who plans like this."""
        from worldflow.agents.acting import Pilot

        return Pilot(
            world,
            self._planner(world),
            self._objective(world),
            horizon=self.horizon,
            replan_every=self.replan_every,
            sees=self.video is not None,
        )

    def _objective(self, world: WorldModel) -> Term:
        from worldflow.agents import Entropy, GoalLikelihood, InDistribution, Return
        from worldflow.generate import read_frames

        if not (world.config.reward.has_rewards or self.goal or self.entropy or self.in_distribution):
            raise ValueError(
                "all rewards that this world was trained on are 0, so that no plan is better than another; "
                "give --goal, or train it on recordings with rewards"
            )
        objective: Term = Return(discount=self.discount)
        if self.goal is not None:
            objective = GoalLikelihood(world, torch.from_numpy(read_frames(self.goal, world, last=1)))
        if self.entropy:
            objective = objective + Entropy(self.entropy)
        if self.in_distribution:
            objective = objective + InDistribution(world, self.in_distribution)
        return objective

    def _planner(self, world: WorldModel) -> Planner[WorldState]:
        from worldflow.agents import CEM, ICEM, MPPI, Differentiable, RandomShooting, Refined

        action = world.config.data.action
        shared: dict[str, Any] = {
            "num_candidates": self.candidates,
            "num_samples": self.samples,
            "max_rows": self.max_rows,
            "action_repeat": self.action_repeat,
        }
        search: dict[str, Any] = {**shared, "num_iterations": self.iterations}
        elites = {"num_elites": max(1, self.candidates // 8)}
        planner: Planner[WorldState]
        match self.planner:
            case "shooting":
                planner = RandomShooting(world, action, **shared)
            case "cem":
                planner = CEM(world, action, **search, **elites)
            case "icem":
                planner = ICEM(world, action, **search, **elites)
            case "mppi":
                planner = MPPI(world, action, **search)
        if self.refine:
            options = {"num_steps": self.refine, "num_samples": self.samples, "max_rows": self.max_rows}
            planner = Refined(planner, Differentiable(world), action, **options)
        return planner

    def _write(self, result: dict[str, Any], world: WorldModel) -> None:
        assert self.video is not None
        data = {**result, "command": asdict(self), "data": world.config.data.dataset_id}
        write_bytes(Path(self.video) / "plan.json", (json_format.dumps(data, indent=2) + "\n").encode())


def _show(played: Played, folder: Path, *, fps: float) -> None:
    """The real episode, what was expected a step before, and where the plan was to lead, side by side."""
    from worldflow.video import beside, write_video

    assert played.expected is not None and played.ahead is not None
    labels = ("real", "expected a step before", "end of the plan")
    film = beside(picture(played.episode.frames), played.expected, played.ahead, labels=labels)
    write_video(film, folder / f"seed_{played.seed}.mp4", fps=fps)
