"""The wire: the package's own gRPC service, answered from ``Service``."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError
from grpclib import Status as Code
from grpclib.const import Handler
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase

from .boxes import Box
from .images import Definition
from .refusal import Refused

if TYPE_CHECKING:
    from .double import ModalDouble

LOOK_EVERY_S = 0.05
PAGE = 2


class _Everything(ModalClientBase):
    """All calls of the package's service, so that their types are known."""


_Everything.__abstractmethods__ = frozenset()


class Servicer:
    """Answers calls. A method here has the call's name, takes the request, and returns the answer.

    A streaming one yields answers instead.
    """

    def __init__(self, double: ModalDouble) -> None:
        self.double, self.service, self.faults = double, double.service, double.faults
        self.secrets: dict[str, dict[str, str]] = {}
        self.images = double.service.images
        self._known: dict[str, str] = {}

    def __mapping__(self) -> dict[str, Handler]:
        everything = _Everything().__mapping__()  # type: ignore[abstract]
        return {path: handler._replace(func=self._serving(path)) for path, handler in everything.items()}

    def _serving(self, path: str) -> Callable[[Any], Awaitable[None]]:
        name = path.rpartition("/")[2]

        async def serve(stream: Any) -> None:
            request = await stream.recv_message()
            await self._serve(name, request, stream)

        return serve

    async def _serve(self, name: str, request: Any, stream: Any) -> None:
        self.double.calls.append(name)
        self._authenticate(stream.metadata)
        if self.faults.take("drop_request", name) is not None:
            await stream.cancel()
            return
        if self.faults.take("unavailable", name) is not None:
            raise GRPCError(Code.UNAVAILABLE, "try again later")
        method = getattr(self, name, None)
        if method is None:
            self.double.misuses.append(f"{name} is not a call that a good client makes here")
            raise GRPCError(Code.UNIMPLEMENTED, name)
        try:
            reply = method(request, stream.metadata) if name == "SandboxCreate" else method(request)
            if isinstance(reply, AsyncIterator):
                async for part in reply:
                    await stream.send_message(part)
                return
            if asyncio.iscoroutine(reply):
                reply = await reply
        except Refused as exc:
            if self.faults.take("drop_reply", name) is not None:
                await stream.cancel()
                return
            raise GRPCError(exc.code, exc.why) from exc
        if (fault := self.faults.take("delay", name)) is not None:
            await asyncio.sleep(fault.value)
        if self.faults.take("drop_reply", name) is not None:
            await stream.cancel()
            return
        if self.faults.take("internal", name) is not None:
            raise GRPCError(Code.INTERNAL, "something broke")
        await stream.send_message(reply)

    def _authenticate(self, metadata: Any) -> None:
        given = (metadata.get("x-modal-token-id"), metadata.get("x-modal-token-secret"))
        if given != (self.double.token_id, self.double.token_secret):
            raise GRPCError(Code.UNAUTHENTICATED, "Token ID is malformed or unknown")

    # the workspace
    def ClientHello(self, request: Any) -> Any:
        return api_pb2.ClientHelloResponse(image_builder_version=self.double.builder)

    def AuthTokenGet(self, request: Any) -> Any:
        claims = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + 3600}).encode()).decode().rstrip("=")
        return api_pb2.AuthTokenGetResponse(token=f"e30.{claims}.sig")

    def WorkspaceNameLookup(self, request: Empty) -> Any:
        return api_pb2.WorkspaceNameLookupResponse(workspace_name=self.double.workspace, username=self.double.workspace)

    def WorkspaceBillingRates(self, request: Any) -> Any:
        return api_pb2.WorkspaceBillingRatesResponse(rates=self.service.rates, formatted="rates")

    def EnvironmentGetOrCreate(self, request: Any) -> Any:
        settings = api_pb2.EnvironmentSettings(image_builder_version=self.double.builder, webhook_suffix="")
        metadata = api_pb2.EnvironmentMetadata(name=request.deployment_name or "main", settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    def EnvironmentList(self, request: Empty) -> Any:
        items = [
            api_pb2.EnvironmentListItem(environment_id=f"en-{number}", name=name)
            for number, name in enumerate(self.service.environments, 1)
        ]
        return api_pb2.EnvironmentListResponse(items=items)

    def AppGetOrCreate(self, request: Any) -> Any:
        create = request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING
        app_id = self.service.app(request.environment_name, request.app_name, create)
        return api_pb2.AppGetOrCreateResponse(app_id=app_id)

    # secrets and images
    def SecretGetOrCreate(self, request: Any) -> Any:
        if request.env_dict:
            secret_id = f"st-{len(self.secrets) + 1}"
            self.secrets[secret_id] = dict(request.env_dict)
        else:
            name = request.deployment_name
            if name not in self.double.secrets:
                raise Refused(Code.NOT_FOUND, f"Secret '{name}' not found")
            missing = [key for key in request.required_keys if key not in self.double.secrets[name]]
            if missing:
                raise Refused(Code.FAILED_PRECONDITION, f"Secret '{name}' is missing {', '.join(missing)}")
            secret_id = f"st-{name}"
            self.secrets[secret_id] = dict(self.double.secrets[name])
        metadata = api_pb2.SecretMetadata(name=request.deployment_name, keys=sorted(self.secrets[secret_id]))
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret_id, metadata=metadata)

    def ImageGetOrCreate(self, request: Any) -> Any:
        image = request.image
        definition = Definition(
            tuple(image.dockerfile_commands),
            tuple(base.image_id for base in image.base_images),
            self.images.files(image.context_mount_id) | {f.filename: f.data for f in image.context_files},
            dict(image.build_args),
            self.secrets.get(image.image_registry_config.secret_id, {}),
        )
        build, there = self.images.get_or_build(definition)
        # Of one that is new the client hears by joining its build.
        done = build.result if there else None
        return api_pb2.ImageGetOrCreateResponse(image_id=definition.id, result=done, metadata=api_pb2.ImageMetadata())

    def ImageFromId(self, request: Any) -> Any:
        self.images.of(request.image_id)
        return api_pb2.ImageFromIdResponse(image_id=request.image_id, metadata=api_pb2.ImageMetadata())

    async def ImageJoinStreaming(self, request: Any) -> AsyncIterator[Any]:
        """The log from ``last_entry_id`` on, until the build ends or the request's time is over."""
        build = self.images.builds[request.image_id]
        give_up = time.monotonic() + request.timeout
        seen = int(request.last_entry_id or 0)
        while not self.double.closed:
            done = build.done
            for text in build.printed()[seen:]:
                seen += 1
                yield api_pb2.ImageJoinStreamingResponse(entry_id=str(seen), task_logs=[_printed(text)])
            if done:
                yield api_pb2.ImageJoinStreamingResponse(result=build.result, entry_id=str(seen), eof=True)
                return
            if time.monotonic() > give_up:
                return
            await asyncio.sleep(LOOK_EVERY_S)

    # files of a build context
    def MountBatchedCheckExistence(self, request: Any) -> Any:
        missing = [sha for sha in request.sha256_hex_hashes if sha not in self.images.blobs]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    def MountPutFile(self, request: Any) -> Any:
        if request.data_blob_id:
            raise Refused(Code.INVALID_ARGUMENT, "this double takes small files only")
        if hashlib.sha256(request.data).hexdigest() != request.sha256_hex:
            raise Refused(Code.INVALID_ARGUMENT, "the file is not the one that was announced")
        self.images.blobs[request.sha256_hex] = request.data
        return api_pb2.MountPutFileResponse(exists=True)

    def MountGetOrCreate(self, request: Any) -> Any:
        files = {file.filename: file.sha256_hex for file in request.files}
        if missing := [name for name, sha in files.items() if sha not in self.images.blobs]:
            raise Refused(Code.INVALID_ARGUMENT, f"never sent: {', '.join(missing)}")
        mount_id = f"mo-{len(self.images.mounts) + 1}"
        self.images.mounts[mount_id] = files
        return api_pb2.MountGetOrCreateResponse(
            mount_id=mount_id, handle_metadata=api_pb2.MountHandleMetadata(content_checksum_sha256_hex=mount_id)
        )

    # sandboxes
    def SandboxCreate(self, request: Any, metadata: Any) -> Any:
        key = metadata.get("x-idempotency-key") or ""
        if self.double.idempotent and key in self._known:
            return self._created(self.service.get(self._known[key]))
        definition = request.definition
        image = self.images.of(definition.image_id)
        env: dict[str, str] = {}
        for secret_id in definition.secret_ids:
            env |= self.secrets[secret_id]
        tags = {tag.tag_name: tag.tag_value for tag in request.tags}
        box = self.service.create(request.app_id, definition, tags, env, image.runs_as)
        self._known[key] = box.id
        return self._created(box)

    def _created(self, box: Box) -> Any:
        return api_pb2.SandboxCreateResponse(sandbox_id=box.id, metadata=_metadata(box))

    def SandboxGetTaskId(self, request: Any) -> Any:
        box = self.service.get(request.sandbox_id)
        if box.result is not None and not box.task_id:
            return api_pb2.SandboxGetTaskIdResponse(task_result=box.result)
        return api_pb2.SandboxGetTaskIdResponse(task_id=box.task_id)

    async def SandboxWait(self, request: Any) -> Any:
        box = self.service.get(request.sandbox_id)
        give_up = time.monotonic() + request.timeout
        while box.result is None and time.monotonic() < give_up and not self.double.closed:
            await asyncio.sleep(LOOK_EVERY_S)
            self.service.settle()
        return api_pb2.SandboxWaitResponse(result=box.result, metadata=_metadata(box))

    def SandboxTerminate(self, request: Any) -> Any:
        self.service.terminate(request.sandbox_id)
        return api_pb2.SandboxTerminateResponse(existing_result=self.service.get(request.sandbox_id).result)

    def SandboxGetFromName(self, request: Any) -> Any:
        box = self.service.named(request.environment_name, request.app_name, request.sandbox_name)
        return api_pb2.SandboxGetFromNameResponse(sandbox_id=box.id, metadata=_metadata(box))

    def SandboxGetFromNameV2(self, request: Any) -> Any:
        raise Refused(Code.NOT_FOUND, f"no sandbox is named {request.sandbox_name}")

    def SandboxTagsGet(self, request: Any) -> Any:
        tags = self.service.get(request.sandbox_id).tags
        return api_pb2.SandboxTagsGetResponse(tags=[_tag(name, value) for name, value in tags.items()])

    def SandboxListV2(self, request: Any) -> Any:
        if not request.app_id:
            self.double.misuses.append("SandboxListV2 without an app lists the whole environment")
        tags = {tag.tag_name: tag.tag_value for tag in request.tags}
        found = self.service.listed(request.app_id, tags, request.before_timestamp, request.include_finished, PAGE)
        return api_pb2.SandboxListResponse(sandboxes=[_info(box) for box in found])

    async def SandboxGetLogs(self, request: Any) -> AsyncIterator[Any]:
        """From ``last_entry_id`` on, until it ends or the request's time is over; the package asks again."""
        box = self.service.get(request.sandbox_id)
        give_up = time.monotonic() + request.timeout
        seen = int(request.last_entry_id or 0)
        while not self.double.closed:
            over = box.result is not None
            self.service.settle()
            if request.file_descriptor in (api_pb2.FILE_DESCRIPTOR_STDOUT, api_pb2.FILE_DESCRIPTOR_UNSPECIFIED):
                for line in box.lines[seen:]:
                    seen = line.number
                    yield api_pb2.TaskLogsBatch(entry_id=str(seen), items=[_log(line)])
                    if self.faults.take("cut_log") is not None:
                        return
            if over:
                yield api_pb2.TaskLogsBatch(entry_id=str(seen), eof=True)
                return
            if time.monotonic() > give_up:
                return
            await asyncio.sleep(LOOK_EVERY_S)

    def AppFetchLogs(self, request: Any) -> Any:
        self.service.settle()
        wanted = [box for box in self.service.boxes.values() if request.task_id in ("", box.task_id)]
        lines = [line for box in wanted for line in box.lines]
        since, until = request.since.ToNanoseconds() / 1e9, request.until.ToNanoseconds() / 1e9
        shown = [line for line in lines if since <= line.at <= until + 1][-(request.limit or len(lines)) :]
        batch = api_pb2.TaskLogsBatch(task_id=request.task_id, items=[_log(line) for line in shown])
        return api_pb2.AppFetchLogsResponse(batches=[batch] if shown else [])


def _metadata(box: Box) -> Any:
    return api_pb2.SandboxHandleMetadata(app_id=box.app_id, result=box.result)


def _tag(name: str, value: str) -> Any:
    return api_pb2.SandboxTag(tag_name=name, tag_value=value)


def _info(box: Box) -> Any:
    return api_pb2.SandboxInfo(
        id=box.id,
        created_at=box.listed_at,
        app_id=box.app_id,
        name=box.name,
        tags=[_tag(name, value) for name, value in box.tags.items()],
        timeout_secs=box.definition.timeout_secs,
        task_info=api_pb2.TaskInfo(id=box.task_id, result=box.result, sandbox_id=box.id),
        metadata=_metadata(box),
    )


def _printed(text: str) -> Any:
    """A line of a build's log."""
    return api_pb2.TaskLogs(data=text + "\n", file_descriptor=api_pb2.FILE_DESCRIPTOR_STDOUT)


def _log(line: Any) -> Any:
    return api_pb2.TaskLogs(
        data=line.text + "\n",
        timestamp=line.at,
        timestamp_ns=int(line.at * 1e9),
        file_descriptor=api_pb2.FILE_DESCRIPTOR_STDOUT,
    )
