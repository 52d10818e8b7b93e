"""cni_py.ops on real links: what an ADD that was killed half-way leaves is completed by the next, and what CHECK tolerates."""

import subprocess
from pathlib import Path

import pytest

from cni_py import ops
from cni_py.errors import CniError
from cni_py.kernel.context import Kernel
from cni_py.kernel.rtnl import Rtnl
from cni_py.records import Attachment

KEY = Attachment("net1", "c1", "eth0")


def run(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


def setting(name: str, link: str = "br7") -> str:
    return Path(f"/proc/sys/net/ipv6/conf/{link}/{name}").read_text(encoding="ascii").strip()


@pytest.mark.netns
def test_bridge_that_was_left_down_still_learns_to_ignore_routers() -> None:
    run("ip link add br7 type bridge; ip link add br8 type bridge; ip link set br8 up")
    for name in ("br7", "br8"):
        op = ops.EnsureBridge(name=name, mac=b"\2\0\0\0\0\1", mtu=0, vlan_filtering=False, promisc=False)
        assert op.apply(Kernel(KEY, "")) is False
    assert (setting("accept_ra"), setting("accept_dad")) == ("0", "0")
    assert setting("accept_ra", "br8") == "1"  # somebody's own, in use


@pytest.mark.netns
@pytest.mark.parametrize("left", ["nothing", "a pair", "a pair in the bridge", "all"])
def test_gateway_of_a_vlan_is_completed(left: str) -> None:
    """The kernel may have no VLAN filtering, so what is asked of it is recorded instead."""
    vlans: list[object] = []

    class Host(Rtnl):
        def delete_vlan(self, *values: object) -> None:
            vlans.append(values[1:])

        def add_vlan(self, *values: object, **flags: object) -> None:
            vlans.append((*values[1:], flags))

    run("ip link add br7 type bridge; ip link set br7 up")
    if left != "nothing":
        run("ip link add br7.5 type veth peer name br7.5p")
    if left in ("a pair in the bridge", "all"):
        run("ip link set br7.5p master br7 up")
    if left == "all":
        run("ip link set br7.5 up")
    kernel = Kernel(KEY, "")
    kernel._host = Host()
    assert ops.EnsureVlanGateway(bridge="br7", vlan=5).apply(kernel) is (left != "all")
    gateway, port, bridge = (ops.need(kernel.host, name) for name in ("br7.5", "br7.5p", "br7"))
    assert (gateway.up, port.up, port.master) == (True, True, bridge.index)
    assert vlans == ([] if left == "all" else [(1, 4094), (5, {"pvid": True, "untagged": True})])


@pytest.mark.netns
def test_hairpin_that_a_chained_plugin_turned_on_is_no_damage() -> None:
    run("ip link add br7 type bridge; ip link add v0 type veth peer name v1; ip link set v0 master br7")
    kernel = Kernel(KEY, "")
    wanted = {on: ops.JoinBridge(name="v0", bridge="br7", hairpin=on, isolated=False) for on in (False, True)}
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
    ops.UP_LIMIT_S = 0.05
    with pytest.raises(CniError, match=f"^{'bridge port' if master else 'host veth'} in error state: down"):
        ops.WaitForPort(name="v0").apply(Kernel(KEY, ""))
