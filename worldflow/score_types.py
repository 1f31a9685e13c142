"""What scoring says about the transitions of an episode, and nothing that computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["EpisodeScores", "columns"]


@dataclass(frozen=True, kw_only=True)
class EpisodeScores:
    """Scores of one episode; entry `t` is about `frames[t], actions[t] -> frames[t + 1], rewards[t], terminated[t]`.

    All are means over the draws of the codes' noise. What is "under the model" is so for one draw, of a world that is
    as good as can be; alarms are calibrated on normal episodes instead (`worldflow.calibrate`).

    Args:
        frame: Log-likelihood of the frame's code, nats.
        reward: Log-likelihood of the reward, nats.
        terminated: Log-likelihood of the termination, or of its absence, nats.
        above_floor: The frame's negative log-likelihood above what the codes' noise alone costs, nats per dimension.
        action_ratio: How much the action raised the frame's log-likelihood, nats; negative where frame and action
            do not fit together.
        context_ratio: How much all that is older than the frame before raised it, nats; negative where the frame
            belies what was seen of motion.
        entropy: What the world expected `above_floor` to be, nats per dimension: in closed form from the scales of its
            Gaussians, along the tokens that came.
        typicality: By how much the last eight transitions were less likely (above 0) or more likely (below 0) than
            expected; a standard normal under the model.
        z_mean, z_variance, z_skewness, z_kurtosis: Mean of the Hermite polynomials of degree 1 to 4 of the frame's
            noise `z`, in standard deviations: standard normal and uncorrelated under the model.
        z_spatial, z_temporal: Correlation of `z` between neighboring tokens, and with the frame before; the same.
        reconstruction: Mean squared error of the frame after the codec's round trip, on pixels in [-1, 1].
        change: Root mean square by which the frame's code, without noise, differs from that of the frame before: 0
            where a frame is shown twice; None in scores that older versions kept.
        action_gain: How much likelier actions made the frame that are a fifth larger than ones that are smaller, nats:
            negative where less came of the action than should have, 0 on average under the model; None for discrete
            actions.
        pixel_bits: Bound of the frame's bits per pixel and channel (`worldflow.elbo`); None where it was not asked for,
            or the world stores no pasts to tell by how much decoded frames are off.
        score_norm: Root mean square of the denoiser's score of the frame, 1 or less under the model; None without one.
        vector: Where a vector stands beside the picture, its log-likelihood given that, nats: a part of `frame`, of
            which the rest is the picture's; None where there is none, or where `token` is None.
        token: Negative log-likelihood of every token given the ones before it, nats; None where it is not exact, in
            flows with shallow blocks.
        foresight: How far the frame is from what was drafted of it eight transitions ago, along the directions in which
            the world's frames change most, in units of the code; 0 where an episode is younger, and None for worlds
            that draft nothing or store no pasts (`worldflow.foresight`).
        standard_error: Of each of the above but `reconstruction`, `change`, `token` and `foresight`, over draws of the
            noise; empty for one.
        anomaly: Whether the transition is labeled anomalous; None where the episode has no labels.
        num_draws: Draws of the noise.
        world: Fingerprint of the world that scored; empty where it is not known.
    """

    frame: Float[np.ndarray, " time"]
    reward: Float[np.ndarray, " time"]
    terminated: Float[np.ndarray, " time"]
    above_floor: Float[np.ndarray, " time"]
    action_ratio: Float[np.ndarray, " time"]
    context_ratio: Float[np.ndarray, " time"]
    entropy: Float[np.ndarray, " time"]
    typicality: Float[np.ndarray, " time"]
    z_mean: Float[np.ndarray, " time"]
    z_variance: Float[np.ndarray, " time"]
    z_skewness: Float[np.ndarray, " time"]
    z_kurtosis: Float[np.ndarray, " time"]
    z_spatial: Float[np.ndarray, " time"]
    z_temporal: Float[np.ndarray, " time"]
    reconstruction: Float[np.ndarray, " time"]
    change: Float[np.ndarray, " time"] | None = None
    action_gain: Float[np.ndarray, " time"] | None = None
    pixel_bits: Float[np.ndarray, " time"] | None = None
    score_norm: Float[np.ndarray, " time"] | None = None
    vector: Float[np.ndarray, " time"] | None = None
    token: Float[np.ndarray, "time token"] | None = None
    foresight: Float[np.ndarray, "time direction"] | None = None
    standard_error: Mapping[str, Float[np.ndarray, " time"]] = field(default_factory=dict)
    anomaly: Bool[np.ndarray, " time"] | None = None
    num_draws: int = 1
    world: str = ""

    @property
    def log_prob(self) -> Float[np.ndarray, " time"]:
        """Frame, reward and termination together, nats."""
        return self.frame + self.reward + self.terminated

    @property
    def normality(self) -> Float[np.ndarray, " time"]:
        """How little the frame's noise looks like white Gaussian noise: squares of the six `z` numbers, added.

        Under the model a chi-square variable of 6 degrees of freedom.
        """
        parts = (self.z_mean, self.z_variance, self.z_skewness, self.z_kurtosis, self.z_spatial, self.z_temporal)
        return np.square(parts).sum(0)

    def __len__(self) -> int:
        return len(self.frame)

    @staticmethod
    def cat(parts: Sequence[EpisodeScores]) -> EpisodeScores:
        """Scores of the parts of an episode, one behind the other."""

        def joined(name: str) -> np.ndarray | None:
            values = [getattr(part, name) for part in parts]
            return None if any(value is None for value in values) else np.concatenate(values)

        first = parts[0]
        names = [f.name for f in fields(EpisodeScores) if f.name not in ("standard_error", "num_draws", "world")]
        errors = {name: np.concatenate([p.standard_error[name] for p in parts]) for name in first.standard_error}
        arrays = {name: joined(name) for name in names}
        return EpisodeScores(**arrays, standard_error=errors, num_draws=first.num_draws, world=first.world)  # pyright: ignore[reportArgumentType]


def columns(scores: EpisodeScores) -> dict[str, Float[np.ndarray, " time"]]:
    """The numbers that each transition has one of, by name, `log_prob` first; without labels."""
    others = ("token", "foresight", "standard_error", "anomaly", "num_draws", "world")
    found = {"log_prob": scores.log_prob}
    for name in (f.name for f in fields(EpisodeScores) if f.name not in others):
        if getattr(scores, name) is not None:
            found[name] = getattr(scores, name)
    return found
