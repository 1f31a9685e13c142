"""Train a world from recorded episodes: the codec first, then the flow on its codes.

The flow's loss, per dimension of a frame's latent and averaged over the valid frames of a clip:

    loss = -log p(x~_t | x~_<t, a) / dim + draft_weight |draft_t - u_t|^2 + head_weight (reward NLL + termination NLL)

with `x~ = x + noise_std * eps` drawn anew for every clip. The logged loss is the first term above the noise's own
cost, so it can be compared between noise levels.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from worldflow import checkpoint
from worldflow.atomic import replacing
from worldflow.codec import LatentCodec, to_float
from worldflow.data import Dataset, gather
from worldflow.evaluate import held_out_clips, imagine_clips
from worldflow.heads import RewardSupport
from worldflow.index import sample_index, window_index
from worldflow.latents import LatentBatch, LatentData, encode_dataset, sample_frames
from worldflow.log import TrainLog
from worldflow.randomness import normal
from worldflow.recipes import TrainConfig, world_config
from worldflow.world import Contexts, WorldModel

__all__ = ["FlowLoss", "flow_loss", "train"]

MUON_RATE = 20.0
"""Learning rate of Muon's orthogonal updates, as a multiple of AdamW's."""


@dataclass(frozen=True, kw_only=True)
class FlowLoss:
    """The loss of a batch and its parts, each a mean over valid transitions (scalars)."""

    total: Tensor
    above_floor: Tensor
    draft_error: Tensor
    reward_nll: Tensor
    termination_nll: Tensor


def flow_loss(
    world: WorldModel, batch: LatentBatch, *, generator: torch.Generator | None, config: TrainConfig, swap: bool = False
) -> FlowLoss:
    """The flow's loss on clips of codes.

    Args:
        world: The world.
        batch: Clips.
        generator: Draws the codes' noise and which clips hide their actions.
        config: Weights of the parts.
        swap: Give each clip its neighbor's actions, to see whether they matter.
    """
    device = world.device
    B, T = batch.valid.shape
    x = batch.x.to(device)
    x = x + world.config.codec.noise_std * normal(tuple(x.shape), generator, device=device, dtype=x.dtype)
    hide = torch.rand(B, generator=generator).to(device) < config.action_dropout if world.training else None
    features = world.encode_actions(batch.actions)
    features = features.roll(1, 0) if swap else features
    features = torch.cat((features.new_zeros(B, 1, features.shape[-1]), features), dim=1)
    out = world.flow(x, features, hide_actions=hide)
    valid = batch.valid.to(device)
    is_frame = torch.cat((valid[:, :1] | True, valid), dim=1)

    def mean(values: Tensor, mask: Tensor) -> Tensor:
        return (values * mask).sum() / mask.sum()

    above = mean(world.above_floor(out.log_prob), is_frame)
    draft = out.log_prob.new_zeros(())
    if out.draft is not None:
        draft = mean((out.draft - out.u.detach()).square().mean((-2, -1))[:, 1:], valid)
    hidden = out.hidden[:, 1:]
    reward = mean(-world.reward.log_prob(hidden, batch.rewards.to(device)), valid)
    termination = mean(-world.termination.log_prob(hidden, batch.terminated.to(device)), valid)
    total = above + config.draft_weight * draft + config.head_weight * (reward + termination)
    return FlowLoss(
        total=total, above_floor=above, draft_error=draft, reward_nll=reward, termination_nll=termination
    )


def train(
    dataset: str | os.PathLike[str] | Dataset,
    *,
    out: str | os.PathLike[str],
    config: TrainConfig | None = None,
    resume: bool = False,
    progress: bool = True,
    **options,  # noqa: ANN003
) -> WorldModel:
    """Learn a world from a data set.

    Args:
        dataset: The data set or its folder.
        out: The run's folder: weights, log, pictures and what `resume` needs.
        config: How to train; or give its fields by name.
        resume: Go on from what an earlier call left in `out`.
        progress: Show progress bars.
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
    config = config or TrainConfig(**options)
    dataset = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    folder = Path(out)
    if resume and not (folder / "training.pt").is_file():
        raise FileNotFoundError(f"nothing to resume in {folder}: there is no training.pt; start without resume")
    if not resume and (folder / "world.json").exists():
        raise FileExistsError(f"{folder} already holds a run; name another folder, or resume it")
    if len(dataset) < 2:
        raise ValueError(f"training needs at least 2 episodes, one of them held out, got {len(dataset)}")
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device)

    run = _Run(folder=folder, dataset=dataset, config=config, device=device, progress=progress)
    with TrainLog(folder, is_resumed=resume) as log:
        return run(log, is_resumed=resume)


class _Run:
    """One training, from data to a saved world."""

    def __init__(self, *, folder: Path, dataset: Dataset, config: TrainConfig, device: torch.device, progress: bool) -> None:
        self.folder, self.dataset, self.config, self.device, self.progress = folder, dataset, config, device, progress
        self.generator = torch.Generator().manual_seed(config.seed)
        self.saved: dict = {}

    def __call__(self, log: TrainLog, *, is_resumed: bool) -> WorldModel:
        config = self.config
        if is_resumed:
            self.saved = torch.load(self.folder / "training.pt", weights_only=True)
            self.generator.set_state(self.saved["generator"])
        lengths = np.asarray(self.dataset.lengths, dtype=np.int64)
        with torch.random.fork_rng(devices=[]):  # weights are drawn from the global generator: borrow it, give it back
            torch.manual_seed(config.seed)
            world = self._new_world()
        if is_resumed:
            world.load_state_dict(self.saved["world"])
        world.to(self.device)
        if isinstance(world.codec, LatentCodec):
            self._fit_codec(world, world.codec, log)
        world.codec.eval().requires_grad_(False)
        world.contexts = self._contexts(world.config.flow.window)
        latents = self._encode(world)
        self._fit_flow(world, latents, lengths, log)
        world.eval()
        self._save_world(world)
        (self.folder / "latents.npy").unlink()
        return world

    def _new_world(self) -> WorldModel:
        episodes = [self.dataset.episode(int(i)) for i in self.dataset.episodes("train")]
        rewards = [e.rewards for e in episodes]
        world = WorldModel(world_config(self.config, self.dataset.spec, RewardSupport.of(rewards)))
        if not self.dataset.spec.action.is_discrete:
            actions = np.concatenate([e.actions.reshape(len(e), -1) for e in episodes]).astype(np.float64)
            world.actions.mean.copy_(torch.from_numpy(actions.mean(0)))
            world.actions.std.copy_(torch.from_numpy(np.maximum(actions.std(0), 1e-6)))
        return world

    # -- the codec --------------------------------------------------------------------------------------------------

    def _fit_codec(self, world: WorldModel, codec: LatentCodec, log: TrainLog) -> None:
        if self.saved.get("stage") == "flow":
            return
        config = self.config
        frames = torch.from_numpy(sample_frames(self.dataset, config.codec_frames, generator=self.generator))
        if self.saved.get("stage") != "codec":
            pixels = to_float(frames[torch.randperm(len(frames), generator=self.generator)[:4096]])
            mean = pixels.mean(0)
            codec.set_mean_frame(mean, float((pixels - mean).abs().mean()))
        codec.train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

        def batch_loss() -> tuple[Tensor, dict[str, Tensor]]:
            index = torch.randint(len(frames), (config.codec_batch,), generator=self.generator)
            loss, error = codec.loss(frames[index].to(self.device), generator=self.generator)
            return loss, {"codec/loss": loss.detach(), "codec/psnr": 10 * torch.log10(4 / error)}

        minutes = None if config.minutes is None else config.minutes * config.codec_share
        self._fit(
            world,
            codec,
            batch_loss,
            log,
            stage="codec",
            steps=config.codec_steps,
            minutes=minutes,
            learning_rate=config.codec_learning_rate,
            items=config.codec_batch,
        )
        self._settle_statistics(codec, frames)

    def _settle_statistics(self, codec: LatentCodec, frames: Tensor) -> None:
        """Replace the running statistics of the code by those of the final encoder over many frames."""
        codec.normalize.reset_running_stats()
        codec.normalize.momentum = None  # a plain average over the calls to come
        with torch.no_grad():
            order = torch.randperm(len(frames), generator=self.generator)[:4096]
            for part in order.split(256):
                codec.encode_pixels(codec._pad(to_float(frames[part].to(self.device))))
        codec.eval()

    # -- the flow ---------------------------------------------------------------------------------------------------

    def _encode(self, world: WorldModel) -> LatentData:
        total = int(np.sum(np.asarray(self.dataset.lengths) + 1))
        path = self.folder / "latents.npy"
        with tqdm(total=total, desc="encode", unit="frame", disable=not self.progress) as bar:
            for done in encode_dataset(self.dataset, world.codec, path, device=self.device):
                if isinstance(done, LatentData):
                    return done
                bar.update(done - bar.n)
        raise AssertionError("encode_dataset ends with the encoded data set")

    def _fit_flow(self, world: WorldModel, latents: LatentData, lengths: np.ndarray, log: TrainLog) -> None:
        config = self.config
        length = config.length or 2 * world.config.flow.window
        episodes = self.dataset.episodes("train")
        held_out = window_index(lengths, length, stride=length, episodes=self.dataset.episodes("held_out"))
        order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(config.seed))
        look = latents.gather(held_out[order[: config.eval_clips].numpy()], length)

        def batch_loss() -> tuple[Tensor, dict[str, Tensor]]:
            index = sample_index(lengths, length, config.batch, generator=self.generator, episodes=episodes)
            loss = flow_loss(world, latents.gather(index, length), generator=self.generator, config=config)
            return loss.total, {
                "flow/above_floor": loss.above_floor.detach(),
                "flow/draft_error": loss.draft_error.detach(),
                "flow/reward_nll": loss.reward_nll.detach(),
                "flow/termination_nll": loss.termination_nll.detach(),
            }

        def look_at_held_out() -> dict[str, float]:
            world.eval()
            with torch.no_grad():
                plain, swapped = (
                    flow_loss(world, look, generator=torch.Generator().manual_seed(0), config=config, swap=swap)
                    for swap in (False, True)
                )
            self._picture(world)
            world.train()
            world.codec.eval()
            return {
                "held_out/above_floor": float(plain.above_floor),
                "held_out/action_gap": float(swapped.above_floor - plain.above_floor),
                "held_out/reward_nll": float(plain.reward_nll),
                "held_out/termination_nll": float(plain.termination_nll),
            }

        world.train()
        world.codec.eval()
        self._fit(
            world,
            world,
            batch_loss,
            log,
            stage="flow",
            steps=config.steps,
            minutes=None if config.minutes is None else config.minutes * (1 - config.codec_share * (config.codec == "latent")),
            learning_rate=config.learning_rate,
            items=config.batch * length,
            look=look_at_held_out,
        )

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _fit(
        self,
        world: WorldModel,
        module: nn.Module,
        batch_loss: Callable[[], tuple[Tensor, dict[str, Tensor]]],
        log: TrainLog,
        *,
        stage: str,
        steps: int,
        minutes: float | None,
        learning_rate: float,
        items: int,
        look: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Minimize a loss for a number of steps or minutes: warm-up, cosine to a hundredth, gradient clipping."""
        config = self.config
        optimizers = _optimizers(module, learning_rate=learning_rate, weight_decay=config.weight_decay)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        parameters = [p for group in groups for p in group["params"]]
        step, spent = 0, 0.0
        if self.saved.get("stage") == stage:
            for optimizer, state in zip(optimizers, self.saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            step, spent = self.saved["step"], self.saved["seconds"]
        start = time.monotonic() - spent
        next_look, next_save = spent + 60 * config.eval_every, spent + 60 * config.save_every
        rate = "codec/frames_per_second" if stage == "codec" else "flow/transitions_per_second"
        bar = tqdm(
            total=steps if minutes is None else round(60 * minutes),
            initial=step if minutes is None else round(spent),
            desc=stage,
            unit="step" if minutes is None else "s",
            disable=not self.progress,
            bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed} left {remaining}{postfix}",
        )
        for step in itertools.count(step):
            seconds = time.monotonic() - start
            done = step / steps if minutes is None else seconds / (60 * minutes)
            if done >= 1:
                break
            for group in groups:
                group["lr"] = group["peak"] * _schedule(step, done)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=_has_bfloat16(self.device)):
                loss, metrics = batch_loss()
            module.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
            if bool(torch.isfinite(norm)) and float(norm) <= 10 * config.clip_norm:
                for optimizer in optimizers:
                    optimizer.step()
            seconds = time.monotonic() - start
            bar.update((1 if minutes is None else min(seconds, 60 * minutes) - bar.n))
            if step % 20 == 0:
                shown = {name: float(value) for name, value in metrics.items()}
                shown[rate] = items * (step + 1) / max(seconds, 1e-9)
                if stage == "flow":
                    shown["flow/gradient_norm"] = float(norm)
                log.write(step, seconds, shown)
                headline = "codec/psnr" if stage == "codec" else "flow/above_floor"
                bar.set_postfix_str(f"{headline.split('/')[1]} {shown[headline]:.3f}, {shown[rate]:.0f}/s")
            if look is not None and seconds >= next_look:
                log.write(step, seconds, look())
                next_look = time.monotonic() - start + 60 * config.eval_every
            if seconds >= next_save:
                self._save_progress(world, optimizers, stage=stage, step=step + 1, seconds=time.monotonic() - start)
                next_save = time.monotonic() - start + 60 * config.save_every
        if look is not None:
            log.write(step, time.monotonic() - start, look())
        bar.close()
        self._save_progress(world, optimizers, stage=stage, step=step, seconds=time.monotonic() - start)

    # -- what is kept -----------------------------------------------------------------------------------------------

    def _save_progress(self, world: WorldModel, optimizers: list[torch.optim.Optimizer], *, stage: str, step: int, seconds: float) -> None:
        record = {
            "stage": stage,
            "step": step,
            "seconds": seconds,
            "world": world.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "generator": self.generator.get_state(),
        }
        with replacing(self.folder / "training.pt") as path:
            torch.save(record, path)
        if stage == "flow":
            self._save_world(world)

    def _save_world(self, world: WorldModel) -> None:
        rule = self.dataset.held_out
        training = {
            "config": asdict(self.config),
            "dataset": self.dataset.spec.dataset_id,
            "episodes": len(self.dataset),
            "held_out": asdict(rule),
        }
        checkpoint.save(world, self.folder, training=training)

    def _contexts(self, num_frames: int) -> Contexts:
        """A bank of held-out pasts of `num_frames` frames, or as many as the shortest of them has."""
        lengths = np.asarray(self.dataset.lengths, dtype=np.int64)
        episodes = self.dataset.episodes("held_out")
        past = max(1, min(num_frames - 1, int(lengths[episodes].max()) - 1))
        index = window_index(lengths, past, episodes=episodes)
        index = index[index[:, 1] + past < lengths[index[:, 0]]]  # a start from which at least one more step was made
        chosen = torch.randperm(len(index), generator=torch.Generator().manual_seed(self.config.seed))
        clip = gather(self.dataset, index[chosen[: self.config.contexts].numpy()], past)
        return Contexts(frames=clip.frames, actions=clip.actions)

    def _picture(self, world: WorldModel) -> None:
        """Film strips of held-out futures, real above imagined, as `imagined.png`."""
        past = world.config.flow.window - 1
        lengths = np.asarray(self.dataset.lengths)[self.dataset.episodes("held_out")]
        horizon = min(16, int(lengths.max()) - past)
        if horizon < 1:
            return  # held-out episodes are all shorter than the past that the world wants to see
        clips = held_out_clips(self.dataset, past=past, horizon=horizon, num_clips=3, seed=self.config.seed)
        dream = imagine_clips(world, clips, past=past, generator=torch.Generator().manual_seed(self.config.seed))
        from worldflow.figures import save_figure  # drawing is slow to import and not needed to train
        from worldflow.strips import imagined_figure

        figure = imagined_figure(clips.frames[:, past + 1 :].numpy(), dream.frames[0].cpu().numpy())
        save_figure(figure, self.folder / "imagined.png")


def _schedule(step: int, done: float) -> float:
    warm_up = min(1.0, (step + 1) / 50)
    return warm_up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def _optimizers(module: nn.Module, *, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the transformers' matrices, AdamW for everything else.

    At an equal number of steps Muon halved the held-out NLL above the floor that AdamW reached with its best rate.
    """
    wanted = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [p for name, p in wanted if p.dim() == 2 and ".blocks." in name]
    others = [p for name, p in wanted if not (p.dim() == 2 and ".blocks." in name)]
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)]
    if matrices:
        muon_rate = MUON_RATE * learning_rate
        optimizers.append(torch.optim.Muon(matrices, lr=muon_rate, weight_decay=weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def _has_bfloat16(device: torch.device) -> bool:
    """Whether bf16 is native there; emulated, it would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
