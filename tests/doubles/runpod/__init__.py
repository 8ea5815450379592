"""A RunPod server for tests, as strict as the service.

    with RunpodDouble(clock=ManualClock()) as server:
        os.environ["RUNPOD_API_BASE_URL"] = server.url      # moves the runpod package and any HTTP client here
        …                                                   # Authorization: Bearer server.api_key
        server.clock.advance(3600)
        assert server.ledger.total("my-run") <= 5 and not server.live_pods("my-run")

Pods really run: ``DockerRunner`` (containers), ``ProcessRunner`` (local processes), or are played by the test,
``SimRunner``. ``server.faults`` holds what can go wrong, ``server.calls`` what was asked, ``server.misuses``
what a client got wrong; ``server.defects`` must stay empty. Property tests that need no wire use
``server.service`` directly.

The modules: ``double`` (start here), ``service`` and ``lifecycle`` (what pods do), ``placement``, ``pods``,
``catalog``, ``ledger``, ``faults``, ``runners``, ``docker_runner``; and the wire: ``server``, ``rest``,
``graphql_api`` (with ``schema.graphql``), ``contract`` (with ``openapi-v2.json``, the vendor's published
document), ``views``, ``billing``.

Where each rule comes from
--------------------------
[doc] the vendor's documents, [code] the source of the ``runpod`` package 1.12.0, [3p] public code or threads of
others, [mem] from memory, [assumed] our guess, the harsher one where there was a choice. Nothing here was held
against the live service.

REST v2
  - [doc] paths, fields, types, required fields, unknown fields refused, the problem+json body: the document
    itself. It has ``args``, one string, and neither ``entrypoint`` nor ``cmd``: those are 422, unless
    ``newer_fields=True`` (newer copies of the reference are said to have them, as arrays [3p]). It has no
    deadlines and no spot price either: ``terminateAfter``, ``stopAfter``, ``bidPerGpu`` are 422 in REST.
  - [doc] 400 means a broken rule and no capacity alike, without a code; 402 an hour of credit is missing; 403; 404;
    409 an action that the pod's status does not allow; 422 a body or a parameter against the document, with
    ``errors``; 429 with Retry-After; DELETE 204, and 404 from then on [3p: "pod not found to terminate"].
  - [3p] 413 above 102,400 bytes of body; 403 ``error code: 1010`` for urllib's default User-Agent, GraphQL too.
  - [3p] a pod says RUNNING while ``runtime`` is null, before its container runs.
  - [doc] the RateLimit headers, and none for callers without a limit.
  - [assumed] an unknown path is 404 (and a misuse), a wrong method 405, an unknown query parameter 422; 5xx is
    HTML; ``env`` is shown as sent, without what is injected; a log stream ends with its pod; credentials
    or volumes that don't exist are 404. Operations that cloudft does not use are 501.

GraphQL
  - [code] the queries and mutations of the package work unchanged, ``?api_key=`` too [doc]; no key or a wrong
    one is 401.
  - [3p] a document that does not parse or does not fit the schema is 400 with ``errors`` and a code; whatever
    fails inside is 200 with ``errors``: "Unauthorized", "There are no longer any instances available …" [doc],
    "pod not found to terminate".
  - [doc] ``terminateAfter``, ``stopAfter`` are accepted; [3p] and never acted on (runpodctl#330, #331).
  - [assumed] which input fields are required; ``costPerHr`` keeps the rate of a stopped pod; a bid below the
    lowest is refused, and a spot pod costs its bid.

Keys
  - [doc] a pod gets ``RUNPOD_POD_ID`` and ``RUNPOD_API_KEY``, scoped to it. [3p] that key reads and ends its own
    pod by GraphQL, ``myself`` is "Unauthorized" inside a 200, REST is 403 (``pod_key_rest=True`` for the other
    reports). [assumed] it may stop its pod, and dies with it. ``read_only_key`` reads, and is refused writes.

Pods
  - [3p] a container that ends is started again, and billed on (dstack#1142); [assumed] after Docker's growing
    pauses, 0.1 s to 60 s, with the environment as before and (as the document says of the disk) a fresh disk.
  - [doc] ``{{ RUNPOD_SECRET_name }}`` in env is replaced by the account's secret; [assumed] an unknown name stays
    as it is. [doc] at most 50 variables.
  - [mem] a preempted spot pod gets SIGTERM, SIGKILL 5 s later, and is EXITED.
  - [assumed] a pull that the registry refuses is a pod that stays STARTING, billed, tried again and again, with
    the reason in its system log; a broken host is ERROR and bills on.

Money
  - [doc] billed from creation, at the pod's ``cost``, until it is terminated; the account is charged, and
    ``clientBalance`` changes, every 5 minutes; pods are stopped when a charge finds nothing left, so that a
    balance can go below zero; creating needs an hour of credit. [assumed] the image pull is billed too, and
    exactly to the millisecond.
  - [doc] container disk $0.10 per GB-month while the pod is not stopped; [mem] volumes the same, $0.20 stopped.
  - [assumed] prices of the catalogue: see ``catalog``. There is no A10G [3p].
"""

from .catalog import Catalog, Gpu, default_gpus
from .docker_runner import DockerRunner, bridge_address
from .double import ACCOUNT_KEY, READ_KEY, RunpodDouble
from .faults import Fault, Faults
from .ledger import Ledger
from .lifecycle import Money
from .pods import NO_CAPACITY, BootTimes, Pod, PodRequest, Refused
from .runners import Launch, ProcessRunner, Runner, SimContainer, SimRunner
from .service import Service
from .wire import Call

__all__ = [
    "ACCOUNT_KEY",
    "NO_CAPACITY",
    "READ_KEY",
    "BootTimes",
    "Call",
    "Catalog",
    "DockerRunner",
    "Fault",
    "Faults",
    "Gpu",
    "Launch",
    "Ledger",
    "Money",
    "Pod",
    "PodRequest",
    "ProcessRunner",
    "Refused",
    "Runner",
    "RunpodDouble",
    "Service",
    "SimContainer",
    "SimRunner",
    "bridge_address",
    "default_gpus",
]
