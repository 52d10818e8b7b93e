"""cni_py.interface.bridge and vlan_gateway on real links: an ADD completes what a killed one left; what CHECK tolerates."""

import contextlib
import subprocess
from pathlib import Path

import pytest

from cni_py.attachment.context import Kernel
from cni_py.attachment.naming import Attachment, vlan_gateway_name
from cni_py.errors import CniError
from cni_py.interface import common, vlan_gateway
from cni_py.interface.bridge import EnsureBridge, JoinBridge, WaitForPort
from cni_py.kernel.rtnl import Rtnl
from cni_py.nftables.policy import routed_by

KEY = Attachment("net1", "c1", "eth0")


def run(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


def setting(name: str, link: str = "br7") -> str:
    return Path(f"/proc/sys/net/ipv6/conf/{link}/{name}").read_text(encoding="ascii").strip()


@pytest.mark.netns
def test_bridge_that_was_left_down_still_learns_to_ignore_routers() -> None:
    run("ip link add br7 type bridge; ip link add br8 type bridge; ip link set br8 up")
    for name in ("br7", "br8"):
        op = EnsureBridge(name=name, mac=b"\2\0\0\0\0\1", mtu=0, vlan_filtering=False, promisc=False)
        assert op.apply(Kernel(KEY, "")) is False
    assert (setting("accept_ra"), setting("accept_dad")) == ("0", "0")
    assert setting("accept_ra", "br8") == "1"  # somebody's own, in use


class WithVlans(Rtnl):
    """The kernel may have no VLAN filtering, so what is asked of it is recorded, and done where it can be."""

    def __init__(self) -> None:
        super().__init__()
        self.vlans: list[object] = []

    def delete_vlan(self, index: int, vid: int, last: int | None = None) -> None:
        self.vlans.append((vid, last))
        with contextlib.suppress(OSError):
            super().delete_vlan(index, vid, last)

    def add_vlan(
        self, index: int, vid: int, last: int | None = None, *, pvid: bool = False, untagged: bool = False
    ) -> None:
        self.vlans.append((vid, last, pvid, untagged))
        with contextlib.suppress(OSError):
            super().add_vlan(index, vid, last, pvid=pvid, untagged=untagged)


def host_with_vlans() -> tuple[Kernel, WithVlans]:
    kernel, host = Kernel(KEY, ""), WithVlans()
    kernel._host = host
    return kernel, host


@pytest.mark.netns
@pytest.mark.parametrize("peer", ["br7.5p", "veth1a2b3c4d"], ids=["our name", "a name of Go's"])
@pytest.mark.parametrize("left", ["nothing", "a pair", "a pair in the bridge", "all"])
def test_gateway_of_a_vlan_is_completed(left: str, peer: str) -> None:
    run("ip link add br7 mtu 1700 type bridge; ip link set br7 up")
    if left != "nothing":
        run(f"ip link add br7.5 type veth peer name {peer}")
    if left in ("a pair in the bridge", "all"):
        run(f"ip link set {peer} master br7 up")
    if left == "all":
        run("ip link set br7.5 up")
        run(f"bridge vlan delete dev {peer} vid 1; bridge vlan add dev {peer} vid 5 pvid untagged; true")
    kernel, host = host_with_vlans()
    op = vlan_gateway.EnsureVlanGateway(bridge="br7", vlan=5)
    assert op.apply(kernel) is (left != "all")
    gateway, bridge = common.need(kernel.host, "br7.5"), common.need(kernel.host, "br7")
    port = common.need(kernel.host, "br7.5p" if left == "nothing" else peer)
    assert gateway.link == port.index
    assert (gateway.up, port.up, port.master) == (True, True, bridge.index)
    assert host.vlans == ([] if left == "all" else [(1, 4094), (5, None, True, True)])
    assert op.check(kernel) is None
    if left == "nothing":
        assert (gateway.mtu, port.mtu, bridge.mtu) == (1700, 1700, 1700)
    run(f"ip link set {port.name} nomaster")
    assert op.check(kernel) == f"{port.name}, the peer of br7.5, is not a port of bridge br7"
    run("ip link set br7.5 down")
    assert op.check(kernel) == "br7.5, the gateway's interface, is down"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["br7", "veth7", "br7.100"], "br7.100"),
        (["bridge-number-1", "veth7", vlan_gateway_name("bridge-number-1", 100)], "vg0e1e9386.100"),
        (
            ["br7", "veth7", "ifb.1", "br8.100", "br7.x", "br7.", "br7.0100", "br7." + "9" * 5000],
            "br7",
        ),  # bandwidth's, and nobody's
        (["br7.100", "veth7"], "br7.100"),
        ([], ""),
    ],
)
def test_the_gateways_interface_is_known_by_its_name(names: list[str], found: str) -> None:
    assert routed_by(names) == found


@pytest.mark.netns
@pytest.mark.parametrize("bridges", [("abcdefghijk", "bbcdefghijk"), ("bridge-number-1", "bridge-number-2")])
def test_bridges_with_like_names_have_gateways_of_their_own(bridges: tuple[str, str]) -> None:
    """abcdefghijk.100p and bbcdefghijk.100p differ only in what is too much; with the second no name fits."""
    kernel, _ = host_with_vlans()
    for bridge in bridges:
        run(f"ip link add {bridge} type bridge; ip link set {bridge} up")
        assert vlan_gateway.EnsureVlanGateway(bridge=bridge, vlan=100).apply(kernel) is True
    ports = []
    for bridge in bridges:
        op = vlan_gateway.EnsureVlanGateway(bridge=bridge, vlan=100)
        assert op.apply(kernel) is False
        gateway = common.need(kernel.host, op.gateway)
        port = kernel.host.link(gateway.link)
        assert port is not None
        assert port.master == common.need(kernel.host, bridge).index
        ports.append(port.name)
    assert len(set(ports)) == 2


@pytest.mark.netns
def test_a_gateways_port_that_the_version_before_named_is_used_and_none_of_another_bridge_is_taken() -> None:
    first, second = "abcdefghijk", "bbcdefghijk"
    run(f"ip link add {first} type bridge; ip link add {second} type bridge")
    run(f"ip link add {first}.100 type veth peer name bcdefghijk.100p; ip link set bcdefghijk.100p master {first} up")
    kernel, _ = host_with_vlans()
    assert vlan_gateway.EnsureVlanGateway(bridge=second, vlan=100).apply(kernel) is True
    assert vlan_gateway.EnsureVlanGateway(bridge=first, vlan=100).apply(kernel) is True
    assert common.need(kernel.host, "bcdefghijk.100p").master == common.need(kernel.host, first).index
    run(f"ip link set bcdefghijk.100p master {second}")
    with pytest.raises(
        CniError, match=rf"{first}\.100 is not the gateway's interface of bridge {first} but of {second}"
    ):
        vlan_gateway.EnsureVlanGateway(bridge=first, vlan=100).apply(kernel)


@pytest.mark.netns
def test_an_interface_that_has_the_name_of_the_gateways_port_is_left_alone() -> None:
    run("ip link add br7 type bridge; ip link add br7.5p type dummy 2>/dev/null || ip link add br7.5p type bridge")
    kernel, _ = host_with_vlans()
    with pytest.raises(CniError, match=r"br7\.5p exists"):
        vlan_gateway.EnsureVlanGateway(bridge="br7", vlan=5).apply(kernel)
    assert common.need(kernel.host, "br7.5p").master == 0
    assert kernel.host.link("br7.5") is None


@pytest.mark.netns
def test_an_interface_of_that_name_that_is_no_veth_serves_as_it_is() -> None:
    """A VLAN device on the bridge is how people do it by hand; the kernel here may have none."""
    run("ip link add br7 type bridge; ip link add link br7 name br7.5 type vlan id 5 || ip link add br7.5 type bridge")
    kernel, host = host_with_vlans()
    op = vlan_gateway.EnsureVlanGateway(bridge="br7", vlan=5)
    assert op.apply(kernel) is True
    assert (common.need(kernel.host, "br7.5").up, host.vlans, op.check(kernel)) == (True, [], None)


@pytest.mark.netns
def test_hairpin_that_a_chained_plugin_turned_on_is_no_damage() -> None:
    run("ip link add br7 type bridge; ip link add v0 type veth peer name v1; ip link set v0 master br7")
    kernel = Kernel(KEY, "")
    wanted = {on: JoinBridge(name="v0", bridge="br7", hairpin=on, isolated=False) for on in (False, True)}
    assert wanted[False].check(kernel) is None
    assert wanted[True].check(kernel) == "hairpin of v0 is off"
    run("bridge link set dev v0 hairpin on")
    assert wanted[False].check(kernel) is None
    assert wanted[True].check(kernel) is None


@pytest.mark.netns
@pytest.mark.parametrize("master", [True, False])
def test_a_link_that_does_not_come_up_is_called_what_it_is(master: bool) -> None:
    run("ip link add br7 type bridge; ip link add v0 type veth peer name v1; ip link set v0 up")  # v1 is not
    if master:
        run("ip link set v0 master br7")
    common.UP_LIMIT_S = 0.05
    with pytest.raises(CniError, match=f"^{'bridge port' if master else 'host veth'} in error state: down"):
        WaitForPort(name="v0").apply(Kernel(KEY, ""))
