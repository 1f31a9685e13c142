"""Small worlds with random weights, far from the identity: what a test of the model needs, without training."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from PIL import Image
from torch import nn

from worldflow.codec import CodecConfig
from worldflow.denoiser import DenoiserConfig
from worldflow.dict_codec import DictCodec
from worldflow.envs.recorder import Recorder
from worldflow.flow import FlowConfig, VideoFlow
from worldflow.frames import Frames
from worldflow.heads import RewardSupport
from worldflow.score_types import EpisodeScores
from worldflow.spaces import data_spec
from worldflow.types import ActionSpec, DataSpec, Episode
from worldflow.vector_codec import VectorCodec
from worldflow.world import Contexts, TextSpec, WorldConfig, WorldModel

__all__ = [
    "DotEnv",
    "box_space",
    "discrete_space",
    "random_actions",
    "random_episode",
    "random_frames",
    "randomize",
    "some_scores",
    "tiny_flow",
    "tiny_spec",
    "tiny_world",
    "world_that_ends",
    "write_dataset",
    "write_vectors",
]

Action = Literal["box", "discrete", "multi_discrete", "scalar"]


def box_space(low: float, high: float, shape: tuple[int, ...], dtype: str) -> str:
    """A Box as Minari writes it."""
    bounds = {name: np.full(shape, bound).tolist() for name, bound in (("low", low), ("high", high))}
    return json.dumps({"type": "Box", "dtype": dtype, "shape": list(shape), **bounds})


def discrete_space(choices: int, first: int = 0) -> str:
    """A Discrete as Minari writes it."""
    return json.dumps({"type": "Discrete", "dtype": "int64", "start": first, "n": choices})


def randomize(module: nn.Module, *, seed: int = 0, scale: float = 1.0) -> None:
    """Draw all weights anew, large enough that no layer is near zero or the identity.

    Matrices get `scale / sqrt(fan in)`, gains and vectors a normal of 0.3 around what they were made with (0 or 1).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            if parameter.dim() >= 2 and not name.endswith(("existence", "carry")):
                parameter.copy_(noise * scale / parameter[0].numel() ** 0.5)
            elif name.endswith("norm.weight") and "final" not in name:
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith("carry"):  # below one, or what is rolled out grows without end
                parameter.copy_(torch.tensor([[0.5], [0.2], [0.2]])[: len(parameter)].to(parameter) + 0.1 * noise)
            elif name.endswith("draft_gate"):
                parameter.copy_(0.8 + 0.2 * noise)
            else:
                parameter.copy_(0.3 * noise)


def tiny_flow(
    *,
    latent_dim: int = 3,
    grid: tuple[int, int] = (2, 2),
    action_dim: int = 2,
    window: int = 3,
    draft: bool = True,
    mixing: bool = False,
    shown: bool = False,
    memory: int = 0,
    shallow_layers: tuple[int, ...] = (1,),
    deep_layers: int = 2,
    soft_clip: float | None = 4.0,
    text_dim: int = 0,
    position_base: int | None = None,
    has_time_axis: bool = True,
    vector_dim: int = 0,
    width: int = 32,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    scale: float = 1.0,
) -> VideoFlow:
    """A flow with random weights."""
    config = FlowConfig(
        latent_dim=latent_dim,
        grid=grid,
        action_dim=action_dim,
        shallow_layers=shallow_layers,
        shallow_width=width,
        deep_layers=deep_layers,
        deep_width=width,
        draft_layers=2 if draft else 0,
        draft_width=width,
        draft_mixing=mixing,
        has_shown=shown,
        memory=memory,
        head_dim=16,
        window=window,
        soft_clip=soft_clip,
        text_dim=text_dim,
        position_base=position_base,
        has_time_axis=has_time_axis,
        vector_dim=vector_dim,
    )
    flow = VideoFlow(config).to(dtype)
    randomize(flow, seed=seed, scale=scale)
    return flow.eval()


def tiny_spec(
    *,
    size: int = 16,
    channels: int = 3,
    numbers: int | None = None,
    beside: Mapping[str, int] | None = None,
    action: Action = "box",
) -> DataSpec:
    """Frames of `size` pixels, or vectors of so many `numbers`, or both with names, and an action of the named kind."""
    if beside:
        pixels = json.loads(box_space(0, 255, (size, size, channels), "uint8"))
        vectors = {name: json.loads(box_space(-50, 50, (count,), "float64")) for name, count in beside.items()}
        return data_spec(
            json.dumps({"type": "Dict", "subspaces": {"pixels": pixels, **vectors}}),
            tiny_spec(action=action).action_space,
            dataset_id="tiny/test-v0",
        )
    shape = (size, size, channels) if numbers is None else (numbers,)
    specs = {
        "box": (
            ActionSpec(shape=(2,), dtype="float32", low=(-1.0, -1.0), high=(1.0, 1.0)),
            box_space(-1.0, 1.0, (2,), "float32"),
        ),
        "scalar": (
            ActionSpec(shape=(1,), dtype="float32", low=(-3.0,), high=(3.0,)),
            box_space(-3.0, 3.0, (1,), "float32"),
        ),
        "discrete": (ActionSpec(shape=(), dtype="int64", choices=(4,), first=(0,)), discrete_space(4)),
        "multi_discrete": (
            ActionSpec(shape=(2,), dtype="int64", choices=(3, 2), first=(0, 1)),
            json.dumps({"type": "MultiDiscrete", "dtype": "int64", "nvec": [3, 2], "start": [0, 1]}),
        ),
    }
    spec, space = specs[action]
    return DataSpec(
        frame_shape=shape,
        action=spec,
        observation_space=box_space(0, 255, shape, "uint8")
        if numbers is None
        else box_space(-50, 50, shape, "float64"),
        action_space=space,
        env_spec=None,
        dataset_id="tiny/test-v0",
    )


def tiny_world(
    *,
    size: int = 16,
    channels: int = 3,
    patch_size: int = 8,
    latent_dim: int = 3,
    codec: Literal["latent", "patch"] = "latent",
    numbers: int | None = None,
    beside: Mapping[str, int] | None = None,
    action: Action = "box",
    window: int = 3,
    draft: bool = True,
    shallow: bool = True,
    shown: bool = False,
    memory: int = 0,
    soft_clip: float | None = 4.0,
    noise_std: float = 0.3,
    atoms: tuple[float, ...] = (0.0, 1.0),
    paid: bool = True,
    contexts: int = 4,
    text_dim: int = 0,
    denoiser_layers: int = 0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    scale: float = 1.0,
) -> WorldModel:
    """A world with random weights and a bank of random pasts.

    Args:
        size, channels: Of its frames.
        patch_size, latent_dim, codec, noise_std: Its codec; 4 tokens of 3 channels by default.
        numbers: Of vectors, `latent_dim` a token, in place of frames.
        beside: Numbers of the vectors beside frames, by their names.
        action: Kind of its actions: Box of 2, Box of 1, Discrete(4), or MultiDiscrete([3, 2]) starting at (0, 1).
        window: Attention window in frames; the bank's pasts have as many frames.
        draft: Whether it has a drafter.
        shallow: Whether it has a shallow block.
        shown: Whether drafts are made from codes of shown frames.
        memory: Frames over which drafts remember the mean.
        soft_clip: Bound of the affine parameters.
        atoms: Rewards with a mass of their own.
        paid: Whether there were rewards but 0.
        contexts: Pasts in the bank; 0 leaves it without.
        text_dim: Channels of the three words that it reads; 0 for a world without text.
        denoiser_layers: Of its denoiser; 0 for none.
        dtype: Of its weights.
        seed, scale: Of its weights.
    """
    data = tiny_spec(size=size, channels=channels, numbers=numbers, beside=beside, action=action)
    codec_config = CodecConfig(
        kind=codec if numbers is None else "vector",
        frame_shape=data.frame_shape,
        patch_size=patch_size,
        latent_dim=latent_dim,
        width=8,
        blocks=1,
        noise_std=noise_std,
        parts=data.parts,
    )
    flow = FlowConfig(
        latent_dim=codec_config.token_dim,
        grid=codec_config.grid,
        vector_dim=codec_config.vector_dim,
        action_dim=data.action.feature_dim,
        shallow_layers=(1,) if shallow else (),
        shallow_width=32,
        deep_layers=2,
        deep_width=32,
        draft_layers=2 if draft else 0,
        draft_width=32,
        has_shown=shown,
        memory=memory,
        head_dim=16,
        window=window,
        soft_clip=soft_clip,
        text_dim=text_dim,
    )
    text = TextSpec(encoder="nowhere", identity="none", words=3, dim=text_dim) if text_dim else None
    denoiser = None
    if denoiser_layers:
        denoiser = DenoiserConfig(
            latent_dim=flow.latent_dim,
            grid=flow.grid,
            width=32,
            layers=denoiser_layers,
            window=2,
            head_dim=16,
            text_dim=text_dim,
            step=noise_std,
        )
    reward = RewardSupport(low=-2.0, high=2.0, num_knots=16, atoms=atoms) if paid else RewardSupport.of([np.zeros(2)])
    world = WorldModel(
        WorldConfig(data=data, codec=codec_config, flow=flow, reward=reward, text=text, denoiser=denoiser)
    )
    randomize(world, seed=seed, scale=scale)
    if world.nothing is not None:
        world.nothing.copy_(torch.randn(world.nothing.shape, generator=torch.Generator().manual_seed(seed)))
    generator = torch.Generator().manual_seed(seed)
    if not data.action.is_discrete:
        world.actions.mean.copy_(0.1 * torch.randn(world.actions.mean.shape, generator=generator))
        world.actions.std.copy_(0.5 + torch.rand(world.actions.std.shape, generator=generator))
    if isinstance(world.codec, VectorCodec | DictCodec):
        count = numbers or codec_config.vector_dim
        world.codec.set_statistics(
            torch.randn(count, generator=generator), 0.5 + torch.rand(count, generator=generator)
        )
    if contexts:
        frames = random_frames(data, (contexts, window), generator=generator)
        world.contexts = Contexts(
            frames=frames, actions=random_actions(data.action, (contexts, window - 1), generator=generator)
        )
    return world.to(dtype).eval()


def world_that_ends(probability: float, **options: Any) -> WorldModel:
    """A tiny world that terminates with the same probability whatever happens."""
    world = tiny_world(**options)
    nn.init.zeros_(world.termination.out.weight)
    nn.init.constant_(world.termination.out.bias, float(torch.logit(torch.tensor(probability))))
    return world


def random_frames(data: DataSpec, batch: tuple[int, ...], *, generator: torch.Generator) -> Any:
    """Random pixels, standard normal numbers of vectors, or both in parts."""
    if data.parts is not None:
        parts = {name: torch.randn(*batch, size, generator=generator) for name, size in data.parts.sizes.items()}
        pixels = torch.randint(0, 256, (*batch, *data.frame_shape), generator=generator, dtype=torch.uint8)
        return Frames({data.parts.picture: pixels, **parts})
    shape = (*batch, *data.frame_shape)
    if data.is_vector:
        return torch.randn(shape, generator=generator)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def random_actions(spec: ActionSpec, batch: tuple[int, ...], *, generator: torch.Generator) -> torch.Tensor:
    """Raw actions, uniform between the bounds or over the choices."""
    draw = torch.rand(*batch, *spec.shape, generator=generator)
    if spec.is_discrete:
        choices = torch.tensor(spec.choices).reshape(spec.shape)
        return (draw * choices).long() + torch.tensor(spec.first).reshape(spec.shape)
    low, high = (torch.tensor(bound).reshape(spec.shape) for bound in (spec.low, spec.high))
    return (low + draw * (high - low)).to(getattr(torch, spec.dtype))


def random_episode(world: WorldModel, length: int, *, seed: int = 0) -> Episode:
    """Random frames and actions with every kind of reward and one termination."""
    generator = torch.Generator().manual_seed(seed)
    terminated = np.zeros(length, bool)
    terminated[-1] = True
    return Episode(
        frames=random_frames(world.config.data, (length + 1,), generator=generator).numpy(),
        actions=random_actions(world.config.data.action, (length,), generator=generator).numpy(),
        rewards=np.resize(np.array([0.0, 1.0, 0.3, -2.0], np.float32), length),
        terminated=terminated,
        truncated=np.zeros(length, bool),
    )


def some_scores(**given: np.ndarray) -> EpisodeScores:
    """Scores of an episode of which only some are said; the other numbers are zeros."""
    length = len(next(iter(given.values())))
    needed = [f.name for f in fields(EpisodeScores) if f.default is MISSING and f.default_factory is MISSING]
    return EpisodeScores(**{name: np.zeros(length) for name in needed} | given)  # pyright: ignore[reportArgumentType]


def write_dataset(
    path: Path, *, lengths: Sequence[int], size: int = 16, channels: int = 3, action: Action = "box", seed: int = 0
) -> Path:
    """A data set in Minari's layout: a bright square that actions move over a dim background; reward is its row."""
    spec = tiny_spec(size=size, channels=channels, action=action)
    recorder = Recorder(path, observation_space=spec.observation_space, action_space=spec.action_space)
    generator = torch.Generator().manual_seed(seed)
    side = max(2, size // 4)
    for number, length in enumerate(lengths):
        actions = random_actions(spec.action, (length,), generator=generator)
        place = torch.randint(0, size - side + 1, (2,), generator=generator)
        frames, rewards = torch.full((length + 1, size, size, channels), 40, dtype=torch.uint8), torch.zeros(length)
        for t in range(length + 1):
            row, column = place.tolist()
            frames[t, row : row + side, column : column + side] = 200 + number % 50
            if t > 0:
                rewards[t - 1] = row / size
            if t < length:
                numbers = actions[t].float().reshape(-1)
                move = torch.stack((numbers[0], numbers[-1])).mul(side).round().long()
                place = (place + move).clamp(0, size - side)
        recorder.add(
            Episode(
                frames=frames.numpy(),
                actions=actions.numpy(),
                rewards=rewards.numpy(),
                terminated=(torch.arange(length) == length - 1).numpy() & (number % 2 == 0),
                truncated=(torch.arange(length) == length - 1).numpy() & (number % 2 == 1),
            ),
            seed=number,
        )
    recorder.finish()
    return path


def write_vectors(path: Path, *, lengths: Sequence[int], seed: int = 0) -> Path:
    """A data set of vectors: a mass on a line, pushed by the first action, and a number that never changes.

    The vector is `(place, speed, 3)`, `speed' = 0.9 speed + 0.1 push`, `place' = place + speed'`; reward is the speed.
    """
    spec = tiny_spec(numbers=3)
    recorder = Recorder(path, observation_space=spec.observation_space, action_space=spec.action_space)
    generator = torch.Generator().manual_seed(seed)
    for number, length in enumerate(lengths):
        actions = random_actions(spec.action, (length,), generator=generator)
        place, speed = torch.randn(2, generator=generator).tolist()
        rows = [(place, speed, 3.0)]
        for t in range(length):
            speed = 0.9 * speed + 0.1 * float(actions[t, 0])
            place = place + speed
            rows.append((place, speed, 3.0))
        frames, is_last = np.array(rows), np.arange(length) == length - 1
        episode = Episode(
            frames=frames,
            actions=actions.numpy(),
            rewards=frames[1:, 1],
            terminated=np.zeros(length, bool),
            truncated=is_last,
        )
        recorder.add(episode, seed=number)
    recorder.finish()
    return path


class DotEnv(gym.Env[Any, np.ndarray]):
    """A dot in a box of `size` pixels, seen, and its place and speed told: a push changes its speed.

    `speed' = 0.8 speed + 0.2 push`, `place' = place + speed'`, held inside [-1, 1]; reward is how near it is to the
    middle. The vector `motion` is `(place, speed)`, four numbers of float64; `clock` is the step, one of float32.
    """

    def __init__(self, size: int = 16) -> None:
        self.size = size
        self.observation_space = spaces.Dict(
            {
                "pixels": spaces.Box(0, 255, (size, size, 3), np.uint8),
                "motion": spaces.Box(-1, 1, (4,), np.float64),
                "clock": spaces.Box(0, 1000, (1,), np.float32),
            }
        )
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.speed, self.steps = self.np_random.uniform(-0.5, 0.5, 2), np.zeros(2), 0
        return self._observed(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.speed = 0.8 * self.speed + 0.2 * np.asarray(action, np.float64)
        self.place = np.clip(self.place + self.speed, -1, 1)
        self.steps += 1
        return self._observed(), -float(np.abs(self.place).sum()), False, False, {}

    def _observed(self) -> dict[str, np.ndarray]:
        pixels = np.full((self.size, self.size, 3), 40, np.uint8)
        row, column = ((self.place + 1) / 2 * (self.size - 4)).round().astype(int)
        pixels[row : row + 4, column : column + 4] = (250, 120, 60)
        motion = np.concatenate((self.place, np.clip(self.speed, -1, 1)))
        return {"pixels": pixels, "motion": motion, "clock": np.array([self.steps], np.float32)}


def moving_pictures(page: str) -> int:
    """How many pictures of a page move."""
    found = re.findall(r"data:image/(?:gif|webp);base64,([^\"]*)", page)
    return sum(getattr(Image.open(io.BytesIO(base64.b64decode(data))), "n_frames", 1) > 1 for data in found)
