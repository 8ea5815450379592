"""``code``: an answer is the code that is missing at a mark in the last message."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from typing import Literal

from local.evaluation.distance import similarity
from local.evaluation.endpoint import Fim, Question, Reply
from local.evaluation.tasks.base import FAILED_REQUEST, MetricDef, Row, Scored, ratio, share

EXACT_MATCH, EDIT_SIMILARITY, SYNTAX_VALID = "exact_match", "edit_similarity", "syntax_valid"


class CodeScorer:
    """Keeps to ``base.Scorer``.

    Args:
        hole: what marks the hole.
        ask: *fim* puts the model's own tokens around what stands before and after the hole; *chat* sends the message.
        language: the filled file is parsed as this; None: it is not.
    """

    primary = EXACT_MATCH

    def __init__(
        self,
        hole: str = "<FILL>",
        ask: Literal["fim", "chat"] = "fim",
        language: Literal["python"] | None = None,
        max_tokens: int = 256,
    ) -> None:
        self._hole, self._ask, self._language, self._max_tokens = hole, ask, language, max_tokens
        self.metrics: Mapping[str, MetricDef] = {
            EXACT_MATCH: share("The answer is the missing code, but for white space at its end."),
            EDIT_SIMILARITY: ratio("1 - (edits from one to the other, by character) / (length of the longer)."),
        }
        if language:
            self.metrics = {**self.metrics, SYNTAX_VALID: share(f"The filled file can be parsed as {language}.")}
        self.tables: Mapping[str, tuple[str, ...]] = {}
        self.matrices: Mapping[str, tuple[str, ...]] = {}

    def expect(self, text: str) -> str:
        return text

    def question(self, row: Row, fim: Fim | None) -> Question:
        if self._ask == "chat":
            return Question(row.prompt, self._max_tokens)
        if fim is None:
            raise ValueError("a model that is asked to fill in the middle must have tokens for it")
        before, after = self._around(row)
        return Question(row.prompt, self._max_tokens, text=fim.around(before, after))

    def score(self, reply: Reply | None, row: Row) -> Scored:
        answer, missing = reply.text.rstrip() if reply else "", str(row.expected).rstrip()
        score = {
            EXACT_MATCH: float(reply is not None and answer == missing),
            EDIT_SIMILARITY: similarity(answer, missing) if reply else 0.0,
        }
        problem = "" if reply else FAILED_REQUEST
        if self._language:
            broken = problem or syntax_problem(self._filled(row, reply.text if reply else ""))
            score[SYNTAX_VALID] = float(not broken)
            problem = broken
        return Scored(score=score, problem=problem or ("" if score[EXACT_MATCH] else "other code"))

    def check(self, row: Row) -> None:
        """Raises ``ValueError`` if the hole is not there exactly once."""
        self._around(row)

    def _around(self, row: Row) -> tuple[str, str]:
        text = str(row.prompt[-1].get("content", ""))
        if text.count(self._hole) != 1:
            raise ValueError(
                f"the hole {self._hole!r} must stand in the last message once, not {text.count(self._hole)} times"
            )
        before, _, after = text.partition(self._hole)
        return before, after

    def _filled(self, row: Row, answer: str) -> str:
        before, after = self._around(row)
        return before + answer + after


def syntax_problem(text: str) -> str:
    """Why ``text`` is no Python, in one line; empty if it is. It is parsed, never run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except SyntaxError as exc:
        return f"line {exc.lineno}: {exc.msg}"
    except (ValueError, RecursionError, MemoryError) as exc:
        return str(exc) or type(exc).__name__
    return ""
