"""Asks an endpoint many questions: several at a time, and never more than it can take.

Worker threads only ask; the thread that called does all else (cache, scores, progress), so nothing here needs a lock.
Answers come back in the order of the questions, whatever the order in which they arrive.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cloudft.errors import CloudftError
from local.evaluation.endpoint import LLAMA_CPP_SERVER, Client, Failure, Question, Reply, Sampling, as_error
from local.evaluation.holdout import NOTHING_WRITTEN

Outcome = Reply | Failure
WORKERS = 4
"""Requests at the same time to a server that does not say how many it takes."""
# What is wrong with the set-up, and would be with the next row too; a number made from it would say nothing about the
# model.
SET_UP = ("key", "overflow")


class Cache(Protocol):
    def get(self, request: Mapping[str, Any]) -> Reply | None: ...

    def put(self, request: Mapping[str, Any], reply: Reply) -> None: ...


@dataclass(frozen=True)
class Asked:
    """One question, with the sampling to ask it with. ``where`` names it in an error ("hold-out row 7")."""

    question: Question
    sampling: Sampling
    where: str


@dataclass(frozen=True)
class Answered:
    """``cached``: it was not asked this time."""

    outcome: Outcome
    cached: bool = False


def workers_for(client: Client, wanted: int | None) -> int:
    """How many requests to have under way: what the user says, else as many as the server works on at a time.

    More would only wait in its queue: their latency would be a lie, and an interrupted one is lost.
    """
    if wanted is not None:
        return wanted
    if client.endpoint.engine == LLAMA_CPP_SERVER:
        return 1  # it holds one lock for all
    return client.slots() or WORKERS


def known_answers(asked: Sequence[Asked], cache: Cache | None, engine: str) -> dict[int, Answered]:
    """The answers that are there already, by the question's number."""
    found = {}
    for number, item in enumerate(asked):
        if cache and (reply := cache.get(request(item, engine))) is not None:
            found[number] = Answered(reply, cached=True)
    return found


def ask_all(
    client: Client,
    asked: Mapping[int, Asked],
    *,
    cache: Cache | None,
    workers: int,
    on_answer: Callable[[int, Answered], None],
    set_up: Collection[str] = SET_UP,
    problem: Callable[[Failure], CloudftError] | None = None,
) -> None:
    """Ask everything.

    Args:
        asked: questions by number.
        cache: where answers are kept; None: nowhere.
        on_answer: called in this thread with the question's number and its answer, as they come. The next
            question is sent when it returns; what it raises ends the asking.
        set_up: kinds of failure that end it, because all other questions would fail like this one.
        problem: the error that such a failure becomes; default: in the words for a model that is measured.

    Raises:
        CloudftError: the set-up is wrong (a refused key, a context too small, a server that is gone). Answers
            that came before are in the cache.
    """
    with _Pool(client, min(workers, len(asked))) as pool:
        waiting = iter(asked)
        for number in _first(waiting, workers):
            pool.send(number, asked[number])
        for _ in asked:
            number, outcome = pool.receive()
            if _is_set_up(client, outcome, set_up):
                assert isinstance(outcome, Failure)
                error = problem(outcome) if problem else _problem(client, outcome, cache is not None)
                raise type(error)(f"{asked[number].where}: {error.what}", effect=error.effect, hint=error.hint)
            if cache and isinstance(outcome, Reply):
                cache.put(request(asked[number], client.endpoint.engine), outcome)
            on_answer(number, Answered(outcome))
            for next_number in _first(waiting, 1):
                pool.send(next_number, asked[next_number])


def request(item: Asked, engine: str) -> dict[str, Any]:
    """All of a request that decides about the answer: not the model's name, which is not what it is."""
    return {"path": item.question.path, **item.question.body("", engine, item.sampling)}


def _first(numbers: Iterator[int], count: int) -> list[int]:
    return [number for _, number in zip(range(count), numbers, strict=False)]


def _is_set_up(client: Client, outcome: Outcome, set_up: Collection[str]) -> bool:
    """Whether it failed for a reason that is not the row's own. A lost connection is, if the server is still there."""
    if not isinstance(outcome, Failure):
        return False
    return outcome.kind in set_up or (outcome.kind == "unreachable" and not client.is_there())


def _problem(client: Client, failure: Failure, kept: bool) -> CloudftError:
    error = as_error(client.endpoint, failure)
    error.effect = what_is_kept(kept)
    return error


def what_is_kept(kept: bool) -> str:
    """What an asking that breaks off leaves."""
    answers = "the answers so far are kept and will not be asked again" if kept else "no answer was kept"
    return f"{answers}; {NOTHING_WRITTEN}"


class _Pool:
    """Daemon threads: after Ctrl-C nobody waits for an answer that may take minutes."""

    def __init__(self, client: Client, size: int) -> None:
        self._client = client
        self._todo: queue.SimpleQueue[tuple[int, Asked] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, Outcome | BaseException]] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(size)]

    def __enter__(self) -> _Pool:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for _ in self._threads:
            self._todo.put(None)

    def send(self, number: int, item: Asked) -> None:
        self._todo.put((number, item))

    def receive(self) -> tuple[int, Outcome]:
        number, outcome = self._done.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return number, outcome

    def _work(self) -> None:
        while (item := self._todo.get()) is not None:
            number, asked = item
            try:
                self._done.put((number, self._client.ask(asked.question, asked.sampling)))
            except BaseException as exc:
                self._done.put((number, exc))
