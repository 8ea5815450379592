"""A production object store: Ceph's S3 gateway, which ``.ci/ceph.sh up DIR`` starts and names in CLOUDFT_TEST_CEPH."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from tests.services.host import ENVIRONMENT, addresses, answers, unavailable
from tests.services.s3 import S3Server

VARIABLE = "CLOUDFT_TEST_CEPH"


@pytest.fixture(scope="session")
def ceph() -> S3Server:
    """Ceph, where one was started for the tests; CI always starts one."""
    named = ENVIRONMENT.get(VARIABLE)
    if not named:
        unavailable(f"a Ceph object store: start one with .ci/ceph.sh up DIR and export {VARIABLE}")
    url = urlsplit(named)
    if url.hostname is None or url.port is None or url.username is None or url.password is None:
        pytest.fail(f"{VARIABLE} must be http://KEY:SECRET@HOST:PORT", pytrace=False)
    hosts = [host for host in addresses() if answers(host, url.port)]
    if not hosts:
        pytest.fail(f"{VARIABLE} names port {url.port}, where nothing answers", pytrace=False)
    return S3Server(
        endpoint=f"http://{hosts[-1]}:{url.port}",
        loopback=f"http://{url.hostname}:{url.port}",
        access_key=url.username,
        secret_key=url.password,
    )
