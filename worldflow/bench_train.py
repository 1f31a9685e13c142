"""How fast worlds are trained and recordings read: `worldflow bench train | data`.

train   training steps of the flow, against plain loops of the same model in autocast, with AdamW or torch's own Muon
data    windows of recordings read from disk
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from tyro.conf import Positional, arg

from worldflow.bench_predict import imaginary, predicted_seconds, train_counts
from worldflow.bench_report import measured_world, report
from worldflow.data import Dataset, gather
from worldflow.fit import FLOW, DrawnLoss, fit
from worldflow.index import sample_index
from worldflow.latents import LatentBatch
from worldflow.log import NoLog
from worldflow.loss import draw_clips, loss_of_drawn
from worldflow.muon import has_bfloat16
from worldflow.recipes import Preset, TrainConfig
from worldflow.timing import copy_rate, count_flops, timed
from worldflow.world import WorldModel

__all__ = ["DataBench", "TrainBench", "data_speed", "train_speed"]


def train_speed(
    world: WorldModel,
    *,
    batch: int = 32,
    length: int = 24,
    predict: Sequence[Preset] = (),
    seconds: float = 10.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Transitions a second of training steps, ours and those of plain loops, in turns.

    Args:
        world: What to train; it is copied.
        batch: Clips of a step.
        length: Transitions of a clip.
        predict: Presets for rows of our loop that are predicted from this world's (`worldflow.bench_predict`).
        seconds: How long each is measured.
        seed: Of the clips, which are noise.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = generator if world.device.type == "cpu" else torch.Generator(world.device).manual_seed(seed)
    config = TrainConfig(batch=batch, length=length)
    flow, data = world.config.flow, world.config.data
    shape = (batch, length + 1, flow.num_tokens, flow.latent_dim)
    x = torch.randn(shape, generator=generator)
    actions = torch.zeros(
        batch, length, *data.action.shape, dtype=torch.from_numpy(np.zeros(1, data.action.dtype)).dtype
    )
    clips = LatentBatch(
        x=x,
        shown=x,
        actions=actions,
        rewards=torch.zeros(batch, length),
        terminated=torch.zeros(batch, length, dtype=torch.bool),
        valid=torch.ones(batch, length, dtype=torch.bool),
    ).to(world.device)
    narrow = has_bfloat16(world.device)

    def draw(model: WorldModel) -> dict[str, Tensor]:
        return draw_clips(model, clips, generator=generator, noise=noise, config=config)

    def loss(model: WorldModel) -> Tensor:
        return loss_of_drawn(model, draw(model), config=config).total

    models = [copy.deepcopy(world).train().requires_grad_(True) for _ in range(3)]
    for model in models:
        model.codec.eval().requires_grad_(False)
    ours = models.pop()

    def plain_step(model: WorldModel, optimizers: list[torch.optim.Optimizer]) -> None:
        with torch.autocast(world.device.type, dtype=torch.bfloat16):
            value = loss(model)
        for optimizer in optimizers:
            optimizer.zero_grad()
        value.backward()
        for optimizer in optimizers:
            optimizer.step()

    plain = {
        "plain autocast, AdamW": partial(plain_step, models[0], _optimizers(models[0], has_muon=False)),
        "plain autocast, torch.optim.Muon": partial(plain_step, models[1], _optimizers(models[1], has_muon=True)),
    }
    first = next(iter(plain.values()))
    steps = max(3, round(seconds / max(timed(first, seconds=0, warm_up=1, at_least=2).median, 1e-3)))

    def our_loss(drawn: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        found = loss_of_drawn(ours, drawn, config=config)
        return found.total, {FLOW.headline: found.above_floor.detach()}

    def seconds_of(steps: int) -> float:
        begin = time.perf_counter()
        fit(
            ours,
            DrawnLoss(lambda: draw(ours), our_loss),
            NoLog(),
            stage=FLOW,
            steps=steps,
            minutes=None,
            learning_rate=1e-4,
            weight_decay=0.01,
            clip_norm=1.0,
            items=batch * length,
            device=world.device,
            start=None,
            look=None,
            look_every=1e9,
            save=lambda _: None,
            save_every=1e9,
            progress=False,
        )
        return time.perf_counter() - begin

    before = {name: timed(step, seconds=seconds / 2, warm_up=1).median for name, step in plain.items()}
    begun = seconds_of(2)  # what a fit takes once: optimizers' memory, on a GPU recording the steps
    our_time = (seconds_of(steps + 2) - begun) / steps
    after = {name: timed(step, seconds=seconds / 2, warm_up=0).median for name, step in plain.items()}
    flops = count_flops(first)
    taken = {"worldflow": our_time, **{name: (before[name] + after[name]) / 2 for name in plain}}

    def row(size: str, name: str, seconds: float, flops: int) -> dict[str, Any]:
        return {
            "size": size,
            "loop": name,
            "transitions_per_second": batch * length / seconds,
            "milliseconds": 1e3 * seconds,
            "gflops": flops / seconds / 1e9,
            "bfloat16": narrow if name == "worldflow" else True,
        }

    rows = [row("measured", name, time_taken, flops) for name, time_taken in taken.items()]
    bandwidth = copy_rate(world.device) if predict else 0.0
    like = train_counts(imaginary(world, None), batch=batch, length=length) if predict else None
    for preset in predict:
        assert like is not None
        counted = train_counts(imaginary(world, preset), batch=batch, length=length)
        expected = predicted_seconds(counted, like=like, took=our_time, bandwidth=bandwidth)
        rows.append(row(f"{preset}, predicted", "worldflow", expected, counted.flops))
    return rows


def _optimizers(world: WorldModel, *, has_muon: bool) -> list[torch.optim.Optimizer]:
    """Those of torch: AdamW for everything, or Muon for the transformers' matrices as in `worldflow.fit`."""
    wanted = {name: p for name, p in world.named_parameters() if p.requires_grad}
    matrices = {name: p for name, p in wanted.items() if has_muon and p.dim() == 2 and ".blocks." in name}
    others: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([p for name, p in wanted.items() if name not in matrices], lr=1e-4)
    ]
    return [*others, torch.optim.Muon(list(matrices.values()), lr=1e-3)] if matrices else others


def data_speed(dataset: Dataset, *, batch: int = 32, length: int = 24, seconds: float = 3.0) -> list[dict[str, Any]]:
    """Windows and frames a second that come from disk.

    Args:
        dataset: The data set.
        batch: Windows in one go.
        length: Transitions of a window.
        seconds: How long to read.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = np.asarray(dataset.lengths, dtype=np.int64)

    def read() -> None:
        gather(
            dataset,
            sample_index(lengths, length, batch, generator=generator, episodes=dataset.episodes("train")),
            length,
        )

    took = timed(read, seconds=seconds)
    size = int(np.prod(dataset.spec.frame_shape))
    frames = batch * (length + 1) / took.median
    return [
        {
            "windows_per_second": batch / took.median,
            "frames_per_second": frames,
            "megabytes_per_second": frames * size / 1e6,
        }
    ]


@dataclass(frozen=True, kw_only=True)
class TrainBench:
    """Transitions a second of the flow's training, beside a plain loop of the same model."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """Folder of the run, or the name of a world that ships: what to train."""
    batch: int = 32
    """Clips of a step."""
    length: int = 24
    """Transitions of a clip."""
    preset: Preset | None = None
    """Another size, with random weights, for the run's spaces."""
    predict: tuple[Preset, ...] = ()
    """Other sizes, predicted from their operations and weights and marked so."""
    seconds: float = 10.0
    """How long each loop is measured."""
    out: str | None = None
    """JSON file for the rows."""

    def __call__(self) -> None:
        """Measure and print."""
        world = measured_world(self.run, self.preset)
        options = {"batch": self.batch, "length": self.length, "predict": self.predict, "seconds": self.seconds}
        rows = train_speed(world, **options)
        report(rows, out=self.out, device=world.device, title="train")


@dataclass(frozen=True, kw_only=True)
class DataBench:
    """Windows of recordings read from disk a second."""

    dataset: Positional[Annotated[str, arg(metavar="DATASET")]]
    """Folder of the data set."""
    batch: int = 32
    """Windows in one go."""
    length: int = 24
    """Transitions of a window."""
    seconds: float = 3.0
    """How long to read."""
    out: str | None = None
    """JSON file for the rows."""

    def __call__(self) -> None:
        """Measure and print."""
        rows = data_speed(Dataset(self.dataset), batch=self.batch, length=self.length, seconds=self.seconds)
        report(rows, out=self.out, device="cpu", title="data")
