"""How fast worlds are stepped and drawn, beside what the machine could do: `worldflow bench step | sample`.

step    environment steps a second of `LearnedVectorEnv`, frames decoded or left in the latent
sample  drawing frames one after the other, against scoring the same frames in one parallel pass: the floor of a
        causal flow, each token through each layer once. The error is against the sequential answer. Compiled steps are
        whole: they decode each frame and encode it again, so beside them stands one pass through these layers, too
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor
from tyro.conf import Positional, arg

from worldflow.bench_predict import imaginary, predicted_seconds, step_counts
from worldflow.bench_report import measured_world, report
from worldflow.recipes import Preset
from worldflow.state import WorldState
from worldflow.timing import copy_rate, count_flops, timed
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from worldflow.flow import FlowOutput
    from worldflow.jacobi import Method
    from worldflow.types import Transition

__all__ = ["SampleBench", "StepBench", "sample_speed", "step_speed"]

FRAMES = 8
"""Frames that are drawn in a row."""
WHOLE = "scoring, decoding, encoding, one pass"
"""One pass through every layer of a whole step."""


def step_speed(
    world: WorldModel,
    *,
    batches: Sequence[int] = (1, 16),
    is_compiled: bool = False,
    predict: Sequence[Preset] = (),
    seconds: float = 3.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Environment steps a second, a row for each batch and kind of observation.

    Args:
        world: The world.
        batches: Environments side by side.
        is_compiled: Step in compiled code.
        predict: Presets for rows that are predicted from this world's (`worldflow.bench_predict`).
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
            fast = world.compiled(num_envs)
            if fast is None:
                flops = count_flops(lambda e=envs, a=actions: e.step(a))
            else:
                flops = step_counts(world, fast.batch_size).flops
            rows.append(
                {
                    "size": "measured",
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
    return [*rows, *_predicted(world, rows, predict)] if predict else rows


def _predicted(world: WorldModel, rows: Sequence[dict[str, Any]], presets: Sequence[Preset]) -> list[dict[str, Any]]:
    """Rows of other sizes, from those with decoded frames that were measured."""
    bandwidth, this = copy_rate(world.device), imaginary(world, None)
    measured = [(row, step_counts(this, row["batch"])) for row in rows if row["observation"] == "pixels"]
    found = []
    for preset in presets:
        other = imaginary(world, preset)
        for row, like in measured:
            counted = step_counts(other, row["batch"])
            took = predicted_seconds(counted, like=like, took=1e-3 * row["milliseconds"], bandwidth=bandwidth)
            foretold = {
                "size": f"{preset}, predicted",
                "steps_per_second": row["batch"] / took,
                "milliseconds": 1e3 * took,
                "early_milliseconds": 1e3 * took,
                "gflop_per_step": counted.flops / row["batch"] / 1e9,
                "gflops": counted.flops / took / 1e9,
            }
            found.append(row | foretold)
    return found


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
    `cost` is in scorings of codes, in one pass; `passes` in passes through the same layers. They differ where frames
    are decoded and encoded, too: in compiled steps, which are whole ones, with everything.

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

            def followed(
                x: Tensor = x, actions: Tensor = actions, shown: Tensor | None = shown, at: WorldState = state
            ) -> Tensor:
                now: WorldState | None = at
                found = []
                for t in range(FRAMES):
                    one = slice(t, t + 1)
                    out = world.flow(
                        x[:, one], actions[:, one], shown=None if shown is None else shown[:, one], state=now
                    )
                    found.append(out.log_prob)
                    now = out.state
                return torch.cat(found, dim=1)

            def everything(x: Tensor = x, score: Callable[[], FlowOutput] = scored) -> tuple[Tensor, ...]:
                out = score()
                outcomes = world.reward.mean(out.hidden), world.termination.logit(out.hidden)
                return (world.codes(world.codec.decode(x.flatten(0, 1))), *outcomes)

            log_prob = scored().log_prob
            off = float((followed() - log_prob).abs().max() / log_prob.abs().max())
            score = timed(scored, seconds=seconds)
            ones: list[tuple[str, Callable[[], object], float]] = [
                ("scoring, one pass", scored, 0.0),
                ("scoring, frame by frame", followed, off),
            ]
            if is_compiled:
                ones.append((WHOLE, everything, 0.0))
            taken: dict[str, float] = {}
            for method, way, error in ones:
                took = score if way is scored else timed(way, seconds=seconds)
                taken[method] = took.median
                rows.append(
                    {
                        "batch": B,
                        "method": method,
                        "milliseconds": 1e3 * took.median,
                        "cost": took.median / score.median,
                        "passes": 1.0 if way is everything else took.median / score.median,
                        "calls": 1.0,
                        "error": error,
                        "gflops": count_flops(way) / took.median / 1e9,
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
                        "passes": took.median / score.median,
                        "calls": calls,
                        "error": float((found - exact).abs().max() / exact.abs().max()),
                        "gflops": flops / took.median / 1e9,
                    }
                )
            if is_compiled:
                rows.append(_compiled_row(world, state, actions, z, score.median, taken[WHOLE], seconds=seconds))
    return rows


def _compiled_row(
    world: WorldModel, state: WorldState, actions: Tensor, z: Tensor, score: float, one_pass: float, *, seconds: float
) -> dict[str, Any]:
    """Whole steps in compiled code, beside the seconds of a scoring pass and of one pass through everything.

    The error is against sequential steps.
    """
    B = len(state)
    world.compile_step(B)
    fast = world.compiled(B)
    assert fast is not None
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
        "passes": took.median / one_pass,
        "calls": float(world.flow.deep.frames.slots),
        "error": float((found - exact).abs().max() / exact.abs().max()),
        "gflops": FRAMES * step_counts(world, fast.batch_size).flops / took.median / 1e9,
    }


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
    predict: tuple[Preset, ...] = ()
    """Other sizes, predicted from their operations and weights and marked so."""
    seconds: float = 3.0
    """How long each row is measured."""
    out: str | None = None
    """JSON file for the rows."""

    def __call__(self) -> None:
        """Measure and print."""
        world = measured_world(self.run, self.preset)
        options = {"is_compiled": self.compile, "predict": self.predict, "seconds": self.seconds}
        rows = step_speed(world, batches=self.batches, **options)
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
        world = measured_world(self.run, self.preset)
        options = {"tolerances": self.tolerances, "is_compiled": self.compile, "seconds": self.seconds}
        rows = sample_speed(world, batches=self.batches, **options)
        report(rows, out=self.out, device=world.device, title="sample")
