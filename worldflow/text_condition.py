"""Captions as a world reads them: embedded once, before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from worldflow.world import TextSpec

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64
    from torch import Tensor

    from worldflow.data import Dataset
    from worldflow.text import TextEncoder
    from worldflow.world import WorldModel

__all__ = ["Captions", "caption_words", "embed_captions", "encoder_for", "encoder_of"]

CHUNK = 64
"""Captions that are embedded in one go."""


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The captions of a data set.

    Args:
        spec: What embedded them.
        texts: Each of them once.
        text_of: Which of them goes with each episode; one without a caption has the empty text.
        nothing: The empty text.
    """

    spec: TextSpec
    texts: Float32[Tensor, "caption word text"]
    text_of: Int64[np.ndarray, " episode"]
    nothing: Float32[Tensor, "word text"]


def embed_captions(
    captions: Sequence[str | None],
    *,
    encoder: str,
    words: int,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Captions:
    """Embed the caption of every episode.

    Args:
        captions: One an episode, None where there is none.
        encoder: A folder or a name on the hub.
        words: Tokens of an embedding.
        device: Where to compute; embeddings are kept on the CPU.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: If no encoder is there.
        ImportError: If transformers is needed and not installed.
        ValueError: If it is no text encoder.
    """
    from worldflow.text import TextEncoder  # a world without text needs nothing of it

    reader = TextEncoder(encoder, max_tokens=words, device=device)
    distinct = sorted({"", *(caption or "" for caption in captions)})
    parts = []
    with tqdm(total=len(distinct), desc="captions", unit="text", disable=not progress) as bar:
        for first in range(0, len(distinct), CHUNK):
            parts.append(reader(distinct[first : first + CHUNK]).tokens.cpu())
            bar.update(len(parts[-1]))
    texts = torch.cat(parts)
    place = {caption: number for number, caption in enumerate(distinct)}
    return Captions(
        spec=TextSpec(encoder=encoder, identity=reader.identity, words=words, dim=reader.feature_dim),
        texts=texts,
        text_of=np.array([place[caption or ""] for caption in captions], dtype=np.int64),
        nothing=texts[place[""]],
    )


def encoder_of(world: WorldModel, encoder: str | None = None) -> TextEncoder:
    """The text encoder that a world reads with.

    Args:
        world: The world.
        encoder: Where it is now, if not where it was in training.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If the world reads no text, or it is another encoder.
    """
    spec = world.config.text
    if spec is None:
        raise ValueError("this world reads no text; train one on captioned episodes, with a text encoder")
    return encoder_for(spec, encoder, device=world.device)


def caption_words(
    world: WorldModel, dataset: Dataset, episodes: Sequence[int], *, encoder: str | None = None
) -> Float32[Tensor, "episode word text"] | None:
    """The embedded captions of some episodes, the empty text where there is none; None for a world that reads no text.

    Args:
        world: The world.
        dataset: Whose episodes.
        episodes: Their numbers.
        encoder: Where the encoder is now, if not where it was in training.
    """
    if world.config.text is None:
        return None
    return encoder_of(world, encoder)([dataset.caption(number) or "" for number in episodes]).tokens


def encoder_for(spec: TextSpec, encoder: str | None = None, *, device: torch.device | str = "cpu") -> TextEncoder:
    """The text encoder that a model was trained with.

    Args:
        spec: Which one that is.
        encoder: Where it is now, if not where it was in training.
        device: Where to compute.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is another encoder.
    """
    from worldflow.text import TextEncoder

    reader = TextEncoder(encoder or spec.encoder, max_tokens=spec.words, device=device)
    if reader.identity != spec.identity:
        raise ValueError(
            f"this model reads embeddings of {spec.encoder} ({spec.identity}), and {encoder or spec.encoder} is "
            f"another encoder ({reader.identity}); name the folder that holds the one it was trained with"
        )
    return reader
