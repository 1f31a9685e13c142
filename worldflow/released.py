"""Read the released checkpoints of TARFlow, STARFlow and STARFlow-V into this package's own modules.

    model = read_released("starflow-v.pth", kind="starflow-v")
    z, log_prob = model.flow(x, text=text)
    x = model.flow.inverse(z, text=text, text_uncond=nothing, guidance=1.5)
    x = model.denoiser.denoise(x, text=text)

The files are plain state dicts. Sizes follow from the tensors' shapes, what does not follow from them has the released
models' value unless it is named. Weights are taken over one tensor at a time, out of the mapped file, and never held
twice; they keep the type they are stored in unless `dtype` asks for another.

Frames are `(batch, time, channel, row, column)` here and images `(batch, channel, row, column)`, the reference's own
layouts. Released weights are licensed for non-commercial research only: see the notice that reading one prints.

References:
    Zhai et al., 2024, TARFlow, arXiv 2412.06329.
    Gu et al., 2025, STARFlow, arXiv 2506.06276.
    Gu et al., 2025, STARFlow-V, arXiv 2511.20462.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from worldflow.denoiser import Denoiser, DenoiserConfig
from worldflow.flow import VideoFlow
from worldflow.flow_config import FlowConfig
from worldflow.hints import did_you_mean
from worldflow.released_layout import Kind, ReleasedDenoiser, ReleasedFlow
from worldflow.state_dicts import count, opened, shape
from worldflow.tarflow import TarFlow, TarFlowConfig

__all__ = ["ReleasedConfig", "ReleasedDenoiser", "ReleasedFlow", "ReleasedModel", "read_released"]

NOTICE = (
    "worldflow: released weights of TARFlow, STARFlow and STARFlow-V are licensed by Apple for non-commercial research "
    "only; see the license beside the file. This notice is printed once."
)
DEAD = re.compile(r"(blocks\.\d+\.attn_mask|feat_rope\.freqs_(cos|sin)|var)$")
"""Keys that the reference saves and never reads as weights."""
INSIDE = {
    "attention.norm": "attention_norm",
    "attention.qkv": "qkv",
    "attention.proj": "attention_out",
    "mlp.norm": "mlp_norm",
    "mlp.main.0": "mlp_in",
    "mlp.main.2": "mlp_out",
}
"""A transformer block's parts: the reference's name and ours."""
_noticed = False


@dataclass(frozen=True, kw_only=True)
class ReleasedConfig:
    """What does not follow from the tensors; the defaults are those of the released models."""

    patch_size: int = 1
    """Latent cells (pixels, for TARFlow) on a side of a token."""
    head_dim: int = 64
    """Channels of one attention head."""
    soft_clip: float | None = 4.0
    """Bound of the affine parameters; TARFlow has none."""
    pt_seq_len: int | None = None
    """Side of the grid that positions are measured on; None infers it from `var`."""
    txt_size: int | None = None
    """Words of a text, padding included; None infers it from `attn_mask` and `pt_seq_len`."""
    noise_std: float = 0.3
    """Standard deviation of the noise that the flow was trained with, and the denoiser's step."""
    window: int = 21
    """Frames in view of the deep block."""
    denoiser_window: int = 10
    """Frames before the latest one in view of the denoiser."""
    denoiser_lookahead: int = 1
    """Later frames in view of the denoiser."""

    def __post_init__(self) -> None:
        for name in ("patch_size", "head_dim", "noise_std", "window"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ReleasedModel:
    """A released model, ready to score, sample and denoise.

    Args:
        flow: The flow.
        denoiser: The flow-score matching denoiser, where the checkpoint has one.
        config: What was given or inferred.
    """

    flow: ReleasedFlow
    denoiser: ReleasedDenoiser | None
    config: ReleasedConfig


def read_released(
    source: Mapping[str, Tensor] | str | os.PathLike[str],
    *,
    kind: Kind,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    **config: Any,
) -> ReleasedModel:
    """Read a released checkpoint.

    Args:
        source: A state dict, or the file that holds one: `.safetensors`, or anything that `torch.load` reads.
        kind: Which system it belongs to.
        dtype: Type to hold the weights in; by default the one they are stored in.
        device: Where to put them.
        config: Fields of `ReleasedConfig`, where the checkpoint is not as the released ones are.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, the tensors do not belong to this kind, or an option is unknown.
    """
    if kind not in get_args(Kind):
        raise ValueError(
            f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}{did_you_mean(kind, get_args(Kind))}"
        )
    names = [f.name for f in fields(ReleasedConfig)]
    for name in config:
        if name not in names:
            raise ValueError(f"unknown option {name!r}{did_you_mean(name, names)}")
    with opened(source) as tensors:
        model, wanted = _built(ReleasedConfig(**config), kind, tensors)
        _refuse(wanted, tensors)
        _fill(model, wanted, tensors, dtype=dtype, device=device)
    _notice()
    return model


def _notice() -> None:
    global _noticed  # once a process is what it says
    if not _noticed:
        _noticed = True
        print(NOTICE, file=sys.stderr)


def _built(config: ReleasedConfig, kind: Kind, tensors: Mapping[str, Tensor]) -> tuple[ReleasedModel, dict[str, str]]:
    """The empty model, and for each of its tensors the place: reference's name -> ours."""
    blocks = count(tensors, r"blocks\.(\d+)\.")
    if not blocks:
        raise ValueError(
            f"the checkpoint has no tensor blocks.0.*, so it is no {kind}; its first names are {sorted(tensors)[:3]}"
        )
    layers = tuple(count(tensors, rf"blocks\.{i}\.attn_blocks\.(\d+)\.") for i in range(blocks))
    width, dim = shape(tensors, "blocks.0.proj_in.weight")
    head = config.head_dim
    if kind == "tarflow":
        return _tarflow(config, tensors, layers)

    last = blocks - 1
    side = config.pt_seq_len or _root(shape(tensors, "var")[0], "var")
    words = 0
    reads_text = f"blocks.{last}.proj_txt.weight" in tensors
    if reads_text:
        words = config.txt_size
        if words is None:
            words = shape(tensors, f"blocks.{last}.attn_mask")[0] - side**2
    config = replace(config, pt_seq_len=side, txt_size=words)
    flow_config = FlowConfig(
        latent_dim=dim,
        grid=(side, side),
        shallow_layers=layers[:-1],
        shallow_width=width,
        deep_layers=layers[-1],
        deep_width=shape(tensors, f"blocks.{last}.proj_in.weight")[0],
        draft_layers=0,
        head_dim=head,
        window=config.window if kind == "starflow-v" else 1,
        soft_clip=config.soft_clip,
        text_dim=shape(tensors, f"blocks.{last}.proj_txt.weight")[1] if reads_text else 0,
        position_base=side,
        has_time_axis=kind == "starflow-v" or reads_text,
    )
    with torch.device("meta"):
        net = VideoFlow(flow_config)
    wanted: dict[str, str] = {}
    for i, depth in enumerate(layers):
        theirs, ours = f"blocks.{i}", "flow.net.deep" if i == last else f"flow.net.shallow.{i}"
        inner = f"{ours}.frames.transformer" if i == last else f"{ours}.transformer"
        wanted |= _network(theirs, ours, inner, depth)
        wanted[f"{theirs}.sos_embed"] = f"{ours}.start"
        wanted[f"{theirs}.final_norm.weight"] = f"{inner}.final_norm.weight"
    if reads_text:
        wanted |= _linear(f"blocks.{last}.proj_txt", "flow.net.deep.frames.text_in")
    flow = ReleasedFlow(net, kind=kind, patch_size=config.patch_size)

    denoiser = None
    name = "learnable_self_denoiser"
    depth = count(tensors, rf"{name}\.attn_blocks\.(\d+)\.")
    if depth:
        reads = f"{name}.proj_txt.weight" in tensors
        denoiser_config = DenoiserConfig(
            latent_dim=dim,
            grid=(side, side),
            width=shape(tensors, f"{name}.proj_in.weight")[0],
            layers=depth,
            window=config.denoiser_window,
            lookahead=config.denoiser_lookahead,
            head_dim=head,
            text_dim=shape(tensors, f"{name}.proj_txt.weight")[1] if reads else 0,
            position_base=side,
            step=config.noise_std,
        )
        with torch.device("meta"):
            denoiser = ReleasedDenoiser(
                Denoiser(denoiser_config), patch_size=config.patch_size, is_video=kind == "starflow-v"
            )
        wanted |= _network(name, "denoiser.net", "denoiser.net.transformer", depth)
        wanted[f"{name}.final_norm.weight"] = "denoiser.net.transformer.final_norm.weight"
        if reads:
            wanted |= _linear(f"{name}.proj_txt", "denoiser.net.text_in")
    return ReleasedModel(flow=flow, denoiser=denoiser, config=config), wanted


def _tarflow(
    config: ReleasedConfig, tensors: Mapping[str, Tensor], layers: tuple[int, ...]
) -> tuple[ReleasedModel, dict[str, str]]:
    tokens, width = shape(tensors, "blocks.0.pos_embed")
    side = config.pt_seq_len or _root(tokens, "pos_embed")
    classes = shape(tensors, "blocks.0.class_embed")[0] if "blocks.0.class_embed" in tensors else 0
    dim = shape(tensors, "blocks.0.proj_in.weight")[1]
    config = replace(config, pt_seq_len=side, txt_size=0, soft_clip=None)
    with torch.device("meta"):
        net = TarFlow(
            TarFlowConfig(
                latent_dim=dim,
                grid=(side, tokens // side),
                layers=layers,
                width=width,
                head_dim=config.head_dim,
                num_classes=classes,
            )
        )
    wanted: dict[str, str] = {}
    for i, depth in enumerate(layers):
        theirs, ours = f"blocks.{i}", f"flow.net.blocks.{i}"
        wanted |= _network(theirs, ours, f"{ours}.transformer", depth)
        wanted[f"{theirs}.pos_embed"] = f"{ours}.token_positions"
        if classes:
            wanted[f"{theirs}.class_embed"] = f"{ours}.classes"
    flow = ReleasedFlow(net, kind="tarflow", patch_size=config.patch_size)
    return ReleasedModel(flow=flow, denoiser=None, config=config), wanted


def _root(number: int, name: str) -> int:
    side = math.isqrt(number)
    if side**2 != number:
        raise ValueError(f"{name} has {number} rows, which is no square: name the grid's side with pt_seq_len")
    return side


def _network(theirs: str, ours: str, transformer: str, depth: int) -> dict[str, str]:
    """What every network has: a projection at both ends, and between them its layers."""
    pairs = {f"{theirs}.{end}": f"{ours}.{end}" for end in ("proj_in", "proj_out")}
    for j in range(depth):
        pairs |= {
            f"{theirs}.attn_blocks.{j}.{part}": f"{transformer}.blocks.{j}.{name}" for part, name in INSIDE.items()
        }
    return {name: place for pair in pairs.items() for name, place in _linear(*pair).items()}


def _linear(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{end}": f"{ours}.{end}" for end in ("weight", "bias")}


def _refuse(wanted: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    missing = sorted(set(wanted) - set(tensors))
    unknown = sorted(name for name in tensors if name not in wanted and not DEAD.fullmatch(name))
    if missing or unknown:
        parts = [
            f"{what} {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
            for what, names in (("it lacks", missing), ("it has the unknown", unknown))
            if names
        ]
        raise ValueError(f"the checkpoint does not fit its kind: {'; '.join(parts)}")


def _fill(
    model: ReleasedModel,
    wanted: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> None:
    """Put each tensor in its place, one after the other."""
    modules = nn.ModuleDict({"flow": model.flow})
    if model.denoiser is not None:
        modules["denoiser"] = model.denoiser
    modules.eval()
    for theirs, ours in wanted.items():
        owner, _, name = ours.rpartition(".")
        place = modules.get_submodule(owner)
        empty = getattr(place, name)
        tensor = tensors[theirs]
        if tensor.numel() != empty.numel() or tensor.squeeze().shape != empty.squeeze().shape:
            raise ValueError(f"{theirs} must have shape {tuple(empty.shape)}, got {tuple(tensor.shape)}")
        tensor = tensor.reshape(empty.shape).to(device=device, dtype=dtype)
        setattr(place, name, nn.Parameter(tensor, requires_grad=False))
