"""Who plays in the real environment: policies, saved agents, planners, agents that are trained there for comparison.

A contender is named by words, as on a command line:

- `random`, `smooth`, `MODULE:CALLABLE`, `FILE.zip`: a policy, as for `worldflow collect`;
- `recorded`: the policy that the world's data were recorded with;
- `plan --horizon 8 ...`: a planner in the world, with the options of `worldflow plan`;
- `train --algorithm ppo --steps 50000 ...`: an agent that is trained in the real environment, with the options of
  `RealTraining`, and kept in a folder;
- `NAME=` before any of these says what to call it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldflow.envs.dreamed_policy import DreamedPolicy, DreamRecord, is_dreamed
from worldflow.envs.policies import Policy, make_policy
from worldflow.fingerprint import world_fingerprint
from worldflow.shipped import run_folder
from worldflow.world import WorldModel

if TYPE_CHECKING:
    import gymnasium as gym

__all__ = ["Contender", "Recordings", "read_contender"]


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """What a world was learned from.

    Args:
        steps: Its transitions; None where nobody wrote them down.
        policy: Who acted; None where nobody wrote it down.
        random_fraction: Share of actions that were random instead.
    """

    steps: int | None
    policy: str | None
    random_fraction: float = 0.0

    @classmethod
    def of_run(cls, run: str | Path) -> Recordings:
        """Those that a run, or a world that ships, says it was trained on."""
        folder = run_folder(run)
        record = json.loads((folder / "world.json").read_text()).get("training") or {}
        if "transitions" not in record and (folder / "recipe.json").is_file():
            data = json.loads((folder / "recipe.json").read_text())["data"]
            record = {"transitions": data["transitions"], "recordings": data["recordings"]}
        return cls._of(record.get("transitions"), record.get("recordings") or ())

    @classmethod
    def _of(cls, steps: int | None, recordings: Sequence[Mapping[str, Any]]) -> Recordings:
        ways = {(one["policy"], float(one["random_fraction"])) for one in recordings}
        if len(ways) != 1:  # of several nobody can say which one is meant
            return cls(steps=steps, policy=None)
        policy, random_fraction = ways.pop()
        return cls(steps=steps, policy=policy, random_fraction=random_fraction)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Somebody who plays.

    Args:
        name: What to call it.
        about: Who it is, in words.
        identity: Changes when it becomes somebody else, such as another file of the same name.
        make: Gives its policy; each call gives one with a memory of its own.
        real_steps: Real transitions that it learned from; None where nobody knows.
        is_planner: Whether it looks ahead in the world for every decision.
    """

    name: str
    about: str
    identity: str
    make: Callable[[], Policy]
    real_steps: int | None
    is_planner: bool = False


def read_contender(
    words: str,
    *,
    world: WorldModel,
    run: str | Path,
    env: gym.Env[Any, Any],
    make_env: Callable[[], gym.Env[Any, Any]],
    folder: Path,
    progress: bool = True,
) -> Contender:
    """Find out who is meant, and train it if it has to be.

    Args:
        words: Who, see above.
        world: The world.
        run: Its folder, or its name.
        env: The real environment, for its spaces.
        make_env: Makes more of them, to train in.
        folder: Where agents that are trained are kept; what is there is gone on with.
        progress: Whether to show a progress bar of a training.

    Raises:
        ValueError: If it is nobody, or of no use here.
        FileNotFoundError: If a file is not there.
    """
    named = re.match(r"([\w.+-]+)=(.+)", words)
    name, spec = (named[1], named[2]) if named else (words, words)
    kind, *options = shlex.split(spec) or [""]
    if kind not in ("plan", "train") and options:
        raise ValueError(f"contender {words!r}: only `plan` and `train` take options, {kind!r} takes none")
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    match kind:
        case "plan":
            return _planner(name, options, world=world, run=run)
        case "train":
            from worldflow.agents.real_training import RealTraining, train_real

            config = _parsed(RealTraining, options, "train").resolved()
            path = folder / config.file_name
            train_real(make_env, path, config=config, world=world, run=str(run), progress=progress)
            return _policy(name, str(path), run, world, spaces)
        case "recorded":
            return _recorded(name, run, spaces)
        case _:
            return _policy(name, kind, run, world, spaces)


def _planner(name: str, options: Sequence[str], *, world: WorldModel, run: str | Path) -> Contender:
    from worldflow.agents.command import PlanCommand

    command = _parsed(PlanCommand, [str(run), *options], "plan")
    pilot = command.pilot(world)
    about = (
        f"plans in the world by {command.planner}: {command.horizon} steps ahead, {command.candidates} candidates, "
        f"{command.iterations} iterations, a new plan every {command.replan_every} steps"
    )
    return Contender(
        name=name,
        about=about,
        identity=repr(command),
        make=lambda: pilot,
        real_steps=Recordings.of_run(run).steps,
        is_planner=True,
    )


def _recorded(name: str, run: str | Path, spaces: Mapping[str, Any]) -> Contender:
    from worldflow.envs.policies import Mixed

    found = Recordings.of_run(run)
    if found.policy is None:
        raise ValueError(
            f"the recordings of {run} do not say which one policy they were made with; name it instead of 'recorded'"
        )
    policy, fraction = found.policy, found.random_fraction

    def make() -> Policy:
        made = make_policy(policy, **spaces)
        return Mixed(made, spaces["action_space"], random_fraction=fraction) if fraction else made

    about = f"made the recordings: {policy}{f', {fraction:.0%} of its actions random' if fraction else ''}"
    return Contender(name=name, about=about, identity=f"{policy} {fraction}", make=make, real_steps=0)


def _policy(name: str, spec: str, run: str | Path, world: WorldModel, spaces: Mapping[str, Any]) -> Contender:
    if not spec.endswith(".zip"):
        make_policy(spec, **spaces)  # now, not after others have played for hours
        about = {"random": "uniform actions", "smooth": "random actions, correlated in time"}.get(spec, spec)
        return Contender(name=name, about=about, identity=spec, make=lambda: make_policy(spec, **spaces), real_steps=0)
    if not Path(spec).is_file():
        raise FileNotFoundError(f"contender {spec!r}: there is no such file")
    identity = hashlib.blake2b(Path(spec).read_bytes(), digest_size=8).hexdigest()
    if not is_dreamed(spec):
        agent = make_policy(spec, **spaces)
        about = "an agent that Stable-Baselines3 saved"
        return Contender(name=name, about=about, identity=identity, make=lambda: agent, real_steps=None)
    record = DreamRecord.read(spec)
    own = world if record.fingerprint == world_fingerprint(world) else None
    policy = DreamedPolicy.load(spec, own)
    policy.check_fits(spaces["observation_space"], spaces["action_space"])

    def make() -> Policy:  # one network and one eye for all, and a memory for each
        sees = {"observation": record.observation, "stack": record.stack, "frame_shape": record.frame_shape}
        return DreamedPolicy(policy.agent, policy.world, **sees)

    about, steps = _about(record, Recordings.of_run(run).steps if own is not None else None)
    return Contender(name=name, about=about, identity=identity, make=make, real_steps=steps)


def _about(record: DreamRecord, recorded_steps: int | None) -> tuple[str, int | None]:
    """Who trained an agent on what, and on how many real steps."""
    sees = f"{record.algorithm} on {'the tokens' if record.observation == 'latent' else 'the pixels'} of {record.stack}"
    if record.config.get("trained") == "real":
        eye = ", by a codec that was trained on the recordings" if record.observation == "latent" else ""
        return f"trained in the real environment: {sees} frames{eye}", record.steps
    looks = sum(len(one.real_returns) for one in record.history)
    choice = f"; the best of {len(record.history)} by {looks} further real episodes" if looks else ""
    return f"trained in a dream of {record.steps} steps: {sees} frames{choice}", recorded_steps


def _parsed(kind: Any, options: Sequence[str], prog: str) -> Any:
    import tyro

    return tyro.cli(kind, prog=prog, args=list(options), config=(tyro.conf.FlagCreatePairsOff,))
