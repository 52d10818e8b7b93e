"""cni_py.interface.macvlan on real links; host and container are one namespace here."""

from __future__ import annotations

import subprocess

import pytest

from cni_py.attachment.context import Kernel
from cni_py.attachment.naming import Attachment
from cni_py.errors import CniError
from cni_py.interface.macvlan import AddMacvlan

KEY = Attachment("net1", "c1", "eth7")
MAC = bytes.fromhex("020000000007")
HERE = "/proc/self/ns/net"


def run(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


def host() -> Kernel:
    run("ip link add lan0 type veth peer name lan1; ip link add lan2 type veth peer name lan3; ip link set lan0 up")
    return Kernel(KEY, HERE)


def op(kernel: Kernel, master: str = "lan0", mtu: int = 1400) -> AddMacvlan:
    cookie = kernel.container_cookie
    return AddMacvlan(
        ifname="eth7", master=master, inside=False, mode="bridge", mtu=mtu, queue=0, mac=MAC, netns=HERE, cookie=cookie
    )


@pytest.mark.netns
def test_check_tells_what_was_changed_by_hand() -> None:
    kernel = host()
    wanted = op(kernel)
    wanted.apply(kernel)
    steps = [
        ("true", "Container interface eth7 is down"),
        ("ip link set eth7 up", None),
        ("ip link set eth7 mtu 1300", "MTU of eth7 is 1300, not 1400"),
        ("ip link set eth7 type macvlan mode private", "Container macvlan mode private is not bridge"),
        (
            "ip link delete eth7; ip link add eth7 link lan2 type macvlan mode bridge",
            "Container interface eth7 is not on lan0",
        ),
        (
            "ip link delete eth7; ip link add eth7 type veth peer name x",
            "Container interface eth7 is not of type macvlan",
        ),
    ]
    for command, difference in steps:
        run(command)
        assert wanted.check(kernel) == difference, command


@pytest.mark.netns
def test_on_a_master_that_is_a_macvlan_link_it_has_that_ones_master() -> None:
    kernel = host()
    run("ip link add mid link lan0 type macvlan mode bridge; ip link set mid up")
    wanted = op(kernel, "mid", 0)
    wanted.apply(kernel)
    run("ip link set eth7 up")
    assert wanted.check(kernel) is None


@pytest.mark.netns
@pytest.mark.parametrize(
    ("change", "stays"),
    [
        ("true", False),
        ("ip link set eth7 alias ''", True),  # anybody's
        ("ip link set eth7 name {veth}; ip link set {veth} alias ''", False),  # killed before it had its name
    ],
)
def test_undo_takes_what_is_ours_by_alias_or_by_the_name_before(change: str, stays: bool) -> None:
    kernel = host()
    wanted = op(kernel)
    wanted.apply(kernel)
    run(change.format(veth=KEY.host_veth))
    wanted.undo(kernel)
    there = [link.name for link in kernel.host.links() if link.kind == "macvlan"]
    assert bool(there) is stays
    wanted.undo(kernel)  # once more is success


@pytest.mark.netns
def test_a_master_that_is_a_port_is_refused_with_its_reason() -> None:
    kernel = host()
    run("ip link add br7 type bridge; ip link set lan0 master br7")
    with pytest.raises(CniError, match="a port of a bridge or bond can be no master") as caught:
        op(kernel).apply(kernel)
    assert "cannot make the macvlan interface eth7 on lan0 in mode bridge" in str(caught.value)
