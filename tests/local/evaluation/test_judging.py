"""A judge at a real endpoint, and a person who checks it: what is in the evaluation, and what is called by name."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudft.errors import CloudftError, ConfigError, DataError, IntegrityError, Interrupted, NotFound
from local.evaluation.document.eval_json import Document, read_document
from local.evaluation.document.outputs import OutputLine
from local.evaluation.eval_config import JudgeConfig
from local.evaluation.judging import plan_judging, run_judging
from local.evaluation.review import open_review, record_review
from local.evaluation.verdicts import VerdictLine
from local.progress import silent
from local.project import Project, RunFolder
from tests.local.evaluation.documents import lines, write
from tests.local.evaluation.judge_double import KEY, MODEL, JudgeDouble, always_first, refuses

ROWS = 24


@pytest.fixture
def judge() -> Iterator[JudgeDouble]:
    with JudgeDouble() as double:
        yield double


@pytest.fixture
def config(judge: JudgeDouble, monkeypatch: pytest.MonkeyPatch) -> JudgeConfig:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    return JudgeConfig(
        url=judge.url, model=MODEL, api_key_env="JUDGE_KEY", max_tokens=50, price_input=2, price_output=10
    )


def answered(texts: list[str | None]) -> list[OutputLine]:
    made = lines([("bug", "bug")] * len(texts))
    return [
        line.model_copy(update={"answer": text, "error": None if text is not None else "timeout: too long"})
        for line, text in zip(made, texts, strict=True)
    ]


@pytest.fixture
def evaluated(tmp_path: Path) -> tuple[Project, RunFolder]:
    """After is longer in 16 rows, before in 4; two rows are alike, and one side failed in each of the last two."""
    project = Project(tmp_path)
    run = project.run("r1")
    before = ["short"] * 16 + ["much longer"] * 4 + ["same", "same ", None, "there"]
    after = ["rather long"] * 16 + ["brief"] * 4 + ["same", "same", "there", None]
    write(run, answered(before), answered(after))
    return project, run


def judged(project: Project, run: RunFolder, config: JudgeConfig, use_cache: bool = True) -> Document:
    return run_judging(run, plan_judging(project, run, config, use_cache=use_cache), 30, progress=silent)


def vote(run: RunFolder, choose: str, count: int = 30, seed: int = 7) -> Document:
    """Vote on all pairs of the sample: by the longer answer, by the shorter, or always for one side."""
    review = open_review(run, count, seed)
    while (drawn := review.votes.current) is not None:
        longest = "before" if len(drawn.pair.before or "") > len(drawn.pair.after or "") else "after"
        other = "after" if longest == "before" else "before"
        review.votes.vote(drawn, {"longer": longest, "shorter": other}.get(choose, choose))  # type: ignore[arg-type]
    return record_review(review)


def test_every_pair_is_asked_twice_with_its_sides_swapped(
    judge: JudgeDouble, config: JudgeConfig, evaluated: tuple[Project, RunFolder]
) -> None:
    project, run = evaluated
    found = judged(project, run, config).judging
    assert found is not None
    assert len(judge.requests) == found.requests == 40
    assert (found.pairs, found.wins, found.losses, found.ties) == (24, 17, 5, 2)
    assert (found.identical, found.unanswered, found.inconsistent, found.failed) == (2, 2, 0, 0)
    assert found.position.consistent == 20
    assert (found.outcome, found.standing) == ("better", "not checked by a person")
    assert found.sentence.startswith("the judge prefers the answers after tuning: after 17, before 5, ties 2 of 24")
    assert found.sentence.endswith("not checked by a person")
    assert (found.prompt_tokens, found.completion_tokens) == (4000, 400)
    assert found.cost_usd == pytest.approx((4000 * 2 + 400 * 10) / 1e6)
    assert found.judge.prompt_sha256
    assert "VERDICT" in found.judge.system
    written = [json.loads(line) for line in (run.root / "judge-verdicts.jsonl").read_text().splitlines()]
    assert [(line["row"], line["order"]) for line in written[:2]] == [(1, "before first"), (1, "after first")]
    assert read_document(run).judging == found


def test_the_reference_is_shown_unless_it_is_not_wanted(
    judge: JudgeDouble, config: JudgeConfig, evaluated: tuple[Project, RunFolder]
) -> None:
    project, run = evaluated
    judged(project, run, config)
    assert "reference>\nbug\n" in judge.requests[0]["messages"][-1]["content"]
    judge.requests.clear()
    judged(project, run, config.model_copy(update={"reference": False}))
    assert len(judge.requests) == 40, "another prompt is another question"
    assert "reference" not in judge.requests[0]["messages"][-1]["content"]


def test_a_judge_that_always_prefers_the_first_answer_is_called_by_name(
    judge: JudgeDouble, config: JudgeConfig, evaluated: tuple[Project, RunFolder]
) -> None:
    project, run = evaluated
    judge.character = always_first
    found = judged(project, run, config).judging
    assert found is not None
    assert found.standing == "not used"
    assert "always prefers the first answer" in found.sentence
    assert found.outcome == "undecided"
    assert (found.position.first, found.position.second) == (20, 0)
    assert [caveat.code for caveat in found.warnings] == ["judge-position"]
    # No vote of a person makes such a judge usable.
    after = vote(run, "longer").judging
    assert after is not None
    assert after.standing == "not used"


@pytest.mark.parametrize("trouble", ["refuses", "fails"])
def test_requests_without_a_verdict_are_counted_and_never_skipped(
    judge: JudgeDouble, config: JudgeConfig, evaluated: tuple[Project, RunFolder], trouble: str
) -> None:
    project, run = evaluated
    if trouble == "refuses":
        judge.character = refuses
    else:
        judge.status = 500
    found = judged(project, run, config).judging
    assert found is not None
    assert (found.pairs, found.failed, found.ties) == (24, 20, 22)
    assert found.failed_requests == (0 if trouble == "refuses" else 40)
    assert found.standing == "not used"
    assert "gave no verdict on 20 of 20" in found.sentence
    judge.status, judge.character = 200, JudgeDouble().character
    again = judged(project, run, config).judging
    assert again is not None
    # What failed is asked again; what was said, even without a verdict, was paid for, and is kept.
    assert again.failed == (20 if trouble == "refuses" else 0)


def test_verdicts_are_cached_and_the_cost_is_known_before(
    judge: JudgeDouble, config: JudgeConfig, evaluated: tuple[Project, RunFolder]
) -> None:
    project, run = evaluated
    plan = plan_judging(project, run, config)
    assert (plan.estimate.pairs, plan.estimate.requests) == (24, 40)
    assert plan.estimate.completion_tokens == 40 * 50
    assert plan.estimate.usd == pytest.approx((plan.estimate.prompt_tokens * 2 + 2000 * 10) / 1e6)
    assert judge.requests == []
    first = run_judging(run, plan, 30, progress=silent)
    assert plan_judging(project, run, config).estimate.requests == 0
    assert plan_judging(project, run, config, use_cache=False).estimate.requests == 40
    assert judged(project, run, config) == first
    assert len(judge.requests) == 40
    unknown = config.model_copy(update={"price_output": None})
    assert plan_judging(project, run, unknown).estimate.usd is None


@pytest.mark.parametrize(
    ("parameters", "longest"),
    [
        ({"max_completion_tokens": 4000}, 4000),
        ({"max_tokens": None, "max_completion_tokens": 40}, 40),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": None}, None),
    ],
)
def test_the_cost_is_that_of_what_is_sent(
    config: JudgeConfig, evaluated: tuple[Project, RunFolder], parameters: dict[str, int | None], longest: int | None
) -> None:
    project, run = evaluated
    estimate = plan_judging(project, run, config.model_copy(update={"parameters": parameters})).estimate
    assert estimate.completion_tokens == (None if longest is None else 40 * longest)
    assert (estimate.usd is None) == (longest is None)


@pytest.mark.parametrize(("text", "least", "most"), [("word " * 300, 400, 600), ("问题已经解决" * 100, 600, 1200)])
def test_scripts_with_more_tokens_than_ascii_are_not_taken_for_cheap(
    config: JudgeConfig, tmp_path: Path, text: str, least: int, most: int
) -> None:
    """English has more than three characters a token, Chinese about one."""
    project = Project(tmp_path)
    run = project.run("r1")
    spent = []
    for answer in ("", text):
        write(run, answered(["before"]), answered([f"after{answer}"]))
        spent.append(plan_judging(project, run, config).estimate.prompt_tokens)
    assert least <= (spent[1] - spent[0]) / 2 <= most


def test_it_goes_on_where_it_was_interrupted(
    judge: JudgeDouble, config: JudgeConfig, evaluated: tuple[Project, RunFolder]
) -> None:
    project, run = evaluated
    seen: list[float] = []

    def progress(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        seen.append(done)
        if done == 7:
            judge.hold.clear()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="7 of 40") as caught:
        run_judging(run, plan_judging(project, run, config.model_copy(update={"workers": 1})), 30, progress=progress)
    assert "kept" in caught.value.effect
    assert read_document(run).judging is None
    judge.hold.set()
    assert plan_judging(project, run, config).estimate.requests <= 33
    found = judged(project, run, config).judging
    assert found is not None
    assert found.wins == 17
    assert len(judge.requests) <= 42


def test_a_wrong_key_and_a_judge_that_is_gone_say_so_and_change_nothing(
    judge: JudgeDouble, config: JudgeConfig, evaluated: tuple[Project, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, run = evaluated
    was = run.evaluation.read_bytes()
    monkeypatch.setenv("JUDGE_KEY", "another")
    with pytest.raises(ConfigError, match="refuses the API key"):
        judged(project, run, config)
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ConfigError, match="JUDGE_KEY"):
        plan_judging(project, run, config)
    gone = config.model_copy(update={"url": "http://127.0.0.1:9/v1", "api_key_env": None})
    with pytest.raises(CloudftError, match="cannot be reached"):
        judged(project, run, gone)
    assert run.evaluation.read_bytes() == was
    assert KEY not in repr(plan_judging(project, run, config.model_copy(update={"api_key_env": None})))


def test_parameters_are_added_and_left_out(
    judge: JudgeDouble, config: JudgeConfig, evaluated: tuple[Project, RunFolder]
) -> None:
    project, run = evaluated
    judge.extra = {"max_completion_tokens"}
    other = {"max_tokens": None, "temperature": None, "max_completion_tokens": 77}
    judged(project, run, config.model_copy(update={"parameters": other}))
    assert judge.requests[0]["max_completion_tokens"] == 77
    assert not {"max_tokens", "temperature"} & judge.requests[0].keys()


def test_a_person_who_agrees_makes_the_judge_checked(config: JudgeConfig, evaluated: tuple[Project, RunFolder]) -> None:
    project, run = evaluated
    judged(project, run, config)
    document = vote(run, "longer")
    check, found = document.spot_check, document.judging
    assert check is not None
    assert found is not None
    assert (check.drawn, check.after, check.before, check.ties) == (20, 16, 4, 0)
    assert check.agreement is not None
    assert (check.agreement.n, check.agreement.kappa) == (20, 1.0)
    assert found.standing == "checked by a person"
    assert found.sentence.endswith("checked by a person")
    assert "Cohen's kappa 1.00" in check.sentence
    assert read_document(run) == document


def test_a_person_who_disagrees_contradicts_the_judge(
    config: JudgeConfig, evaluated: tuple[Project, RunFolder]
) -> None:
    project, run = evaluated
    judged(project, run, config)
    found = vote(run, "shorter").judging
    assert found is not None
    assert found.standing == "contradicted by a person"
    assert found.sentence.endswith("contradicted by a person")


def test_a_page_that_nobody_voted_on_says_nothing_of_a_person(
    config: JudgeConfig, evaluated: tuple[Project, RunFolder]
) -> None:
    project, run = evaluated
    judged(project, run, config)
    assert record_review(open_review(run, 30, 7)).spot_check is None
    vote(run, "longer", count=1)
    review = open_review(run, 30, 7)
    assert review.votes.undo()
    document = record_review(review)
    assert document.spot_check is None
    assert document.judging is not None
    assert document.judging.standing == "not checked by a person"


def test_a_few_votes_are_no_check(config: JudgeConfig, evaluated: tuple[Project, RunFolder]) -> None:
    project, run = evaluated
    judged(project, run, config)
    document = vote(run, "longer", count=19)
    assert document.judging is not None
    assert document.judging.standing == "not checked by a person"
    assert document.spot_check is not None
    assert document.spot_check.agreement is not None
    more = vote(run, "longer", count=20)
    assert more.judging is not None
    assert more.judging.standing == "checked by a person"


def test_votes_before_the_judge_count_when_it_comes(config: JudgeConfig, evaluated: tuple[Project, RunFolder]) -> None:
    project, run = evaluated
    check = vote(run, "longer").spot_check
    assert check is not None
    assert check.agreement is None
    assert "a person preferred the answer after tuning in 16 of 20 pairs" in check.sentence
    document = judged(project, run, config)
    assert document.judging is not None
    assert document.judging.standing == "checked by a person"


def test_skipped_pairs_are_no_agreement(config: JudgeConfig, evaluated: tuple[Project, RunFolder]) -> None:
    project, run = evaluated
    judged(project, run, config)
    check = vote(run, "skip").spot_check
    assert check is not None
    assert (check.skipped, check.agreement) == (20, None)


def test_verdicts_that_were_changed_are_not_compared(config: JudgeConfig, evaluated: tuple[Project, RunFolder]) -> None:
    project, run = evaluated
    judged(project, run, config)
    path = run.root / "judge-verdicts.jsonl"
    line = VerdictLine.model_validate_json(path.read_text().splitlines()[0])
    path.write_text(line.model_copy(update={"verdict": "tie"}).model_dump_json() + "\n")
    with pytest.raises(IntegrityError, match="not what the judge said"):
        vote(run, "longer")


def test_there_must_be_something_to_review(tmp_path: Path) -> None:
    run = Project(tmp_path).run("r1")
    with pytest.raises(NotFound, match="was not evaluated"):
        open_review(run, 5, 1)
    write(run, answered(["same", None]), answered(["same", "x"]))
    with pytest.raises(DataError, match="nothing to compare"):
        open_review(run, 5, 1)


def test_only_the_first_pairs_are_judged_and_reviewed_if_so_wanted(
    judge: JudgeDouble, config: JudgeConfig, evaluated: tuple[Project, RunFolder]
) -> None:
    project, run = evaluated
    found = judged(project, run, config.model_copy(update={"pairs": 5})).judging
    assert found is not None
    assert (found.pairs, len(judge.requests)) == (5, 10)
    assert {drawn.pair.row for drawn in open_review(run, 30, 7).votes.sample} == {1, 2, 3, 4, 5}
    document = vote(run, "longer")
    assert document.judging is not None
    assert document.judging.standing == "not checked by a person", "five votes, all alike, show nothing"
