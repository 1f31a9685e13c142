"""Statistics of transitions: one pass over frames as they come, some at a time or one by one.

For the noisy codes `x~` of a frame, with `z` and `sigma` what the flow maps it to and by, `d` its dimension:

    NLL        = -log p(x~_t | x~_<t, a)                       = -log N(z; 0, I) + sum ln sigma
    entropy    = E[NLL]                                        = d / 2 (1 + ln 2 pi) + sum ln sigma
    typicality = sum over a window of (NLL - entropy), scaled  = (|z|^2 - d) / sqrt(2 d), added and divided by sqrt(n)

so that typicality asks of a trajectory what a typical-set test asks of a batch: not whether it is likely, but whether
it is as likely as the world's own samples are. Both sides count: a frame that holds less than expected is too likely.
`sum ln sigma` runs along the tokens that came, so the entropy is exact where scales do not depend on the tokens of the
same frame, and an unbiased estimate of it otherwise.

Ratios take one unknown off both sides, so what is hard to foresee at all drops out of them:

    action_ratio  = log p(x~_t | x~_<t, a) - log p(x~_t | x~_<t)
    context_ratio = log p(x~_t | x~_<t, a) - log p(x~_t | x~_{t-1}, a_{t-1})
    action_gain   = log p(x~_t | x~_<t, (1 + g) a) - log p(x~_t | x~_<t, (1 - g) a)

The last is a score test: about `2 g` times the derivative of the log-likelihood by the gain of the actions, and 0 on
average under the model. Weak actuators, damping and lost actions pull it down, each transition by little and all in one
direction. It points where changed dynamics show, where norms of `z` ask in all directions at once: on InvertedPendulum
with actuators at 75 %, its mean over 50 transitions has an area under the ROC curve of 1.00, that of `action_ratio`
0.90, that of the NLL 0.68.

The Hermite polynomials `He_k(z)`, of variance `k!` and uncorrelated for standard normal `z`, measure mean, variance,
skewness and kurtosis; products of neighbors in space and time measure correlation.

What was foreseen some transitions ago is held against what came by `worldflow.foresight`.

Work for a transition and a draw of the noise: one frame with its action, one without, two with other gains, two for the
short memory, and one decoding for pixels; and once for all draws, the drafts of rollouts.

Reference: Nalisnick et al., 2019, "Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality",
arXiv 1906.02994; Ren et al., 2019, "Likelihood Ratios for Out-of-Distribution Detection", arXiv 1906.02845.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from worldflow.autoregressive import LOG_2PI
from worldflow.elbo import noise_entropy, pixel_log_prob, pixel_std
from worldflow.flow_types import FlowOutput
from worldflow.foresight import Foresight
from worldflow.frames import as_tensors, mapped
from worldflow.randomness import normal
from worldflow.score_types import EpisodeScores
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped, UInt8

__all__ = ["WINDOW", "EpisodeScorer", "frames_at_once", "normality", "stored_pixel_std"]

WINDOW = 8
"""Transitions over which typicality is asked for."""
GAIN = 0.2
"""By how much actions are made larger and smaller; discrete ones have no gain."""


class EpisodeScorer:
    """Scores one episode, as its frames come.

    The noise of frame `t` in draw `k` is a function of `(seed, number, k, t)` alone: however frames are cut into parts,
    whatever else is scored, and however many draws there are, a transition's scores are the same, and what is scored
    under the same number and seed sees the same noise.

    Args:
        world: The world, in evaluation mode.
        number: The episode's number.
        num_draws: Draws of the noise.
        seed: Of the noise.
        pixel_std: Gray levels that decoded frames are off by, for the bound on pixels; None leaves that out.
        basis: Directions of what was foreseen (`worldflow.foresight.directions`); None leaves that out.
        fingerprint: Of the world, to be noted in the scores.
    """

    def __init__(
        self,
        world: WorldModel,
        *,
        number: int = 0,
        num_draws: int = 1,
        seed: int = 0,
        pixel_std: float | None = None,
        basis: Tensor | None = None,
        fingerprint: str = "",
    ) -> None:
        self.world, self.number, self.num_draws = world, number, num_draws
        self.pixel_std, self.fingerprint = pixel_std, fingerprint
        self._generators = [
            torch.Generator().manual_seed(
                int(np.random.SeedSequence([seed, number, draw]).generate_state(1, np.uint64)[0] >> 1)
            )
            for draw in range(num_draws)
        ]
        # Each draw is there several times: with its actions, without, and with larger and smaller ones.
        self._gains = (1.0, 1.0) if world.config.data.action.is_discrete else (1.0, 1.0, 1 + GAIN, 1 - GAIN)
        hidden = torch.zeros(len(self._gains) * num_draws, dtype=torch.bool, device=world.device)
        hidden[num_draws : 2 * num_draws] = True
        self._hidden = hidden
        self._state = world.begin(len(hidden))
        self._foresight = None if basis is None else Foresight(world, basis)
        self._codes: Tensor | None = None
        self._x: Tensor | None = None
        self._z: Tensor | None = None
        self._excess = torch.zeros(num_draws, 0, dtype=torch.float64)

    @torch.no_grad()
    def start(self, frame: UInt8[np.ndarray, "row column channel"]) -> None:
        """Read the first frame, which nothing is said about."""
        codes, _ = self._encode(frame[None])
        x = self._noisy(codes)
        features = x.new_zeros(len(self._gains), 1, self.world.config.flow.action_dim)
        out = self._pass(x, codes, features)
        self._foreseen(out, codes, features)
        self._codes, self._x, self._z = codes[-1:], x[:, -1:], out.z[: self.num_draws, -1:]

    @torch.no_grad()
    def advance(
        self,
        frames: UInt8[np.ndarray, "time row column channel"],
        actions: Shaped[np.ndarray, "time *action"],
        rewards: Float[np.ndarray, " time"],
        terminated: Bool[np.ndarray, " time"],
    ) -> EpisodeScores:
        """Score the next transitions.

        Args:
            frames: The frames that they led to.
            actions: What was done.
            rewards: What it gave.
            terminated: Whether it ended the episode.

        Raises:
            ValueError: If a number that comes out is not finite.
        """
        if self._codes is None or self._x is None or self._z is None:
            raise RuntimeError("call start with the first frame before advance")
        world, K = self.world, self.num_draws
        codes, reconstruction = self._encode(frames)
        x = self._noisy(codes)
        features = self._features(actions)
        out = self._pass(x, codes, features)
        z, log_det = out.z[:K].double(), out.log_det[:K].double()
        known, hidden, *others = out.log_prob.double().split(K)
        numbers = {"frame": known, "action_ratio": known - hidden}
        if others:
            numbers["action_gain"] = others[0] - others[1]

        after = out.hidden[:K]
        for name, head, values in (
            ("reward", world.reward, rewards),
            ("terminated", world.termination, terminated),
        ):
            told = torch.from_numpy(np.array(values)).to(world.device).expand(K, -1)
            numbers[name] = head.log_prob(after, told).double()

        dim = world.config.flow.frame_dim
        numbers["above_floor"] = world.above_floor(known)
        entropy = -log_det.sum(-1) + 0.5 * dim * (1 + LOG_2PI)
        numbers["entropy"] = world.above_floor(-entropy)
        numbers |= normality(z, self._z.double(), grid=world.config.flow.grid, is_real=world.flow.is_real)
        numbers["typicality"] = self._typicality(numbers["z_variance"].cpu())

        pairs = torch.stack((torch.cat((self._x, x[:, :-1]), 1), x), 2).flatten(0, 1)
        short = self._short(pairs, codes, features[0])
        numbers["context_ratio"] = known - short.unflatten(0, known.shape)
        if world.denoiser is not None:
            words = self._words(len(pairs)) if world.denoiser.config.text_dim else None
            score = world.denoiser(pairs, text=words)[:, 1].double()
            numbers["score_norm"] = score.square().mean((-2, -1)).sqrt().unflatten(0, known.shape)
        if self.pixel_std is not None:
            numbers["pixel_bits"] = self._pixel_bits(x, frames, known)
        token = None
        if not world.config.flow.shallow_layers:
            nats = 0.5 * (z.square() + LOG_2PI).sum(-1) - log_det
            nats[..., -1] -= 0.5 * LOG_2PI * world.config.flow.num_filled
            token = nats.mean(0).cpu().numpy()
            if world.config.flow.vector_dim:
                numbers["vector"] = -nats[..., math.prod(world.config.flow.grid) :].sum(-1)

        once = {"reconstruction": reconstruction, "change": self._change(codes)}
        if (foresight := self._foreseen(out, codes, features)) is not None:
            once["foresight"] = foresight
        self._codes, self._x, self._z = codes[-1:], x[:, -1:], out.z[:K, -1:]
        return self._scores(numbers, once, token)

    def _encode(self, frames: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Codes without noise `(time, token, latent)`, and the error of every frame's round trip."""
        world = self.world
        seen = as_tensors(mapped(np.ascontiguousarray, frames)).to(world.device)
        codes = world.codec.encode(seen)
        error = world.codec.reconstruction_error(seen, codes)
        return codes.to(world.dtype), error.double().cpu().numpy()

    def _noisy(self, codes: Float[Tensor, "time token latent"]) -> Float[Tensor, "draw time token latent"]:
        world = self.world
        shape = (self.num_draws, *codes.shape[1:])
        noise = [normal(shape, self._generators, device=world.device, dtype=world.dtype) for _ in codes]
        return codes + world.config.codec.noise_std * world.flow.only_real(torch.stack(noise, dim=1))

    def _features(self, actions: np.ndarray) -> Float[Tensor, "gain time feature"]:
        """Features of the actions under every gain."""
        raw = np.ascontiguousarray(actions)
        every = raw[None] if self.world.config.data.action.is_discrete else np.stack([g * raw for g in self._gains])
        features = self.world.encode_actions(every.astype(raw.dtype)).to(self.world.dtype)
        return features.expand(len(self._gains), -1, -1)

    def _pass(self, x: Tensor, codes: Tensor, features: Float[Tensor, "gain time feature"]) -> FlowOutput:
        """Frames through the flow, under every gain and without their actions, on from what was seen."""
        rows = len(self._gains) * self.num_draws
        out = self.world.flow(
            x.repeat(len(self._gains), 1, 1, 1),
            features.repeat_interleave(self.num_draws, dim=0),
            shown=codes.expand(rows, *codes.shape) if self.world.config.flow.has_shown else None,
            hide_actions=self._hidden,
            state=self._state,
        )
        assert out.state is not None
        self._state = out.state
        return out

    def _foreseen(self, out: FlowOutput, codes: Tensor, features: Tensor) -> np.ndarray | None:
        """How far frames are from what was foreseen; drafts that read noisy codes read those of the first draw."""
        if self._foresight is None:
            return None
        seen = codes if self.world.config.flow.has_shown else out.u[0]
        return self._foresight(seen, features[0]).double().cpu().numpy()

    def _change(self, codes: Float[Tensor, "time token latent"]) -> Float[np.ndarray, " time"]:
        """Root mean square by which codes differ from the ones before."""
        assert self._codes is not None
        apart = codes.double() - torch.cat((self._codes, codes[:-1])).double()
        return apart.square().mean((-2, -1)).sqrt().cpu().numpy()

    def _short(self, pairs: Tensor, codes: Tensor, features: Tensor) -> Float[Tensor, " pair"]:
        """Log-likelihood of the second frame of each pair, as if nothing had been before the first."""
        assert self._codes is not None
        shown = None
        if self.world.config.flow.has_shown:
            both = torch.stack((torch.cat((self._codes, codes[:-1])), codes), 1)
            shown = both.expand(self.num_draws, *both.shape).flatten(0, 1)
        led = torch.stack((torch.zeros_like(features), features), 1)
        led = led.expand(self.num_draws, *led.shape).flatten(0, 1)
        return self.world.flow(pairs, led, text=self._words(len(pairs)), shown=shown).log_prob[:, 1].double()

    def _words(self, rows: int) -> Tensor | None:
        nothing = self.world.nothing
        return None if nothing is None else nothing.expand(rows, -1, -1)

    def _typicality(self, excess: Float[Tensor, "draw time"]) -> Float[Tensor, "draw time"]:
        before = self._excess.shape[1]
        joined = torch.cat((self._excess, excess), 1)
        self._excess = joined[:, -(WINDOW - 1) :]
        ends = torch.arange(before, joined.shape[1]) + 1
        starts = (ends - WINDOW).clamp(min=0)
        sums = torch.nn.functional.pad(joined.cumsum(1), (1, 0))
        return (sums[:, ends] - sums[:, starts]) / (ends - starts).double().sqrt()

    def _pixel_bits(self, x: Tensor, frames: np.ndarray, known: Tensor) -> Float[Tensor, "draw time"]:
        assert self.pixel_std is not None
        shown = torch.from_numpy(np.ascontiguousarray(frames))
        per_draw = [pixel_log_prob(self.world, shown, draw, std=self.pixel_std).double() for draw in x]
        bound = torch.stack(per_draw) + known + noise_entropy(self.world)
        return -bound / (math.prod(self.world.config.data.frame_shape) * math.log(2))

    def _scores(
        self,
        numbers: dict[str, Tensor],
        once: dict[str, np.ndarray],
        token: np.ndarray | None,
    ) -> EpisodeScores:
        """The means over draws of numbers, and what there is one of for all draws."""
        values = {name: number.cpu().numpy() for name, number in numbers.items()}
        for name, value in (values | once).items():
            if not np.isfinite(value).all():
                raise ValueError(
                    f"the scores of episode {self.number} are not finite ({name}); the world is damaged: train it again"
                )
        K = self.num_draws
        errors = {} if K == 1 else {name: value.std(0, ddof=1) / math.sqrt(K) for name, value in values.items()}
        return EpisodeScores(
            **{name: value.mean(0) for name, value in values.items()},  # pyright: ignore[reportArgumentType]
            **once,  # pyright: ignore[reportArgumentType]
            token=token,
            standard_error=errors,
            num_draws=K,
            world=self.fingerprint,
        )


def normality(
    z: Float[Tensor, "*batch time token latent"],
    before: Float[Tensor, "*batch 1 token latent"],
    *,
    grid: tuple[int, int],
    is_real: Bool[Tensor, "token latent"] | None = None,
) -> dict[str, Float[Tensor, "*batch time"]]:
    """Statistics that are standard normal, or nearly, where `z` is white Gaussian noise.

    Args:
        z: The noise that frames are mapped to.
        before: That of the frame before the first one.
        grid: Rows and columns of a picture's tokens; others may follow, which have no neighbors in space.
        is_real: Which numbers are noise, where some only fill up a token with zeros.

    Returns:
        `z_mean, z_variance, z_skewness, z_kurtosis, z_spatial, z_temporal`, as in `EpisodeScores`.
    """
    dim = z.shape[-2] * z.shape[-1] if is_real is None else int(is_real.sum())

    def mean(values: Tensor) -> Tensor:
        return values.mean((-2, -1)) if is_real is None else values[..., is_real].mean(-1)

    square = z.square()
    cells = z[..., : grid[0] * grid[1], :].unflatten(-2, grid)
    right = (cells[..., :, 1:, :] * cells[..., :, :-1, :]).sum((-3, -2, -1))
    below = (cells[..., 1:, :, :] * cells[..., :-1, :, :]).sum((-3, -2, -1))
    neighbors = z.shape[-1] * (grid[0] * (grid[1] - 1) + (grid[0] - 1) * grid[1])
    previous = torch.cat((before, z[..., :-1, :, :]), dim=-3)
    return {
        "z_mean": math.sqrt(dim) * mean(z),
        "z_variance": math.sqrt(dim / 2) * mean(square - 1),
        "z_skewness": math.sqrt(dim / 6) * mean(z * (square - 3)),
        "z_kurtosis": math.sqrt(dim / 24) * mean(square * (square - 6) + 3),
        "z_spatial": (right + below) / math.sqrt(max(neighbors, 1)),  # 0 for a single token
        "z_temporal": (z * previous).sum((-2, -1)) / math.sqrt(dim),
    }


def frames_at_once(num_draws: int) -> int:
    """Frames in one pass, so that what attention holds at a time does not grow with the number of draws."""
    return max(4, 32 // num_draws)


def stored_pixel_std(world: WorldModel) -> float | None:
    """Gray levels that decoded frames are off by on the pasts that are stored with a world.

    None without any, and where frames are vectors or have some beside the picture: they have no gray levels to be bits
    of.
    """
    data = world.config.data
    if world.contexts is None or data.is_vector or data.parts is not None:
        return None
    return pixel_std(world, world.contexts.frames, generator=torch.Generator().manual_seed(0))
