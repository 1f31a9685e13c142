"""What is usual: how odd what is watched of a transition is, learned from normal episodes alone.

Statistics are averaged (`worldflow.watched`), each is as many nats surprising as its tail says (`worldflow.surprise`),
and a combination makes one number of them (`worldflow.combination`): one of everything, for single transitions, and one
of averages over 8 and over 50 transitions or more, which what is unusual about a transition alone does not disturb. So
a fault that lasts is told from an episode's last step, where a pole falls and the reward ends. Whether there was a
fault in the last `n` transitions, be it one that lasts or one that came and went, is asked of both, in nats:

    recent_n(t) = s(combined_n(t)) + s(max_{t - n < i <= t} combined_1(i)),    recent_1 = combined_1
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from worldflow.combination import Combination, CombinationName, Group, Grouped, fit_combination
from worldflow.surprise import Surprise
from worldflow.watched import PARTS, WINDOWS, Averages, left_out, single_names, watched_names

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

__all__ = ["Usual", "by_episode"]


class Usual:
    """Learned from episodes.

    Args:
        statistics: Names in `worldflow.watched.STATISTICS`; a vector comes last.
        combination: How they are combined.
        values: Of each statistic on normal episodes, in order.
        lengths: Transitions of those episodes.
    """

    def __init__(
        self,
        statistics: Sequence[str],
        combination: CombinationName,
        values: Float[np.ndarray, "row transition"],
        lengths: Int64[np.ndarray, " episode"],
    ) -> None:
        self.statistics, self.lengths = tuple(statistics), lengths
        self.combination: CombinationName = combination
        self._episodes = by_episode(values, lengths)
        self._directions = len(values) - len(statistics) + 1 if self.statistics[-1] == "foresight" else 0

    @property
    def names(self) -> tuple[str, ...]:
        """Of what is watched, in order."""
        return watched_names(self.statistics)

    @property
    def singles(self) -> tuple[str, ...]:
        """Of what is watched of single transitions, the first of `names`."""
        return single_names(self.statistics)

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of a transition that statistics are about, in order."""
        return tuple(part for part, names in PARTS.items() if any(name in self.statistics for name in names))

    @cached_property
    def averages(self) -> Averages:
        """Makes what is watched of statistics."""
        return Averages.of(self._episodes, directions=self._directions)

    @cached_property
    def watched(self) -> Float[np.ndarray, "watched transition"]:
        """What is watched of these episodes, as if they were new."""
        return np.concatenate(left_out(self._episodes, directions=self._directions), axis=1)

    def nats(self, watched: Float[np.ndarray, "watched time"]) -> Float[np.ndarray, "watched time"]:
        """How surprising each of the first so many rows of what is watched is."""
        return np.stack([surprise(row) for surprise, row in zip(self._surprises, watched, strict=False)])

    def combined(
        self, watched: Float[np.ndarray, "watched time"], nats: Float[np.ndarray, "watched time"]
    ) -> Float[np.ndarray, "window time"]:
        """How odd averages over so many transitions or more are, by the combination."""
        return np.stack([c(watched[k:], nats[k:]) for c, k in zip(self._combinations, self._firsts, strict=True)])

    def recent(
        self, combined: Float[np.ndarray, "window time"], before: Float[np.ndarray, " past"] | None = None
    ) -> tuple[Float[np.ndarray, "window time"], Float[np.ndarray, " past"]]:
        """How odd the last so many transitions are, together or one of them by itself.

        Args:
            combined: Of the next transitions.
            before: What was remembered; None at the beginning of an episode.

        Returns:
            The numbers, and what is to be remembered.
        """
        highest, before = _highest(combined[0], before)
        rows = [
            lasting(row) + single(top)
            for (lasting, single), row, top in zip(self._recent, combined[1:], highest, strict=True)
        ]
        return np.stack((combined[0], *rows)), before

    def by_part(self, nats: Float[np.ndarray, "watched time"]) -> Float[np.ndarray, "part time"]:
        """How odd each part is, over all windows."""
        return self._grouped(nats).reshape(len(WINDOWS), len(self.parts), -1).sum(0)

    @property
    def _firsts(self) -> list[int]:
        """The first row of each window."""
        return [k * len(self.singles) for k in range(len(WINDOWS))]

    @cached_property
    def _independent(self) -> list[float]:
        """Of averages over each window: one of an episode for each time that the window fits in, or once."""
        return [float(np.maximum(1.0, self.lengths / n).sum()) for n in WINDOWS]

    @cached_property
    def _surprises(self) -> list[Surprise]:
        each = np.repeat(self._independent, len(self.singles)).tolist()
        return [Surprise(row, independent=m) for row, m in zip(self.watched, each, strict=True)]

    @cached_property
    def _own_nats(self) -> Float[np.ndarray, "watched transition"]:
        return self.nats(self.watched)

    @cached_property
    def _recent(self) -> list[tuple[Surprise, Surprise]]:
        """Of averages over each window but the first, and of the oddest transition in it."""
        combined = self.combined(self.watched, self._own_nats)
        highest = np.concatenate([_highest(part, None)[0] for part in by_episode(combined[0], self.lengths)], axis=1)
        rows = zip(combined[1:], highest, self._independent[1:], strict=True)
        return [(_by_spread(row, independent), _by_spread(top, independent)) for row, top, independent in rows]

    def _groups(self, first: int) -> list[Group]:
        """The statistics of each part, window by window, of the rows from `first` on."""
        return [
            Group(
                rows=[start - first + i for i, name in enumerate(self.singles) if name in PARTS[part]],
                independent=independent,
            )
            for start, independent in zip(self._firsts, self._independent, strict=True)
            if start >= first
            for part in self.parts
        ]

    @cached_property
    def _grouped(self) -> Grouped:
        return Grouped(self._own_nats, self._groups(0))

    @cached_property
    def _combinations(self) -> list[Combination]:
        return [
            fit_combination(self.combination, self.watched[k:], self._own_nats[k:], groups=self._groups(k))
            for k in self._firsts
        ]


def _by_spread(usual: Float[np.ndarray, " transition"], independent: float) -> Surprise:
    return Surprise(usual, independent=independent, has_ranks=False)


def _highest(
    values: Float[np.ndarray, " time"], before: Float[np.ndarray, " past"] | None
) -> tuple[Float[np.ndarray, "window time"], Float[np.ndarray, " past"]]:
    """The highest of the last so many values, for each window but the first, and what is to be remembered."""
    most = max(WINDOWS)
    joined = np.concatenate((np.full(most - 1, -np.inf) if before is None else before, values))
    rows = [np.lib.stride_tricks.sliding_window_view(joined[most - n :], n).max(-1) for n in WINDOWS[1:]]
    return np.stack(rows), joined[len(joined) - (most - 1) :]


def by_episode(
    values: Float[np.ndarray, "row transition"], lengths: Int64[np.ndarray, " episode"]
) -> list[Float[np.ndarray, "row time"]]:
    """Values of each episode."""
    return np.split(values, np.cumsum(lengths)[:-1], axis=-1)
