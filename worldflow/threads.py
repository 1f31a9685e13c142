"""As many threads as help: on a machine that others use too, one thread can be many times faster than two.

A parallel loop ends when its last thread does. Where a thread waits for a core that somebody else holds, all wait, at
every one of the thousand loops of a training step: one busy neighbor on a two-core machine made such steps ten times
slower on two threads, and left them alone on one, where they take only a third longer than on two free cores. So
whoever has time rather than steps to spend measures, now and then, and takes the faster.

A forked process has none of its parent's threads but waits for them all the same: it must compute on one.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["ThreadChoice", "use_one_thread_after_fork"]

_process = 0 if type(multiprocessing.current_process()).__name__ == "ForkProcess" else os.getpid()


def use_one_thread_after_fork() -> None:
    """Have torch compute on one thread from the first call in a forked process on; anywhere else it does nothing.

    A parallel loop there would wait for ever for threads that were not forked.
    """
    global _process
    if os.getpid() != _process:
        torch.set_num_threads(1)
        _process = os.getpid()


class ThreadChoice:
    """Runs pieces of like work with one thread or with all that torch was given, whichever was faster of late.

    Each is tried for `trials` pieces, the faster is kept for `keep` seconds, then both are tried again.

    Args:
        trials: Pieces of work for a trial; the fastest of them counts.
        keep: Seconds from one trial to the next.
    """

    def __init__(self, *, trials: int = 3, keep: float = 20.0) -> None:
        self._given = torch.get_num_threads()
        self._trials, self._keep = trials, keep
        self._times: dict[int, list[float]] = {}
        self._chosen, self._next_trial = self._given, 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Set the number of threads for one piece of work, and put it back."""
        if self._given == 1:
            yield
            return
        begin = time.monotonic()
        if begin >= self._next_trial and len(self._times) == 0:
            self._times = {self._given: [], 1: []}
        on_trial = next((n for n, times in self._times.items() if len(times) < self._trials), None)
        torch.set_num_threads(self._chosen if on_trial is None else on_trial)
        try:
            yield
        finally:
            torch.set_num_threads(self._given)
        if on_trial is None:
            return
        now = time.monotonic()
        self._times[on_trial].append(now - begin)
        if all(len(times) == self._trials for times in self._times.values()):
            self._chosen = min(self._times, key=lambda n: min(self._times[n]))
            self._times, self._next_trial = {}, now + self._keep
