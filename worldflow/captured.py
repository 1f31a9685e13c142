"""On a GPU, work that is done over and over: recorded once as a CUDA graph, then replayed by a single call.

A small world is a thousand small kernels a step, and a Python program that launches them one by one keeps a GPU waiting
most of the time. A graph launches them together. What is recorded must be a function of tensors alone: the same shapes
every time, nothing that Python decides by a number, no randomness of its own.

    recorded = Captured(function, example)     # a dictionary of tensors in, any nest of tensors out
    recorded(given)                            # what `function(given)` would return, in the same tensors every time

Where something cannot be recorded, `captured_or_none` says so, and it is called as it is.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Captured", "captured_or_none"]

T = TypeVar("T")
WARM_UP = 3
"""Calls before the recorded one: libraries set themselves up in the first."""


class Captured(Generic[T]):
    """A function of tensors on a GPU, recorded.

    Args:
        function: What to record; it is called `warm_up` times, then once while it is recorded, which computes nothing.
        example: What it is given, for shapes and types; its numbers are used in the calls to warm up.
        warm_up: Calls before the recorded one.

    Raises:
        RuntimeError: If it does what cannot be recorded.
    """

    def __init__(
        self, function: Callable[[Mapping[str, Tensor]], T], example: Mapping[str, Tensor], *, warm_up: int = WARM_UP
    ) -> None:
        self._given = {name: tensor.detach().clone() for name, tensor in example.items()}
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # gradients remember the stream that they were first computed on
            for _ in range(warm_up):
                function(self._given)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = function(self._given)

    def __call__(self, given: Mapping[str, Tensor]) -> T:
        """The function's result, in tensors that the next call writes anew.

        Raises:
            ValueError: If shapes are not those of the example.
        """
        for name, tensor in self._given.items():
            if given[name].shape != tensor.shape:
                expected, got = tuple(tensor.shape), tuple(given[name].shape)
                raise ValueError(f"{name} was recorded with shape {expected}, got {got}")
            tensor.copy_(given[name])
        self._graph.replay()
        return self._result


def captured_or_none(
    function: Callable[[Mapping[str, Tensor]], T],
    example: Mapping[str, Tensor],
    *,
    what: str,
    warm_up: int = WARM_UP,
) -> Captured[T] | None:
    """The function recorded; None, with a warning, if it cannot be."""
    try:
        return Captured(function, example, warm_up=warm_up)
    except RuntimeError as error:
        torch.cuda.synchronize()
        logging.getLogger("worldflow").debug("%s could not be recorded", what, exc_info=True)
        reason = str(error).strip().splitlines()[0]
        warnings.warn(f"{what} cannot be recorded as a CUDA graph and is slower without: {reason}", stacklevel=2)
        return None
