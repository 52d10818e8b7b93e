"""What packet tests share: c1 with 8080/tcp and 8053/udp of the host published to its ports 80 and 53, c2 beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from conversation import DNS, WEB
from lab import Lab
from runtime import Network, Plugins, mapping

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet


def together(name: str, *values: object) -> list[ParameterSet]:
    """Parameters of a fixture that is costly to make: all tests of one run in one worker of pytest-xdist, which makes it once."""
    return [pytest.param(value, marks=pytest.mark.xdist_group(f"{name} {value}")) for value in values]


@pytest.fixture
def network(lab: Lab, plugins: Plugins) -> Network:
    """A network in a lab of this test's own, nothing attached yet."""
    return Network(lab, plugins)


@pytest.fixture(scope="module")
def published(plugins: Plugins) -> Iterator[Network]:
    """The same for all tests of a module: they only look."""
    with Lab.from_yaml("lan.yaml") as lab:
        network = Network(lab, plugins)
        network.attach("c1", mapping(WEB, 80), mapping(DNS, 53, "udp"))
        network.attach("c2")
        for container_id in ("c1", "c2"):
            lab.serve(container_id, 80)
            lab.serve(container_id, 53, "udp")
        yield network
