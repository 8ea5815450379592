"""The rest of the report's value as words and rows: what was trained, with what, for how much, and how to repeat it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from local.report import words
from local.report.charts import loss_plot
from local.report.measured import value
from local.report.model import DataFacts, Money, Payment, Report, Table, Training

NUMERIC = re.compile(r"([$+−-]?[\d.,]+%?|–)( → [\d.,]+%?)?")


@dataclass(frozen=True)
class Tile:
    name: str
    value: str
    note: str = ""
    wide: bool = False


def headline(report: Report) -> str:
    """The sentence, as one begins."""
    return words.sentence(report.headline)


def headline_parts(text: str) -> tuple[str, str]:
    """The answer, and what stands behind it in brackets."""
    answer, bracket, rest = text.partition(" (")
    return (answer, bracket.strip() + rest) if bracket else (text, "")


def tiles(report: Report) -> list[Tile]:
    """The few numbers that are asked for first."""
    found = []
    if report.evaluated is not None:
        document = report.evaluated.document
        metric = document.metrics[document.primary]
        was, now = (value(metric, values[document.primary]) for values in (document.before, document.after))
        found.append(Tile(document.primary, f"{was} → {now}", f"{document.n} held-out rows", wide=True))
        found.append(Tile("rows gained, lost", f"{document.changes.gained}, {document.changes.lost}"))
    cost = words.money(report.money.spent_usd)
    found.append(Tile("cost", cost, "at most" if report.money.rented else "nothing was rented"))
    training = report.training
    if training.seconds:
        rate = training.tokens_per_second
        pace = f"{words.number(training.tokens)} tokens, {words.number(round(rate))} a second" if rate else ""
        found.append(Tile("training", words.seconds(training.seconds), pace))
    if report.model is not None:
        found.append(Tile("served file", words.size(report.model.bytes), report.model.type))
    return found


def training_sentence(training: Training) -> str:
    # "100 of 100 steps" is said already.
    told = training.reason and not training.reason.startswith(f"{training.steps} of {training.planned} steps")
    state = training.status + (f" ({training.reason})" if told else "")
    if not training.steps:
        return f"The training is {state}; no step has come home."
    text = f"{words.number(training.steps)} of {words.number(training.planned)} steps: {state}."
    if training.tokens:
        text += f" The model saw {words.number(training.tokens)} tokens, prompts included"
        text += f", in {words.seconds(training.seconds)}." if training.seconds else "."
    if training.versions:
        text += " With " + ", ".join(f"{name} {version}" for name, version in training.versions.items()) + "."
    return text


def loss_label(training: Training) -> str:
    """What the loss picture shows, for those who do not see it."""
    plot = loss_plot(training.curve)
    if plot is None:
        return ""
    text = (
        f"Training loss over {words.number(training.curve.train[-1][0])} steps: its running mean goes from "
        f"{plot.first:.3f} to {plot.last:.3f}."
    )
    if training.curve.held_out:
        text += f" On rows not trained on it is {training.curve.held_out[-1][1]:.3f} in the end."
    return text


def data_rows(data: DataFacts) -> list[tuple[str, str]]:
    """The facts that are known, in words."""
    rows = [
        ("Trained on", f"{words.number(data.train_rows)} rows ({words.size(data.train_bytes)})"),
        ("Held out", f"{words.number(data.holdout_rows)} rows, drawn by question with seed {data.split_seed}"),
    ]
    optional: list[tuple[str, object | None, str]] = [
        ("Source file", data.source_file, f"{data.source_file}, {data.source_rows} rows"),
        ("Repeated rows", data.duplicates, f"{data.duplicates} left out"),
        ("Contamination", data.contaminated, _contamination(data)),
        ("Conflicts", data.conflicts, f"{data.conflicts} questions have several different answers"),
        ("Length", data.longest_characters, _lengths(data)),
    ]
    return rows + [(name, text) for name, known, text in optional if known is not None]


def _lengths(data: DataFacts) -> str:
    return f"{data.median_characters} characters in the median row, {data.longest_characters} in the longest"


def _contamination(data: DataFacts) -> str:
    left_out = f"{data.contaminated} training rows asked what the hold-out asks, and were left out"
    if data.shared_questions is None:
        return left_out
    return f"{left_out}; now {data.shared_questions} questions of the hold-out are in the training rows"


def numeric(table: Table) -> list[bool]:
    """For each column whether it is all numbers, which stand better when they are aligned."""
    return [
        all(NUMERIC.fullmatch(row[i]) for row in table.rows) and i > 0 if table.rows else False
        for i in range(len(table.columns))
    ]


def spreads(data: DataFacts) -> list[Table]:
    return [
        Table(f"How often each value of {spread.key} is the answer", (spread.key, "training", "hold-out"),
              tuple((name, str(train), str(held)) for name, train, held in spread.rows))
        for spread in data.spreads
    ]  # fmt: skip


def money_sentence(money: Money) -> str:
    if not money.rented:
        return "Nothing was rented: the run cost no money."
    bound = f" of a budget of {words.money(money.budget_usd)}" if money.budget_usd is not None else ""
    text = f"The run has cost {words.money(money.spent_usd)} at most{bound}."
    return text + (" A machine may still cost something: see `cloudft status`." if money.open else "")


def receipt(money: Money) -> Table:
    """One line a machine: what it cost at most, and the proof that it is gone."""
    rows = tuple(_paid(payment, money.rented) for payment in money.payments)
    return Table("Receipt", ("attempt", "machine", "time", "rate", "dollars at most", "gone"), rows)


def _paid(payment: Payment, rented: bool) -> tuple[str, ...]:
    number = f" ({payment.machine_id})" if payment.machine_id and rented else ""
    source = f", {payment.source}" if payment.source and rented else ""
    return (
        f"{payment.attempt}",
        payment.machine + number,
        words.seconds(payment.seconds) if payment.seconds is not None else "–",
        f"{words.money(payment.rate_usd)}/h{source}",
        words.money(payment.usd) if payment.usd is not None else "not known yet",
        "yes" if payment.usd is not None else "not seen yet",
    )


def phases(money: Money) -> Table | None:
    """Where the machines' time went, by their own account."""
    total: dict[str, float] = {}
    cost: dict[str, float] = {}
    for payment in money.payments:
        for name, spent in payment.phases.items():
            total[name] = total.get(name, 0.0) + spent
            cost[name] = cost.get(name, 0.0) + spent * payment.rate_usd / 3600
    if not total:
        return None
    if not money.rented:
        return Table("Where the time went", ("phase", "time"), tuple((n, words.seconds(s)) for n, s in total.items()))
    # Parts of a dollar: with two digits most of them would be nothing.
    rows = tuple((name, words.seconds(spent), f"${cost[name]:.4f}") for name, spent in total.items())
    return Table("Where the time went", ("phase", "time", "dollars"), rows)


def repeat(report: Report) -> tuple[str, str]:
    """The commands, and what they need."""
    commands = f"cloudft reproduce {report.run_id}\ncloudft diff {report.run_id} <the new run>"
    needs = (
        f"They need the folder runs/{report.run_id} (rows, task and run.lock.json, checked by sha256) and the base at "
        "the revision named above; anything that is missing or has changed is named before a machine is rented. On a "
        "CPU with one thread the same software gives the same bytes; on a GPU, numbers that differ by chance."
    )
    return commands, needs
