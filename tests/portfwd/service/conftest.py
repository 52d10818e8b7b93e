"""Services: one that many tests share, and one for each test that starts and ends its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab

from tests.portfwd.service.running import Service, control_clients
from tests.portfwd.talk import until


@pytest.fixture
def idle(machine: Lab, tmp_path: Path) -> Iterator[Service]:
    """One that is not running yet."""
    tmp_path.chmod(0o700)
    service = Service(machine["host"], tmp_path)
    try:
        yield service
    finally:
        if service.process is not None:
            service.end()


@pytest.fixture(scope="module")
def shared(machine: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(machine["host"], tmp_path_factory.mktemp("service"))
    service.start()
    assert until(
        lambda: not machine["host"].python(control_clients, service.path)
    )  # the first one has been seen to leave
    assert until(service.rests)
    try:
        yield service
    finally:
        service.end()


@pytest.fixture
def service(shared: Service) -> Iterator[Service]:
    """One that has no mappings."""
    yield shared
    shared.clear()
