"""The demo's task: a support ticket becomes ``{"category", "product", "priority"}``, every value from a list.

All text is made from templates here: no person's data, no licence to mind. ``generic_chats`` makes the other
kind of text, on which the demo's tiny base is pretrained: no answer in it has this task's keys.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product as every
from pathlib import Path
from typing import Any, Final

from local.files import atomic_open, write_json

SYSTEM: Final = "Read the support ticket. Answer with one JSON object: category, product, priority."

# A {app} stands for the name of the product as people write it.
PROBLEMS: Final[dict[str, tuple[str, ...]]] = {
    "billing": (
        "I was charged twice for {app} this month.",
        "the invoice for {app} shows the wrong amount.",
        "please send me a receipt for {app}.",
        "my card was declined when I paid for {app}.",
        "we were billed for more seats in {app} than we use.",
        "I would like a refund for {app}.",
    ),
    "bug": (
        "{app} crashes as soon as I open it.",
        "{app} shows an error and a blank page.",
        "the search in {app} returns nothing at all.",
        "{app} is very slow and freezes.",
        "changes that I make in {app} are not saved.",
        "the buttons in {app} do nothing when I click them.",
    ),
    "access": (
        "I cannot log in to {app}.",
        "my password for {app} is not accepted.",
        "{app} says that my account is locked.",
        "the reset link for {app} never arrives.",
        "a new colleague has no permission to open {app}.",
        "the login code for {app} does not work.",
    ),
    "feature": (
        "it would be nice if {app} had a dark mode.",
        "could you add an export button to {app}?",
        "I wish that {app} had keyboard shortcuts.",
        "please add a weekly summary to {app}.",
        "I suggest larger fonts in {app}.",
        "will {app} ever support templates?",
    ),
    "cancellation": (
        "I want to cancel {app}.",
        "please close our subscription to {app}.",
        "we are moving away from {app}, so end our plan.",
        "stop the renewal of {app}.",
        "we no longer need {app}, delete our account.",
        "how do I end my contract for {app}?",
    ),
}
PRODUCTS: Final[dict[str, tuple[str, ...]]] = {
    "mail": ("Mail", "the mail app", "your mail client"),
    "calendar": ("Calendar", "the calendar app", "your calendar"),
    "drive": ("Drive", "the drive app", "your file drive"),
    "notes": ("Notes", "the notes app", "your notes tool"),
    "meet": ("Meet", "the meeting app", "your video meetings"),
}
URGENCY: Final[dict[str, tuple[str, ...]]] = {
    "high": (
        "This is urgent.",
        "We are blocked until it is solved.",
        "Please help right now!",
        "Nobody here can work.",
    ),
    "normal": (
        "Please look into it this week.",
        "An answer in the next days is fine.",
        "Thanks for your help.",
        "Let me know what you find.",
    ),
    "low": (
        "There is no hurry.",
        "Take your time.",
        "Whenever you have a moment.",
        "It can wait.",
    ),
}
OPENINGS: Final = ("Hi,", "Hello,", "Dear team,", "Good morning,", "Hello again,")

SCHEMA: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Support ticket",
    "type": "object",
    "properties": {
        "category": {"enum": list(PROBLEMS)},
        "product": {"enum": list(PRODUCTS)},
        "priority": {"enum": list(URGENCY)},
    },
    "required": ["category", "product", "priority"],
    "additionalProperties": False,
}

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Ticket:
    """A ticket and its three right values."""

    text: str
    category: str
    product: str
    priority: str

    def answer(self) -> str:
        """The JSON object that the tuned model must give, without blanks."""
        values = {"category": self.category, "product": self.product, "priority": self.priority}
        return json.dumps(values, separators=(",", ":"))

    def messages(self) -> Messages:
        """The ticket as one training row."""
        return [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": self.text},
            {"role": "assistant", "content": self.answer()},
        ]


def all_tickets() -> Iterator[Ticket]:
    """Every ticket that the templates can make (27,000, all distinct), in a fixed order."""
    for category, product, priority in every(PROBLEMS, PRODUCTS, URGENCY):
        parts = every(PROBLEMS[category], PRODUCTS[product], URGENCY[priority], OPENINGS)
        for problem, name, urgency, opening in parts:
            text = f"{opening} {problem.format(app=name)} {urgency}"
            yield Ticket(text, category, product, priority)


def tickets(rows: int, seed: int) -> list[Ticket]:
    """``rows`` distinct tickets, drawn with ``seed``.

    Raises:
        ValueError: more tickets than the templates can make.
    """
    return random.Random(seed).sample(list(all_tickets()), rows)  # noqa: S311 - a draw, not a secret


def write_demo_data(folder: Path, rows: int, seed: int) -> tuple[Path, Path]:
    """Write ``tickets.jsonl`` (chat messages) and ``schema.json`` into ``folder``; returns both paths."""
    data, schema = folder / "tickets.jsonl", folder / "schema.json"
    with atomic_open(data) as out:
        for ticket in tickets(rows, seed):
            out.write(json.dumps({"messages": ticket.messages()}, ensure_ascii=False).encode() + b"\n")
    write_json(schema, SCHEMA)
    return data, schema


# What the base learns instead: the same language, answered in prose, or in JSON with other keys. So it knows
# the words; what the fine-tune teaches is the format.
_KEYS: Final = {"about": "category", "app": "product", "haste": "priority"}
_WHEN: Final = {"high": "at once", "normal": "in a few days", "low": "when there is time"}
_GOODS: Final = ("apple", "book", "chair", "lamp", "pear", "shirt", "spoon", "table")
_COLOURS: Final = ("black", "blue", "green", "red", "white", "yellow")


def generic_chats(count: int, seed: int) -> list[Messages]:
    """Chats for pretraining the tiny base; none has this task's instruction or an answer with its keys."""
    rng = random.Random(seed)  # noqa: S311 - a draw, not a secret
    pool = list(all_tickets())
    makers = (_prose_about_ticket, _json_about_ticket, _small_talk)
    return [rng.choices(makers, weights=(3, 5, 2))[0](rng, rng.choice(pool)) for _ in range(count)]


def _chat(system: str, user: str, assistant: str) -> Messages:
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": user},
        {"role": "assistant", "content": assistant},
    ]


def _prose_about_ticket(rng: random.Random, ticket: Ticket) -> Messages:
    system = rng.choice(("You are a friendly helper.", "Answer the support ticket in one sentence."))
    about = f"this is about {ticket.category} and {ticket.product}"
    return _chat(system, ticket.text, f"Thank you, {about}, and we will reply {_WHEN[ticket.priority]}.")


def _json_about_ticket(rng: random.Random, ticket: Ticket) -> Messages:
    """The ticket's values under other keys: one, two or three of them, in any order."""
    keys = rng.sample(list(_KEYS), rng.randint(1, 3))
    answer = {key: getattr(ticket, _KEYS[key]) for key in keys}
    return _chat(
        f"Answer with one JSON object: {', '.join(keys)}.",
        ticket.text,
        json.dumps(answer, separators=(",", ":")),
    )


def _small_talk(rng: random.Random, _: Ticket) -> Messages:
    thing, colour, number = rng.choice(_GOODS), rng.choice(_COLOURS), rng.randint(2, 9)
    user = f"I have {number} {colour} {thing}s."
    if rng.random() < 0.5:
        answer = json.dumps({"thing": thing, "colour": colour, "number": number}, separators=(",", ":"))
        return _chat("Answer with one JSON object: thing, colour, number.", user, answer)
    return _chat("You are a friendly helper.", user, f"So you have {colour} {thing}s, {number} of them.")
