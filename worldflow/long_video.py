"""How far do long videos go from what was recorded? `worldflow bench drift RUN DATASET`.

Videos several times as long as the clips that a world was trained on are drawn in two ways, from the same held-out
frames and under the same recorded actions:

    rolling      memory rolls, each frame is drawn from the frames in view
    re-encoding  as STARFlow-V: once `window` frames are there, an empty memory reads the last `keep`, encoded anew

and measured part by part, each as long as a training clip: the distance of frames from the nearest recorded ones
(`worldflow.manifold`), in gray levels, and the Fréchet distance of clips from held-out ones (`worldflow.frechet`).
Other held-out frames and clips, measured alike, are what a perfect world would reach.
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
from worldflow.data import Dataset, gather
from worldflow.frechet import ClipEncoder, frechet_distance
from worldflow.generate import Conditions, extended
from worldflow.index import window_index
from worldflow.manifold import FrameBank, long_actions, training_frames
from worldflow.shipped import run_folder
from worldflow.text_condition import caption_words
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Float64, UInt8

__all__ = ["Drift", "DriftBench", "drift"]

ROLLING, REENCODING, REAL = "rolling", "re-encoding", "held-out frames"


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Distances of long videos from recorded ones, part by part.

    Args:
        length: Frames of a part, those of a training clip.
        distance: For each way, of each video's parts, gray levels.
        frechet: For each way, of each part's clips from held-out ones.
        real_distance: Of held-out frames.
        real_frechet: Of as many other held-out clips.
        videos: The first few videos of each way.
    """

    length: int
    distance: dict[str, Float64[np.ndarray, "video part"]]
    frechet: dict[str, Float64[np.ndarray, " part"]]
    real_distance: float
    real_frechet: float
    videos: dict[str, UInt8[np.ndarray, "video time row column channel"]]

    def as_table(self) -> str:
        """A Markdown table, a row for each way and measure."""
        parts = len(next(iter(self.frechet.values())))
        ends = " | ".join(str((k + 1) * self.length) for k in range(parts))
        rows = [f"| frames, up to | {ends} | {REAL} |", "|---" * (parts + 2) + "|"]
        for way, values in self.distance.items():
            cells = " | ".join(f"{value:.2f}" for value in values.mean(0))
            rows.append(f"| {way}: distance, gray levels | {cells} | {self.real_distance:.2f} |")
        for way, values in self.frechet.items():
            cells = " | ".join(f"{value:.1f}" for value in values)
            rows.append(f"| {way}: Fréchet distance | {cells} | {self.real_frechet:.1f} |")
        return "\n".join(rows)


def drift(
    world: WorldModel,
    dataset: Dataset,
    *,
    length: int,
    times: int = 6,
    videos: int = 32,
    past: int | None = None,
    window: int | None = None,
    keep: int | None = None,
    encoder: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Drift:
    """Draw long videos in both ways, and measure them.

    Args:
        world: The world.
        dataset: Held-out beginnings and actions, and the frames to be near to.
        length: Frames of a training clip.
        times: How many of them a video has.
        videos: How many; at least 8.
        past: Frames that are given; by default as many as the world's attention sees.
        window: Frames that a memory sees before it starts anew; by default `length`.
        keep: Frames that it starts from; by default three quarters of `window`.
        encoder: Where the text encoder is now, for a world that reads text.
        seed: Of beginnings, actions and noise.
        progress: Show progress bars.

    Raises:
        ValueError: If there are fewer than 8 videos, or held-out episodes are shorter than `length` frames.
    """
    if videos < 8:
        raise ValueError(f"a distance between sets of clips needs at least 8 videos, got {videos}")
    past = past or min(world.config.flow.window, length - 1)
    held_out = window_index(dataset.lengths, length - 1, stride=length - 1, episodes=dataset.episodes("held_out"))
    held_out = held_out[held_out[:, 1] + length - 1 <= dataset.lengths[held_out[:, 0]]]
    if len(held_out) < 2 * videos:
        raise ValueError(
            f"{videos} videos need {2 * videos} held-out clips of {length} frames to be compared with, there are "
            f"{len(held_out)}; ask for fewer videos, or record more episodes"
        )
    order = np.random.default_rng(seed).permutation(len(held_out))
    begin, other = gather(dataset, held_out[order[:videos]], length - 1), held_out[order[videos : 2 * videos]]
    actions = long_actions(dataset, num_rollouts=videos, num_steps=length * times - 1, seed=seed)
    actions[:, : past - 1] = begin.actions[:, : past - 1]
    features = world.leading(actions, videos, length * times)
    words = caption_words(world, dataset, begin.episode.tolist(), encoder=encoder)

    generator = torch.Generator().manual_seed(seed)
    bank = FrameBank(training_frames(dataset, 4000, generator=generator))
    train = window_index(dataset.lengths, length - 1, stride=length - 1, episodes=dataset.episodes("train"))
    chosen = torch.randperm(len(train), generator=generator)[:256].numpy()
    measure = ClipEncoder(gather(dataset, train[chosen], length - 1).frames, num_features=max(2, videos // 4))
    real, others = measure(begin.frames).numpy(), measure(gather(dataset, other, length - 1).frames).numpy()

    found: dict[str, UInt8[np.ndarray, ...]] = {}
    for way, restarts in ((ROLLING, {}), (REENCODING, {"window": window or length, "keep": keep})):
        found[way] = extended(
            world,
            begin.frames[:, :past],
            features,
            Conditions(words=words),
            generator=torch.Generator().manual_seed(seed),
            progress=progress,
            **restarts,
        ).numpy()

    def parts(video: np.ndarray) -> list[torch.Tensor]:
        return [torch.from_numpy(video[:, k * length : (k + 1) * length]) for k in range(times)]

    return Drift(
        length=length,
        distance={
            way: np.stack([bank.distance(part).mean(1) for part in parts(video)], axis=1)
            for way, video in found.items()
        },
        frechet={
            way: np.array([frechet_distance(measure(part).numpy(), others) for part in parts(video)])
            for way, video in found.items()
        },
        real_distance=float(bank.distance(begin.frames).mean()),
        real_frechet=frechet_distance(real, others),
        videos={way: video[:4] for way, video in found.items()},
    )


@dataclass(frozen=True, kw_only=True)
class DriftBench:
    """Draw videos several times as long as training clips, by rolling memory and by encoding anew, and measure them."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """Folder of the run, or the name of a world that ships."""
    dataset: Positional[Annotated[str, arg(metavar="DATASET")]]
    """Folder of the data set that it was trained on."""
    times: int = 6
    """Length of a video, in training clips."""
    videos: int = 32
    """Videos to draw in each way."""
    window: int | None = None
    """Frames that a memory sees before it starts anew; those of a training clip unless given."""
    keep: int | None = None
    """Frames that it starts from; three quarters of the window unless given."""
    encoder: str | None = None
    """Where the text encoder is now, for a world that reads text."""
    out: str | None = None
    """Folder for the table's numbers as JSON and a picture of some videos."""
    seed: int = 0
    """The same seed gives the same videos."""

    def __call__(self) -> None:
        """Draw, measure, print and write."""
        world = load(self.run, device="cuda" if torch.cuda.is_available() else "cpu")
        found = drift(
            world,
            Dataset(self.dataset),
            length=1 + (trained_length(self.run) or 2 * world.config.flow.window),
            times=self.times,
            videos=self.videos,
            window=self.window,
            keep=self.keep,
            encoder=self.encoder,
            seed=self.seed,
        )
        print(found.as_table())
        if self.out is not None:
            write(found, Path(self.out), options=asdict(self))


def write(found: Drift, folder: Path, *, options: dict[str, Any]) -> None:
    """`drift.json` and `drift.png`: some videos of each way, a frame of each half of a part."""
    from worldflow.video import film_strip, save_png  # drawing is slow to import

    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        "options": options,
        "length": found.length,
        "distance": {way: values.tolist() for way, values in found.distance.items()},
        "frechet": {way: values.tolist() for way, values in found.frechet.items()},
        "real_distance": found.real_distance,
        "real_frechet": found.real_frechet,
    }
    write_bytes(folder / "drift.json", json.dumps(plain, indent=1).encode())
    rows = {f"{way} {k + 1}": video[k] for way, video in found.videos.items() for k in range(len(video))}
    strip = film_strip(*rows.values(), labels=list(rows), every=max(1, found.length // 2))
    save_png(strip, folder / "drift.png")


def trained_length(run: str) -> int | None:
    """Transitions of the clips that a run was trained on, if it says."""
    path = run_folder(run) / "world.json"
    return json.loads(path.read_text()).get("training", {}).get("config", {}).get("length")
