"""cni_py.kernel.macvlan: requests as pyroute2 encodes them, links as ip(8) shows and makes them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from typing import Any

import pytest
from pyroute2 import IPBatch

from cni_py.addr import parse_mac
from cni_py.kernel import macvlan, netlink
from cni_py.kernel.rtnl import Rtnl
from tests.unit.kernel.test_rtnl import Tree, new_netns, tree

MAC = "02:00:00:00:00:02"
NESTED = {(18,): 0, (18, 2): 0}  # IFLA_LINKINFO and its IFLA_INFO_DATA, which hold attributes
HEADER = 16  # bytes; struct ifinfomsg

Message = tuple[int, int, bytes, Tree]


def message(kind: int, flags: int, body: bytes) -> Message:
    plain = flags & ~(netlink.NLM_F_REQUEST | netlink.NLM_F_ACK)
    return kind, plain, body[:HEADER], tree(body[HEADER:], NESTED)


class Recorder(Rtnl):
    """Keeps what it is asked to send."""

    def __init__(self) -> None:
        self._indexes = {}
        self.sent: list[Message] = []

    def request(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        self.sent.append(message(kind, flags, body))
        return []


def pyroute2_sends(**options: object) -> Message:
    batch = IPBatch()
    batch.link("add", kind="macvlan", **options)
    data = bytes(batch.batch)
    batch.close()
    [(kind, flags, _, body)] = netlink.messages(data)
    return message(kind, flags, body)


@pytest.mark.parametrize("mode", macvlan.MODES)
def test_a_link_is_asked_for_as_pyroute2_does(mode: str) -> None:
    side = Recorder()
    macvlan.add(side, "eth0", 3, mode, netns_fd=7)
    macvlan.add(side, "eth0", 3, mode, netns_fd=7, mtu=1400, mac=parse_mac(MAC))
    given: dict[str, object] = {"ifname": "eth0", "link": 3, "macvlan_mode": mode, "net_ns_fd": 7}
    assert side.sent == [pyroute2_sends(**given), pyroute2_sends(**given, mtu=1400, address=MAC)]


def test_a_name_that_is_none_is_not_sent() -> None:
    side = Recorder()
    with pytest.raises(OSError, match="not an interface name"):
        macvlan.add(side, "eth%d", 3, "bridge", netns_fd=7)
    assert side.sent == []


# On a kernel


def do(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True, timeout=10).stdout


def master(side: Rtnl) -> int:
    """The index of a link to put others on."""
    do("ip link add up0 type veth peer name up1")
    link = side.link("up0")
    assert link is not None
    return link.index


def shown(name: str) -> dict[str, Any]:
    [link] = json.loads(do(f"ip -json -details link show dev {name}"))
    assert isinstance(link, dict)
    return link


def here() -> int:
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def index_of(side: Rtnl, name: str) -> int:
    link = side.link(name)
    assert link is not None
    return link.index


@pytest.mark.netns
@pytest.mark.parametrize("mode", macvlan.MODES)
def test_a_link_is_what_ip_shows_it_to_be(mode: str) -> None:
    side = Rtnl()
    macvlan.add(side, "mac0", master(side), mode, netns_fd=here(), mtu=1400, mac=parse_mac(MAC), queue=5)
    link = shown("mac0")
    assert (link["link"], link["mtu"], link["operstate"]) == ("up0", 1400, "DOWN")
    assert link["address"] == (shown("up0")["address"] if mode == "passthru" else MAC)
    data = link["linkinfo"]["info_data"]
    assert (link["linkinfo"]["info_kind"], data["mode"], data["bcqueuelen"]) == ("macvlan", mode, 5)
    assert macvlan.mode_of(side, index_of(side, "mac0")) == mode


@pytest.mark.netns
def test_without_wishes_the_kernel_has_its_own() -> None:
    side = Rtnl()
    macvlan.add(side, "mac0", master(side), "bridge", netns_fd=here())
    do("ip link add link up0 name mac1 type macvlan mode bridge")
    ours, theirs = shown("mac0"), shown("mac1")
    assert ours["linkinfo"] == theirs["linkinfo"]
    assert ours["mtu"] == theirs["mtu"] == 1500


@pytest.mark.netns
def test_the_mode_of_other_links_is_none() -> None:
    side = Rtnl()
    index = master(side)
    do("ip link add br0 type bridge")
    do("ip link add link up0 name mac0 type macvlan mode vepa")
    assert macvlan.mode_of(side, index_of(side, "mac0")) == "vepa"
    assert macvlan.mode_of(side, index) == macvlan.mode_of(side, index_of(side, "br0")) == ""
    assert macvlan.mode_of(side, 4711) == ""  # nobody's


@pytest.mark.netns
def test_a_link_is_made_in_the_other_namespace() -> None:
    side = Rtnl()
    index = master(side)
    container = new_netns()
    macvlan.add(side, "mac0", index, "bridge", netns_fd=container)
    assert side.link("mac0") is None
    inside = Rtnl(container)
    assert macvlan.mode_of(inside, index_of(inside, "mac0")) == "bridge"


@pytest.mark.netns
def test_the_kernels_refusals_are_errors() -> None:
    side = Rtnl()
    index = master(side)
    macvlan.add(side, "mac0", index, "passthru", netns_fd=here())
    with pytest.raises(FileExistsError):
        macvlan.add(side, "mac0", index, "bridge", netns_fd=here())
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        macvlan.add(side, "mac1", 4711, "bridge", netns_fd=here())
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        macvlan.add(side, "mac1", index, "bridge", netns_fd=here())  # passthru: no other link on its master
