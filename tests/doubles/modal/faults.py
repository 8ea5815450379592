"""What can go wrong, switched on by a test: ``server.faults.drop_reply("SandboxCreate")``.

A call is named as in the proto; ``*`` is any. ``times`` counts single requests, None for always. The package sends a
request that breaks three times more: ``ALL_TRIES`` of them make it give up.
"""

from __future__ import annotations

from tests.doubles.faults import Fault, FaultList

ALL_TRIES = 4


class Faults(FaultList):
    """All that is switched on. Safe to use from several threads."""

    def drop_request(self, call: str = "*", *, times: int | None = ALL_TRIES) -> Fault:
        """The stream breaks before the server acts."""
        return self._add("drop_request", call, times)

    def drop_reply(self, call: str = "*", *, times: int | None = ALL_TRIES) -> Fault:
        """The server acts, then the stream breaks: the client can't know."""
        return self._add("drop_reply", call, times)

    def unavailable(self, call: str = "*", *, times: int | None = ALL_TRIES) -> Fault:
        """UNAVAILABLE; the server has not acted."""
        return self._add("unavailable", call, times)

    def internal(self, call: str = "*", *, times: int | None = ALL_TRIES) -> Fault:
        """INTERNAL, after the server has acted."""
        return self._add("internal", call, times)

    def delay(self, call: str = "*", *, seconds: float, times: int | None = 1) -> Fault:
        """The answer comes ``seconds`` (of real time) late; the server has acted before."""
        return self._add("delay", call, times, seconds)

    def no_capacity(self, gpu: str = "*", *, times: int | None = None) -> Fault:
        """No machine is given for this GPU; the create waits."""
        return self._add("no_capacity", gpu, times)

    def over_limit(self, gpu: str = "*", *, times: int | None = 1) -> Fault:
        """The account may have no more of them: RESOURCE_EXHAUSTED."""
        return self._add("over_limit", gpu, times)

    def never_boot(self, *, times: int | None = None) -> Fault:
        """A machine is given and billed, and the command never starts."""
        return self._add("never_boot", "*", times)

    def dearer(self, factor: float, *, times: int | None = 1) -> Fault:
        """All rates rise between the quote and the create."""
        return self._add("dearer", "*", times, factor)

    def slow_end(self, seconds: float, *, times: int | None = 1) -> Fault:
        """A terminate is accepted, and the sandbox runs and bills on for so long."""
        return self._add("slow_end", "*", times, seconds)

    def build_fails(self, *, times: int | None = 1) -> Fault:
        """An image can't be built."""
        return self._add("build_fails", "*", times)

    def slow_build(self, seconds: float, *, times: int | None = 1) -> Fault:
        """Building an image takes so long, in real time."""
        return self._add("slow_build", "*", times, seconds)

    def cut_log(self, *, times: int | None = 1) -> Fault:
        """A stream of logs ends after one line; the package asks for the rest."""
        return self._add("cut_log", "*", times)

    def list_lag(self, seconds: float) -> None:
        """Lists show a sandbox only so long after its birth; looking it up by name or id is exact."""
        self.list_lag_s = seconds

    def take(self, kind: str, target: str = "*") -> Fault | None:
        """The fault that strikes now, counted as a hit."""
        return self._take(kind, lambda of: of in ("*", target))
