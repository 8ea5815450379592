"""``tools``: an answer calls the right tools with the right arguments: none, one, or several in parallel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from local.evaluation.document.measurement import OTHER
from local.evaluation.endpoint import Fim, Question, Reply
from local.evaluation.schema import Schema
from local.evaluation.tasks.base import FAILED_REQUEST, Count, MetricDef, Row, Scored, micro_f1, ratio, share
from local.evaluation.tasks.calls import (
    Call,
    as_json,
    calls_in_text,
    calls_of_api,
    matched,
    right_arguments,
    same_names,
)

EXACT_MATCH, NAMES, ARGUMENTS, CALL_F1 = "exact_match", "names", "arguments", "call_f1"
PARALLEL, NO_CALL, SCHEMA_VALID = "parallel", "no_call", "schema_valid"


class ToolsScorer:
    """Keeps to ``base.Scorer``. An answer is read from ``tool_calls``, else from its text, as in ``calls``.

    Args:
        tools: as OpenAI's API takes them; arguments are checked against their schemas. Empty: they are not known.
        send: whether to send them with each question.

    Raises:
        ConfigError: a tool's parameters are no JSON schema.
    """

    primary = EXACT_MATCH

    def __init__(self, tools: Sequence[dict[str, Any]] = (), send: bool = False, max_tokens: int = 256) -> None:
        self._tools, self._send, self._max_tokens = tuple(tools), send, max_tokens
        functions = [tool["function"] for tool in self._tools]
        self._schemas = {f["name"]: Schema(f.get("parameters", {}), f"tool {f['name']!r}") for f in functions}
        self.metrics: Mapping[str, MetricDef] = {
            EXACT_MATCH: share("The calls are the expected ones, names and arguments, none less and none more."),
            NAMES: share("The same tools are called, each as often as expected."),
            ARGUMENTS: ratio("The part of the expected arguments that is right, of the rows that expect a call."),
            CALL_F1: ratio("F1 over all calls; a call is right if its name and all its arguments are.", micro_f1),
            PARALLEL: share("The calls are the expected ones, of the rows that expect several."),
            NO_CALL: share("Nothing is called, of the rows that expect no call."),
        }
        if self._tools:
            self.metrics = {**self.metrics, SCHEMA_VALID: share("All calls are of known tools and obey their schemas.")}
        self.tables = {"tools": (*self._schemas, OTHER) if self._tools else ()}
        self.matrices: Mapping[str, tuple[str, ...]] = {}

    def expect(self, text: str) -> list[dict[str, Any]]:
        calls = calls_in_text(text)
        if problem := self._problem(calls):
            raise ValueError(f"the expected answer does not keep to the tools: {problem}")
        return as_json(calls)

    def question(self, row: Row, fim: Fim | None) -> Question:
        return Question(row.prompt, self._max_tokens, tools=self._tools if self._send else ())

    def score(self, reply: Reply | None, row: Row) -> Scored:
        expected = [Call(call["name"], call["arguments"]) for call in row.expected]
        if reply is None:
            return self._scored(None, expected, FAILED_REQUEST)
        try:
            answered = calls_of_api(reply.tool_calls) if reply.tool_calls else calls_in_text(reply.text)
        except ValueError as exc:
            return self._scored(None, expected, str(exc))
        return self._scored(answered, expected, self._problem(answered))

    def _problem(self, calls: Sequence[Call]) -> str:
        """What the tools' schemas have against calls; nothing where the tools are not known."""
        for call in calls if self._tools else ():
            if call.name not in self._schemas:
                return f"there is no tool {call.name!r}"
            if problem := self._schemas[call.name].problem(dict(call.arguments)):
                return f"{call.name}: {problem}"
        return ""

    def _scored(self, answered: Sequence[Call] | None, expected: Sequence[Call], problem: str) -> Scored:
        """``answered`` None: there is no answer, or none that can be read, which is not to call nothing."""
        calls = answered or ()
        equal = [call for call, other in matched(expected, calls) if call.same(other)]
        exact = answered is not None and len(equal) == len(expected) == len(calls)
        score = {EXACT_MATCH: float(exact), NAMES: float(answered is not None and same_names(expected, calls))}
        if expected:
            score[ARGUMENTS] = right_arguments(expected, calls)
        else:
            score[NO_CALL] = float(exact)
        if len(expected) > 1:
            score[PARALLEL] = float(exact)
        if self._tools:
            score[SCHEMA_VALID] = float(answered is not None and not problem)
        sums = (float(len(expected)), float(len(calls)), float(len(equal)))
        return Scored(
            score=score,
            problem=problem or ("" if exact else _difference(expected, calls)),
            pooled={CALL_F1: sums},
            tallies={"tools": self._tallies(expected, calls, equal)},
        )

    def _tallies(self, expected: Sequence[Call], answered: Sequence[Call], equal: Sequence[Call]) -> dict[str, Count]:
        tallies: dict[str, Count] = {}
        for place, calls in enumerate((expected, answered, equal)):
            for call in calls:
                name = call.name if not self._tools or call.name in self._schemas else OTHER
                counts = list(tallies.get(name, (0, 0, 0)))
                counts[place] += 1
                tallies[name] = (counts[0], counts[1], counts[2])
        return tallies


def _difference(expected: Sequence[Call], answered: Sequence[Call]) -> str:
    if same_names(expected, answered):
        return "other arguments"
    said = ", ".join(call.name for call in answered) or "nothing"
    return f"called {said}, not {', '.join(call.name for call in expected) or 'nothing'}"
