"""Recordings in HDF5, as robomimic, robosuite, ALOHA and D4RL lay them out, and most of what people write themselves.

An episode is a group with a data set of actions: every `data/demo_N` of robomimic, a whole file of ALOHA's, `episode_N`
of anybody. Where actions lie at the root of a file beside `terminals` or `timeouts`, the file holds all episodes one
behind the other, and these say where each ends. What is seen is looked for below the group: pictures are `uint8` with
four axes, vectors floating with two. Where the frame after the last action is kept apart (`next_obs`), it is used.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from worldflow.envs.recordings import Recorded, Source, Wanted, as_pictures
from worldflow.hints import did_you_mean

__all__ = ["HDF5", "Hdf5Source"]

HDF5 = (".h5", ".hdf5", ".he5")
ACTIONS, REWARDS = ("actions", "action"), ("rewards", "reward")
ENDS, TIMEOUTS = ("terminals", "terminations", "terminated", "dones", "done"), ("timeouts", "truncations", "truncated")
STATES = ("states", "state", "infos/state")
NEXT = ("next_obs", "next_observations", "next_observation")


class Hdf5Source(Source):
    """See the module.

    Args:
        path: A file, or a folder of files.
        wanted: What to take.

    Raises:
        ValueError: If a file cannot be read, or holds no actions or none of what is wanted.
    """

    kind = "HDF5"

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self._wanted = wanted
        files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix.lower() in HDF5)
        self._episodes: list[tuple[Path, str, slice]] = []
        for file in files:
            self._episodes += _episodes_of(file, wanted.actions)
        if not self._episodes:
            raise ValueError(
                f"no episode in {path}: it has no data set called "
                f"{' or '.join(map(repr, self._names_of_actions()))}; name it with --actions"
            )

    def __len__(self) -> int:
        return len(self._episodes)

    def actions(self, number: int) -> np.ndarray:
        """The actions of an episode."""
        path, group, part = self._episodes[number]
        with _opened(path) as file:
            return _first(file[group], self._names_of_actions())[part]

    def read(self, number: int) -> Recorded:
        """An episode."""
        path, place, part = self._episodes[number]
        name = f"{path.name}:{place}"
        with _opened(path) as file:
            group = file[place]
            actions = _first(group, self._names_of_actions())[part]
            wanted, vector = self._wanted, None
            frames, is_followed = _seen(group, part, len(actions), name, wanted.observed == "vector", wanted.frames)
            if wanted.observed != "vector":
                frames = as_pictures(frames, wanted, name=name)
            if wanted.observed == "dict":
                vector, _ = _seen(group, part, len(actions), name, True, wanted.vector)
            state = _first(group, STATES) if wanted.observed == "pixels" and not is_followed else None
            state = None if state is None or state.ndim != 2 else state[part]
            return Recorded(
                name=name,
                frames=frames,
                actions=actions,
                vector=vector,
                rewards=_cut(_first(group, REWARDS), part),
                terminated=_cut(_first(group, ENDS), part),
                state=state if state is not None and len(state) >= len(frames) else None,
            )

    def _names_of_actions(self) -> tuple[str, ...]:
        return ACTIONS if self._wanted.actions is None else (self._wanted.actions,)


def _seen(
    group: Any, part: slice, length: int, name: str, is_vector: bool, chosen: str | None
) -> tuple[np.ndarray, bool]:
    """What is seen, and whether the last of it was kept apart."""
    found, what, option = _candidates(group, is_vector), "vectors" if is_vector else "pictures", "--frames or --vector"
    if not found:
        raise ValueError(f"{name} holds no {what}; it holds {', '.join(_all(group)) or 'nothing'}")
    if chosen is None and len(found) > 1:
        raise ValueError(f"{name} holds several {what}, {', '.join(found)}; choose one with {option}")
    matching = [key for key in found if chosen is None or key == chosen or key.endswith("/" + chosen)]
    if len(matching) != 1:
        raise ValueError(f"{name} has no {what} {chosen!r}{did_you_mean(chosen or '', found)}")
    data = group[matching[0]]
    frames = data[part]
    if len(frames) == length:
        _, _, rest = matching[0].partition("/")
        for follower in NEXT:
            after = group.get(f"{follower}/{rest}" if rest else follower)
            if isinstance(after, h5py.Dataset) and after.shape[1:] == data.shape[1:]:
                return np.concatenate((frames, after[part][-1:])), True
    return frames, False


def _episodes_of(path: Path, actions: str | None) -> list[tuple[Path, str, slice]]:
    names = ACTIONS if actions is None else (actions,)
    with _opened(path) as file:
        own = _first(file, names)
        if own is None:
            groups: list[str] = []

            def visit(place: str, item: Any) -> None:
                if isinstance(item, h5py.Group) and _first(item, names) is not None:
                    groups.append(place)

            file.visititems(visit)
            inner = [g for g in groups if not any(g.startswith(outer + "/") for outer in groups)]
            return [(path, place, slice(None)) for place in sorted(inner, key=_in_order)]
        ends = [
            np.asarray(data).reshape(-1) > 0 for kind in (ENDS, TIMEOUTS) if (data := _first(file, kind)) is not None
        ]
        if not ends:
            return [(path, "/", slice(None))]
        if any(len(end) != len(own) for end in ends):
            raise ValueError(
                f"{path}: {len(own)} actions need as many terminals and timeouts, got {list(map(len, ends))}"
            )
        last = np.flatnonzero(np.any(ends, axis=0))
        first = np.concatenate(([0], last + 1))
        last = np.concatenate((last + 1, [len(own)]))
        return [(path, "/", slice(int(a), int(b))) for a, b in zip(first, last, strict=True) if b - a > 1]


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} cannot be read as HDF5 ({error}); write it again") from error


def _first(group: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        if isinstance(data := group.get(name), h5py.Dataset) and data.ndim:
            return data
    return None


def _candidates(group: Any, is_vector: bool) -> list[str]:
    found = []
    for key in _all(group):
        data = cast(h5py.Dataset, group[key])
        head = key.partition("/")[0]
        if head in NEXT or key in (*ACTIONS, *STATES) or not len(data):
            continue
        if (data.dtype.kind == "f" and data.ndim == 2) if is_vector else (data.dtype == np.uint8 and data.ndim == 4):
            found.append(key)
    return found


def _all(group: Any) -> list[str]:
    found: list[str] = []
    group.visititems(lambda place, item: found.append(place) if isinstance(item, h5py.Dataset) and item.ndim else None)
    return found


def _cut(data: Any, part: slice) -> np.ndarray | None:
    return None if data is None else np.asarray(data[part]).reshape(len(data[part]), -1)[:, 0]


def _in_order(place: str) -> list[tuple[bool, int, str]]:
    """So that `demo_10` comes behind `demo_9`."""
    return [(not word.isdigit(), int(word) if word.isdigit() else 0, word) for word in re.split(r"(\d+)", place)]
