"""Who needs a bridge's policy, asked of real links."""

import subprocess

import pytest

from cni_py.attachment.context import Kernel
from cni_py.attachment.naming import Attachment
from cni_py.nftables.bridge_users import Users
from cni_py.nftables.policy import KeepApart

POLICY = KeepApart(bridge="br7", policy="same-bridge")


def run(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


def users(kernel: Kernel, meanwhile: str, bridge: str = "br7") -> Users:
    """Of the bridge; the command runs after its ports have been read, and before anything else is asked of them."""

    def is_gone(_alias: str) -> bool:
        run(meanwhile)
        return False

    return Users(kernel, bridge, is_gone)


@pytest.mark.netns
def test_a_port_without_records_needs_the_policy_unless_it_has_gone_meanwhile() -> None:
    run("mount -t tmpfs tmpfs /run && mkdir /run/netns && ip netns add c2 && ip link add br7 type bridge")
    run("ip link add veth2 type veth peer eth0 netns c2 && ip link set veth2 master br7")
    run(f"ip link set veth2 alias '{Attachment('net', 'c2', 'eth0').comment}'")
    kernel = Kernel(Attachment("net", "c1", "eth0"), "")
    assert users(kernel, "true").need(POLICY)
    run("ip link add br7.5 type veth peer br7.5p && ip link set br7.5p master br7")  # the interface of a VLAN's gateway
    run("bridge vlan add dev veth2 vid 5 pvid untagged 2>/dev/null || true")
    in_vlan = KeepApart(bridge="br7.5", policy="same-bridge")
    assert users(kernel, "true", "br7.5").need(in_vlan)
    assert not users(kernel, "true", "br7.6").need(KeepApart(bridge="br7.6", policy="same-bridge"))
    assert not users(kernel, "ip link delete veth2").need(POLICY)
    assert not users(kernel, "true", "br7.5").need(in_vlan)
