"""Who takes part in `worldflow bench density`: digits, recipes, and zuko's flows as densities of the unit cube.

Reference: Rozet et al., 2022, "Zuko: Normalizing flows in PyTorch".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from worldflow.bits import dequantized
from worldflow.density import DensityFit, DensityLoss, FitConfig, LabelledImages, fit_density
from worldflow.marginals import Marginals

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["CLASSES", "DIM", "LEVELS", "OURS", "RECIPES", "SHAPE", "Recipe", "Space", "Splits", "Theirs", "digits"]

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
    """CPU minutes of the first fits, over which the learning rate falls: what learns few images by heart is better off
    with fewer. Later fits may take longer. None takes all there are."""

    def __str__(self) -> str:
        """All that is told in a table of the search."""
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        classes = ", classes summed over" if self.is_marginal else ""
        limit = "" if self.minutes is None else f" over {self.minutes:g} minutes or more"
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


class Theirs:
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

    def fit(self, splits: Splits, config: FitConfig, *, progress: bool, clock: Callable[[], float]) -> DensityFit:
        """Fit it, as ours is."""

        def loss(module: nn.Module, generator: torch.Generator) -> DensityLoss:
            def bits(images: Tensor, labels: Tensor) -> Tensor:
                x = dequantized(images, LEVELS, generator=generator)
                return (math.log(LEVELS) - self._of(module, x, labels) / DIM) / math.log(2)

            return bits

        return fit_density(
            self.module, loss, splits.train, splits.validation, config=config, progress=progress, clock=clock
        )

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
