"""What the maps of portmap do with packets beyond one port on any address: ranges, specific before any, conditions, masqAll."""

from __future__ import annotations

import pytest
from conversation import CLIENT, HOST
from lab import Lab
from runtime import GATEWAY, Network, mapping

pytestmark = pytest.mark.ours_alone  # the Go plugins know nft conditions with another backend only, and no ranges

FIRST, LAST = 7000, 7079
FAMILIES = pytest.mark.parametrize("family", [4, 6])


def publish(network: Network, *ports: dict[str, object], **fields: object) -> Lab:
    """c1 with these ports, and keys beside them in portmap's configuration."""

    class Tuned(Network):
        def portmap(self, container_id: str) -> dict[str, object]:
            return {**Network.portmap(self, container_id), **fields}

    Tuned(network.lab, network.plugins).attach("c1", *ports)
    return network.lab


@FAMILIES
def test_range_leads_each_port_to_the_same_port_and_ends_at_its_ends(network: Network, family: int) -> None:
    lab = publish(network, *(mapping(port, port) for port in range(FIRST, LAST + 1)))
    for port in (FIRST - 1, FIRST, FIRST + 7, LAST, LAST + 1):
        lab.serve("c1", port)
    for port in (FIRST, FIRST + 7, LAST):
        assert lab.fetch("client", HOST[family], port).peer == CLIENT[family]
    for port in (FIRST - 1, LAST + 1):
        with pytest.raises(ConnectionRefusedError):
            lab.fetch("client", HOST[family], port)
    assert "7000-7079" in lab["host"].run(["nft", "list", "table", "inet", "cni_py"]).stdout


def test_specific_address_of_one_container_beside_that_of_another(network: Network) -> None:
    network.attach("c1", mapping(8080, 80, host_ip=HOST[4]))
    network.attach("c2", mapping(8080, 80, host_ip="127.0.0.5"))
    for name in ("c1", "c2"):
        network.lab.serve(name, 80)
    assert network.lab.fetch("client", HOST[4], 8080).name == "c1"
    assert network.lab.fetch("host", "127.0.0.5", 8080).name == "c2"


@pytest.mark.parametrize(("words", "served"), [("ip saddr 192.0.2.0/24", True), ("ip saddr != 192.0.2.0/24", False)])
@pytest.mark.parametrize("host_ip", ["", HOST[4]])
def test_condition_decides_who_is_served(network: Network, words: str, served: bool, host_ip: str) -> None:
    words = words.replace("192.0.2.0/24", CLIENT[4])
    lab = publish(network, mapping(8080, 80, host_ip=host_ip), conditionsV4=words.split())
    lab.serve("c1", 80)
    if served:
        assert lab.fetch("client", HOST[4], 8080).peer == CLIENT[4]
    else:
        with pytest.raises(ConnectionRefusedError):
            lab.fetch("client", HOST[4], 8080)


@FAMILIES
def test_masq_all_hides_every_client(network: Network, family: int) -> None:
    lab = publish(network, mapping(8080, 80), masqAll=True)
    lab.serve("c1", 80)
    # which of the host's addresses is the kernel's choice: a new IPv6 gateway's is tentative for a second
    assert lab.fetch("client", HOST[family], 8080).peer in (GATEWAY[family], HOST[family])
