"""What the choices of the recipe are worth: `worldflow bench recipe DATASET --out DIR`.

Each row undoes one choice and leaves all others as they are. All are trained on the same episodes for the same CPU
time, counted by the CPU and not by the wall, from several seeds, and held against the same held-out clips
(`worldflow.evaluate`). Rows whose codec is that of the recipe take it over, seed by seed, and train the flow alone for
what time is left: they differ in the flow only, and nobody pays for the codec twice.

    DIR/<row>/<seed>/     the run, and measures.json beside it, by which it is not made again
    DIR/recipe.json       all measures
    DIR/recipe.png        a dot a seed, a panel a measure
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from tqdm import tqdm
from tyro.conf import OmitArgPrefixes, Positional, arg

from worldflow.atomic import write_bytes
from worldflow.data import Dataset
from worldflow.hints import did_you_mean
from worldflow.recipes import TrainConfig, completed
from worldflow.timing import machine
from worldflow.train import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from worldflow.fidelity_types import Fidelity

__all__ = ["CHOICES", "Choice", "RecipeBench", "as_table", "compare_choices", "recipe_figure"]

RECIPE = "recipe"
"""The row that undoes nothing."""
Measures = Mapping[str, float]
"""Of one run, by name."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One choice of the recipe, undone."""

    about: str
    """What is done instead."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of `TrainConfig`."""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    """Other sizes of the flow, fields of `FlowConfig`."""
    has_own_codec: bool = False
    """Whether it needs another codec than the recipe's."""


CHOICES: Mapping[str, Choice] = {
    RECIPE: Choice(about="the recipe"),
    "forgetful": Choice(about="drafts remember no mean of what they saw", sizes={"memory": 0}),
    "noisy": Choice(about="drafts are made from noisy codes", sizes={"has_shown": False}),
    "unmixed": Choice(about="drafts do not mix the tokens of a frame", sizes={"draft_mixing": False}),
    "draftless": Choice(about="no drafts", sizes={"draft_layers": 0, "memory": 0, "has_shown": False}),
    "decay": Choice(about="a tenth of the weight decay", train={"weight_decay": 0.01}),
    "uneven": Choice(about="codes may move unevenly", train={"codec_smoothness": 0.0}, has_own_codec=True),
    "loud": Choice(about="three times the noise", train={"noise_std": 0.15}, has_own_codec=True),
    "mirror": Choice(about="recordings in a mirror, too", train={"symmetry": "mirror"}),
    "square": Choice(about="recordings mirrored and turned, too", train={"symmetry": "square"}),
}
"""What can be compared, by short names; symmetries help where they are true."""


def compare_choices(
    dataset: Dataset,
    out: Path,
    *,
    choices: Sequence[str],
    config: TrainConfig,
    seeds: Sequence[int] = (0, 1, 2),
    clips: int = 48,
    samples: int = 4,
    horizon: int = 16,
    progress: bool = True,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, dict[int, Measures]]:
    """Train and measure what was not measured before.

    Args:
        dataset: The data set.
        out: Folder of the runs; what is there already is not made again.
        choices: Names of `CHOICES`.
        config: The recipe; its minutes are those of codec and flow together.
        seeds: Of the trainings.
        clips: Held-out clips.
        samples: Futures of each.
        horizon: Steps ahead.
        progress: Show progress bars.
        clock: Tells seconds.

    Returns:
        For each choice and seed its measures.

    Raises:
        ValueError: If there is no such choice, the recipe says no minutes, or the folder holds runs of another recipe.
    """
    for name in choices:
        if name not in CHOICES:
            raise ValueError(f"there is no choice {name!r}{did_you_mean(name, CHOICES)}")
    if config.minutes is None:
        raise ValueError("equal time needs minutes to be equal in: give --minutes")
    _begin(out, {"dataset": dataset.spec.dataset_id, "clips": clips, "samples": samples, "horizon": horizon}, config)
    names = [RECIPE, *(name for name in dict.fromkeys(choices) if name != RECIPE)]  # whose codecs others take
    found: dict[str, dict[int, Measures]] = {name: {} for name in names}
    with tqdm(total=len(names) * len(seeds), desc="recipe", unit="run", disable=not progress) as bar:
        for seed in seeds:
            for name in names:
                bar.set_postfix_str(f"{name}, seed {seed}")
                folder = out / name / str(seed)
                if not (folder / "measures.json").is_file():
                    _train(dataset, folder, CHOICES[name], config, seed, recipe=out / RECIPE / str(seed), clock=clock)
                    measures = _measure(dataset, folder, out, clips=clips, samples=samples, horizon=horizon)
                    write_bytes(folder / "measures.json", json.dumps(measures, indent=1).encode())
                found[name][seed] = json.loads((folder / "measures.json").read_text())
                bar.update()
    return found


def _begin(out: Path, settings: Mapping[str, Any], config: TrainConfig) -> None:
    begun = json.dumps({**settings, "config": asdict(config)}, indent=1)
    path = out / "begun.json"
    if path.is_file():
        before = json.loads(path.read_text())
        if before | {"config": completed(before["config"])} != json.loads(begun):
            raise ValueError(f"{out} holds runs of another recipe or data set; name another folder, or remove it")
    write_bytes(path, begun.encode())


def _train(
    dataset: Dataset,
    folder: Path,
    choice: Choice,
    config: TrainConfig,
    seed: int,
    *,
    recipe: Path,
    clock: Callable[[], float],
) -> None:
    changed = replace(config, seed=seed, **choice.train)
    if folder != recipe and not choice.has_own_codec:
        assert config.minutes is not None
        changed = replace(changed, codec_from=str(recipe), minutes=config.minutes * (1 - config.codec_share))
    resume = (folder / "training.pt").is_file()
    train(dataset, out=folder, config=changed, sizes=choice.sizes, resume=resume, progress=False, clock=clock)


def _measure(dataset: Dataset, folder: Path, out: Path, *, clips: int, samples: int, horizon: int) -> Measures:
    from worldflow.fidelity import evaluate  # it draws, which is slow to import

    kept = out / "instruments"  # the probe is fitted once for all
    for path in kept.glob("*"):
        shutil.copy(path, folder)
    fidelity = evaluate(
        folder,
        dataset,
        clips=clips,
        samples=samples,
        horizon=horizon,
        near_clips=0,
        long=0,
        baseline_minutes=0,
        progress=False,
    )
    kept.mkdir(exist_ok=True)
    for name in ("probe.safetensors", "instruments.json"):
        if (folder / name).is_file():
            shutil.copy(folder / name, kept)
    return _measures(fidelity)


def _measures(fidelity: Fidelity) -> dict[str, float]:
    """The measures of a row, by titles with their units."""
    from worldflow.fidelity_types import COPY, REAL, WORLD

    last = int(fidelity.protocol["horizon"])
    found = {}
    for h in sorted({h for h in (1, 4) if h < last} | {last}):
        psnr, physics = fidelity.measures["psnr"], fidelity.measures.get("physics")
        found[f"over copying at {h} (dB)"] = psnr.at(WORLD, h) - psnr.at(COPY, h)
        if physics is not None:
            found[f"physics at {h} (std)"] = physics.at(WORLD, h) - physics.at(REAL, h)
    found["NLL above floor (nats/dim)"] = fidelity.numbers["nll"].value
    if "action_gap" in fidelity.numbers:
        found["action gap (nats/dim)"] = fidelity.numbers["action_gap"].value
    return found


def as_table(found: Mapping[str, Mapping[int, Measures]]) -> str:
    """A Markdown table: mean over seeds, lowest and highest."""
    names = list(next(iter(next(iter(found.values())).values())))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for choice, runs in found.items():
        cells = []
        for name in names:
            values = [measures[name] for measures in runs.values()]
            spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.2f}{spread}")
        lines.append(f"| {CHOICES[choice].about} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def recipe_figure(found: Mapping[str, Mapping[int, Measures]]) -> Figure:
    """A panel a measure, a line a choice, a dot a seed; the recipe's mean goes through as a line."""
    from matplotlib.figure import Figure

    from worldflow.look import COLORS, FAINT, WIDTH, settled, style

    names = list(next(iter(next(iter(found.values())).values())))
    with style():
        figure = Figure(figsize=(1.6 * WIDTH, 0.6 + 0.3 * len(found)))
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for panel, name in zip(panels, names, strict=True):
            for row, (choice, runs) in enumerate(found.items()):
                values = [measures[name] for measures in runs.values()]
                color = COLORS[0] if choice == RECIPE else FAINT
                panel.plot(values, [row] * len(values), "o", color=color, markersize=4)
                panel.plot(np.mean(values), row, "|", color=COLORS[0], markersize=12)
            panel.axvline(float(np.mean([m[name] for m in found[RECIPE].values()])), color=COLORS[0], linewidth=0.6)
            panel.set_title(name, fontsize=7)
        panels[0].set_yticks(range(len(found)), [CHOICES[choice].about for choice in found])
        panels[0].invert_yaxis()
        return settled(figure)


@dataclass(frozen=True, kw_only=True)
class RecipeBench:
    """What the choices of the recipe are worth, one undone at a time, in equal CPU time."""

    dataset: Positional[Annotated[str, arg(metavar="DATASET")]]
    """Folder of the data set."""
    out: str
    """Folder for the runs, the table and the figure; a call goes on where an earlier one stopped."""
    choices: tuple[str, ...] = tuple(name for name in CHOICES if name not in ("mirror", "square"))
    """Rows: recipe, forgetful, noisy, unmixed, draftless, decay, uneven, loud, mirror, square."""
    seeds: int = 3
    """Trainings of each row."""
    clips: int = 48
    """Held-out clips to measure on."""
    samples: int = 4
    """Futures to imagine of each clip."""
    horizon: int = 16
    """Steps to imagine ahead."""
    config: OmitArgPrefixes[TrainConfig] = field(
        default_factory=lambda: TrainConfig(
            preset="tiny", minutes=8.0, codec_share=0.375, batch=16, length=24, weight_decay=0.1
        )
    )
    """The recipe; its minutes are CPU minutes of codec and flow together."""

    def __call__(self) -> None:
        """Train, measure, print and draw."""
        from worldflow.figures import save_figure

        out = Path(self.out)
        found = compare_choices(
            Dataset(self.dataset),
            out,
            choices=self.choices,
            config=self.config,
            seeds=range(self.config.seed, self.config.seed + self.seeds),
            clips=self.clips,
            samples=self.samples,
            horizon=self.horizon,
        )
        print(as_table(found))
        plain = {"command": asdict(self), "machine": machine(), "rows": found}
        write_bytes(out / "recipe.json", json.dumps(plain, indent=1).encode())
        save_figure(recipe_figure(found), out / "recipe.png")
