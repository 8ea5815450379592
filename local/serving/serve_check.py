"""Does a running llama-server feed the model what training fed it? Asked of the server itself, with real prompts.

Its template engine is its own, not the one that verification and training use. A version carries prompts with the token
ids of training (``prompts.json``), and the server says what it would make of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cloudft.errors import IntegrityError, VerifyError
from local.evaluation.endpoint import Endpoint
from local.serving.versions import PROMPTS


def refuse_other_prompts(endpoint: Endpoint, root: Path) -> int:
    """Compare the prompts of the version in a folder with what the server makes of them.

    Returns:
        How many were compared: 0 for a version that carries none.

    Raises:
        VerifyError: the server renders or tokenises one otherwise.
        IntegrityError: the version's list of prompts is damaged.
    """
    import httpx

    path = root / PROMPTS
    if not path.is_file():
        return 0
    try:
        prompts = [(row["messages"], list(row["ids"])) for row in json.loads(path.read_bytes())]
    except (ValueError, KeyError, TypeError) as exc:
        raise IntegrityError(f"{path} is damaged", hint="make the version again:  cloudft quantize") from exc
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    with httpx.Client(base_url=endpoint.url.removesuffix("/v1"), headers=headers, timeout=60) as client:
        for messages, ids in prompts:
            text = _ask(client, "/apply-template", {"messages": messages})["prompt"]
            asked = {"content": text, "add_special": True, "parse_special": True}
            got = _ask(client, "/tokenize", asked)["tokens"]
            if got != ids:
                raise _otherwise(client, text, got, ids)
    return len(prompts)


def _ask(client: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
    import httpx

    try:
        answer = client.post(path, json=body)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError) as exc:
        raise VerifyError(f"llama-server does not say what it makes of a prompt ({path}): {exc}") from exc
    return found


def _otherwise(client: Any, text: str, got: list[int], ids: list[int]) -> VerifyError:
    at = next((i for i, (a, b) in enumerate(zip(got, ids, strict=False)) if a != b), min(len(got), len(ids)))
    here, there = (_ask(client, "/detokenize", {"tokens": tokens[at : at + 5]})["content"] for tokens in (got, ids))
    return VerifyError(
        f"llama-server makes another prompt of a conversation than training did: from token {at} of {len(ids)} it is "
        f"{here!r} and should be {there!r}",
        effect="the model would answer worse than it was measured to; it is not being served",
        hint="serve it without llama-server:  cloudft serve --engine process    and report this with the chat template",
    )
