"""Benchmarks against others' implementations, each with its table: `worldflow bench density`.

`density`: bits per dimension of scikit-learn's digits (1797 images of 8x8, 17 levels), uniformly dequantized, of our
`ImageFlow` and of the flows of zuko, whose best settings are searched first. All have the same split, the same points
of dequantization, the same loop (`worldflow.density`), the same looks at the same validation images, and the same CPU
time, counted by the CPU and not by the wall.

Reference: Rozet et al., 2022, "Zuko: Normalizing flows in PyTorch".
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from worldflow.atomic import write_bytes
from worldflow.bits import Bits, bits_per_dim, dequantized, dequantized_log_prob
from worldflow.density import DensityFit, DensityLoss, FitConfig, LabelledImages, fit_density
from worldflow.hints import did_you_mean
from worldflow.images import ImageConfig, ImageFlow, save_images, train_images
from worldflow.marginals import Marginals

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["RECIPES", "DensityBench", "Recipe", "Result", "Splits", "as_table", "density", "digits"]

LEVELS, CLASSES, SHAPE = 17, 10, (8, 8, 1)
DIM = math.prod(SHAPE)
OURS = "TarFlow"

Space = Literal["plain", "logit", "marginals"]
"""Where a flow models images: as they are, with mean 0 and variance 1; by the logit of the cube; by
`worldflow.marginals`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A density and how it is fitted."""

    flow: str
    """`TarFlow`, or a class of `zuko.flows`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `ImageConfig`, or of the class."""
    space: Space = "marginals"
    """Where it models images."""
    is_marginal: bool = False
    """Learn `p(x | class)` and report `log mean_c p(x | c)`."""
    hidden_labels: float = 0.0
    """Share of images whose label is hidden in a step, where classes are learned at all."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 1e-4
    """Of matrices."""
    batch_size: int = 64
    """Images of a step."""
    average: float = 0.99
    """Of the running mean of weights."""
    minutes: float | None = None
    """Most CPU minutes over which the learning rate falls: what learns few images by heart is better off with fewer."""

    def capped(self, minutes: float) -> float:
        """Of so many minutes, those it takes."""
        return minutes if self.minutes is None else min(minutes, self.minutes)

    def __str__(self) -> str:
        """All that is told in a table of the search."""
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        classes = ", classes summed over" if self.is_marginal else ""
        limit = "" if self.minutes is None else f" for at most {self.minutes:g} minutes"
        return f"{self.flow}({options}) on {self.space}{classes}, rate {self.learning_rate:g}{limit}"


def _theirs(flow: str, options: Mapping[str, Any], *, minutes: float) -> list[Recipe]:
    """What a family is offered: three spaces, and in ours the classes, too; the rate falls over `minutes` or more."""
    spaces: tuple[Space, ...] = ("marginals", "plain", "logit")
    made = [Recipe(flow=flow, options=options, space=space, minutes=minutes) for space in spaces]
    return [*made, Recipe(flow=flow, options=options, is_marginal=True, minutes=minutes)]


HIDDEN = {"hidden_features": (128, 128)}
RECIPES: dict[str, list[Recipe]] = {
    OURS: [
        Recipe(
            flow=OURS,
            options={"patch_size": 2, "layers": (2, 2, 2, 2), "width": 64},
            is_marginal=True,
            hidden_labels=0.3,
            learning_rate=2e-3,
            weight_decay=0.1,
            minutes=2.0,
        ),
    ],
    "NSF": _theirs("NSF", {"bins": 8, "transforms": 3, **HIDDEN}, minutes=1.5),
    "MAF": _theirs("MAF", {"transforms": 5, **HIDDEN}, minutes=0.3),
    "NICE": _theirs("NICE", {"transforms": 5, **HIDDEN}, minutes=0.25),
    "SOSPF": _theirs("SOSPF", {"transforms": 3, **HIDDEN}, minutes=1.5),
    "BPF": _theirs("BPF", {"transforms": 3, **HIDDEN}, minutes=1.5),
}
"""What is searched, family by family."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Digits to learn from, to choose by and to report on."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a density came to."""

    recipe: Recipe
    validation_bits: float
    """Of the density that is reported, on the images that chose the weights, and that choose between recipes."""
    bits: Bits | None
    """On test images; None in the search, which never sees them."""
    parameters: int
    seconds: float
    """CPU seconds taken."""
    best_seconds: float
    """When the weights were kept."""
    steps: int


@dataclass(frozen=True, kw_only=True)
class DensityBench:
    """Bits per dimension of digits, beside zuko's flows, in the same CPU time."""

    minutes: float = 10.0
    """CPU minutes for each model of the table."""
    search_minutes: float = 1.0
    """CPU minutes for each recipe of a family's search; a family of one recipe is not searched. Who wins with all the
    minutes that its recipe takes is not trained again."""
    flows: tuple[str, ...] = tuple(RECIPES)
    """Which families: TarFlow is ours, the others are classes of zuko.flows."""
    finalists: int = 3
    """How many of zuko's families, the best of the search, are trained to the end; NSF and MAF always are."""
    patience: float = 0.35
    """Stop when validation has not improved for this share of the minutes."""
    draws: int = 8
    """Dequantizations of each test image."""
    seed: int = 0
    """Of the split and of everything random."""
    out: str | None = None
    """JSON file for all of it, the search included."""
    weights: str | None = None
    """File for our flow, as `worldflow.images.load_images` reads it."""
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
        for name in ("draws", "finalists"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def __call__(self) -> dict[str, Any] | None:
        """Search, train, measure and print the table."""
        if self.out is not None and Path(self.out).is_dir():
            raise IsADirectoryError(f"--out must name a file to write, got the folder {self.out}")
        results, search = density(self)
        plain = _as_plain(self, results, search)
        if self.out is not None:
            write_bytes(self.out, json.dumps(plain, indent=1).encode())
        if self.json:
            return plain
        print(as_table(results))
        print(f"\n{_machine()}")
        return None


def digits(seed: int = 0) -> Splits:
    """scikit-learn's digits, a fifth of them for the test, a tenth for the validation.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'worldflow[bench]'") from error
    images, labels = load_digits(return_X_y=True)
    everything = LabelledImages(
        images=torch.from_numpy(images).long().view(-1, *SHAPE), labels=torch.from_numpy(labels).long()
    )
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))
    tested = len(order) // 5
    validated = tested + len(order) // 10
    return Splits(
        test=everything[order[:tested]],
        validation=everything[order[tested:validated]],
        train=everything[order[validated:]],
    )


def density(config: DensityBench) -> tuple[list[Result], list[Result]]:
    """Search every family on validation images, then train the winners and measure them on the test images.

    Returns:
        The winners, best first, and the search.

    Raises:
        ImportError: If zuko or scikit-learn is not installed.
    """
    splits = digits(config.seed)
    search: list[Result] = []
    winners: dict[str, _Fitted] = {}
    total = sum(len(RECIPES[family]) for family in config.flows)
    with tqdm(total=total, desc="search", disable=config.quiet) as bar:
        for family in config.flows:
            # One recipe alone is not searched, it is trained to the end.
            minutes = config.search_minutes if len(RECIPES[family]) > 1 else config.minutes
            for recipe in RECIPES[family]:
                bar.set_postfix_str(str(recipe))
                fitted = _fitted(recipe, splits, config, minutes=minutes)
                search.append(fitted.result)
                if family not in winners or fitted.result.validation_bits < winners[family].result.validation_bits:
                    winners[family] = fitted
                bar.update()
    theirs = sorted((f for f in winners if f != OURS), key=lambda f: winners[f].result.validation_bits)
    results = []
    for family in {OURS, "NSF", "MAF", *theirs[: config.finalists]} & set(winners):
        found = winners[family]
        if found.minutes < found.result.recipe.capped(config.minutes):
            found = _fitted(found.result.recipe, splits, config, minutes=config.minutes)
        results.append(replace(found.result, bits=_bits(found.log_prob, splits.test, config)))
        if config.weights is not None and isinstance(found.module, ImageFlow):
            save_images(config.weights, found.module)
    return sorted(results, key=lambda result: result.bits.mean if result.bits else math.inf), search


def as_table(results: Sequence[Result]) -> str:
    """The winners, a line each."""
    head = f"{'density':<10}{'bits/dim':>18}{'tighter':>9}{'parameters':>12}{'CPU s':>7}{'kept at':>9}  recipe"
    lines = [head]
    for result in results:
        assert result.bits is not None
        measured = f"{result.bits.mean:.4f} +- {result.bits.standard_error:.4f}"
        lines.append(
            f"{result.recipe.flow:<10}{measured:>18}{result.bits.tighter:>9.4f}{result.parameters:>12}"
            f"{result.seconds:>7.0f}{result.best_seconds:>9.0f}  {result.recipe}"
        )
    return "\n".join(lines)


class _Theirs:
    """One of zuko's flows, as a density of the unit cube."""

    def __init__(self, recipe: Recipe, train: LabelledImages, *, seed: int) -> None:
        try:
            import zuko.flows
        except ImportError as error:
            raise ImportError("the other flows come with zuko: pip install 'worldflow[bench]'") from error
        self._recipe = recipe
        with torch.random.fork_rng(devices=[]):  # zuko draws weights from the global generator: borrow it, give it back
            torch.manual_seed(seed)
            context = CLASSES if recipe.is_marginal else 0
            self.module: nn.Module = getattr(zuko.flows, recipe.flow)(DIM, context=context, **recipe.options)
        self._marginals = Marginals(DIM, LEVELS)
        self._marginals.count(train.images.flatten(1))
        x = (train.images + 0.5) / LEVELS
        self._mean, self._std = float(x.mean()), float(x.std())

    def fit(self, splits: Splits, config: FitConfig, *, progress: bool) -> DensityFit:
        """Fit it, as ours is."""

        def loss(module: nn.Module, generator: torch.Generator) -> DensityLoss:
            def bits(images: Tensor, labels: Tensor) -> Tensor:
                x = dequantized(images, LEVELS, generator=generator)
                return (math.log(LEVELS) - self._of(module, x, labels) / DIM) / math.log(2)

            return bits

        return fit_density(self.module, loss, splits.train, splits.validation, config=config, progress=progress)

    def log_prob(self, x: Float[Tensor, "batch row column channel"]) -> Float[Tensor, " batch"]:
        """Log-density that is reported, in nats."""
        if not self._recipe.is_marginal:
            return self._of(self.module, x, None)
        by_class = [self._of(self.module, x, torch.full((len(x),), c)) for c in range(CLASSES)]
        return torch.stack(by_class).logsumexp(0) - math.log(CLASSES)

    def _of(self, module: nn.Module, x: Tensor, label: Tensor | None) -> Tensor:
        t, log_det = self._mapped(x.flatten(1))
        if not self._recipe.is_marginal:
            return module().log_prob(t) + log_det
        assert label is not None
        context = nn.functional.one_hot(label.clamp(min=0), CLASSES).to(t) * (label >= 0)[:, None]
        return module(context).log_prob(t) + log_det

    def _mapped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        match self._recipe.space:
            case "marginals":
                return self._marginals(x)
            case "plain":
                return (x - self._mean) / self._std, x.new_full((len(x),), -DIM * math.log(self._std))
            case "logit":
                inside = 0.01 + 0.98 * x
                return inside.logit(), (math.log(0.98) - inside.log() - (1 - inside).log()).sum(-1)


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    result: Result
    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    minutes: float


def _bits(log_prob: Callable[[Tensor], Tensor], part: LabelledImages, config: DensityBench) -> Bits:
    points = torch.Generator().manual_seed(config.seed + 2)
    rows = dequantized_log_prob(log_prob, part.images, LEVELS, draws=config.draws, generator=points)
    return bits_per_dim(rows, DIM, LEVELS)


def _fitted(recipe: Recipe, splits: Splits, config: DensityBench, *, minutes: float) -> _Fitted:
    minutes = recipe.capped(minutes)
    fit = FitConfig(
        minutes=minutes,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        hidden_labels=recipe.hidden_labels if recipe.is_marginal else 1.0,
        average=recipe.average,
        look_seconds=2 * minutes,  # thirty looks
        patience=config.patience,
        seed=config.seed,
    )
    if recipe.flow == OURS:
        classes = CLASSES if recipe.is_marginal else 0
        ours = ImageConfig(shape=SHAPE, levels=LEVELS, num_classes=classes, **recipe.options)
        module, found = train_images(splits.train, splits.validation, config=ours, fit=fit, progress=not config.quiet)
        log_prob = module.marginal_log_prob if recipe.is_marginal else module.log_prob
    else:
        theirs = _Theirs(recipe, splits.train, seed=config.seed)
        module, found = theirs.module, theirs.fit(splits, fit, progress=not config.quiet)
        log_prob = theirs.log_prob
    result = Result(
        recipe=recipe,
        validation_bits=_bits(log_prob, splits.validation, config).mean,
        bits=None,
        parameters=sum(p.numel() for p in module.parameters()),
        seconds=found.seconds,
        best_seconds=found.best_seconds,
        steps=found.steps,
    )
    return _Fitted(result=result, module=module, log_prob=log_prob, minutes=minutes)


def _as_plain(config: DensityBench, results: Sequence[Result], search: Sequence[Result]) -> dict[str, Any]:
    return {
        "dataset": "scikit-learn digits, 8x8, 17 levels, uniformly dequantized",
        "config": asdict(config),
        "machine": _machine(),
        "table": [asdict(result) for result in results],
        "search": [asdict(result) for result in search],
    }


def _machine() -> str:
    import importlib.metadata

    threads = torch.get_num_threads()
    return (
        f"{platform.machine()}, {threads} thread{'s' * (threads > 1)}, {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, zuko {importlib.metadata.version('zuko')}"
    )
