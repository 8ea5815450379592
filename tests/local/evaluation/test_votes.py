"""Votes: drawn blind, kept on the disk at once, counted again as they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloudft.errors import IntegrityError
from local.evaluation.pairs import Pair
from local.evaluation.votes import VoteFile, draw, preference_pairs, read_votes, write_preference_pairs
from local.planning.preferences import load_pairs
from tests.conftest import REPO

PAIRS = [
    Pair(row, ({"role": "user", "content": f"question {row}"},), "right", f"was {row}", f"is {row}")
    for row in range(1, 41)
]
SEED = 11


def test_the_draw_is_the_seeds_alone_and_grows_without_changing() -> None:
    sample = draw(PAIRS, 10, SEED)
    assert sample == draw(PAIRS, 10, SEED)
    assert draw(PAIRS, 25, SEED)[:10] == sample
    assert draw(PAIRS, 10, SEED + 1) != sample
    assert len({one.pair.row for one in draw(PAIRS, 1000, SEED)}) == len(PAIRS)
    sides = [one.left for one in draw(PAIRS, 40, SEED)]
    assert 8 <= sides.count("before") <= 32
    assert all({one.left, one.right} == {"before", "after"} for one in sample)


def test_pairs_without_a_difference_are_not_drawn() -> None:
    dull = [Pair(1, (), "", "same", "same "), Pair(2, (), "", None, "x"), Pair(3, (), "", "x", None)]
    assert draw([*dull, PAIRS[3]], 10, SEED)[0].pair is PAIRS[3]
    assert draw(dull, 10, SEED) == []


def test_votes_are_read_back_and_the_next_pair_is_the_first_open_one(tmp_path: Path) -> None:
    path, sample = tmp_path / "votes.jsonl", draw(PAIRS, 5, SEED)
    votes = VoteFile(path, sample, SEED)
    for choice in ("after", "skip", "tie"):
        assert votes.current is not None
        votes.vote(votes.current, choice)  # type: ignore[arg-type]
        assert len(read_votes(path)) == len(votes.votes)
    again = VoteFile(path, sample, SEED)
    assert dict(again.votes) == dict(votes.votes)
    assert again.current == sample[3]
    assert [line.left for line in read_votes(path)] == [one.left for one in sample[:3]]


def test_undo_takes_back_the_last_vote_and_is_kept_too(tmp_path: Path) -> None:
    path, sample = tmp_path / "votes.jsonl", draw(PAIRS, 3, SEED)
    votes = VoteFile(path, sample, SEED)
    assert not votes.undo()
    votes.vote(sample[0], "after")
    votes.vote(sample[1], "before")
    assert votes.undo()
    assert votes.current == sample[1]
    assert votes.undo()
    assert votes.current == sample[0]
    assert not votes.undo()
    votes.vote(sample[0], "tie")
    assert list(VoteFile(path, sample, SEED).votes.values()) == ["tie"]
    assert [line.choice for line in read_votes(path)] == ["after", "before", "undo", "undo", "tie"]


def test_votes_on_other_answers_stay_and_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    old = VoteFile(path, draw(PAIRS[:1], 1, SEED), SEED)
    old.vote(old.sample[0], "after")
    changed = Pair(1, PAIRS[0].prompt, "right", "was 1", "is something else")
    new = VoteFile(path, draw([changed], 1, SEED), SEED)
    assert new.votes == {}
    assert new.current is not None
    new.vote(new.current, "before")
    assert [line.choice for line in read_votes(path)] == ["after", "before"]


def test_half_a_line_is_left_out_and_the_next_vote_stands_on_its_own(tmp_path: Path) -> None:
    path, sample = tmp_path / "votes.jsonl", draw(PAIRS, 3, SEED)
    votes = VoteFile(path, sample, SEED)
    votes.vote(sample[0], "after")
    votes.vote(sample[1], "tie")
    raw = path.read_bytes()
    for cut in range(len(raw) - 2, raw.index(b"\n"), -7):
        path.write_bytes(raw[:cut])
        again = VoteFile(path, sample, SEED)
        assert again.current == sample[1]
        again.vote(sample[1], "before")
        assert list(VoteFile(path, sample, SEED).votes.values()) == ["after", "before"]


@pytest.mark.parametrize("line", ['{"row": 1}', '{"more": true}', "{}"])
def test_a_broken_line_is_not_passed_over(tmp_path: Path, line: str) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(IntegrityError, match="line 1") as caught:
        read_votes(path)
    assert "cloudft review" in caught.value.hint


def test_a_vote_survives_a_kill(tmp_path: Path) -> None:
    """The process is killed by itself right after the vote, with no chance to write anything more."""
    code = (
        "import os, signal, sys; from pathlib import Path; from local.evaluation.votes import VoteFile, draw;"
        "from tests.local.evaluation.test_votes import PAIRS, SEED;"
        "v = VoteFile(Path(sys.argv[1]), draw(PAIRS, 3, SEED), SEED);"
        "v.vote(v.current, 'after'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "votes.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=os.environ | {"PYTHONPATH": str(REPO)})
    assert done.returncode == -signal.SIGKILL
    assert list(VoteFile(path, draw(PAIRS, 3, SEED), SEED).votes.values()) == ["after"]


def test_preferences_are_exported_and_ties_are_not(tmp_path: Path) -> None:
    empty = Pair(99, ({"role": "user", "content": "?"},), "", "", "text")
    sample = [*draw(PAIRS, 4, SEED), *draw([empty], 1, SEED)]
    given = zip(sample, ("after", "before", "tie", "skip", "after"), strict=True)
    votes = {one.pair.sha256: choice for one, choice in given}
    path = tmp_path / "pairs.jsonl"
    write_preference_pairs(path, preference_pairs(sample, votes))  # type: ignore[arg-type]
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    row, other = sample[0].pair.row, sample[1].pair.row
    assert first == {
        "prompt": [{"role": "user", "content": f"question {row}"}],
        "chosen": [{"role": "assistant", "content": f"is {row}"}],
        "rejected": [{"role": "assistant", "content": f"was {row}"}],
    }
    assert (second["chosen"][0]["content"], second["rejected"][0]["content"]) == (f"was {other}", f"is {other}")
    # A dpo stage reads it as it is.
    read = load_pairs(path, "train.stages")
    assert [(pair.chosen, pair.rejected) for pair in read] == [
        (f"is {row}", f"was {row}"),
        (f"was {other}", f"is {other}"),
    ]
