"""The services keep what other tests rely on: real signatures, an address for both sides, nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.services.ceph import VARIABLE
from tests.services.compose import Compose
from tests.services.engine import DockerEngine
from tests.services.host import REPO, addresses, answers, free_port, running
from tests.services.s3 import S3Server, rclone_server


def fetch(url: str, data: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of a GET, or of a PUT with ``data``."""
    request = urllib.request.Request(url, data=data, method="GET" if data is None else "PUT")
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def check_signatures(server: S3Server) -> None:
    bucket = server.create_bucket()
    place: dict[str, Any] = {"Bucket": bucket, "Key": "a/b.txt"}
    client = server.client()
    put = client.generate_presigned_url("put_object", Params=place, ExpiresIn=60)
    get = client.generate_presigned_url("get_object", Params=place, ExpiresIn=60)
    assert fetch(put, b"hello")[0] == 200
    assert fetch(get) == (200, b"hello")
    assert fetch(get.replace("b.txt", "c.txt"))[0] == 403
    assert fetch(f"{server.endpoint}/{bucket}/a/b.txt")[0] in (400, 403)
    expired = client.generate_presigned_url("get_object", Params=place, ExpiresIn=1)
    time.sleep(2.5)
    assert fetch(expired)[0] in (400, 403)
    wrong = S3Server(server.endpoint, server.loopback, server.access_key, "wrong").client()
    with pytest.raises(ClientError, match=r"SignatureDoesNotMatch|403|Forbidden"):
        wrong.put_object(**place, Body=b"x")


def test_the_s3_server_checks_signatures(s3_server: S3Server) -> None:
    check_signatures(s3_server)


def test_ceph_checks_signatures(ceph: S3Server) -> None:
    check_signatures(ceph)


def test_buckets_are_new_ones(s3_server: S3Server) -> None:
    assert s3_server.create_bucket() != s3_server.create_bucket()


def test_a_presigned_url_works_in_a_container_too(
    s3_server: S3Server, docker_engine: DockerEngine, base_image: str
) -> None:
    bucket = s3_server.create_bucket()
    s3_server.client().put_object(Bucket=bucket, Key="x", Body=b"from the host")
    url = s3_server.client().generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "x"})
    code = f"import urllib.request as u; print(u.urlopen({url!r}, timeout=20).read().decode())"
    done = docker_engine.run("run", "--rm", "--entrypoint", "python", base_image, "-c", code)
    assert done.stdout.strip() == "from the host"
    assert fetch(url) == (200, b"from the host")


def test_a_server_of_ones_own_is_gone_afterwards_even_when_it_was_stopped(tmp_path: Path) -> None:
    with rclone_server(tmp_path) as server:
        assert server.pid is not None
        port = int(server.loopback.rpartition(":")[2])
        os.kill(server.pid, signal.SIGSTOP)
    assert not answers("127.0.0.1", port)


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such folder')"]
    with (
        pytest.raises(RuntimeError, match=r"exit code 1.*\n.*no such folder"),
        running(command, tmp_path / "log", lambda: False),
    ):
        pass


def test_a_free_port_is_free_on_every_address_and_a_taken_preference_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind((addresses()[-1], 0))
        taken.listen()
        preferred = taken.getsockname()[1]
        assert free_port(preferred) != preferred
    port = free_port()
    assert not any(answers(address, port) for address in addresses())


def test_docker_failures_carry_what_docker_said(docker_engine: DockerEngine) -> None:
    with pytest.raises(AssertionError, match="No such image"):
        docker_engine.run("image", "inspect", "cloudft-no-such-image:x")


def test_compose_leaves_nothing(docker_engine: DockerEngine, compose: Compose, base_image: str, tmp_path: Path) -> None:
    folder = tmp_path / "cloudft-test-compose"
    folder.mkdir()
    command = '["python", "-m", "http.server", "8000"]'
    (folder / "compose.yaml").write_text(
        f"services:\n  web:\n    image: {base_image}\n    command: {command}\n"
        "    stop_grace_period: 1s\n    healthcheck:\n"
        '      test: ["CMD", "python", "-c", "import socket; socket.create_connection((\'127.0.0.1\', 8000))"]\n'
        "      interval: 1s\n"
    )
    label = "label=com.docker.compose.project=cloudft-test-compose"
    with compose.project(folder):
        compose.run(folder, "up", "-d", "--wait", "web")
        assert docker_engine.run("ps", "-q", "--filter", label).stdout.strip()
    assert not docker_engine.run("ps", "-aq", "--filter", label).stdout.strip()


PROBE = """
def test_probe({fixture}):
    pass
"""


@pytest.mark.parametrize("ci", [True, False], ids=["ci", "desk"])
@pytest.mark.parametrize("fixture", ["docker_engine", "ceph"])
def test_what_is_missing_fails_in_ci_and_is_skipped_at_a_desk(tmp_path: Path, fixture: str, ci: bool) -> None:
    (tmp_path / "test_probe.py").write_text(PROBE.format(fixture=fixture))
    env = {"PATH": str(Path(sys.executable).parent), "HOME": str(tmp_path), "PYTHONPATH": str(REPO)}
    if ci:
        env["CI"] = "true"
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "tests.services.fixtures", "test_probe.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == (1 if ci else 0), done.stdout
    assert ("in CI this must be there" in done.stdout) == ci
    assert ("1 skipped" in done.stdout) != ci


def test_the_ceph_fixture_is_the_one_that_ci_feeds() -> None:
    """CI exports the variable that the fixture reads; a new name in one place only would skip Ceph for ever."""
    script = (REPO / ".ci" / "run").read_text()
    assert f"export {VARIABLE}" in script
    assert f'echo "{VARIABLE}=' in (REPO / ".ci" / "ceph.sh").read_text()
