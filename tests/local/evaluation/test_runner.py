"""Many questions to an endpoint that is slow, busy, broken or gone."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import CloudftError, ConfigError
from local.evaluation.cache import A_DAY, FOLDER, UNUSED, AnswerCache, prune
from local.evaluation.endpoint import Client, Endpoint, Failure, Question, Reply, Sampling
from local.evaluation.runner import WORKERS, Answered, Asked, ask_all, known_answers, workers_for
from tests.local.evaluation.endpoint_double import EndpointDouble

ANSWERS = {char: f"answer {char}" for char in "abcdefghij"}


def asked(*questions: str, sampling: Sampling | None = None) -> list[Asked]:
    return [
        Asked(Question(({"role": "user", "content": q},), 16), sampling or Sampling(), f"row {n}")
        for n, q in enumerate(questions, start=1)
    ]


def ask(
    double: EndpointDouble,
    questions: list[Asked],
    *,
    cache: AnswerCache | None = None,
    workers: int = 4,
    endpoint: Endpoint | None = None,
    on_answer: Any = None,
) -> tuple[list[Answered], list[int]]:
    """The answers in the order of the questions, and the order in which they came."""
    found: dict[int, Answered] = {}

    def take(number: int, answered: Answered) -> None:
        found[number] = answered
        if on_answer:
            on_answer(number)

    client = Client(endpoint or double.endpoint, timeout=5, sleep=lambda _: None)
    for number, known in known_answers(questions, cache, client.endpoint.engine).items():
        take(number, known)
    open_ = {number: item for number, item in enumerate(questions) if number not in found}
    ask_all(client, open_, cache=cache, workers=workers, on_answer=take)
    client.close()
    return [found[number] for number in range(len(questions))], list(found)


def text(answered: Answered) -> str:
    assert isinstance(answered.outcome, Reply)
    return answered.outcome.text


def test_answers_belong_to_their_questions_whatever_the_order_they_come_in() -> None:
    with EndpointDouble(ANSWERS) as double:
        seen: list[int] = []

        def release_after_the_others(number: int) -> None:
            seen.append(number)
            if len(seen) == 3:
                double.release.set()

        answers, came = ask(double, asked("x!hold", *"abc"), workers=2, on_answer=release_after_the_others)
    assert [text(a) for a in answers] == ["late", "answer a", "answer b", "answer c"]
    assert came == [1, 2, 3, 0]


def test_no_more_are_under_way_than_are_wanted() -> None:
    with EndpointDouble(ANSWERS) as double:

        def release_when_three_wait() -> None:
            while double.at_once < 3:
                time.sleep(0.005)
            time.sleep(0.1)  # a fourth would come now
            double.release.set()

        threading.Thread(target=release_when_three_wait, daemon=True).start()
        ask(double, asked(*[f"{n}!hold" for n in range(9)]), workers=3)
    assert double.most_at_once == 3
    assert len(double.asked) == 9


def test_the_server_says_how_many_it_takes() -> None:
    for slots, wanted, workers in ((7, None, 7), (None, None, WORKERS), (7, 2, 2)):
        with EndpointDouble(ANSWERS, slots=slots) as double:
            client = Client(double.endpoint, sleep=lambda _: None)
            assert workers_for(client, wanted) == workers
            ask(double, asked("a"))
            client.close()
    alone = Client(Endpoint("http://127.0.0.1:9/v1", "k", "m", "llama_cpp.server"))
    assert workers_for(alone, None) == 1
    alone.close()


def test_a_request_that_fails_is_counted_and_the_rest_goes_on() -> None:
    questions = asked("a", "x!500", "b", "y!drop", "c", "z!garbage", "d")
    with EndpointDouble(ANSWERS) as double:
        answers, _ = ask(double, questions, workers=2)
    outcomes = [a.outcome for a in answers]
    assert [o.kind for o in outcomes if isinstance(o, Failure)] == ["refused", "unreachable", "garbled"]
    assert [o.text for o in outcomes if isinstance(o, Reply)] == [f"answer {c}" for c in "abcd"]
    # An error of the server's is not asked again; a lost connection is, a few times.
    assert (double.tries["x!500"], double.tries["y!drop"], double.tries["z!garbage"]) == (1, 4, 1)


def test_a_busy_server_and_a_lost_connection_are_tried_again_and_counted() -> None:
    with EndpointDouble(ANSWERS) as double:
        answers, _ = ask(double, asked("x!503x2", "y!dropx1", "a"))
        assert [text(a) for a in answers] == ["late", "late", "answer a"]
        assert [a.outcome.attempts for a in answers] == [3, 2, 1]
        (given_up,), _ = ask(double, asked("w!503x9"))
    assert given_up.outcome == Failure("refused", "HTTP 503: told to fail with 503")
    assert double.tries["w!503x9"] == 4


def test_a_server_that_is_gone_ends_it_and_keeps_what_came(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, {"sha256": "1"})
    double = EndpointDouble(ANSWERS)

    def stop_after_two(number: int) -> None:
        if number == 1:
            double.close()

    with pytest.raises(CloudftError, match=r"row 3: .*cannot be reached") as caught:
        ask(double, asked(*"abcd"), cache=cache, workers=1, on_answer=stop_after_two)
    assert "the answers so far are kept" in caught.value.effect
    with EndpointDouble(ANSWERS) as again:
        answers, _ = ask(again, asked(*"abcd"), cache=cache)
    assert again.asked == ["c", "d"] or again.asked == ["d", "c"]
    assert [a.cached for a in answers] == [True, True, False, False]


def test_a_refused_key_ends_it_at_once() -> None:
    with EndpointDouble(ANSWERS) as double:
        wrong = Endpoint(double.url, "another key", "double", "double")
        with pytest.raises(ConfigError, match=r"row 1: .*refuses the API key") as caught:
            ask(double, asked(*"abc"), workers=1, endpoint=wrong)
    assert "--key-env" in caught.value.hint
    assert "no answer was kept" in caught.value.effect
    assert double.asked == []


def test_parameters_that_a_service_does_not_know_are_not_sent() -> None:
    """The double refuses what is not in OpenAI's API; as a llama-server it takes the rest too."""
    for slots in (None, 2):
        with EndpointDouble(ANSWERS, slots=slots) as double:
            (answer,), _ = ask(double, asked("a"))
        assert text(answer) == "answer a"


def test_ctrl_c_ends_it_though_an_answer_never_comes(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, {"sha256": "1"})

    def interrupt(number: int) -> None:
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with EndpointDouble(ANSWERS) as double:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            ask(double, asked("x!hold", *"abcd"), cache=cache, workers=2, on_answer=interrupt)
        assert time.monotonic() - began < 30  # it would be held for 60
        double.release.set()
    with EndpointDouble(ANSWERS) as again:
        answers, _ = ask(again, asked(*"abcd"), cache=cache)
    assert [a.cached for a in answers][:2] == [True, True]


def test_a_mistake_of_ours_is_not_hidden_in_a_thread() -> None:
    class Broken(Client):
        def ask(self, question: Question, sampling: Sampling = Sampling()) -> Reply | Failure:  # noqa: B008
            raise LookupError("ours")

    client = Broken(Endpoint("http://127.0.0.1:9/v1", "k", "m", "x"))
    with pytest.raises(LookupError, match="ours"):
        ask_all(client, dict(enumerate(asked("a"))), cache=None, workers=2, on_answer=lambda *_: None)
    client.close()


def test_what_is_known_is_not_asked_again(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, {"sha256": "1"})
    with EndpointDouble(ANSWERS) as double:
        first, _ = ask(double, asked(*"abc", "x!500"), cache=cache)
        second, _ = ask(double, asked(*"abcd", "x!500"), cache=cache)
        assert [a.cached for a in second] == [True, True, True, False, False]
        assert [text(a) for a in second[:3]] == [text(a) for a in first[:3]]
        assert second[0].outcome.latency == first[0].outcome.latency  # type: ignore[union-attr]
        assert double.tries["x!500"] == 2  # a failure is not kept
        ask(double, asked("a"), cache=AnswerCache(tmp_path, {"sha256": "2"}))
        ask(double, asked("a", sampling=Sampling(0.7, 1)), cache=cache)
        ask(double, asked("a", sampling=Sampling(0.7, 2)), cache=cache)
        assert double.tries["a"] == 4  # another model, another chance: another answer
        ask(double, asked("a"), cache=None)
        assert double.tries["a"] == 5


REQUEST: dict[str, Any] = {"path": "/chat/completions", "messages": [{"role": "user", "content": "Grüße"}]}
REPLY = Reply("Grüße\u2028", "tool_calls", 3, 4, ({"function": {"name": "f"}},), 0.5, 2)


def test_an_answer_is_kept_whole(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, {"sha256": "1"})
    assert cache.get(REQUEST) is None
    cache.put(REQUEST, REPLY)
    found = cache.get(REQUEST)
    assert found == REPLY
    assert found is not None
    assert (found.latency, found.attempts) == (0.5, 2)
    # The order of keys is no difference, everything else is.
    assert cache.get({**dict(reversed(REQUEST.items()))}) == REPLY
    assert cache.get({**REQUEST, "seed": 1}) is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"text": "x"}', b'{"tool_calls": 3}', b"\xff"])
def test_a_damaged_answer_is_none_and_is_replaced(tmp_path: Path, damage: bytes) -> None:
    cache = AnswerCache(tmp_path, {"sha256": "1"})
    cache.put(REQUEST, REPLY)
    (path,) = [p for p in (tmp_path / FOLDER).rglob("*") if p.is_file()]
    assert stat.S_ISREG(path.stat().st_mode)
    path.write_bytes(damage)
    assert cache.get(REQUEST) is None
    cache.put(REQUEST, REPLY)
    assert cache.get(REQUEST) == REPLY


def test_the_answers_of_a_service_are_good_for_a_day(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, {"url": "http://x"}, longest=A_DAY)
    cache.put(REQUEST, REPLY)
    (path,) = [p for p in (tmp_path / FOLDER).rglob("*") if p.is_file()]
    assert cache.get(REQUEST) == REPLY
    os.utime(path, (time.time() - A_DAY - 60,) * 2)
    assert cache.get(REQUEST) is None
    assert AnswerCache(tmp_path, {"url": "http://x"}).get(REQUEST) == REPLY


def test_what_was_not_used_for_long_is_removed(tmp_path: Path) -> None:
    old, cache = AnswerCache(tmp_path, {"sha256": "1"}), AnswerCache(tmp_path, {"sha256": "2"})
    old.put(REQUEST, REPLY)
    cache.put(REQUEST, REPLY)
    cache.put_template("own", "0" * 64)
    other = tmp_path / "answers-v0" / "ab" / "ab.json"
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    for path in tmp_path.rglob("*.json"):
        os.utime(path, (time.time() - UNUSED - 60,) * 2)
    # Reading is a use.
    assert (cache.get(REQUEST), cache.template()) == (REPLY, ("own", "0" * 64))
    assert prune(tmp_path) == 2
    assert prune(tmp_path) == 0
    assert (old.get(REQUEST), cache.get(REQUEST)) == (None, REPLY)
    assert cache.template() is not None
    assert not other.exists()


def test_half_a_character_in_a_question_is_sent_and_does_not_end_all() -> None:
    """A lone surrogate, which JSON can hold and UTF-8 can't."""
    with EndpointDouble(ANSWERS) as double:
        answers, _ = ask(double, asked("\ud83d", "a"))
    assert text(answers[1]) == "answer a"
    assert "\ud83d" in double.asked
