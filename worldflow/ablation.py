"""How best to take the noise off: `worldflow bench denoise RUN DATASET`.

The flow's density is one of noisy codes, so what it draws is noisy, too, and something has to take the noise off before
or while codes become pixels. Held-out clips are encoded, noised as the flow's own draws are, cleaned and decoded, in
all ways side by side:

    none          the noisy codes as they are
    tweedie       one step along the flow's own gradient, a pass back through it (`worldflow.denoiser.tweedie`)
    denoiser      a step along the score that a light network learned (flow-score matching)
    clean codes   codes that never had noise: what any of them could reach

each through two decoders, which begin as the world's own and are fine-tuned for the same time with its encoder held
fixed: one on codes without noise, as a plain autoencoder's is, one on noisy codes, as STARFlow's and ours are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from tyro.conf import Positional, arg

from worldflow.atomic import write_bytes
from worldflow.checkpoint import load
from worldflow.codec import LatentCodec
from worldflow.data import Dataset, gather
from worldflow.generate import denoised
from worldflow.image_codec import CodecFit, finetune_decoder
from worldflow.index import window_index
from worldflow.manifold import training_frames
from worldflow.metrics import bootstrap_interval, decibels, mean_squared_error, ssim
from worldflow.text_condition import caption_words
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import UInt8

__all__ = ["DenoiseBench", "Denoised", "compare_denoising"]

NO_NOISE = 1e-4
"""Standard deviation that stands for none: codes have unit variance."""


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """How good decoded frames are, one way of taking the noise off and one decoder.

    Args:
        way: How.
        decoder: `noisy` or `clean`, by the codes it was trained on.
        code_error: Root mean squared distance of the codes from those without noise.
        psnr: Of decoded frames, dB, of the mean squared error over clips.
        psnr_low, psnr_high: Its 95 % interval over clips.
        ssim: Mean over frames.
    """

    way: str
    decoder: str
    code_error: float
    psnr: float
    psnr_low: float
    psnr_high: float
    ssim: float


def compare_denoising(
    world: WorldModel,
    dataset: Dataset,
    *,
    clips: int = 48,
    length: int | None = None,
    minutes: float = 3.0,
    encoder: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[list[Denoised], dict[str, UInt8[np.ndarray, "time row column channel"]]]:
    """Clean and decode held-out clips in every way.

    Args:
        world: The world; with a denoiser of its own, that is measured, too.
        dataset: Where held-out clips and the decoders' training frames come from.
        clips: How many.
        length: Transitions of a clip; by default twice the attention window.
        minutes: For how long each decoder is fine-tuned.
        encoder: Where the text encoder is now, for a world that reads text.
        seed: Of clips, noise and training.
        progress: Show progress bars.

    Returns:
        The measures, and the first clip in every way, the recording first.

    Raises:
        ValueError: If the world's code is the pixels, which no decoder reads, or there is no held-out clip.
    """
    if not isinstance(world.codec, LatentCodec):
        raise ValueError("this world models pixels as they are: there is no decoder to compare")
    length = length or 2 * world.config.flow.window
    index = window_index(dataset.lengths, length, stride=length, episodes=dataset.episodes("held_out"))
    index = index[index[:, 1] + length <= dataset.lengths[index[:, 0]]]
    if not len(index):
        raise ValueError(f"no held-out episode has {length} transitions; give a shorter length")
    chosen = np.random.default_rng(seed).permutation(len(index))[:clips]
    held_out = gather(dataset, index[chosen], length)
    generator = torch.Generator().manual_seed(seed)
    frames = torch.from_numpy(training_frames(dataset, 20_000, generator=generator))
    fit = CodecFit(minutes=minutes, seed=seed)
    noise_std = world.config.codec.noise_std
    decoders = {
        name: finetune_decoder(world.codec, frames, noise_std=std, fit=fit, progress=progress)
        for name, std in (("clean", NO_NOISE), ("noisy", noise_std))
    }

    with torch.no_grad():
        codes = world.codes(held_out.frames)
        x = world.with_noise(codes, generator=generator)
        features = world.leading(held_out.actions, len(x), x.shape[1])
    words = caption_words(world, dataset, held_out.episode.tolist(), encoder=encoder)
    shown = codes if world.config.flow.has_shown else None
    ways = {"none": x}
    for how in ("tweedie", "denoiser") if world.denoiser is not None else ("tweedie",):
        parts = [
            denoised(
                world,
                x[part],
                features[part],
                how=how,
                text=None if words is None else words[part],
                shown=None if shown is None else shown[part],
            ).detach()
            for part in torch.arange(len(x)).split(16)
        ]
        ways[how] = torch.cat(parts)
    ways["clean codes"] = codes

    rows, first = [], {"recorded": held_out.frames[0].numpy()}
    for way, cleaned in ways.items():
        for name, decoder in decoders.items():
            with torch.no_grad():
                made = decoder.decode(cleaned).cpu()
            error = mean_squared_error(made, held_out.frames).mean(1)
            low, high = bootstrap_interval(error, statistic=lambda rows: decibels(rows.mean(axis=0)))
            rows.append(
                Denoised(
                    way=way,
                    decoder=name,
                    code_error=float((cleaned - codes).square().mean().sqrt()),
                    psnr=float(decibels(error.mean())),
                    psnr_low=float(low),
                    psnr_high=float(high),
                    ssim=float(ssim(made, held_out.frames).mean()),
                )
            )
            first[f"{way}, {name}"] = made[0].numpy()
    return rows, first


def as_table(rows: list[Denoised]) -> str:
    """A Markdown table, a row for each way and decoder."""
    lines = ["| noise taken off | decoder trained on | codes off by | PSNR, dB | SSIM |", "|---|---|---|---|---|"]
    for row in rows:
        interval = f"{row.psnr:.1f} ({row.psnr_low:.1f} to {row.psnr_high:.1f})"
        lines.append(f"| {row.way} | {row.decoder} codes | {row.code_error:.3f} | {interval} | {row.ssim:.3f} |")
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class DenoiseBench:
    """Compare all ways of taking the codes' noise off, on held-out clips."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """Folder of the run, or the name of a world that ships."""
    dataset: Positional[Annotated[str, arg(metavar="DATASET")]]
    """Folder of the data set that it was trained on."""
    clips: int = 48
    """Held-out clips to compare on."""
    length: int | None = None
    """Transitions of a clip; twice the attention window unless given."""
    minutes: float = 3.0
    """CPU minutes for which each decoder is fine-tuned."""
    encoder: str | None = None
    """Where the text encoder is now, for a world that reads text."""
    out: str | None = None
    """Folder for the numbers as JSON and a picture of one clip in every way."""
    seed: int = 0
    """The same seed gives the same numbers."""

    def __call__(self) -> None:
        """Compare, print and write."""
        rows, first = compare_denoising(
            load(self.run, device="cuda" if torch.cuda.is_available() else "cpu"),
            Dataset(self.dataset),
            clips=self.clips,
            length=self.length,
            minutes=self.minutes,
            encoder=self.encoder,
            seed=self.seed,
        )
        print(as_table(rows))
        if self.out is not None:
            _write(rows, first, Path(self.out), options=asdict(self))


def _write(rows: list[Denoised], first: dict[str, np.ndarray], folder: Path, *, options: dict[str, Any]) -> None:
    from worldflow.video import film_strip, save_png  # drawing is slow to import

    folder.mkdir(parents=True, exist_ok=True)
    plain = {"options": options, "table": [asdict(row) for row in rows]}
    write_bytes(folder / "denoise.json", json.dumps(plain, indent=1).encode())
    every = max(1, -(-len(first["recorded"]) // 12))
    save_png(film_strip(*first.values(), labels=list(first), every=every), folder / "denoise.png")
