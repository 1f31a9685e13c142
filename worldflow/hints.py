"""The end of an error message about an unknown name: the one that was meant, or what there is."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["did_you_mean"]


def did_you_mean(given: str, known: Iterable[str], *, otherwise: str | None = None, at_most: int = 1) -> str:
    """Say which known name looks like the given one, to be put behind a message.

    Args:
        given: The unknown name.
        known: The names there are; empty ones do not count.
        otherwise: What to say where none looks like it; by default, which names there are. May be empty.
        at_most: How many names to offer.

    Returns:
        `; did you mean 'name'?`, or `; otherwise`, or nothing where there is nothing to say.

    Example:
        >>> did_you_mean("tset", ["train", "test"])
        "; did you mean 'test'?"
        >>> did_you_mean("build", ["train", "test"])
        '; there are: train, test'
    """
    names = [name for name in known if name]
    if close := get_close_matches(given, names, n=at_most):
        return f"; did you mean {' or '.join(map(repr, close))}?"
    if otherwise is None and names:
        return f"; there are: {', '.join(names)}"
    return f"; {otherwise}" if otherwise else ""
