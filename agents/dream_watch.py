"""What happens beside a training in dreams: a growing horizon, evaluations, curves, a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.callbacks import BaseCallback

from worldflow.agents.dream_config import DreamConfig
from worldflow.envs.dreamed_policy import Evaluation

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Watch"]


class Watch(BaseCallback):
    """Called by the algorithm after every step of its imagined episodes.

    Args:
        config: How to train.
        evaluate: Given the steps so far, returns and lengths of the imagined episodes that ended since it was called
            last, and their horizon: looks at the policy, and says whether to go on.
        bar: A progress bar, in imagined steps.
        first_step: Where the training begins, or goes on.
    """

    def __init__(
        self,
        config: DreamConfig,
        evaluate: Callable[[int, list[tuple[float, float]], int], tuple[Evaluation, bool]],
        bar: tqdm[Any],
        *,
        first_step: int = 0,
    ) -> None:
        super().__init__()
        self._config, self._evaluate, self._bar = config, evaluate, bar
        self._ended: list[tuple[float, float]] = []
        self._horizon = config.horizon_at(first_step)
        self._seen = self._evaluated_at = first_step
        self._goes_on = True

    def _on_step(self) -> bool:
        step = self.num_timesteps
        self._ended += [
            (float(i["episode"]["r"]), float(i["episode"]["l"])) for i in self.locals["infos"] if "episode" in i
        ]
        self._bar.update(step - self._seen)
        self._seen = step
        if (horizon := self._config.horizon_at(step)) != self._horizon:
            self.training_env.set_attr("horizon", horizon)
            self._horizon = horizon
        return self._goes_on

    def _on_rollout_start(self) -> None:
        # Here the policy has learned from all steps so far.
        if self.num_timesteps - self._evaluated_at >= self._config.eval_every:
            self._look()

    def _on_training_end(self) -> None:
        if self._goes_on and self.num_timesteps > self._evaluated_at:
            self._look()

    def _look(self) -> None:
        self._evaluated_at = self.num_timesteps
        found, self._goes_on = self._evaluate(self.num_timesteps, self._ended, self._horizon)
        self._ended = []
        shown = {"imagined": found.imagined_return, "real": found.real_return}
        for name, value in shown.items():
            if value is not None:
                self.logger.record(f"{name}/return", value)
        self.logger.record("imagined/horizon", found.horizon)
        self._bar.set_postfix_str(", ".join(f"{n} return {v:.5g}" for n, v in shown.items() if v is not None))
