from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.audit import LOOKED_AT, Audit, Reader, StageAudit, audit_inputs, audit_of, spread
from jobs.outcome import TrainError
from jobs.rendering import chatml, encode_rows, has_training_tags, served_template
from jobs.spec import RunSpec
from local.planning.light_tokenizer import LightTokenizer, NoLightTokenizer
from tests.jobs.train_fixtures import make_work
from tests.local.quantize_fixtures import ROWS, SERVED, TEMPLATE, TRAINED, make_tokenizer

ODD = ["ümläut – ünïcode", "tabs\tand\n\nbreaks  ", "emoji 🙂🙃", "<|im_start|>user", "a" * 50, "{{ braces }} {% if %}"]
# A bare template of a kind that many bases have: options of JSON, loop controls, a word of its own for trouble.
PICKY = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{% if loop.index > 8 %}{% break %}{% endif %}"
    "[{{ m.role | upper }}] {{ {'text': m.content} | tojson(indent=1) }}\n"
    "{%- if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[ASSISTANT] {% endif %}"
)


def light(folder: Path) -> LightTokenizer:
    def read(name: str) -> Path | None:
        path = folder / name
        return path if path.is_file() else None

    return LightTokenizer(read)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer"
    path.mkdir()
    make_tokenizer(path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    config["bos_token"] = {"__type": "AddedToken", "content": "<|endoftext|>", "special": True}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def reader(folder: Path, template: str = TEMPLATE) -> Reader:
    tokenizer = light(folder)
    return Reader(tokenizer, template, tokenizer.stops)


def sft(folder: Path, rows: list[dict[str, Any]], max_length: int = 128, template: str = TEMPLATE) -> StageAudit:
    return reader(folder, template).audit("1-sft", "sft", max_length, rows, range(1, len(rows) + 1), LOOKED_AT)


def row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("template", [TEMPLATE, TRAINED, SERVED, chatml(), PICKY], ids=range(5))
def test_the_light_tokenizer_is_transformers_own(folder: Path, template: str) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs, ours = PreTrainedTokenizerFast.from_pretrained(folder), light(folder)
    assert (ours.chat_template, ours.eos_token_id) == (theirs.chat_template, theirs.eos_token_id)
    assert ours.get_vocab() == theirs.get_vocab()
    for text in ODD:
        messages = row(text, text[::-1])["messages"]
        for prompt in (True, False):
            told: dict[str, Any] = {"chat_template": template, "tokenize": False, "add_generation_prompt": prompt}
            rendered = theirs.apply_chat_template(messages, **told)
            assert ours.apply_chat_template(messages, **told) == rendered
            ids = theirs.encode(rendered, add_special_tokens=False)
            assert ours.encode(rendered, add_special_tokens=False) == ids
            plain: dict[str, bool] = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
            assert ours.decode(ids, **plain) == theirs.decode(ids, **plain) == rendered


def test_the_audit_counts_what_the_trainer_trains_on(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    told = sft(folder, ROWS)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    encoded = encode_rows(
        [r["messages"] for r in ROWS], tokenizer, TEMPLATE, stops={tokenizer.eos_token_id}, max_length=128
    )
    assert (told.examples, told.tokens, told.trained) == (len(encoded.examples), encoded.tokens, encoded.trained)
    assert (told.longest, told.ended) == (encoded.longest, len(ROWS))
    assert told.problem == ""
    assert "all 12 answers end with their end token inside the loss" in told.lines()
    assert not any("warning" in line for line in told.lines())


def test_cut_rows_are_named_and_their_ends_are_missed(folder: Path) -> None:
    rows = [*ROWS, row("short", "{} " * 100), row("long " * 100, "{}")]
    told = sft(folder, rows)
    assert (told.cut.count, told.cut.first) == (2, (13, 14))
    assert (told.nothing.count, told.nothing.first) == (1, (14,))
    assert (told.ended, told.examples) == (12, 13)
    assert "12 of 13 answers end with their end token inside the loss" in told.lines()
    would_do = f"train.max_length: {told.longest} would hold them whole"
    assert f"warning: 2 rows (13, 14) longer than max_length, and cut; {would_do}" in told.lines()
    assert "of 1 row (14) nothing would be learned within 128 tokens" in told.problem
    assert str(told.longest) in told.problem


def test_a_prompt_that_is_tokenised_otherwise_alone_is_seen(folder: Path) -> None:
    # "hardware" is one token of this tokenizer; the prompt ends within it.
    ends = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
    told = sft(folder, [row("soft or hard", "ware"), row("plain\n", "text")], template=ends)
    assert told.apart.first == (1,)
    assert any("tokenised otherwise alone" in line for line in told.lines())


def test_text_that_the_tokenizer_changes_is_seen(folder: Path) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    value["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(value))
    told = sft(folder, [row("quiet", "all small"), row("LOUD", "all small")])
    assert told.changed.first == (2,)
    assert told.problem == ""


def test_rows_that_the_template_refuses_are_named_with_its_reason(folder: Path) -> None:
    told = sft(folder, [row("a", "b"), *ROWS[:2]], template=PICKY)
    assert (told.refused.count, told.refused.first) == (2, (2, 3))
    assert "no system here" in told.problem
    inside = sft(folder, [row("a", "one<|im_end|>two")])
    assert "contains a token that ends a turn" in inside.problem


def test_every_answer_of_a_conversation_counts(folder: Path) -> None:
    both = {"messages": row("a", "first answer")["messages"] + row("b", "second answer")["messages"]}
    assert sft(folder, [both]).examples == 2


def test_documents_are_trained_on_whole_and_cut_into_pieces(folder: Path) -> None:
    rows = [{"text": "printer " * 60}, {"text": "since Monday"}]
    told = reader(folder).audit("1-cpt", "cpt", 32, rows, (1, 2), LOOKED_AT)
    assert told.trained == told.tokens > 0
    assert told.trained_share == 1
    assert told.examples > 2
    assert told.cut.count == 0
    assert len(told.lines()) == 1


def test_pairs_that_are_the_same_within_the_length_teach_nothing(folder: Path) -> None:
    prompt = [{"role": "user", "content": "which?"}]
    good = {"prompt": prompt, "chosen": "this one", "rejected": "that one"}
    same = {"prompt": prompt, "chosen": "word " * 200 + "this", "rejected": "word " * 200 + "that"}
    told = reader(folder).audit("2-dpo", "dpo", 64, [good, same], (1, 2), LOOKED_AT)
    assert told.nothing.first == (2,)
    assert "stage 2-dpo" in told.problem
    assert reader(folder).audit("2-dpo", "dpo", 64, [good], (1,), LOOKED_AT).problem == ""


def test_many_rows_are_looked_at_from_the_first_to_the_last() -> None:
    assert spread(5, 10) == [0, 1, 2, 3, 4]
    chosen = spread(1000, 10)
    assert (chosen[0], chosen[-1], len(chosen)) == (0, 999, 10)
    assert chosen == sorted(set(chosen))


def test_an_audit_tells_programs_and_people_the_same(folder: Path) -> None:
    audit: Audit = audit_of("home", "cloudft.yaml", reader(folder, TRAINED), [sft(folder, ROWS, template=TRAINED)])
    value = json.loads(json.dumps(audit.as_dict()))
    assert value["training_tags"] is True
    assert value["stages"][0]["trained_share"] == pytest.approx(audit.stages[0].trained_share, abs=1e-4)
    assert any("generation" in line for line in audit.lines())


def test_tags_make_no_difference_to_what_is_trained(folder: Path) -> None:
    assert has_training_tags(TRAINED)
    assert not has_training_tags(SERVED)
    assert sft(folder, ROWS, template=TRAINED) == sft(folder, ROWS, template=SERVED) == sft(folder, ROWS)


@pytest.mark.parametrize("tag", ["{% generation %}", "{%- generation -%}", "{%-generation%}", "{%+ generation -%}"])
def test_a_tag_is_taken_out_with_the_blanks_around_it_as_they_were(folder: Path, tag: str) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    end = tag.replace("generation", "endgeneration")
    template = "{% for m in messages %}\n  " + tag + "\n  {{ m.content }}  \n  " + end + "\n  |{% endfor %}\n"
    messages = row("a", "b")["messages"]
    served = theirs.apply_chat_template(messages, chat_template=served_template(template), tokenize=False)
    assert served == theirs.apply_chat_template(messages, chat_template=template, tokenize=False)


def test_a_base_without_a_fast_tokenizer_is_left_to_the_machine(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(NoLightTokenizer, match=r"no tokenizer\.json"):
        light(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(NoLightTokenizer, match="cannot be read"):
        light(folder)


def test_the_machine_keeps_what_it_found_and_refuses_rows_that_teach_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [r["messages"] for r in ROWS] + [row("long " * 100, "{}")["messages"]]
    work = make_work(tmp_path / "work", "owner/base", rows, max_length=128)
    spec = RunSpec.model_validate_json((work / "spec.json").read_bytes())
    (work / "out").mkdir()
    with pytest.raises(TrainError, match=r"of 1 row \(13\) nothing would be learned"):
        audit_inputs(work / "inputs", work / "out", spec, reader(folder))
    kept = json.loads((work / "out" / "audit.json").read_text())
    assert (kept["where"], kept["stages"][0]["nothing"]) == ("machine", {"count": 1, "first": [13]})
    assert "label audit" in capsys.readouterr().out


def test_of_several_ranks_the_first_keeps_what_all_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make_work(tmp_path / "work", "owner/base", [r["messages"] for r in ROWS], max_length=128)
    spec = RunSpec.model_validate_json((work / "spec.json").read_bytes())
    (work / "out").mkdir()
    monkeypatch.setenv("RANK", "1")
    found = audit_inputs(work / "inputs", work / "out", spec, reader(folder))
    assert list((work / "out").iterdir()) == []
    monkeypatch.setenv("RANK", "0")
    assert audit_inputs(work / "inputs", work / "out", spec, reader(folder)) == found
    assert [path.name for path in (work / "out").iterdir()] == ["audit.json"]
