"""The log of a run that is followed while it grows, is cut at its front, or does not exist yet."""

from __future__ import annotations

import random

from local.runs.watch import _new_lines


def test_lines_are_shown_once_also_when_the_log_is_cut_at_its_front() -> None:
    rng = random.Random(1)
    for _ in range(300):
        whole = [f"line {n} {rng.random()}" for n in range(rng.randint(1, 120))]
        shown: list[str] = []
        seen: list[str] = []
        end = 0
        while end < len(whole):
            end = min(len(whole), end + rng.randint(0, 30))
            read = whole[max(0, end - 60) : end]
            seen += _new_lines(shown, read)
            shown = read or shown
        assert seen == whole


def test_repeated_lines_are_not_taken_for_old_ones() -> None:
    assert _new_lines(["a", "a", "a"], ["a", "a", "a", "a"]) == ["a"]
    assert _new_lines([], ["a"]) == ["a"]
    assert _new_lines(["x"] * 9, ["y", "z"]) == ["y", "z"]
