"""Text-, image- and video-to-video from one world.

    text to video:    nothing -> x_1 .. x_T
    image to video:   x_1 -> x_2 .. x_T
    video to video:   x_1 .. x_k -> x_{k+1} .. x_T  (continue), or  x -> z under one text, z -> x' under another (edit)

All of them are one conditional flow read from different ends. An edit is what only an invertible model can do: the
noise `z` that explains a video under its own text is kept, and another text is put in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldflow.denoiser import tweedie
from worldflow.flow import Guidance
from worldflow.randomness import normal
from worldflow.state import WorldState
from worldflow.text_condition import encoder_of
from worldflow.world import WorldModel

if TYPE_CHECKING:
    import os

    from jaxtyping import Bool, Float, Shaped, UInt8

__all__ = ["Conditions", "Denoise", "denoised", "edit", "extended", "generate", "read_frames"]

Denoise = Literal["none", "tweedie", "denoiser"]
"""How to take the codes' noise off."""


@torch.no_grad()
def generate(
    world: WorldModel,
    *,
    frames: int = 16,
    text: str | Sequence[str] | None = None,
    given: UInt8[np.ndarray, "past row column channel"] | None = None,
    actions: Shaped[np.ndarray, "time *action"] | None = None,
    samples: int = 1,
    guidance: float = 0.0,
    temperature: float = 1.0,
    denoise: Denoise = "none",
    window: int | None = None,
    keep: int | None = None,
    encoder: str | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> UInt8[Tensor, "sample time row column channel"]:
    """Make videos, as long as asked for.

    The world's memory rolls: each frame is drawn from the ones in view, whatever the length. With `window` a long video
    is drawn as STARFlow-V does it instead: whenever so many frames are there, the last `keep` of them are encoded anew,
    noise and all, and read by an empty memory.

    Args:
        world: A world; one that reads text for prompts.
        frames: Frames of each video, given ones included.
        text: One prompt for all samples, or one for each of them.
        given: First frames, the same for all samples: one for an image to start from, several for a video to go on
            with. Without them the first frame is drawn, too.
        actions: What is done from the first frame on, one less than frames; None leaves it to the world, which then
            draws futures as they go on when nobody says what is done.
        samples: Videos, where there are not as many prompts.
        guidance: How far to go beyond the text, or, without a text, beyond the actions; 0 draws as the world is.
        temperature: Scale of the noise.
        denoise: How to take the codes' noise off the finished video, beside what the codec's decoder does.
        window: Frames that a memory sees before it starts anew; None never does.
        keep: Frames that the new memory starts from; by default three quarters of `window`.
        encoder: Where the text encoder is now, if not where it was in training.
        generator: Draws everything.
        progress: Show a progress bar.

    Returns:
        The videos, given frames first.

    Raises:
        ValueError: If the world reads no text and there is a prompt, it has no denoiser and is asked for one, guidance
            has nothing to go beyond, `keep` frames leave no room in `window`, or shapes do not fit.
    """
    _check_denoise(world, denoise)
    prompts = [text] * samples if isinstance(text, str) else None if text is None else list(text)
    B = samples if prompts is None else len(prompts)
    past = 0 if given is None else len(given)
    if B < 1 or frames < max(past, 1):
        raise ValueError(f"there must be at least one sample of at least {max(past, 1)} frames, got {B} of {frames}")
    if given is not None and given.shape[1:] != world.config.data.image_shape:
        shape = ", ".join(map(str, world.config.data.image_shape))
        raise ValueError(f"given frames must have shape (past, {shape}), got {given.shape}; see read_frames")
    if guidance and prompts is None and actions is None:
        raise ValueError("guidance goes beyond a text or actions: give one of them, or no guidance")
    words = None if prompts is None else encoder_of(world, encoder)(prompts).tokens
    features = _features(world, actions, B, frames)
    is_hidden = features is None
    if features is None:
        features = torch.zeros(B, frames, world.config.flow.action_dim, device=world.device, dtype=world.dtype)
    first = np.zeros((0, *world.config.data.image_shape), np.uint8) if given is None else given
    return extended(
        world,
        torch.as_tensor(first).expand(B, *first.shape),
        features,
        Conditions(words=words, guidance=guidance, is_hidden=is_hidden),
        temperature=temperature,
        denoise=denoise,
        window=window,
        keep=keep,
        generator=generator,
        progress=progress,
    )


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What videos follow from, beside frames and actions."""

    words: Float[Tensor, "batch word text"] | None = None
    """Embedded texts; None where there are none."""
    guidance: float = 0.0
    """How far to go beyond the text, or, without a text, beyond the actions."""
    is_hidden: bool = False
    """Whether nobody says what is done."""


@torch.no_grad()
def extended(
    world: WorldModel,
    video: UInt8[Tensor, "batch past row column channel"],
    features: Float[Tensor, "batch time action"],
    conditions: Conditions,
    *,
    temperature: float = 1.0,
    denoise: Denoise = "none",
    window: int | None = None,
    keep: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> UInt8[Tensor, "batch time row column channel"]:
    """Videos that go on as long as there are features of actions; as `generate`, each row from frames of its own.

    Args:
        world: A world.
        video: First frames, maybe none.
        features: Feature vectors of the action that led to each frame; a video's first is never read.
        conditions: What else they follow from.
        temperature: As in `generate`.
        denoise: As in `generate`.
        window: As in `generate`.
        keep: As in `generate`.
        generator: As in `generate`.
        progress: As in `generate`.

    Raises:
        ValueError: If `keep` frames leave no room in `window`.
    """
    if window is not None and keep is None:
        keep = 3 * window // 4
    if (window is None and keep is not None) or (window is not None and not 1 <= (keep or 0) < window):
        raise ValueError(f"keep must be at least 1 and less than window, got keep {keep} and window {window}")
    frames, video = features.shape[1], video.to(world.device)
    with tqdm(total=frames - video.shape[1], desc="generate", unit="frame", disable=not progress) as bar:
        while (done := video.shape[1]) < frames:
            seen = done if window is None or done < window else keep or 0
            until = frames if window is None else min(frames, done + window - seen)
            new = _go_on(
                world,
                video[:, done - seen :],
                features[:, done - seen : until],
                conditions,
                temperature=temperature,
                denoise=denoise,
                generator=generator,
                bar=bar,
            )
            video = torch.cat((video, new), dim=1)
    return video.cpu()


def _go_on(
    world: WorldModel,
    past: UInt8[Tensor, "batch past row column channel"],
    features: Float[Tensor, "batch time action"],
    conditions: Conditions,
    *,
    temperature: float,
    denoise: Denoise,
    generator: torch.Generator | None,
    bar: tqdm[Any],
) -> UInt8[Tensor, "batch new row column channel"]:
    """The frames that follow `past`, which an empty memory reads first, as many as there are features for."""
    B, frames = features.shape[:2]
    words, given = conditions.words, past.shape[1]
    is_hidden = torch.full((B,), conditions.is_hidden, device=world.device)
    read = None
    if given:
        codes = world.codes(past)
        read = world.with_noise(codes, generator=generator), codes
    state = _after(world, read, features, words=words, hide=is_hidden)
    guide = None
    if conditions.guidance:
        hide = is_hidden | (words is None)
        without = _after(world, read, features, words=None, hide=hide)
        guide = Guidance(weight=conditions.guidance, state=without, hide_actions=words is None)
    shape = (B, world.config.flow.num_tokens, world.config.flow.latent_dim)
    has_shown = world.config.flow.has_shown
    drawn_u, made, seen = [], [], []
    for t in range(given, frames):
        z = temperature * normal(shape, generator, device=world.device, dtype=world.dtype)
        drawn = world.flow.draw(state, features[:, t], z, hide_actions=is_hidden, guidance=guide)
        state, guide = drawn.state, drawn.guidance
        drawn_u.append(drawn.u)
        if has_shown:
            made.append(world.codec.decode(world.flow.from_deep(drawn.u)))
            codes = world.codes(made[-1])
            seen.append(codes)
            state = world.flow.show(state, codes)
            guide = None if guide is None else _shown(world, guide, codes)
        bar.update()
    if denoise == "none" and has_shown:  # all are decoded already
        return torch.stack(made, dim=1)
    x = world.flow.from_deep(torch.stack(drawn_u, dim=1))
    shown = torch.stack(seen, dim=1) if has_shown else None
    if read is not None:
        x = torch.cat((read[0], x), dim=1)
        shown = None if shown is None else torch.cat((read[1], shown), dim=1)
    clean = denoised(world, x, features, how=denoise, text=words, shown=shown, hide_actions=is_hidden)
    return world.codec.decode(clean[:, given:])


def denoised(
    world: WorldModel,
    x: Float[Tensor, "batch time token latent"],
    features: Float[Tensor, "batch time action"],
    *,
    how: Denoise,
    text: Float[Tensor, "batch word text"] | None = None,
    shown: Float[Tensor, "batch time token latent"] | None = None,
    hide_actions: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch time token latent"]:
    """Codes without the noise that the density needs.

    Args:
        world: The world.
        x: Noisy codes, recorded or drawn.
        features: Features of the action that led to each frame.
        how: `tweedie`, by the gradient of the flow's own likelihood; `denoiser`, by the network that learned it;
            `none` leaves them.
        text: Embedded texts, for a world that reads some; None for the empty text.
        shown: Codes of the frames as they are shown, for a flow that reads them.
        hide_actions: Rows that do not see their actions.

    Raises:
        ValueError: If there is no such way, or the world has no denoiser.
    """
    _check_denoise(world, how)
    if how == "none":
        return x
    words = world._text(text, len(x))
    if how == "denoiser":
        assert world.denoiser is not None
        return world.denoiser.denoise(x, text=words)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        out = world.flow(leaf, features, text=words, shown=shown, hide_actions=hide_actions)
        (score,) = torch.autograd.grad(out.log_prob.sum(), leaf)
    return tweedie(x, score, noise_std=world.config.codec.noise_std)


@torch.no_grad()
def edit(
    world: WorldModel,
    video: UInt8[np.ndarray, "time row column channel"],
    *,
    text: str,
    source: str = "",
    strength: float = 1.0,
    guidance: float = 0.0,
    encoder: str | None = None,
    generator: torch.Generator | None = None,
) -> UInt8[Tensor, "time row column channel"]:
    """Make of a video what another text says, and keep what the texts do not speak of.

    The flow maps the video to its noise under `source`; a share of it is kept, `sqrt(1 - strength^2) z + strength e`
    with fresh noise `e`, and mapped back under `text`.

    Args:
        world: A world that reads text, and does not go on from frames as they are shown.
        video: The video.
        text: What it should be.
        source: What it is; the empty text where nobody knows.
        strength: From 0, which keeps the video's noise, to 1, which draws it anew.
        guidance: How far to go beyond the text.
        encoder: Where the text encoder is now, if not where it was in training.
        generator: Draws the codes' noise and the fresh one.

    Raises:
        ValueError: If the world cannot do it, or an option is out of its range.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be between 0 and 1, got {strength}")
    if world.config.flow.has_shown:
        raise ValueError("this world goes on from frames as they are shown, so a video has no noise of its own")
    read = encoder_of(world, encoder)
    new, old, nothing = read([text, source, ""]).tokens.split(1)
    frames = torch.as_tensor(video)[None]
    x = world.encode(frames, generator=generator)
    actions = torch.zeros(1, x.shape[1], world.config.flow.action_dim, device=world.device, dtype=world.dtype)
    hide = torch.ones(1, dtype=torch.bool, device=world.device)
    z = world.flow(x, actions, text=old, hide_actions=hide).z
    fresh = normal(tuple(z.shape), generator, device=world.device, dtype=world.dtype)
    z = (1 - strength**2) ** 0.5 * z + strength * fresh
    edited = world.flow.inverse(z, actions, text=new, text_without=nothing, guidance=guidance, hide_actions=True)
    return world.codec.decode(edited)[0].cpu()


def read_frames(
    path: str | os.PathLike[str], world: WorldModel, *, last: int | None = None
) -> UInt8[np.ndarray, "time row column channel"]:
    """The frames of an image or video file, cut to the middle and scaled to the size that a world sees.

    Args:
        path: Anything that Pillow or FFmpeg reads.
        world: The world.
        last: Only so many of the last frames.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is neither an image nor a video.
    """
    from PIL import Image  # neither is needed to draw, nor on a node that trains

    from worldflow.video import read_video

    rows, columns, channels = world.config.data.image_shape
    try:
        with Image.open(path) as image:
            found = [image.convert("RGB")] if getattr(image, "n_frames", 1) == 1 else None
    except Image.UnidentifiedImageError:
        found = None
    if found is None:
        found = [Image.fromarray(frame) for frame in read_video(path)]
    found = found[-last:] if last else found
    scaled = []
    for image in found:
        width, height = image.size
        wide = min(width, height * columns / rows)
        high = min(height, width * rows / columns)
        left, top = (width - wide) / 2, (height - high) / 2
        box = (left, top, left + wide, top + high)
        scaled.append(np.asarray(image.resize((columns, rows), Image.Resampling.BOX, box=box)))
    frames = np.stack(scaled)
    return frames if channels == 3 else frames.mean(-1, keepdims=True).round().astype(np.uint8)


def _check_denoise(world: WorldModel, how: str) -> None:
    if how not in get_args(Denoise):
        raise ValueError(f"denoise must be one of {', '.join(get_args(Denoise))}, got {how!r}")
    if how == "denoiser" and world.denoiser is None:
        raise ValueError("this world has no denoiser; train it with denoiser_layers, or use 'tweedie'")


def _features(world: WorldModel, actions: np.ndarray | None, batch_size: int, frames: int) -> Tensor | None:
    """Feature vectors of the actions that led to each frame, or None where nobody says."""
    if actions is None:
        return None
    features = world.encode_actions(torch.as_tensor(np.asarray(actions))[None])
    if features.shape[1] != frames - 1:
        raise ValueError(f"{frames} frames need {frames - 1} actions, got {features.shape[1]}")
    features = torch.cat((torch.zeros_like(features[:, :1]), features), dim=1)
    return features.to(world.dtype).expand(batch_size, -1, -1)


def _after(
    world: WorldModel,
    past: tuple[Tensor, Tensor] | None,
    features: Tensor,
    *,
    words: Tensor | None,
    hide: Tensor,
) -> WorldState:
    """The state after given frames, of which the noisy and the clean codes are known."""
    state = world.begin(len(features), text=words)
    if past is None:
        return state
    x, codes = past
    shown = codes if world.config.flow.has_shown else None
    out = world.flow(x, features[:, : x.shape[1]], shown=shown, hide_actions=hide, state=state)
    assert out.state is not None
    return out.state


def _shown(world: WorldModel, guide: Guidance, codes: Tensor) -> Guidance:
    return Guidance(weight=guide.weight, state=world.flow.show(guide.state, codes), hide_actions=guide.hide_actions)
