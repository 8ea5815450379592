"""The service itself, without any wire: what a client can ask for, and what a test can let happen.

Every public method settles what is due first. One lock guards all state; scripts of a SimRunner run after it is
released, so they may call the server by any way. Which rule is the vendor's and which is our assumption stands
in the package's docstring.
"""

from __future__ import annotations

import secrets as random_secrets
from typing import Any

from .lifecycle import PREEMPT_GRACE_S, STOP_GRACE_S, Lifecycle, Money
from .placement import place
from .pods import ACTIONS, Pod, PodRequest, Refused, Status

POD_GONE = "pod not found to terminate"  # [3p]


class Service(Lifecycle):
    """One account at the service."""

    # money
    def deposit(self, dollars: float) -> None:
        """Pay in (a negative sum takes out)."""
        with self._lock:
            old = self.money
            self.money = Money(old.deposit + dollars, old.spend_limit, old.charge_every_s)

    # pods
    def create(self, request: PodRequest) -> Pod:
        """Rent a pod; it bills from this moment on. ``Refused`` if the service would refuse."""
        self.settle()
        with self._lock:
            now = self.clock.now()
            place_at = place(request, self.catalog, self.faults, self.registries)
            self._check_credit(place_at.cost_per_gpu * request.gpu_count)
            self.catalog.take(request.gpu_id, request.gpu_count, place_at.cloud)
            pod = Pod(
                id=_new_id(),
                request=request,
                name=request.name,
                cloud=place_at.cloud,
                data_center=place_at.data_center,
                cuda_version=place_at.cuda_version,
                cost_per_gpu=place_at.cost_per_gpu,
                api_key="rpa_POD" + random_secrets.token_hex(16).upper(),
                created_at=now,
                changed_at=now,
                env=dict(request.env),
                image=request.image,
                args=request.args,
            )
            self.pods[pod.id] = pod
            self._bill(pod, now)
            pod.write(now, "system", "pod created")
            self._boot(pod, now)
        self.settle()
        return pod

    def find(self, pod_id: str) -> Pod | None:
        """A pod by its id; a terminated one is gone, unless the faults let it linger."""
        self.settle()
        with self._lock:
            pod = self.pods.get(pod_id)
            if pod is None or pod.terminated_at is None:
                return pod
            return pod if self.clock.now() < pod.terminated_at + self.faults.linger_s else None

    def get(self, pod_id: str) -> Pod:
        """A pod that is there; ``Refused`` 404 if not."""
        pod = self.find(pod_id)
        if pod is None or pod.gone:
            raise Refused(404, "pod not found", "POD_NOT_FOUND")
        return pod

    def listed(self) -> list[tuple[Pod, Status]]:
        """The pods that a list shows, with the status that it shows (both may lag: ``faults.list_lag``)."""
        self.settle()
        with self._lock:
            now, lag = self.clock.now(), self.faults.list_lag_s
            shown: list[tuple[Pod, Status]] = []
            for pod in self.pods.values():
                if pod.terminated_at is None:
                    if now >= pod.created_at + lag:
                        shown.append((pod, pod.shown_status))
                elif now < pod.terminated_at + lag:
                    shown.append((pod, pod.status_before_end))
                elif now < pod.terminated_at + self.faults.linger_s:
                    shown.append((pod, "TERMINATED"))
            return shown

    def live_pods(self) -> list[Pod]:
        """The truth, for tests: every pod that has not been terminated."""
        self.settle()
        with self._lock:
            return [pod for pod in self.pods.values() if not pod.gone]

    def terminate(self, pod_id: str) -> None:
        """End a pod for good; ``Refused`` 404 if it is gone already."""
        self.settle()
        with self._lock:
            pod = self.pods.get(pod_id)
            if pod is None or pod.gone:
                raise Refused(404, POD_GONE, "POD_NOT_FOUND")
            if pod.terminating:
                return
            slow = self.faults.take_name("slow_terminate", pod.name)
            if slow is None:
                self._terminated(pod, self.clock.now())
            elif slow.value != float("inf"):
                pod.terminating = True
                self._at(self.clock.now() + slow.value, pod, "gone")

    def stop(self, pod_id: str) -> Pod:
        """Stop a pod: EXITED, its GPU and its container disk are free, its volume bills on."""
        pod = self._allowed(pod_id, "stop")
        with self._lock:
            if pod.locked:
                raise Refused(400, "pod is locked", "BAD_REQUEST")
            self._halt(pod, self.clock.now(), "EXITED", STOP_GRACE_S)
        return pod

    def start(self, pod_id: str) -> Pod:
        """Boot a stopped pod again, if its GPU is still free."""
        pod = self._allowed(pod_id, "start")
        with self._lock:
            gpu = self.catalog.gpus[pod.request.gpu_id]
            if not pod.holds_gpu and gpu.level(pod.request.gpu_count, pod.cloud) == "NONE":
                raise Refused(400, "There are not enough free GPUs on the host machine to start this pod.")
            self._check_credit(pod.rate)
            if not pod.holds_gpu:
                self.catalog.take(gpu.id, pod.request.gpu_count, pod.cloud)
                pod.holds_gpu = True
            self._end_container(pod, STOP_GRACE_S)
            self._boot(pod, self.clock.now())
            self._bill(pod, self.clock.now())
        self.settle()
        return pod

    def restart(self, pod_id: str) -> Pod:
        """Restart the container of a running pod."""
        pod = self._allowed(pod_id, "restart")
        with self._lock:
            self._end_container(pod, STOP_GRACE_S)
            pod.generation += 1
            self._at(self.clock.now(), pod, "launch")
        self.settle()
        return pod

    def update(self, pod_id: str, changes: dict[str, Any]) -> Pod:
        """Change name, image, args, env or lock; a new image, args or env restarts the container [assumed]."""
        pod = self.get(pod_id)
        with self._lock:
            for field in ("name", "image", "args", "env", "locked"):
                setattr(pod, field, changes.get(field, getattr(pod, field)))
            if pod.container is not None and {"image", "args", "env"} & set(changes):
                self._end_container(pod, STOP_GRACE_S)
                pod.generation += 1
                self._at(self.clock.now(), pod, "launch")
        self.settle()
        return pod

    # what happens to pods
    def preempt(self, pod_id: str) -> None:
        """Take a pod's machine away: SIGTERM, five seconds, SIGKILL, EXITED; its GPU goes to a higher bid."""
        pod = self.get(pod_id)
        with self._lock:
            pod.write(self.clock.now(), "system", "pod was outbid")
            self._halt(pod, self.clock.now(), "EXITED", PREEMPT_GRACE_S)

    def fail_host(self, pod_id: str) -> None:
        """The host breaks: the container is lost, the pod says ERROR, and bills on [assumed]."""
        pod = self.get(pod_id)
        with self._lock:
            pod.generation += 1
            self._end_container(pod, 0)
            self._set_status(pod, "ERROR", self.clock.now())

    def _allowed(self, pod_id: str, action: str) -> Pod:
        pod = self.get(pod_id)
        if action not in ACTIONS[pod.status]:
            raise Refused(409, f"action {action} is not valid for a pod that is {pod.status}", "CONFLICT")
        return pod

    def _check_credit(self, rate: float) -> None:
        if self.money.deposit - self.ledger.total() < rate:
            raise Refused(402, "insufficient balance: an hour of this pod must be paid in", "INSUFFICIENT_FUNDS")
        if self.ledger.rate() + rate > self.money.spend_limit:
            raise Refused(400, "the account's spend limit would be exceeded", "SPEND_LIMIT")


def _new_id() -> str:
    return random_secrets.token_hex(7)
