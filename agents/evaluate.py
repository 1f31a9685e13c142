"""What agents are worth in the real environment, and whether the world knows it.

    evidence = compare("runs/pendulum", out="evidence", contenders=["random", "recorded", "dreamed=agent.zip"])

Contenders play the same seeds in the real environment. Then those that do not plan, and mixtures of them with random
actions, go on from the same starts in the world and for real, so that imagined returns can be held against real ones
(`worldflow.agents.imagined_returns`). Everything is written down as it comes: the same call goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from worldflow.agents.agreement import Agreement, agreement
from worldflow.agents.compare_config import CompareConfig
from worldflow.agents.contenders import Contender, Recordings, read_contender
from worldflow.agents.evidence import Evidence
from worldflow.agents.imagined_returns import Hold, draw_starts, measure_returns, real_returns
from worldflow.agents.real_env import real_env, real_env_id
from worldflow.agents.records import Records
from worldflow.agents.standings import Standing, play_episode
from worldflow.atomic import write_bytes
from worldflow.checkpoint import load
from worldflow.envs.observations import check_fits
from worldflow.envs.policies import Mixed, make_policy
from worldflow.fingerprint import episode_hash, world_fingerprint
from worldflow.shipped import run_folder
from worldflow.world import WorldModel

if TYPE_CHECKING:
    import gymnasium as gym

__all__ = ["CompareConfig", "Evidence", "compare"]

DEFAULT_MAX_STEPS = 1000
"""Steps after which an episode is cut off, where the environment has no time limit of its own."""


def compare(
    run: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    contenders: Sequence[str] = ("random", "recorded"),
    env: str | None = None,
    env_args: Mapping[str, Any] | None = None,
    config: CompareConfig | None = None,
    progress: bool = True,
) -> Evidence:
    """Let contenders play, compare imagined with real returns, write `report.html` and `evidence.json`.

    Args:
        run: Folder of the world's run, or the name of a world that ships.
        out: Folder for the page, the numbers, the agents that are trained on the way, and what is needed to go on.
        contenders: Who plays, see `worldflow.agents.contenders`.
        env: The real environment; by default the one that was recorded.
        env_args: Further arguments of it.
        config: How to compare.
        progress: Show progress bars.

    Returns:
        What came out.

    Raises:
        ValueError, TypeError: If a contender is nobody or does not fit, `out` was begun in another way, or an episode
            was among those that the world was trained on.
        FileNotFoundError: If a world or an agent is not there.
        RuntimeError: If the environment or a contender raises; the episodes before are kept.
    """
    config = config or CompareConfig()
    folder = Path(out)
    world = load(run)
    if world.config.data.parts is not None:
        raise ValueError(
            "contenders are compared on pictures or vectors, but this world's observations are dictionaries of both; "
            "play episodes with `worldflow plan`, or train a world of the pictures alone to compare"
        )
    if len(set(contenders)) < len(contenders) or not contenders:
        raise ValueError(f"contenders must be different ones, at least one, got {list(contenders)}")

    def make_env() -> gym.Env[Any, Any]:
        return real_env(world, env, arguments=env_args)

    real = make_env()
    try:
        check_fits(world.config.data, real)
        records = Records(folder, _settings(world, real_env_id(world, env), env_args, config))
        players = [
            read_contender(
                words, world=world, run=str(run), env=real, make_env=make_env, folder=folder, progress=progress
            )
            for words in contenders
        ]
        if len({player.name for player in players}) < len(players):
            raise ValueError(f"contenders need different names, got {[player.name for player in players]}; use NAME=")
        reference = _reference(players, config.reference)
        trained_on = _trained_on(run)
        standings = [_played(player, real, records, config, trained_on, progress=progress) for player in players]
        found = None
        if config.starts:
            found = _agreement(players, world, str(run), real, records, config, progress=progress)
    finally:
        real.close()
    best = max(standings, key=lambda one: one.mean.value)
    evidence = Evidence(
        protocol={
            "world": Path(str(run)).name,
            "environment": real_env_id(world, env),
            "transitions that the world was learned from": Recordings.of_run(str(run)).steps,
            "episodes": config.episodes,
            "first seed": config.seed,
            "longest episode": _limit(real, config.max_steps),
            **({} if found is None else _protocol(found, config)),
        },
        standings=standings,
        reference=reference,
        agreement=found,
        film=(best.name, records.film(best.name)),
    )
    from worldflow.agents.evidence_report import write_report  # it draws, which is slow to import

    write_bytes(folder / "evidence.json", (json.dumps(evidence.to_plain(), indent=1) + "\n").encode())
    write_report(evidence, folder / "report.html")
    return evidence


def _played(
    player: Contender,
    env: gym.Env[Any, Any],
    records: Records,
    config: CompareConfig,
    trained_on: set[str],
    *,
    progress: bool,
) -> Standing:
    """A contender's episodes, those that are there and those that are missing."""
    episodes = records.episodes(player)
    seeds = range(config.seed, config.seed + config.episodes)
    missing = [seed for seed in seeds if seed not in {one.seed for one in episodes}]
    policy = player.make() if missing else None
    with tqdm(total=len(missing), desc=player.name[:40], unit="episode", disable=not progress or not missing) as bar:
        for seed in missing:
            assert policy is not None
            try:
                numbers, episode = play_episode(policy, env, seed=seed, max_steps=_limit(env, config.max_steps))
            except Exception as error:
                raise RuntimeError(
                    f"{player.name} or the environment raised {type(error).__name__}: {error} in the episode of seed "
                    f"{seed}; {len(episodes)} finished episodes are kept in {records.folder}, the same call goes on"
                ) from error
            if episode_hash(episode) in trained_on:
                raise ValueError(
                    f"the world was trained on the episode of seed {seed} as {player.name} plays it, so that it tells "
                    "nothing about new ones; choose another --seed"
                )
            if seed == config.seed:
                records.keep_film(player.name, episode.frames)
            episodes.append(numbers)
            records.keep_episodes(player, episodes)
            bar.set_postfix_str(f"mean return {np.mean([one.total for one in episodes]):.5g}", refresh=False)
            bar.update()
    chosen = sorted((one for one in episodes if one.seed in seeds), key=lambda one: one.seed)
    return Standing(name=player.name, about=player.about, real_steps=player.real_steps, episodes=tuple(chosen))


def _agreement(
    players: Sequence[Contender],
    world: WorldModel,
    run: str,
    env: gym.Env[Any, Any],
    records: Records,
    config: CompareConfig,
    *,
    progress: bool,
) -> Agreement | None:
    """Imagined against real returns of all that do not plan, mixed with random actions; None of fewer than two."""
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    past = max(1, world.config.flow.window - 1)
    left = _limit(env, None) - past
    horizon = min(50, left) if config.horizon is None else config.horizon
    if not 1 <= horizon <= left:
        raise ValueError(f"{past} steps before a start leave at most {left} for the horizon, got {horizon}")
    mixtures = _mixtures(players, env, config.noise)
    if len(mixtures) < 2:
        return None
    starts = draw_starts(
        env,
        make_policy(config.start_policy or Recordings.of_run(run).policy or "smooth", **spaces),
        count=config.starts,
        past=past,
        frame_shape=world.config.data.frame_shape,
        seed=config.seed,
    )
    idle = real_returns(Hold(env.action_space), env, starts, horizon=horizon)[0][:, -1]
    missing = [one for one in mixtures if records.returns(one) is None]
    total = len(missing) * (config.starts + horizon)
    with tqdm(total=total, desc="imagine", unit="step", disable=not progress or not missing) as bar:
        for one in missing:
            bar.set_postfix_str(one.name, refresh=False)
            found = measure_returns(
                one.name,
                one.make,
                world,
                env,
                starts,
                horizon=horizon,
                samples=config.samples,
                seed=config.seed,
                tick=bar.update,
            )
            records.keep_returns(one, found)
    found = [records.returns(one) for one in mixtures]
    return agreement([one for one in found if one is not None], idle, weight=config.in_distribution)


def _mixtures(players: Sequence[Contender], env: gym.Env[Any, Any], noise: Sequence[float]) -> list[Contender]:
    """All that do not plan, and each but the random ones with shares of random actions in place of its own."""
    found = []
    for player in (one for one in players if not one.is_planner):
        for share in noise if player.identity not in ("random", "smooth") else noise[:1]:

            def make(player: Contender = player, share: float = share) -> Mixed:
                return Mixed(player.make(), env.action_space, random_fraction=share)

            found.append(
                Contender(
                    name=f"{player.name}, {share:.0%} random" if share else player.name,
                    about=player.about,
                    identity=f"{player.identity} {share}",
                    make=make,
                    real_steps=player.real_steps,
                )
            )
    return found


def _protocol(found: Agreement, config: CompareConfig) -> dict[str, Any]:
    """How returns were imagined."""
    return {
        "starts": config.starts,
        "who goes to a start": config.start_policy or "who made the recordings",
        "horizon": found.policies[0].real.shape[1],
        "imagined futures of each start": config.samples,
    }


def _reference(players: Sequence[Contender], name: str | None) -> str:
    """The contender that the others are held against."""
    names = [player.name for player in players]
    if name is None:
        return max(players, key=lambda player: player.real_steps or 0).name
    if name not in names:
        raise ValueError(f"the reference must be one of the contenders {names}, got {name!r}")
    return name


def _limit(env: gym.Env[Any, Any], max_steps: int | None) -> int:
    own = None if env.spec is None else env.spec.max_episode_steps
    return min((limit for limit in (max_steps, own) if limit is not None), default=DEFAULT_MAX_STEPS)


def _trained_on(run: str | os.PathLike[str]) -> set[str]:
    """Hashes of the episodes that the world was trained on, where it says."""
    record = json.loads((run_folder(run) / "world.json").read_text()).get("training") or {}
    return set(record.get("episode_hashes") or ())


_MAY_CHANGE = ("episodes", "reference", "in_distribution", "noise")
"""Options that may change between calls: they decide what is still missing, or what is made of it."""


def _settings(
    world: WorldModel, env_id: str, env_args: Mapping[str, Any] | None, config: CompareConfig
) -> dict[str, Any]:
    """What must be the same for what is on disk to count."""
    kept = {key: value for key, value in asdict(config).items() if key not in _MAY_CHANGE}
    return {
        "world": world_fingerprint(world),
        "environment": env_id,
        "arguments": dict(env_args or {}),
        **json.loads(json.dumps(kept)),
    }
