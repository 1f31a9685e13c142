"""Recording: any Gymnasium environment and any policy in, a Minari data set out.

Episode `n` of a recording with seed `s` depends on `s` and `n` alone: it has its own seed, for the environment
and for the policy's generator, which is stored with it. So a recording that was stopped and continued is the
same as one that was not.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from tqdm import tqdm

from worldflow import __version__
from worldflow.envs.making import Observed, make_env, make_pixel_env, serialized
from worldflow.envs.policies import Mixed, Policy, make_policy, start_episode, valid_action
from worldflow.envs.recorder import OnExisting, Recorder
from worldflow.episodes import CAPTION, shared_caption
from worldflow.frames import Frames, together
from worldflow.index import SplitRule
from worldflow.spaces import action_spec
from worldflow.types import Episode

__all__ = ["collect", "make_pixel_env", "record_episode"]

DEFAULT_MAX_STEPS = 1000
"""Steps after which an episode is cut off, where the environment has no time limit of its own."""


def collect(
    env: str | gym.Env[Any, Any],
    *,
    out: str | os.PathLike[str],
    episodes: int,
    policy: str | Policy = "random",
    seed: int = 0,
    random_fraction: float = 0.0,
    max_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    size: int = 64,
    observation: Observed = "pixels",
    split: SplitRule | None = None,
    on_existing: OnExisting = "error",
    progress: bool = True,
) -> Path:
    """Record episodes of an environment as a Minari data set.

    Nothing is written before the first episode is finished, and whatever stops the recording after that leaves
    the finished episodes readable.

    Args:
        env: A registered id (`worldflow/Reacher-v0`, `module:id`), or an environment. One whose observations are
            not images is rendered instead; its own observation is then kept in `infos["state"]`.
        out: Folder of the data set; see `worldflow.envs.recorder` for how Minari finds it.
        episodes: How many to record. With `on_existing="append"`, how many more.
        policy: `random`, `smooth`, `MODULE:CALLABLE`, `FILE.zip`, or a policy; see `worldflow.envs.policies`.
        seed: Decides everything random, so that the same call records the same data.
        random_fraction: Probability that a step takes a random action in place of the policy's.
        max_steps: Steps after which an episode is cut off and marked truncated. By default the environment's own
            time limit counts, or 1000 steps where it has none.
        env_kwargs: Arguments of the environment, if `env` is an id.
        size: Rows and columns of the frame, if the environment has to be rendered.
        observation: What is recorded of it: `pixels`, rendered where it observes none; `vector`, what it observes
            itself, a floating Box of one axis, which is kept as float32; or `dict`, both, under the names that it gives
            them, or as `pixels` and `state`.
        split: Which episodes are held out, to be written down with the data.
        on_existing: What to do where a data set is: `"error"`, `"append"` or `"overwrite"`.
        progress: Whether to show a progress bar.

    Returns:
        The folder of the data set.

    Raises:
        ValueError, TypeError: An argument, the environment or the policy is of no use.
        FileExistsError: There is a data set and `on_existing` is `"error"`.
        OSError: The disk is full.
        KeyboardInterrupt: Somebody interrupted; the message says what was kept.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    made = make_env(env, observed=observation, size=size, env_kwargs=env_kwargs)
    try:
        spaces = {"observation_space": made.observation_space, "action_space": made.action_space}
        chosen = Mixed(make_policy(policy, **spaces), made.action_space, random_fraction=random_fraction)
        recorder = Recorder(
            out,
            **{name: serialized(space) for name, space in spaces.items()},
            env_spec=_spec_json(made),
            on_existing=on_existing,
            metadata=_metadata(policy, split or SplitRule()),
        )
        recording = {
            "version": __version__,
            "policy": _policy_name(policy),
            "random_fraction": random_fraction,
            "seed": seed,
            "first_episode": len(recorder),
            "max_steps": _step_limit(made, max_steps),
        }
        recorder.metadata["worldflow"].setdefault("recordings", []).append(recording)
        _record(made, chosen, recorder, episodes=episodes, seed=seed, limit=recording["max_steps"], progress=progress)
    finally:
        if isinstance(env, str):
            made.close()
    return Path(out)


def record_episode(env: gym.Env[Any, Any], policy: Policy, *, seed: int, max_steps: int = DEFAULT_MAX_STEPS) -> Episode:
    """Play one episode and keep it: the frame of the reset first, and every action as the environment got it.

    Args:
        env: An environment that observes images, vectors, or a Dict of both.
        policy: The policy.
        seed: For the environment and, through a generator of its own, for the policy.
        max_steps: Steps after which the episode is cut off and marked truncated.

    Returns:
        The episode. `infos` holds each entry of the environment's `info` that is a number, an array, a string or
        a dict of these at every step, in `time + 1` rows. Where the reset does not give it, the first row is
        NaN, zero, False or empty. If `info["caption"]` is one and the same text whenever it is there, it becomes the
        episode's `caption` instead.

    Raises:
        ValueError: The environment returned something else than its space says, or a reward that is not finite.
    """
    generator = np.random.default_rng([seed, 1])
    start_episode(policy, generator)
    observation, info = env.reset(seed=seed)
    frames, infos = [_frame(env, observation)], [info]
    actions, rewards, terminated, truncated = [], [], [], []
    for step in range(max_steps):
        action = valid_action(policy(observation, info, generator), env.action_space)
        observation, reward, is_terminated, is_truncated, info = env.step(action)
        if not np.isfinite(float(reward)):
            raise ValueError(f"the environment returned the reward {reward} at step {step} (seed {seed})")
        frames.append(_frame(env, observation))
        infos.append(info)
        actions.append(action)
        rewards.append(float(reward))
        terminated.append(bool(is_terminated))
        truncated.append(bool(is_truncated) or (step == max_steps - 1 and not is_terminated))
        if terminated[-1] or truncated[-1]:
            break
    columns = _columns(infos)
    caption = shared_caption(info.get(CAPTION) for info in infos)
    if caption is not None:
        columns.pop(CAPTION, None)
    return Episode(
        frames=together(np.stack, frames),
        actions=np.stack(actions),
        rewards=np.array(rewards),
        terminated=np.array(terminated),
        truncated=np.array(truncated),
        infos=columns,
        caption=caption,
    )


def _record(
    env: gym.Env[Any, Any],
    policy: Policy,
    recorder: Recorder,
    *,
    episodes: int,
    seed: int,
    limit: int,
    progress: bool,
) -> None:
    first = _first_seed(seed)
    attributes = {
        name: recorder.metadata["worldflow"]["recordings"][-1][name] for name in ("policy", "random_fraction")
    }
    num_frames = 0
    with tqdm(total=episodes, desc="collect", unit="episode", mininterval=0.5, disable=not progress) as bar:
        try:
            for _ in range(episodes):
                episode_seed = first + len(recorder)
                while episode_seed in recorder.seeds:
                    episode_seed += 1
                episode = record_episode(env, policy, seed=episode_seed, max_steps=limit)
                recorder.add(episode, seed=episode_seed, attributes=attributes)
                num_frames += len(episode.frames)
                rate = num_frames / max(bar.format_dict["elapsed"], 1e-9)
                bar.set_postfix_str(f"{rate:.0f} frames/s", refresh=False)
                bar.update()
        except KeyboardInterrupt:
            recorder.finish()
            kept = f"the {len(recorder)} finished episodes in {recorder.path} are kept"
            raise KeyboardInterrupt(f"interrupted; {kept if len(recorder) else 'no episode was finished'}") from None
        except OSError:
            # A full disk has no room for a copy either: what is there stays as it is.
            raise
        except BaseException as error:
            recorder.finish()
            if len(recorder):
                error.add_note(f"the {len(recorder)} finished episodes in {recorder.path} are kept: --append goes on")
            raise
        recorder.finish()


def _spec_json(env: gym.Env[Any, Any]) -> str | None:
    action_spec(serialized(env.action_space))
    if env.spec is None:
        return None
    try:
        text = env.spec.to_json()
        EnvSpec.from_json(text)
    except Exception as error:
        # Gymnasium lets any constructor argument into a spec, and whatever JSON makes of it.
        warnings.warn(f"the environment's specification is not recorded: {error}", stacklevel=3)
        return None
    return text


def _metadata(policy: str | Policy, split: SplitRule) -> dict[str, Any]:
    return {
        "algorithm_name": _policy_name(policy),
        "description": f"recorded by worldflow {__version__}",
        "worldflow": {"split": asdict(split)},
    }


def _policy_name(policy: str | Policy) -> str:
    if isinstance(policy, str):
        return policy
    named: Any = policy if hasattr(policy, "__qualname__") else type(policy)
    return f"{named.__module__}:{named.__qualname__}"


def _step_limit(env: gym.Env[Any, Any], max_steps: int | None) -> int:
    own = env.spec.max_episode_steps if env.spec is not None else None
    limits = [limit for limit in (max_steps, own) if limit is not None]
    return min(limits, default=DEFAULT_MAX_STEPS)


def _first_seed(seed: int) -> int:
    """Where the seeds of a recording start: far apart for different `seed`s, one after the other within one."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**30


def _frame(env: gym.Env[Any, Any], observation: Any) -> Any:
    space = env.observation_space
    if not isinstance(space, gym.spaces.Dict):
        return _array(space, observation)
    if not isinstance(observation, Mapping) or set(observation) != set(space):
        found = sorted(observation) if isinstance(observation, Mapping) else type(observation).__name__
        raise ValueError(f"the environment observes a Dict of {sorted(space)}, as it says, but returned {found}")
    return Frames({name: _part(_array(space[name], observation[name])) for name in space})


def _part(array: np.ndarray) -> np.ndarray:
    """A picture with its channels, or a vector."""
    return array[..., None] if array.ndim == 2 else array


def _array(space: gym.Space[Any], observation: Any) -> np.ndarray:
    frame = np.asarray(observation)
    if frame.dtype != space.dtype or frame.shape != space.shape:
        raise ValueError(
            f"the environment observes {space.dtype} of shape {space.shape}, as it says, "
            f"but returned {frame.dtype} of shape {frame.shape}"
        )
    if frame.dtype.kind != "f":
        return frame.copy()
    if not np.isfinite(frame).all():
        raise ValueError(f"the environment observed numbers that are not finite: {frame.tolist()}")
    return frame.astype(np.float32)


def _columns(infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One array per entry, of those that every step has in the same form."""
    columns: dict[str, Any] = {}
    for name in infos[1]:
        values = [info.get(name) for info in infos]
        if all(isinstance(value, Mapping) for value in values[1:]):
            inner = _columns([value if isinstance(value, Mapping) else {} for value in values])
            if inner:
                columns[name] = inner
            continue
        first, *rows = [_row(value) for value in values]
        kept = [row for row in rows if row is not None and _form(row) == _form(rows[0])]
        if len(kept) < len(rows):
            continue
        if first is None or _form(first) != _form(kept[0]):
            first = np.full_like(kept[0], {"f": np.nan, "U": ""}.get(kept[0].dtype.kind, 0))
        columns[name] = np.stack([first, *kept])
    return columns


def _form(row: np.ndarray | None) -> tuple[object, ...]:
    return () if row is None else (row.shape, row.dtype.kind)


def _row(value: Any) -> np.ndarray | None:
    if not isinstance(value, (bool, int, float, str, np.generic, np.ndarray, list, tuple)):
        return None
    try:
        row = np.asarray(value)
    except ValueError:  # lists of different lengths
        return None
    return row if row.dtype.kind in "biufU" else None
