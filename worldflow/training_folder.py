"""What a training leaves in its folder: the state to resume from, the world, pasts to start from, a picture.

RUN/training.pt      weights, optimizers and generators, to go on from
RUN/world.json ...   the world (`worldflow.checkpoint`)
RUN/imagined.png     film strips of held-out futures
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from worldflow import checkpoint
from worldflow.data import Dataset, gather
from worldflow.evaluate import held_out_clips, imagine_clips
from worldflow.fingerprint import episode_hashes
from worldflow.frames import picture
from worldflow.index import window_index
from worldflow.recipes import TrainConfig
from worldflow.world import Contexts, WorldModel

__all__ = ["TrainingFolder"]


class TrainingFolder:
    """A run's folder, while it is trained.

    Args:
        path: The folder.
        dataset: What is trained on.
        config: How.
    """

    def __init__(self, path: Path, dataset: Dataset, config: TrainConfig) -> None:
        self.path, self._dataset, self._config = path, dataset, config

    def write_world(self, world: WorldModel, *, seconds: float) -> None:
        """The world and where it comes from, after so many seconds of training."""
        training = {
            "config": asdict(self._config),
            "dataset": self._dataset.spec.dataset_id,
            "episodes": len(self._dataset),
            "transitions": int(self._dataset.lengths.sum()),
            "recordings": list(self._dataset.metadata.get("worldflow", {}).get("recordings", ())),
            "held_out": asdict(self._dataset.held_out),
            "minutes_trained": seconds / 60,
            "episode_hashes": self._episode_hashes,
        }
        checkpoint.save(world, self.path, training=training)

    @cached_property
    def _episode_hashes(self) -> list[str]:
        """Which episodes were trained on, so that an evaluation can refuse to test on them."""
        return episode_hashes(self._dataset, "train")

    def contexts(self, num_frames: int) -> Contexts:
        """A bank of held-out pasts of `num_frames` frames, or as many as the shortest of them has."""
        lengths = np.asarray(self._dataset.lengths, dtype=np.int64)
        episodes = self._dataset.episodes("held_out")
        past = max(1, min(num_frames - 1, int(lengths[episodes].max()) - 1))
        index = window_index(lengths, past, episodes=episodes)
        index = index[index[:, 1] + past < lengths[index[:, 0]]]  # a start from which at least one more step was made
        chosen = torch.randperm(len(index), generator=torch.Generator().manual_seed(self._config.seed))
        clip = gather(self._dataset, index[chosen[: self._config.contexts].numpy()], past)
        return Contexts(frames=clip.frames, actions=clip.actions)

    def draw(self, world: WorldModel) -> None:
        """Film strips of held-out futures, real above imagined, as `imagined.png`."""
        dataset, seed = self._dataset, self._config.seed
        past = world.config.flow.window - 1
        longest = int(np.asarray(dataset.lengths)[dataset.episodes("held_out")].max())
        if longest <= past:
            return  # held-out episodes are all shorter than the past that the world wants to see
        horizon = min(16, longest - past)
        clips = held_out_clips(dataset, past=past, horizon=horizon, num_clips=16, seed=seed)
        clips = clips[clips.valid.sum(1).argsort(descending=True, stable=True)[:3]]  # the longest ones show most
        dream = imagine_clips(world, clips, past=past, generator=torch.Generator().manual_seed(seed))
        from worldflow.figures import save_figure  # drawing is slow to import and not needed to train
        from worldflow.strips import imagined_figure

        real, imagined = picture(clips.frames), picture(dream.frames)
        figure = imagined_figure(real[:, past + 1 :].numpy(), imagined[0].cpu().numpy())
        save_figure(figure, self.path / "imagined.png")
