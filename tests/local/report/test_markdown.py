"""The Markdown files, read by a real CommonMark parser, and the cards, read by the model hub's own client."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from local.report.words import cell_code, code, fence, plain
from local.report.write import Written, write_report
from tests.local.report import made_up

HOSTILE = [
    "<script>alert(1)</script> <b>bold</b> &copy;",
    "# heading",
    "- item",
    "1. item",
    "> quote",
    "![x](https://example.org/x.png) [y](https://example.org) <https://example.org> [z]: https://example.org",
    "https://example.org www.example.org",
    "*a* _b_ **c** __d__ ~~e~~ `f` ``g``",
    "a | b | c",
    "trailing \\",
    "```\nfence\n```",
    "---",
    "===",
    "$x$",
]
# GitHub's flavour: tables, strike-through, and bare addresses that become links.
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def tokens(text: str) -> list[Token]:
    found = PARSER.parse(text)
    return [*found, *(child for token in found for child in token.children or [])]


def shown(found: list[Token]) -> str:
    return "".join(t.content for t in found if t.type in ("text", "text_special", "code_inline", "fence"))


@pytest.mark.parametrize("text", HOSTILE)
def test_plain_shows_any_text_as_it_is_and_as_nothing_else(text: str) -> None:
    for around in ("{}", "- {}", "**{}**", "word {} word"):
        found = tokens(around.format(plain(text)))
        kinds = {token.type for token in found}
        assert kinds <= {
            *("paragraph_open", "paragraph_close", "inline", "text", "text_special", "strong_open", "strong_close"),
            *("bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close"),
        }
        assert " ".join(text.split()) in shown(found)


@pytest.mark.parametrize("text", HOSTILE)
def test_code_and_cells_and_fences_hold_any_text(text: str) -> None:
    line = " ".join(text.split())
    assert [t.content for t in tokens(code(text)) if t.type == "code_inline"] == [line]
    row = tokens(f"| a | b |\n|---|---|\n| {cell_code(text)} | {plain(text)} |\n")
    assert sum(token.type == "td_open" for token in row) == 2
    assert [t.content.replace("\\|", "|") for t in row if t.type == "code_inline"] == [line]
    block = [token for token in tokens(fence(text)) if token.type == "fence"]
    assert [token.content for token in block] == [text + "\n"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    hostile = " ".join(HOSTILE)
    scenario = made_up.Scenario(
        rows=30,
        question="{row} " + hostile.replace("{", "").replace("}", ""),
        before={5: made_up.expected(5), 6: hostile},
        after={5: hostile, 7: "\ud800 half a character"},
        card={"source": hostile, "license": "CC-BY-4.0", "language": ["en"], "notes": hostile},
        more=True,
    )
    return write_report(*made_up.make_run(tmp_path_factory.mktemp("markdown"), scenario))


MARKDOWN = ["report.md", "results_before_after.md", "training_config.md", "dataset_card.md", "README.md"]


def body(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text.split("---\n", 2)[2] if text.startswith("---\n") else text


@pytest.mark.parametrize("name", MARKDOWN)
def test_no_answer_and_no_setting_becomes_markup(written: Written, name: str) -> None:
    found = tokens(body(written.folder / name))
    kinds = {token.type for token in found}
    assert not kinds & {"html_block", "html_inline", "image", "link_open", "s_open", "em_open", "hr", "lheading_open"}
    headings = [found[i + 1].content for i, token in enumerate(found) if token.type == "heading_open"]
    assert len(headings) >= 2
    assert not any("heading" in text for text in headings)


@pytest.mark.parametrize("name", MARKDOWN)
def test_every_table_has_as_many_cells_in_each_row(written: Written, name: str) -> None:
    lines = body(written.folder / name).split("\n")
    rules = [i for i, line in enumerate(lines) if line.startswith("|") and set(line) <= set("|-:")]
    tables = [token for token in tokens("\n".join(lines)) if token.type == "table_open"]
    assert len(tables) == len(rules)
    assert tables


def test_the_model_card_is_one_that_the_hub_can_read(written: Written) -> None:
    card = ModelCard.load(written.folder / "README.md")
    assert card.data.license == "apache-2.0"  # as the base's own card says
    assert card.data.pipeline_tag == "text-generation"
    assert "gguf" in card.data.tags
    assert card.data.base_model is None  # a folder is no repository of the hub
    assert written.report.evaluated is not None
    after = written.report.evaluated.document.after
    assert {r.metric_type: r.metric_value for r in card.data.eval_results or []} == {
        name: round(value, 6) for name, value in after.items()
    }
    assert card.data.eval_results is not None
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}


def test_the_dataset_card_is_one_that_the_hub_can_read(written: Written) -> None:
    card = DatasetCard.load(written.folder / "dataset_card.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.language == ["en"]
    assert card.data.size_categories == ["n<1K"]
    [config] = card.data.configs
    assert [part["path"] for part in config["data_files"]] == ["train.jsonl", "holdout.jsonl"]


def test_the_dataset_card_names_what_nobody_has_said(written: Written) -> None:
    text = (written.folder / "dataset_card.md").read_text(encoding="utf-8")
    assert "This card is not complete" in text
    assert r"whether they hold personal data (personal_data)" in text
    assert "where the examples come from (source)" not in text
    assert "160 rows" in text
    assert "43 left out" in text
    assert "2 questions have several different answers" in text


def test_a_licence_that_the_hub_does_not_know_goes_by_its_name(tmp_path: Path) -> None:
    scenario = made_up.Scenario(card={"license": "Internal use only!"}, evaluated=False)
    written = write_report(*made_up.make_run(tmp_path, scenario))
    card = DatasetCard.load(written.folder / "dataset_card.md")
    assert (card.data.license, card.data["license_name"]) == ("other", "internal-use-only")


def test_each_hyperparameter_stands_with_its_value_and_its_origin(written: Written) -> None:
    text = (written.folder / "training_config.md").read_text(encoding="utf-8")
    assert "| `learning_rate` | 0.0002 | the usual one for LoRA |" in text
    assert "| `lora_r` | 16 | cloudft.yaml |" in text
    assert "| `seed` | 42 |" in text
