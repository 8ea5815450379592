"""A Modal server for tests, over gRPC, for the real ``modal`` package.

    with ModalDouble(clock=ManualClock()) as server:
        os.environ |= server.env()          # MODAL_SERVER_URL, MODAL_TOKEN_ID, MODAL_TOKEN_SECRET
        …                                   # modal.Sandbox.create(…) as against the service
        server.clock.advance(3600)
        assert server.ledger.total("my-run") <= 5 and not server.live("my-run")

A sandbox's command really runs: ``ProcessRunner`` or ``DockerRunner`` of ``tests.doubles.runpod``, or is played by the
test, ``SimRunner``. ``server.faults`` holds what can go wrong, ``server.calls`` the names of the calls made,
``server.misuses`` what a client got wrong.

The modules: ``double`` (start here), ``service`` (what sandboxes do), ``images`` (what they are built from), ``boxes``,
``faults``, ``ledger``; and the wire: ``servicer``.

Where each rule comes from
--------------------------
[code] the source of the ``modal`` package 1.6.4 and its ``modal_proto``, [doc] the vendor's documents, [3p] public code
of others, [ran] run with the real package, [assumed] our guess, the harsher one where there was a choice. Nothing here
was held against the live service.

  - [code] messages and calls are the package's own; a call that is not served is UNIMPLEMENTED, and a misuse.
  - [code] tokens travel as ``x-modal-token-id`` and ``x-modal-token-secret`` with every call; [assumed] a wrong one is
    UNAUTHENTICATED.
  - [code] a sandbox with a GPU is a "V1" one: ``sb-`` and 22 letters or digits, created by SandboxCreate; the package
    asks SandboxGetTaskId every half second until there is a task, for up to 21 minutes, and then terminates it.
  - [code] a call that breaks is sent again three times with the same ``x-idempotency-key``. [assumed] The service does
    not know a repeated create by that key: ALREADY_EXISTS, since names are unique among an app's live sandboxes [doc].
    ``idempotent=True`` makes it know.
  - [code] SandboxListV2 lists sandboxes of both kinds, the newest first, in pages that end before a timestamp; the
    package asks for unfinished ones. [assumed] SandboxGetFromNameV2 does not know V1 sandboxes.
  - [doc] ``timeout`` is 1 second to 24 hours. [assumed] It counts from the moment when the machine was given, not from
    the create: a wait for capacity comes on top.
  - [code] results: TIMEOUT is return code 124, TERMINATED 137, all others are the result's exit code, so that
    INIT_FAILURE, INTERNAL_FAILURE, KERNEL_OOM_KILL, evictions and IDLE_TIMEOUT look like 0 [ran].
  - [3p] rates are dollars per hour: ``gpu_hour_cost_l4`` …, ``cpu_hour_cost_sandbox`` per physical core,
    ``mem_gib_hour_cost_sandbox``; the Function's are a third.
  - [doc] billed by the second, max(request, use): without a limit a sandbox here uses the whole host. A region costs
    1.75 times as much, a broad one ("us") 1.5 times, all of it. [assumed] Billed from the moment when the machine is
    given, so that pulling the image counts; waiting for capacity does not.
  - [doc] GPU sandboxes may be preempted; [assumed] one ends as TERMINATED, after SIGTERM.
  - [assumed] An account's limit of GPUs is RESOURCE_EXHAUSTED at the create; no free machine is silence.
  - [doc] a private image needs a secret with REGISTRY_USERNAME and REGISTRY_PASSWORD, or its build fails.
  - [code] an image from a Dockerfile is sent as its lines, and the files that its COPY lines name as a mount, of which
    only files that the server lacks are sent; a builder after 2025.06 gets the FROM line as an image of its own. Equal
    content is built once. The log is streamed while it builds; a failure names only the log. [3p] The builder is not
    Docker's: LABEL, STOPSIGNAL and some others are refused. [assumed] An ARG before FROM is, too, and the builder's
    minutes are billed, as 4 cores and 16 GiB at a sandbox's rates; fetching from a registry is not.
  - [doc] a workspace has environments, each with apps and sandboxes of its own; [code] the client names one, or none
    for the default.
"""

from .boxes import Box, new_result
from .double import TOKEN_ID, TOKEN_SECRET, ModalDouble
from .faults import Faults
from .ledger import Ledger
from .service import RATES, Service

__all__ = [
    "RATES",
    "TOKEN_ID",
    "TOKEN_SECRET",
    "Box",
    "Faults",
    "Ledger",
    "ModalDouble",
    "Service",
    "new_result",
]
