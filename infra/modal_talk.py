"""Talking to Modal through its package: the account from the environment, bounds on time, errors as ours.

The package itself waits up to a minute for a server that cannot be reached, and up to 21 minutes for a machine. So
every conversation begins with a greeting that has ten seconds, and every call after it has a bound of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cloudft.errors import CloudftError, EnvironmentProblem, ProviderError
from infra.provider import NoCapacity
from infra.words import clean

T = TypeVar("T")
Work = Callable[[Any], Awaitable[T]]

ENV_ID, ENV_SECRET = "MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"
DASHBOARD, TOKENS = "https://modal.com/apps", "https://modal.com/settings/tokens"
NOTHING_RENTED = "nothing was rented"
NOTHING_CHANGED = "nothing was changed; a machine that runs goes on, and is billed"
# Seconds.
HELLO, TIMEOUT = 10.0, 30.0


class Unanswered(ProviderError):
    """A request was sent, and whether it was carried out is not known."""


@dataclass(frozen=True)
class Account:
    """The token of a workspace."""

    id: str = field(repr=False)
    secret: str = field(repr=False)


def account() -> Account:
    """The account of the environment, or else the one that Modal's own command has written down.

    Raises:
        ProviderError: MODAL_TOKEN_ID or MODAL_TOKEN_SECRET is missing, or can be no token.
        EnvironmentProblem: the package is not installed.
    """
    values = {name: os.environ.get(name, "").strip() for name in (ENV_ID, ENV_SECRET)}
    if not any(values.values()):
        config = package().config.config
        values = {ENV_ID: config.get("token_id") or "", ENV_SECRET: config.get("token_secret") or ""}
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise ProviderError(
            f"provider modal needs a token, and {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
            effect=NOTHING_CHANGED,
            hint=f"make one:  modal token new    or at {TOKENS}, then:  export {ENV_ID}=… {ENV_SECRET}=…",
        )
    if not all(re.fullmatch(r"[\x21-\x7e]+", value) for value in values.values()):
        raise ProviderError(
            f"{ENV_ID} or {ENV_SECRET} holds blanks or characters that no token has",
            effect=NOTHING_CHANGED,
            hint="copy the token again",
        )
    return Account(values[ENV_ID], values[ENV_SECRET])


def package() -> Any:
    """The package ``modal``.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    try:
        import modal
    except ImportError as exc:
        raise EnvironmentProblem(
            "provider modal needs the package modal",
            effect=NOTHING_CHANGED,
            hint="install it:  pip install 'cloudft[modal]'",
        ) from exc
    return modal


def talk(
    work: Work[T],
    doing: str,
    *,
    within: float = TIMEOUT,
    hello: float = HELLO,
    effect: str = NOTHING_CHANGED,
    secrets: Collection[str] = (),
) -> T:
    """Do some work with a client of Modal's.

    Args:
        work: gets the client.
        doing: what is tried, as in "cannot …".
        within, hello: seconds for the work, and for the first answer of the server.
        effect: what a failure means for money.
        secrets: what must not be in a message, besides the token.

    Raises:
        NoCapacity, ProviderError: refused, or the server cannot be reached.
        Unanswered: whether the request was carried out is not known.
        EnvironmentProblem: the package is not installed.
    """
    modal, who = package(), account()
    try:
        return asyncio.run(_talk(modal, who, work, within, hello))
    except (CloudftError, KeyboardInterrupt):
        raise
    except Exception as exc:
        raise translated(modal, exc, doing, effect, (who.id, who.secret, *secrets)) from exc


async def _talk(modal: Any, who: Account, work: Work[T], within: float, hello: float) -> T:
    try:
        client = await asyncio.wait_for(_greeted(modal, who), hello)
    except (TimeoutError, OSError, modal.exception.ConnectionError) as exc:
        raise _Unreachable from exc
    try:
        return await asyncio.wait_for(work(client), within)
    finally:
        with contextlib.suppress(Exception):
            await client.close.aio()


async def _greeted(modal: Any, who: Account) -> Any:
    """A client that the server has answered; its making connects already."""
    client = await modal.Client.from_credentials.aio(who.id, who.secret)
    try:
        await client.hello.aio()
    except BaseException:
        with contextlib.suppress(Exception):
            await client.close.aio()
        raise
    return client


class _Unreachable(Exception):
    """The server did not answer the greeting: nothing was sent."""


def translated(modal: Any, exc: Exception, doing: str, effect: str, secrets: Collection[str]) -> ProviderError:
    """The one translation of what the package raises."""
    errors = modal.exception
    detail = clean(str(exc), secrets)
    if isinstance(exc, _Unreachable):
        what = f"cannot {doing}: Modal cannot be reached"
        return ProviderError(what, effect=effect, hint="check the network and MODAL_SERVER_URL, then try again")
    if isinstance(exc, errors.ResourceExhaustedError):
        what = f"cannot {doing}: Modal has no such machine free, or the workspace may use no more: {detail}"
        return NoCapacity(what, effect=effect, hint="the next offer may do:  cloudft offers")
    hints: list[tuple[type[Exception], str]] = [
        (errors.AuthError, f"the token is not valid: check {ENV_ID} and {ENV_SECRET} at {TOKENS}"),
        (errors.PermissionDeniedError, "the token may not do this: it needs the right to run apps"),
        (errors.NotFoundError, "check the names of the secrets in cloudft.yaml (machine.registry, machine.secrets)"),
        (errors.RemoteError, f"see why at {DASHBOARD}; a private image needs machine.registry in cloudft.yaml"),
        (errors.InvalidError, "the order breaks a rule of Modal's; another offer may do:  cloudft offers"),
        (errors.AlreadyExistsError, "see it:  cloudft status"),
    ]
    for kind, hint in hints:
        if isinstance(exc, kind):
            return ProviderError(f"cannot {doing}: {detail}", effect=effect, hint=hint)
    why = "no answer in time" if isinstance(exc, asyncio.TimeoutError) else f"{type(exc).__name__} {detail}".strip()
    return Unanswered(f"cannot {doing}: {why}", effect=effect, hint="try again in a few minutes")
