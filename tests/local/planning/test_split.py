"""The split: repeatable, uncontaminated, and refused when it would mean nothing."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudft.errors import ConfigError, DataError, NotFound
from local.planning.data import Message, Row, load_rows
from local.planning.split import Split, split, write_rows


def row(question: str, answer: str = "yes", system: str = "") -> Row:
    first = (Message("system", system),) if system else ()
    return Row((*first, Message("user", question), Message("assistant", answer)))


ROWS = [row(f"question {i}") for i in range(100)]


def questions(rows: tuple[Row, ...]) -> set[str]:
    return {r.question() for r in rows}


def test_a_share_is_held_out() -> None:
    parts = split(ROWS, 0.2, 7)
    assert (len(parts.train), len(parts.holdout)) == (80, 20)
    assert set(parts.train) | set(parts.holdout) == set(ROWS)
    assert (parts.duplicates, parts.contaminated) == (0, 0)


def test_the_same_rows_and_seed_give_the_same_split_in_any_order() -> None:
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    assert split(ROWS, 0.2, 7) == split(list(ROWS), 0.2, 7)
    assert set(split(shuffled, 0.2, 7).holdout) == set(split(ROWS, 0.2, 7).holdout)
    assert split(ROWS, 0.2, 8).holdout != split(ROWS, 0.2, 7).holdout


def test_the_split_is_the_same_on_every_computer() -> None:
    held = split(ROWS, 0.1, 7).holdout
    assert sorted(int(r.question().split()[1]) for r in held) == sorted(
        sorted(range(100), key=lambda i: hashlib.sha256(f"7 question {i}".encode()).digest())[:10]
    )


def test_a_row_that_is_added_moves_few_others() -> None:
    before = questions(split(ROWS, 0.2, 7).holdout)
    after = questions(split([*ROWS, row("a new one")], 0.2, 7).holdout)
    assert len(before & after) >= 19


def test_repeated_rows_are_left_out_and_counted() -> None:
    parts = split(ROWS + ROWS[:30], 0.2, 7)
    assert len(parts.train) + len(parts.holdout) == 100
    assert parts.duplicates == 30


def test_the_same_question_stays_on_one_side() -> None:
    kin = [row(f"QUESTION  {i} ", answer="no", system="Be brief.") for i in range(100)]
    parts = split(ROWS + kin, 0.2, 7)
    assert not questions(parts.train) & questions(parts.holdout)
    assert (len(parts.train), len(parts.holdout)) == (160, 40)


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(st.integers(0, 60), min_size=80, max_size=160),
    share=st.floats(0.2, 0.5),
    seed=st.integers(0, 1000),
)
def test_nothing_straddles_the_split(asked: list[int], share: float, seed: int) -> None:
    rows = [row(f"question {number}", answer=str(i % 3)) for i, number in enumerate(asked)]
    try:
        parts = split(rows, share, seed)
    except DataError:  # too few are left: tested below
        return
    assert not questions(parts.train) & questions(parts.holdout)
    assert len(parts.train) + len(parts.holdout) + parts.duplicates == len(rows)
    assert len(set(parts.train)) == len(parts.train)
    assert 10 <= len(parts.holdout) <= round((len(rows) - parts.duplicates) * share)


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(r.canonical() + "\n" for r in rows), encoding="utf-8")
    return path


def test_a_file_can_be_the_hold_out(tmp_path: Path) -> None:
    held = write(tmp_path / "held.jsonl", [row(f"held {i}") for i in range(12)])
    parts = split(ROWS, held, 7)
    assert (len(parts.train), len(parts.holdout), parts.contaminated) == (100, 12, 0)


def test_training_rows_that_the_hold_out_file_asks_too_are_left_out(tmp_path: Path) -> None:
    held = write(tmp_path / "held.jsonl", [row(f"Question {i}", answer="no") for i in range(12)] * 2)
    parts = split(ROWS, held, 7)
    assert (len(parts.train), len(parts.holdout)) == (88, 12)
    assert (parts.contaminated, parts.duplicates) == (12, 12)
    assert not questions(parts.train) & questions(parts.holdout)


def test_the_training_file_as_hold_out_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="100 rows are left out because the hold-out asks the same"):
        split(ROWS, write(tmp_path / "same.jsonl", ROWS), 7)


def test_a_hold_out_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        split(ROWS, tmp_path / "none.jsonl", 7)
    assert "data.holdout" in caught.value.hint


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, 20.0, float("nan")])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.holdout is .* between 0 and 1"):
        split(ROWS, share, 7)


@pytest.mark.parametrize(("count", "share", "train", "held"), [(47, 0.2, 38, 9), (19, 0.5, 9, 10), (1, 0.2, 1, 0)])
def test_too_few_rows_are_refused_with_the_numbers(count: int, share: float, train: int, held: int) -> None:
    with pytest.raises(DataError) as caught:
        split(ROWS[:count], share, 7)
    assert f"of {count}, with a share of {share} held out, {train} are left" in caught.value.what
    assert f"{held} to measure with (at least 10)" in caught.value.what
    assert "first message" not in caught.value.what + caught.value.hint


@pytest.mark.parametrize(("count", "share"), [(48, 0.2), (20, 0.5)])
def test_just_enough_rows_are_taken(count: int, share: float) -> None:
    assert len(split(ROWS[:count], share, 7).holdout) == 10


def test_one_question_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"0 to measure with.*; 100 rows have the same first message") as caught:
        split([row("the same", answer=str(i)) for i in range(100)], 0.2, 7)
    assert "user's first message" in caught.value.hint


def test_a_question_written_in_other_characters_is_the_same() -> None:
    """Composed and decomposed, full width, a no-break space: many tokenizers make one of them."""
    kin = [row("Où est la facture 1？"), row("Où est la facture １?", answer="no")]
    assert len({one.question() for one in kin}) == 1


def test_written_rows_read_back_and_are_known_by_their_hash(tmp_path: Path) -> None:
    rows = (row("ü\u2028", answer='{"a": "b"}', system="Be brief."), row("b"))
    path = tmp_path / "deep" / "train.jsonl"
    file = write_rows(path, rows)
    raw = path.read_bytes()
    assert (file.path, file.sha256, file.bytes) == ("train.jsonl", hashlib.sha256(raw).hexdigest(), len(raw))
    assert [r.messages for r in load_rows(path)] == [r.messages for r in rows]
    assert all(set(json.loads(line)) == {"messages"} for line in raw.decode().split("\n")[:-1])
    assert write_rows(path, rows) == file
    assert [p.name for p in path.parent.iterdir()] == ["train.jsonl"]


def test_a_broken_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_rows(path, (row("a"),))
    with pytest.raises(UnicodeEncodeError):
        write_rows(path, (row("b"), row("\ud800")))
    assert load_rows(path)[0].question() == "a"
    assert [p.name for p in tmp_path.iterdir()] == ["train.jsonl"]


def test_a_split_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Split((), ()).train = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("train", "wanted"), [(60, 0), (79, 0), (80, 8), (160, 16), (300, 16), (400, 20), (1000, 50), (5000, 64)]
)
def test_a_few_training_rows_are_kept_back_to_measure_stages(train: int, wanted: int) -> None:
    rows = [row(f"question {i}") for i in range(train + 20)]
    parts = split(rows, 20 / len(rows), 7, validation=None)
    assert (len(parts.train), len(parts.validation), len(parts.holdout)) == (train - wanted, wanted, 20)
    assert questions(parts.train) | questions(parts.validation) | questions(parts.holdout) == questions(tuple(rows))
    # What is held out does not depend on it.
    assert parts.holdout == split(rows, 20 / len(rows), 7).holdout


def test_the_share_of_validation_rows_is_the_users_and_questions_stay_together() -> None:
    rows = [row(f"question {i // 2}", answer) for i, answer in enumerate(["yes", "no"] * 50)]
    parts = split(rows, 0.2, 7, validation=0.25)
    assert (len(parts.train), len(parts.validation)) == (60, 20)
    assert not questions(parts.train) & questions(parts.validation)
    assert not split(rows, 0.2, 7, validation=0.0).validation
