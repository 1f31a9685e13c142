"""What an interrupted training left behind, and how it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile

import torch
from torch import Tensor

from worldflow.atomic import replacing
from worldflow.fit import FitState
from worldflow.symmetry import ActionMaps
from worldflow.world import WorldModel

__all__ = ["SavedTraining"]


@dataclass(frozen=True, kw_only=True)
class SavedTraining:
    """What an interrupted training left behind."""

    path: Path
    stage: str
    fit: FitState
    spent: dict[str, float]
    world: dict[str, Tensor]
    maps: dict[str, Tensor]
    generator: Tensor
    noise: Tensor | None
    """State of the GPU's own generator, where there was one."""

    @staticmethod
    def read(path: Path) -> SavedTraining:
        """Read it.

        Raises:
            ValueError: If it is damaged, or something else.
        """
        try:
            record = torch.load(path, weights_only=True, map_location="cpu")
            state = FitState(**{name: record[name] for name in ("step", "seconds", "optimizers", "usual_norm")})
            return SavedTraining(
                path=path,
                stage=record["stage"],
                fit=state,
                spent=record["spent"],
                world=record["world"],
                maps=record["maps"],
                generator=record["generator"],
                noise=record.get("noise"),
            )
        except (RuntimeError, KeyError, EOFError, TypeError, UnpicklingError, BadZipFile) as error:
            raise ValueError(f"{path} is damaged or no state of a training; train anew in another folder") from error

    def write(self) -> None:
        """Write it to its path.

        Raises:
            OSError: If it cannot be written; what was there before stays.
        """
        record = {
            "stage": self.stage,
            "spent": self.spent,
            "step": self.fit.step,
            "seconds": self.fit.seconds,
            "optimizers": self.fit.optimizers,
            "usual_norm": self.fit.usual_norm,
            "world": self.world,
            "maps": self.maps,
            "generator": self.generator,
            "noise": self.noise,
        }
        try:
            with replacing(self.path) as path:
                torch.save(record, path)
        except RuntimeError as error:  # torch's word for a failed write
            raise OSError(
                f"cannot write {self.path}: {str(error).splitlines()[0]}; free some space, then resume"
            ) from error

    def restore(self, world: WorldModel, maps: ActionMaps | None) -> None:
        """Put it back.

        Raises:
            ValueError: If it is of another world.
        """
        try:
            world.load_state_dict(self.world)
            if maps is not None:
                maps.load_state_dict(self.maps)
        except RuntimeError as error:
            raise ValueError(
                f"{self.path} holds another world than these options and data make; resume with the same ones"
            ) from error
