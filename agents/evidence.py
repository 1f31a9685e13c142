"""What a comparison of agents found, on its way to a page and a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from worldflow.agents.agreement import Agreement
from worldflow.agents.standings import Standing

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

__all__ = ["Evidence"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What came out."""

    protocol: Mapping[str, Any]
    """What was compared, and how."""
    standings: Sequence[Standing]
    reference: str
    """Name of the contender that the others are held against."""
    agreement: Agreement | None
    """Imagined against real returns, unless left out."""
    film: tuple[str, UInt8[np.ndarray, "time row column channel"]]
    """The best contender and the frames of its first episode."""

    def standing(self, name: str) -> Standing:
        """That of the contender of this name."""
        return next(one for one in self.standings if one.name == name)

    def to_plain(self) -> dict[str, Any]:
        """Everything but the film as JSON can hold it."""
        reference = self.standing(self.reference)
        return {
            "protocol": dict(self.protocol),
            "reference": self.reference,
            "contenders": [
                one.to_plain() | {"ahead_of_reference": asdict(one.ahead_of(reference))} for one in self.standings
            ],
            "differences": {
                one.name: {other.name: asdict(one.ahead_of(other)) for other in self.standings if other is not one}
                for one in self.standings
            },
            "imagined_returns": None if self.agreement is None else self.agreement.to_plain(),
        }
