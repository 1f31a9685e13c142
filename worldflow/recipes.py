"""Recipes: how a world is sized and trained. A recipe is a function that returns a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from worldflow.codec import CodecConfig
from worldflow.denoiser import DenoiserConfig
from worldflow.flow import FlowConfig
from worldflow.heads import RewardSupport
from worldflow.hints import did_you_mean
from worldflow.symmetry import Symmetry
from worldflow.types import DataSpec
from worldflow.world import TextSpec, WorldConfig

__all__ = ["Preset", "TrainConfig", "completed", "world_config"]

Preset = Literal["tiny", "base", "large"]


@dataclass(frozen=True, kw_only=True)
class _Size:
    """What a preset stands for.

    Args:
        layers, width: Of the deep block.
        draft_layers: Of the drafter, which is as wide.
        window: Frames in view.
        text_layers, text_width: Of the shallow blocks where there is text: first frames follow from nothing but it, and
            a flow that draws them needs more than one map of each token.
        latent_dim: Channels of a quarter of a token.
        codec_width, codec_blocks: Of the codec.
        vectors: What is different for vectors. They say most of what follows: a short past is enough, and drafts of it
            do most of the work.
    """

    layers: int
    width: int
    draft_layers: int
    window: int
    text_layers: tuple[int, ...]
    text_width: int = 128
    latent_dim: int = 16
    codec_width: int
    codec_blocks: int = 2
    vectors: Mapping[str, int]


_SIZES: Mapping[Preset, _Size] = {
    "tiny": _Size(
        layers=2,
        width=128,
        draft_layers=2,
        window=6,
        text_layers=(1, 1, 1),
        codec_width=96,
        vectors={"window": 2, "deep_layers": 1},
    ),
    "base": _Size(
        layers=2,
        width=192,
        draft_layers=3,
        window=8,
        text_layers=(2, 2, 2),
        codec_width=128,
        vectors={"window": 4},
    ),
    "large": _Size(
        layers=6,
        width=512,
        draft_layers=6,
        window=8,
        text_layers=(2, 2, 2),
        text_width=512,
        latent_dim=32,
        codec_width=256,
        codec_blocks=4,
        vectors={"window": 8},
    ),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train a world; also the options of `worldflow train`."""

    preset: Preset = "base"
    """Size of the model: tiny for minutes on a laptop, base for an hour on a CPU or minutes on a GPU, large for GPU."""
    codec: Literal["latent", "patch"] = "latent"
    """Model a learned code of the frames, or the pixels themselves; vectors are standardized instead."""
    noise_std: float | None = None
    """Standard deviation of the codes' noise; 0.05 unless given, 0.2 with text, 0.01 of vectors."""
    symmetry: Symmetry = "none"
    """Which recordings count as recordings of the same world too: mirror, those seen in a mirror; square, those turned
    by quarter turns as well. Where it is true, it is worth up to eight times the data."""
    joint: bool = False
    """Train codec and flow as one, end to end, instead of one after the other (`worldflow.joint`)."""
    codec_from: str | None = None
    """Take over the codec of another run, or of a world that ships, instead of training one."""
    text: str | None = None
    """A text encoder, a folder or a name on the hub, to condition on the episodes' captions with; None ignores them."""
    text_words: int = 16
    """Tokens of a text, padding included."""
    codec_steps: int = 4000
    """Steps of the codec's training (not used for pixels)."""
    steps: int = 20000
    """Steps of the flow's training."""
    minutes: float | None = None
    """Train for this long instead of a number of steps; codec and flow share it."""
    codec_share: float = 0.25
    """Share of `minutes` that the codec gets."""
    codec_batch: int = 64
    """Frames of a step of the codec."""
    batch: int | None = None
    """Clips of a step of the flow; 16 unless given, 32 of vectors. Each process that torchrun starts takes as many."""
    window: int | None = None
    """Frames in view of attention, the current one included; the preset's unless given. Worlds are started from one
    frame less: the more, the better speeds are known."""
    length: int | None = None
    """Transitions of a clip; twice the attention window unless given, so that caches are trained as they are used, and
    at least 8."""
    codec_frames: int = 50_000
    """Frames kept in memory to train the codec, a random sample where the data set has more."""
    codec_smoothness: float = 0.1
    """Weight of the codes' squared second difference in time beside the reconstruction error."""
    codec_learning_rate: float = 2e-3
    """Peak learning rate of the codec."""
    learning_rate: float = 1e-3
    """Peak learning rate of the flow."""
    weight_decay: float = 0.01
    """AdamW's weight decay, on matrices only."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm; a step whose norm is over ten times this and what is usual is skipped."""
    action_dropout: float = 0.1
    """Share of clips that hide their actions, so that the model also knows `p(x | past)`."""
    text_dropout: float = 0.1
    """Share of clips that get the empty text in place of their own, for guidance."""
    denoiser_layers: int = 0
    """Transformer layers of a denoiser that learns the flow's score, for clean videos; 0 for none."""
    denoiser_lookahead: int = 1
    """Later frames that the denoiser sees in each layer; 0 for streaming."""
    draft_weight: float = 1.0
    """Weight of the drafter's squared error beside the likelihood."""
    head_weight: float = 0.1
    """Weight of the reward's and termination's log-likelihood beside the frames' (which is per dimension)."""
    eval_every: float = 2.0
    """Minutes between looks at held-out episodes."""
    eval_clips: int = 32
    """Held-out clips that are scored at each look."""
    save_every: float = 5.0
    """Minutes between checkpoints."""
    contexts: int = 32
    """Recorded pasts that are stored with the weights, to start from."""
    seed: int = 0
    """Seed of the weights, the batches and the noise."""
    device: str = "auto"
    """Where to train; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        kinds = {"preset": get_args(Preset), "codec": ("latent", "patch"), "symmetry": get_args(Symmetry)}
        for name, choices in kinds.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in (
            "codec_steps",
            "steps",
            "codec_batch",
            "batch",
            "window",
            "length",
            "codec_frames",
            "eval_clips",
            "contexts",
            "text_words",
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("minutes", "noise_std"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("denoiser_layers", "denoiser_lookahead"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("action_dropout", "text_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.joint and self.codec != "latent":
            raise ValueError("pixels as they are have no codec to train: leave out joint, or use codec 'latent'")
        if self.joint and self.codec_from is not None:
            raise ValueError("a codec that is taken over is not trained: leave out joint or codec_from")
        if not 0 < self.codec_share < 1:
            raise ValueError(f"codec_share must be in (0, 1), got {self.codec_share}")

    def check(self, data: DataSpec) -> None:
        """Refuse what is of no use for a data set.

        Raises:
            ValueError: If the options ask for what its frames do not have.
        """
        if data.parts is not None:
            for name, default in (("symmetry", "none"), ("joint", False), ("denoiser_layers", 0)):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name} is about pictures alone, but vectors are observed beside them: "
                        f"{', '.join(data.parts.vectors)}; leave {name} out"
                    )
        elif data.is_vector:
            for name, default in (("codec", "latent"), ("symmetry", "none"), ("joint", False)):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name} is about pictures, but the observations are vectors of {data.frame_shape[0]} numbers; "
                        f"leave {name} out"
                    )
        elif self.symmetry == "square" and data.frame_shape[0] != data.frame_shape[1]:
            rows, columns, _ = data.frame_shape
            raise ValueError(f"quarter turns are of square frames, these have {rows} x {columns} pixels; use 'mirror'")


def completed(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A training's options as they were recorded; those that came later were what they are by default."""
    return asdict(TrainConfig()) | dict(recorded)


def world_config(
    train: TrainConfig,
    data: DataSpec,
    reward: RewardSupport,
    text: TextSpec | None = None,
    *,
    sizes: Mapping[str, Any] | None = None,
) -> WorldConfig:
    """Sizes of a world for a data set, and for the texts that it reads; `sizes` are the flow's own, by their names.

    Raises:
        ValueError: If the flow has no such size, or it cannot have this value.
    """
    names = [f.name for f in fields(FlowConfig)]
    for name in sizes or {}:
        if name not in names:
            raise ValueError(f"a flow has no size {name!r}{did_you_mean(name, names)}")
    config = _preset_config(train, data, reward, text)
    changed = {"window": train.window or config.flow.window, **(sizes or {})}
    flow = replace(config.flow, **changed)
    denoiser = None if config.denoiser is None else replace(config.denoiser, window=flow.window)
    return replace(config, flow=flow, denoiser=denoiser)


def _preset_config(train: TrainConfig, data: DataSpec, reward: RewardSupport, text: TextSpec | None) -> WorldConfig:
    size = _SIZES[train.preset]
    sizes: dict[str, Any] = {
        "shallow_layers": (),
        "deep_layers": size.layers,
        "deep_width": size.width,
        "draft_layers": size.draft_layers,
        "draft_width": size.width,
        "window": size.window,
    }
    if text is not None:
        sizes |= {"shallow_layers": size.text_layers, "shallow_width": size.text_width}
    if data.is_vector:
        return _vector_config(train, data, reward, text, sizes)
    # A step of the flow costs by the token: few tokens with many channels see four times as many frames in the same
    # time, and each of them is drawn in fewer sweeps.
    is_patch = train.codec == "patch"
    smallest = min(data.frame_shape[:2])
    has_large_cells = not is_patch and text is None and smallest >= 64
    codec = CodecConfig(
        kind=train.codec,
        frame_shape=data.frame_shape,
        patch_size=32 if has_large_cells else 8 if text is not None and smallest < 64 else 16,
        pieces=4 if has_large_cells else 2,
        latent_dim=size.latent_dim * (4 if has_large_cells else 1),
        width=size.codec_width,
        blocks=size.codec_blocks,
        noise_std=train.noise_std or (0.05 if text is None else 0.2),
        parts=data.parts,
    )
    flow = FlowConfig(
        latent_dim=codec.token_dim,
        grid=codec.grid,
        vector_dim=codec.vector_dim,
        action_dim=data.action.feature_dim,
        draft_mixing=codec.grid[0] * codec.grid[1] <= 4 and codec.num_tokens <= 6,
        has_shown=not is_patch and not sizes["shallow_layers"],  # drafts and codes share one space then
        memory=64,
        text_dim=0 if text is None else text.dim,
        **sizes,
    )
    return WorldConfig(
        data=data, codec=codec, flow=flow, reward=reward, text=text, denoiser=_denoiser(train, codec, flow)
    )


def _vector_config(
    train: TrainConfig, data: DataSpec, reward: RewardSupport, text: TextSpec | None, sizes: Mapping[str, Any]
) -> WorldConfig:
    """One token of all numbers of a vector: shallow blocks, which mix the tokens of a frame, would have none to mix."""
    codec = CodecConfig(
        kind="vector",
        frame_shape=data.frame_shape,
        latent_dim=data.frame_shape[0],
        noise_std=train.noise_std or 0.01,
    )
    flow = FlowConfig(
        latent_dim=codec.token_dim,
        grid=codec.grid,
        action_dim=data.action.feature_dim,
        has_shown=True,
        soft_clip=8.0,  # sigma may be as small as 0.0006: the noise is
        text_dim=0 if text is None else text.dim,
        **{**sizes, "shallow_layers": (), **_SIZES[train.preset].vectors},
    )
    return WorldConfig(
        data=data, codec=codec, flow=flow, reward=reward, text=text, denoiser=_denoiser(train, codec, flow)
    )


def _denoiser(train: TrainConfig, codec: CodecConfig, flow: FlowConfig) -> DenoiserConfig | None:
    if not train.denoiser_layers:
        return None
    return DenoiserConfig(
        latent_dim=codec.token_dim,
        grid=codec.grid,
        width=flow.deep_width,
        layers=train.denoiser_layers,
        window=flow.window,
        lookahead=train.denoiser_lookahead,
        head_dim=flow.head_dim,
        text_dim=flow.text_dim,
        step=codec.noise_std,
    )
