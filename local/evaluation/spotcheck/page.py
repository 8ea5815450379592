"""The pages, as HTML. Whatever a model wrote is shown as text; nothing is loaded from anywhere else."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Final

from local.evaluation.judge_prompt import request_text
from local.evaluation.votes import Drawn, VoteFile

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="style.css">
<script src="keys.js"></script>
</head>
<body>
<header><h1>{title}</h1><p class="quiet">{hint}</p>
<progress aria-label="Pairs that are done" max="{total}" value="{done}">{done} of {total}</progress></header>
<main>
{body}
</main>
</body>
</html>
"""
_PAIR: Final = """<section aria-labelledby="asked"><h2 id="asked">Asked</h2>
<p class="text" dir="auto">{asked}</p></section>
<details open><summary>A good answer, from your own data</summary><p class="text" dir="auto">{reference}</p></details>
<div class="answers">
<section aria-labelledby="a"><h2 id="a">Answer A</h2><p class="text" dir="auto">{left}</p></section>
<section aria-labelledby="b"><h2 id="b">Answer B</h2><p class="text" dir="auto">{right}</p></section>
</div>
<form method="post" action="vote" aria-label="Your vote">
<input type="hidden" name="pair" value="{sha256}">
<button class="main" name="choice" value="left"><kbd>←</kbd> A is better</button>
<button class="main" name="choice" value="tie"><kbd>=</kbd> No difference</button>
<button class="main" name="choice" value="right"><kbd>→</kbd> B is better</button>
<button name="choice" value="undo"{no_undo}><kbd>u</kbd> Undo the last</button>
<button name="choice" value="skip"><kbd>s</kbd> Skip</button>
</form>
"""
_DONE: Final = """<section><h2>What you preferred</h2><ul>
<li>the tuned model's answer: {after}</li>
<li>the answer from before: {before}</li>
<li>no difference: {tie}</li>
<li>skipped: {skip}</li>
</ul></section>
<form method="post" action="vote" aria-label="Finish or go back">
<input type="hidden" name="pair" value="">
<button class="main" name="choice" value="finish">Finish</button>
<button name="choice" value="undo"{no_undo}><kbd>u</kbd> Undo the last</button>
</form>
"""
_BYE: Final = "<p>Your votes are kept. You can close this page.</p>"


def show(votes: VoteFile) -> str:
    """The page for where the votes stand: the next pair, or the end."""
    drawn = votes.current
    done, total = len(votes.votes), len(votes.sample)
    no_undo = "" if done else " disabled"
    if drawn is None:
        body = _DONE.format(no_undo=no_undo, **_counts(votes))
        return _page("All pairs are done", "Votes are kept on your computer.", done, total, body)
    return _page(f"Pair {done + 1} of {total}", _HINT, done, total, _pair(drawn, no_undo))


def bye(votes: VoteFile) -> str:
    """The last page, after which nobody answers any more."""
    return _page("Thank you", "", len(votes.votes), len(votes.sample), _BYE)


_HINT: Final = "Which answer is better? You are not told which model wrote which."


def _pair(drawn: Drawn, no_undo: str) -> str:
    return _PAIR.format(
        asked=escape(request_text(drawn.pair.prompt)),
        reference=escape(drawn.pair.reference),
        left=_answer(drawn.pair.answer(drawn.left)),
        right=_answer(drawn.pair.answer(drawn.right)),
        sha256=drawn.pair.sha256,
        no_undo=no_undo,
    )


def _answer(text: str) -> str:
    return escape(text) if text.strip() else "<em>(an empty answer)</em>"


def _counts(votes: VoteFile) -> dict[str, int]:
    counts = Counter(votes.votes.values())
    return {choice: counts[choice] for choice in ("after", "before", "tie", "skip")}


def _page(title: str, hint: str, done: int, total: int, body: str) -> str:
    return _PAGE.format(title=title, hint=hint, done=done, total=total, body=body)
