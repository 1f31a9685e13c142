"""Learned environments as Stable-Baselines3 wants them: its `VecEnv`, over one model call for all.

    model = PPO("MlpPolicy", SB3VecEnv(LearnedVectorEnv(run, num_envs=8, autoreset_mode="SameStep")))

Stable-Baselines3 has an episode start anew in the step that ends it. The last observation of the old one is then in
`info["terminal_observation"]`, and `info["TimeLimit.truncated"]` tells an end by the horizon, after which returns are
bootstrapped, from a termination, after which nothing comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.vector import AutoresetMode

from worldflow.envs.learned_vector import LearnedVectorEnv

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise ImportError("Stable-Baselines3 is not installed; run `pip install 'worldflow[agents]'`") from error

if TYPE_CHECKING:
    import gymnasium as gym

__all__ = ["SB3VecEnv"]


class SB3VecEnv(VecEnv):
    """A `LearnedVectorEnv` behind the interface of Stable-Baselines3.

    Args:
        envs: The environments, with `autoreset_mode="SameStep"`.

    Raises:
        ValueError: If they start anew at another time.
    """

    def __init__(self, envs: LearnedVectorEnv) -> None:
        if envs.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                "Stable-Baselines3 needs environments that start anew in the step that ends them, got "
                f"{envs.autoreset_mode}; make them with autoreset_mode='SameStep'"
            )
        self.envs = envs
        self.render_mode = envs.render_mode
        self._actions: np.ndarray | None = None
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Any:
        """Start all episodes, with the seeds and options set before, which count once; info is in `reset_infos`."""
        seeds, options = list(self._seeds), [dict(one) for one in self._options]
        if any(one != options[0] for one in options):
            raise ValueError("a reset takes the same options for all environments; one of them lists each its own")
        observations, infos = self.envs.reset(seed=seeds, options=options[0])
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = self._split(infos)
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Remember what to do."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Do it."""
        if self._actions is None:
            raise ValueError("step_wait() has nothing to do; call step_async() with actions before")
        observations, rewards, terminated, truncated, infos = self.envs.step(self._actions)
        self._actions = None
        finals = infos.pop("final_obs", None), infos.pop("final_info", {})
        for mask in ("_final_obs", "_final_info"):
            infos.pop(mask, None)
        split, ended = self._split(infos), self._split(finals[1])
        for i in range(self.num_envs):
            if terminated[i] or truncated[i]:
                assert finals[0] is not None
                self.reset_infos[i], split[i] = split[i], {**ended[i], "terminal_observation": finals[0][i]}
            split[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        return observations, rewards.astype(np.float32), terminated | truncated, split

    def close(self) -> None:
        """Close them; closing twice does no harm."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """An attribute of the environments, which share all of theirs, once for each."""
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Set an attribute of all environments.

        Raises:
            ValueError: For some of them only: they share their attributes.
        """
        if len(list(self._get_indices(indices))) < self.num_envs:
            raise ValueError(f"the environments share their attributes: set {attr_name!r} for all of them")
        setattr(self.envs, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of all environments together; its one result, once for each of those named."""
        result = getattr(self.envs, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        """No environment is wrapped by itself."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The last frame of each environment."""
        return list(self.envs.render() or [None] * self.num_envs)

    def _split(self, infos: dict[str, Any]) -> list[dict[str, Any]]:
        """One dict an environment, of what it has."""
        names = [name for name in infos if not name.startswith("_")]
        return [{name: infos[name][i].item() for name in names if infos[f"_{name}"][i]} for i in range(self.num_envs)]
