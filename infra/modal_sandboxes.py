"""Modal's Sandboxes as our machines: looking them up by id, by name and by tags, and what their tags tell.

All of ours live in apps of one name and carry tags, by which they are found from any computer. A workspace may have
several environments, each with an app of that name: whoever looks must look into all of them, since which one is
the default is a setting of one computer.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from cloudft.errors import ProviderError
from infra.modal_rates import Rates, Shape, gpu_of, price_of
from infra.modal_talk import package
from infra.provider import Machine, Order, parse_machine_name

PROVIDER = "modal"
APP = "cloudft"
TAG = {"cloudft": "machine"}


async def rates_of(client: Any) -> Rates:
    """The workspace's live rates."""
    return dict(await package().Workspace.from_context(client=client).billing.rates.aio())


async def workspace_of(client: Any) -> str:
    """The name of the workspace that the token belongs to."""
    workspace = package().Workspace.from_context(client=client)
    await workspace.hydrate.aio()
    return str(workspace.name or "")


def machine_id(workspace: str, sandbox_id: str) -> str:
    """What a machine of Modal's is called in records and tables: ``workspace/sb-…``."""
    return f"{workspace}/{sandbox_id}" if workspace else sandbox_id


def sandbox_ids(ids: Sequence[str | None], workspace: str) -> list[str]:
    """The Sandboxes among these machines: provider ``auto`` asks all providers for the machine of one.

    Raises:
        ProviderError: one belongs to another workspace, where this token sees nothing; that it is not to be seen must
            never be taken for its end.
    """
    found = set()
    for known in ids:
        owner, _, sandbox_id = (known or "").rpartition("/")
        if not sandbox_id.startswith("sb-"):
            continue
        if owner and workspace and owner != workspace:
            raise ProviderError(
                f"the token is for Modal's workspace {workspace}, and machine {sandbox_id} was rented in {owner}",
                effect="nothing was changed; that machine may go on, and be billed until its deadline",
                hint=f"set the token of workspace {owner}, then type the same command again",
            )
        found.add(sandbox_id)
    return sorted(found)


async def by_id(client: Any, sandbox_id: str) -> Any:
    """The Sandbox of that id, ended or not, or None when Modal has forgotten it."""
    modal = package()
    try:
        return await modal.Sandbox.from_id.aio(sandbox_id, client=client)
    except modal.exception.NotFoundError:
        return None


async def named(client: Any, name: str) -> Any:
    """The live Sandbox of that name in this computer's own environment, or None."""
    return await _named(client, name, None)


async def named_anywhere(client: Any, name: str) -> Any:
    """The live Sandbox of that name in any environment of the workspace, or None."""
    for environment in await _environments(client):
        if (found := await _named(client, name, environment)) is not None:
            return found
    return None


async def last_named(client: Any, name: str) -> Any:
    """The Sandbox of that name, also one that has ended, as far as Modal still shows it; or None."""
    modal = package()
    with contextlib.suppress(modal.exception.NotFoundError):
        return await modal.Sandbox.from_name.aio(APP, name, include_terminated=True, client=client)
    return None


async def listed(client: Any, tags: Mapping[str, str]) -> AsyncIterator[Any]:
    """All live Sandboxes of ours with these tags, in all environments."""
    modal = package()
    for environment in await _environments(client):
        try:
            app = await modal.App.lookup.aio(APP, client=client, environment_name=environment)
        except modal.exception.NotFoundError:
            continue
        async for sandbox in modal.Sandbox.list.aio(app_id=app.app_id, tags=dict(tags), client=client):
            yield sandbox


async def _environments(client: Any) -> list[str]:
    found = await package().Environment.objects.list.aio(client=client)
    return [str(environment.name) for environment in found]


async def _named(client: Any, name: str, environment: str | None) -> Any:
    modal = package()
    try:
        return await modal.Sandbox.from_name.aio(APP, name, client=client, environment_name=environment)
    except modal.exception.NotFoundError:
        return None


def tags_for(order: Order, shape: Shape, now: float) -> dict[str, str]:
    """All that another computer needs to know of it. Tags hold letters, digits, dashes, dots and underscores."""
    parsed = parse_machine_name(order.name)
    assert parsed is not None
    assert order.offer is not None
    run_id, attempt, deadline = parsed
    return {
        **TAG,
        "name": order.name,
        "run": run_id,
        "attempt": str(attempt),
        "deadline": f"{deadline:.0f}",
        "created": f"{now:.3f}",
        "gpu": order.offer.id,
        "count": str(order.offer.count),
        "cores": f"{shape.cores:g}",
        "memory": str(shape.memory_gib),
        "region": ".".join(order.data_centers) or "any",
        "rate": f"{order.offer.rate_usd:.6f}",
    }


async def machine_of(sandbox: Any, workspace: str, rates: Rates) -> Machine:
    """A live Sandbox as a Machine. One that has ended is none any more, whatever it ended with."""
    return described(sandbox.object_id, workspace, await sandbox.get_tags.aio(), rates)


def described(sandbox_id: str, workspace: str, tags: Mapping[str, str], rates: Rates) -> Machine:
    """A Machine, from what its tags say and what its parts cost now."""
    rate = _rate_now(tags, rates)
    return Machine(
        provider=PROVIDER,
        id=machine_id(workspace, sandbox_id),
        name=tags.get("name", ""),
        state="running",
        rate_usd=rate if rate is not None else _number(tags.get("rate")),
        created_at=_number(tags.get("created")),
        detail=f"{tags.get('gpu', '?')}:{tags.get('count') or '?'}",
    )


def _rate_now(tags: Mapping[str, str], rates: Rates) -> float | None:
    gpu, region = gpu_of(tags.get("gpu", "")), tags.get("region", "any")
    count, cores, memory = (_number(tags.get(name)) for name in ("count", "cores", "memory"))
    if gpu is None or count is None or cores is None or memory is None:
        return None
    price = price_of(rates, gpu, int(count), Shape(cores, int(memory)), () if region == "any" else region.split("."))
    return None if price is None else price.total


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
