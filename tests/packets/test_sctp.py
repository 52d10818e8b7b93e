"""SCTP through a published port: real associations, where the kernel has such sockets (make test-kernels)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from conversation import CLIENT, HOST
from lab import Lab
from runtime import ALL, GATEWAY, Network, Plugins, mapping

from tests.conftest import OURS
from tests.lacking import unavailable

pytestmark = pytest.mark.debian_kernel
PORT = 8132


class SctpNetwork(Network):
    """With one backend for all that it makes."""

    backend = ""

    def bridge(self, ips: list[str] | None = None) -> dict[str, object]:
        return {**super().bridge(ips), "ipMasqBackend": self.backend}

    def portmap(self, container_id: str) -> dict[str, object]:
        return {**super().portmap(container_id), "backend": self.backend}


@pytest.fixture(scope="module", params=["nftables", "iptables"])
def lab(request: pytest.FixtureRequest, our_bin_dir: Path) -> Iterator[Lab]:
    with Lab.from_yaml("lan.yaml") as lab:
        try:
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
        except OSError as error:
            unavailable(f"this kernel has no SCTP ({error})")
        network = SctpNetwork(lab, Plugins(OURS, our_bin_dir, ALL))
        network.backend = request.param
        network.attach("c1", mapping(PORT, 80, "sctp"))
        network.attach("c2")
        lab.serve("c1", 80, "sctp")
        yield lab


@pytest.mark.parametrize("family", [4, 6])
def test_an_association_reaches_the_container_from_everywhere(lab: Lab, family: int) -> None:
    seen = {"client": CLIENT[family], "host": HOST[family], "c2": GATEWAY[family], "c1": GATEWAY[family]}
    found = {node: lab.fetch(node, HOST[family], PORT, "sctp") for node in seen}
    assert {node: (answer.name, answer.peer) for node, answer in found.items()} == {
        node: ("c1", peer) for node, peer in seen.items()
    }


def test_the_loopback_of_ipv4_reaches_it_and_that_of_ipv6_is_refused(lab: Lab) -> None:
    assert lab.fetch("host", "127.0.0.1", PORT, "sctp").name == "c1"
    with pytest.raises(ConnectionRefusedError):
        lab.fetch("host", "::1", PORT, "sctp")
