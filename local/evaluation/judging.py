"""Asks a judge which answer is better, pair by pair, and adds its verdict to the evaluation of a run.

The cost is known before anything is asked, verdicts are cached by content, and a request that fails is counted. What
it says is marked as unchecked until a person has looked at a sample (see ``review``).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cloudft.errors import CloudftError, ConfigError, Interrupted
from local.evaluation.cache import AnswerCache
from local.evaluation.document.eval_json import Document, read_document
from local.evaluation.document.judging import JudgeUsed, Judging
from local.evaluation.document.measurement import OutputsRef
from local.evaluation.endpoint import Endpoint, Failure, Question, Sampling, connect
from local.evaluation.eval_config import JudgeConfig
from local.evaluation.evaluate import alone
from local.evaluation.judge_prompt import ORDERS, QUESTION, SYSTEM, Order, messages, prompt_sha256, read_verdict
from local.evaluation.pairs import Pair
from local.evaluation.review import earlier_review, pairs_of, spot_check, with_standing
from local.evaluation.runner import Answered, Asked, ask_all, known_answers
from local.evaluation.sections import write_sections
from local.evaluation.verdicts import (
    Judged,
    VerdictLine,
    count_preferences,
    judge_caveats,
    judged,
    position_bias,
    preference_test,
    unusable,
    win_rate,
)
from local.progress import Progress
from local.project import Project, RunFolder

ENGINE: Final = "judge"
WORKERS: Final = 4
VERDICTS: Final = "judge-verdicts.jsonl"
# Characters of a token in ASCII, and bytes of one in any other script: few, so that the estimate is rather too high.
ASCII_TOKEN: Final = 3
OTHER_TOKEN: Final = 2


@dataclass(frozen=True)
class JudgeQuestion(Question):
    """A question with more or other parameters, as the judge's endpoint wants them; None leaves one out."""

    parameters: Mapping[str, Any] = field(default_factory=dict)

    def body(self, model: str, engine: str, sampling: Sampling) -> dict[str, Any]:
        body = {**super().body(model, engine, sampling), **self.parameters}
        return {name: value for name, value in body.items() if value is not None}


@dataclass(frozen=True)
class Cost:
    """What judging will take at most. ``requests``: those that are not in the cache; ``completion_tokens``: None if
    nothing limits them; ``usd``: None if these or a price are not known."""

    pairs: int
    requests: int
    prompt_tokens: int
    completion_tokens: int | None
    usd: float | None


@dataclass(frozen=True)
class JudgePlan:
    """What is to be asked: of every pair that differs, each order. ``estimate``: its cost."""

    config: JudgeConfig
    pairs: tuple[Pair, ...]
    asked: tuple[tuple[Pair, Order, Asked], ...]
    cache: AnswerCache | None
    endpoint: Endpoint
    estimate: Cost


def plan_judging(project: Project, run: RunFolder, config: JudgeConfig, *, use_cache: bool = True) -> JudgePlan:
    """What judging a run's evaluation will take.

    Raises:
        NotFound: the run was not evaluated.
        IntegrityError: its answers are not those that were measured.
        ConfigError: the judge's key is not in the environment.
    """
    endpoint = Endpoint(config.url, _key(config), config.model, ENGINE)
    document = read_document(run).model_copy(update={"judging": None})
    pairs = pairs_of(run, document)[: config.pairs]
    asked = tuple((pair, order, _asked(pair, order, config)) for pair in pairs if pair.differs for order in ORDERS)
    # For ever, unlike an answer that is measured: asking again costs money, and --no-cache does it.
    cache = AnswerCache(project.state / "cache", {"judge": config.url, "model": config.model}) if use_cache else None
    known = known_answers([one for _, _, one in asked], cache, ENGINE)
    new = [one for number, (_, _, one) in enumerate(asked) if number not in known]
    prompt = sum(_tokens(message["content"]) for one in new for message in one.question.messages)
    longest = _longest(config)
    answers = None if longest is None else len(new) * longest
    estimate = Cost(len(pairs), len(new), prompt, answers, _usd(config, prompt, answers))
    return JudgePlan(config, tuple(pairs), asked, cache, endpoint, estimate)


def run_judging(run: RunFolder, plan: JudgePlan, review_pairs: int, *, progress: Progress) -> Document:
    """Ask the judge, and add its verdict to the run's evaluation; a person's votes, if there are, are compared.

    Args:
        review_pairs: size of the sample that votes are counted on, if no review has said another.

    Raises:
        Interrupted: Ctrl-C; the verdicts so far are kept.
        ConfigError: the judge refuses the key.
        CloudftError: the judge cannot be reached.
    """
    with alone(run):
        lines = _ask(plan, progress)
        found = judged(plan.pairs, lines)
        review = earlier_review(run, plan.pairs, review_pairs, read_document(run))
        check = spot_check(review, found) if review else None
        judging = with_standing(_judging(plan, found, lines), found, check)
        return write_sections(run, [(run.root / VERDICTS, verdict_bytes(lines))], judging=judging, spot_check=check)


def verdict_bytes(lines: Sequence[VerdictLine]) -> bytes:
    """The contents of the verdicts' file."""
    return b"".join(line.model_dump_json().encode() + b"\n" for line in lines)


def _key(config: JudgeConfig) -> str:
    if config.api_key_env is None:
        return ""
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"judge.api_key_env: the environment has no {config.api_key_env}",
            effect="the judge was not asked, and nothing was spent",
            hint=f"export {config.api_key_env}=…    or leave the judge out:  cloudft eval --no-judge",
        )
    return key


def _asked(pair: Pair, order: Order, config: JudgeConfig) -> Asked:
    told = messages(pair, order, config.criteria, config.reference)
    question = JudgeQuestion(told, config.max_tokens, parameters=config.parameters)
    return Asked(question, Sampling(), f"the judge, row {pair.row}")


def _tokens(text: str) -> int:
    """About so many, of any tokenizer, and rather too many."""
    ascii_ = sum(char.isascii() for char in text)
    others = len(text.encode(errors="replace")) - ascii_
    return math.ceil(ascii_ / ASCII_TOKEN + others / OTHER_TOKEN)


def _longest(config: JudgeConfig) -> int | None:
    """Tokens that one answer may take, as it is sent; None if nothing limits them."""
    sent = {"max_tokens": config.max_tokens, **config.parameters}
    limits = [sent.get(name) for name in ("max_tokens", "max_completion_tokens")]
    # Which of two counts is the service's affair.
    return max((limit for limit in limits if isinstance(limit, int)), default=None)


def _usd(config: JudgeConfig, prompt_tokens: int, completion_tokens: int | None) -> float | None:
    if config.price_input is None or config.price_output is None or completion_tokens is None:
        return None
    return (prompt_tokens * config.price_input + completion_tokens * config.price_output) / 1e6


def _ask(plan: JudgePlan, progress: Progress) -> list[VerdictLine]:
    """All verdicts, by row and order."""
    found: dict[int, VerdictLine] = {}
    total = len(plan.asked)

    def take(number: int, answered: Answered) -> None:
        pair, order, _ = plan.asked[number]
        found[number] = _line(pair, order, answered)
        failed = sum(line.verdict is None for line in found.values())
        note = f"{len(found)}/{total}" + (f", {failed} without a verdict" if failed else "")
        progress("judge", len(found), total, "requests", note)

    progress("judge", 0, total, "requests", "")
    try:
        asked = [one for _, _, one in plan.asked]
        for number, answered in known_answers(asked, plan.cache, ENGINE).items():
            take(number, answered)
        open_ = {number: one for number, one in enumerate(asked) if number not in found}
        with connect(plan.endpoint) as client:
            workers = plan.config.workers or WORKERS
            # One pair that is too long for the judge says nothing about the others.
            ask_all(
                client,
                open_,
                cache=plan.cache,
                workers=workers,
                on_answer=take,
                set_up=("key",),
                problem=lambda failure: _problem(plan, failure),
            )
    except KeyboardInterrupt as exc:
        raise Interrupted(
            f"interrupted: {len(found)} of {total} verdicts were there",
            effect=_kept(plan),
            hint="go on:  type the same command again",
        ) from exc
    return [found[number] for number in range(total)]


def _kept(plan: JudgePlan) -> str:
    """What judging that breaks off leaves."""
    kept = "the verdicts so far are kept and will not be asked again" if plan.cache else "no verdict was kept"
    return f"{kept}; before and after are measured, and the evaluation is unchanged"


def _problem(plan: JudgePlan, failure: Failure) -> CloudftError:
    """What a failure of the judge's own set-up means."""
    config = plan.config
    if failure.kind == "key":
        return ConfigError(
            f"{config.url} refuses the API key ({failure.message})",
            effect=_kept(plan),
            hint=f"put the judge's key into the environment:  export {config.api_key_env}=…"
            if config.api_key_env
            else "name the variable that holds the judge's key: judge.api_key_env in cloudft.yaml",
        )
    return CloudftError(
        f"{config.url} cannot be reached: {failure.message}",
        effect=_kept(plan),
        hint="correct judge.url in cloudft.yaml, or leave the judge out:  cloudft eval --no-judge",
    )


def check_judge(config: JudgeConfig) -> None:
    """Raises ``ConfigError`` if the judge's key is not in the environment. Nobody is asked."""
    _key(config)


def _line(pair: Pair, order: Order, answered: Answered) -> VerdictLine:
    outcome = answered.outcome
    if isinstance(outcome, Failure):
        error = f"{outcome.kind}: {outcome.message}"
        return VerdictLine(row=pair.row, pair_sha256=pair.sha256, order=order, verdict=None, said=None, error=error)
    return VerdictLine(
        row=pair.row,
        pair_sha256=pair.sha256,
        order=order,
        verdict=read_verdict(outcome.text),
        said=outcome.text,
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
    )


def _judging(plan: JudgePlan, found: Sequence[Judged], lines: Sequence[VerdictLine]) -> Judging:
    """All that the verdicts say; what a person makes of it comes later."""
    counts = count_preferences(found)
    wins, losses, ties = counts["after"], counts["before"], counts["tie"]
    bias = position_bias(found)
    p, outcome = preference_test(wins, losses)
    prompt, completion = sum(line.prompt_tokens for line in lines), sum(line.completion_tokens for line in lines)
    raw = verdict_bytes(lines)
    how = [one.how for one in found]
    return Judging(
        judge=_judge_used(plan.config),
        pairs=len(found),
        wins=wins,
        losses=losses,
        ties=ties,
        inconsistent=how.count("inconsistent"),
        identical=how.count("identical"),
        unanswered=how.count("unanswered"),
        failed=how.count("failed"),
        win_rate=win_rate(wins, losses, ties),
        p_value=p,
        outcome="undecided" if unusable(found, bias) else outcome,
        position=bias,
        standing="not checked by a person",
        sentence="",
        requests=len(lines),
        failed_requests=sum(line.error is not None for line in lines),
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost_usd=_usd(plan.config, prompt, completion),
        verdicts=OutputsRef(path=VERDICTS, sha256=hashlib.sha256(raw).hexdigest(), lines=len(lines)),
        warnings=judge_caveats(found, bias),
    )


def _judge_used(config: JudgeConfig) -> JudgeUsed:
    return JudgeUsed(
        url=config.url,
        model=config.model,
        system=SYSTEM.replace("{criteria}", config.criteria),
        question=QUESTION,
        prompt_sha256=prompt_sha256(config.criteria),
        reference=config.reference,
        max_tokens=config.max_tokens,
        price_input=config.price_input,
        price_output=config.price_output,
    )
