"""cni_py.kernel.rtnl: requests as pyroute2 encodes them, and what a real kernel makes of them."""

import errno
import json
import os
import subprocess
import time
from collections.abc import Callable

import pytest

from cni_py.addr import parse_mac
from cni_py.kernel import netlink, rtnl, vlans
from cni_py.kernel.netns import Enter
from cni_py.kernel.rtnl import Rtnl

MAC, PEER_MAC = parse_mac("02:00:00:00:00:02"), parse_mac("02:00:00:00:00:03")

Tree = list[tuple[int, "bytes | Tree"]]
Message = tuple[int, int, bytes, Tree]

# Length of the header, and the attributes that hold attributes: the path to each, and the length of a header in it.
IFINFOMSG: tuple[int, dict[tuple[int, ...], int]] = (
    16,
    {(18,): 0, (18, 2): 0, (18, 2, 1): 16, (18, 5): 0, (12,): 0, (26,): 0},
)
SHAPES: dict[int, tuple[int, dict[tuple[int, ...], int]]] = {
    **dict.fromkeys((16, 17, 18, 19), IFINFOMSG),
    **dict.fromkeys((20, 21, 22), (8, {})),
    **dict.fromkeys((24, 25, 26), (12, {(8,): 0})),
    **dict.fromkeys((28, 29, 30), (12, {})),
}


def tree(data: bytes, shape: dict[tuple[int, ...], int], path: tuple[int, ...] = ()) -> Tree:
    """The attributes in `data`, sorted, those that hold others taken apart."""
    found: Tree = []
    for kind, payload in netlink.iter_attrs(data):
        here = (*path, kind)
        found.append((kind, tree(payload[shape[here] :], shape, here) if here in shape else payload))
    return sorted(found, key=repr)


def message(kind: int, flags: int, body: bytes) -> Message:
    header, shape = SHAPES[kind]
    return kind, flags & ~(netlink.NLM_F_REQUEST | netlink.NLM_F_ACK), body[:header], tree(body[header:], shape)


class Recorder(Rtnl):
    """Keeps what it is asked to send."""

    def __init__(self) -> None:
        self._indexes = {}
        self.hurried = False
        self.sent: list[Message] = []

    def request(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        self.sent.append(message(kind, flags, body))
        return []


def recorded(call: Callable[[Rtnl], object]) -> Message:
    recorder = Recorder()
    call(recorder)
    [sent] = recorder.sent
    return sent


def oracle(command: str, *arguments: str, **options: object) -> Message:
    """What pyroute2 would send."""
    from pyroute2 import IPBatch

    batch = IPBatch()
    getattr(batch, command)(*arguments, **options)
    data = bytes(batch.batch)
    batch.close()
    [(kind, flags, _, body)] = netlink.messages(data)
    return message(kind, flags, body)


def attribute(sent: Message, *path: int) -> "bytes | Tree":
    found: bytes | Tree = sent[3]
    for kind in path:
        assert isinstance(found, list)
        found = dict(found)[kind]
    return found


def test_add_bridge_is_encoded_as_pyroute2_does() -> None:
    theirs = oracle(
        "link", "add", ifname="cni0", kind="bridge", address="02:00:00:00:00:02", mtu=1400, br_vlan_filtering=1
    )
    assert recorded(lambda ours: ours.add_bridge("cni0", MAC, 1400, vlan_filtering=True)) == theirs
    theirs = oracle("link", "add", ifname="cni0", kind="bridge")
    assert recorded(lambda ours: ours.add_bridge("cni0")) == theirs


def test_add_veth_is_encoded_as_pyroute2_does() -> None:
    peer = {"ifname": "veth0a", "address": "02:00:00:00:00:03", "mtu": 1400, "net_ns_fd": 7}
    theirs = oracle("link", "add", ifname="eth0", kind="veth", peer=peer, address="02:00:00:00:00:02", mtu=1400)
    ours = recorded(lambda o: o.add_veth("eth0", "veth0a", peer_netns_fd=7, mtu=1400, mac=MAC, peer_mac=PEER_MAC))
    assert ours == theirs
    theirs = oracle("link", "add", ifname="eth0", kind="veth", peer={"ifname": "veth0a"})
    assert recorded(lambda ours: ours.add_veth("eth0", "veth0a")) == theirs


SET_LINK: list[tuple[dict[str, object], dict[str, object]]] = [
    ({"up": True}, {"state": "up"}),
    ({"up": False}, {"state": "down"}),
    ({"promisc": True}, {"flags": 0x100, "mask": 0x100}),
    ({"promisc": False}, {"flags": 0, "mask": 0x100}),
    ({"mtu": 1280, "mac": MAC}, {"mtu": 1280, "address": "02:00:00:00:00:02"}),
    ({"master": 3, "up": True}, {"master": 3, "state": "up"}),
    ({"master": 0}, {"master": 0}),
    ({"netns_fd": 9}, {"net_ns_fd": 9}),
]


@pytest.mark.parametrize(("ours", "theirs"), SET_LINK)
def test_set_link_is_encoded_as_pyroute2_does(ours: dict[str, object], theirs: dict[str, object]) -> None:
    sent = recorded(lambda rtnl: rtnl.set_link(5, **ours))  # type: ignore[arg-type]  # a table of keywords
    assert sent[0] == rtnl.RTM_SETLINK
    assert sent[1:] == oracle("link", "set", index=5, **theirs)[1:]


def test_an_alias_is_encoded_as_pyroute2_does_but_for_the_terminator() -> None:
    sent = recorded(lambda rtnl: rtnl.set_link(5, alias="0123 net/web/eth0"))
    theirs = attribute(oracle("link", "set", index=5, ifalias="0123 net/web/eth0"), rtnl.IFLA_IFALIAS)
    assert isinstance(theirs, bytes)
    assert attribute(sent, rtnl.IFLA_IFALIAS) == theirs.rstrip(b"\0")


def test_renaming_is_encoded_as_pyroute2_does() -> None:
    assert recorded(lambda rtnl: rtnl.set_link(5, name="eth1"))[1:] == oracle("link", "set", index=5, ifname="eth1")[1:]


def test_deleting_a_link_is_encoded_as_pyroute2_does() -> None:
    assert recorded(lambda rtnl: rtnl.delete_link(5)) == oracle("link", "del", index=5)
    assert recorded(lambda rtnl: rtnl.delete_link("eth0")) == oracle("link", "del", ifname="eth0")


def test_a_link_is_asked_for_by_name_in_one_message_and_never_by_a_dump() -> None:
    recorder = Recorder()
    with pytest.raises(IndexError):
        recorder.link("eth0")  # the recorder answers nothing
    [sent] = recorder.sent
    assert sent[:3] == oracle("link", "get", ifname="eth0")[:3]
    assert attribute(sent, rtnl.IFLA_IFNAME) == b"eth0\0"


@pytest.mark.parametrize("hairpin", [None, False, True])
@pytest.mark.parametrize("isolated", [None, False, True])
def test_bridge_port_flags_have_pyroute2s_attributes(hairpin: bool | None, isolated: bool | None) -> None:
    sent = recorded(lambda rtnl: rtnl.set_bridge_port(5, hairpin=hairpin, isolated=isolated))
    wanted = {"mode": hairpin, "isolated": isolated}
    given = {name: int(value) for name, value in wanted.items() if value is not None}
    # pyroute2 sends them as the link's slave data, bridge(8) and we as a message of family AF_BRIDGE.
    assert attribute(sent, rtnl.IFLA_PROTINFO) == (
        attribute(oracle("brport", "set", index=5, **given), rtnl.IFLA_LINKINFO, 5) if given else []
    )
    assert sent[:3] == (rtnl.RTM_SETLINK, 0, bytes.fromhex("0700 0000 05000000 00000000 00000000"))


def test_vlans_of_a_port_are_encoded_as_pyroute2_does() -> None:
    theirs = oracle("vlan_filter", "add", index=5, vlan_info={"vid": 10})
    assert recorded(lambda ours: ours.add_vlan(5, 10)) == theirs
    assert recorded(lambda ours: ours.add_vlan(5, 10, 10)) == theirs
    theirs = oracle("vlan_filter", "add", index=5, vlan_info={"vid": 10, "flags": ["pvid", "untagged"]})
    assert recorded(lambda ours: ours.add_vlan(5, 10, pvid=True, untagged=True)) == theirs
    theirs = oracle("vlan_filter", "add", index=5, vlan_info={"vid": "10-20"})
    assert recorded(lambda ours: ours.add_vlan(5, 10, 20)) == theirs
    theirs = oracle("vlan_filter", "del", index=5, vlan_info={"vid": "1-4094"})
    assert recorded(lambda ours: ours.delete_vlan(5, 1, rtnl.VID_MAX)) == theirs


@pytest.mark.parametrize("vids", [(0, None), (4095, None), (5, 4095), (9, 8)])
def test_vlan_ids_out_of_range_are_refused(vids: tuple[int, int | None]) -> None:
    with pytest.raises(OSError, match="not VLAN IDs"):
        Recorder().add_vlan(5, *vids)


@pytest.mark.parametrize("mtu", [1 << 32, -1])
def test_numbers_that_do_not_fit_are_refused(mtu: int) -> None:
    with pytest.raises(OSError, match="Numerical result out of range"):
        Recorder().add_bridge("cni0", mtu=mtu)
    with pytest.raises(OSError, match="Numerical result out of range"):
        Recorder().set_link(5, mtu=mtu)


NAMES = ["", ".", "..", "a/b", "a:b", "a b", " a", "a\n", "a\tb", "a\0", "veth%d", "sixteen-bytes-xx", "ü" * 8]


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_a_link_name_is_never_sent(name: str) -> None:
    ours = Recorder()
    calls: list[Callable[[], object]] = [
        lambda: ours.add_bridge(name),
        lambda: ours.add_veth(name, "b"),
        lambda: ours.add_veth("a", name),
        lambda: ours.delete_link(name),
        lambda: ours.set_link(name, up=True),
        lambda: ours.set_link(1, name=name),
    ]
    for call in calls:
        with pytest.raises(OSError, match="not an interface name"):
            call()
    assert ours.link(name) is None
    assert ours.sent == []


@pytest.mark.parametrize("name", ["a", "eth0", "cni0.5", "fifteen-bytes-x", "br-é", "@x"])
def test_a_link_name_is_taken_as_it_is(name: str) -> None:
    assert rtnl.check_name(name) == name.encode()


def test_zero_is_no_index() -> None:
    with pytest.raises(OSError, match="not an interface index"):
        Recorder().delete_link(0)


# The real kernel.


def new_netns() -> int:
    with subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; read x"], stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        fd = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY)
        holder.communicate(b"\n")
    return fd


def ip(*arguments: str) -> list[dict[str, object]]:
    """What iproute2 says of this namespace."""
    shown = subprocess.run(["ip", "-j", "-d", *arguments], capture_output=True, check=True).stdout
    found: list[dict[str, object]] = json.loads(shown or b"[]")
    return found


def index_of(side: Rtnl, name: str) -> int:
    found = side.link(name)
    assert found is not None
    return found.index


@pytest.mark.netns
def test_a_bridge_is_made_with_mac_and_mtu_at_once() -> None:
    host = Rtnl()
    host.add_bridge("cni0", MAC, 1400)
    found = host.link("cni0")
    assert found is not None
    assert (found.kind, found.mac, found.mtu, found.up, found.operstate) == ("bridge", MAC, 1400, False, "down")
    with pytest.raises(FileExistsError):
        host.add_bridge("cni0")
    host.set_link("cni0", promisc=True, up=True)
    [shown] = ip("link", "show", "cni0")
    assert {"PROMISC", "UP"} <= set(shown["flags"])  # type: ignore[call-overload]  # a list of words
    host.set_link(found.index, promisc=False)
    found = host.link(found.index)
    assert found is not None
    assert (found.flags & rtnl.IFF_PROMISC, found.up) == (0, True)


@pytest.mark.netns
def test_a_veth_pair_is_made_across_namespaces_from_either_side() -> None:
    here, there = os.open("/proc/self/ns/net", os.O_RDONLY), new_netns()
    host, container = Rtnl(), Rtnl(there)
    container.add_veth("eth0", "veth0a", peer_netns_fd=here, mtu=1400, mac=MAC, peer_mac=PEER_MAC)
    inner, outer = container.link("eth0"), host.link("veth0a")
    assert inner is not None
    assert outer is not None
    assert (inner.mac, inner.mtu, outer.mac, outer.mtu) == (MAC, 1400, PEER_MAC, 1400)
    assert (inner.kind, inner.link, outer.link) == ("veth", outer.index, inner.index)
    assert outer.netns_id >= 0
    assert host.link("eth0") is None
    host.add_veth("veth0b", "eth1", peer_netns_fd=there, alias="0123 net/web/eth1")
    made = host.link("veth0b")
    assert made is not None
    assert (made.alias, made.netns_id) == ("0123 net/web/eth1", outer.netns_id)
    for name, peer in (("eth0", "veth0c"), ("eth2", "veth0a")):
        with pytest.raises(FileExistsError):
            container.add_veth(name, peer, peer_netns_fd=here)
    assert [link.name for link in container.links()] == ["lo", "eth0", "eth1"]


@pytest.mark.netns
def test_a_pair_in_one_namespace_shows_its_peer_without_a_namespace() -> None:
    host = Rtnl()
    host.add_veth("a", "b")
    a, b = host.link("a"), host.link("b")
    assert a is not None
    assert b is not None
    assert (a.link, b.link, a.netns_id) == (b.index, a.index, -1)


@pytest.mark.netns
def test_a_pair_whose_alias_is_refused_is_taken_away_again() -> None:
    host = Rtnl()
    with pytest.raises(OSError, match=r"Numerical result|Invalid"):
        host.add_veth("a", "b", alias="x" * 300)
    assert [link.name for link in host.links()] == ["lo"]


@pytest.mark.netns
def test_several_changes_of_a_link_are_one_request() -> None:
    host = Rtnl()
    host.add_bridge("cni0")
    host.add_veth("a", "b")
    host.set_link("a", up=True, mtu=1300, mac=MAC, master=index_of(host, "cni0"), alias="web")
    a = host.link("a")
    assert a is not None
    assert (a.up, a.mtu, a.mac, a.master, a.alias, a.slave_kind) == (
        True,
        1300,
        MAC,
        index_of(host, "cni0"),
        "web",
        "bridge",
    )
    assert [link.name for link in host.links(master=a.master)] == ["a"]
    host.set_link("a", master=0, alias="", up=False)
    a = host.link("a")
    assert a is not None
    assert (a.master, a.alias, a.up) == (0, "", False)
    host.set_link(a.index, name="c")
    assert (host.link("a"), index_of(host, "c")) == (None, a.index)


@pytest.mark.netns
def test_a_link_moves_to_another_namespace() -> None:
    there = new_netns()
    host, container = Rtnl(), Rtnl(there)
    host.add_veth("a", "b")
    host.set_link("a", netns_fd=there)
    assert host.link("a") is None
    assert container.link("a") is not None


@pytest.mark.netns
def test_flags_of_a_bridge_port_are_set_and_read_back() -> None:
    host = Rtnl()
    host.add_bridge("cni0")
    host.add_veth("a", "b")
    host.set_link("a", master=index_of(host, "cni0"))
    index = index_of(host, "a")
    for hairpin, isolated in ((True, False), (False, True), (True, True), (False, False)):
        host.set_bridge_port(index, hairpin=hairpin, isolated=isolated)
        port = host.link("a")
        assert port is not None
        assert (port.hairpin, port.isolated) == (hairpin, isolated)
        [shown] = ip("link", "show", "a")
        data = shown["linkinfo"]["info_slave_data"]  # type: ignore[index]  # nested objects
        assert (data["hairpin"], data["isolated"]) == (hairpin, isolated)
    with pytest.raises(OSError, match=r"Operation not supported|Invalid"):
        host.set_bridge_port(index_of(host, "b"), hairpin=True)


@pytest.mark.debian_kernel
@pytest.mark.netns
def test_vlan_filtering_works_or_is_refused_by_the_kernel() -> None:
    host = Rtnl()
    try:
        host.add_bridge("cni0", vlan_filtering=True)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP  # noqa: PT017  # a kernel without CONFIG_BRIDGE_VLAN_FILTERING
        return
    found = host.link("cni0")
    assert found is not None
    assert found.vlan_filtering
    host.add_veth("a", "b")
    host.set_link("a", master=found.index)
    index = index_of(host, "a")
    host.delete_vlan(index, 1, rtnl.VID_MAX)
    host.add_vlan(index, 5, pvid=True, untagged=True)
    host.add_vlan(index, 10, 12)
    shown = json.loads(
        subprocess.run(["bridge", "-j", "vlan", "show", "dev", "a"], capture_output=True, check=True).stdout
    )
    assert [entry["vlan"] for entry in shown[0]["vlans"]] == [5, 10, 11, 12]
    found_vlans = vlans.of_port(host, index)
    assert found_vlans == {5: vlans.OWN, 10: 0, 11: 0, 12: 0}
    assert vlans.shown(found_vlans) == "5 pvid untagged, 10-12"
    assert (vlans.of_port(host, found.index), vlans.default_vlan(found)) == ({1: vlans.OWN}, 1)
    host.delete_vlan(index, 1, rtnl.VID_MAX)
    assert (vlans.of_port(host, index), vlans.shown({})) == ({}, "none")
    host.add_bridge("cni1")
    other = index_of(host, "cni1")
    for _ in range(2):
        vlans.turn_on_filtering(host, other)
        after = host.link("cni1")
        assert after is not None
        assert after.vlan_filtering


@pytest.mark.netns
def test_what_is_not_there_is_none_or_false() -> None:
    host = Rtnl()
    assert host.link("nope") is None
    assert host.link(99) is None
    assert [host.delete_link("nope"), host.delete_link(99)] == [False, False]


@pytest.mark.netns
def test_deleting_one_end_of_a_pair_deletes_both() -> None:
    there = new_netns()
    host, container = Rtnl(), Rtnl(there)
    host.add_veth("veth0a", "eth0", peer_netns_fd=there)
    assert host.delete_link("veth0a") is True
    assert container.link("eth0") is None


@pytest.mark.netns
@pytest.mark.parametrize("hurried", [False, True])
def test_the_kernels_refusal_of_a_deletion_is_told(hurried: bool) -> None:
    os.sched_getaffinity = lambda _pid: set(range(1000))  # so many processors are never busy
    host = Rtnl(hurried=hurried)
    lo = host.link("lo")
    assert lo is not None
    with pytest.raises(OSError, match="Operation not supported") as refusal:
        host.delete_link(lo.index)
    assert refusal.value.errno == errno.EOPNOTSUPP


@pytest.mark.netns
@pytest.mark.parametrize("echo", [netlink.NLM_F_ECHO, 0], ids=["echo", "before Linux 6.2"])
def test_in_a_hurry_a_child_deletes_and_both_ends_are_gone(echo: int) -> None:
    vars(rtnl)["NLM_F_ECHO"] = echo
    vars(netlink)["orphans_are_collected"] = lambda: True  # whatever the first process of the tests' PID namespace is
    there = new_netns()
    host, container = Rtnl(hurried=True), Rtnl(there)
    for _ in range(3):
        host.add_veth("veth0a", "eth0", peer_netns_fd=there)
        link = host.link("veth0a")
        assert link is not None
        assert host._delete_by_child(link.index) is True
        assert (host.link("veth0a"), container.link("eth0")) == (None, None)


class Counting(Rtnl):
    """How many requests to delete links are sent."""

    deletions = 0

    def request(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        self.deletions += kind == rtnl.RTM_DELLINK
        return super().request(kind, flags, body)


def several(host: Rtnl) -> list[int]:
    """Three pairs, and the indexes of one end of each."""
    for name in ("a", "b", "c"):
        host.add_veth(name, f"{name}-peer")
    return [found.index for name in ("a", "b", "c") if (found := host.link(name)) is not None]


@pytest.mark.netns
def test_many_links_go_with_one_request_and_take_no_others_with_them() -> None:
    host = Counting()
    host.add_bridge("cni0")
    indexes = several(host)
    host.delete_link("b")  # somebody was quicker
    host.deletions = 0
    host.delete_links(indexes)
    assert {link.name for link in host.links()} == {"lo", "cni0"}
    assert host.deletions == 1
    host.delete_links(indexes)
    host.delete_links([])
    assert {link.name for link in host.links()} == {"lo", "cni0"}


@pytest.mark.netns
@pytest.mark.parametrize("whose", ["that has the same number", "that cannot be deleted"])
def test_a_link_in_the_group_is_no_reason_to_delete_it(whose: str) -> None:
    host = Counting()
    indexes = several(host)
    os.urandom = lambda size: bytes([255] * size)
    if whose == "that has the same number":
        host.add_bridge("theirs")
        theirs = host.link("theirs")
        assert theirs is not None
        host._set_group(theirs.index, 0xFFFF_FFFF)
        host.delete_links(indexes)
        assert {link.name for link in host.links()} == {"lo", "theirs"}
    else:
        with pytest.raises(OSError, match="Operation not supported"):
            host.delete_links([*indexes, 1])
        assert {link.name for link in host.links()} == {"lo"}


@pytest.mark.netns
def test_a_socket_stays_in_its_namespace_and_the_process_in_its_own() -> None:
    there = new_netns()
    container, host = Rtnl(there), Rtnl()
    host.add_bridge("cni0")
    assert container.link("cni0") is None
    with Enter(there):
        assert host.link("cni0") is not None
    assert 0 != host.cookie != container.cookie != 0
    container.close()
    container.close()


@pytest.mark.netns
def test_waiting_for_a_link_ends_when_its_peer_comes_up_or_at_the_limit() -> None:
    host = Rtnl()
    host.add_veth("a", "b")
    host.set_link("a", up=True)
    begun = time.monotonic()
    assert host.wait_up("a", 0.1) is False
    assert time.monotonic() - begun >= 0.1
    host.set_link("b", up=True)
    assert host.wait_up("a", 5) is True
    assert host.wait_up("gone", 5) is False
    assert host.wait_up(index_of(host, "b"), 5) is True


def test_a_peer_in_a_namespace_that_is_ending_is_not_taken_for_a_link_of_this_one() -> None:
    """The kernel shows the peer's index in that namespace, and -1 for a namespace that has lost its number."""
    shown = rtnl.ifinfomsg(7) + netlink.attr(rtnl.IFLA_LINK, netlink.u32(2))
    here, away, ending = (
        rtnl.Link(shown + more)
        for more in (
            b"",
            netlink.attr(rtnl.IFLA_LINK_NETNSID, bytes(4)),
            netlink.attr(rtnl.IFLA_LINK_NETNSID, b"\xff" * 4),
        )
    )
    assert [(link.link, link.netns_id) for link in (here, away, ending)] == [(2, -1), (2, 0), (0, -1)]
