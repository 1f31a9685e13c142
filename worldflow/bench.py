"""Benchmarks against others' implementations, each with its table: `worldflow bench density`.

`density`: bits per dimension of scikit-learn's digits (1797 images of 8x8, 17 levels), uniformly dequantized, of our
`ImageFlow` and of the flows of zuko. All have the same splits, the same points of dequantization, the same loop
(`worldflow.density`), the same looks at the same validation images, and the same CPU time, counted by the CPU and not
by the wall.

The same CPU time means that it is spent, to within a hundredth. On so few images a fit is over long before: it ends
when its learning rate has fallen, or when validation has not improved for long (`patience`). The rest of the minutes
then goes to further fits from other weights, at 1, 1/2 and 2 times the recipe's learning rate in turn, and after each
such round fits may take twice as long. Validation images decide between all of a family's fits, and the test images
are looked at once, under the winner. Nobody has less time than anybody else, nor fewer chances than it buys.

What comes on top is for the others alone: a family with several recipes is searched on the first seed's validation
images, `search_minutes` each, to find the one that it takes part with.
"""

from __future__ import annotations

import itertools
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from worldflow.atomic import write_bytes
from worldflow.bench_flows import CLASSES, DIM, LEVELS, OURS, RECIPES, SHAPE, Recipe, Splits, Theirs, digits
from worldflow.bits import Bits, bits_per_dim, dequantized_log_prob
from worldflow.density import FitConfig, LabelledImages, NeverFiniteError
from worldflow.hints import did_you_mean
from worldflow.images import ImageConfig, ImageFlow, save_images, train_images

__all__ = ["DensityBench", "Result", "Row", "Trial", "as_table", "density"]

RATES = (1.0, 0.5, 2.0)
"""Learning rates of a round of fits, as multiples of the recipe's."""
LEAST_SHARE = 0.01
"""Share of the minutes that is not worth another fit."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One of the fits that the minutes were spent on."""

    learning_rate: float
    minutes: float
    """Most that it might take."""
    seconds: float
    """CPU seconds that it took."""
    validation_bits: float | None
    """Of the density that is reported, on the images that chose the weights; None if it was never finite."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a recipe came to with one seed."""

    recipe: Recipe
    seed: int
    validation_bits: float
    """The best of all trials."""
    bits: Bits | None
    """On test images; None in the search, which never sees them."""
    parameters: int
    seconds: float
    """CPU seconds of all trials."""
    trials: tuple[Trial, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: a recipe over all seeds."""

    recipe: Recipe
    mean: float
    """Bits per dimension of test images, averaged over seeds."""
    spread: float | None
    """Their standard deviation over seeds, which decide splits, weights and noise; None of one seed."""
    tighter: float
    """The tighter bound, averaged."""
    parameters: int
    minutes: float
    """CPU minutes that were taken for a seed, averaged."""
    results: tuple[Result, ...]
    """Seed by seed."""


@dataclass(frozen=True, kw_only=True)
class DensityBench:
    """Bits per dimension of digits, beside zuko's flows, in the same CPU time."""

    minutes: float = 10.0
    """CPU minutes that every model of the table spends for each seed."""
    seeds: int = 3
    """How many times all is done anew, with other splits, weights and noise: the table shows mean and spread."""
    search_minutes: float = 1.0
    """CPU minutes on top for each recipe of a family that has several, to choose one of them."""
    flows: tuple[str, ...] = tuple(RECIPES)
    """Which families: TarFlow is ours, the others are classes of zuko.flows."""
    finalists: int = 3
    """How many of zuko's families, the best of the search, take part; NSF and MAF always do."""
    patience: float = 0.35
    """A fit ends when validation has not improved for this share of its minutes; what is left goes to another one."""
    draws: int = 8
    """Dequantizations of each test image."""
    seed: int = 0
    """The first seed, of the split and of everything random."""
    out: str | None = None
    """JSON file for all of it, every fit and the search included."""
    weights: str | None = None
    """File for our flow of the first seed, as `worldflow.images.load_images` reads it."""
    quiet: bool = False
    """Show no progress bars."""
    json: bool = False
    """Print everything as JSON."""

    def __post_init__(self) -> None:
        for name in self.flows:
            if name not in RECIPES:
                raise ValueError(f"unknown flow {name!r}{did_you_mean(name, RECIPES)}")
        for name in ("minutes", "search_minutes", "patience"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("draws", "finalists", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def __call__(self) -> dict[str, Any] | None:
        """Search, train, measure and print the table."""
        if self.out is not None and Path(self.out).is_dir():
            raise IsADirectoryError(f"--out must name a file to write, got the folder {self.out}")
        rows, search = density(self)
        plain = _as_plain(self, rows, search)
        if self.out is not None:
            write_bytes(self.out, json.dumps(plain, indent=1).encode())
        if self.json:
            return plain
        print(as_table(rows))
        print(f"\n{_machine()}")
        return None


def density(config: DensityBench) -> tuple[list[Row], list[Result]]:
    """Choose a recipe for every family on validation images, then train it with every seed and measure it on the test.

    Returns:
        The table, best first, and the search.

    Raises:
        ImportError: If zuko or scikit-learn is not installed.
        NeverFiniteError: If a recipe never has a finite density of validation images.
    """
    chosen, search = _searched(config)
    runs = list(itertools.product(chosen, range(config.seed, config.seed + config.seeds)))
    results: dict[str, list[Result]] = {family: [] for family in chosen}
    for family, seed in tqdm(runs, desc="seeds", disable=config.quiet):
        splits = digits(seed)
        result, best = spent(chosen[family], splits, config, minutes=config.minutes, seed=seed)
        bits = bits_per_dim(_rows(best.log_prob, splits.test, config, seed=seed), DIM, LEVELS)
        results[family].append(replace(result, bits=bits))
        if config.weights is not None and seed == config.seed and isinstance(best.module, ImageFlow):
            save_images(config.weights, best.module)
    return sorted((_row(found) for found in results.values()), key=lambda row: row.mean), search


def as_table(rows: Sequence[Row]) -> str:
    """The rows, a line each."""
    lines = [
        f"{'density':<10}{'bits/dim':>18}{'tighter':>9}{'parameters':>12}{'CPU min':>9}{'seeds':>7}{'fits':>6}  recipe"
    ]
    for row in rows:
        measured = f"{row.mean:.4f}" if row.spread is None else f"{row.mean:.4f} +- {row.spread:.4f}"
        fits = sum(len(result.trials) for result in row.results)
        lines.append(
            f"{row.recipe.flow:<10}{measured:>18}{row.tighter:>9.4f}{row.parameters:>12}{row.minutes:>9.2f}"
            f"{len(row.results):>7}{fits:>6}  {row.recipe}"
        )
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    """Log-density that is reported."""


def spent(
    recipe: Recipe,
    splits: Splits,
    config: DensityBench,
    *,
    minutes: float,
    seed: int,
    clock: Callable[[], float] = time.process_time,
) -> tuple[Result, _Fitted]:
    """Spend the minutes on fits of a recipe, one after the other; the best of them on validation images.

    Args:
        recipe: What to fit.
        splits: Images.
        config: Of the benchmark.
        minutes: CPU minutes to spend.
        seed: Of weights and noise; every fit has its own.
        clock: Tells seconds; by default the CPU's that this process took.

    Raises:
        NeverFiniteError: If no fit ever had a finite density of validation images.
    """
    begin, trials = clock(), []
    best: _Fitted | None = None
    best_bits = math.inf
    for number in itertools.count():
        now = clock()
        left = minutes - (now - begin) / 60
        if number and left < LEAST_SHARE * minutes:
            break
        rate = RATES[number % len(RATES)] * recipe.learning_rate
        given = min((recipe.minutes or minutes) * 2 ** (number // len(RATES)), left)
        fitted = _fitted(recipe, splits, config, minutes=given, rate=rate, seed=1000 * seed + number, clock=clock)
        bits = None
        if fitted is not None:
            rows = _rows(fitted.log_prob, splits.validation, config, seed=seed)
            bits = bits_per_dim(rows, DIM, LEVELS).mean if bool(rows.isfinite().all()) else None
        trials.append(Trial(learning_rate=rate, minutes=given, seconds=clock() - now, validation_bits=bits))
        if fitted is not None and bits is not None and bits < best_bits:
            best, best_bits = fitted, bits
    if best is None:
        raise NeverFiniteError(f"{recipe} was never finite on validation images, in {len(trials)} fits; lower its rate")
    result = Result(
        recipe=recipe,
        seed=seed,
        validation_bits=best_bits,
        bits=None,
        parameters=sum(p.numel() for p in best.module.parameters()),
        seconds=clock() - begin,
        trials=tuple(trials),
    )
    return result, best


def _searched(config: DensityBench) -> tuple[dict[str, Recipe], list[Result]]:
    """The recipe that each family takes part with, and the search."""
    search: list[Result] = []
    chosen = {family: RECIPES[family][0] for family in config.flows}
    best: dict[str, float] = {}
    splits = digits(config.seed)
    several = [(family, recipe) for family in config.flows for recipe in RECIPES[family] if len(RECIPES[family]) > 1]
    with tqdm(several, desc="search", disable=config.quiet) as bar:
        for family, recipe in bar:
            bar.set_postfix_str(str(recipe))
            try:
                found, _ = spent(recipe, splits, config, minutes=config.search_minutes, seed=config.seed)
            except NeverFiniteError:
                continue
            search.append(found)
            if found.validation_bits < best.get(family, math.inf):
                chosen[family], best[family] = recipe, found.validation_bits
    theirs = sorted((f for f in best if f != OURS), key=lambda f: best[f])[: config.finalists]
    # Who was not searched takes part; who was, and never was finite, does not.
    kept = {OURS, "NSF", "MAF", *theirs} & set(best) | {f for f in config.flows if len(RECIPES[f]) == 1}
    return {family: recipe for family, recipe in chosen.items() if family in kept}, search


def _fitted(
    recipe: Recipe,
    splits: Splits,
    config: DensityBench,
    *,
    minutes: float,
    rate: float,
    seed: int,
    clock: Callable[[], float],
) -> _Fitted | None:
    """One fit; None if its density of validation images was never finite."""
    fit = FitConfig(
        minutes=minutes,
        batch_size=recipe.batch_size,
        learning_rate=rate,
        weight_decay=recipe.weight_decay,
        hidden_labels=recipe.hidden_labels if recipe.is_marginal else 1.0,
        average=recipe.average,
        look_seconds=2 * minutes,  # thirty looks
        patience=config.patience,
        seed=seed,
    )
    how = {"progress": not config.quiet, "clock": clock}
    try:
        if recipe.flow == OURS:
            classes = CLASSES if recipe.is_marginal else 0
            ours = ImageConfig(shape=SHAPE, levels=LEVELS, num_classes=classes, **recipe.options)
            module, _ = train_images(splits.train, splits.validation, config=ours, fit=fit, **how)
            return _Fitted(module=module, log_prob=module.marginal_log_prob if recipe.is_marginal else module.log_prob)
        theirs = Theirs(recipe, splits.train, seed=seed)
        theirs.fit(splits, fit, **how)
    except NeverFiniteError:
        return None
    return _Fitted(module=theirs.module, log_prob=theirs.log_prob)


def _rows(log_prob: Callable[[Tensor], Tensor], part: LabelledImages, config: DensityBench, *, seed: int) -> Tensor:
    points = torch.Generator().manual_seed(seed + 2)
    return dequantized_log_prob(log_prob, part.images, LEVELS, draws=config.draws, generator=points)


def _row(results: Sequence[Result]) -> Row:
    bits = [result.bits for result in results if result.bits is not None]
    means = [one.mean for one in bits]
    return Row(
        recipe=results[0].recipe,
        mean=statistics.fmean(means),
        spread=statistics.stdev(means) if len(means) > 1 else None,
        tighter=statistics.fmean(one.tighter for one in bits),
        parameters=results[0].parameters,
        minutes=statistics.fmean(result.seconds for result in results) / 60,
        results=tuple(results),
    )


def _as_plain(config: DensityBench, rows: Sequence[Row], search: Sequence[Result]) -> dict[str, Any]:
    return {
        "dataset": "scikit-learn digits, 8x8, 17 levels, uniformly dequantized",
        "config": asdict(config),
        "machine": _machine(),
        "table": [asdict(row) for row in rows],
        "search": [asdict(result) for result in search],
    }


def _machine() -> str:
    import importlib.metadata

    threads = torch.get_num_threads()
    return (
        f"{platform.machine()}, {threads} thread{'s' * (threads > 1)}, {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, zuko {importlib.metadata.version('zuko')}"
    )
