"""The loop, closed: record, learn the world, learn to act in it, record with what was learned, and again.

    round 0   policies that know nothing -> data -> world -> agent
    round n   the last agent, exploring  -> more data -> world of all data -> agent

    FOLDER/data                     all recordings, a Minari data set that grows
    FOLDER/rounds/<n>/world         the world that was learned from them
    FOLDER/rounds/<n>/agent.zip     the agent that was trained in it
    FOLDER/log.json                 for each round: real steps so far, and what its agent gets for real

Each stage is done once; the same call goes on where it stopped, inside a stage, too.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import numpy as np

from worldflow.agents.dream import dream
from worldflow.agents.improve_config import ImproveConfig
from worldflow.agents.standings import Estimate, PlayedEpisode, play_episode
from worldflow.atomic import write_bytes
from worldflow.data import Dataset
from worldflow.envs.collect import collect, make_pixel_env
from worldflow.envs.dreamed_policy import DreamedPolicy, DreamRecord
from worldflow.train import train

__all__ = ["ImproveConfig", "Round", "improve"]


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round came to."""

    number: int
    episodes: int
    """Recorded episodes that its world was learned from, those of earlier rounds included."""
    real_steps: int
    """Their transitions."""
    recorded_return: Estimate
    """Mean return of the episodes that the round itself recorded, random actions included."""
    real_return: Estimate
    """Mean return of its agent in the real environment."""
    played: Sequence[PlayedEpisode]
    """The episodes of that."""

    def to_plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def improve(
    env_id: str,
    *,
    out: str | os.PathLike[str],
    config: ImproveConfig | None = None,
    env_args: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> list[Round]:
    """Go round, or go on with it.

    Args:
        env_id: A registered id, or `MODULE:ID`.
        out: Folder of everything.
        config: How.
        env_args: Further arguments of the environment.
        progress: Show progress bars.

    Returns:
        What each round came to.

    Raises:
        ValueError, TypeError: If the folder was begun in another way, or the environment or an option is of no use.
        ImportError: If Stable-Baselines3 is not installed.
        OSError: If something cannot be written. Whatever stops it, what the environment raises included, what was
            recorded and trained is kept, and a note of the error says so.
    """
    config = config or ImproveConfig()
    folder = Path(out)
    arguments = dict(env_args or {})
    _begin(folder, env_id, arguments, config)
    found = []
    for number in range(config.rounds):
        place = folder / "rounds" / str(number)
        if (place / "round.json").is_file():
            found.append(_read(place / "round.json"))
            continue
        try:
            data = _recorded(env_id, arguments, folder, number, config, progress=progress)
            world = _learned(data, folder, number, config, progress=progress)
            agent = _trained(world, place / "agent.zip", config, progress=progress)
            found.append(_looked_at(env_id, arguments, data, agent, number, config))
        except Exception as error:
            if (folder / "data").exists():
                error.add_note(f"what was recorded and trained before is kept in {folder}, the same call goes on")
            raise
        _write(place / "round.json", found[-1].to_plain())
        _write(folder / "log.json", [one.to_plain() for one in found])
    return found


def _begin(folder: Path, env_id: str, arguments: Mapping[str, Any], config: ImproveConfig) -> None:
    """Remember what the folder is for; another call must not go on with this one's leftovers."""
    kept = asdict(config)
    del kept["rounds"]
    begun = json.loads(json.dumps({"environment": env_id, "arguments": dict(arguments), **kept}, default=dict))
    path = folder / "begun.json"
    if path.is_file():
        before = json.loads(path.read_text())
        if changed := [key for key in begun if before.get(key) != begun[key]]:
            raise ValueError(
                f"{folder} was begun with another {' and another '.join(changed)}; name another --out, or remove it"
            )
        return
    _write(path, begun)


def _recorded(
    env_id: str,
    arguments: Mapping[str, Any],
    folder: Path,
    number: int,
    config: ImproveConfig,
    *,
    progress: bool,
) -> Dataset:
    """The recordings up to this round, begun or continued where episodes are missing."""
    path = folder / "data"
    wanted = []  # how many episodes there are to be after each policy, and who records them
    total, share = 0, len(config.first_policies)
    for k, policy in enumerate(config.first_policies):
        total += config.episodes // share + (k < config.episodes % share)
        wanted.append((total, policy, 0.0))
    for earlier in range(number):
        total += config.more_episodes
        wanted.append((total, str(folder / "rounds" / str(earlier) / "agent.zip"), config.explore))
    for end, policy, random_fraction in wanted:
        done = len(Dataset(path)) if path.exists() else 0
        if done < end:
            with contextlib.closing(make_pixel_env(env_id, size=config.size, env_kwargs=arguments)) as env:
                collect(
                    env,
                    out=path,
                    episodes=end - done,
                    policy=policy,
                    random_fraction=random_fraction,
                    seed=config.seed,
                    max_steps=config.max_steps,
                    on_existing="append" if done else "error",
                    progress=progress,
                )
    return Dataset(path)


def _learned(data: Dataset, folder: Path, number: int, config: ImproveConfig, *, progress: bool) -> Path:
    """The round's world, its training resumed where it was interrupted."""
    run = folder / "rounds" / str(number) / "world"
    finished = run / "finished"
    if not finished.is_file():
        options = config.train
        if config.keep_codec and number:
            options = replaced(options, codec_from=str(folder / "rounds" / "0" / "world"))
        train(data, out=run, config=options, resume=(run / "training.pt").is_file(), progress=progress)
        write_bytes(finished, b"the training of `worldflow improve` came to its end\n")
    return run


def _trained(world: Path, agent: Path, config: ImproveConfig, *, progress: bool) -> Path:
    """The round's agent, its training resumed where it was interrupted."""
    is_begun = agent.is_file()
    if not is_begun or DreamRecord.read(agent).steps < config.dream.steps:
        dream(world, agent, config=config.dream, resume=is_begun, progress=progress)
    return agent


def _looked_at(
    env_id: str, arguments: Mapping[str, Any], data: Dataset, agent: Path, number: int, config: ImproveConfig
) -> Round:
    """What the round's agent gets for real."""
    policy = DreamedPolicy.load(agent)
    seeds = range(config.eval_seed, config.eval_seed + config.eval_episodes)
    with contextlib.closing(make_pixel_env(env_id, size=config.size, env_kwargs=arguments)) as env:
        policy.check_fits(env.observation_space, env.action_space)
        own = None if env.spec is None else env.spec.max_episode_steps
        limit = min((one for one in (config.max_steps, own) if one is not None), default=1000)
        played = [play_episode(policy, env, seed=seed, max_steps=limit)[0] for seed in seeds]
    first = 0 if number == 0 else config.episodes + (number - 1) * config.more_episodes
    recorded = [float(data.outcomes(k)[1].sum(dtype=np.float64)) for k in range(first, len(data))]
    return Round(
        number=number,
        episodes=len(data),
        real_steps=int(data.lengths.sum()),
        recorded_return=Estimate.of_mean(np.array(recorded)),
        real_return=Estimate.of_mean(np.array([one.total for one in played])),
        played=tuple(played),
    )


def _read(path: Path) -> Round:
    plain = json.loads(path.read_text())
    estimates = {key: Estimate(**plain.pop(key)) for key in ("recorded_return", "real_return")}
    played = tuple(PlayedEpisode(**one) for one in plain.pop("played"))
    return Round(**{**plain, **estimates, "played": played})


def _write(path: Path, plain: Any) -> None:
    write_bytes(path, (json.dumps(plain, indent=1) + "\n").encode())
