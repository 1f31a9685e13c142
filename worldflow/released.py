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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal, get_args
from zipfile import BadZipFile

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from worldflow.denoiser import Denoiser, DenoiserConfig
from worldflow.flow import VideoFlow
from worldflow.flow_config import FlowConfig
from worldflow.hints import did_you_mean
from worldflow.jacobi import Method
from worldflow.tarflow import TarFlow, TarFlowConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

__all__ = ["ReleasedConfig", "ReleasedDenoiser", "ReleasedFlow", "ReleasedModel", "read_released"]

Kind = Literal["starflow-v", "starflow", "tarflow"]
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


class ReleasedFlow(nn.Module):
    """A flow in the reference's layouts.

    Args:
        net: The flow of tokens.
        kind: Which model it is.
        patch_size: Cells on a side of a token.
    """

    def __init__(self, net: VideoFlow | TarFlow, *, kind: Kind, patch_size: int) -> None:
        super().__init__()
        self.net, self.kind, self.patch_size = net, kind, patch_size

    def forward(
        self,
        x: Float[Tensor, "batch ..."],
        *,
        text: Float[Tensor, "batch word text"] | None = None,
        label: Int64[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, "batch ..."]]:
        """`z`, and `log p(x | text, label)` in nats: of every frame, `(batch, time)`, or of every image, `(batch,)`.

        Args:
            x: Frames or images. `z` has their layout; TARFlow's is a sequence of tokens, `(batch, token, channel)`.
            text: Embedded text, for a model that reads one.
            label: Classes, for a TARFlow that has some.

        Raises:
            ValueError: If shapes or conditions do not fit the model.
        """
        if isinstance(self.net, TarFlow):
            if text is not None:
                raise ValueError("TARFlow reads no text; give label")
            out = self.net(self._patches(x), label=label)
            return out.z, out.log_prob
        self._no_label(label)
        frames, grid = self._tokens(x)
        out = self.net.on_grid(grid)(frames, text=text)
        z = self._cells(out.z, grid)
        return z, out.log_prob if self.kind == "starflow-v" else out.log_prob[:, 0]

    def inverse(
        self,
        z: Float[Tensor, "batch ..."],
        *,
        text: Float[Tensor, "batch word text"] | None = None,
        text_uncond: Float[Tensor, "batch word text"] | None = None,
        label: Int64[Tensor, " batch"] | None = None,
        guidance: float = 0.0,
        context: Float[Tensor, "batch past channel row column"] | None = None,
        method: Method = "sequential",
        tolerance: float = 1e-5,
    ) -> Float[Tensor, "batch ..."]:
        """What `forward` maps to `z`; with guidance, what the condition makes more likely.

        Args:
            z: Noise, in the layout that `forward` returns.
            text: As in `forward`.
            text_uncond: Embedding of no text, needed for guidance by text.
            label: As in `forward`.
            guidance: Its weight; 0 samples as the flow is.
            context: First frames, given: noise in their place is not read.
            method: How to invert the blocks.
            tolerance: How closely.

        Raises:
            ValueError: If shapes or conditions do not fit the model.
        """
        if isinstance(self.net, TarFlow):
            if text is not None or context is not None:
                raise ValueError("TARFlow reads neither text nor context; give label")
            x = self.net.inverse(z, label=label, guidance=guidance, method=method, tolerance=tolerance)
            p, rows = self.patch_size, self.net.config.grid[0]
            return rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=p, q=p)
        self._no_label(label)
        noise, grid = self._tokens(z)
        given = None if context is None else self._tokens(context)[0]
        x = self.net.on_grid(grid).inverse(
            noise,
            text=text,
            text_without=text_uncond,
            guidance=guidance,
            context=given,
            method=method,
            tolerance=tolerance,
        )
        return self._cells(x, grid)

    def _no_label(self, label: Tensor | None) -> None:
        if label is not None:
            raise ValueError(f"{self.kind} has no classes; give text")

    def _patches(self, x: Tensor) -> Tensor:
        assert isinstance(self.net, TarFlow)
        p, (rows, columns) = self.patch_size, self.net.config.grid
        expected = (self.net.config.latent_dim // p**2, rows * p, columns * p)
        if x.dim() != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(f"images must have shape (batch, {', '.join(map(str, expected))}), got {tuple(x.shape)}")
        return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)

    def _tokens(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        assert isinstance(self.net, VideoFlow)
        return _to_tokens(x, self.patch_size, self.net.config.latent_dim, is_video=self.kind == "starflow-v")

    def _cells(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        cells = _to_cells(tokens, self.patch_size, grid)
        return cells if self.kind == "starflow-v" else cells[:, 0]


class ReleasedDenoiser(nn.Module):
    """A denoiser in the reference's layout.

    Args:
        net: The denoiser of tokens.
        patch_size: Cells on a side of a token.
        is_video: Whether there is a time axis.
    """

    def __init__(self, net: Denoiser, *, patch_size: int, is_video: bool) -> None:
        super().__init__()
        self.net, self.patch_size, self.is_video = net, patch_size, is_video

    def forward(
        self, x: Float[Tensor, "batch ..."], *, text: Float[Tensor, "batch word text"] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """The learned score `s(x~)`; `x - noise_std * s` is the sample without its noise, see `denoise`.

        Raises:
            ValueError: If shapes or conditions do not fit the model.
        """
        tokens, grid = _to_tokens(x, self.patch_size, self.net.config.latent_dim, is_video=self.is_video)
        cells = _to_cells(self.net.on_grid(grid)(tokens, text=text), self.patch_size, grid)
        return cells if self.is_video else cells[:, 0]

    def denoise(
        self, x: Float[Tensor, "batch ..."], *, text: Float[Tensor, "batch word text"] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Frames without their noise, in their own layout; as `forward`."""
        return x - self.net.config.step * self(x, text=text)


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
    with _opened(source) as tensors:
        model, wanted = _built(ReleasedConfig(**config), kind, tensors)
        modules: list[nn.Module] = [model.flow]
        if model.denoiser is not None:
            modules.append(model.denoiser)
        _refuse(wanted, tensors)
        _fill(model, wanted, tensors, dtype=dtype, device=device)
    for module in modules:
        module.requires_grad_(False).eval()
    _notice()
    return model


def _notice() -> None:
    global _noticed  # once a process is what it says
    if not _noticed:
        _noticed = True
        print(NOTICE, file=sys.stderr)


class _Lazy(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._names = list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, from the header alone."""
        return tuple(self._file.get_slice(name).get_shape())


@contextmanager
def _opened(source: Mapping[str, Tensor] | str | os.PathLike[str]) -> Iterator[Mapping[str, Tensor]]:
    if isinstance(source, Mapping):
        yield source
        return
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; name the file that was downloaded")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                yield _Lazy(file)
        except SafetensorError as error:
            raise ValueError(f"cannot read {path}: {error}; it is damaged, fetch it again") from error
        return
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, UnpicklingError, BadZipFile, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"cannot read {path} as tensors ({reason}); it must be a state dict as `torch.save` writes it, and whole"
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} must hold a plain state dict, names to tensors; take that part out and save it")
    yield found


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"the checkpoint has no {name!r}, which every model of this kind has; check kind and file")
    return tensors.shape(name) if isinstance(tensors, _Lazy) else tuple(tensors[name].shape)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers stand at the place of the group in `pattern`."""
    return len({found[1] for name in tensors if (found := re.match(pattern, name))})


def _built(
    config: ReleasedConfig, kind: Kind, tensors: Mapping[str, Tensor]
) -> tuple[ReleasedModel, dict[str, tuple[str, str]]]:
    """The empty model, and for each of its tensors the place: reference's name -> (module, our name)."""
    blocks = _count(tensors, r"blocks\.(\d+)\.")
    if not blocks:
        raise ValueError(
            f"the checkpoint has no tensor blocks.0.*, so it is no {kind}; its first names are {sorted(tensors)[:3]}"
        )
    layers = tuple(_count(tensors, rf"blocks\.{i}\.attn_blocks\.(\d+)\.") for i in range(blocks))
    width, dim = _shape(tensors, "blocks.0.proj_in.weight")
    head = config.head_dim
    if kind == "tarflow":
        return _tarflow(config, tensors, layers)

    last = blocks - 1
    side = config.pt_seq_len or _root(_shape(tensors, "var")[0], "var")
    words = 0
    reads_text = f"blocks.{last}.proj_txt.weight" in tensors
    if reads_text:
        words = config.txt_size
        if words is None:
            words = _shape(tensors, f"blocks.{last}.attn_mask")[0] - side**2
    config = ReleasedConfig(**{**vars(config), "pt_seq_len": side, "txt_size": words})
    flow_config = FlowConfig(
        latent_dim=dim,
        grid=(side, side),
        shallow_layers=layers[:-1],
        shallow_width=width,
        deep_layers=layers[-1],
        deep_width=_shape(tensors, f"blocks.{last}.proj_in.weight")[0],
        draft_layers=0,
        head_dim=head,
        window=config.window if kind == "starflow-v" else 1,
        soft_clip=config.soft_clip,
        text_dim=_shape(tensors, f"blocks.{last}.proj_txt.weight")[1] if reads_text else 0,
        position_base=side,
        has_time_axis=kind == "starflow-v" or reads_text,
    )
    with torch.device("meta"):
        net = VideoFlow(flow_config)
    wanted: dict[str, tuple[str, str]] = {}
    for i, depth in enumerate(layers):
        theirs, ours = f"blocks.{i}", "net.deep" if i == last else f"net.shallow.{i}"
        inner = f"{ours}.frames" if i == last else ours
        wanted |= {f"{theirs}.{name}": ("flow", f"{ours}.{name}") for name in _ends("proj_in", "proj_out")}
        wanted[f"{theirs}.sos_embed"] = ("flow", f"{ours}.start")
        wanted[f"{theirs}.final_norm.weight"] = ("flow", f"{inner}.transformer.final_norm.weight")
        wanted |= _layers(theirs, "flow", f"{inner}.transformer", depth)
    if reads_text:
        wanted |= {
            f"blocks.{last}.proj_txt.{end}": ("flow", f"net.deep.frames.text_in.{end}") for end in ("weight", "bias")
        }
    flow = ReleasedFlow(net, kind=kind, patch_size=config.patch_size)

    denoiser = None
    name = "learnable_self_denoiser"
    depth = _count(tensors, rf"{name}\.attn_blocks\.(\d+)\.")
    if depth:
        reads = f"{name}.proj_txt.weight" in tensors
        denoiser_config = DenoiserConfig(
            latent_dim=dim,
            grid=(side, side),
            width=_shape(tensors, f"{name}.proj_in.weight")[0],
            layers=depth,
            window=config.denoiser_window,
            lookahead=config.denoiser_lookahead,
            head_dim=head,
            text_dim=_shape(tensors, f"{name}.proj_txt.weight")[1] if reads else 0,
            position_base=side,
            step=config.noise_std,
        )
        with torch.device("meta"):
            denoiser = ReleasedDenoiser(
                Denoiser(denoiser_config), patch_size=config.patch_size, is_video=kind == "starflow-v"
            )
        wanted |= {f"{name}.{end}": ("denoiser", f"net.{end}") for end in _ends("proj_in", "proj_out")}
        wanted[f"{name}.final_norm.weight"] = ("denoiser", "net.transformer.final_norm.weight")
        wanted |= _layers(name, "denoiser", "net.transformer", depth)
        if reads:
            wanted |= {f"{name}.proj_txt.{end}": ("denoiser", f"net.text_in.{end}") for end in ("weight", "bias")}
    return ReleasedModel(flow=flow, denoiser=denoiser, config=config), wanted


def _tarflow(
    config: ReleasedConfig, tensors: Mapping[str, Tensor], layers: tuple[int, ...]
) -> tuple[ReleasedModel, dict[str, tuple[str, str]]]:
    tokens, width = _shape(tensors, "blocks.0.pos_embed")
    side = config.pt_seq_len or _root(tokens, "pos_embed")
    classes = _shape(tensors, "blocks.0.class_embed")[0] if "blocks.0.class_embed" in tensors else 0
    dim = _shape(tensors, "blocks.0.proj_in.weight")[1]
    config = ReleasedConfig(**{**vars(config), "pt_seq_len": side, "txt_size": 0, "soft_clip": None})
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
    wanted: dict[str, tuple[str, str]] = {}
    for i, depth in enumerate(layers):
        theirs, ours = f"blocks.{i}", f"net.blocks.{i}"
        wanted |= {f"{theirs}.{name}": ("flow", f"{ours}.{name}") for name in _ends("proj_in", "proj_out")}
        wanted[f"{theirs}.pos_embed"] = ("flow", f"{ours}.token_positions")
        if classes:
            wanted[f"{theirs}.class_embed"] = ("flow", f"{ours}.classes")
        wanted |= _layers(theirs, "flow", f"{ours}.transformer", depth)
    flow = ReleasedFlow(net, kind="tarflow", patch_size=config.patch_size)
    return ReleasedModel(flow=flow, denoiser=None, config=config), wanted


def _root(number: int, name: str) -> int:
    side = math.isqrt(number)
    if side**2 != number:
        raise ValueError(f"{name} has {number} rows, which is no square: name the grid's side with pt_seq_len")
    return side


def _ends(*names: str) -> list[str]:
    return [f"{name}.{end}" for name in names for end in ("weight", "bias")]


def _layers(theirs: str, module: str, ours: str, depth: int) -> dict[str, tuple[str, str]]:
    return {
        f"{theirs}.attn_blocks.{j}.{part}.{end}": (module, f"{ours}.blocks.{j}.{name}.{end}")
        for j in range(depth)
        for part, name in INSIDE.items()
        for end in ("weight", "bias")
    }


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
    wanted: Mapping[str, tuple[str, str]],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> None:
    """Put each tensor in its place, one after the other; then build what is not stored."""
    modules: dict[str, nn.Module] = {"flow": model.flow}
    if model.denoiser is not None:
        modules["denoiser"] = model.denoiser
    for theirs, (module, ours) in wanted.items():
        owner, _, name = ours.rpartition(".")
        place = modules[module].get_submodule(owner)
        empty = getattr(place, name)
        tensor = tensors[theirs]
        if tensor.numel() != empty.numel() or tensor.squeeze().shape != empty.squeeze().shape:
            raise ValueError(f"{theirs} must have shape {tuple(empty.shape)}, got {tuple(tensor.shape)}")
        tensor = tensor.reshape(empty.shape).to(device=device, dtype=dtype)
        setattr(place, name, nn.Parameter(tensor, requires_grad=False))


def _to_tokens(
    x: Tensor, patch_size: int, latent_dim: int, *, is_video: bool
) -> tuple[Float[Tensor, "batch time token latent"], tuple[int, int]]:
    """Tokens of frames or images, and their grid; channels are ordered (row in patch, column in patch, channel)."""
    axes = "(batch, time, channel, row, column)" if is_video else "(batch, channel, row, column)"
    p, channels = patch_size, latent_dim // patch_size**2
    video = x if is_video else x[:, None]
    if video.dim() != 5 or video.shape[2] != channels or video.shape[3] % p or video.shape[4] % p:
        raise ValueError(
            f"x must have shape {axes} with {channels} channels and sides that are multiples of {p}, "
            f"got {tuple(x.shape)}"
        )
    tokens = rearrange(video, "b t c (h p) (w q) -> b t (h w) (p q c)", p=p, q=p)
    return tokens, (video.shape[3] // p, video.shape[4] // p)


def _to_cells(tokens: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    p = patch_size
    return rearrange(tokens, "b t (h w) (p q c) -> b t c (h p) (w q)", h=grid[0], p=p, q=p)
