"""cni_py.kernel.conntrack: which tracked flows are forgotten."""

import socket
import subprocess

import pytest

from cni_py.kernel import conntrack, netlink
from cni_py.kernel.conntrack import Flow, forget_udp, forget_udp_of

TCP, UDP = 6, 17
LOOPBACK = {4: ("127.0.0.1", b"\x7f\0\0\1"), 16: ("::1", b"\0" * 15 + b"\1")}


def nfnetlink() -> netlink.Socket:
    return netlink.Socket(netlink.NETLINK_NETFILTER)


def track(*ports: int) -> None:
    """Flows over the loopback, of both families, UDP and (listened to) TCP, to each of `ports`."""
    subprocess.run(
        "ip link set lo up; nft add table inet t; nft 'add chain inet t c { type filter hook input priority 0; }';"
        "nft add rule inet t c ct state established accept",
        shell=True,
        check=True,
    )
    for port in ports:
        for text, _ in LOOPBACK.values():
            family = socket.AF_INET6 if ":" in text else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as udp, socket.socket(family) as server:
                udp.sendto(b"x", (text, port))
                server.bind((text, port))
                server.listen()
                socket.create_connection((text, port)).close()


def tracked() -> set[tuple[int, int, int]]:
    """(bytes of an address, protocol, original destination port) as pyroute2 reads them."""
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

    found = set()
    with NFCTSocket(socket.AF_UNSPEC) as other:
        for entry in other.dump():
            original = entry.get_attr("CTA_TUPLE_ORIG")
            ports = original.get_attr("CTA_TUPLE_PROTO")
            length = 4 if original.get_attr("CTA_TUPLE_IP").get_attr("CTA_IP_V4_DST") else 16
            found.add((length, ports.get_attr("CTA_PROTO_NUM"), ports.get_attr("CTA_PROTO_DST_PORT")))
    return found


@pytest.mark.netns
def test_only_wrong_udp_flows_to_the_ports_are_forgotten() -> None:
    track(53, 54, 55)
    everything = {(length, protocol, port) for length in (4, 16) for protocol in (TCP, UDP) for port in (53, 54, 55)}
    assert tracked() == everything
    asked = []

    def none(flow: Flow) -> bool:
        asked.append((flow.dst, flow.dst_port, flow.replier))
        return False

    for length, (_, packed) in LOOPBACK.items():
        assert forget_udp(nfnetlink(), length, range(53, 54), none) == 0
        assert asked.pop() == (packed, 53, packed)
        assert not asked
    assert forget_udp(nfnetlink(), 4, {53}, lambda _: True) == 1
    assert forget_udp(nfnetlink(), 16, range(50, 60), lambda flow: flow.dst_port == 55) == 1
    assert tracked() == everything - {(4, UDP, 53), (16, UDP, 55)}
    assert forget_udp(nfnetlink(), 4, {53}, lambda _: True) == 0


@pytest.mark.netns
@pytest.mark.parametrize("length", [4, 16])
def test_a_flow_is_forgotten_whichever_side_began(length: int) -> None:
    """That of a client to port 53 is, seen from the other end, one that the host's program began."""
    track(53, 54)
    packed = LOOPBACK[length][1]
    kernel = netlink.Socket(netlink.NETLINK_NETFILTER)
    family = conntrack.AF_INET if length == 4 else conntrack.AF_INET6
    (asked,) = (flow.src_port for flow in conntrack._flows(kernel, family, {53}))
    (other,) = (flow.src_port for flow in conntrack._flows(kernel, family, {54}))
    kernel.close()
    assert forget_udp_of({(packed, 9)}, 53) == forget_udp_of({(packed, asked)}, 9) == 0
    assert forget_udp_of({(packed, asked)}, 53) == 1
    assert forget_udp_of({(packed, 54)}, other) == 1
    assert forget_udp_of({(packed, asked)}, 53) == forget_udp_of({(packed, 54)}, other) == 0


@pytest.mark.netns
def test_the_kernel_leaves_out_the_flows_that_the_filter_does_not_name() -> None:
    track(53, 54)
    kernel = netlink.Socket(netlink.NETLINK_NETFILTER)
    assert [flow.dst_port for flow in conntrack._flows(kernel, conntrack.AF_INET, {54})] == [54]
    shown: list[bytes] = []
    request = netlink.Socket.request

    def counted(self: netlink.Socket, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        answers = request(self, kind, flags, body)
        shown.extend(answer for _, answer in answers)
        return answers

    netlink.Socket.request = counted  # type: ignore[method-assign]  # to see what arrives before our own filter
    assert len(list(conntrack._flows(kernel, conntrack.AF_INET, {54}))) == len(shown) == 1
    kernel.close()


@pytest.mark.netns
def test_a_flow_that_ends_meanwhile_is_no_error() -> None:
    track(53)

    def end_it_first(_flow: Flow) -> bool:
        assert forget_udp(nfnetlink(), 4, {53}, lambda _: True) == 1
        return True

    assert forget_udp(nfnetlink(), 4, {53}, end_it_first) == 0


@pytest.mark.netns
def test_no_flows_at_all() -> None:
    assert forget_udp(nfnetlink(), 4, {53}, lambda _: True) == 0
    assert forget_udp(nfnetlink(), 16, range(1, 65536), lambda _: True) == 0
