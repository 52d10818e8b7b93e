"""cni_py.kernel.inet: requests as pyroute2 encodes them, and what a real kernel makes of them."""

import errno
import socket
import subprocess
from pathlib import Path

import pytest

from cni_py.addr import parse_address, parse_ip
from cni_py.kernel import inet, netlink, rtnl
from cni_py.kernel.rtnl import Rtnl
from cni_py.protocol.result import Route
from tests.unit.kernel.test_rtnl import Message, Recorder, attribute, index_of, ip, new_netns, oracle, recorded


def test_addresses_are_encoded_as_pyroute2_does() -> None:
    theirs = oracle("addr", "add", index=5, address="10.1.2.3", prefixlen=24, broadcast="10.1.2.255")
    address = parse_address("10.1.2.3/24")
    assert recorded(lambda rtnl: inet.add_address(rtnl, 5, address, broadcast=parse_ip("10.1.2.255"))) == theirs
    six = parse_address("2001:db8::2/64")
    theirs = oracle("addr", "add", index=5, address="2001:db8::2", prefixlen=64)
    assert attribute(recorded(lambda rtnl: inet.add_address(rtnl, 5, six)), inet.IFA_ADDRESS) == attribute(theirs, 1)
    assert recorded(lambda rtnl: inet.add_address(rtnl, 5, six))[:3] == theirs[:3]
    flagged = recorded(lambda rtnl: inet.add_address(rtnl, 5, six, nodad=True))
    theirs = oracle("addr", "add", index=5, address="2001:db8::2", prefixlen=64, flags=inet.IFA_F_NODAD)
    assert attribute(flagged, inet.IFA_FLAGS) == attribute(theirs, inet.IFA_FLAGS)
    assert recorded(lambda rtnl: inet.delete_address(rtnl, 5, address)) == oracle(
        "addr", "del", index=5, address="10.1.2.3", prefixlen=24, family=socket.AF_INET
    )


def route(dst: str, gw: str = "", **options: int) -> Route:
    return Route(parse_address(dst), parse_ip(gw) if gw else None, **options)


ROUTES: list[tuple[Route, dict[str, object]]] = [
    (route("0.0.0.0/0", "10.1.2.1"), {"dst": "default", "gateway": "10.1.2.1", "family": socket.AF_INET}),
    (route("192.0.2.0/24", "10.1.2.1"), {"dst": "192.0.2.0/24", "gateway": "10.1.2.1"}),
    (route("192.0.2.0/24", scope=253), {"dst": "192.0.2.0/24", "scope": 253}),
    (route("192.0.2.0/24", table=77, priority=9), {"dst": "192.0.2.0/24", "table": 77, "priority": 9}),
    (route("2001:db8:1::/48", "2001:db8::1"), {"dst": "2001:db8:1::/48", "gateway": "2001:db8::1"}),
    (
        route("192.0.2.0/24", "10.1.2.1", mtu=1300, advmss=1200),
        {"dst": "192.0.2.0/24", "gateway": "10.1.2.1", "metrics": {"mtu": 1300, "advmss": 1200}},
    ),
]


def without_table(sent: Message) -> Message:
    """RTA_TABLE is compared by value elsewhere: pyroute2 leaves it out for table main."""
    return *sent[:3], [(kind, value) for kind, value in sent[3] if kind != inet.RTA_TABLE]


@pytest.mark.parametrize(("ours", "theirs"), ROUTES, ids=[str(row[1]) for row in ROUTES])
def test_routes_are_encoded_as_pyroute2_does(ours: Route, theirs: dict[str, object]) -> None:
    base = {"oif": 5, "proto": "boot", "scope": 0, **theirs}
    sent = recorded(lambda rtnl: inet.add_route(rtnl, ours, 5))
    assert without_table(sent) == without_table(oracle("route", "add", **base))
    table = 254 if ours.table is None else ours.table
    assert attribute(sent, inet.RTA_TABLE) == table.to_bytes(4, "little")
    appended = recorded(lambda rtnl: inet.add_route(rtnl, ours, 5, beside="after"))
    assert without_table(appended) == without_table(oracle("route", "append", **base))


def test_a_table_that_the_header_cannot_hold_is_not_mistaken_for_table_main() -> None:
    sent = recorded(lambda rtnl: inet.add_route(rtnl, route("192.0.2.0/24", table=70000), 5))
    assert (sent[2][4], attribute(sent, inet.RTA_TABLE)) == (inet.RT_TABLE_COMPAT, (70000).to_bytes(4, "little"))


def test_a_gateway_of_another_family_is_refused_before_the_kernel_misreads_it() -> None:
    with pytest.raises(OSError, match="gateway of another family"):
        inet.add_route(Recorder(), route("192.0.2.0/24", "2001:db8::1"), 5)


def test_numbers_that_do_not_fit_are_refused() -> None:
    for bad in (
        lambda: inet.add_route(Recorder(), route("192.0.2.0/24", priority=-1), 5),
        lambda: inet.add_route(Recorder(), route("192.0.2.0/24", table=1 << 32), 5),
        lambda: inet.add_route(Recorder(), route("192.0.2.0/24", scope=256), 5),
        lambda: inet.delete_route(Recorder(), route("192.0.2.0/24", scope=-1), 5),
    ):
        with pytest.raises(OSError, match=r"Numerical result out of range|not a route's scope"):
            bad()


@pytest.mark.parametrize("address", ["10.1.2.3", "2001:db8::2"])
def test_deleting_a_neighbour_is_encoded_as_pyroute2_does(address: str) -> None:
    sent = recorded(lambda rtnl: inet.delete_neighbour(rtnl, 5, parse_ip(address)))
    theirs = oracle("neigh", "del", dst=address, ifindex=5)
    assert (sent[0], sent[2][:8], sent[3]) == (theirs[0], theirs[2][:8], theirs[3])


@pytest.mark.netns
def test_a_delete_of_what_is_not_there_is_false() -> None:
    host = Rtnl()
    address = parse_address("10.1.2.3/24")
    assert [inet.delete_address(host, 1, address), inet.delete_address(host, 99, address)] == [False, False]
    assert inet.delete_route(host, route("192.0.2.0/24"), 1) is False
    assert inet.delete_route(host, route("192.0.2.0/24"), 99) is False
    host.set_link("lo", up=True)
    for neighbour in ("10.1.2.3", "2001:db8::1"):
        assert [inet.delete_neighbour(host, index, parse_ip(neighbour)) for index in (1, 99)] == [False, False]
    assert inet.routes(host, table=4711) == []


@pytest.mark.netns
def test_addresses_are_added_listed_by_link_and_deleted() -> None:
    host = Rtnl()
    host.add_bridge("cni0")
    host.add_bridge("cni1")
    index = index_of(host, "cni0")
    four, six = parse_address("10.1.2.1/24"), parse_address("2001:db8::1/64")
    inet.add_address(host, index, four, broadcast=parse_ip("10.1.2.255"))
    inet.add_address(host, index, six, nodad=True)
    inet.add_address(host, index_of(host, "cni1"), parse_address("10.1.3.1/24"))
    assert [str(addr.address) for addr in inet.addresses(host, index)] == ["10.1.2.1/24", "2001:db8::1/64"]
    assert [str(addr.address) for addr in inet.addresses(host, index, 6)] == ["2001:db8::1/64"]
    assert [str(addr.address) for addr in inet.addresses(host, family=4)] == ["10.1.2.1/24", "10.1.3.1/24"]
    assert inet.addresses(host, index, 6)[0].flags & inet.IFA_F_NODAD
    [shown] = ip("-4", "addr", "show", "cni0")
    assert shown["addr_info"][0]["broadcast"] == "10.1.2.255"  # type: ignore[index]  # nested objects
    with pytest.raises(FileExistsError):
        inet.add_address(host, index, four)
    assert [inet.delete_address(host, index, four), inet.delete_address(host, index, six)] == [True, True]
    assert inet.addresses(host, index) == []


@pytest.mark.netns
def test_the_kernel_itself_picks_the_addresses_of_one_link() -> None:
    host = Rtnl()
    host.add_bridge("cni0")
    for number in range(1, 200):
        inet.add_address(host, index_of(host, "cni0"), parse_address(f"10.1.2.{number}/24"))
    body = inet._IFADDRMSG.pack(0, 0, 0, 0, 1)
    assert host.request(inet.RTM_GETADDR, netlink.NLM_F_DUMP, body) == []
    assert len(inet.addresses(host, index_of(host, "cni0"))) == 199


@pytest.mark.netns
def test_routes_are_added_appended_listed_and_deleted() -> None:
    host = Rtnl()
    host.add_veth("a", "b")
    index = index_of(host, "a")
    host.set_link("a", up=True)
    host.set_link("b", up=True)
    inet.add_address(host, index, parse_address("10.1.2.2/24"))
    inet.add_address(host, index, parse_address("2001:db8::2/64"), nodad=True)
    default = route("0.0.0.0/0", "10.1.2.1", mtu=1300, advmss=1200)
    inet.add_route(host, default, index, beside="after")
    inet.add_route(host, route("::/0", "2001:db8::1", mtu=1280), index)
    inet.add_route(host, route("192.0.2.0/24", "10.1.2.1", table=1000, priority=7), index)
    inet.add_route(host, route("198.51.100.0/24", scope=253), index)
    found = {str(entry.dst): entry for entry in inet.routes(host, index)}
    assert {"0.0.0.0/0", "10.1.2.0/24", "198.51.100.0/24", "::/0", "2001:db8::/64"} <= found.keys()
    assert "192.0.2.0/24" not in found
    first = found["0.0.0.0/0"]
    assert (first.gw, first.mtu, first.advmss, first.table, first.index) == (
        parse_ip("10.1.2.1"),
        1300,
        1200,
        254,
        index,
    )
    assert (found["::/0"].gw, found["::/0"].mtu) == (parse_ip("2001:db8::1"), 1280)
    assert (found["198.51.100.0/24"].scope, found["198.51.100.0/24"].gw) == (253, None)
    [elsewhere] = inet.routes(host, index, 4, 1000)
    assert (elsewhere.priority, elsewhere.table) == (7, 1000)
    with pytest.raises(FileExistsError):
        inet.add_route(host, default, index)
    with pytest.raises(OSError, match="Nexthop has invalid gateway"):
        inet.add_route(host, route("203.0.113.0/24", "172.16.0.1"), index)
    inet.add_route(host, route("0.0.0.0/0", "10.1.2.9"), index, beside="after")
    inet.add_route(host, route("::/0", "2001:db8::9"), index, beside="after")
    ways = [entry.gw for entry in inet.routes(host, index) if entry.dst.prefixlen == 0]
    assert set(ways) == {parse_ip(text) for text in ("10.1.2.1", "10.1.2.9", "2001:db8::1", "2001:db8::9")}
    assert inet.delete_route(host, default, index) is True
    assert inet.delete_route(host, route("198.51.100.0/24"), index) is True
    assert len(inet.routes(host, table=0)) > len(inet.routes(host))


@pytest.mark.netns
def test_an_ipv6_gateway_of_an_ipv4_route_is_read() -> None:
    host = Rtnl()
    host.add_bridge("cni0")
    host.set_link("cni0", up=True)
    subprocess.run(["ip", "route", "add", "192.0.2.0/24", "via", "inet6", "fe80::1", "dev", "cni0"], check=True)
    [found] = inet.routes(host, family=4)
    assert found.gw == parse_ip("fe80::1")


@pytest.mark.netns
def test_a_neighbour_is_forgotten() -> None:
    host = Rtnl()
    host.add_veth("a", "b")
    host.set_link("a", up=True)
    for known in ("10.1.2.3", "2001:db8::3"):
        subprocess.run(["ip", "neigh", "add", known, "lladdr", "02:00:00:00:00:09", "dev", "a"], check=True)
        assert inet.delete_neighbour(host, index_of(host, "a"), parse_ip(known)) is True
    assert ip("neigh", "show", "dev", "a") == []


@pytest.mark.netns
def test_loopback_gets_its_addresses_when_it_is_set_up() -> None:
    host = Rtnl()
    host.set_link("lo", up=True)
    assert [str(addr.address) for addr in inet.addresses(host, 1)] == ["127.0.0.1/8", "::1/128"]
    found = host.link("lo")
    assert found is not None
    assert (found.flags & rtnl.IFF_LOOPBACK, found.mac, found.operstate) == (rtnl.IFF_LOOPBACK, bytes(6), "unknown")
    host.set_link("lo", up=False)
    assert inet.addresses(host, 1, 4) != []


def pair_with_one_address(address: str) -> tuple[Rtnl, Rtnl, int, int]:
    """Two ends, both up, in two namespaces; the first waits for a minute of duplicate address detection."""
    there = new_netns()
    host, container = Rtnl(), Rtnl(there)
    host.add_veth("a", "b", peer_netns_fd=there)
    first, second = index_of(host, "a"), index_of(container, "b")
    Path("/proc/sys/net/ipv6/conf/a/dad_transmits").write_text("60")
    # No link-local address, which would take a minute, too
    Path("/proc/sys/net/ipv6/conf/a/addr_gen_mode").write_text("1")
    container.set_link(second, up=True)
    host.set_link(first, up=True)
    host.wait_up(first, 60)
    inet.add_address(host, first, parse_address(address))
    return host, container, first, second


@pytest.mark.netns
def test_waiting_for_addresses_ends_with_duplicate_address_detection() -> None:
    host, _, index, _ = pair_with_one_address("2001:db8::2/64")
    assert any(addr.tentative for addr in inet.addresses(host, index, 6))
    with pytest.raises(TimeoutError, match="still tentative"):
        inet.wait_addresses(host, index, 0.05)
    inet.delete_address(host, index, parse_address("2001:db8::2/64"))
    Path("/proc/sys/net/ipv6/conf/a/dad_transmits").write_text("1")
    inet.add_address(host, index, parse_address("2001:db8::2/64"))
    inet.wait_addresses(host, index, 60)
    assert not any(addr.tentative for addr in inet.addresses(host, index, 6))


@pytest.mark.netns
def test_an_address_that_somebody_else_has_is_reported() -> None:
    there = new_netns()
    host, container = Rtnl(), Rtnl(there)
    host.add_veth("a", "b", peer_netns_fd=there)
    first, second = index_of(host, "a"), index_of(container, "b")
    container.set_link(second, up=True)
    host.set_link(first, up=True)
    host.wait_up(first, 60)
    inet.add_address(container, second, parse_address("2001:db8::2/64"), nodad=True)
    inet.add_address(host, first, parse_address("2001:db8::2/64"))
    with pytest.raises(OSError, match="2001:db8::2/64 in DADFAILED state") as caught:
        inet.wait_addresses(host, first, 60)
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.netns
def test_addresses_of_a_link_without_carrier_are_not_waited_for_in_vain() -> None:
    host = Rtnl()
    host.add_veth("a", "b")
    index = index_of(host, "a")
    host.set_link(index, up=True)
    inet.add_address(host, index, parse_address("2001:db8::2/64"))
    inet.wait_addresses(host, index, 0.05)
