"""`cloudft eval` with a judge and general questions, and `cloudft review`, as a user and a script type them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cloudft.commands.eval_more import cost_text
from local.evaluation.endpoint import Endpoint
from local.evaluation.eval_config import JudgeConfig
from local.evaluation.judging import Cost, JudgePlan
from tests.conftest import REPO
from tests.local.evaluation.documents import write
from tests.local.evaluation.judge_double import KEY, MODEL, JudgeDouble, always_first, longer
from tests.local.evaluation.recompute import assert_recomputed
from tests.local.evaluation.test_judging import answered
from tests.local.serve_fixtures import Trained, make_trained

ROWS = [(f"{number} a", {"category": "bug", "priority": "high"}) for number in range(1, 5)]
BEFORE, AFTER = {"a": "Sure, it is a bug, and it is urgent."}, {"a": '{"category": "bug", "priority": "high"}'}


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    return make_trained(tmp_path, ROWS, BEFORE, AFTER)


def judge_config(trained: Trained, **judge: Any) -> None:
    config = yaml.safe_load(trained.project.config_file.read_text())
    trained.project.config_file.write_text(yaml.safe_dump(config | {"judge": judge}))


def start(trained: Trained, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cloudft", *args],
        cwd=trained.project.root,
        env=os.environ | {"PYTHONPATH": str(REPO), "JUDGE_KEY": KEY},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def cloudft(trained: Trained, *args: str) -> tuple[int, str, str]:
    process = start(trained, *args)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture
def judge() -> Iterator[JudgeDouble]:
    with JudgeDouble(always_first) as double:
        yield double


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--general", "nothing"], 2, "no general suite"),
        (["--served", "http://127.0.0.1:9/v1"], 2, "--served names the last rung"),
        (["--judge", "--endpoint", "http://127.0.0.1:9/v1", "--model", "x"], 2, "leave --endpoint out"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_asked(
    trained: Trained, args: list[str], code: int, says: str
) -> None:
    done = cloudft(trained, "eval", *args)
    assert done[0] == code
    assert says in done[2]
    assert not trained.run.evaluation.exists()


def test_a_judge_is_asked_only_after_its_cost_was_agreed_to(trained: Trained, judge: JudgeDouble) -> None:
    code, _, err = cloudft(trained, "eval", "--judge")
    assert (code, "names no judge" in err) == (3, True)
    judge_config(trained, url=judge.url, model=MODEL, api_key_env="NOT_THERE")
    code, _, err = cloudft(trained, "eval", "--judge")
    assert (code, "the environment has no NOT_THERE" in err) == (3, True)
    assert not trained.run.evaluation.exists(), "what could not be judged is not measured for hours first"
    judge_config(trained, url=judge.url, model=MODEL, api_key_env="JUDGE_KEY", price_input=1, price_output=1)
    code, _, err = cloudft(trained, "eval", "--judge")
    assert trained.run.evaluation.exists(), "before and after are measured all the same"
    assert "held-out examples" in err, "and shown"
    assert code == 2
    assert "4 pairs, 8 requests" in err
    assert re.search(r"at most \$0\.\d\d at the prices", err)
    assert "--yes" in err
    assert judge.requests == []

    code, out, err = cloudft(trained, "eval", "--judge", "--yes", "--general", "basics")
    assert code == 0, err
    assert len(judge.requests) == 8
    assert "the judge's verdict is not used: it always prefers the first answer" in out
    assert "nothing to forget: the base answers 0 of 90" in out
    code, out, _ = cloudft(trained, "eval", "--judge", "--json")
    assert code == 0, "nothing new is asked, so nobody is asked"
    assert len(judge.requests) == 8
    found = json.loads(out)["data"]
    assert found["judging"]["standing"] == "not used"
    assert found["forgetting"][0]["outcome"] == "nothing to forget"


@pytest.mark.parametrize(
    ("usd", "said"), [(0.0, "at most $0.00"), (0.0031, "at most $0.01"), (0.07, "at most $0.07"), (0.0701, "$0.08")]
)
def test_the_most_that_a_judge_costs_is_not_rounded_down(usd: float, said: str) -> None:
    cost = Cost(pairs=2, requests=4, prompt_tokens=10, completion_tokens=None, usd=usd)
    plan = JudgePlan(JudgeConfig(url="https://host/v1", model="m"), (), (), None, Endpoint("", "", "", ""), cost)
    assert said in cost_text(plan)
    assert "any number to write" in cost_text(plan)


def test_the_judges_counts_are_what_it_said(tmp_path: Path) -> None:
    """Wins, losses and a tie, counted anew from its verdicts."""
    right = AFTER["a"]
    rows = [(f"{number} {kind}", json.loads(right)) for number, kind in enumerate("aabbbc", 1)]
    before = {"a": f"{right} And it is urgent.", "b": "A bug.", "c": "x" * len(right)}
    trained = make_trained(tmp_path, rows, before, dict.fromkeys("abc", right))
    with JudgeDouble(longer) as judge:
        judge_config(trained, url=judge.url, model=MODEL, api_key_env="JUDGE_KEY", price_input=1, price_output=1)
        code, _, err = cloudft(trained, "eval", "--judge", "--yes")
    assert code == 0, err
    judged = assert_recomputed(trained.run).judging
    assert judged is not None
    assert (judged.wins, judged.losses, judged.ties) == (3, 2, 1)


def review(trained: Trained, *args: str) -> tuple[subprocess.Popen[str], str]:
    process = start(trained, "review", "--json", *args)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["data"]["url"]


def press(url: str, choice: str) -> httpx.Response:
    page = httpx.get(url, trust_env=False).text
    pair = re.search(r'name="pair" value="(\w*)"', page)
    assert pair
    return httpx.post(f"{url}vote", data={"pair": pair.group(1), "choice": choice}, trust_env=False)


def test_a_review_is_stopped_and_goes_on_and_is_exported(trained: Trained) -> None:
    before, after = [f"short {n}" for n in range(6)], [f"rather long {n}" for n in range(6)]
    write(trained.run, answered([*before]), answered([*after]))
    code, _, err = cloudft(trained, "review", "--export", "pairs.jsonl")
    assert (code, "no vote prefers an answer yet" in err) == (4, True)

    process, url = review(trained, "--pairs", "4")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["data"]["spot_check"] is None

    process, url = review(trained, "--pairs", "4")
    press(url, "left")
    press(url, "right")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    check = json.loads(out)["data"]["spot_check"]
    assert (check["drawn"], check["after"] + check["before"]) == (4, 2)

    process, url = review(trained, "--pairs", "4")
    assert "Pair 3 of 4" in httpx.get(url, trust_env=False).text
    press(url, "tie")
    press(url, "left")
    process.kill()
    process.communicate(timeout=60)

    process, url = review(trained, "--pairs", "4")
    assert "All pairs are done" in httpx.get(url, trust_env=False).text
    press(url, "finish")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found = json.loads(out)["data"]
    assert (found["spot_check"]["after"] + found["spot_check"]["before"], found["spot_check"]["ties"]) == (3, 1)
    assert json.loads(trained.run.evaluation.read_text())["spot_check"] == found["spot_check"]

    code, out, err = cloudft(trained, "review", "--pairs", "4", "--export", "pairs.jsonl")
    assert (code, "3 preference pairs" in out) == (0, True)
    assert "hold-out" in err
    pairs = [json.loads(line) for line in (trained.project.root / "pairs.jsonl").read_text().splitlines()]
    assert {tuple(pair) for pair in pairs} == {("prompt", "chosen", "rejected")}
    assert all(
        {pair["chosen"][0]["content"][:5], pair["rejected"][0]["content"][:5]} == {"short", "rathe"} for pair in pairs
    )


def test_a_run_that_was_not_evaluated_is_not_reviewed(trained: Trained) -> None:
    code, _, err = cloudft(trained, "review", "--json")
    assert code == 5
    assert json.loads(err)["hint"].startswith("measure it:  cloudft eval")
