"""What a comparison has on disk already, so that the same call goes on where it stopped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldflow.agents.contenders import Contender
from worldflow.agents.imagined_returns import PolicyReturns
from worldflow.agents.standings import PlayedEpisode
from worldflow.atomic import replacing, write_bytes

if TYPE_CHECKING:
    from jaxtyping import UInt8

__all__ = ["Records"]


class Records:
    """Episodes and returns of contenders, written down after each.

    Args:
        folder: Where.
        settings: What must be the same for what is there to count.

    Raises:
        ValueError: If the folder was begun with other settings.
        NotADirectoryError: If it is a file.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        if folder.is_file():
            raise NotADirectoryError(f"--out must name a folder, got the file {folder}")
        self.folder = folder
        self._path = folder / "records.json"
        self._found: dict[str, Any] = {"settings": dict(settings), "episodes": {}, "returns": {}}
        if self._path.is_file():
            found = json.loads(self._path.read_text())
            changed = [key for key, value in settings.items() if found["settings"].get(key) != value]
            if changed:
                raise ValueError(
                    f"{folder} was begun with another {' and another '.join(changed)}; name another --out, or remove it"
                )
            self._found = found

    def episodes(self, player: Contender) -> list[PlayedEpisode]:
        """Those that this contender, and nobody before it of the same name, has played."""
        found = self._found["episodes"].get(player.name)
        if found is None or found["identity"] != player.identity:
            return []
        return [PlayedEpisode(**one) for one in found["episodes"]]

    def keep_episodes(self, player: Contender, episodes: Sequence[PlayedEpisode]) -> None:
        """Write them down."""
        plain = {"identity": player.identity, "episodes": [asdict(one) for one in episodes]}
        self._found["episodes"][player.name] = plain
        self._write()

    def returns(self, player: Contender) -> PolicyReturns | None:
        """Its imagined and real returns."""
        found = self._found["returns"].get(player.name)
        if found is None or found["identity"] != player.identity:
            return None
        arrays = {key: np.array(found[key]) for key in ("real", "imagined", "strangeness")}
        return PolicyReturns(name=player.name, is_replayed=found["is_replayed"], **arrays)

    def keep_returns(self, player: Contender, returns: PolicyReturns) -> None:
        """Write them down."""
        arrays = {key: getattr(returns, key).tolist() for key in ("real", "imagined", "strangeness")}
        plain = {"identity": player.identity, "is_replayed": returns.is_replayed, **arrays}
        self._found["returns"][player.name] = plain
        self._write()

    def film(self, name: str) -> UInt8[np.ndarray, "time row column channel"]:
        """Frames of its first episode."""
        with np.load(self._film_path(name)) as stored:
            return stored["frames"]

    def keep_film(self, name: str, frames: UInt8[np.ndarray, "time row column channel"]) -> None:
        """Write them down."""
        with replacing(self._film_path(name)) as path:
            np.savez_compressed(path, frames=frames)

    def _film_path(self, name: str) -> Path:
        return self.folder / "films" / f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', name)}.npz"

    def _write(self) -> None:
        write_bytes(self._path, json.dumps(self._found).encode())
