"""Make the worlds that ship: record, train, round, evaluate, write, each step done once.

    recipe -> collect -> train -> float16 weights -> evaluate these -> worldflow/worlds/<Name>/

Steps leave what they made in a working folder, and a step whose result is there is not repeated: an interrupted call
goes on where it stopped, inside the recording and inside the training too. What is evaluated is what ships, the
rounded weights. The recording follows from its seed to the last bit, for the same versions of MuJoCo and Gymnasium; the
training is bound by minutes, so that another machine makes another world of the same recipe. `recipe.json` beside the
weights tells all of it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from worldflow import checkpoint
from worldflow.atomic import write_bytes
from worldflow.data import Dataset
from worldflow.fingerprint import fingerprint
from worldflow.hints import did_you_mean
from worldflow.recipes import TrainConfig, completed
from worldflow.shipped import MAX_BYTES, PREFIX, package_folder
from worldflow.train import train

__all__ = ["RECIPES", "WorldRecipe", "ship"]

MAX_TRANSITIONS = 50_000
"""Most recorded transitions that a world that ships may have been learned from."""
MAX_REPORT = 3_000_000
"""Most bytes of a report that ships beside its world; a longer one stays in the working folder."""
FILES = ("world.json", "world.safetensors", "contexts.npz", "recipe.json", "fidelity.json", "report.html")


@dataclass(frozen=True, kw_only=True)
class WorldRecipe:
    """How a world that ships is made, from nothing."""

    summary: str
    """One line about the world, for people to choose by."""
    env_id: str
    """The environment that is recorded."""
    policy: str
    """Who acts while recording, as for `worldflow collect`."""
    episodes: int
    """Episodes to record."""
    max_steps: int | None = None
    """Steps after which an episode is cut off; None leaves it to the environment's own limit."""
    random_fraction: float = 0.0
    """Probability that a step takes a random action in place of the policy's."""
    seed: int = 1
    """Of the recording; the training has its own."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How to train."""
    baseline_minutes: float | None = None
    """Minutes that the evaluation's deterministic predictor is trained; None for as long as the world was."""

    def __post_init__(self) -> None:
        if self.train.minutes is None:
            raise ValueError("the training of a recipe must say its minutes, got none")


RECIPES: Mapping[str, WorldRecipe] = {
    "InvertedPendulum": WorldRecipe(
        summary="a cart that balances a pole; one force; 64 x 64 pixels",
        env_id="worldflow/InvertedPendulum-v0",
        policy="worldflow.envs.policies:PendulumSwayer",
        episodes=400,
        train=TrainConfig(preset="tiny", batch=64, minutes=15.0),
        baseline_minutes=20.0,
    ),
    "Reacher": WorldRecipe(
        summary="an arm of two joints and a target to reach; two torques; 64 x 64 pixels",
        env_id="worldflow/Reacher-v0",
        policy="smooth",
        episodes=1000,
        random_fraction=0.1,
        train=TrainConfig(preset="tiny", batch=16, length=24, minutes=60.0, weight_decay=0.1, symmetry="square"),
        baseline_minutes=60.0,
    ),
    "HalfCheetah": WorldRecipe(
        summary="a running cheetah in the plane; six torques; 64 x 64 pixels",
        env_id="worldflow/HalfCheetah-v0",
        policy="smooth",
        episodes=250,
        max_steps=200,
        random_fraction=0.1,
        train=TrainConfig(preset="tiny", batch=32, length=24, minutes=60.0, weight_decay=0.1),
        baseline_minutes=60.0,
    ),
}
"""The worlds that ship, by name; each is recorded in at most `MAX_TRANSITIONS` steps."""


def ship(
    name: str,
    *,
    out: str | os.PathLike[str] | None = None,
    work: str | os.PathLike[str] = "runs/ship",
    dataset: str | os.PathLike[str] | None = None,
    run: str | os.PathLike[str] | None = None,
    minutes: float | None = None,
    progress: bool = True,
) -> Path:
    """Make a world that ships, or go on making it.

    Args:
        name: Which one, of `RECIPES`; `"worldflow/<Name>"` is the same.
        out: Its folder; by default its place in the package.
        work: Where `<name>/data`, `<name>/run` and `<name>/world` are kept, so that finished steps are not repeated.
        dataset: An existing data set to use instead of recording one.
        run: A finished run to use instead of training one; it must have been trained on `dataset`.
        minutes: Train for this long instead of the recipe's time.
        progress: Show progress bars.

    Returns:
        The world's folder.

    Raises:
        ValueError: If there is no such recipe, the working folder was begun with another one, there are more
            transitions than `MAX_TRANSITIONS`, or the world is too large.
        FileNotFoundError: If `dataset` or `run` is not there.
    """
    name = name.removeprefix(PREFIX)
    if name not in RECIPES:
        raise ValueError(f"there is no recipe for a world {name!r}{did_you_mean(name, RECIPES)}")
    if run is not None and minutes is not None:
        raise ValueError("minutes are of a training; a run that is given is trained already")
    if run is not None and dataset is None:
        raise ValueError("give the data set that the run was trained on, too")
    recipe = RECIPES[name]
    if minutes is not None:
        recipe = replace(recipe, train=replace(recipe.train, minutes=minutes))
    given = None if dataset is None else Dataset(dataset)
    if run is not None and not (Path(run) / "world.json").is_file():
        raise FileNotFoundError(f"no run at {run}: it holds no world.json; name a folder that `worldflow train` wrote")
    folder = Path(work) / name
    _begin(folder, recipe, dataset=dataset, run=run)

    data = given if given is not None else Dataset(_recorded(recipe, folder / "data", progress=progress))
    if (total := int(data.lengths.sum())) > MAX_TRANSITIONS:
        raise ValueError(f"worlds ship that were learned from at most {MAX_TRANSITIONS} transitions, got {total}")
    trained = Path(run) if run is not None else _trained(recipe, data, folder / "run", progress=progress)
    world = _rounded(trained, folder / "world")
    if not (world / "fidelity.json").is_file():
        _evaluate(world, data, baseline_minutes=recipe.baseline_minutes, progress=progress)
    record = _record(name, recipe, data, trained)
    write_bytes(world / "recipe.json", json.dumps(record, indent=1).encode())
    return _installed(world, Path(out) if out is not None else package_folder() / name)


def _begin(folder: Path, recipe: WorldRecipe, *, dataset: Any, run: Any) -> None:
    """Remember what the working folder is for; another recipe must not go on with this one's leftovers."""
    given = {"dataset": dataset, "run": run}
    begun = {"recipe": asdict(recipe)} | {key: value and str(Path(value).resolve()) for key, value in given.items()}
    plain = json.dumps(begun, indent=1)
    path = folder / "begun.json"
    if path.is_file() and json.loads(path.read_text()) != json.loads(plain):
        raise ValueError(f"{folder} was begun with another recipe or other options; name another --work, or remove it")
    write_bytes(path, plain.encode())


def _recorded(recipe: WorldRecipe, folder: Path, *, progress: bool) -> Path:
    """The recipe's recording, begun or continued where episodes are missing."""
    from worldflow.envs.collect import collect

    num_recorded = len(Dataset(folder)) if folder.exists() else 0
    if num_recorded < recipe.episodes:
        collect(
            recipe.env_id,
            out=folder,
            episodes=recipe.episodes - num_recorded,
            policy=recipe.policy,
            seed=recipe.seed,
            random_fraction=recipe.random_fraction,
            max_steps=recipe.max_steps,
            on_existing="append" if num_recorded else "error",
            progress=progress,
        )
    return folder


def _trained(recipe: WorldRecipe, data: Dataset, folder: Path, *, progress: bool) -> Path:
    """The recipe's run, resumed where its training was interrupted."""
    finished = folder / "finished"
    if not finished.is_file():
        is_begun = (folder / "training.pt").is_file()
        train(data, out=folder, config=recipe.train, resume=is_begun, progress=progress)
        write_bytes(finished, b"the training of `worldflow ship` came to its end\n")
    return folder


def _rounded(run: Path, folder: Path) -> Path:
    """The run's world in half the width."""
    if not (folder / "world.json").is_file():
        training = json.loads((run / "world.json").read_text())["training"]
        checkpoint.save(checkpoint.load(run), folder, training=training, dtype=torch.float16)
    return folder


def _evaluate(world: Path, data: Dataset, *, baseline_minutes: float | None, progress: bool) -> None:
    """Write `fidelity.json` and `report.html` beside the world's weights."""
    from worldflow.fidelity import evaluate  # it draws, which is slow to import and not needed to list recipes

    evaluate(world, data, out=world, baseline_minutes=baseline_minutes, progress=progress)


def _record(name: str, recipe: WorldRecipe, data: Dataset, run: Path) -> dict[str, Any]:
    """All that somebody needs to make the world again, or to doubt it."""
    training = json.loads((run / "world.json").read_text())["training"].get("config", {})
    recordings = data.metadata.get("worldflow", {}).get("recordings", [])
    planned = {key: getattr(recipe, key) for key in ("policy", "random_fraction", "seed", "max_steps")}
    if recipe.max_steps is None:  # what is written down is the environment's own limit
        del planned["max_steps"]
    is_recorded = len(data) == recipe.episodes and all(planned.items() <= found.items() for found in recordings)
    packages = ("worldflow", "torch", "numpy", "gymnasium", "mujoco", "minari")
    return {
        "name": PREFIX + name,
        "summary": recipe.summary,
        "recipe": asdict(recipe),
        "is_recorded_by_recipe": bool(recordings) and is_recorded,
        "is_trained_by_recipe": completed(training) == json.loads(json.dumps(asdict(recipe.train))),
        "training": training,
        "data": {
            "environment": json.loads(data.spec.env_spec)["id"] if data.spec.env_spec else None,
            "episodes": len(data),
            "transitions": int(data.lengths.sum()),
            "fingerprint": fingerprint(data),
            "recordings": recordings,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "threads": torch.get_num_threads(),
    }


def _installed(world: Path, folder: Path) -> Path:
    """Copy the world's files to their place, `world.json` last: before it, the folder is no world."""
    sizes = {file: (world / file).stat().st_size for file in FILES if (world / file).is_file()}
    if sizes.get("report.html", 0) > MAX_REPORT:
        del sizes["report.html"]
    others = sum(
        path.stat().st_size
        for name in RECIPES
        if folder.parent / name != folder
        for path in (folder.parent / name).glob("*")
    )
    if (size := sum(sizes.values())) + others > MAX_BYTES:
        raise ValueError(
            f"the world in {world} takes {size} bytes beside {others} of the others that ship, together they may take "
            f"{MAX_BYTES}; choose a smaller preset"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "world.json").unlink(missing_ok=True)
    for file in (*FILES[1:], FILES[0]):
        if file in sizes:
            write_bytes(folder / file, (world / file).read_bytes())
        else:
            (folder / file).unlink(missing_ok=True)
    return folder
