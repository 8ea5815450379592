"""cloudft.yaml: every mistake is named with its place, and a misspelt key with the right one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cloudft.errors import ConfigError
from local.config import Config, json_schema, load_config
from local.project import find_project

GOOD = {"project": "tickets", "base": "org/model", "data": {"path": "d.jsonl"}, "task": {"schema": "s.json"}}


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "cloudft.yaml"
    path.write_text(text)
    return load_config(path)


def refusal(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert "nothing was started" in caught.value.effect
    return caught.value


def test_defaults_are_the_embedded_ones(tmp_path: Path) -> None:
    config = load(tmp_path, yaml.safe_dump(GOOD))
    assert (config.provider, config.store_config().url, config.data.holdout) == ("local", "./store", 0.2)


@pytest.mark.parametrize(
    ("section", "wrong", "right"),
    [
        (None, "bse", "base"),
        ("train", "lerning_rate", "learning_rate"),
        ("data", "hold_out", "holdout"),
        ("task", "shema", "schema"),
        ("serve", "prot", "port"),
    ],
)
def test_an_unknown_key_gets_the_nearest_right_one(tmp_path: Path, section: str | None, wrong: str, right: str) -> None:
    config: dict[str, object] = {**GOOD}
    if section:
        config[section] = {**dict(GOOD.get(section, {})), wrong: 1}  # type: ignore[call-overload]
    else:
        config[wrong] = 1
    error = refusal(tmp_path, yaml.safe_dump(config))
    place = f"{section}.{wrong}" if section else wrong
    assert f"{place}: unknown key; did you mean {right!r}?" in error.what


def test_an_unknown_key_in_the_store_section(tmp_path: Path) -> None:
    error = refusal(tmp_path, yaml.safe_dump({**GOOD, "store": {"url": "s3://b", "endpoint": "http://x"}}))
    assert "did you mean 'endpoint_url'?" in error.what


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    error = refusal(tmp_path, "project: Bad Name\ntrain: {epochs: -1}\n")
    for place in ("project", "base", "data", "task", "train.epochs"):
        assert f"\n  {place}: " in error.what


@pytest.mark.parametrize(
    "place",
    [
        ("budget",),
        ("monthly_budget",),
        ("boot_minutes",),
        ("machine", "max_rate"),
        ("machine", "max_bid"),
        ("train", "learning_rate"),
        ("train", "epochs"),
        ("train", "weight_decay"),
        ("judge", "price_output"),
        ("ladder", "max_loss"),
    ],
)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_that_is_none_is_refused(tmp_path: Path, place: tuple[str, ...], value: float) -> None:
    raw: dict[str, Any] = {**GOOD, "judge": {"url": "https://host/v1", "model": "m"}}
    section = raw if len(place) == 1 else raw.setdefault(place[0], {})
    section[place[-1]] = value
    found = refusal(tmp_path, yaml.safe_dump(raw)).what
    assert f"{'.'.join(place)}: input should be" in found
    assert "1 mistake" in found


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_would_refuse_on_the_machine_is_refused_at_home(tmp_path: Path, seed: int) -> None:
    assert "train.seed: input should be" in refusal(tmp_path, yaml.safe_dump({**GOOD, "train": {"seed": seed}})).what
    load(tmp_path, yaml.safe_dump({**GOOD, "train": {"seed": 2**32 - 1}}))


def test_a_rule_of_our_own_is_a_plain_sentence(tmp_path: Path) -> None:
    error = refusal(tmp_path, yaml.safe_dump({**GOOD, "train": {"stages": [{"kind": "dpo"}]}}))
    assert error.what.endswith("\n  train.stages.0: a dpo stage needs data: a file of its own")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("- a\n- b\n", "list"),
        ("project: [unclosed\nbase: x\n", "line 2"),
        ("project: a\n\tbase: b\n", "line 2"),
        ("project: a\nbudget: 5\nbudget: 500\n", "line 3: this is not YAML: the key 'budget' stands there twice"),
        ("train:\n  seed: 1\ntrain:\n  epochs: 2\n", "line 3"),
        ("? [a]\n: 1\n", "line 1"),
        ("project: 2026-13-45\n", "month must be in 1..12"),
    ],
)
def test_a_malformed_file_says_where(tmp_path: Path, text: str, says: str) -> None:
    assert says in refusal(tmp_path, text).what


def test_a_missing_file_and_a_missing_project_say_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "cloudft.yaml")
    assert "cloudft init" in caught.value.hint
    with pytest.raises(ConfigError, match=r"no cloudft\.yaml") as caught:
        find_project(tmp_path)
    assert "cloudft init" in caught.value.hint


def test_a_project_is_found_from_a_folder_inside(tmp_path: Path) -> None:
    (tmp_path / "cloudft.yaml").touch()
    (tmp_path / "data" / "deep").mkdir(parents=True)
    assert find_project(tmp_path / "data" / "deep").root == tmp_path.resolve()


def test_the_schema_for_editors_agrees_with_the_loader(tmp_path: Path) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(GOOD)
    assert not validator.is_valid({**GOOD, "lerning_rate": 1})
    assert not validator.is_valid({k: v for k, v in GOOD.items() if k != "base"})


@pytest.mark.parametrize("value", ["hf_" + "a" * 34, "two words", "x" * 60])
def test_a_secret_is_named_and_never_written_down(tmp_path: Path, value: str) -> None:
    error = refusal(tmp_path, yaml.safe_dump({**GOOD, "machine": {"secrets": {"HF_TOKEN": value}}}))
    assert "HF_TOKEN must name a secret" in error.what
    assert value not in error.what
    assert load(tmp_path, yaml.safe_dump({**GOOD, "machine": {"secrets": {"HF_TOKEN": "my_hf_token"}}}))


@pytest.mark.parametrize(
    "url",
    [
        "https://me:sk-hidden@api.example/v1",
        "https://sk-hidden@api.example/v1",
        "https://api.example/v1?key=sk-hidden",
        "https://api.example/v1#sk-hidden",
        "api.example/sk-hidden",
        "http:///sk-hidden",
        "http://[sk-hidden/v1",
    ],
)
def test_a_judges_address_holds_no_secret(tmp_path: Path, url: str) -> None:
    """It is written into eval.json and the report."""
    error = refusal(tmp_path, yaml.safe_dump({**GOOD, "judge": {"url": url, "model": "m"}}))
    assert "judge.url" in error.what
    assert "sk-hidden" not in f"{error.what} {error.hint} {error.effect}"
    found = load(tmp_path, yaml.safe_dump({**GOOD, "judge": {"url": "https://api.example/v1/", "model": "m"}})).judge
    assert found is not None
    assert found.url == "https://api.example/v1"


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"method": "dora"}, "does not train dora"),
        ({"method": "full"}, "not method full"),
        ({"stages": [{"kind": "sft"}, {"kind": "dpo", "data": "p.jsonl"}]}, "not dpo"),
        ({"packing": True}, "does not pack"),
        ({"stages": [{"kind": "cpt", "data": "t.txt", "packing": True}]}, "does not pack"),
    ],
)
def test_what_unsloth_cannot_train_is_said_as_the_config_is_read(
    tmp_path: Path, train: dict[str, object], says: str
) -> None:
    assert load(tmp_path, yaml.safe_dump(GOOD | {"train": train})).train.backend == "trl"
    error = refusal(tmp_path, yaml.safe_dump(GOOD | {"train": train | {"backend": "unsloth"}}))
    assert says in error.what
    assert "backend trl does" in error.what
    assert "nothing was started" in error.effect


def test_the_schema_knows_the_backends() -> None:
    properties = json_schema()["$defs"]["TrainConfig"]["properties"]
    assert (properties["backend"]["enum"], properties["backend"]["default"]) == (["trl", "unsloth"], "trl")
