"""Train a world from recorded episodes: the codec first, then every frame encoded once, then the flow on the codes.

Or codec and flow as one (`TrainConfig.joint`), codes made anew in every step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from worldflow import checkpoint
from worldflow.codec import LatentCodec
from worldflow.codec_frames import CodecFrames
from worldflow.data import Dataset
from worldflow.dict_codec import DictCodec
from worldflow.fit import CODEC, FLOW, DrawnLoss, FitState, Log, Stage, fit
from worldflow.heads import RewardSupport
from worldflow.hints import did_you_mean
from worldflow.index import sample_index, window_index
from worldflow.joint import JointClips
from worldflow.latents import LatentData, encode_dataset, encoded_dataset
from worldflow.log import NoLog, TrainLog
from worldflow.loss import draw_clips, flow_loss, loss_of_drawn
from worldflow.recipes import TrainConfig, world_config
from worldflow.saved_training import SavedTraining
from worldflow.symmetry import ActionMaps, elements
from worldflow.team import Team
from worldflow.text_condition import Captions, embed_captions
from worldflow.training_folder import TrainingFolder
from worldflow.vector_codec import VectorCodec, vector_statistics
from worldflow.world import WorldModel

__all__ = ["chosen_device", "train"]


def train(
    dataset: str | os.PathLike[str] | Dataset,
    *,
    out: str | os.PathLike[str],
    config: TrainConfig | None = None,
    resume: bool = False,
    sizes: Mapping[str, Any] | None = None,
    progress: bool = True,
    clock: Callable[[], float] = time.monotonic,
    **options: Any,
) -> WorldModel:
    """Learn a world from a data set.

    Args:
        dataset: The data set or its folder.
        out: The run's folder: weights, log, pictures and what `resume` needs.
        config: How to train; or give its fields by name.
        resume: Go on from what an earlier call left in `out`.
        sizes: Of the flow, in place of the preset's, by the names of `worldflow.flow.FlowConfig`.
        progress: Show progress bars.
        clock: Tells seconds, from any beginning; `minutes` are counted by it.
        options: Fields of `TrainConfig`.

    Returns:
        The trained world, also saved in `out`.

    Raises:
        ValueError: If options or the data do not fit.
        FileNotFoundError: If there is no data set, or nothing to resume from.
        FileExistsError: If `out` already holds a run.

    Example:
        >>> world = wf.train("data/pendulum", out="runs/pendulum", preset="tiny", minutes=5)  # doctest: +SKIP
    """
    if config is not None and options:
        raise ValueError(f"give either config or its fields, got both config and {sorted(options)}")
    config = config or _config(options)
    device = chosen_device(config.device)
    team = Team.of(device)
    dataset = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder for the run")
    if resume and not (folder / "training.pt").is_file():
        raise FileNotFoundError(f"nothing to resume in {folder}: there is no training.pt; start without resume")
    if not resume and (folder / "world.json").exists():
        raise FileExistsError(f"{folder} already holds a run; name another folder, or resume it")
    if len(dataset) < 2:
        raise ValueError(f"training needs at least 2 episodes, one of them held out, got {len(dataset)}")
    if np.asarray(dataset.lengths)[dataset.episodes("held_out")].max() < 2:
        raise ValueError("no held-out episode is longer than 1 transition; record longer episodes, or more of them")
    config.check(dataset.spec)
    team.wait()  # all have found the folder as it was
    folder.mkdir(parents=True, exist_ok=True)

    run = _Run(
        folder=folder,
        dataset=dataset,
        config=config,
        sizes=sizes,
        team=team,
        progress=progress and team.leads,
        clock=clock,
    )
    with TrainLog(folder, is_resumed=resume) if team.leads else nullcontext(NoLog()) as log:
        return run(log, is_resumed=resume)


def _config(options: dict[str, Any]) -> TrainConfig:
    names = [f.name for f in fields(TrainConfig)]
    for name in options:
        if name not in names:
            raise ValueError(f"unknown option {name!r}{did_you_mean(name, names)}")
    return TrainConfig(**options)


def chosen_device(name: str) -> torch.device:
    """The device of this name; `auto` is a GPU if there is one.

    Raises:
        ValueError: If it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); use 'cpu', or 'auto'") from error
    return device


def _of_pictures(world: WorldModel) -> nn.Module:
    """The codec, or the part of it that is about pictures."""
    return world.codec.picture if isinstance(world.codec, DictCodec) else world.codec


class _Run:
    """One training, from data to a saved world."""

    def __init__(
        self,
        *,
        folder: Path,
        dataset: Dataset,
        config: TrainConfig,
        sizes: Mapping[str, Any] | None,
        team: Team,
        progress: bool,
        clock: Callable[[], float],
    ) -> None:
        self.sizes, self.clock, self.team = sizes, clock, team
        self.dataset, self.config, self.device, self.progress = dataset, config, team.device, progress
        self.kept = TrainingFolder(folder, dataset, config)
        self.generator = torch.Generator().manual_seed(team.seed(config.seed))
        self.noise = self.generator  # on a GPU its own, which draws where the noise is used
        if self.device.type == "cuda":
            self.noise = torch.Generator(self.device).manual_seed(team.seed(config.seed))
        self.saved: SavedTraining | None = None
        self.symmetries = elements(config.symmetry)
        self.maps: ActionMaps | None = None
        if len(self.symmetries) > 1:
            self.maps = ActionMaps(len(self.symmetries), dataset.spec.action.feature_dim).to(self.device)
        self.spent: dict[str, float] = {}  # seconds that each stage was trained

    def __call__(self, log: Log, *, is_resumed: bool) -> WorldModel:
        config = self.config
        if is_resumed:
            self.saved = SavedTraining.read(self.kept.path / "training.pt")
            self.spent = self.saved.spent
            self._go_on_drawing(self.saved)
        lengths = np.asarray(self.dataset.lengths, dtype=np.int64)
        captions = None if config.text is None else self._captions(config.text)
        with torch.random.fork_rng(devices=[]):  # weights are drawn from the global generator: borrow it, give it back
            torch.manual_seed(config.seed)
            world = self._new_world(captions)
        if self.saved is not None:
            self.saved.restore(world, self.maps)
        world.to(self.device)
        if config.codec_from is not None:
            if self.saved is None:
                self._take_codec(world, config.codec_from)
        else:
            if isinstance(world.codec, VectorCodec | DictCodec):
                world.codec.set_statistics(*vector_statistics(self.dataset))
            if isinstance(codec := _of_pictures(world), LatentCodec) and not config.joint:
                self._fit_codec(world, codec, log)
        world.contexts = self.kept.contexts(world.config.flow.window)
        if config.joint:
            clips = self._joint_clips(world)
        else:
            world.codec.eval().requires_grad_(False)
            clips = self._encode(world)
        if captions is not None:
            clips = replace(clips, texts=captions.texts, text_of=captions.text_of)
        self._fit_flow(world, clips, lengths, log)
        if isinstance(world.codec, LatentCodec) and config.joint:
            self._codec_frames().settle(world.codec)
        self.team.share(world)  # statistics of the codec's code were each one's own
        world.eval()
        if self.team.leads:
            self.kept.write_world(world, seconds=sum(self.spent.values()))
            (self.kept.path / "latents.npy").unlink(missing_ok=True)
        self.team.wait()
        return world

    def _go_on_drawing(self, saved: SavedTraining) -> None:
        """Draw what would have come next; only the leader's generators were kept, the others begin new ones."""
        if self.team.leads:
            self.generator.set_state(saved.generator)
            if self.noise is not self.generator and saved.noise is not None:
                self.noise.set_state(saved.noise)
            return
        for generator in (self.generator, self.noise):
            generator.manual_seed(self.team.seed(self.config.seed, step=1 + saved.fit.step))

    def _captions(self, encoder: str) -> Captions:
        found = [self.dataset.caption(i) for i in range(len(self.dataset))]
        if not any(found):
            raise ValueError(
                f"no episode of {self.dataset.path} has a caption, but text is given; add captions or leave text out"
            )
        return embed_captions(
            found, encoder=encoder, words=self.config.text_words, device=self.device, progress=self.progress
        )

    def _new_world(self, captions: Captions | None) -> WorldModel:
        outcomes = [self.dataset.outcomes(int(i)) for i in self.dataset.episodes("train")]
        support = RewardSupport.of([rewards for _, rewards, _ in outcomes])
        text = None if captions is None else captions.spec
        world = WorldModel(world_config(self.config, self.dataset.spec, support, text, sizes=self.sizes))
        if captions is not None:
            assert world.nothing is not None
            world.nothing.copy_(captions.nothing)
        if not self.dataset.spec.action.is_discrete:
            actions = np.concatenate([a.reshape(len(a), -1) for a, _, _ in outcomes]).astype(np.float64)
            world.actions.mean.copy_(torch.from_numpy(actions.mean(0)))
            world.actions.std.copy_(torch.from_numpy(np.maximum(actions.std(0), 1e-6)))
        return world

    # -- the codec --------------------------------------------------------------------------------------------------

    def _take_codec(self, world: WorldModel, run: str) -> None:
        """The codec of another run, which must have the same sizes."""
        other = checkpoint.load(run, device=self.device)
        if other.config.codec != world.config.codec:
            raise ValueError(
                f"the codec of {run} is {other.config.codec}, these options and data need {world.config.codec}"
            )
        world.codec.load_state_dict(other.codec.state_dict())

    def _fit_codec(self, world: WorldModel, codec: LatentCodec, log: Log) -> None:
        if self.saved is not None and self.saved.stage == FLOW.name:
            return
        config, frames = self.config, self._codec_frames()
        clips = -(-config.codec_batch // frames.clip_length)
        if self.saved is None:
            frames.set_mean_frame(codec)
            self.team.share(codec)
        codec.train()

        def loss_of(drawn: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            loss = codec.loss(drawn["frames"], smoothness=config.codec_smoothness, noise=drawn["noise"])
            return loss.total, {
                "codec/loss": loss.total.detach(),
                "codec/psnr": 10 * torch.log10(4 / loss.error),
                "codec/unevenness": loss.unevenness,
            }

        minutes = None if config.minutes is None else config.minutes * config.codec_share
        self._fit(
            world,
            codec,
            DrawnLoss(lambda: frames.draw(codec, clips=clips, noise=self.noise), loss_of),
            log,
            stage=CODEC,
            steps=config.codec_steps,
            minutes=minutes,
            items=clips * frames.clip_length,
        )
        frames.settle(codec)

    def _codec_frames(self) -> CodecFrames:
        return CodecFrames(
            self.dataset,
            most=self.config.codec_frames,
            symmetries=self.symmetries,
            device=self.device,
            generator=self.generator,
        )

    # -- the flow ---------------------------------------------------------------------------------------------------

    def _joint_clips(self, world: WorldModel) -> JointClips:
        """Clips whose codes are made as they are asked for, by a codec that learns."""
        assert isinstance(world.codec, LatentCodec)
        if self.saved is None:
            self._codec_frames().set_mean_frame(world.codec)
            self.team.share(world.codec)
        return JointClips(
            dataset=self.dataset,
            codec=world.codec,
            smoothness=self.config.codec_smoothness,
            symmetries=self.symmetries,
            generator=self.generator,
        )

    def _encode(self, world: WorldModel) -> LatentData:
        """Codes of all frames: the leader makes them, the others read what it made."""
        path = self.kept.path / "latents.npy"
        clips = self._encoded(world, path) if self.team.leads else None
        self.team.wait()
        return clips or encoded_dataset(self.dataset, path)

    def _encoded(self, world: WorldModel, path: Path) -> LatentData:
        total = len(self.symmetries) * int(np.sum(np.asarray(self.dataset.lengths) + 1))
        noise = torch.Generator().manual_seed(self.config.seed)  # its own, so that a resumed run encodes the same
        with tqdm(total=total, desc="encode", unit="frame", disable=not self.progress) as bar:
            for done in encode_dataset(
                self.dataset, world.codec, path, device=self.device, symmetries=self.symmetries, generator=noise
            ):
                if isinstance(done, LatentData):
                    return done
                bar.update(done - bar.n)
        raise AssertionError("encode_dataset ends with the encoded data set")

    def _fit_flow(self, world: WorldModel, source: LatentData | JointClips, lengths: np.ndarray, log: Log) -> None:
        config = self.config
        length = config.length or max(8, 2 * world.config.flow.window)
        batch = config.batch or (32 if self.dataset.spec.is_vector else 16)
        episodes = self.dataset.episodes("train")
        held_out = window_index(lengths, length, stride=length, episodes=self.dataset.episodes("held_out"))
        order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(config.seed))
        looked_at = held_out[order[: config.eval_clips].numpy()]

        def draw() -> dict[str, Tensor]:
            index = sample_index(lengths, length, batch, generator=self.generator, episodes=episodes)
            which = torch.randint(len(self.symmetries), (len(index),), generator=self.generator)
            clips = source.gather(index, length, symmetry=which)
            drawn = draw_clips(world, clips, generator=self.generator, noise=self.noise, config=config)
            return drawn if clips.codec_error is None else drawn | {"codec_error": clips.codec_error}

        def loss_of(drawn: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            loss = loss_of_drawn(world, drawn, config=config, maps=self.maps)
            return loss.total, {
                "flow/above_floor": loss.above_floor.detach(),
                "flow/draft_error": loss.draft_error.detach(),
                "flow/reward_nll": loss.reward_nll.detach(),
                "flow/termination_nll": loss.termination_nll.detach(),
                **({} if world.denoiser is None else {"flow/denoiser_error": loss.denoiser_error.detach()}),
                **({"flow/psnr": 10 * torch.log10(4 / drawn["codec_error"])} if "codec_error" in drawn else {}),
            }

        def look_at_held_out() -> dict[str, float]:
            if not self.team.leads:
                return {}
            world.eval()
            fixed = source
            if isinstance(source, JointClips):
                fixed = replace(source, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                look = fixed.gather(looked_at, length)
                plain, swapped = (
                    flow_loss(world, look, generator=torch.Generator().manual_seed(0), config=config, swap=swap)
                    for swap in (False, True)
                )
            if not self.dataset.spec.is_vector:
                self.kept.draw(world)
            world.train()
            world.codec.train(config.joint)
            return {
                "held_out/above_floor": float(plain.above_floor),
                "held_out/action_gap": float(swapped.above_floor - plain.above_floor),
                "held_out/reward_nll": float(plain.reward_nll),
                "held_out/termination_nll": float(plain.termination_nll),
            }

        world.train()
        world.codec.train(config.joint)
        trains_codec = isinstance(_of_pictures(world), LatentCodec) and config.codec_from is None and not config.joint
        codec_share = config.codec_share if trains_codec else 0.0
        minutes = None if config.minutes is None else config.minutes * (1 - codec_share)
        self._fit(
            world,
            world if self.maps is None else nn.ModuleList((world, self.maps)),
            (lambda: loss_of(draw())) if config.joint else DrawnLoss(draw, loss_of),  # drawing codes learns, too
            log,
            stage=FLOW,
            steps=config.steps,
            minutes=minutes,
            items=batch * length,
            look=look_at_held_out,
        )

    def _fit(
        self,
        world: WorldModel,
        module: nn.Module,
        batch_loss: Callable[[], tuple[Tensor, dict[str, Tensor]]],
        log: Log,
        *,
        stage: Stage,
        steps: int,
        minutes: float | None,
        items: int,
        look: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        config = self.config
        fit(
            module,
            batch_loss,
            log,
            stage=stage,
            steps=steps,
            minutes=minutes,
            learning_rate=config.codec_learning_rate if stage is CODEC else config.learning_rate,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            items=items,
            device=self.device,
            start=self.saved.fit if self.saved is not None and self.saved.stage == stage.name else None,
            look=look,
            look_every=config.eval_every,
            save=lambda state: self._save(world, stage, state),
            save_every=config.save_every,
            progress=self.progress,
            clock=self.clock,
            team=self.team,
        )

    def _save(self, world: WorldModel, stage: Stage, state: FitState) -> None:
        self.spent[stage.name] = state.seconds
        if not self.team.leads:
            return
        SavedTraining(
            path=self.kept.path / "training.pt",
            stage=stage.name,
            fit=state,
            spent=self.spent,
            world=world.state_dict(),
            maps={} if self.maps is None else self.maps.state_dict(),
            generator=self.generator.get_state(),
            noise=None if self.noise is self.generator else self.noise.get_state(),
        ).write()
        if stage is FLOW:
            self.kept.write_world(world, seconds=sum(self.spent.values()))
