"""The host on which proxies run, whose /run is its own, and the two proxies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import Lab
from node import Node

from tests.clients import docker_host, fetch_debs
from tests.conftest import need_root
from tests.lacking import missing


@pytest.fixture(scope="module")
def host() -> Iterator[Node]:
    """The host of a lab for all tests: each leaves nothing in it but a stale control socket."""
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab["host"]


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(docker_host.proxy_executable(tmp_path_factory.mktemp("proxy")))


@pytest.fixture(params=["ours", "docker"])
def proxy(request: pytest.FixtureRequest) -> str:
    """The executable under test."""
    if request.param == "ours":
        return str(request.getfixturevalue("ours"))
    try:
        return str(fetch_debs.fetch() / "usr/sbin/docker-proxy")
    except (fetch_debs.Unavailable, OSError) as error:
        missing(f"Debian's docker-proxy cannot be had: {error}")
