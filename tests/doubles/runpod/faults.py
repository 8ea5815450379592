"""What can go wrong, switched on by a test: ``server.faults.drop_reply("createPod", times=1)``.

A call is named by the operationId of the OpenAPI document (``createPod``, ``deletePod``, …), by the root field
of GraphQL (``podTerminate``, ``myself``, …), or by ``*``. ``times`` is how often, None for always; each method
returns the fault, whose ``hits`` says how often it struck, so that a test can prove that it did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.doubles.faults import Fault, FaultList

CallFaultKind = Literal["drop_request", "drop_reply", "rate_limit", "bad_gateway", "delay"]
PodFaultKind = Literal["no_capacity", "never_boot", "crash_loop", "stale_price", "slow_terminate", "refuse_registry"]


@dataclass
class Faults(FaultList):
    """All that is switched on. A fault's target is a call's or a GPU's name, or a pod name's prefix."""

    linger_s: float = 0.0

    # calls
    def drop_request(self, call: str = "*", *, times: int | None = 1) -> Fault:
        """The connection breaks before the server acts."""
        return self._add("drop_request", call, times)

    def drop_reply(self, call: str = "*", *, times: int | None = 1) -> Fault:
        """The server acts, then the connection breaks: the client can't know."""
        return self._add("drop_reply", call, times)

    def rate_limit(self, call: str = "*", *, times: int | None = 1, retry_after: float = 1) -> Fault:
        """429 with ``Retry-After``."""
        return self._add("rate_limit", call, times, retry_after)

    def bad_gateway(self, call: str = "*", *, times: int | None = 1) -> Fault:
        """502 with an HTML body; the server has not acted."""
        return self._add("bad_gateway", call, times)

    def delay(self, call: str = "*", *, seconds: float, times: int | None = 1) -> Fault:
        """The server acts, and answers ``seconds`` (of real time) later."""
        return self._add("delay", call, times, seconds)

    # pods
    def no_capacity(self, gpu_id: str = "*", *, times: int | None = None) -> Fault:
        """A create for this GPU finds no machine, whatever the catalogue says."""
        return self._add("no_capacity", gpu_id, times)

    def never_boot(self, name_prefix: str = "", *, times: int | None = None) -> Fault:
        """Pods made from now on bill, and stay STARTING for ever."""
        return self._add("never_boot", name_prefix, times)

    def crash_loop(self, name_prefix: str = "", *, times: int | None = None) -> Fault:
        """Container starts that end at once with code 1, before their command has run."""
        return self._add("crash_loop", name_prefix, times)

    def stale_price(self, gpu_id: str, *, actual: float, times: int | None = None) -> Fault:
        """Pods of this GPU cost ``actual`` $/h per GPU, whatever the catalogue says."""
        return self._add("stale_price", gpu_id, times, actual)

    def slow_terminate(self, name_prefix: str = "", *, seconds: float = float("inf"), times: int | None = 1) -> Fault:
        """A terminate is accepted, and the pod runs and bills on for ``seconds`` (for ever: it was lost)."""
        return self._add("slow_terminate", name_prefix, times, seconds)

    def refuse_registry(self, name_prefix: str = "", *, times: int | None = None) -> Fault:
        """The registry refuses the image pull of pods: billed, never running, the reason in the system log."""
        return self._add("refuse_registry", name_prefix, times)

    # reads
    def list_lag(self, seconds: float) -> None:
        """Lists show a pod's birth and its end only ``seconds`` later; reading one pod by id is exact."""
        self.list_lag_s = seconds

    def linger_terminated(self, seconds: float) -> None:
        """A terminated pod can be read (status TERMINATED, cost 0) for ``seconds`` more."""
        self.linger_s = seconds

    def clear(self) -> None:
        """All is well again."""
        super().clear()
        self.linger_s = 0.0

    # the server's side
    def take_call(self, kind: CallFaultKind, call: str) -> Fault | None:
        """The fault that strikes this call now, counted as a hit."""
        return self._take(kind, lambda target: target in ("*", call))

    def take_gpu(self, kind: PodFaultKind, gpu_id: str) -> Fault | None:
        return self._take(kind, lambda target: target in ("*", gpu_id))

    def take_name(self, kind: PodFaultKind, name: str) -> Fault | None:
        return self._take(kind, name.startswith)
