"""Worlds that ship with the package, and the names they go by.

    world = worldflow.load("worldflow/Reacher")

A world is a run's folder like any other, `worldflow/worlds/<Name>/` inside the package, with recipe and measures
beside the weights. Wherever a run's folder is expected, `"worldflow/<Name>"` stands for it:

- a string `worldflow/<Name>` is the name of a world, in whatever folder one works;
- anything else (`./worldflow/Reacher`, an absolute path, a `Path`) is a folder;
- if `worldflow/<Name>` is a run in the working folder *and* a world that ships, neither is taken for the other: it is
  an error that says how to name the run. If no world of that name ships, it is the run.

The worlds are made by `worldflow ship`, see `worldflow.ship`.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import re
from pathlib import Path

from worldflow.hints import did_you_mean

__all__ = ["MAX_BYTES", "PREFIX", "package_folder", "run_folder", "worlds"]

PREFIX = "worldflow/"
"""What the names of worlds that ship begin with."""
MAX_BYTES = 25_000_000
"""Most that all worlds together may take in the package."""


def worlds() -> dict[str, str]:
    """The worlds that ship with this version.

    Returns:
        Each name, as `worldflow.load` takes it, with one line about the world.

    Example:
        >>> for name, line in worlds().items():
        ...     print(name, line)  # doctest: +SKIP
    """
    folders = sorted(path.parent for path in package_folder().glob("*/world.json"))
    return {PREFIX + folder.name: _summary(folder / "recipe.json") for folder in folders}


def run_folder(run: str | os.PathLike[str]) -> Path:
    """The folder of a run, or of a world that ships.

    Args:
        run: A folder, or `"worldflow/<Name>"`.

    Returns:
        The folder. One that is not a world's is given back as it is, whether or not it exists.

    Raises:
        FileNotFoundError: If the name is neither a world that ships nor a folder.
        ValueError: If it is both.
    """
    if not isinstance(run, str) or not re.fullmatch(re.escape(PREFIX) + r"[^/\\]+", run):
        return Path(run)
    local, known = Path(run), worlds()
    if run not in known:
        if local.exists():
            return local
        raise FileNotFoundError(
            f"no world {run!r} ships with worldflow, and there is no folder of that name{_known(run, list(known))}"
        )
    if (local / "world.json").exists():
        raise ValueError(
            f"{run!r} is both a world that ships with worldflow and a run in the folder {Path.cwd()}; "
            f"write './{run}' for the run, or call from another folder for the world"
        )
    return package_folder() / run.removeprefix(PREFIX)


def package_folder() -> Path:
    """Where the worlds lie; it exists only if any ship."""
    return Path(str(importlib.resources.files("worldflow"))) / "worlds"


def _known(given: str, known: list[str]) -> str:
    folded = {name.lower(): name for name in known}  # `worldflow/reacher` is close, whatever its case
    if given.lower() in folded:
        return f"; did you mean {folded[given.lower()]!r}?"
    return did_you_mean(given, known, otherwise=None if known else "none ship with this version")


def _summary(recipe: Path) -> str:
    """The line that the recipe tells; a world without a recipe has none."""
    return str(json.loads(recipe.read_text())["summary"]) if recipe.is_file() else ""
