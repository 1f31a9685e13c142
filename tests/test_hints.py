"""An unknown name brings the one that was meant, or what there is."""

from __future__ import annotations

import pytest

from worldflow.hints import did_you_mean


@pytest.mark.parametrize(
    ("given", "known", "otherwise", "expected"),
    [
        ("tset", ["train", "test"], None, "; did you mean 'test'?"),
        ("tset", ["train", "test"], "try one", "; did you mean 'test'?"),
        ("qqq", ["train", "test"], None, "; there are: train, test"),
        ("qqq", ["train", "test"], "try one", "; try one"),
        ("qqq", ["train", "test"], "", ""),
        ("", ["", "test"], None, "; there are: test"),  # an empty name, such as MuJoCo gives, is never meant
        ("test", [], None, ""),
    ],
)
def test_the_close_name_or_what_there_is(given: str, known: list[str], otherwise: str | None, expected: str) -> None:
    assert did_you_mean(given, known, otherwise=otherwise) == expected


def test_names_may_be_passed_once_only() -> None:
    assert did_you_mean("tset", iter(["train", "test"])) == "; did you mean 'test'?"


def test_several_are_offered_the_closest_first() -> None:
    known = ["Hopper", "Recher2", "Recher", "Reacher"]
    assert did_you_mean("Recher3", known, at_most=2) == "; did you mean 'Recher' or 'Recher2'?"
    assert did_you_mean("Recher3", known) == "; did you mean 'Recher'?"
