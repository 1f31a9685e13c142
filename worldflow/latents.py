"""A data set as the flow sees it: every frame encoded once, windows cut from the codes.

Encoding a frame costs as much as training the flow on it, so it is done once. Codes live in a memory-mapped file in the
run's folder; actions, rewards and terminations, which are small, in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from worldflow.atomic import replacing
from worldflow.data import Dataset
from worldflow.frames import as_tensors, mapped, picture, together
from worldflow.muon import has_bfloat16
from worldflow.randomness import normal, uniform
from worldflow.symmetry import transformed

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int64, Shaped, UInt8
    from torch import Tensor

    from worldflow.codec import Codec
    from worldflow.dict_codec import DictCodec

MOST_NOISE = 3.0
"""Most noise that frames are redrawn through, as a multiple of the density's own: each gets a share of it at random.
So drafts learn to put right what is a little wrong; from clean frames only, they copy every fault of a world's own."""

__all__ = ["LatentBatch", "LatentData", "encode_dataset", "encoded_dataset", "redrawn", "sample_frames"]


@dataclass(frozen=True, kw_only=True)
class LatentBatch:
    """Windows of codes; `valid` is False where a short episode was padded.

    `symmetry` says which symmetry shows each window, counted from 0, the identity; None: all are as recorded.
    `codec_loss` is what the frames' reconstruction costs in nats per value of the latent, and `codec_error` the mean
    squared error of a pixel, where the codec learns, too (`worldflow.joint`).
    """

    x: Float32[Tensor, "batch time+1 token latent"]
    shown: Float32[Tensor, "batch time+1 token latent"]
    actions: Shaped[Tensor, "batch time *action"]
    rewards: Float32[Tensor, "batch time"]
    terminated: Bool[Tensor, "batch time"]
    valid: Bool[Tensor, "batch time"]
    symmetry: Int64[Tensor, " batch"] | None = None
    text: Float32[Tensor, "batch word text"] | None = None
    codec_loss: Float32[Tensor, ""] | None = None
    codec_error: Float32[Tensor, ""] | None = None

    def to(self, device: torch.device | str) -> LatentBatch:
        """The same batch on another device."""
        there = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in there.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class LatentData:
    """Codes of all frames, episode behind episode, and what goes with them.

    Args:
        x: Codes without noise; of all frames as they are, then of all frames as each further symmetry shows them.
        shown: Codes of the frames that the codec makes of noisy codes: of a world's own frames, were its flow perfect.
        first_frame: Where each episode's frames begin in `x`.
        lengths: Transitions of each episode; the episode's other arrays begin at `first_frame - episode number`.
        actions, rewards, terminated: One row per transition.
        texts: The embedded texts that there are, where the world reads some.
        text_of: Which of them goes with each episode.
    """

    x: Float32[np.ndarray, "frame token latent"]
    shown: Float32[np.ndarray, "frame token latent"]
    first_frame: Int64[np.ndarray, " episode"]
    lengths: Int64[np.ndarray, " episode"]
    actions: Shaped[np.ndarray, "transition *action"]
    rewards: Float32[np.ndarray, " transition"]
    terminated: Bool[np.ndarray, " transition"]
    texts: Float32[Tensor, "caption word text"] | None = None
    text_of: Int64[np.ndarray, " episode"] | None = None

    @property
    def num_symmetries(self) -> int:
        """How often all frames are there: as they are, and as each symmetry shows them."""
        return len(self.x) // int(self.lengths.sum() + len(self.lengths))

    def gather(
        self, index: Int64[np.ndarray, "batch 2"], length: int, *, symmetry: Int64[Tensor, " batch"] | None = None
    ) -> LatentBatch:
        """Windows of `length` transitions at `(episode, start)`; padded as `worldflow.data.gather` pads.

        Args:
            index: Episodes and starts.
            length: Transitions of a window.
            symmetry: Which symmetry shows each window, counted from 0, the identity; None leaves all as recorded.
        """
        shown_by = torch.zeros(len(index), dtype=torch.int64) if symmetry is None else symmetry
        episode, start = index[:, :1], index[:, 1:]
        steps = np.arange(length + 1)
        last = self.lengths[episode]
        frame = self.first_frame[episode] + np.minimum(start + steps, last)
        frame = frame + shown_by.numpy()[:, None] * (len(self.x) // self.num_symmetries)
        transition = self.first_frame[episode] - episode + np.minimum(start + steps[:-1], last - 1)
        valid = start + steps[:-1] < last
        return LatentBatch(
            x=torch.from_numpy(self.x[frame]),
            shown=torch.from_numpy(self.shown[frame]),
            actions=torch.from_numpy(self.actions[transition]),
            rewards=torch.from_numpy(np.where(valid, self.rewards[transition], np.float32(0))),
            terminated=torch.from_numpy(self.terminated[transition] & valid),
            valid=torch.from_numpy(valid),
            symmetry=shown_by,
            text=None if self.texts is None or self.text_of is None else self.texts[self.text_of[index[:, 0]]],
        )


def sample_frames(
    dataset: Dataset, most: int, *, generator: torch.Generator, run_length: int = 16
) -> tuple[UInt8[np.ndarray, "frame row column channel"], Int64[np.ndarray, "clip 3"]]:
    """Pictures of training episodes, all of them or about a random `most`, in short runs; and which of them are clips.

    Returns:
        The pictures, run behind run, and the indices of every three frames that follow each other. A run of fewer than
        three repeats its last frame.
    """
    episodes = dataset.episodes("train")
    counts = dataset.lengths[episodes] + 1
    runs = [(e, at) for e, count in zip(episodes, counts, strict=True) for at in range(0, int(count), run_length)]
    if counts.sum() > most:
        order = torch.randperm(len(runs), generator=generator)[: -(-most // run_length)].tolist()
        runs = [runs[i] for i in sorted(order)]
    parts = [picture(dataset.frames(int(e), at, min(at + run_length, int(dataset.lengths[e]) + 1))) for e, at in runs]
    clips, first = [], 0
    for part in parts:
        start = np.arange(max(1, len(part) - 2))
        clips.append(first + np.minimum(start[:, None] + np.arange(3), len(part) - 1))
        first += len(part)
    return np.concatenate(parts), np.concatenate(clips)


@torch.no_grad()
def redrawn(
    codec: Codec | DictCodec,
    x: Float32[Tensor, "*batch token latent"],
    *,
    generator: torch.Generator | None = None,
    chunk: int = 256,
) -> Float32[Tensor, "*batch token latent"]:
    """Codes of the frames that a codec makes of codes under up to `MOST_NOISE` times its noise.

    Args:
        codec: The codec, in evaluation mode.
        x: Codes without noise.
        generator: Draws the noise, and for each frame how much of it.
        chunk: Frames in one go.
    """
    noise = normal(tuple(x.shape), generator, device=x.device, dtype=x.dtype)
    level = MOST_NOISE * uniform((*x.shape[:-2], 1, 1), generator, device=x.device, dtype=x.dtype)
    shown = codec.decode(x + level * codec.config.noise_std * noise, chunk=chunk)
    return codec.encode(shown, chunk=chunk)


@torch.no_grad()
def encode_dataset(
    dataset: Dataset,
    codec: Codec | DictCodec,
    path: Path,
    *,
    device: torch.device,
    symmetries: Sequence[int] = (0,),
    generator: torch.Generator | None = None,
    chunk: int = 256,
) -> Iterator[int | LatentData]:
    """Encode every frame into a file at `path`.

    The file is written in order and mapped once it is whole: a full disk is then an error, where a store into mapped
    memory would end the process.

    Args:
        dataset: The data set.
        codec: Its codec.
        path: The file to make or replace: for each frame its code, and the code of what is shown of it.
        device: Where the codec is.
        symmetries: Of the frames, the identity first (`worldflow.symmetry`); each encodes all frames once more.
        generator: Draws the noise through which frames are shown.
        chunk: Frames in one go.

    Yields:
        The number of frames done after each chunk, and the encoded data set last.

    Raises:
        OSError: If the file could not be written; nothing is left of it.
    """
    lengths = np.asarray(dataset.lengths, dtype=np.int64)
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
        "fortran_order": False,
        "shape": (len(symmetries) * int(np.sum(lengths + 1)), 2, codec.config.num_tokens, codec.config.token_dim),
    }
    outcomes, done = [], 0
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for element in symmetries:
            waiting = []
            for number in range(len(dataset)):
                episode = dataset.episode(number)
                if element == symmetries[0]:
                    outcomes.append((episode.actions, episode.rewards, episode.terminated))
                waiting.append(episode.frames)
                is_last = number == len(dataset) - 1
                if is_last or sum(map(len, waiting)) >= chunk:
                    frames = as_tensors(together(np.concatenate, waiting)).to(device)
                    x = codec.encode(mapped(lambda part, e=element: transformed(part, e), frames), chunk=chunk)
                    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bfloat16(device)):
                        shown = redrawn(codec, x, generator=generator, chunk=chunk)  # noisy in any case
                    both = torch.stack((x, shown.float()), dim=1)
                    file.write(both.float().cpu().numpy().tobytes())
                    done += len(frames)
                    waiting = []
                    yield done
    yield _opened(path, lengths, outcomes)


def encoded_dataset(dataset: Dataset, path: Path) -> LatentData:
    """What `encode_dataset` made of a data set, read from its file.

    Args:
        dataset: The data set.
        path: The file.
    """
    outcomes = [dataset.outcomes(number) for number in range(len(dataset))]
    return _opened(path, np.asarray(dataset.lengths, dtype=np.int64), outcomes)


def _opened(
    path: Path, lengths: Int64[np.ndarray, " episode"], outcomes: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> LatentData:
    actions, rewards, terminated = (np.concatenate(part) for part in zip(*outcomes, strict=True))
    codes = np.load(path, mmap_mode="r")
    return LatentData(
        x=codes[:, 0],
        shown=codes[:, 1],
        first_frame=np.concatenate(([0], np.cumsum(lengths + 1)))[:-1],
        lengths=lengths,
        actions=actions,
        rewards=rewards.astype(np.float32),
        terminated=terminated.astype(bool),
    )
