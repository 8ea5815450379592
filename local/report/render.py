"""From the report's value to its files, by Jinja templates that lie beside this module. Nothing is read or written.

HTML is escaped by Jinja's autoescape. Markdown is escaped by ``words.plain`` wherever a value is put into a template,
unless the template says otherwise: a model's answer must never become markup in either.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from local.report import cards, markdown, measured, view, words
from local.report.charts import loss_plot
from local.report.history import STAGES
from local.report.model import Report

CONTENTS = (
    ("before-after", "Before and after"),
    ("parts", "Part by part"),
    ("confusions", "What is taken for what"),
    ("examples", "Answers"),
    ("ladder", "Step by step"),
    ("conditions", "How it was measured"),
    ("training", "Training"),
    ("data", "Data"),
    ("money", "Money and time"),
    ("lineage", "Lineage"),
    ("repeat", "How to repeat it"),
    ("unmeasured", "What was not measured"),
)

MEASURED = {"before-after", "parts", "confusions", "examples", "ladder", "conditions"}


def render(report: Report) -> dict[str, str]:
    """Every file of the report: name → contents."""
    context = _context(report)
    style = Markup(_html().get_template("style.css").render())  # noqa: S704  # our own file, not data
    text = _markdown()
    files = {
        "report.html": _html().get_template("report.html.j2").render(context, style=style),
        "report.md": text.get_template("report.md.j2").render(context),
        "training_config.md": text.get_template("training_config.md.j2").render(context),
        "dataset_card.md": cards.dataset_front(report) + text.get_template("dataset_card.md.j2").render(context),
        "README.md": cards.model_front(report) + text.get_template("model_card.md.j2").render(context),
    }
    if report.evaluated is not None:
        files["results_before_after.md"] = text.get_template("results_before_after.md.j2").render(context)
    return files


@cache
def _html() -> Environment:
    return Environment(
        loader=PackageLoader("local.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _markdown() -> Environment:
    environment = Environment(
        loader=PackageLoader("local.report"),
        autoescape=False,  # noqa: S701  # finalize escapes, for Markdown
        finalize=lambda value: value if isinstance(value, words.Raw) else words.plain(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": words.code, "cell": words.cell_code, "fence": words.fence}
    environment.globals |= {
        "table": markdown.table,
        "examples": markdown.examples,
        "one_example": markdown.one_example,
    }
    return environment


def _context(report: Report) -> dict[str, Any]:
    """What every template may use."""
    commands, needs = view.repeat(report)
    data: dict[str, Any] = {
        "r": report,
        "headline": view.headline(report),
        "headline_parts": view.headline_parts(view.headline(report)),
        "verdict_words": measured.VERDICTS,
        "tiles": view.tiles(report),
        "stage_tables": [table for table in report.training.tables if table.caption == STAGES],
        "training_sentence": view.training_sentence(report.training),
        "loss": loss_plot(report.training.curve),
        "loss_label": view.loss_label(report.training),
        "data_rows": view.data_rows(report.data),
        "spreads": view.spreads(report.data),
        "money_sentence": view.money_sentence(report.money),
        "receipt": view.receipt(report.money),
        "phases": view.phases(report.money),
        "repeat_commands": commands,
        "repeat_words": needs,
        "value": measured.value,
        "change": measured.change,
        "change_range": measured.change_range,
        "numeric": view.numeric,
        "is_digest": re.compile(r"[0-9a-f]{40,}").fullmatch,
        "ranged": measured.ranged,
        "test_words": measured.test_words,
        "moment": words.moment,
        "number": words.number,
        "sentence": words.sentence,
        "percent": words.percent,
        "size": words.size,
        "iso": lambda at: datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
        **_measured(report),
    }
    return {**data, "contents": _contents(report, data)}


def _measured(report: Report) -> dict[str, Any]:
    found = report.evaluated
    if found is None:
        return {}
    document = found.document
    data: dict[str, Any] = {
        "e": document,
        "caveats": measured.caveats(document),
        "groups": measured.groups(found),
        "before_after": measured.before_after(document),
        "definitions": measured.definitions(document),
        "tallies": measured.tallies(found),
        "confusions": measured.confusions(found),
        "matrix_tables": measured.matrix_tables(found),
        "conditions": measured.conditions(document),
        "model_tables": measured.model_tables(found),
    }
    if document.ladder is not None:
        metric = document.metrics[document.ladder.metric]
        data |= {
            "ladder_rows": measured.ladder_rows(document.ladder, metric),
            "rungs_table": measured.rungs_table(document.ladder, metric),
            "ladder_tables": measured.ladder_tables(document.ladder, metric),
            "ladder_words": measured.ladder_words(document.ladder),
        }
    return data


def _contents(report: Report, data: dict[str, Any]) -> list[tuple[str, str]]:
    """Id and title of every section that this report has."""
    found = report.evaluated
    if found is None:
        return [entry for entry in CONTENTS if entry[0] not in MEASURED]
    empty = {"parts": not data["tallies"], "confusions": not data["confusions"], "ladder": not found.document.ladder}
    entries = [entry for entry in CONTENTS if not empty.get(entry[0])]
    at = 1 + next(i for i, (name, _) in enumerate(entries) if name in ("ladder", "examples"))
    if found.document.ladder:
        at += 1
    extras = [(f"extra-{number}", extra.title.partition(":")[0]) for number, extra in enumerate(found.extras, start=1)]
    return [*entries[:at], *extras, *entries[at:]]
