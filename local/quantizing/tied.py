"""Tokens that an adapter trained by themselves, and input and output layer where the base has one for both."""

from __future__ import annotations

from typing import Any

from cloudft.errors import ConfigError
from local.quantizing.lora import Lora, Rows
from local.quantizing.names import EMBEDDING, HEAD, OUTPUT, PREFIX, TOKENS, matches, pattern_value, unfit
from local.safetensors_file import Tensor, equal, equal_transposed


def take_tokens(
    found: Lora, brought: dict[str, Tensor], stored: dict[str, Tensor], config: dict[str, Any], tied: bool
) -> None:
    """Rows of tables that were trained themselves; none of those that the configuration names may be missing."""
    said = config.get("trainable_token_indices") or {}
    embedding = next((name.removesuffix(".weight") for name in stored if EMBEDDING.search(name)), "")
    for name, tensor in brought.items():
        if name.endswith(TOKENS):
            module = name.removesuffix(TOKENS)
            # A tied output layer is as large as the embedding, and may come along with the same tokens.
            modules = [module, embedding] if tied and module == HEAD else [module]
            found.rows[module] = _rows(name, tensor.shape, _table(modules, found.whole, stored), _tokens(said, modules))
    _refuse_lost(said, found.rows, tied)


def _table(modules: list[str], *stores: dict[str, Tensor]) -> tuple[int, ...]:
    """The shape of the first of the modules' weights that there is."""
    found = (store[f"{module}.weight"] for module in modules for store in stores if f"{module}.weight" in store)
    return next((tensor.shape for tensor in found), ())


def _tokens(said: dict[str, list[int]] | list[int], modules: list[str]) -> list[int]:
    """What a configuration says of the first of the modules of which it says something."""
    if isinstance(said, list):
        return said
    return next((said[key] for module in modules for key in said if matches([key], module)), [])


def _refuse_lost(said: dict[str, list[int]] | list[int], rows: dict[str, Rows], tied: bool) -> None:
    """Raise ``IntegrityError`` where the configuration names tokens that did not come along."""
    by_key = said if isinstance(said, dict) else {}
    lost = [key for key in by_key if not any(matches([key], module) for module in rows)]
    if tied:  # of a tied output layer peft leaves out the rows that are the embedding's
        there = {one.indices for one in rows.values()}
        lost = [key for key in lost if key != HEAD or tuple(by_key[key]) not in there]
    if lost or (said and not rows):
        raise unfit(["the rows of trainable_token_indices"], "are not in the adapter")


def _rows(name: str, shape: tuple[int, ...], table: tuple[int, ...], indices: list[int]) -> Rows:
    if shape != (len(indices), *table[1:]) or any(not 0 <= index < table[0] for index in indices):
        raise unfit([f"{PREFIX}{name}"], f"is {shape} for {len(indices)} tokens, which has no place in the base")
    return Rows(f"{PREFIX}{name}", tuple(indices))


def refuse_undefined(found: Lora, modules: set[str], brought: dict[str, Tensor], tied: bool) -> None:
    """What peft gives no result for: it wraps layers for trained tokens, and fails where more is done to them.

    Raises:
        ConfigError: see above.
    """
    what = ""
    if set(found.rows) & modules:
        what = "factors of the same layer"
    elif tied and set(found.rows) - {HEAD} and f"{HEAD}.lora_magnitude_vector" in brought:
        what = "a DoRA on the tied output layer"
    elif tied and f"{HEAD}.token_adapter.base_layer.weight" in brought and HEAD not in found.rows:
        what = "a tied output layer that was trained whole"
    if what:
        raise ConfigError(
            f"the adapter has trained tokens beside {what}, and peft itself computes nothing with that",
            effect="nothing was written",
            hint="train one without the tokens, or without the other",
        )


def untie(
    found: Lora, modules: set[str], brought: dict[str, Tensor], stored: dict[str, Tensor], config: dict[str, Any]
) -> bool:
    """Where input and output layer were one and not both of them were tuned alike, they are two from now on.

    Factors of the output layer that are the embedding's leave ``modules``. Returns False for what is not worth the care
    here.
    """
    first = next((name for name in stored if EMBEDDING.search(name)), "")
    embedding = first.removesuffix(".weight")
    input_, output = found.whole.get(first), found.whole.get(OUTPUT)
    rows, own_rows = found.rows.get(embedding), found.rows.get(HEAD)
    tuned = {HEAD, embedding} & modules
    if HEAD in tuned and _same_factors(embedding, brought, config):
        modules.remove(HEAD)
        tuned = set()  # what is done to the one is done to the other
    if not tuned and input_ is None and output is None and own_rows is None:
        return True
    if not first:
        return False
    # What the output layer was before anything tuned it: the shared tensor, in its new size if it was resized.
    shared = input_ if input_ is not None and found.vocabulary is not None else stored[first]
    apart = output is not None and not equal(output, input_ if input_ is not None else stored[first])
    alone = input_ is not None and output is None and found.vocabulary is None
    alike = rows == own_rows or own_rows is None or _same_rows(rows, own_rows, brought)
    found.untied = bool(tuned) or apart or alone or not alike
    if found.untied:
        found.whole[OUTPUT] = output if output is not None else shared
        if own_rows is None and rows is not None:
            found.rows[HEAD] = rows  # peft ties them
    else:
        found.whole.pop(OUTPUT, None)
        found.rows.pop(HEAD, None)
    return True


def _same_rows(one: Rows | None, other: Rows, brought: dict[str, Tensor]) -> bool:
    if one is None or one.indices != other.indices:
        return False
    return equal(*(brought[rows.values.removeprefix(PREFIX)] for rows in (one, other)))


def _same_factors(embedding: str, brought: dict[str, Tensor], config: dict[str, Any]) -> bool:
    """Whether the same is added to both sides, as ``ensure_weight_tying`` leaves them: one's factors are transposed.

    peft ties the factors and not their scale: each side's alpha is its own.
    """
    alphas = {pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"]) for module in (HEAD, embedding)}
    if len(alphas) > 1:
        return False
    names = ((f"{HEAD}.lora_A.weight", "lora_embedding_B"), (f"{HEAD}.lora_B.weight", "lora_embedding_A"))
    pairs = [(brought.get(one), brought.get(f"{embedding}.{other}")) for one, other in names]
    return all(one is not None and other is not None and equal_transposed(one, other) for one, other in pairs)
