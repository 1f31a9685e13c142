"""How fast worlds are drawn, scored and trained, beside what the machine could do.

    worldflow bench step | sample | train | data, and score (`worldflow.bench_score`)

    step    environment steps a second of `LearnedVectorEnv`, frames decoded or left in the latent
    sample  drawing frames one after the other, against scoring the same frames in one parallel pass: the floor of a
            causal flow, each token through each layer once. The error is against the sequential answer
    train   training steps of the flow, against a plain loop of the same model in autocast with AdamW
    data    windows of recordings read from disk

Rates are beside that of a large matrix product on the same machine, in the same number of threads.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from tyro.conf import Positional, arg

from worldflow.atomic import write_bytes
from worldflow.checkpoint import load
from worldflow.data import Dataset, gather
from worldflow.fit import FLOW, fit
from worldflow.index import sample_index
from worldflow.latents import LatentBatch
from worldflow.log import NoLog
from worldflow.loss import flow_loss
from worldflow.muon import has_bfloat16
from worldflow.recipes import Preset, TrainConfig, world_config
from worldflow.state import WorldState
from worldflow.timing import count_flops, machine, matmul_rate, timed
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from worldflow.compiled import CompiledStep
    from worldflow.flow import FlowOutput
    from worldflow.jacobi import Method
    from worldflow.types import Transition

__all__ = [
    "DataBench",
    "SampleBench",
    "StepBench",
    "TrainBench",
    "data_speed",
    "opened",
    "sample_speed",
    "step_speed",
    "train_speed",
]

FRAMES = 8
"""Frames that are drawn in a row."""


def step_speed(
    world: WorldModel,
    *,
    batches: Sequence[int] = (1, 16),
    is_compiled: bool = False,
    seconds: float = 3.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Environment steps a second, a row for each batch and kind of observation.

    Args:
        world: The world.
        batches: Environments side by side.
        is_compiled: Step in compiled code.
        seconds: How long each is stepped.
        seed: Of everything random.
    """
    from worldflow.envs.learned import LearnedVectorEnv  # a node that trains has no gymnasium

    rows = []
    for num_envs in batches:
        for observation in ("pixels", "latent"):
            options = {"observation": observation, "horizon": 10**9, "termination": "off", "compile": is_compiled}
            envs = LearnedVectorEnv(world, num_envs=num_envs, **options)
            envs.reset(seed=seed)
            envs.action_space.seed(seed)
            actions = envs.action_space.sample()
            early = timed(lambda e=envs, a=actions: e.step(a), seconds=seconds / 2)
            late = timed(lambda e=envs, a=actions: e.step(a), seconds=seconds / 2)
            fast = world._compiled.fitting(num_envs)
            if fast is None:
                flops = count_flops(lambda e=envs, a=actions: e.step(a))
            else:
                flops = _flops_of(fast, world, envs.state)
            rows.append(
                {
                    "batch": num_envs,
                    "compiled": fast is not None,
                    "observation": observation,
                    "steps_per_second": num_envs / late.median,
                    "milliseconds": 1e3 * late.median,
                    "early_milliseconds": 1e3 * early.median,
                    "gflop_per_step": flops / num_envs / 1e9,
                    "gflops": flops / late.median / 1e9,
                }
            )
            envs.close()
    return rows


def sample_speed(
    world: WorldModel,
    *,
    batches: Sequence[int] = (1, 16),
    tolerances: Sequence[float] = (1e-3, 1e-4),
    is_compiled: bool = False,
    seconds: float = 2.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The cost of drawing frames in units of the cost of scoring them, a row for each batch and method.

    Both start behind the same recorded past, with the same actions and the same frames shown, those that are drawn.
    Decoding is not in it, but for compiled steps: these are whole ones, with everything.

    Args:
        world: The world; it must store pasts.
        batches: Rows side by side.
        tolerances: Of the Jacobi iteration.
        is_compiled: Compile steps and measure them, too.
        seconds: How long each is measured.
        seed: Of the noise.

    Raises:
        ValueError: If the world stores no pasts.
    """
    if world.contexts is None:
        raise ValueError("this world stores no pasts to start from")
    contexts, config, rows = world.contexts, world.config.flow, []
    for B in batches:
        generator = torch.Generator().manual_seed(seed)
        pick = torch.arange(B) % len(contexts.frames)
        state = world.start(contexts.frames[pick], contexts.actions[pick], generator=generator)
        z = torch.randn(FRAMES, B, config.num_tokens, config.latent_dim, generator=generator).to(world.device)
        actions = world.encode_actions(contexts.actions[pick])[:, -1:].expand(B, FRAMES, -1).to(world.dtype)

        def drawn(
            method: Method, tolerance: float, *, at: WorldState = state, z: Tensor = z, actions: Tensor = actions
        ) -> tuple[Tensor, float]:
            made, sweeps, now = [], 0, at
            for t in range(FRAMES):
                one = world.flow.draw(now, actions[:, t], z[t], method=method, tolerance=tolerance)
                made.append(one.u)
                sweeps += one.sweeps
                now = one.state
            return torch.stack(made, dim=1), sweeps / FRAMES

        with torch.no_grad():
            exact, _ = drawn("sequential", 0.0)
            x = world.flow.from_deep(exact, tolerance=1e-7)
            shown = exact if config.has_shown else None

            def scored(
                x: Tensor = x, actions: Tensor = actions, shown: Tensor | None = shown, at: WorldState = state
            ) -> FlowOutput:
                return world.flow(x, actions, shown=shown, state=at)

            score = timed(scored, seconds=seconds)
            rows.append(
                {
                    "batch": B,
                    "method": "scoring, one pass",
                    "milliseconds": 1e3 * score.median,
                    "cost": 1.0,
                    "calls": 1.0,
                    "error": 0.0,
                    "gflops": count_flops(scored) / score.median / 1e9,
                }
            )
            ways: list[tuple[Method, float]] = [
                ("sequential", 0.0),
                *(("jacobi", tolerance) for tolerance in tolerances),
            ]
            for method, tolerance in ways:
                found, calls = drawn(method, tolerance)
                took = timed(lambda m=method, t=tolerance, d=drawn: d(m, t), seconds=seconds)
                flops = count_flops(lambda m=method, t=tolerance, d=drawn: d(m, t))
                rows.append(
                    {
                        "batch": B,
                        "method": method if method == "sequential" else f"jacobi, {tolerance:g}",
                        "milliseconds": 1e3 * took.median,
                        "cost": took.median / score.median,
                        "calls": calls,
                        "error": float((found - exact).abs().max() / exact.abs().max()),
                        "gflops": flops / took.median / 1e9,
                    }
                )
            if is_compiled:
                rows.append(_compiled_row(world, state, actions, z, score.median, seconds=seconds))
    return rows


def _compiled_row(
    world: WorldModel, state: WorldState, actions: Tensor, z: Tensor, score: float, *, seconds: float
) -> dict[str, Any]:
    """Whole steps in compiled code, beside the seconds of a scoring pass; the error is against sequential steps."""
    B = len(state)
    world.compile_step(B)
    fast = world._compiled[B]
    chances = torch.full((B, 4), 0.5, dtype=z.dtype, device=z.device)

    def run(step: Callable[[WorldState, Tensor, Tensor], tuple[Transition, WorldState]]) -> Tensor:
        made, now = [], state
        for t in range(FRAMES):
            transition, now = step(now, actions[:, t], z[t])
            made.append(transition.latent)
        return torch.stack(made, dim=1)

    def compiled() -> Tensor:
        return run(lambda now, action, noise: fast(now, action, noise, chances))

    found = compiled()
    exact = run(lambda now, action, noise: world.drawn_step(now, None, action, noise, chances, method="sequential")[:2])
    took = timed(compiled, seconds=seconds)
    return {
        "batch": B,
        "method": "compiled steps, whole",
        "milliseconds": 1e3 * took.median,
        "cost": took.median / score,
        "calls": float(world.flow.deep.frames.slots),
        "error": float((found - exact).abs().max() / exact.abs().max()),
        "gflops": FRAMES * _flops_of(fast, world, state) / took.median / 1e9,
    }


def _flops_of(fast: CompiledStep, world: WorldModel, state: WorldState) -> int:
    """Operations of a compiled step, counted in the step that it was compiled from."""
    rows = fast.batch_size
    features, z = (
        torch.zeros(rows, *shape, dtype=world.dtype)
        for shape in ((world.config.flow.action_dim,), (world.config.flow.num_tokens, world.config.flow.latent_dim))
    )
    chances, begun = torch.full((rows, 4), 0.5, dtype=world.dtype), state[[0] * rows]
    return count_flops(lambda: world.drawn_step(begun, None, features, z, chances, is_traced=True))


def train_speed(
    world: WorldModel, *, batch: int = 32, length: int = 24, seconds: float = 10.0, seed: int = 0
) -> list[dict[str, Any]]:
    """Transitions a second of training steps, ours and a plain loop's, in turns.

    Args:
        world: What to train; it is copied.
        batch: Clips of a step.
        length: Transitions of a clip.
        seconds: How long each is measured.
        seed: Of the clips, which are noise.
    """
    generator = torch.Generator().manual_seed(seed)
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

    def loss(model: WorldModel) -> Tensor:
        return flow_loss(model, clips, generator=generator, config=config).total

    models = [copy.deepcopy(world).train().requires_grad_(True) for _ in range(2)]
    for model in models:
        model.codec.eval().requires_grad_(False)
    plain, ours = models
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-4)

    def plain_step() -> None:
        with torch.autocast(world.device.type, dtype=torch.bfloat16):
            value = loss(plain)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    steps = max(3, round(seconds / max(timed(plain_step, seconds=0, warm_up=1, at_least=2).median, 1e-3)))

    def our_steps() -> None:
        fit(
            ours,
            lambda: (loss(ours), {FLOW.headline: torch.zeros(())}),
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

    theirs = timed(plain_step, seconds=seconds / 2, warm_up=0)
    begin = time.perf_counter()
    our_steps()
    our_time = (time.perf_counter() - begin) / steps
    again = timed(plain_step, seconds=seconds / 2, warm_up=0)
    flops = count_flops(plain_step)
    plain_time = (theirs.median + again.median) / 2
    return [
        {
            "loop": name,
            "transitions_per_second": batch * length / taken,
            "milliseconds": 1e3 * taken,
            "gflops": flops / taken / 1e9,
            "bfloat16": is_narrow,
        }
        for name, taken, is_narrow in (("worldflow", our_time, narrow), ("plain autocast, AdamW", plain_time, True))
    ]


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


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table with a column for each key."""
    names = list(rows[0])
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(rows: Sequence[dict[str, Any]], *, out: str | None, device: torch.device | str, title: str) -> None:
    """Print rows with the machine and its rates, and write them as JSON."""
    dtypes = [torch.float32, *([torch.bfloat16] if has_bfloat16(torch.device(device)) else [])]
    rates = {str(dtype).removeprefix("torch."): matmul_rate(device, dtype=dtype) / 1e9 for dtype in dtypes}
    about = machine(device)
    print(as_table(rows))
    said = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    print(f"\n{about['device']}, {about['threads']} threads, torch {about['torch']}")
    print(f"products of 1024 x 1024, GFLOP/s: {said}")
    if out is not None:
        plain = {"bench": title, "machine": about, "matmul_gflops": rates, "rows": list(rows)}
        write_bytes(out, json.dumps(plain, indent=1).encode())


@dataclass(frozen=True, kw_only=True)
class StepBench:
    """Environment steps a second of a learned world."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """Folder of the run, or the name of a world that ships."""
    batches: tuple[int, ...] = (1, 16)
    """Environments side by side."""
    preset: Preset | None = None
    """Another size, with random weights, for the run's spaces."""
    compile: bool = False
    """Step in compiled code (`WorldModel.compile_step`)."""
    seconds: float = 3.0
    """How long each row is measured."""
    out: str | None = None
    """JSON file for the rows."""

    def __call__(self) -> None:
        """Measure and print."""
        world = opened(self.run, self.preset)
        rows = step_speed(world, batches=self.batches, is_compiled=self.compile, seconds=self.seconds)
        report(rows, out=self.out, device=world.device, title="step")


@dataclass(frozen=True, kw_only=True)
class SampleBench:
    """The cost of drawing frames in units of the cost of scoring them."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """Folder of the run, or the name of a world that ships."""
    batches: tuple[int, ...] = (1, 16)
    """Rows side by side."""
    tolerances: tuple[float, ...] = (1e-3, 1e-4)
    """Of the Jacobi iteration."""
    compile: bool = False
    """Measure whole steps in compiled code, too (`WorldModel.compile_step`)."""
    preset: Preset | None = None
    """Another size, with random weights, for the run's spaces."""
    seconds: float = 2.0
    """How long each row is measured."""
    out: str | None = None
    """JSON file for the rows."""

    def __call__(self) -> None:
        """Measure and print."""
        world = opened(self.run, self.preset)
        options = {"tolerances": self.tolerances, "is_compiled": self.compile, "seconds": self.seconds}
        rows = sample_speed(world, batches=self.batches, **options)
        report(rows, out=self.out, device=world.device, title="sample")


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
    seconds: float = 10.0
    """How long each loop is measured."""
    out: str | None = None
    """JSON file for the rows."""

    def __call__(self) -> None:
        """Measure and print."""
        world = opened(self.run, self.preset)
        rows = train_speed(world, batch=self.batch, length=self.length, seconds=self.seconds)
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


def opened(run: str, preset: Preset | None) -> WorldModel:
    """A run's world, or one of random weights of another size with its data."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    world = load(run, device=device)
    if preset is None:
        return world
    contexts = world.contexts
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        other = WorldModel(world_config(TrainConfig(preset=preset), world.config.data, world.config.reward))
    with torch.no_grad():
        for module in other.modules():  # outputs begin as zeros: the first guess would be the answer
            if isinstance(module, nn.Linear) and not module.weight.any():
                module.weight.normal_(std=0.02)
    other.contexts = contexts
    print(f"random weights of preset {preset}: sweeps are not those of a trained world")
    return other.eval().to(device)
