"""The edit distance between two texts."""

from __future__ import annotations


def similarity(a: str, b: str) -> float:
    """1 - distance / length of the longer; 1 for two empty texts."""
    longest = max(len(a), len(b))
    return 1 - distance(a, b) / longest if longest else 1.0


def distance(a: str, b: str) -> int:
    """How many insertions, deletions and replacements of a character lead from one to the other (Levenshtein).

    Bit-parallel over the columns of the table, which Python's integers hold whatever their number: H. Hyyrö 2003, "A
    bit-vector algorithm for computing Levenshtein and Damerau edit distances", after G. Myers 1999.
    """
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for place, char in enumerate(a):
        places[char] = places.get(char, 0) | 1 << place
    last, mask = 1 << (len(a) - 1), (1 << len(a)) - 1
    up, down, cost = mask, 0, len(a)
    for char in b:
        here = places.get(char, 0)
        same = (((here & up) + up) ^ up) | here | down
        rises, falls = down | ~(same | up) & mask, up & same
        cost += bool(rises & last) - bool(falls & last)
        rises = (rises << 1 | 1) & mask
        falls = falls << 1 & mask
        up, down = falls | ~(same | rises) & mask, rises & same
    return cost
